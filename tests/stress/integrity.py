"""Damage every kind of file that we read back, and craft false checkpoints: none may be read as good.

    python -m tests.stress.integrity [--flips 1000] [--crafted 200] [--seed 0]
        writes benchmarks/results/integrity.json     (minutes on one core)

flips     One bit is flipped, or a sector of 4,096 bytes zeroed, in one file. Its reader must refuse it in one
          sentence or return the same as before. WRONG: it returned other content. CRASH: another exception.
crafted   A checkpoint has right checksums and one part replaced (tests/stress/fuzzing/crafting.py).
          eval_only, sample, init_from and resume must end with exit code 0, or 2 and one sentence, without a
          signal, without a file outside the folder of the run, and in bounded memory.
bombs     Small files would unpack to gigabytes.

Crafted files and bombs are read in processes of their own. Each finding is printed, and any finding is exit
code 1.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.provenance import provenance, record_path
from common.script import one_line
from tests.stress.exact import exact
from tests.stress.fuzzing import judge
from tests.stress.fuzzing.cases import SAMPLE, Case, from_weights
from tests.stress.fuzzing.crafting import BOMBS, STRATEGIES, Crafted, craft
from tests.stress.fuzzing.materials import MACHINE, NEWEST, RUN, flags
from tests.stress.fuzzing.samples import CONTEXT_NEWEST, CONTEXT_RUN, Kind, kinds, make_samples

RESULT = Path(__file__).resolve().parents[2] / "benchmarks/results" / "integrity.json"
SECTOR, SHARE_OF_SECTORS = 4096, 0.2
MOST_MEMORY = 1.5  # GB that a process may take; it starts with 0.3
NO_BOARD = "--no-use_tensorboard"
IMPORTED = (  # before the forks, so that no child has to do it
    "torch.utils.tensorboard torch._dynamo pandas matplotlib.backends.backend_agg sample ablate train_context"
).split()


# --------------------------------------------------------------------------------------------------
# flips


def damage(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Return the content with one fault, and the fault in words."""
    place = draw.randrange(len(content))
    if draw.random() < SHARE_OF_SECTORS:
        start = place - place % SECTOR
        end = min(start + SECTOR, len(content))
        return content[:start] + bytes(end - start) + content[end:], f"zeros from {start} to {end}"
    bit = draw.randrange(8)
    flipped = bytes([content[place] ^ 1 << bit])
    return content[:place] + flipped + content[place + 1 :], f"bit {bit} of byte {place} flipped"


def outcome(kind: Kind, path: Path, expected: Any) -> tuple[str, str]:
    """Return refused, same, WRONG or CRASH, and details of a CRASH."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = exact(kind.read(path))
    except ValueError as error:
        unclear = judge.unclear([f"integrity: error: {one_line(error)}"])
        return ("CRASH", unclear) if unclear else ("refused", "")
    except Exception as error:
        return "CRASH", f"{type(error).__name__}: {one_line(error)}"
    return ("same" if found == expected else "WRONG"), ""


def flip(samples: Path, flips: int, seed: int) -> tuple[dict[str, Counter], list[str]]:
    """Try a number of faults on all kinds of files in turn; return outcomes by kind, and findings."""
    counts: dict[str, Counter] = defaultdict(Counter)
    findings, found, draw = [], kinds(samples), random.Random(seed)
    whole = {name: (samples / kind.file).read_bytes() for name, kind in found.items()}
    expected = {name: exact(kind.read(samples / kind.file)) for name, kind in found.items()}
    for number in tqdm(range(flips), desc="flips"):
        name = list(found)[number % len(found)]
        path = samples / found[name].file
        content, fault = damage(whole[name], draw)
        path.write_bytes(content)
        came, more = outcome(found[name], path, expected[name])
        path.write_bytes(whole[name])
        counts[name][came] += 1
        if came in ("WRONG", "CRASH"):
            findings.append(f"{came}: {name}, {fault} of {len(content)} bytes {more}".strip())
    return dict(counts), findings


# --------------------------------------------------------------------------------------------------
# crafted checkpoints and bombs

Run = Callable[[Case, Path], tuple[judge.Ending, float]]


def here(case: Case, work: Path) -> tuple[judge.Ending, float]:
    """Run a case in this process. A signal would end it, and its memory is not measured."""
    return judge.call(case, work), 0.0


def in_a_child(case: Case, work: Path) -> tuple[judge.Ending, float]:
    """Run a case in a forked process; also return the most GB that it took."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)

    def work_and_tell() -> None:
        ending = judge.call(case, work)
        sender.send((ending, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6))

    process = fork.Process(target=work_and_tell)
    process.start()
    sender.close()
    try:
        told = receiver.recv() if receiver.poll(judge.SECONDS) else None
    except EOFError:
        told = None
    process.join(10 if told else 1)
    process.kill()
    process.join()
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return told or (judge.Ending(None, "", "", f"ended by {process.exitcode}"), largest)


def uses(context: bool) -> list[Case]:
    """Return the uses of a checkpoint. The last one changes its run."""
    program, run, newest = (
        ("train_context", CONTEXT_RUN, CONTEXT_NEWEST) if context else ("train", RUN, NEWEST)
    )
    return [
        Case("eval_only", program, ("--eval_only", run, *flags(MACHINE))),
        Case("sample", "sample", ("--checkpoint", run, *SAMPLE)),
        Case("init_from", program, (*from_weights(newest, "6" if context else "16"), NO_BOARD)),
        Case("resume", program, ("--out_dir", run, "--resume")),
    ]


def use(case: Case, folder: Path, run: Run) -> tuple[str, float, str]:
    """Run a case in a folder inside FOLDER; return how it ended, its peak memory in GB, and what is wrong, or ""."""
    work = folder / "work"
    before, around = judge.contents(work), judge.contents(folder)
    ending, memory = run(case, work)
    finding = judge.judge(case, ending, work, before)
    own = tuple(f"work/{name}/" for name in (RUN, CONTEXT_RUN, "model_new", "runs", "runs_context"))
    after = judge.contents(folder)
    outside = [n for n in after if after[n] != around.get(n) and not n.startswith(own)]
    wrong = f"{finding.signature}\n{finding.details}" if finding else ""
    wrong = wrong or (f"it wrote {outside[0]}" if outside else "")
    wrong = wrong or (f"it took {memory:.2f} GB" if memory > MOST_MEMORY else "")
    return f"exit {ending.code}" if ending.finished else "goes on", memory, wrong


def try_crafted(
    samples: Path, folder: Path, count: int, seed: int, run: Run = in_a_child, *, once: bool = False
) -> tuple[dict[str, Counter], float, list[str]]:
    """Use crafted checkpoints in all ways, or each `once`; return endings by use, the most GB, findings."""
    counts: dict[str, Counter] = defaultdict(Counter)
    findings, most = [], 0.0
    times = [
        6 if where == "plain" else 1 for where, _ in STRATEGIES.values()
    ]  # a plain value has many places
    names = random.Random(seed).sample(list(STRATEGIES), sum(times), counts=times)
    for number in tqdm(range(count), desc="crafted"):
        context = number % 2 == 1
        made = Crafted(CONTEXT_NEWEST if context else NEWEST, names[number // 2 % len(names)], seed + number)
        shutil.copytree(samples, folder / "work")
        try:
            place = craft(made, samples, folder / "work")
            ways = uses(context)
            for case in [ways[number // 2 % len(ways)]] if once else ways:
                came, memory, wrong = use(case, folder, run)
                counts[case.kind][came] += 1
                most = max(most, memory)
                if wrong:
                    findings.append(f"{made} at {place}, {case.kind}: {wrong}")
        finally:
            shutil.rmtree(folder)
    return dict(counts), most, findings


def try_bombs(samples: Path, folder: Path) -> tuple[dict[str, dict], list[str]]:
    """Read each bomb in a child; return its size and the GB of its reader, and findings."""
    measured, findings = {}, []
    for name, bomb in BOMBS.items():
        shutil.copytree(samples, folder / "work")
        path = folder / "work" / bomb.file
        bomb.make(path)
        came, memory, wrong = use(Case(name, bomb.program, bomb.argv), folder, in_a_child)
        measured[name] = {"bytes": path.stat().st_size, "gb": round(memory, 3), "ending": came}
        if wrong or came == "exit 0":
            findings.append(f"bomb {name}: {wrong or 'it was read'}")
        shutil.rmtree(folder)
    return measured, findings


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--crafted", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    tqdm.monitor_interval = 0  # it starts a thread, and we fork
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="integrity-") as name:
        samples = make_samples(Path(name, "samples"))
        for module in IMPORTED:
            importlib.import_module(module)
        gc.freeze()  # otherwise each child would collect over all objects of this process
        flipped, findings = flip(samples, args.flips, args.seed)
        used, most, more = try_crafted(samples, Path(name, "case"), args.crafted, args.seed)
        bombs, last = try_bombs(samples, Path(name, "case"))
    findings += more + last
    figures = {
        "flips": flipped,
        "crafted": {"checkpoints": args.crafted, "by_use": used, "most_gb": round(most, 3)},
        "bombs": bombs,
        "findings": findings,
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(figures, indent=1))
    print("\n".join(f"--- FINDING {finding}" for finding in findings))
    record_path(RESULT).write_text(json.dumps(provenance() | figures, indent=1) + "\n", encoding="utf-8")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
