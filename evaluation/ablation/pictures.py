"""Pictures of the arms, drawn from the records of the runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from common.files import atomic_write
from evaluation.ablation.segments import above, beside_references, evaluated, loss_of_segment, shown_segments
from evaluation.ablation.statistics import Summary
from evaluation.ablation.verdict import Ablation
from evaluation.report.look import clip_name, compact, legend, nth_style
from evaluation.report.page import DPI, STYLE
from evaluation.report.read import LoggedRun, read_run

TAGS = {"bits_per_byte": "val/bits_per_byte", "val_loss": "val/loss"}
UNITS = {"bits_per_byte": "bits per byte", "val_loss": "loss, nats per token"}
AXES = {"tokens": "training tokens", "seconds": "training seconds"}


Logged = dict[str, dict[int, LoggedRun]]  # arm -> seed -> run


def logged_runs(x: Ablation) -> Logged:
    """The runs of every arm that ended well, except those whose folder was deleted."""
    found: Logged = {}
    for name in x.arms:
        places = {seed: x.folder / line["folder"] for seed, line in x.ended_well(name).items()}
        kept = {s: place for s, place in places.items() if (place / "metrics.jsonl").is_file()}
        found[name] = {seed: read_run(place) for seed, place in kept.items()}
    return found


def write_curves(x: Ablation, logged: Logged) -> list[Path]:
    """One PNG per axis: the validation score of each arm, its mean over seeds, shaded from the lowest to the
    highest seed. No PNG without runs.
    """
    measure, written = x.spec.run_measure, []
    for axis, words in AXES.items() if any(logged.values()) else ():
        lines = {}
        for name, runs in logged.items():
            if runs:
                at, scores = curve(list(runs.values()), TAGS[measure], axis)
                lines[name] = at, scores.mean(0), scores.min(0), scores.max(0)
        written.append(_write(x, f"{measure}_by_{axis}", lines, words, UNITS[measure]))
    return written


def write_differences(x: Ablation, logged: Logged) -> list[Path]:
    """A PNG of the difference between each arm and its reference at the same seeds and tokens: the mean,
    shaded from the lowest to the highest seed.

    It shows the second half of the runs, where the curves themselves overlap. Arms that are evaluated at
    other tokens than their reference are left out.
    """
    measure, lines = x.spec.run_measure, {}
    for name, arm in x.arms.items():
        both = [logged[name], logged[arm.reference]]
        seeds = [seed for seed in both[0] if seed in both[1]]
        if name == arm.reference or not seeds:
            continue
        of_seeds = [[runs[seed] for seed in seeds] for runs in both]
        (at, mine), (there, theirs) = (curve(runs, TAGS[measure], "tokens") for runs in of_seeds)
        if np.array_equal(at, there):
            late = at >= at[-1] / 2
            apart = (mine - theirs)[:, late]
            lines[name] = at[late], apart.mean(0), apart.min(0), apart.max(0)
    if not lines:
        return []
    label = f"{UNITS[measure]} {_above_whom(x, lines)}"
    return [_write(x, f"{measure}_above_reference", lines, AXES["tokens"], label, zero=True)]


def write_segments(x: Ablation) -> list[Path]:
    """PNGs of the loss by segment, and of its difference from the reference at the same seeds: means over
    seeds, shaded over the 95 % interval. No PNG without scored runs.
    """
    numbers = range(len(shown_segments(x)))
    losses = {
        name: _with_band(numbers, [loss_of_segment(x, name, n) for n in numbers])
        for name in x.arms
        if evaluated(x, name)
    }
    apart = {
        name: _with_band(numbers, [above(x, name, reference, n) for n in numbers])
        for name, reference in beside_references(x)
    }
    words, unit, written = "segment of the document", UNITS["val_loss"], []
    if losses:
        written.append(_write(x, "loss_by_segment", losses, words, unit, whole=True))
    if apart:
        name, unit = "loss_by_segment_above_reference", f"{unit} {_above_whom(x, apart)}"
        written.append(_write(x, name, apart, words, unit, whole=True, zero=True))
    return written


def _with_band(x: Sequence[float], found: list[Summary]) -> tuple[Sequence[float], ...]:
    """(x, mean, lower and upper end of the 95 % interval)"""
    mean, spread = np.array([(one.mean, one.half_width) for one in found]).T
    return x, mean, mean - spread, mean + spread


def _above_whom(x: Ablation, shown: Iterable[str]) -> str:
    references = {x.arms[name].reference for name in shown}
    return f"above {references.pop() if len(references) == 1 else 'the reference'}"


Lines = dict[str, tuple[Sequence[float], ...]]  # arm -> x, middle, lowest, highest


def _write(
    x: Ablation, stem: str, lines: Lines, x_label: str, y_label: str, *, whole=False, zero=False
) -> Path:
    """Write a PNG.  whole: only integers on the x axis.  zero: draw a line at 0."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot would keep global state
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(9, 5), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for name, (at, middle, low, high) in lines.items():
            style = nth_style(list(x.arms).index(name))
            axes.plot(at, middle, **style, marker="o", ms=3, label=clip_name(name, 48))
            axes.fill_between(at, low, high, color=style["color"], alpha=0.2, lw=0)
        if zero:
            axes.axhline(0, color="0.4", lw=1)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_formatter(compact)
        axes.locator_params(axis="x", integer=whole)
        legend(axes)
        path = x.folder / f"{stem}.png"
        with atomic_write(path) as file:
            figure.savefig(file, format="png", dpi=DPI)
    return path


def curve(runs: list[LoggedRun], tag: str, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """(N,) places on the axis, averaged over the runs, and (runs, N) values of a tag. The runs of one arm are
    evaluated at the same steps.
    """
    series = [run.series(tag) for run in runs]
    known = "tokens" if axis == "tokens" else "minutes"
    x = np.mean([run.at(one.steps, known) for run, one in zip(runs, series)], axis=0)
    return (x if axis == "tokens" else 60 * x), np.stack([one.values for one in series])
