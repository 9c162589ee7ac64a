"""Rows of tokens from documents, packed or in lanes (data/loader.py), for training and validation.

A batch here is a dict of numpy arrays: input_ids and targets, each (rows, block_size) int64, and reset,
(rows,) bool, where a row can begin a document in the middle of a walk. data/rows.py has the third packing.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from architecture.interface import IGNORE_INDEX
from architecture.tokenizer import encode_text
from data.documents import Pictured, Source


class TokenDocuments:
    """Endless shuffled documents, each turned into ids by `encode`, with the state that all packings share."""

    def __init__(self, source: Source, encode: Callable, seed: int, state: dict | None):
        self._encode = encode
        self._shuffled = source.shuffled(seed, state and state["source"])
        self.count = state["documents"] if state else 0

    @property
    def epoch(self) -> int:
        return self._shuffled.epoch

    def __next__(self):
        encoded = self._encode(next(self._shuffled))
        self.count += 1
        return encoded

    def state_dict(self) -> dict:
        return {"documents": self.count, "source": self._shuffled.state_dict()}

    def close(self) -> None:
        self._shuffled.close()


class PackedRows:
    """Consecutive rows of one stream. `tokens` is the rest of it and begins with the last target.

    mine: the rows of a batch that are returned.
    """

    def __init__(
        self,
        documents,
        eot: int,
        num_rows: int,
        block_size: int,
        state: dict | None,
        mine: slice = slice(None),
    ):
        self._mine = mine
        self._documents, self._eot = documents, np.array([eot])
        self._num_rows, self._block_size = num_rows, block_size
        self.tokens = [rest.numpy() for rest in state["tokens"]] if state else []

    def __next__(self) -> dict[str, np.ndarray]:
        size = self._num_rows * self._block_size
        parts, length = list(self.tokens), sum(map(len, self.tokens))
        while length < size + 1:
            parts += self._eot, next(self._documents)
            length += 1 + len(parts[-1])
        stream = _joined(parts)
        self.tokens = [stream[size:]]
        shape = self._num_rows, self._block_size
        inputs, targets = stream[:size], stream[1 : size + 1]
        batch = {"input_ids": inputs, "targets": targets}
        return {name: part.reshape(shape)[self._mine].copy() for name, part in batch.items()}


class LaneRows:
    """One document per row, one segment of it per batch. `tokens` is the rest of each row's document.

    mine: the rows of a batch that are returned.
    """

    def __init__(
        self,
        documents,
        eot: int,
        num_rows: int,
        block_size: int,
        state: dict | None,
        mine: slice = slice(None),
    ):
        self._mine = mine
        self._documents, self._eot, self._block_size = documents, np.array([eot]), block_size
        saved = [rest.numpy() for rest in state["tokens"]] if state else None
        self.tokens = [self._eot] * num_rows if saved is None else saved
        if len(self.tokens) != num_rows:
            raise ValueError(
                f"batch_size times processes ({num_rows}) must be {len(self.tokens)}, the number of lanes in the "
                "checkpoint"
            )

    def __next__(self) -> dict[str, np.ndarray]:
        lanes = list(self.tokens)

        def next_document():
            return np.concatenate([self._eot, next(self._documents), self._eot])

        segments = next_segments(lanes, next_document, self._block_size, int(self._eot[0]))
        self.tokens = lanes
        return {name: part[self._mine] for name, part in segments.items()}


def next_segments(
    lanes: list[np.ndarray], next_document: Callable[[], np.ndarray], block_size: int, eot: int
) -> dict[str, np.ndarray]:
    """Return the next block_size tokens of each lane.

    lanes: the rest of each lane's document, beginning with its last target. Changed in place. A lane whose
    document has ended takes next_document() first.
    Returns input_ids and targets, padded with EOT and -100, and reset, which is True where a lane begins a
    document.
    """
    shape = len(lanes), block_size
    inputs, targets = np.full(shape, eot), np.full(shape, IGNORE_INDEX)
    reset = np.array([len(rest) == 1 for rest in lanes])  # only the last target is left
    for row, rest in enumerate(lanes):
        if reset[row]:
            rest = next_document()
        segment = rest[: block_size + 1]
        inputs[row, : len(segment) - 1] = segment[:-1]
        targets[row, : len(segment) - 1] = segment[1:]
        lanes[row] = rest[len(segment) - 1 :]
    return {"input_ids": inputs, "targets": targets, "reset": reset}


def validation_batches(
    source: Source, tokenizer, *, batch_size: int, block_size: int, max_tokens: int | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """Cut the documents in their fixed order, EOT d1 EOT d2 ... EOT, into consecutive windows.

    Yields dicts as TrainLoader does. Each of the first max_tokens tokens after the first EOT (None: of all)
    is a target exactly once. The end of the last window has input EOT and target -100, and the last batch may
    have fewer rows. No document is read that max_tokens does not need.
    """
    eot, size = tokenizer.eot_token, batch_size * block_size
    parts, length = [np.array([eot])], 1
    for targets in _validation_targets(source, tokenizer, max_tokens):
        parts.append(targets)
        length += len(targets)
        while length > size:
            stream = _joined(parts)
            yield _windows(stream[: size + 1], block_size, eot)
            parts, length = [stream[size:]], length - size
    if length > 1:
        yield _windows(np.concatenate(parts), block_size, eot)


def validation_lanes(
    source: Source,
    tokenizer,
    *,
    batch_size: int,
    block_size: int,
    max_tokens: int | None = None,
    resets: bool = False,
) -> Iterator[dict[str, torch.Tensor]]:
    """Walk through the documents in their fixed order, each [EOT, tokens, EOT] along one of batch_size lanes,
    in segments of block_size tokens.

    Yields dicts as TrainLoader does. The targets are those of validation_batches, each exactly once. A lane
    takes the next document when its own ends. If there is none, the lane has input EOT and target -100.
    """
    eot = np.array([tokenizer.eot_token])
    targets_left = _validation_targets(source, tokenizer, max_tokens)
    documents = (np.concatenate([eot, targets]) for targets in targets_left)
    lanes = [eot] * batch_size  # the rest of each lane's document
    while True:
        batch = next_segments(lanes, lambda: next(documents, eot), block_size, tokenizer.eot_token)
        if (batch["targets"] == IGNORE_INDEX).all():
            return
        yield as_tensors(batch, resets)


def _validation_targets(source, tokenizer, max_tokens):
    """Yield [tokens, EOT] of each document, max_tokens in all. No document is read beyond them."""
    source.check_tokenizer(tokenizer)
    left = max_tokens
    for document in source.documents():
        targets = np.append(encode(tokenizer, document), tokenizer.eot_token)[:left]
        yield targets
        if left is not None:
            left -= len(targets)
            if left == 0:
                return


def require_tokens(source: Source, tokenizer, needed: int) -> None:
    """Raise ValueError if the source has fewer than `needed` tokens. It is read only so far."""
    found = 0
    for document in source.documents():
        found += 1 + len(encode(tokenizer, document))
        if found >= needed:
            return
    raise ValueError(
        f"{source.name} has {found:,} tokens in all, but one batch needs {needed:,} (batch_size * block_size "
        "+ 1); use more text, or a smaller --batch_size or --block_size"
    )


def as_tensors(batch: dict[str, np.ndarray], resets: bool = False) -> dict[str, torch.Tensor]:
    """Return a batch as tensors, without `reset` unless the model asks for it."""
    return {name: torch.from_numpy(part) for name, part in batch.items() if resets or name != "reset"}


def encode(tokenizer, document) -> np.ndarray:
    """Return the ids of a document without images, (n,) int64. No text becomes a special token."""
    if isinstance(document, Pictured):
        raise ValueError(f"{document.name} has images, which only packing rows can read; use --packing rows")
    if isinstance(document, str):
        document = encode_text(tokenizer, document)
    return np.array(document, dtype=np.int64)


def _joined(parts):
    """Return the parts as one array. A single part, which may be a very long document, is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _windows(stream, block_size, eot):
    padding = -(len(stream) - 1) % block_size
    inputs = np.pad(stream[:-1], (0, padding), constant_values=eot)
    targets = np.pad(stream[1:], (0, padding), constant_values=IGNORE_INDEX)
    return {
        "input_ids": torch.from_numpy(inputs.reshape(-1, block_size)),
        "targets": torch.from_numpy(targets.reshape(-1, block_size)),
    }
