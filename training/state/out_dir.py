"""OUT_DIR: check what it holds when a run starts, and let only one process write to it."""

import contextlib
import fcntl
import functools
import itertools
import os
import re
from pathlib import Path
from shlex import quote
from typing import Any, TextIO

from common.files import lock_file, read_json, reading, writing
from training.state.checkpoint import latest_checkpoint, remove

LOCK = ".lock"


def check_out_dir(out_dir: str | Path, resume: bool) -> None:
    """Raise ValueError if this run may not write to a folder. Nothing is written.

    A new run needs a new or empty folder, a resumed run needs a checkpoint there.
    """
    out_dir = Path(out_dir)
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"out_dir must be a folder, and {out_dir} is a file; choose another --out_dir")
    if resume:
        require_latest(out_dir)
    elif latest_checkpoint(out_dir) is not None:
        free = next(name for n in itertools.count(2) if not Path(name := f"{out_dir}_{n}").exists())
        raise ValueError(
            f"out_dir must be new or empty, and {out_dir} holds another run; continue that run with --resume "
            f"--out_dir {quote(str(out_dir))}, or start a new one with --out_dir {quote(free)}"
        )
    elif is_without_checkpoint(out_dir):
        raise nothing_to_continue(out_dir)
    elif others := sorted(path.name for path in contents(out_dir)):
        raise ValueError(
            f"out_dir must be new or empty, and {out_dir} holds {others[0]!r}; choose another --out_dir"
        )


def contents(out_dir: str | Path) -> set[Path]:
    """List a folder without the lock, which is all that a run leaves if it ends before it writes anything."""
    there = set(Path(out_dir).iterdir()) if Path(out_dir).is_dir() else set()
    return {path for path in there if path.name != LOCK}


def is_without_checkpoint(out_dir: str | Path) -> bool:
    """Whether a folder holds a run without a checkpoint, and nothing else."""
    names = {path.name for path in contents(out_dir)}
    ours = re.compile(r"config\.json|metrics\.jsonl|\..+\.tmp")
    started = not names.isdisjoint({"config.json", "metrics.jsonl"})
    return started and all(ours.fullmatch(name) for name in names)


def forget(out_dir: str | Path) -> None:
    """Delete what a run without a checkpoint left in its folder."""
    assert is_without_checkpoint(out_dir)
    for path in contents(out_dir):
        remove(path)


def nothing_to_continue(out_dir: str | Path) -> ValueError:
    if (owner := live_writer(out_dir)) is not None:
        return _has_a_writer(out_dir, owner)
    return ValueError(
        f"{out_dir} holds a run that ended before its first checkpoint, so there is nothing to continue; "
        f"remove it with rm -r {quote(str(out_dir))}, or choose another --out_dir"
    )


def claim_out_dir(out_dir: str | Path, resume: bool) -> TextIO:
    """Create OUT_DIR if needed, and lock it for as long as the returned file stays open.

    Raises CannotWrite, and ValueError if check_out_dir refuses the folder or another process holds the lock.
    """
    out_dir = Path(out_dir)
    with writing(out_dir):
        lock = lock_file(out_dir / LOCK, functools.partial(_has_a_writer, out_dir))
    check_out_dir(out_dir, resume)  # again: another run may have started and ended before we held the lock
    for unfinished in out_dir.glob(".*.tmp"):  # a kill interrupted their writes
        remove(unfinished)
    return lock


def live_writer(out_dir: str | Path) -> str | None:
    """Return the number of the process that writes to a folder; None if there is none or it is this one."""
    with contextlib.suppress(OSError), open(Path(out_dir) / LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = lock.read().strip()
            return owner if owner != str(os.getpid()) else None
    return None


def _has_a_writer(out_dir: str | Path, owner: str) -> ValueError:
    return ValueError(
        f"process {owner} is writing to {out_dir}, and only one process may; "
        "wait until it ends, or choose another --out_dir"
    )


def earlier_starts(out_dir: str | Path) -> list[Any]:
    """Return what config.json records of the earlier starts of a run; ValueError if it is damaged."""
    path = Path(out_dir) / "config.json"
    if not path.exists():
        return []
    way_out = "move it away; the run can be continued without it"
    with reading(path, "the settings and starts of a run", way_out=way_out):
        return list(read_json(path)["starts"])


def require_latest(out_dir: str | Path) -> Path:
    """Return the newest checkpoint; ValueError if there is none."""
    path = latest_checkpoint(out_dir)
    if path is None and is_without_checkpoint(out_dir):
        raise nothing_to_continue(out_dir)
    if path is None:
        raise ValueError(
            f"--resume needs a checkpoint_<step>.pt in {out_dir}, and there is none; "
            "start without --resume, or give the --out_dir of the run to continue"
        )
    return path
