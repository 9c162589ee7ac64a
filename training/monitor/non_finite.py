"""Find the place where a number stopped being finite. This runs only after a step has failed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from training.optimizer import trainable


def non_finite_parameter(model: nn.Module) -> str | None:
    """Name the first parameter that holds NaN or infinity. It waits for the device once."""
    parameters = dict(model.named_parameters())
    finite = torch.stack([torch.isfinite(here(p)).all() for p in parameters.values()]).tolist()
    return next((f"the parameter {name}" for name, ok in zip(parameters, finite) if not ok), None)


def here(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a tensor that this process holds: all, or its part of a DTensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def first_non_finite(
    model: nn.Module,
    batches: list[dict[str, torch.Tensor]],
    autocast: Callable[[], object],
    carry: Any = None,
) -> str:
    """Name the first place with NaN or infinity: a parameter, the output of a module, or a gradient.

    model: the raw module with the gradients of the failed step.  batches, carry: the inputs of that step.
    Returns a phrase such as "the output of block.2.attn".
    """
    if where := non_finite_parameter(model):
        return where
    found: list[str] = []
    device = next(model.parameters()).device

    def watch(name: str) -> Callable[..., None]:
        def check(module, inputs, output) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            if not found and any(
                isinstance(t, torch.Tensor) and t.is_floating_point() and not torch.isfinite(t).all()
                for t in tensors
            ):
                found.append(f"the output of {name}")

        return check

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                stack.enter_context(module.register_forward_hook(watch(name)))
        stack.enter_context(torch.no_grad())
        for batch in batches:
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with autocast():
                out = model(**batch, carry=carry)
            carry = out.carry
            if not found and not torch.isfinite(out.loss_sum):
                found.append("the loss")
    if found:
        return found[0]
    for name, parameter in reversed(trainable(model).items()):  # gradients flow from the end
        if parameter.grad is not None and not torch.isfinite(here(parameter.grad)).all():
            return f"the gradient of {name}"
    return "the loss"
