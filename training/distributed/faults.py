"""What keeps the processes of a run from failing in silence: the same start, an end to every wait, and a restart."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from common.script import first_line, say, shown
from training.command_line import CommandLine
from training.config import CHANGES_BITS, DATA, RESUMABLE_CHANGES
from training.distributed.mesh import TIMEOUT, Ranks

STEP_LIMIT = TIMEOUT.total_seconds()
FIRST_TO_TELL = 2.0  # seconds


# --------------------------------------------------------------------------------------------------
# the start


def require_agreement(ranks: Ranks, facts: dict[str, Any]) -> None:
    """Raise ValueError, on all ranks, if `facts`, plain values by name, are not the same on all of them."""
    told = ranks.gather((socket.gethostname(), facts))
    with ranks.together():
        (first_host, first), *others = told
        for rank, (host, held) in enumerate(others, start=1):
            for name in first | held:
                if first.get(name) != held.get(name):
                    raise ValueError(
                        f"all ranks must have the same {name}, and rank {rank} on {host} has "
                        f"{shown(held.get(name))}, while rank 0 on {first_host} has {shown(first.get(name))}; "
                        "start all of them with the same command, code and data"
                    )


# --------------------------------------------------------------------------------------------------
# waits


@contextlib.contextmanager
def limited_wait(ranks: Ranks, step: int, limit: float = STEP_LIMIT) -> Iterator[None]:
    """Within this, step number `step` is computed. If it takes too long, the process ends with exit code 1.

    A rank that waits for another one cannot return from PyTorch's call, so a thread ends the process. torchrun
    then ends the others, or starts all of them again.
    """
    if ranks.number == 1:
        yield
        return
    timer = threading.Timer(limit, give_up, (ranks, step, limit))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def give_up(ranks: Ranks, step: int, limit: float) -> None:
    """End this process, with the place at which each of its threads waits."""
    say(
        f"rank {ranks.rank} of {ranks.number} on {socket.gethostname()} is in step {step} for {limit:g} s: it waits "
        "for a rank that hangs, or hangs itself; the lines below say where"
    )
    faulthandler.dump_traceback(sys.__stderr__)
    os._exit(1)


@contextlib.contextmanager
def naming_lost_ranks(ranks: Ranks, progress: Any) -> Iterator[None]:
    """If another rank is gone, raise a ValueError that names this rank and its step."""
    try:
        yield
    except RuntimeError as error:
        if ranks.number == 1 or not _is_lost(error):
            raise
        time.sleep(FIRST_TO_TELL)  # so that torchrun sees first that the other one ended, and reports its end
        raise ValueError(
            f"rank {ranks.rank} of {ranks.number} on {socket.gethostname()} lost another rank after step "
            f"{progress.step} ({first_line(error)}); the error of that rank says why"
        ) from error


def _is_lost(error: RuntimeError) -> bool:
    """Whether a collective failed because of another process."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)


# --------------------------------------------------------------------------------------------------
# the restart


def job() -> str | None:
    """The name of the job of torchrun that this process belongs to; None without torchrun.

    It is the same after a restart. torchrun names a job that has no --rdzv_id "none".
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{socket.gethostname()}:{os.getppid()}" if name == "none" else name


def is_restarted() -> bool:
    """Whether torchrun started this process in place of one that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def continued(command: CommandLine) -> CommandLine:
    """The command that goes on from the newest checkpoint. A restarted process has the command of the start.

    What the checkpoint decides is no longer asked for: a flag may name a file that has changed since.
    """
    free = RESUMABLE_CHANGES | CHANGES_BITS | {*DATA, "out_dir"}
    cfg = replace(command.config, resume=True, resume_from=None, extend=None, init_from=None)
    return command._replace(config=cfg, model_overrides={}, given=command.given & free | {"resume"})
