"""Streams from the Hugging Face Hub: exact positions, bounded waiting, no path from the network."""

import contextlib
import copy
import functools
import logging
import re
from collections import Counter
from pathlib import Path

import numpy as np

from architecture.tokenizer import PROBE_SECONDS, call_within
from common.script import first_line
from data.documents import (
    MIN_VALIDATION_DOCUMENTS,
    VALIDATION_NAMES,
    ShuffledStream,
    Source,
    is_validation_document,
    no_such_column,
    too_few_validation_documents,
    well_formed,
)

logger = logging.getLogger(__name__)

TINYSTORIES = "roneneldan/TinyStories"
# How often datasets tries to read, 5 s apart; its default is 20. huggingface_hub retries each of them
# for 23 s. So a run ends after two minutes without a network, six if it stalls, and 23 s of status 500.
ATTEMPTS = 4
OPEN_SECONDS = 120.0  # for the list of a dataset's files, which huggingface_hub awaits forever
NETWORK_PACKAGES = {"aiohttp", "http", "httpx", "httpx2", "requests", "socket", "ssl", "urllib3"}
# Where a dataset has no validation split, its beginning gives this many documents of the hash rule, or
# what this many rows hold. (Training leaves out all documents of the rule.)
VALIDATION_DOCUMENTS = 300
VALIDATION_SCAN = 100_000
OLDER_POSITION = (
    "an older version wrote the position in the checkpoint, and read the files in another order; "
    "its epoch ends here and the next one begins"
)
COMMIT = re.compile("[0-9a-f]{40}")


class HubUnreachable(ValueError):
    """The Hub does not answer; `reason` says in a few words what happened."""

    def __init__(self, message: str, reason: str = "the connection broke"):
        super().__init__(message)
        self.reason = reason


class HubSource(Source):
    """One split of a dataset on the Hub, streamed at one revision.

    side: None takes every document, "train" or "validation" those on that side of the hash rule.
    """

    def __init__(self, name: str, split: str, *, revision: str, text_column: str, side=None):
        self._repository, self.split, self.revision = name, split, revision
        self._text_column, self._side = text_column, side
        self.name = f"{name} (copy in the local cache)" if cached_copy(name, revision) else name
        self._dataset = open_splits(name, revision)[split]
        columns = self._dataset.column_names
        if columns is not None and text_column not in columns:
            raise no_such_column(name, text_column, columns)

    def documents(self):
        return (text for _, text in self.rows() if text is not None)

    def shuffled(self, seed, state=None):
        if state is None:
            return ShuffledStream(self, seed)
        if "buffer" in state:
            logger.warning("%s: %s", self.name, OLDER_POSITION)
            state = {"revision": state["revision"], "epoch": state["epoch"] + 1}
        source = copy.copy(self)
        source.revision = require_commit(self._repository, state["revision"])
        source._dataset = open_splits(self._repository, source.revision)[self.split]
        return ShuffledStream(source, seed, state)

    def rows(self, place=(0, 0), file_seed=None):
        """For ShuffledStream; without a seed the files keep their order."""
        for behind, example in self._examples(*place, file_seed):
            yield behind, self._document(example)

    def _examples(self, first, row, file_seed):
        order = np.arange(self._dataset.num_shards)
        if file_seed is not None:
            order = np.random.default_rng(file_seed).permutation(order)
        with _in_one_sentence(self.name, f"reading {self.name} from the Hub"):
            for number in range(first, len(order)):
                file = self._dataset.shard(num_shards=len(order), index=int(order[number]))
                examples = iter(file.skip(max(row - 1, 0)))
                if row and next(examples, None) is None:
                    raise ValueError(f"a file ends before the saved position, row {row:,}")
                for example in examples:
                    row += 1
                    yield (number, row), example
                row = 0

    def _document(self, example):
        if self._text_column not in example:
            raise no_such_column(self.name, self._text_column, example)
        text = example[self._text_column]
        if text is not None and not isinstance(text, str):
            kind = type(text).__name__
            raise ValueError(f"column {self._text_column!r} of {self.name} must hold text, but holds {kind}")
        if not text or text.isspace():
            self.skipped += 1
            return None
        text = well_formed(text)
        ours = self._side is None or is_validation_document(text) == (self._side == "validation")
        return text if ours else None


class GatheredSource(Source):
    """A few documents held in memory."""

    def __init__(self, name: str, texts: list[str]):
        self.name, self._texts = name, texts

    def documents(self):
        return iter(self._texts)


def open_hub(name: str, *, split: str, whole: bool, text_column: str) -> Source:
    """One split of a dataset on the Hub; see open_files for `whole`.

    A dataset without a validation split gets VALIDATION_DOCUMENTS documents of the hash rule from
    the beginning of its stream. An unreachable Hub is noticed within PROBE_SECONDS; then a whole
    copy in the Hub's local cache is read in its place.
    """
    revision = current_revision(name)
    splits = open_splits(name, revision)
    own_validation = next((known for known in VALIDATION_NAMES if known in splits), None)
    if split == "validation" and own_validation:
        chosen, side = own_validation, None
    else:
        chosen, side = "train", None if whole or own_validation else split
    if chosen not in splits:
        raise ValueError(f"{name} must have a split 'train', but has {', '.join(splits)}")
    source = HubSource(name, chosen, revision=revision, text_column=text_column, side=side)
    return _gather_validation(source) if side == "validation" else source


def _gather_validation(source):
    texts, read = [], 0
    for read, (_, text) in enumerate(source.rows(), start=1):
        if text is not None:
            texts.append(text)
        if len(texts) == VALIDATION_DOCUMENTS or read == VALIDATION_SCAN:
            break
    if len(texts) < MIN_VALIDATION_DOCUMENTS:
        raise too_few_validation_documents(source.name, len(texts), f"first {read:,}")
    rule = f"{len(texts)} of its first {read:,} documents, by the hash of their text"
    return GatheredSource(f"{source.name} ({rule})", texts)


def open_splits(name: str, revision: str) -> dict:
    """{split: IterableDataset} of one revision, of its copy in the local cache if there is one."""
    cached = cached_copy(name, revision)
    with _in_one_sentence(name, f"opening {name} on the Hub"):
        return _load(str(cached), None) if cached else _load(name, revision)


@functools.cache  # opened once for both splits; a failure is not kept
def _load(name, revision):
    import datasets

    datasets.config.STREAMING_OPEN_MAX_RETRIES = ATTEMPTS
    datasets.config.STREAMING_READ_MAX_RETRIES = ATTEMPTS
    options = {"revision": revision, "streaming": True}
    splits = call_within(OPEN_SECONDS, datasets.load_dataset, name, **options)
    # Undecoded: a column of images would open the files that its rows name.
    return {split: data.decode(False) if data.features else data for split, data in splits.items()}


def cached_copy(name: str, revision: str | None = None) -> Path | None:
    """The folder of a revision (None: the newest one here) in the Hub's local cache, where hf download
    and load_dataset leave it; None unless it has both splits with every part that their names count.
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


@functools.cache  # asked once for both splits, which are then of one revision; a failure is not kept
def current_revision(name: str) -> str:
    """The commit that a dataset is read at: the Hub's newest, or that of the copy in the local cache
    where the Hub is out of reach.

    Raises HubUnreachable within PROBE_SECONDS, ValueError for a name that the Hub does not have.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        revision = _newest_revision(name)
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"dataset {name!r} is no file or folder here, and the Hub has no public dataset of that name"
        ) from error
    except Exception as error:  # a broken answer or none: each has its own kind
        if cached := cached_copy(name):
            return cached.name
        reason = _why(error)
        raise HubUnreachable(
            f"{reason}, and {name} is not in its local cache; use --dataset bundled, which needs no "
            "network, or the path of a .txt, .jsonl or .parquet file, or fetch it where there is a "
            f'network with hf download {name} --repo-type dataset --include "data/*" --local-dir DIR '
            "and give --dataset DIR/data",
            reason,
        ) from error
    return require_commit(name, revision)


def _newest_revision(name):
    from huggingface_hub import HfApi

    return call_within(PROBE_SECONDS, HfApi().dataset_info, name, timeout=PROBE_SECONDS).sha


def require_commit(name: str, revision) -> str:
    """The revision, which names a folder of the cache: ValueError unless it is a commit."""
    if isinstance(revision, str) and COMMIT.fullmatch(revision):
        return revision
    raise ValueError(
        f"the revision of {name} must be a commit, 40 hex digits, got {revision!r:.60}; "
        "use other data with --dataset"
    )


def _why(error):
    kind, reason = type(error).__name__, re.sub(r"^\[Errno -?\d+\] ", "", str(error))
    if kind == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set"
    if "Timeout" in kind:
        return f"the Hub does not answer (within {PROBE_SECONDS:g} s)"
    if _status(error):
        return f"the Hub refuses to answer ({first_line(error)})"
    if _is_of_the_network(error):
        return f"the Hub cannot be reached ({reason or kind})"
    return f"the Hub's answer cannot be read ({first_line(error)})"


@contextlib.contextmanager
def _in_one_sentence(name, doing):
    """Turns what any library below raises into a ValueError; every layer has its own kinds of errors."""
    try:
        yield
    except Exception as error:
        reason = first_line(error)
        if _is_of_the_network(error):
            told = f"{doing} failed ({reason}); check the network and continue later"
            raise HubUnreachable(told) from error
        told = f"datasets cannot read {name} ({reason}); if its file arrived damaged try again later, else"
        if _status(error):
            told = f"the Hub refuses to send {name} ({reason}); log in with hf auth login if it must know you, or"
        raise ValueError(f"{told} use other data with --dataset") from error


def _is_of_the_network(error):
    """Whether a broken connection or a busy server is behind an error."""
    if status := _status(error):  # an answer, and what it says counts
        return status in (408, 425, 429) or status >= 500
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    cause = error.__cause__
    known = isinstance(error, (ConnectionError, TimeoutError)) or packages & NETWORK_PACKAGES
    return bool(known) or (cause is not None and _is_of_the_network(cause))


def _status(error):
    return getattr(getattr(error, "response", None), "status_code", None)
