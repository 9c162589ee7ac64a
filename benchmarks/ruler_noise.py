"""Measure the noise of the ruler: the same model with other seeds, and the same model on other documents.

    python -m benchmarks.ruler_noise [--seeds 5] [--max_iters 120] [--folder runs/ruler_noise]
        writes benchmarks/results/ruler_noise.json

Trains `light` on the bundled stories with each seed, into FOLDER, on one thread, and measures the models with
evaluation.ruler. Runs that are finished are used again, so the same command goes on after a stop.

  seeds      standard deviation of bits per byte over the seeds, on the same documents, with its 95 % interval
  documents  standard error over documents that the ruler gives, mean over the seeds; beside it the standard deviation
             over random halves of the documents of half the difference between the two halves, which estimates the
             same without the formula
  pairs      of two seeds on the same documents: the standard error of their difference, document by document, and as
             if the documents were others
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from architecture.checkpoint import checkpoints
from benchmarks.publish import publish, require_clean_commits
from common.provenance import ROOT
from evaluation import ruler
from training.validation import ratio_interval

SPLITS = 400  # random halves


def trained(folder: Path, seed: int, steps: int) -> Path:
    """The run of this seed, trained now if it is not finished."""
    out_dir = folder / f"light_{steps}_seed_{seed}"
    if f"checkpoint_{steps}.pt" in {path.name for path in checkpoints(out_dir)}:
        return out_dir
    shutil.rmtree(out_dir, ignore_errors=True)  # the rest of a run that was stopped
    flags = (
        f"--config light --dataset bundled --device cpu --threads 1 --seed {seed} --max_iters {steps} --eval_every {steps} "
        "--final_eval_tokens 16384 --no-use_tensorboard"
    )
    command = [sys.executable, "train.py", *flags.split(), "--out_dir", str(out_dir.resolve())]
    log = out_dir.with_name(f"{out_dir.name}.log")
    print(f"seed {seed}: trains, see {log}", flush=True)
    with open(log, "wb") as file:
        ended = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file)
    if ended.returncode:
        raise SystemExit(f"the run of seed {seed} failed; {log} says why")
    return out_dir


def deviation(values: list[float]) -> dict[str, float]:
    """A standard deviation, with the 95 % interval of normal values (chi-squared)."""
    from scipy.stats import chi2

    found, freedom = statistics.stdev(values), len(values) - 1
    low, high = (found * math.sqrt(freedom / chi2.ppf(q, freedom)) for q in (0.975, 0.025))
    return {"deviation": found, "low": low, "high": high}


def standard_error(nats: np.ndarray, sizes: np.ndarray) -> float:
    """Bits per byte, over documents."""
    return ratio_interval(torch.from_numpy(nats), torch.from_numpy(sizes))[0] / math.log(2)


def of_halves(nats: np.ndarray, sizes: np.ndarray) -> float:
    """The standard deviation of half the difference between random halves, bits per byte."""
    generator, found = np.random.default_rng(0), []
    for _ in range(SPLITS):
        order = generator.permutation(len(nats))
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        one, other = (nats[half].sum() / sizes[half].sum() / math.log(2) for half in (first, second))
        found.append((one - other) / 2)
    return math.sqrt(statistics.fmean(value**2 for value in found))


def noise(measured: dict[str, Any]) -> dict[str, Any]:
    """The figures of several seeds of one model, from the content of ruler.json."""
    sizes = np.array(measured["bytes_of_documents"])
    nats = [np.array(entry["nats_of_documents"]) for entry in measured["models"]]
    scores = [entry["bits_per_byte"] for entry in measured["models"]]
    pairs = list(itertools.combinations(nats, 2))
    alone = [standard_error(values, sizes) for values in nats]
    return {
        "bits_per_byte": scores,
        "seeds": deviation(scores),
        "documents": {
            "standard_error": statistics.fmean(alone),
            "of_halves": statistics.fmean(of_halves(values, sizes) for values in nats),
        },
        "pairs": {
            "standard_error": statistics.fmean(standard_error(a - b, sizes) for a, b in pairs),
            "other_documents": statistics.fmean(
                math.hypot(a, b) for a, b in itertools.combinations(alone, 2)
            ),
        },
    }


def as_text(found: dict[str, Any]) -> str:
    seeds, documents, pairs = found["seeds"], found["documents"], found["pairs"]
    return "\n".join([
        f"bits per byte of {len(found['bits_per_byte'])} seeds, mean {statistics.fmean(found['bits_per_byte']):.4f}",
        f"other seeds, same documents: deviation {seeds['deviation']:.4f} ({seeds['low']:.4f} to {seeds['high']:.4f})",
        f"other documents, same seed: standard error {documents['standard_error']:.4f}; from random halves "
        f"{documents['of_halves']:.4f}",
        f"two seeds on the same documents: standard error of the difference {pairs['standard_error']:.4f}; on other "
        f"documents {pairs['other_documents']:.4f}",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 1 (default: 5)")
    parser.add_argument("--max_iters", type=int, default=120, help="steps of each run (default: 120)")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/ruler_noise"), help="default: runs/ruler_noise"
    )
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    if options.seeds < 3 or options.max_iters < 1:
        parser.error("--seeds must be at least 3, and --max_iters at least 1")
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    runs = [trained(options.folder, seed, options.max_iters) for seed in range(1, options.seeds + 1)]
    measured, failed = ruler.measure(
        runs, ruler.read_data(), torch.device("cpu"), options.folder / f"ruler_{options.max_iters}.json"
    )
    if failed:
        raise SystemExit("\n".join(failed))
    asked = set(map(str, runs))
    measured["models"] = [entry for entry in measured["models"] if entry["model"] in asked]
    starts = [json.loads((run / "config.json").read_text())["starts"] for run in runs]
    commits = sorted({start["commit"] for some in starts for start in some})
    found = {name: measured[name] for name in ("ruler_sha256", "data")} | noise(measured)
    found |= {
        "config": "light",
        "max_iters": options.max_iters,
        "seeds_of_runs": options.seeds,
        "commits": commits,
    }
    print(as_text(found))
    if not options.no_write:
        require_clean_commits(json.dumps(commits), Path("ruler_noise.json"))
        publish("ruler_noise", found, [options.folder])


if __name__ == "__main__":
    main()
