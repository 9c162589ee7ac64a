"""Measurements of the attention on the sinks and of the carried state, from outside the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import nn

from architecture.interface import IGNORE_INDEX, evaluation_mode


@torch.no_grad()
def sink_mass(
    model: nn.Module, batch: dict[str, torch.Tensor], autocast: Callable[[], object]
) -> dict[int, torch.Tensor]:
    """Measure the mean share of attention that each head puts on its sink.

    model: the raw module.  batch: on the device of the model; positions without a target do not count.
    Returns {layer: (H,) float32 on the CPU} for the blocks with a `sink_mass` method and sinks; may be {}.
    Hooks record the inputs of the blocks, so a variant is measured with its own forward pass.
    """
    blocks = {m.layer: m for m in model.modules() if hasattr(m, "sink_mass") and m.sinks is not None}
    if not blocks:
        return {}
    inputs: dict[int, tuple] = {}

    def keep(block: nn.Module, args: tuple) -> None:
        inputs[block.layer] = args[:3]  # hidden, rope tables, mask

    counted = (batch["targets"] != IGNORE_INDEX)[..., None]  # (B, T, 1)
    tokens = counted.shape[1]  # a variant may put further positions in front of them
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        for block in blocks.values():
            stack.enter_context(block.register_forward_pre_hook(keep))
        stack.enter_context(autocast())
        model(**batch)
        mass = [block.sink_mass(*inputs[layer]) for layer, block in blocks.items()]  # (B, T, H)
    means = torch.stack([(m[:, -tokens:] * counted).sum((0, 1)) / counted.sum() for m in mass]).cpu()
    return dict(zip(blocks, means))


SEGMENTS = 4  # batches that are measured: the first segments of one document for each lane


@torch.no_grad()
def context_record(
    model: nn.Module,
    batches: list[dict[str, torch.Tensor]],
    device: torch.device,
    autocast: Callable[[], object],
) -> dict[str, float]:
    """Return context/state_norm, the mean norm of the state after a segment, and context/gate.

    context/gate is the mean share of a state that is new. It is left out if the model has no update_gate.
    model: the raw module, whose carry is a state (B, D).  batches: consecutive batches with resets.
    """
    norms, shares, carry = [], [], None
    gate = getattr(model, "update_gate", None)
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        if gate is not None:
            stack.enter_context(gate.register_forward_hook(lambda _, inputs, share: shares.append(share)))
        for batch in batches[:SEGMENTS]:
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with autocast():
                carry = model(**batch, carry=carry).carry
            filled = (batch["targets"] != IGNORE_INDEX).any(1)
            norms.append(carry[filled].norm(dim=-1))
            if shares:
                shares[-1] = shares[-1][filled].float()
    record = {"context/state_norm": float(torch.cat(norms).mean())}
    return record | ({"context/gate": float(torch.cat(shares).mean())} if shares else {})
