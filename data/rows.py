"""Rows that hold one document each, with images or without (data/loader.py), for training and validation.

A row is [EOT, prompt, text, EOT], cut or padded to block_size; a pair of responses has two, and examples share one. An
image stands in it as image_format.tokens ids, the rows of the table of the features of all images of the batch:
first_id and onward. Only text is a target, and no prompt is.
"""

import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from architecture.images import IMAGE, ImageFormat, encode_with_images
from architecture.interface import IGNORE_INDEX
from architecture.tokenizer import HARMONY
from data.documents import Document, Pictured, Source
from data.examples import Example, Pair
from data.image_records import require_placeholders
from data.packing import PackedRows, as_tensors, encode

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """A document as ids, [EOT, ..., EOT] or the first block_size + 1 of them."""

    ids: np.ndarray  # (n,) int64; those of images count from the first image of the document
    scored: np.ndarray  # (n,) bool, whether the id is a target
    images: tuple[np.ndarray, ...]  # (3, S, S) uint8 each

    @property
    def prompt(self) -> list[int]:
        """The ids in front of the first target."""
        return self.ids[: int(self.scored.argmax())].tolist()


def chat_format(tokenizer, example: Example):
    """The Harmony in which a model is asked an example; None for plain text, as with other tokenizers."""
    return _harmony(tokenizer) if example.messages and tokenizer.name == HARMONY else None


@functools.cache  # because making one takes about a second
def _harmony(tokenizer):
    from architecture.open_gpt_oss.harmony import Harmony

    return Harmony(tokenizer)


class RowEncoder:
    """Turns documents into Rows of block_size tokens. It warns of the 1st, 10th, 100th ... text that it cuts."""

    def __init__(self, tokenizer, block_size: int, image_format: ImageFormat | None):
        self._tokenizer, self._block_size, self._format = tokenizer, block_size, image_format
        self.cut = 0  # number of texts cut so far

    def __call__(self, document: Document) -> Row:
        eot, images = self._tokenizer.eot_token, ()
        if isinstance(document, Pictured):
            images, (prompt, text) = document.images, self._with_images(document)
        elif isinstance(document, Example):  # each by itself, so that no token belongs to both
            prompt, text = (encode(self._tokenizer, part) for part in (document.prompt, document.response))
        else:
            prompt, text = [], encode(self._tokenizer, document)
        first, rest = [eot, *prompt], [*text, eot]
        if isinstance(document, Example) and (chat := chat_format(self._tokenizer, document)):
            first, rest = chat.example(document.messages)
        ids = np.array([*first, *rest], dtype=np.int64)
        is_image = np.zeros(len(ids), bool) if self._format is None else ids >= self._format.first_id
        scored = ~is_image
        scored[: len(first)] = False
        needed = int(np.flatnonzero(~scored)[-1]) + 1
        if needed > self._block_size:
            told, do = (
                ("its images and its prompt", "take an image out") if images else ("its prompt", "shorten it")
            )
            raise ValueError(
                f"{document.name}: {told} need{'s' * (not images)} {needed} tokens, but a row has block_size "
                f"{self._block_size}; raise --block_size or {do}"
            )
        if len(ids) > self._block_size + 1:
            self.cut += 1
            if str(self.cut).strip("0") == "1":
                name = getattr(document, "name", "a document")
                logger.warning(
                    f"{name} needs {len(ids) - 1:,} tokens, and a row holds block_size {self._block_size}; the "
                    f"rest of its text is cut off (documents cut so far: {self.cut:,})"
                )
        return Row(ids[: self._block_size + 1], scored[: self._block_size + 1], images)

    def _with_images(self, document):
        """Return the ids of the prompt and of the text. The placeholders say where the images go."""
        if self._format is None:
            raise ValueError(
                f"{document.name} has images, and this model reads only text; use --model gptoss_vision"
            )
        there = require_placeholders(document.prompt + document.text, len(document.images), document.name)
        in_prompt = document.prompt.count(IMAGE) if there else len(document.images)
        prompt = encode_with_images(self._tokenizer, document.prompt, in_prompt, self._format)
        in_text = len(document.images) - in_prompt
        text = encode_with_images(
            self._tokenizer, document.text, in_text, self._format, first_image=in_prompt
        )
        return prompt, text


class DocumentRows:
    """One document in each row. `tokens` is empty, since no document goes on in the next batch.

    mine: the rows of a batch that are returned.
    """

    tokens: list[np.ndarray] = []

    def __init__(
        self,
        documents,
        eot: int,
        num_rows: int,
        block_size: int,
        image_format: ImageFormat | None = None,
        mine: slice = slice(None),
    ):
        self._documents, self._num_rows, self._mine = documents, num_rows, mine
        self._layout = eot, block_size, image_format

    def __next__(self) -> dict[str, np.ndarray]:
        rows = [next(self._documents) for _ in range(self._num_rows)]
        return batch_of(rows[self._mine], *self._layout)


class PairEncoder:
    """Turns a Pair into two Rows, of the chosen and of the rejected response. A response that is cut has no last EOT."""

    def __init__(self, tokenizer, block_size: int):
        self._encode_row = RowEncoder(tokenizer, block_size, None)

    def __call__(self, pair: Pair) -> tuple[Row, Row]:
        responses = (("chosen", pair.chosen), ("rejected", pair.rejected))
        return tuple(
            self._encode_row(Example(pair.prompt, text, name=f"{pair.name}, {which}"))
            for which, text in responses
        )


class PairRows(DocumentRows):
    """The rows of the chosen responses of num_rows pairs, then those of the rejected ones, as long as the longest."""

    def __next__(self) -> dict[str, np.ndarray]:
        pairs = [next(self._documents) for _ in range(self._num_rows)]
        return pair_batch(pairs[self._mine], self._layout[0])


def pair_batch(pairs: list[tuple[Row, Row]], eot: int) -> dict[str, np.ndarray]:
    """Return input_ids and targets of B pairs, each (2 B, T) int64: B chosen, then B rejected responses."""
    rows = [row for responses in zip(*pairs) for row in responses]
    return batch_of(rows, eot, max(len(row.ids) for row in rows) - 1, None)


class ExampleRows(PackedRows):
    """Whole examples, in order, as many in a row as it holds; no example goes on in the next row.

    The positions of each begin at 0, which keeps attention inside it; those of padding continue the last one.
    `tokens`: the next example, which did not fit: its ids, and the number of those in front of the response.
    """

    def __next__(self) -> dict[str, np.ndarray]:
        if self.tokens:
            ids, (first,) = self.tokens
            waiting = row_of(ids, first)
        else:
            waiting = next(self._documents)
        rows = []
        for _ in range(self._num_rows):
            row, waiting = filled(waiting, self._documents, self._block_size)
            rows.append(row)
        self.tokens = [waiting.ids, np.flatnonzero(waiting.scored)[:1]]
        return packed_batch(rows[self._mine], int(self._eot[0]), self._block_size)


def row_of(ids: Sequence[int] | np.ndarray, first: int) -> Row:
    """A row of text whose targets are the ids from `first` on."""
    return Row(np.asarray(ids), np.arange(len(ids)) >= first, ())


def filled(first: Row, rest: Iterator[Row], block_size: int) -> tuple[list[Row], Row | None]:
    """As many examples, in order, as a row holds, and the one that did not fit; None at the end of `rest`."""
    held, waiting = [], first
    while waiting is not None and sum(len(row.ids) - 1 for row in (*held, waiting)) <= block_size:
        held.append(waiting)
        waiting = next(rest, None)
    return held, waiting


def packed_batch(rows: list[list[Row]], eot: int, block_size: int) -> dict[str, np.ndarray]:
    """Return input_ids, targets and positions, (rows, block_size) int64 each, of the examples of each row."""
    shape = len(rows), block_size
    batch = {"input_ids": np.full(shape, eot), "targets": np.full(shape, IGNORE_INDEX)}
    batch["positions"] = np.zeros(shape, np.int64)
    for number, examples in enumerate(rows):
        end = 0
        for row in examples:
            place = number, slice(end, end := end + len(row.ids) - 1)
            batch["input_ids"][place] = row.ids[:-1]
            batch["targets"][place] = np.where(row.scored, row.ids, IGNORE_INDEX)[1:]
            batch["positions"][number, place[1].start :] = np.arange(block_size - place[1].start)
    return batch


def packed(rows: Iterable[Row], batch_size: int, eot: int, block_size: int) -> list[dict[str, torch.Tensor]]:
    """All of these examples once, in order, in batches as of ExampleRows; the last one may have fewer rows."""
    rest, full = iter(rows), []
    waiting = next(rest, None)
    while waiting is not None:
        row, waiting = filled(waiting, rest, block_size)
        full.append(row)
    parts = (full[n : n + batch_size] for n in range(0, len(full), batch_size))
    return [as_tensors(packed_batch(part, eot, block_size)) for part in parts]


def batch_of(
    rows: list[Row], eot: int, block_size: int, image_format: ImageFormat | None
) -> dict[str, np.ndarray]:
    """Return input_ids and targets, each (rows, block_size) int64, padded with EOT and -100, and images,
    (M, 3, S, S) uint8, if there are any.
    """
    inputs, targets = np.full((len(rows), block_size), eot), np.full((len(rows), block_size), IGNORE_INDEX)
    images = []
    for number, row in enumerate(rows):
        ids, length = row.ids.copy(), len(row.ids) - 1
        if images and row.images:
            ids[ids >= image_format.first_id] += len(images) * image_format.tokens
        inputs[number, :length] = ids[:-1]
        targets[number, :length] = np.where(row.scored, ids, IGNORE_INDEX)[1:]
        images += row.images
    return {"input_ids": inputs, "targets": targets} | ({"images": np.stack(images)} if images else {})


def validation_rows(
    source: Source,
    tokenizer,
    *,
    batch_size: int,
    block_size: int,
    max_tokens: int | None = None,
    image_format: ImageFormat | None = None,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the documents in their fixed order, one in each row, in dicts as TrainLoader does.

    Each of the first max_tokens scored tokens (None: of all) is a target once. The last batch may have fewer
    rows. No document is read that max_tokens does not need.
    """
    source.check_tokenizer(tokenizer)
    encode_row = RowEncoder(tokenizer, block_size, image_format)
    rows, left = [], max_tokens
    for document in source.documents():
        row = encode_row(document)
        if left is not None:
            row = row._replace(scored=row.scored & (row.scored.cumsum() <= left))
            left -= int(row.scored.sum())
        rows.append(row)
        if len(rows) == batch_size or left == 0:
            yield as_tensors(batch_of(rows, tokenizer.eot_token, block_size, image_format))
            rows = []
        if left == 0:
            return
    if rows:
        yield as_tensors(batch_of(rows, tokenizer.eot_token, block_size, image_format))
