"""Check stories that were generated in segments, with the carried state and without it.

    python -m benchmarks.context_stories CKPT [CKPT ...] [--stories 200] [--seed 7]
        writes benchmarks/results/context_stories.json

The checkpoints, or folders of runs, come from train_context.py on the bundled stories and differ in their
training seed. Each generates its stories twice from the same seed, at temperature 0.8: with the state that is
carried from segment to segment, and with a state of zeros in every segment, as with carry_state: false. The
model was trained with the state in both cases.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from architecture import registry
from architecture.checkpoint import find_checkpoint
from architecture.generation.text import generate_texts
from benchmarks.publish import publish
from common.script import Parser, exit_code, say
from evaluation.ablation import statistics
from evaluation.check import examine, summary, training_text

MAX_TOKENS, TEMPERATURE = 400, 0.8
PASSES = "consistent and finished"  # the count of evaluation.check that is compared


def load(given: str) -> Any:
    """Load a model that was trained to carry a state."""
    path = find_checkpoint(given, say)
    model = registry.load_model(path).eval()
    if not getattr(model.config, "carry_state", False):
        raise ValueError(
            f"{path} must hold a model that carries a state, but holds {model.name!r} without one; "
            "give a checkpoint of train_context.py"
        )
    return model


def run(args: argparse.Namespace) -> None:
    models = [load(given) for given in args.checkpoints]
    runs, found = training_text([]), []
    for given, model in zip(args.checkpoints, models):
        entry = {"checkpoint": given}
        for name, carries in (("carried", True), ("zeroed", False)):
            model.config = dataclasses.replace(model.config, carry_state=carries)
            prompts = [""] * args.stories
            texts = generate_texts(model, prompts, MAX_TOKENS, TEMPERATURE, seed=args.seed)
            entry[name] = summary([examine(text, runs) for text in texts])
            say(f"{given}, {name}: {entry[name]}")
        found.append(entry)
    shares = [(e["carried"][PASSES] - e["zeroed"][PASSES]) / args.stories for e in found]
    difference = statistics.summary(shares)._asdict() if len(found) > 1 else {"mean": shares[0]}
    options = {"stories": args.stories, "seed": args.seed, "temperature": TEMPERATURE}
    result = {"models": found, "carried - zeroed, share that passes": difference, **options}
    publish("context_stories", result, map(Path, args.checkpoints))
    print(json.dumps(result, indent=1))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.context_stories", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", metavar="CKPT")
    parser.add_argument(
        "--stories", type=int, default=200, help="stories with and without the state (default: 200)"
    )
    parser.add_argument("--seed", type=int, default=7, help="seed of the sampling (default: 7)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code("benchmarks.context_stories", lambda: run(parse(None))))
