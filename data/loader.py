"""Training batches: documents to tokens to rows, read ahead by a thread, with an exact position.

packed   The stream EOT d1 EOT d2 EOT ... is cut into consecutive rows of block_size tokens. The
         targets are the same stream one token later, so a batch of 4B rows is four batches of B rows.
lanes    Each row walks through one document [EOT, tokens, EOT], one segment of block_size tokens per
         batch, and takes the next document when its own ends. The unused rest of a document's last
         segment has input EOT and target -100.
rows     Each row holds one document, which may have images, cut or padded to block_size (data/rows.py).
examples Each row holds as many whole Examples as fit, apart from each other by their positions, which are a part of
         the batch (data/rows.py).
pairs    Each document is a Pair of responses and has two rows, those of all chosen responses first. The rows are as
         long as the longest of them, and have at most block_size tokens.
"""

import collections
import functools
import hashlib
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch

from architecture.images import ImageFormat
from architecture.interface import IGNORE_INDEX
from data.documents import Source
from data.packing import LaneRows, PackedRows, TokenDocuments, as_tensors, encode, require_tokens
from data.rows import DocumentRows, ExampleRows, PairEncoder, PairRows, RowEncoder

POLL_SECONDS = 0.05  # the time in which a blocked reader notices close()
# How long close() waits for the reading thread. If it hangs in the network, it ends with the process.
JOIN_SECONDS = 2.0


class StoppedWaiting(Exception):
    """No batch was ready, and `should_stop` returned True."""


class LoaderProgress(NamedTuple):
    """The position of the batch returned last."""

    epoch: int  # epoch of its last document, counted from 0
    documents: int  # number of documents begun so far
    targets: int  # number of its targets, without padding and prompts


class TrainLoader:
    """An endless iterator of dict(input_ids, targets), each (batch_size / n, block_size) int64; two rows for each pair.

    resets: for lanes, adds reset, (batch_size,) bool: True where a row begins a document.
    image_format: for rows, allows documents with images. A batch that has some adds images, (M, 3, S, S) uint8.
    state: a result of `state_dict()`. The batches continue exactly after it. Only "lanes" does not
    accept another batch size.
    part: (r, n) for the r-th of n equal parts of the rows of each batch; the position is that of whole batches.
    prefetch: the number of batches read ahead.  should_stop: asked while no batch is ready.
    device: batches are copied to a CUDA device from pinned memory, which the program does not wait for. For any
    other device they stay on the CPU.  ahead: so many batches are copied before they are asked for.

    The constructor returns when the first batch is ready, so an error in the data is raised before the run
    writes anything. `next` raises the exceptions of the reading thread unchanged.
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
        image_format: ImageFormat | None = None,
        seed: int = 0,
        state: dict | None = None,
        part: tuple[int, int] = (0, 1),
        prefetch: int = 8,
        should_stop: Callable[[], bool] = lambda: False,
        device: torch.device | None = None,
        ahead: int = 0,
    ):
        source.check_tokenizer(tokenizer)
        size = tokenizer.eot_token, batch_size, block_size
        number, parts = part
        mine = slice(number * batch_size // parts, (number + 1) * batch_size // parts)
        if packing == "rows":
            encode_row = RowEncoder(tokenizer, block_size, image_format)
            documents = TokenDocuments(source, encode_row, seed, state)
            rows = DocumentRows(documents, *size, image_format, mine)
        elif packing == "examples":
            documents = TokenDocuments(source, RowEncoder(tokenizer, block_size, None), seed, state)
            rows = ExampleRows(documents, *size, state, mine)
        elif packing == "pairs":
            documents = TokenDocuments(source, PairEncoder(tokenizer, block_size), seed, state)
            rows = PairRows(documents, *size, mine=mine)
        else:
            if state is None:
                require_tokens(source, tokenizer, batch_size * block_size + 1)
            documents = TokenDocuments(source, functools.partial(encode, tokenizer), seed, state)
            rows = {"packed": PackedRows, "lanes": LaneRows}[packing](documents, *size, state, mine)
        self._resets = resets
        self._describe = {"packing": packing, "seed": seed}
        self._state, self.progress = _position(rows, documents), LoaderProgress(0, 0, 0)
        self._cuda_device = device if device is not None and device.type == "cuda" else None
        self._ahead, self._copies = ahead, collections.deque()  # like the queue, on the device
        self._should_stop = should_stop
        self._queue: queue.Queue = queue.Queue(maxsize=prefetch)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_read_ahead, args=(rows, documents, self._queue, self._stop), daemon=True
        )
        self._thread.start()
        self._copies.append(self._take())
        # Shows whether two runs begin with the same data.
        first = (part.cpu().numpy() for name, part in self._copies[0][0].items() if name != "reset")
        self.first_batch_sha256 = hashlib.sha256(b"".join(part.tobytes() for part in first)).hexdigest()

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        if self._stop.is_set():
            raise RuntimeError("this TrainLoader is closed")
        batch, self._state, self.progress = self._take()
        while len(self._copies) < self._ahead and not self._queue.empty():
            self._copies.append(self._copied(self._queue.get_nowait()))
        return batch

    def state_dict(self) -> dict:
        """Return the position right after the last batch returned, whatever has been read ahead.

        It has packing, seed, the number of documents begun, the position of the source, and the tokens left
        of documents begun (packed: one tensor, lanes: one per row, examples: the next one, else none). torch.load(weights_only=True)
        accepts all of it.
        """
        tokens = [torch.from_numpy(rest.copy()) for rest in self._state["tokens"]]
        return {**self._describe, **self._state, "tokens": tokens}

    def close(self) -> None:
        """Stop the reading thread."""
        self._stop.set()
        self._thread.join(JOIN_SECONDS)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _take(self):
        item = self._copies.popleft() if self._copies else None
        while item is None:
            try:
                item = self._copied(self._queue.get(timeout=POLL_SECONDS))
            except queue.Empty:  # a slow network may take minutes
                if self._should_stop():
                    raise StoppedWaiting from None
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def _copied(self, item):
        """An item of the queue with its batch as tensors on the device; an exception stays as it is."""
        if isinstance(item, BaseException):
            return item
        batch, *rest = item
        batch = as_tensors(batch, self._resets)
        if device := self._cuda_device:
            batch = {name: part.pin_memory().to(device, non_blocking=True) for name, part in batch.items()}
        return batch, *rest


def _position(rows, documents):
    return {**documents.state_dict(), "tokens": rows.tokens}


def _read_ahead(rows, documents, batches, stop):
    """Put (batch, position, progress) of each batch into the queue until `stop` is set.

    An exception also goes into the queue, and ends the reading.
    """

    def put(item):
        while not stop.is_set():
            try:
                return batches.put(item, timeout=POLL_SECONDS)
            except queue.Full:
                continue

    try:
        while not stop.is_set():
            batch = next(rows)
            targets = int((batch["targets"] != IGNORE_INDEX).sum())
            progress = LoaderProgress(documents.epoch, documents.count, targets)
            put((batch, _position(rows, documents), progress))
    except BaseException as error:
        put(error)
    finally:
        documents.close()
