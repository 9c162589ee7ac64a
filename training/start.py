"""The start of a run: resolve every setting, then check memory and the output folder.

This module builds no model that takes memory, and writes no file.
"""

from __future__ import annotations

import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import tiktoken
import torch

from architecture import registry
from architecture.checkpoint import checkpoints_by_step, find_checkpoint, read_checkpoint, without_values
from architecture.tokenizer import get_tokenizer, padded_vocab_size, tokenizer_from_state
from common import device
from common.script import is_first_rank, number_of_ranks, place_in_node, say
from common.settings import as_text
from data.documents import Source, common_documents
from training import costs, recipes
from training.command_line import CommandLine
from training.config import (
    CHANGES_BITS,
    DATA,
    READ_BY_EVALUATION,
    ContextTrainConfig,
    TrainConfig,
    check_resume,
)
from training.distributed.mesh import Ranks
from training.state import checkpoint
from training.state.out_dir import check_out_dir, earlier_starts, require_latest
from training.state.run import closing_step


class Start(NamedTuple):
    """A resolved start. Only the dataset, and the backends of a model without auto_backends, may be "auto"."""

    cfg: TrainConfig
    tokenizer: tiktoken.Encoding
    config: Any  # the config of the model
    saved: dict[str, Any] | None = None  # the checkpoint that the weights come from
    lines: tuple[str, ...] = ()  # remarks on the settings, printed first
    data: dict[
        str, Any
    ] = {}  # the identity of the data that the checkpoint was trained on, if it is read again


def resolve(command: CommandLine) -> Start:
    """Resolve every setting: defaults < recipe < --config < flags, then the checkpoint, then "auto".

    Raises ValueError for settings that do not fit each other, the tokenizer, the checkpoint or the machine.
    """
    ways = {"resume": continued_run, "resume_from": continued_run, "extend": continued_run}
    ways |= {"eval_only": given_weights, "init_from": given_weights}
    asked = [name for name in ways if getattr(command.config, name)]
    if command.config.kind and "eval_only" in asked:
        raise ValueError(f"{command.config.program} has no eval_only; use train.py --eval_only CHECKPOINT")
    if len(asked) > 1 and asked not in (["resume", "resume_from"], ["resume", "extend"]):
        raise ValueError(f"{' and '.join(asked)} each name the weights to start from; keep one of them")
    start = ways[asked[0]](command) if asked else new_model(command)
    cfg = for_images(start.cfg, start.config, command.given)
    on = torch.device("cuda") if cfg.planned else device.choose_device(cfg.device)
    compiled = {"auto": "on" if on.type == "cuda" else "off"}.get(cfg.compile, cfg.compile)
    cfg = replace(cfg, device=str(on), dtype=device.choose_dtype(cfg.dtype, on), compile=compiled)
    if backends := getattr(registry.model_class(cfg.model), "auto_backends", None):
        fast = backends(start.config, on.type, cfg.dtype)
        cfg = replace(cfg, **{kind: name for kind, name in fast.items() if getattr(cfg, kind) == "auto"})
    if (cfg.experts, cfg.dtype, cfg.compile) == ("grouped", "float32", "on"):
        raise ValueError(
            "experts=grouped compiles in bfloat16 only, got dtype=float32; use experts=sorted, dtype=bfloat16 or "
            "compile=off"
        )
    require_context(cfg, start.config)
    require_room_for_offload(cfg)
    if cfg.planned:
        return start._replace(cfg=cfg)
    cfg, bounded = costs.bounded_evaluations(cfg, command.given)
    lines = *bounded, *costs.warning(cfg, start.config), *costs.memory_for_time(cfg, start.config)
    return start._replace(cfg=cfg, lines=(*start.lines, *lines))


def require_read(command: CommandLine) -> None:
    """Raise ValueError for a flag that --eval_only would ignore. A YAML file may hold the settings of a run."""
    if unread := command.flags & {f.name for f in fields(command.config)} - READ_BY_EVALUATION:
        flags = ", ".join(f"--{name}" for name in sorted(unread))
        raise ValueError(
            f"--eval_only trains nothing, so it has no use for {flags}; leave out what it cannot use"
        )


def require_resources(start: Start) -> None:
    """Raise ValueError if a run does not fit into memory, or if its output folder is taken."""
    cfg = start.cfg
    if number_of_ranks() == 1 or cfg.parallel == "ddp":  # in parts, a model may be larger than a device
        costs.require_memory(cfg, start.config, device.available_memory(torch.device(cfg.device)))
    if not cfg.eval_only:
        check_out_dir(cfg.out_dir, cfg.resume)


def require_layout(start: Start, ranks: Ranks) -> None:
    """Raise ValueError if a run cannot be laid out over these processes. The planner needs only one of them."""
    cfg = start.cfg
    if cfg.lora_rank and (cfg.planned or ranks.number > 1):
        raise ValueError(
            f"lora_rank trains in one process, got {cfg.lora_rank}; start it with python, without torchrun, --gpus and "
            "--gpu, or leave lora_rank out"
        )
    if cfg.dry_run:
        return
    if ranks.number == 1:
        # a run of several processes may go on with one
        if cfg.parallel != "ddp" and not cfg.resume and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise ValueError(
                f"parallel={cfg.parallel} needs several processes; start them with torchrun --nproc_per_node=N "
                f"{cfg.program}, or leave parallel out"
            )
        return
    if cfg.eval_only:
        raise ValueError("--eval_only runs as one process; start it with python, without torchrun")
    if cfg.kind not in ("", "sft"):
        raise ValueError(f"{cfg.program} runs as one process; start it with python, without torchrun")
    if torch.device(cfg.device) not in (torch.device("cpu"), torch.device("cuda")):
        raise ValueError(
            f"device must be auto, cpu or cuda under torchrun, which gives each process its own, got {cfg.device}"
        )
    if cfg.freeze == "trunk":
        raise ValueError(
            "freeze must be none or vision under torchrun, because a process without an image would have no gradient, "
            "got trunk"
        )
    if cfg.parallel != "ddp" and getattr(start.config, "image_format", None) is not None:
        raise ValueError(
            f"parallel must be ddp for a model that reads images, because not every batch has one, got {cfg.parallel}"
        )


def check_data(start: Start, train: Source | None, validation: Source) -> tuple[str, ...]:
    """Remarks on the data of a start, once it is open.

    Raises ValueError if it is not the data of the run that is continued or evaluated, or if the training and
    the validation data of a new run are the same.
    """
    cfg = start.cfg
    if start.data:
        path = cfg.eval_only or checkpoint.checkpoint_path(cfg.out_dir, start.saved["step"])
        checkpoint.require_same_data(start.data, checkpoint.data_identity(train, validation), path)
    elif cfg.resume:
        return (
            "this checkpoint is from a version that did not store what its data is; later checkpoints hold "
            f"that of {train.name} and {validation.name}",
        )
    return () if cfg.resume or train is None else common_documents(train, validation)


def over_recipe(command: CommandLine, size: str) -> tuple[CommandLine, tuple[str, ...]]:
    """The command with the values of a recipe where none was given, and remarks about them.

    On a CPU the step of a recipe is made smaller.
    """
    if command.config.carries and "segment_length" in command.model_overrides:
        command = with_segment_length(command)
        command = command._replace(given=command.given | {"block_size"})
    given = command.given
    command, line = recipes.under(command, size)
    if command.config.carries:
        command = with_segment_length(command)
    full = command.config
    on_cpu = not full.planned and device.choose_device(full.device).type == "cpu"
    if not on_cpu or full.kind or not recipes.recipe_path(full, size):
        return command, (line,)
    cfg = recipes.for_a_cpu(full, given)
    if cfg == full:
        return command, (line,)
    smaller = (
        f"on a CPU a step has {cfg.slots_per_step:,} tokens in place of {full.slots_per_step:,}: "
        f"batch_size {cfg.batch_size}, grad_accum {cfg.grad_accum}; set these two to change it"
    )
    return command._replace(config=cfg), (line, smaller)


def with_segment_length(command: CommandLine) -> CommandLine:
    """Give block_size and segment_length one value, for a model that reads in segments.

    If neither is given, the value of a checkpoint is kept.
    """
    cfg, overrides = command.config, dict(command.model_overrides)
    asked = overrides.get("segment_length", cfg.block_size)
    if "block_size" in command.given and asked != cfg.block_size:
        raise ValueError(
            f"block_size and segment_length are one setting here, got {cfg.block_size} and {asked}; "
            "give only one of them"
        )
    if "block_size" in command.given or not (cfg.resume or cfg.eval_only or cfg.init_from):
        overrides["segment_length"] = asked
    return command._replace(config=replace(cfg, block_size=asked), model_overrides=overrides)


def settings_class(model: str) -> type[TrainConfig]:
    """The class of settings of the script that trains a model."""
    carries = getattr(registry.model_class(model), "carries", False)
    return ContextTrainConfig if carries else TrainConfig


def require_program(cfg: TrainConfig, model: str) -> None:
    """Raise ValueError if the other script trains this model."""
    carries = settings_class(model).carries
    if carries and not cfg.carries:
        raise ValueError(
            f"model {model} carries a state from segment to segment, which {cfg.program} does not support; "
            "use train_context.py"
        )
    if cfg.carries and not carries:
        raise ValueError(
            f"model {model} carries no state from segment to segment, as {cfg.program} needs; "
            "use train.py, with --packing lanes for the same segments"
        )


def new_model(command: CommandLine) -> Start:
    """The start of a new model: a preset with overrides, and the vocabulary of the tokenizer."""
    if command.config.kind:
        raise ValueError(
            f"{command.config.program} trains a checkpoint further, and none was given; add --init_from CHECKPOINT, "
            "or --resume to continue a run"
        )
    require_program(command.config, command.config.model)
    command, lines = over_recipe(command, command.config.model_size)
    cfg = command.config
    tokenizer = get_tokenizer(cfg.tokenizer)
    config = new_config(command, tokenizer.n_vocab)
    return Start(with_segments_of(cfg, config), tokenizer, config, lines=lines)


def with_segments_of(cfg: TrainConfig, config: Any) -> TrainConfig:
    """The settings with block_size from the model, if the model reads in segments."""
    return replace(cfg, block_size=config.segment_length) if cfg.carries else cfg


def new_config(command: CommandLine, n_vocab: int) -> Any:
    """The config of a new model for a tokenizer with n_vocab ids."""
    cfg, overrides = command.config, command.model_overrides
    vocab_size = overrides.get("vocab_size", padded_vocab_size(n_vocab))
    if vocab_size < n_vocab:
        raise ValueError(
            f"vocab_size must hold the {n_vocab} ids of tokenizer {cfg.tokenizer}, got "
            f"{vocab_size}; leave it out to take the number of the tokenizer"
        )
    used = n_vocab if n_vocab < vocab_size else None
    if overrides.get("used_vocab_size", used) != used:
        raise ValueError(
            f"used_vocab_size follows the tokenizer ({used or 'none'} for {cfg.tokenizer}), got "
            f"{overrides['used_vocab_size']}; leave it out"
        )
    sizes = {"vocab_size": vocab_size, "used_vocab_size": used}
    return registry.build_config(cfg.model, cfg.model_size, overrides | sizes)


def for_images(cfg: TrainConfig, config: Any, given: frozenset[str]) -> TrainConfig:
    """The settings with one document in each row, if the model reads images, because an image is not cut."""
    if cfg.kind and getattr(config, "image_format", None) is not None:
        raise ValueError(f"{cfg.program} trains models of text, and this one reads images; use train.py")
    if getattr(config, "image_format", None) is None:
        if cfg.freeze != "none":
            raise ValueError(
                f"freeze must be none for model {cfg.model} with these settings, which reads no images, got "
                f"{cfg.freeze}; leave freeze out, or use --model gptoss_vision"
            )
        return cfg
    if "packing" in given and cfg.packing != "rows":
        raise ValueError(
            f"packing must be rows for a model that reads images, got {cfg.packing}; leave packing out"
        )
    return replace(cfg, packing="rows")


def require_context(cfg: TrainConfig, config: Any) -> None:
    """Raise ValueError if rows are longer than the model's context."""
    if cfg.block_size > config.context_limit:
        raise ValueError(
            f"block_size must be at most the model's context limit of {config.context_limit} tokens, got "
            f"{cfg.block_size}; lower block_size or raise initial_context_length"
        )


def require_room_for_offload(cfg: TrainConfig) -> None:
    """Raise ValueError if there is nothing to offload; --dry_run may plan for a GPU that is not here."""
    if cfg.offload != "none" and not cfg.device.startswith("cuda") and not cfg.dry_run:
        raise ValueError(
            f"offload={cfg.offload} keeps it in the memory of the host, where a run on device {cfg.device} has "
            "it already; leave offload out, or train on a CUDA device"
        )
    if cfg.offload == "optimizer" and cfg.layout[1] is not None:
        raise ValueError(
            f"offload=optimizer cannot move experts that are spread over processes, got parallel={cfg.parallel}; "
            "leave offload out, or use parallel=ddp or fsdp"
        )


def given_weights(command: CommandLine) -> Start:
    """The start from the weights of a checkpoint, for a new run or an evaluation."""
    purpose = "eval_only" if command.config.eval_only else "init_from"
    cfg = command.config
    if cfg.eval_only:
        require_read(command)
    path = find_checkpoint(getattr(cfg, purpose), say if is_first_rank() else lambda line: None)
    with checkpoint.naming_a_good_one(path):
        saved = registry.read_weights(path, part=place_in_node())
    model = saved["model_name"]
    if cfg.init_from and getattr(registry.model_class(cfg.model), "extends", None) == model:
        model = cfg.model  # a variant that starts from the weights of its trunk
    require_program(cfg, model)
    before = checkpoint.saved_settings(saved, path)  # empty if the checkpoint was not trained here
    command, lines = over_recipe(command, before.get("model_size", "custom"))
    cfg = command.config
    tokenizer = tokenizer_from_state(saved["tokenizer"])
    brought = {"model": model, "model_size": before.get("model_size", "custom"), "tokenizer": tokenizer.name}
    for name, held in brought.items():
        if name in command.given and getattr(cfg, name) != held:
            raise ValueError(f"{name} of {path} is {held}, got {getattr(cfg, name)}; leave {name} out")
    stories, val_stories, column = checkpoint.stories_of(before)
    named = {"story_dataset": stories, "story_val_dataset": val_stories, "text_column": column}
    if cfg.kind and not command.given & named.keys() and stories:
        brought |= named
    data_identity = {}
    brought[purpose] = str(path)  # the file, because the newest checkpoint of a folder changes
    if cfg.eval_only:  # the loss of a token depends on the rest of its row
        rows = {"block_size", "packing"} - command.given
        brought |= {name: before[name] for name in rows & before.keys()}
    if cfg.eval_only and not command.given & {"dataset", "val_dataset"} and "dataset" in before:
        # the loss on other data could not be compared with those that the run logged
        same = {*DATA, "hold_out_test"} & before.keys() & {f.name for f in fields(cfg)}
        before |= {"dataset": stories, "val_dataset": val_stories}
        brought |= {name: before[name] for name in same - command.given}
        data_identity = checkpoint.saved_identity(saved)
    overrides = command.model_overrides
    added = {}  # a variant takes the sizes of what it adds from its preset, and the rest from the checkpoint
    if model != saved["model_name"]:
        added = registry.model_class(model).presets.get(brought["model_size"], {})
    config = registry.config_from_dict(model, added | saved["config"] | overrides)
    require_same_shapes(saved, config, overrides, path)
    cfg = with_segments_of(replace(cfg, **brought), config)
    return Start(cfg, tokenizer, config, saved, lines, data_identity)


def require_same_shapes(saved: dict[str, Any], config: Any, overrides: dict[str, Any], path: Any) -> None:
    """Raise ValueError if the checkpoint's tensors do not fit, and name the overrides that cause it."""
    model = saved["model_name"]
    held = registry.config_from_dict(model, saved["config"])
    if not overrides or parameter_shapes(model, config) == parameter_shapes(model, held):
        return
    told = " and ".join(
        f"{name} {as_text(getattr(held, name), name)} (got {as_text(getattr(config, name), name)})"
        for name in asdict(held)
        if getattr(held, name) != getattr(config, name)
    )
    raise ValueError(f"the weights of {path} are of a model with {told}; leave out what changes its shapes")


def parameter_shapes(model: str, config: Any) -> dict[str, torch.Size]:
    """{name: shape} of the parameters, from a model on the meta device; tied parameters occur once."""
    built = without_values(registry.model_class(model), config)
    return {n: p.shape for n, p in built.named_parameters()}


def continued_run(command: CommandLine) -> Start:
    """The continuation of the run in out_dir, with its saved settings."""
    command = with_resumed_folder(command)
    asked = command.config
    if asked.carries:
        command = with_segment_length(command)
    path = Path(asked.resume_from) if asked.resume_from else require_latest(asked.out_dir)
    saved = read_run(path, asked)
    before = checkpoint.saved_settings(saved, path, type(asked))
    before, lines = for_ranks(before, checkpoint.saved_ranks(saved, path), command)
    cfg = check_resume(before, command.config, saved["config"], command.model_overrides, command.given)
    if asked.extend:
        cfg, longer = extended(cfg, before)
        lines += longer
        saved = read_run(Path(cfg.resume_from or path), asked)
    require_saved_device(cfg, before, saved["step"])
    changed = [
        f"{name} {as_text(getattr(cfg, name))} (was {as_text(before[name])})"
        for name in sorted(CHANGES_BITS & before.keys())
        if getattr(cfg, name) != before[name]
    ]
    if checkpoint.has_other_muon(saved, path):
        changed.append("Muon's polynomials of this version (were others)")
    if changed:
        told = f"after step {saved['step']} the bits differ from those of a run without this change"
        lines = (*lines, f"{', '.join(changed)}: {told}")
    earlier_starts(cfg.out_dir)  # raises for a damaged config.json before a file changes
    config = registry.config_from_dict(saved["model_name"], saved["config"])
    identity = checkpoint.saved_identity(saved)
    return Start(cfg, tokenizer_from_state(saved["tokenizer"]), config, saved, lines, identity)


def for_ranks(
    before: dict[str, Any], was: int, command: CommandLine
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The saved settings of a run for another number of processes, with the same rows in a step, and a remark.

    grad_accum follows, or else batch_size, or else both; in lanes batch_size, because each row is a lane.
    was: the number of processes that the settings are saved for.
    Raises ValueError if no batch_size and grad_accum fit, with the numbers of processes that do.
    """
    now, asked = number_of_ranks(), command.config
    if now == was:
        return before, ()
    rows, accum = before["batch_size"], before["grad_accum"]
    step = was * rows * accum
    if before["packing"] == "lanes":
        fitting = [(was * rows // now, accum)] if was * rows % now == 0 else []
        numbers = divisors(was * rows)
    else:
        fitting = [(size, step // now // size) for size in divisors(step // now)] if step % now == 0 else []
        numbers = divisors(step)
    if not fitting:
        raise ValueError(
            f"the rows of a step of this run ({step}) cannot be shared by {now} processes; "
            f"start one of these numbers of processes: {', '.join(map(str, numbers))}"
        )
    for place, name in enumerate(("batch_size", "grad_accum")):
        if name in command.given:
            values = sorted({pair[place] for pair in fitting})
            fitting = [pair for pair in fitting if pair[place] == getattr(asked, name)]
            if not fitting:
                raise ValueError(
                    f"a step of this run has {step} rows, so with {now} processes {name} must be one of "
                    f"{', '.join(map(str, values))}, got {getattr(asked, name)}; leave it out"
                )
    size, accum = max((pair for pair in fitting if pair[0] <= rows), default=fitting[0])
    line = (
        f"number of processes {now} (was {was}): batch_size {size}, grad_accum {accum}, for the same {step} rows in a "
        "step; the last bits differ"
    )
    return before | {"batch_size": size, "grad_accum": accum}, (line,)


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def read_run(path: Path, cfg: TrainConfig) -> dict[str, Any]:
    """The checkpoint of a run that this program can continue."""
    with checkpoint.naming_a_good_one(path):
        saved = read_checkpoint(path, way_out=checkpoint.OLDER, part=place_in_node())
    require_program(cfg, saved["model_name"])
    checkpoint.require_run(saved, path)
    checkpoint.require_kind(saved, path, cfg)
    return saved


def require_saved_device(cfg: TrainConfig, saved: dict[str, Any], step: int) -> None:
    """Raise ValueError with the flags to add if the device of a continued run is not on this machine."""
    try:
        device.choose_device(cfg.device)
    except ValueError:
        if cfg.device != saved.get("device"):
            raise  # the device was given
        here = device.choose_device("auto")
        plain = "" if here.type == "cuda" else " --compile off --attention sdpa"
        if plain and cfg.experts == "grouped":  # what auto stands for on CUDA
            plain += " --experts sorted"
        raise ValueError(
            f"the run was on device {cfg.device}, which this machine does not have; to continue it here, with "
            f"other last bits after step {step}, add --device {here} --dtype {device.choose_dtype('auto', here)}"
            f"{plain}"
        ) from None


def extended(cfg: TrainConfig, before: dict[str, Any]) -> tuple[TrainConfig, tuple[str, ...]]:
    """The settings of a finished run with cfg.extend more steps, and a line about them.

    before: its saved settings.  The run goes on from the last checkpoint before the decay, so that the learning
    rates until there are those of the longer run, too: the steps of the warmup stay the same. Without one, a
    schedule of the new steps alone begins at the end.
    """
    end, more = closing_step(cfg.out_dir), cfg.extend
    if end is None or end < (cfg.max_iters or 0):
        raise ValueError(
            f"extend needs a finished run, and the run in {cfg.out_dir} is not at its end; let it finish "
            f"with --resume --out_dir {quote(cfg.out_dir)}, then extend it"
        )
    length = before.get("extend") or end
    last = end - cfg.decay * length + 0.5  # end of the plateau: a step takes the rate at its middle
    first = end - length + cfg.warmup * length
    kept = [path for step, path in checkpoints_by_step(cfg.out_dir).items() if first < step <= last]
    how = "from the finished weights, with a new schedule over the new steps"
    if kept and cfg.schedule == "wsd" and cfg.max_iters:
        how = f"from {kept[-1]}, the last before the decay, which is made again at the new end"
        extend = length + more if before.get("extend") else None
        warmup = cfg.warmup * length / (length + more)
        cfg = replace(cfg, resume_from=str(kept[-1]), extend=extend, warmup=warmup)
    cfg = replace(cfg, max_iters=end + more, max_minutes=None)
    line = f"extended by {more:,} steps {how}; the curve is not that of one run of {cfg.max_iters:,} steps"
    return cfg, (line,)


def with_resumed_folder(command: CommandLine) -> CommandLine:
    """Set --resume, and the folder of the file for --resume_from FILE."""
    cfg = command.config
    if cfg.resume_from is None:
        return command._replace(config=replace(cfg, resume=True))
    path = Path(cfg.resume_from)
    out_dir = Path(cfg.out_dir) if "out_dir" in command.given else path.parent
    if path.resolve() not in {other.resolve() for other in checkpoint.checkpoints(out_dir)}:
        raise ValueError(
            f"resume_from must be a checkpoint_<step>.pt of the run in {out_dir}, got {cfg.resume_from}; "
            "name a checkpoint in that folder"
        )
    cfg = replace(cfg, resume=True, out_dir=str(out_dir), resume_from=str(out_dir / path.name))
    return command._replace(config=cfg)
