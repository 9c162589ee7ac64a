"""Documents in .txt, .jsonl and .parquet files. A scan finds where they are; the texts stay on disk."""

import os
import re
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.files import decode_text, parse_json
from common.script import first_line, shown
from data.documents import (
    MIN_VALIDATION_DOCUMENTS,
    VALIDATION_NAMES,
    VALIDATION_PER_THOUSAND,
    IndexedSource,
    identity_of,
    no_such_column,
    text_digest,
    text_of,
    too_few_validation_documents,
)

SEPARATOR = b"<|endoftext|>"  # between the documents of a .txt file
BLANK = (
    b" \t\r\n\xef\xbb\xbf"  # what a blank line of .jsonl holds; the last three bytes are a byte order mark
)
# The words in a file name that put it into a split. No run reads a test file of a folder: it is for the
# user's own last measurement, and is read where --dataset or --val_dataset names it.
SPLIT_WORDS = {
    "train": {"train", "training"},
    "validation": set(VALIDATION_NAMES),
    "test": {"test", "tests", "testing"},
}
# The words in a file name that say that it is about the data and no part of it.
ABOUT_THE_DATA = {"readme", "license", "licence", "copying", "notice", "changelog", "citation"}
UNPACK = {".gz": "gunzip", ".zst": "unzstd", ".bz2": "bunzip2", ".xz": "unxz", ".zip": "unzip"}
# The row groups of a parquet file are shuffled first, then the documents of as many groups as fit into this
# window. Reading documents in a fully random order would decode a whole group for each.
WINDOW_BYTES = 64 * 2**20
CHUNK_BYTES = 2**20
# Until it is a batch, English text takes four to five times its size in memory. The limit is above enwik8,
# 100 MB of Wikipedia in one file.
LARGEST_DOCUMENT = 2**28
LARGEST_ROW_GROUP = 2**31 - 1  # bytes that one Arrow array of text can hold
DIGEST_BITS = 2**64 - 1  # how much of a text's digest is kept for each document
ROWS = 64  # decoded at a time, since a parquet file of 2 KB may hold a million texts of 8 KB


def version(stat: os.stat_result) -> tuple[int, int]:
    """Size and modification time, which change when a file is written to or replaced."""
    return stat.st_size, stat.st_mtime_ns


class DataFile:
    """A file of documents. Two numbers, which `scan` yields, say where a document is."""

    def __init__(self, path: Path, text_column: str):
        self.path, self.text_column = path, text_column

    def scan(self) -> Iterator[tuple[int, int, str]]:
        """Yield the place (two numbers) and the text of each document, in order."""
        raise NotImplementedError

    def _bytes(self, start: int, length: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(length)

    def _pieces(self, separator: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (start, piece) for the pieces between separators. The file is read in chunks."""
        start, rest = 0, b""
        with open(self.path, "rb") as file:
            while len(data := rest + file.read(max(CHUNK_BYTES, len(rest)))) > len(rest):
                *pieces, rest = data.split(separator)
                del data  # as large as the longest document
                for piece in pieces:
                    yield start, piece
                    start += len(piece) + len(separator)
                if len(rest) > LARGEST_DOCUMENT:
                    raise _too_large(f"{self.path}, byte {start}")
        if rest:
            yield start, rest


class TextFile(DataFile):
    """A .txt file: documents separated by <|endoftext|>, without leading and trailing white space."""

    def scan(self):
        for start, data in self._pieces(SEPARATOR):
            yield start, len(data), self._text(data, start)

    def read(self, start: int, length: int) -> str:
        return self._text(self._bytes(start, length), start)

    def _text(self, data, start):
        text = decode_text(data, lambda at: f"{self.path}, byte {start + at}").strip()
        return _text_value(text, f"{self.path}, byte {start}", self.text_column)


class JsonLinesFile(DataFile):
    """A .jsonl file: one object per line, with the text under `text_column`."""

    def scan(self):
        for number, (start, line) in enumerate(self._pieces(b"\n"), start=1):
            if line.strip(BLANK):
                yield start, len(line), self._text(line, f"{self.path}, line {number}")

    def read(self, start, length):
        return self._text(self._bytes(start, length), f"{self.path}, byte {start}")

    def _text(self, line, where):
        text = decode_text(line, lambda at: where)
        try:
            record = parse_json(text)
        except ValueError as reason:
            raise ValueError(
                f"{where} is not JSON ({reason}); a .jsonl file has one object per line"
            ) from None
        if not isinstance(record, dict):
            raise ValueError(
                f"{where} must be an object with the text under {self.text_column!r}, got {line[:40]!r}"
            )
        if self.text_column not in record:
            raise no_such_column(where, self.text_column, record)
        return _text_value(record[self.text_column], where, self.text_column)


class ParquetFile(DataFile):
    """A .parquet file: the text is in the column `text_column`. A place is (row group, row)."""

    def scan(self):
        file, columns = self._file, self._file.schema_arrow.names
        if self.text_column not in columns:
            raise no_such_column(str(self.path), self.text_column, columns)
        if columns.count(self.text_column) > 1:
            raise ValueError(
                f"{self.path} has {columns.count(self.text_column)} columns {self.text_column!r}; keep one"
            )
        for group in range(file.num_row_groups):
            row = 0
            for column in self._batches(group):
                for at in range(len(column)):
                    yield group, row + at, self.read(column, at)
                row += len(column)

    def read_group(self, group: int):
        """Return the texts of a row group as one Arrow array."""
        import pyarrow

        return pyarrow.chunked_array(self._batches(group)).combine_chunks()

    def _batches(self, group):
        """Yield the texts of a row group as Arrow arrays of a few rows."""
        import pyarrow

        rows, size = ROWS, 0
        if pyarrow.types.is_dictionary(self._file.schema_arrow.field(self.text_column).type):
            rows = LARGEST_ROW_GROUP  # indices are small, and every batch repeats the whole dictionary
        try:
            for batch in self._file.iter_batches(rows, row_groups=[group], columns=[self.text_column]):
                size += batch.nbytes
                if size > LARGEST_ROW_GROUP:
                    raise ValueError(
                        f"row group {group} of {self.path} has more than 2 GB of text; write the file again "
                        "with smaller row groups"
                    )
                yield batch.column(self.text_column)
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(
                f"row group {group} of {self.path} cannot be read: {first_line(error)}"
            ) from error

    def read(self, column, row):
        where = f"{self.path}, row {row} of a row group"
        try:
            return _text_value(column[row].as_py(), where, self.text_column)
        except UnicodeDecodeError as error:
            return decode_text(error.object, lambda at: where)  # raises, with the reason

    @cached_property
    def _file(self):
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(self.path)
            file.schema_arrow.names  # decodes the names, which fails for a damaged file  # noqa: B018
            return file
        except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
            raise ValueError(f"{self.path} is not a whole parquet file: {first_line(error)}") from error


FORMATS = {".txt": TextFile, ".jsonl": JsonLinesFile, ".parquet": ParquetFile}


class FileIndex(NamedTuple):
    """The places of the N documents of some files, without empty documents."""

    file: np.ndarray  # (N,) int64, index of the file
    first: np.ndarray  # (N,) int64, byte offset or row group
    second: np.ndarray  # (N,) int64, length in bytes or row
    size: np.ndarray  # (N,) int64, bytes in memory
    digest: np.ndarray  # (N,) uint64, of text_digest
    validation: np.ndarray  # (N,) int8, 1 where is_validation_document
    skipped: int  # number of empty documents


class FileSource(IndexedSource):
    """The documents of files of one format.

    split: "train" or "validation" takes the documents that the hash rule puts there, None takes all.
    """

    def __init__(self, name: str, paths: list[Path], text_column: str, split: str | None = None):
        self.name = name
        self._found = tuple((path, version(path.stat())) for path in paths)
        self._files = [FORMATS[_kind(path)](path, text_column) for path in paths]
        index = _scan_once(self._found, text_column)
        count, least = index.validation.sum(), MIN_VALIDATION_DOCUMENTS
        if split == "validation" and count < least or split == "train" and 0 < count == len(index.file):
            raise too_few_validation_documents(name, count, f"{len(index.file):,}")
        keep = slice(None) if split is None else index.validation == (split == "validation")
        self._index = FileIndex(*(column[keep] for column in index[:-1]), index.skipped)
        self.skipped, self.digests = index.skipped, self._index.digest
        self.identity = identity_of(len(self), self.digests.tobytes())
        if len(self) == 0:
            raise ValueError(f"{name} has no document with text in it")
        self._groups = OrderedDict()  # (file, row group) -> texts of a parquet file, the newest last
        self._groups_bytes = 0
        if isinstance(self._files[0], ParquetFile):
            groups = self._index.file * 2**32 + self._index.first
            self.shuffled_by = f"row group, {identity_of(len(self), groups.tobytes())}"

    def __len__(self):
        return len(self._index.file)

    def __getitem__(self, index):
        number, first, second = (int(column[index]) for column in self._index[:3])
        file, path = self._files[number], self._files[number].path
        try:
            if isinstance(file, ParquetFile):
                first = self._row_group(number, first)
            text = file.read(first, second)
            now = path, version(path.stat())  # also where a row group is still in memory
            if now != self._found[number] or text_digest(text) & DIGEST_BITS != int(self.digests[index]):
                raise ValueError("another content")
            return text
        except (OSError, ValueError, LookupError) as error:  # the scan has read the same text without one
            raise ValueError(
                f"{path} changed while it was being read, or can no longer be read; restore the original file, or "
                "start a new run"
            ) from error

    def order(self, generator):
        if not isinstance(self._files[0], ParquetFile):
            return super().order(generator)
        # The documents of a row group are neighbours in the index, so a group begins where the file or the
        # row group changes.
        changes = np.diff(self._index.file) | np.diff(self._index.first)
        starts = np.flatnonzero(np.append(True, changes))
        groups = np.split(np.arange(len(self)), starts[1:])
        sizes = np.add.reduceat(self._index.size, starts)
        order, window, window_bytes = [], [], 0
        for group in generator.permutation(len(groups)):
            if window and window_bytes + sizes[group] > WINDOW_BYTES:
                order.append(generator.permutation(np.concatenate(window)))
                window, window_bytes = [], 0
            window.append(groups[group])
            window_bytes += sizes[group]
        order.append(generator.permutation(np.concatenate(window)))
        return np.concatenate(order)

    def _row_group(self, number, group):
        """Return a row group as an Arrow array. It is kept until newer groups fill two windows."""
        if (number, group) not in self._groups:
            column = self._groups[number, group] = self._files[number].read_group(group)
            self._groups_bytes += column.nbytes
            while self._groups_bytes > 2 * WINDOW_BYTES and len(self._groups) > 1:
                self._groups_bytes -= self._groups.popitem(last=False)[1].nbytes
        return self._groups[number, group]


def open_files(path: Path, *, split: str, whole: bool, text_column: str) -> FileSource:
    """Open one split of a file or of a folder of files.

    A folder whose file names have the words of SPLIT_WORDS has these splits. In any other case the split has
    every document if `whole`, else those that the hash rule puts there.
    """
    if path.is_dir():
        files, not_read = _files_by_split(path)
    elif path.is_file() and _kind(path) in FORMATS:
        files, not_read = {"train": [path], "validation": []}, []
    else:
        raise ValueError(f"{path} must be a .txt, .jsonl or .parquet file, unpacked, or a folder of them")
    for file in files["train"] + files["validation"]:
        if file.stat().st_size == 0:
            raise ValueError(f"{file} is empty; give a file with documents, or remove it from the folder")
    own = split if files[split] else "train"
    if not files[own]:
        raise ValueError(
            f"{path} has no training files, only files named for validation or test, such as "
            f"{files['validation'][0].name}; to train on a file, name it with --dataset FILE"
        )
    if split == "train" and whole:  # the validation documents come from another dataset
        not_read += [file.name for file in files["validation"]]
    by_hash = not files["validation"] and not whole
    source = FileSource(path.name or str(path), files[own], text_column, split if by_hash else None)
    source.not_read = tuple(not_read)
    return source


def _files_by_split(folder):
    """Return the files of each split, and the names of all else in the folder. Raises ValueError if it is not
    clear which files are data, or of which split.
    """
    files, not_read = {"train": [], "validation": [], "test": [], "": []}, []
    for path in sorted(folder.iterdir()):
        words = set(re.split("[^a-z]+", re.sub("h[eo]ld[^a-z]out", "heldout", path.stem.lower())))
        splits = [split for split, names in SPLIT_WORDS.items() if words & names] or [""]
        hidden = path.name.startswith(".")  # ._NAME, with the attributes of NAME, comes from a Mac
        if _kind(path) in FORMATS and path.is_file() and not hidden and not words & ABOUT_THE_DATA:
            if len(splits) > 1:
                raise ValueError(
                    f"{path} names two splits, {' and '.join(splits)}; give it a name with one of these words"
                )
            files[splits[0]].append(path)
        elif not hidden or _kind(path) in FORMATS:
            unpacked = path.with_suffix("")
            if _kind(path) in UNPACK and _kind(unpacked) in FORMATS and not unpacked.exists():
                raise ValueError(
                    f"{path} is compressed, and only plain files are read; unpack it, for example with "
                    f"{UNPACK[_kind(path)]}, or move it away"
                )
            not_read.append(path.name + "/" * path.is_dir())
    train, validation, test, rest = files.values()
    found = train + validation + test + rest
    formats = sorted({_kind(path) for path in found})
    if not found:
        there = f", only {', '.join(shown(name) for name in not_read[:4])}" if not_read else ""
        raise ValueError(f"{folder} has no .txt, .jsonl or .parquet file and no token files{there}")
    if len(formats) > 1:
        raise ValueError(f"{folder} has {' and '.join(formats)} files; keep files of one format in a folder")
    if train and rest:
        raise ValueError(
            f"{folder} has files named for training, such as {train[0].name}, but {rest[0].name} names no "
            "split; put train, validation or test into its name, or move it away"
        )
    if not (train or rest or validation):
        return {"train": [], "validation": test}, not_read
    return {"train": train or rest, "validation": validation}, not_read + [path.name for path in test]


def _kind(path: Path) -> str:
    return path.suffix.lower()


@lru_cache(maxsize=2)  # the train and the validation split share one scan
def _scan_once(found, text_column):
    columns, skipped = [array(kind) for kind in "qqqqQb"], 0  # those of FileIndex
    for number, (path, _) in enumerate(found):
        for first, second, text in FORMATS[_kind(path)](path, text_column).scan():
            if not text or text.isspace():
                skipped += 1
                continue
            size, digest = len(text.encode()) + 8, text_digest(text)  # its bytes in an Arrow array
            held_out = digest % 1000 < VALIDATION_PER_THOUSAND
            row = number, first, second, size, digest & DIGEST_BITS, held_out
            for column, value in zip(columns, row, strict=True):
                column.append(value)
    return FileIndex(*(np.frombuffer(column, column.typecode) for column in columns), skipped)


def _text_value(value, where, text_column):
    text = text_of(value, where, text_column)
    if len(text) > LARGEST_DOCUMENT:
        raise _too_large(where)
    return text


def _too_large(where):
    return ValueError(
        f"{where}: a document has more than {LARGEST_DOCUMENT / 2**20:.0f} MB, the limit; cut it into "
        f"several (in a .txt file, {SEPARATOR.decode()} separates documents)"
    )
