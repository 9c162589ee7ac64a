"""Kill one process of a run of several, again and again; torchrun starts all again, and nothing may be lost.

    python -m tests.stress.kill_ranks [--kills 20] [--seed 0]    writes benchmarks/results/kill_ranks.json
    python -m tests.stress.kill_ranks --only 7                   does kill 7 again and writes nothing

Each kill -9 meets a random rank, a moment after a random step or, one time in five, before the first, of a tiny run
that `torchrun --nproc_per_node=2 --max-restarts=3` started. The run must end by itself with exit code 0. Then
every checkpoint in its folder, the history in metrics.jsonl and the list of files must be those of the same run
that nobody disturbed, to the last bit. The runs take turns in --parallel, optimizer, packing and balance rule.

Any difference is exit code 1.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from architecture.checkpoint import checkpoints
from common.provenance import provenance, record_path
from tests.stress.kill_resume import STEPS, TINY, fingerprint, history, records
from tests.stress.processes import ROOT, Broken
from tests.toy_corpus import documents, write_jsonl
from training.distributed.sharded_checkpoint import in_memory

RESULT = ROOT / "benchmarks/results/kill_ranks.json"
RANKS, PATIENCE = 2, 600  # seconds
RECIPES = (
    "--parallel ddp --optimizer adamw --packing packed --balance aux",
    "--parallel fsdp --optimizer muon --packing lanes --balance aux_global",
    "--parallel ep --optimizer adamw --packing packed --balance bias",
    "--parallel fsdp+ep --optimizer muon --packing packed --balance aux",
)


class Straight(NamedTuple):
    """The uninterrupted run of a recipe."""

    states: dict[str, str]  # fingerprints of its checkpoints, by name
    history: list[dict[str, Any]]
    files: set[str]
    seconds: float  # from the start of its processes to their first step


def start(folder: Path, recipe: str, data: list[str]) -> subprocess.Popen:
    """Start a run in a new folder."""
    folder.mkdir(parents=True)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}"]
    words += ["--max-restarts=3", str(ROOT / "train.py"), *TINY, *data, *recipe.split()]
    words += ["--save_every", "4", "--eval_every", "6", "--no-use_tensorboard"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log)


def processes_of(torchrun: subprocess.Popen) -> list[int]:
    """The numbers of the processes of a run, by rank."""
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    return sorted(int(pid) for pid in children)


def wait_for_processes(torchrun: subprocess.Popen) -> list[int]:
    limit = time.monotonic() + PATIENCE
    while len(there := processes_of(torchrun)) < RANKS:
        if torchrun.poll() is not None or time.monotonic() > limit:
            raise Broken("torchrun started no processes")
        time.sleep(0.01)
    return there


def ended(torchrun: subprocess.Popen, folder: Path) -> None:
    """Raise Broken unless a run ends with exit code 0."""
    try:
        code = torchrun.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        for pid in (*processes_of(torchrun), torchrun.pid):
            os.kill(pid, signal.SIGKILL)
        raise Broken(f"it still goes after {PATIENCE} s") from None
    if code:
        raise Broken(f"it ended with {code}")


def found(folder: Path, seconds: float = 0.0) -> Straight:
    """What a finished run left."""
    out_dir = folder / "model"
    states = {path.name: fingerprint(in_memory(path)) for path in checkpoints(out_dir)}
    return Straight(states, history(out_dir), set(os.listdir(out_dir)), seconds)


def wait_for_step(step: int, torchrun: subprocess.Popen, folder: Path) -> None:
    """Return when a run has done that many steps, or has ended."""
    while records(folder / "model").count(b'"train/loss"') < step and torchrun.poll() is None:
        time.sleep(0.01)


def straight_run(folder: Path, recipe: str, data: list[str]) -> Straight:
    torchrun = start(folder, recipe, data)
    wait_for_processes(torchrun)
    began = time.monotonic()
    wait_for_step(1, torchrun, folder)
    seconds = time.monotonic() - began
    ended(torchrun, folder)
    return found(folder, seconds)


def killed_run(
    folder: Path, recipe: str, data: list[str], straight: Straight, draw: random.Random
) -> str | None:
    """Kill one rank once, and check the end. Returns what the run had done by then; None if it had ended."""
    torchrun = start(folder, recipe, data)
    victim = wait_for_processes(torchrun)[draw.randrange(RANKS)]
    if draw.random() < 0.2:
        time.sleep(draw.uniform(0, straight.seconds))
    else:
        wait_for_step(draw.randint(1, STEPS), torchrun, folder)
        time.sleep(draw.uniform(0, 0.5))
    try:
        os.kill(victim, signal.SIGKILL)
        there = checkpoints(folder / "model")
        left = "saved" if there else "begun" if (folder / "model").exists() else "starting"
    except ProcessLookupError:
        left = None
    ended(torchrun, folder)
    now = found(folder)
    for name, state in now.states.items():
        if straight.states.get(name) != state:
            raise Broken(f"{name} holds another state")
    for ours, theirs in zip(now.history, straight.history):
        if ours != theirs:
            raise Broken(f"metrics.jsonl has {ours} in place of {theirs}"[:600])
    if len(now.history) != len(straight.history) or now.files != straight.files:
        raise Broken(f"other records or files: {sorted(now.files ^ straight.files)}")
    return left


def go(kills: list[int], seed: int, work: Path, figures: dict[str, Any]) -> None:
    train = write_jsonl(work / "train.jsonl", (texts := documents(308))[8:])
    valid = write_jsonl(work / "valid.jsonl", texts[:8])
    data = ["--dataset", str(train), "--val_dataset", str(valid)]
    straight: dict[int, Straight] = {}
    for number in (bar := tqdm(kills, desc="killed runs")):
        index, draw = number % len(RECIPES), random.Random(f"{seed} {number}")
        if index not in straight:
            straight[index] = straight_run(work / f"straight_{index}", RECIPES[index], data)
        folder = work / f"kill_{number}"
        try:
            while (left := killed_run(folder, RECIPES[index], data, straight[index], draw)) is None:
                shutil.rmtree(folder)
            figures["killed_while"][left] += 1
            shutil.rmtree(folder)
        except Broken as broken:
            log = (folder / "log").read_text(errors="replace")[-3000:]
            figures["what_failed"].append({"kill": number, "broken": str(broken), "log": log})
            bar.write(f"kill {number} ({RECIPES[index]}): {broken}")
        figures["kills"] += 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--only", type=int, help="the number of a single kill, to see it again")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    args = parser.parse_args(argv)
    facts, began, work = provenance(), time.monotonic(), Path(tempfile.mkdtemp())
    figures = {"kills": 0, "killed_while": collections.Counter(), "what_failed": []}
    go(list(range(args.kills)) if args.only is None else [args.only], args.seed, work, figures)
    figures["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps({name: value for name, value in figures.items() if name != "what_failed"}))
    if figures["what_failed"]:
        print(f"{len(figures['what_failed'])} failed; their folders are in {work}")
    else:
        shutil.rmtree(work)
    if args.only is None:
        result = facts | {"seed": args.seed, "ranks": RANKS, "recipes": RECIPES} | figures
        record_path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if figures["what_failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
