"""Reference bands: where the curves of a shipped recipe have run before, over several seeds.

A band file holds, for a few tags, min, mean, max and standard deviation over seeds at each number of
tokens, and every setting that a run must share to be held against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.files import read_json, reading
from common.settings import as_text
from evaluation.report.read import LoggedRun, Series, as_numbers, data_name, figure, short, smooth, status
from training.config import OF_THIS_CALL, RESOLVED_BY_THE_RUN, RESUMABLE_CHANGES, TrainConfig

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "reference"
FEWEST_SEEDS = 3
DEVIATIONS, LEAST_SHARE = 3.0, 0.02  # of the mean: three seeds alone make too narrow a band
FINAL = ("loss", "bits_per_byte", "validation_tokens", "tokens")  # of each run, kept in the band file
WIDTH = f"mean +- {DEVIATIONS:g} sd, at least {LEAST_SHARE:.0%}"

# Settings that a run may have otherwise and still be held against a band: the seed, what is only shown or
# saved, and what only says which machine computes the same thing. Data is compared by name.
DATA = ("dataset", "val_dataset")
FREE = RESUMABLE_CHANGES | OF_THIS_CALL | RESOLVED_BY_THE_RUN | {"seed", "compile", "eval_only"}
FREE |= {"model_size", "recipe"}  # names for settings that are compared themselves
FREE -= {*DATA}
# a setting that is read only where another has this value
READ_ONLY_WITH = {"bias_rate": ("balance", "bias")}


class Banded(NamedTuple):
    """A tag, or a mean over layers, that has a band."""

    words: str
    above: str  # what a curve above its band may come from
    below: str
    of_layers: bool = False
    smoothed: bool = False


LOSS, LEAK = "look at lr, batch_size and the data", "is validation text in the training data?"
TAGS = {
    "val/bits_per_byte": Banded("validation bits per byte", LOSS, LEAK),
    "val/loss": Banded("validation loss", LOSS, LEAK),
    "train/loss": Banded("train loss, smoothed", LOSS, "does the data repeat?", smoothed=True),
    "optim/grad_norm": Banded(
        "gradient norm, smoothed",
        "look at lr, grad_clip and the initial weights",
        "look at lr and the initial weights",
        smoothed=True,
    ),
    "moe/max_violation": Banded(
        "max violation of a batch, mean over layers, smoothed",
        "look at balance and balance_coef",
        "more even than usual; look at balance_coef",
        of_layers=True,
        smoothed=True,
    ),
    "moe/entropy": Banded(
        "router entropy, mean over layers",
        "the routers decide less than usual: look at balance_coef and lr",
        "the routers decide more than usual: look at lr and z_loss_coef",
        of_layers=True,
    ),
}


@dataclass(frozen=True, eq=False)  # read once, and then itself alone
class Band:
    """One band file."""

    name: str  # of the file, without .json
    seeds: int
    settings: dict[str, Any]  # as settings() tells those of a run
    curves: dict[str, tuple[np.ndarray, ...]]  # by tag: tokens, lower edge, mean, upper edge

    @property
    def legend(self) -> str:
        return f"reference {self.name}: {self.seeds} seeds, {WIDTH}"


def tag_series(run: LoggedRun, tag: str) -> Series | None:
    """The curve of a run that a band of TAGS is of; None where the run has none."""
    kind = TAGS[tag]
    if kind.of_layers:
        layers = run.layers(tag)
        series = layers and layers.reduced(np.mean)
    else:
        series = run.numbers.get(tag)
    return run.smoothed(series) if series and kind.smoothed else series


# --------------------------------------------------------------------------------------------------
# making


def make_band(runs: list[LoggedRun], recipe: str, command: Callable[[str], str]) -> dict[str, Any]:
    """The content of a band file.

    command: rewrites the command of a run for publication.
    Raises ValueError for too few runs, an unfinished one, or runs that differ in more than the seed.
    """
    first, seeds = runs[0], {run.setting("seed") for run in runs}
    for run in runs:
        if not run.finished or not run.config:
            raise ValueError(
                f"a band needs the folders of finished runs; {run.name} is {status(run)}"
                + ("" if run.config else " and has no config.json")
            )
        if run.setting("max_iters") is None:
            raise ValueError(
                f"a band needs runs with max_iters; {run.name} ended by max_minutes, after a number of steps that "
                "another run does not repeat"
            )
        if differing := differences(settings(run), settings(first)):
            raise ValueError(
                f"the runs of a band may differ only in seed and out_dir; {run.name} has {differing[0]} of "
                f"{first.name}"
            )
    if len(runs) < FEWEST_SEEDS or len(seeds) < len(runs):
        raise ValueError(
            f"a band needs at least {FEWEST_SEEDS} runs, each of another seed; got {len(runs)} runs of {len(seeds)} "
            "seeds; train the recipe with more values of --seed"
        )
    starts = [run.config["starts"][-1] for run in runs]
    return {
        "recipe": recipe,
        "settings": settings(first),
        "runs": [
            {
                "command": command(start["command"]),
                **{name: start[name] for name in ("commit", "torch")},
                **{name: run.setting(name) for name in ("seed", "device", "dtype")},
                "final": {name: run.last(f"final/{name}") for name in FINAL},
            }
            for run, start in zip(runs, starts)
        ],
        "tags": {tag: found for tag in TAGS if (found := _over_seeds(runs, tag))},
    }


def _over_seeds(runs: list[LoggedRun], tag: str, points: int = 80) -> dict[str, list] | None:
    """min, mean, max and standard deviation at about `points` steps that every run recorded.

    The deviation is pooled over a tenth of the run before each point: that of three numbers alone is
    often far too small by chance.
    """
    curves = [tag_series(run, tag) for run in runs]
    if None in curves:
        return None
    steps = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
    rows = np.stack([c.values[np.searchsorted(c.steps, steps)] for c in curves])  # (seeds, N)
    variance = smooth(Series(np.array(steps), rows.var(0, ddof=1)), runs[0].length / 10).values
    even, early = np.linspace(0, len(steps) - 1, points // 2), np.geomspace(1, len(steps), points // 2) - 1
    keep = np.unique(np.concatenate((even, early)).round().astype(int))  # more of them where curves bend
    tokens = [int(round(x)) for x in runs[0].at(steps, "tokens")[keep]]
    columns = {"min": rows.min(0), "mean": rows.mean(0), "max": rows.max(0), "sd": np.sqrt(variance)}
    rounded = {k: [float(f"{x:.5g}") for x in column[keep]] for k, column in columns.items()}
    return {"tokens": tokens} | rounded


# --------------------------------------------------------------------------------------------------
# matching


def settings(run: LoggedRun) -> dict[str, Any]:
    """What must agree between a run and a band; data by its name."""
    train = {k: v for k, v in run.config.get("train", {}).items() if k not in FREE}
    for name in DATA:
        if name in train:
            train[name] = data_name(train[name])
    sha = run.config.get("tokenizer", {}).get("sha256")
    return {"train": train, "model": dict(run.config.get("model", {})), "tokenizer": sha}


def differences(mine: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """Each setting that differs, as "lr 0.004 (not 0.008)".

    A setting that one side does not know is newer than it, and off or at its default when it was made. One that
    neither side reads does not differ.
    """
    defaults = {f.name: f.default for f in fields(TrainConfig)}
    found = []
    for group in ("train", "model"):
        a, b = mine[group], reference[group]
        for name in a | b:
            ruler, value = READ_ONLY_WITH.get(name, (None, None))
            if ruler and value not in (a.get(ruler), b.get(ruler)):
                continue
            default = defaults.get(name) if group == "train" else None
            x, y = a.get(name, default), b.get(name, default)
            if x != y and (x or y):  # off is false, 0 or none
                found.append(f"{name} {as_text(x)} (not {as_text(y)})")
    named = any(line.startswith("tokenizer ") for line in found)
    if mine["tokenizer"] != reference["tokenizer"] and not named:
        found.append("another tokenizer under the same name")
    return found


def known_bands(reference: str | None) -> list[Band]:
    """Those that --reference asks for: of a file, none, or all that are shipped."""
    if reference == "none":
        return []
    paths = sorted(FOLDER.glob("*.json")) if reference is None else [Path(reference)]
    return [read_band(path) for path in paths]


def read_band(path: Path) -> Band:
    """A band file; ValueError, one sentence, for another file."""
    way_out = "name a file that python -m benchmarks.make_bands wrote"
    with reading(path, "a reference band", way_out=way_out):
        content = read_json(path)
        settings, tags = content["settings"], content["tags"]
        differences(settings, settings)  # raises for what it cannot compare
        curves = {tag: edges(tag, columns) for tag, columns in tags.items()}
        return Band(path.stem, len(content["runs"]), settings, curves)


def edges(tag: str, columns: dict[str, list[float]]) -> tuple[np.ndarray, ...]:
    """Tokens, lower edge, mean and upper edge."""
    tokens, mean, sd = as_numbers([columns[name] for name in ("tokens", "mean", "sd")], tag)
    if not (np.diff(tokens, prepend=0) > 0).all():  # or nothing could be told between two of them
        raise ValueError(f"the tokens of {tag} must rise from above 0")
    half = np.maximum(DEVIATIONS * sd, LEAST_SHARE * np.abs(mean))
    return tokens, mean - half, mean, mean + half


class Match(NamedTuple):
    """The band of a run, and what is to be said about the choice."""

    band: Band | None
    line: str  # "" where the band simply matches


def match(run: LoggedRun, bands: list[Band], reference: str | None = None) -> Match:
    """The band whose settings are the run's; the one that --reference names, whatever they are."""
    if reference == "none":
        return Match(None, "")
    if not bands:
        return Match(None, "no reference: there is no band yet; benchmarks.make_bands makes one")
    if not run.config:
        told = f"no reference for {run.name}: it has no config.json"
        return Match(bands[0], "") if reference else Match(None, told)
    apart = [differences(settings(run), band.settings) for band in bands]
    differing = min(apart, key=len)
    band = bands[apart.index(differing)]
    if not differing:
        return Match(band, "")
    listed = ", ".join(differing[:3])
    if len(differing) > 3:
        listed += f" and {len(differing) - 3} more"
    if reference:
        return Match(band, f"reference {band.name} as told, though {run.name} differs in {listed}")
    return Match(None, f"no reference for {run.name}: the nearest, {band.name}, differs in {listed}")


# --------------------------------------------------------------------------------------------------
# the verdict


class Verdict(NamedTuple):
    """Where a run's newest value lies."""

    place: str  # normal, above, below
    line: str


def verdict(run: LoggedRun, band: Band, tag: str) -> Verdict | None:
    """None where either has no such curve, or the run is not as far as the band's first point."""
    curve, mine = band.curves.get(tag), tag_series(run, tag)
    ours, theirs = settings(run), band.settings
    other_tokens = ours["tokenizer"] != theirs["tokenizer"] and tag.endswith("/loss")
    if curve is None or mine is None or other_tokens:
        return None
    tokens, low, mean, high = curve
    where = run.at(mine.steps, "tokens")
    there = np.isfinite(mine.values) & (where >= 0.999 * tokens[0]) & (where <= 1.001 * tokens[-1])
    if not there.any():
        return None
    where, values = where[there], mine.values[there]
    # between two points of the band: straight on logarithmic tokens, as a learning curve nearly is
    low, high = (np.interp(np.log(where), np.log(tokens), edge) for edge in (low, high))
    outside = (values < low) | (values > high)
    at, kind = where[-1], TAGS[tag]
    place = "above" if values[-1] > high[-1] else "below" if values[-1] < low[-1] else "normal"
    line = (
        f"{kind.words} at {short(at)} tokens: {figure(values[-1])}, "
        f"reference {figure(low[-1])} to {figure(high[-1])} over {band.seeds} seeds: "
    )
    if place == "normal":
        share = outside.mean()
        line += "normal" + (f" (outside for {share:.0%} of the way here)" if share > 0.1 else "")
    else:
        apart = values[-1] - high[-1] if place == "above" else low[-1] - values[-1]
        line += f"{place} the band by {apart:.2g}"
        if not differences(ours, theirs):  # else the settings are the reason
            line += f": {getattr(kind, place)}"
    return Verdict(place, line)
