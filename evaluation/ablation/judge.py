"""Judge the recorded results of an ablation again, without a run.

    python -m evaluation.ablation.judge FOLDER                                 the verdicts of its plan.json and results.jsonl
    python -m evaluation.ablation.judge FOLDER --pair experts swiglu           and on a pair chosen after the runs
    python -m evaluation.ablation.judge FOLDER --planned 8_of_2 4_of_1 --pair 16_of_4 8_of_2
                                                                               for a plan whose pairs were changed after
                                                                               runs were seen: its first pairs, and the others

FOLDER is a folder that ablate.py wrote, or one below benchmarks/results/ablations. Nothing in it is changed.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.script import Parser, did_you_mean, exit_code, shown

if TYPE_CHECKING:
    from evaluation.ablation.verdict import Ablation, Verdict


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m evaluation.ablation.judge",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="the folder with plan.json and results.jsonl")
    pair: dict[str, Any] = {"nargs": 2, "action": "append", "default": [], "metavar": ("A", "B")}
    add("--pair", **pair, help="also judge A - B, marked as chosen after the runs; may be repeated")
    add("--planned", **pair, help="a pair planned before the runs, in place of the plan's; may be repeated")
    add("--out", type=Path, metavar="FILE", help="write the verdicts as JSON")
    return parser.parse_args(argv)


class StoredArm(NamedTuple):
    """What a verdict needs of an arm in plan.json."""

    data: str
    reference: str


def read(folder: Path, planned: Sequence[Sequence[str]] = ()) -> Ablation:
    """The recorded Ablation in a folder.  planned: pairs in place of those of its plan.

    Raises ValueError if the folder holds none.
    """
    from common.files import parse_json, read_json, reading
    from evaluation.ablation.results import Results
    from evaluation.ablation.spec import read_spec
    from evaluation.ablation.verdict import Ablation

    class Recorded(Results):
        """Results that are only read; the file may be read-only, or in use."""

        def __init__(self, path: Path):
            whole = path.read_bytes().rpartition(b"\n")[0]  # the last line may be half written
            with reading(path, "the results of an ablation"):
                lines = map(parse_json, whole.splitlines())
                self.lines = {line["id"]: line for line in lines}

    plan, results = folder / "plan.json", folder / "results.jsonl"
    for path in (plan, results):
        if not path.is_file():
            raise ValueError(
                f"{folder} has no {path.name}; give a folder that ablate.py wrote and in which runs have ended"
            )
    spec = read_spec(plan)
    with reading(plan, "the plan of an ablation"):
        arms = {
            name: StoredArm(arm["data"], arm["reference"]) for name, arm in read_json(plan)["arms"].items()
        }
    require_pairs("--planned", planned, arms)
    if planned:
        spec = replace(spec, headline=tuple((first, second) for first, second in planned))
    return Ablation(spec, arms, folder, Recorded(results))


def require_pairs(flag: str, pairs: Sequence[Sequence[str]], arms: Mapping[str, Any]) -> None:
    """Raise ValueError if a pair is not of two arms of the plan."""
    for first, second in pairs:
        for name in (first, second):
            if name not in arms:
                near = did_you_mean(name, arms) or f"; there are {', '.join(arms)}"
                raise ValueError(f"{flag} names the arm {shown(name)}, which does not exist{near}")
        if first == second:
            raise ValueError(f"{flag} needs two different arms, got {first} twice; change one")


def judged(x: Ablation, chosen: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
    """All verdicts of a recorded ablation.  chosen: pairs chosen after the runs."""
    from evaluation.ablation.verdict import beside, spreads, verdicts

    require_pairs("--pair", chosen, x.arms)
    planned, others = verdicts(x), beside(x, [(first, second) for first, second in chosen])
    return {"planned": planned, "others": others, "spreads": spreads(x)}


def record(v: Verdict) -> dict[str, Any]:
    """A verdict as JSON; None for what it does not have."""
    c = v.comparison
    found = {"first": v.first, "second": v.second, "pair": v.kind, "seeds": list(v.seeds)}
    if v.refused:
        return found | {"verdict": "not compared", "why": v.refused}
    resolves = [c.resolves.value, c.resolves.low, c.resolves.high]
    figures = {"difference": c.difference, "half_width": c.half_width, "p": c.p}
    figures |= dict(zip(("resolves", "resolves_low", "resolves_high"), resolves))
    return (
        found
        | {"verdict": c.verdict, "look": v.look}
        | {name: None if math.isnan(value) else float(value) for name, value in figures.items()}
    )


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code("evaluation.ablation.judge", lambda: run(parse(argv)))


def run(args: argparse.Namespace) -> None:
    from common.files import write_json_atomic
    from common.provenance import provenance, record_path
    from evaluation.ablation.verdict_text import beside_in_words, in_words, pairs_section

    x = read(args.folder, args.planned)
    found = judged(x, args.pair)
    told = [in_words(v, x.spec.measure) for v in found["planned"]] + beside_in_words(x, found["others"])
    told = "\n".join(f"- {line}" for line in told)
    print(f"# {x.spec.name}\n\n{told}\n\n{pairs_section(x, found['planned'], found['others'])}")
    if args.out:
        spread, pairs = found["spreads"], [record(v) for v in (*found["planned"], *found["others"])]
        pooled = spread and {"pooled": spread.pooled, "df": spread.df, "documents": spread.documents}
        figures = {"name": x.spec.name, "pairs": pairs, "spread": pooled}
        write_json_atomic(record_path(args.out), provenance() | figures)


if __name__ == "__main__":
    sys.exit(main())
