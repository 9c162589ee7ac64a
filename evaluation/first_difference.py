"""Name the first step, tensor and operation in which two training runs part.

    python -m evaluation.first_difference model model_2

RUN is the --out_dir of a training run, finished or not. To the last bit, and in this order, it compares

origin        what should be equal: settings, data, versions, and the first batch
log           the values in metrics.jsonl that do not come from the clock
checkpoints   of the same step: weights, optimizer state, random states, position in the data
replays       if log or checkpoints differ: it trains both runs again in this process, each with the settings
              of its own last start, from their newest equal checkpoint or else from the start, until a step
              differs, and then compares that step operation by operation

Nothing is written. Exits with 0 if logs and checkpoints are equal, 1 if they differ, 2 for bad input.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import argparse
import bisect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.script import Parser, exit_code, say, shown

FROM_THE_CLOCK = ("perf/", "final/seconds", "final/tokens_per_second")
# last parts of names: of one call, and the folders
NOT_COMPARED = {"resume", "resume_from", "out_dir", "use_tensorboard", "tensorboard_dir", "command", "job"}
SHOWN = 8  # lines of a list


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m evaluation.first_difference",
        description="Name the first step, tensor and operation in which two training runs part.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="a run's folder (--out_dir)")
    parser.add_argument("--no-replay", action="store_true", help="compare only what the runs wrote")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    a, b = args.runs
    for folder in args.runs:
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"RUN must be the folder of a training run, and {folder} has no config.json; give its --out_dir"
            )
    print(f"A = {a}\nB = {b}")
    other = origin(a, b)
    print("\n  ".join(["origin: these differ (A | B)", *other]) if other else "origin: equal")
    logged, number = first_logged(a, b)
    print(f"log: {logged[1] if logged else f'equal in {number} steps'}")
    alike, different, lines = compare_checkpoints(a, b)
    print("checkpoints:", "\n  ".join(lines), flush=True)
    steps = [step for step in (logged and logged[0], different) if step is not None]
    if not steps:
        print(f"no difference in {number} logged steps and the checkpoints")
        return 0
    if args.no_replay:
        return 1
    last = min(steps)
    start = max((step for step in alike if step < last), default=0)
    try:
        for line in replayed(a, b, start, last):
            print(line, flush=True)
    except (ValueError, FileNotFoundError) as error:
        print(f"no replay, because {error}")
    return 1


# -------------------------------------------------------------------------------------- what was written
def origin(a: Path, b: Path) -> list[str]:
    """What differs in two config.json: settings, model, data, and the versions and first batch of each start."""
    from common.files import read_json, reading

    facts = []
    for folder in (a, b):
        with reading(folder / "config.json", "the settings of a run", way_out="give another run"):
            facts.append(dict(leaves(read_json(folder / "config.json"))))
    names = [n for n in dict.fromkeys([*facts[0], *facts[1]]) if n.rpartition(".")[2] not in NOT_COMPARED]
    pairs = {name: [one.get(name) for one in facts] for name in names}
    return [f"{name}: {here} | {there}" for name, (here, there) in pairs.items() if here != there]


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested dictionaries and lists, with dotted names."""
    if not isinstance(value, dict | list) or not value:
        yield name, value
        return
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(part, f"{name}.{key}" if name else str(key))


def by_step(folder: Path) -> dict[int, dict[str, Any]]:
    """{step: {tag: value}} of a log, in the order in which the tags were written."""
    from training.monitor.metrics import read_metrics

    path, steps = folder / "metrics.jsonl", {}
    for record in read_metrics(path) if path.exists() else []:
        values = {tag: v for tag, v in record.items() if tag != "step" and not tag.startswith(FROM_THE_CLOCK)}
        steps.setdefault(record["step"], {}).update(values)
    return steps


def first_logged(a: Path, b: Path) -> tuple[tuple[int, str] | None, int]:
    """The first logged step that differs, with words about it, and the number of steps that both logs have."""
    here, there = by_step(a), by_step(b)
    both = sorted(here.keys() & there.keys())
    for step in both:
        tags = [tag for tag in here[step] if tag in there[step]]
        # repr, because a NaN differs from itself
        other = [tag for tag in tags if repr(here[step][tag]) != repr(there[step][tag])]
        if other:
            values = " | ".join(shown(log[step][other[0]]) for log in (here, there))
            told = f"step {step} is the first that differs, in {len(other)} of {len(tags)} values"
            return (step, f"{told}, first in {other[0]}: {values}"), len(both)
    return None, len(both)


def compare_checkpoints(a: Path, b: Path) -> tuple[list[int], int | None, list[str]]:
    """The steps whose checkpoints are equal, the first that differs, and lines about both."""
    from architecture.checkpoint import checkpoints_by_step

    here, there = checkpoints_by_step(a), checkpoints_by_step(b)
    steps, found = sorted(here.keys() & there.keys()), {}
    if not steps:
        return [], None, ["no step in common"]

    def differs(step: int) -> bool:
        found[step] = differences(here[step], there[step])
        return bool(found[step])

    first = bisect.bisect_left(steps, True, key=differs)  # runs that parted are taken to stay apart
    newest = f"the newest equal one is {steps[first - 1]}" if first else "none is equal"
    lines = [f"{len(steps)} steps in common; {newest}"]
    if first == len(steps):
        return steps, None, lines
    parts = found[steps[first]]
    lines += [f"step {steps[first]} differs, in {len(parts)} tensors or values:", *parts[:SHOWN]]
    return steps[:first], steps[first], lines + ["..."] * (len(parts) > SHOWN)


def differences(a: Path, b: Path) -> list[str]:
    """What differs in two checkpoints: weights in the order of the model, then the state of the training."""
    import torch

    from training.distributed.sharded_checkpoint import in_memory

    here, there = (dict(leaves(named(in_memory(path)))) for path in (a, b))
    told = [f"{name} is only in one of them" for name in here.keys() ^ there.keys()]
    for name in (name for name in here if name in there):
        x, y = here[name], there[name]
        if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
            told += [f"{name}: {shown(x)} | {shown(y)}"] if x != y else []
        elif x.shape != y.shape or x.dtype != y.dtype:
            told.append(f"{name}: {tuple(x.shape)} {x.dtype} | {tuple(y.shape)} {y.dtype}")
        elif count := int((bits(x) != bits(y)).any(1).sum()):
            most = float((x.double() - y.double()).abs().max())
            told.append(f"{name}: {count:,} of {x.numel():,} values, by at most {most:.3g}")
    return told


def bits(tensor: Any) -> Any:
    """The bytes of each value: (values, bytes) uint8."""
    import torch

    return tensor.contiguous().view(-1, 1).view(torch.uint8)


def named(saved: dict[str, Any]) -> dict[str, Any]:
    """What decides how the run of a checkpoint goes on, with the names of evaluation.replay.updated."""
    from architecture import registry
    from architecture.checkpoint import without_values
    from training import optimizer

    cfg = saved["train_config"]
    config = registry.config_from_dict(saved["model_name"], saved["config"])
    model = without_values(registry.model_class(saved["model_name"]), config)
    optimizer.freeze(model, cfg.get("freeze", "none"))
    matrix, *others = (list(group) for group in optimizer.parameter_groups(model).values())
    rest = sum(others, [])
    # a checkpoint numbers the parameters of each optimizer in this order (optimizer.saved_order)
    orders = [rest, matrix] if len(saved["optimizers"]) == 2 else [matrix + rest]
    averages = {
        f"optimizer state {key} of {order[number]}": value
        for held, order in zip(saved["optimizers"], orders)
        for number, entry in held["state"].items()
        for key, value in entry.items()
    }
    state = {f"weight {name}": value for name, value in saved["model"].items()} | averages
    state |= {f"random state {name}": value for name, value in saved["rng"].items()}
    progress = {name: value for name, value in saved["progress"].items() if name != "seconds"}
    return state | {"position in the data": saved["data"], "progress": progress}


# ---------------------------------------------------------------------------------------------- replays
def replayed(a: Path, b: Path, start: int, last: int) -> Iterator[str]:
    """Train both runs again from `start` to `last`, and say where they part."""
    from evaluation import replay

    for folder in (a, b):
        replay.settings(folder)  # raises for a run that cannot be replayed
    say(f"training steps {start + 1} to {last} of both runs again ...")
    here, there = (replay.replay(folder, start, last) for folder in (a, b))
    step = next((n for n, (x, y) in enumerate(zip(here, there), start + 1) if x != y), None)
    began = f"replays from {f'step {start}' if start else 'the start'}"
    if step is None:
        yield f"{began}: equal until step {last}, so neither settings nor data make the runs part"
        for name, folder in (("A", a), ("B", b)):
            log = {n: tags["train/loss"] for n, tags in by_step(folder).items() if "train/loss" in tags}
            steps = [(n, log[n], loss) for n, (_, loss) in enumerate(here, start + 1) if n in log]
            other = [f"{was} at step {n}, and its replay has {loss}" for n, was, loss in steps if was != loss]
            told = f"train/loss {other[0]}" if other else f"the {len(steps)} losses of its replay"
            yield f"  {name} logged {told}"
        yield "  a run that leaves its replay was made by another machine or version, or changed from outside"
        return
    yield f"{began}: step {step} is the first that differs"
    ours, theirs = (replay.watched(folder, start, step) for folder in (a, b))
    for kind, results in ours.items():
        pairs = list(zip(results, theirs[kind]))
        number = next((n for n, (x, y) in enumerate(pairs) if x != y), None)
        if number is None:
            yield f"  {kind}: equal"
            continue
        names = [result[0] for result in pairs[number]]
        told = names[0] if names[0] == names[1] else f"A {names[0]}, B {names[1]}"
        yield f"  first different {kind}: {told} (number {number + 1} of {len(results):,} | {len(theirs[kind]):,})"


def main(argv: list[str] | None = None) -> int:
    return exit_code("evaluation.first_difference", lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
