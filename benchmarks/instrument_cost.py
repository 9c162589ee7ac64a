"""What the instruments of a run cost, as a share of its training time.

    python -m benchmarks.instrument_cost     writes benchmarks/results/instrument_cost.json

The toy recipe on the bundled stories, all defaults. Three parts, each against the same work without it:

in a step          z-loss of the routers, and gradient norms by kind in place of one norm; steps with and
                   without in turn, medians
at a log record    what is written every `log_every` steps
at an evaluation   routing of each token, sinks, tables, pictures and their files; evaluations with and
                   without in turn, medians. The validation loss itself and the story are not counted.

Exits with 1 if all three together are 3 % of the training time or more.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

import torch

from architecture.gptoss import MLPBlock
from benchmarks.toy_run import toy_run
from common.provenance import provenance
from data.packing import validation_batches
from data.sources import open_dataset
from training import reporting, validation
from training.monitor.routing import RoutingSums
from training.trainer import train_step

RESULT = Path(__file__).parent / "results" / "instrument_cost.json"
STEPS, RECORDS, EVALUATIONS = 80, 20, 5
LIMIT = 0.03


def seconds(function, *arguments) -> float:
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def without_z_loss(route):
    """MLPBlock.route as it would be if nobody logged the z-loss."""

    def plain(self, x, counted):
        with mock.patch.object(torch.Tensor, "logsumexp", lambda logits, _: logits[..., 0].detach()):
            return route(self, x, counted)

    return plain


def step_seconds(run, progress) -> tuple[float, float]:
    """Median seconds of a training step with and without what is measured in it, in turn."""
    kinds = run.parameter_kinds
    one_norm = {"all": [p for kind in kinds.values() for p in kind]}
    times = {True: [], False: []}
    plain = mock.patch.object(MLPBlock, "route", without_z_loss(MLPBlock.route))
    for number in range(2 * (STEPS + 5)):
        on = number % 2 == 0
        run.parameter_kinds = kinds if on else one_norm
        if not on:
            plain.start()
        taken = seconds(train_step, run, progress)
        if not on:
            plain.stop()
        if number >= 10:  # warm
            times[on].append(taken)
    run.parameter_kinds = kinds
    return tuple(statistics.median(times[on]) for on in (True, False))


def record_seconds(run, progress) -> float:
    """Median seconds of one log record."""
    result, norms = train_step(run, progress)

    def record():
        numbers = reporting.gradient_record(norms) | reporting.step_record(run, result)
        numbers |= reporting.speed_record(run, progress, (0, 0.0))
        run.writer.log(progress.step, numbers)

    return statistics.median(seconds(record) for _ in range(RECORDS))


def evaluation_seconds(run, progress, batches) -> tuple[float, float]:
    """Median seconds of an evaluation: what the instruments add, and all without them."""
    options = dict(device=run.device, autocast=run.autocast)
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
        batches = list(
            validation_batches(
                open_dataset("bundled", split="validation"),
                run.tokenizer,
                batch_size=cfg.batch_size,
                block_size=cfg.block_size,
                max_tokens=cfg.eval_tokens,
            )
        )
        with_all, bare = step_seconds(run, progress)
        record = record_seconds(run, progress)
        evaluation, rest = evaluation_seconds(run, progress, batches)
    shares = {
        "step": with_all / bare - 1,
        "log record": record / (cfg.log_every * bare),
        "evaluation": evaluation / (cfg.eval_every * bare),
    }
    total = sum(shares.values())
    print(f"step             {1e3 * with_all:7.1f} ms, {1e3 * bare:.1f} ms without: {shares['step']:+.2%}")
    print(f"log record       {1e3 * record:7.1f} ms every {cfg.log_every} steps: {shares['log record']:.2%}")
    print(
        f"evaluation       {evaluation:7.2f} s of instruments every {cfg.eval_every} steps, {rest:.2f} s "
        f"without: {shares['evaluation']:.2%}"
    )
    print(f"together         {total:.2%} of the training time (limit {LIMIT:.0%})")
    figures = {
        "share_of_training_time": total,
        "shares": shares,
        "step_ms": [1e3 * with_all, 1e3 * bare],
        "log_record_ms": 1e3 * record,
        "evaluation_s": [evaluation, rest],
        "threads": torch.get_num_threads(),
    }
    RESULT.write_text(json.dumps(provenance() | figures, indent=1) + "\n", encoding="utf-8")
    return 0 if total < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
