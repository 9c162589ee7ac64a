"""torch.compile for the blocks of a model, one by one."""

from __future__ import annotations

import copy

import torch
from torch import nn


def with_compiled_blocks(module: nn.Module) -> nn.Module:
    """A module with the same parameters whose blocks run compiled. The given one stays as it is.

    Blocks of one shape share their compiled code, so that compiling takes the time of one or two layers. The given
    module can still be sampled and inspected: compiled code would ignore a hook that is added later.
    """
    twin = copy.copy(module)
    twin._modules = {
        name: nn.ModuleList(map(torch.compile, child)) if name == "block" else with_compiled_blocks(child)
        for name, child in module.named_children()
    }
    return twin
