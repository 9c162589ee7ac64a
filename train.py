"""Train a model: parse -> build -> training.trainer.train. `python train.py --help` lists the flags."""

import sys
import typing
from dataclasses import replace

from training.command_line import CommandLine, parse_command_line
from training.config import TrainConfig, as_text, check_resume


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0; 2 for bad input; 128 + signal after a stop."""
    try:
        return run(parse_command_line(sys.argv[1:] if argv is None else argv, model_fields))
    except (ValueError, OSError, ImportError) as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the loop answers Ctrl-C, or the second one
        print("train.py: interrupted; checkpoints that were saved are whole", file=sys.stderr)
        return 130


def run(command: CommandLine) -> int:
    """Do what the command line asked for."""
    if command.help_model:
        return print_model_fields(command.config)
    import torch

    from architecture import registry
    from training import checkpoint, costs, device, trainer
    from training.data_sources import open_dataset

    cfg, tokenizer, config, saved = starting_point(command)
    if cfg.block_size > config.context_limit:
        raise ValueError(
            f"block_size must be at most the model's context limit of {config.context_limit} tokens "
            f"(initial_context_length * rope_scaling_factor), got {cfg.block_size}; lower it or raise those"
        )
    if cfg.dry_run:
        print(costs.report(cfg, config))
        return 0
    where = device.choose_device(cfg.device)
    torch.set_num_threads(cfg.threads or torch.get_num_threads())
    if not cfg.eval_only:
        checkpoint.check_out_dir(cfg.out_dir, cfg.resume)
        source = open_dataset(
            cfg.dataset, split="train", val_dataset=cfg.val_dataset, text_column=cfg.text_column
        )
    validation = open_dataset(
        cfg.dataset, split="validation", val_dataset=cfg.val_dataset, text_column=cfg.text_column
    )
    generator = torch.Generator().manual_seed(cfg.seed)
    model = registry.build_model(
        cfg.model, config, attention=cfg.attention, experts=cfg.experts, generator=generator
    )
    if saved is not None:
        registry.load_weights(model, saved["model"], cfg.init_from or cfg.eval_only or cfg.out_dir)
    cfg = replace(  # what "auto" became: shown, stored, and used again by --resume
        cfg,
        device=str(where),
        dtype=device.choose_dtype(cfg.dtype, where),
        attention=model.attention_backend,
        experts=model.experts_backend,
        threads=torch.get_num_threads(),
    )
    if cfg.eval_only:
        print(trainer.evaluate_only(cfg, model, tokenizer, validation))
        return 0
    try:
        trainer.train(
            cfg, model, tokenizer, source, validation, resumed=saved if cfg.resume else None
        )
    except trainer.Stopped as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal
    return 0


def starting_point(command: CommandLine) -> tuple[TrainConfig, typing.Any, typing.Any, dict | None]:
    """The settings, tokenizer and model config of this run, and the checkpoint that it starts from."""
    from architecture import registry
    from architecture.tokenizer import get_tokenizer, padded_vocab_size, tokenizer_from_state
    from training import checkpoint

    cfg, overrides = command.config, command.model_overrides
    path = checkpoint.require_latest(cfg.out_dir) if cfg.resume else cfg.eval_only or cfg.init_from
    if path is None:
        tokenizer = get_tokenizer(cfg.tokenizer)
        vocab_size = overrides.get("vocab_size", padded_vocab_size(tokenizer))
        if vocab_size < tokenizer.n_vocab:
            raise ValueError(
                f"vocab_size must hold the {tokenizer.n_vocab} ids of tokenizer {cfg.tokenizer}, got "
                f"{vocab_size}; leave it out to have it follow the tokenizer"
            )
        used = tokenizer.n_vocab if tokenizer.n_vocab < vocab_size else None
        sizes = {"vocab_size": vocab_size, "used_vocab_size": used}
        return (
            cfg,
            tokenizer,
            registry.build_config(cfg.model, cfg.model_size, overrides | sizes),
            None,
        )

    saved = registry.read_checkpoint(path)
    if cfg.resume:
        checkpoint.require_training_state(saved, path)
        cfg = check_resume(saved["train_config"], cfg, saved["config"], overrides, command.given)
        overrides = {}
    else:  # the weights bring these
        size = saved.get("train_config", {}).get("model_size", "custom")  # not a run's: no preset
        for name, held in (
            ("model", saved["model_name"]),
            ("model_size", size),
            ("tokenizer", saved["tokenizer"]["name"]),
        ):
            if name in command.given and getattr(cfg, name) != held:
                raise ValueError(
                    f"{name} of {path} is {held}, got {getattr(cfg, name)}; leave {name} out"
                )
            cfg = replace(cfg, **{name: held})
    config = registry.config_from_dict(cfg.model, saved["config"] | overrides)
    return cfg, tokenizer_from_state(saved["tokenizer"]), config, saved


def model_fields(model: str = TrainConfig.model) -> dict[str, typing.Any]:
    """{name: type} of the model's own settings; imports torch, so it is called only for these."""
    from architecture.registry import model_class

    return typing.get_type_hints(model_class(model).config_class)


def print_model_fields(cfg: TrainConfig) -> int:
    """--help_model: every field of the model, its type, its default and the preset's value."""
    from architecture.registry import build_config, model_class

    preset = build_config(cfg.model, cfg.model_size)
    print(
        f"fields of --model {cfg.model}; a flag or YAML key each; values of --model_size {cfg.model_size}:"
    )
    for name, hint in model_fields(cfg.model).items():
        kind = hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("typing.")
        print(f"  --{name:<24} {kind:<28} {as_text(getattr(preset, name))}")
    presets = model_class(cfg.model).presets
    print(f"model sizes: {', '.join(presets)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
