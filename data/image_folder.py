"""A folder of images with captions.jsonl, one document a line:

    {"image": "a.png", "text": "a cat on a mat"}
    {"image": ["a.png", "more/b.jpg"], "question": "Do both show a cat?", "answer": "no"}
    {"text": "a text without an image"}

captions_validation.jsonl, if it is there, is the validation split. Opening reads every file once, for the
identity of the data; an image is decoded when its document is read.
"""

import hashlib
from array import array
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from architecture.images import read_image
from common.files import decode_text, parse_json
from data.documents import (
    MIN_VALIDATION_DOCUMENTS,
    VALIDATION_PER_THOUSAND,
    IndexedSource,
    Pictured,
    identity_of,
    text_digest,
)
from data.files import BLANK, DataFile, version
from data.image_records import Words, words_of

CAPTIONS = {"train": "captions.jsonl", "validation": "captions_validation.jsonl"}


class Record(NamedTuple):
    names: list[str]  # the names of the images
    words: Words | None


class CaptionsFile(DataFile):
    """A file of captions. `scan` yields (start, length, line number, Record) of each line."""

    def scan(self):
        for number, (start, line) in enumerate(self._pieces(b"\n"), start=1):
            if line.strip(BLANK):
                yield start, len(line), number, self._record(line, number)

    def read(self, start: int, length: int, number: int) -> Record:
        return self._record(self._bytes(start, length), number)

    def where(self, number: int) -> str:
        return f"{self.path}, line {number}"

    def _record(self, line, number):
        where = self.where(number)
        try:
            record = parse_json(decode_text(line, lambda at: where))
        except ValueError as reason:
            raise ValueError(f"{where} is not JSON ({reason}); write one object per line") from None
        if not isinstance(record, dict):
            raise ValueError(f"{where} must be an object with an image and a text, got {line[:40]!r}")
        names = record.get("image")
        names = [] if names is None else names if isinstance(names, list) else [names]
        for name in names:
            self._require_inside(name, where)
        return Record(names, words_of(record, len(names), where, self.text_column))

    def _require_inside(self, name, where):
        folder = self.path.parent
        try:
            there = isinstance(name, str) and (folder / name).resolve().is_relative_to(folder.resolve())
        except (OSError, ValueError, RuntimeError):  # a name with a zero byte, a loop of links
            there = False
        if not there:
            raise ValueError(
                f"{where}: an image must be the path of a file inside {folder}, got {name!r:.80}; move the image "
                "there"
            )
        if not (folder / name).is_file():
            raise ValueError(f"{where}: there is no image {folder / name}; restore it, or remove the line")


class Index(NamedTuple):
    """The N documents of a captions file, without empty ones."""

    start: np.ndarray  # (N,) int64, byte of the line
    length: np.ndarray  # (N,) int64, bytes of the line
    number: np.ndarray  # (N,) int64, of the line
    digest: np.ndarray  # (N,) uint64, of words and images
    validation: np.ndarray  # (N,) int8, 1 where is_validation_document
    skipped: int  # number of empty documents


class ImageFolder(IndexedSource):
    """The documents of a captions file.

    split: "train" or "validation" takes the documents that the hash rule puts there, None takes all.
    """

    def __init__(self, path: Path, size: int, text_column: str, split: str | None):
        self.name = path.parent.name or str(path.parent)
        self._file, self._size = CaptionsFile(path, text_column), size
        index = _scan_once(path, text_column, version(path.stat()))
        keep = (
            np.ones(len(index.start), bool) if split is None else index.validation == (split == "validation")
        )
        found = int(keep.sum())
        if (
            split == "validation"
            and found < MIN_VALIDATION_DOCUMENTS
            or split == "train"
            and 0 == found < len(keep)
        ):
            raise ValueError(
                f"{path} has only {index.validation.sum()} of its {len(keep):,} documents for validation, by the "
                f"hash of their images, and at least {MIN_VALIDATION_DOCUMENTS} are needed there; write "
                f"{CAPTIONS['validation']} beside it, or give a second folder with --val_dataset FOLDER"
            )
        if found == 0:
            raise ValueError(f"{path} has no document with text in it; add lines to it")
        self._index = Index(*(column[keep] for column in index[:-1]), index.skipped)
        self.skipped, self.digests = index.skipped, self._index.digest
        self.identity = identity_of(len(self), self.digests.tobytes())

    def __len__(self):
        return len(self._index.start)

    def __getitem__(self, index):
        place = tuple(int(column[index]) for column in self._index[:3])
        try:
            record = self._file.read(*place)
            files = [(self._file.path.parent / name).read_bytes() for name in record.names]
            if record.words is None or _digest(record.words, map(text_digest, files)) != int(
                self.digests[index]
            ):
                raise ValueError("another content")
        except (OSError, ValueError) as error:  # the scan has read the same bytes without one
            raise ValueError(
                f"{self._file.where(place[2])}, or an image of it, changed while it was being read, or can no "
                "longer be read; restore the original file, or start a new run"
            ) from error
        if not files:
            return record.words.prompt + record.words.text
        where = self._file.where(place[2])
        named = zip(files, record.names)
        images = tuple(read_image(file, self._size, f"{name} of {where}") for file, name in named)
        return Pictured(images, *record.words, where)


def open_image_folder(folder: Path, *, split: str, whole: bool, size: int, text_column: str) -> ImageFolder:
    """Open one split of a folder. See open_files for `whole`."""
    paths = {split: folder / name for split, name in CAPTIONS.items()}
    own = split if paths[split].is_file() else "train"
    if not paths[own].is_file():
        raise ValueError(f"{folder} has no {CAPTIONS['train']}, which says what its images show; write one")
    by_hash = not whole and not paths["validation"].is_file()
    source = ImageFolder(paths[own], size, text_column, split if by_hash else None)
    read = {CAPTIONS[own]} if whole else set(CAPTIONS.values())
    source.not_read = tuple(sorted(path.name for path in folder.glob("*.jsonl") if path.name not in read))
    return source


@lru_cache(maxsize=2)  # both splits share one scan
def _scan_once(path, text_column, _version):
    columns, skipped, known = [array(kind) for kind in "qqqQb"], 0, {}
    for start, length, number, (names, words) in CaptionsFile(path, text_column).scan():
        if words is None:
            skipped += 1
            continue
        for name in names:
            if name not in known:  # often an image has several lines
                known[name] = text_digest((path.parent / name).read_bytes())
        images = [known[name] for name in names]
        first = images[0] if images else text_digest(words.prompt + words.text)
        row = start, length, number, _digest(words, images), first % 1000 < VALIDATION_PER_THOUSAND
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    if columns[0] and not known:
        raise ValueError(f'{path} names no image; write the path of each under "image"')
    return Index(*(np.frombuffer(column, column.typecode) for column in columns), skipped)


def _digest(words, images):
    """How much is kept of the digest of a document, from its words and the digests of its images."""
    parts = repr((tuple(words), list(images))).encode()
    return int.from_bytes(hashlib.blake2b(parts, digest_size=8).digest(), "big")
