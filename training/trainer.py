"""The training loop, and what surrounds it: evaluations, checkpoints, the end of a run."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import nn

from architecture.images import ImageFormat
from architecture.interface import IGNORE_INDEX, ModelOutput, load_share
from architecture.tokenizer import token_byte_lengths
from common.device import autocast
from common.script import first_line, is_out_of_memory, say
from common.threads import usable_cores
from data.documents import Source
from data.loader import StoppedWaiting
from data.packing import validation_batches, validation_lanes
from data.rows import validation_rows
from training import reporting
from training.balance import update_selection_bias
from training.config import TrainConfig
from training.costs import closing_tokens, tokens_lost
from training.distributed.faults import limited, naming_lost_ranks
from training.distributed.mesh import ONE, Ranks, launcher
from training.memory import forward_context
from training.monitor.non_finite import first_non_finite, non_finite_parameter
from training.monitor.pace import Pace
from training.monitor.updates import ExpertUpdates
from training.optimizer import learning_rate, set_learning_rate
from training.state import checkpoint
from training.state.checkpoint import Progress
from training.state.interrupt import StopRequest
from training.state.run import Run, open_run, save
from training.step import StepResult, accumulate_gradients, apply_gradients
from training.validation import Evaluation, Interrupted, evaluate


class Stopped(Exception):
    """The run was stopped by a signal and has saved a checkpoint; the message says how to continue."""

    def __init__(self, stop: StopRequest, path: Path, program: str):
        self.signal = stop.signal
        super().__init__(
            f"stopped by {self.signal.name} and saved {path}; "
            f"continue with: {launcher()} {program} --resume --out_dir {quote(str(path.parent))}"
        )


def train(
    cfg: TrainConfig,
    model: nn.Module,
    tokenizer: Any,
    source: Source,
    validation: Source,
    *,
    resumed: dict[str, Any] | None = None,
    lines: Sequence[str] = (),
    ranks: Ranks = ONE,
    initialize: Callable[[nn.Module], None] | None = None,
    objective: Any = None,
) -> None:
    """Train until max_iters or max_minutes, and write cfg.out_dir and the files of TensorBoard.

    cfg: resolved, without "auto".  model: on the CPU or on cfg.device.  resumed: the checkpoint to continue.
    lines: printed first.  initialize: sets the values of a model that is on the meta device, see Layout.
    objective: of post-training (training/post/objective.py); None for next-token prediction.
    Raises Stopped after Ctrl-C, SIGTERM or SIGHUP, ValueError for a NaN, bad data or too little memory, and
    CannotWrite for a full disk.
    """
    images = getattr(model.config, "image_format", None)
    batches = functools.partial(scored_batches, cfg, validation, tokenizer, images)
    # All evaluations score these tokens. Reading them first finds bad data before a file is written.
    with ranks.together():
        fixed = list(batches(max_tokens=cfg.eval_tokens))
    with (
        open_run(cfg, model, tokenizer, source, validation, resumed, ranks, initialize, objective) as (
            run,
            progress,
        ),
        naming_lost_ranks(ranks, progress),
        saving_if_memory_runs_out(run, progress),
    ):
        run.writer.say("\n".join((*lines, reporting.describe(run, source, validation))))
        run.writer.layout(reporting.layout(run))
        losses, evaluated = [], None  # of training, since the last evaluation
        if objective and progress.step == 0:  # where the model begins
            evaluated = 0, run_evaluation(run, progress, fixed)
        logged = (progress.tokens, progress.seconds)
        pace = Pace(torch.get_num_threads(), len(usable_cores()))
        while progress.share_done(cfg) < 1:
            began = time.perf_counter()
            lr = learning_rate(progress.share_done(cfg, margin=0.5), cfg)
            set_learning_rate(run.optimizers, lr)
            with limited(ranks, progress.step + 1):
                result, norms, more = (objective.step if objective else train_step)(run, progress)
                stopping, took = ranks.after_step(run.stop, time.perf_counter() - began)
            progress.seconds += took
            if line := pace.after_step(took):
                run.writer.say(line)

            step, done = progress.step, progress.share_done(cfg)
            if is_logged(cfg, step, done):
                record = {"optim/lr": lr, **reporting.gradient_record(norms)}
                record |= reporting.step_record(run, result) | more
                record |= reporting.speed_record(run, progress, logged)
                run.writer.log(step, record, progress=done)
                losses.append(record["train/loss"])
                rate = record["perf/tokens_per_second"]
                if step == 2 * cfg.log_every and (line := tokens_lost(cfg, run.model.config, rate)):
                    run.writer.say(line)
                logged = (progress.tokens, progress.seconds)
            evaluating = step % cfg.eval_every == 0 or done == 1
            saving = step % cfg.save_every == 0 or done == 1 or stopping
            if (evaluating or saving) and (where := on_any_rank(run, non_finite_parameter(run.model))):
                # an update can overflow although its gradients were finite
                raise not_finite(run, step, where)
            if evaluating:
                evaluated = (step, run_evaluation(run, progress, fixed))
                # the losses of post-training are of other data than those of validation
                heard = [] if objective else losses
                if line := reporting.overfitting(evaluated[1].loss, heard, run.loader.progress.epoch):
                    run.writer.say(line)
                losses = []
            if saving:  # after all records of this step, because resuming drops records after a checkpoint
                path = save(run, progress, evaluated, wait=stopping or done == 1)
            if stopping:
                raise Stopped(run.stop, path, cfg.program)
        all_scored = sum(int((b["targets"] != IGNORE_INDEX).sum()) for b in fixed) < cfg.eval_tokens
        most = closing_tokens(cfg, progress.tokens)
        found = evaluated[1] if evaluated and (all_scored or most == cfg.eval_tokens) else None
        close(run, progress, batches(max_tokens=most), found, most)


def train_step(run: Run, progress: Progress) -> tuple[StepResult, dict[str, float], dict[str, float]]:
    """One step: take batches, compute gradients, update the weights.

    Returns the result, the gradient norms, and further records, of which next-token prediction has none.
    """
    batches, counts = take_batches(run, progress)
    return *train_on(run, progress, batches, counts), {}


def train_on(
    run: Run, progress: Progress, batches: list[dict[str, torch.Tensor]], counts: list[int]
) -> tuple[StepResult, dict[str, float]]:
    """Update the weights for the next-token loss of batches. Returns the result and the gradient norms.

    counts: the number of targets of each batch.
    """
    measured = next_is_logged(run, progress)
    result = gradients(run, progress, batches, counts, measured)
    result, norms = update(run, progress, result, batches, measured)
    end_step(run, progress, result)
    return result, norms


def gradients(
    run: Run,
    progress: Progress,
    batches: list[dict[str, torch.Tensor]],
    counts: list[int],
    measured: bool,
    forward: Callable[..., ModelOutput] | None = None,
) -> StepResult:
    """Add the gradient of the loss of batches, by accumulate_gradients, to the parameters of a run."""
    return accumulate_gradients(
        run.compiled,
        batches,
        run.cfg,
        previous_share=progress.expert_share,
        carry=progress.carry,
        token_bytes=run.token_bytes,
        autocast=forward_context(run.model, run.cfg.offload, run.autocast),
        counts=counts,
        copied=run.copied,
        measured=measured,
        layout=run.layout,
        forward=forward,
    )


def update(
    run: Run, progress: Progress, result: StepResult, batches: list[dict[str, torch.Tensor]], measured: bool
) -> tuple[StepResult, dict[str, float]]:
    """Update the weights with the gradients of a result. Returns it with ratios of updates, and the norms.

    batches: what the gradients are of, to search them for the cause if one is not finite.
    """
    run.consistent = None
    updates = ExpertUpdates(run.model) if measured else None
    norms = apply_gradients(run.parameter_kinds, run.optimizers, result, run.cfg.grad_clip, run.layout)
    if norms is None:
        # The search runs the model, in which ranks wait for each other: all of them search, or none.
        where = on_any_rank(run, non_finite_parameter(run.model))
        where = where or on_any_rank(run, first_non_finite(run.model, batches, run.autocast, progress.carry))
        raise not_finite(run, progress.step + 1, f"{where}; the weights were left as they were")
    return result if updates is None else result._replace(expert_updates=updates.ratios()), norms


def end_step(run: Run, progress: Progress, result: StepResult) -> None:
    """Note what a step did, after its last update of the weights."""
    cfg = run.cfg
    if result.load is not None:
        progress.expert_share = load_share(result.load)
        progress.load = result.load if progress.load is None else progress.load + result.load
        if cfg.balance == "bias" and cfg.freeze != "trunk":
            # The bias follows the learning rate, so that it settles together with the weights.
            share = run.optimizers[0].param_groups[0]["lr"] / cfg.lr
            update_selection_bias(run.model, result.load, cfg.bias_rate * share)
    progress.carry = result.carry
    progress.step += 1
    progress.tokens += result.tokens
    run.consistent = run.loader.state_dict(), checkpoint.rng_state(run.device)


def is_logged(cfg: TrainConfig, step: int, done: float) -> bool:
    """done: the share of the run after the step. With max_minutes it is an estimate until the step has ended."""
    return step % cfg.log_every == 0 or step == 1 or done == 1


def next_is_logged(run: Run, progress: Progress) -> bool:
    """Whether the step that begins now is logged."""
    return is_logged(run.cfg, progress.step + 1, progress.share_done(run.cfg, margin=1))


@contextlib.contextmanager
def saving_if_memory_runs_out(run: Run, progress: Progress) -> Iterator[None]:
    """If memory runs out, save the state after the last step, and raise a ValueError that says what to do.

    Nothing can be saved if memory ran out during an update of the weights.
    """
    try:
        yield
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        told = f"out of memory after step {progress.step} ({first_line(error)})"
        traceback.clear_frames(error.__traceback__)  # they hold activations, and saving needs their memory
    alone = run.ranks.number == 1  # the others wait somewhere else, and cannot save with this rank
    if alone and run.consistent and not checkpoint.checkpoint_path(run.cfg.out_dir, progress.step).exists():
        position, rng = run.consistent
        checkpoint.set_rng_state(rng, run.device)  # a step with dropout may have begun
        with contextlib.suppress(MemoryError, RuntimeError):
            save(run, progress, None, position)
    raise ValueError(
        f"{told}; {newest_checkpoint(run)}; free memory, or start a run with a lower batch_size "
        "(--init_from takes the weights of a checkpoint)"
    )


def take_batches(run: Run, progress: Progress) -> tuple[list[dict[str, torch.Tensor]], list[int]]:
    """The batches of a step, and the number of targets of each.

    Saves the run if the data fails, or if it is stopped while it waits for data.
    """
    position = run.loader.state_dict()  # the position that belongs to the current weights
    batches, counts = [], []
    try:
        with run.ranks.together():
            for _ in range(run.cfg.micro_batches):
                batches.append(next(run.loader))
                counts.append(run.loader.progress.targets)
        return batches, counts
    except (StoppedWaiting, ValueError) as error:
        path = save(run, progress, None, position)
        if run.ranks.stopping(run.stop):
            raise Stopped(run.stop, path, run.cfg.program) from None
        told = f"{error}; the run was saved as {path}; continue it with --resume"
        raise run.ranks.failure(told) from error


def not_finite(run: Run, step: int, where: str) -> ValueError:
    """The error for a loss, gradient or weight that is not finite."""
    return run.ranks.failure(
        f"step {step} is not finite, first in {where}; {newest_checkpoint(run)}; try a lower --lr or --grad_clip"
    )


def on_any_rank(run: Run, where: str | None) -> str | None:
    """The first place that a rank found, because each looks at its part only."""
    return next((found for found in run.ranks.gather(where) if found), None)


def newest_checkpoint(run: Run) -> str:
    newest = checkpoint.latest_checkpoint(run.cfg.out_dir)
    return f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"


def with_whole_model(run: Run) -> Run:
    """The run with a model that one rank alone can call; on a rank that does not write, it has no values."""
    if run.layout is None or (model := run.layout.whole_model()) is run.model:
        return run
    cpu = torch.device("cpu")
    return replace(run, model=model, device=cpu, autocast=functools.partial(autocast, cpu, run.cfg.dtype))


def score(run: Run, batches: Iterable[dict[str, torch.Tensor]], **options: Any) -> Evaluation:
    found = evaluate(
        run.compiled,
        batches,
        run.token_bytes,
        device=run.device,
        autocast=run.autocast,
        eot=run.tokenizer.eot_token,
        packing=run.cfg.packing,
        first_image_id=run.first_image_id,
        ranks=run.ranks,
        **options,
    )
    if run.layout is not None:
        run.layout.reshard()
    for probe in found.probes:
        run.writer.say(probe.line)
    return found


def run_evaluation(run: Run, progress: Progress, batches: list[dict[str, torch.Tensor]]) -> Evaluation:
    """Score the fixed validation batches, and log and print the result."""
    found = score(run, batches, keep_choices=True)
    if not math.isfinite(found.loss):
        raise not_finite(run, progress.step, "the validation loss")
    whole = with_whole_model(run)
    if run.ranks.writes:
        reporting.show_evaluation(whole, progress, found, batches)
        if run.objective:
            run.writer.log(progress.step, run.objective.evaluate(whole, progress))
    progress.load, progress.choices = None, found.routing and found.routing.choices
    return found


def close(
    run: Run,
    progress: Progress,
    batches: Iterable[dict[str, torch.Tensor]],
    found: Evaluation | None,
    most: int | None,
) -> None:
    """Do the final evaluation, then log and print the figures, stories and the next commands.

    found: the last evaluation, if it scored the same tokens.  most: tokens of the final evaluation; None for all.
    """
    cfg = run.cfg
    path = checkpoint.checkpoint_path(cfg.out_dir, progress.step)
    if found is None:
        many = f"at most {most:,}" if most else "all"
        run.writer.say(f"closing evaluation on {many} validation tokens ...")
        try:
            batches = reporting.narrated(read_together(run.ranks, batches), run.writer.say)
            found = score(run, batches, should_stop=lambda: run.ranks.stopping(run.stop))
        except Interrupted:
            raise Stopped(run.stop, path, cfg.program) from None
        except ValueError as error:  # from the validation data
            told = f"{error}; the run was saved as {path}; continue it with --resume"
            raise run.ranks.failure(told) from error
    whole = with_whole_model(run)
    if not run.ranks.writes:
        return
    final = reporting.final_record(run, progress, found)
    if run.objective and not run.objective.answers:  # an earlier start was stopped after the last evaluation
        run.objective.evaluate(whole, progress)
    stories = run.objective.answers if run.objective else reporting.samples(whole, 3)
    run.writer.final(
        progress.step,
        asdict(cfg) | asdict(run.model.config),
        final,
        {f"samples/final_{number}": story for number, story in enumerate(stories, start=1)},
    )
    run.writer.say(reporting.summary(run, final, found, stories, path))


def read_together(ranks: Ranks, batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, of which all ranks read as many as there are ranks at a time. The error of one is raised on all."""
    batches = iter(batches)
    while True:
        with ranks.together():
            some = list(itertools.islice(batches, ranks.number))
        if not some:
            return
        yield from some


def scored_batches(
    cfg: TrainConfig,
    validation: Source,
    tokenizer: Any,
    image_format: ImageFormat | None,
    max_tokens: int | None,
) -> Iterator[dict[str, torch.Tensor]]:
    """All or the first max_tokens validation tokens, in batches with the packing of training."""
    size = {"batch_size": cfg.batch_size, "block_size": cfg.block_size, "max_tokens": max_tokens}
    if cfg.packing == "lanes":
        return validation_lanes(validation, tokenizer, resets=cfg.carries, **size)
    if cfg.packing == "rows":
        return validation_rows(validation, tokenizer, image_format=image_format, **size)
    return validation_batches(validation, tokenizer, **size)


def evaluate_only(
    cfg: TrainConfig, model: nn.Module, tokenizer: Any, validation: Source, max_tokens: int | None
) -> str:
    """Score all or the first max_tokens validation tokens. Returns the line that --eval_only prints."""
    device = torch.device(cfg.device)
    images = getattr(model.config, "image_format", None)
    batches = scored_batches(cfg, validation, tokenizer, images, max_tokens)
    found = evaluate(
        model.to(device),
        reporting.narrated(batches, say),
        token_byte_lengths(tokenizer, model.config.vocab_size).to(device),
        device=device,
        autocast=functools.partial(autocast, device, cfg.dtype),
        eot=tokenizer.eot_token,
        packing=cfg.packing,
    )
    for probe in found.probes:
        say(probe.line)
    return f"validation loss {reporting.in_words(found)} of {validation.name}{validation.left_out()}"
