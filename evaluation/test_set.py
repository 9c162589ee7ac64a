"""Score checkpoints on the test set: the third of the validation documents that only verdicts look at.

    python -m evaluation.test_set RUN ...                 bits per byte of each, on the data of its run
    python -m evaluation.test_set RUN --out FILE.json     the figures, and FILE.npz with the sums of each document

Every token is scored once, in the rows of the run: its packing, block_size and batch_size, and with its state
carried from segment to segment if it has one. The hash of its text puts a document into the test set, so
the set is the same for every tokenizer; the line that names it has a hash of its content. Runs with
--hold_out_test, such as those of ablate.py, never looked at it; other runs did, and their line says so.
FILE.npz holds, in the order of the data, nats (float32, text tokens only) and bytes (int32) of each document.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.script import Parser, exit_code, say
from evaluation import from_checkpoint

BLOCK_SIZE = 256  # for a checkpoint that does not say how it was trained


class Scores(NamedTuple):
    """The sums over the tokens of a test set of D documents."""

    nats: Any  # (D,) float64 array: nats of the text tokens of each document
    bytes: Any  # (D,) int64 array: UTF-8 bytes of these tokens
    loss_sum: float  # nats of all tokens, end-of-text included
    tokens: int  # how many these are

    @property
    def bits_per_byte(self) -> float:
        return self.nats.sum() / math.log(2) / self.bytes.sum()


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m evaluation.test_set",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    from_checkpoint.add_flags(parser, several=True)
    out = "file for the figures (JSON) and, under the name FILE.npz, the sums of each document; for one checkpoint"
    parser.add_argument("--out", type=Path, metavar="FILE", help=out)
    args = parser.parse_args(argv)
    from_checkpoint.require_at_least(args, threads=1)
    if args.out and len(args.checkpoint) > 1:
        raise ValueError(
            f"--out takes the figures of one checkpoint, got {len(args.checkpoint)} checkpoints; leave --out out, or "
            "score them one by one"
        )
    if args.out and args.out.suffix == ".npz":
        raise ValueError(f"--out names the file of the figures, got {args.out}; name it {args.out.stem}.json")
    return args


def run(args: argparse.Namespace) -> None:
    for name in args.checkpoint:
        found, scores = scored(argparse.Namespace(**vars(args) | {"checkpoint": name}))
        print(in_words(found), flush=True)
        if args.out:
            write(args.out, found, scores)


def write(path: Path, found: dict[str, Any], scores: Scores) -> None:
    """Write the figures into `path`, and before them the sums of each document beside it."""
    import numpy as np

    from common.files import atomic_write, write_json_atomic

    with atomic_write(path.with_suffix(".npz")) as file:
        np.savez_compressed(file, nats=scores.nats.astype(np.float32), bytes=scores.bytes.astype(np.int32))
    write_json_atomic(path, found)


def scored(args: argparse.Namespace) -> tuple[dict[str, Any], Scores]:
    """The figures of a checkpoint, and the sums behind them."""
    import torch

    from architecture.tokenizer import token_byte_lengths
    from common import device as machine
    from common.provenance import provenance
    from data.test_split import read_test_set
    from training.causality import require_causal
    from training.validation import ratio_interval

    path, saved, before = from_checkpoint.read(args)
    model = from_checkpoint.model_on_device(args, saved, path)
    if getattr(model.config, "image_format", None) is not None:
        raise ValueError(f"{path} reads images, and the test set is one of text; use evaluation.vision")
    device = next(model.parameters()).device
    others = args.dataset is not None or args.val_dataset is not None  # not the data of the run
    source = from_checkpoint.validation_source(args, saved, before, path, model.tokenizer)
    documents, identity = read_test_set(source, model.tokenizer)
    carries = getattr(model, "carries", False)
    longest = model.config.segment_length if carries else min(BLOCK_SIZE, model.config.context_limit)
    packing = before.get("packing", "lanes" if carries else "packed")
    rows = {"batch_size": before.get("batch_size", 8), "block_size": before.get("block_size", longest)}
    autocast = functools.partial(machine.autocast, device, machine.choose_dtype("auto", device))
    for probe in require_causal(model.eval(), *rows.values(), device=device, autocast=autocast):
        say(probe.line)
    scores = score(
        model,
        batches(documents, model.tokenizer, packing, **rows),
        len(documents),
        token_byte_lengths(model.tokenizer, model.config.vocab_size),
        autocast,
    )
    _, half_width = ratio_interval(torch.from_numpy(scores.nats), torch.from_numpy(scores.bytes))
    found = {
        "bits_per_byte": scores.bits_per_byte,
        "half_width_over_documents": half_width / math.log(2),
        "loss": scores.loss_sum / scores.tokens,
        "tokens": scores.tokens,
        "documents": len(documents),
        "test_set": identity,
        "data": source.name,
        "held_out": None if others else bool(before.get("hold_out_test", False)),
        "packing": packing,
        **rows,
        "checkpoint": str(path),
    }
    return found | provenance(), scores


class Documents:
    """Documents in memory, as the functions of data/packing.py read them; their tokenizer was checked."""

    def __init__(self, documents: list[Any]):
        self._documents = documents

    def documents(self) -> Iterator[Any]:
        return iter(self._documents)

    def check_tokenizer(self, tokenizer: Any) -> None: ...


def batches(
    documents: list[Any], tokenizer: Any, packing: str, *, batch_size: int, block_size: int
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield the batches of an evaluation, and for each the (B, T) int64 number of every target's document.

    The number of a target that is padding has no meaning.
    """
    import torch

    from data.packing import validation_batches, validation_lanes
    from data.rows import validation_rows
    from training.validation import document_numbers

    source, size = Documents(documents), {"batch_size": batch_size, "block_size": block_size}
    if packing == "lanes":
        begun, current = 0, torch.zeros(batch_size, dtype=torch.long)
        for batch in validation_lanes(source, tokenizer, resets=True, **size):
            begins = batch["reset"]  # these lanes take the next documents, in the order of the lanes
            current[begins] = begun + torch.arange(int(begins.sum()))
            begun += int(begins.sum())
            yield batch, current[:, None].expand_as(batch["targets"])
        return
    cut = validation_rows if packing == "rows" else validation_batches
    ended = 0
    for batch in cut(source, tokenizer, **size):
        numbers, ended = document_numbers(batch["targets"], ended, tokenizer.eot_token, packing)
        yield batch, numbers


def score(
    model: Any,
    numbered: Iterable[tuple[dict[str, Any], Any]],
    count: int,
    token_bytes: Any,
    autocast: Callable[[], Any],
) -> Scores:
    """Score every target once, in eval mode, and sum by document.

    numbered: from batches().  count: number of documents.  token_bytes: (V,) int64, 0 for special tokens.
    """
    import torch

    from architecture.interface import IGNORE_INDEX

    device, carry = next(model.parameters()).device, None
    nats, num_bytes = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.long)
    loss_sum, tokens = 0.0, 0
    model.eval()
    with torch.no_grad():
        for batch, number in numbered:
            if not getattr(model, "carries", False):
                batch.pop("reset", None)
            with autocast():
                out = model(**{name: part.to(device) for name, part in batch.items()}, carry=carry)
            carry, targets = out.carry, batch["targets"]
            losses, counted = out.token_losses.cpu().double(), targets != IGNORE_INDEX
            loss_sum, tokens = loss_sum + float(losses[counted].sum()), tokens + int(counted.sum())
            sizes = token_bytes[targets.clamp(min=0)] * counted
            text = sizes > 0
            nats.index_add_(0, number[text], losses[text])
            num_bytes.index_add_(0, number[text], sizes[text])
    if not (num_bytes > 0).all():
        empty = int((num_bytes == 0).sum())
        raise ValueError(f"{empty} documents of the test set have no text token; remove them from the data")
    return Scores(nats.numpy(), num_bytes.numpy(), loss_sum, tokens)


def in_words(found: dict[str, Any]) -> str:
    """The line that is printed for a checkpoint."""
    remark = ""
    if found["held_out"] is False:
        remark = "; its run did not hold these documents out (--hold_out_test), so its own evaluations may have read them"
    return (
        f"{found['checkpoint']}: test {found['bits_per_byte']:.4f} +- {found['half_width_over_documents']:.4f} bits per "
        f"byte (95 % over documents), loss {found['loss']:.4f}, {found['tokens']:,} tokens once each; test set of "
        f"{found['data']}: {found['test_set']}{remark}"
    )


def main(argv: list[str] | None = None) -> int:
    return exit_code("evaluation.test_set", lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
