"""The key/value cache of generation, for any model whose attention masks by position.

Shapes: B batch, T new tokens, S keys that they see, G key/value heads, C head_dim.
"""

from __future__ import annotations

import torch

EMPTY_SLOT = -(2**62)  # the position of an empty slot, which lies before every window


class KVCache:
    """Keys and values of the tokens so far. forward updates them in place, without gradients.

    A layer without a window has one slot per token; a layer with a window has a ring of that many slots. Only
    the position stored with a slot tells what it holds (negative: padding), so the order of slots is free.
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
        """windows: one per layer, None for a layer that sees all tokens.  head_shape: (G, C)."""
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
        """ValueError unless a forward with this batch and number of tokens fits the cache."""
        if torch.is_grad_enabled():
            raise ValueError("a cache takes no gradient; call the model under torch.no_grad()")
        rows, end = len(self.next_position), self.length + tokens
        if batch != rows:
            raise ValueError(f"the cache was made for {rows} rows, got {batch}; use new_cache({batch}, ...)")
        if end > self.max_length:
            raise ValueError(
                f"the cache has room for {self.max_length} tokens (its max_length), got {end}; "
                "create a cache with a larger max_length"
            )

    def extend(self, window: int | None, positions: torch.Tensor) -> torch.Tensor:
        """Positions of the queries (B, T) -> positions of the keys in layers with this window (B, S)."""
        return self._append(self.positions[window], window, positions)

    def extend_layer(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the new tokens (B, T, G, C) -> all that they may see (B, S, G, C)."""
        window = self.windows[layer]
        return (
            self._append(self.keys[layer], window, key),
            self._append(self.values[layer], window, value),
        )

    def advance(self, positions: torch.Tensor) -> None:
        """Count the tokens at these positions (B, T), once every layer holds them."""
        self.length += positions.shape[1]
        self.next_position = positions[:, -1:] + 1

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows (int64) only."""
        self.next_position = self.next_position[rows]
        self.positions = {window: positions[rows] for window, positions in self.positions.items()}
        self.keys, self.values = ([store[rows] for store in stores] for stores in (self.keys, self.values))

    def _append(self, store: torch.Tensor, window: int | None, new: torch.Tensor) -> torch.Tensor:
        """Write new (B, T, ...) into store (B, slots, ...); return what the T queries may see (B, S, ...)."""
        new, slots = new.to(store.dtype), store.shape[1]
        end = self.length + new.shape[1]
        seen = store
        if window is not None and new.shape[1] > 1:
            # The first of several queries sees older tokens than the ring holds after the last one.
            seen = torch.cat((store, new), dim=1)
        slot = torch.arange(max(self.length, end - slots), end, device=store.device) % slots
        store[:, slot] = new[:, -slots:]
        return seen if window is not None else store[:, :end]


def require_memory(model, rows: int, length: int, available: float) -> None:
    """ValueError if generating `rows` texts of `length` tokens needs more than `available` bytes.

    Without this check, the operating system would kill the program later without a message.
    """
    config = model.config
    length = min(length, getattr(config, "segment_length", length))  # a model with segments keeps one
    slots = sum(min(window or length, length) for window in config.windows)
    cache = 2 * 4 * slots * config.num_key_value_heads * config.head_dim
    drawing = 3 * 8 * config.vocab_size  # float64 logits, sorted, and their cumulative sums
    if rows * (cache + drawing) > available:
        raise ValueError(
            f"{rows:,} texts of {length:,} tokens need about {rows * (cache + drawing) / 1e9:,.1f} GB of "
            f"memory, and {available / 1e9:,.1f} GB are available; lower --num_samples or --max_tokens"
        )
