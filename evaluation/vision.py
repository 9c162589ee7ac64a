"""Measure what a model sees: exact match of captions and answers, with two controls and chance.

    python -m evaluation.vision model
    python -m evaluation.vision model --number 1000 --out vision.json

A text is right if the model, taking the most probable token at each step, writes it whole and nothing else. A text
with images in it is asked for from its last image on.
Each row of the table is one kind of document:

exact    share of right texts with its 95 % interval (Wilson 1927)
zeroed   the same with every image black
swapped  the same with the images of another document
chance   the best constant: how often the commonest text of the kind is right

`validation` holds what training has not seen; for the data set `pictures` these are combinations of count,
colour and shape that no training scene has, and `familiar` holds new scenes of known combinations.

A second table shows, for each layer, how differently the routers treat image tokens and text tokens: the
total variation between the two distributions over experts, 0 if they are equal, 1 if they share no expert.

The tables go to stdout, and with --out the figures go to a JSON file.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import argparse
import functools
import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.script import Parser, exit_code, say
from evaluation import from_checkpoint

CAPTION = "caption"  # the kind of documents without a question
FAMILIAR = "familiar"  # the split of new scenes of known combinations


def parse(argv: list[str] | None) -> argparse.Namespace:
    title = "Exact match of captions and answers, with images zeroed and swapped, and chance."
    parser = Parser(prog="python -m evaluation.vision", allow_abbrev=False, description=title)
    add = parser.add_argument
    from_checkpoint.add_flags(parser)
    many = "read the first N documents of each split (default: 1000)"
    add("--number", type=int, default=1000, metavar="N", help=many)
    add("--batch_size", type=int, default=64, metavar="N", help="documents in a batch (default: 64)")
    add("--out", type=Path, metavar="FILE", help="file for the figures as JSON")
    args = parser.parse_args(argv)
    from_checkpoint.require_at_least(args, number=2, batch_size=1, threads=1)
    return args


def run(args: argparse.Namespace) -> None:
    from common.files import write_json_atomic
    from common.provenance import provenance
    from data.images import PICTURES, Pictured, open_images
    from training.monitor.captions import asked
    from training.state.checkpoint import data_identity, require_same_data

    path, saved, before = from_checkpoint.read(args)
    model = from_checkpoint.model_on_device(args, saved, path)
    images = getattr(model.config, "image_format", None)
    if images is None:
        raise ValueError(
            f"{path} must be of a model that reads images, and is of {model.name}; train one with "
            "python train.py --model gptoss_vision"
        )
    dataset, val_dataset, column, held = from_checkpoint.data_to_read(args, saved, before)
    dataset = dataset or val_dataset or PICTURES
    open_split = functools.partial(open_images, dataset, size=images.size, text_column=column)
    identity = held.get("validation data")
    sources = {"validation": open_split(split="validation", val_dataset=val_dataset, identity=identity)}
    if held:
        require_same_data(held, data_identity(None, sources["validation"]), path)
    if dataset == PICTURES and val_dataset is None:
        sources[FAMILIAR] = open_split(split=FAMILIAR)
    splits = {}
    for name, source in sources.items():
        documents = list(itertools.islice(source.documents(), args.number))
        pictured = [asked(document) for document in documents if isinstance(document, Pictured)]
        if len(pictured) < 2:
            raise ValueError(
                f"swapping images takes at least 2 documents with images, and the {name} split of "
                f"{source.name} has {len(pictured)}; use more data"
            )
        splits[name] = table(*scores(model, pictured, args.batch_size))
    found = {
        "checkpoint": str(path),
        "model": model.name,
        "data": sources["validation"].name,
        "splits": splits,
        "routing": routing(model, sources["validation"], before.get("block_size", 64), args),
        **provenance(),
    }
    print(as_text(found))
    if args.out:
        write_json_atomic(args.out, found)


def scores(
    model: Any, documents: Sequence[Any], batch_size: int
) -> tuple[list[tuple[str, str]], dict[str, list[bool]]]:
    """The (kind, text) of each document, and {column: whether the model wrote its text}.

    documents: as of captions.asked.
    """
    import numpy as np

    from training.monitor.captions import captioned

    own = [document.images for document in documents]
    columns = {
        "exact": own,
        "zeroed": [tuple(map(np.zeros_like, images)) for images in own],
        "swapped": swapped(own),
    }
    right = {name: [] for name in columns}
    for start in range(0, len(documents), batch_size):
        part = slice(start, start + batch_size)
        for name, images in columns.items():
            right[name] += [said.right for said in captioned(model, documents[part], images[part])]
    return [(document.kind, document.text) for document in documents], right


def swapped(images: Sequence[tuple]) -> list[tuple]:
    """The images of another document for each document: of the one half of the list away.

    Documents swap only with documents of as many images. One that has no such partner keeps its own.
    """
    result = list(images)
    for count in {len(own) for own in images}:
        places = [place for place, own in enumerate(images) if len(own) == count]
        half = len(places) // 2
        for place, other in zip(places, places[half:] + places[:half]):
            result[place] = images[other]
    return result


def table(kinds: Sequence[tuple[str, str]], right: dict[str, list[bool]]) -> list[dict[str, Any]]:
    """The rows of one split: one for each kind, and one for all kinds of answers together if there are several.

    kinds: (kind, text) of each document.  right: {column: whether each document was right}.
    """
    from common.intervals import wilson_interval

    texts: dict[str, Counter[str]] = {}
    for kind, text in kinds:
        texts.setdefault(kind, Counter())[text] += 1
    best = {kind: counter.most_common(1)[0] for kind, counter in texts.items()}
    answers = [kind for kind in texts if kind != CAPTION]
    groups = {kind: [kind] for kind in sorted(texts, key=lambda kind: (kind != CAPTION, kind))}
    if len(answers) > 1:
        groups["all answers"] = answers
    rows = []
    for name, members in groups.items():
        places = [place for place, (kind, _) in enumerate(kinds) if kind in members]
        row: dict[str, Any] = {"kind": name, "documents": len(places)}
        for column, values in right.items():
            count = sum(values[place] for place in places)
            row[column] = {"share": count / len(places), "interval": wilson_interval(count, len(places))}
        row["chance"] = sum(best[kind][1] for kind in members) / len(places)
        if len(members) == 1:
            row["constant"] = best[name][0]
        rows.append(row)
    return rows


def routing(model: Any, source: Any, block_size: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """For each MoE layer the distance of image tokens and text tokens, and the two distributions over experts."""
    from architecture.tokenizer import token_byte_lengths
    from common import device as machine
    from data.rows import validation_rows
    from training.monitor.routing import share_by_medium, total_variation
    from training.validation import evaluate

    device, first_image_id = next(model.parameters()).device, model.config.image_format.first_id
    batches = validation_rows(
        source,
        model.tokenizer,
        batch_size=args.batch_size,
        block_size=block_size,
        image_format=model.config.image_format,
    )
    most = -(-args.number // args.batch_size)
    found = evaluate(
        model,
        itertools.islice(batches, most),
        token_byte_lengths(model.tokenizer, model.config.vocab_size).to(device),
        device=device,
        autocast=functools.partial(machine.autocast, device, machine.choose_dtype("auto", device)),
        eot=model.tokenizer.eot_token,
        packing="rows",
        first_image_id=first_image_id,
        keep_choices=True,
    )
    for probe in found.probes:
        say(probe.line)
    if (found := found.routing) is None:
        return []
    text, image = share_by_medium(found, first_image_id)
    return [
        {"layer": layer, "distance": far, "text": of_text, "image": of_images}
        for layer, far, of_text, of_images in zip(
            found.layers, total_variation(text, image).tolist(), text.tolist(), image.tolist()
        )
    ]


def as_text(found: dict[str, Any]) -> str:
    """Both tables as text."""
    lines = []
    for name, rows in found["splits"].items():
        head = f"{'documents':>9} {'exact':>22} {'zeroed':>8} {'swapped':>8} {'chance':>8}"
        lines.append(f"{name:<16} {head}")
        for row in rows:
            low, high = row["exact"]["interval"]
            cells = "".join(f" {row[column]['share']:>8.1%}" for column in ("zeroed", "swapped"))
            exact = f"{row['exact']['share']:.1%} ({low:.1%} to {high:.1%})"
            lines.append(f"{row['kind']:<16} {row['documents']:>9,} {exact:>22}{cells} {row['chance']:>8.1%}")
        lines.append("")
    for row in found["routing"]:
        shares = "   ".join(
            f"{medium} " + " ".join(f"{share:.0%}" for share in row[medium]) for medium in ("text", "image")
        )
        lines.append(f"layer {row['layer']}: distance {row['distance']:.3f}   experts: {shares}")
    return "\n".join(lines).rstrip()


def main(argv: list[str] | None = None) -> int:
    return exit_code("evaluation.vision", lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
