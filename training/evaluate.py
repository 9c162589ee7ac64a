"""Validation: cross-entropy alone, on the same tokens every time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn

from architecture.interface import IGNORE_INDEX, RouterStats


class Evaluation(NamedTuple):
    """What one pass over the validation tokens found."""

    loss: float  # nats per target token, end-of-text targets included
    standard_error: float  # of loss, over tokens
    bits_per_byte: float  # nats of the text tokens / ln 2 / UTF-8 bytes of those tokens
    tokens: int
    load: (
        torch.Tensor | None
    )  # (L, E) float64 on the CPU, assignments over all tokens; None if dense
    entropy: torch.Tensor | None  # (L,) float64 on the CPU
    layers: tuple[int, ...]  # the model's layer behind each row of load and entropy


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
    wide = (
        torch.float32 if token_losses.device.type == "mps" else torch.float64
    )  # mps has no float64
    return (token_losses.to(wide) * (sizes > 0)).sum(), sizes.sum().to(wide)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[dict[str, torch.Tensor]],
    token_bytes: torch.Tensor,
    *,
    device: torch.device,
    autocast: Callable[[], object],
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Score every target of `batches` once, in eval mode. Raises Interrupted when told to stop."""
    was_training = model.training
    model.eval()
    sums = dict.fromkeys(("loss", "square", "tokens", "nats", "bytes"), 0.0)
    load = entropy = None
    layers: tuple[int, ...] = ()
    try:
        for batch in batches:
            if should_stop():
                raise Interrupted
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with autocast():
                out = model(**batch)
            nats, num_bytes = text_nats_and_bytes(out.token_losses, batch["targets"], token_bytes)
            count = float(out.num_targets)
            sums["loss"] += float(out.loss_sum)
            sums["square"] += float(out.token_losses.square().sum())
            sums["tokens"] += count
            sums["nats"] += float(nats)
            sums["bytes"] += float(num_bytes)
            if out.router is not None:
                load, entropy = _add_router(load, entropy, out.router, count)
                layers = out.router.layers
    finally:
        model.train(was_training)
    tokens = max(sums["tokens"], 1.0)
    loss = sums["loss"] / tokens
    variance = max(sums["square"] / tokens - loss**2, 0.0)
    return Evaluation(
        loss=loss,
        standard_error=math.sqrt(variance / tokens),
        bits_per_byte=sums["nats"] / math.log(2) / max(sums["bytes"], 1.0),
        tokens=int(tokens),
        load=load,
        entropy=None if entropy is None else entropy / tokens,
        layers=layers,
    )


def _add_router(load, entropy, router: RouterStats, count: float):
    new_load, new_entropy = router.load.cpu().double(), router.entropy.cpu().double() * count
    return (new_load, new_entropy) if load is None else (load + new_load, entropy + new_entropy)


def max_violation(load: torch.Tensor) -> torch.Tensor:
    """(L, E) assignments -> (L,): load of the busiest expert / mean load - 1; 0 when even."""
    return load.max(-1).values / load.mean(-1).clamp(min=1e-9) - 1


def dead_experts(load: torch.Tensor) -> torch.Tensor:
    """(L, E) assignments -> (L,): how many experts get under 1 % of an even load."""
    return (load < 0.01 * load.mean(-1, keepdim=True)).sum(-1)
