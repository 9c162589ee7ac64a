"""Kill tiny training runs with kill -9 again and again; each must end as if nothing had happened.

    python -m tests.stress.kill_resume [--runs 200] [--seed 0]    writes benchmarks/results/kill_resume.json

Each run is killed one to three times and resumed each time. A kill comes in one of three ways, in turn:

moment      at a random moment of the run
write       1 us to 10 ms after a temporary file has appeared
operation   at one of all the file operations of the run: before a file is opened for writing, synced, renamed
            or removed, or in the middle of a line of metrics.jsonl

After each kill every checkpoint in the folder must load and equal that of an uninterrupted run at the same
step. If there is none yet, train.py must say what to do, and a new start must then work. At the end the whole
state, the history in metrics.jsonl, best.json, the closing validation loss and the list of files must be
those of the uninterrupted run. The recipes vary packing, optimizer, balance rule, micro-batches, TensorBoard,
the intervals of saves and evaluations, and how many checkpoints are kept.

Any difference is exit code 1. Ctrl-C prints what was found so far and writes nothing.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import importlib
import json
import logging
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from architecture.checkpoint import read_checkpoint
from common.provenance import provenance
from tests.stress.exact import exact
from tests.toy_corpus import documents, write_jsonl
from training.monitor.metrics import read_metrics
from training.state.checkpoint import checkpoint_path, checkpoints, require_run

RESULT = Path(__file__).resolve().parents[2] / "benchmarks/results" / "kill_resume.json"
STEPS = 20
FINISHED = "is finished; start a new one"  # printed by --resume for a finished run
TINY = (
    "--dataset ../train.jsonl --val_dataset ../valid.jsonl --device cpu --threads 1 --num_hidden_layers 2 "
    "--hidden_size 16 --head_dim 4 --num_attention_heads 4 --num_key_value_heads 2 --intermediate_size 12 "
    "--num_experts 6 --sliding_window 8 --initial_context_length 16 --block_size 16 --batch_size 4 "
    f"--eval_tokens 128 --log_every 1 --dropout 0.1 --out_dir model --max_iters {STEPS}"
).split()
IMPORTED = (  # before the forks, so that no child has to; train.py imports some of them late
    "train architecture.gptoss training.costs data.sources training.start training.trainer "
    "torch.utils.tensorboard torch._dynamo pandas matplotlib.backends.backend_agg"
).split()
RECIPES, WAYS, MOST_KILLS, PATIENCE = 12, ("moment", "write", "operation"), 3, 900.0
# These depend on the clock or the command, and not on what a run computes.
FREE = {"seconds", "resume", "commit", "tensorboard_dir", "keep", "use_tensorboard"}
TIMES = ("perf/", "final/seconds", "final/tokens_per_second")


class Broken(Exception):
    """A rule that a killed run broke, in words."""


FAULTS = (Broken, ValueError, OSError)  # the others: a file is missing or is not JSON


class Ended(NamedTuple):
    """A process that has ended: exit code, -9 after a kill -9, and the last line that it printed."""

    code: int
    line: str


class Straight(NamedTuple):
    """The uninterrupted run of a recipe."""

    state: dict[int, str]  # fingerprints of its checkpoints, by step
    history: list[dict[str, Any]]
    best: dict[str, Any]
    seconds: float
    operations: int


@dataclass
class Count:
    """The results so far."""

    runs: int = 0
    kills: collections.Counter = field(default_factory=collections.Counter)  # by the work they interrupted
    starts_over: int = 0  # killed before the first checkpoint
    checkpoints: int = 0  # loaded and compared
    failures: list[dict[str, Any]] = field(default_factory=list)


def recipes(seed: int) -> list[list[str]]:
    """Return lists of flags: every packing with every optimizer, and the other settings at random."""
    draw, found = random.Random(seed), []
    balances = ("aux", "bias", "aux_global", "none")
    for number in range(RECIPES):
        settings = {
            "packing": ("packed", "lanes")[number % 2],
            "optimizer": ("adamw", "muon")[number // 2 % 2],
            "balance": balances[number % 4 if number < 4 else draw.randrange(4)],
            "grad_accum": draw.choice((1, 2)),
            "keep": ("none", "1", "2")[number % 3],
            "save_every": draw.choice((2, 3, 5)),
            "eval_every": draw.choice((2, 3, 4)),
            "seed": draw.randrange(1000),
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        found.append([*words, "--use_tensorboard" if number % 6 == 5 else "--no-use_tensorboard"])
    return found


# --------------------------------------------------------------------------------------- a process


def start(folder: Path, flags: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Start `python train.py FLAGS` with `folder` as its working directory; return its process id.

    The process is forked after the imports, which take longer than the run.
    prepare: called in the new process before it begins.
    """
    assert threading.active_count() == 1, (
        "a fork would copy the locks of other threads, and nobody would release them"
    )
    if pid := os.fork():
        return pid
    code = 70  # an error that train.py itself does not report
    try:
        os.setpgid(0, 0)  # Ctrl-C is for the parent
        os.chdir(folder)
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        prepare()
        import train

        code = train.main(flags)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(
    pid: int, folder: Path, kill_when: Callable[[], bool] = lambda: False, *, every: float = 2e-3
) -> Ended:
    """Wait for a process to end, or kill it once `kill_when`, called `every` so many seconds, is true."""
    limit = time.monotonic() + PATIENCE
    try:
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            if kill_when():
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                break
            if time.monotonic() > limit:
                raise Broken(f"a run still goes after {PATIENCE:g} s")
            time.sleep(every)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    lines = (folder / "log").read_text(errors="replace").strip().splitlines()
    return Ended(os.waitstatus_to_exitcode(status), lines[-1] if lines else "")


def watch_operations(at: int | None, tell: Path | None = None) -> Callable[[], None]:
    """Return a `prepare` that makes a process kill itself at its file operation number `at`.

    tell: a file for the number of operations so far.
    """

    def prepare() -> None:
        from training.monitor import metrics

        done, out_dir, append, sync = 0, str(Path("model").resolve()), metrics.append_line, os.fsync

        def another(cut: Callable[[], None] = lambda: None) -> None:
            nonlocal done
            done += 1
            if done == at:
                cut()
                os.kill(os.getpid(), signal.SIGKILL)
            if tell is not None:
                tell.write_text(str(done))

        def audited(event: str, arguments: tuple) -> None:
            writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.remove"):
                path = os.path.abspath(os.fsdecode(arguments[0])) if arguments[0] else ""
                if path.startswith(out_dir):
                    another()

        def synced(descriptor: int) -> None:
            another()
            sync(descriptor)

        def appended(file: Any, line: str) -> None:
            another(lambda: file.write(line[: len(line) // 2].encode()))
            append(file, line)

        os.fsync, metrics.append_line = synced, appended
        sys.addaudithook(audited)

    return prepare


def killed(folder: Path, flags: list[str], way: str, draw: random.Random, straight: Straight) -> Ended:
    """Start a process and kill it in one of WAYS, unless it ends before."""
    if way == "operation":
        number = draw.randint(1, straight.operations)
        return wait(start(folder, flags, watch_operations(number)), folder)
    if way == "moment":
        pid, end = start(folder, flags), time.monotonic() + draw.uniform(0, straight.seconds)
        return wait(pid, folder, lambda: time.monotonic() >= end)

    appearances, seconds = draw.randint(1, 8), 10 ** draw.uniform(-6, -2)
    seen: set[str] = set()

    def written() -> bool:
        nonlocal appearances, seen
        now = temporary_files(folder / "model")
        appearances, seen = appearances - len(now - seen), now
        if appearances > 0:
            return False
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass
        return True

    return wait(start(folder, flags), folder, written, every=5e-5)


# ------------------------------------------------------------------------------------- what is there


def temporary_files(out_dir: Path) -> set[str]:
    try:
        return {name for name in os.listdir(out_dir) if name.startswith(".") and name != ".lock"}
    except FileNotFoundError:
        return set()


def fingerprint(value: Any) -> str:
    """Hash every bit of a checkpoint or a part of it, without the entries that are FREE."""
    return hashlib.sha256(repr(exact(value, without=FREE)).encode()).hexdigest()


def history(out_dir: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl without the times. Values are text, in which NaN equals NaN."""
    records = read_metrics(out_dir / "metrics.jsonl")
    return [{k: repr(v) for k, v in r.items() if not k.startswith(TIMES)} for r in records]


def what_was_cut(out_dir: Path) -> str:
    """Name the work that a kill interrupted, judged by the files that it left."""
    left = temporary_files(out_dir)
    for name in sorted(left):
        return f"writing {'a checkpoint' if name.startswith('.checkpoint_') else name[1:-4]}"
    lines = out_dir / "metrics.jsonl"
    if lines.exists() and lines.stat().st_size and not lines.read_bytes().endswith(b"\n"):
        return "a line of metrics.jsonl"
    there = checkpoints(out_dir)
    if not there:
        return "before the first checkpoint"
    state = read_checkpoint(there[-1])
    best = out_dir / "best.json"
    held = json.loads(best.read_text()) if best.exists() else {"val_loss": float("inf")}
    if state["scored"] and state["scored"]["val_loss"] < held["val_loss"]:
        return "between a checkpoint and best.json"
    keep = state["train_config"]["keep"]
    if keep and any(path.name != held.get("checkpoint") for path in there[:-keep]):
        return "between a checkpoint and the removal of an older one"
    return "other work"


def check_checkpoints(out_dir: Path, straight: Straight, count: Count) -> None:
    """Raise Broken unless every checkpoint loads and equals that of the uninterrupted run."""
    for path in checkpoints(out_dir):
        try:
            state = read_checkpoint(path)
            require_run(state, path)
        except ValueError as error:
            raise Broken(str(error)) from error
        count.checkpoints += 1
        if fingerprint(state) != straight.state[state["step"]]:
            raise Broken(f"{path.name} holds another state")


def check_end(folder: Path, keep: int | None, straight: Straight, count: Count) -> None:
    """Raise Broken unless a run that has ended equals the uninterrupted run."""
    out_dir = folder / "model"
    check_checkpoints(out_dir, straight, count)
    best = json.loads((out_dir / "best.json").read_text())
    if best != straight.best:
        raise Broken(f"best.json says {best}, and not {straight.best}")
    ours = history(out_dir)
    for ours_at, theirs_at in zip(ours, straight.history):
        if ours_at != theirs_at:
            raise Broken(f"metrics.jsonl has {ours_at} in place of {theirs_at}"[:600])
    if len(ours) != len(straight.history):
        raise Broken(f"metrics.jsonl has {len(ours)} records, and not {len(straight.history)}")
    steps = sorted(straight.state)
    kept = set(steps[-keep:] if keep else steps) | {best["step"]}
    files = {checkpoint_path(out_dir, step).name for step in kept}
    files |= {".lock", "best.json", "config.json", "metrics.jsonl"}
    if (there := set(os.listdir(out_dir))) != files:
        raise Broken(f"files left: {sorted(there - files)}; missing: {sorted(files - there)}")
    check_tensorboard(folder, ours)


def check_tensorboard(folder: Path, records: list[dict[str, Any]]) -> None:
    """Raise Broken unless TensorBoard, if the run uses it, holds each step once."""
    facts = json.loads((folder / "model/config.json").read_text())
    if facts["tensorboard_dir"] is None:
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / facts["tensorboard_dir"]), size_guidance={"scalars": 0})
    drawn = [event.step for event in events.Reload().Scalars("train/loss")]
    told = [int(r["step"]) for r in records if "train/loss" in r]
    if drawn != told:
        raise Broken(f"TensorBoard has train/loss at the steps {drawn}")


# ------------------------------------------------------------------------------------------- a run


def straight_run(folder: Path, recipe: list[str]) -> Straight:
    """Run a recipe without a kill and keep every checkpoint."""
    folder.mkdir()
    flags, tell = [*TINY, *recipe, "--keep", "none"], folder / "operations"
    began = time.monotonic()
    ended = wait(start(folder, flags, watch_operations(None, tell)), folder)
    seconds = time.monotonic() - began
    if ended.code:
        raise Broken(f"the uninterrupted run ended with {ended.code}: {ended.line}")
    out_dir = folder / "model"
    states = [read_checkpoint(path) for path in checkpoints(out_dir)]
    return Straight(
        state={state["step"]: fingerprint(state) for state in states},
        history=history(out_dir),
        best=json.loads((out_dir / "best.json").read_text()),
        seconds=seconds,
        operations=int(tell.read_text()),
    )


def begin_again(folder: Path, flags: list[str]) -> None:
    """Follow what train.py says after a kill before the first checkpoint."""
    ended = wait(start(folder, flags), folder)
    words = "remove it with "
    if ended.code != 2 or words not in ended.line:
        raise Broken(f"a start after a kill before the first checkpoint: {ended}")
    command = shlex.split(ended.line.partition(words)[2].partition(",")[0])
    if command != ["rm", "-r", "model"]:
        raise Broken(f"train.py says to do {command}")
    shutil.rmtree(folder / "model")


def killed_run(
    folder: Path, recipe: list[str], straight: Straight, draw: random.Random, count: Count
) -> Iterator[str]:
    """Kill and resume a run until it ends, with all checks; yields the work that each kill interrupted."""
    folder.mkdir(parents=True)
    new, resume = [*TINY, *recipe], ["--resume", "--out_dir", "model"]
    out_dir, kills, wanted = folder / "model", 0, draw.randint(1, MOST_KILLS)
    while True:
        flags = resume if checkpoints(out_dir) else new
        if flags is new and set(os.listdir(folder)) & {"model"} and len(os.listdir(out_dir)) > 1:
            begin_again(folder, new)
            count.starts_over += 1
        if kills < wanted:
            way = WAYS[count.kills.total() % len(WAYS)]
            ended = killed(folder, flags, way, draw, straight)
        else:
            ended = wait(start(folder, flags), folder)
        if ended.code == 0 or kills and ended.code == 2 and FINISHED in ended.line:
            break  # it finished now, or just before its last kill
        if ended.code != -signal.SIGKILL:
            raise Broken(f"ended with {ended.code} after {kills} kills: {ended.line}")
        kills += 1
        yield what_was_cut(out_dir)
        check_checkpoints(out_dir, straight, count)
    keep = recipe[recipe.index("--keep") + 1]
    check_end(folder, None if keep == "none" else int(keep), straight, count)


def go(number: int, seed: int, work: Path, count: Count) -> None:
    """Do all runs and count them in `count`. The folder of a failed run is kept."""
    write_jsonl(work / "train.jsonl", documents(308)[8:])
    write_jsonl(work / "valid.jsonl", documents(308)[:8])
    chosen = recipes(seed)
    straight = [
        straight_run(work / f"straight_{index}", recipe)
        for index, recipe in enumerate(tqdm(chosen, desc="uninterrupted runs", leave=False))
    ]
    bar = tqdm(total=number, desc="killed runs")
    with bar:
        while count.runs < number:
            index, draw = count.runs % RECIPES, random.Random(f"{seed} {count.runs}")
            folder, cuts = work / f"run_{count.runs}", []
            try:
                while not cuts:  # again if it ended before its first kill
                    shutil.rmtree(folder, ignore_errors=True)
                    for cut in killed_run(folder, chosen[index], straight[index], draw, count):
                        cuts.append(cut)
                        count.kills[cut] += 1
                shutil.rmtree(folder)
            except FAULTS as broken:
                log = folder / "log"
                words = log.read_text(errors="replace")[-2000:] if log.exists() else ""
                said = repr(broken).replace(f"{work}/", "")
                found = {"run": count.runs, "recipe": shlex.join(chosen[index]), "cuts": cuts}
                count.failures.append(found | {"broken": said, "log": words})
                bar.write(f"run {count.runs}: {said} ({found['recipe']})")
            count.runs += 1
            bar.update()
            bar.set_postfix(kills=count.kills.total(), failures=len(count.failures))


def summary(count: Count) -> dict[str, Any]:
    cut = sum(n for what, n in count.kills.items() if "a checkpoint" in what)
    return {
        "runs": count.runs,
        "failures": len(count.failures),
        "kills": count.kills.total(),
        "kills_in_a_checkpoint_write": cut,  # or between it and best.json or the removal of old ones
        "kills_by_what_they_cut": dict(count.kills.most_common()),
        "starts_over": count.starts_over,
        "checkpoints_compared": count.checkpoints,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # it starts a thread, and we fork
    for module in IMPORTED:
        importlib.import_module(module)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it reports every resumed run
    facts = provenance()  # asks git once for all forked processes
    work, count, began = Path(tempfile.mkdtemp()), Count(), time.monotonic()
    interrupted = False
    try:
        go(args.runs, args.seed, work, count)
    except KeyboardInterrupt:
        interrupted = True
    figures = summary(count) | {"seconds": round(time.monotonic() - began, 1)}
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):<28} {value}")
    if count.failures:
        print(f"the folders of the failed runs are in {work}")
    else:
        shutil.rmtree(work)
    if interrupted:
        print(f"interrupted after {count.runs} of {args.runs} runs; nothing was written")
        return 1 if count.failures else 130
    result = facts | {"seed": args.seed} | figures | {"what_failed": count.failures}
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if count.failures else 0


if __name__ == "__main__":
    sys.exit(main())
