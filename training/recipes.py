"""The recipe that follows the size: configs/<size>.yaml lies under --config and flags.

    dataclass < recipe of the size < --config FILE.yaml < flags

train_context.py has its own in configs/context/, and GPT-2's official sizes share configs/gpt2.yaml. A recipe
holds settings of a run only, never a field of the model, so that it goes with any model of its size.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from architecture import registry
from common.settings import as_text
from training.command_line import CommandLine, read_settings
from training.config import TrainConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CPU_STEP_TOKENS = 2048  # toy's: a step of a recipe for a GPU would take a CPU minutes
LENGTHS = {"max_iters", "max_minutes"}  # which replace each other


def recipe_path(cfg: TrainConfig, size: str) -> Path | None:
    """The file of a size that the model has; None where there is none, or none is wanted."""
    if cfg.recipe == "none" or size not in registry.model_class(cfg.model).presets:
        return None
    folder = CONFIGS / "context" if cfg.carries else CONFIGS
    sizes = {path.stem: path for path in folder.glob("*.yaml")}
    return sizes.get("gpt2" if size.startswith("gpt2") else size)


def under(command: CommandLine, size: str) -> tuple[CommandLine, str]:
    """The command with the recipe of a size under what was given, and a line that says so."""
    cfg, path = command.config, recipe_path(command.config, size)
    if path is None:
        return command, f"recipe: none for {size}, so the defaults of {cfg.program}"
    recipe = read_settings(path, type(cfg))
    given = command.given & {f.name for f in fields(cfg)}
    given |= LENGTHS if given & LENGTHS else set()
    kept = {name: getattr(cfg, name) for name in given}
    if kept.get("max_minutes") is not None:  # in place of the recipe's steps
        recipe["max_minutes"] = f"{recipe.pop('max_iters', cfg.max_iters)} steps"
    changed = ", ".join(
        f"{name} {as_text(kept[name])} (recipe: {as_text(recipe[name])})"
        for name in sorted(kept.keys() & recipe.keys())
        if kept[name] != recipe[name]
    )
    line = f"recipe: configs/{path.relative_to(CONFIGS)}" + (f", changed: {changed}" if changed else "")
    return command._replace(config=type(cfg)(**(recipe | kept))), line


def for_a_cpu(cfg: TrainConfig, given: frozenset[str]) -> TrainConfig:
    """A recipe with at most CPU_STEP_TOKENS a step, or one row, as far as batch_size and grad_accum were not given."""
    if cfg.slots_per_step <= CPU_STEP_TOKENS:
        return cfg
    accum = cfg.grad_accum if "grad_accum" in given else 1
    rows = max(1, CPU_STEP_TOKENS // (cfg.block_size * cfg.tbptt * accum))
    rows = cfg.batch_size if "batch_size" in given else min(rows, cfg.batch_size)
    return replace(cfg, batch_size=rows, grad_accum=accum)
