"""A function on several processes that form a process group."""

import multiprocessing
import tempfile
from collections.abc import Callable
from typing import Any

from toy_run import started


def on_ranks(number: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a test module on each rank of a gloo group; AssertionError if it fails on one."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [started(_join, rank, number, folder, function, arguments) for rank in range(number)]
        assert exit_codes(ranks, seconds=600) == [0] * number


def exit_codes(processes: list[multiprocessing.Process], seconds: float) -> list[int | None]:
    """The exit codes of processes, None for one that is still there after the time, which is killed."""
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def _join(rank: int, number: int, folder: str, function: Callable[..., None], arguments: tuple) -> None:
    import torch.distributed as dist

    store = dist.FileStore(f"{folder}/store", number)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=number)
    function(*arguments)
    dist.destroy_process_group()
