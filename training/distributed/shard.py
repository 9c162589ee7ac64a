"""How a model is laid out over the ranks of a run: copies (DDP), shards (FSDP2), and experts spread over them.

ddp      every rank has the whole model; gradients are summed while the backward pass goes on
fsdp     fully_shard: every rank keeps a part of each parameter, gradient and average, and a block is whole only
         while it computes
ep       the experts of each layer are spread over groups of `degree` ranks (expert_parallel.py), the rest as in ddp
fsdp+ep  the same, with the rest as in fsdp

Gradients are sums over the ranks and not means, because each rank divides its loss by the number of target tokens
of all ranks (training/step.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from architecture.checkpoint import without_values
from training.compiled import with_compiled_blocks
from training.config import TrainConfig
from training.distributed import deferred_init, expert_parallel
from training.distributed.mesh import Ranks


class Layout:
    """A model on the ranks of a run. `module` trains in place of the raw model, which gets other parameters.

    model: on the CPU or on cfg.device. What FSDP shards never is on a device as a whole.
    initialize: sets all values of a model that is on the meta device, so that a rank never holds a whole one
    (deferred_init.py).
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: TrainConfig,
        ranks: Ranks,
        initialize: Callable[[nn.Module], None] | None = None,
    ):
        data, degree = cfg.layout
        self.device = torch.device(cfg.device)
        kind = self.device.type
        self.ranks, self.model, self.experts = ranks, model, []
        self.model_class = type(model)  # fully_shard changes it
        if degree is not None:
            with ranks.together():
                degree = expert_degree(model, degree, ranks.number)
            sizes = ranks.number // degree, degree
            mesh = init_device_mesh(
                kind, sizes, mesh_dim_names=(expert_parallel.REPLICA, expert_parallel.EXPERT)
            )
            self.experts = expert_parallel.spread_experts(model, mesh)
        if data == "fsdp":
            self.module = shard(model, cfg, init_device_mesh(kind, (ranks.number,)), set(self.experts))
        if initialize is not None:
            on_host = data == "fsdp" and cfg.offload == "optimizer"
            deferred_init.materialize(model, torch.device("cpu") if on_host else self.device, self.device)
            with ranks.together(), deferred_init.DrawnAsByOneProcess():
                initialize(model)
        if data != "fsdp":
            self.module = replicate(model.to(self.device), cfg, self.experts)

    def exchange_gradients(self, now: bool) -> None:
        """Before a forward pass: whether the gradients of its window are exchanged, as those of a step's last are."""
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(now)
        else:
            self.module.require_backward_grad_sync = now  # what DistributedDataParallel.no_sync sets

    def reshard(self) -> None:
        """After a forward pass without a backward pass: keep parts of the parameters again."""
        if isinstance(self.module, FSDPModule):
            self.module.reshard()

    def finish_gradients(self) -> None:
        """After the last backward pass of a step: exchange what the engines did not."""
        expert_parallel.reduce_expert_gradients(self.experts)

    @property
    def in_parts(self) -> bool:
        """Whether a rank holds only a part of some parameters."""
        return any(isinstance(parameter, DTensor) for parameter in self.model.parameters())

    def of_all_ranks(self, state: dict[str, Any]) -> dict[str, Any]:
        """checkpoint.contents with the carry and the generators of all ranks, and their number.

        All ranks get the same, but for DTensors.
        """
        carry = state["progress"]["carry"]
        carries = self.ranks.gather(None if carry is None else carry.cpu())
        if carry is not None:
            state = state | {"progress": state["progress"] | {"carry": torch.cat(carries)}}
        first, *others = self.ranks.gather(state["rng"])
        return state | {"ranks": self.ranks.number, "rng": first, "rng_of_ranks": others}

    def whole_model(self) -> nn.Module:
        """The model with whole parameters, in training mode: a copy on the CPU if they are in parts.

        Only the rank that writes gets values. All ranks must call it together.
        """
        model = self.model
        if not self.in_parts:
            return model
        backends = {"attention": model.attention_backend, "experts": model.experts_backend}
        copy = without_values(self.model_class, model.config, **backends).train()
        state = whole(model.state_dict(), self.ranks.writes)
        if self.ranks.writes:
            copy.load_state_dict(state, assign=True)
            copy.tokenizer = model.tokenizer
            copy.cpu()  # the buffers
        return copy

    def norms(self, kinds: dict[str, list[torch.Tensor]]) -> list[torch.Tensor]:
        """The norm of each list of gradients over all ranks, whatever mesh a gradient is on."""
        if not kinds:
            return []
        squares = []
        for grads in kinds.values():
            parts = [local(g).norm().double().square() / self.copies(g) for g in grads]
            squares.append(torch.stack(parts).sum())
        return list(self.ranks.sum(torch.stack(squares)).sqrt().to(self.device))

    def scale(self, grads: list[torch.Tensor], factor: float) -> None:
        for grad in grads:
            local(grad).mul_(factor)

    def copies(self, tensor: torch.Tensor) -> int:
        """The number of ranks that hold each value of a parameter or gradient."""
        if not isinstance(tensor, DTensor):
            return self.ranks.number
        mesh = tensor.device_mesh
        split = (size for size, place in zip(mesh.shape, tensor.placements) if place.is_shard())
        return self.ranks.number // math.prod(split)


def expert_degree(model: nn.Module, asked: int, ranks: int) -> int:
    """The number of ranks over which the experts of a layer are spread; asked: 0 for as many as possible."""
    layers = getattr(model, "routed_experts", list)()
    if not layers:
        raise ValueError(
            "parallel=ep needs a model with routed experts, and this one has none; use ddp or fsdp"
        )
    experts = getattr(layers[0], layers[0].expert_parameters[0]).shape[0]
    fitting = [n for n in range(1, ranks + 1) if ranks % n == 0 and experts % n == 0]
    if asked and asked not in fitting:
        raise ValueError(
            f"parallel=ep:{asked}: the degree must divide both the {ranks} processes and the {experts} experts; "
            f"use one of {', '.join(map(str, fitting))}"
        )
    return asked or fitting[-1]


def shard(model: nn.Module, cfg: TrainConfig, mesh: Any, apart: set[nn.Parameter]) -> nn.Module:
    """Shard each block, and then the rest, with FSDP2. apart: parameters that it leaves as they are.

    With bfloat16, the parameters of blocks travel in it, those of norms and routers too; what autocast leaves in
    float32 still computes in float32. The embeddings, the residual stream and the sum of the gradients stay in
    float32. With offload=optimizer, parameters, gradients and averages rest on the host, where the optimizer steps.
    """
    low = getattr(torch, cfg.dtype) if cfg.dtype != "float32" else None
    narrow = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    same = MixedPrecisionPolicy(cast_forward_inputs=False)
    offload = OffloadPolicy()
    if cfg.offload == "optimizer":
        offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    options = {"mesh": mesh, "ignored_params": apart, "offload_policy": offload}
    for block in model.block:
        if cfg.compile == "on":
            block.compile()
        fully_shard(block, mp_policy=narrow if low else same, **options)
    fully_shard(model, mp_policy=same, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
    return model


def replicate(model: nn.Module, cfg: TrainConfig, apart: list[nn.Parameter]) -> nn.Module:
    """Wrap a model whose gradients are to be summed over all ranks, except for the parameters in `apart`."""
    has_images = getattr(model.config, "image_format", None) is not None
    if cfg.compile == "on":
        model = with_compiled_blocks(model)
        # torch would cut compiled code at its buckets, which between blocks needs no cut, and refuses flex_attention
        torch._dynamo.config.optimize_ddp = False
    left_out = {id(parameter) for parameter in apart}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in left_out]
    # nor does it send buffers: the only ones that change are moved by the same load everywhere
    names += [name for name, _ in model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    wrapped = DistributedDataParallel(
        model,
        gradient_as_bucket_view=True,
        find_unused_parameters=has_images,  # the batches of a rank may have none
    )
    wrapped.register_comm_hook(None, summed)
    return wrapped


def summed(_, bucket):
    """A hook for DistributedDataParallel, which by itself takes the mean."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a tensor that this rank holds; a change of them changes the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(value: Any, keep: bool) -> Any:
    """Nested containers with whole tensors on the CPU in place of DTensors, or None where not `keep`.

    All ranks must call it together.
    """
    if isinstance(value, DTensor):
        tensor = value.full_tensor()
        return tensor.cpu() if keep else None
    if isinstance(value, dict):
        return {key: whole(part, keep) for key, part in value.items()}
    if isinstance(value, list):
        return [whole(part, keep) for part in value]
    return value
