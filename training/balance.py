"""The rules of `--balance`, which keep the experts evenly loaded.

none        adds nothing; the balance loss is only logged
aux         adds the balance loss, computed from the load of the micro-batch
aux_global  adds the balance loss, computed from the load of the whole previous step (arXiv:2501.11873).
            Splitting a batch into micro-batches does not change it.
bias        adds no loss: it adds a bias to the router's scores before the experts are chosen, and moves that
            bias once per step (arXiv:2408.15664).

The paper adds the bias to scores between 0 and 1 and moves it by 0.001 a step, over long runs. Here it is
added to logits, which spread several times as far, and runs have hundreds of steps. So the default
--bias_rate is higher, and falls with the learning rate. router=topk_sigmoid has scores between 0 and 1 and
needs the higher rate too: after 200 steps of toy on the bundled stories, max violation was 0.07 at a rate of
0.03, 0.08 at 0.01 and 1.9 at 0.001.
"""

from __future__ import annotations

import torch
from torch import nn

from architecture.interface import RouterStats, load_balancing_loss

BIAS_BUFFER = "mlp.selection_bias"


def balance_term(rule: str, stats: RouterStats, previous_share: torch.Tensor | None) -> torch.Tensor:
    """The balance loss that a rule adds, () float32, before its coefficient; 0 for a rule that adds none.

    previous_share: (L, E) float32, each expert's share of the load in the previous step; None in the first
    step, which is treated as evenly loaded.
    """
    if rule == "aux":
        return stats.balance_loss
    if rule == "aux_global":
        if previous_share is None:
            previous_share = torch.full_like(stats.load, 1 / stats.load.shape[-1])
        return load_balancing_loss(stats.mean_probability, previous_share)
    return stats.load.new_zeros(())


@torch.no_grad()
def update_selection_bias(model: nn.Module, load: torch.Tensor, rate: float) -> None:
    """Raise the bias of each expert below the mean load by `rate`, lower the others, re-centre them at zero.

    load: (L, E) float32, assignments of one whole optimizer step, one row per routed layer.
    """
    assert model.training, "evaluation must not move the selection bias"
    biases = [buffer for name, buffer in model.named_buffers() if name.endswith(BIAS_BUFFER)]
    assert len(biases) == len(load), "one row of load per routed layer"
    for bias, counts in zip(biases, load):
        bias += rate * torch.sign(counts.mean() - counts)
        bias -= bias.mean()
