"""One optimiser step: gradients over the micro-batches, weighted by their tokens, then the update."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from architecture.interface import IGNORE_INDEX, load_balancing_loss, load_share
from training.balance import balance_term
from training.config import TrainConfig
from training.validation import text_nats_and_bytes


class StepResult(NamedTuple):
    """What a step measured; sums and means are over all of its target tokens."""

    loss: torch.Tensor  # () float32, cross-entropy, nats per token
    tokens: int
    nats: torch.Tensor  # () float64, of the text tokens alone, for bits per byte
    num_bytes: torch.Tensor  # () float64, UTF-8 bytes of those tokens
    load: torch.Tensor | None  # (L, E) float32, assignments; None for a dense model
    balance_loss: torch.Tensor | None  # () float32, of the whole step: 1 is even
    z_loss: torch.Tensor | None  # () float32
    dropped: torch.Tensor | None  # (L,) float32, share of the assignments
    layers: tuple[int, ...]  # the model's layer behind each row of load
    carry: Any  # for the next step


def accumulate_gradients(
    model: nn.Module,
    batches: list[dict[str, torch.Tensor]],
    cfg: TrainConfig,
    *,
    previous_share: torch.Tensor | None,
    carry: Any,
    token_bytes: torch.Tensor,
    autocast: Callable[[], Any],
) -> StepResult:
    """Add the gradient of the step's loss to the parameters: mean cross-entropy over all target
    tokens of all micro-batches, plus the auxiliary terms under their coefficients.

    A micro-batch counts by its share of the tokens, so that splitting a batch changes nothing, except
    under balance="aux", which looks at one micro-batch at a time by definition.
    Gradients flow through the carry of cfg.tbptt micro-batches, a window, and no further back.
    """
    counts = [int((batch["targets"] != IGNORE_INDEX).sum()) for batch in batches]
    total = sum(counts)
    losses, text, routing, layers = [], [], [], ()
    window = 0.0  # objective of the micro-batches whose gradients are still to be taken
    for number, (batch, count) in enumerate(zip(batches, counts), start=1):
        batch = {name: tensor.to(token_bytes.device) for name, tensor in batch.items()}
        with autocast():
            out = model(**batch, carry=carry)
        carry = out.carry
        objective = out.loss_sum / total
        if (router := out.router) is not None:
            weight = count / total
            terms = cfg.balance_coef * balance_term(cfg.balance, router, previous_share)
            objective = objective + weight * (terms + cfg.z_loss_coef * router.z_loss)
            means = (router.mean_probability, router.z_loss, router.dropped)
            routing.append((router.load, *(x.detach() * weight for x in means)))
            layers = router.layers
        window = window + objective
        if number % cfg.tbptt == 0:
            window.backward()
            window, carry = 0.0, None if carry is None else carry.detach()
        losses.append(out.loss_sum.detach() / total)
        text.append(torch.stack(text_nats_and_bytes(out.token_losses, batch["targets"], token_bytes)))
    nats, num_bytes = torch.stack(text).sum(0)
    load = balance = z_loss = dropped = None
    if routing:
        load, probability, z_loss, dropped = (torch.stack(column).sum(0) for column in zip(*routing))
        balance = load_balancing_loss(probability, load_share(load))
    return StepResult(
        torch.stack(losses).sum(), total, nats, num_bytes, load, balance, z_loss, dropped, layers, carry
    )


def apply_gradients(
    kinds: dict[str, list[nn.Parameter]],
    optimizers: list[torch.optim.Optimizer],
    result: StepResult,
    clip: float,
) -> dict[str, float] | None:
    """Clip, update and clear the gradients. Returns their norms before clipping, the "total" and that
    of each kind of parameter; None, with nothing updated and the gradients kept for a look, where the
    loss or the norm is not finite.

    kinds: every trainable parameter, from optimizer.parameter_kinds.
    """
    norms = {}
    for kind, parameters in kinds.items():
        grads = [p.grad for p in parameters if p.grad is not None]
        if grads:
            norms[kind] = nn.utils.get_total_norm(grads)
    parts = torch.stack(list(norms.values()))
    total = torch.linalg.vector_norm(parts)
    *values, found, loss = torch.cat((parts, torch.stack((total, result.loss.to(total.dtype))))).tolist()
    if not math.isfinite(found + loss):  # the step's one wait for the device was the line above
        return None  # before clipping, which would spread one NaN to every gradient
    if clip:
        parameters = [p for kind in kinds.values() for p in kind if p.grad is not None]
        nn.utils.clip_grads_with_norm_(parameters, clip, total)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"total": found, **dict(zip(norms, values))}
