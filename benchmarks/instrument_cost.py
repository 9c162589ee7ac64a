"""Measure what the instruments of a run cost, as a share of its training time.

    python -m benchmarks.instrument_cost     writes benchmarks/results/instrument_cost.json

The run is the toy recipe on the bundled stories with all defaults. Steps and evaluations with and without
their instruments take turns; the figures are medians. The four parts:

in a step          the z-loss of the routers, and gradient norms by kind in place of one norm
in a measured step every `log_every` steps, what only the log needs: bits per byte, balance and z-loss, and the
                   router telemetry (margins, gradients of router logits, updates of experts), in CPU seconds
at a log record    what is written every `log_every` steps
at an evaluation   routing of each token, sinks, tables, pictures and their files, but not the validation loss
                   itself or the story

Exits with 1 if the four parts together take 3 % of the training time or more.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from unittest import mock

import torch

from architecture.gptoss import MLPBlock
from benchmarks.publish import judge, publish
from benchmarks.toy_run import seconds, toy_run
from data.packing import validation_batches
from data.sources import open_dataset
from training import reporting, trainer, validation
from training import step as training_step
from training.monitor.routing import LogitGradients, RoutingSums
from training.trainer import train_step

STEPS, MEASURED, RECORDS, EVALUATIONS = 80, 40, 20, 5
LIMIT = 0.03


def without_z_loss(route):
    """MLPBlock.route without the cost of the z-loss."""

    def plain(self, x, counted):
        with mock.patch.object(torch.Tensor, "logsumexp", lambda logits, _: logits[..., 0].detach()):
            return route(self, x, counted)

    return plain


def step_seconds(run, progress) -> tuple[float, float]:
    """Median seconds of a training step with and without its instruments."""
    kinds = run.parameter_kinds
    one_norm = {"all": [p for kind in kinds.values() for p in kind]}
    times = {True: [], False: []}
    plain = mock.patch.object(MLPBlock, "route", without_z_loss(MLPBlock.route))
    for number in range(2 * (STEPS + 5)):
        on = number % 2 == 0
        run.parameter_kinds = kinds if on else one_norm
        with contextlib.nullcontext() if on else plain:
            taken = seconds(train_step, run, progress)
        if number >= 10:  # after warm-up
            times[on].append(taken)
    run.parameter_kinds = kinds
    return tuple(statistics.median(times[on]) for on in (True, False))


@contextlib.contextmanager
def without_telemetry():
    """Steps without the router telemetry: margins, gradients of router logits, updates of experts."""
    none = mock.Mock(return_value=mock.Mock(ratios=lambda: None))
    with (
        mock.patch.object(training_step, "choice_margins", lambda router: router.load.new_zeros(1, 0)),
        mock.patch.object(LogitGradients, "watch", lambda *_: None),
        mock.patch.object(trainer, "ExpertUpdates", none),
    ):
        yield


def measured_step_seconds(run, progress) -> dict[str, float]:
    """Median CPU seconds of a measured step, of one without the router telemetry, and of a step not measured."""
    variants = {
        "measured": (True, contextlib.nullcontext),
        "without telemetry": (True, without_telemetry),
        "not measured": (False, contextlib.nullcontext),
    }
    times = {name: [] for name in variants}
    for number in range(MEASURED + 2):
        for name, (logged, changed) in variants.items():
            with mock.patch.object(trainer, "is_logged", lambda *_, logged=logged: logged), changed():
                began = time.process_time()
                train_step(run, progress)
                taken = time.process_time() - began
            if number >= 2:  # after warm-up
                times[name].append(taken)
    return {name: statistics.median(some) for name, some in times.items()}


def record_seconds(run, progress) -> float:
    """Median seconds of one log record."""
    result, norms = train_step(run, progress)

    def record():
        numbers = reporting.gradient_record(norms) | reporting.step_record(run, result)
        numbers |= reporting.speed_record(run, progress, (0, 0.0))
        run.writer.log(progress.step, numbers)

    return statistics.median(seconds(record) for _ in range(RECORDS))


def evaluation_seconds(run, progress, batches) -> tuple[float, float]:
    """Median seconds that the instruments add to an evaluation, and of an evaluation without them."""
    options = dict(
        device=run.device,
        autocast=run.autocast,
        eot=run.tokenizer.eot_token,
        packing=run.cfg.packing,
    )
    found = []

    def look():
        found.append(validation.evaluate(run.model, batches, run.token_bytes, keep_choices=True, **options))

    def plain():
        with mock.patch.object(RoutingSums, "add", lambda *_: None):
            validation.evaluate(run.model, batches, run.token_bytes, **options)

    def show():
        progress.choices, progress.load = found[-1].routing.choices, found[-1].routing.load
        with mock.patch.object(reporting, "sample_stories", lambda *_: [""]):
            reporting.show_evaluation(run, progress, found[-1], batches)

    looks, plains, shows = [], [], []
    for _ in range(EVALUATIONS):
        looks.append(seconds(look))
        plains.append(seconds(plain))
        shows.append(seconds(show))
    without = statistics.median(plains)
    return statistics.median(looks) - without + statistics.median(shows), without


def main() -> int:
    with toy_run() as (run, progress):
        cfg = run.cfg
        shape = dict(batch_size=cfg.batch_size, block_size=cfg.block_size, max_tokens=cfg.eval_tokens)
        source = open_dataset("bundled", split="validation")
        batches = list(validation_batches(source, run.tokenizer, **shape))
        with_all, bare = step_seconds(run, progress)
        measured = measured_step_seconds(run, progress)
        record = record_seconds(run, progress)
        evaluation, rest = evaluation_seconds(run, progress, batches)
    shares = {
        "step": with_all / bare - 1,
        "measured step": (measured["measured"] / measured["not measured"] - 1) / cfg.log_every,
        "log record": record / (cfg.log_every * bare),
        "evaluation": evaluation / (cfg.eval_every * bare),
    }
    total = sum(shares.values())
    print(f"step             {1e3 * with_all:7.1f} ms, {1e3 * bare:.1f} ms without: {shares['step']:+.2%}")
    told = ", ".join(f"{name} {1e3 * taken:.1f} ms" for name, taken in measured.items())
    print(f"measured step    CPU time: {told}; every {cfg.log_every} steps: {shares['measured step']:+.2%}")
    print(f"log record       {1e3 * record:7.1f} ms every {cfg.log_every} steps: {shares['log record']:.2%}")
    print(
        f"evaluation       {evaluation:7.2f} s of instruments every {cfg.eval_every} steps, {rest:.2f} s "
        f"without: {shares['evaluation']:.2%}"
    )
    figures = {
        "share_of_training_time": total,
        "shares": shares,
        "step_ms": [1e3 * with_all, 1e3 * bare],
        "measured_step_cpu_ms": {name: 1e3 * taken for name, taken in measured.items()},
        "log_record_ms": 1e3 * record,
        "evaluation_s": [evaluation, rest],
        "threads": torch.get_num_threads(),
    }
    publish("instrument_cost", figures)
    return judge({f"together {total:.2%} of the training time (below {LIMIT:.0%})": total < LIMIT})


if __name__ == "__main__":
    sys.exit(main())
