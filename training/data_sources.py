"""Documents by name: open_dataset gives one split of whatever --dataset says, as a Source.

    tinystories         roneneldan/TinyStories, streamed from the Hub
    ORG/NAME            any dataset on the Hub, streamed
    FILE                .txt (documents separated by <|endoftext|>), .jsonl or .parquet
    FOLDER              of such files; names that say train or valid (val, validation, dev) are
                        its splits
    FOLDER              of token files that data/prepare.py wrote

A Source has `documents()`, every document once in its fixed order, and `shuffled(seed, state)`,
endless documents whose position `state_dict()` gives exactly (training/data_documents.py). Empty
documents are skipped and counted in `skipped`.

Where a dataset has no validation split and no val_dataset is given, the hash of a document's text
decides which split it belongs to. What a val_dataset offers as validation (else all of it) is the
validation split, and the dataset trains whole. Every error that a user can cause is a ValueError.
"""

import difflib
import re
from pathlib import Path

from training.data_documents import Source
from training.data_files import FORMATS, open_files
from training.data_hub import TINYSTORIES, open_hub
from training.data_tokens import is_token_folder, open_token_folder

NAMES = {"tinystories": TINYSTORIES}


def open_dataset(
    dataset: str, *, split: str, val_dataset: str | None = None, text_column: str = "text"
) -> Source:
    """The documents of one split, "train" or "validation"."""
    if split not in ("train", "validation"):
        raise ValueError(f"split ({split!r}) must be 'train' or 'validation'")
    name = str(val_dataset if split == "validation" and val_dataset is not None else dataset)
    options = {"split": split, "whole": val_dataset is not None, "text_column": text_column}
    path = Path(name).expanduser()
    if name in NAMES:
        return open_hub(NAMES[name], **options)
    if path.is_dir() and is_token_folder(path):
        return open_token_folder(path, split)
    if path.exists():
        return open_files(path, **options)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and path.suffix not in FORMATS:
        return open_hub(name, **options)
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else "known are tinystories, ORG/NAME on the Hub, or a path"
    )
    raise ValueError(f"dataset {name!r}: no such file or folder; {hint}")
