"""Judge all recorded ablations again, and say which verdicts change.

    python -m benchmarks.judge_again      seconds; writes benchmarks/results/judged_again.json

"Then" is the rule of the published reports: paired t-tests of each pair alone, Holm's correction, and 5 % at each
of two looks. "Now" is evaluation/ablation/judge.py. Nothing is trained.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from benchmarks.publish import RESULTS, publish
from evaluation.ablation import judge
from evaluation.ablation.statistics import Comparison, compare, summary, table

# Pairs of plans that were changed after runs had been seen: those planned before, and those chosen after. The plan of
# granularity compared every arm with 4_of_1 (benchmarks/LOG.md, the entry on finer experts).
CHANGED = {
    "granularity": (
        [("8_of_2", "4_of_1"), ("16_of_4", "4_of_1"), ("32_of_8", "4_of_1")],
        [("16_of_4", "8_of_2"), ("32_of_8", "16_of_4")],
    )
}


def published(x: Any) -> dict[tuple[str, str], Comparison]:
    """The verdicts of the published report on the pairs of its plan."""
    found = {}
    for first, second in x.spec.pairs(x.spec.expanded()):
        one, other = x.ended_well(first, x.measure), x.ended_well(second, x.measure)
        found[first, second] = [one[s][x.measure] - other[s][x.measure] for s in one if s in other]
    return dict(zip(found, compare(list(found.values()))))


def again(name: str) -> list[dict[str, Any]]:
    """A line for each pair: verdict, half width and what the design resolves, then and now."""
    folder = RESULTS / "ablations" / name
    planned, chosen = CHANGED.get(name, ([], []))
    x = judge.read(folder, planned)
    then, now = published(judge.read(folder)), judge.judged(x, chosen)
    lines = []
    for v in (*now["planned"], *now["others"]):
        old = then.get((v.first, v.second))
        new = judge.record(v)
        line = {"ablation": name, **{key: new[key] for key in ("first", "second", "pair", "seeds")}}
        line |= {
            "verdict_then": old.verdict if old else None,
            "verdict_now": new["verdict"],
            "look": new["look"],
        }
        line |= {"difference_then": old.difference if old else None, "difference": new["difference"]}
        line |= {"half_width_then": old.half_width if old else alone(x, v), "half_width": new["half_width"]}
        line |= {
            "p_then": old.p if old else None,
            "p": new["p"],
            "resolves_then": old.resolves if old else None,
        }
        lines.append(line | {key: new[key] for key in ("resolves", "resolves_low", "resolves_high")})
    return lines


def alone(x: Any, v: Any) -> float | None:
    """The half width of the paired t interval of a pair that the report did not have."""
    one, other = x.ended_well(v.first, x.measure), x.ended_well(v.second, x.measure)
    found = summary([one[seed][x.measure] - other[seed][x.measure] for seed in v.seeds])
    return None if math.isnan(found.half_width) else found.half_width


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    folders = (RESULTS / "ablations").iterdir()
    # a report with a test set is of today's rules
    names = sorted(f.name for f in folders if f.is_dir() and not (f / "test").exists())
    lines = [line for name in names for line in again(name)]
    head = (
        "ablation",
        "first",
        "second",
        "pair",
        "then",
        "now",
        "difference",
        "+- then",
        "+- now",
        "resolves",
    )
    rows = [
        [
            line["ablation"], line["first"], line["second"], line["pair"], line["verdict_then"] or "-", line["verdict_now"],
            f"{line['difference']:+.4f}", f"{line['half_width_then']:.4f}", f"{line['half_width']:.4f}",
            f"{line['resolves']:.4f}",
        ]
        for line in lines
    ]  # fmt: skip
    print(table(head, rows))
    publish("judged_again", {"pairs": lines})


if __name__ == "__main__":
    main()
