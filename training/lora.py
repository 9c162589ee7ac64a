"""LoRA: train a low-rank change of each matrix, and freeze everything else (arXiv:2106.09685).

W + s B A takes the place of a matrix W of attention or of an MLP, with s = lora_alpha / lora_rank; each expert has an
A and a B of its own. B starts at 0, so that training begins at the base.

The model holds the merged matrix at any time: it is merged again after each step of the optimizer. So all that reads
a model reads plain weights: objectives, compiled blocks, samplers, evaluations, checkpoints. A backward pass gives
the gradient G of the merged matrix, and with it those of the factors, by the chain rule: dB = s G A^T, dA = s B^T G.
G is then freed, so that one of its size exists at a time.

The factors train with AdamW, with optimizer=muon too: Muon would make each update of A and of B orthogonal, and their
product is what changes the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from architecture import registry
from architecture.checkpoint import load_weights, weights_sha256
from training.config import TrainConfig
from training.optimizer import parameter_groups


class Adapter(NamedTuple):
    """A matrix (rows, columns) and its factors; those of experts have an axis E before."""

    weight: nn.Parameter  # of the model: base + s B A
    base: torch.Tensor
    a: nn.Parameter  # (rank, columns)
    b: nn.Parameter  # (rows, rank)


class Adapters:
    """The adapters of a model; all else is frozen. model: on its device, with the weights of the base."""

    def __init__(self, model: nn.Module, cfg: TrainConfig):
        self.scale, self.base_sha256 = cfg.lora_alpha / cfg.lora_rank, weights_sha256(model)
        self.by_name: dict[str, Adapter] = {}
        matrices = adapted(model, cfg.lora_rank)
        model.requires_grad_(False)
        generator = torch.Generator().manual_seed(cfg.seed)
        for name, weight in matrices.items():
            *experts, rows, columns = weight.shape
            # uniform with the bound of nn.Linear, as in the paper's code
            a = torch.rand(*experts, cfg.lora_rank, columns, generator=generator).mul_(2).sub_(1)
            a = nn.Parameter(a.div_(columns**0.5).to(weight))
            b = nn.Parameter(weight.new_zeros(*experts, rows, cfg.lora_rank))
            weight.requires_grad_()
            adapter = self.by_name[name] = Adapter(weight, weight.detach().clone(), a, b)
            weight.register_post_accumulate_grad_hook(lambda _, adapter=adapter: self.pass_on(adapter))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The factors, named after their matrices."""
        for name, adapter in self.by_name.items():
            yield f"{name}.lora_a", adapter.a
            yield f"{name}.lora_b", adapter.b

    @torch.no_grad()
    def pass_on(self, adapter: Adapter) -> None:
        """Add the gradient of a merged matrix to its factors, and free it."""
        weight, _, a, b = adapter
        with torch.autocast(weight.device.type, enabled=False):  # in float32, as the factors
            grads = {a: b.mT @ weight.grad, b: weight.grad @ a.mT}
        for factor, grad in grads.items():
            grad.mul_(self.scale)
            factor.grad = grad if factor.grad is None else factor.grad.add_(grad)
        weight.grad = None

    @torch.no_grad()
    def merge(self) -> None:
        """Put base + s B A into the model."""
        for weight, base, a, b in self.by_name.values():
            weight.copy_((b @ a).mul_(self.scale).add_(base))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds besides the merged model."""
        factors = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return {"base_sha256": self.base_sha256, "factors": factors}


def attach(model: nn.Module, cfg: TrainConfig, resumed: bool) -> None:
    """Give a model adapters, as model.adapters, for training.optimizer and training.state.

    resumed: the model holds merged weights of a checkpoint; it gets those of its base, until they are restored.
    Raises ValueError if the base of a resumed run is gone, and see `adapted`.
    """
    if resumed:
        if not Path(cfg.init_from).exists():
            raise ValueError(
                f"{cfg.init_from} does not exist, and a run with lora_rank continues with the weights that it began "
                "from; put it back there, or start a new run from a checkpoint of this one with --init_from"
            )
        load_weights(model, registry.read_weights(cfg.init_from)["model"], cfg.init_from)
    model.adapters = Adapters(model, cfg)


def adapted(model: nn.Module, rank: int) -> dict[str, nn.Parameter]:
    """{name: matrix} of the matrices that get adapters: those for which there is Muon.

    Raises ValueError if there is none, or if the rank is above the smaller side of one.
    """
    matrices = parameter_groups(model)["matrix"]
    if not matrices:
        raise ValueError(
            "lora_rank adapts the matrices of attention and of MLPs, and this model has none; leave lora_rank out"
        )
    name = min(matrices, key=lambda name: min(matrices[name].shape[-2:]))
    rows, columns = matrices[name].shape[-2:]
    if rank > min(rows, columns):
        raise ValueError(
            f"lora_rank must be at most {min(rows, columns)}, the smaller side of {name} ({rows} x {columns}), got "
            f"{rank}; lower it"
        )
    return matrices


def num_factors(model: nn.Module, rank: int) -> int:
    """Number of values in the factors of a model, which may be on the meta device."""
    return sum(
        weight[..., 0, 0].numel() * rank * sum(weight.shape[-2:]) for weight in adapted(model, rank).values()
    )


def describe(model: nn.Module) -> str:
    """Lines that say which parameters of a model with adapters are adapted, and which are frozen.

    Layers in which a parameter has one shape share a line.
    """
    adapters: Adapters = model.adapters
    layers: dict[tuple[str, Any], list[str]] = {}
    for name, parameter in model.named_parameters():
        layers.setdefault((re.sub(r"\.\d+\.", ".N.", name), parameter.shape), []).append(name)
    told, frozen = [], []
    for (named, shape), names in layers.items():
        times = f" x {len(names)}" if len(names) > 1 else ""
        if names[0] not in adapters.by_name:
            frozen.append(f"{named} {tuple(shape)}{times}")
            continue
        _, _, a, b = adapters.by_name[names[0]]
        number = len(names) * (a.numel() + b.numel())
        shapes = f"A {tuple(a.shape)}, B {tuple(b.shape)}"
        told.append(f"  adapted: {named} {tuple(shape)}{times}: {shapes}, {number:,} parameters")
    total = sum(parameter.numel() for _, parameter in adapters.named_parameters())
    whole = sum(parameter.numel() for parameter in model.parameters())
    return "\n".join(
        (
            f"LoRA: {total:,} parameters train with AdamW, in place of {whole:,}; W + {adapters.scale:g} B A:",
            *told,
            f"  frozen: {', '.join(frozen)}",
        )
    )
