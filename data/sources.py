"""Opening a dataset by name: open_dataset returns one split of what --dataset names, as a Source.

    tinystories         roneneldan/TinyStories, streamed from the Hub
    bundled             stories that data/stories writes, without a network
    ORG/NAME            any dataset on the Hub, streamed
    FILE                .txt (documents separated by <|endoftext|>), .jsonl or .parquet
    FOLDER              a folder of such files; names with the word train, validation (valid, val,
                        dev, eval, heldout, holdout) or test make its splits; subfolders, test and hidden
                        files are not read
    FOLDER              a folder of token files that data/prepare.py wrote

choose_dataset replaces the name `auto` by tinystories or bundled.

A Source has `documents()`, which yields every document once in a fixed order, and `shuffled(seed, state)`,
which yields documents endlessly and whose `state_dict()` is its exact position (data/documents.py). Empty
documents are skipped and counted in `skipped`.

If val_dataset is given, all of the dataset is used for training, and the validation split of val_dataset (all
of it if it has none) for validation. Otherwise a dataset without a validation split is divided by the hash of
each document's text. Every error that a user can cause is a ValueError.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from common.script import did_you_mean
from data.defaults import BUNDLED, TEXT_COLUMN
from data.documents import IndexedSource, Source
from data.files import FORMATS, open_files
from data.hub import TINYSTORIES, HubUnreachable, cached_copy, current_revision, open_hub
from data.stories import TRAIN_STORIES, VALIDATION_STORIES, VERSION, story
from data.tokens import is_token_folder, open_token_folder

AUTO = "auto"
ON_THE_HUB = {"tinystories": TINYSTORIES}


def choose_dataset(dataset: str, say: Callable[[str], None]) -> str:
    """Return the dataset to read: tinystories or bundled for `auto`, any other name unchanged.

    `auto` becomes tinystories if the Hub can be reached or its local cache has a copy, else bundled.
    say: called with one line that names the choice.
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
    dataset: str,
    *,
    split: str,
    val_dataset: str | None = None,
    text_column: str = TEXT_COLUMN,
    identity: str | None = None,
) -> Source:
    """Open one split of a dataset, "train" or "validation".

    val_dataset: the dataset of the validation split.  identity: what a checkpoint holds of the data of its
    run, which is to be opened again; the caller compares it with that of the result.  Resolve `auto` with choose_dataset first.
    """
    name = str(val_dataset if split == "validation" and val_dataset is not None else dataset)
    options = {"split": split, "whole": val_dataset is not None, "text_column": text_column}
    path = Path(os.path.expanduser(name))  # Path.expanduser raises for an unknown user
    if name == BUNDLED:
        return BundledSource(split)
    if name in ON_THE_HUB:
        return open_hub(ON_THE_HUB[name], identity=identity, **options)
    if path.is_dir() and is_token_folder(path):
        return open_token_folder(path, split)
    if path.exists():
        return open_files(path, **options)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and path.suffix.lower() not in FORMATS:
        return open_hub(name, identity=identity, **options)
    names = [*ON_THE_HUB, BUNDLED]
    hint = did_you_mean(name, names) or f"; use {', '.join(names)}, ORG/NAME on the Hub, or a path"
    if identity is not None:
        hint = "; if the data of the run has moved, give its place with --dataset, or --val_dataset"
    raise ValueError(f"dataset {name!r}: no such file or folder{hint}")


def say_left_out(say: Callable[[str], None], *sources: Source) -> None:
    """Say what sources leave out, for a command without a start line."""
    for line in dict.fromkeys(f"data: {s.name}{s.left_out()}" for s in sources if s.left_out()):
        say(line)


# The number of the first story of each split, and how many it has.
FIRST_AND_COUNT = {"train": (0, TRAIN_STORIES), "validation": (TRAIN_STORIES, VALIDATION_STORIES)}


class BundledSource(IndexedSource):
    """One split of the stories that data.stories writes."""

    def __init__(self, split: str):
        self.name = BUNDLED
        self._first, self._count = FIRST_AND_COUNT[split]
        self.identity = f"bundled stories {VERSION}, {self._count:,} from number {self._first:,}"

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return story(self._first + index).text
