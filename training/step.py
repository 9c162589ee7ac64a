"""One optimizer step: gradients of all micro-batches, weighted by their tokens, then the update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from architecture.interface import IGNORE_INDEX, ModelOutput, load_balancing_loss, load_share
from training.balance import balance_term
from training.config import TrainConfig
from training.monitor.routing import LogitGradients, choice_margins
from training.validation import text_nats_and_bytes

if TYPE_CHECKING:
    from training.distributed.mesh import Ranks
    from training.distributed.shard import Layout


class StepResult(NamedTuple):
    """The measurements of a step. Sums and means are over all of its target tokens."""

    loss: torch.Tensor  # () float32, cross-entropy, nats per token
    tokens: int
    load: torch.Tensor | None  # (L, E) float32, assignments to each expert; None for a dense model
    # up to `layers`, the rest is None in a step that is not measured; what is about routers also for a dense model
    nats: torch.Tensor | None  # () float64, cross-entropy of the text tokens alone, for bits per byte
    num_bytes: torch.Tensor | None  # () float64, UTF-8 bytes of the text tokens
    balance_loss: torch.Tensor | None  # () float32, computed from the load of the whole step; 1 is even
    z_loss: torch.Tensor | None  # () float32
    dropped: torch.Tensor | None  # (L,) float32, share of the assignments over capacity
    margins: torch.Tensor | None  # (L, 4) or (L, 0) float32, of choice_margins, means over the micro-batches
    logit_gradients: torch.Tensor | None  # (L,) float32, RMS; None also with compiled blocks
    expert_updates: torch.Tensor | None  # (L, M, E), of ExpertUpdates; train_step adds it
    layers: tuple[int, ...]  # the index in the model of each of the L layers
    carry: Any  # state for the next step


def accumulate_gradients(
    model: nn.Module,
    batches: list[dict[str, torch.Tensor]],
    cfg: TrainConfig,
    *,
    previous_share: torch.Tensor | None,
    carry: Any,
    token_bytes: torch.Tensor,
    autocast: Callable[[], Any],
    counts: Sequence[int] | None = None,
    copied: Collection[nn.Parameter] = (),
    measured: bool = True,
    layout: Layout | None = None,
    forward: Callable[..., ModelOutput] | None = None,
) -> StepResult:
    """Add the gradient of the step's loss to the parameters.

    The loss is the mean cross-entropy over the target tokens of all micro-batches, plus the auxiliary terms
    times their coefficients. A micro-batch is weighted by its share of the tokens, so that splitting a batch
    changes nothing. The exception is balance="aux", which is defined on one micro-batch.

    Gradients flow back through the carry of cfg.tbptt micro-batches, which form a window.

    With several ranks the step has the micro-batches of all of them, and so has the result.

    previous_share: see balance_term.  token_bytes: see text_nats_and_bytes.
    counts: targets of each batch. Without them they are counted, which waits for a device that holds the batches.
    copied: parameters that the model uses in bfloat16. They are copied once, and not in each micro-batch as by
    autocast; the gradients of the micro-batches are still added in float32.
    measured: False leaves out what only the logs need.
    layout: that of the model over the ranks; None for one process.
    forward: what is called with each batch in place of the model, if the loss is another one. Of its output, loss_sum
    divided by the target tokens of the step is the part of this batch in the loss of the step.
    """
    if counts is None:
        counts = [int((batch["targets"] != IGNORE_INDEX).sum()) for batch in batches]
    total = sum(counts) if layout is None else int(layout.ranks.sum(torch.tensor(sum(counts))))
    once, copies = {id(p) for p in copied}, {}
    if once:
        copies = {name: p.to(torch.bfloat16) for name, p in model.named_parameters() if id(p) in once}
    losses, loads, text, means, layers = [], [], [], [], ()
    gradients = LogitGradients(scale=total) if measured and cfg.compile != "on" else None
    window = 0.0  # sum of the objectives since the last backward pass
    for number, (batch, count) in enumerate(zip(batches, counts), start=1):
        batch = {name: tensor.to(token_bytes.device) for name, tensor in batch.items()}
        if layout is not None:
            layout.exchange_gradients(number > len(batches) - cfg.tbptt)
        with autocast(), replaced(model, copies):
            out = (forward or model)(**batch, carry=carry)
        carry = out.carry
        objective = out.loss_sum / total
        if (router := out.router) is not None:
            weight = count / total
            terms = cfg.balance_coef * balance_term(cfg.balance, router, previous_share)
            if cfg.z_loss_coef:
                terms = terms + cfg.z_loss_coef * router.z_loss
            objective = objective + weight * terms
            loads.append(router.load)
            if measured:
                figures = (router.mean_probability, router.z_loss, router.dropped, choice_margins(router))
                means.append(tuple(x.detach() * weight for x in figures))
            if gradients is not None:
                gradients.watch(router)
            layers = router.layers
        window = window + objective
        if number % cfg.tbptt == 0:
            if window.requires_grad:  # text alone has no gradient if the trunk is frozen
                with replaced(model, copies):  # blocks that are computed again compute with them, too
                    window.backward()
            window, carry = 0.0, None if carry is None else carry.detach()
        losses.append(out.loss_sum.detach() / total)
        if measured:
            text.append(torch.stack(text_nats_and_bytes(out.token_losses, batch["targets"], token_bytes)))
    sums = [torch.stack(column).sum(0) for column in (losses, loads, text, *zip(*means)) if column]
    if watched := gradients is not None and gradients.sums is not None:
        sums.append(gradients.sums)
    if layout is not None:
        layout.finish_gradients()
        sums = summed(sums, layout.ranks)
    loss = sums.pop(0)
    load = sums.pop(0) if loads else None
    nats, num_bytes = sums.pop(0) if measured else (None, None)
    balance = z_loss = dropped = margins = rms = None
    if watched:
        squares, numbers = sums.pop()
        rms = (squares / numbers.clamp(min=1)).sqrt()
    if means:
        probability, z_loss, dropped, margins = sums
        balance = load_balancing_loss(probability, load_share(load))
    return StepResult(
        loss, total, load, nats, num_bytes, balance, z_loss, dropped, margins, rms, None, layers, carry
    )


@contextlib.contextmanager
def replaced(model: nn.Module, copies: dict[str, torch.Tensor]) -> Iterator[None]:
    """A context in which a model has these tensors in place of the parameters of the same names."""
    places = [(model.get_submodule(name.rpartition(".")[0])._parameters, name) for name in copies]
    parameters = [held[name.rpartition(".")[2]] for held, name in places]
    try:
        for held, name in places:
            held[name.rpartition(".")[2]] = copies[name]
        yield
    finally:
        for (held, name), parameter in zip(places, parameters):
            held[name.rpartition(".")[2]] = parameter


def summed(tensors: list[torch.Tensor], ranks: Ranks) -> list[torch.Tensor]:
    """The sums of tensors over the ranks, exchanged as one."""
    flat = ranks.sum(torch.cat([tensor.double().flatten() for tensor in tensors]))
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors)]


def apply_gradients(
    kinds: dict[str, list[nn.Parameter]],
    optimizers: list[torch.optim.Optimizer],
    result: StepResult,
    clip: float,
    layout: Layout | None = None,
) -> dict[str, float] | None:
    """Clip the gradients, update the parameters and clear the gradients.

    Returns the norms before clipping: "total", and one for each kind of parameter. If the loss or the total
    norm is not finite, returns None: nothing is updated, and the gradients are kept to search for the cause.

    kinds: all trainable parameters, from optimizer.parameter_kinds.  clip: the largest norm; 0 for no limit.
    """
    grads = {kind: [p.grad for p in parameters if p.grad is not None] for kind, parameters in kinds.items()}
    grads = {kind: some for kind, some in grads.items() if some}
    if layout is None:
        norms = [nn.utils.get_total_norm(some) for some in grads.values()]
    else:
        norms = layout.norms(grads)
    parts = torch.stack(norms or [torch.zeros_like(result.loss)])
    total = torch.linalg.vector_norm(parts)
    *values, found, loss = torch.cat((parts, torch.stack((total, result.loss.to(total.dtype))))).tolist()
    if not math.isfinite(found + loss):  # tolist() above is the one synchronization of a step
        return None  # clipping would spread one NaN to every gradient
    if clip and layout is None:
        parameters = [p for kind in kinds.values() for p in kind if p.grad is not None]
        nn.utils.clip_grads_with_norm_(parameters, clip, total)
    elif clip:
        layout.scale([grad for some in grads.values() for grad in some], min(1.0, clip / (found + 1e-6)))
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"total": found, **dict(zip(grads, values))}
