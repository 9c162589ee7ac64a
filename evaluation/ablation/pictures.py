"""Curves of the arms, and TensorBoard's page that compares them, from the runs' own records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_write, writing
from evaluation.ablation.matching import PlannedArm
from evaluation.ablation.results import Results
from evaluation.ablation.segments import (
    above,
    beside_references,
    evaluated,
    loss_of_segment,
    shown_segments,
)
from evaluation.ablation.spec import Spec
from evaluation.ablation.statistics import Summary
from evaluation.ablation.verdict import ended_well
from evaluation.report.look import clip_name, compact, legend, nth_style
from evaluation.report.page import DPI, STYLE
from evaluation.report.read import LoggedRun, read_run
from training.config import as_text
from training.monitor.metrics import require_tensorboard

TAGS = {"bits_per_byte": "val/bits_per_byte", "val_loss": "val/loss"}
UNITS = {"bits_per_byte": "bits per byte", "val_loss": "loss, nats per token"}
AXES = {"tokens": "training tokens", "seconds": "training seconds"}
COMPARED = ("val_loss", "bits_per_byte", "tokens", "seconds", "tokens_per_second", "peak_memory_gb")


Logged = dict[str, dict[int, LoggedRun]]  # by arm and seed


def logged_runs(arms: dict[str, PlannedArm], results: Results, folder: Path) -> Logged:
    """The runs that ended well, but for those of which somebody kept the results alone; every arm is there."""
    found: Logged = {}
    for name in arms:
        places = {seed: folder / line["folder"] for seed, line in ended_well(name, results).items()}
        found[name] = {
            seed: read_run(place)
            for seed, place in places.items()
            if (place / "metrics.jsonl").is_file()
        }
    return found


def write_curves(spec: Spec, logged: Logged, folder: Path) -> list[Path]:
    """PNGs, if any run is there: the validation score of each arm over each axis, its mean over the seeds, shaded
    from the lowest to the highest seed.
    """
    if not any(logged.values()):
        return []
    written = []
    for axis, words in AXES.items():
        lines = {}
        for name, runs in logged.items():
            if runs:
                x, scores = curve(list(runs.values()), TAGS[spec.run_measure], axis)
                lines[name] = x, scores.mean(0), scores.min(0), scores.max(0)
        written.append(folder / f"{spec.run_measure}_by_{axis}.png")
        _write(written[-1], list(logged), lines, words, UNITS[spec.run_measure])
    return written


def write_differences(
    spec: Spec, arms: dict[str, PlannedArm], logged: Logged, folder: Path
) -> list[Path]:
    """A PNG: how far each arm is from its reference at the same seeds and tokens, in the second half of the runs,
    where the curves themselves lie on one another; its mean, shaded from the lowest to the highest seed. Arms that
    are evaluated at other tokens than their reference have none.
    """
    lines = {}
    for name, arm in arms.items():
        mine, theirs = logged[name], logged[arm.reference]
        seeds = [seed for seed in mine if seed in theirs]
        if name == arm.reference or not seeds:
            continue
        (x, scores), (at, other) = (
            curve([runs[seed] for seed in seeds], TAGS[spec.run_measure], "tokens")
            for runs in (mine, theirs)
        )
        if np.array_equal(x, at):
            late = x >= x[-1] / 2
            apart = (scores - other)[:, late]
            lines[name] = x[late], apart.mean(0), apart.min(0), apart.max(0)
    if not lines:
        return []
    path = folder / f"{spec.run_measure}_above_reference.png"
    label = f"{UNITS[spec.run_measure]} {_above_whom(arms, lines)}"
    _write(path, list(arms), lines, AXES["tokens"], label, zero=True)
    return [path]


def write_segments(arms: dict[str, PlannedArm], results: Results, folder: Path) -> list[Path]:
    """PNGs, if any run was scored: loss by the number of a segment, its mean over the seeds, shaded over the
    95 % interval; and how far each arm is from its reference there, at the same seeds.
    """
    numbers = range(len(shown_segments(arms, results)))
    losses = {
        name: _with_band(numbers, [loss_of_segment(name, results, n) for n in numbers])
        for name in arms
        if evaluated(name, results)
    }
    apart = {
        name: _with_band(numbers, [above(name, reference, results, n) for n in numbers])
        for name, reference in beside_references(arms, results)
    }
    words, written = "segment of the document", []
    if losses:
        written.append(folder / "loss_by_segment.png")
        _write(written[-1], list(arms), losses, words, UNITS["val_loss"], whole=True)
    if apart:
        written.append(folder / "loss_by_segment_above_reference.png")
        label = f"{UNITS['val_loss']} {_above_whom(arms, apart)}"
        _write(written[-1], list(arms), apart, words, label, whole=True, zero=True)
    return written


def _with_band(x: Sequence[float], found: list[Summary]) -> tuple[Sequence[float], ...]:
    """(x, mean, its 95 % interval's lower and upper end)"""
    mean, spread = np.array([(one.mean, one.half_width) for one in found]).T
    return x, mean, mean - spread, mean + spread


def _above_whom(arms: dict[str, PlannedArm], shown: Iterable[str]) -> str:
    references = {arms[name].reference for name in shown}
    return f"above {references.pop() if len(references) == 1 else 'the reference'}"


def _write(
    path: Path,
    arms: list[str],
    lines: dict[str, tuple[Sequence[float], ...]],
    x_label: str,
    y_label: str,
    *,
    whole: bool = False,
    zero: bool = False,
) -> None:
    """lines: (x, middle, lowest, highest) of the arms that have one.  whole: there are no halves of an x.  zero: a
    line there.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: nothing global
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(9, 5), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for name, (x, middle, low, high) in lines.items():
            style = nth_style(arms.index(name))
            axes.plot(x, middle, **style, marker="o", ms=3, label=clip_name(name, 48))
            axes.fill_between(x, low, high, color=style["color"], alpha=0.2, lw=0)
        if zero:
            axes.axhline(0, color="0.4", lw=1)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_formatter(compact)
        axes.locator_params(axis="x", integer=whole)
        legend(axes)
        with atomic_write(path) as file:
            figure.savefig(file, format="png", dpi=DPI)


def curve(runs: list[LoggedRun], tag: str, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """(N,) places on the axis, the mean over the runs, and (runs, N) values of a tag; the runs of one arm
    are evaluated at the same steps.
    """
    series = [run.series(tag) for run in runs]
    known = "tokens" if axis == "tokens" else "minutes"
    x = np.mean([run.at(one.steps, known) for run, one in zip(runs, series)], axis=0)
    return (x if axis == "tokens" else 60 * x), np.stack([one.values for one in series])


def write_tensorboard(
    arms: dict[str, PlannedArm], results: Results, logged: Logged, folder: Path
) -> None:
    """A run for each arm and seed: its curves, and its closing figures on the HPARAMS page beside what
    tells the arms apart.
    """
    SummaryWriter = require_tensorboard()
    told = differing(arms)
    for name, arm in arms.items():
        ended = ended_well(name, results)
        for seed, run in logged[name].items():
            line = ended[seed]
            place = folder / "tensorboard" / f"{Path(line['folder']).parent.name}-seed-{seed}"
            if place.exists():
                continue  # of an earlier start: its curve would be there twice
            with writing(place), SummaryWriter(place) as writer:
                for tag in ("train/loss", *TAGS.values()):
                    for step, value in zip(*run.series(tag)):
                        writer.add_scalar(tag, value, int(step))
                settings = {"arm": name, "seed": seed, "lr": line["lr"], **told[name], **arm.axes}
                figures = {f"hparam/{tag}": line[tag] for tag in COMPARED}
                writer.add_hparams(settings, figures, run_name=".")


def differing(arms: dict[str, PlannedArm]) -> dict[str, dict[str, Any]]:
    """{arm: {setting: its value}} of the settings that are not the same in all arms; "" is the default."""
    names = dict.fromkeys(name for arm in arms.values() for name in arm.settings)

    def text(arm: PlannedArm, name: str) -> str:
        value = arm.settings.get(name, "")
        return as_text(tuple(value) if isinstance(value, list) else value)

    different = [name for name in names if len({text(arm, name) for arm in arms.values()}) > 1]
    return {
        arm.name: {name: text(arm, name) for name in different if name != "lr"}
        for arm in arms.values()
    }
