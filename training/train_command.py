"""The command behind train.py and train_context.py: read the flags, build the model, train or evaluate it."""

import functools
import sys
import typing
from dataclasses import fields, replace

from common.begin import STARTED
from common.script import exit_code, say
from common.settings import as_text
from common.threads import set_threads
from training.command_line import CommandLine, parse_command_line
from training.config import TrainConfig
from training.distributed.mesh import Ranks, joined_ranks


def train_command(config_class: type[TrainConfig], argv: list[str] | None) -> int:
    """Returns the exit code: 0; 2 for bad input; 128 + signal after a stop."""
    argv = sys.argv[1:] if argv is None else argv
    return exit_code(
        config_class.program,
        lambda: run(parse_command_line(argv, model_fields, config_class=config_class)),
        # for Ctrl-C before the training loop handles it, and for the second one
        interrupted="interrupted; all saved checkpoints are complete",
        under_torchrun=True,
    )


def run(command: CommandLine) -> int:
    """Do what the command line asks for. Returns the exit code."""
    if command.help_model:
        return print_model_fields(command.config, command.model_overrides)
    with joined_ranks() as ranks:
        return run_on(ranks, command)


def run_on(ranks: Ranks, command: CommandLine) -> int:
    """Train or evaluate with the processes that torchrun started, or with this one alone."""
    import torch

    from architecture import checkpoint, registry
    from common import device
    from data.defaults import BUNDLED
    from data.images import PICTURES, open_images
    from data.sources import AUTO, choose_dataset, open_dataset
    from data.test_split import PartOfValidation
    from training import costs, optimizer, planner, restart, start, trainer
    from training.distributed import faults
    from training.state.checkpoint import data_identity

    command = restart.after_restart(ranks, command)
    if command is None:
        return 0
    with ranks.together():
        begun = start.resolve(command)
        start.require_layout(begun, ranks)
        cfg, tokenizer, config, saved, lines, held = begun
        if not cfg.dry_run:
            start.require_resources(begun)
    tell = say if ranks.writes else lambda line: None
    if cfg.dry_run:
        checkpoint.without_values(  # raises for a backend that this machine lacks
            registry.model_class(cfg.model), config, attention=cfg.attention, experts=cfg.experts
        )
        if cfg.planned:
            text = planner.report(cfg, config, named="parallel" in command.given)
        else:
            text = costs.report(cfg, config, device.available_memory(torch.device(cfg.device)))
        if ranks.writes:
            print("\n".join((*lines, text)))
        return 0
    if line := set_threads(cfg.threads, STARTED):
        tell(line)
    images, objective = getattr(config, "image_format", None), None
    if cfg.kind:
        from training.post.objective import new_objective

        stories = choose_dataset(cfg.story_dataset, tell)
        cfg = replace(cfg, story_dataset=stories, dataset=BUNDLED if cfg.dataset == AUTO else cfg.dataset)
        if getattr(cfg, "reference", None):  # the file, because the newest checkpoint of a folder changes
            cfg = replace(cfg, reference=str(checkpoint.find_checkpoint(cfg.reference, tell)))
        objective = new_objective(cfg, tokenizer)
        open_split = objective.open_data
    elif images is not None:
        cfg = replace(cfg, dataset=PICTURES if cfg.dataset == AUTO else cfg.dataset)
        open_split = functools.partial(open_images, size=images.size)
    else:
        if not (cfg.eval_only and cfg.val_dataset):  # with both, the dataset is not used
            cfg = replace(cfg, dataset=choose_dataset(cfg.dataset, tell))
        open_split = open_dataset
    if not objective:
        open_split = functools.partial(
            open_split, cfg.dataset, val_dataset=cfg.val_dataset, text_column=cfg.text_column
        )
    with ranks.together():
        source = None if cfg.eval_only else open_split(split="train", identity=held.get("training data"))
        validation = open_split(split="validation", identity=held.get("validation data"))
        lines += start.check_data(begun, source, validation)
        if cfg.hold_out_test:
            validation = PartOfValidation(validation, tokenizer, test=False)
    step = saved["step"] if saved is not None else 0
    faults.require_agreement(ranks, cfg, config, step, data_identity(source, validation))
    generator = torch.Generator().manual_seed(cfg.seed)
    in_parts = ranks.number > 1 and cfg.parallel != "ddp"  # then a rank never holds the whole model
    backends = {"attention": cfg.attention, "experts": cfg.experts}
    model = registry.build_model(cfg.model, config, values=not in_parts, generator=generator, **backends)
    added = model.added_parameters if saved is not None and saved["model_name"] != cfg.model else ()

    def load(model: torch.nn.Module) -> None:
        source_of_weights = cfg.init_from or cfg.eval_only or cfg.out_dir
        checkpoint.load_weights(model, saved["model"], source_of_weights, added=added)

    def initialize(model: torch.nn.Module) -> None:
        if saved is None or added:
            model.init_weights(generator)
        if saved is not None:
            load(model)

    if saved is not None and not in_parts:
        load(model)
    optimizer.freeze(model, cfg.freeze)
    cfg = replace(  # the choices that "auto" stands for are shown, stored, and used again by --resume
        cfg, attention=model.attention_backend, experts=model.experts_backend, threads=torch.get_num_threads()
    )
    if cfg.eval_only:
        bounds = [getattr(cfg, name) for name in command.given & {"final_eval_tokens", "eval_tokens"}]
        tokens = min((bound for bound in bounds if isinstance(bound, int)), default=None)
        print(trainer.evaluate_only(cfg, model, tokenizer, validation, tokens))
        return 0
    if objective:
        with ranks.together():
            objective.open_model(model, saved["post"] if cfg.resume else None)
    try:
        trainer.train(
            cfg,
            model,
            tokenizer,
            source,
            validation,
            resumed=saved if cfg.resume else None,
            lines=lines,
            ranks=ranks,
            initialize=initialize if in_parts else None,
            objective=objective,
        )
    except trainer.Stopped as stop:
        tell(str(stop))
        return 128 + stop.signal
    return 0


def model_fields(model: str) -> dict[str, typing.Any]:
    """{name: type} of the fields of a model's config. Imports torch."""
    from architecture.registry import model_class

    return typing.get_type_hints(model_class(model).config_class)


def print_model_fields(cfg: TrainConfig, overrides: dict[str, typing.Any]) -> int:
    """Print each field of the model with its type, its value in the preset or by its flag, and its meaning."""
    from architecture.registry import build_config, model_class

    preset = build_config(cfg.model, cfg.model_size, overrides)
    meanings = {f.name: f.metadata["help"] for f in fields(preset)}
    print(
        f"fields of --model {cfg.model}, each a flag and a YAML key; values of --model_size {cfg.model_size}:"
    )
    for name, hint in model_fields(cfg.model).items():
        kind = hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("typing.")
        kind = kind.removeprefix("Literal") if kind.startswith("Literal") else kind
        value = as_text(getattr(preset, name), name)
        print(f"  --{name:<24} {kind:<32} {value:<8} {meanings[name]}")
    print(f"model sizes: {', '.join(model_class(cfg.model).presets)}")
    return 0
