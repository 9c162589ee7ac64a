"""From results to verdicts: which runs form a pair, and whether they saw the same data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.ablation.matching import PlannedArm
from evaluation.ablation.results import Results
from evaluation.ablation.spec import Spec
from evaluation.ablation.statistics import Comparison, compare


@dataclass(frozen=True)
class Ablation:
    """The specification, the plan and the results so far."""

    spec: Spec
    arms: dict[str, PlannedArm]
    folder: Path
    results: Results

    def ended_well(self, arm: str, measure: str = "status") -> dict[int, dict[str, Any]]:
        """{seed: line} for the runs of an arm that ended well and have the measure; a line includes the
        scores by segment.
        """
        by_segment = {line["seed"]: line for line in self.results.of("segments", arm)}
        lines = [line for line in self.results.of("verdict", arm) if line["status"] == "ok"]
        whole = {line["seed"]: by_segment.get(line["seed"], {}) | line for line in lines}
        return {seed: line for seed, line in whole.items() if measure in line}


TOO_FEW = "fewer than two seeds ended well in both arms"


class Verdict(NamedTuple):
    """A pair of the headline."""

    first: str
    second: str
    seeds: tuple[int, ...]  # seeds at which both arms ended well
    comparison: Comparison
    lost: int  # number of seeds that both arms ran and at which one did not end well
    refused: str  # why there is no verdict; "" if there is one


def verdicts(x: Ablation, seeds: tuple[int, ...] | None = None) -> list[Verdict]:
    """The verdicts on all pairs of the headline, corrected for their number, over all seeds or the given
    ones.
    """
    found, differences = [], []
    measure, seeds = x.spec.measure, seeds or x.spec.seeds
    for first, second in x.spec.pairs(x.spec.expanded()):
        one, other = (x.ended_well(name, measure) for name in (first, second))
        shared = tuple(s for s in seeds if s in one and s in other)
        refused = ""
        if len(shared) < 2:
            refused = TOO_FEW
        elif x.arms[first].data == x.arms[second].data and any(
            one[seed]["first_batch_sha256"] != other[seed]["first_batch_sha256"] for seed in shared
        ):
            refused = "the two arms saw different batches at the same seed"
        run = [{line["seed"] for line in x.results.of("verdict", name)} for name in (first, second)]
        lost = len(set.intersection(*run, seeds) - set(shared))
        found.append((first, second, shared, lost, refused))
        scores = [one[seed][measure] - other[seed][measure] for seed in shared]
        differences.append([] if refused else scores)
    return [
        Verdict(first, second, shared, comparison, lost, refused)
        for (first, second, shared, lost, refused), comparison in zip(found, compare(differences))
    ]


def unresolved(found: list[Verdict]) -> list[str]:
    """The arms of the pairs that more seeds may resolve, each once."""
    open_ = [v for v in found if v.refused in ("", TOO_FEW) and v.comparison.verdict == "not resolved"]
    return list(dict.fromkeys(arm for v in open_ for arm in (v.first, v.second)))
