"""Write sharded checkpoints, in the background of a run; and convert one to a plain checkpoint and back.

    python -m training.distributed.sharded_checkpoint --checkpoint RUN/checkpoint_500.pt --output OTHER/checkpoint_500.pt

architecture/shards.py describes the format and reads it.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import contextlib
import os
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed import checkpoint as torch_checkpoint

from architecture.checkpoint import find_checkpoint, read_checkpoint
from architecture.shards import VALUES, Stored, checksum, is_sharded, raising_the_cause, separated
from common.files import atomic_write, write_json_atomic, writing
from common.script import Parser, exit_code, say
from training.distributed.mesh import TIMEOUT, FailedElsewhere, Ranks


class Saver:
    """Saves one checkpoint after the other while the run goes on. All ranks call the same methods.

    Training may change the tensors as soon as start() returns, because it copies them to the memory of the CPU.
    newest: the checkpoint that the run continues.
    """

    def __init__(self, ranks: Ranks, newest: Path | None = None) -> None:
        self.ranks, self.newest = ranks, newest
        # A group of its own, because the messages of a save come between those of a step.
        self.group = distributed.new_group(backend="gloo", timeout=TIMEOUT)
        self.pending: Future | None = None

    def start(self, path: Path, state: dict[str, Any], then: Callable[[], None]) -> None:
        """Begin to write a checkpoint, once the one before is complete. Raises what that one failed with.

        A step that was saved is not saved again, if the run fails before the next one.
        then: what rank 0 does as soon as the checkpoint is complete.
        """
        self.wait()
        if path == self.newest:
            return
        writer, tensors = _Writer.of(path, state, then)
        self.newest = path
        self.pending = torch_checkpoint.async_save(tensors, storage_writer=writer, process_group=self.group)

    def wait(self) -> None:
        """Return when all checkpoints are complete; raises what prevented it, on all ranks."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        try:
            with writing(self.newest), raising_the_cause():
                pending.result()
        except OSError as error:
            raise error if self.ranks.writes else FailedElsewhere(str(error)) from error

    def close(self) -> None:
        """Let the last save end, if the run has failed meanwhile. Its own error would hide that of the run."""
        with contextlib.suppress(Exception):
            self.wait()


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a sharded checkpoint from this process alone."""
    writer, tensors = _Writer.of(path, state, lambda: None)
    with writing(path), raising_the_cause(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that no other process takes part
        torch_checkpoint.save(tensors, storage_writer=writer, no_dist=True)


class _Writer(torch_checkpoint.HuggingFaceStorageWriter):
    """Writes into a temporary folder, which rank 0 renames when all ranks have written their files."""

    @classmethod
    def of(cls, path: Path, state: dict[str, Any], then: Callable[[], None]) -> tuple[_Writer, dict]:
        """A writer, and the tensors that it is to write."""
        writer = cls(str(path.with_name(f".{path.name}.tmp")), save_distributed=True)
        tensors: dict[str, torch.Tensor] = {}
        writer.to, writer.values, writer.then = path, separated(state, "", tensors), then
        return writer, tensors

    def write_data(self, plan, planner):
        """Write the files of this rank. The result, for finish(), is their names, sizes and checksums."""
        results = super().write_data(plan, planner).value()
        names = sorted({result.storage_data.relative_path for result in results})
        done = torch.futures.Future()
        done.set_result([(name, checksum(Path(self.path) / name)) for name in names])
        return done

    def finish(self, metadata, results) -> None:
        """Make the checkpoint complete. Called by rank 0, with the results of all ranks."""
        files = dict(file for of_rank in results for file in of_rank)
        write_json_atomic(Path(self.path) / VALUES, {"files": files, "state": self.values})
        os.replace(self.path, self.to)
        folder = os.open(self.to.parent, os.O_RDONLY)  # the new name is stored in the folder
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.then()


# --------------------------------------------------------------------------------------------------
# the command


def in_memory(path: Path) -> dict[str, Any]:
    """The dictionary of a checkpoint, plain or sharded, with all of its tensors in memory."""
    state = read_checkpoint(path)
    return _whole(state | {"model": dict(state["model"])})


def _whole(value: Any) -> Any:
    if isinstance(value, Stored):
        return value.whole()
    if isinstance(value, dict):
        return {key: _whole(entry) for key, entry in value.items()}
    return [_whole(entry) for entry in value] if isinstance(value, list) else value


def run(argv: list[str] | None) -> None:
    parser = Parser(
        prog="python -m training.distributed.sharded_checkpoint",
        description="Convert a sharded checkpoint to a plain one, and a plain one to a sharded one.",
        allow_abbrev=False,
    )
    told = "checkpoint_<step>.pt, or RUN for its newest; a file becomes a folder, and a folder a file"
    parser.add_argument("--checkpoint", required=True, metavar="CKPT", help=told)
    told = "name of the new checkpoint; keep the name checkpoint_<step>.pt to continue the run from it"
    parser.add_argument("--output", required=True, metavar="CKPT", help=told)
    args = parser.parse_args(argv)
    path, output = find_checkpoint(args.checkpoint, say), Path(args.output)
    if output.exists() or not output.absolute().parent.is_dir():
        why = "it exists" if output.exists() else "its folder does not exist"
        raise ValueError(f"--output must be a new name in a folder that exists, got {output}, and {why}")
    state = in_memory(path)
    if is_sharded(path):
        with atomic_write(output) as file:
            torch.save(state, file)
    else:
        write(output, state)
    say(f"wrote {output}")


def main(argv: list[str] | None = None) -> int:
    """Return the exit code; see common/script.py."""
    return exit_code("training.distributed.sharded_checkpoint", lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
