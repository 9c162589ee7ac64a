"""Files that survive a crash at any moment: checkpoints, best.json, and who owns the folder.

Reading a checkpoint is architecture/registry.py's.
"""

import contextlib
import fcntl
import json
import math
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO, TextIO

import torch

LOCK = ".lock"
TRAINING_STATE = ("train_config", "progress", "optimizers", "rng", "data", "tensorboard_dir")


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


# --------------------------------------------------------------------------------------------------
# checkpoints


def checkpoint_path(out_dir: str | Path, step: int) -> Path:
    return Path(out_dir) / f"checkpoint_{step}.pt"


def checkpoints(out_dir: str | Path) -> list[Path]:
    """The checkpoints of a folder, oldest step first."""
    found = {}
    for path in Path(out_dir).glob("checkpoint_*.pt"):
        if match := re.fullmatch(r"checkpoint_(\d+)\.pt", path.name):
            found[int(match[1])] = path
    return [found[step] for step in sorted(found)]


def latest_checkpoint(out_dir: str | Path) -> Path | None:
    return next(reversed(checkpoints(out_dir)), None)


def require_latest(out_dir: str | Path) -> Path:
    """The newest checkpoint; ValueError if there is none to resume from."""
    path = latest_checkpoint(out_dir)
    if path is None and is_without_checkpoint(out_dir):
        raise nothing_to_continue(out_dir)
    if path is None:
        raise ValueError(
            f"--resume needs a checkpoint_<step>.pt in {out_dir} and there is none; "
            "start without --resume, or name the run's --out_dir"
        )
    return path


def find_checkpoint(path: str | Path, say: Callable[[str], None]) -> Path:
    """The checkpoint that a person names: a file as it is, of a run's folder the newest, and says so."""
    path = Path(path)
    if not path.is_dir():
        return path
    newest, best = latest_checkpoint(path), best_checkpoint(path)
    if newest is None:
        raise ValueError(
            f"{path} is a folder without a checkpoint_<step>.pt; name another, or train a model into it "
            f"with train.py --out_dir {quote(str(path))}"
        )
    other = best["checkpoint"] if best else newest.name
    note = f"; the lowest validation loss is {other}'s" if other != newest.name else ""
    say(f"{newest}: the newest checkpoint of {path}{note}")
    return newest


def require_training_state(state: dict[str, Any], path: str | Path) -> None:
    """ValueError unless a checkpoint holds all that continuing its run needs."""
    missing = [key for key in TRAINING_STATE if key not in state]
    if missing:
        raise ValueError(
            f"{path} holds a model but no run to continue, it has no {', '.join(missing)}; "
            "start a new run from its weights with --init_from"
        )


def save_checkpoint(
    out_dir: str | Path, step: int, state: dict[str, Any], *, keep: int | None = None
) -> Path:
    """Write OUT_DIR/checkpoint_<step>.pt, then remove all but the newest `keep` and the best.

    state: tensors, numbers, strings and containers of these, so that weights_only=True reads it.
    """
    path = checkpoint_path(out_dir, step)
    with atomic_write(path) as file:
        torch.save(state, file)
    if keep is not None:
        best = best_checkpoint(out_dir)
        for old in checkpoints(out_dir)[:-keep]:
            if best is None or old.name != best["checkpoint"]:
                old.unlink()
    return path


def update_best(out_dir: str | Path, step: int, val_loss: float, **more: Any) -> bool:
    """Point best.json at the saved checkpoint of `step` if no other has a lower val_loss.

    val_loss: nats per token.  more: further entries, such as val_bits_per_byte.
    """
    path = checkpoint_path(out_dir, step)
    assert path.exists(), f"{path} must be saved before it can be the best"
    best = best_checkpoint(out_dir)
    if not math.isfinite(val_loss) or (best is not None and val_loss >= best["val_loss"]):
        return False
    entry = {"step": step, "checkpoint": path.name, "val_loss": val_loss, **more}
    write_json_atomic(Path(out_dir) / "best.json", entry)
    return True


def best_checkpoint(out_dir: str | Path) -> dict[str, Any] | None:
    """What best.json says, unless there is none or its checkpoint was deleted."""
    path = Path(out_dir) / "best.json"
    if not path.exists():
        return None
    try:
        best = json.loads(path.read_text(encoding="utf-8"))
        there = (path.parent / best["checkpoint"]).exists() and math.isfinite(best["val_loss"])
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path} is damaged; delete it, the checkpoints do not need it") from None
    return best if there else None


# --------------------------------------------------------------------------------------------------
# random state


def rng_state(device: torch.device) -> dict[str, Any]:
    """The global generators, safe for weights_only=True; all other code is handed its generator."""
    state = {"python": random.getstate(), "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    torch.set_rng_state(state["cpu"].cpu())  # .cpu(): generator states live there, wherever loaded
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    if device.type == "mps":
        torch.mps.set_rng_state(state["mps"].cpu())


# --------------------------------------------------------------------------------------------------
# the folder


def check_out_dir(out_dir: str | Path, resume: bool) -> None:
    """ValueError, with nothing written, for a folder that this run may not write to: one that holds
    other output (unless resume), or none to continue (if resume).
    """
    out_dir = Path(out_dir)
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"out_dir must be a folder; {out_dir} is a file; choose another --out_dir")
    if resume:
        require_latest(out_dir)
    elif latest_checkpoint(out_dir) is not None:
        raise ValueError(
            f"out_dir must be new or empty, and {out_dir} holds another run; "
            "continue that with --resume or choose another --out_dir"
        )
    elif is_without_checkpoint(out_dir):
        raise nothing_to_continue(out_dir)
    elif others := sorted(path.name for path in contents(out_dir)):
        raise ValueError(
            f"out_dir must be new or empty, and {out_dir} holds {others[0]!r}; choose another --out_dir"
        )


def contents(out_dir: str | Path) -> set[Path]:
    """What is in a folder, apart from what a run leaves that ended before it wrote anything."""
    there = set(Path(out_dir).iterdir()) if Path(out_dir).is_dir() else set()
    return {path for path in there if path.name != LOCK}


def is_without_checkpoint(out_dir: str | Path) -> bool:
    """Whether a folder holds a run that has saved nothing, and nothing else."""
    names = {path.name for path in contents(out_dir)}
    ours = re.compile(r"config\.json|metrics\.jsonl|\..+\.tmp")
    started = not names.isdisjoint({"config.json", "metrics.jsonl"})
    return started and all(ours.fullmatch(name) for name in names)


def nothing_to_continue(out_dir: str | Path) -> ValueError:
    if (owner := live_writer(out_dir)) is not None:
        return _has_a_writer(out_dir, owner)
    return ValueError(
        f"{out_dir} holds a run that ended before its first checkpoint, so there is nothing to continue; "
        f"remove it with rm -r {quote(str(out_dir))}, or choose another --out_dir"
    )


def claim_out_dir(out_dir: str | Path, resume: bool) -> TextIO:
    """Make OUT_DIR this process's own for as long as the returned lock file stays open.

    The lock dies with the process, so a crash leaves none behind.  Raises ValueError, before
    anything is written, for what check_out_dir refuses and for a folder that a live run writes to.
    """
    out_dir = Path(out_dir)
    check_out_dir(out_dir, resume)
    out_dir.mkdir(parents=True, exist_ok=True)
    lock = _locked(out_dir / LOCK)
    check_out_dir(out_dir, resume)  # again: another run may have come and gone before the lock
    for remains in out_dir.glob(".*.tmp"):  # of a write that a kill cut short
        remains.unlink()
    return lock


def live_writer(out_dir: str | Path) -> str | None:
    """The process that writes to a folder, unless it is this one."""
    with contextlib.suppress(OSError), open(Path(out_dir) / LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = lock.read().strip()
            return owner if owner != str(os.getpid()) else None
    return None


def _locked(path: Path) -> TextIO:
    lock = open(path, "a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip()
        lock.close()
        raise _has_a_writer(path.parent, owner) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _has_a_writer(out_dir: str | Path, owner: str) -> ValueError:
    return ValueError(
        f"out_dir must have one writer, and process {owner} is writing to {out_dir}; "
        "wait for it or choose another --out_dir"
    )
