"""Runs as processes of their own: a crash stays in one, and becomes a result as any other ending."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.script import say
from evaluation.ablation.results import Results, facts, failure, final_record, last_line, log_of, records_of
from training.state.checkpoint import checkpoints, latest_checkpoint
from training.state.out_dir import live_writer

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.1
STOP_SECONDS = 60.0  # for a run to save before it is killed
ASKED_TO_STOP = {128 + s for s in (signal.SIGINT, signal.SIGTERM)} | {-signal.SIGINT, -signal.SIGTERM}


Launch = Callable[[Sequence[str], Path, dict[str, str]], subprocess.Popen]


class Job(NamedTuple):
    """One process to run and what to record of it."""

    record: dict[str, Any]  # id, arm, phase, ...
    words: list[str]  # after `python`; of a training run the script is the first
    folder: Path  # of a training run; of anything else, where it writes
    outcome: Callable[[Path, int], dict[str, Any]]  # of its folder and exit code


def launch(words: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen:
    """`python WORDS`, with all that it prints in a file; Ctrl-C in the terminal does not reach it."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path} | environment,
            start_new_session=True,
        )


def run_jobs(jobs: list[Job], results: Results, launch: Launch, workers: int) -> None:
    """Run those that results.jsonl does not have yet, so many at once; a line each when it ends.

    KeyboardInterrupt, also where somebody stops a run from outside: all runs are told to save and end.
    """
    waiting = deque(job for job in jobs if job.record["id"] not in results.lines)
    running: dict[int, tuple[Job, subprocess.Popen]] = {}
    began, total = time.monotonic(), len(waiting)
    try:
        while waiting or running:
            for slot in range(workers):
                if slot not in running and waiting:
                    running[slot] = start(waiting.popleft(), slot, launch)
                if slot in running and (code := running[slot][1].poll()) is not None:
                    finish(running.pop(slot)[0], code, results)
                    if left := len(waiting) + len(running):
                        took = (time.monotonic() - began) / (total - left)
                        say(f"  {total - left} of {total} runs, {_duration(took * left)} left")
            time.sleep(POLL_SECONDS if running else 0)
    finally:  # nothing is left running, whatever happened
        stop([process for _, process in running.values()])


def start(job: Job, slot: int, launch: Launch) -> tuple[Job, subprocess.Popen]:
    """The job's process, from its own checkpoint where that continues to the last bit, else anew."""
    folder = job.folder
    wait_for_writer(folder, job.record["id"])
    words = job.words
    if final_record(folder):
        words = ["-c", ""]  # it ended after its runner did: nothing is left to do
    elif latest_checkpoint(folder) and facts(folder).get("train", {}).get("device") == "cpu":
        words = [job.words[0], "--resume", f"--out_dir={folder.resolve()}"]
    elif folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return job, launch(words, log_of(folder), visible_gpu(slot))


def wait_for_writer(folder: Path, name: str) -> None:
    """Until a run has ended that a killed runner left behind in the folder."""
    if owner := live_writer(folder):
        say(f"{name} still runs, in process {owner}: waiting for it")
        while live_writer(folder):
            time.sleep(POLL_SECONDS)


def finish(job: Job, code: int, results: Results) -> None:
    if code in ASKED_TO_STOP:
        raise KeyboardInterrupt
    record = job.record | job.outcome(job.folder, code)
    results.add(record)
    if record["phase"] == "search":
        for path in checkpoints(job.folder):  # nobody goes on from these
            path.unlink()
    score = record.get("bits_per_byte")
    told = record["message"] or ("measured" if score is None else f"{score:.4f} bits per byte")
    say(f"{record['id']}: {told}")


def stop(processes: list[subprocess.Popen]) -> None:
    """Have them save and end; kill what does not."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    for process in running:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def as_interrupt() -> Iterator[None]:
    """Within it SIGTERM and the closing of the terminal are answered as Ctrl-C is."""
    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------ GPUs, time


def gpus() -> list[str]:
    """The CUDA devices that runs may have, as CUDA_VISIBLE_DEVICES names them."""
    if not (count := torch.cuda.device_count()):
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def visible_gpu(slot: int) -> dict[str, str]:
    visible = gpus()
    return {"CUDA_VISIBLE_DEVICES": visible[slot % len(visible)]} if visible else {}


def _duration(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {seconds:.0f} s"


WARM_UP, STEPS, SECONDS = 5, 20, 60.0  # whichever comes first


def seconds_per_token(words: list[str], folder: Path, launch: Launch) -> float:
    """The median pace of some steps of a training run, which is then stopped and thrown away.

    words: of a run that is long enough and logs every step.  Raises ValueError where it fails.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    wait_for_writer(folder, "an earlier measurement of a pace")
    shutil.rmtree(folder, ignore_errors=True)
    process, began = launch(words, log_of(folder), visible_gpu(0)), time.monotonic()
    try:
        while True:
            ended = process.poll()
            steps = [(r["perf/seconds"], r["data/tokens"]) for r in records_of(folder) if "perf/seconds" in r]
            late = time.monotonic() - began > SECONDS and len(steps) >= 4
            if late or len(steps) > WARM_UP + STEPS:
                break
            if ended in ASKED_TO_STOP:
                raise KeyboardInterrupt
            if ended is not None:
                raise ValueError(failure(ended, last_line(log_of(folder)))[1])
            time.sleep(POLL_SECONDS)
    finally:
        stop([process])
    shutil.rmtree(folder)
    steps = steps[min(WARM_UP, len(steps) // 2) :]
    return statistics.median((b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(steps, steps[1:]))
