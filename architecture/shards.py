"""The format of a sharded checkpoint: a folder of safetensors files, with checkpoint.json for what is no tensor.

    checkpoint_<step>.pt/     named as a plain checkpoint, so that one step has one checkpoint
        checkpoint.json       the dictionary of a plain checkpoint; {"!tensor": NAME} stands for a tensor
        shard-*.safetensors   the tensors that one rank wrote

torch.distributed.checkpoint reads and writes the tensors, each rank its own part. Its default reader unpickles
a file .metadata, which can run code; only its reader of safetensors is used here. Everything is verified:
checkpoint.json by its seal, and the other files by the sizes and CRC-32 that it holds.

Any number of processes can read what any other number has written.
"""

from __future__ import annotations

import contextlib
import math
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.files import read_json, write_json_atomic

VALUES = "checkpoint.json"
LARGE = ("model.", "optimizers.")  # names of the tensors that are read one by one, when they are needed
AT_ONCE = 2**24  # bytes that are read together to compute a checksum


class Stored(NamedTuple):
    """A tensor of a sharded checkpoint that is still in its files."""

    shape: torch.Size
    dtype: torch.dtype
    read_into: Callable[[torch.Tensor], None]  # reads the part that a DTensor holds here, or all of a tensor

    def whole(self) -> torch.Tensor:
        target = torch.empty(self.shape, dtype=self.dtype)
        self.read_into(target)
        return target


def is_sharded(path: str | Path) -> bool:
    return (Path(path) / VALUES).is_file()


def read(path: Path, part: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """The dictionary of a checkpoint; the tensors of the model and of its optimizers are Stored.

    The files are verified first.  part: (number, of): every `of`-th of them, as other processes verify the others.

    Raises errors of many kinds for a folder that is damaged or foreign; see common.files.reading.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    values = read_json(path / VALUES)
    verify(path, values["files"], part)
    reader = HuggingFaceStorageReader(str(path))
    metadata = reader.read_metadata()
    reader.read_metadata = lambda: metadata  # each load would read it again
    tensors = {name: _stored(reader, name, held) for name, held in metadata.state_dict_metadata.items()}
    return _joined(values["state"], tensors)


def change_value(path: Path, key: str, value: Any) -> None:
    """Replace a value without tensors in the dictionary of a checkpoint."""
    values = read_json(path / VALUES)
    values["state"][key] = separated(value, key, {})
    write_json_atomic(path / VALUES, values)


def verify(path: Path, files: dict[str, Any], part: tuple[int, int]) -> None:
    """ValueError unless the safetensors files of a folder are those in `files`, {name: [bytes, CRC-32]}."""
    there = {file.name for file in path.glob("*.safetensors")}
    if there != files.keys():
        raise ValueError(f"its file {min(there ^ files.keys())} is missing or does not belong to it")
    mine = sorted(files)[part[0] :: part[1]]
    with ThreadPoolExecutor() as threads:
        for name, found in zip(mine, threads.map(lambda name: checksum(path / name), mine)):
            if found != files[name]:
                raise ValueError(f"its file {name} is damaged")


def checksum(file: Path) -> list[int]:
    """[bytes, CRC-32] of a file."""
    size = crc = 0
    with open(file, "rb") as opened:
        while block := opened.read(AT_ONCE):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def _stored(reader: Any, name: str, held: Any) -> Stored:
    """held: torch's TensorStorageMetadata. Its size is as large as the parts say, so parts must fill it."""
    if sum(math.prod(chunk.sizes) for chunk in held.chunks) != math.prod(held.size):
        raise ValueError(f"its tensor {name} is not whole")

    def read_into(target: torch.Tensor) -> None:
        from torch.distributed import checkpoint

        with warnings.catch_warnings(), raising_the_cause():
            warnings.simplefilter("ignore")  # torch warns that no other process takes part
            checkpoint.load({name: target.detach()}, storage_reader=reader, no_dist=True)

    return Stored(held.size, held.properties.dtype, read_into)


def held_here(tensor: torch.Tensor) -> tuple[torch.Tensor, slice]:
    """The values of a tensor that this rank holds, and which rows of the whole tensor these are.

    They are all rows, unless it is a DTensor split over its first axis. A change of the values changes the tensor.
    """
    if not hasattr(tensor, "device_mesh"):
        return tensor, slice(None)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    place = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    (rows, *others), (first, *_) = place
    assert others == list(tensor.shape[1:]), "only the first axis is split"
    return tensor.to_local(), slice(first, first + rows)


@contextlib.contextmanager
def raising_the_cause() -> Iterator[None]:
    """Raise what failed in place of torch's CheckpointException, which is no Exception and passes all handlers."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise cause from error


def separated(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """A value as JSON can hold it. Its tensors are put into `tensors`, named by their place.

    Lists, dictionaries and plain values stay; the rest becomes a dictionary with one key that begins with "!".
    """
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"!tensor": name}
    if isinstance(value, dict):
        parts = [
            (key, separated(entry, f"{name}.{key}".lstrip("."), tensors)) for key, entry in value.items()
        ]
        plain = all(isinstance(key, str) and not key.startswith("!") for key in value)
        return dict(parts) if plain else {"!pairs": parts}
    if isinstance(value, list | tuple):
        parts = [separated(entry, f"{name}.{number}", tensors) for number, entry in enumerate(value)]
        return parts if isinstance(value, list) else {"!tuple": parts}
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold")


def _joined(value: Any, tensors: dict[str, Stored]) -> Any:
    """The value that `separated` took apart."""
    if isinstance(value, list):
        return [_joined(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    match list(value.items()):
        case [("!tensor", name)]:
            return tensors[name] if name.startswith(LARGE) else tensors[name].whole()
        case [("!pairs", parts)]:
            return {key: _joined(entry, tensors) for key, entry in parts}
        case [("!tuple", parts)]:
            return tuple(_joined(entry, tensors) for entry in parts)
    return {key: _joined(entry, tensors) for key, entry in value.items()}
