"""Mutations of a valid file as data, which print short, shrink well and always build the same bytes.

bytes   flip a bit; cut, insert or repeat a range; cut off the end
lines   repeat, drop or swap lines of text, which gives duplicate keys and lost records
tree    set, drop, rename or swap values of a JSON, YAML or checkpoint file
column  change the type, name, number, nulls or storage of the text column of a parquet file
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

from tests.stress.fuzzing.materials import read_tree, write_table, write_tree

MOST_STEPS = 3


class Tensor(NamedTuple):
    """A tensor as a value that prints. Odd strides and storages are in crafting.py."""

    shape: tuple[int, ...]
    dtype: str
    fill: float

    def build(self) -> torch.Tensor:
        return torch.full(self.shape, self.fill, dtype=torch.float64).to(getattr(torch, self.dtype))


class Mutant(NamedTuple):
    """A file of the materials after some steps. The case finds it under the same name."""

    file: str
    how: str  # bytes, lines, tree, column
    steps: tuple[tuple, ...]

    def build(self, materials: Path) -> bytes:
        path = materials / self.file
        if self.how == "tree":
            tree = read_tree(path)
            for step in self.steps:
                tree = _tree_step(tree, step)
            return write_tree(path.suffix, _plain(tree))
        if self.how == "column":
            return write_table(path, self.steps)
        content: Any = path.read_bytes()
        if self.how == "lines":
            content = content.splitlines(keepends=True)
        change = _line_step if self.how == "lines" else _byte_step
        for step in self.steps:
            content = change(content, step)
        return b"".join(content) if self.how == "lines" else content


class Raw(NamedTuple):
    """A file with arbitrary bytes."""

    file: str
    content: bytes

    def build(self, materials: Path) -> bytes:
        return self.content


class Made(NamedTuple):
    """A file of the right format with an arbitrary value."""

    file: str
    value: Any

    def build(self, materials: Path) -> bytes:
        return write_tree(Path(self.file).suffix, _plain(self.value))


# --------------------------------------------------------------------------------------------------
# odd values

# These lie on both sides of the limits of 32 bits, 64 bits and a float.
NUMBERS = (0, 1, -1, 2, 3, 7, 1000, 65_536, 10**6, 2**31 - 1, 2**31, 10**9, 10**12, 2**63 - 1, 2**63,
           10**30, 10**400, 0.5, -0.5, 1e-320, 1e15, 1e308, math.nan, math.inf, -math.inf)  # fmt: skip
WORDS = ("", " ", "none", "null", "true", "auto", "a,b", "0,1", ",", "\u00e9", "\u202e", "\U0001f600",
         "a\nb", "a\0b", "\x1b[31m", "%s", "{}", "-", "..", "x" * 300, "x" * 5000, "model.pt",
         "stories.jsonl", "run", "missing.jsonl", "1e3", "<|endoftext|>", "/dev/null")  # fmt: skip
INSERTED = (b"\0", b"\xff", b"\n", b"{", b"}", b"[" * 20_000, b"9" * 5000, b"-", b'"', b"1e999", b"NaN",
            b"null", b"\xef\xbb\xbf", b"\xed\xa0\x80")  # fmt: skip


def odd_values(*, tensors: bool = False) -> st.SearchStrategy[Any]:
    """Draw a value to put where another is expected."""
    leaves = [st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.none(), st.booleans()]
    leaves += [st.integers(-100, 100), st.text(max_size=6)]
    if tensors:
        shapes = st.sampled_from(((), (0,), (1,), (3,), (2, 3), (16, 16)))
        dtypes = st.sampled_from(("float32", "float64", "int64", "bool", "uint8", "bfloat16"))
        fills = st.sampled_from((0, 1, -1, 2**40, math.nan, math.inf))
        leaves.append(st.builds(Tensor, shapes, dtypes, fills))
    leaf = st.one_of(leaves)
    return st.one_of(leaf, st.lists(leaf, max_size=2), st.dictionaries(st.text(max_size=3), leaf, max_size=2))


# --------------------------------------------------------------------------------------------------
# strategies


@st.composite
def mutants(draw, materials: Path, file: str, hows: tuple[str, ...]) -> Mutant:
    """Draw a mutation of one file in one of the ways `hows`."""
    how = draw(st.sampled_from(hows))
    kinds = {"bytes": byte_steps, "lines": line_steps, "tree": tree_steps, "column": column_steps}
    step = kinds[how](materials / file)
    return Mutant(file, how, tuple(draw(st.lists(step, min_size=1, max_size=MOST_STEPS))))


def byte_steps(path: Path) -> st.SearchStrategy[tuple]:
    size = path.stat().st_size
    edge = min(size, 300)  # headers and footers lie there
    places = st.one_of(st.integers(0, size - 1), st.integers(0, edge - 1), st.integers(size - edge, size - 1))
    lengths = st.one_of(st.integers(1, 8), st.integers(1, max(1, size // 2)))
    inserted = st.one_of(
        st.binary(min_size=1, max_size=8),
        st.text(min_size=1, max_size=4).map(lambda text: text.encode(errors="surrogatepass")),
        st.sampled_from(INSERTED),
    )
    return st.one_of(
        st.tuples(st.just("flip"), places, st.integers(0, 7)),
        st.tuples(st.just("cut"), places, lengths),
        st.tuples(st.just("put"), places, inserted),
        st.tuples(st.just("again"), places, lengths),
        st.tuples(st.just("end"), places),
    )


def line_steps(path: Path) -> st.SearchStrategy[tuple]:
    lines = st.integers(0, max(0, path.read_bytes().count(b"\n") - 1))
    return st.one_of(
        st.tuples(st.just("again"), lines),
        st.tuples(st.just("drop"), lines),
        st.tuples(st.just("swap"), lines, lines),
    )


def tree_steps(path: Path) -> st.SearchStrategy[tuple]:
    found = _paths(read_tree(path))
    groups: dict[Any, list[tuple]] = {}  # so that each section is equally likely
    for place in found:
        groups.setdefault(place[0], []).append(place)
    places = st.one_of([st.sampled_from(group) for group in groups.values()])
    return st.one_of(
        st.tuples(st.just("set"), places, odd_values(tensors=path.suffix == ".pt")),
        st.tuples(st.just("drop"), places),
        st.tuples(st.just("rename"), places, st.sampled_from(("x", "", 7, "step", "lr"))),
        st.tuples(st.just("swap"), places, places),
    )


def column_steps(path: Path) -> st.SearchStrategy[tuple]:
    types = "int64 float64 bool binary large_string dictionary list struct null timestamp broken_utf8".split()
    return st.one_of(
        st.tuples(st.just("type"), st.sampled_from(types)),
        st.tuples(st.just("name"), st.sampled_from(("Text", "", "id", "text\n", "\u00e9"))),
        st.tuples(st.just("nulls"), st.integers(1, 5)),
        st.tuples(st.just("twice"), st.just("text")),
        st.tuples(st.just("rows"), st.sampled_from((0, 1, 40))),
        st.tuples(st.just("codec"), st.sampled_from(("none", "gzip", "zstd", "brotli", "lz4"))),
    )


def _paths(tree: Any, front: tuple = ()) -> list[tuple]:
    found = []
    for key, value in entries(tree)[:40]:
        found += [(*front, key), *_paths(value, (*front, key))]
    return found


def entries(tree: Any) -> list[tuple[Any, Any]]:
    """Return the keys and values of a container, [] for anything else."""
    if isinstance(tree, dict):
        return list(tree.items())
    return list(enumerate(tree)) if isinstance(tree, list | tuple) else []


# --------------------------------------------------------------------------------------------------
# steps


def _byte_step(content: bytes, step: tuple) -> bytes:
    name, place, *more = step
    place = min(place, max(0, len(content) - 1))
    if not content:
        return content
    if name == "flip":
        return content[:place] + bytes([content[place] ^ 1 << more[0]]) + content[place + 1 :]
    if name == "cut":
        return content[:place] + content[place + more[0] :]
    if name == "put":
        return content[:place] + more[0] + content[place:]
    if name == "again":
        return content[: place + more[0]] + content[place:]
    return content[:place]


def _line_step(lines: list[bytes], step: tuple) -> list[bytes]:
    name, *places = step
    lines, places = list(lines), [min(place, len(lines) - 1) for place in places]
    if not lines:
        return lines
    if name == "again":
        lines.insert(places[0], lines[places[0]])
    elif name == "drop":
        del lines[places[0]]
    else:
        a, b = places
        lines[a], lines[b] = lines[b], lines[a]
    return lines


def _tree_step(tree: Any, step: tuple) -> Any:
    """Apply a step. It changes nothing if an earlier step has removed its place."""
    name, place, *more = step
    try:
        old = at(tree, place)
        if name == "swap":
            return replaced(replaced(tree, place, at(tree, more[0])), more[0], old)
        if name == "set":
            return replaced(tree, place, more[0])
        holder = at(tree, place[:-1])
        if isinstance(holder, dict):
            if name == "rename":
                renamed = {more[0] if key == place[-1] else key: value for key, value in holder.items()}
                return replaced(tree, place[:-1], renamed)
            return replaced(tree, place[:-1], {k: v for k, v in holder.items() if k != place[-1]})
        kept = [value for number, value in enumerate(holder) if number != place[-1]]
        return replaced(tree, place[:-1], type(holder)(kept))
    except (KeyError, IndexError, TypeError):
        return tree


def at(tree: Any, place: tuple) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def replaced(tree: Any, place: tuple, value: Any) -> Any:
    if not place:
        return value
    first, *rest = place
    inner = replaced(tree[first], tuple(rest), value)
    if isinstance(tree, dict):
        return {key: inner if key == first else old for key, old in tree.items()}
    return type(tree)(inner if number == first else old for number, old in enumerate(tree))


def _plain(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.build()
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_plain(value) for value in tree)
    return tree
