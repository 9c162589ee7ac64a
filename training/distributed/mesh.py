"""The processes of a run that torchrun started, and what they agree on.

Each process, a rank, drives one device. The default process group has gloo for tensors on the CPU and nccl for
those on CUDA devices, so that ranks can agree on something without a wait for their devices. This module imports
torch where it uses it, and a single process opens no process group.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.script import is_first_rank, number_of_ranks

if TYPE_CHECKING:
    import torch

# How long a rank waits for the others. The first rank alone writes checkpoints and stories in this time.
TIMEOUT = datetime.timedelta(minutes=10)

TELLING = 5.0  # seconds in which the rank that failed prints its error


class FailedElsewhere(ValueError):
    """Another rank failed, and tells of it."""

    is_told = True  # common.script.exit_code prints no line


@dataclass(frozen=True)
class Ranks:
    """The processes of this run. All methods that communicate must be called by all ranks in the same order."""

    number: int = 1
    rank: int = 0

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.number} on {socket.gethostname()}"

    @property
    def writes(self) -> bool:
        """Whether this rank writes files and messages."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all ranks, in place."""
        if self.number > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order; tensors in them must be on the CPU."""
        if self.number == 1:
            return [value]
        import torch.distributed as dist

        values = [None] * self.number
        dist.all_gather_object(values, value)
        return values

    def after_step(self, stop: Any, seconds: float) -> tuple[bool, float]:
        """Whether any rank was asked to stop, which then holds for all, and the longest of the times of a step.

        stop: a StopRequest (training/state/interrupt.py).
        """
        if self.number == 1:
            return bool(stop), seconds
        import torch
        import torch.distributed as dist

        agreed = torch.tensor([float(stop.signal or 0), seconds], dtype=torch.float64)
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        number, seconds = agreed.tolist()
        if number:
            stop.signal = signal.Signals(int(number))
        return number > 0, seconds

    def stopping(self, stop: Any) -> bool:
        """Whether any rank was asked to stop."""
        return self.after_step(stop, 0.0)[0]

    def failure(self, told: str) -> ValueError:
        """The error to raise on all ranks for a failure that all of them know."""
        return ValueError(told) if self.writes else FailedElsewhere(told)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Raise an exception of one rank on all ranks, as FailedElsewhere on those that have none of their own.

        If all ranks have the same, only the first one tells of it. What runs inside must not communicate.
        """
        mine = None
        try:
            yield
        except Exception as error:
            if self.number == 1:
                raise
            mine = error
        told = self.gather(None if mine is None else f"{type(mine).__name__}: {mine}")
        failed = [rank for rank, text in enumerate(told) if text is not None]
        if mine is not None and told[self.rank] not in told[: self.rank]:
            raise mine
        if failed:
            raise FailedElsewhere(f"rank {failed[0]} failed with {told[failed[0]]}") from mine


ONE = Ranks()


def job() -> str | None:
    """The name of the job of torchrun that this process belongs to, the same after a restart; None without torchrun.

    torchrun calls every job that has no --rdzv_id "none"; then the process of torchrun tells them apart.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{socket.gethostname()}:{os.getppid()}" if name == "none" else name


def launcher() -> str:
    """The words before the name of a script that start it as this process was started."""
    if (number := number_of_ranks()) == 1:
        return "python"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", number))
    if here == number:
        return f"torchrun --nproc_per_node {here}"
    return f"torchrun --nnodes {number // here} --nproc_per_node {here} (and its --rdzv flags on each node)"


def require_own_store() -> None:
    """Raise ValueError if the ranks would hang after a restart of a job on several nodes.

    torchrun's store, which a restart does not empty, then has to be switched off: ranks cannot tell the starts apart,
    because each node counts its own failures (torch 2.13).
    """
    one_node = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    if one_node or os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return
    if (held := os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE")) == "1":
        return
    told = (
        f"torchrun --max-restarts on several nodes needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, got {held or 'nothing'}, "
        "and without it ranks fail or hang after a restart; export it before torchrun on each node, or leave out "
        "--max-restarts"
    )
    if is_first_rank():
        raise ValueError(told)
    time.sleep(TELLING)
    raise FailedElsewhere(told)


@contextlib.contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the other processes of the run, with one CUDA device for each process of a machine, if it has them."""
    if number_of_ranks() == 1:
        yield ONE
        return
    require_own_store()
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.is_available():
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise ValueError(
                f"torchrun --nproc_per_node must be at most the number of CUDA devices of a machine, and process "
                f"{local + 1} of this machine has none of its {there}; start fewer processes"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    store, rank, number = next(dist.rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # After a restart, torchrun's store still has the addresses of the processes that ended (torch 2.13).
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=number, timeout=TIMEOUT)
    try:
        yield Ranks(dist.get_world_size(), dist.get_rank())
    except FailedElsewhere:
        time.sleep(TELLING)  # torchrun ends all processes as soon as one has failed
        raise
    dist.destroy_process_group()  # not after an exception, because others may wait for this rank
