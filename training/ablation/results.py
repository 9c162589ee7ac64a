"""results.jsonl: what has ended, one line each, on the disk before anything else is begun."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from training.atomic_files import append_line, writing
from training.json_text import parse_json


class Results:
    """The lines of a results.jsonl by their id, open for more; one process at a time.

    The half of a last line that a kill left behind is dropped.  Raises ValueError for a file that
    another process writes to and for one that is damaged elsewhere.
    """

    def __init__(self, path: Path):
        with writing(path):
            self.file = open(path, "a+b", buffering=0)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another ablate.py writes to {path.parent}; wait for it to end"
            ) from None
        self.lines: dict[str, dict[str, Any]] = {}
        self.file.seek(0)
        whole, _, half = self.file.read().rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            try:
                record = parse_json(line)
                self.lines[record["id"]] = record
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{path}: each line must be a JSON object with an id, and line {number} is none; "
                    "delete it, and that run is made again"
                ) from None
        if half:
            self.file.truncate(len(whole) + bool(whole))

    def add(self, record: dict[str, Any]) -> None:
        append_line(self.file, json.dumps(record, allow_nan=False))
        with writing(self.file.name):
            os.fsync(self.file.fileno())
        self.lines[record["id"]] = record

    def of(self, phase: str, arm: str | None = None) -> list[dict[str, Any]]:
        """The lines of a phase (search, verdict, segments, inference), of one arm or of all, in the file's order."""
        lines = (line for line in self.lines.values() if line["phase"] == phase)
        return [line for line in lines if arm in (None, line["arm"])]

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
