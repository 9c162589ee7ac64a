"""The bundled stories as a source: nothing is read or downloaded, document N is written when asked."""

from data.stories import TRAIN_STORIES, VALIDATION_STORIES, story
from training.data_documents import IndexedSource

FIRST_AND_COUNT = {
    "train": (0, TRAIN_STORIES),
    "validation": (TRAIN_STORIES, VALIDATION_STORIES),
}


class BundledSource(IndexedSource):
    """One split of the stories that data.stories writes."""

    def __init__(self, split: str):
        self.name = "bundled"
        self._first, self._count = FIRST_AND_COUNT[split]

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        if not 0 <= index < self._count:
            raise IndexError(f"story {index} is not in 0 .. {self._count - 1}")
        return story(self._first + index).text


def open_bundled(split: str) -> BundledSource:
    """The training stories ("train") or the 1,000 others ("validation")."""
    if split not in FIRST_AND_COUNT:
        raise ValueError(f"split ({split!r}) must be 'train' or 'validation'")
    return BundledSource(split)
