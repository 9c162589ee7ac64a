"""What a difference is worth: with how much compute or time the reference reaches the other arm's score.

The reference is trained at several shares of its budget, each with a complete schedule. Its score over its cost
is read as a curve of straight pieces between these points, both on logarithmic scales, so that a power law is met
exactly. Where the curve has the other arm's score, the reference costs `reached`; worth = the other arm's cost /
reached. Nothing is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t

ALPHA = 0.05


class Worth(NamedTuple):
    """How many times the reference's cost the other arm needs for the same score."""

    ratio: float | None  # None: outside of the curve, or no curve
    low: float | None  # ends of the 95 % interval over seeds; None: beyond the curve, or fewer than two seeds
    high: float | None
    most: float  # the ratio at the curve's cheapest point: nothing above it was measured
    least: float  # the ratio at its dearest point
    remark: str  # "" | "more" than most | "less" than least | why there is no curve

    def in_words(self) -> str:
        if self.remark == "more":
            return f"more than x {self.most:.2g}"
        if self.remark == "less":
            return f"less than x {self.least:.2g}, not measured"
        if self.ratio is None:
            return self.remark
        if self.low is None and self.high is None and not self.remark:
            return f"x {self.ratio:.2f}"
        low = f"less than {self.least:.2g}" if self.low is None else f"{self.low:.2f}"
        high = f"more than {self.most:.2g}" if self.high is None else f"{self.high:.2f}"
        return f"x {self.ratio:.2f} ({low} to {high})"


def worth(
    costs: Sequence[float], scores: Sequence[Sequence[float]], other_cost: float, other: Sequence[float]
) -> Worth:
    """The ratio of costs at equal scores, with its 95 % interval over seeds.

    costs: (P,) of the reference at each share, rising.  scores: (P, S) of the reference at each share and seed,
    lower is better, above 0.  other_cost, other: the cost of the other arm, and its (S,) scores at the same seeds.

    The ratio is that of the mean scores over seeds. Its interval is by the delta method on log(ratio): each seed
    counts with the linear effect that its scores have there, all of a seed together, so that what arms share at
    a seed cancels; Student's t with S - 1 degrees of freedom.
    """
    cost, y = np.log(np.asarray(costs, float)), np.asarray(scores, float)
    other = np.asarray(other, float)
    mean, target = y.mean(1), other.mean()
    most, least = (float(np.exp(math.log(other_cost) - cost[end])) for end in (0, -1))

    def without(remark: str) -> Worth:
        return Worth(None, None, None, most, least, remark)

    if not (np.diff(mean) < 0).all():
        return without("not measured: the reference is not better with a larger budget")
    if target > mean[0]:
        return without("more")
    if target < mean[-1]:
        return without("less")
    piece = min(int(np.searchsorted(-mean, -target, side="right")), len(cost) - 1)
    left, right = piece - 1, piece
    a, b, z = np.log(mean[left]), np.log(mean[right]), np.log(target)
    share = (z - a) / (b - a)
    reached = cost[left] + share * (cost[right] - cost[left])
    log_ratio = math.log(other_cost) - float(reached)
    count = len(other)
    if count < 2:
        return Worth(math.exp(log_ratio), None, None, most, least, "")
    # d reached = slope * (dz - (1 - share) da - share db), slope = d cost / d log score of this piece
    slope = (cost[right] - cost[left]) / (b - a)
    effect = other / target - (1 - share) * y[left] / mean[left] - share * y[right] / mean[right]
    error = abs(slope) * float(np.std(effect, ddof=1)) / math.sqrt(count)
    half = float(t.isf(ALPHA / 2, count - 1)) * error
    low, high = math.exp(log_ratio - half), math.exp(log_ratio + half)
    low, high = low if low >= least else None, high if high <= most else None
    beyond = "beyond the curve" if None in (low, high) else ""
    return Worth(math.exp(log_ratio), low, high, most, least, beyond)
