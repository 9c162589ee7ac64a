"""A function on several processes that form a process group."""

import multiprocessing
import tempfile
from collections.abc import Callable
from typing import Any

_processes = multiprocessing.get_context("forkserver")


def on_ranks(number: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a test module on each rank of a gloo group; AssertionError if it fails on one."""
    _processes.set_forkserver_preload(["torch.distributed.fsdp", "torch.distributed.checkpoint"])
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            _processes.Process(target=_join, args=(rank, number, folder, function, arguments), daemon=True)
            for rank in range(number)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(600)
            rank.kill()
        assert [rank.exitcode for rank in ranks] == [0] * number


def _join(rank: int, number: int, folder: str, function: Callable[..., None], arguments: tuple) -> None:
    import torch.distributed as dist

    store = dist.FileStore(f"{folder}/store", number)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=number)
    function(*arguments)
    dist.destroy_process_group()
