"""Differences between arms, judged together by a model of arms and seeds.

The model: score = mean + effect of the arm + effect of the seed + residual, fitted by least squares to the
scores of all arms. Runs may be missing. Among arms with the same seeds, a difference is the mean of the paired
differences; the residuals of all arms together give one spread with more degrees of freedom than a pair has.

The half width of an interval is the larger of two:

1. That of simultaneous intervals under equal spreads: the quantile of the largest |t| of all pairs of the
   family (their differences are correlated, because they share arms) times the standard error from the pooled
   spread. It is exact if all arms spread equally.
2. That of a Welch interval: the standard error from the spread of each arm about the mean of the other arms,
   with the degrees of freedom of Satterthwaite, at the level min(alpha, 2 alpha / r), where r is the number of
   independent differences in the family (arms - 1 in the usual ones).

The first alone calls a pair different without cause in 28 % of grids, if its two arms spread three times as much as
seven others. To choose between the two by a test of the spreads does not help, because three seeds seldom show
such arms. The second alone, at a level that keeps the promise, resolves less, and rests on few degrees of
freedom. benchmarks/planted_differences.py has the rates.

Where an F test finds that an arm spreads more than the others (p below OUTLIER, after Bonferroni), the pairs without
it are judged by the model of the other arms, so that one unstable arm does not widen all intervals.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtr, fdtrc, ndtr, ndtri
from scipy.stats import chi2, qmc, t

from evaluation.ablation.statistics import POWER

Cell = tuple[str, int]  # an arm and a seed
Pair = tuple[str, str]
POINTS = 2**14  # points in the quasi-random sample; they give quantiles of |t| to about 0.002
POWER_DRAWS = 4000
OUTLIER = 0.01  # p of the F test below which an arm is left out of the pool of the others
NOTHING = 1e-12  # differences and spreads below this share of the scores are rounding


class Sampling(NamedTuple):
    """What the choice of D documents adds to the variances of m differences."""

    covariance: np.ndarray  # (m, m) float64, in the squared unit of the scores
    documents: int  # D


class Intervals(NamedTuple):
    """Simultaneous intervals of the differences first - second; G grids at once, or none."""

    difference: np.ndarray  # (..., m)
    half_width: np.ndarray  # (..., m)


class Spread(NamedTuple):
    """The spread of the runs of one arm about the model."""

    deviation: float  # standard deviation; NaN if the other arms leave nothing to compare with
    p: float  # F test against more spread than the other arms have, times the number of arms
    left_out: bool  # whether the other arms are judged without this arm, because p is below OUTLIER


class Model:
    """The arm + seed model of a set of runs: everything that does not depend on their scores.

    cells: (arm, seed) of each of the N runs, each once.
    """

    def __init__(self, cells: Sequence[Cell]):
        self.cells = list(cells)
        self.arms = list(dict.fromkeys(arm for arm, _ in cells))
        seeds = list(dict.fromkeys(seed for _, seed in cells))
        columns = [[arm == a for a in self.arms] + [seed == s for s in seeds] for arm, seed in cells]
        design = np.array(columns, float)  # (N, arms + seeds)
        self._without: dict[bytes, tuple[Model, np.ndarray]] = {}
        self.inverse = np.linalg.pinv(design)
        self.residual, self.df = _projector(design)  # (N, N): scores -> residuals
        self.of_arm = design[:, : len(self.arms)].T  # (A, N), 1 where a run is of the arm
        # the projectors on the part of the residuals that goes away with the runs of an arm
        self.own, self.own_df = [], []
        for mine in self.of_arm.astype(bool):
            without = np.zeros_like(self.residual)
            rest, df = _projector(design[~mine])
            without[np.ix_(~mine, ~mine)] = rest
            self.own.append(self.residual - without)
            self.own_df.append(self.df - df)
        self.own, self.own_df = np.array(self.own), np.array(self.own_df)
        # The squares of that part over their degrees of freedom are (A - 1) / A of the variance about the mean of the
        # other arms. With two arms they are half the variance of their difference, once for each of them.
        about_others = len(self.arms) / (len(self.arms) - 1) if len(self.arms) > 2 else 1.0
        self.to_variance = np.divide(
            about_others, self.own_df, out=np.zeros(len(self.arms)), where=self.own_df > 0
        )
        overlap = np.einsum("aij,bji->ab", self.own, self.own)
        product = np.outer(self.own_df, self.own_df)
        self.overlap = np.divide(overlap, product, out=np.zeros_like(overlap), where=product > 0)

    def weights(self, pairs: Sequence[Pair]) -> np.ndarray:
        """(m, N): the least squares estimates of first - second are weights @ scores."""
        contrasts = np.zeros((len(pairs), len(self.inverse)))
        for row, (first, second) in zip(contrasts, pairs):
            row[self.arms.index(first)] += 1
            row[self.arms.index(second)] -= 1
        return contrasts @ self.inverse

    def squares(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(...): the residual sum of squares, 0 where only rounding is left, and (..., A): the part of it that goes
        away with the runs of an arm.  scores: (..., N).
        """
        residuals = scores @ self.residual
        whole = np.square(residuals).sum(-1)
        rounding = scores.shape[-1] * (NOTHING * np.abs(scores).max(-1)) ** 2
        whole = np.where(whole > rounding, whole, 0.0)
        mine = np.stack([np.square(residuals @ own).sum(-1) for own in self.own], -1)
        return whole, np.where(whole[..., None] > 0, mine, 0.0)

    def excess(self, whole: np.ndarray, mine: np.ndarray) -> np.ndarray:
        """(..., A): p of the F test that an arm spreads more than the others, times the number of arms; 1 where the
        others leave no spread to compare with.
        """
        rest_df = self.df - self.own_df
        rest = whole[..., None] - mine
        testable = (rest > 1e-9 * whole[..., None]) & (rest_df > 0) & (self.own_df > 0)
        ratio = np.divide(mine * rest_df, rest * self.own_df, out=np.zeros_like(mine), where=testable)
        p = fdtrc(np.maximum(self.own_df, 1), np.maximum(rest_df, 1), ratio)
        return np.where(testable, np.minimum(1.0, len(self.arms) * p), 1.0)

    def without(self, arms: np.ndarray) -> tuple[Model, np.ndarray]:
        """The model without the runs of some arms (A, bool), and which of the N runs are left."""
        key = arms.tobytes()
        if key not in self._without:
            kept = ~(arms @ self.of_arm).astype(bool)
            self._without[key] = Model([cell for cell, there in zip(self.cells, kept) if there]), kept
        return self._without[key]

    def spreads(self, scores: np.ndarray) -> tuple[float, int, dict[str, Spread]]:
        """The standard deviation of the pool and its degrees of freedom, and {arm: its spread}.  scores: (N,).

        Where an arm is left out of the pool, the pool and the spreads of its arms are about the model without it.
        """
        whole, mine = self.squares(scores)
        found = {}
        for arm, part, df, p in zip(self.arms, mine, self.own_df, self.excess(whole, mine)):
            found[arm] = Spread(math.sqrt(part / df) if df else math.nan, float(p), bool(p < OUTLIER))
        left_out = np.array([one.left_out for one in found.values()])
        if left_out.any() and (rest := self.without(left_out))[0].df:
            model, kept = rest
            whole, mine = model.squares(scores[kept])
            for arm, part, df in zip(model.arms, mine, model.own_df):
                found[arm] = found[arm]._replace(deviation=math.sqrt(part / df) if df else math.nan)
            return math.sqrt(whole / model.df), model.df, found
        return math.sqrt(whole / self.df), self.df, found


def _projector(design: np.ndarray) -> tuple[np.ndarray, int]:
    """The projector on the residuals of a design, and its rank, the degrees of freedom."""
    projector = np.eye(len(design)) - design @ np.linalg.pinv(design)
    return projector, round(np.trace(projector))


@functools.cache
def normal_points(dimensions: int) -> np.ndarray:
    """(POINTS, dimensions): quasi-random standard normal points, the same in every process."""
    return ndtri(qmc.Sobol(dimensions, rng=0).random(POINTS))


class Family:
    """Pairs that are judged together: simultaneous intervals at any level.

    covariance: (m, m), of the differences up to a factor.
    """

    def __init__(self, covariance: np.ndarray):
        deviations = np.sqrt(np.diag(covariance))
        values, vectors = np.linalg.eigh(covariance / np.outer(deviations, deviations))
        kept = values > 1e-9
        self.rank, self.size = int(kept.sum()), len(values)
        self.largest = None  # a single pair needs no sample: its quantiles are known
        if self.size > 1:
            root = vectors[:, kept] * np.sqrt(values[kept])
            # in blocks, which bounds the memory of large grids
            blocks = np.array_split(normal_points(self.rank), max(1, self.size // 64))
            self.largest = np.concatenate([np.abs(block @ root.T).max(1) for block in blocks])

    def tail(self, statistic: float, df: float) -> float:
        """P(largest |t| of the family > statistic)."""
        if self.largest is None:
            return float(2 * t.sf(statistic, df))
        if statistic <= 0:
            return 1.0
        # |t| = |z| / s: the mean over |z| of P(df s^2 < df (|z| / statistic)^2)
        return float(chdtr(df, df * (self.largest / statistic) ** 2).mean())

    def critical(self, level: float, df: np.ndarray | float) -> np.ndarray:
        """The statistic whose tail is the level, for each number of degrees of freedom."""
        wanted, place = np.unique(df, return_inverse=True)
        if self.largest is None:
            return t.isf(level / 2, df)
        if len(wanted) > 12:  # a smooth function of 1 / df
            knots = 1 / np.linspace(1 / wanted[0], 1 / wanted[-1], 12)
            found = np.interp(1 / wanted, 1 / knots[::-1], self.critical(level, knots)[::-1])
        else:
            found = np.array([self._critical(level, one) for one in wanted])
        return found[place].reshape(np.shape(df))

    def _critical(self, level: float, df: float) -> float:
        low, high = t.isf(level / 2, df), t.isf(level / 2 / self.size, df)  # none and Bonferroni's correction
        return brentq(lambda x: self.tail(x, df) - level, 0.98 * low, 1.02 * high, xtol=1e-6)

    def single_level(self, level: float) -> float:
        """The level of the Welch interval of one pair."""
        return level * min(1.0, 2 / self.rank)


@functools.lru_cache(maxsize=512)
def _family(shape: int, content: bytes) -> Family:
    return Family(np.frombuffer(content).reshape(shape, shape))


def family_of(covariance: np.ndarray) -> Family:
    """The family of differences with this covariance; kept, because many grids share one."""
    scaled = covariance / covariance[0, 0]
    return _family(len(scaled), np.ascontiguousarray(np.round(scaled, 9)).tobytes())


def satterthwaite(parts: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Degrees of freedom of a sum of independent variances.  parts, df: (k, ...)."""
    whole, squares = parts.sum(0), np.square(parts)
    return np.divide(whole**2, (squares / df).sum(0), out=np.ones_like(whole), where=whole > 0)


class Errors(NamedTuple):
    """Differences, and their standard errors and degrees of freedom by the two ways of the module's text."""

    difference: np.ndarray  # (..., m)
    pooled: np.ndarray
    pooled_df: np.ndarray
    welch: np.ndarray
    welch_df: np.ndarray
    deviation: np.ndarray  # spread of a run that the pair is judged by; without documents
    deviation_df: np.ndarray
    family: Family


def _over_seeds(model: Model, pairs: Sequence[Pair], scores: np.ndarray) -> np.ndarray:
    """(6, G, m): differences, sums of squared weights, pooled variances of a run and their degrees of freedom,
    Welch variances of the differences and theirs.  scores: (G, N).
    """
    weights = model.weights(pairs)
    whole, mine = model.squares(scores)
    # the variance of a difference if each arm has its own: sum over arms of variance * sum of squared weights
    of_arms = (mine * model.to_variance)[:, None, :] * (weights**2 @ model.of_arm.T)  # (G, m, A)
    welch = of_arms.sum(-1)
    curvature = np.einsum("gma,ab,gmb->gm", of_arms, model.overlap, of_arms, optimize=True)
    welch_df = np.divide(welch**2, curvature, out=np.ones_like(welch), where=(welch > 0) & (curvature > 0))
    variance = np.broadcast_to(whole[:, None] / model.df, welch.shape)
    seeds, df = (np.broadcast_to(one, welch.shape) for one in (np.square(weights).sum(1), float(model.df)))
    return np.stack([scores @ weights.T, seeds, variance, df, welch, welch_df])


def errors(
    model: Model, pairs: Sequence[Pair], scores: np.ndarray, sampling: Sampling | None = None
) -> Errors:
    """The differences and their standard errors.  scores: (..., N); pairs: of arms of the model."""
    if scores.ndim == 1:
        found = errors(model, pairs, scores[None], sampling)
        return Errors(*(one[0] for one in found[:-1]), found.family)
    parts = _over_seeds(model, pairs, scores)
    by_own = np.zeros(parts.shape[1:], bool)
    left_out = model.excess(*model.squares(scores)) < OUTLIER  # (G, A)
    touched = np.array([[arm in pair for arm in model.arms] for pair in pairs])  # (m, A)
    for arms in np.unique(left_out, axis=0):
        others, (rest, kept) = ~(touched @ arms), model.without(arms)
        if arms.any() and rest.df:
            grids = np.flatnonzero((left_out == arms).all(-1))
            by_own[np.ix_(grids, ~others)] = True
            if others.any():
                apart = [pair for pair, other in zip(pairs, others) if other]
                parts[:, grids[:, None], np.flatnonzero(others)] = _over_seeds(
                    rest, apart, scores[grids][:, kept]
                )
    difference, seeds, variance, df, welch, welch_df = parts
    deviation = np.sqrt(np.where(by_own, welch / seeds, variance))
    deviation_df = np.where(by_own, welch_df, df)
    pooled, pooled_df = variance * seeds, df
    weights = model.weights(pairs)
    covariance = products = weights @ weights.T
    if sampling is not None:
        documents = np.broadcast_to(np.diag(sampling.covariance), pooled.shape)
        pooled_df = satterthwaite(np.stack([pooled, documents]), _both(pooled_df, sampling))
        welch_df = satterthwaite(np.stack([welch, documents]), _both(welch_df, sampling))
        pooled, welch = pooled + documents, welch + documents
        covariance = variance.mean() * products + sampling.covariance
        pooled_df = np.broadcast_to(pooled_df.min(-1, keepdims=True), pooled.shape)  # one for the family
    family = family_of(covariance if covariance[0, 0] > 0 else products)
    return Errors(
        difference, np.sqrt(pooled), pooled_df, np.sqrt(welch), welch_df, deviation, deviation_df, family
    )


def _both(df: np.ndarray, sampling: Sampling) -> np.ndarray:
    return np.stack([df, np.full_like(df, sampling.documents - 1)])


def intervals(
    model: Model,
    pairs: Sequence[Pair],
    scores: np.ndarray,
    level: float,
    sampling: Sampling | None = None,
) -> Intervals:
    """Intervals of all pairs that hold together with probability 1 - level, as the module's text says.

    With documents an interval is never narrower than over seeds alone, which Satterthwaite's rule does not ensure.
    """
    found = errors(model, pairs, scores, sampling)
    single = t.isf(found.family.single_level(level) / 2, found.welch_df)
    together = found.family.critical(level, found.pooled_df)
    half_width = np.maximum(together * found.pooled, single * found.welch)
    if sampling is not None:
        half_width = np.maximum(half_width, intervals(model, pairs, scores, level).half_width)
    return Intervals(found.difference, half_width)


def p_values(
    model: Model, pairs: Sequence[Pair], scores: np.ndarray, sampling: Sampling | None = None
) -> list[float]:
    """For each pair the smallest level at which its simultaneous interval excludes 0.  scores: (N,)."""
    found, p = errors(model, pairs, scores, sampling), []
    for k, size in enumerate(np.abs(found.difference)):
        if size <= NOTHING * np.abs(scores).max():
            p.append(1.0)
        elif found.pooled[k] == 0:
            p.append(0.0)
        else:
            together = found.family.tail(size / found.pooled[k], found.pooled_df[k])
            single = 2 * t.sf(size / found.welch[k], found.welch_df[k]) if found.welch[k] else 0.0
            p.append(float(min(1.0, max(together, single * max(1.0, found.family.rank / 2)))))
    return p if sampling is None else [*map(max, p, p_values(model, pairs, scores))]


class Resolution(NamedTuple):
    """The difference that a design detects with probability POWER, and its 95 % interval."""

    value: float
    low: float
    high: float


def resolutions(
    model: Model,
    pairs: Sequence[Pair],
    deviations: Sequence[float],
    dfs: Sequence[float],
    level: float,
    sampling: Sampling | None = None,
) -> list[Resolution]:
    """What the design resolves for each pair, if all arms spread by its `deviation`.

    The half widths are those of POWER_DRAWS simulated sets of residuals, with a fixed seed. They are
    independent of the estimates, so that P(|estimate| > half width) is a mean of normal tails. The intervals
    are those of a standard deviation with `dfs` degrees of freedom (chi-square).
    """
    seeds = np.square(model.weights(pairs)).sum(1)
    documents = np.diag(sampling.covariance) if sampling else np.zeros(len(pairs))
    draws = np.random.default_rng(0).standard_normal((POWER_DRAWS, len(model.cells)))
    widths = {
        d: intervals(model, pairs, d * draws, level, sampling).half_width for d in {*deviations} - {0.0}
    }
    found = []
    for k, (deviation, df) in enumerate(zip(deviations, dfs)):
        if not deviation:
            found.append(Resolution(*[float("nan")] * 3))
            continue
        half_widths, error = widths[deviation][:, k], math.sqrt(deviation**2 * seeds[k] + documents[k])

        def lacking(difference: float, half_widths=half_widths, error=error) -> float:
            return power(difference, half_widths, error) - POWER

        value = brentq(lacking, 0, 100 * half_widths.max())
        ends = [
            df / chi2.isf(tail, df) for tail in (0.025, 0.975)
        ]  # 95 % interval of the variance over seeds, as factors
        low, high = (math.sqrt(deviation**2 * end * seeds[k] + documents[k]) / error for end in ends)
        found.append(Resolution(value, value * low, value * high))
    return found


def power(difference: float, half_widths: np.ndarray, error: float) -> float:
    """P(|estimate| > half width), if the estimate is normal about the difference with this error."""
    above = ndtr((difference - half_widths) / error)
    return float((above + ndtr((-difference - half_widths) / error)).mean())
