"""The keys and values that generation keeps, for any model whose attention masks by position.

Shapes: B batch, T new tokens, S keys that they may see, G key/value heads, C head_dim.
"""

from __future__ import annotations

import torch

EMPTY_SLOT = -(2**62)  # position of a slot that holds nothing: below every window


class KVCache:
    """Keys and values of the tokens seen so far, updated in place by forward, for inference only.

    A layer without a window has a slot per token; one with a window has a ring of that many. What a slot
    holds is told by its position alone (negative: padding), so the order of the slots does not matter.
    """

    def __init__(
        self,
        windows: tuple[int | None, ...],
        batch: int,
        max_length: int,
        head_shape: tuple[int, int],
        device: torch.device,
        dtype: torch.dtype,
    ):
        """windows: of each layer, None where it sees everything.  head_shape: (G, C)."""
        self.windows, self.length, self.max_length = windows, 0, max_length
        self.next_position = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        slots = {window: min(window or max_length, max_length) for window in windows}
        self.positions = {
            window: torch.full((batch, slots[window]), EMPTY_SLOT, device=device) for window in slots
        }
        self.keys, self.values = (
            [torch.zeros(batch, slots[window], *head_shape, device=device, dtype=dtype) for window in windows]
            for _ in range(2)
        )

    def check_room(self, batch: int, tokens: int) -> None:
        """Refuse a forward that this cache is not for."""
        if torch.is_grad_enabled():
            raise ValueError("a cache takes no gradient; call the model under torch.no_grad()")
        rows, end = len(self.next_position), self.length + tokens
        if batch != rows:
            raise ValueError(f"the cache was made for {rows} rows, got {batch}; use new_cache({batch}, ...)")
        if end > self.max_length:
            raise ValueError(
                f"the cache has room for {self.max_length} tokens (its max_length), got {end}; "
                "make one with a larger max_length"
            )

    def extend(self, window: int | None, positions: torch.Tensor) -> torch.Tensor:
        """Query positions (B, T) -> those of the keys that layers with this window show them, (B, S)."""
        return self._append(self.positions[window], window, positions)

    def extend_layer(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value (B, T, G, C) of the new tokens -> those that they may see, (B, S, G, C)."""
        window = self.windows[layer]
        return (
            self._append(self.keys[layer], window, key),
            self._append(self.values[layer], window, value),
        )

    def advance(self, positions: torch.Tensor) -> None:
        """The tokens at these positions (B, T) are in every layer now."""
        self.length += positions.shape[1]
        self.next_position = positions[:, -1:] + 1

    def _append(self, store: torch.Tensor, window: int | None, new: torch.Tensor) -> torch.Tensor:
        """Write new (B, T, ...) into store (B, slots, ...) -> what its T queries may see, (B, S, ...)."""
        new, slots = new.to(store.dtype), store.shape[1]
        end = self.length + new.shape[1]
        seen = store
        if window is not None and new.shape[1] > 1:
            # the windows of several queries reach back further than the ring that the last one leaves
            seen = torch.cat((store, new), dim=1)
        slot = torch.arange(max(self.length, end - slots), end, device=store.device) % slots
        store[:, slot] = new[:, -slots:]
        return seen if window is not None else store[:, :end]


def require_memory(model, rows: int, length: int, available: float) -> None:
    """ValueError where that many texts of `length` tokens cannot be written at once in `available` bytes:
    the system would end the program later without a word.
    """
    config = model.config
    length = min(length, getattr(config, "segment_length", length))  # all that such a model keeps
    slots = sum(min(window or length, length) for window in config.windows)
    cache = 2 * 4 * slots * config.num_key_value_heads * config.head_dim
    drawing = 3 * 8 * config.vocab_size  # logits in float64, in order, and their sums
    if rows * (cache + drawing) > available:
        raise ValueError(
            f"{rows:,} texts of {length:,} tokens need about {rows * (cache + drawing) / 1e9:,.1f} GB of memory, "
            f"and {available / 1e9:,.1f} GB are available; lower --num_samples or --max_tokens"
        )
