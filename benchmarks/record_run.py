"""Publish the figures of finished runs: their commands, commits, curves, final figures and stories.

    python -m benchmarks.record_run OUT_DIR [OUT_DIR ...] --out FILE.json [--tinystories FOLDER]

Several runs must be seeds of one recipe; then their bits per byte with mean and deviation come first. Paths
that begin with FOLDER are written as $TINYSTORIES, and the folders of the runs by their last name.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.publish import public_text, require_clean_commits
from evaluation.ablation.statistics import summary
from training.config import OF_THIS_CALL
from training.monitor.metrics import read_metrics

CURVE = ("val/loss", "val/bits_per_byte", "train/loss", "perf/tokens_per_second")


def figures(out_dir: Path) -> dict[str, Any]:
    """The figures of a run, from its config.json and metrics.jsonl; ValueError if it is not finished."""
    facts = json.loads((out_dir / "config.json").read_text(encoding="utf-8"))
    records = read_metrics(out_dir / "metrics.jsonl")
    final = {tag: value for r in records for tag, value in r.items() if tag.startswith("final/")}
    if not final:
        raise ValueError(f"the run in {out_dir} is not finished; continue it with --resume")
    stories = [value for r in records for tag, value in r.items() if tag.startswith("samples/final")]
    curve = {
        tag: [[r["step"], round(r[tag], 5)] for r in records if tag in r]  # [step, value]
        for tag in CURVE
    }
    load = [r["moe/load"] for r in records if "moe/load" in r][-1:]  # (layers, experts); dense: none
    return {**facts, "final": final, "curve": curve, "load": load, "stories": stories}


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Bits per byte of each seed, mean and deviation; ValueError if more than the seeds differs."""
    free = OF_THIS_CALL | {"seed"}  # a run that was stopped and resumed is the same run
    recipes = [(run["model"], {k: v for k, v in run["train"].items() if k not in free}) for run in runs]
    if any(recipe != recipes[0] for recipe in recipes):
        raise ValueError("the runs must be the same except for their seeds; record other runs by themselves")
    scores = {str(run["train"]["seed"]): run["final"]["final/bits_per_byte"] for run in runs}
    found = summary(list(scores.values()))
    return {"bits_per_byte": scores, "mean": found.mean, "deviation": found.deviation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tinystories", help="the folder that is written as $TINYSTORIES")
    args = parser.parse_args()
    runs = [figures(out_dir) for out_dir in args.out_dir]
    found = runs[0] if len(runs) == 1 else over_seeds(runs) | {"runs": runs}
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    require_clean_commits(text, args.out)
    args.out.write_text(public_text(text, args.out_dir, args.tinystories), encoding="utf-8")


if __name__ == "__main__":
    main()
