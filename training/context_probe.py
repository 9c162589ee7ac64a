"""What a model carries from segment to segment, measured from outside on validation tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from architecture.interface import IGNORE_INDEX

SEGMENTS = 4  # batches that are looked at: the beginnings of as many documents as there are lanes


@torch.no_grad()
def context_record(
    model: nn.Module,
    batches: list[dict[str, torch.Tensor]],
    device: torch.device,
    autocast: Callable[[], object],
) -> dict[str, float]:
    """context/state_norm, the mean length of the state after a segment, and context/gate, the mean share
    of it that is new, where the model has an update_gate.

    model: the raw module, whose carry is a state (B, D).  batches: consecutive ones with resets.
    """
    norms, shares, carry = [], [], None
    gate = getattr(model, "update_gate", None)
    handle = gate and gate.register_forward_hook(lambda _, inputs, share: shares.append(share))
    was_training = model.training
    model.eval()
    try:
        for batch in batches[:SEGMENTS]:
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with autocast():
                carry = model(**batch, carry=carry).carry
            filled = (batch["targets"] != IGNORE_INDEX).any(1)
            norms.append(carry[filled].norm(dim=-1))
            if shares:
                shares[-1] = shares[-1][filled].float()
    finally:
        if handle:
            handle.remove()
        model.train(was_training)
    record = {"context/state_norm": float(torch.cat(norms).mean())}
    return record | ({"context/gate": float(torch.cat(shares).mean())} if shares else {})
