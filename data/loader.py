"""Documents -> tokens -> batches, read ahead by a thread, with a position that resumes bit for bit.

packed   one stream EOT d1 EOT d2 EOT ... cut into consecutive rows of block_size; the targets are
         the same stream one token later, so that a batch of 4B rows is four batches of B rows.
lanes    each row walks through one document [EOT, tokens, EOT] in consecutive segments of
         block_size, one a batch, and takes the next document when its own ends; what is left of
         the last segment has input EOT and target -100.
"""

import hashlib
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch

from architecture.interface import IGNORE_INDEX
from data.documents import Source
from data.packing import PACKINGS, TokenDocuments, require_tokens

POLL_SECONDS = 0.05  # how soon a blocked reader notices close()
JOIN_SECONDS = 2.0  # close() leaves a reader that hangs in the network to end as a daemon thread


class StoppedWaiting(Exception):
    """No batch was ready, and `should_stop` said to give up on it."""


class LoaderProgress(NamedTuple):
    """Where the batch returned last is."""

    epoch: int  # of the last document read, from 0
    documents: int  # begun so far
    padding_share: float  # of its targets


class TrainLoader:
    """Endless iterator of dict(input_ids, targets), each (batch_size, block_size) int64 on the CPU.

    resets: of lanes, the batches also have reset, (batch_size,) bool: where a row begins a document.
    state: what `state_dict()` gave; the batches go on exactly after the one returned last then.
    With "packed" the batch size may change there, with "lanes" it must stay.

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
        if state is None:
            require_tokens(source, tokenizer, batch_size * block_size + 1)
        documents = TokenDocuments(source, tokenizer, seed, state)
        rows = PACKINGS[packing](documents, tokenizer.eot_token, batch_size, block_size, state)
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
        # Tells whether two runs begin with the same data.
        self.first_batch_sha256 = hashlib.sha256(b"".join(x.tobytes() for x in self._first[:2])).hexdigest()

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        if self._stop.is_set():
            raise RuntimeError("this TrainLoader is closed")
        item, self._first = self._first or self._take(), None
        inputs, targets, reset, self._state, self.progress = item
        batch = {"input_ids": inputs, "targets": targets} | ({"reset": reset} if self._resets else {})
        return {name: torch.from_numpy(rows) for name, rows in batch.items()}

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
        item = None
        while item is None:
            try:
                item = self._queue.get(timeout=POLL_SECONDS)
            except queue.Empty:  # a network may be slow for minutes
                if self._should_stop():
                    raise StoppedWaiting from None
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item


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
