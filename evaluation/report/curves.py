"""The panels of a report with curves: over the run, or over the position in the window.

With one run, each line is a layer. With several runs, each line is the mean over the layers of a run, shaded
from the lowest layer to the highest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from evaluation.report.look import (
    FAINT,
    GREY,
    LEGEND_MOST,
    STRONG,
    Look,
    Panel,
    banded_note,
    clip_name,
    compact,
    draw_band,
    fit_height,
    label_x,
    legend,
    line,
    nth_style,
    with_data,
)
from evaluation.report.read import LayerSeries, LoggedRun, Series, figure


def over_run(
    look: Look, title: str, note: str, unit: str, draw: Callable, *, ncols: int = 1, **layout: Any
) -> Panel:
    """A panel with the run on its x axis."""

    def whole(ax):
        draw(ax)
        ax.set_ylabel(unit)
        label_x(ax, look)
        legend(ax, ncols=ncols)

    return Panel(title, note, whole, **layout)


def bits_per_byte(look: Look) -> Panel | None:
    tag = "val/bits_per_byte"
    runs = with_data(look, tag)
    if not runs:
        return None

    def draw(ax):
        draw_band(ax, look, tag, named=True)
        for run in runs:
            label = f"{clip_name(run.name)}: {figure(run.last_finite(tag))}"
            line(ax, look, run, run.series(tag), **look.style(run), **STRONG, label=label)
        fit_height(ax, look, [(run, run.series(tag)) for run in runs])

    title, unit = "Validation bits per byte", "bits per byte"
    note = banded_note(look, tag, "lower is better; comparable across tokenizers")
    return over_run(look, title, note, unit, draw, columns=6, height=3.2)


def loss(look: Look) -> Panel | None:
    runs = with_data(look, "train/loss", "val/loss")
    if not runs:
        return None

    def draw(ax):
        draw_band(ax, look, "val/loss")
        thin, curves = dict(lw=1, alpha=0.75), []
        for run in runs:
            style, train, val = look.style(run), run.series("train/loss"), run.series("val/loss")
            smoothed = run.smoothed(train)
            line(ax, look, run, train, color=style["color"], **FAINT)
            line(ax, look, run, smoothed, color=style["color"], **thin)
            line(ax, look, run, val, **style, **STRONG)
            curves += [(run, smoothed), (run, val)]
        fit_height(ax, look, curves)
        ax.plot([], [], color=GREY, **STRONG, label="validation")
        ax.plot([], [], color=GREY, **thin, label="train, smoothed over 1/40 of the run")

    title, unit = "Train and validation loss", "loss, nats per token"
    note = banded_note(look, "val/loss", "lower is better; a growing gap = overfitting")
    return over_run(look, title, note, unit, draw, columns=6, height=3.2)


def curve(look: Look, tag: str, title: str, note: str, unit: str, *, large: bool = False) -> Panel | None:
    runs = with_data(look, tag)
    if not runs:
        return None

    def draw(ax):
        for run in runs:
            line(ax, look, run, run.series(tag), **look.style(run), lw=1.4)
        if large:
            ax.yaxis.set_major_formatter(compact)
        ax.set_ylim(bottom=0)

    return over_run(look, title, note, unit, draw)


def grad_norm(look: Look) -> Panel | None:
    tag = "optim/grad_norm"
    runs = with_data(look, tag)
    if not runs:
        return None
    late = [run.series(tag).values[-20:] for run in runs]
    usual = max(values[np.isfinite(values)].max(initial=0) for values in late)
    clips = {c for run in runs if (c := run.setting("grad_clip")) and c < 3 * usual}

    def draw(ax):
        draw_band(ax, look, tag)
        curves = []
        for run in runs:
            raw, smoothed = run.series(tag), run.smoothed(run.series(tag))
            line(ax, look, run, raw, color=look.style(run)["color"], **FAINT)
            line(ax, look, run, smoothed, **look.style(run), **STRONG)
            curves.append((run, raw))
        for clip in clips:
            ax.axhline(clip, color=GREY, lw=0.8, ls=":")
            curves.append((runs[0], Series(np.array([runs[0].length]), np.array([1.0 * clip]))))
        fit_height(ax, look, curves, zero=True)

    dotted = "; dotted = grad_clip" if clips else ""
    note = banded_note(look, tag, f"spikes = unstable training{dotted}")
    return over_run(look, "Gradient norm", note, "norm before clipping", draw)


# -------------------------------------------------------------------------------- lines per layer


def layer_colours(layers: list[int]) -> dict[int, Any]:
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0, 0.88, len(layers)))  # without its pale yellow end
    return dict(zip(layers, shades))


Layered = dict[LoggedRun, LayerSeries]


def with_layers(look: Look, tag: str) -> Layered:
    return {run: layers for run in look.runs if (layers := run.layers(tag))}


def draw_layers(ax, look: Look, found: Layered, *, lw: float = 1.8, alpha: float = 1) -> None:
    """One run: a line per layer. Several runs: the mean, shaded from the lowest to the highest layer.

    Thin lines are background and have neither label nor shade.
    """
    style, front = dict(lw=lw, alpha=alpha), lw > 1
    for run, layers in found.items():
        if look.single:
            numbers = list(layers.values)
            colours = layer_colours(numbers)
            step = math.ceil(len(numbers) / LEGEND_MOST)  # the legend names at most LEGEND_MOST layers
            for place, (n, values) in enumerate(layers.values.items()):
                label = f"layer {n}" if front and place % step == 0 else None
                series = Series(layers.steps, values)
                line(ax, look, run, series, color=colours[n], label=label, **style)
            continue
        mean, low, high = (layers.reduced(how) for how in (np.mean, np.min, np.max))
        line(ax, look, run, mean, **look.style(run), **style)
        if len(layers.values) > 1 and front:
            x, shade = run.at(mean.steps, look.axis), look.style(run)["color"]
            ax.fill_between(x, low.values, high.values, color=shade, alpha=0.13, lw=0)


def layered(
    look: Look, tag: str, title: str, note: str, unit: str, *, top: float | None = None
) -> Panel | None:
    found = with_layers(look, tag)
    if not found:
        return None

    def draw(ax):
        draw_band(ax, look, tag)
        draw_layers(ax, look, found)
        ax.set_ylim(0, top)

    if look.band and tag in look.band.curves:
        note = banded_note(look, tag, f"{note}; grey: mean of layers")
    return over_run(look, title, note, unit, draw, ncols=2)


def violation(look: Look) -> Panel | None:
    batch = with_layers(look, "moe/max_violation")
    strong = batch | with_layers(look, "moe/max_violation_since_eval")  # batches before the first evaluation
    if not batch:
        return None

    def draw(ax):
        for run, layers in batch.items():
            if len(layers.values) > LEGEND_MOST:  # too many faint lines would hide the strong ones
                mean = layers.reduced(np.mean)
                layers = LayerSeries(mean.steps, {-1: mean.values})
            draw_layers(ax, look, {run: layers}, lw=0.7, alpha=0.25)
        draw_layers(ax, look, strong)
        highest = [(run, layers.reduced(np.max)) for run, layers in strong.items()]
        fit_height(ax, look, highest, zero=True)

    title, unit = "Max violation of even load", "busiest expert / mean - 1"
    note = "0 = even; faint: single batches, strong: all tokens since the last evaluation"
    return over_run(look, title, note, unit, draw, ncols=2)


def dead_experts(look: Look) -> Panel | None:
    found = with_layers(look, "moe/dead_experts")
    if not found:
        return None

    def draw(ax):
        most = 4.0
        for run, layers in found.items():
            dead = layers.reduced(np.sum)
            x = run.at(dead.steps, look.axis)
            ax.plot(x, dead.values, **look.style(run), **STRONG, drawstyle="steps-post")
            most = max(most, dead.values.max())
        ax.set_ylim(-0.03 * most, 1.1 * most)
        ax.yaxis.get_major_locator().set_params(integer=True)

    note = "experts below 1 % of an even load on validation tokens; 0 is good"
    return over_run(look, "Dead experts", note, "experts, all layers", draw)


# --------------------------------------------------------------------------- positions, kinds


def loss_by_position(look: Look) -> Panel | None:
    """The loss by position; for a single run also at earlier evaluations, in paler colours."""
    found = {run: run.numbered("val/loss_by_position", "from") for run in look.runs}
    found = {run: series for run, series in found.items() if series}
    if not found:
        return None
    buckets = sorted({n for series in found.values() for n in series})
    unit = {"tokens": "tokens", "step": "steps", "minutes": "min"}[look.axis]

    def draw(ax):
        for run, series in found.items():
            steps = np.unique(np.concatenate([s.steps for s in series.values()]))
            chosen = steps[-1:]
            if look.single and len(steps) > 3:
                chosen = steps[np.unique(np.geomspace(1, len(steps), 4).round().astype(int)) - 1]
            for place, step in enumerate(chosen, start=1):
                at_step = (s.values[s.steps == step] for s in series.values())
                y = [values[-1] if len(values) else np.nan for values in at_step]
                where = compact(run.at(np.array([step]), look.axis)[0])
                ax.plot(
                    [buckets.index(n) for n in series],
                    y,
                    **look.style(run),
                    lw=1.2 + 0.6 * (place == len(chosen)),
                    marker="o",
                    ms=3,
                    alpha=(place / len(chosen)) ** 1.3,
                    label=f"after {where} {unit}" if look.single else None,
                )
        pairs = zip(buckets, buckets[1:])
        names = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in pairs] + [f"{buckets[-1]}+"]
        ax.set_xticks(range(len(buckets)), names, rotation=30, ha="right", rotation_mode="anchor")
        ax.set_xlabel("position in the window, tokens")
        ax.set_ylabel("loss, nats per token")
        legend(ax)

    note = "falls while more text before a token helps; flat = context is not used"
    return Panel("Validation loss by position", note, draw)


def grad_norm_by_kind(look: Look) -> Panel | None:
    """One run: a line per kind of parameter. Several runs: the median of the last tenth, per kind."""
    tag = "optim/grad_norm"
    kinds = list(dict.fromkeys(kind for run in look.runs for kind in run.children(tag)))
    if not kinds:
        return None

    def draw_lines(ax):
        for n, kind in enumerate(kinds):
            series = look.single.smoothed(look.single.series(f"{tag}/{kind}"))
            line(ax, look, look.single, series, **nth_style(n), lw=1.4, label=kind)
        ax.set_ylabel("norm, smoothed")
        label_x(ax, look)
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * (high / low) ** 0.3)  # room for the legend
        legend(ax, loc="upper right", ncols=3, fontsize=7.5)

    def draw_points(ax):
        for n, run in enumerate(look.runs):
            style = look.style(run)
            for place, kind in enumerate(kinds):
                series = run.series(f"{tag}/{kind}")
                late = series.values[series.steps > 0.9 * run.last_step]
                late = late[np.isfinite(late)]
                if len(late):
                    x = place + 0.12 * (n - (len(look.runs) - 1) / 2)
                    ax.plot(x, np.median(late), marker="o", ms=6, color=style["color"], ls="")
        ax.set_xticks(range(len(kinds)), kinds, rotation=30, ha="right", rotation_mode="anchor")
        ax.set_ylabel("norm, last tenth of the run")
        ax.set_xlim(-0.6, len(kinds) - 0.4)

    def draw(ax):
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_formatter("")
        (draw_lines if look.single else draw_points)(ax)

    note = "which part is learning; level lines are normal"
    return Panel("Gradient norm by kind of parameter", note, draw)
