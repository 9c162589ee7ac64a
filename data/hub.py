"""Streams from the Hugging Face Hub: exact positions, our own shuffle, bounded waiting."""

import errno
import functools
import hashlib
import logging
import re
import socket
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from architecture.tokenizer import PROBE_SECONDS, call_within
from data.documents import (
    MIN_VALIDATION_DOCUMENTS,
    VALIDATION_NAMES,
    IndexedSource,
    ShuffledDocuments,
    Source,
    is_validation_document,
    no_such_column,
    too_few_validation_documents,
    well_formed,
)

logger = logging.getLogger(__name__)

TINYSTORIES = "roneneldan/TinyStories"
# Waits after a broken connection, on top of what huggingface_hub retries, which is five times with
# waits of 23 s in all: about two minutes until a network that is gone ends a run, six if it stalls.
RETRY_SECONDS = (1.0, 4.0, 16.0)
ATTEMPTS_OF_DATASETS = 1  # its default makes 20 of that each time: 38 minutes, and two hours
OPEN_SECONDS = 120.0  # for the list of a dataset's files, which huggingface_hub awaits forever
# The network's own kinds of errors, by the modules that define them: none of these can have been
# raised where its module was not imported.
NETWORK_ERRORS = {
    "aiohttp": "ClientError",
    "http.client": "HTTPException",
    "httpx": "TransportError",
    "httpx2": "TransportError",
    "requests": "RequestException",
    "ssl": "SSLError",
    "urllib3.exceptions": "HTTPError",
}
NETWORK_ERRNOS = {
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH,
}  # fmt: skip
BUSY_STATUS = {408, 425, 429}  # and all from 500: worth another attempt; other refusals stay
# The shuffle buffer: large against the handful of documents in a batch, small enough to be in each
# checkpoint.
BUFFER_DOCUMENTS = 10_000
BUFFER_CHARACTERS = 16_000_000
# A hub dataset without a validation split: documents of the hash rule from the beginning of the
# stream, until there are this many or this much has been read. (All documents of the rule are left
# out of training.)
VALIDATION_DOCUMENTS = 300
VALIDATION_SCAN = 100_000
# Documents; datasets' state is a deep copy, so a position is one of them plus a count.
SNAPSHOT_EVERY = 1000
# Of the files that a copy in the local cache must have for both splits.
DATA_SUFFIXES = (".parquet", ".jsonl")
# Kept of a validation split, so that the next evaluation need not download it again.
KEPT_CHARACTERS = 64_000_000


class HubUnreachable(ValueError):
    """The Hub does not answer; `reason` says in a few words what happened."""

    def __init__(self, message: str, reason: str = "the connection broke"):
        super().__init__(message)
        self.reason = reason


class HubSource(Source):
    """One split of a dataset on the Hub, streamed at one revision.

    dataset: the `datasets.IterableDataset`.  side: None takes every document, "train" or
    "validation" those on that side of the hash rule.
    """

    def __init__(
        self, name: str, split: str, dataset, *, revision: str, text_column: str, side=None
    ):
        self.split, self.text_column, self.side = split, text_column, side
        self._repository = name
        self.name = f"{name} (copy in the local cache)" if cached_copy(name, revision) else name
        self.revision, self._datasets = revision, {revision: dataset}
        self._kept: list[str] = []  # the first documents of a validation split, read before
        self._kept_position, self._kept_all = None, False
        columns = dataset.column_names
        if columns is not None and text_column not in columns:
            raise no_such_column(name, text_column, columns)

    def documents(self):
        yield from self._kept
        if self._kept_all:
            return
        stream = TextStream(self, self.revision, self._kept_position)
        number, room = len(self._kept), KEPT_CHARACTERS - sum(map(len, self._kept))
        try:
            for text in stream:
                room -= len(text)
                if self.split != "train" and room >= 0 and number == len(self._kept):
                    self._kept.append(text)
                    self._kept_position = stream.position()
                number += 1
                yield text
            self._kept_all = number == len(self._kept)
        finally:
            stream.close()

    def shuffled(self, seed, state=None):
        return BufferedShuffle(self, seed, state)

    def open(self, revision: str):
        """An IterableDataset for one reader: two that read the same object share a position."""
        if revision not in self._datasets:
            self._datasets[revision] = _load(self._repository, revision)[self.split]
        # One shard of one is the whole, as a new object. (deepcopy fails in a thread that has not
        # read yet.)
        return self._datasets[revision].shard(num_shards=1, index=0)


class GatheredSource(IndexedSource):
    """A few documents held in memory."""

    def __init__(self, name: str, texts: list[str]):
        self.name, self._texts = name, texts

    def __len__(self):
        return len(self._texts)

    def __getitem__(self, index):
        return self._texts[index]


class TextStream:
    """The texts of one pass over a HubSource, in order.

    Its position is a snapshot of datasets' own state and the number of examples read since;
    continuing from one and reading on after a broken connection are the same thing.
    """

    def __init__(self, source: HubSource, revision: str, position: dict | None = None):
        self._source, self._revision = source, revision
        position = position or {"snapshot": None, "since": 0}
        self._snapshot, self._since = position["snapshot"], position["since"]
        self._dataset = self._examples = None
        self.num_read = 0

    def __iter__(self):
        return self

    def __next__(self) -> str:
        source = self._source
        while (example := self._next_example()) is not None:
            if source.text_column not in example:
                raise no_such_column(source.name, source.text_column, example)
            text = example[source.text_column]
            if text is not None and not isinstance(text, str):
                kind = type(text).__name__
                raise ValueError(
                    f"column {source.text_column!r} of {source.name} must hold text, "
                    f"but holds {kind}"
                )
            if not text or text.isspace():
                source.skipped += 1
                continue
            text = well_formed(text)
            if source.side is None or is_validation_document(text) == (source.side == "validation"):
                return text
        raise StopIteration

    def position(self) -> dict:
        return {"snapshot": self._snapshot, "since": self._since}

    def close(self) -> None:
        """End the generators of datasets now; at the interpreter's end they fail noisily."""
        if self._examples is not None:
            self._examples.close()
            self._examples = None

    def _next_example(self):
        for wait in (*RETRY_SECONDS, None):
            try:
                if self._examples is None:
                    self._open()
                example = next(self._examples, None)
                break
            except Exception as error:  # every layer below has its own kinds
                self._examples = None
                if is_of_the_data(error):
                    raise cannot_read(self._source.name, error) from error
                if not is_of_the_network(error):
                    raise  # a fault of the program stays what it is
                reason = _first_line(error)
                if wait is None:
                    raise HubUnreachable(
                        f"reading {self._source.name} from the Hub failed {len(RETRY_SECONDS) + 1} times ({reason}); "
                        "check the network and continue later"
                    ) from error
                logger.warning(
                    "reading %s: %s; trying again in %g s", self._source.name, reason, wait
                )
                time.sleep(wait)
        if example is not None:
            self.num_read += 1
            self._since += 1
            if self._since == SNAPSHOT_EVERY:
                self._snapshot, self._since = self._dataset.state_dict(), 0
        return example

    def _open(self):
        self._dataset = self._source.open(self._revision)
        if self._snapshot is not None:
            self._dataset.load_state_dict(self._snapshot)
        examples = iter(self._dataset)
        for number in range(self._since):
            if next(examples, None) is None:
                missing = self._since - number
                raise ValueError(f"it ends {missing} examples before the saved position")
        self._examples = examples


class BufferedShuffle(ShuffledDocuments):
    """Endless documents of a stream through a shuffle buffer.

    The first document comes at once: each draw lets two documents in and one out until the buffer
    is full. At the end of the stream the buffer is emptied, so that an epoch has every document
    exactly once. The state holds the buffer's texts; its random numbers are a hash of (seed, number
    of draws), so that count is their state.
    """

    def __init__(self, source: HubSource, seed: int, state: dict | None = None):
        self._source, self._seed = source, seed
        state = state or {
            "revision": source.revision,
            "epoch": 0,
            "draws": 0,
            "ended": False,
            "buffer": [],
            "position": None,
        }
        self._revision, self.epoch, self._draws = state["revision"], state["epoch"], state["draws"]
        self._ended, self._buffer = state["ended"], list(state["buffer"])
        self._characters = sum(map(len, self._buffer))
        self._stream = TextStream(source, self._revision, state["position"])

    def __next__(self):
        self._fill()
        if not self._buffer:
            if self._draws == 0:
                raise ValueError(f"{self._source.name} has no document with text in it")
            self._next_epoch()
        digest = hashlib.blake2b(f"{self._seed} {self._draws}".encode(), digest_size=8).digest()
        slot = int.from_bytes(digest, "big") % len(self._buffer)
        self._draws += 1
        self._buffer[slot], self._buffer[-1] = self._buffer[-1], self._buffer[slot]
        text = self._buffer.pop()
        self._characters -= len(text)
        return text

    def state_dict(self):
        return {
            "revision": self._revision,
            "epoch": self.epoch,
            "draws": self._draws,
            "ended": self._ended,
            "buffer": list(self._buffer),
            "position": self._stream.position(),
        }

    def close(self):
        self._stream.close()

    def _fill(self):
        for _ in range(2):
            full = len(self._buffer) >= BUFFER_DOCUMENTS or self._characters >= BUFFER_CHARACTERS
            if self._ended or (full and self._buffer):
                return
            text = next(self._stream, None)
            if text is None:
                self._ended = True
            else:
                self._buffer.append(text)
                self._characters += len(text)

    def _next_epoch(self):
        self._stream.close()
        self._stream = TextStream(self._source, self._revision)
        self.epoch, self._ended = self.epoch + 1, False
        self._fill()


def open_hub(name: str, *, split: str, whole: bool, text_column: str) -> Source:
    """One split of a dataset on the Hub; see open_files for `whole`.

    A dataset without a validation split gets VALIDATION_DOCUMENTS documents of the hash rule from
    the beginning of its stream. An unreachable Hub is noticed within PROBE_SECONDS; then a whole
    copy in the Hub's local cache is read in its place.
    """
    revision = current_revision(name)
    try:
        splits = _load(name, revision)
    except Exception as error:
        if is_of_the_data(error):
            raise cannot_read(name, error) from error
        if not is_of_the_network(error):
            raise
        raise HubUnreachable(
            f"opening {name} on the Hub failed ({_first_line(error)}); check the network and try again"
        ) from error
    own_validation = next((known for known in VALIDATION_NAMES if known in splits), None)
    if split == "validation" and own_validation:
        chosen, side = own_validation, None
    else:
        chosen, side = "train", None if whole or own_validation else split
    if chosen not in splits:
        raise ValueError(f"{name} must have a split 'train', but has {', '.join(splits)}")
    source = HubSource(
        name, chosen, splits[chosen], revision=revision, text_column=text_column, side=side
    )
    return _gather_validation(source) if side == "validation" else source


def is_of_the_network(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, is a broken connection or a busy server, which
    another attempt may find in order.
    """
    status = _status(error)
    if status is not None:  # an answer, and what it says counts
        return status in BUSY_STATUS or status >= 500
    known = [(sys.modules[m], kind) for m, kind in NETWORK_ERRORS.items() if m in sys.modules]
    kinds = tuple(getattr(module, kind) for module, kind in known)
    if isinstance(error, (ConnectionError, TimeoutError, socket.gaierror, *kinds)):
        return True
    if isinstance(error, OSError) and error.errno in NETWORK_ERRNOS:
        return True
    return error.__cause__ is not None and is_of_the_network(error.__cause__)


def is_of_the_data(error: BaseException) -> bool:
    """Whether what came is not to be read, or may not be read; another attempt would be the same."""
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    theirs = packages & {"datasets", "pyarrow", "zlib"}
    known = theirs or isinstance(error, (ValueError, OSError, EOFError))
    return bool(known) and not is_of_the_network(error)


def cannot_read(name: str, error: BaseException) -> ValueError:
    if _status(error) is not None:
        return ValueError(
            f"the Hub refuses to send {name} ({_first_line(error)}); "
            "log in with hf auth login if it must know you, or use other data with --dataset"
        )
    return ValueError(
        f"datasets cannot read {name} ({_first_line(error)}); "
        "if its file arrived damaged try again later, else use other data with --dataset"
    )


def _status(error):
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _first_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _load(name, revision):
    import datasets

    datasets.config.STREAMING_OPEN_MAX_RETRIES = ATTEMPTS_OF_DATASETS
    datasets.config.STREAMING_READ_MAX_RETRIES = ATTEMPTS_OF_DATASETS
    if (copy := cached_copy(name, revision)) is not None:
        return datasets.load_dataset(str(copy), streaming=True)
    options = {"revision": revision, "streaming": True}
    return call_within(OPEN_SECONDS, datasets.load_dataset, name, **options)


def cached_copy(name: str, revision: str | None = None) -> Path | None:
    """The folder of a revision (None: the newest one here) in the Hub's local cache, where hf download
    and load_dataset leave it; None unless it has both splits with every part that their names count.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    newest = folder / "refs" / "main"
    if revision is None and not newest.is_file():
        return None
    copy = folder / "snapshots" / (revision or newest.read_text().strip())
    files = {path.name for path in copy.rglob("*") if path.suffix in DATA_SUFFIXES}
    for file in files:
        if part := re.match(r"(.+-)\d{5}-of-(\d{5})", file):
            begins = [f"{part[1]}{number:05d}-of-{part[2]}" for number in range(int(part[2]))]
            if not all(any(other.startswith(begin) for other in files) for begin in begins):
                return None
    words = {word for file in files for word in re.split("[^a-z]+", file.lower())}
    return copy if "train" in words and words & set(VALIDATION_NAMES) else None


@functools.cache  # asked once for both splits, which are then of one revision; a failure is not kept
def current_revision(name: str) -> str:
    """The commit that a dataset is read at: the Hub's newest, or that of the copy in the local cache
    where the Hub is out of reach.

    Raises HubUnreachable within PROBE_SECONDS, ValueError for a name that the Hub does not have.
    """
    try:
        return _newest_revision(name)
    except HubUnreachable:
        if (copy := cached_copy(name)) is None:
            raise
        return copy.name


def _newest_revision(name):
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise _unreachable(name, "HF_HUB_OFFLINE is set")
    began = time.monotonic()
    try:
        call_within(PROBE_SECONDS, _connect, constants.ENDPOINT)
    except Exception as error:
        raise _unreachable(name, _why(error)) from error
    from huggingface_hub import HfApi  # only now: it takes longer than a refusal
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    left = max(1.0, PROBE_SECONDS - (time.monotonic() - began))
    try:
        return call_within(left, HfApi().dataset_info, name, timeout=left).sha
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"dataset {name!r} is no file or folder here, and the Hub has no public dataset of that name"
        ) from error
    except HfHubHTTPError as error:
        raise HubUnreachable(
            f"the Hub refuses {name}: {_first_line(error)}", "the Hub refuses to answer"
        ) from error
    except Exception as error:  # a broken answer or none: each has its own kind
        raise _unreachable(name, _why(error)) from error


def _connect(url):
    """Reach the host of a URL, or the proxy that stands before it, and hang up."""
    import urllib.request

    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(parts.netloc):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 1080)
    socket.create_connection((parts.hostname, port), timeout=PROBE_SECONDS).close()


def _why(error):
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return f"the Hub does not answer (within {PROBE_SECONDS:g} s)"
    return f"the Hub cannot be reached ({getattr(error, 'strerror', None) or type(error).__name__})"


def _unreachable(name, reason):
    return HubUnreachable(
        f"{reason}, and {name} is not in its local cache; use --dataset bundled, which needs no network, or the "
        f"path of a .txt, .jsonl or .parquet file, or fetch it where there is a network with hf download {name} "
        '--repo-type dataset --include "data/*" --local-dir DIR and give --dataset DIR/data',
        reason,
    )


def _gather_validation(source):
    stream, texts = TextStream(source, source.revision), []
    try:
        for text in stream:
            texts.append(text)
            if len(texts) == VALIDATION_DOCUMENTS or stream.num_read >= VALIDATION_SCAN:
                break
    finally:
        stream.close()
    if len(texts) < MIN_VALIDATION_DOCUMENTS:
        raise too_few_validation_documents(source.name, len(texts), f"first {stream.num_read:,}")
    rule = f"{len(texts)} of its first {stream.num_read:,} documents, by the hash of their text"
    return GatheredSource(f"{source.name} ({rule})", texts)
