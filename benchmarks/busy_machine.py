"""Measure training, evaluating and sampling while other processes use the cores.

    python -m benchmarks.busy_machine [--seconds 200] [--rounds 3]     call it until it says that nothing is left

The model and the data are those of the quickstart. Each of WAYS is a process that waits for its turn. In a round the
ways take turns in rotated order, on a quiet machine and beside one or two processes of each of KINDS. A turn lasts
TURN seconds and at least three units of work, after one of warm-up. Figures are tokens per second of wall time, and
the published ones are medians over rounds. Needs two cores and nothing else on them: a turn in which programs that are
not ours used more than FOREIGN cores is repeated, at most TRIES times, and then its round is left out. Each round is
written to benchmarks/results/busy_machine.json, and the next call goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.publish import RESULTS, publish
from common.threads import look, others_between

NAME = "busy_machine"
SPIN = "GOMP_SPINCOUNT"
WAYS = {  # name: (spin count, None for the library's own; threads)
    "unbounded spin": (None, 2),
    "spin 20000": (20_000, 2),
    "spin 5000": (5_000, 2),
    "spin 500": (500, 2),
    "one thread": (None, 1),
}
KINDS = ("loop", "matmul", "training")
CONDITIONS = ("quiet", *(f"{count} {kind}" for count in (1, 2) for kind in KINDS))
TASKS = ("train", "evaluate", "sample")
TURN = 2.0
PAUSE = 0.3  # seconds before a turn, because idle threads of the other ways spin for a while
MATRIX = 1024
FOREIGN, TRIES = 0.15, 2
NEW_TOKENS = 100


@contextlib.contextmanager
def quickstart_run(threads: int) -> Iterator[tuple]:
    """The quickstart as an open run in a temporary folder: (run, progress)."""
    import torch

    from architecture.registry import build_model
    from data.sources import open_dataset
    from training import start
    from training.command_line import parse_command_line
    from training.config import TrainConfig
    from training.state.run import open_run
    from training.train_command import model_fields

    torch.set_num_threads(threads)
    flags = "--config quickstart --device cpu --no-use_tensorboard --out_dir model".split()
    cfg, tokenizer, config, *_ = start.resolve(
        parse_command_line(flags, model_fields, config_class=TrainConfig)
    )
    source, home = open_dataset(cfg.dataset, split="train"), os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with open_run(cfg, build_model(cfg.model, config), tokenizer, source, source, None) as opened:
                yield opened
        finally:
            os.chdir(home)


def serve(pipe, threads: int) -> None:
    """For each task that comes through the pipe, work for TURN seconds and answer with tokens per second."""
    with quickstart_run(threads) as (run, progress):
        from architecture.generation.text import generate_texts
        from training.trainer import score, train_step

        batch = next(run.loader)

        def train() -> int:
            return train_step(run, progress)[0].tokens

        def evaluate() -> int:
            return score(run, [batch]).tokens

        def sample() -> int:
            generate_texts(run.model, [""], NEW_TOKENS, 0.8, seed=1)
            return NEW_TOKENS

        units = {"train": train, "evaluate": evaluate, "sample": sample}
        pipe.send("ready")
        while task := pipe.recv():
            units[task]()  # warm-up
            pipe.send("warm")
            before, began, counts = look(), time.perf_counter(), []
            while time.perf_counter() - began < TURN or len(counts) < 3:
                counts.append(units[task]())
            seconds = time.perf_counter() - began
            pipe.send((sum(counts) / seconds, others_between(before, look()) * seconds, seconds))


def disturb(pipe, kind: str) -> None:
    """Work without end, as other programs do."""
    if kind == "loop":
        pipe.send("ready")
        while True:
            pass
    if kind == "matmul":
        import torch

        a = torch.randn(MATRIX, MATRIX)
        pipe.send("ready")
        while True:
            a @ a
    with quickstart_run(2) as (run, progress):
        from training.trainer import train_step

        pipe.send("ready")
        while True:
            train_step(run, progress)


@contextlib.contextmanager
def processes(function, arguments: dict[str, tuple[int | None, object]]) -> Iterator[dict[str, tuple]]:
    """{name: (pipe, process)} of processes that run function(pipe, argument).

    arguments: {name: (spin count, argument)}.
    """
    context, running = multiprocessing.get_context("spawn"), {}
    try:
        for name, (spin, argument) in arguments.items():
            os.environ.pop(SPIN, None)  # the library reads it once, when it is loaded
            if spin is not None:
                os.environ[SPIN] = str(spin)
            pipe, theirs = context.Pipe()
            running[name] = pipe, context.Process(target=function, args=(theirs, argument), daemon=True)
            running[name][1].start()
        for pipe, _ in running.values():
            assert pipe.recv() == "ready"
        yield running
    finally:
        os.environ.pop(SPIN, None)
        for _, process in running.values():
            process.kill()
            process.join()


def core_seconds(process) -> float:
    """What a process has used so far."""
    columns = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(columns[11]) + int(columns[12])) / os.sysconf("SC_CLK_TCK")


def turn(pipe, task: str, others: list) -> tuple[float, float]:
    """Tokens per second, and the cores that programs other than ours used meanwhile."""
    tried = []
    while len(tried) < TRIES:
        time.sleep(PAUSE)
        pipe.send(task)
        assert pipe.recv() == "warm"
        before = sum(map(core_seconds, others))
        rate, used, seconds = pipe.recv()
        ours = sum(map(core_seconds, others)) - before
        tried.append((max(0.0, used - ours) / seconds, rate))
        print(f"    {rate:8,.0f} tokens/s in {seconds:.1f} s, others {used / seconds:.2f} cores", flush=True)
        if tried[-1][0] <= FOREIGN:
            break
    foreign, rate = min(tried)
    return rate, foreign


def measure(pipes: dict[str, tuple], task: str, number: int, others: list) -> dict[str, list[float]]:
    """{way: [tokens per second, cores of other programs]} of one round, in rotated order."""
    names = list(pipes)
    at = number % len(names)
    return {
        name: [round(x, 3) for x in turn(pipes[name][0], task, others)] for name in names[at:] + names[:at]
    }


def next_work(samples: dict, rounds: int, tries: Counter) -> list[tuple[str, str]]:
    """The (condition, task) pairs that lack rounds, those with the fewest rounds and tries first."""
    have = {(c, t): len(samples.get(c, {}).get(t, [])) for t in TASKS for c in CONDITIONS}
    return sorted((pair for pair in have if have[pair] < rounds), key=lambda pair: have[pair] + tries[pair])


def medians(samples: dict) -> dict:
    """{task: {condition: {way: median tokens per second}}}."""
    return {
        task: {
            condition: {
                way: round(statistics.median(r[way][0] for r in tasks[task]), 1) for way in tasks[task][0]
            }
            for condition, tasks in samples.items()
            if task in tasks
        }
        for task in TASKS
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=200, help="begin no round after so many (default: 200)"
    )
    parser.add_argument("--only", nargs="+", default=CONDITIONS, help="conditions (default: all)")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it ends its processes
    began, path = time.monotonic(), RESULTS / f"{NAME}.json"
    stored = json.loads(path.read_text()) if path.exists() and not options.no_write else {}
    samples, left_out, tries = stored.get("samples", {}), stored.get("left_out", []), Counter()
    with processes(serve, {name: WAYS[name] for name in options.ways}) as pipes:
        while time.monotonic() - began < options.seconds:
            work = next_work(samples, options.rounds, tries)
            work = [(c, t) for c, t in work if c in options.only and t in options.tasks]
            if not work:
                print("nothing is left")
                break
            condition, task = work[0]
            count, kind = condition.split() if condition != "quiet" else (0, "")
            others = {str(number): (None, kind) for number in range(int(count))}
            with processes(disturb, others) as disturbers:
                time.sleep(1.0 if others else 0)
                running = [process for _, process in disturbers.values()]
                found = measure(pipes, task, tries[condition, task], running)
            tries[condition, task] += 1
            if max(foreign for _, foreign in found.values()) <= FOREIGN:
                samples.setdefault(condition, {}).setdefault(task, []).append(found)
            else:
                left_out.append({"condition": condition, "task": task} | found)
            told = ", ".join(f"{way} {rate:,.0f} ({foreign:.2f})" for way, (rate, foreign) in found.items())
            print(f"{condition:<11} {task:<9} {told}", flush=True)
            if not options.no_write:
                figures = {"medians": medians(samples), "samples": samples, "left_out": left_out}
                publish(NAME, {"turn_seconds": TURN} | figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
