"""From results to verdicts: which pairs are compared, on which scores, at which level."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evaluation.ablation.contrasts import (
    Model,
    Pair,
    Resolution,
    Sampling,
    Spread,
    errors,
    intervals,
    p_values,
    resolutions,
)
from evaluation.ablation.documents import read_documents, sampling
from evaluation.ablation.results import Results
from evaluation.ablation.spec import Spec
from evaluation.ablation.statistics import ALPHA

if TYPE_CHECKING:  # matching imports torch, and judge.py needs none
    from evaluation.ablation.matching import PlannedArm

PLANNED, DERIVED, EXPLORED = "planned", "derived from the plan's chain", "chosen after the runs"
TOO_FEW = "fewer than two seeds ended well in both arms"
# The score of the test set in place of that of the validation text, if the report has a test set.
ON_TEST = {"bits_per_byte": "test_bits_per_byte", "val_loss": "test_loss"}


@dataclass(frozen=True)
class Ablation:
    """The specification, the plan and the results so far."""

    spec: Spec
    arms: dict[str, PlannedArm]
    folder: Path
    results: Results

    def ended_well(self, arm: str, measure: str = "status") -> dict[int, dict[str, Any]]:
        """{seed: line} for the runs of an arm that ended well and have the measure; a line includes the
        scores by segment, and those of the test set under names that begin with test_.
        """
        by_segment = {line["seed"]: line for line in self.results.of("segments", arm)}
        lines = [line for line in self.results.of("verdict", arm) if line["status"] == "ok"]
        whole = {line["seed"]: by_segment.get(line["seed"], {}) | line for line in lines}
        for line in self.results.of("test", arm):
            if line["seed"] in whole and line["status"] == "ok":
                kept = {key: line[key] for key in ("documents", "document_file") if key in line}
                tested = {f"test_{key}": line[key] for key in ("bits_per_byte", "loss", "tokens")}
                whole[line["seed"]] = whole[line["seed"]] | kept | tested
        return {seed: line for seed, line in whole.items() if measure in line}

    @property
    def tested(self) -> bool:
        """Whether verdicts are on the test set: not in reports of earlier versions."""
        return any(line["status"] == "ok" for line in self.results.of("test"))

    @property
    def measure(self) -> str:
        """The name in a line of the score that verdicts are on. Scores by segment have one name: a report that
        is tested has them of the test set.
        """
        return ON_TEST.get(self.spec.measure, self.spec.measure) if self.tested else self.spec.measure

    @property
    def looks(self) -> list[tuple[int, ...]]:
        """The seeds of each look: the first ones, and all of them for pairs that those did not resolve."""
        seeds, number = self.spec.seeds, self.spec.first_seeds
        return [seeds[:number], seeds] if len(seeds) > number else [seeds]

    @property
    def level(self) -> float:
        """The probability, spent at each look, that some pair without a difference is called different."""
        return ALPHA / len(self.looks)


class Judged(NamedTuple):
    """What the runs say of first - second; lower is better.

    difference and half_width are those of all seeds; NaN without a verdict.  p: corrected for the pairs of the
    family and for the looks, so that 5 % is the limit.
    """

    difference: float
    half_width: float
    p: float
    verdict: str  # "better", "worse" or "not resolved", said of the first arm
    resolves: Resolution


NOT_JUDGED = Judged(*[float("nan")] * 3, "not resolved", Resolution(*[float("nan")] * 3))


class Verdict(NamedTuple):
    """A pair of arms."""

    first: str
    second: str
    seeds: tuple[int, ...]  # seeds at which both arms ended well
    comparison: Judged
    lost: int  # number of seeds that both arms ran and at which one did not end well
    refused: str  # why there is no verdict; "" if there is one
    kind: str = PLANNED
    look: int = 0  # the look that first resolved the pair, from 1; 0 if it is not resolved
    withdrawn: bool = False  # whether a look resolved the pair, and a later one did not or said the opposite


def verdicts(x: Ablation, seeds: tuple[int, ...] | None = None) -> list[Verdict]:
    """The verdicts on the planned pairs, over all looks, or over one look at the given seeds.

    A pair is resolved if the last look, at all seeds, resolves it, and no earlier look resolved the opposite.
    The first look decides which pairs get more seeds, so it spends its share of the level all the same.
    """
    pairs = x.spec.pairs(x.spec.expanded())
    found = [judge(x, pairs, look) for look in ([seeds] if seeds else x.looks)]
    kept = []
    for looks in zip(*found):
        resolved = [n for n, v in enumerate(looks, 1) if v.look]
        last = looks[-1].comparison
        stands = {v.comparison.verdict for v in looks if v.look} == {last.verdict}
        verdict = last.verdict if stands else "not resolved"
        kept.append(
            looks[-1]._replace(
                comparison=last._replace(verdict=verdict),
                look=resolved[0] if stands else 0,
                withdrawn=bool(resolved) and not stands,
            )
        )
    return kept


def beside(x: Ablation, chosen: Sequence[Pair] = ()) -> list[Verdict]:
    """The verdicts on pairs that the plan does not ask for: those derived from its chains, those that the
    specification calls explored, and the given ones, chosen after the runs.

    They are judged among all pairs of arms, at the last look.
    """
    arms = x.spec.expanded()
    planned = x.spec.pairs(arms)
    explored = [p for pair in getattr(x.spec, "explored", ()) for p in x.spec._named("explored", pair, arms)]
    kinds: dict[Pair, str] = {}
    for kind, pairs in ((DERIVED, derived_pairs(planned)), (EXPLORED, [*explored, *chosen])):
        for pair in pairs:
            known = {*planned, *kinds}
            if pair not in known and pair[::-1] not in known:
                kinds[pair] = kind
    found = judge(x, list(kinds), x.spec.seeds, among_all=True)
    return [v._replace(kind=kind) for v, kind in zip(found, kinds.values())]


def derived_pairs(planned: Sequence[Pair]) -> list[Pair]:
    """The way so far and the rest of the way of each chain in the plan, in which each arm is compared with the
    one before it: all later arms against the chain's first, and its last against all earlier ones.

    An inner arm of a chain is in no other planned pair.
    """
    before = dict(planned)
    often = [arm for pair in planned for arm in pair]
    inner = {second for _, second in planned if second in before and often.count(second) == 2}
    found = []
    for last, second in planned:
        if last in inner or second not in inner:
            continue  # not the last pair of a chain
        chain = [last, second]
        while chain[-1] in inner:
            chain.append(before[chain[-1]])
        found += [(arm, chain[-1]) for arm in chain[-3::-1]] + [(last, arm) for arm in chain[-2:1:-1]]
    return list(dict.fromkeys(found))


def unresolved(found: list[Verdict]) -> list[str]:
    """The arms of the pairs that more seeds may resolve, each once."""
    open_ = [v for v in found if v.refused in ("", TOO_FEW) and v.comparison.verdict == "not resolved"]
    return list(dict.fromkeys(arm for v in open_ for arm in (v.first, v.second)))


# ------------------------------------------------------------------------------------ one look


def judge(
    x: Ablation, pairs: Sequence[Pair], seeds: tuple[int, ...], among_all: bool = False
) -> list[Verdict]:
    """The verdicts of one look on pairs of arms of the plan.

    among_all: correct for all pairs of arms in the specification, and not only for the given pairs.
    """
    found = [_verdict(x, *pair, seeds) for pair in pairs]
    compared = [(v.first, v.second) for v in found if not v.refused]
    if not compared:
        return found
    family = [*compared]
    if among_all:
        names = [arm.name for arm in x.spec.expanded()]
        others = [pair for pair in itertools.combinations(names, 2) if not {pair, pair[::-1]} & {*compared}]
        family += [pair for pair in others if not _verdict(x, *pair, seeds).refused]
    model, scores, documents = _fit(x, seeds, family)
    at = intervals(model, family, scores, x.level, documents)
    by = errors(model, family, scores, documents)
    resolved = resolutions(model, family, by.deviation.tolist(), by.deviation_df.tolist(), x.level, documents)
    judged = {}
    for pair, difference, half_width, p, resolves in zip(
        family, *map(np.ndarray.tolist, at), p_values(model, family, scores, documents), resolved
    ):
        verdict = "not resolved" if p > x.level else "better" if difference < 0 else "worse"
        judged[pair] = Judged(difference, half_width, min(1.0, len(x.looks) * p), verdict, resolves)
    return [
        v if v.refused else v._replace(comparison=c, look=int(c.verdict != "not resolved"))
        for v in found
        for c in [judged.get((v.first, v.second), NOT_JUDGED)]
    ]


def _verdict(x: Ablation, first: str, second: str, seeds: tuple[int, ...]) -> Verdict:
    """A pair before it is judged."""
    one, other = (x.ended_well(name, x.measure) for name in (first, second))
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
    return Verdict(first, second, shared, NOT_JUDGED, lost, refused)


def _fit(
    x: Ablation, seeds: Sequence[int], pairs: Sequence[Pair]
) -> tuple[Model, np.ndarray, Sampling | None]:
    """The model of all runs of the specification's arms and of the pairs, its (N,) scores, and what the choice
    of documents adds to the differences of the pairs, if the test set has their sums.
    """
    names = dict.fromkeys([arm.name for arm in x.spec.expanded()] + [name for pair in pairs for name in pair])
    runs = {name: x.ended_well(name, x.measure) for name in names}
    lines = {(name, seed): runs[name][seed] for name in names for seed in seeds if seed in runs[name]}
    model = Model(list(lines))
    scores = np.array([line[x.measure] for line in lines.values()], float)
    stored = None
    if x.measure == "test_bits_per_byte":
        stored = read_documents(x.folder, list(lines.values()))
    return model, scores, sampling(model.weights(pairs), *stored) if stored else None


class Spreads(NamedTuple):
    """The spread of the runs about the arm + seed model; an arm that is left out of the pool is not in `pooled`."""

    pooled: float
    df: int
    arms: dict[str, Spread]
    documents: int | None  # number of test documents that the intervals include; None: over seeds only


def spreads(x: Ablation) -> Spreads | None:
    """None if no two arms share two seeds."""
    pairs = itertools.combinations([arm.name for arm in x.spec.expanded()], 2)
    pair = next((pair for pair in pairs if not _verdict(x, *pair, x.spec.seeds).refused), None)
    if pair is None:
        return None
    model, scores, documents = _fit(x, x.spec.seeds, [pair])
    return Spreads(*model.spreads(scores), documents and documents.documents)
