"""results.jsonl: one line for each job that has ended, on the disk before the next job starts."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

from common.files import append_line, parse_json, read_json, reading, writing
from training.monitor.metrics import read_metrics


class Results:
    """The lines of a results.jsonl by their id; more can be added, by one process at a time.

    A last line that a kill cut short is dropped.  Raises ValueError if another process writes to the file, or
    if it is damaged elsewhere.
    """

    def __init__(self, path: Path):
        with writing(path):
            self.file = open(path, "a+b", buffering=0)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another ablate.py is writing to {path.parent}; wait until it ends") from None
        self.lines: dict[str, dict[str, Any]] = {}
        self.file.seek(0)
        whole, _, half = self.file.read().rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            way_out = f"delete line {number} to repeat that run"
            with reading(path, "the results of an ablation", way_out=way_out):
                record = parse_json(line)
                self.lines[record["id"]] = record
        if half:
            self.file.truncate(len(whole) + bool(whole))

    def add(self, record: dict[str, Any]) -> None:
        append_line(self.file, json.dumps(record, allow_nan=False))
        with writing(self.file.name):
            os.fsync(self.file.fileno())
        self.lines[record["id"]] = record

    def of(self, phase: str, arm: str | None = None) -> list[dict[str, Any]]:
        """The lines of a phase (search, verdict, test, segments, choice, inference), for one arm or all, in the
        order of the file.
        """
        lines = (line for line in self.lines.values() if line["phase"] == phase)
        return [line for line in lines if arm in (None, line["arm"])]

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


LOADS = ("max_violation", "max_violation_worst_layer", "dead_experts")  # only of a model with routers
CLOSING = ("bits_per_byte", "validation_tokens", "steps", "tokens", "seconds", "tokens_per_second")
NAMES = (*CLOSING, "parameters", *LOADS)
FIGURES = {"val_loss": "final/loss"} | {name: f"final/{name}" for name in NAMES}  # tags of the closing record


def training_outcome(folder: Path, code: int, parameters: int) -> dict[str, Any]:
    """Status (ok, diverged, out of memory, refused or failed), message, and the figures, None if missing.

    parameters: the number in the plan; a run with another number of parameters counts as failed.
    """
    records, starts = records_of(folder), facts(folder).get("starts") or [{}]
    final = closing(records) or {}
    status, message = ("ok", "") if final else failure(code, last_line(log_of(folder)))
    if final and final["final/parameters"] != parameters:
        counts = f"{final['final/parameters']:,} parameters, but the plan says {parameters:,}"
        status, message = "failed", f"the run has {counts}"
    return {
        "status": status,
        "message": message,
        **{name: final.get(tag) for name, tag in FIGURES.items()},
        "peak_memory_gb": max((r.get("perf/peak_memory_gb", 0.0) for r in records), default=None),
        "first_batch_sha256": starts[0].get("first_batch_sha256"),
    }


def written_outcome(folder: Path, code: int) -> dict[str, Any]:
    """Status, message, and the figures that a process wrote to the JSON file beside the folder."""
    path = folder.with_name(f"{folder.name}.json")  # a name may have a dot
    if code == 0 and path.exists():
        return {"status": "ok", "message": "", **read_json(path)}
    status, message = failure(code, last_line(log_of(folder)))
    return {"status": status, "message": message}


TEST = ("bits_per_byte", "half_width_over_documents", "loss", "tokens", "documents", "test_set")


def test_outcome(folder: Path, code: int, report: Path) -> dict[str, Any]:
    """Status, message, the figures of evaluation.test_set, and where the sums of each document are.

    report: the folder from which the path of that file is counted.
    """
    record = written_outcome(folder, code)
    if record["status"] != "ok":
        return record
    figures = {name: record[name] for name in TEST}
    place = folder.with_name(f"{folder.name}.npz").relative_to(report)
    return {"status": "ok", "message": "", **figures, "document_file": place.as_posix()}


def failure(code: int, line: str) -> tuple[str, str]:
    """Status and message of a process that failed.  line: the last one that it printed."""
    message = re.sub(r"^\S+: error: ", "", line)  # the name of the script
    if "is not finite" in message:
        return "diverged", message
    if code == -signal.SIGKILL:
        return "out of memory", "killed by signal 9, which is what the system sends when memory runs out"
    if "out of memory" in message.lower() or "can't allocate memory" in message:
        return "out of memory", message
    return ("refused" if code == 2 else "failed"), message or f"exit code {code}"


def records_of(folder: Path) -> list[dict[str, Any]]:
    """The records in metrics.jsonl so far."""
    path = folder / "metrics.jsonl"
    return read_metrics(path) if path.exists() else []


def final_record(folder: Path) -> dict[str, Any] | None:
    """The closing record of a training run; None if it has not finished."""
    return closing(records_of(folder))


def closing(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    return next((record for record in records if "final/loss" in record), None)


def facts(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    with reading(path, "the config.json of a run"):
        return read_json(path) if path.exists() else {}


def log_of(folder: Path) -> Path:
    """The file for a run's output: beside its folder, which must be empty when the run begins."""
    return folder.with_name(f"{folder.name}.log")


def last_line(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return (text.strip().splitlines() or [""])[-1].strip()
