"""Opening documents with images by name: open_images returns one split, as open_dataset does for text.

    pictures      colored shapes with captions, questions and answers, which data/pictures makes
    digits        the handwritten digits that scikit-learn ships; the last fifth is for validation
    faces         whether a patch is a face, from scikit-image; the last fifth of both kinds is for validation
    FOLDER        images and captions.jsonl (data/image_folder.py)
    ORG/NAME      a set of images with captions or questions on the Hub, streamed (data/image_hub.py)

Every error that a user can cause is a ValueError, or an ImportError with the line that installs a package.
"""

import functools
import hashlib
import importlib.util
import os
import re
from pathlib import Path

import numpy as np

from architecture.images import read_image
from common.script import did_you_mean
from data.defaults import TEXT_COLUMN
from data.documents import IndexedSource, Pictured, Source
from data.hub import open_hub
from data.image_folder import open_image_folder
from data.image_hub import ImageHubSource
from data.image_records import question_prompt
from data.pictures import COUNTS, VERSION, item

PICTURES, DIGITS, FACES = "pictures", "digits", "faces"
TRAIN_SHARE = 0.8  # share of the digits, and of the faces, that is for training
NAMES_OF_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

__all__ = ["DIGITS", "FACES", "PICTURES", "Pictured", "open_images", "question_prompt"]


def open_images(
    name: str,
    *,
    split: str,
    size: int,
    val_dataset: str | None = None,
    text_column: str = TEXT_COLUMN,
    identity: str | None = None,
) -> Source:
    """Open one split, "train" or "validation", of documents whose images are (3, size, size) uint8.

    `pictures` also has the split "familiar": new pictures of combinations that are in the training split.
    val_dataset, text_column, identity: as for open_dataset.
    """
    name = str(val_dataset if split == "validation" and val_dataset is not None else name)
    own = {PICTURES: PicturesSource, DIGITS: open_digits, FACES: open_faces}
    if name in own:
        return own[name](split, size)
    options = {"split": split, "whole": val_dataset is not None, "text_column": text_column}
    path = Path(os.path.expanduser(name))  # Path.expanduser raises for an unknown user
    if path.is_dir():
        return open_image_folder(path, size=size, **options)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not path.exists():
        return open_hub(name, identity=identity, kind=functools.partial(ImageHubSource, size=size), **options)
    hint = did_you_mean(name, [*own]) or f"; use {', '.join(own)}, ORG/NAME on the Hub, or a folder"
    raise ValueError(f"dataset {name!r}: no such folder of images{hint}")


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
        return Pictured((made.image,), *made[1:4], f"{PICTURES}, {self._split} number {index:,}")


class ArraySource(IndexedSource):
    """Gray images in memory, and what is said of each.

    pixels: (N, H, W) uint8.  words: N tuples (prompt, text, kind).
    """

    def __init__(
        self, name: str, split: str, pixels: np.ndarray, words: list[tuple[str, str, str]], size: int
    ):
        self.name, self._split, self._pixels, self._words, self._size = name, split, pixels, words, size
        digest = hashlib.blake2b(pixels.tobytes() + repr(words).encode(), digest_size=16).hexdigest()
        self.identity = f"{name}, {len(words):,} images of {split}, blake2b {digest}"

    def __len__(self):
        return len(self._words)

    def __getitem__(self, index):
        from PIL import Image

        name = f"{self.name}, {self._split} number {index:,}"
        image = read_image(Image.fromarray(self._pixels[index]), self._size, name)
        return Pictured((image,), *self._words[index], name)


def open_digits(split: str, size: int) -> ArraySource:
    """1,797 digits of 13 people, dark on light, in the order of the file, where a person's digits stand
    together: nearly all of the last fifth are by people who wrote none of the others.
    """
    rows = np.loadtxt(shipped_file("scikit-learn", "sklearn", "datasets/data/digits.csv.gz"), delimiter=",")
    ink, digits = rows[:, :64], rows[:, 64].astype(int)  # ink from 0 to 16
    kept = _split_of(DIGITS, split, len(rows))
    words = [("", f"a handwritten {NAMES_OF_DIGITS[digit]}", "caption") for digit in digits[kept]]
    pixels = (255 - ink[kept] * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8)
    return ArraySource(DIGITS, split, pixels, words, size)


def open_faces(split: str, size: int) -> ArraySource:
    """200 patches of photographs, the first half of which are faces."""
    patches = np.load(shipped_file("scikit-image", "skimage", "data/lfw_subset.npy"))  # from 0 to 1
    half = len(patches) // 2
    kept = _split_of(FACES, split, half)
    prompt = question_prompt("Is this a face?")
    words = [(prompt, f" {answer}", "face") for answer in ("yes", "no") for _ in range(*kept.indices(half))]
    patches = np.concatenate([patches[:half][kept], patches[half:][kept]])
    return ArraySource(FACES, split, (patches * 255).round().astype(np.uint8), words, size)


def _split_of(name, split, count):
    """The first or the last part of `count` images."""
    cut = int(TRAIN_SHARE * count)
    parts = {"train": slice(0, cut), "validation": slice(cut, count)}
    if split not in parts:
        raise ValueError(f"{name} has the splits train and validation, not {split!r}; use one of them")
    return parts[split]


def shipped_file(package: str, module: str, file: str) -> Path:
    """The path of a file that a package ships. The package is not imported, which would take seconds."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ImportError(f"these images come with {package}: pip install -r requirements-vision.txt")
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file():
        raise ValueError(f"{package} has no file {path}; install the version of requirements-vision.txt")
    return path
