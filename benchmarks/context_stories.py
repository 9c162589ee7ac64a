"""What the bundled stories' checker says of stories told in segments, with the carried state and without it.

    python -m benchmarks.context_stories CKPT [CKPT ...] [--stories 200] [--seed 7]
        writes benchmarks/results/context_stories.json

Each checkpoint tells its stories twice from the same seed, at temperature 0.8: with the state that goes from segment to
segment, and with a state of zeros in every segment, as if the config said carry_state false. A checkpoint of the trunk
tells them once, with all it has told in its window. Several checkpoints are other training seeds, or other models.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from architecture import registry
from architecture.generation import generate_texts
from data.check import examine, summary, training_text
from training.atomic_files import write_json_atomic
from training.checkpoint import find_checkpoint
from training.command_line import Parser, exit_code, say
from training.provenance import provenance

RESULT = Path(__file__).parent / "results" / "context_stories.json"
MAX_TOKENS, TEMPERATURE = 400, 0.8


def ways_to_tell(model: Any) -> dict[str, Any]:
    """{name: config} of each way in which the model tells its stories."""
    if not getattr(model, "carries", False):
        return {"plain": model.config}
    return {name: dataclasses.replace(model.config, carry_state=carries)
            for name, carries in (("carried", True), ("zeroed", False))}  # fmt: skip


def run(args: argparse.Namespace) -> None:
    runs, found = training_text([]), []
    for given in args.checkpoints:
        path = find_checkpoint(given, say)
        model = registry.load_model(path).eval()
        entry = {"checkpoint": Path(given).name, "model": registry.model_name(model)}
        for name, config in ways_to_tell(model).items():
            model.config = config
            texts = generate_texts(
                model, [""] * args.stories, MAX_TOKENS, TEMPERATURE, seed=args.seed
            )
            entry[name] = summary([examine(text, runs) for text in texts])
            say(f"{given}, {name}: {entry[name]}")
        found.append(entry)
    facts = {
        "seed": args.seed,
        "temperature": TEMPERATURE,
        "max_tokens": MAX_TOKENS,
        **provenance(),
    }
    facts["command"] = "python -m benchmarks.context_stories " + " ".join(
        e["checkpoint"] for e in found
    )
    write_json_atomic(args.out, {"models": found, **facts})
    print(json.dumps(found, indent=1))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.context_stories", description=__doc__.splitlines()[0]
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CKPT")
    parser.add_argument("--stories", type=int, default=200, help="of each way (default: 200)")
    parser.add_argument("--seed", type=int, default=7, help="of the sampling (default: 7)")
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code("context_stories", lambda: run(parse(None))))
