"""Watch a long run from outside: is its memory flat, are its files bounded, is its speed steady?

    python -m tests.stress.soak [--minutes 60] [any flag of train.py]     writes benchmarks/results/soak.json

The campaign starts `python train.py --max_minutes M --keep 3` with the given flags in a temporary folder.
Environment variables in the flags, such as '$TINYSTORIES', are replaced here, so that the published command
has no path of this machine. Every few seconds it measures the resident memory of the process and the size of
its files. It also times a small computation of its own, the pulse, because the speed of the machine may
change.

The first fifth of the run is warm-up. After it, memory is flat if the line through the samples rises by less
than 2 % of their mean; files are bounded if three checkpoints stay and the logs grow by less than 1 MB a
minute; speed is steady if the line through tokens/s divided by the rate of the pulse, in ten parts, changes
by less than 10 %. If one of these fails, the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.provenance import provenance, record_path
from training.monitor.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks/results/soak.json"
KEEP, EVERY_S, WARM_UP, PARTS = 3, 5.0, 0.2, 10
RISE_LIMIT, LOG_LIMIT_MB, DRIFT_LIMIT = 0.02, 1.0, 0.1
PULSE = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)


def resident_mb(pid: int) -> float:
    """Resident memory of a process, MB (Linux); 0 when it has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def sizes(folder: Path) -> tuple[int, float]:
    """Return the number of checkpoints, and the MB of all other files."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    checkpoints = [path for path in files if path.suffix == ".pt"]
    rest = sum(path.stat().st_size for path in files if path.suffix != ".pt")
    return len(checkpoints), rest / 1e6


def pulse_rate() -> float:
    """Measure how often a second a fixed computation runs, best of three."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        np.exp(PULSE @ PULSE.T).sum()
        np.tanh(PULSE).sum()
        taken.append(time.perf_counter() - began)
    return 1 / min(taken)


def tokens_so_far(metrics: Path) -> int:
    """Read the newest data/tokens among the complete records of a metrics.jsonl; 0 if there is none."""
    if not metrics.exists():
        return 0
    with open(metrics, "rb") as file:
        file.seek(max(0, metrics.stat().st_size - 32768))
        lines = file.read().split(b"\n")[1:-1]
    seen = [json.loads(line).get("data/tokens") for line in lines]
    return max(filter(None, seen), default=0)


def watch(command: list[str], folder: Path, minutes: float) -> list[tuple[float, ...]]:
    """Sample (seconds, MB of memory, checkpoints, MB of logs, tokens, pulse) until the run ends."""
    began, samples = time.monotonic(), []
    with subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}) as run:
        with tqdm(total=round(60 * minutes), desc="soak", unit="s", disable=None) as bar:
            while run.poll() is None:
                time.sleep(EVERY_S)
                passed = time.monotonic() - began
                bar.update(min(round(passed), bar.total) - bar.n)
                try:
                    seen = tokens_so_far(folder / "model" / "metrics.jsonl")
                    samples.append((passed, resident_mb(run.pid), *sizes(folder), seen, pulse_rate()))
                except FileNotFoundError:  # a file was renamed or removed in between
                    continue
    if run.returncode:
        raise SystemExit(f"the run ended with {run.returncode}")
    return [sample for sample in samples if sample[1]]


def judge(samples: list[tuple[float, ...]]) -> dict[str, float]:
    """Compute the figures of the module docstring from the samples after the warm-up."""
    end = 1 + [sample[4] for sample in samples].index(samples[-1][4])  # after it comes the closing evaluation
    kept = np.array(samples[int(WARM_UP * end) : end])
    if len(kept) <= PARTS:
        raise SystemExit(f"{len(kept)} samples are too few to judge; --minutes must be higher")
    seconds, memory, checkpoints, logs, tokens, _ = kept.T
    minutes = (seconds[-1] - seconds[0]) / 60
    speeds, pulses = [], []
    edges = np.linspace(0, len(kept) - 1, PARTS + 1).astype(int)
    for first, last in zip(edges, edges[1:]):
        part = kept[first : last + 1]
        speeds.append((part[-1, 4] - part[0, 4]) / (part[-1, 0] - part[0, 0]))
        pulses.append(statistics.median(part[:, 5]))
    paces = np.divide(speeds, pulses)
    return {
        "memory_mb": float(memory.mean()),
        "memory_rise": rise(seconds, memory),
        "most_checkpoints": int(checkpoints.max()),
        "log_mb_per_minute": float((logs[-1] - logs[0]) / minutes),
        "tokens_per_second": float((tokens[-1] - tokens[0]) / (seconds[-1] - seconds[0])),
        "pace_drift": rise(np.arange(PARTS), paces),
        "pace_spread": float(paces.std(ddof=1) / paces.mean()),
        "speeds": [round(x, 1) for x in speeds],
        "pulses": [round(x, 2) for x in pulses],
    }


def rise(x: np.ndarray, y: np.ndarray) -> float:
    """Return the rise of the line through the points from first to last, as a share of their mean."""
    return float(np.polyfit(x, y, 1)[0] * (x[-1] - x[0]) / y.mean())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="minutes of training (default: 60)")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file to write")
    args, flags = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, str(ROOT / "train.py"), "--max_minutes", str(args.minutes)]
        command += ["--keep", str(KEEP), "--out_dir", "model", *map(os.path.expandvars, flags)]
        samples = watch(command, folder, args.minutes)
        records = read_metrics(folder / "model" / "metrics.jsonl")
    figures = judge(samples)
    final = {tag: x for r in records for tag, x in r.items() if tag.startswith("final/")}
    wanted = {
        "memory flat": figures["memory_rise"] < RISE_LIMIT,  # it may fall
        # For a moment there is one more: the new one is saved and the oldest not yet deleted.
        "files bounded": figures["most_checkpoints"] <= KEEP + 1
        and figures["log_mb_per_minute"] < LOG_LIMIT_MB,
        "speed steady": abs(figures["pace_drift"]) < DRIFT_LIMIT,
    }
    for what, held in wanted.items():
        print(f"{'met   ' if held else 'MISSED'} {what}")
    print(json.dumps(figures, indent=1))
    result = provenance() | {"minutes": args.minutes, "flags": flags, **figures, "final": final}
    record_path(args.out).write_text(json.dumps(result | wanted, indent=1) + "\n", encoding="utf-8")
    return 0 if all(wanted.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
