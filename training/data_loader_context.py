"""Validation along lanes, document by document.

Training's lanes, with their resets, are TrainLoader's own (training/data_loader.py, packing "lanes").
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from architecture.interface import IGNORE_INDEX
from training.data_documents import Source
from training.data_loader import encode, next_segments


def validation_lanes(
    source: Source,
    tokenizer,
    *,
    batch_size: int,
    block_size: int,
    max_tokens: int | None = None,
    resets: bool = False,
) -> Iterator[dict[str, torch.Tensor]]:
    """The documents in their fixed order, each [EOT, tokens, EOT] along one of batch_size lanes, in
    segments of block_size, until all have ended.

    Yields the same dicts as TrainLoader. The tokens are those of validation_batches, each a target
    exactly once, up to max_tokens of them: the last document is cut there. A lane takes the next
    document when its own ends; when there is none it is padding, input EOT and target -100.
    """
    source.check_tokenizer(tokenizer)
    eot = np.array([tokenizer.eot_token])
    documents = bounded(
        (np.concatenate([eot, encode(tokenizer, d), eot]) for d in source.documents()), max_tokens
    )
    lanes = [eot] * batch_size  # what is left of each lane's document
    while True:
        inputs, targets, reset = next_segments(
            lanes, lambda: next(documents, eot), block_size, tokenizer.eot_token
        )
        if (targets == IGNORE_INDEX).all():
            return
        batch = {"input_ids": inputs, "targets": targets} | ({"reset": reset} if resets else {})
        yield {name: torch.from_numpy(rows) for name, rows in batch.items()}


def bounded(documents: Iterator[np.ndarray], max_tokens: int | None) -> Iterator[np.ndarray]:
    """Documents until their targets (every token but the first) are max_tokens; reads no further."""
    left = max_tokens
    while left is None or left > 0:
        document = next(documents, None)
        if document is None:
            return
        if left is not None:
            document = document[: left + 1]
            left -= len(document) - 1
        yield document
