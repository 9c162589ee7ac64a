"""Documents -> tokens -> batches, read ahead by a thread, with a position that resumes bit for bit.

packed   one stream EOT d1 EOT d2 EOT ... cut into consecutive rows of block_size; the targets are
         the same stream one token later, so that a batch of 4B rows is four batches of B rows.
lanes    each row walks through one document [EOT, tokens, EOT] in consecutive segments of
         block_size, one a batch, and takes the next document when its own ends; what is left of
         the last segment has input EOT and target -100.

Positions count global rows: with world_size processes a global batch has world_size * batch_size
rows, of which rank r gets rows r * batch_size to (r + 1) * batch_size. Every rank reads the same
documents, so a state fits any of them.
"""

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from architecture.interface import IGNORE_INDEX
from training.data_documents import Source

PACKINGS = ("packed", "lanes")
POLL_SECONDS = 0.05  # how soon a blocked reader notices close()
JOIN_SECONDS = 2.0  # close() leaves a reader that hangs in the network to end as a daemon thread


class StoppedWaiting(Exception):
    """No batch was ready, and `should_stop` said to give up on it."""


class LoaderProgress(NamedTuple):
    """Where the batch returned last is."""

    epoch: int  # of the last document read, from 0
    documents: int  # begun so far
    padding_share: float  # of this global batch's targets


class TrainLoader:
    """Endless iterator of dict(input_ids, targets), each (batch_size, block_size) int64 on the CPU.

    resets: of lanes, the batches also have reset, (batch_size,) bool: where a row begins a document.
    state: what `state_dict()` gave; the batches go on exactly after the one returned last then.
    With "packed" the batch size may change there, with "lanes" the number of global rows must stay.

    The constructor returns when the first batch is ready, so that everything that is wrong with the
    data is raised before a run writes anything. An exception of the reading thread is raised by
    `next` as itself.
    """

    def __init__(
        self,
        source: Source,
        tokenizer,
        *,
        batch_size: int,
        block_size: int,
        packing: str = "packed",
        resets: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        state: dict | None = None,
        prefetch: int = 8,
        should_stop: Callable[[], bool] = lambda: False,
    ):
        if packing not in PACKINGS:
            raise ValueError(f"packing ({packing!r}) must be one of {', '.join(PACKINGS)}")
        for name, expected in (("packing", packing), ("seed", seed)):
            if state is not None and state[name] != expected:
                raise ValueError(
                    f"{name} ({expected!r}) must be {state[name]!r}, with which the checkpoint was saved"
                )
        source.check_tokenizer(tokenizer)
        num_rows = world_size * batch_size
        if state is None:
            require_tokens(source, tokenizer, num_rows * block_size + 1)
        documents = TokenDocuments(source, tokenizer, seed, state)
        rows_class = {"packed": PackedRows, "lanes": LaneRows}[packing]
        rows = rows_class(documents, tokenizer.eot_token, num_rows, block_size, state)
        self._rows_of_rank = slice(rank * batch_size, (rank + 1) * batch_size)
        self._resets = resets
        self._describe = {"packing": packing, "seed": seed}
        self._state, self.progress = _position(rows, documents), LoaderProgress(0, 0, 0.0)
        self._should_stop = should_stop
        self._queue: queue.Queue = queue.Queue(maxsize=prefetch)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_read_ahead, args=(rows, documents, self._queue, self._stop), daemon=True
        )
        self._thread.start()
        self._first = self._take()
        # of all ranks: whether two runs begin with the same data
        self.first_batch_sha256 = hashlib.sha256(
            b"".join(x.tobytes() for x in self._first[:2])
        ).hexdigest()

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        if self._stop.is_set():
            raise RuntimeError("this TrainLoader is closed")
        item, self._first = self._first or self._take(), None
        inputs, targets, reset, self._state, self.progress = item
        batch = {"input_ids": inputs, "targets": targets} | (
            {"reset": reset} if self._resets else {}
        )
        return {name: torch.from_numpy(rows[self._rows_of_rank]) for name, rows in batch.items()}

    def state_dict(self) -> dict:
        """The position right after the last batch returned, not of what is read ahead.

        packing, seed, the number of documents begun, the source's own position, and the tokens
        left of documents begun (packed: one tensor; lanes: one per row). Only types that
        torch.load(weights_only=True) accepts.
        """
        tokens = [torch.from_numpy(rest.copy()) for rest in self._state["tokens"]]
        return {**self._describe, **self._state, "tokens": tokens}

    def close(self) -> None:
        """End the reading thread."""
        self._stop.set()
        self._thread.join(JOIN_SECONDS)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _take(self):
        while True:
            try:
                item = self._queue.get(timeout=POLL_SECONDS)
                break
            except queue.Empty:  # a network may be slow for minutes
                if self._should_stop():
                    raise StoppedWaiting from None
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item


class TokenDocuments:
    """Endless shuffled documents as int64 ids; the part of the state that packings share."""

    def __init__(self, source, tokenizer, seed, state):
        self._tokenizer = tokenizer
        self._shuffled = source.shuffled(seed, state and state["source"])
        self.count = state["documents"] if state else 0

    @property
    def epoch(self) -> int:
        return self._shuffled.epoch

    def __next__(self) -> np.ndarray:
        ids = encode(self._tokenizer, next(self._shuffled))
        self.count += 1
        return ids

    def state_dict(self) -> dict:
        return {"documents": self.count, "source": self._shuffled.state_dict()}

    def close(self) -> None:
        self._shuffled.close()


class PackedRows:
    """Consecutive rows of one stream; `tokens` begins with the last target of the last row."""

    def __init__(self, documents, eot: int, num_rows: int, block_size: int, state: dict | None):
        self._documents, self._eot = documents, np.array([eot])
        self._num_rows, self._block_size = num_rows, block_size
        self.tokens = [rest.numpy() for rest in state["tokens"]] if state else []

    def __next__(self) -> tuple[np.ndarray, np.ndarray, None]:
        """inputs and targets, each (num_rows, block_size) int64; rows that begin a document: unknown"""
        size = self._num_rows * self._block_size
        parts, length = list(self.tokens), sum(map(len, self.tokens))
        while length < size + 1:
            parts += self._eot, next(self._documents)
            length += 1 + len(parts[-1])
        stream = np.concatenate(parts)
        self.tokens = [stream[size:]]
        shape = self._num_rows, self._block_size
        inputs, targets = stream[:size], stream[1 : size + 1]
        return inputs.reshape(shape).copy(), targets.reshape(shape).copy(), None


class LaneRows:
    """One document per row, one segment of each a batch; `tokens` is what is left of each."""

    def __init__(self, documents, eot: int, num_rows: int, block_size: int, state: dict | None):
        self._documents, self._eot, self._block_size = documents, np.array([eot]), block_size
        saved = [rest.numpy() for rest in state["tokens"]] if state else None
        self.tokens = saved or [self._eot] * num_rows
        if len(self.tokens) != num_rows:
            raise ValueError(
                f"batch_size times processes ({num_rows}) must be {len(self.tokens)}, "
                "the lanes of the checkpoint"
            )

    def __next__(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """inputs and targets, each (num_rows, block_size) int64; (num_rows,) bool: begins a document"""
        lanes = list(self.tokens)

        def next_document():
            return np.concatenate([self._eot, next(self._documents), self._eot])

        segments = next_segments(lanes, next_document, self._block_size, int(self._eot[0]))
        self.tokens = lanes
        return segments


def next_segments(
    lanes: list[np.ndarray],
    next_document: Callable[[], np.ndarray],
    block_size: int,
    eot: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The next block_size tokens of each lane, in which a document follows when one has ended.

    lanes: what is left of each one's document, its last input first; changed in place.
    Returns inputs and targets, each (lanes, block_size) int64, where nothing is left EOT and -100; and
    (lanes,) bool: begins a document.
    """
    shape = len(lanes), block_size
    inputs, targets = np.full(shape, eot), np.full(shape, IGNORE_INDEX)
    reset = np.array([len(rest) == 1 for rest in lanes])  # only the last target was left
    for row, rest in enumerate(lanes):
        if reset[row]:
            rest = next_document()
        segment = rest[: block_size + 1]
        inputs[row, : len(segment) - 1] = segment[:-1]
        targets[row, : len(segment) - 1] = segment[1:]
        lanes[row] = rest[len(segment) - 1 :]
    return inputs, targets, reset


def validation_batches(
    source: Source, tokenizer, *, batch_size: int, block_size: int, max_tokens: int | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """The documents in their fixed order, EOT d1 EOT d2 ... EOT, cut into consecutive windows.

    Yields the same dicts as TrainLoader. Every token after the first EOT is a target exactly once,
    up to max_tokens of them; the end of the last window has input EOT and target -100. The last
    batch may have fewer rows. Reads no further than max_tokens needs.
    """
    source.check_tokenizer(tokenizer)
    eot = np.array([tokenizer.eot_token])
    documents = (np.concatenate([encode(tokenizer, d), eot]) for d in source.documents())
    parts, length, left = [], 0, max_tokens
    for part in chain([eot], documents):
        parts.append(part)
        length += len(part)
        while length > batch_size * block_size and left != 0:
            stream = np.concatenate(parts)
            size = batch_size * block_size if left is None else min(left, batch_size * block_size)
            yield _windows(stream[: size + 1], block_size, tokenizer.eot_token)
            parts, length = [stream[size:]], length - size
            left = None if left is None else left - size
        if left == 0 or (left is not None and length > left):
            break
    stream = np.concatenate(parts)
    stream = stream if left is None else stream[: left + 1]
    if len(stream) > 1:
        yield _windows(stream, block_size, tokenizer.eot_token)


def require_tokens(source: Source, tokenizer, needed: int) -> None:
    """ValueError if the source has not even one batch; reads no further than that."""
    found = 0
    for document in source.documents():
        found += 1 + len(encode(tokenizer, document))
        if found >= needed:
            return
    raise ValueError(
        f"{source.name} has {found:,} tokens in all, fewer than one batch ({needed:,}: batch_size * "
        "block_size and one more); use more text, or a smaller --batch_size or --block_size"
    )


def encode(tokenizer, document) -> np.ndarray:
    """(n,) int64 ids of a document, in which no text is ever a special token."""
    if isinstance(document, str):
        document = tokenizer.encode_ordinary(document)
    return np.array(document, dtype=np.int64)


def _windows(stream, block_size, eot):
    padding = -(len(stream) - 1) % block_size
    inputs = np.pad(stream[:-1], (0, padding), constant_values=eot)
    targets = np.pad(stream[1:], (0, padding), constant_values=IGNORE_INDEX)
    return {
        "input_ids": torch.from_numpy(inputs.reshape(-1, block_size)),
        "targets": torch.from_numpy(targets.reshape(-1, block_size)),
    }


def _position(rows, documents):
    return {**documents.state_dict(), "tokens": rows.tokens}


def _read_ahead(rows, documents, batches, stop):
    """Fill the queue with (inputs, targets, reset, position, Progress) until `stop`; an exception too."""

    def put(item):
        while not stop.is_set():
            try:
                return batches.put(item, timeout=POLL_SECONDS)
            except queue.Full:
                continue

    try:
        while not stop.is_set():
            inputs, targets, reset = next(rows)
            padding = float((targets == IGNORE_INDEX).mean())
            progress = LoaderProgress(documents.epoch, documents.count, padding)
            put((inputs, targets, reset, _position(rows, documents), progress))
    except BaseException as error:
        put(error)
    finally:
        documents.close()
