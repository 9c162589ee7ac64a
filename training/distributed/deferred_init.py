"""Values for a model that was built on the meta device and is laid out, so that no rank ever holds a whole model.

This is PyTorch's deferred initialization: build on the meta device, fully_shard, to_empty, init_weights. The values
are those that one process draws, bit for bit, at any number of ranks: each rank draws the whole tensors in the same
order, one at a time, and keeps its own rows. So it needs memory for its part and for the largest tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from architecture.shards import held_here


def materialize(model: nn.Module, device: torch.device, of_buffers: torch.device) -> None:
    """Give memory, without values, to the parameters of a model on the meta device, and to its buffers.

    A parameter stays the same object, so that tied ones stay tied.
    """
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to_empty(device=device)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(of_buffers))


class DrawnAsByOneProcess(TorchFunctionMode):
    """In this context, normal_ draws a whole tensor on the CPU, and a part of it or a tensor on a device takes its rows.

    A copy of a whole tensor into a DTensor likewise takes the rows that it holds. The values are drawn in torch's
    default dtype, in which a model is built.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ == "normal_":
            target, *rest = args
            keep_rows(target, torch.empty(target.shape, device="cpu").normal_(*rest, **kwargs))
            return target
        if (
            func.__name__ == "copy_"
            and hasattr(args[0], "device_mesh")
            and not hasattr(args[1], "device_mesh")
        ):
            keep_rows(*args)
            return args[0]
        return func(*args, **kwargs)


def keep_rows(target: torch.Tensor, whole: torch.Tensor) -> None:
    """Copy into a tensor the rows of a whole one that it holds on this rank."""
    here, rows = held_here(target)
    here.copy_(whole if rows == slice(None) else whole[rows])
