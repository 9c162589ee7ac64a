"""What a few seeds can say: intervals, paired differences, and what a design would have seen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy.optimize import brentq
from scipy.stats import nct, t

ALPHA, POWER = 0.05, 0.8


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
    half_width = t.isf(ALPHA / 2, n - 1) * deviation / math.sqrt(n)
    return Summary(mean, deviation, half_width)


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
    statistic = abs(mean) * math.sqrt(len(differences)) / deviation
    return 2 * t.sf(statistic, len(differences) - 1)


def resolvable(deviation: float, n: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """The mean difference that a two-sided paired t-test of n differences with this standard deviation
    finds with probability `power`; in the unit of the differences.
    """
    critical = t.isf(alpha / 2, n - 1)

    def lacking(noncentrality: float) -> float:
        return power - t_power(noncentrality, n - 1, critical)

    # at the upper end the power is above 0.99 for any n
    return brentq(lacking, 0, 4 + 4 * critical) * deviation / math.sqrt(n)


def t_power(noncentrality: float, df: int, critical: float) -> float:
    """P(|T| > critical) of the noncentral t distribution."""
    # the lower tail as the upper one of -T: scipy 1.17's nct.cdf is NaN far out
    return nct.sf(critical, df, noncentrality) + nct.sf(critical, df, -noncentrality)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown that is also read as it stands: names to the left, the rest to the right, padded."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    # a rule of a column is a hyphen and a colon at least
    first, *rest = (max(2, *map(len, column)) for column in zip(*cells))
    lines = [
        [row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], rest))] for row in cells
    ]
    lines.insert(1, ["-" * first, *("-" * (width - 1) + ":" for width in rest)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def part(words: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table under what it is of; nothing without rows."""
    return f"{words}\n\n{table(head, rows)}" if rows else ""


def with_interval(found: Summary, digits: int = 4, scale: float = 1) -> str:
    """Mean and half width of the 95 % interval, where several values give one."""
    mean, _, half_width = (scale * value for value in found)
    interval = "" if math.isnan(half_width) else f" +- {half_width:.{digits}f}"
    return f"{mean:.{digits}f}{interval}"
