"""Opening documents with images by name: open_images returns one split, as open_dataset does for text.

pictures      colored shapes with captions, questions and answers, which data/pictures makes
"""

from data.documents import IndexedSource, Pictured, Source
from data.pictures import COUNTS, VERSION, item
from data.pictures.words import question_prompt

PICTURES = "pictures"

__all__ = ["PICTURES", "Pictured", "open_images", "question_prompt"]


def open_images(
    name: str,
    *,
    split: str,
    size: int,
    val_dataset: str | None = None,
    identity: str | None = None,
) -> Source:
    """Open one split, "train" or "validation", of documents whose images are (3, size, size) uint8.

    `pictures` also has the split "familiar": new pictures of combinations that are in the training split.
    val_dataset, identity: as for open_dataset.
    """
    chosen = str(val_dataset if split == "validation" and val_dataset is not None else name)
    if chosen == PICTURES:
        return PicturesSource(split, size)
    raise ValueError(f"dataset {chosen!r}: no such images; use {PICTURES}")


class PicturesSource(IndexedSource):
    """One split of the pictures that data.pictures makes."""

    name = PICTURES

    def __init__(self, split: str, size: int):
        self._split, self._size = split, size
        self.identity = f"pictures {VERSION}, the {COUNTS[split]:,} of {split}"

    def __len__(self):
        return COUNTS[self._split]

    def __getitem__(self, index):
        made = item(self._split, index, self._size)
        name = f"{PICTURES}, {self._split} number {index:,}"
        return Pictured((made.image,), made.prompt, made.text, made.kind, name)
