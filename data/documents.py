"""What a source promises, the rule that splits documents, shuffling that resumes exactly."""

import hashlib
from collections.abc import Iterator

import numpy as np

Document = str | np.ndarray  # text, or the token ids of a source that is tokenised already

VALIDATION_NAMES = ("validation", "valid", "val", "dev")  # of a split, or in a file's name
VALIDATION_PER_THOUSAND = 10
MIN_VALIDATION_DOCUMENTS = 100


class Source:
    """Documents of one split.

    name: for people.  skipped: the empty documents left out so far.
    """

    name: str
    skipped: int = 0

    def documents(self) -> Iterator[Document]:
        """Every document once, in the fixed order of the source."""
        raise NotImplementedError

    def shuffled(self, seed: int, state: dict | None = None) -> "ShuffledDocuments":
        """Endless documents, each epoch in its own order; continues after `state`."""
        raise NotImplementedError

    def check_tokenizer(self, tokenizer) -> None:
        """ValueError if the documents are token ids of another tokenizer."""


class ShuffledDocuments:
    """Endless iterator over documents; `epoch` is that of the last document, from 0."""

    epoch: int = 0

    def __iter__(self):
        return self

    def __next__(self) -> Document:
        raise NotImplementedError

    def state_dict(self) -> dict:
        """The position right after the last document, never changed later.

        Made of ints, strings, lists and dicts only.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what is open."""


class IndexedSource(Source):
    """A source whose documents can be read by index: `__len__` and `__getitem__`."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Document:
        raise NotImplementedError

    def documents(self):
        return (self[index] for index in range(len(self)))

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """The indices of one epoch in a random order."""
        return generator.permutation(len(self))

    def shuffled(self, seed, state=None):
        return ShuffledIndex(self, seed, state)


class ShuffledIndex(ShuffledDocuments):
    """The documents of an IndexedSource in an order that (seed, epoch) alone decides.

    The position is (epoch, index).
    """

    def __init__(self, source: IndexedSource, seed: int, state: dict | None = None):
        self._source, self._seed = source, seed
        state = state or {"epoch": 0, "index": 0, "num_documents": len(source)}
        for name in ("epoch", "index", "num_documents"):
            if type(state.get(name)) is not int or not 0 <= state[name] < 2**63:
                raise ValueError(
                    f"the position in {source.name} that the checkpoint holds is damaged, its {name} is "
                    f"{state.get(name)!r}; use another checkpoint_<step>.pt from its folder"
                )
        if state["num_documents"] != len(source):
            raise ValueError(
                f"{source.name} has {len(source):,} documents, but had {state['num_documents']:,} when the "
                "checkpoint was saved; restore that data, or start a new run"
            )
        if state["index"] > len(source):
            raise ValueError(
                f"the position in {source.name} that the checkpoint holds is damaged, document "
                f"{state['index']:,} of {len(source):,}; use another checkpoint_<step>.pt from its folder"
            )
        self.epoch, self._index = state["epoch"], state["index"]
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


def is_validation_document(text: str) -> bool:
    """Whether a document belongs to the validation split of a source that has none.

    Decided by the text alone, so that copies of a document are always on the same side.
    """
    digest = hashlib.blake2b(text.encode()).digest()
    return int.from_bytes(digest, "big") % 1000 < VALIDATION_PER_THOUSAND


def well_formed(text: str) -> str:
    """The text with lone surrogates replaced (JSON escapes can make them, UTF-8 has none)."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def too_few_validation_documents(name: str, count: int, among: str) -> ValueError:
    return ValueError(
        f"{name} has no validation split, and only {count} of its {among} documents fall into one by the "
        f"hash of their text (at least {MIN_VALIDATION_DOCUMENTS} are needed); name one with --val_dataset"
    )


def no_such_column(where: str, text_column: str, columns) -> ValueError:
    return ValueError(
        f"{where} has no column {text_column!r}; it has {', '.join(sorted(columns))}: choose with --text_column"
    )
