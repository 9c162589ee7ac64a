"""Does the instrument keep its promises? Simulated ablations whose true differences are known.

    python -m benchmarks.planted_differences    writes benchmarks/results/planted_differences.json

Each grid is a whole ablation: arms with scores = seed effect (shared by all arms) + planted difference + residual,
three seeds for all arms, then two more for the arms of pairs that are not resolved. Its verdicts are those of
evaluation/ablation/contrasts.py. One pair gets a difference of 0, 0.5 or 1 times what the design resolves. Counted
are grids in which a pair without a difference is called different (family error, at most 5 % is promised), and
those in which the planted difference is found (power, 80 % is promised at 1, for equal spreads).

With documents, a score is the ratio of the bits and the bytes of documents that are drawn anew for each grid, and
an arm differs from another by a random amount at each document, at each seed, and at each document and seed.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.publish import judge, publish
from evaluation.ablation.contrasts import Model, Pair, family_of, intervals, resolutions
from evaluation.ablation.documents import sampling
from evaluation.ablation.spec import FIRST_SEEDS
from evaluation.ablation.statistics import ALPHA, POWER, table

SEEDS, SEED_EFFECT, BLOCK = 5, 3.0, 5000
NULL_GRIDS, GRIDS = 40_000, 20_000
OURS = "the wider interval"


class Scenario(NamedTuple):
    name: str
    arms: int
    pairs: list[tuple[int, int]]
    planted: int = 0  # the pair that gets the difference


LADDER = [(arm + 1, arm) for arm in range(8)]
REFERENCE = [(arm, 0) for arm in range(1, 9)]
SCENARIOS = [
    Scenario("one pair", 2, [(1, 0)]),
    Scenario("one pair among nine arms", 9, [(1, 0)]),
    Scenario("three arms against a reference", 4, REFERENCE[:3], 1),
    Scenario("eight arms against a reference", 9, REFERENCE, 4),
    Scenario("eight pairs of a ladder", 9, LADDER, 4),
    Scenario("eight pairs without a common arm", 16, [(2 * k + 1, 2 * k) for k in range(8)], 4),
]
UNEQUAL = {  # arms: spreads, of which the first are of the arms of the first pairs
    2: {"3 : 1": [3, 1]},
    4: {"reference 3 times": [3, 1, 1, 1], "an arm 3 times": [1, 3, 1, 1], "1 to 3": np.geomspace(1, 3, 4)},
    9: {
        "arm 0 3 times": [3] + [1] * 8,
        "arms 0 and 1 3 times": [3, 3] + [1] * 7,
        "arm 4 3 times": [1] * 4 + [3] + [1] * 4,
        "arm 4 30 times": [1] * 4 + [30] + [1] * 4,
        "1 to 3": np.geomspace(1, 3, 9),
        "1 and 3 in turn": [1, 3] * 4 + [1],
    },
    16: {"1 and 3 in turn": [1, 3] * 8, "a pair 3 times": [1] * 8 + [3, 3] + [1] * 6},
}


def different(
    model: Model, pairs: Sequence[Pair], scores: np.ndarray, level: float, pool_alone: bool = False
) -> np.ndarray:
    """(G, m): -1 or 1, the sign of the difference of a pair, if its interval excludes 0, and else 0.  scores: (G, N).

    pool_alone: by the pooled spread of all arms alone, which is not the instrument's rule.
    """
    found = []
    for block in np.array_split(scores, math.ceil(len(scores) / BLOCK)):
        if pool_alone:
            weights = model.weights(pairs)
            products = weights @ weights.T
            critical = family_of(products).critical(level, float(model.df))
            pooled = np.sqrt(model.squares(block)[0] / model.df)
            difference, half_width = (
                block @ weights.T,
                critical * np.outer(pooled, np.sqrt(np.diag(products))),
            )
        else:
            difference, half_width = intervals(model, pairs, block, level)
        found.append(np.sign(difference) * (np.abs(difference) > half_width))
    return np.concatenate(found)


def model_of(runs: np.ndarray) -> Model:
    """The model of the runs (A, S) that are True."""
    return Model([(str(arm), seed) for arm, seed in np.argwhere(runs)])


def named(pairs: Sequence[tuple[int, int]]) -> list[Pair]:
    return [(str(first), str(second)) for first, second in pairs]


def verdicts(
    scores: np.ndarray, pairs: Sequence[tuple[int, int]], looks: Sequence[int], pool_alone: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(G, m): the pairs that the last look resolves, unless an earlier one resolved the opposite; and (G, A, S): which
    runs were made.

    scores: (G, A, S).  looks: number of seeds at each look.
    """
    grids, arms, seeds = scores.shape
    done, opposite = np.zeros((2, grids, len(pairs)), bool)
    said = np.zeros((grids, len(pairs)))
    runs = np.zeros((grids, arms, seeds), bool)
    open_arms = np.ones((grids, arms), bool)
    for before, until in zip([0, *looks], looks):
        runs[:, :, before:until] = open_arms[:, :, None]
        for which, rows in groups(runs):
            of_grids, level = scores[rows][:, which], ALPHA / len(looks)
            now, before_it = different(model_of(which), named(pairs), of_grids, level, pool_alone), said[rows]
            opposite[rows] |= now * before_it < 0
            said[rows], done[rows] = now, done[rows] | (now != 0)
        open_arms[:] = False
        for k, pair in enumerate(pairs):
            open_arms[:, pair] |= ~done[:, [k]]
    return (said != 0) & ~opposite, runs


def groups(runs: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The different sets of runs, each with the rows of its grids."""
    flat = runs.reshape(len(runs), -1)
    kinds, place = np.unique(flat, axis=0, return_inverse=True)
    return [(kind.reshape(runs.shape[1:]), np.flatnonzero(place == n)) for n, kind in enumerate(kinds)]


def drawn(scenario: Scenario, spreads: Sequence[float], effect: float, grids: int, seed: int) -> np.ndarray:
    """(grids, arms, SEEDS) scores.  effect: true difference of the planted pair alone."""
    draw = np.random.default_rng(seed)
    scores = draw.standard_normal((grids, scenario.arms, SEEDS)) * np.asarray(spreads, float)[:, None]
    first, _ = scenario.pairs[scenario.planted]
    above = range(first, scenario.arms) if scenario.pairs == LADDER else [first]
    scores[:, list(above)] += effect
    return scores + SEED_EFFECT * draw.standard_normal((grids, 1, SEEDS))


def resolved_by_design(scenario: Scenario, looks: Sequence[int]) -> float:
    """What a report says that it resolves for the planted pair as long as no pair is resolved, at a spread of 1."""
    runs = np.zeros((scenario.arms, looks[-1]), bool)
    runs[:, : looks[0]] = True
    runs[np.unique(scenario.pairs)] = True
    model, pairs = model_of(runs), named(scenario.pairs)
    found = resolutions(model, pairs, [1.0] * len(pairs), [model.df] * len(pairs), ALPHA / len(looks))
    return found[scenario.planted].value


def figures(
    scenario: Scenario,
    grids: int,
    times: float = 0.0,
    spreads: Sequence[float] | None = None,
    told: str = "equal",
    looks: Sequence[int] = (FIRST_SEEDS, SEEDS),
    all_pairs: bool = False,
    pool_alone: bool = False,
) -> dict[str, Any]:
    """Family error, and power if a difference of `times` what the design resolves is planted.

    all_pairs: count the table beside the plan, which judges all pairs of arms by the last look.
    """
    effect = times * resolved_by_design(scenario, looks)
    spreads = [1.0] * scenario.arms if spreads is None else spreads
    scores = drawn(scenario, spreads, effect, grids, seed=1)
    found, runs = verdicts(scores, scenario.pairs, looks, pool_alone)
    pairs = scenario.pairs
    if all_pairs:
        pairs = list(itertools.combinations(range(scenario.arms), 2))
        found = np.zeros((grids, len(pairs)), bool)
        for which, rows in groups(runs):
            found[rows] = different(model_of(which), named(pairs), scores[rows][:, which], ALPHA / len(looks))
    without = np.ones(len(pairs), bool)
    if effect:
        without[scenario.planted] = False
    error = float(found[:, without].any(1).mean())
    line = {
        "scenario": scenario.name + (", all pairs of arms" if all_pairs else ""),
        "rule": "pooled spread alone" if pool_alone else OURS,
        "seeds": list(looks),
        "spreads": told,
        "planted": times,
        "grids": grids,
        "family_error": error if without.any() else None,
        "standard_error": math.sqrt(max(error, 1 / grids) * (1 - error) / grids),
    }
    return line | ({"power": float(found[:, scenario.planted].mean())} if effect else {})


# ------------------------------------------------------------------------------------ documents

DOCUMENTS, PER_SEED, PER_DOCUMENT, PER_BOTH = 150, 0.02, 0.25, 0.15


def document_scores(
    draw: np.random.Generator, arms: int, seeds: int, effect: float
) -> tuple[np.ndarray, np.ndarray]:
    """nats (arms * seeds, D) and bytes (D,) of one grid; arm 1 is worse by `effect` bits per byte."""
    lengths = draw.integers(200, 1500, DOCUMENTS).astype(float)
    hard = 0.3 * draw.standard_normal(DOCUMENTS)  # how hard each document is for every arm
    bits = 1.0 + hard + PER_DOCUMENT * draw.standard_normal((arms, 1, DOCUMENTS))
    bits = bits + SEED_EFFECT * PER_SEED * draw.standard_normal((1, seeds, 1))
    bits = bits + PER_SEED * draw.standard_normal((arms, seeds, 1))
    bits = bits + PER_BOTH * draw.standard_normal((arms, seeds, DOCUMENTS))
    bits[1] += effect
    return (bits * lengths * math.log(2)).reshape(arms * seeds, DOCUMENTS), lengths


def with_documents(arms: int, grids: int, times: float = 0.0, seeds: int = FIRST_SEEDS) -> dict[str, Any]:
    """As figures(), with documents drawn for each grid, one look; and the error of intervals over seeds only."""
    draw = np.random.default_rng(2)
    model, pairs = model_of(np.ones((arms, seeds), bool)), named(REFERENCE[: arms - 1])
    weights = model.weights(pairs)

    def grid(effect: float):
        nats, lengths = document_scores(draw, arms, seeds, effect)
        return nats.sum(1) / math.log(2) / lengths.sum(), sampling(weights, nats, lengths)

    typical = [grid(0.0) for _ in range(200)]
    deviation = math.sqrt(np.mean([model.squares(scores)[0] / model.df for scores, _ in typical]))
    covariance = np.mean([one.covariance for _, one in typical], axis=0)
    known = typical[0][1]._replace(covariance=covariance)
    effect = (
        times
        * resolutions(model, pairs, [deviation] * len(pairs), [model.df] * len(pairs), ALPHA, known)[0].value
    )
    without = slice(1 if effect else 0, None)
    errors, over_seeds, seen = 0, 0, 0
    for _ in range(grids):
        scores, documents = grid(effect)
        difference, half_width = intervals(model, pairs, scores, ALPHA, documents)
        found = np.abs(difference) > half_width
        errors += bool(found[without].any())
        seen += bool(found[0])
        difference, half_width = intervals(model, pairs, scores, ALPHA)
        over_seeds += bool((np.abs(difference) > half_width)[without].any())
    error = errors / grids
    line = {
        "scenario": f"{len(pairs)} pair{'s' * (len(pairs) > 1)}, documents drawn for each grid",
        "rule": OURS,
        "seeds": [seeds],
        "spreads": "equal",
        "planted": times,
        "grids": grids,
        "family_error": error if arms > 2 or not effect else None,
        "standard_error": math.sqrt(max(error, 1 / grids) * (1 - error) / grids),
    }
    return line | (
        {"power": seen / grids} if effect else {"family_error_over_seeds_only": over_seeds / grids}
    )


# ------------------------------------------------------------------------------------ all of them


def measure() -> list[dict[str, Any]]:
    found = []
    for scenario in SCENARIOS:
        found.append(figures(scenario, NULL_GRIDS))
        found += [figures(scenario, GRIDS, times) for times in (0.5, 1.0)]
        for told, spreads in UNEQUAL[scenario.arms].items():
            found.append(figures(scenario, GRIDS, 0.0, spreads, told))
    for scenario in (SCENARIOS[0], SCENARIOS[4]):
        found += [figures(scenario, GRIDS, times, looks=(FIRST_SEEDS,)) for times in (0.0, 1.0)]
    ladder = SCENARIOS[4]
    found.append(figures(ladder, GRIDS, all_pairs=True))
    for told in ("arm 4 3 times", "1 to 3"):
        found.append(figures(ladder, GRIDS, 0.0, UNEQUAL[9][told], told, all_pairs=True))
    # what the rule of the wider interval protects from
    for scenario, told in ((SCENARIOS[1], "arms 0 and 1 3 times"), (ladder, "arm 4 3 times")):
        found.append(figures(scenario, GRIDS, 0.0, UNEQUAL[9][told], told, pool_alone=True))
    found += [with_documents(2, 10_000), with_documents(2, 4000, 1.0), with_documents(3, 2000)]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    found = measure()
    shown = ("scenario", "rule", "seeds", "spreads", "planted", "grids", "family_error", "power")
    print(table(shown, [["-" if (v := line.get(k)) is None else v for k in shown] for line in found]))
    publish("planted_differences", {"level": ALPHA, "power_promised": POWER, "lines": found})
    found = [line for line in found if line["rule"] == OURS]
    errors = [line for line in found if line["family_error"] is not None]
    powers = [line["power"] for line in found if line["planted"] == 1]
    return judge(
        {
            "the family error is at most 5 % in every scenario, within three standard errors": all(
                line["family_error"] <= ALPHA + 3 * line["standard_error"] for line in errors
            ),
            "the power is 78 to 86 % at what the design resolves": all(0.78 <= p <= 0.86 for p in powers),
        }
    )


if __name__ == "__main__":
    raise SystemExit(main())
