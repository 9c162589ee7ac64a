"""What a run starts from: a preset, a checkpoint's weights, or a checkpoint's whole run."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import tiktoken
import torch

from architecture import registry
from architecture.checkpoint import read_checkpoint
from architecture.tokenizer import get_tokenizer, padded_vocab_size, tokenizer_from_state
from common.script import say
from common.settings import as_text
from training.command_line import CommandLine
from training.config import ContextTrainConfig, TrainConfig, check_resume
from training.state import checkpoint
from training.state.out_dir import earlier_starts, require_latest
from training.state.saved_state import require_run_state, saved_settings

DATA = ("dataset", "val_dataset", "text_column")
Start = tuple[TrainConfig, tiktoken.Encoding, Any, dict[str, Any] | None]


def starting_point(command: CommandLine) -> Start:
    """Settings, tokenizer, model config, and the checkpoint that the weights come from, if any.

    Raises ValueError for settings that contradict the tokenizer or the checkpoint.
    """
    cfg = command.config
    if cfg.carries:
        command = with_segment_length(command)
    asked = [name for name in ("resume", "eval_only", "init_from") if name in command.given]
    asked = [name for name in asked if getattr(cfg, name)]
    if len(asked) > 1:
        raise ValueError(
            f"{' and '.join(asked)} each say where the weights come from, and only one can; leave one out"
        )
    if cfg.resume:
        return continued_run(command, require_latest(cfg.out_dir))
    if cfg.eval_only or cfg.init_from:
        start = given_weights(command)
    else:
        start = new_model(command)
    if not cfg.carries:
        return start
    cfg, tokenizer, config, saved = start
    return replace(cfg, block_size=config.segment_length), tokenizer, config, saved


def with_segment_length(command: CommandLine) -> CommandLine:
    """block_size and segment_length as the one setting that they are for a model that reads in segments;
    where neither is given, a checkpoint may bring it.
    """
    cfg, overrides = command.config, dict(command.model_overrides)
    asked = overrides.get("segment_length", cfg.block_size)
    if "block_size" in command.given and asked != cfg.block_size:
        raise ValueError(
            f"block_size and segment_length are one setting here, got {cfg.block_size} and {asked}; give one"
        )
    if "block_size" in command.given or not (cfg.resume or cfg.eval_only or cfg.init_from):
        overrides["segment_length"] = asked
    return command._replace(config=replace(cfg, block_size=asked), model_overrides=overrides)


def settings_class(model: str) -> type[TrainConfig]:
    """The settings of the script that trains a model."""
    carries = getattr(registry.model_class(model), "carries", False)
    return ContextTrainConfig if carries else TrainConfig


def require_program(cfg: TrainConfig, model: str) -> None:
    """ValueError for a model that the other script trains."""
    carries = settings_class(model).carries
    if carries and not cfg.carries:
        raise ValueError(
            f"model {model} carries a state from segment to segment, which {cfg.program} does not; "
            "use train_context.py"
        )
    if cfg.carries and not carries:
        raise ValueError(
            f"model {model} carries no state from segment to segment, got it for {cfg.program}; "
            "use train.py, with --packing lanes for the same segments"
        )


def new_model(command: CommandLine) -> Start:
    """A preset, changed by overrides, with the vocabulary of the tokenizer."""
    cfg = command.config
    require_program(cfg, cfg.model)
    tokenizer = get_tokenizer(cfg.tokenizer)
    return cfg, tokenizer, new_config(command, tokenizer.n_vocab), None


def new_config(command: CommandLine, n_vocab: int) -> Any:
    """The config of a new model for a tokenizer of n_vocab ids."""
    cfg, overrides = command.config, command.model_overrides
    vocab_size = overrides.get("vocab_size", padded_vocab_size(n_vocab))
    if vocab_size < n_vocab:
        raise ValueError(
            f"vocab_size must hold the {n_vocab} ids of tokenizer {cfg.tokenizer}, got "
            f"{vocab_size}; leave it out to have it follow the tokenizer"
        )
    used = n_vocab if n_vocab < vocab_size else None
    if overrides.get("used_vocab_size", used) != used:
        raise ValueError(
            f"used_vocab_size follows the tokenizer ({used or 'none'} for {cfg.tokenizer}), got "
            f"{overrides['used_vocab_size']}; leave it out"
        )
    sizes = {"vocab_size": vocab_size, "used_vocab_size": used}
    return registry.build_config(cfg.model, cfg.model_size, overrides | sizes)


def require_context(cfg: TrainConfig, config: Any) -> None:
    """ValueError for rows that are longer than the model's context."""
    if cfg.block_size > config.context_limit:
        names = ("initial_context_length", "rope_scaling_factor")
        product = " * ".join(name for name in names if hasattr(config, name))
        raise ValueError(
            f"block_size must be at most the model's context limit of {config.context_limit} tokens "
            f"({product}), got {cfg.block_size}; lower it or raise that"
        )


def given_weights(command: CommandLine) -> Start:
    """The model of a checkpoint, for a new run or an evaluation."""
    cfg, purpose = command.config, "eval_only" if command.config.eval_only else "init_from"
    path = checkpoint.find_checkpoint(getattr(cfg, purpose), say)
    saved = registry.read_weights(path)
    model = saved["model_name"]
    if cfg.init_from and getattr(registry.model_class(cfg.model), "extends", None) == model:
        model = cfg.model  # a variant on the weights of its trunk
    require_program(cfg, model)
    before = saved_settings(saved, path)  # one that was not trained here has none
    tokenizer = tokenizer_from_state(saved["tokenizer"])
    brought = {
        "model": model,
        "model_size": before.get("model_size", "custom"),
        "tokenizer": tokenizer.name,
    }
    for name, held in brought.items():
        if name in command.given and getattr(cfg, name) != held:
            raise ValueError(
                f"{name} of {path} is {held}, got {getattr(cfg, name)}; leave {name} out"
            )
    brought[purpose] = str(path)  # the file: a folder's newest checkpoint is another one tomorrow
    if cfg.eval_only and "block_size" not in command.given and "block_size" in before:
        brought["block_size"] = before["block_size"]  # the loss of a token depends on its window
    if cfg.eval_only and "packing" not in command.given and "packing" in before:
        brought["packing"] = before["packing"]
    if cfg.eval_only and not command.given & {"dataset", "val_dataset"} and "dataset" in before:
        # other data would give a loss that compares with nothing that the run has shown
        data = {name: before[name] for name in DATA if name not in command.given}
        brought |= data
        told = ", ".join(
            f"{name} {held}" for name, held in data.items() if held != getattr(type(cfg), name)
        )
        say(f"the data that {path} names: {told}")
    overrides = command.model_overrides
    config = registry.config_from_dict(model, saved["config"] | overrides)
    require_same_shapes(saved, config, overrides, path)
    return replace(cfg, **brought), tokenizer, config, saved


def require_same_shapes(
    saved: dict[str, Any], config: Any, overrides: dict[str, Any], path: Any
) -> None:
    """ValueError that names the overrides under which the checkpoint's tensors do not fit."""
    if not overrides:
        return
    held = registry.config_from_dict(saved["model_name"], saved["config"])
    shapes = parameter_shapes(saved["model_name"], held)
    if parameter_shapes(saved["model_name"], config) == shapes:
        return
    guilty = []
    for name in [name for name in asdict(held) if name in overrides]:
        try:
            alone = replace(held, **{name: getattr(config, name)})
            if parameter_shapes(saved["model_name"], alone) != shapes:
                guilty.append(name)
        except ValueError:  # possible only together with the others
            guilty.append(name)
    first, *rest = [
        (name, f"{as_text(getattr(held, name))}, got {as_text(getattr(config, name))}")
        for name in guilty or overrides
    ]
    others = "".join(f", and {name} is {values}" for name, values in rest)
    raise ValueError(
        f"{first[0]} of {path} is {first[1]}{others}; leave {'them' if rest else 'it'} out or "
        "train a new model"
    )


def without_memory(model: str, config: Any) -> torch.nn.Module:
    """A model of this shape on the meta device."""
    with torch.device("meta"):
        return registry.build_model(model, config)


def parameter_shapes(model: str, config: Any) -> dict[str, torch.Size]:
    """Shapes by name, of a model that takes no memory; tied parameters count once."""
    return {n: p.shape for n, p in without_memory(model, config).named_parameters()}


def continued_run(command: CommandLine, path: Any) -> Start:
    """The run of a checkpoint, under its own settings."""
    saved = read_checkpoint(path)
    require_program(command.config, saved["model_name"])
    checkpoint.require_training_state(saved, path)
    cfg = check_resume(
        saved_settings(saved, path, type(command.config)),
        command.config,
        saved["config"],
        command.model_overrides,
        command.given,
    )
    earlier_starts(cfg.out_dir)  # raises before anything is touched
    config = registry.config_from_dict(saved["model_name"], saved["config"])
    require_run_state(saved, cfg, config, without_memory(cfg.model, config), path)
    return cfg, tokenizer_from_state(saved["tokenizer"]), config, saved
