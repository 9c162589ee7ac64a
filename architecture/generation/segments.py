"""Generation for a model that reads a text in segments and carries a state from each segment to the next.

The first position of a segment is a slot for the state. Tokens follow at positions 0, 1, ... Positions and
keys start again with each segment, so the memory does not grow with the text.

Shapes: B rows, T new columns, G key/value heads, C head_dim, V vocabulary, D hidden_size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from architecture.generation import lean_segments

SLOT = -1  # the position of the slot, right before the first token of a segment
PADDING = -2  # the position of a column that holds neither slot nor token


class SegmentCache:
    """Keys and values of the current segment of each row. forward updates them in place, without gradients.

    A new segment clears nothing: old keys lie behind its newest position, where no query looks, until they
    are overwritten.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        segment_length: int,
        head_shape: tuple[int, int],
        device: torch.device,
        dtype: torch.dtype,
    ):
        """head_shape: (G, C)."""
        shape = (layers, batch, 1 + segment_length, *head_shape)
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype).unbind() for _ in range(2))
        self.positions = torch.arange(SLOT, segment_length, device=device)[None]  # (1, 1 + length)
        self.columns = None  # (row, column) indices of the current forward without its padding

    def check_room(self, batch: int, tokens: int) -> None:
        """ValueError unless a forward of this batch fits the cache. The model checks the segment's length."""
        if torch.is_grad_enabled():
            raise ValueError("a cache takes no gradient; call the model under torch.no_grad()")
        if batch != len(self.keys[0]):
            raise ValueError(
                f"the cache was made for {len(self.keys[0])} rows, got {batch}; use new_cache({batch})"
            )

    def extend(self, window: int | None, positions: torch.Tensor) -> torch.Tensor:
        """Positions of the queries (B, T) -> positions of the keys, the same in every layer."""
        self.columns = torch.where(positions != PADDING)
        self.places = positions[self.columns] - SLOT
        return self.positions

    def extend_layer(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the new columns (B, T, G, C) -> those of the whole segment."""
        for store, new in ((self.keys[layer], key), (self.values[layer], value)):
            store[self.columns[0], self.places] = new[self.columns].to(store.dtype)
        return self.keys[layer], self.values[layer]

    def advance(self, positions: torch.Tensor) -> None:
        """Do nothing: the positions of the queries tell what a segment holds."""


class SegmentDecoder:
    """Feeds each row any number of tokens at a time. Each row has its own place in its segment.

    The state of a row is renewed after every segment_length tokens, counted from its beginning.
    """

    def __init__(self, model: nn.Module, rows: int, use_cache: bool = True):
        """use_cache: False reads each row from its beginning at every call, the reference for the cache."""
        self.model, self.use_cache = model, use_cache
        self.filled = [0] * rows  # tokens in the current segment of each row
        self.state = model.new_state(rows)  # (B, D)
        self.cache = model.new_cache(rows) if use_cache else None
        # used without a cache, and when the lean decoder gives up
        self.texts: list[list[int]] = [[] for _ in range(rows)]
        self.lean = None  # reads instead of the model while all texts are equally long
        if use_cache and lean_segments.obstacle(model) is None:
            self.lean = lean_segments.LeanSegmentDecoder(model, rows)

    @torch.no_grad()
    def feed(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Append at least one id to each row. Returns (B, V) logits of the next ids."""
        if self.lean is not None:
            if len(set(map(len, ids))) == 1:
                self.texts = [text + list(new) for text, new in zip(self.texts, ids)]
                return self.lean.feed(ids)
            self.lean, ids = None, [text + list(new) for text, new in zip(self.texts, ids)]
        if not self.use_cache:
            self.texts = [text + list(new) for text, new in zip(self.texts, ids)]
            return torch.stack([read_from_the_beginning(self.model, text) for text in self.texts])
        waiting, logits = [list(row) for row in ids], None
        length = self.model.config.segment_length
        while any(waiting):
            parts = [row[: length - held] for row, held in zip(waiting, self.filled)]
            waiting = [row[len(part) :] for row, part in zip(waiting, parts)]
            fed = torch.tensor([bool(part) for part in parts], device=self.state.device)[:, None]
            new = self._forward(parts)
            logits = new if logits is None else torch.where(fed, new, logits)
        return logits

    def _forward(self, parts: list[list[int]]) -> torch.Tensor:
        """Feed ids that fit into the current segments. Returns (B, V) logits, arbitrary for a row without ids."""
        width, device = max(map(len, parts)), self.state.device
        ids = torch.tensor([[0] * (width - len(part)) + part for part in parts], device=device)
        positions = torch.tensor(
            [
                [PADDING] * (width - len(part)) + list(range(held, held + len(part)))
                for part, held in zip(parts, self.filled)
            ],
            device=device,
        )
        output = self.model(ids, positions=positions, cache=self.cache, carry=self.state)
        self.filled = [held + len(part) for part, held in zip(parts, self.filled)]
        ended = [held == self.model.config.segment_length for held in self.filled]
        self.filled = [0 if end else held for end, held in zip(ended, self.filled)]
        self.state = torch.where(torch.tensor(ended, device=device)[:, None], output.carry, self.state)
        return output.logits[:, -1]


@torch.no_grad()
def read_from_the_beginning(model: nn.Module, ids: Sequence[int]) -> torch.Tensor:
    """Read one text segment by segment, as in training. Returns (V,) logits of the next id."""
    length, carry = model.config.segment_length, None
    for start in range(0, len(ids), length):
        segment = torch.tensor([ids[start : start + length]], device=next(model.parameters()).device)
        output = model(segment, carry=carry)
        carry = output.carry
    return output.logits[0, -1]
