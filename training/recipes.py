"""Recipes: the settings that a run takes from configs/<model_size>.yaml.

    defaults < recipe of the size < --config FILE.yaml < flags

train_context.py reads configs/context/, and a model that reads images configs/vision/; post_train.py reads
configs/post/KIND.yaml for every size. The official sizes of GPT-2 share configs/gpt2.yaml. A recipe holds no field of
a model, so that it fits every model of its size.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from architecture import registry
from common.script import number_of_ranks
from common.settings import as_text
from training.command_line import CONFIGS, CommandLine, read_settings, shipped_configs
from training.config import TrainConfig

CPU_STEP_TOKENS = 2048  # as configs/toy.yaml; a CPU would need minutes for one step of a recipe for a GPU
LENGTHS = {"max_iters", "max_minutes"}  # giving one replaces the other


def recipe_path(cfg: TrainConfig, size: str) -> Path | None:
    """The recipe of a size of the model; None if it has none, or cfg.recipe is "none"."""
    cls = registry.model_class(cfg.model)
    if cfg.recipe == "none" or size not in cls.presets and not cfg.kind:
        return None
    images = hasattr(cls.config_class, "image_format")
    name = cfg.kind or ("gpt2" if size.startswith("gpt2") else size)
    return shipped_configs(type(cfg), images).get(name)


def under(command: CommandLine, size: str) -> tuple[CommandLine, str]:
    """The command with the values of a recipe where none was given, and a line for the start of the run."""
    cfg, path, then = command.config, recipe_path(command.config, size), ""
    if (file := command.file) is not None:
        then = f", then {file.relative_to(CONFIGS.parent) if file.is_relative_to(CONFIGS) else file}"
    if path is None:
        return command, f"recipe: none for {size}, so the defaults of {cfg.program}{then}"
    recipe = read_settings(path, type(cfg))
    given = command.given & {f.name for f in fields(cfg)}
    given |= LENGTHS if given & LENGTHS else set()
    kept = {name: getattr(cfg, name) for name in given}
    if kept.get("max_minutes") is not None:  # shown as a change of the recipe's length
        recipe["max_minutes"] = f"{recipe.pop('max_iters', type(cfg).max_iters)} steps"
    changed = ", ".join(
        f"{name} {as_text(kept[name])} (recipe: {as_text(recipe[name])})"
        for name in sorted(kept.keys() & recipe.keys())
        if kept[name] != recipe[name]
    )
    line = f"recipe: configs/{path.relative_to(CONFIGS)}{then}" + (f", changed: {changed}" if changed else "")
    return command._replace(config=type(cfg)(**(recipe | kept))), line


def for_a_cpu(cfg: TrainConfig, given: frozenset[str]) -> TrainConfig:
    """Lower batch_size and grad_accum, unless given, to a step of CPU_STEP_TOKENS or of one row."""
    if cfg.slots_per_step <= CPU_STEP_TOKENS:
        return cfg
    accum = cfg.grad_accum if "grad_accum" in given else 1
    rows = max(1, CPU_STEP_TOKENS // (number_of_ranks() * cfg.block_size * cfg.tbptt * accum))
    rows = cfg.batch_size if "batch_size" in given else min(rows, cfg.batch_size)
    return replace(cfg, batch_size=rows, grad_accum=accum)
