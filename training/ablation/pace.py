"""How fast an arm trains here, from a few steps of it."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path

from training.ablation.outcome import failure, last_line, log_of, records_of
from training.ablation.runner import (
    ASKED_TO_STOP,
    POLL_SECONDS,
    Launch,
    stop,
    visible_gpu,
    wait_for_writer,
)

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
            steps = [(r["perf/seconds"], r["data/tokens"]) for r in records_of(folder) if "perf/seconds" in r]  # fmt: skip
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
