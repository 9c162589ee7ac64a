"""Validation: cross-entropy without auxiliary terms, over fixed batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from architecture.interface import IGNORE_INDEX, evaluation_mode
from training.causality import Probe, require_causal
from training.distributed.mesh import ONE, Ranks
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
    probes: list[Probe]  # of causality, which came first; [] if the model had passed before


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
    packing: str,
    first_image_id: int | None = None,
    keep_choices: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ONE,
) -> Evaluation:
    """Score every target of `batches` once, in eval mode, and restore the model's mode.

    The model's carry goes from each batch to the next. Before its first evaluation in this process, the model
    must pass the probe of training/causality.py.

    eot: the target that ends a document.  packing: that of the batches (data/loader.py).
    first_image_id: ids from here on are image tokens; None for a model of text.
    keep_choices: also keep the experts that each token chose.
    ranks: they share the batches, and each gets the result of one process. If the model has a carry, which
    passes from batch to batch, each scores all of them.
    Raises Interrupted if should_stop() returns true. It is asked once for a batch of each rank. Raises ValueError
    for a model that is not causal.
    """
    sums, by_position, routing = [], [], RoutingSums(keep_choices, first_image_id)
    segments, documents, segment, ended, carry = NumberedSums(), NumberedSums(), 0, 0, None
    batches = iter(batches)
    first = list(itertools.islice(batches, 1))
    with evaluation_mode(model):
        probes = []
        for batch in first:
            shape = batch["input_ids"].shape
            probes = require_causal(model, *shape, device=device, autocast=autocast, ranks=ranks)
        for batch, turn, filler in dealt(itertools.chain(first, batches), ranks.number):
            if turn == 0 and should_stop():
                raise Interrupted
            if not filler:
                document, ended = document_numbers(batch["targets"].cpu(), ended, eot, packing)
            if turn != ranks.rank and "reset" not in batch:
                continue
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with autocast():
                out = model(**batch, carry=carry)
            if filler:
                continue
            carry = out.carry
            losses, counted = out.token_losses, batch["targets"] != IGNORE_INDEX
            nats, num_bytes = text_nats_and_bytes(losses, batch["targets"], token_bytes)
            whole = (out.loss_sum, out.num_targets, nats, num_bytes)
            sums.append(torch.stack([x.to(nats.dtype) for x in whole]).cpu())  # the one synchronization
            by_position.append(torch.stack((losses.sum(0), counted.sum(0))).cpu().double())
            documents.add(document, losses, counted)
            if "reset" in batch:
                segment = torch.where(batch["reset"], 0, segment + 1)
                segments.add(segment, losses.sum(1), counted.sum(1))
            if out.router is not None:
                routing.add(out.router, batch["input_ids"], counted)
    if ranks.number > 1 and not segments.parts:
        parts = sums, by_position, documents.parts, routing.sums, routing.choices, routing.tokens
        *gathered, layers = zip(*ranks.gather((*parts, routing.layers)))
        sums, by_position, documents.parts, routing.sums, routing.choices, routing.tokens = map(
            in_turn, gathered
        )
        routing.layers = max(layers)  # a rank without a batch has none
    nats, tokens, text_nats, num_bytes = torch.stack(sums).double().sum(0).tolist()
    by_document = documents.result()
    by_document = by_document[by_document[:, 1] > 0]
    return Evaluation(
        loss=nats / tokens,
        half_width=ratio_interval(*by_document.T)[1],
        documents=len(by_document),
        bits_per_byte=text_nats / math.log(2) / max(num_bytes, 1.0),
        tokens=int(tokens),
        by_position=torch.stack(by_position).sum(0).T,
        by_segment=segments.result() if segments.parts else None,
        routing=routing.result(),
        probes=probes,
    )


def dealt(
    batches: Iterable[dict[str, torch.Tensor]], ranks: int
) -> Iterator[tuple[dict[str, torch.Tensor], int, bool]]:
    """Batches, whose turn each one is, and whether it only fills the last round.

    Sharded models exchange weights and tokens in a forward pass, so every rank has the same number of them. The
    last batch fills the last round, unless it has the carry of a sequence ("reset") and every rank scores it.
    """
    number, batch = -1, {}
    for number, batch in enumerate(batches):
        yield batch, number % ranks, False
    if "reset" not in batch:
        for filler in range(number + 1, -(-(number + 1) // ranks) * ranks):
            yield batch, filler % ranks, True


def in_turn(parts: tuple[list[Any], ...]) -> list[Any]:
    """The results of all batches in their order, from those of each rank."""
    most = max(map(len, parts))
    return [some[i] for i in range(most) for some in parts if i < len(some)]


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


def document_numbers(
    targets: torch.Tensor, ended: torch.Tensor | int, eot: int, packing: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) a number for the document of each target, and (R, 1) the documents that have ended in each stream.

    targets: (B, T) int64. EOT is the last of its document, and may be cut off in rows. Each row is a stream in
    lanes; otherwise all are one.
    ended: from the batch before.
    """
    if packing == "rows":
        numbers = ended + torch.arange(len(targets))[:, None]
        return numbers.expand_as(targets), numbers[-1:] + 1
    streams = targets if packing == "lanes" else targets.reshape(1, -1)
    ends = (streams == eot).long()
    number = ended + ends.cumsum(1) - ends
    numbers = number * len(streams) + torch.arange(len(streams))[:, None]
    return numbers.reshape(targets.shape), number[:, -1:] + ends[:, -1:]


class NumberedSums:
    """Sums nats and targets by a number: of their document, or of their segment in its document."""

    def __init__(self):
        self.parts: list[torch.Tensor] = []  # each (N, 3) float64: number, nats, number of targets

    def add(self, number: torch.Tensor, nats: torch.Tensor, count: torch.Tensor) -> None:
        """Three tensors of one shape."""
        there, place = number.cpu().flatten().unique(return_inverse=True)
        sums = (place.bincount(part.cpu().flatten().double()) for part in (nats, count))
        self.parts.append(torch.stack((there.double(), *sums), dim=1))

    def result(self) -> torch.Tensor:
        """(number + 1, 2) float64: nats and number of targets of each number."""
        number, nats, count = torch.cat(self.parts).unbind(1)
        number, nats, count = (x[count > 0] for x in (number.long(), nats, count))  # padding has no document
        return torch.stack((number.bincount(nats), number.bincount(count)), dim=1)
