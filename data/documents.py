"""The interface of a source, the rule that splits documents, and shuffling that resumes exactly."""

import hashlib
import heapq
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from common.files import plain_text, without_surrogates
from common.script import shown


class Pictured(NamedTuple):
    """A document with images. Only `text` is scored.

    images: uint8 arrays (3, S, S).  prompt, text: each may hold the placeholder of an image. If neither does,
    the images come first.  kind: what the document asks for, such as "caption" or "count".  name: in messages.
    """

    images: tuple[np.ndarray, ...]
    prompt: str
    text: str
    kind: str = "caption"
    name: str = "a document"


# Text, token ids where the source is already tokenized, or text with images.
Document = str | np.ndarray | Pictured

# Names of splits, or words in file names.
VALIDATION_NAMES = ("validation", "valid", "val", "dev", "eval", "evaluation", "heldout", "holdout")
VALIDATION_PER_THOUSAND = 10
MIN_VALIDATION_DOCUMENTS = 100
# A stream is shuffled within a window of this many characters and at most this many documents. Changing
# either value changes the order of the documents, so older checkpoints no longer resume exactly.
WINDOW_CHARACTERS = 32_000_000
WINDOW_DOCUMENTS = 30_000


class Source:
    """The documents of one split.

    name: the name in messages.  skipped: the number of empty documents left out so far.
    not_read: the names of files, folders or splits of the dataset that no run with this dataset reads.
    identity: words that are equal for the same documents in the same order, wherever they are stored. A run
    may continue on data with the identity that its checkpoint holds.
    shuffled_by: what else decides the order of `shuffled`.
    digests: (N,) uint64 digests of the texts, empty if they were not scanned.
    """

    name: str
    skipped: int = 0
    not_read: tuple[str, ...] = ()
    identity: str | None = None
    shuffled_by: str = "document"
    digests: np.ndarray = np.empty(0, np.uint64)

    def left_out(self) -> str:
        """What the source leaves out, in brackets for the line that names it; "" if it leaves out nothing."""
        empty = [f"{self.skipped:,} empty documents left out"] if self.skipped else []
        names = ", ".join(shown(name) for name in self.not_read[:4])
        others = f" and {len(self.not_read) - 4:,} others" if len(self.not_read) > 4 else ""
        told = "; ".join(empty + ([f"not read: {names}{others}"] if names else []))
        return f" ({told})" if told else ""

    def documents(self) -> Iterator[Document]:
        """Yield every document once, in the fixed order of the source."""
        raise NotImplementedError

    def shuffled(self, seed: int, state: dict | None = None) -> "ShuffledDocuments":
        """Return an endless iterator in which each epoch has its own order. It continues after `state`."""
        raise NotImplementedError

    def check_tokenizer(self, tokenizer) -> None:
        """Raise ValueError if the documents are token ids of another tokenizer."""


class ShuffledDocuments:
    """An endless iterator over documents. `epoch` is the epoch of the last document, counted from 0."""

    epoch: int = 0

    def __iter__(self):
        return self

    def __next__(self) -> Document:
        raise NotImplementedError

    def state_dict(self) -> dict:
        """Return the position right after the last document, as ints, strings, lists and dicts.

        The caller owns the result: later documents do not change it.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close open files."""


class IndexedSource(Source):
    """A source whose documents can be read by index, through `__len__` and `__getitem__`."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Document:
        raise NotImplementedError

    def documents(self):
        return (self[index] for index in range(len(self)))

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """Return the indices of one epoch in a random order."""
        return generator.permutation(len(self))

    def shuffled(self, seed, state=None):
        return ShuffledIndex(self, seed, state)


class ShuffledIndex(ShuffledDocuments):
    """The documents of an IndexedSource, in an order that depends on (seed, epoch) only.

    The position is (epoch, index).
    """

    def __init__(self, source: IndexedSource, seed: int, state: dict | None = None):
        self._source, self._seed = source, seed
        state = {"epoch": 0, "index": 0, "num_documents": len(source)} if state is None else state
        position = [state.get(name) for name in ("epoch", "index", "num_documents")]
        numbers = all(type(number) is int and 0 <= number < 2**63 for number in position)
        if not numbers or position[1] > position[2]:
            raise ValueError(
                f"the checkpoint's position in {source.name} is damaged (epoch, index and number of "
                f"documents are {position!r:.80}); use another checkpoint_<step>.pt from its folder"
            )
        self.epoch, self._index, count = position
        if count != len(source):
            raise ValueError(
                f"{source.name} has {len(source):,} documents, but had {count:,} when the checkpoint was "
                "saved; restore that data, or start a new run"
            )
        self._order = self._epoch_order()

    def __next__(self):
        if self._index == len(self._order):
            self.epoch, self._index = self.epoch + 1, 0
            self._order = self._epoch_order()
        document = self._source[int(self._order[self._index])]
        self._index += 1
        return document

    def state_dict(self):
        return {"epoch": self.epoch, "index": self._index, "num_documents": len(self._order)}

    def _epoch_order(self):
        return self._source.order(np.random.default_rng([self._seed, self.epoch]))


class ShuffledStream(ShuffledDocuments):
    """The documents of a stream. Each epoch shuffles the files, and the documents within a window.

    source: has a `revision` and a method `rows(place, file_seed)`. A place is (index of a file in the order
    that file_seed gives, number of its rows already read). The method yields (place after the row, text or
    None) for each row that follows. What `document` makes of a text is returned.

    Each document gets a key: the size of all documents before it, plus a random number below
    WINDOW_CHARACTERS that is a hash of (seed, epoch, number of the document). Documents are returned in the
    order of their keys. A position holds no text. Resuming reads the window again from its first document and
    drops the documents that were already returned.
    """

    def __init__(self, source: Source, seed: int, state: dict | None = None):
        self._source, self._seed = source, seed
        self._begin(**(state or {"epoch": 0}))

    def _begin(self, epoch, place=(0, 0), number=0, size=0, last=(-1, -1), revision=None):
        self.epoch, self._place, self._number, self._size = epoch, tuple(place), number, size
        self._last = tuple(last)  # (key, number) of the document returned last
        self._window: list[tuple[int, int, str]] = []  # a heap of (key, number, text)
        # The (place, number, size) from which each document of the window can be read again.
        self._begins: dict[int, tuple] = {}
        self._ended = False
        self._rows = self._source.rows(self._place, [self._seed, epoch])

    def __next__(self):
        while not self._ended and not (self._window and self._window[0][0] <= self._size):
            self._read()
        if not self._window:
            if self._number == 0:
                raise ValueError(f"{self._source.name} has no document with text in it")
            self._begin(self.epoch + 1)
            return next(self)
        key, number, text = heapq.heappop(self._window)
        self._last = key, number
        del self._begins[number]
        return self._source.document(text)

    def _read(self):
        """Add the next row to the window. The keys of later documents are self._size or more."""
        begin = self._place, self._number, self._size
        place, text = next(self._rows, (None, None))
        self._ended = place is None
        self._place = place or self._place
        if text is not None:
            name = f"{self._seed} {self.epoch} {self._number}".encode()
            draw = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
            key = self._size + draw % WINDOW_CHARACTERS
            if (key, self._number) > self._last:
                heapq.heappush(self._window, (key, self._number, text))
                self._begins[self._number] = begin
            self._number += 1
            self._size += max(len(text), WINDOW_CHARACTERS // WINDOW_DOCUMENTS)

    def state_dict(self):
        here = self._place, self._number, self._size
        place, number, size = next(iter(self._begins.values()), here)
        position = {"place": list(place), "number": number, "size": size, "last": list(self._last)}
        return {"revision": self._source.revision, "epoch": self.epoch, **position}

    def close(self):
        self._rows.close()


def text_digest(text: str | bytes) -> int:
    """blake2b of a text, or of the bytes of an image, 512 bits."""
    data = text.encode() if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data).digest(), "big")


def is_validation_document(text: str | bytes) -> bool:
    """Whether a document belongs to validation, for a source without a validation split.

    Only the text decides, so all copies of a document are in the same split; with images, only the first image,
    so all that is said of an image is in the same split.
    """
    return text_digest(text) % 1000 < VALIDATION_PER_THOUSAND


def identity_of(count: int, content: bytes) -> str:
    """The identity of `count` documents, of which `content` holds the digests in order."""
    return f"{count:,} documents, blake2b {hashlib.blake2b(content, digest_size=16).hexdigest()}"


def common_documents(train: Source, validation: Source) -> tuple[str, ...]:
    """A line with the number of validation documents that are also training documents, if there are any.

    It is not known for streams and token files.  Raises ValueError if both sides have the same documents.
    """
    both = int(np.isin(validation.digests, train.digests).sum())
    same = 0 < both == len(validation.digests) and np.isin(train.digests, validation.digests).all()
    if same or train.identity == validation.identity:
        raise ValueError(
            f"the training data ({train.name}) and the validation data ({validation.name}) are the same "
            "documents, so that the validation loss would measure what was learned by heart; give other "
            "documents with --val_dataset, or leave it out"
        )
    if both == 0:
        return ()
    return (
        f"{both:,} of the {len(validation.digests):,} validation documents are also training documents; the "
        "validation loss does not measure new text there",
    )


def text_of(value, where: str, text_column: str) -> str:
    """A value of the text column as plain_text without surrogates; None is "". Raises ValueError for other types."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: column {text_column!r} must hold text, got {type(value).__name__}")
    return plain_text(without_surrogates(value))


def too_few_validation_documents(name: str, count: int, among: str) -> ValueError:
    selected = f"has only {count} of its {among} documents for validation, by the hash of their text"
    return ValueError(
        f"{name} {'is one document' if among == '1' else selected}, and at least {MIN_VALIDATION_DOCUMENTS} are needed there; give validation text as a "
        "second file, --val_dataset FILE, or separate the documents (.txt: <|endoftext|> between them, .jsonl: "
        "one a line, .parquet: one a row)"
    )


def no_such_column(where: str, text_column: str, columns) -> ValueError:
    return ValueError(
        f"{where} has no column {text_column!r}, only {', '.join(sorted(columns))}; choose with --text_column"
    )
