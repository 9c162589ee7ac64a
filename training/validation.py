"""Validation: cross-entropy without auxiliary terms, over fixed batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn

from architecture.interface import IGNORE_INDEX
from training.monitor.routing import Routing, RoutingSums


class Evaluation(NamedTuple):
    """The result of one pass over validation tokens."""

    loss: float  # nats per target token, end-of-text targets included
    half_width: float | None  # half of the 95 % interval of loss over documents; None below three documents
    documents: int
    bits_per_byte: float  # nats of the text tokens / ln 2 / UTF-8 bytes of those tokens
    tokens: int
    by_position: torch.Tensor  # (T, 2) float64: nats and number of targets at each position of a row
    by_segment: torch.Tensor | None  # (S, 2) float64: the same by the segment's number; None without resets
    routing: Routing | None  # None for a dense model


class Interrupted(Exception):
    """An evaluation was asked to stop and has no result."""


def text_nats_and_bytes(
    token_losses: torch.Tensor, targets: torch.Tensor, token_bytes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats and UTF-8 bytes of the text tokens among the targets: two () float64 tensors.

    Bits per byte are nats / ln 2 / bytes.

    token_losses: (B, T) float32, nats.  targets: (B, T) int64.  token_bytes: (V,) int64, 0 for special
    tokens, which are in neither sum.
    """
    sizes = token_bytes[targets.clamp(min=0)] * (targets != IGNORE_INDEX)
    wide = torch.float32 if token_losses.device.type == "mps" else torch.float64  # MPS has no float64
    return (token_losses.to(wide) * (sizes > 0)).sum(), sizes.sum().to(wide)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[dict[str, torch.Tensor]],
    token_bytes: torch.Tensor,
    *,
    device: torch.device,
    autocast: Callable[[], object],
    eot: int,
    lanes: bool,
    keep_choices: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Score every target of `batches` once, in eval mode, and restore the model's mode.

    The model's carry goes from each batch to the next.

    eot: the target that ends a document.  lanes: each row goes on in the next batch; otherwise the rows
    follow each other.
    keep_choices: also keep the experts that each token chose.
    Raises Interrupted if should_stop() returns true.
    """
    was_training = model.training
    model.eval()
    sums, by_position, routing = [], [], RoutingSums(keep_choices)
    segments, documents, carry = SegmentSums(), DocumentSums(eot, lanes), None
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
            whole = (out.loss_sum, out.num_targets, nats, num_bytes)
            sums.append(torch.stack([x.to(nats.dtype) for x in whole]).cpu())  # the one synchronization
            by_position.append(torch.stack((losses.sum(0), counted.sum(0))).cpu().double())
            documents.add(batch["targets"].cpu(), losses.cpu())
            if "reset" in batch:
                segments.add(batch["reset"], losses, counted)
            if out.router is not None:
                routing.add(out.router, batch["input_ids"], counted)
    finally:
        model.train(was_training)
    nats, tokens, text_nats, num_bytes = torch.stack(sums).double().sum(0).tolist()
    by_document = documents.result()
    return Evaluation(
        loss=nats / tokens,
        half_width=ratio_interval(*by_document)[1],
        documents=len(by_document.T),
        bits_per_byte=text_nats / math.log(2) / max(num_bytes, 1.0),
        tokens=int(tokens),
        by_position=torch.stack(by_position).sum(0).T,
        by_segment=segments.result(),
        routing=routing.result(tokens),
    )


def ratio_interval(nats: torch.Tensor, tokens: torch.Tensor) -> tuple[float | None, float | None]:
    """Standard error, and half width of the 95 % interval, of sum(nats) / sum(tokens) over documents.

    nats, tokens: (D,) sums of each document.  The tokens of a document are not independent, so this is the
    ratio estimator of cluster sampling (Cochran 1977, section 6.3). One document has no error, and fewer than
    three have no interval.
    """
    nats, tokens, n = nats.double(), tokens.double(), len(tokens)
    if n < 2:
        return None, None
    spread = (nats - nats.sum() / tokens.sum() * tokens).square().sum()
    error = float((spread * n / (n - 1)).sqrt() / tokens.sum())
    # Student's t from the normal quantile (Abramowitz and Stegun 26.7.5), at most 4 % below for three
    # documents: scipy would take a second to import
    z, df = 1.959964, n - 1
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
    quantile = z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2) + third
    return error, quantile * error if n > 2 else None


class DocumentSums:
    """Sums losses by document. The target EOT is the last of its document."""

    def __init__(self, eot: int, lanes: bool):
        self.eot, self.lanes = eot, lanes
        self.ended: torch.Tensor | int = 0  # (R, 1), documents that ended before, in each stream of targets
        self.sums: list[torch.Tensor] = []  # each (D, 3) float64: document, nats, number of targets

    def add(self, targets: torch.Tensor, losses: torch.Tensor) -> None:
        """targets: (B, T) int64.  losses: (B, T), 0 where there is no target.  Both on the CPU."""
        streams = targets if self.lanes else targets.reshape(1, -1)
        ends = (streams == self.eot).long()
        number = self.ended + ends.cumsum(1) - ends
        self.ended = number[:, -1:] + ends[:, -1:]
        document = (number * len(streams) + torch.arange(len(streams))[:, None]).flatten()
        there, place = document.unique(return_inverse=True)
        parts = (losses.flatten().double(), (streams != IGNORE_INDEX).flatten().double())
        self.sums.append(torch.stack((there.double(), *(place.bincount(part) for part in parts)), dim=1))

    def result(self) -> torch.Tensor:
        """(2, D) float64: nats and number of targets of each document."""
        document, nats, count = torch.cat(self.sums).unbind(1)
        nats, count = (document.long().bincount(part) for part in (nats, count))
        return torch.stack((nats, count))[:, count > 0]


class SegmentSums:
    """Sums losses by the number of the segment in its document, for batches with resets."""

    def __init__(self):
        self.number = None  # (B,) int64, the segment number of each row
        self.sums: list[torch.Tensor] = []  # each (B, 3) float64: segment number, nats, number of targets

    def add(self, reset: torch.Tensor, losses: torch.Tensor, counted: torch.Tensor) -> None:
        """reset: (B,) bool.  losses: (B, T), 0 where there is no target.  counted: (B, T) bool."""
        before = self.number if self.number is not None else reset.new_zeros(reset.shape).long()
        self.number = (before + 1).masked_fill(reset, 0)
        parts = (self.number, losses.sum(1), counted.sum(1))
        self.sums.append(torch.stack([x.cpu().double() for x in parts], dim=1))

    def result(self) -> torch.Tensor | None:
        """(S, 2) float64: nats and number of targets of each segment number; None if no batch was added."""
        if not self.sums:
            return None
        number, nats, count = torch.cat(self.sums).unbind(1)
        number = number[count > 0].long()  # a row of padding is in no segment
        nats, count = nats[count > 0], count[count > 0]
        return torch.stack((number.bincount(nats), number.bincount(count)), dim=1)
