"""Token files: documents as ids on disk, read by memory map.

A folder has tokens.json and, for each shard of a split, two .npy files, whose headers carry dtype
and size: SPLIT_00000.tokens.npy, the ids of its documents one after another without end-of-text
(uint16 if the vocabulary fits, else uint32), and SPLIT_00000.ends.npy, int64, where each one ends.
"""

import contextlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from architecture.tokenizer import tokenizer_state
from common.files import atomic_write, write_json_atomic, writing
from data.documents import IndexedSource

META = "tokens.json"
FORMAT = "nano-gpt-oss tokens 1"
SHARD_TOKENS = 2**24


class TokenSource(IndexedSource):
    """One split of a token folder; a document is an array of ids."""

    def __init__(self, folder: Path, meta: dict, split: str):
        self.name, self._meta = folder.name, meta
        self._tokens, self._ends = [], []
        for shard in meta["splits"][split]["shards"]:
            name = shard["name"]
            tokens, ends = _map(folder / f"{name}.tokens.npy"), _map(folder / f"{name}.ends.npy")
            for kind, array, size in (("tokens", tokens, "tokens"), ("ends", ends, "documents")):
                if array.ndim != 1 or array.dtype.kind not in "iu" or len(array) != shard[size]:
                    raise _damaged(folder, f"{name}.{kind}.npy is not {shard[size]} whole numbers")
            if len(ends) and (ends[-1] != len(tokens) or (np.diff(ends, prepend=0) < 0).any()):
                raise _damaged(folder, f"{name}.ends.npy does not divide its tokens")
            self._tokens.append(tokens)
            self._ends.append(ends)
        # The index of the first document of each shard.
        self._starts = np.cumsum([0] + [len(ends) for ends in self._ends])

    def __len__(self):
        return int(self._starts[-1])

    def __getitem__(self, index):
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        position, ends = index - self._starts[shard], self._ends[shard]
        ids = self._tokens[shard][ends[position - 1] if position else 0 : ends[position]]
        if ids.max(initial=0) >= self._meta["n_vocab"]:
            raise _damaged(
                self.name, f"document {index} has the id {ids.max()} of {self._meta['n_vocab']}"
            )
        return np.asarray(ids)

    def check_tokenizer(self, tokenizer):
        state, saved = tokenizer_state(tokenizer), self._meta["tokenizer"]
        if state["sha256"] != saved["sha256"]:
            raise ValueError(
                f"{self.name} was prepared with tokenizer {saved['name']} (sha256 {saved['sha256'][:12]}), but this "
                f"run uses {state['name']} ({state['sha256'][:12]}); give that one with --tokenizer, or prepare again"
            )


class TokenFolderWriter:
    """Writes a token folder: `add` documents split by split, then `finish`.

    Everything goes to FOLDER.tokens-partial, which `finish` renames, so that a folder under its own
    name is always whole; an error removes it, what a killed writer left is removed by the next one.
    Raises CannotWrite for a full or read-only disk.
    """

    def __init__(self, folder: Path, tokenizer, *, shard_tokens: int = SHARD_TOKENS):
        if folder.exists():
            raise ValueError(f"{folder} exists already; give another --out_dir, or remove it first")
        state = tokenizer_state(tokenizer)
        self._folder, self._shard_tokens = folder, shard_tokens
        self._partial = folder.with_name(folder.name + ".tokens-partial")
        self._dtype = np.uint16 if tokenizer.n_vocab <= 2**16 else np.uint32
        self._meta = {
            "format": FORMAT,
            "tokenizer": {key: state[key] for key in ("name", "sha256")},
            "n_vocab": tokenizer.n_vocab,
            "splits": {},
        }
        shutil.rmtree(self._partial, ignore_errors=True)
        with writing(self._partial):
            self._partial.mkdir(parents=True)

    def write_split(self, split: str, documents) -> dict:
        """Write all documents of a split, sequences of ids; returns its totals.

        Holds one shard in memory.
        """
        totals = self._meta["splits"][split] = {"documents": 0, "tokens": 0, "shards": []}
        shard, size = [], 0
        with self._removed_if_it_fails():
            for document in documents:
                shard.append(np.asarray(document, dtype=self._dtype))
                size += len(document)
                if size >= self._shard_tokens:
                    self._write_shard(split, shard)
                    shard, size = [], 0
            if shard:
                self._write_shard(split, shard)
        return totals

    def finish(self) -> None:
        with self._removed_if_it_fails(), writing(self._folder):
            write_json_atomic(self._partial / META, self._meta)
            self._partial.rename(self._folder)

    @contextlib.contextmanager
    def _removed_if_it_fails(self):
        try:
            yield
        except BaseException:  # it would not be used again, and may be what fills the disk
            shutil.rmtree(self._partial, ignore_errors=True)
            raise

    def _write_shard(self, split, documents):
        totals = self._meta["splits"][split]
        name = f"{split}_{len(totals['shards']):05d}"
        ids = np.concatenate(documents)
        ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
        for kind, array in (("tokens", ids), ("ends", ends)):
            with atomic_write(self._partial / f"{name}.{kind}.npy") as file:
                # to a real file numpy writes past Python, and does not say why that failed
                np.save(SimpleNamespace(write=file.write), array)
        totals["shards"].append({"name": name, "tokens": len(ids), "documents": len(ends)})
        totals["tokens"] += len(ids)
        totals["documents"] += len(ends)


def is_token_folder(folder: Path) -> bool:
    return (folder / META).is_file()


def open_token_folder(folder: Path, split: str) -> TokenSource:
    """One split of a folder that a TokenFolderWriter finished."""
    try:
        meta = json.loads((folder / META).read_bytes())
    except ValueError as error:
        raise _damaged(folder, f"{META} is not JSON") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ValueError(
            f"{folder / META} must say format {FORMAT!r}; prepare the folder with python -m data.prepare"
        )
    _require_description(folder, meta, split)
    return TokenSource(folder, meta, split)


def _require_description(folder: Path, meta: dict, split: str) -> None:
    """ValueError unless tokens.json describes the split in the way that finish() writes it."""
    wanted = [
        (meta, "n_vocab", int),
        (meta, "tokenizer", dict),
        (meta.get("tokenizer"), "name", str),
        (meta.get("tokenizer"), "sha256", str),
        (meta, "splits", dict),
        (meta.get("splits"), split, dict),
    ]
    for place, key, kind in wanted:
        if not isinstance(place, dict) or type(place.get(key)) is not kind:
            raise _damaged(folder, f"{META} has no {key} that is a {kind.__name__}")
    shards = meta["splits"][split].get("shards")
    kinds = {"name": str, "tokens": int, "documents": int}
    if not isinstance(shards, list) or not all(
        isinstance(shard, dict) and all(type(shard.get(k)) is kind for k, kind in kinds.items())
        for shard in shards
    ):
        raise _damaged(folder, f"{META} does not list the shards of {split}")


def _map(path):
    try:
        return np.load(path, mmap_mode="r")
    except Exception as error:  # any: numpy reads the header as Python, and says what that says
        raise _damaged(path.parent, f"{path.name} cannot be read") from error


def _damaged(folder, what):
    return ValueError(
        f"token folder {folder} is damaged: {what}; prepare it again with python -m data.prepare"
    )
