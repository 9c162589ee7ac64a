"""Token files: documents as ids on disk. Each block is verified on its first read.

A folder has tokens.json and two .npy files for each shard of a split. SPLIT_00000.tokens.npy has the ids of
its documents one after another, without end-of-text, as uint16 if the vocabulary fits, else as uint32.
SPLIT_00000.ends.npy has the position where each document ends, as int64. tokens.json has their sizes and a
sha256 of each block of each file, a checksum of its own (write_json_atomic), and the identity of
the documents of each split.
"""

import contextlib
import hashlib
import json
import os
import re
import weakref
from pathlib import Path

import numpy as np

from architecture.tokenizer import tokenizer_state
from common.files import (
    atomic_write,
    lock_file,
    read_json,
    reading,
    write_json_atomic,
    writing,
)
from data.documents import IndexedSource, identity_of
from data.files import version

META = "tokens.json"
FORMAT = "nano-gpt-oss tokens 2"
LOCK = ".lock"
SHARD_TOKENS = 2**24
# Documents are read in a random order, so the first batch verifies about one block per document, in 0.25 ms
# each. sha256 hashes 1.1 GB/s on our CPU (blake2b 0.5, CRC-32 2.0), and no two different blocks with the same
# sha256 are known.
BLOCK_BYTES = 2**18
HEADER_BYTES = 128
PREPARE_AGAIN = "prepare it again with python -m data.prepare"


class TokenFile:
    """An .npy file of a token folder, as an array that is read by slices.

    It is read and not mapped into memory, because a process that touches the map of a file that was cut off
    is killed by SIGBUS.

    count: the number of elements.  digests: the sha256 of each block.
    Raises ValueError if the file, or a block on its first read, is not what was written, and if another file
    has its name since.
    """

    def __init__(self, path: Path, dtype: type, count: int, digests: list[str]):
        self._path, self._dtype, self._digests, self._verified = path, np.dtype(dtype), digests, set()
        if not path.is_file():  # a pipe would be waited for
            raise ValueError(f"{path.name} is missing")
        with open(path, "rb") as file:
            stat, header = os.fstat(file.fileno()), file.read(HEADER_BYTES)
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._version = version(stat)
        size = HEADER_BYTES + count * self._dtype.itemsize
        if stat.st_size != size or header != _header(self._dtype, count):
            raise ValueError(f"{path.name} does not hold {count} elements of type {self._dtype}")

    def __getitem__(self, part: slice) -> np.ndarray:
        """Return the elements from part.start to part.stop. Both must be given."""
        first, end = (HEADER_BYTES + n * self._dtype.itemsize for n in (part.start, part.stop))
        try:
            for block in range(first // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
                if block not in self._verified:
                    self._verify(block)
            content = os.pread(self._descriptor, end - first, first)
        finally:
            if not self._path.exists() or version(self._path.stat()) != self._version:
                raise ValueError(f"{self._path.name} changed while it was being read")
        return np.frombuffer(content, self._dtype)

    def _verify(self, block):
        start = block * BLOCK_BYTES
        content = os.pread(self._descriptor, BLOCK_BYTES, start)
        if hashlib.sha256(content).hexdigest() != self._digests[block]:
            raise ValueError(
                f"the {len(content):,} bytes of {self._path.name} from byte {start:,} are not as written"
            )
        self._verified.add(block)


class TokenSource(IndexedSource):
    """One split of a token folder. A document is a (n,) array of ids, uint16 or uint32."""

    def __init__(self, folder: Path, meta: dict, split: str):
        self.name, self._folder, self._tokenizer = folder.name, folder, meta["tokenizer"]
        self._n_vocab = meta["n_vocab"]
        self._tokens, self._ends = [], []
        about = meta["splits"][split]
        for number, shard in enumerate(about["shards"]):
            name, digests, documents = _shard_name(split, number), shard["sha256"], shard["documents"]
            path, kind = folder / f"{name}.tokens.npy", _id_type(meta["n_vocab"])
            self._tokens.append(TokenFile(path, kind, shard["tokens"], digests["tokens"]))
            ends = TokenFile(folder / f"{name}.ends.npy", np.int64, documents, digests["ends"])
            self._ends.append(ends[0:documents].copy())
        # The index of the first document of each shard, then the number of documents.
        self._starts = np.cumsum([0] + [len(ends) for ends in self._ends])
        content = json.dumps([shard["sha256"] for shard in about["shards"]]).encode()
        # Folders of older versions do not say what they were made from.
        self.identity = about.get("identity") or identity_of(len(self), content)
        ours = re.compile(r"\..*|.*\.npy|tokens\.json")
        self.not_read = tuple(sorted(p.name for p in folder.iterdir() if not ours.fullmatch(p.name)))

    def __len__(self):
        return int(self._starts[-1])

    def __getitem__(self, index):
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        position, ends = index - self._starts[shard], self._ends[shard]
        start, end = int(ends[position - 1]) if position else 0, int(ends[position])
        with _reading(self._folder):
            ids = self._tokens[shard][start:end]
            if len(ids) and ids.max() >= self._n_vocab:
                raise ValueError(f"document {index:,} has id {ids.max()}, but n_vocab is {self._n_vocab}")
            return ids

    def check_tokenizer(self, tokenizer):
        state, saved = tokenizer_state(tokenizer), self._tokenizer
        if state["sha256"] != saved["sha256"]:
            raise ValueError(
                f"{self.name} was prepared with tokenizer {saved['name']} (sha256 {saved['sha256'][:12]}), "
                f"but this run uses {state['name']} ({state['sha256'][:12]}); use the first with "
                "--tokenizer, or prepare again"
            )
        if self._n_vocab != tokenizer.n_vocab:
            raise ValueError(
                f"{self._folder / META} gives n_vocab {self._n_vocab!r:.40}, but tokenizer {saved['name']} has "
                f"{tokenizer.n_vocab} ids; {PREPARE_AGAIN}"
            )


class TokenFolderWriter:
    """Writes a token folder: call `write_split` for each split, then `finish`, all in `removed_if_it_fails`.

    All files go to FOLDER.tokens-partial, which `finish` renames, so a folder under its final name is
    complete. An error removes the partial folder. The next writer removes what a killed one left. Raises
    ValueError while another process writes the same folder, and CannotWrite if the disk is full or read-only.
    """

    def __init__(self, folder: Path, tokenizer, *, shard_tokens: int = SHARD_TOKENS):
        _require_new(folder)
        state = tokenizer_state(tokenizer)
        self._folder, self._shard_tokens = folder, shard_tokens
        self._partial = folder.with_name(folder.name + ".tokens-partial")
        self._dtype = _id_type(tokenizer.n_vocab)
        self._meta = {
            "format": FORMAT,
            "tokenizer": {key: state[key] for key in ("name", "sha256")},
            "n_vocab": tokenizer.n_vocab,
            "splits": {},
        }
        with writing(self._partial):
            self._lock = lock_file(
                self._partial / LOCK,
                lambda owner: ValueError(
                    f"data.prepare (process {owner}) is already writing {folder}; wait for it, or choose another "
                    "--out_dir"
                ),
            )
        with self.removed_if_it_fails(), writing(self._partial):
            _require_new(folder)  # again, since another writer may have finished before we got the lock
            self._remove_shards()

    def write_split(self, split: str, documents, identity: str | None = None) -> dict:
        """Write all documents of a split, each a sequence of ids, and return the totals of the split.

        identity: that of the source of the documents.  Holds one shard in memory.
        """
        totals = {"documents": 0, "tokens": 0, "shards": [], "identity": identity}
        self._meta["splits"][split] = totals
        shard, size = [], 0
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
        with writing(self._folder):
            write_json_atomic(self._partial / META, self._meta)
            self._partial.rename(self._folder)
            (self._folder / LOCK).unlink()
        self._lock.close()

    @contextlib.contextmanager
    def removed_if_it_fails(self):
        """Wraps all work up to `finish`: an error in it removes the partial folder."""
        try:
            yield
        except BaseException:  # nothing reads the partial folder again, and it may fill the disk
            with contextlib.suppress(OSError):
                self._remove_shards()
                (self._partial / LOCK).unlink()  # last: from here on the next writer may begin
                self._partial.rmdir()
            self._lock.close()
            raise

    def _remove_shards(self):
        for path in self._partial.iterdir():
            if path.name != LOCK:
                path.unlink()

    def _write_shard(self, split, documents):
        totals = self._meta["splits"][split]
        name = _shard_name(split, len(totals["shards"]))
        ids = np.concatenate(documents)
        ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
        shard = {"name": name, "tokens": len(ids), "documents": len(ends), "sha256": {}}
        for kind, array in (("tokens", ids), ("ends", ends)):
            content = _header(array.dtype, len(array)) + array.tobytes()
            blocks = range(0, len(content), BLOCK_BYTES)
            shard["sha256"][kind] = [
                hashlib.sha256(content[start : start + BLOCK_BYTES]).hexdigest() for start in blocks
            ]
            with atomic_write(self._partial / f"{name}.{kind}.npy") as file:
                file.write(content)
        totals["shards"].append(shard)
        totals["tokens"] += len(ids)
        totals["documents"] += len(ends)


def is_token_folder(folder: Path) -> bool:
    return (folder / META).is_file()


def open_token_folder(folder: Path, split: str) -> TokenSource:
    """Open one split of a token folder. Raises ValueError if the folder is not as it was written."""
    with _reading(folder):
        with reading(folder / META, "the contents of a token folder", way_out=PREPARE_AGAIN):
            meta = read_json(folder / META)
        if meta["format"] != FORMAT:
            raise ValueError(f"its format is {meta['format']!r:.60}, but this version reads {FORMAT!r}")
        return TokenSource(folder, meta, split)


def _reading(folder: Path) -> contextlib.AbstractContextManager[None]:
    return reading(folder, "a token folder", way_out=PREPARE_AGAIN)


def _require_new(folder: Path) -> None:
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose another --out_dir, or remove it first")


def _shard_name(split: str, number: int) -> str:
    return f"{split}_{number:05d}"


def _id_type(n_vocab: int) -> type:
    return np.uint16 if n_vocab <= 2**16 else np.uint32


def _header(dtype: np.dtype, count: int) -> bytes:
    """Return the header that numpy.save writes for `count` elements.

    A reader compares the header with the expected one and never parses it, so a damaged or foreign file
    cannot set the type or the size.
    """
    shape = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({count},), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + shape.ljust(117).encode() + b"\n"
