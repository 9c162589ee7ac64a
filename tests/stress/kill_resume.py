"""Kill, hang up and mislead tiny training runs again and again; each must end as if nothing had happened.

    python -m tests.stress.kill_resume [--runs 300] [--seed 0]    writes benchmarks/results/kill_resume.json
    python -m tests.stress.kill_resume --only 40                  does run 40 again and writes nothing

Each run meets one to three of these events, drawn at random, and is resumed after each, until it ends:

moment      kill -9 at a random moment of the run
write       kill -9, 1 us to 10 ms after a temporary file has appeared
operation   kill -9 at one of all the file operations of the run: before a file is opened for writing, synced,
            renamed or removed, or in the middle of a line of metrics.jsonl
hangup      SIGHUP at a random moment, or at a file operation
terminal    the terminal of the run is closed, which also sends SIGHUP
nohup       SIGHUP at a random moment of a run that was started with SIGHUP ignored
reader      the reader of the log goes away at a random moment
full        the device of the log is full from one of the file operations on
closed      stdout and stderr are closed from the start
replaced    the data is replaced, written over or cut while the run reads it

After a hang-up and after replaced data, all steps are saved, and the program exits with 129 or with 2 and
one sentence. The log is no reason to end: after nohup, reader, full and closed the run ends by itself.

The data is .jsonl, .txt, .parquet, a folder of files or a token folder. Before a resume it may change
(tests/stress/changed_data.py). With other content the resume must be refused and leave the run as it is.
Under another name, with the same content, the resume must go on.

After each event every checkpoint in the folder must load and equal that of an uninterrupted run at the same
step. If there is none yet, train.py must say what to do, and a new start must then work. At the end the whole
state, the history in metrics.jsonl, best.json, the closing validation loss and the list of files must be
those of the uninterrupted run. The recipes vary packing, optimizer, balance rule, micro-batches, TensorBoard,
the intervals of saves and evaluations, how many checkpoints are kept, and the format of the data.

At last two `data.prepare` write to one folder, in the orders of tests/stress/two_writers.py.

Any difference is exit code 1. Ctrl-C prints what was found so far and writes nothing.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import importlib
import json
import logging
import os
import pty
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from architecture.checkpoint import best_checkpoint, checkpoints_by_step, read_checkpoint
from common.provenance import provenance, record_path
from tests.stress import changed_data, two_writers
from tests.stress.changed_data import Data
from tests.stress.exact import exact
from tests.stress.fuzzing.judge import contents, unclear
from tests.stress.processes import (
    Broken,
    Ended,
    Prepare,
    as_command,
    at_operation,
    fill_the_log,
    ignore_hangup,
    nothing,
    prints_nowhere,
    prints_to,
    prints_to_terminal,
    raise_signal,
    start,
    wait,
)
from training import reporting
from training.monitor.metrics import read_metrics
from training.state.checkpoint import checkpoint_path, checkpoints, require_run

RESULT = Path(__file__).resolve().parents[2] / "benchmarks/results" / "kill_resume.json"
STEPS = 20
FINISHED = "is finished; start a new one"  # printed by --resume for a finished run
TINY = (
    "--device cpu --threads 1 --num_hidden_layers 2 "
    "--hidden_size 16 --head_dim 4 --num_attention_heads 4 --num_key_value_heads 2 --intermediate_size 12 "
    "--num_experts 6 --sliding_window 8 --initial_context_length 16 --block_size 16 --batch_size 4 "
    f"--eval_tokens 128 --log_every 1 --dropout 0.1 --out_dir model --max_iters {STEPS}"
).split()
IMPORTED = (  # before the forks, so that no child has to; train.py imports some of them late
    "train architecture.gptoss training.costs data.sources data.prepare training.start training.trainer "
    "torch.utils.tensorboard torch._dynamo pandas matplotlib.backends.backend_agg"
).split()
KILLS = ("moment", "write", "operation")
HANGUPS = ("hangup", "terminal")
GO_ON = ("nohup", "reader", "full", "closed")  # the run ends by itself
WAYS = (*KILLS, *HANGUPS, *KILLS, *GO_ON, "replaced")
ENDLESS = (*GO_ON, "replaced")  # after these the run may have ended by itself
RECIPES, MOST_KILLS = 12, 3
COMMANDS, IMPORTS = 0.15, 4.0  # share of real commands, where the way allows it, and their seconds of imports
CHANGES = 0.3  # probability of each kind of change before a resume
# These depend on the clock, the command or names, and not on what a run computes.
FREE = {"seconds", "resume", "commit", "tensorboard_dir", "keep", "use_tensorboard", "save_every", "scored"}
FREE |= {"dataset", "val_dataset"}
FREE |= {"param_groups"}  # with the learning rate of the step that was begun; a resume does not read them
TIMES = ("perf/", "final/seconds", "final/tokens_per_second")
TIMES += ("samples/",)  # a real command tells longer stories than a forked one
FAULTS = (Broken, ValueError, OSError)  # the others: a file is missing or is not JSON


class Straight(NamedTuple):
    """The uninterrupted run of a recipe."""

    state: dict[int, str]  # fingerprints of its checkpoints, by step
    scores: dict[int, dict[str, Any]]  # what best.json would say of each evaluated step
    history: list[dict[str, Any]]
    seconds: float
    operations: int


@dataclass
class Count:
    """The results so far."""

    runs: int = 0
    ways: collections.Counter = field(default_factory=collections.Counter)  # the events
    kills: collections.Counter = field(default_factory=collections.Counter)  # by the work they interrupted
    changes: collections.Counter = field(default_factory=collections.Counter)  # of data before a resume
    starts_over: int = 0  # killed before the first checkpoint
    checkpoints: int = 0  # loaded and compared
    writers: collections.Counter = field(default_factory=collections.Counter)  # orders of two data.prepare
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


def form_of(number: int) -> str:
    """The format of the data of a recipe."""
    return changed_data.FORMATS[number % len(changed_data.FORMATS)]


def setting(recipe: list[str], name: str) -> int | None:
    value = recipe[recipe.index(f"--{name}") + 1]
    return None if value == "none" else int(value)


# ---------------------------------------------------------------------------------------- an event


def meet(
    way: str, folder: Path, flags: list[str], draw: random.Random, straight: Straight, data: Data
) -> Ended:
    """Start a process that meets an event, one of WAYS, unless it ends before."""
    kill, hangup = raise_signal(signal.SIGKILL), raise_signal(signal.SIGHUP)
    at_an_operation = {"operation": kill, "full": fill_the_log}
    if way == "hangup" and draw.random() < 0.5:
        at_an_operation = {"hangup": hangup}
    if way in at_an_operation:
        number = draw.randint(1, straight.operations)
        return wait(start(folder, flags, at_operation(number, at_an_operation[way], "model")), folder)
    if way == "write":
        return wait(start(folder, flags), folder, after_a_write(folder / "model", draw), every=5e-5)
    if way == "replaced":
        how, moment = draw.choice(changed_data.WAYS), while_reading(folder / "model", draw, straight.seconds)
        return wait(start(folder, flags), folder, moment, lambda _: data.change_while_read(how, draw))

    real = way == "closed" or draw.random() < COMMANDS
    steps: list[Prepare] = {"nohup": [ignore_hangup], "closed": [prints_nowhere]}.get(way, [])
    number, log = signal.SIGKILL if way == "moment" else signal.SIGHUP, None
    with contextlib.ExitStack() as stack:
        if way in ("reader", "terminal"):
            log, theirs = os.pipe() if way == "reader" else pty.openpty()
            os.set_blocking(log, False)
            ours = stack.enter_context(os.fdopen(log, "rb", buffering=0))
            prints = prints_to if way == "reader" else prints_to_terminal
            steps = [lambda: os.close(log), prints(theirs)]
        end = time.monotonic() + draw.uniform(0, straight.seconds + IMPORTS * real)

        def moment() -> bool:
            if log is not None:
                with contextlib.suppress(OSError), open(folder / "log", "ab") as told:
                    told.write(os.read(log, 65536))
            return time.monotonic() >= end

        def act(pid: int) -> None:
            if log is not None:
                ours.close()
            elif way != "closed":
                os.kill(pid, number)

        pid = start(folder, flags, *steps, *([as_command("train", flags)] if real else []))
        if log is not None:
            os.close(theirs)
        return wait(pid, folder, moment, act)


def after_a_write(out_dir: Path, draw: random.Random) -> Callable[[], bool]:
    """Be true a moment after one of the next temporary files has appeared."""
    appearances, seconds = draw.randint(1, 8), 10 ** draw.uniform(-6, -2)
    seen: set[str] = set()

    def written() -> bool:
        nonlocal appearances, seen
        now = temporary_files(out_dir)
        appearances, seen = appearances - len(now - seen), now
        if appearances > 0:
            return False
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass
        return True

    return written


def while_reading(out_dir: Path, draw: random.Random, seconds: float) -> Callable[[], bool]:
    """Be true at a moment after the first step, which is in metrics.jsonl."""
    least, delay, end = len(records(out_dir)), draw.uniform(0, seconds / 2), None

    def reading() -> bool:
        nonlocal least, end
        size = len(records(out_dir))
        least = min(least, size)  # a resume drops records
        if size > least and end is None:
            end = time.monotonic() + delay
        return end is not None and time.monotonic() >= end

    return reading


def check_ending(way: str, ended: Ended, before: bytes, out_dir: Path) -> None:
    """Raise Broken unless a process ended as its event demands, without lost work.

    before: metrics.jsonl when the process began.
    """
    codes = dict.fromkeys(KILLS, (-signal.SIGKILL,)) | dict.fromkeys(GO_ON, (0,)) | {"replaced": (0, 2)}
    # A hang-up before the training loop, or after it, ends the process.
    codes |= dict.fromkeys(HANGUPS, (128 + signal.SIGHUP, -signal.SIGHUP))
    if ended.code not in codes[way]:
        raise Broken(f"{way}: ended with {ended.code}: {ended.line}")
    if way in KILLS or ended.code == 0 or records(out_dir) == before:
        return
    done = [r["step"] for r in read_metrics(out_dir / "metrics.jsonl") if "train/loss" in r]
    saved = list(checkpoints_by_step(out_dir))
    if max(done, default=0) > max(saved, default=0):
        raise Broken(
            f"{way}: {max(done)} steps were done and {max(saved, default=0)} are saved: {ended.line}"
        )
    if way == "replaced" and (unclear([ended.line]) or "chang" not in ended.line):
        raise Broken(f"replaced: no sentence about it: {ended.line}")


# ------------------------------------------------------------------------------------- what is there


def records(out_dir: Path) -> bytes:
    try:
        return (out_dir / "metrics.jsonl").read_bytes()
    except FileNotFoundError:
        return b""


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
        if state["step"] and fingerprint(state) != straight.state[state["step"]]:
            raise Broken(f"{path.name} holds another state")


def check_end(
    folder: Path, keep: int | None, straight: Straight, count: Count, saved: set[int], scored: set[int]
) -> None:
    """Raise Broken unless a run that has ended equals the uninterrupted run.

    saved, scored: the steps at which it saved a checkpoint, and those of them with a validation loss.
    """
    out_dir = folder / "model"
    check_checkpoints(out_dir, straight, count)
    expected = min((straight.scores[step] for step in sorted(scored)), key=lambda entry: entry["val_loss"])
    best = best_checkpoint(out_dir)
    if best != expected:
        raise Broken(f"best.json says {best}, and not {expected}")
    ours = history(out_dir)
    for ours_at, theirs_at in zip(ours, straight.history):
        if ours_at != theirs_at:
            raise Broken(f"metrics.jsonl has {ours_at} in place of {theirs_at}"[:600])
    if len(ours) != len(straight.history):
        raise Broken(f"metrics.jsonl has {len(ours)} records, and not {len(straight.history)}")
    kept = set(sorted(saved)[-keep if keep else None :]) | {best["step"]}
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


def own_saves(recipe: list[str], straight: Straight) -> tuple[set[int], set[int]]:
    """Return the steps at which the uninterrupted run saves, and those of them with a validation loss."""
    saved = {*range(0, STEPS, setting(recipe, "save_every")), STEPS} - {0}
    return saved, saved & set(straight.scores)


def straight_run(folder: Path, recipe: list[str], form: str, work: Path, count: Count) -> Straight:
    """Run a recipe twice without an event and keep every checkpoint: as it is, and saving at every step."""
    tell = folder / "operations"
    for name, more in (("each", ["--save_every", "1"]), ("own", [])):
        place = folder / name
        place.mkdir(parents=True)
        flags = [*TINY, *recipe, *Data(work, form, place).flags(), "--keep", "none", *more]
        began = time.monotonic()
        ended = wait(start(place, flags, at_operation(None, nothing, "model", tell)), place)
        seconds = time.monotonic() - began
        if ended.code:
            raise Broken(f"the uninterrupted run ended with {ended.code}: {ended.line}")
    states = [read_checkpoint(path) for path in checkpoints(folder / "each/model")]
    straight = Straight(
        state={state["step"]: fingerprint(state) for state in states},
        scores={
            state["step"]: {"step": state["step"], "checkpoint": f"checkpoint_{state['step']}.pt"}
            | state["scored"]
            for state in states
            if state["scored"]
        },
        history=history(place / "model"),
        seconds=seconds,
        operations=int(tell.read_text()),
    )
    check_end(place, None, straight, count, *own_saves(recipe, straight))
    return straight


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


def change_data(folder: Path, resume: list[str], data: Data, draw: random.Random, count: Count) -> list[str]:
    """Perhaps try a resume with other data, which must be refused; perhaps give the data another name.

    Return the flags that the resume needs.
    """
    names = data.flags() if data.place != "data" else []
    if draw.random() < CHANGES:
        variant = draw.choice(changed_data.OTHER)
        count.changes[f"{variant}, {data.form}"] += 1
        data.put(variant)
        before = contents(folder / "model")
        ended = wait(start(folder, [*resume, *names]), folder)
        if ended.code != 2 or unclear([ended.line]):
            raise Broken(f"a resume with other data ({variant}, {data.form}): {ended}")
        if contents(folder / "model") != before:
            raise Broken(f"a refused resume with other data ({variant}, {data.form}) changed the run")
        data.put("original")
    if draw.random() < CHANGES:
        how = draw.choice(changed_data.SAME)
        count.changes[f"{how}, {data.form}"] += 1
        names = data.rename(how, count.changes.total())
    return names


def killed_run(
    folder: Path, recipe: list[str], straight: Straight, draw: random.Random, count: Count, data: Data
) -> Iterator[str]:
    """Have a run meet events and resume it until it ends, with all checks; yields the events in words."""
    resume, out_dir, events = ["--resume", "--out_dir", "model"], folder / "model", 0
    ways, (saved, scored) = draw.sample(WAYS, draw.randint(1, MOST_KILLS)), own_saves(recipe, straight)
    while True:
        if checkpoints(out_dir):
            flags = [*resume, *change_data(folder, resume, data, draw, count)]
        else:
            flags = [*TINY, *recipe, *data.flags()]
            if out_dir.exists() and len(os.listdir(out_dir)) > 1:
                begin_again(folder, flags)
                count.starts_over += 1
        before = records(out_dir)
        if events < len(ways):
            way = ways[events]
            ended = meet(way, folder, flags, draw, straight, data)
        else:
            way, ended = "nohup", wait(start(folder, flags), folder)
        finished = events and ended.code == 2 and FINISHED in ended.line  # just before its last event
        if way == "replaced":
            data.put("original")
        if events < len(ways) and (ended.code != 0 or way in ENDLESS):
            count.ways[way] += 1
        if not finished and ended.code != 0:
            check_ending(way, ended, before, out_dir)
        if finished or ended.code == 0:
            if events < len(ways) and way in ENDLESS:
                yield f"none: {way}"
            break
        events += 1
        yield what_was_cut(out_dir) if way in KILLS else way
        check_checkpoints(out_dir, straight, count)
        if way not in KILLS and ended.code > 0 and (there := checkpoints(out_dir)):
            newest = read_checkpoint(there[-1])
            saved.add(newest["step"])
            scored |= {newest["step"]} if newest["scored"] else set()
    check_end(folder, setting(recipe, "keep"), straight, count, saved, scored)


def go(runs: Sequence[int], seed: int, work: Path, count: Count) -> None:
    """Do the runs with these numbers and count them in `count`. The folder of a failed run is kept."""
    changed_data.make(work / "data")
    chosen = recipes(seed)
    straight = {
        index: straight_run(work / f"straight_{index}", chosen[index], form_of(index), work / "data", count)
        for index in tqdm(sorted({run % RECIPES for run in runs}), desc="uninterrupted runs", leave=False)
    }
    bar = tqdm(runs, desc="killed runs")
    for run in bar:
        index, draw = run % RECIPES, random.Random(f"{seed} {run}")
        folder, cuts = work / f"run_{run}", []
        try:
            while not cuts:  # again if it ended before its first event
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                data = Data(work / "data", form_of(index), folder)
                for cut in killed_run(folder, chosen[index], straight[index], draw, count, data):
                    cuts.append(cut)
                    count.kills[cut] += 1
            shutil.rmtree(folder)
        except FAULTS as broken:
            log = folder / "log"
            words = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            said = str(broken).replace(f"{work}/", "")
            recipe = shlex.join([*chosen[index], *changed_data.flags(form_of(index))])
            found = {"run": run, "recipe": recipe, "cuts": cuts}
            count.failures.append(found | {"broken": said, "log": words})
            bar.write(f"run {run}: {said} ({recipe})")
        count.runs += 1
        bar.set_postfix(events=count.ways.total(), failures=len(count.failures))


def summary(count: Count) -> dict[str, Any]:
    cut = sum(n for what, n in count.kills.items() if "a checkpoint" in what)
    return {
        "runs": count.runs,
        "failures": len(count.failures),
        "kills": sum(count.ways[way] for way in KILLS),
        "events": count.ways.total(),
        "events_by_way": dict(count.ways.most_common()),
        "kills_in_a_checkpoint_write": cut,  # or between it and best.json or the removal of old ones
        "kills_by_what_they_cut": dict(count.kills.most_common()),
        "data_changed_before_a_resume": dict(count.changes.most_common()),
        "starts_over": count.starts_over,
        "checkpoints_compared": count.checkpoints,
        "two_writers": dict(count.writers.most_common()),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=300, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--only", type=int, help="the number of a single run, to see it again")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, which may have started us, would hide every hang-up
    tqdm.monitor_interval = 0  # it starts a thread, and we fork
    for module in IMPORTED:
        importlib.import_module(module)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it reports every resumed run
    reporting.SAMPLE_TOKENS = 4  # shorter stories take less time
    facts = provenance()  # asks git once for all forked processes
    work, count, began = Path(tempfile.mkdtemp()), Count(), time.monotonic()
    interrupted, runs = False, range(args.runs) if args.only is None else [args.only]
    try:
        go(runs, args.seed, work, count)
        if args.only is None:
            two_writers.go(args.runs, args.seed, work / "writers", work / "data/jsonl", count)
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
        print(f"interrupted after {count.runs} of {len(runs)} runs; nothing was written")
        return 1 if count.failures else 130
    if args.only is not None:
        return 1 if count.failures else 0
    result = facts | {"seed": args.seed} | figures | {"what_failed": count.failures}
    record_path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if count.failures else 0


if __name__ == "__main__":
    sys.exit(main())
