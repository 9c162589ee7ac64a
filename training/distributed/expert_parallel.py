"""Experts spread over devices: tokens travel to the devices of their experts and back, and none is dropped.

Each device of a group holds E / W of the E experts of a layer and all of its other parameters. The routed experts
of a model are replaced at the seam that all backends share (gptoss.loop_experts has the arguments), so that any
backend computes the experts of a device.

Shapes: N tokens of this device, k experts_per_token, R rows that it sends, R' rows that it receives,
E experts, W devices of the group, D hidden_size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

REPLICA, EXPERT = "replica", "expert"  # the dimensions of the mesh: which copy, and which part of the experts


def spread_experts(model: nn.Module, mesh: DeviceMesh) -> list[nn.Parameter]:
    """Keep this device's part of the routed experts of a model, and exchange tokens. Returns the parameters.

    The parameters become DTensors (E, ...), split over the experts. Their gradients are `Partial` over the
    copies until reduce_expert_gradients.  mesh: (REPLICA, EXPERT).
    """
    spread = []
    for module in model.routed_experts():
        for name in module.expert_parameters:
            whole = getattr(module, name)
            part = distribute_tensor(whole.detach(), mesh, (Replicate(), Shard(0)), src_data_rank=None)
            parameter = nn.Parameter(part, requires_grad=whole.requires_grad)
            setattr(module, name, parameter)
            spread.append(parameter)
        module.run_experts = ExchangingExperts(module.run_experts, mesh[EXPERT].get_group())
    return spread


def reduce_expert_gradients(parameters: list[nn.Parameter]) -> None:
    """Sum the gradients over the copies of each expert. Those of the tokens of its group arrived with the tokens."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad.redistribute(placements=parameter.placements)


class ExchangingExperts:
    """The experts of a group of devices as one backend: (x, index, weight, experts) as for gptoss.loop_experts."""

    def __init__(self, backend: Callable[..., torch.Tensor], group: dist.ProcessGroup):
        self.backend, self.group = backend, group

    def __call__(self, x, index, weight, experts) -> torch.Tensor:
        """x (N, D), index (N, k), E for a dropped assignment, weight (N, k), experts: DTensors -> (N, D)

        Waits once for the device, because the exchange needs the number of rows for each device on the host.
        """
        W, (N, k), E = dist.get_world_size(self.group), index.shape, experts.mlp1_weight.shape[0]
        expert = index.flatten()
        # that this device sends to each expert; torch.bincount would wait once more, for the largest index
        counts = expert.new_zeros(E + 1).index_add_(0, expert, torch.ones_like(expert))[:E]
        received = torch.empty_like(counts)
        dist.all_to_all_single(received, counts, group=self.group)
        received = received.view(W, E // W)  # from each device, for each expert of this one
        sent, arriving = torch.stack((counts.view(W, -1).sum(1), received.sum(1))).tolist()

        # by expert, and so by device; the dropped ones are last
        order = expert.argsort(stable=True)[: sum(sent)]
        rows = x.index_select(0, order // k)  # (R, D)
        if torch.is_autocast_enabled(x.device.type):
            rows = rows.to(torch.get_autocast_dtype(x.device.type))  # the experts compute in it
        rows = exchange(rows, arriving, sent, self.group)  # (R', D)
        local = torch.arange(E // W, device=x.device).repeat(W)
        local = local.repeat_interleave(received.flatten(), output_size=sum(arriving))
        out = self.backend(rows, local[:, None], rows.new_ones(len(rows), 1), of_this_device(experts))
        out = exchange(out, sent, arriving, self.group)  # (R, D)
        chosen = out.new_zeros(N * k, out.shape[1]).index_copy(0, order, out).view(N, k, -1)
        return (chosen * weight[..., None].to(out.dtype)).sum(1).to(x.dtype)


def of_this_device(experts: Any) -> Any:
    """The weights of this device's experts as plain tensors."""
    parts = (
        value.to_local(grad_placements=(Partial(), Shard(0))) if isinstance(value, DTensor) else value
        for value in experts
    )
    return type(experts)(*parts)


def exchange(
    rows: torch.Tensor, arriving: list[int], sent: list[int], group: dist.ProcessGroup
) -> torch.Tensor:
    """Send rows (R, D), sent[w] of them to device w, and receive arriving[w] from it; gradients travel back."""
    return all_to_all_single_autograd(rows.contiguous(), arriving, sent, group).wait()
