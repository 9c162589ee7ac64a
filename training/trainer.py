"""The training loop: one function a person can read, and the few things around it.

`train` is handed a model and documents. It owns OUT_DIR from the first write to the last.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import nn

from architecture.generation import generate_texts
from architecture.interface import load_share
from architecture.registry import config_to_dict
from architecture.tokenizer import token_byte_lengths, tokenizer_state
from training import checkpoint, evaluate, metrics
from training.balance import update_selection_bias
from training.config import TrainConfig
from training.data_documents import Source
from training.data_loader import TrainLoader, validation_batches
from training.device import autocast, peak_flops, peak_memory_gb
from training.interrupt import StopRequest
from training.non_finite import first_non_finite, non_finite_parameter
from training.optimizer import build_optimizers, learning_rate, set_learning_rate
from training.provenance import git_commit, provenance
from training.step import StepResult, accumulate_gradients, apply_gradients

NARRATE_SECONDS = 15.0
SAMPLE_SEED, SAMPLE_TOKENS, SAMPLE_TEMPERATURE = 1, 200, 0.8  # of the stories that a run shows


class Stopped(Exception):
    """The run was told to stop, has saved, and can go on; the message says how."""

    def __init__(self, stop: StopRequest, path: Path):
        self.signal = stop.signal
        super().__init__(
            f"stopped by {self.signal.name} and saved {path}; "
            f"continue with: python train.py --resume --out_dir {quote(str(path.parent))}"
        )


class NotFinite(ValueError):
    """A loss or gradient stopped being finite; the message says where and what to go on from."""


@dataclass
class Progress:
    """How far a run is; a checkpoint holds all of it."""

    step: int = 0
    seconds: float = 0.0  # of training alone: evaluating and saving do not count
    tokens: int = 0
    expert_share: torch.Tensor | None = (
        None  # (L, E), of the previous step, for balance="aux_global"
    )
    carry: Any = None  # what a variant keeps from one segment to the next

    def share_done(self, cfg: TrainConfig, margin: float = 0.0) -> float:
        """Progress in [0, 1] over max_iters or max_minutes; margin in steps."""
        if cfg.max_iters is not None:
            return min(1.0, (self.step + margin) / cfg.max_iters)
        per_step = self.seconds / max(1, self.step)
        return min(1.0, (self.seconds + margin * per_step) / (60 * cfg.max_minutes))


@dataclass
class Run:
    """What stays the same from step to step."""

    cfg: TrainConfig
    model: nn.Module  # the raw one: what is saved, sampled and looked into
    compiled: nn.Module  # what computes
    optimizers: list[torch.optim.Optimizer]
    tokenizer: Any
    token_bytes: torch.Tensor  # (V,) int64
    loader: TrainLoader
    writer: metrics.MetricsWriter
    tensorboard_dir: str | None
    device: torch.device
    autocast: Any
    stop: StopRequest


def train(
    cfg: TrainConfig,
    model: nn.Module,
    tokenizer: Any,
    source: Source,
    validation: Source,
    *,
    resumed: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train to the end of cfg, writing OUT_DIR and TensorBoard; returns the closing summary.

    cfg: resolved, no "auto" left.  model: on the CPU or on cfg.device.  resumed: the checkpoint to
    continue.  Raises Stopped after Ctrl-C or SIGTERM, NotFinite for a NaN, ValueError for bad data.
    """
    batches = functools.partial(
        validation_batches,
        validation,
        tokenizer,
        batch_size=cfg.batch_size,
        block_size=cfg.block_size,
    )
    # the same tokens at every evaluation; read first, so that bad data is told before a file is written
    fixed = list(batches(max_tokens=cfg.eval_tokens))
    with open_run(cfg, model, tokenizer, source, resumed) as (run, progress):
        run.writer.say(describe(run, source, validation))
        evaluated = None
        logged = (progress.tokens, progress.seconds)
        while progress.share_done(cfg) < 1:
            began = time.perf_counter()
            lr = learning_rate(progress.share_done(cfg, margin=0.5), cfg)
            set_learning_rate(run.optimizers, lr)
            result, norm = train_step(run, progress)
            progress.seconds += time.perf_counter() - began

            if progress.step % cfg.log_every == 0:
                record = {"optim/lr": lr, "optim/grad_norm": norm, **step_record(result)}
                record |= speed_record(run, progress, logged)
                logged = (progress.tokens, progress.seconds)
                run.writer.log(progress.step, record, progress=progress.share_done(cfg))
            last = progress.share_done(cfg) == 1
            try:
                if progress.step % cfg.eval_every == 0 or last:
                    evaluated = (progress.step, run_evaluation(run, fixed, progress.step))
            except evaluate.Interrupted:
                pass  # said below, with the checkpoint
            # after everything that belongs to this step is written: resuming drops what lies past it
            if progress.step % cfg.save_every == 0 or last or run.stop:
                path = save(run, progress, evaluated)
            if run.stop:
                raise Stopped(run.stop, path)
        return close(run, progress, batches())


def train_step(run: Run, progress: Progress) -> tuple[StepResult, float]:
    """The next batches of the loader through the model and into the weights: result, gradient norm."""
    cfg, model = run.cfg, run.model
    batches = []
    for _ in range(cfg.grad_accum):
        batches.append(
            {k: v.to(run.device, non_blocking=True) for k, v in next(run.loader).items()}
        )
    result = accumulate_gradients(
        run.compiled,
        batches,
        cfg,
        previous_share=progress.expert_share,
        carry=progress.carry,
        token_bytes=run.token_bytes,
        autocast=run.autocast,
    )
    norm = apply_gradients(model, run.optimizers, result, cfg.grad_clip)
    if norm is None:
        where = first_non_finite(model, batches, run.autocast)
        raise not_finite(run, progress.step + 1, f"{where}; the weights were left as they were")
    if result.load is not None:
        progress.expert_share = load_share(result.load)
        if cfg.balance == "bias":
            update_selection_bias(model, result.load, cfg.bias_rate)
    progress.carry = result.carry
    progress.step += 1
    progress.tokens += result.tokens
    return result, norm


def not_finite(run: Run, step: int, where: str) -> NotFinite:
    good = checkpoint.latest_checkpoint(run.cfg.out_dir)
    last = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
    return NotFinite(
        f"step {step} is not finite, first in {where}; {last}; try a lower --lr or --grad_clip"
    )


def require_finite_weights(run: Run, step: int) -> None:
    """NotFinite if the update of a step, whose gradients were finite, left weights that are not."""
    if where := non_finite_parameter(run.model):
        raise not_finite(run, step, where)


# ----------------------------------------------------------------------------------- what a run shows
def step_record(result: StepResult) -> dict[str, float]:
    """What the loss and the routers of one step say."""
    record = {
        "train/loss": float(result.loss),
        "train/bits_per_byte": float(result.nats / math.log(2) / result.num_bytes.clamp(min=1)),
    }
    if result.load is not None:
        record["train/balance_loss"] = float(result.balance_loss)
        record["train/z_loss"] = float(result.z_loss)
        violation = evaluate.max_violation(result.load).tolist()
        record |= {f"moe/max_violation/layer_{i:02d}": v for i, v in zip(result.layers, violation)}
        if float(result.dropped.max()) > 0:
            shares = result.dropped.tolist()
            record |= {f"moe/dropped/layer_{i:02d}": v for i, v in zip(result.layers, shares)}
    return record


def speed_record(run: Run, progress: Progress, since: tuple[int, float]) -> dict[str, float]:
    """Throughput since (tokens, seconds), utilisation where the device's peak is known, memory."""
    rate = (progress.tokens - since[0]) / max(progress.seconds - since[1], 1e-9)
    record = {"perf/tokens_per_second": rate, "perf/peak_memory_gb": peak_memory_gb(run.device)}
    peak = peak_flops(run.device)
    if peak is not None:
        record["perf/mfu"] = rate * run.model.config.flops_per_token(run.cfg.block_size) / peak
    return record


def run_evaluation(
    run: Run, batches: list[dict[str, torch.Tensor]], step: int
) -> evaluate.Evaluation:
    """Validation loss on the fixed tokens, the routers' state there, and a story."""
    require_finite_weights(run, step)
    found = evaluate.evaluate(
        run.compiled, batches, run.token_bytes, device=run.device, autocast=run.autocast,
        should_stop=lambda: bool(run.stop),
    )  # fmt: skip
    if not math.isfinite(found.loss):
        raise not_finite(run, step, "the validation loss")
    record = {"val/loss": found.loss, "val/bits_per_byte": found.bits_per_byte}
    if found.load is not None:
        dead = evaluate.dead_experts(found.load).tolist()
        for row, layer in enumerate(found.layers):
            record[f"moe/entropy/layer_{layer:02d}"] = float(found.entropy[row])
            record[f"moe/dead_experts/layer_{layer:02d}"] = dead[row]
        share = load_share(found.load)
        run.writer.heat_map(step, "moe/load", share, white=2 / share.shape[-1])  # grey: even load
    run.writer.log(step, record)
    run.writer.text(step, "samples/story", sample_stories(run, 1)[0])
    run.writer.say(
        f"step {step}: validation loss {found.loss:.4f} +- {found.standard_error:.4f} nats/token, "
        f"{found.bits_per_byte:.4f} bits per byte ({found.tokens:,} tokens)"
    )
    return found


def sample_stories(run: Run, number: int) -> list[str]:
    """Stories from end-of-text on, always from the same seed, so that they show the weights alone."""
    tokens = min(SAMPLE_TOKENS, run.model.config.context_limit - 1)
    return generate_texts(run.model, [""] * number, tokens, SAMPLE_TEMPERATURE, seed=SAMPLE_SEED)


def describe(run: Run, source: Source, validation: Source) -> str:
    """The lines a run begins with: what is trained, on what, how."""
    cfg, counts = run.cfg, run.model.config.parameter_counts()
    length = f"{cfg.max_iters:,} steps" if cfg.max_iters else f"{cfg.max_minutes:g} minutes"
    rows = cfg.batch_size * cfg.grad_accum
    return (
        f"{cfg.model} {cfg.model_size}: {counts['total']:,} parameters, {counts['active']:,} active per token\n"
        f"data: {source.name}, validation {validation.name}, tokenizer {run.tokenizer.name}\n"
        f"{length} of {rows} x {cfg.block_size} = {rows * cfg.block_size:,} tokens on {cfg.device} in {cfg.dtype} "
        f"({cfg.threads} threads, attention {cfg.attention}, experts {cfg.experts}, balance {cfg.balance})\n"
        f"writing {cfg.out_dir}/" + (f" and {run.tensorboard_dir}/" if run.tensorboard_dir else "")
    )


# ------------------------------------------------------------------------------------ opening, saving, closing
@contextlib.contextmanager
def open_run(
    cfg: TrainConfig,
    model: nn.Module,
    tokenizer: Any,
    source: Source,
    resumed: dict[str, Any] | None,
) -> Iterator[tuple[Run, Progress]]:
    """Everything a run holds open, restored from a checkpoint where one is continued."""
    device = torch.device(cfg.device)
    model = model.to(device).train()
    model.tokenizer = tokenizer  # as a model that was loaded has it: stories are text
    optimizers = build_optimizers(model, cfg)
    progress = Progress(**resumed["progress"]) if resumed else Progress()
    if resumed:
        for optimizer, state in zip(optimizers, resumed["optimizers"]):
            optimizer.load_state_dict(state)
        if progress.expert_share is not None:
            progress.expert_share = progress.expert_share.to(device)
        checkpoint.set_rng_state(resumed["rng"], device)
    else:
        random.seed(cfg.seed)
        torch.manual_seed(cfg.seed)
    with contextlib.ExitStack() as stack:
        loader = TrainLoader(
            source, tokenizer, batch_size=cfg.batch_size, block_size=cfg.block_size, packing=cfg.packing,
            seed=cfg.seed, state=resumed["data"] if resumed else None,
        )  # fmt: skip
        stack.callback(loader.close)
        stack.enter_context(contextlib.closing(checkpoint.claim_out_dir(cfg.out_dir, cfg.resume)))
        tensorboard_dir = resumed["tensorboard_dir"] if resumed else None
        if cfg.use_tensorboard and tensorboard_dir is None:
            tensorboard_dir = str(metrics.new_run_dir(cfg.out_dir))
        writer = metrics.MetricsWriter(
            cfg.out_dir,
            tensorboard_dir=tensorboard_dir if cfg.use_tensorboard else None,
            resume_step=progress.step if resumed else None,
        )
        stack.callback(writer.close)
        stop = stack.enter_context(StopRequest())
        run = Run(
            cfg=cfg,
            model=model,
            compiled=torch.compile(model) if cfg.compile else model,
            optimizers=optimizers,
            tokenizer=tokenizer,
            token_bytes=token_byte_lengths(tokenizer, model.config.vocab_size).to(device),
            loader=loader,
            writer=writer,
            tensorboard_dir=tensorboard_dir,
            device=device,
            autocast=functools.partial(autocast, device, cfg.dtype),
            stop=stop,
        )
        checkpoint.write_json_atomic(Path(cfg.out_dir) / "config.json", run_facts(run))
        yield run, progress


def run_facts(run: Run) -> dict[str, Any]:
    """What config.json records: every setting as it was resolved, and where the code stood."""
    return {
        "train": asdict(run.cfg),
        "model": config_to_dict(run.model.config),
        "tokenizer": {
            k: v for k, v in tokenizer_state(run.tokenizer).items() if k in ("name", "sha256")
        },
        "tensorboard_dir": run.tensorboard_dir,
        **provenance(),
    }


def save(run: Run, progress: Progress, evaluated: tuple[int, evaluate.Evaluation] | None) -> Path:
    """A checkpoint of this moment: the model, and all that continuing to the last bit needs."""
    require_finite_weights(run, progress.step)  # a checkpoint is something to go back to
    cfg, model = run.cfg, run.model
    state = {
        "model_name": cfg.model,
        "config": config_to_dict(model.config),
        "model": model.state_dict(),
        "tokenizer": tokenizer_state(run.tokenizer),
        "step": progress.step,
        "train_config": asdict(cfg),
        "progress": vars(progress).copy(),
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "rng": checkpoint.rng_state(run.device),
        "data": run.loader.state_dict(),
        "tensorboard_dir": run.tensorboard_dir,
        "commit": git_commit(),
    }
    path = checkpoint.save_checkpoint(cfg.out_dir, progress.step, state, keep=cfg.keep)
    if evaluated is not None and evaluated[0] == progress.step:
        found = evaluated[1]
        checkpoint.update_best(
            cfg.out_dir, progress.step, found.loss, val_bits_per_byte=found.bits_per_byte
        )
    return path


def close(
    run: Run, progress: Progress, batches: Iterable[dict[str, torch.Tensor]]
) -> dict[str, Any]:
    """Evaluate on all validation tokens, show stories and the next commands; the closing summary."""
    cfg = run.cfg
    path = checkpoint.checkpoint_path(cfg.out_dir, progress.step)
    run.writer.say("closing evaluation on all validation tokens ...")
    try:
        found = evaluate.evaluate(
            run.compiled, narrated(batches, run.writer), run.token_bytes, device=run.device,
            autocast=run.autocast, should_stop=lambda: bool(run.stop),
        )  # fmt: skip
    except evaluate.Interrupted:
        raise Stopped(run.stop, path) from None
    counts = run.model.config.parameter_counts()
    final = {
        "loss": found.loss,
        "loss_standard_error": found.standard_error,
        "bits_per_byte": found.bits_per_byte,
        "validation_tokens": found.tokens,
        "steps": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 1),
        "tokens_per_second": round(progress.tokens / max(progress.seconds, 1e-9), 1),
        "parameters": counts["total"],
        "active_parameters": counts["active"],
    }
    run.writer.log(progress.step, {f"final/{name}": value for name, value in final.items()})
    run.writer.hparams(asdict(cfg) | config_to_dict(run.model.config), final)
    stories = sample_stories(run, 3)
    for number, story in enumerate(stories, start=1):
        run.writer.text(progress.step, f"samples/final_{number}", story)
    run.writer.say(summary(run, final, stories, path))
    return {**final, "checkpoint": str(path), "stories": stories}


def narrated(batches: Iterable[dict], writer: metrics.MetricsWriter) -> Iterator[dict]:
    """The same batches; says now and then how many tokens are done, since nobody knows the total."""
    said, tokens = time.monotonic(), 0
    for batch in batches:
        yield batch
        tokens += batch["targets"].numel()
        if time.monotonic() - said > NARRATE_SECONDS:
            writer.say(f"  {tokens:,} validation tokens scored")
            said = time.monotonic()


def evaluate_only(cfg: TrainConfig, model: nn.Module, tokenizer: Any, validation: Source) -> str:
    """Score a model once on all validation tokens; what --eval_only prints."""
    device = torch.device(cfg.device)
    found = evaluate.evaluate(
        model.to(device),
        validation_batches(
            validation, tokenizer, batch_size=cfg.batch_size, block_size=cfg.block_size
        ),
        token_byte_lengths(tokenizer, model.config.vocab_size).to(device),
        device=device,
        autocast=functools.partial(autocast, device, cfg.dtype),
    )
    return (
        f"validation loss {found.loss:.4f} +- {found.standard_error:.4f} nats/token, "
        f"{found.bits_per_byte:.4f} bits per byte, over all {found.tokens:,} tokens of {validation.name}"
    )


def summary(run: Run, final: dict[str, Any], stories: list[str], path: Path) -> str:
    """What a person reads at the end."""
    told = "\n".join(f"--- story {i}\n{story}" for i, story in enumerate(stories, start=1))
    board = (
        f"\n  tensorboard --logdir {quote(str(Path(run.tensorboard_dir).parent))}"
        if run.tensorboard_dir
        else ""
    )
    name, next_dir = quote(str(path)), quote(f"{run.cfg.out_dir}_next")
    return (
        f"{told}\n---\n"
        f"validation loss  {final['loss']:.4f} +- {final['loss_standard_error']:.4f} nats/token, "
        f"{final['bits_per_byte']:.4f} bits per byte, over {final['validation_tokens']:,} tokens\n"
        f"training         {final['steps']:,} steps, {final['tokens']:,} tokens in {final['seconds']:,.0f} s "
        f"({final['tokens_per_second']:,.0f} tokens/s)\n"
        f"parameters       {final['parameters']:,}, {final['active_parameters']:,} active per token\n"
        f"next:\n"
        f"  python sample.py --checkpoint {name} --prompt 'Once upon a time'{board}\n"
        f"  python train.py --init_from {name} --out_dir {next_dir}"
    )
