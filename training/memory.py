"""Less memory of a GPU for more time: activation checkpointing, and offload to the memory of the host.

--activation_checkpointing: what a block keeps from its forward pass for its backward pass.

none       all that the backward pass reads
selective  the input of the block, the choice of the router, and the results of linear layers, grouped products and
           attention; what lies between them is computed again. The fused experts of the CPU (experts=sorted)
           are one operation, and are computed again as a whole.
full       the input of the block and the choice of the router; everything else is computed again

The router chooses once: the second pass takes the choice of the first. It also draws the same dropout. The
statistics of the router are results of the first pass; those of the second are dropped, so nothing is
counted twice.

--offload: what rests in the memory of the host (pinned, so that copies run beside other work).

optimizer    the state of the optimizer. Its step takes place on the GPU, a few parameters at a time.
activations  what blocks and head keep for the backward pass, except what has the size of a parameter
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn

from training.muon import Muon

ROUTER_CHOICE = frozenset({"aten::topk"})
EXPENSIVE = frozenset({"aten::mm", "aten::_grouped_mm", "_c10d_functional::all_to_all_single"})
ATTENTION = frozenset(
    {
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "flex_attention",
    }
)


# --------------------------------------------------------------------------- activation checkpointing
def checkpoint_blocks(model: nn.Module, checkpointing: str) -> None:
    """Let every block of a model keep less for its backward pass. checkpointing: none, selective or full.

    A block is a member of a ModuleList named `block`, of the model or of one of its parts. Its values and
    gradients stay the same, bit for bit.
    """
    if checkpointing == "none":
        return
    dropout = model.config.dropout > 0
    kept = ROUTER_CHOICE
    if checkpointing == "selective":
        # A kernel of attention draws its own dropout. If it did not run again, what follows would draw another.
        kept = kept | EXPENSIVE | (frozenset() if dropout else ATTENTION)
    lists = [part for name, part in model.named_modules() if name.split(".")[-1] == "block"]
    blocks = [block for part in lists for block in part]
    # one function for each class, so that torch.compile takes all layers for one
    forwards = {kind: recomputed(kind.forward, kept, dropout) for kind in map(type, blocks)}
    for block in blocks:
        block.forward = MethodType(forwards[type(block)], block)


@functools.cache  # so that equal blocks share their compiled code
def recomputed(forward: Callable, kept: frozenset[str], preserve_rng_state: bool) -> Callable:
    """A method with the values of `forward` that keeps its inputs and the results of the operations `kept`."""
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    def policy(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
        name = operation.name()
        # a linear layer with a bias; the sum of a matrix and a product is cheap, as in grouped_experts
        linear = name == "aten::addmm" and "aten::mm" in kept and arguments[0].ndim == 1
        return CheckpointPolicy.MUST_SAVE if linear or name in kept else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)

    @functools.wraps(forward)
    def call(block: nn.Module, *inputs: Any) -> Any:
        def run(*inputs: Any) -> Any:
            return forward(block, *inputs)

        if not torch.is_grad_enabled():
            return run(*inputs)
        return checkpoint(
            run, *inputs, use_reentrant=False, preserve_rng_state=preserve_rng_state, context_fn=contexts
        )

    call.same_values = True  # for generation/lean.py
    # torch.compile finds compiled code by the code object, and does not compare context_fn: with a common code object
    # "full" would run the code of "selective" if that was compiled first in the process.
    call.__code__ = call.__code__.replace(co_name=f"call_keeping_{len(kept)}")
    return call


# ------------------------------------------------------------------------------- offload of activations
class ActivationsOnHost(torch.autograd.graph.save_on_cpu):
    """save_on_cpu for activations only: indices, masks, and what has the shape of a parameter stay.

    The latter are the parameters, their copies in the dtype of autocast, and the gradient that the head has ready.
    """

    def __init__(self, model: nn.Module):
        super().__init__(pin_memory=True)
        to_host, to_device = self.pack_hook, self.unpack_hook
        shapes = {tuple(sorted(parameter.shape)) for parameter in model.parameters()}

        def pack(tensor: torch.Tensor) -> Any:
            if not tensor.is_floating_point() or tuple(sorted(tensor.shape)) in shapes:
                return tensor.detach()
            # save_on_cpu returns a tensor in the order of its axes; a sum over another order has other last bits
            order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
            return order, to_host(tensor.permute(order))

        def unpack(kept: Any) -> torch.Tensor:
            if isinstance(kept, torch.Tensor):
                return kept
            order, held = kept
            return to_device(held).permute(sorted(range(len(order)), key=order.__getitem__))

        self.pack_hook, self.unpack_hook = pack, unpack


def forward_context(
    model: nn.Module, offload: str, autocast: Callable[[], contextlib.AbstractContextManager]
) -> Callable[[], contextlib.AbstractContextManager]:
    """The context of a forward pass in training: autocast, and with offload=activations their offload."""
    if offload != "activations":
        return autocast

    @contextlib.contextmanager
    def both() -> Iterator[None]:
        with autocast(), ActivationsOnHost(model):
            yield

    return both


# ------------------------------------------------------------------------------ offload of the optimizer
PORTION = 2**26  # values of parameters that are updated together: 256 MB for each tensor of their state


class StateOnHost:
    """For a subclass of an optimizer: between two steps, its state rests in the memory of the host.

    A step brings the state of some parameters to their device, updates these there with the optimizer's own
    step, and takes the state back. On CUDA, the state of the next parameters comes, and that of the last ones
    goes, while these are updated. Numbers such as the count of steps stay on the device.
    """

    def step(self) -> None:
        groups, leaving = self.param_groups, None
        work = [(group, some) for group in groups for some in portions(group["params"])]
        brought = self._bring(work[0][1]) if work else []
        try:
            for (group, some), (_, following) in zip(work, [*work[1:], (None, [])]):
                if inward := streams(some[0].device)[0]:
                    torch.cuda.current_stream(inward.device).wait_stream(inward)
                for entry, name, _, here in brought:
                    entry[name] = here
                self.param_groups = [group | {"params": some}]
                super().step()
                if leaving:
                    leaving.synchronize()  # so that the state of two portions is on the device, and no more
                coming = self._bring(following)
                leaving = self._take_back(some, {(id(entry), name): host for entry, name, host, _ in brought})
                brought = coming
            if leaving:
                leaving.synchronize()  # the state is complete when this returns
        finally:
            self.param_groups = groups

    def _bring(self, parameters: list[nn.Parameter]) -> list[tuple[dict, str, torch.Tensor, torch.Tensor]]:
        """Copy the state of parameters to their device: [(entry of self.state, name, tensor on the host, copy)]."""
        brought = []
        for parameter in parameters:
            entry = self.state.get(parameter, {})
            with torch.cuda.stream(streams(parameter.device)[0]):
                for name, host in entry.items():
                    if host.ndim:
                        here = host.to(parameter.device, non_blocking=True, copy=True)
                        brought.append((entry, name, host, here))
        return brought

    def _take_back(self, parameters: list[nn.Parameter], hosts: dict) -> torch.cuda.Event | None:
        """Copy the state of parameters to the host, to where it was. Returns the event of its arrival.

        hosts: {(id of the entry of self.state, name): tensor on the host}.
        """
        outward = streams(parameters[0].device)[1]
        if outward:
            outward.wait_stream(torch.cuda.current_stream(outward.device))
        with torch.cuda.stream(outward):
            for entry in (self.state.get(parameter, {}) for parameter in parameters):
                for name, here in entry.items():
                    if not here.ndim:
                        continue
                    host = hosts.get((id(entry), name))
                    # in the first step, or the first of a resume
                    if host is None or host.is_pinned() != here.is_cuda:
                        host = torch.empty(here.shape, dtype=here.dtype, pin_memory=here.is_cuda)
                    entry[name] = host.copy_(here, non_blocking=True)
                    if outward:
                        here.record_stream(outward)  # its memory is taken again when it has arrived
        return outward and outward.record_event()


def portions(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Split parameters into lists of at most PORTION values, or of one parameter."""
    some, size = [], 0
    for parameter in parameters:
        if some and size + parameter.numel() > PORTION:
            yield some
            some, size = [], 0
        some.append(parameter)
        size += parameter.numel()
    if some:
        yield some


@functools.cache
def streams(device: torch.device) -> tuple[torch.cuda.Stream | None, torch.cuda.Stream | None]:
    """The streams for copies to a device and back; None where copies need none."""
    if device.type != "cuda":
        return None, None
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


class HostAdamW(StateOnHost, torch.optim.AdamW):
    """AdamW with its state on the host."""


class HostMuon(StateOnHost, Muon):
    """Muon with its state on the host."""
