"""Whether a checkpoint holds a run that can be continued: each part of the kind and shape that the run needs.

A file that was cut off is refused by its reader, architecture/checkpoint.py. Told here is what is wrong
inside a readable one: edited by hand, written by another program, put together from two.
"""

from __future__ import annotations

import math
import random
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from common.settings import cast
from training.config import TrainConfig
from training.optimizer import build_optimizers
from training.state.checkpoint import Progress

SCORES = {"val_loss", "val_bits_per_byte"}  # what "scored" may hold


class Damaged(ValueError):
    """A part of a checkpoint that is not what it must be."""


def saved_settings(
    saved: dict[str, Any], path: Any, config_class: type[TrainConfig] = TrainConfig
) -> dict[str, Any]:
    """The train_config of a checkpoint with values of their fields' types; {} where it has none.

    Settings that config_class does not know stay as they are.
    """
    found = saved.get("train_config", {})
    _require(isinstance(found, dict), path, "its train_config is no dictionary")
    hints = {f.name: f.type for f in fields(config_class)}
    try:
        return {k: cast(k, v, hints[k]) if k in hints else v for k, v in found.items()}
    except ValueError as error:
        raise Damaged(f"checkpoint {path} is damaged, its {error}") from None


def require_run_state(
    saved: dict[str, Any], cfg: TrainConfig, config: Any, model: nn.Module, path: Any
) -> None:
    """Damaged, which names the part, unless all that continuing a run takes is there and fits.

    cfg, config: of the run.  model: of that shape, also on the meta device.
    """
    _require_progress(saved["progress"], saved["step"], cfg, config, path)
    _require_optimizers(saved["optimizers"], cfg, model, path)
    _require_random_state(saved["rng"], path)
    _require_position(saved["data"], config.vocab_size, path)
    folder, scored = saved["tensorboard_dir"], saved.get("scored")
    fine = folder is None or isinstance(folder, str) and folder and "\0" not in folder
    _require(fine, path, "its tensorboard_dir is no name of a folder")
    _require(
        not scored
        or isinstance(scored, dict)
        and "val_loss" in scored
        and scored.keys() <= SCORES
        and all(_is_number(value) for value in scored.values()),
        path,
        f"its scored must hold {' and '.join(sorted(SCORES))}",
    )


def _require(holds: Any, path: Any, what: str) -> None:
    if not holds:
        raise Damaged(
            f"checkpoint {path} is damaged, {what}; use another checkpoint_<step>.pt from its folder"
        )


def _is_number(value: Any, least: float = -math.inf) -> bool:
    return type(value) in (int, float) and least <= value and abs(value) < 2**63


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_tensor(value: Any, *, dims: int | None = None, floating: bool | None = None) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and (dims is None or value.ndim == dims)
        and (floating is None or value.is_floating_point() == floating)
    )


# --------------------------------------------------------------------------------------------------
# progress, random numbers, position in the data


def _require_progress(found: Any, step: int, cfg: TrainConfig, config: Any, path: Any) -> None:
    names = {f.name for f in fields(Progress)}
    _require(isinstance(found, dict) and found.keys() <= names, path, "its progress is none")
    for name in ("step", "tokens"):
        _require(_is_count(found.get(name)), path, f"its {name} must be a whole number")
    _require(found["step"] == step, path, f"its steps are {step} and {found['step']}")
    _require(_is_number(found.get("seconds"), 0), path, "its seconds must be a number")
    shape = len(getattr(config, "resolved_moe_layers", ())), getattr(config, "num_experts", 0)
    for name in ("expert_share", "load"):
        value = found.get(name)
        fits = value is None or _is_tensor(value, dims=2) and tuple(value.shape) == shape
        _require(fits, path, f"its {name} must have a value per layer and expert")
    choices, carry = found.get("choices"), found.get("carry")
    _require(choices is None or _is_tensor(choices), path, "its choices must be a tensor")
    lanes = cfg.batch_size, config.hidden_size
    fits = carry is None or _is_tensor(carry, floating=True) and tuple(carry.shape) == lanes
    _require(fits, path, f"its carry must have {lanes[1]} values for each of {lanes[0]} lanes")


def _require_random_state(found: Any, path: Any) -> None:
    """Handed to generators of no account: their own checks are the ones that count."""
    what = "its rng is not the state of random generators"
    _require(isinstance(found, dict) and {"python", "cpu"} <= found.keys(), path, what)
    try:
        random.Random().setstate(found["python"])
        torch.Generator().set_state(found["cpu"])
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise Damaged(
            f"checkpoint {path} is damaged, {what}; use another checkpoint_<step>.pt from its folder"
        ) from None
    _require(all(_is_tensor(v) for k, v in found.items() if k != "python"), path, what)


def _require_position(found: Any, vocab_size: int, path: Any) -> None:
    names = {"packing", "seed", "documents", "source", "tokens"}
    there = isinstance(found, dict) and names <= found.keys()
    _require(there, path, f"its data must hold {', '.join(sorted(names))}")
    _require(_is_count(found["documents"]), path, "the documents of its data are no number")
    _require(isinstance(found["source"], dict), path, "the source of its data is no dictionary")
    tokens = found["tokens"]
    fits = isinstance(tokens, list) and all(
        _is_tensor(rest, dims=1, floating=False)
        and rest.dtype == torch.int64
        and len(rest)
        and 0 <= int(rest.min())
        and int(rest.max()) < vocab_size
        for rest in tokens
    )
    _require(fits, path, f"the tokens of its data must be ids below {vocab_size}")


# --------------------------------------------------------------------------------------------------
# optimizers


class _OneOfEach(nn.Module):
    """A parameter for each group of the optimizers, to see what they keep for one."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(2, 2)
        self.block = nn.ModuleList([nn.Module()])
        self.block[0].attn = nn.Module()
        self.block[0].attn.qkv = nn.Linear(2, 2)


def _require_optimizers(found: Any, cfg: TrainConfig, model: nn.Module, path: Any) -> None:
    optimizers, small = build_optimizers(model, cfg), _OneOfEach()
    samples = build_optimizers(small, cfg)
    for parameter in small.parameters():
        parameter.grad = torch.zeros_like(parameter)
    _require(
        isinstance(found, list) and len(found) == len(optimizers),
        path,
        f"it must hold {len(optimizers)} optimizers",
    )
    for number, (state, optimizer, sample) in enumerate(zip(found, optimizers, samples)):
        sample.step()
        if what := _difference(state, optimizer, sample.state_dict()):
            _require(False, path, f"{what} of its optimizer {number}")


def _difference(state: Any, optimizer: torch.optim.Optimizer, sample: dict[str, Any]) -> str:
    """Which part of a saved optimizer state does not fit; "" where all do.

    sample: the state of the same optimizer, of one parameter in each group, after a step.
    """
    if not isinstance(state, dict) or state.keys() != sample.keys():
        return "the names"
    groups, values = state["param_groups"], state["state"]
    mine = optimizer.state_dict()["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(mine) or not isinstance(values, dict):
        return "the groups"
    for group, own in zip(groups, mine):
        if not isinstance(group, dict) or group.keys() != own.keys():
            return "a group"
        for name, value in own.items():
            if not _alike(group[name], value):
                return f"the setting {name}"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    (kept,) = {tuple(entry) for entry in sample["state"].values()}
    example = next(iter(sample["state"].values()))
    for number, entry in values.items():
        if type(number) is not int or not 0 <= number < len(parameters):
            return "the number of a parameter"
        if not isinstance(entry, dict) or set(entry) != set(kept):
            return f"what is kept for parameter {number}"
        for name, value in entry.items():
            shape = parameters[number].shape if example[name].ndim else example[name].shape
            if not _is_tensor(value, floating=True) or value.shape != shape:
                return f"the {name} of parameter {number}"
    return ""


def _alike(value: Any, own: Any) -> bool:
    """Whether a setting of a group is of the kind that the optimizer gives it; numbers may differ."""
    if isinstance(own, (list, tuple)):
        fits = isinstance(value, (list, tuple)) and len(value) == len(own)
        return fits and all(_alike(v, o) for v, o in zip(value, own))
    if isinstance(own, float):
        return _is_number(value)
    return value == own if isinstance(own, (bool, int)) else type(value) is type(own)
