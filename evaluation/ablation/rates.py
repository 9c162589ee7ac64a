"""The search of the learning rate: which rates to try, and the lowest point of a parabola through the scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t

from evaluation.ablation.statistics import ALPHA

MOST_EXTENSIONS = 3  # rates tried beyond the given ones, each by the ratio of the two at that edge

Scores = Mapping[float, Mapping[int, float | None]]  # rate -> seed -> score; None for a run that failed


class Optimum(NamedTuple):
    """What a search found."""

    rate: float | None  # the rate of the verdict; None if no rate ended well at every seed
    low: float | None  # ends of the 95 % interval of the best rate; both None where it is not bounded
    high: float | None
    fitted: bool  # whether the rate is the lowest point of a parabola
    remark: str  # why there is no parabola or no interval; "" where there are both


def scores_of(lines: Iterable[dict[str, Any]], measure: str, seeds: Sequence[int]) -> Scores:
    """The scores of the lines of a search, at the rates that were tried with every seed."""
    found: dict[float, dict[int, float | None]] = {}
    for line in lines:
        found.setdefault(line["lr"], {})[line["seed"]] = line[measure]
    return {rate: found[rate] for rate in sorted(found) if found[rate].keys() >= set(seeds)}


def means(scores: Scores) -> dict[float, float | None]:
    """{rate: mean score over the seeds}; None for a rate at which a run failed."""
    found = {}
    for rate, by_seed in sorted(scores.items()):
        values = list(by_seed.values())
        found[rate] = None if None in values or not values else math.fsum(values) / len(values)
    return found


def best_rate(tried: Mapping[float, float | None]) -> float | None:
    """The rate with the lowest score; None if no run ended well.  tried: {rate: score, or None for a failed
    run}.
    """
    scored = {rate: score for rate, score in tried.items() if score is not None}
    return min(scored, key=scored.__getitem__, default=None)


def next_rates(given: Sequence[float], tried: Mapping[float, float | None]) -> list[float]:
    """The rates to try now; [] when the search is over.

    First the given rates, then one beyond the edge as long as the best rate is at the edge, or a lower one as
    long as no run ended well.  given: at least three, in rising order.
    """
    if missing := [rate for rate in given if rate not in tried]:
        return missing
    rates, best = sorted(tried), best_rate(tried)
    if len(tried) - len(given) >= MOST_EXTENSIONS:
        return []
    if best is None or best == rates[0]:
        return [tidy(rates[0] * rates[0] / rates[1])]
    return [tidy(rates[-1] * rates[-1] / rates[-2])] if best == rates[-1] else []


def tidy(rate: float, digits: int = 6) -> float:
    """The rate in so many significant digits: it names a run, and must be the same on every machine."""
    return float(f"{rate:.{digits}g}")


def optimum(scores: Scores) -> Optimum:
    """The rate for the verdict: the lowest point of a parabola in log(rate), in two significant digits.

    The parabola goes through the scores at the best rate and its two neighbours, because it describes a curve
    near its lowest point only. Where that is not possible, the rate is the best one that was tried.
    """
    tried = means(scores)
    best, rates = best_rate(tried), sorted(tried)
    if best is None:
        return Optimum(None, None, None, False, "no rate ended well at every seed")
    place = rates.index(best)
    around = rates[max(0, place - 1) : place + 2]
    if len(around) < 3:
        return Optimum(best, None, None, False, "best rate at the edge")
    if None in (tried[rate] for rate in around):
        return Optimum(best, None, None, False, "a run at a neighbouring rate failed")
    points = [(math.log(rate / best), seed, y) for rate in around for seed, y in scores[rate].items()]
    fit = parabola(*zip(*points))
    if fit.vertex is None:  # three equal scores
        return Optimum(best, None, None, False, "the scores have no lowest point")
    rate = min(max(tidy(best * math.exp(fit.vertex), digits=2), around[0]), around[-1])
    if fit.low is None:
        remark = (
            "one seed" if fit.freedom < 1 else "not bounded, because the scores do not resolve the curvature"
        )
        return Optimum(rate, None, None, True, remark)
    return Optimum(rate, best * math.exp(fit.low), best * math.exp(fit.high), True, "")


class Parabola(NamedTuple):
    """A fitted parabola; places are those of x."""

    vertex: float | None  # the lowest point; None if the curve is not convex
    low: float | None  # ends of the 95 % interval of the vertex; both None if it is not bounded
    high: float | None
    freedom: int  # degrees of freedom of the residual


def parabola(x: Iterable[float], seed: Iterable[int], y: Iterable[float]) -> Parabola:
    """Least squares of y = effect of the seed + b x + c x^2, and the 95 % interval of its vertex -b / 2c.

    x, seed, y: one entry for each run, with at least three different x.
    The interval is Fieller's: all v for which b + 2 c v, the slope at v, does not differ from 0 by a t-test.
    It is bounded only if c itself differs from 0. Source: Fieller, J. R. Stat. Soc. B 16 (1954).
    """
    x, y, seed = np.array(list(x), float), np.array(list(y), float), np.array(list(seed))
    seeds, place = np.unique(seed, return_inverse=True)
    design = np.column_stack((np.eye(len(seeds))[place], x, x**2))
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    b, c = coefficients[-2:]
    freedom = len(y) - design.shape[1]
    if c <= 0:
        return Parabola(None, None, None, freedom)
    vertex = float(-b / (2 * c))
    if freedom < 1:
        return Parabola(vertex, None, None, freedom)
    variance = np.square(y - design @ coefficients).sum() / freedom
    (bb, bc), (_, cc) = (variance * np.linalg.inv(design.T @ design))[-2:, -2:]
    critical = t.isf(ALPHA / 2, freedom) ** 2
    # (b + 2 c v)^2 <= critical Var(b + 2 c v) is quadratic in v
    square, linear, constant = 4 * (c * c - critical * cc), 4 * (b * c - critical * bc), b * b - critical * bb
    if square <= 0:
        return Parabola(vertex, None, None, freedom)
    spread = math.sqrt(max(0.0, linear * linear - 4 * square * constant))
    return Parabola(vertex, *((-linear + sign * spread) / (2 * square) for sign in (-1, 1)), freedom)
