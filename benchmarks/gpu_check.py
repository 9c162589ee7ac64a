"""Measure this code on a CUDA device, in at most ten minutes: values, speed beside transformers, a curve.

    python -m benchmarks.gpu_check [--dataset tinystories]     writes benchmarks/results/gpu_check.json
    python -m benchmarks.gpu_check --tiny --out FILE.json      the same on a CPU in a tiny size, to test this script

Each result is written at once, and a case on record is not measured again: after an interruption the same command
goes on. --again NAME measures the cases anew whose names contain NAME. The cases run in another process; if one
breaks the device or hangs, its error is recorded, and the next ones run in a new process.

values   loss and gradients of every pair of backends, in float32 and under bfloat16 autocast, against the
         specification in float64 on the CPU
speed    training steps of `medium` as train.py takes them on CUDA, with AdamW, and then with one switch changed at a
         time; a dense model of the same active size; `large`; transformers with each of its kinds of experts
curve    two minutes of `medium` by train.py

Goals: a step of `medium` takes at most 1.33 times as long as that of the dense model, and `large` reaches 30 % of the
device's peak, counted with the FLOPs of active parameters.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.gpu_cases import ROOT, cases
from benchmarks.publish import RESULTS, judge, public_text
from common.files import atomic_write
from common.provenance import git_commit, provenance, record_path

PATIENCE = 150.0  # seconds for one case; the longest, the curve, takes about 140
BUSY_PATIENCE = 900.0  # on a CPU, which may be busy
Keep = Callable[[str, dict[str, Any]], None]
FLOAT32_ERROR = 1e-4  # largest relative error of all gradients taken as one vector
BFLOAT16_ERROR = 2.0  # times that of the specification itself in bfloat16
DENSE_RATIO = 1.33  # times the dense step
LARGE_MFU = 0.30


def worker(device: str, tiny: bool, dataset: str) -> list[str]:
    """The command of a process that measures cases; their names follow."""
    return [sys.executable, "-m", "benchmarks.gpu_cases", device, "tiny" if tiny else "full", dataset]


def measure(names: list[str], command: list[str], until: float, patience: float, keep: Keep) -> list[str]:
    """Measure the cases until the clock shows `until`. Returns the names of those that are left.

    patience: seconds for one case.  keep: called with the name and the result of each.
    """
    left = list(names)
    while left and time.monotonic() < until:
        process = subprocess.Popen(
            [*command, *left], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=read_lines, args=(process.stdout, lines), daemon=True).start()
        current, deadline, reason = left[0], time.monotonic() + patience, ""
        try:
            while not reason:
                try:
                    line = lines.get(timeout=max(0.0, min(deadline, until) - time.monotonic()))
                except queue.Empty:
                    reason = f"took more than {patience:g} s"
                    break
                if line is None:
                    reason = f"ended with exit code {process.wait()}"
                elif line.startswith('{"begins"'):
                    current, deadline = json.loads(line)["begins"], time.monotonic() + patience
                elif line.startswith('{"ends"'):
                    keep(current, json.loads(line)["found"])
                    left.remove(current)
            out_of_time = process.poll() is None and time.monotonic() >= until
        finally:  # after Ctrl-C, too, which does not reach the process
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if left and left[0] == current and not out_of_time:
            keep(current, {"error": f"the process {reason}"})
            left.remove(current)
    return left


def read_lines(stream: TextIO, lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def limits(found: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """The goals, with what was measured for them."""
    told = {}
    rounding = found.get("values eager+loop bfloat16", {}).get("gradient_relative_error", 0.0)
    for name, case in found.items():
        if name.startswith("values"):
            error = case.get("gradient_relative_error", math.inf)
            most = FLOAT32_ERROR if name.endswith("float32") else BFLOAT16_ERROR * rounding
            told[f"{name}: gradients {error:.1e} apart (at most {most:.1e})"] = error <= most
    step, dense = (
        found.get(f"speed {name}", {}).get("step_ms") for name in ("best", "dense of the active size")
    )
    if step and dense:
        ratio = step / dense
        told[f"medium takes {ratio:.2f} times the dense step (at most {DENSE_RATIO})"] = ratio <= DENSE_RATIO
    if mfu := found.get("speed large", {}).get("mfu"):
        told[f"large reaches {mfu:.1%} of the peak (at least {LARGE_MFU:.0%})"] = mfu >= LARGE_MFU
    return told


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dataset", default="auto", help="the text of the curve, as for train.py (default: auto)"
    )
    parser.add_argument(
        "--minutes", type=float, default=10, help="the most that the command takes (default: 10)"
    )
    parser.add_argument(
        "--again", action="append", default=[], metavar="NAME", help="measure these cases anew"
    )
    parser.add_argument("--tiny", action="store_true", help="a tiny size on the CPU, to test this script")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "gpu_check.json", help="the file of the results"
    )
    args = parser.parse_args(argv)
    until = time.monotonic() + 60 * args.minutes
    if args.tiny and args.out == RESULTS / "gpu_check.json":
        parser.error("--tiny needs --out, because its results are not those of a GPU")
    if not args.tiny and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device; run this on a machine with one, or test it with --tiny")
    device = torch.device("cpu" if args.tiny else "cuda")
    place = Path(args.dataset).expanduser()
    dataset = str(place.resolve()) if place.exists() else args.dataset  # train.py runs in another folder
    card = "a CPU, tiny" if args.tiny else torch.cuda.get_device_name()
    args.out = record_path(args.out)
    record = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {"cases": {}}
    if record.get("device", card) != card:
        parser.error(
            f"{args.out} holds results of {record['device']}, and this is {card}; give another --out"
        )
    try:
        from transformers import __version__ as transformers
    except ImportError as error:
        transformers = f"absent: {error}"
    record = provenance() | {"device": card, "transformers": transformers, "cases": record["cases"]}
    names = list(cases(device, args.tiny, dataset))
    again = [name for name in names if any(part in name for part in args.again)]

    def keep(name: str, found: dict[str, Any]) -> None:
        record["cases"][name] = found | {"commit": git_commit()}
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        with atomic_write(args.out) as file:
            text = public_text(text, [ROOT])
            file.write((text.replace(dataset, "$TINYSTORIES") if place.exists() else text).encode())
        told = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()}
        print(f"{name}: {json.dumps(told)[:200]}", flush=True)

    missing = [name for name in names if name not in record["cases"] or name in again]
    print(f"{card}: {len(missing)} of {len(names)} cases to measure", flush=True)
    command = worker(str(device), args.tiny, dataset)
    left = measure(missing, command, until, BUSY_PATIENCE if args.tiny else PATIENCE, keep)
    if left:
        print(f"{len(left)} cases are left; run the same command again, from {left[0]!r} on")
    return judge(limits(record["cases"])) if not args.tiny else 0


if __name__ == "__main__":
    sys.exit(main())
