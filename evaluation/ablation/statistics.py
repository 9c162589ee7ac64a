"""What a few seeds can say: intervals, paired differences, and what a design would have seen.

Student's t and its noncentral form by numerics (scipy is no dependency of this project).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

ALPHA, POWER = 0.05, 0.8
TINY = 1e-300


class Summary(NamedTuple):
    """One figure of one arm over its seeds."""

    mean: float
    deviation: float  # standard deviation of a sample; NaN of a single value
    half_width: float  # of the 95 % interval of the mean, by t; NaN of a single value


class Comparison(NamedTuple):
    """A pair of arms by the differences first - second at the same seeds; lower is better."""

    difference: float  # NaN where there is nothing to compare
    half_width: float  # of its 95 % interval, not corrected for the other pairs
    p: float  # two-sided, paired t, corrected for the other pairs by Holm's rule
    verdict: str  # "better", "worse" or "not resolved"; of the first
    resolves: float  # the difference that such a design sees with 80 % power


def summary(values: Sequence[float]) -> Summary:
    """Mean, standard deviation and interval; at least one value."""
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Summary(mean, math.nan, math.nan)
    deviation = statistics.stdev(values)
    return Summary(mean, deviation, t_quantile(1 - ALPHA / 2, n - 1) * deviation / math.sqrt(n))


def compare(pairs: Sequence[Sequence[float]]) -> list[Comparison]:
    """All pairs of a report together, each as its differences, one per seed; pairs of fewer than two
    seeds are not judged and do not count for the correction.

    Holm's rule (Scand. J. Statist. 6, 1979): the smallest p is held against alpha / m, the next against
    alpha / (m - 1), ..., and none after the first that fails is resolved.
    """
    whole = [i for i, differences in enumerate(pairs) if len(differences) > 1]
    raw = {i: paired_p(pairs[i]) for i in whole}
    found = [Comparison(math.nan, math.nan, math.nan, "not resolved", math.nan) for _ in pairs]
    corrected, resolved = 0.0, 0
    for rank, i in enumerate(sorted(whole, key=raw.__getitem__)):
        corrected = max(corrected, min(1.0, (len(whole) - rank) * raw[i]))
        mean, deviation, half_width = summary(pairs[i])
        # a difference of this size would come next after those that are resolved, whatever its rank is now
        resolves = resolvable(deviation, len(pairs[i]), ALPHA / (len(whole) - resolved))
        resolved += corrected <= ALPHA
        verdict = "not resolved" if corrected > ALPHA else "better" if mean < 0 else "worse"
        found[i] = Comparison(mean, half_width, corrected, verdict, resolves)
    return found


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p of a mean difference of zero; at least two differences."""
    mean, deviation, _ = summary(differences)
    if deviation == 0:
        return 0.0 if mean else 1.0
    t = abs(mean) * math.sqrt(len(differences)) / deviation
    return 2 * t_tail(t, len(differences) - 1)


def resolvable(deviation: float, n: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """The mean difference that a two-sided paired t-test of n differences with this standard deviation
    finds with probability `power`; in the unit of the differences.
    """
    critical = t_quantile(1 - alpha / 2, n - 1)
    effect = _solve(lambda noncentrality: t_power(noncentrality, n - 1, critical) - power, 1e-6)
    return effect * deviation / math.sqrt(n)


# ------------------------------------------------------------------------------------ Student's t


def t_tail(t: float, df: float) -> float:
    """P(T > t) for t of at least 0."""
    return 0.5 * incomplete_beta(df / 2, 0.5, df / (df + t * t))


def t_quantile(p: float, df: float) -> float:
    """The t with P(T < t) = p, for p from 0.5 to below 1."""
    return _solve(lambda t: (1 - p) - t_tail(t, df))


def t_power(noncentrality: float, df: int, critical: float) -> float:
    """P(|T'| > critical), T' = (Z + noncentrality) / s with s^2 = chi^2 / df: noncentral t.

    The integral over s of its density and the normal probability beside it, by Simpson's rule.
    """
    top = 1 + 10 / math.sqrt(2 * df)  # s has mean near 1 and deviation near 1 / sqrt(2 df)
    steps = 400 + 2 * math.ceil(3 * top * critical)  # the probability turns within 1 / critical
    log_scale = math.log(2) + df / 2 * math.log(df / 2) - math.lgamma(df / 2)
    total = 0.0
    for i in range(steps + 1):
        s = top * i / steps
        density = math.exp(log_scale - df * s * s / 2) * s ** (df - 1)
        beyond = _normal(noncentrality - critical * s) + _normal(-noncentrality - critical * s)
        total += (1 if i in (0, steps) else 4 if i % 2 else 2) * density * beyond
    return total * top / steps / 3


def _normal(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised I_x(a, b) by its continued fraction (DLMF 8.17.22), evaluated as Lentz does."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges fast
        return 1 - incomplete_beta(b, a, 1 - x)
    front = a * math.log(x) + b * math.log1p(-x)
    front += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), TINY)
    result = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 + term * d
            c = 1 + term / c
            d = 1 / (d if abs(d) > TINY else TINY)
            result *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(front) * result / a


def _solve(function: Callable[[float], float], precision: float = 1e-15) -> float:
    """The root above 0 of a function that grows from below 0, to a relative precision."""
    low, high = 0.0, 1.0
    while function(high) < 0:
        low, high = high, 2 * high
    while high - low > precision * high:
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return high


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown that is also read as it stands: names to the left, the rest to the right, padded."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    # a rule of a column is a hyphen and a colon at least
    first, *rest = (max(2, *map(len, column)) for column in zip(*cells))
    lines = [
        [row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], rest))]
        for row in cells
    ]
    lines.insert(1, ["-" * first, *("-" * (width - 1) + ":" for width in rest)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_interval(found: Summary, digits: int = 4, scale: float = 1) -> str:
    """Mean and half width of the 95 % interval, where several values give one."""
    mean, _, half_width = (scale * value for value in found)
    interval = "" if math.isnan(half_width) else f" +- {half_width:.{digits}f}"
    return f"{mean:.{digits}f}{interval}"
