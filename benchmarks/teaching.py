"""Record what post-training taught: each held-out measure before and after, over the seeds of each kind.

    python -m benchmarks.teaching NAME=RUN,RUN,... [NAME=RUN,...] [--record teaching]

The runs of a name are finished runs of post_train.py with one recipe and several seeds. They begin with one model, or
each with that of its own seed. Writes to benchmarks/results/RECORD.json, for each name: its settings, the curve of each
measure and seed, the mean of last - first with its 95 % interval over seeds, and how the steps spent their time. For
what each step measures (post/), first and last are the means of the first and of the last fifth of the steps. Between
names with the same seeds, it judges the differences of the last values as an ablation does; the intervals hold for all
pairs of names and all measures of the table together.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import itertools
import json
import math
import statistics
import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from benchmarks.judging import differences, differences_table, named_runs
from benchmarks.publish import publish, require_clean_commits
from benchmarks.record_run import figures, over_seeds
from common.script import Parser, exit_code
from evaluation.ablation.statistics import ALPHA, summary, table
from training.monitor.metrics import read_metrics

SHOWN = (
    "val/pair_accuracy",
    "post/reward",
    "val/reward",
    "val/words",
    "val/all_words",
    "val/feature",
    "val/passes",
    "val/bits_per_byte",
)
SPENT = ("post/sampling_share", "post/samples_per_second", "post/routing_flips", "perf/tokens_per_second")


def curves(records: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """{measure: [[step, value], ...]} of the held-out measures of a run, of its reward, and of what a value head explains."""
    found: dict[str, list[list[float]]] = {}
    for record in records:
        for tag, value in record.items():
            measured = (
                tag.startswith(("val/", "post/reward", "post/explained_variance")) and "_by_" not in tag
            )
            if measured and isinstance(value, (int, float)):
                found.setdefault(tag, []).append([record["step"], round(value, 6)])
    return found


def medians(records: list[dict[str, Any]]) -> dict[str, float]:
    """The medians over the logged steps of what says how a run spent its time."""
    found = {tag: [r[tag] for r in records if isinstance(r.get(tag), (int, float))] for tag in SPENT}
    return {tag: statistics.median(values) for tag, values in found.items() if values}


def taught(runs: list[Path]) -> dict[str, Any]:
    """The record of a name; ValueError if its runs differ in more than the seed and the model that they begin with, or
    are not finished.
    """
    facts = [figures(run) for run in runs]
    over_seeds([fact | {"train": {**fact["train"], "init_from": None}} for fact in facts])
    seeds = [str(fact["train"]["seed"]) for fact in facts]
    logged = dict(zip(seeds, (read_metrics(run / "metrics.jsonl") for run in runs)))
    by_seed = {seed: curves(records) for seed, records in logged.items()}
    measures = sorted(set.intersection(*(set(found) for found in by_seed.values())))
    change = {}
    for measure in measures:
        first, last = zip(*(ends(measure, found[measure]) for found in by_seed.values()))
        change[measure] = {
            "first": statistics.fmean(first),
            "last": statistics.fmean(last),
            "change": change_over_seeds([b - a for a, b in zip(first, last)]),
        }
    settings = {
        key: value for key, value in facts[0]["train"].items() if key not in ("seed", "out_dir", "init_from")
    }
    return {
        "settings": settings,
        "commands": [start["command"] for fact in facts for start in fact["starts"]],
        "commits": sorted({start["commit"] for fact in facts for start in fact["starts"]}),
        "parameters": facts[0]["parameters"],
        "init_from": dict(zip(seeds, (fact["train"]["init_from"] for fact in facts))),
        "curves": by_seed,
        "change": change,
        "medians": {seed: medians(records) for seed, records in logged.items()},
    }


def ends(measure: str, curve: list[list[float]]) -> tuple[float, float]:
    """The first and the last value of a curve; of what each step measures on its own few texts, the mean of the first and
    of the last fifth of the steps.
    """
    values = [value for _, value in curve]
    some = max(1, len(values) // 5) if measure.startswith("post/") else 1
    return statistics.fmean(values[:some]), statistics.fmean(values[-some:])


def compared(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The differences of the last values between names, for each measure of SHOWN that all of them have."""
    seeds = {tuple(sorted(one["curves"])) for one in found.values()}
    if len(found) < 2 or len(seeds) > 1 or len(next(iter(seeds))) < 2:
        return {}
    shared = set.intersection(*(set(one["change"]) for one in found.values()))
    values = {
        measure: {(name, int(seed)): ends(measure, curve[measure])[1] for name, one in found.items()
                  for seed, curve in one["curves"].items()}
        for measure in SHOWN if measure in shared
    }  # fmt: skip
    spread = {m: v for m, v in values.items() if len(set(v.values())) > 1}
    return {measure: differences(some, ALPHA / len(spread)) for measure, some in spread.items()}


def change_over_seeds(values: list[float]) -> dict[str, float]:
    """The summary of a figure over seeds; of one seed the mean alone, because JSON has no NaN."""
    return {name: value for name, value in summary(values)._asdict().items() if not math.isnan(value)}


def change_as_text(change: dict[str, float]) -> str:
    """mean +- half width, or that there is but one seed. change: what change_over_seeds() returns"""
    interval = f" +- {change['half_width']:.3f}" if "half_width" in change else " (one seed)"
    return f"{change['mean']:+.3f}{interval}"


def as_text(found: dict[str, dict[str, Any]], different: dict[str, Any]) -> str:
    """The tables of docs/teaching.md. different: what compared() returns"""
    head = ["run", "measure", "before", "after", "change, 95 % over seeds"]
    rows = [
        [name, f"`{measure}`", f"{one['first']:.3f}", f"{one['last']:.3f}",
         change_as_text(one["change"])]
        for name, some in found.items() for measure in SHOWN if (one := some["change"].get(measure))
    ]  # fmt: skip
    return "\n\n".join([table(head, rows), *([differences_table(different)] if different else [])])


def main(argv: list[str] | None = None) -> int:
    title, _, rest = __doc__.partition("\n")
    parser = Parser(prog="python -m benchmarks.teaching", description=title, epilog=rest,
                    allow_abbrev=False, formatter_class=RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN,RUN,...", help="runs of one recipe, by its name")
    parser.add_argument(
        "--record", default="teaching", metavar="NAME", help="of the record (default: teaching)"
    )
    args = parser.parse_args(argv)
    named = named_runs(args.runs)
    found = {name: taught(runs) for name, runs in named.items()}
    require_clean_commits(json.dumps(found), Path(f"{args.record}.json"))
    different = compared(found)
    print(as_text(found, different))
    publish(args.record, {"runs": found, "differences": different}, itertools.chain(*named.values()))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("benchmarks.teaching", main))
