"""The panels of a report that are heat maps, of the last evaluation of each run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from evaluation.report.look import COLUMNS, GREY, Look, Panel, clip_name
from evaluation.report.read import LoggedRun, as_numbers, short


def heat_map(
    ax,
    values: np.ndarray,
    *,
    rows: list[str],
    columns: list[str],
    cmap: str,
    top: float,
    middle: float | None = None,
    unit: str,
    form: str,
    bar: bool = True,
) -> None:
    """values (R, C) from 0 to `top`, in cells with their number where they are large enough.

    middle: the value in the middle of the colours, if it is not top / 2.
    """
    from matplotlib.colors import TwoSlopeNorm

    norm = TwoSlopeNorm(vmin=0, vcenter=middle or top / 2, vmax=top)
    image = ax.imshow(values, cmap=cmap, norm=norm, aspect="auto", interpolation="nearest")
    ax.grid(False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    inches = ax.get_window_extent().size / ax.figure.dpi
    across, down = inches / values.shape[::-1]  # of a cell
    longest = max(map(len, columns))
    for axis, names, cell, need in (
        (ax.xaxis, columns, across, 0.1 + 0.07 * longest),
        (ax.yaxis, rows, down, 0.15),
    ):
        step = math.ceil(need / cell)  # of many, every second or third has its name
        axis.set_ticks(range(0, len(names), step), names[::step])
    if across > 0.27 and down > 0.15:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                shade = image.cmap(image.norm(value))[:3]
                dark = np.dot(shade, (0.299, 0.587, 0.114)) < 0.5
                ax.text(column, row, form.format(value), ha="center", va="center", fontsize=7.5,
                        color="white" if dark else "black")  # fmt: skip
    if bar:
        over = "max" if np.nanmax(values) > top else "neither"
        side = ax.inset_axes([1.02, 0, 0.025, 1])
        side.figure.colorbar(image, cax=side, extend=over).set_label(unit, fontsize=8)
        side.tick_params(labelsize=7.5, length=2)


def row_height(rows: int) -> float:
    return min(4.0, max(1.5, 0.22 * rows))


def of_run(look: Look, run: LoggedRun) -> str:
    return "" if look.single else f": {clip_name(run.name)}"


def side_by_side(
    look: Look, title: str, found: dict[LoggedRun, Any], rows: int, note: Callable, draw: Callable
) -> list[Panel]:
    """A map for each of the runs that have one, those of several runs in rows of their own.

    note: of a run.  draw: on axes, of a run and what was found of it.
    """
    columns = 6 if len(found) == 2 else 4
    return [
        Panel(
            title + of_run(look, run),
            note(run),
            lambda ax, run=run, values=values: draw(ax, run, values),
            columns=columns,
            height=max(2.35, row_height(rows)),
            right=0.85,
            new_row=len(found) > 1 and place % (COLUMNS // columns) == 0,
        )
        for place, (run, values) in enumerate(found.items())
    ]


def load_maps(look: Look) -> list[Panel]:
    tag = "moe/load"
    found = {run: as_numbers(run.last(tag), tag) for run in look.runs if tag in run.entries}

    def draw(ax, run, load):
        recorded = run.layers("moe/entropy") or run.layers("moe/max_violation")
        numbers = list(recorded.values) if recorded else []
        if len(numbers) != len(load):
            numbers = range(len(load))
        heat_map(ax, load * load.shape[1], rows=[str(n) for n in numbers],
                 columns=[str(e) for e in range(load.shape[1])], cmap="RdBu_r", top=2.0,
                 unit="load / even load", form="{:.1f}")  # fmt: skip
        ax.set_ylabel("layer")
        ax.set_xlabel("expert")

    def note(run):
        return f"validation tokens, step {run.last_step_of(tag):,}; 1 (white) = even"

    rows = max(map(len, found.values()), default=0)
    return side_by_side(look, "Load of the experts", found, rows, note, draw)


def kinds_maps(look: Look) -> list[Panel]:
    """Which experts take which kinds of token: a map per layer, four layers at most, three runs at most."""
    tag = "moe/token_kinds"
    found = [(run, run.last(tag)) for run in look.runs if tag in run.entries][:3]

    def draw(ax, run, table):
        share = as_numbers(table["share"], tag)  # (layers, kinds, experts)
        experts = share.shape[2]
        most = experts / (run.setting("experts_per_token") or 1)  # all tokens of a kind
        top = min(4.0, max(2.0, most))
        shown = np.unique(np.linspace(0, len(share) - 1, min(4, len(share))).round().astype(int))
        names = [f"{kind} ({short(count)})" for kind, count in zip(table["kinds"], table["tokens"])]
        ax.axis("off")
        wide = 1 / len(shown)
        for place, row in enumerate(shown):
            part = ax.inset_axes([place * wide, 0, 0.95 * wide, 0.94])
            heat_map(part, share[row] * experts, rows=names if place == 0 else [""] * len(names),
                     columns=[str(e) for e in range(experts)], cmap="RdBu_r", top=top, middle=1.0,
                     unit="share / even share", form="{:.1f}", bar=place == len(shown) - 1)  # fmt: skip
            part.set_title(f"layer {table['layers'][row]}", fontsize=9, color=GREY, pad=3)
            part.set_xlabel("expert")

    return [
        Panel(
            f"Which experts take which kind of token{of_run(look, run)}",
            f"validation tokens, step {run.last_step_of(tag):,}; rows: kind (tokens); "
            "1 (white) = as often as any expert, 2 = twice as often",
            lambda ax, run=run, table=table: draw(ax, run, table),
            columns=COLUMNS,
            height=row_height(len(table["kinds"])) + 0.2,
            left=1.6,
            right=0.8,
            new_row=True,
        )
        for run, table in found
    ]


def sink_maps(look: Look) -> list[Panel]:
    found = {run: mass for run in look.runs if (mass := sink_mass(run))}
    top = max([0.05, *(share for mass in found.values() for share in mass.values())])

    def draw(ax, _, mass):
        layers, heads = (sorted({key[i] for key in mass}) for i in (0, 1))
        values = np.array([[mass.get((n, h), np.nan) for h in heads] for n in layers])
        heat_map(ax, 100 * values, rows=[str(n) for n in layers], columns=[str(h) for h in heads],
                 cmap="Blues", top=100 * top, unit="% of attention", form="{:.0f}")  # fmt: skip
        ax.set_ylabel("layer")
        ax.set_xlabel("head")

    def note(_):
        return "validation tokens; dark = a head that mostly looks at nothing"

    rows = max((len({layer for layer, _ in mass}) for mass in found.values()), default=0)
    return side_by_side(look, "Attention on the sink", found, rows, note, draw)


def sink_mass(run: LoggedRun) -> dict[tuple[int, int], float]:
    """{(layer, head): share of attention} at the last evaluation."""
    found = {}
    for child in run.children("attention/sink_mass"):
        if match := re.fullmatch(r"layer_(\d+)/head_(\d+)", child):
            found[int(match[1]), int(match[2])] = run.last_finite(f"attention/sink_mass/{child}")
    return found
