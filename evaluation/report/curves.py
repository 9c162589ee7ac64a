"""The panels of a report that are curves: over the run, or over the position in the window.

With one run a line is a layer; with several, a run: the mean over its layers, and shaded from the
lowest layer to the highest.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from evaluation.report.bands import TAGS
from evaluation.report.look import (
    COLOURS,
    DASHES,
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
    with_data,
)
from evaluation.report.read import LayerSeries, LoggedRun, Series, figure


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
        ax.set_ylabel("bits per byte")
        label_x(ax, look)
        legend(ax)

    note = banded_note(look, tag, "lower is better; compares across tokenizers")
    return Panel("Validation bits per byte", note, draw, columns=6, height=3.2)


def loss(look: Look) -> Panel | None:
    runs = with_data(look, "train/loss", "val/loss")
    if not runs:
        return None

    def draw(ax):
        draw_band(ax, look, "val/loss")
        curves = []
        for run in runs:
            style, train, val = look.style(run), run.series("train/loss"), run.series("val/loss")
            smoothed = run.smoothed(train)
            line(ax, look, run, train, color=style["color"], **FAINT)
            line(ax, look, run, smoothed, color=style["color"], lw=1, alpha=0.75)
            line(ax, look, run, val, **style, **STRONG)
            curves += [(run, smoothed), (run, val)]
        fit_height(ax, look, curves)
        ax.set_ylabel("loss, nats per token")
        label_x(ax, look)
        grey = dict(color=GREY)
        ax.plot([], [], **grey, **STRONG, label="validation")
        ax.plot([], [], **grey, lw=1, alpha=0.75, label="train, smoothed over 1/40 of the run")
        legend(ax)

    note = banded_note(look, "val/loss", "lower is better; a growing gap = overfitting")
    return Panel("Train and validation loss", note, draw, columns=6, height=3.2)


def curve(
    look: Look, tag: str, title: str, note: str, unit: str, from_zero: bool = False
) -> Panel | None:
    runs = with_data(look, tag)
    if not runs:
        return None

    def draw(ax):
        for run in runs:
            line(ax, look, run, run.series(tag), **look.style(run), lw=1.4)
        ax.set_ylabel(unit)
        ax.yaxis.set_major_formatter(compact) if from_zero else None
        ax.set_ylim(bottom=0)
        label_x(ax, look)

    return Panel(title, note, draw)


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
            curves += [(run, raw)]
        for clip in clips:
            ax.axhline(clip, color=GREY, lw=0.8, ls=":")
            curves += [
                (run, Series(np.array([run.length]), np.array([1.0 * clip]))) for run in runs
            ]
        fit_height(ax, look, curves, zero=True)
        ax.set_ylabel("norm before clipping")
        label_x(ax, look)

    dotted = "; dotted = grad_clip" if clips else ""
    note = banded_note(look, tag, f"spikes = trouble ahead{dotted}")
    return Panel("Gradient norm", note, draw)


# -------------------------------------------------------------------------------- lines per layer


def layer_colours(layers: list[int]) -> dict[int, Any]:
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0, 0.88, len(layers)))  # its yellow end is too pale
    return dict(zip(layers, shades))


def draw_layers(ax, look: Look, found: dict[str, tuple[LoggedRun, LayerSeries]], **style) -> None:
    """One run: a line per layer. Several: mean, and shaded from the lowest to the highest layer."""
    for run, layers in found.values():
        if look.single:
            numbers = list(layers.values)
            colours = layer_colours(numbers)
            step = math.ceil(len(numbers) / LEGEND_MOST)  # of many layers the legend names some
            named = set(numbers[::step]) if style.get("lw", 0) > 1 else set()
            for n, values in layers.values.items():
                series = Series(layers.steps, values)
                label = f"layer {n}" if n in named else None
                line(ax, look, run, series, color=colours[n], label=label, **style)
        else:
            mean, low, high = (layers.reduced(how) for how in (np.mean, np.min, np.max))
            line(ax, look, run, mean, **look.style(run), **style)
            if len(layers.values) > 1 and style.get("lw", 0) > 1:
                x = run.at(mean.steps, look.axis)
                ax.fill_between(
                    x, low.values, high.values, color=look.style(run)["color"], alpha=0.13, lw=0
                )


def layered(
    look: Look, tag: str, title: str, note: str, unit: str, top: float | None = None
) -> Panel | None:
    found = {run.name: (run, layers) for run in look.runs if (layers := run.layers(tag))}
    if not found:
        return None

    def draw(ax):
        if tag in TAGS:
            draw_band(ax, look, tag)
        draw_layers(ax, look, found, **STRONG)
        ax.set_ylabel(unit)
        ax.set_ylim(0, top)
        label_x(ax, look)
        legend(ax, ncols=2)

    if tag in TAGS and look.band and look.band.curve(tag):
        note = banded_note(look, tag, f"{note}; grey: mean of layers")
    return Panel(title, note, draw)


def violation(look: Look) -> Panel | None:
    batch = {r.name: (r, layers) for r in look.runs if (layers := r.layers("moe/max_violation"))}
    since = {
        r.name: (r, layers)
        for r in look.runs
        if (layers := r.layers("moe/max_violation_since_eval"))
    }
    if not batch and not since:
        return None

    def smoothed(run: LoggedRun, layers: LayerSeries) -> LayerSeries:
        each = {n: run.smoothed(Series(layers.steps, v)).values for n, v in layers.values.items()}
        return LayerSeries(layers.steps, each)

    # of runs that do not record the load between evaluations, the smoothed batches
    strong = {
        name: since.get(name) or (run, smoothed(run, layers))
        for name, (run, layers) in batch.items()
    } | since

    def draw(ax):
        if not since:
            draw_band(ax, look, "moe/max_violation")
        for run, layers in batch.values():
            if len(layers.values) > LEGEND_MOST:  # too many to be seen through
                mean = {-1: layers.reduced(np.mean).values}
                layers = LayerSeries(layers.reduced(np.mean).steps, mean)
            draw_layers(ax, look, {run.name: (run, layers)}, lw=0.7, alpha=0.25)
        draw_layers(ax, look, strong, **STRONG)
        fit_height(
            ax,
            look,
            [(r, layers.reduced(np.max)) for r, layers in strong.values()],
            zero=True,
        )
        ax.set_ylabel("busiest expert / mean - 1")
        label_x(ax, look)
        legend(ax, ncols=2)

    faint = "strong: all tokens since the last evaluation" if since else "strong: smoothed"
    note = f"0 = even; faint: single batches, {faint}"
    return Panel("Max violation of even load", note, draw)


def dead_experts(look: Look) -> Panel | None:
    found = {
        run.name: (run, layers) for run in look.runs if (layers := run.layers("moe/dead_experts"))
    }
    if not found:
        return None

    def draw(ax):
        most = 0.0
        for run, layers in found.values():
            dead = layers.reduced(np.sum)
            x = run.at(dead.steps, look.axis)
            ax.plot(x, dead.values, **look.style(run), **STRONG, drawstyle="steps-post")
            most = max(most, dead.values.max())
        ax.set_ylim(-0.03 * max(4, most), 1.1 * max(4, most))
        ax.yaxis.get_major_locator().set_params(integer=True)
        ax.set_ylabel("experts, all layers")
        label_x(ax, look)

    return Panel("Dead experts", "under 1 % of an even load on validation tokens; 0 is good", draw)


# --------------------------------------------------------------------------- positions, kinds


def loss_by_position(look: Look) -> Panel | None:
    """Single run: also earlier evaluations, paler."""
    tag = "val/loss_by_position"
    found = {}
    for run in look.runs:
        firsts = [int(m[1]) for c in run.children(tag) if (m := re.fullmatch(r"from_(\d{1,9})", c))]
        series = {n: run.series(f"{tag}/from_{n:04d}") for n in sorted(firsts)}
        series = {n: s for n, s in series.items() if np.isfinite(s.values).any()}
        if series:
            found[run.name] = run, series
    if not found:
        return None
    buckets = sorted({n for _, series in found.values() for n in series})

    def draw(ax):
        for run, series in found.values():
            x = [buckets.index(n) for n in series]
            steps = np.unique(np.concatenate([s.steps for s in series.values()]))
            chosen = [steps[-1]]
            if look.single and len(steps) > 3:
                chosen = steps[np.unique(np.geomspace(1, len(steps), 4).round().astype(int)) - 1]
            for place, step in enumerate(chosen, start=1):
                y = [
                    s.values[s.steps == step][-1] if step in s.steps else np.nan
                    for s in series.values()
                ]
                where = compact(run.at(np.array([step]), look.axis)[0])
                unit = {"tokens": "tokens", "step": "steps", "minutes": "min"}[look.axis]
                ax.plot(
                    x,
                    y,
                    **look.style(run),
                    lw=1.2 + 0.6 * (place == len(chosen)),
                    marker="o",
                    ms=3,
                    alpha=(place / len(chosen)) ** 1.3,
                    label=f"after {where} {unit}" if look.single else None,
                )
        ends = [*buckets[1:], None]
        names = [
            f"{a}+" if b is None else str(a) if b == a + 1 else f"{a}-{b - 1}"
            for a, b in zip(buckets, ends)
        ]
        ax.set_xticks(range(len(buckets)), names, rotation=30, ha="right", rotation_mode="anchor")
        ax.set_xlabel("position in the window, tokens")
        ax.set_ylabel("loss, nats per token")
        legend(ax)

    note = "falls as long as more text before a token helps; flat = context is not used"
    return Panel("Validation loss by position", note, draw)


def grad_norm_by_kind(look: Look) -> Panel | None:
    """Single run: a line per kind. Several: the median of the last tenth, per kind and run."""
    tag = "optim/grad_norm"
    kinds = list(dict.fromkeys(kind for run in look.runs for kind in run.children(tag)))
    if not kinds:
        return None

    def draw_lines(ax):
        for n, kind in enumerate(kinds):
            series = look.single.smoothed(look.single.series(f"{tag}/{kind}"))
            style = {"color": COLOURS[n % len(COLOURS)], "ls": DASHES[n // len(COLOURS)]}
            line(ax, look, look.single, series, **style, lw=1.4, label=kind)
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

    return Panel(
        "Gradient norm by kind of parameter",
        "which part is learning; level lines are healthy",
        draw,
    )
