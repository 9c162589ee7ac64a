"""Finished pieces of a long measurement, one a line, so that it can be stopped and continued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.files import append_line, parse_json


class Work:
    """A file of finished pieces. The key of a piece holds everything that its result depends on.

    So a piece of other settings is never used, and the file may serve several measurements.
    """

    def __init__(self, path: Path | None):
        """path: the file, which may be there already; None keeps the pieces in memory only."""
        self.path, self.found = path, {}
        if path is None or not path.exists():
            return
        *lines, rest = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                piece = parse_json(line)
                self.found[piece["key"]] = piece["result"]
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{path}, line {number}, is no finished piece of work; delete {path} to begin again"
                ) from None
        if rest:  # the process was killed while it wrote this line
            with open(path, "r+b") as file:
                file.truncate(path.stat().st_size - len(rest))

    def done(self, *settings: Any) -> bool:
        return self._key(settings) in self.found

    def once(self, make: Callable[[], Any], *settings: Any) -> Any:
        """The result of make(), or what an earlier call with the same settings found."""
        key = self._key(settings)
        if key not in self.found:
            result = make()
            if self.path is not None:
                with open(self.path, "ab", buffering=0) as file:
                    append_line(file, json.dumps({"key": key, "result": result}))
            self.found[key] = result
        return self.found[key]

    @staticmethod
    def _key(settings: tuple[Any, ...]) -> str:
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()
