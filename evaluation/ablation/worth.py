"""What a difference is worth: with how much compute or time the reference reaches the other arm's score.

The reference is trained at several shares of its budget, each with a complete schedule. Its score over its cost
is read as a curve of straight pieces between these points, both on logarithmic scales, so that a power law is met
exactly. Where the curve has the other arm's score, the reference costs `reached`; worth = the other arm's cost /
reached. Nothing is extrapolated.

The interval is the set of all costs on the curve at which the reference's score does not differ from the other
arm's by a paired t-test over seeds. It needs no slope, so that it holds at the ends of the curve, too: a score
beyond the curve's end is called so only if the test excludes that end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t

from evaluation.ablation.statistics import ALPHA


class Worth(NamedTuple):
    """How many times the reference's cost the other arm needs for the same score."""

    ratio: float | None  # None: outside of the curve, or no curve
    low: float | None  # ends of the 95 % interval over seeds; None: beyond the curve, or fewer than two seeds
    high: float | None
    most: float  # the ratio at the curve's cheapest point: nothing above it was measured
    least: float  # the ratio at its dearest point
    remark: str  # "" | "more" than most | "less" than least | why there is no curve
    seeds: int = 2
    resolved: bool = False  # whether "more" or "less" is said of the whole interval

    def in_words(self) -> str:
        most, least = f"more than {self.most:.2g}", f"less than {self.least:.2g}"
        if self.remark not in ("", "more", "less"):
            return self.remark
        told = {"more": f"more than x {self.most:.2g}", "less": f"less than x {self.least:.2g}"}
        told = told.get(self.remark) or f"x {self.ratio:.2f}"
        if self.seeds < 2:
            return f"{told} (one seed)"
        if self.resolved:
            return told
        low, high = (one and f"{one:.2f}" for one in (self.low, self.high))
        return f"{told} ({low or least} to {high or most})"


def worth(
    costs: Sequence[float],
    scores: Sequence[Sequence[float]],
    other_cost: float,
    other: Sequence[float],
    whole_differs: bool = True,
) -> Worth:
    """The worth of an arm against the reference, in one kind of cost.

    costs: of the reference's P >= 2 budgets, rising.  scores: (P, S), its scores at S seeds, lower is better.
    other_cost, other: the other arm's cost and its (S,) scores at the same seeds. Means over seeds are geometric.
    whole_differs: whether the verdict, which is corrected for other pairs and for documents, says that the score of
    the whole budget differs from the other arm's. If not, the interval includes that budget.
    """
    cost, y = np.log(np.asarray(costs, float)), np.log(np.asarray(scores, float))
    # (P, S), falling: the reference is worse where it is positive
    apart = y - np.log(np.asarray(other, float))
    mean, count = apart.mean(1), apart.shape[1]
    of_points = [float(np.exp(math.log(other_cost) - one)) for one in cost]
    most, least = of_points[0], of_points[-1]
    if not (np.diff(mean) < 0).all():
        remark = "not measured: the reference is not better with a larger budget"
        return Worth(None, None, None, most, least, remark, count)
    remark, ratio = "more" if mean[0] < 0 else "less" if mean[-1] > 0 else "", None
    if not remark:
        ratio = math.exp(math.log(other_cost) - float(np.interp(0.0, -mean, cost)))
    if count < 2:
        return Worth(ratio, None, None, most, least, remark, count)
    inside = ([] if ratio is None else [ratio]) + ([] if whole_differs else [least])
    for piece, (left, right) in enumerate(zip(apart, apart[1:])):
        for share in _equal(left, right):
            inside.append(of_points[piece] * (of_points[piece + 1] / of_points[piece]) ** share)
    if not inside:  # the whole interval is beyond the curve
        ends = (most, None) if remark == "more" else (None, least)
        return Worth(None, *ends, most, least, remark, count, resolved=True)
    low, high = min(inside), max(inside)
    at_least, at_most = low <= least * (1 + 1e-9), high >= most * (1 - 1e-9)
    return Worth(ratio, None if at_least else low, None if at_most else high, most, least, remark, count)


def _equal(left: np.ndarray, right: np.ndarray) -> Iterable[float]:
    """The ends of the shares u from 0 to 1 at which (1 - u) left + u right has no mean that differs from 0 by a
    t-test.  left, right: (S,).
    """
    count, step = len(left), right - left
    (aa, ab), (_, bb) = np.cov(left, step) * t.isf(ALPHA / 2, count - 1) ** 2 / count
    a, b = left.mean(), step.mean()
    # (a + b u)^2 <= t^2 Var(mean) is quadratic in u
    excess = np.poly1d([b * b - bb, 2 * (a * b - ab), a * a - aa])
    roots = [float(root.real) for root in np.roots(excess) if abs(root.imag) < 1e-12]
    return [u for u in (0.0, 1.0) if excess(u) <= 0] + [u for u in roots if 0 <= u <= 1]
