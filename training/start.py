"""What a run starts from: a preset, a checkpoint's weights, or a checkpoint's whole run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tiktoken

from architecture import registry
from architecture.tokenizer import get_tokenizer, padded_vocab_size, tokenizer_from_state
from training import checkpoint
from training.command_line import CommandLine
from training.config import TrainConfig, check_resume

Start = tuple[TrainConfig, tiktoken.Encoding, Any, dict[str, Any] | None]


def starting_point(command: CommandLine) -> Start:
    """Settings, tokenizer, model config, and the checkpoint that the weights come from, if any.

    Raises ValueError for settings that contradict the tokenizer or the checkpoint.
    """
    cfg = command.config
    asked = [name for name in ("resume", "eval_only", "init_from") if name in command.given]
    asked = [name for name in asked if getattr(cfg, name)]
    if len(asked) > 1:
        raise ValueError(
            f"{' and '.join(asked)} each say where the weights come from, and only one can; leave one out"
        )
    if cfg.resume:
        return continued_run(command, checkpoint.require_latest(cfg.out_dir))
    if cfg.eval_only or cfg.init_from:
        return given_weights(command, cfg.eval_only or cfg.init_from)
    return new_model(command)


def new_model(command: CommandLine) -> Start:
    """A preset, changed by overrides, with the vocabulary of the tokenizer."""
    cfg, overrides = command.config, command.model_overrides
    tokenizer = get_tokenizer(cfg.tokenizer)
    vocab_size = overrides.get("vocab_size", padded_vocab_size(tokenizer))
    if vocab_size < tokenizer.n_vocab:
        raise ValueError(
            f"vocab_size must hold the {tokenizer.n_vocab} ids of tokenizer {cfg.tokenizer}, got "
            f"{vocab_size}; leave it out to have it follow the tokenizer"
        )
    used = tokenizer.n_vocab if tokenizer.n_vocab < vocab_size else None
    if overrides.get("used_vocab_size", used) != used:
        raise ValueError(
            f"used_vocab_size follows the tokenizer ({used or 'none'} for {cfg.tokenizer}), got "
            f"{overrides['used_vocab_size']}; leave it out"
        )
    sizes = {"vocab_size": vocab_size, "used_vocab_size": used}
    config = registry.build_config(cfg.model, cfg.model_size, overrides | sizes)
    return cfg, tokenizer, config, None


def given_weights(command: CommandLine, path: str) -> Start:
    """The model of a checkpoint, for a new run or an evaluation."""
    cfg, saved = command.config, registry.read_checkpoint(path)
    before = saved.get("train_config", {})  # a checkpoint that was not trained here has none
    brought = {
        "model": saved["model_name"],
        "model_size": before.get("model_size", "custom"),
        "tokenizer": saved["tokenizer"]["name"],
    }
    for name, held in brought.items():
        if name in command.given and getattr(cfg, name) != held:
            raise ValueError(
                f"{name} of {path} is {held}, got {getattr(cfg, name)}; leave {name} out"
            )
    if cfg.eval_only and "block_size" not in command.given and "block_size" in before:
        brought["block_size"] = before["block_size"]  # the loss of a token depends on its window
    config = registry.config_from_dict(
        saved["model_name"], saved["config"] | command.model_overrides
    )
    return replace(cfg, **brought), tokenizer_from_state(saved["tokenizer"]), config, saved


def continued_run(command: CommandLine, path: Any) -> Start:
    """The run of a checkpoint, under its own settings."""
    saved = registry.read_checkpoint(path)
    checkpoint.require_training_state(saved, path)
    cfg = check_resume(
        saved["train_config"],
        command.config,
        saved["config"],
        command.model_overrides,
        command.given,
    )
    config = registry.config_from_dict(saved["model_name"], saved["config"])
    return cfg, tokenizer_from_state(saved["tokenizer"]), config, saved
