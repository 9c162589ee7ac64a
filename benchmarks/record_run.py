"""Keep the figures of a finished run: its command, commit, curve, closing figures and stories.

    python -m benchmarks.record_run OUT_DIR --out benchmarks/results/NAME.json [--tinystories FOLDER]

Paths that begin with FOLDER are written as $TINYSTORIES.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from training.metrics import read_metrics

CURVE = ("val/loss", "val/bits_per_byte", "train/loss", "perf/tokens_per_second")


def figures(out_dir: Path) -> dict[str, Any]:
    """What a run's config.json and metrics.jsonl say of it; ValueError if it is not finished."""
    facts = json.loads((out_dir / "config.json").read_text(encoding="utf-8"))
    records = read_metrics(out_dir / "metrics.jsonl")
    final = {tag: value for r in records for tag, value in r.items() if tag.startswith("final/")}
    if not final:
        raise ValueError(f"the run in {out_dir} is not finished; continue it with --resume")
    stories = [
        value for r in records for tag, value in r.items() if tag.startswith("samples/final")
    ]
    curve = {
        tag: [[r["step"], round(r[tag], 5)] for r in records if tag in r]  # [step, value]
        for tag in CURVE
    }
    return {**facts, "final": final, "curve": curve, "stories": stories}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tinystories", help="folder to be written as $TINYSTORIES")
    args = parser.parse_args()
    text = json.dumps(figures(args.out_dir), indent=1, ensure_ascii=False)
    if args.tinystories:
        text = text.replace(args.tinystories.rstrip("/") + "/", "$TINYSTORIES/")
    args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
