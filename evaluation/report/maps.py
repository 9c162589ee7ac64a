"""The panels of a report with heat maps, from the last evaluation of each run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from evaluation.report.look import COLUMNS, GREY, Look, Panel, clip_name
from evaluation.report.read import LoggedRun, as_numbers, short


def heat_map(
    ax,
    values: np.ndarray,
    rows: Iterable[Any],
    columns: Iterable[Any],
    *,
    unit: str,
    top: float,
    middle: float | None = None,
    cmap: str = "RdBu_r",
    form: str = "{:.1f}",
    bar: bool = True,
) -> None:
    """Draw values (R, C) with colours from 0 to `top`, and as numbers if the cells are large enough.

    middle: the value with the middle colour (default: top / 2).
    """
    from matplotlib.colors import TwoSlopeNorm

    norm = TwoSlopeNorm(vmin=0, vcenter=middle or top / 2, vmax=top)
    image = ax.imshow(values, cmap=cmap, norm=norm, aspect="auto", interpolation="nearest")
    ax.grid(False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    inches = ax.get_window_extent().size / ax.figure.dpi
    across, down = inches / values.shape[::-1]  # size of a cell
    rows, columns = list(map(str, rows)), list(map(str, columns))
    longest = max(map(len, columns))
    for axis, names, cell, need in (
        (ax.xaxis, columns, across, 0.1 + 0.07 * longest),
        (ax.yaxis, rows, down, 0.15),
    ):
        step = math.ceil(need / cell)  # if names do not fit, label every second or third
        axis.set_ticks(range(0, len(names), step), names[::step])
    if across > 0.27 and down > 0.15:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                shade = image.cmap(image.norm(value))[:3]
                ink = "white" if np.dot(shade, (0.299, 0.587, 0.114)) < 0.5 else "black"
                centred = {"ha": "center", "va": "center"}
                ax.text(column, row, form.format(value), fontsize=7.5, color=ink, **centred)
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
    """A map for each run in `found`; the maps of several runs begin a row of their own.

    note: (run) -> the line under the title.  draw: (axes, run, value in `found`) -> None.
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
        recorded, experts = run.layers("moe/entropy"), load.shape[1]
        layers = recorded.values if recorded else range(len(load))
        heat_map(ax, load * experts, layers, range(experts), unit="load / even load", top=2.0)
        ax.set_ylabel("layer")
        ax.set_xlabel("expert")

    def note(run):
        return f"validation tokens, step {run.last_step_of(tag):,}; 1 (white) = even"

    rows = max(map(len, found.values()), default=0)
    return side_by_side(look, "Load of the experts", found, rows, note, draw)


def kinds_maps(look: Look) -> list[Panel]:
    """Which experts take which kinds of token: a map per layer, for at most four layers and three runs."""
    tag = "moe/token_kinds"
    found = [(run, run.last(tag)) for run in look.runs if tag in run.entries][:3]

    def draw(ax, run, table):
        share = as_numbers(table["share"], tag)  # (layers, kinds, experts)
        experts = share.shape[2]
        all_in_one = experts / (run.setting("experts_per_token") or 1)
        top = min(4.0, max(2.0, all_in_one))
        shown = np.unique(np.linspace(0, len(share) - 1, min(4, len(share))).round().astype(int))
        names = [f"{kind} ({short(count)})" for kind, count in zip(table["kinds"], table["tokens"])]
        ax.axis("off")
        wide = 1 / len(shown)
        for place, row in enumerate(shown):
            part = ax.inset_axes([place * wide, 0, 0.95 * wide, 0.94])
            rows, last = names if place == 0 else [""] * len(names), place == len(shown) - 1
            scale = {"unit": "share / even share", "top": top, "middle": 1.0}
            heat_map(part, share[row] * experts, rows, range(experts), bar=last, **scale)
            part.set_title(f"layer {table['layers'][row]}", fontsize=9, color=GREY, pad=3)
            part.set_xlabel("expert")

    return [
        Panel(
            f"Which experts take which kind of token{of_run(look, run)}",
            f"validation tokens, step {run.last_step_of(tag):,}; rows: kind (tokens); "
            "1 (white) = an even share, 2 = twice an even share",
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
    tag = "attention/sink_mass"
    found = {run: run.last(tag) for run in look.runs if tag in run.entries}  # {layer_NN: share of each head}
    shares = {run: as_numbers(list(by_layer.values()), tag) for run, by_layer in found.items()}
    top = 100 * max([0.05, *(share.max() for share in shares.values())])

    def draw(ax, run, share):
        layers, unit = [int(name.removeprefix("layer_")) for name in found[run]], "% of attention"
        heat_map(
            ax, 100 * share, layers, range(share.shape[1]), unit=unit, top=top, cmap="Blues", form="{:.0f}"
        )
        ax.set_ylabel("layer")
        ax.set_xlabel("head")

    def note(_):
        return "validation tokens; dark = a head whose attention goes mostly to the sink"

    rows = max(map(len, shares.values()), default=0)
    return side_by_side(look, "Attention on the sink", shares, rows, note, draw)
