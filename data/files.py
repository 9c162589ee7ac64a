"""Documents in .txt, .jsonl and .parquet files: a scan finds them, the texts stay on disk."""

import os
import re
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.files import parse_json
from common.script import first_line
from data.documents import (
    MIN_VALIDATION_DOCUMENTS,
    VALIDATION_NAMES,
    IndexedSource,
    is_validation_document,
    no_such_column,
    too_few_validation_documents,
    well_formed,
)

SEPARATOR = b"<|endoftext|>"  # between the documents of a .txt file
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
TRAIN_WORDS = {"train", "training"}
VALIDATION_WORDS = set(VALIDATION_NAMES)
OTHER_WORDS = {"test"}
# Row groups of a parquet file are shuffled, then the documents of as many groups as fit in here:
# reading single documents in a random order would decode a whole group for each.
WINDOW_BYTES = 64 * 2**20
CHUNK_BYTES = 2**20
# English text takes four to five times its size in memory until it is a batch; enwik8, 100 MB of
# Wikipedia in one piece, is below this limit.
LARGEST_DOCUMENT = 2**28
LARGEST_ROW_GROUP = 2**31 - 1  # bytes that one Arrow array of text can hold
ROWS = 64  # a parquet file of 2 KB may hold a million texts of 8 KB: few are decoded at a time


def version(stat: os.stat_result) -> tuple[int, int]:
    """What stays the same as long as nobody writes to a file or puts another one in its place."""
    return stat.st_size, stat.st_mtime_ns


class DataFile:
    """A file of documents; where one is are two numbers, which `scan` gives.

    found: the version that the documents are of. Reading another one is a ValueError.
    """

    def __init__(self, path: Path, text_column: str, found: tuple[int, int]):
        self.path, self.text_column, self._found = path, text_column, found

    def scan(self) -> Iterator[tuple[int, int, str]]:
        """Where each document is and its text, in order."""
        raise NotImplementedError

    def require_unchanged(self, now: os.stat_result | None = None) -> None:
        if version(now or os.stat(self.path)) != self._found:
            raise ValueError(
                f"{self.path} changed while it was read; put back the file that it was, or start again with this one"
            )

    def _bytes(self, start: int, length: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(start)
            data = file.read(length)
            self.require_unchanged(os.fstat(file.fileno()))
            return data

    def _pieces(self, separator: bytes) -> Iterator[tuple[int, bytes]]:
        """Where the pieces between separators begin, and each one; the file is never read as a whole."""
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
    """A .txt file: documents separated by <|endoftext|>, without the blank space around them."""

    def scan(self):
        for start, data in self._pieces(SEPARATOR):
            if start == 0 and data.startswith(BYTE_ORDER_MARK):
                start, data = len(BYTE_ORDER_MARK), data[len(BYTE_ORDER_MARK) :]
            yield start, len(data), self._text(data, start)

    def read(self, start: int, length: int) -> str:
        return self._text(self._bytes(start, length), start)

    def _text(self, data, start):
        try:
            text = data.decode().strip()
        except UnicodeDecodeError as error:
            raise _not_utf8(f"{self.path}, byte {start + error.start}", error) from None
        return _text_value(text, f"{self.path}, byte {start}", self.text_column)


class JsonLinesFile(DataFile):
    """A .jsonl file: one object a line, the text under `text_column`."""

    def scan(self):
        for number, (start, line) in enumerate(self._pieces(b"\n"), start=1):
            if line.strip():
                yield start, len(line), self._text(line, f"{self.path}, line {number}")

    def read(self, start, length):
        return self._text(self._bytes(start, length), f"{self.path}, byte {start}")

    def _text(self, line, where):
        try:
            text = line.removeprefix(BYTE_ORDER_MARK).decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(where, error) from None
        try:
            record = parse_json(text)
        except ValueError as reason:
            raise ValueError(f"{where} is not JSON ({reason}); a .jsonl file has one object a line") from None
        if not isinstance(record, dict):
            raise ValueError(
                f"{where} must be an object with the text under {self.text_column!r}, but is {line[:40]!r}"
            )
        if self.text_column not in record:
            raise no_such_column(where, self.text_column, record)
        return _text_value(record[self.text_column], where, self.text_column)


class ParquetFile(DataFile):
    """A .parquet file: the text in the column `text_column`; a place is (row group, row)."""

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
                    yield group, row + at, self.text(column, at)
                row += len(column)

    def read_group(self, group: int):
        """The texts of a row group as an Arrow array."""
        import pyarrow

        try:
            return pyarrow.chunked_array(self._batches(group)).combine_chunks()
        finally:
            self.require_unchanged()

    def _batches(self, group):
        """The texts of a row group as Arrow arrays of a few rows."""
        import pyarrow

        rows, size = ROWS, 0
        if pyarrow.types.is_dictionary(self._file.schema_arrow.field(self.text_column).type):
            rows = LARGEST_ROW_GROUP  # stays small in memory, and each part has the dictionary
        try:
            for batch in self._file.iter_batches(rows, row_groups=[group], columns=[self.text_column]):
                size += batch.nbytes
                if size > LARGEST_ROW_GROUP:
                    raise ValueError(
                        f"row group {group} of {self.path} holds more than 2 GB of text; write the file again "
                        "with smaller row groups"
                    )
                yield batch.column(self.text_column)
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(
                f"row group {group} of {self.path} cannot be read: {first_line(error)}"
            ) from error

    def text(self, column, row):
        where = f"{self.path}, row {row} of a row group"
        try:
            return _text_value(column[row].as_py(), where, self.text_column)
        except UnicodeDecodeError as error:
            raise _not_utf8(where, error) from None

    @cached_property
    def _file(self):
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(self.path)
            file.schema_arrow.names  # decoded here: of a damaged file they are no text  # noqa: B018
            return file
        except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
            raise ValueError(f"{self.path} is not a whole parquet file: {first_line(error)}") from error


FORMATS = {".txt": TextFile, ".jsonl": JsonLinesFile, ".parquet": ParquetFile}


class FileIndex(NamedTuple):
    """Where the documents of some files are: (N,) arrays over those that are not empty."""

    file: np.ndarray  # int64, position of its file in the list
    first: np.ndarray  # int64, byte offset or row group
    second: np.ndarray  # int64, length in bytes or row
    size: np.ndarray  # int64, bytes of text
    validation: np.ndarray  # bool, what is_validation_document says
    skipped: int  # empty documents


class FileSource(IndexedSource):
    """The documents of files of one format, or those on one side of the hash rule.

    split: None takes every document.
    """

    def __init__(self, name: str, paths: list[Path], text_column: str, split: str | None = None):
        self.name = name
        found = tuple((path, version(path.stat())) for path in paths)
        self._files = _data_files(found, text_column)
        index = _scan_once(found, text_column)
        if split == "validation" and index.validation.sum() < MIN_VALIDATION_DOCUMENTS:
            raise too_few_validation_documents(name, index.validation.sum(), f"{len(index.file):,}")
        keep = slice(None) if split is None else index.validation == (split == "validation")
        self._index = FileIndex(*(column[keep] for column in index[:5]), index.skipped)
        self.skipped = index.skipped
        if len(self) == 0:
            raise ValueError(f"{name} has no document with text in it")
        self._groups = OrderedDict()  # parquet: (file, row group) -> texts, those read last
        self._groups_bytes = 0

    def __len__(self):
        return len(self._index.file)

    def __getitem__(self, index):
        number, first, second = (int(column[index]) for column in self._index[:3])
        file = self._files[number]
        if isinstance(file, ParquetFile):
            return file.text(self._row_group(number, first), second)
        return file.read(first, second)

    def order(self, generator):
        if not isinstance(self._files[0], ParquetFile):
            return super().order(generator)
        # Documents of one row group are neighbours in the index: a group begins where the place
        # changes.
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
        """The row group as an Arrow array, kept until newer ones fill twice a window."""
        if (number, group) not in self._groups:
            column = self._groups[number, group] = self._files[number].read_group(group)
            self._groups_bytes += column.nbytes
            while self._groups_bytes > 2 * WINDOW_BYTES and len(self._groups) > 1:
                self._groups_bytes -= self._groups.popitem(last=False)[1].nbytes
        return self._groups[number, group]


def open_files(path: Path, *, split: str, whole: bool, text_column: str) -> FileSource:
    """One split of a file or a folder of files.

    A folder whose file names say train and validation (or valid, val, dev) has these splits.
    Otherwise `whole` takes every document for the split, and without it the hash of the text
    decides.
    """
    if path.is_file():
        files = {"train": [path], "validation": []}
        if path.suffix not in FORMATS:
            raise ValueError(f"{path} must be a .txt, .jsonl or .parquet file, or a folder of them")
    elif not path.is_dir():
        raise ValueError(f"{path} must be a file or a folder; give a .txt, .jsonl or .parquet file")
    else:
        files = _files_by_split(path)
    for file in files["train"] + files["validation"]:
        if file.stat().st_size == 0:
            raise ValueError(f"{file} is empty; expected documents in it")
    if split == "validation" and files["validation"]:
        return FileSource(path.name, files["validation"], text_column)
    by_hash = not files["validation"] and not whole
    return FileSource(path.name, files["train"], text_column, split if by_hash else None)


def _files_by_split(folder):
    found = sorted(path for path in folder.iterdir() if path.suffix in FORMATS and path.is_file())
    formats = sorted({path.suffix for path in found})
    if not found:
        raise ValueError(f"{folder} has no .txt, .jsonl or .parquet file and no token files in it")
    if len(formats) > 1:
        raise ValueError(f"{folder} mixes {' and '.join(formats)} files; keep one format in a folder")
    words = {path: set(re.split("[^a-z]+", path.stem.lower())) for path in found}
    train = [path for path in found if words[path] & TRAIN_WORDS]
    validation = [path for path in found if words[path] & VALIDATION_WORDS]
    rest = [path for path in found if not words[path] & (TRAIN_WORDS | VALIDATION_WORDS | OTHER_WORDS)]
    if train and rest:
        raise ValueError(
            f"{folder} has files named for training ({train[0].name}) and one of unclear use "
            f"({rest[0].name}); put train, validation or test into its name, or move it away"
        )
    return {"train": train or rest or found, "validation": validation if train or rest else []}


def _data_files(found, text_column) -> list[DataFile]:
    return [FORMATS[path.suffix](path, text_column, seen) for path, seen in found]


@lru_cache(maxsize=2)  # the train and the validation split are two views of one scan
def _scan_once(found, text_column):
    columns = {name: array("q") for name in ("file", "first", "second", "size")}
    validation, skipped = array("b"), 0
    for number, file in enumerate(_data_files(found, text_column)):
        try:
            for first, second, text in file.scan():
                if not text or text.isspace():
                    skipped += 1
                    continue
                size = len(text.encode()) + 8  # what it takes as an Arrow array
                for name, value in zip(columns, (number, first, second, size), strict=True):
                    columns[name].append(value)
                validation.append(is_validation_document(text))
        finally:
            file.require_unchanged()
    arrays = [np.frombuffer(values, dtype=np.int64) for values in columns.values()]
    return FileIndex(*arrays, np.frombuffer(validation, dtype=np.bool_), skipped)


def _text_value(value, where, text_column):
    if value is None:
        return ""  # an empty document
    if not isinstance(value, str):
        raise ValueError(f"{where}: column {text_column!r} must hold text, but holds {type(value).__name__}")
    if len(value) > LARGEST_DOCUMENT:
        raise _too_large(where)
    return well_formed(value)


def _too_large(where):
    return ValueError(
        f"{where}: a document may have {LARGEST_DOCUMENT / 2**20:.0f} MB, and this one has more; cut it into several "
        f"(in a .txt file {SEPARATOR.decode()} stands between documents)"
    )


def _not_utf8(where, error):
    byte = error.object[error.start]
    return ValueError(f"{where} is not UTF-8 ({error.reason}, {byte:#04x}); convert the file to UTF-8")
