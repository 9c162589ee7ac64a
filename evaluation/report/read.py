"""A run as its files tell it: config.json and metrics.jsonl, finished or not, of any age."""

from __future__ import annotations

import functools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_origin

import numpy as np

from common.files import parse_json
from common.settings import cast
from training.config import TrainConfig

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
    """One tag over the run and over layers; NaN where a layer has no record at a step."""

    steps: np.ndarray  # (N,) float64
    values: dict[int, np.ndarray]  # layer: (N,) float64

    def reduced(self, how) -> Series:
        """how: np.mean, np.min, np.max, np.sum, over the layers that have a value."""
        rows = np.stack(list(self.values.values()))
        there = ~np.isnan(rows).all(0)
        filled = np.ma.masked_invalid(rows[:, there])
        return Series(self.steps[there], np.asarray(how(filled, axis=0), dtype=float))


@dataclass(frozen=True, eq=False)  # a run is itself alone; comparing records would take long
class LoggedRun:
    """What a run has written so far."""

    name: str
    path: Path  # of metrics.jsonl
    config: dict[str, Any]  # config.json; {} where there is none
    records: list[dict[str, Any]]

    @functools.cached_property
    def _entries(self) -> dict[str, list[tuple[int, Any]]]:
        entries = defaultdict(list)
        for record in self.records:
            for tag, value in record.items():
                entries[tag].append((record["step"], value))
        return dict(entries)

    def parameters(self, kind: str) -> int | None:
        """kind: total or active; None in a run that did not record it."""
        final = {"total": "final/parameters", "active": "final/active_parameters"}[kind]
        return self.config.get("parameters", {}).get(kind, self.last(final))

    def setting(self, name: str, default: Any = None) -> Any:
        """A field of the trainer's or the model's config."""
        both = self.config.get("model", {}) | self.config.get("train", {})
        return both.get(name, default)

    def last(self, tag: str, default: Any = None) -> Any:
        """The newest value of a tag, of any type."""
        return self._entries[tag][-1][1] if tag in self._entries else default

    def last_number(self, tag: str) -> float:
        """The newest value of a tag that has numbers; NaN where there is none."""
        return float(self.last(tag, math.nan))

    def last_finite(self, tag: str) -> float:
        """The newest number of a tag; NaN where there is none."""
        found = self.series(tag).values
        found = found[np.isfinite(found)]
        return float(found[-1]) if len(found) else math.nan

    def series(self, tag: str) -> Series:
        """The numbers of a tag; empty where it does not occur."""
        pairs = [(s, v) for s, v in self._entries.get(tag, []) if isinstance(v, (int, float))]
        steps, values = np.array(pairs, dtype=float).reshape(-1, 2).T
        return Series(steps, values)

    def children(self, prefix: str) -> list[str]:
        """What follows `prefix/` in the tags that have numbers, in the order of their appearance."""
        start = prefix + "/"
        return [t[len(start) :] for t in self._entries if t.startswith(start)]

    def layers(self, prefix: str) -> LayerSeries | None:
        """prefix/layer_NN for every NN; None where there is none."""
        numbers = [
            int(m[1]) for c in self.children(prefix) if (m := re.fullmatch(r"layer_(\d{1,4})", c))
        ]
        found = {n: self.series(f"{prefix}/layer_{n:02d}") for n in sorted(numbers)}
        found = {n: s for n, s in found.items() if np.isfinite(s.values).any()}
        if not found:
            return None
        steps = np.unique(np.concatenate([s.steps for s in found.values()]))
        values = {n: np.full(len(steps), np.nan) for n in found}
        for n, s in found.items():
            values[n][np.searchsorted(steps, s.steps)] = s.values
        return LayerSeries(steps, values)

    # ----------------------------------------------------------------------- how far

    @property
    def finished(self) -> bool:
        return "final/loss" in self._entries

    @functools.cached_property
    def last_step(self) -> int:
        return max(record["step"] for record in self.records)

    @functools.cached_property
    def tokens_per_step(self) -> float | None:
        """As the run counted them, else by its settings; None where neither is known."""
        counted = self.series("data/tokens")
        if len(counted.steps) and counted.steps[-1] > 0 and counted.values[-1] > 0:
            return counted.values[-1] / counted.steps[-1]
        tokens, steps = self.last_number("final/tokens"), self.last_number("final/steps")
        if tokens > 0 and steps > 0:
            return tokens / steps
        sizes = [self.setting(name) for name in ("batch_size", "block_size", "grad_accum")]
        return None if None in sizes else float(math.prod(sizes))

    @property
    def length(self) -> float:
        """Steps the run is going to have, as far as is known now."""
        return float(max(self.setting("max_iters") or 0, self.last_step))

    def at(self, steps: np.ndarray, axis: str) -> np.ndarray:
        """Where steps lie on an axis of AXES; ValueError where the run does not tell."""
        if axis == "step":
            return np.asarray(steps, dtype=float)
        known = self._tokens() if axis == "tokens" else self._minutes()
        if known is None:
            raise ValueError(
                f"--x {axis} needs {_NEEDS[axis]}, and {self.path} has none; take --x step"
            )
        return _between(np.asarray(steps, dtype=float), known)

    def _tokens(self) -> Series | None:
        counted = self.series("data/tokens")
        if len(counted.steps):
            return counted
        per_step = self.tokens_per_step
        return per_step and Series(np.array([1.0]), np.array([per_step]))

    def _minutes(self) -> Series | None:
        seconds = self.series("perf/seconds")
        if not len(seconds.steps):  # a rate is that since the record before
            rate = self.series("perf/tokens_per_second")
            tokens = self._tokens()
            if tokens is None or not len(rate.steps):
                return None
            passed = np.diff(_between(rate.steps, tokens), prepend=0.0)
            seconds = Series(rate.steps, np.cumsum(passed / np.maximum(rate.values, 1e-9)))
        return Series(seconds.steps, seconds.values / 60)

    def smoothed(self, series: Series) -> Series:
        """The mean of the values in the last WINDOW of the run's length, without those not finite."""
        return smooth(series, self.length * WINDOW)


_NEEDS = {
    "tokens": "data/tokens in the records, or the settings in config.json",
    "minutes": "perf/seconds or perf/tokens_per_second in the records",
}


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
    try:
        records = read_metrics(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    if not any(len(record) > 1 for record in records):
        raise ValueError(f"{file} has no record yet; wait for the first line of the run's progress")
    records = checked_records(records, file)
    return LoggedRun(file.resolve().parent.name, file, _read_config(file.parent), records)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        return {}
    try:
        config = parse_json(path.read_bytes())
    except (OSError, ValueError):
        config = None
    return checked_config(config, path)


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


TEXTS = "samples/"  # tags of this beginning are stories; those of TABLES have a shape; the rest are numbers


LARGEST = 1e60  # far beyond the squares of what float32 holds; pictures are computed from it


GROUPS = {"train": dict, "model": dict, "parameters": dict, "tokenizer": dict, "starts": list}


COUNTS = (
    "num_hidden_layers",
    "num_experts",
    "experts_per_token",
)  # of the model, that words are made of


def checked_records(records: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; ValueError for a value that its tag cannot have."""
    for record in records:
        for tag, value in record.items():
            rule, holds = _rule(tag)
            if not holds(value):
                raise ValueError(
                    f"{path}: {tag} at step {record['step']} must be {rule}; delete that line, or its {tag}"
                )
    return records


def checked_config(config: Any, path: Path) -> dict[str, Any]:
    """What config.json says of a run, its settings as the types of their fields; ValueError where it
    says what no run has.
    """

    def require(holds: Any, what: str) -> None:
        if not holds:
            raise ValueError(f"{path} must be what train.py wrote, and {what}; move it away")

    require(isinstance(config, dict), "is no JSON object")
    for name, kind in GROUPS.items():
        require(isinstance(config.get(name, kind()), kind), f"its {name} is no {kind.__name__}")
    train, model = config.get("train", {}), config.get("model", {})
    hints = {f.name: f.type for f in fields(TrainConfig)}
    require(model.keys().isdisjoint(hints), "its model has settings of training")
    for name, hint in hints.items():  # other code had other choices
        hints[name] = str if get_origin(hint) is Literal else hint
    try:
        train = {k: cast(k, v, hints[k]) if k in hints else v for k, v in train.items()}
    except ValueError as error:
        require(False, f"its {error}")
    for name in ("batch_size", "block_size", "grad_accum", "max_iters"):
        require(train.get(name) is None or train[name] >= 1, f"its {name} is below 1")
    for name in COUNTS:
        require(_is_count(model.get(name, 1), 1), f"its {name} is no number of them")
    for name, value in config.get("parameters", {}).items():
        require(_is_count(value), f"its {name} parameters are no number of them")
    for name in ("name", "sha256"):
        require(
            isinstance(config.get("tokenizer", {}).get(name, ""), str), f"its {name} is no text"
        )
    for start in config.get("starts", []):
        require(isinstance(start, dict), "its starts are no list of starts")
        require(isinstance(start.get("command", ""), str), "the command of a start is no text")
    return config | ({"train": train} if "train" in config else {})


def _rule(tag: str) -> tuple[str, Callable[[Any], bool]]:
    if tag.startswith(TEXTS):
        return "text", lambda value: isinstance(value, str)
    return TABLES.get(tag, ("a number, or null", _is_number))


def _is_number(value: Any) -> bool:
    """NaN is what stood there as null; infinity is none of what a run writes, and no harm."""
    return type(value) in (int, float) and not LARGEST < abs(value) < math.inf


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**63


def _is_table(value: Any, *shape: int | None) -> bool:
    """Lists in lists of these lengths, at the bottom numbers or null; None: any length above 0, the same
    for all beside each other.
    """
    if not shape:
        return value is None or _is_number(value)
    if not isinstance(value, list) or not value or len(value) != (shape[0] or len(value)):
        return False
    rest = shape[1:]
    if rest and rest[0] is None and isinstance(value[0], list):
        rest = (len(value[0]), *rest[1:])
    return all(_is_table(part, *rest) for part in value)


def _is_kinds_table(value: Any) -> bool:
    """As training/monitor/instruments.py: kinds_table makes it."""
    if not isinstance(value, dict) or not _is_count(value.get("experts"), 1):
        return False
    kinds, layers = value.get("kinds"), value.get("layers")
    return (
        isinstance(kinds, list)
        and all(isinstance(kind, str) for kind in kinds)
        and isinstance(layers, list)
        and all(_is_count(layer) for layer in layers)
        and _is_table(value.get("tokens"), len(kinds))
        and _is_table(value.get("share"), len(layers), len(kinds), value["experts"])
    )


TABLES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "step": ("a whole number", _is_count),
    "moe/load": ("a row of numbers for each layer", lambda value: _is_table(value, None, None)),
    "moe/token_kinds": ("a table of shares by layer, kind and expert", _is_kinds_table),
    "attention/sink_mass": ("a table of shares by layer", lambda value: isinstance(value, dict)),
}
