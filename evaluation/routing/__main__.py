"""Show what the routers of a model do with a text, and what changes without an expert, on one page.

    python -m evaluation.routing model --text "Once upon a time there was a dog."
    python -m evaluation.routing model --text "..." --knock_out 1:3 1:3,2:0 --swap 1:3=5
    python -m evaluation.routing model --text "..." --replay loop:float32 sorted:bfloat16

The page is one HTML file, which opens from disk and asks no network: the experts of each token and layer with
their weights, entropy, margin and load; for each expert what the text costs without it, and the tokens that it
changes most; and how the model goes on with the text after the changes that --knock_out and --swap name. Without
them, the page shows the knock-out that costs most. Layers and experts are counted from 0.

A knocked out expert is taken out of the choice, and the next best takes its place. Of two swapped experts each
runs in the place of the other, with the other's weight. No weight of the model changes.

--replay runs the text with two backends or precisions, and with the second one forced along the routing of the
first, which splits their difference into arithmetic and routing flips.
"""

from __future__ import annotations

import common.begin  # isort: skip  first: Ctrl-C during the imports below

import argparse
import sys
from pathlib import Path
from typing import Any

from common.script import Parser, exit_code, say


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m evaluation.routing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    run = "a run's folder, a checkpoint_<step>.pt, RUN/best.json, or a folder of gpt-oss"
    add("run", metavar="RUN", help=run)
    add(
        "--text",
        required=True,
        help="the text, at most the context limit; one pass over it for each expert in use",
    )
    add("--out", type=Path, default=Path("routing.html"), metavar="FILE.html", help="default: routing.html")
    knock_out = "experts to take out of the choice; each argument is one change, a comma joins several"
    add("--knock_out", nargs="+", default=[], metavar="LAYER:EXPERT", help=knock_out)
    swap = "experts that change places, as for --knock_out"
    add("--swap", nargs="+", default=[], metavar="LAYER:EXPERT=EXPERT", help=swap)
    replay = (
        "two ways to compute: EXPERTS:DTYPE or EXPERTS+ATTENTION:DTYPE, such as loop:float32 sorted:bfloat16"
    )
    add("--replay", nargs=2, metavar=("A", "B"), help=replay)
    add("--max_tokens", type=int, default=60, help="most tokens of a continuation (default: 60)")
    add("--temperature", type=float, default=0.8, help="of the sampled continuation (default: 0.8)")
    add("--seed", type=int, default=1, help="of the sampled continuation (default: 1)")
    add("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N (default: auto)")
    threads = "CPU threads (default: one for each core that is free at the start)"
    add("--threads", type=int, metavar="N", help=threads)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    from evaluation.routing import changes

    if args.out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out must end in .html, got {args.out}")
    if not args.out.parent.is_dir():
        raise ValueError(f"--out {args.out}: the folder {args.out.parent} does not exist; create it first")
    if args.max_tokens < 1 or not args.temperature > 0:
        raise ValueError(
            f"--max_tokens must be at least 1 and --temperature above 0, got {args.max_tokens} and {args.temperature}"
        )
    asked = [changes.knock_out(text) for text in args.knock_out] + [changes.swap(text) for text in args.swap]

    from common.files import atomic_write
    from common.threads import set_threads
    from evaluation.routing.page import html
    from evaluation.routing.replay import parse_backend

    backends = [parse_backend(text) for text in args.replay or []]
    if line := set_threads(args.threads, common.begin.STARTED):
        say(line)
    found = look(args, asked, backends)
    with atomic_write(args.out) as file:  # before the lines, whose reader may leave
        file.write(html(found).encode())
    for line in summary(found):
        print(line, flush=True)
    say(f"wrote {args.out}")


def look(args: argparse.Namespace, asked: list, backends: list) -> Any:
    """Measure everything. Returns a page.Found. Raises ValueError for a model that is not causal."""
    import contextlib

    from tqdm import tqdm

    from architecture.checkpoint import find_checkpoint
    from architecture.registry import load_model
    from common.device import choose_device
    from evaluation.routing import measure, page, replay
    from evaluation.routing.changes import UNCHANGED, Change, require_possible, routers
    from training.causality import MOST_ROWS, MOST_TOKENS, require_causal

    device, path = choose_device(args.device), find_checkpoint(args.run, say)
    model = load_model(path, device=device)
    layers, config = list(routers(model)), model.config
    for change in asked:
        require_possible(change, model)
    text = measure.read_text(model, args.text)

    def gate(model, autocast):
        most = min(MOST_TOKENS, measure.most_tokens(model))
        for probe in require_causal(model, MOST_ROWS, most, device=device, autocast=autocast):
            say(probe.line)

    gate(model, contextlib.nullcontext)
    replays = []
    if backends:  # first, because it is what may refuse
        (a, in_a), (b, in_b) = (replay.load(path, backend, device) for backend in backends)
        gate(a, in_a)
        gate(b, in_b)
        names = [f"{x.experts_backend}+{x.attention_backend}:{y.dtype}" for x, y in zip((a, b), backends)]
        replays = [page.Replay(*names, replay.split(a, b, text.ids, in_a, in_b))]
        del a, b
    reading = measure.read(model, text)

    def progress(pairs):
        return tqdm(pairs, desc="without one expert", unit=" experts", leave=False, disable=None)

    knocked = measure.knock_outs(model, text, reading, progress)
    chosen_here = not asked and knocked is not None
    if chosen_here:
        row, expert = divmod(int(knocked.sum(-1).argmax()), config.num_experts)
        asked = [Change(knocked_out=((layers[row], expert),))]
    tokens = measure.room(model, text, args.max_tokens)
    told = measure.continuations(model, text, [UNCHANGED, *asked], tokens, args.temperature, args.seed)
    changed = [
        page.Changed(change, measure.read(model, text, change).bits - reading.bits, texts)
        for change, texts in zip(asked, told[1:])
    ]
    limit = " (the context limit leaves no more)" if tokens < args.max_tokens else ""
    settings = f"Continuations of at most {tokens} tokens{limit}; sampled at temperature {args.temperature}, "
    settings += f"seed {args.seed}."
    if chosen_here:
        settings += " No change was asked for: this is the knock-out that costs most."
    shape = f"{config.num_hidden_layers} layers, {config.num_experts} experts, {config.experts_per_token} per token"
    return page.Found(
        name=path.name if path.parent == Path() else f"{path.parent.name}/{path.name}",
        model=f"{model.name}, {shape}, hidden size {config.hidden_size}",
        settings=settings,
        text=text,
        layers=layers,
        experts=config.num_experts,
        reading=reading,
        load=measure.load(reading, config.num_experts),
        knock_outs=knocked,
        continuations=told[0],
        changes=changed,
        replays=replays,
    )


def summary(found: Any) -> list[str]:
    """The most important figures as lines."""
    from evaluation.routing.page import control_line, replay_lines, signed
    from evaluation.routing.replay import table

    before = found.per_byte(found.reading.bits)
    lines = [f"bits per byte {before:.4f}, {len(found.text.tokens) - 1} tokens, {found.text.num_bytes} bytes"]
    lines += [
        f"{one.change.name}: {signed(found.per_byte(one.bits))} bits per byte; greedy text "
        + ("the same" if one.continuations[0] == found.continuations[0] else "another")
        for one in found.changes
    ]
    totals = [] if found.knock_outs is None else found.per_byte(found.knock_outs)
    for layer, row in zip(found.layers, totals):
        order = sorted(range(found.experts), key=lambda e: -row[e])
        shown = order if len(order) <= 8 else [*order[:4], *order[-2:]]
        lines.append(f"layer {layer} without expert: " + ", ".join(f"{e} {signed(row[e])}" for e in shown))
    for one in found.replays:
        lines.append(f"A = {one.a}, B = {one.b}: arithmetic, flips, together")
        lines += ["  " + ": ".join((line[0], ", ".join(line[1:]))) for line in
                  replay_lines(one.split, found.per_byte(one.split.bits))]  # fmt: skip
        lines += [
            f"  layer {layer}: flips {flips}, direct {direct}; median lead {lead:.3g}"
            + (f", at flips {at_flips:.3g}" if flips else "")
            + f"; median error {error:.3g}"
            for layer, flips, direct, lead, at_flips, error in table(one.split, found.layers)
        ]
        lines.append("  " + control_line(one.split))
    return lines


def main(argv: list[str] | None = None) -> int:
    return exit_code("evaluation.routing", lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
