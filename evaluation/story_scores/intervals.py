"""Intervals of scores: exact ones for shares, and by the bootstrap over prompts for sums of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.intervals import exact_interval

DRAWS, SEED = 2000, 0  # resamples of the bootstrap

Sums = Sequence[tuple[float, float]]  # numerator and denominator of each prompt


def share(hits: int, number: int) -> dict[str, Any]:
    """A share of pairs with its exact interval; None without pairs."""
    if not number:
        return {"mean": None, "interval": None, "hits": 0, "number": 0}
    return {"mean": hits / number, "interval": exact_interval(hits, number), "hits": hits, "number": number}


def ratio(sums: Sums) -> dict[str, Any]:
    """Sum of the numerators by sum of the denominators, with a 95 % bootstrap interval over prompts.

    The texts of a prompt are resampled together, because they are not independent. None if all denominators are 0;
    no interval for fewer than three prompts.
    """
    table = np.array(sums, float).reshape(-1, 2)
    if not table[:, 1].sum():
        return {"mean": None, "interval": None, "prompts": len(table)}
    return {
        "mean": float(table[:, 0].sum() / table[:, 1].sum()),
        "interval": _percentiles(_resampled(table)) if len(table) > 2 else None,
        "prompts": len(table),
    }


def difference(first: Sums, second: Sums) -> dict[str, Any]:
    """ratio(first) - ratio(second) of the same prompts in the same order, with its interval."""
    one, two = (np.array(sums, float).reshape(-1, 2) for sums in (first, second))
    if not one[:, 1].sum() or not two[:, 1].sum():
        return {"mean": None, "interval": None}
    mean = one[:, 0].sum() / one[:, 1].sum() - two[:, 0].sum() / two[:, 1].sum()
    interval = _percentiles(_resampled(one) - _resampled(two)) if len(one) > 2 else None
    return {"mean": float(mean), "interval": interval}


def _resampled(table: np.ndarray) -> np.ndarray:
    """(DRAWS,) ratios. The same seed draws the same prompts for every table of one length."""
    draws = np.random.default_rng(SEED).integers(len(table), size=(DRAWS, len(table)))
    sums = table[draws].sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[:, 0] / sums[:, 1]


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)
