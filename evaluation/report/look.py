"""Shared by all panels of a report: the runs, their colours, and helpers to draw curves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from evaluation.report.bands import Band, verdict
from evaluation.report.read import AXES, LoggedRun, Series, short

COLUMNS = 12  # width of the page in the unit of Panel.columns
# Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow, too pale on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":", "-.")  # after each round of colours
GREY, BAND_GREY = "#595959", "#8c8c8c"
LEGEND_MOST = 9  # largest number of entries in a legend
FAINT, STRONG = dict(lw=0.8, alpha=0.3), dict(lw=1.8)
EARLY = 0.05  # the first share of a run does not set the y scale: the first losses would flatten the rest


def nth_style(n: int) -> dict[str, Any]:
    return {"color": COLOURS[n % len(COLOURS)], "ls": DASHES[n // len(COLOURS) % len(DASHES)]}


@dataclass(frozen=True)
class Look:
    """Shared by all panels of a page."""

    runs: list[LoggedRun]
    axis: str  # a key of AXES
    band: Band | None
    in_band: list[LoggedRun]  # the runs that belong to the band

    @property
    def single(self) -> LoggedRun | None:
        return self.runs[0] if len(self.runs) == 1 else None

    def style(self, run: LoggedRun) -> dict[str, Any]:
        return nth_style(self.runs.index(run))


class Panel(NamedTuple):
    title: str
    note: str  # line under the title: how to read the panel, and which values are good
    draw: Callable[[Any], None]  # draws on matplotlib Axes
    columns: int = 4
    height: float = 2.35  # height of the axes in inches
    left: float = 0.72  # inches for labels beside the axes
    right: float = 0.15
    new_row: bool = False


# ---------------------------------------------------------------------------- parts of a curve


def compact(number: float, _=None) -> str:
    """A tick label such as 1.5 M."""
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
    """Fit the y axis to the values after the start of each run, if at least five are left."""
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
    """A legend where it hides least; none if there is only one line."""
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) > 1 or any(label.startswith("reference") for label in labels):
        ax.legend(handles, labels, **{"loc": "best", "framealpha": 0.85, "edgecolor": "none"} | options)


def clip_name(name: str, most: int = 30) -> str:
    """A long name without its middle, because the ends of names tell runs apart."""
    half = (most - 2) // 2
    return name if len(name) <= most else f"{name[:half]}..{name[-half:]}"


def draw_band(ax, look: Look, tag: str, *, named: bool = False) -> None:
    if not look.band or tag not in look.band.curves:
        return
    tokens, low, mean, high = look.band.curves[tag]
    run = look.in_band[0]
    # The band is over tokens; the run gives their places on another axis.
    per_token = run.length / run.at([run.length], "tokens")
    x = tokens if look.axis == "tokens" else run.at(tokens * per_token, look.axis)
    label = look.band.legend if named else None
    ax.fill_between(x, low, high, color=BAND_GREY, alpha=0.28, lw=0, zorder=0, label=label)
    ax.plot(x, mean, color=BAND_GREY, lw=1, ls="--", zorder=0.5)


def banded_note(look: Look, tag: str, note: str) -> str:
    """The note, followed by the verdict if there is a single run."""
    found = verdict(look.single, look.band, tag) if look.single and look.band else None
    if found is None:
        return note
    place = "inside" if found.place == "normal" else found.place
    return f"{note}; {place} the reference"


def with_data(look: Look, *tags: str) -> list[LoggedRun]:
    return [run for run in look.runs if any(len(run.series(tag).steps) for tag in tags)]
