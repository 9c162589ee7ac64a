"""Keeping experts evenly loaded: what each `--balance` rule does in a step.

none        the balance loss is logged and not added
aux         the balance loss, with the load of the micro-batch
aux_global  the same, with the load of the whole previous step (arXiv:2501.11873), so that splitting a
            batch or adding ranks does not change it
bias        loss-free (arXiv:2408.15664): a bias on the router's choice, moved once per step. There it is added
            to scores from 0 to 1 and moves by 0.001; here it is added to logits, whose spread is several times
            that, in runs of hundreds of steps: its rate is higher, and falls with the learning rate. With
            router=topk_sigmoid it is added to scores, and needs the higher rate, too: after 200 steps of toy on
            the bundled stories max violation is 0.07 with 0.03, 0.08 with 0.01 and 1.9 with 0.001
"""

from __future__ import annotations

import torch
from torch import nn

from architecture.interface import RouterStats, load_balancing_loss

BIAS_BUFFER = "mlp.selection_bias"


def balance_term(rule: str, stats: RouterStats, previous_share: torch.Tensor | None) -> torch.Tensor:
    """The balance loss that the rule adds, () float32, before its coefficient; 0 where it adds none.

    previous_share: (L, E) float32, shares of the last optimiser step; None at the first one, where the
    load counts as even.
    """
    if rule == "aux":
        return stats.balance_loss
    if rule == "aux_global":
        if previous_share is None:
            previous_share = torch.full_like(stats.load, 1 / stats.load.shape[-1])
        return load_balancing_loss(stats.mean_probability, previous_share)
    return torch.zeros_like(stats.balance_loss)


@torch.no_grad()
def update_selection_bias(model: nn.Module, load: torch.Tensor, rate: float) -> None:
    """Raise the bias of experts below the mean load by `rate`, lower the others, re-centre to mean zero.

    load: (L, E) float32, assignments of one whole optimiser step, one row per routed layer.
    The model must be in training mode: what validation routes must not move the bias.
    """
    assert model.training, "the selection bias is moved by training steps only"
    biases = [buffer for name, buffer in model.named_buffers() if name.endswith(BIAS_BUFFER)]
    assert len(biases) == len(load), "one row of load per routed layer"
    for bias, counts in zip(biases, load):
        bias += rate * torch.sign(counts.mean() - counts)
        bias -= bias.mean()
