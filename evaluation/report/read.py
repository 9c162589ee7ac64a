"""A run, finished or not, read from its config.json and metrics.jsonl."""

from __future__ import annotations

import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.files import read_json, reading

LARGEST = 1e60  # the largest number that is accepted: far beyond float32, and safe to draw
WINDOW = 1 / 40  # a smoothed curve is the mean over the last 1/40 of the run
AXES = {  # --x, and the label of the x axis
    "tokens": "training tokens",
    "step": "optimizer steps",
    "minutes": "minutes of training",
}


class Series(NamedTuple):
    """The values of one tag over the run."""

    steps: np.ndarray  # (N,) float64
    values: np.ndarray  # (N,) float64, NaN for a number that was not finite


class LayerSeries(NamedTuple):
    """The values of one tag over the run, for each layer."""

    steps: np.ndarray  # (N,) float64
    values: dict[int, np.ndarray]  # layer: (N,) float64

    def reduced(self, how) -> Series:
        """One value per step.  how: np.mean, np.min, np.max or np.sum over the layers."""
        return Series(self.steps, how(list(self.values.values()), axis=0))


@dataclass(frozen=True, eq=False)  # compared by identity: comparing all records would take long
class LoggedRun:
    """What a run has written so far."""

    name: str
    path: Path  # the path of metrics.jsonl
    config: dict[str, Any]  # config.json; {} if there is none
    entries: dict[str, list[tuple[int, Any]]]  # tag -> [(step, value)]
    numbers: dict[str, Series]  # tag -> series, for the tags whose values are numbers

    def parameters(self, kind: str) -> int | None:
        """The number of parameters, None without a config.json.  kind: total or active."""
        return self.config.get("parameters", {}).get(kind)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The fields of the trainer's and of the model's config in one dictionary."""
        return self.config.get("model", {}) | self.config.get("train", {})

    def setting(self, name: str) -> Any:
        return self.settings.get(name)

    def last(self, tag: str, default: Any = None) -> Any:
        """The newest value of a tag; it may have any type."""
        return self.entries[tag][-1][1] if tag in self.entries else default

    def last_step_of(self, tag: str) -> int:
        return self.entries[tag][-1][0]

    def last_finite(self, *tags: str) -> float:
        """The newest finite number of the first of the tags that has one; NaN if none has."""
        for tag in tags:
            values = self.series(tag).values
            if np.isfinite(values).any():
                return float(values[np.isfinite(values)][-1])
        return math.nan

    def series(self, tag: str) -> Series:
        """The numbers of a tag; empty if the tag does not occur."""
        return self.numbers.get(tag, Series(np.empty(0), np.empty(0)))

    def children(self, prefix: str) -> list[str]:
        """What follows `prefix/` in the tags that have numbers, in order of appearance."""
        start = prefix + "/"
        return [t[len(start) :] for t in self.numbers if t.startswith(start)]

    def numbered(self, prefix: str, kind: str) -> dict[int, Series]:
        """{NUMBER: series} of the tags prefix/kind_NUMBER that have a finite value."""
        named = (re.fullmatch(rf"{kind}_(\d{{1,9}})", child) for child in self.children(prefix))
        found = {int(m[1]): self.series(f"{prefix}/{m[0]}") for m in named if m}
        return {n: found[n] for n in sorted(found) if np.isfinite(found[n].values).any()}

    def layers(self, prefix: str) -> LayerSeries | None:
        """The tags prefix/layer_NN together; None if there are none."""
        found = self.numbered(prefix, "layer")
        if not found:
            return None
        first, *_ = found.values()  # each record holds all layers
        return LayerSeries(first.steps, {n: series.values for n, series in found.items()})

    # ----------------------------------------------------------------------- how far

    @property
    def finished(self) -> bool:
        return "final/loss" in self.entries

    @functools.cached_property
    def last_step(self) -> int:
        return max(step for step, _ in self.entries["step"])

    @property
    def length(self) -> float:
        """The number of steps that the run will have, as far as is known."""
        return float(max(self.setting("max_iters") or 0, self.last_step))

    def at(self, steps: np.ndarray, axis: str) -> np.ndarray:
        """The places of steps on an axis of AXES; raises ValueError if the run did not record them."""
        if axis == "step":
            return np.asarray(steps, dtype=float)
        known, unit = self.series(_PLACES[axis]), 60 if axis == "minutes" else 1
        if not len(known.steps):
            raise ValueError(
                f"{self.path} has no {_PLACES[axis]}, which the x axis {axis} needs; add --x step"
            )
        return _between(np.asarray(steps, dtype=float), known) / unit

    def smoothed(self, series: Series) -> Series:
        """The mean of the finite values over the last WINDOW of the run's length."""
        return smooth(series, self.length * WINDOW)


_PLACES = {"tokens": "data/tokens", "minutes": "perf/seconds"}  # tags with the place of a step


def _between(steps: np.ndarray, known: Series) -> np.ndarray:
    """Interpolate from 0 through the known points, and extrapolate at the mean pace so far."""
    last_step, last = known.steps[-1], known.values[-1]
    inside = np.interp(steps, np.append(0.0, known.steps), np.append(0.0, known.values))
    return np.where(steps > last_step, last / max(last_step, 1.0) * steps, inside)


def smooth(series: Series, width: float) -> Series:
    """The mean of the finite values over the last `width` steps, at each step."""
    finite = np.isfinite(series.values)
    sums = np.append(0.0, np.cumsum(np.where(finite, series.values, 0.0)))
    counts = np.append(0, np.cumsum(finite))
    first = np.searchsorted(series.steps, series.steps - width, side="right")
    number = counts[1:] - counts[first]
    means = (sums[1:] - sums[first]) / np.maximum(number, 1)
    return Series(series.steps, np.where(number > 0, means, np.nan))


# --------------------------------------------------------------------------------------------------
# reading


def read_runs(paths: Iterable[str | Path]) -> list[LoggedRun]:
    """The runs in the given order, each with a name that no other run has."""
    runs = [read_run(path) for path in paths]
    for run in runs:
        if [other.path.resolve() for other in runs].count(run.path.resolve()) > 1:
            raise ValueError(f"{run.path} is given twice; give each run once")
    return [replace(run, name=name) for run, name in zip(runs, _distinct_names(runs))]


def read_run(path: str | Path) -> LoggedRun:
    """The run in a folder or a metrics.jsonl; raises ValueError for anything else."""
    from training.monitor.metrics import read_metrics

    path = Path(path)
    file = path / "metrics.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"RUN must be the folder of a training run or its metrics.jsonl; {path} "
            f"{'has no metrics.jsonl' if path.is_dir() else 'is neither'}; give the --out_dir of a training "
            "run"
        )
    entries = defaultdict(list)
    with reading(file, "the metrics.jsonl of a run", way_out="delete the damaged lines"):
        for record in read_metrics(file):
            for tag, value in record.items():
                entries[tag].append((record["step"], value))
        if len(entries) < 2:  # nothing but the step
            raise ValueError(f"{file} has no record yet; wait for the first progress line of the run")
        numbers = {  # the other tags hold stories and tables
            tag: Series(*as_numbers(pairs, tag).T)
            for tag, pairs in entries.items()
            if any(isinstance(value, (int, float)) for _, value in pairs)
        }
    config, way_out = file.with_name("config.json"), "move it away: the report works without it"
    with reading(config, "the config.json of a run", way_out=way_out):
        facts = read_json(config) if config.exists() else {}
        run = LoggedRun(file.resolve().parent.name, file, facts, dict(entries), numbers)
        _ = run.length  # raises here for a wrong setting, so that the message names the file
    return run


def as_numbers(values: Any, name: str) -> np.ndarray:
    """Nested lists of numbers as an array, null as NaN; raises ValueError for anything else."""
    rule = f"{name} must be numbers up to {LARGEST:g}"
    try:
        found = np.array(values, dtype=float)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(rule) from None
    if (np.abs(found[np.isfinite(found)]) > LARGEST).any():
        raise ValueError(rule)
    return found


def _distinct_names(runs: list[LoggedRun]) -> list[str]:
    """The name of each run's folder, with as many parent folders as make the names distinct."""
    for depth in range(1, 20):
        names = ["/".join(run.path.resolve().parent.parts[-depth:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    return [str(run.path) for run in runs]


# --------------------------------------------------------------------------------------------------
# words for the table and the page


def data_name(value: str | None) -> str | None:
    """The name of a dataset; of a path only the last part, because machines keep the same data in other
    folders.
    """
    if value is None:
        return None
    is_path = value[:1] in "/.~$" or re.search(r"\.(txt|jsonl|json|parquet|gz|zst)$", value)
    return Path(value).name if is_path else value


def validation_name(run: LoggedRun) -> str | None:
    """The validation data of a run: its own, or a part of the training data."""
    own = data_name(run.setting("val_dataset"))
    return own or (run.setting("dataset") and f"part of {data_name(run.setting('dataset'))}")


def short(number: float) -> str:
    """1234567 -> 1.23 M"""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def figure(number: float) -> str:
    """Three significant digits with trailing zeros, so that columns align: 0.80 -> 0.800"""
    return f"{number:#.3g}".rstrip(".") if abs(number) < 1000 else f"{number:,.0f}"


def status(run: LoggedRun) -> str:
    if run.finished:
        return "finished"
    planned = run.setting("max_iters")
    if planned:
        return f"not finished: step {run.last_step:,} of {planned:,}"
    return f"not finished: step {run.last_step:,}"
