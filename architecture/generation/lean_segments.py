"""The lean decoder for a model that carries a state from segment to segment (segments.py).

All rows are at the same place of their segment, so their texts are equally long. The slot is column 0 of the cache,
and a new segment begins at column 0 again. `obstacle` says what it cannot do.

Shapes: B rows, T columns, V vocabulary, D hidden_size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from architecture.generation import lean


def obstacle(model: nn.Module) -> str | None:
    """Why this decoder cannot run the model, or None if it can."""
    config = model.config
    if any(window is not None and window <= config.segment_length for window in config.windows):
        return "a window is not longer than a segment"  # the ring of the layer would lose the slot
    if config.position == "learned":
        return "positions are learned, and the slot has none"
    return lean.obstacle(model)


class LeanSegmentDecoder(lean.LeanDecoder):
    """Feeds equally many ids to each row at a time."""

    carries = True

    @torch.inference_mode()
    def __init__(self, model: nn.Module, rows: int):
        """Raises ValueError if there is an obstacle."""
        if reason := obstacle(model):
            raise ValueError(f"the lean decoder cannot run this model, because {reason}; use SegmentDecoder")
        super().__init__(model, rows, 1 + model.config.segment_length)
        self.model, self.state = model, model.new_state(rows)  # (B, D)
        if self.cos is not None:
            self.cos, self.sin = self.rotary_tables(model, torch.arange(-1, model.config.segment_length))

    @torch.inference_mode()
    def feed(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Append equally many ids to each row. Returns (B, V) logits of the next ids.

        The next call overwrites the logits.
        """
        for segment in self._segments(torch.tensor([list(row) for row in ids])):
            if self.length == 0:
                self._read_slot()
            if segment.shape[1] == 1:
                self._run(self.step, segment[:, 0], self.next_position)
                self._count(1)
            else:
                self._read(segment)
            logits = self._logits()
            if self.length == self.max_length:
                last = self.norm.scaled(self.step.x)[:, None]
                self.state = self.model.next_state(last, None, self.state)
                self.length = 0
                self.next_position.zero_()
        return logits

    def _segments(self, columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """ids (B, T) -> the rest of the current segment, and further segments."""
        room = self.max_length - max(1, self.length)
        rest = columns[:, room:]
        return columns[:, :room], *(rest.split(self.max_length - 1, dim=1) if rest.shape[1] else ())

    def _read_slot(self) -> None:
        """Begin a segment with the slot."""
        model = self.model
        state = self.state if model.config.carry_state else torch.zeros_like(self.state)
        slot = model.slot + model.state_projection(state.to(model.slot.dtype))
        self._run(self.step, slot, self.next_position)
        self._count(1)
