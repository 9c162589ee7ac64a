"""The loss by the number of a segment in its document, from lanes that say where documents begin."""

from __future__ import annotations

import torch


class SegmentSums:
    """Gathers losses by the number of a segment in its document, from batches that have resets."""

    def __init__(self):
        self.number = None  # (B,) of the segment that each lane is in
        self.sums: list[torch.Tensor] = []  # of (B, 3): number, nats, targets

    def add(self, reset: torch.Tensor, losses: torch.Tensor, counted: torch.Tensor) -> None:
        """reset (B,) bool; losses (B, T), 0 where not counted; counted (B, T) bool."""
        before = self.number if self.number is not None else reset.new_zeros(reset.shape).long()
        self.number = (before + 1).masked_fill(reset, 0)
        parts = (self.number, losses.sum(1), counted.sum(1))
        self.sums.append(torch.stack([x.cpu().double() for x in parts], dim=1))

    def result(self) -> torch.Tensor | None:
        """(S, 2) float64, nats and targets of each segment number; None without any batch."""
        if not self.sums:
            return None
        number, nats, count = torch.cat(self.sums).unbind(1)
        number = number[count > 0].long()  # a lane of padding is in no segment
        nats, count = nats[count > 0], count[count > 0]
        return torch.stack((number.bincount(nats), number.bincount(count)), dim=1)
