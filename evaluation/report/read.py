"""A run as its files tell it: config.json and metrics.jsonl, finished or not, of any age."""

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

LARGEST = 1e60  # of a number: far beyond float32, and pictures can be computed from it
WINDOW = 1 / 40  # of a run's length: what a smoothed curve is the mean of, looking back
AXES = {  # --x, and the words under every curve
    "tokens": "training tokens",
    "step": "optimizer steps",
    "minutes": "minutes of training",
}


class Series(NamedTuple):
    """One tag over the run."""

    steps: np.ndarray  # (N,) float64
    values: np.ndarray  # (N,) float64, NaN where a number was not finite


class LayerSeries(NamedTuple):
    """One tag over the run and over layers."""

    steps: np.ndarray  # (N,) float64
    values: dict[int, np.ndarray]  # layer: (N,) float64

    def reduced(self, how) -> Series:
        """how: np.mean, np.min, np.max or np.sum, over the layers."""
        return Series(self.steps, how(list(self.values.values()), axis=0))


@dataclass(frozen=True, eq=False)  # a run is itself alone; comparing records would take long
class LoggedRun:
    """What a run has written so far."""

    name: str
    path: Path  # of metrics.jsonl
    config: dict[str, Any]  # config.json; {} where there is none
    entries: dict[str, list[tuple[int, Any]]]  # by tag: step and value
    numbers: dict[str, Series]  # those of them that are numbers

    def parameters(self, kind: str) -> int | None:
        """kind: total or active; None without a config.json."""
        return self.config.get("parameters", {}).get(kind)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The fields of the trainer's and the model's config together."""
        return self.config.get("model", {}) | self.config.get("train", {})

    def setting(self, name: str) -> Any:
        return self.settings.get(name)

    def last(self, tag: str, default: Any = None) -> Any:
        """The newest value of a tag, of any type."""
        return self.entries[tag][-1][1] if tag in self.entries else default

    def last_step_of(self, tag: str) -> int:
        return self.entries[tag][-1][0]

    def last_finite(self, *tags: str) -> float:
        """The newest finite number of the first tag that has one; NaN where none has."""
        for tag in tags:
            values = self.series(tag).values
            if np.isfinite(values).any():
                return float(values[np.isfinite(values)][-1])
        return math.nan

    def series(self, tag: str) -> Series:
        """The numbers of a tag; empty where it does not occur."""
        return self.numbers.get(tag, Series(np.empty(0), np.empty(0)))

    def children(self, prefix: str) -> list[str]:
        """What follows `prefix/` in the tags that have numbers, in the order of their appearance."""
        start = prefix + "/"
        return [t[len(start) :] for t in self.numbers if t.startswith(start)]

    def numbered(self, prefix: str, kind: str) -> dict[int, Series]:
        """The tags prefix/kind_NUMBER by their number, those that have a finite value."""
        named = (re.fullmatch(rf"{kind}_(\d{{1,9}})", child) for child in self.children(prefix))
        found = {int(m[1]): self.series(f"{prefix}/{m[0]}") for m in named if m}
        return {n: found[n] for n in sorted(found) if np.isfinite(found[n].values).any()}

    def layers(self, prefix: str) -> LayerSeries | None:
        """prefix/layer_NN for every NN; None where there is none."""
        found = self.numbered(prefix, "layer")
        if not found:
            return None
        first, *_ = found.values()  # a record holds all layers
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
        """Steps the run is going to have, as far as is known now."""
        return float(max(self.setting("max_iters") or 0, self.last_step))

    def at(self, steps: np.ndarray, axis: str) -> np.ndarray:
        """Where steps lie on an axis of AXES; ValueError where the run does not tell."""
        if axis == "step":
            return np.asarray(steps, dtype=float)
        known, unit = self.series(_PLACES[axis]), 60 if axis == "minutes" else 1
        if not len(known.steps):
            raise ValueError(f"--x {axis} needs {_PLACES[axis]}, and {self.path} has none; add --x step")
        return _between(np.asarray(steps, dtype=float), known) / unit

    def smoothed(self, series: Series) -> Series:
        """The mean of the values in the last WINDOW of the run's length, without those not finite."""
        return smooth(series, self.length * WINDOW)


_PLACES = {"tokens": "data/tokens", "minutes": "perf/seconds"}  # the tags that tell where a step lies


def _between(steps: np.ndarray, known: Series) -> np.ndarray:
    """Straight lines from 0 through what is known, and on at the mean pace so far."""
    last_step, last = known.steps[-1], known.values[-1]
    inside = np.interp(steps, np.append(0.0, known.steps), np.append(0.0, known.values))
    return np.where(steps > last_step, last / max(last_step, 1.0) * steps, inside)


def smooth(series: Series, width: float) -> Series:
    """The mean over the last `width` steps at each step, without values that are not finite."""
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
    """The runs in the order given, each under a name that no other has."""
    runs = [read_run(path) for path in paths]
    for run in runs:
        if [other.path.resolve() for other in runs].count(run.path.resolve()) > 1:
            raise ValueError(f"{run.path} is named twice; name each run once")
    return [replace(run, name=name) for run, name in zip(runs, _distinct_names(runs))]


def read_run(path: str | Path) -> LoggedRun:
    """A run by its folder or its metrics.jsonl; ValueError, one sentence, for anything else."""
    from training.monitor.metrics import read_metrics

    path = Path(path)
    file = path / "metrics.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"a RUN must be a run's folder (with its metrics.jsonl) or a metrics.jsonl; {path} "
            f"{'has none' if path.is_dir() else 'is neither'}; name the --out_dir of a training run"
        )
    entries = defaultdict(list)
    with reading(file, "the metrics.jsonl of a run", way_out="delete what is damaged in it"):
        for record in read_metrics(file):
            for tag, value in record.items():
                entries[tag].append((record["step"], value))
        if len(entries) < 2:  # there is a step at most
            raise ValueError(f"{file} has no record yet; wait for the run's first line of progress")
        numbers = {  # the others are stories and tables
            tag: Series(*as_numbers(pairs, tag).T)
            for tag, pairs in entries.items()
            if any(isinstance(value, (int, float)) for _, value in pairs)
        }
    config, way_out = file.with_name("config.json"), "move it away: the report does without it"
    with reading(config, "the config.json of a run", way_out=way_out):
        facts = read_json(config) if config.exists() else {}
        run = LoggedRun(file.resolve().parent.name, file, facts, dict(entries), numbers)
        _ = run.length  # a wrong setting is told here, with the file's name
    return run


def as_numbers(values: Any, name: str) -> np.ndarray:
    """Numbers in lists of any depth, null as NaN; ValueError where they are none, or ragged."""
    rule = f"{name} must be numbers up to {LARGEST:g}"
    try:
        found = np.array(values, dtype=float)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(rule) from None
    if (np.abs(found[np.isfinite(found)]) > LARGEST).any():
        raise ValueError(rule)
    return found


def _distinct_names(runs: list[LoggedRun]) -> list[str]:
    """The folder's name, with as many folders above it as tell two runs apart."""
    for depth in range(1, 20):
        names = ["/".join(run.path.resolve().parent.parts[-depth:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    return [str(run.path) for run in runs]


# --------------------------------------------------------------------------------------------------
# words that the table and the page share


def data_name(value: str | None) -> str | None:
    """A file by its name, since the same data lies elsewhere on another machine; a name as it is."""
    if value is None:
        return None
    is_path = value[:1] in "/.~$" or re.search(r"\.(txt|jsonl|json|parquet|gz|zst)$", value)
    return Path(value).name if is_path else value


def validation_name(run: LoggedRun) -> str | None:
    """What a run was validated on; without data of its own, a part of the training data."""
    own = data_name(run.setting("val_dataset"))
    return own or (run.setting("dataset") and f"part of {data_name(run.setting('dataset'))}")


def short(number: float) -> str:
    """1234567 -> 1.23 M"""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def figure(number: float) -> str:
    """Three significant digits, zeros kept, so that columns of them align: 0.80 -> 0.800"""
    return f"{number:#.3g}".rstrip(".") if abs(number) < 1000 else f"{number:,.0f}"


def status(run: LoggedRun) -> str:
    if run.finished:
        return "finished"
    planned = run.setting("max_iters")
    if planned:
        return f"not finished: step {run.last_step:,} of {planned:,}"
    return f"not finished: step {run.last_step:,}"
