"""The same search for every arm: the given rates, and further where the best lies at the edge."""

from __future__ import annotations

from collections.abc import Sequence

MOST_EXTENSIONS = 3  # beyond the given rates, each a step of the ratio at that edge


def best_rate(tried: dict[float, float | None]) -> float | None:
    """The rate with the lowest score; None where no run ended well. tried: rate: score or None."""
    scored = {rate: score for rate, score in tried.items() if score is not None}
    return min(scored, key=scored.__getitem__, default=None)


def next_rates(given: Sequence[float], tried: dict[float, float | None]) -> list[float]:
    """What to try now: the given rates, then one beyond the edge as long as the best is there; [] when
    the search is over. Where nothing ended well, lower ones. given: at least three, in rising order.
    """
    if missing := [rate for rate in given if rate not in tried]:
        return missing
    rates, best = sorted(tried), best_rate(tried)
    if len(tried) - len(given) >= MOST_EXTENSIONS:
        return []
    if best is None or best == rates[0]:
        return [tidy(rates[0] * rates[0] / rates[1])]
    return [tidy(rates[-1] * rates[-1] / rates[-2])] if best == rates[-1] else []


def tidy(rate: float) -> float:
    """Six significant digits: the name of a run, the same on every machine."""
    return float(f"{rate:.6g}")
