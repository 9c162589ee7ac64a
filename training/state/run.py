"""Open a run, with everything that it keeps from step to step, and save its checkpoints."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import nn

from architecture import shards
from architecture.tokenizer import token_byte_lengths, tokenizer_state
from common.device import autocast
from common.files import CannotWrite, atomic_write, write_json_atomic
from common.provenance import provenance
from common.script import say
from data.documents import Source
from data.images import Pictured
from data.loader import TrainLoader
from training.compiled import with_compiled_blocks
from training.config import TrainConfig
from training.distributed.mesh import ONE, Ranks, job, launcher
from training.lora import attach
from training.memory import checkpoint_blocks
from training.monitor import captions, metrics
from training.monitor.token_kinds import token_kinds
from training.optimizer import build_optimizers, parameter_groups, parameter_kinds
from training.state import checkpoint
from training.state.checkpoint import Progress
from training.state.interrupt import StopRequest
from training.state.out_dir import claim_out_dir, earlier_starts, is_without_checkpoint
from training.validation import Evaluation

EXAMPLES = 100  # documents whose texts are generated at each evaluation


@dataclass
class Run:
    """What a run keeps from step to step."""

    cfg: TrainConfig
    model: nn.Module  # the raw module, which is saved, sampled and inspected
    compiled: nn.Module  # the same module or its compiled form, which trains
    optimizers: list[torch.optim.Optimizer]
    parameter_kinds: dict[str, list[nn.Parameter]]
    copied: list[nn.Parameter]  # see accumulate_gradients
    tokenizer: Any
    token_bytes: torch.Tensor  # (V,) int64
    token_kinds: torch.Tensor  # (V + 1,) int64 on the CPU
    loader: TrainLoader
    examples: list[Pictured]  # the first documents with images of the validation data; [] for text
    writer: metrics.MetricsWriter
    tensorboard_dir: str | None
    device: torch.device
    autocast: Any
    stop: StopRequest
    data_identity: dict[str, str | None]
    first_image_id: int | None  # ids from here on are image tokens; None for a model of text
    ranks: Ranks = ONE
    layout: Any = None  # training.distributed.shard.Layout; None for one process
    objective: Any = None  # training.post.objective.Objective; None for next-token prediction
    saver: Any = None  # training.distributed.sharded_checkpoint.Saver, if each rank has a part of the model
    # the position in the data and the random state that fit the weights; None while they are updated
    consistent: tuple[dict[str, Any], dict[str, Any]] | None = None


@contextlib.contextmanager
def open_run(
    cfg: TrainConfig,
    model: nn.Module,
    tokenizer: Any,
    source: Source,
    validation: Source,
    resumed: dict[str, Any] | None,
    ranks: Ranks = ONE,
    initialize: Callable[[nn.Module], None] | None = None,
    objective: Any = None,
) -> Iterator[tuple[Run, Progress]]:
    """Open everything that a run needs and close it at the end. With several ranks, the first one alone writes.

    resumed: the checkpoint to continue, None for a new run.  initialize: for training.distributed.shard.Layout.
    objective: see Run.
    """
    device, image_format = torch.device(cfg.device), getattr(model.config, "image_format", None)
    model = model.train()
    checkpoint_blocks(model, cfg.activation_checkpointing)
    model.tokenizer = tokenizer  # it turns samples into text; a loaded model already has it
    layout = None
    if ranks.number > 1:
        from training.distributed.shard import Layout

        layout = Layout(model, cfg, ranks, initialize)
        compiled = layout.module
    else:
        model = model.to(device)
        compiled = with_compiled_blocks(model) if cfg.compile == "on" else model
    if cfg.lora_rank:
        attach(model, cfg, resumed=resumed is not None)
    optimizers = build_optimizers(model, cfg)
    progress, rest = Progress(), {}
    if resumed:
        path = checkpoint.checkpoint_path(cfg.out_dir, resumed["step"])
        progress, rest = checkpoint.restore(resumed, path, cfg, model, optimizers, ranks)
    else:
        checkpoint.seed_everything(cfg, ranks)
    stop = StopRequest(says=ranks.writes)
    with contextlib.ExitStack() as stack:
        stack.enter_context(saying_how_to_go_on(cfg.out_dir, cfg.program))
        loader = (objective.open_loader if objective else TrainLoader)(
            source,
            tokenizer,
            batch_size=ranks.number * cfg.batch_size,
            block_size=cfg.block_size,
            packing=cfg.packing,
            resets=cfg.carries,
            image_format=image_format,
            seed=cfg.seed,
            state=rest.get("data"),
            part=(ranks.rank, ranks.number),
            should_stop=lambda: bool(stop),
            device=device,
            ahead=cfg.micro_batches if device.type == "cuda" else 0,  # a step
        )
        stack.callback(loader.close)
        tensorboard_dir, writer = rest.get("tensorboard_dir") if cfg.use_tensorboard else None, Silent()
        with ranks.together():
            if ranks.writes:
                tensorboard_dir, writer = open_files(cfg, stack, resumed, progress.step, rest)
        saver = None
        if layout is not None and layout.in_parts:
            from training.distributed.sharded_checkpoint import Saver

            saver = stack.enter_context(contextlib.closing(Saver(ranks, path if resumed else None)))
        stack.enter_context(stop)
        run = Run(
            cfg=cfg,
            model=model,
            compiled=compiled,
            optimizers=optimizers,
            parameter_kinds=parameter_kinds(model),
            copied=matrices_in_bfloat16(model, cfg),
            tokenizer=tokenizer,
            token_bytes=token_byte_lengths(tokenizer, model.config.vocab_size).to(device),
            token_kinds=token_kinds(tokenizer, model.config.vocab_size),
            loader=loader,
            examples=captions.examples(validation, EXAMPLES) if image_format else [],
            writer=writer,
            tensorboard_dir=tensorboard_dir,
            device=device,
            autocast=functools.partial(autocast, device, cfg.dtype),
            stop=stop,
            data_identity=checkpoint.data_identity(source, validation),
            first_image_id=image_format and image_format.first_id,
            ranks=ranks,
            layout=layout,
            objective=objective,
            saver=saver,
        )
        if objective:
            objective.open(run, rest.get("post"))
        if ranks.writes:
            write_json_atomic(Path(cfg.out_dir) / "config.json", run_facts(run, progress))
        yield run, progress


def matrices_in_bfloat16(model: nn.Module, cfg: TrainConfig) -> list[nn.Parameter]:
    """The matrices that autocast would copy in each micro-batch; not those of FSDP and of spread experts, DTensors."""
    if cfg.dtype != "bfloat16" or cfg.tbptt > 1:  # one copy would add the gradients of a window in bfloat16
        return []
    return [p for p in parameter_groups(model)["matrix"].values() if not hasattr(p, "device_mesh")]


class Silent:
    """In place of a MetricsWriter on ranks that write nothing: every method accepts everything."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def open_files(
    cfg: TrainConfig,
    stack: contextlib.ExitStack,
    resumed: dict[str, Any] | None,
    step: int,
    rest: dict[str, Any],
) -> tuple[str | None, metrics.MetricsWriter]:
    """Lock the output folder, complete what a kill interrupted there, and open the records of a run.

    Returns the folder of TensorBoard and the writer. stack: closes them.  rest: from checkpoint.restore.
    """
    if cfg.use_tensorboard:
        metrics.require_tensorboard()  # raises before anything is written
    stack.enter_context(contextlib.closing(claim_out_dir(cfg.out_dir, cfg.resume)))
    if resumed:
        path = checkpoint.checkpoint_path(cfg.out_dir, step)
        if path == checkpoint.latest_checkpoint(cfg.out_dir):
            refuse_if_finished(cfg)
        if cfg.resume_from:
            closing_step(cfg.out_dir)  # raises for damaged records before a file is renamed
            for line in checkpoint.set_aside_newer(path):
                say(line)
        refuse_if_changed(cfg.out_dir, step)
        if resumed["train_config"].get("max_iters") != cfg.max_iters:  # --extend, which alone changes it
            store_extension(cfg, path, resumed)
        checkpoint.finish_saving(cfg.out_dir, step, rest["scored"], keep=cfg.keep)
    tensorboard_dir = rest.get("tensorboard_dir") if cfg.use_tensorboard else None
    if cfg.use_tensorboard and not (tensorboard_dir and metrics.has_events(tensorboard_dir)):
        tensorboard_dir = str(metrics.new_run_dir(cfg.out_dir, cfg.tensorboard_root))
    writer = metrics.MetricsWriter(
        cfg.out_dir,
        tensorboard_dir=tensorboard_dir,
        resume_step=step if resumed else None,
    )
    stack.callback(writer.close)
    return tensorboard_dir, writer


@contextlib.contextmanager
def saying_how_to_go_on(out_dir: str | Path, program: str) -> Iterator[None]:
    """Have a CannotWrite also say how to continue the run once there is room."""
    try:
        yield
    except CannotWrite as error:
        if latest := checkpoint.latest_checkpoint(out_dir):
            resume = f"{launcher()} {program} --resume --out_dir {quote(str(out_dir))}"
            raise error.and_then(f"continue from {latest} with: {resume}") from error
        if is_without_checkpoint(out_dir):
            raise error.and_then(f"rm -r {quote(str(out_dir))} and start again") from error
        raise


def refuse_if_changed(out_dir: str | Path, step: int) -> None:
    """Raise ValueError if the newest checkpoint of a folder is no longer that of `step`.

    Another process may have saved one after we read ours and before we locked the folder.
    """
    if checkpoint.latest_checkpoint(out_dir) != checkpoint.checkpoint_path(out_dir, step):
        raise ValueError(
            f"checkpoint_{step}.pt is no longer the newest of {out_dir}: another process wrote there while "
            "this one started; run the same command again"
        )


def closing_step(out_dir: str | Path) -> int | None:
    """The step of the closing figures of a run; None if they are not written."""
    path = Path(out_dir) / "metrics.jsonl"
    records = metrics.read_metrics(path) if path.exists() else []
    return next((record["step"] for record in reversed(records) if "final/loss" in record), None)


def refuse_if_finished(cfg: TrainConfig) -> None:
    """Raise ValueError if the closing figures of a run are written, so that there is nothing to continue.

    Figures from before an extension do not count. They are there if a kill came as the extension began.
    """
    step = closing_step(cfg.out_dir)
    if step is not None and step >= (cfg.max_iters or 0):
        raise ValueError(
            f"the run in {cfg.out_dir} is finished; start a new one from its weights with --init_from "
            f"{checkpoint.latest_checkpoint(cfg.out_dir)} --out_dir NEW, or train it for N more steps with "
            f"--extend N --out_dir {quote(cfg.out_dir)}"
        )


def store_extension(cfg: TrainConfig, path: Path, resumed: dict[str, Any]) -> None:
    """Copy the records of a finished run, and write the new length into the checkpoint that it goes on from.

    After a kill at any later moment --resume continues the extension, and before it --extend starts it again.
    """
    records = Path(cfg.out_dir) / "metrics.jsonl"
    with atomic_write(checkpoint.free_name_beside(records)) as file:
        file.write(records.read_bytes())
    if path.is_dir():
        shards.change_value(path, "train_config", asdict(cfg))
        return
    with atomic_write(path) as file:
        torch.save(resumed | {"train_config": asdict(cfg)}, file)


def run_facts(run: Run, progress: Progress) -> dict[str, Any]:
    """Return the content of config.json.

    It holds every resolved setting, and the step, first batch, command, commit and versions of each start.
    """
    start = {"step": progress.step, "first_batch_sha256": run.loader.first_batch_sha256}
    if name := job():
        start["job"] = name
    return {
        "train": asdict(run.cfg),
        "model": asdict(run.model.config),
        "parameters": run.model.config.parameter_counts(),
        "tokenizer": {k: v for k, v in tokenizer_state(run.tokenizer).items() if k in ("name", "sha256")},
        "data": run.data_identity,
        "tensorboard_dir": run.tensorboard_dir,
        "starts": [*earlier_starts(run.cfg.out_dir), start | provenance()],
    }


def save(
    run: Run,
    progress: Progress,
    evaluated: tuple[int, Evaluation] | None,
    position: dict[str, Any] | None = None,
    wait: bool = True,
) -> Path:
    """Save a checkpoint of this moment and return its path.

    evaluated: the last evaluated step and its result.
    position: where to continue in the data, by default where the loader is now.
    wait: whether a sharded checkpoint is complete when this returns.
    """
    rest = {
        "data": position or run.loader.state_dict(),
        "data_identity": run.data_identity,
        "tensorboard_dir": run.tensorboard_dir,
        "scored": None,
    }
    # the loss on stories measures what post-training forgets, so it chooses no best checkpoint
    if evaluated is not None and evaluated[0] == progress.step and not run.objective:
        found = evaluated[1]
        rest["scored"] = {"val_loss": found.loss, "val_bits_per_byte": found.bits_per_byte}
    if run.objective:
        rest["post"] = {"kind": run.cfg.kind, **run.objective.state_dict()}
    state = checkpoint.contents(run.cfg, run.model, run.tokenizer, progress, run.optimizers, rest)
    out_dir, step, keep = run.cfg.out_dir, progress.step, run.cfg.keep
    if run.layout is not None:
        state = run.layout.of_all_ranks(state)
    run.writer.sync()  # after a power cut no checkpoint may lack the records before it
    path = checkpoint.checkpoint_path(out_dir, step)
    if run.saver is not None:
        finish = functools.partial(checkpoint.finish_saving, out_dir, step, state["scored"], keep)
        run.saver.start(path, state, finish)
        if wait:
            run.saver.wait()
    elif run.ranks.writes and not path.is_dir():  # a folder is where this run began, before its first step
        checkpoint.save_checkpoint(out_dir, step, state, keep=keep)
    return path
