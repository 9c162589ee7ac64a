"""Statistics of a few seeds: intervals, paired differences, and the smallest difference that a design
detects.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy.optimize import brentq
from scipy.stats import nct, t

ALPHA, POWER = 0.05, 0.8


class Summary(NamedTuple):
    """One figure over seeds."""

    mean: float
    deviation: float  # standard deviation of the sample; NaN for a single value
    half_width: float  # half width of the 95 % t interval of the mean; NaN for a single value


class Comparison(NamedTuple):
    """A pair of arms, compared by the differences first - second at the same seeds; lower is better."""

    difference: float  # NaN if there are fewer than two seeds
    half_width: float  # half width of its 95 % interval, not corrected for the other pairs
    p: float  # two-sided p of the paired t-test, corrected for the other pairs by Holm's rule
    verdict: str  # "better", "worse" or "not resolved", said of the first arm
    resolves: float  # the difference that this design detects with 80 % power


def summary(values: Sequence[float]) -> Summary:
    """Mean, standard deviation and interval of at least one value."""
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Summary(mean, math.nan, math.nan)
    deviation = statistics.stdev(values)
    half_width = t.isf(ALPHA / 2, n - 1) * deviation / math.sqrt(n)
    return Summary(mean, deviation, half_width)


def compare(pairs: Sequence[Sequence[float]]) -> list[Comparison]:
    """Compare pairs together, each by its own differences: for measurements without a model of arms and seeds
    (contrasts.py), which reports have.

    pairs: for each pair its differences, one per seed. Pairs with fewer than two seeds are not judged and do
    not count in the correction.

    Holm's rule (Scand. J. Statist. 6, 1979): the smallest p is compared with alpha / m, the next with
    alpha / (m - 1), and so on; after the first p that is too large, no pair is resolved.
    """
    whole = [i for i, differences in enumerate(pairs) if len(differences) > 1]
    raw = {i: paired_p(pairs[i]) for i in whole}
    found = [Comparison(math.nan, math.nan, math.nan, "not resolved", math.nan) for _ in pairs]
    corrected, resolved = 0.0, 0
    for rank, i in enumerate(sorted(whole, key=raw.__getitem__)):
        corrected = max(corrected, min(1.0, (len(whole) - rank) * raw[i]))
        mean, deviation, half_width = summary(pairs[i])
        # With a difference of this size the pair would rank right after the resolved ones.
        resolves = resolvable(deviation, len(pairs[i]), ALPHA / (len(whole) - resolved))
        resolved += corrected <= ALPHA
        verdict = "not resolved" if corrected > ALPHA else "better" if mean < 0 else "worse"
        found[i] = Comparison(mean, half_width, corrected, verdict, resolves)
    return found


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t-test that the mean of at least two differences is zero."""
    mean, deviation, _ = summary(differences)
    if deviation == 0:
        return 0.0 if mean else 1.0
    statistic = abs(mean) * math.sqrt(len(differences)) / deviation
    return 2 * t.sf(statistic, len(differences) - 1)


def resolvable(deviation: float, n: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """The mean difference that a two-sided paired t-test of n differences with this standard deviation
    detects with probability `power`, in the unit of the differences.
    """
    critical = t.isf(alpha / 2, n - 1)

    def lacking(noncentrality: float) -> float:
        return power - t_power(noncentrality, n - 1, critical)

    # The power at the upper end is above 0.99 for any n.
    return brentq(lacking, 0, 4 + 4 * critical) * deviation / math.sqrt(n)


def t_power(noncentrality: float, df: int, critical: float) -> float:
    """P(|T| > critical) of the noncentral t distribution."""
    # The lower tail is computed as the upper tail of -T, because scipy 1.17's nct.cdf is NaN far out.
    return nct.sf(critical, df, noncentrality) + nct.sf(critical, df, -noncentrality)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table that is readable as plain text: padded, first column to the left, the rest to the
    right.
    """
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    # The rule under a heading needs at least a hyphen and a colon.
    first, *rest = (max(2, *map(len, column)) for column in zip(*cells))
    lines = [
        [row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], rest))] for row in cells
    ]
    lines.insert(1, ["-" * first, *("-" * (width - 1) + ":" for width in rest)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def part(words: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table under an introduction; "" without rows."""
    return f"{words}\n\n{table(head, rows)}" if rows else ""


def with_interval(found: Summary, digits: int = 4, scale: float = 1) -> str:
    """ "mean +- half width" of the 95 % interval, or the mean alone for a single value."""
    mean, _, half_width = (scale * value for value in found)
    interval = "" if math.isnan(half_width) else f" +- {half_width:.{digits}f}"
    return f"{mean:.{digits}f}{interval}"
