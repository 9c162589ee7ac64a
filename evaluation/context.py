"""Measure what a carried state is worth: the loss by segment with the state carried, zeroed and swapped.

    python -m evaluation.context model_context > context.json

carried  the state goes from segment to segment, as in training
zeroed   each segment begins with a state of zeros
swapped  each segment begins with the state that another document of about the same length has there

In all three, the first segment begins with a state of zeros. A model without a state reads windows of its
block_size and has the column plain; --segment_length sets the rows of its table, so that they match those of
a model with a state. Two flags add rivals of the state, which need no training:

    python -m evaluation.context model --overlap 8,16 --keep_keys 64

overlap_N  the first N tokens of a window repeat the last N of the window before, and are not scored again
kept_N     the keys and values of the last N tokens of a window stay visible in the next, and positions go on

All columns score the same tokens of the same documents, so differences are taken document by document.
Standard errors and 95 % intervals are over documents, because the tokens of a document are not independent.
The JSON also holds what each column costs: windows, and tokens computed per scored token.

The JSON goes to stdout or, with --out, to a file. The table goes to stderr.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.script import Parser, exit_code, say
from common.settings import cast
from evaluation import from_checkpoint
from evaluation.windows import Reading, Scores, read, readings, require_plain_beginning


class Losses(NamedTuple):
    """The losses of one document."""

    tokens: list[int]  # number of targets in each segment
    nats: dict[str, list[float]]  # column: sum of the losses in each segment
    windows: dict[str, int]  # column: number of windows, or of segments
    computed: dict[str, int]  # column: tokens that the model computed, with slots and repeated tokens


def parse(argv: list[str] | None) -> argparse.Namespace:
    title = "Loss by segment with the state carried, zeroed and swapped."
    parser = Parser(prog="python -m evaluation.context", allow_abbrev=False, description=title)
    add = parser.add_argument
    from_checkpoint.add_flags(parser)
    add("--documents", type=int, default=1000, metavar="N", help="read the first N documents (default: 1000)")
    add(
        "--test_set",
        action="store_true",
        help="read the test set (evaluation.test_set) in place of all documents",
    )
    rows = "tokens in a row of the table, for a model without a state (default: its block_size)"
    add("--segment_length", type=int, metavar="N", help=rows)
    overlap = "also read windows whose first N tokens repeat the window before; one N or several: 8,16"
    add("--overlap", default="", metavar="N", help=overlap)
    kept = "also keep the keys and values of the last N tokens of a window for the next; one N or several"
    add("--keep_keys", default="", metavar="N", help=kept)
    add("--batch_size", type=int, default=32, metavar="N", help="documents in a batch (default: 32)")
    add("--out", type=Path, metavar="FILE", help="file for the JSON (default: stdout)")
    args = parser.parse_args(argv)
    from_checkpoint.require_at_least(args, documents=2, batch_size=2, segment_length=1, threads=1)
    args.overlap = cast("--overlap", args.overlap, tuple[int, ...])
    args.keep_keys = cast("--keep_keys", args.keep_keys, tuple[int, ...])
    return args


def run(args: argparse.Namespace) -> None:
    from common import device as machine
    from common.files import write_json_atomic
    from common.provenance import provenance
    from data.packing import encode
    from data.test_split import PartOfValidation

    path, saved, before = from_checkpoint.read(args)
    model = from_checkpoint.model_on_device(args, saved, path)
    device = next(model.parameters()).device
    carries = getattr(model, "carries", False)
    window = model.config.segment_length if carries else before.get("block_size", model.config.context_limit)
    if carries and args.segment_length not in (None, window):
        raise ValueError(
            f"{path} has segments of {window}, got --segment_length {args.segment_length}; leave it out"
        )
    if carries and (args.overlap or args.keep_keys):
        raise ValueError(
            f"{path} carries a state from segment to segment, and --overlap and --keep_keys are for models without "
            "one; leave them out"
        )
    ways = () if carries else readings(model, window, args.overlap, args.keep_keys)
    source = from_checkpoint.validation_source(args, saved, before, path, model.tokenizer)
    if args.test_set:
        source = PartOfValidation(source, model.tokenizer, test=True)
    eot = model.tokenizer.eot_token
    documents = [
        [eot, *encode(model.tokenizer, document).tolist(), eot]
        for document in itertools.islice(source.documents(), args.documents)
    ]
    autocast = functools.partial(machine.autocast, device, machine.choose_dtype("auto", device))
    length = args.segment_length or window
    losses = list(document_losses(model, documents, window, length, args.batch_size, autocast, ways))
    found = {
        "checkpoint": str(path),
        "model": model.name,
        "data": source.name,
        "documents": len(losses),
        "window": window,
        "segment_length": length,
        **table(losses),
        "costs": costs(losses),
        **provenance(),
    }
    say(as_text(found))
    if args.out:
        write_json_atomic(args.out, found)
    else:
        print(json.dumps(found, indent=1))


def document_losses(
    model: Any,
    documents: list[list[int]],
    window: int,
    segment_length: int,
    batch_size: int,
    autocast: Callable[[], Any],
    ways: tuple[Reading, ...] = (Reading(),),
) -> Iterator[Losses]:
    """Yield the losses of each document, the shortest document first.

    documents: [EOT, ids, EOT] each.  window: tokens that the model reads at once.
    segment_length: tokens of a segment of the table.  ways: the columns of a model without a state.
    Raises ValueError for a model that is not causal (training/causality.py).
    """
    import torch

    from training.causality import require_causal

    if len(documents) < 2:
        raise ValueError(
            f"swapping states takes at least 2 documents, got {len(documents)}; use more validation data"
        )
    documents = sorted(documents, key=len)
    groups = [documents[i : i + batch_size] for i in range(0, len(documents), batch_size)]
    if len(groups[-1]) == 1:  # a single document has no other to swap its state with
        groups[-2:] = [groups[-2] + groups[-1]]
    model.eval()
    device = next(model.parameters()).device
    for probe in require_causal(model, len(groups[0]), window, device=device, autocast=autocast):
        say(probe.line)
    for group in groups:
        with torch.no_grad():
            columns = group_losses(model, group, window, autocast, ways)
        for row, document in enumerate(group):
            count = len(document) - 1
            tokens = [min(segment_length, count - start) for start in range(0, count, segment_length)]
            nats = {
                name: [float(part.sum()) for part in scores.losses[row, :count].split(segment_length)]
                for name, scores in columns.items()
            }
            windows = {name: int(scores.windows[row]) for name, scores in columns.items()}
            computed = {name: int(scores.computed[row]) for name, scores in columns.items()}
            yield Losses(tokens, nats, windows, computed)


def group_losses(
    model: Any, group: list[list[int]], window: int, autocast: Callable[[], Any], ways: tuple[Reading, ...]
) -> dict[str, Scores]:
    """Return {column: the scores of every token of the group}."""
    import torch

    from architecture.interface import IGNORE_INDEX
    from training.causality import computing_dtype

    length = max(map(len, group)) - 1
    eot, device = group[0][0], next(model.parameters()).device
    inputs = torch.full((len(group), length), eot)
    targets = torch.full_like(inputs, IGNORE_INDEX)
    for row, document in enumerate(group):
        inputs[row, : len(document) - 1] = torch.tensor(document[:-1])
        targets[row, : len(document) - 1] = torch.tensor(document[1:])
    if not getattr(model, "carries", False):
        found = {way.name: read(model, inputs, targets, window, way, autocast) for way in ways}
        require_plain_beginning(found, window, computing_dtype(model, device, autocast))
        return found
    columns = {name: [] for name in ("carried", "zeroed", "swapped")}
    state = None
    for start in range(0, length, window):
        part = [x[:, start : start + window].to(device) for x in (inputs, targets)]
        begin = {"carried": state, "zeroed": None}
        begin["swapped"] = None if state is None else state.roll(1, 0)  # the state of the document before
        for name, losses in columns.items():
            with autocast():
                output = model(*part, carry=begin[name])
            losses.append(output.token_losses.double().cpu())
            if name == "carried":
                state = output.carry  # a document that has ended keeps its last state
    tokens = (targets != IGNORE_INDEX).sum(1)
    segments = -(-tokens // window)  # each has a slot, which passes through the model like a token
    return {
        name: Scores(torch.cat(losses, dim=1), segments, tokens + segments)
        for name, losses in columns.items()
    }


def ratio(nats: list[float], tokens: list[int]) -> dict[str, float]:
    """Nats per token over documents, with the errors of training.validation.ratio_interval."""
    import torch

    from training.validation import ratio_interval

    error, half_width = ratio_interval(torch.tensor(nats), torch.tensor(tokens))
    return {"mean": sum(nats) / sum(tokens), "standard_error": error, "half_width": half_width}


def comparison(parts: list[tuple[int, dict[str, float]]]) -> dict[str, Any]:
    """Mean and standard error of each column and of its difference to the first column.

    parts: (tokens, {column: nats}) of each document.
    """
    tokens = [count for count, _ in parts]
    names = list(parts[0][1])
    found = {"documents": len(parts), "tokens": sum(tokens)}
    for name in names:
        found[name] = ratio([nats[name] for _, nats in parts], tokens)
    for name in names[1:]:
        differences = [nats[name] - nats[names[0]] for _, nats in parts]
        found[f"{name} - {names[0]}"] = ratio(differences, tokens)
    return found


def table(losses: list[Losses]) -> dict[str, Any]:
    """Comparisons of each segment ("segments"), of all tokens ("all"), and without the first segment
    ("after_the_first").
    """

    def compare(segments: slice) -> dict[str, Any]:
        parts = [
            (sum(d.tokens[segments]), {name: sum(nats[segments]) for name, nats in d.nats.items()})
            for d in losses
            if d.tokens[segments]
        ]
        return comparison(parts)

    longest = max(len(d.tokens) for d in losses)
    found: dict[str, Any] = {
        "segments": [{"segment": n} | compare(slice(n, n + 1)) for n in range(longest)],
        "all": compare(slice(None)),
    }
    if longest > 1:
        found["after_the_first"] = compare(slice(1, None))
    return found


def costs(losses: list[Losses]) -> dict[str, Any]:
    """What each column costs: windows, tokens computed, and these per scored token."""
    scored = sum(sum(document.tokens) for document in losses)
    found = {}
    for name in losses[0].nats:
        computed = sum(document.computed[name] for document in losses)
        found[name] = {
            "windows": sum(document.windows[name] for document in losses),
            "tokens_computed": computed,
            "tokens_computed_per_scored_token": computed / scored,
        }
    return found


def as_text(found: dict[str, Any]) -> str:
    """Two tables as text: the losses by segment as trained, and every column with its costs.

    Nats per token +- half width of the 95 % interval over documents.
    """
    last = "after_the_first" if "after_the_first" in found else "all"
    titles = {"after_the_first": "from 1 on", "all": "all"}
    rows = [(str(entry["segment"]), entry) for entry in found["segments"]]
    rows += [(title, found[key]) for key, title in titles.items() if key in found]
    columns = list(found["costs"])
    first = columns[0]
    names = [name for name in columns if not name.startswith(("overlap_", "kept_"))]
    names += [f"{name} - {first}" for name in names[1:]]
    lines = [f"{'segment':>9} {'documents':>9} {'tokens':>9}" + "".join(f"{n:>21}" for n in names)]
    for title, entry in rows:
        cells = "".join(_cell(entry[name]) for name in names)
        lines.append(f"{title:>9} {entry['documents']:>9,} {entry['tokens']:>9,}{cells}")
    difference = f"- {first}"
    heads = f"{titles[last]:>21}{difference:>21}  windows  tokens computed per scored token"
    lines += ["", f"{'column':<11}{heads}"]
    for name, cost in found["costs"].items():
        beside = " " * 21 if name == first else _cell(found[last][f"{name} - {first}"])
        counts = f"{cost['windows']:>9,}  {cost['tokens_computed_per_scored_token']:.3f}"
        lines.append(f"{name:<11}{_cell(found[last][name])}{beside}{counts}")
    return "\n".join([*lines, "+-: 95 % interval over documents"])


def _cell(entry: dict[str, float]) -> str:
    """A mean and its half width in 21 characters."""
    half_width = entry["half_width"]
    interval = "unknown" if half_width is None else f"{half_width:.4f}"
    return f"{entry['mean']:.4f} +- {interval}".rjust(21)


def main(argv: list[str] | None = None) -> int:
    return exit_code("evaluation.context", lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
