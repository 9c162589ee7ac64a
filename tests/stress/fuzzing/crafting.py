"""Checkpoints with right checksums and one false part, and small files that unpack to gigabytes.

STRATEGIES[name] changes a state or writes a file. A Crafted always builds the same file.
"""

from __future__ import annotations

import pickle
import random
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.stress.fuzzing.cases import SAMPLE
from tests.stress.fuzzing.materials import NEWEST, RUN
from tests.stress.fuzzing.mutations import NUMBERS, WORDS, at, entries, replaced

HUGE = 2**40


class Crafted(NamedTuple):
    """A checkpoint of the samples, the strategy that changes it, and the seed of the place."""

    file: str
    strategy: str
    seed: int


def craft(made: Crafted, samples: Path, folder: Path) -> str:
    """Write the file into folder, a copy of the samples; return the place that was changed."""
    draw, path = random.Random(made.seed), folder / made.file
    state = torch.load(samples / made.file, weights_only=True)
    where, change = STRATEGIES[made.strategy]
    if where == "file":
        change(state, path)
        return "the file"
    place = a_place(state, draw, tensors=where == "tensor")
    old = at(state, place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors are deprecated
        value = change(old, state["model"]) if where == "tensor" else change(draw)
    if where == "board":
        place = ("tensorboard_dir",)
        state["train_config"] |= {"use_tensorboard": True}
    torch.save(replaced(state, place, value), path)
    return f"{place} = {value!r:.60}" if where != "tensor" else str(place)


def a_place(state: dict, draw: random.Random, *, tensors: bool) -> tuple:
    """Draw the place of a tensor or of a plain value. Each section of the state is equally likely."""
    found: dict[Any, list[tuple]] = {}
    for place, value in leaves(state):
        if isinstance(value, torch.Tensor) == tensors:
            found.setdefault(place[0], []).append(place)
    return draw.choice(found[draw.choice(sorted(found))])


def leaves(tree: Any, front: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Yield the place and the value of everything that is not a container."""
    if not isinstance(tree, dict | list | tuple):
        yield front, tree
    for key, value in entries(tree):
        yield from leaves(value, (*front, key))


# --------------------------------------------------------------------------------------------------
# tensors that replace tensor t; m: the tensors of the model


def one(t: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=t.dtype)


def limits(t: torch.Tensor) -> torch.finfo | torch.iinfo:
    return torch.finfo(t.dtype) if t.is_floating_point() else torch.iinfo(t.dtype)


def with_reversed_strides(t: torch.Tensor) -> torch.Tensor:
    turned = range(t.dim())[::-1]
    return t.permute(*turned).contiguous().permute(*turned)


def sharing(t: torch.Tensor, m: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a view of the memory of another tensor, or of a longer copy of t."""
    other = max(m.values(), key=torch.Tensor.numel).view(-1)
    if other.dtype != t.dtype or other.numel() <= t.numel():
        other = torch.cat([t.flatten(), t.flatten()])
    return other[1 : t.numel() + 1].view(t.shape)


TENSORS: dict[str, Callable[[torch.Tensor, dict], Any]] = {
    "expanded": lambda t, m: one(t).expand(t.shape),
    "transposed": lambda t, m: with_reversed_strides(t),
    "offset": lambda t, m: torch.cat([t.new_zeros(3), t.flatten()])[3:].view(t.shape),
    "shared": sharing,
    "huge": lambda t, m: one(t).expand(HUGE),
    "huge first axis": lambda t, m: one(t).expand(HUGE, *t.shape[1:]),
    "wrong shape": lambda t, m: t.new_zeros(*t.shape, 2),
    "one row less": lambda t, m: t[:-1].clone() if t.dim() else t.new_zeros(1),
    "zero-size": lambda t, m: t.new_empty(0),
    "zero-size axis": lambda t, m: t.new_empty(*t.shape, 0),
    "sparse": lambda t, m: t.to_sparse(),
    "meta": lambda t, m: t.to("meta"),
    "quantized": lambda t, m: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "requires_grad": lambda t, m: t.float().clone().requires_grad_(),
    "parameter": lambda t, m: torch.nn.Parameter(t.float()),
    "all of its largest": lambda t, m: torch.full_like(t, limits(t).max),
    "all of its least": lambda t, m: torch.full_like(t, limits(t).min),
    "not a number": lambda t, m: torch.full(t.shape, torch.nan),
    "nested list": lambda t, m: t.tolist(),
    "None": lambda t, m: None,
    "a string": lambda t, m: "a string",
    "a dict": lambda t, m: {"a": t},
    **{
        dtype: lambda t, m, dtype=dtype: t.to(getattr(torch, dtype))
        for dtype in ("int64", "bool", "complex64", "float16", "float64", "bfloat16", "uint8")
    },
}


# --------------------------------------------------------------------------------------------------
# plain values


def deep(draw: random.Random) -> Any:
    """Nest lists as deep as they can be written."""
    value: list = []
    for _ in range(200):
        value = [value]
    return value


BOARDS = "../escaped runs/../../escaped runs/.. runs/. /nowhere/runs run/escaped runs/a/b runs\0".split(" ")
BOARDS += ["runs/" + "x" * 300]
VALUES = (None, True, [], {}, (), [0] * 3, b"x", torch.zeros(3))


# --------------------------------------------------------------------------------------------------
# files


class Code:
    """An object that writes a file when it is unpickled."""

    def __reduce__(self):
        return exec, ("open('marker', 'w').close()",)


def write_code(state: dict, path: Path) -> None:
    torch.save(state | {"progress": Code()}, path)


def write_old_code(state: dict, path: Path) -> None:
    torch.save(state | {"progress": Code()}, path, _use_new_zipfile_serialization=False)


def write_bare_code(state: dict, path: Path) -> None:
    path.write_bytes(pickle.dumps(Code()))


def write_itself(state: dict, path: Path) -> None:
    """Write a state that contains itself."""
    state["progress"]["carry"] = state["data"]["source"] = state["train_config"]["lr"] = state
    torch.save(state, path)


def another_record(name: str) -> Callable[[dict, Path], None]:
    """Return a writer of a file with one more record of that name."""

    def write(state: dict, path: Path) -> None:
        torch.save(state, path)
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the name may exist already
            archive.writestr(name.format(root=path.stem), b"marker")

    return write


def write_deflated(state: dict, path: Path, megabytes: int = 64) -> None:
    """Write all records deflated, with another tensor of zeros of that size."""
    whole = path.with_suffix(".whole")
    state["model"]["zeros"] = torch.zeros(megabytes * 250_000)
    torch.save(state, whole)
    with (
        zipfile.ZipFile(whole) as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for name in old.namelist():
            with old.open(name) as content, new.open(name, "w", force_zip64=True) as record:
                shutil.copyfileobj(content, record, 2**20)
    whole.unlink()


def claim(size: int) -> Callable[[dict, Path], None]:
    """Return a writer of a file whose directory gives a wrong size for one tensor."""

    def write(state: dict, path: Path) -> None:
        torch.save(state, path)
        content = bytearray(path.read_bytes())
        place = content.rindex(b"PK\1\2", 0, content.rindex(b"/data/0"))
        struct.pack_into("<II", content, place + 20, size, size)
        path.write_bytes(content)

    return write


def write_other_pickle(state: dict, path: Path) -> None:
    """Write a pickle, with a right checksum, that asks for a storage larger than its record."""
    torch.save(state, path)
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    sizes = {len(content) // 4 for name, content in records.items() if "/data/" in name}
    size = max(sizes)  # the largest storage, in numbers of 4 bytes as the pickle has it
    name = next(name for name in records if name.endswith("data.pkl"))
    for code in (b"J" + struct.pack("<i", size), b"M" + struct.pack("<H", size % 2**16)):
        larger = b"J" + struct.pack("<i", 2**30)
        records[name] = records[name].replace(code, larger)
    with zipfile.ZipFile(path, "w") as new:
        for record, content in records.items():
            new.writestr(record, content)


FILES: dict[str, Callable[[dict, Path], None]] = {
    "code": write_code,
    "code in an old file": write_old_code,
    "code alone": write_bare_code,
    "itself": write_itself,
    "a record outside": another_record("../escaped"),
    "a record twice": another_record("{root}/data/0"),
    "the pickle twice": another_record("{root}/data.pkl"),
    "deflated": write_deflated,
    "a record of 2 GB": claim(2**31),
    "a record of nothing": claim(0),
    "a storage beyond its record": write_other_pickle,
}
STRATEGIES: dict[str, tuple[str, Callable]] = {
    **{name: ("tensor", change) for name, change in TENSORS.items()},
    "a number": ("plain", lambda draw: draw.choice(NUMBERS)),
    "a word": ("plain", lambda draw: draw.choice(WORDS)),
    "a value": ("plain", lambda draw: draw.choice(VALUES)),
    "deep lists": ("plain", deep),
    "tensorboard_dir": ("board", lambda draw: draw.choice(BOARDS)),
    **{name: ("file", change) for name, change in FILES.items()},
}


# --------------------------------------------------------------------------------------------------
# bombs


class Bomb(NamedTuple):
    """A small file that would unpack to gigabytes, and the command that reads it."""

    file: str
    make: Callable[[Path], None]
    program: str
    argv: tuple[str, ...]


def checkpoint_bomb(path: Path) -> None:
    """Write 13 MB that hold a tensor of 3 GB."""
    write_deflated(torch.load(path, weights_only=True), path, 3000)


def alias_bomb(path: Path) -> None:
    """Write a YAML file that stands for 9**9 words."""
    parts = ["&a [x, x, x, x, x, x, x, x, x]"]
    for name, before in zip("bcdefghi", "abcdefgh"):
        parts.append(f"&{name} [{', '.join([f'*{before}'] * 9)}]")
    path.write_text(f"arms: {{}}\nbudget: [{', '.join(parts)}]\n")


BOMBS = {
    "checkpoint": Bomb(NEWEST, checkpoint_bomb, "sample", ("--checkpoint", RUN, *SAMPLE)),
    "yaml of train.py": Bomb("recipe.yaml", alias_bomb, "train", ("--config", "recipe.yaml")),
    "yaml of ablate.py": Bomb("spec.yaml", alias_bomb, "ablate", ("spec.yaml", "--dry_run")),
}
