"""Validation: cross-entropy alone, on the same tokens every time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn

from architecture.interface import IGNORE_INDEX
from training.monitor.routing import Routing, RoutingSums


class Evaluation(NamedTuple):
    """What one pass over the validation tokens found."""

    loss: float  # nats per target token, end-of-text targets included
    standard_error: float  # of loss, over tokens
    bits_per_byte: float  # nats of the text tokens / ln 2 / UTF-8 bytes of those tokens
    tokens: int
    # float64, nats and how many targets: (T, 2) by place in the row, (S, 2) by a segment's number in its
    # document; None without resets
    by_position: torch.Tensor
    by_segment: torch.Tensor | None
    routing: Routing | None  # None for a dense model


class Interrupted(Exception):
    """Someone asked to stop while an evaluation ran; its partial result is not a result."""


def text_nats_and_bytes(
    token_losses: torch.Tensor, targets: torch.Tensor, token_bytes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats and UTF-8 bytes of the text tokens among the targets, two () float64 tensors.

    token_losses: (B, T) float32, nats.  targets: (B, T) int64.  token_bytes: (V,) int64, 0 for special
    tokens, which therefore count in neither sum. Bits per byte = nats / ln 2 / bytes.
    """
    sizes = token_bytes[targets.clamp(min=0)] * (targets != IGNORE_INDEX)
    wide = torch.float32 if token_losses.device.type == "mps" else torch.float64  # mps has no float64
    return (token_losses.to(wide) * (sizes > 0)).sum(), sizes.sum().to(wide)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[dict[str, torch.Tensor]],
    token_bytes: torch.Tensor,
    *,
    device: torch.device,
    autocast: Callable[[], object],
    keep_choices: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Score every target of `batches` once, in eval mode. Raises Interrupted when told to stop.

    What a model carries goes from each batch to the next.

    keep_choices: also keep the experts that each token chose.
    """
    was_training = model.training
    model.eval()
    sums, by_position, routing = [], [], RoutingSums(keep_choices)
    segments, carry = SegmentSums(), None
    try:
        for batch in batches:
            if should_stop():
                raise Interrupted
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with autocast():
                out = model(**batch, carry=carry)
            carry = out.carry
            losses, counted = out.token_losses, batch["targets"] != IGNORE_INDEX
            nats, num_bytes = text_nats_and_bytes(losses, batch["targets"], token_bytes)
            whole = (out.loss_sum, losses.square().sum(), out.num_targets, nats, num_bytes)
            sums.append(torch.stack([x.to(nats.dtype) for x in whole]).cpu())  # one wait for the device
            by_position.append(torch.stack((losses.sum(0), counted.sum(0))).cpu().double())
            if "reset" in batch:
                segments.add(batch["reset"], losses, counted)
            if out.router is not None:
                routing.add(out.router, batch["input_ids"], counted)
    finally:
        model.train(was_training)
    nats, squares, tokens, text_nats, num_bytes = torch.stack(sums).double().sum(0).tolist()
    loss = nats / tokens
    variance = max(squares / tokens - loss**2, 0.0)
    return Evaluation(
        loss=loss,
        standard_error=math.sqrt(variance / tokens),
        bits_per_byte=text_nats / math.log(2) / max(num_bytes, 1.0),
        tokens=int(tokens),
        by_position=torch.stack(by_position).sum(0).T,
        by_segment=segments.result(),
        routing=routing.result(tokens),
    )


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
