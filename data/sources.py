"""Documents by name: open_dataset gives one split of whatever --dataset says, as a Source.

    tinystories         roneneldan/TinyStories, streamed from the Hub
    bundled             stories that data/stories writes, without any network
    ORG/NAME            any dataset on the Hub, streamed
    FILE                .txt (documents separated by <|endoftext|>), .jsonl or .parquet
    FOLDER              of such files; names that say train or valid (val, validation, dev) are
                        its splits
    FOLDER              of token files that data/prepare.py wrote

A Source has `documents()`, every document once in its fixed order, and `shuffled(seed, state)`,
endless documents whose position `state_dict()` gives exactly (data/documents.py). Empty
documents are skipped and counted in `skipped`.

`auto` is one of the first two: choose_dataset says which. Nothing else stands in for anything.

Where a dataset has no validation split and no val_dataset is given, the hash of a document's text
decides which split it belongs to. What a val_dataset offers as validation (else all of it) is the
validation split, and the dataset trains whole. Every error that a user can cause is a ValueError.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from common.script import did_you_mean
from data.documents import IndexedSource, Source
from data.files import FORMATS, open_files
from data.hub import TINYSTORIES, HubUnreachable, cached_copy, current_revision, open_hub
from data.stories import TRAIN_STORIES, VALIDATION_STORIES, story
from data.tokens import is_token_folder, open_token_folder

AUTO, BUNDLED = "auto", "bundled"
ON_THE_HUB = {"tinystories": TINYSTORIES}


def choose_dataset(dataset: str, say: Callable[[str], None]) -> str:
    """What a run records and reads: `auto` becomes tinystories if the Hub can be reached or has left a
    copy here, else bundled, and says so; every other name stays.
    """
    if dataset != AUTO:
        return dataset
    try:
        revision = current_revision(TINYSTORIES)
    except HubUnreachable as error:
        say(f"dataset auto: {error.reason}; using the bundled stories")
        return BUNDLED
    if cached_copy(TINYSTORIES, revision):
        say("dataset auto: reading TinyStories from the Hub's local cache")
    else:
        say("dataset auto: streaming TinyStories from the Hub")
    return "tinystories"


def open_dataset(
    dataset: str, *, split: str, val_dataset: str | None = None, text_column: str = "text"
) -> Source:
    """The documents of one split, "train" or "validation"; `auto` must have been chosen before."""
    if split not in ("train", "validation"):
        raise ValueError(f"split ({split!r}) must be 'train' or 'validation'")
    name = str(val_dataset if split == "validation" and val_dataset is not None else dataset)
    options = {"split": split, "whole": val_dataset is not None, "text_column": text_column}
    path = Path(os.path.expanduser(name))  # Path.expanduser fails where there is no such user
    if name == BUNDLED:
        return BundledSource(split)
    if name in ON_THE_HUB:
        return open_hub(ON_THE_HUB[name], **options)
    if path.is_dir() and is_token_folder(path):
        return open_token_folder(path, split)
    if path.exists():
        return open_files(path, **options)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and path.suffix not in FORMATS:
        return open_hub(name, **options)
    if name == AUTO:
        raise ValueError("auto chooses a --dataset only; name --val_dataset, or leave it out")
    names = [*ON_THE_HUB, BUNDLED]
    known = f"known are {', '.join(names)}, ORG/NAME on the Hub, or a path"
    hint = did_you_mean(name, names) or f"; {known}"
    raise ValueError(f"dataset {name!r}: no such file or folder{hint}")


FIRST_AND_COUNT = {"train": (0, TRAIN_STORIES), "validation": (TRAIN_STORIES, VALIDATION_STORIES)}


class BundledSource(IndexedSource):
    """One split of the stories that data.stories writes."""

    def __init__(self, split: str):
        self.name = "bundled"
        self._first, self._count = FIRST_AND_COUNT[split]

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return story(self._first + index).text
