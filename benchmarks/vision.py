"""Train the toy vision model and count its exact captions and answers: the figures of docs/vision.md.

    python -m benchmarks.vision ARM SEED     one run: train.py, then evaluation.vision on 1,000 documents
    python -m benchmarks.vision summary      means over seeds, and the router bias as paired differences

Each run has one thread, and adds a line to benchmarks/results/vision.jsonl. A run that stands there is not
repeated. The arms:

toy        the recipe of configs/vision/toy.yaml, on the bundled pictures
floor      the same, with one linear patch embedding in place of the encoder
digits     the same model on scikit-learn's digits, fewer steps
bias, no_bias    the recipe in fewer steps, with and without the bias of the routers for image tokens
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.publish import RESULTS
from common.provenance import provenance, record_path
from evaluation.ablation.statistics import compare
from training.monitor.metrics import read_metrics

RUNS = RESULTS / "vision.jsonl"
SHORT = ("--max_iters", "600")
ARMS: dict[str, tuple[str, ...]] = {
    "toy": (),
    "floor": ("--vision_num_layers", "0"),
    "digits": ("--dataset", "digits", "--max_iters", "400"),
    "bias": SHORT,
    "no_bias": (*SHORT, "--vision_router_bias", "false"),
}
CURVE = ("train/loss", "val/loss", "val/exact_match")
ROWS = ("caption", "all answers")


def stored() -> list[dict[str, Any]]:
    lines = RUNS.read_text(encoding="utf-8").splitlines() if RUNS.exists() else []
    return [json.loads(line) for line in lines]


def run(arm: str, seed: int) -> None:
    """Train and evaluate in a temporary folder."""
    if any(line["arm"] == arm and line["seed"] == seed for line in stored()):
        return
    with tempfile.TemporaryDirectory() as folder:
        model, figures = Path(folder) / "model", Path(folder) / "figures.json"
        fixed = ("--threads", "1", "--device", "cpu", "--seed", str(seed), "--eval_every", "100")
        flags = ("--model", "gptoss_vision", *ARMS[arm], *fixed)
        began = time.perf_counter()
        command("train.py", *flags, "--no-use_tensorboard", "--out_dir", str(model))
        minutes = (time.perf_counter() - began) / 60
        command("-m", "evaluation.vision", str(model), "--threads", "1", "--out", str(figures))
        records, found = read_metrics(model / "metrics.jsonl"), json.loads(figures.read_text("utf-8"))
    curve = [{name: r[name] for name in ("step", *CURVE) if name in r} for r in records]
    line = {"arm": arm, "seed": seed, "flags": flags, "minutes": minutes} | provenance()
    line |= {name: found[name] for name in ("splits", "routing")}
    line["curve"] = [point for point in curve if len(point) > 1]
    with record_path(RUNS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def command(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True)


def figures(line: dict[str, Any]) -> dict[str, float]:
    """The figures of a run on the held-out combinations, as shares."""
    rows = {row["kind"]: row for row in line["splits"]["validation"]}
    found = {
        f"{kind}, {column}": rows[kind][column]["share"]
        for kind in ROWS
        if kind in rows
        for column in ("exact", "zeroed", "swapped")
    }
    return found | {"distance": statistics.fmean(layer["distance"] for layer in line["routing"])}


def summary() -> None:
    """Print the mean of each figure for each arm, and the differences that the router bias makes."""
    by_arm: dict[str, dict[int, dict[str, float]]] = {}
    for line in stored():
        by_arm.setdefault(line["arm"], {})[line["seed"]] = figures(line)
    for arm, seeds in by_arm.items():
        print(f"{arm}, {len(seeds)} seed{'s' * (len(seeds) > 1)}")
        for name in next(iter(seeds.values())):
            values = [found[name] for found in seeds.values()]
            print(f"  {name:<24} {statistics.fmean(values):.3f}   {' '.join(f'{v:.3f}' for v in values)}")
    biased, plain = by_arm.get("bias", {}), by_arm.get("no_bias", {})
    if len(common := sorted(biased.keys() & plain.keys())) > 1:
        names = list(biased[common[0]])
        apart = [[biased[seed][name] - plain[seed][name] for seed in common] for name in names]
        print(f"with the bias minus without it, {len(common)} seeds, 95 % interval")
        for name, d, pair in zip(names, apart, compare([d if any(d) else [] for d in apart])):
            print(f"  {name:<24} {statistics.fmean(d):+.4f} +- {pair.half_width:.4f}, p {pair.p:.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arm", choices=(*ARMS, "summary"))
    parser.add_argument("seed", type=int, nargs="?", default=1337)
    args = parser.parse_args()
    summary() if args.arm == "summary" else run(args.arm, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
