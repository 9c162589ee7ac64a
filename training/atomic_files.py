"""Files that are whole or not there, whatever happens while they are written."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A file that becomes `path` only when whole and on the disk; an error leaves no trace."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(
        path.parent, os.O_RDONLY
    )  # the new name is an entry of the folder: sync that too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json_atomic(path: str | Path, value: Any) -> None:
    """JSON that any reader takes: NaN and infinity raise ValueError."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())
