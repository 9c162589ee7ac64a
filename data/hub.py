"""Datasets streamed from the Hugging Face Hub, with exact positions and a limit on every wait."""

import contextlib
import copy
import functools
import logging
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common.hub import COMMIT, PROBE_SECONDS, call_within, is_of_the_network, status_of, why_unreachable
from common.script import first_line
from data.documents import (
    MIN_VALIDATION_DOCUMENTS,
    VALIDATION_NAMES,
    Document,
    ShuffledStream,
    Source,
    is_validation_document,
    no_such_column,
    text_of,
    too_few_validation_documents,
)

logger = logging.getLogger(__name__)

TINYSTORIES = "roneneldan/TinyStories"
# datasets tries to read this often, 5 s apart (its default is 20), and huggingface_hub retries each attempt
# for 23 s. A run therefore ends after 2 minutes without a network, after 6 minutes of a network that stalls,
# and after 23 s of status 500.
ATTEMPTS = 4
OPEN_SECONDS = 120.0  # limit for listing a dataset's files; huggingface_hub has none
# If a dataset has no validation split, the first VALIDATION_DOCUMENTS documents that the hash rule puts into
# one are its validation split, from at most VALIDATION_SCAN rows. Training skips all of them.
VALIDATION_DOCUMENTS = 300
VALIDATION_SCAN = 100_000
SCRIPT_ADVICE = "its script was not run; download the data yourself and convert it to .jsonl or .parquet"


class HubUnreachable(ValueError):
    """The Hub does not answer. `reason` says in a few words what happened."""

    def __init__(self, message: str, reason: str = "the connection broke"):
        super().__init__(message)
        self.reason = reason


class HubSource(Source):
    """One split of a dataset on the Hub, streamed at one revision, which is its identity.

    side: "train" or "validation" takes the documents that the hash rule puts there, None takes all.
    """

    def __init__(self, name: str, split: str, *, revision: str, text_column: str, side=None):
        self._repository, self.split, self.revision = name, split, revision
        self._text_column, self._side = text_column, side
        self.identity = f"{name}@{revision}, {split}, {side or 'all'} of its documents, column {text_column}"
        self.name = f"{name} (copy in the local cache)" if cached_copy(name, revision) else name
        self._dataset = open_splits(name, revision)[split]
        self.require_columns(self._dataset.column_names)

    shuffled_by = "stream"

    def require_columns(self, columns):
        """Raise ValueError without the columns that a document needs. columns: None where only the rows tell."""
        if columns is not None and self._text_column not in columns:
            raise no_such_column(self._repository, self._text_column, columns)

    def document(self, text):
        """Return the document of what `rows` yields."""
        return text

    def documents(self):
        return (self.document(text) for _, text in self.rows() if text is not None)

    def shuffled(self, seed, state=None):
        if state is None:
            return ShuffledStream(self, seed)
        if "buffer" in state:
            logger.warning(
                f"{self.name}: the checkpoint is from a version that read the files in another order; the "
                "run skips the rest of this epoch and continues with the next one"
            )
            state = {"revision": state["revision"], "epoch": state["epoch"] + 1}
        source = copy.copy(self)
        source.revision = require_commit(self._repository, state.get("revision"))
        source._dataset = open_splits(self._repository, source.revision)[self.split]
        return ShuffledStream(source, seed, state)

    def rows(self, place=(0, 0), file_seed=None):
        """Yield what ShuffledStream reads. Without a seed, the files keep their order."""
        for behind, example in self._examples(*place, file_seed):
            yield behind, self._document(example)

    def _examples(self, first, row, file_seed):
        order = np.arange(self._dataset.num_shards)
        if file_seed is not None:
            order = np.random.default_rng(file_seed).permutation(order)
        with in_one_sentence(self.name, f"reading {self.name} from the Hub"):
            for number in range(first, len(order)):
                file = self._dataset.shard(num_shards=len(order), index=int(order[number]))
                # The last row already read is read again, which shows whether the file still has it.
                examples = iter(file.skip(max(row - 1, 0)))
                if row and next(examples, None) is None:
                    raise ValueError(f"a file ends before row {row:,}, the saved position")
                for example in examples:
                    row += 1
                    yield (number, row), example
                row = 0

    def _document(self, example):
        if self._text_column not in example:
            raise no_such_column(self.name, self._text_column, example)
        text = text_of(example[self._text_column], self.name, self._text_column)
        if not text or text.isspace():
            self.skipped += 1
            return None
        ours = self._side is None or is_validation_document(text) == (self._side == "validation")
        return text if ours else None


class GatheredSource(Source):
    """A few documents held in memory."""

    def __init__(self, name: str, texts: list[Document], identity: str):
        self.name, self._texts, self.identity = name, texts, identity

    def documents(self):
        return iter(self._texts)


def open_hub(
    name: str,
    *,
    split: str,
    whole: bool,
    text_column: str,
    identity: str | None = None,
    kind: Callable[..., HubSource] = HubSource,
) -> Source:
    """Open one split of a dataset on the Hub. See open_files for `whole`.

    kind: makes the source.  identity: that of the data to open again. Its revision is opened, and not the newest
    one.

    If the Hub does not answer within PROBE_SECONDS, a complete copy in its local cache is read instead.
    """
    if isinstance(identity, str) and identity.startswith(f"{name}@"):
        revision = require_commit(name, identity.removeprefix(f"{name}@").split(",")[0])
    else:
        revision = current_revision(name)
    splits = open_splits(name, revision)
    own_validation = next((known for known in VALIDATION_NAMES if known in splits), None)
    if split == "validation" and own_validation:
        chosen, side = own_validation, None
    else:
        chosen, side = "train", None if whole or own_validation else split
    if chosen not in splits:
        raise ValueError(
            f"{name} must have a split 'train', got {', '.join(splits)}; use other data with --dataset"
        )
    source = kind(name, chosen, revision=revision, text_column=text_column, side=side)
    used = {"train", own_validation} if not whole else {chosen}
    source.not_read = tuple(f"split {name}" for name in splits if name not in used)
    return _gather_validation(source) if side == "validation" else source


def _gather_validation(source):
    texts, read = [], 0
    for read, (_, text) in enumerate(source.rows(), start=1):
        if text is not None:
            texts.append(source.document(text))
        if len(texts) == VALIDATION_DOCUMENTS or read == VALIDATION_SCAN:
            break
    if len(texts) < MIN_VALIDATION_DOCUMENTS:
        raise too_few_validation_documents(source.name, len(texts), f"first {read:,}")
    rule = f"{len(texts)} of its first {read:,} documents, by the hash of their text"
    return GatheredSource(f"{source.name} ({rule})", texts, source.identity)


def open_splits(name: str, revision: str) -> dict:
    """Return {split: IterableDataset} of one revision, from its copy in the local cache if there is one."""
    cached = cached_copy(name, revision)
    with in_one_sentence(name, f"opening {name} on the Hub"):
        return _load(str(cached), None) if cached else _load(name, revision)


@functools.cache  # both splits share one opening; an exception is not cached
def _load(name, revision):
    import datasets

    datasets.config.STREAMING_OPEN_MAX_RETRIES = ATTEMPTS
    datasets.config.STREAMING_READ_MAX_RETRIES = ATTEMPTS
    options = {"revision": revision, "streaming": True}
    splits = call_within(OPEN_SECONDS, datasets.load_dataset, name, **options)
    # Decoding is off because a column of images would open the files that its rows name.
    return {split: data.decode(False) if data.features else data for split, data in splits.items()}


def cached_copy(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of a revision in the Hub's local cache, which hf download and load_dataset fill.

    revision: None stands for the newest one in the cache.  Returns None unless the folder has files for both
    splits, and all NNNNN files of a name such as train-00000-of-NNNNN.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    newest = folder / "refs" / "main"
    if revision is None:
        revision = newest.read_text().strip() if newest.is_file() else ""
    if not COMMIT.fullmatch(revision):
        return None
    snapshot = folder / "snapshots" / revision
    paths = [path for suffix in ("parquet", "jsonl") for path in snapshot.rglob(f"*.{suffix}")]
    names = "\n".join({path.name for path in paths})
    parts = Counter(re.findall(r"^(.+-)\d{5}-of-(\d{5})", names, re.MULTILINE))
    whole = all(found == int(count) for (_, count), found in parts.items())
    words = set(re.split("[^a-z]+", names.lower()))
    return snapshot if whole and "train" in words and words & set(VALIDATION_NAMES) else None


@functools.cache  # one question for both splits, so their revision is the same; an exception is not cached
def current_revision(name: str) -> str:
    """Return the commit at which a dataset is read: the newest on the Hub, or that of the copy in the local
    cache if the Hub cannot be reached.

    Raises HubUnreachable within PROBE_SECONDS if there is neither, ValueError for an unknown name.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        revision = _newest_revision(name)
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"dataset {name!r}: no such file or folder, and no public dataset of that name on the Hub; check "
            "the name, or log in with hf auth login if the dataset is private"
        ) from error
    except Exception as error:  # every library below raises its own kinds
        if cached := cached_copy(name):
            return cached.name
        reason = why_unreachable(error, PROBE_SECONDS)
        raise HubUnreachable(
            f"{reason}, and {name} is not in its local cache; use --dataset bundled, which needs no network, "
            "or the path of a .txt, .jsonl or .parquet file, or download it on a machine with a network "
            f'(hf download {name} --repo-type dataset --include "data/*" --local-dir DIR) and use '
            "--dataset DIR/data",
            reason,
        ) from error
    return require_commit(name, revision)


def _newest_revision(name):
    from huggingface_hub import HfApi

    return call_within(PROBE_SECONDS, HfApi().dataset_info, name, timeout=PROBE_SECONDS).sha


def require_commit(name: str, revision) -> str:
    """Return the revision if it is a commit, else raise ValueError, since it becomes part of a path."""
    if isinstance(revision, str) and COMMIT.fullmatch(revision):
        return revision
    raise ValueError(
        f"the revision of {name} must be a commit, 40 hex digits, got {revision!r:.60}; use other data with "
        "--dataset"
    )


@contextlib.contextmanager
def in_one_sentence(name, doing):
    """Turn what any library below raises into a ValueError of one sentence."""
    try:
        yield
    except Exception as error:
        reason = first_line(error)
        if is_of_the_network(error):
            raise HubUnreachable(f"{doing} failed ({reason}); check the network and try again") from error
        if status_of(error):
            told = f"the Hub refuses to send {name} ({reason}); log in with hf auth login"
        else:
            script = "scripts are no longer supported" in reason
            do = SCRIPT_ADVICE if script else "try again in case the download was damaged"
            told = f"datasets cannot read {name} ({reason}); {do}"
        raise ValueError(f"{told}, or use other data with --dataset") from error
