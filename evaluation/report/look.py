"""What all panels of a report share: the runs, their colours, and the small parts of a curve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from evaluation.report.bands import Band, verdict
from evaluation.report.read import AXES, LoggedRun, Series, short

COLUMNS = 12  # a page's width in the units of Panel.columns
# Okabe and Ito's colours, which colour-blind people tell apart, without the yellow that white swallows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":", "-.")  # after each round of colours
GREY, BAND_GREY = "#595959", "#8c8c8c"
LEGEND_MOST = 9  # entries
FAINT, STRONG = dict(lw=0.8, alpha=0.3), dict(lw=1.8)
EARLY = 0.05  # of a run: its heights do not set the scale, as a first loss would flatten the rest


def nth_style(n: int) -> dict[str, Any]:
    """Colour and dashes of the nth of several lines."""
    return {"color": COLOURS[n % len(COLOURS)], "ls": DASHES[n // len(COLOURS) % len(DASHES)]}


@dataclass(frozen=True)
class Look:
    """What all panels of a page share."""

    runs: list[LoggedRun]
    axis: str  # of AXES
    band: Band | None
    in_band: list[LoggedRun]  # runs that the band is for

    @property
    def single(self) -> LoggedRun | None:
        return self.runs[0] if len(self.runs) == 1 else None

    def style(self, run: LoggedRun) -> dict[str, Any]:
        return nth_style(self.runs.index(run))


class Panel(NamedTuple):
    title: str
    note: str  # under the title: how to read it, what is good
    draw: Callable[[Any], None]  # on matplotlib Axes
    columns: int = 4
    height: float = 2.35  # inches of the axes
    left: float = 0.72  # inches beside the axes, for labels
    right: float = 0.15
    new_row: bool = False


# ---------------------------------------------------------------------------- parts of a curve


def compact(number: float, _=None) -> str:
    """A tick of a large axis: 1.5 M"""
    return "0" if number == 0 else short(number)


def label_x(ax, look: Look) -> None:
    ax.set_xlabel(AXES[look.axis])
    if look.axis != "minutes":
        ax.xaxis.set_major_formatter(compact)
    ax.set_xlim(left=0)


def line(ax, look: Look, run: LoggedRun, series: Series, **style: Any) -> None:
    x = run.at(series.steps, look.axis)
    mark = {"marker": "o", "ms": 3} if len(x) < 25 and style.get("lw", 0) > 1 else {}
    ax.plot(x, series.values, **mark, **style)


def fit_height(ax, look: Look, curves: list[tuple[LoggedRun, Series]], *, zero: bool = False):
    """Scale to what comes after the start of a run, where it is long enough to have one."""
    heights = []
    for run, series in curves:
        late = series.steps >= EARLY * run.length
        values = series.values[late] if late.sum() >= 5 else series.values
        heights += values[np.isfinite(values)].tolist()
    if not heights:
        return
    low, high = min(heights), max(heights)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
    ax.set_ylim(0 if zero else low - room, high + room)


def legend(ax, **options: Any) -> None:
    """Where it hides least; nothing if there is nothing to tell apart."""
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) > 1 or any(label.startswith("reference") for label in labels):
        ax.legend(handles, labels, **{"loc": "best", "framealpha": 0.85, "edgecolor": "none"} | options)


def clip_name(name: str, most: int = 30) -> str:
    """A long name without its middle, as the ends tell runs apart."""
    half = (most - 2) // 2
    return name if len(name) <= most else f"{name[:half]}..{name[-half:]}"


def draw_band(ax, look: Look, tag: str, *, named: bool = False) -> None:
    if not look.band or tag not in look.band.curves:
        return
    tokens, low, mean, high = look.band.curves[tag]
    run = look.in_band[0]
    # the band knows tokens; the run knows where these are on its own axis
    per_token = run.length / run.at([run.length], "tokens")
    x = tokens if look.axis == "tokens" else run.at(tokens * per_token, look.axis)
    label = look.band.legend if named else None
    ax.fill_between(x, low, high, color=BAND_GREY, alpha=0.28, lw=0, zorder=0, label=label)
    ax.plot(x, mean, color=BAND_GREY, lw=1, ls="--", zorder=0.5)


def banded_note(look: Look, tag: str, note: str) -> str:
    """With the verdict of a single run behind it."""
    found = verdict(look.single, look.band, tag) if look.single and look.band else None
    if found is None:
        return note
    place = "inside" if found.place == "normal" else found.place
    return f"{note}; {place} the reference"


def with_data(look: Look, *tags: str) -> list[LoggedRun]:
    return [run for run in look.runs if any(len(run.series(tag).steps) for tag in tags)]
