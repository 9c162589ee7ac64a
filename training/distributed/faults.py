"""What keeps the processes of a run from failing in silence: one start for all of them, and an end to each wait."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from common.provenance import source_checksums
from common.script import first_line, say, shown
from training.config import TrainConfig
from training.distributed.mesh import TELLING, TIMEOUT, Ranks

# How long a step may take: less than PyTorch's own limit, whose message does not name the step.
STEP_LIMIT = TIMEOUT.total_seconds() - 30
OF_A_MACHINE = ("device", "threads")  # settings that may differ between machines


# --------------------------------------------------------------------------------------------------
# the start


def require_agreement(
    ranks: Ranks, cfg: TrainConfig, config: Any, step: int, data: dict[str, str | None]
) -> None:
    """Raise ValueError, on all ranks, unless settings, code and data are the same on all of them.

    config: of the model.  step: of the checkpoint to continue.  data: from checkpoint.data_identity.
    """
    if ranks.number == 1:
        return
    import torch

    settings = {name: value for name, value in asdict(cfg).items() if name not in OF_A_MACHINE}
    facts = settings | asdict(config) | {"step of the checkpoint": step} | data
    facts |= {"version of torch": torch.__version__}
    facts |= source_checksums("common", "architecture", "data", "training")
    require_same(ranks, facts)


def require_same(ranks: Ranks, facts: dict[str, Any]) -> None:
    """Raise ValueError, on all ranks, for the first of the facts that is not the same on all of them."""
    (here, first), *others = ranks.gather((socket.gethostname(), facts))
    for rank, (there, held) in enumerate(others, start=1):
        for name in first | held:
            if (one := first.get(name)) != (other := held.get(name)):
                raise ranks.failure(
                    f"all ranks must have the same {name}, and it is {shown(one)} on rank 0 ({here}) and "
                    f"{shown(other)} on rank {rank} ({there}); start them with one command, from one version of "
                    "the code and of the data"
                )


# --------------------------------------------------------------------------------------------------
# waits


@contextlib.contextmanager
def limited(ranks: Ranks, step: int) -> Iterator[None]:
    """End the process with exit code 1 if the work inside, step number `step`, takes longer than STEP_LIMIT.

    A thread does it, because PyTorch's call does not return while it waits for another rank. torchrun then ends
    the other processes, or starts all of them again.
    """
    if ranks.number == 1:
        yield
        return
    timer = threading.Timer(STEP_LIMIT, _give_up, (ranks, step))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(ranks: Ranks, step: int) -> None:
    say(
        f"{ranks} gives up: step {step} has taken {STEP_LIMIT:g} s, so it waits for a rank that hangs, or hangs "
        "itself; it is at"
    )
    faulthandler.dump_traceback(sys.__stderr__)
    os._exit(1)


@contextlib.contextmanager
def naming_lost_ranks(ranks: Ranks, progress: Any) -> Iterator[None]:
    """If another rank is gone, raise a ValueError that names this rank and its step."""
    try:
        yield
    except RuntimeError as error:
        if ranks.number == 1:
            raise
        from torch.distributed import DistError

        if not (isinstance(error, DistError) or "gloo" in str(error)):
            raise
        time.sleep(TELLING)  # torchrun names the first process that ended, which is to be the other one
        raise ValueError(
            f"{ranks} lost another rank after step {progress.step}, whose own message says more "
            f"({first_line(error).split('. ')[0]}); --resume continues from the newest checkpoint"
        ) from error
