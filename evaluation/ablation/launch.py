"""Each run in its own process: a crash ends only that run, and is recorded as its result."""

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

from common.device import matmul_rate
from common.script import say
from evaluation.ablation.results import Results, facts, failure, final_record, last_line, log_of, records_of
from training.state.checkpoint import checkpoints, latest_checkpoint
from training.state.out_dir import live_writer

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.1
STOP_SECONDS = 60.0  # time for a run to save before it is killed
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ASKED_TO_STOP = {128 + s for s in STOPPING} | {-s for s in STOPPING}


Launch = Callable[[Sequence[str], Path, dict[str, str]], subprocess.Popen]


class Job(NamedTuple):
    """A process to run and what to record about it."""

    record: dict[str, Any]  # id, arm, phase, ...
    words: list[str]  # the words after `python`; those of a training run begin with the script
    folder: Path  # the folder of a training run; another process writes its files beside it
    outcome: Callable[[Path, int], dict[str, Any]]  # (folder, exit code) -> what to add to the record


def launch(words: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen:
    """Start `python WORDS` with its output in the file `log`, out of reach of Ctrl-C in the terminal."""
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


def run_jobs(
    jobs: list[Job],
    results: Results,
    launch: Launch,
    workers: int,
    then: Callable[[dict[str, Any]], list[Job]] = lambda record: [],
) -> None:
    """Run the jobs that results.jsonl does not have yet, `workers` at the same time, and record how each ends.

    then: the jobs that follow from the record of one that has ended; they are next.
    Raises KeyboardInterrupt also when somebody stops one of the runs; then all runs are told to save and end.
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
                    record = finish(running.pop(slot)[0], code, results)
                    following = [job for job in then(record) if job.record["id"] not in results.lines]
                    waiting.extendleft(reversed(following))
                    total += len(following)
                    if left := len(waiting) + len(running):
                        took = (time.monotonic() - began) / (total - left)
                        say(f"  {total - left} of {total} runs, {_duration(took * left)} left")
            time.sleep(POLL_SECONDS if running else 0)
    finally:  # leave no run behind, whatever happened
        stop([process for _, process in running.values()])


def start(job: Job, slot: int, launch: Launch) -> tuple[Job, subprocess.Popen]:
    """The job and its process. A CPU run continues from its checkpoint, bit for bit; others start again."""
    folder = job.folder
    wait_for_writer(folder, job.record["id"])
    words = job.words
    # A run of the verdict is still to be scored, so it needs its checkpoint, which a copy may lack.
    whole = latest_checkpoint(folder) or job.record["phase"] != "verdict"
    if whole and final_record(folder):
        words = ["-c", ""]  # the run outlived its runner and has finished: only its result is missing
    elif latest_checkpoint(folder) and facts(folder).get("train", {}).get("device") == "cpu":
        words = [job.words[0], "--resume", f"--out_dir={folder.resolve()}"]
    elif folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    job.record.update(speed_of_machine(job, "before"))
    return job, launch(words, log_of(folder), visible_gpu(slot))


def speed_of_machine(job: Job, when: str) -> dict[str, float]:
    """GFLOP/s of a fixed product of matrices, which the seconds of a training run are read beside; {} for other
    jobs, and on GPUs, which belong to the runs.
    """
    if job.record.get("phase") not in ("search", "verdict") or gpus():
        return {}
    return {f"matmul_gflops_{when}": round(matmul_rate(torch.device("cpu")) / 1e9, 1)}


def wait_for_writer(folder: Path, name: str) -> None:
    """Wait for a run that a killed runner left behind in the folder."""
    if owner := live_writer(folder):
        say(f"{name} is still running in process {owner}; waiting for it")
        while live_writer(folder):
            time.sleep(POLL_SECONDS)


def finish(job: Job, code: int, results: Results) -> dict[str, Any]:
    """Record how a job has ended, and return the record."""
    if code in ASKED_TO_STOP:
        raise KeyboardInterrupt
    record = job.record | job.outcome(job.folder, code) | speed_of_machine(job, "after")
    results.add(record)
    if record["phase"] == "search":
        for path in checkpoints(job.folder):  # a run of the search is never continued
            path.unlink()
    score = record.get("bits_per_byte")
    told = record["message"] or ("measured" if score is None else f"{score:.4f} bits per byte")
    say(f"{record['id']}: {told}")
    return record


def stop(processes: list[subprocess.Popen]) -> None:
    """Ask the processes to save and end; kill those that do not."""
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
    """Within this context Ctrl-C, SIGTERM and SIGHUP (a closed terminal) raise KeyboardInterrupt.

    Ctrl-C does so even during an import, because the running processes must be stopped.
    """
    before = {}
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP; leave it so
            before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------ GPUs, time


def gpus() -> list[str]:
    """The CUDA devices for runs, as CUDA_VISIBLE_DEVICES names them."""
    if not (count := torch.cuda.device_count()):
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def visible_gpu(slot: int) -> dict[str, str]:
    visible = gpus()
    return {"CUDA_VISIBLE_DEVICES": visible[slot % len(visible)]} if visible else {}


def _duration(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {seconds:.0f} s"


WARM_UP, STEPS, SECONDS = 5, 20, 60.0  # measure until STEPS after the warm-up, or for SECONDS


def seconds_per_token(words: list[str], folder: Path, launch: Launch) -> float:
    """The median pace over some steps of a training run, which is then stopped and deleted.

    words: a run that is long enough and logs every step.  Raises ValueError if the run fails.
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
