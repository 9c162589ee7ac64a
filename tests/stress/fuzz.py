"""Fuzz the inputs of the programs: each must end with exit code 0 or 2, one clear sentence and no half file.

    python -m tests.stress.fuzz [--cases 2900] [--commands 100] [--seed 0]
        writes benchmarks/results/fuzz.json     (about twenty-five minutes on one core)

hypothesis draws the cases of each kind (tests/stress/fuzzing/cases.py): flags, YAML, text, jsonl, parquet,
config.json, metrics.jsonl, checkpoints, best.json, token folders, rank files, reference bands. SHARE of them
are mutations of valid input, the others are arbitrary. Further kinds may go wrong in silence: encodings,
folders, numbers in YAML and others (tests/stress/fuzzing/silence.py). Most cases call main(argv) in this
process, some run as commands. tests/stress/fuzzing/judge.py decides what passes. Each finding is shrunk and
printed once, and any finding is exit code 1. If a case kills this process, the file that is named at the
start holds it.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from tqdm import tqdm

from common.provenance import provenance, record_path
from tests.stress.fuzzing.cases import AS_COMMANDS, KINDS, Case, Strategy, described
from tests.stress.fuzzing.judge import SECONDS, Finding, run_case
from tests.stress.fuzzing.materials import make_materials

RESULT = Path(__file__).resolve().parents[2] / "benchmarks/results" / "fuzz.json"
SHARE = 0.7  # share of cases that are mutations of valid input
SHRINK_SECONDS = 60.0  # spent on each finding


class Found(NamedTuple):
    """A finding and the smallest case that shows it."""

    case: Case
    finding: Finding


class Fault(Exception):
    """A case that did not pass. hypothesis makes the case smaller."""


def hunt(
    strategy: Strategy[Case],
    cases: int,
    run: Callable[[Case], Finding | None],
    seed: int | None,
    count: Callable[[Case], None] = lambda case: None,
) -> list[Found]:
    """Run a number of cases; return each fault once, with its smallest case.

    run: returns the verdict on a case.  count: called for each drawn case, not for those of shrinking.
    seed: None draws the same cases every time.
    """
    found: dict[str, Found] = {}
    done = rounds = 0
    while done < cases and rounds <= len(found):  # a round ends with a fault, or with all its cases
        fresh = None if seed is None else seed + 1000 * rounds
        more, one = hunt_once(strategy, cases - done, run, fresh, count, set(found))
        if one is not None:
            found[one.finding.signature] = one
        done, rounds = done + more, rounds + 1
    return list(found.values())


def hunt_once(
    strategy: Strategy[Case],
    cases: int,
    run: Callable[[Case], Finding | None],
    seed: int | None,
    count: Callable[[Case], None],
    known: set[str],
) -> tuple[int, Found | None]:
    """Run cases up to the first unknown fault; return their number and that fault with its smallest case."""
    done, deadline = 0, math.inf
    failing: dict[str, Found] = {}  # by repr, as a case may hold a dict

    def attempt(case: Case) -> None:
        nonlocal done, deadline
        if not failing:
            done += 1
            count(case)
        # After the deadline only cases that failed before fail, so hypothesis stops shrinking.
        late = time.monotonic() > deadline
        finding = (failing[repr(case)].finding if repr(case) in failing else None) if late else run(case)
        if finding is None or finding.signature in known:
            return
        if not failing:
            deadline = time.monotonic() + SHRINK_SECONDS
        failing[repr(case)] = Found(case, finding)
        raise Fault(finding.signature)

    test = settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=seed is None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
        verbosity=hypothesis.Verbosity.quiet,
    )(hypothesis.given(strategy)(attempt))
    if seed is not None:
        test = hypothesis.seed(seed)(test)
    try:
        test()
    except (Fault, hypothesis.errors.FlakyFailure):
        case, finding = list(failing.values())[-1]  # the last failure is the smallest
        return done, Found(case, finding)
    return done, None


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2900, help="cases in this process (default: 2900)")
    parser.add_argument("--commands", type=int, default=100, help="cases as commands (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind; repeatable")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    kinds = {kind: KINDS[kind] for kind in args.kind or KINDS}
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    found: list[Found] = []
    began = time.monotonic()
    faulthandler.enable()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        print(f"the current case is in {folder / 'case.txt'}", flush=True)
        materials = make_materials(folder / "materials")
        with tqdm(total=args.cases + args.commands, unit=" cases") as bar:
            for real, total in ((False, args.cases), (True, args.commands)):
                parts = shares(kinds, total, real=real)
                for place, (kind, origin, strategy, cases) in enumerate(parts):

                    def run(case: Case, real=real) -> Finding | None:
                        (folder / "case.txt").write_text(described(case), errors="backslashreplace")
                        faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
                        try:
                            return run_case(case, materials, folder / "case", real=real)
                        finally:
                            faulthandler.cancel_dump_traceback_later()

                    def count(case: Case, kind=kind, origin=origin, real=real) -> None:
                        counts[kind][origin] += 1
                        counts[kind]["commands"] += real
                        bar.update()

                    bar.set_description(f"{kind}, {origin}" + (", as commands" if real else ""))
                    for one in hunt(strategy(kind, materials), cases, run, args.seed + place, count):
                        found.append(one)
                        bar.write(report(one))
    figures = summary(counts, found, time.monotonic() - began)
    print(json.dumps(figures, indent=1))
    if not args.kind:
        record_path(RESULT).write_text(json.dumps(provenance() | figures, indent=1) + "\n", encoding="utf-8")
    return 1 if found else 0


def shares(
    kinds: dict[str, tuple[Strategy, ...]], total: int, *, real: bool
) -> list[tuple[str, str, Strategy, int]]:
    """Return kind, origin, strategy and number of cases of each part. AS_COMMANDS are half of the commands."""
    here, commands = (
        kinds.keys() & AS_COMMANDS.keys() if own else kinds.keys() - AS_COMMANDS.keys()
        for own in (False, True)
    )
    found = []
    for kind, strategies in kinds.items():
        if kind in commands:
            number = total * real / (2 if here else 1) / len(commands)
        else:
            number = total / (2 if real and commands else 1) / len(here)
        origins = {"mutations": SHARE, "arbitrary": 1 - SHARE} if len(strategies) == 2 else {"rules": 1.0}
        for (origin, share), strategy in zip(origins.items(), strategies):
            found.append((kind, origin, strategy, math.ceil(number * share)))
    return [part for part in found if part[3]]


def report(one: Found) -> str:
    return f"--- FINDING {one.finding.signature}\n{described(one.case)}\n{one.finding.details}\n---"


def summary(counts: dict[str, Counter[str]], found: list[Found], seconds: float) -> dict:
    total = sum(counts.values(), Counter())
    cases = total.total() - total["commands"]
    return {
        "cases": cases,
        "of_them_as_commands": total["commands"],
        "share_of_mutations": total["mutations"] / max(1, cases),
        "by_kind": {kind: dict(count) for kind, count in counts.items()},
        "findings": [{"signature": one.finding.signature, "case": described(one.case)} for one in found],
        "seconds": round(seconds),
    }


if __name__ == "__main__":
    sys.exit(main())
