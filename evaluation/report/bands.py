"""Reference bands: the range of the curves of earlier runs of a shipped recipe with several seeds.

A band file holds, for a few tags, min, mean, max and standard deviation over seeds at each number of tokens,
and the settings that a run must share to be compared with it.
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
DEVIATIONS, LEAST_SHARE = 3.0, 0.02  # at least 2 % of the mean: by chance three seeds may lie too close
FINAL = ("loss", "bits_per_byte", "validation_tokens", "tokens")  # closing figures of each run in a band file
WIDTH = f"mean +- {DEVIATIONS:g} sd, at least {LEAST_SHARE:.0%}"

# Settings that may differ between a run and its band: the seed, settings of display and saving, and
# settings of the machine. Data is compared by name.
DATA = ("dataset", "val_dataset")
FREE = RESUMABLE_CHANGES | OF_THIS_CALL | RESOLVED_BY_THE_RUN | {"seed", "compile", "eval_only"}
FREE |= {"model_size", "recipe"}  # these name settings that are compared one by one
FREE -= {*DATA}
# {setting: (other setting, value)}: the setting is used only if the other one has this value
READ_ONLY_WITH = {"bias_rate": ("balance", "bias")}


class Banded(NamedTuple):
    """A tag with a band."""

    words: str
    above: str  # a possible cause of a curve above the band, or what to do
    below: str  # the same for a curve below the band
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


@dataclass(frozen=True, eq=False)  # compared by identity
class Band:
    """The content of a band file."""

    name: str  # name of the file without .json
    seeds: int
    settings: dict[str, Any]  # in the form of settings() for a run
    curves: dict[str, tuple[np.ndarray, ...]]  # tag -> tokens, lower edge, mean, upper edge

    @property
    def legend(self) -> str:
        return f"reference {self.name}: {self.seeds} seeds, {WIDTH}"


def tag_series(run: LoggedRun, tag: str) -> Series | None:
    """The curve of a run in the form that its band has; None if the run has no such curve."""
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

    command: rewrites the command of a run for publication.  Raises ValueError for too few runs, an unfinished
    run, or runs that differ in more than the seed.
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
                f"a band needs runs with max_iters; {run.name} ended by max_minutes, after a number of steps "
                "that another run does not repeat"
            )
        if differing := differences(settings(run), settings(first)):
            raise ValueError(
                f"the runs of a band may differ only in seed and out_dir; {run.name} has {differing[0]} of "
                f"{first.name}"
            )
    if len(runs) < FEWEST_SEEDS or len(seeds) < len(runs):
        raise ValueError(
            f"a band needs at least {FEWEST_SEEDS} runs, each of another seed; got {len(runs)} runs of "
            f"{len(seeds)} seeds; train the recipe with more values of --seed"
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
    """Min, mean, max and standard deviation at about `points` steps that all runs recorded.

    The deviation is pooled over the tenth of the run before each point, because that of three numbers is
    often far too small by chance.
    """
    curves = [tag_series(run, tag) for run in runs]
    if None in curves:
        return None
    steps = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
    rows = np.stack([c.values[np.searchsorted(c.steps, steps)] for c in curves])  # (seeds, N)
    variance = smooth(Series(np.array(steps), rows.var(0, ddof=1)), runs[0].length / 10).values
    even, early = np.linspace(0, len(steps) - 1, points // 2), np.geomspace(1, len(steps), points // 2) - 1
    # The points are denser at the start, where curves bend.
    keep = np.unique(np.concatenate((even, early)).round().astype(int))
    tokens = [int(round(x)) for x in runs[0].at(steps, "tokens")[keep]]
    columns = {"min": rows.min(0), "mean": rows.mean(0), "max": rows.max(0), "sd": np.sqrt(variance)}
    rounded = {k: [float(f"{x:.5g}") for x in column[keep]] for k, column in columns.items()}
    return {"tokens": tokens} | rounded


# --------------------------------------------------------------------------------------------------
# matching


def settings(run: LoggedRun) -> dict[str, Any]:
    """The settings that must agree between a run and a band, with data by name."""
    train = {k: v for k, v in run.config.get("train", {}).items() if k not in FREE}
    for name in DATA:
        if name in train:
            train[name] = data_name(train[name])
    sha = run.config.get("tokenizer", {}).get("sha256")
    return {"train": train, "model": dict(run.config.get("model", {})), "tokenizer": sha}


def differences(mine: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """The settings that differ, each as "lr 0.004 (not 0.008)".

    A setting that one side does not have is newer than that side, and counts as its default or as off. A
    setting that neither side uses does not differ.
    """
    found = []
    for group in ("train", "model"):
        a, b = mine[group], reference[group]
        defaults = {f.name: f.default for f in fields(TrainConfig)} if group == "train" else {}
        if group == "model" and a.keys() != b.keys():
            from architecture.registry import MODELS, model_class  # imports torch

            name = (reference["train"] | mine["train"]).get("model", TrainConfig.model)
            defaults = (
                {f.name: f.default for f in fields(model_class(name).config_class)} if name in MODELS else {}
            )
        for name in a | b:
            ruler, value = READ_ONLY_WITH.get(name, (None, None))
            if ruler and value not in (a.get(ruler), b.get(ruler)):
                continue
            x, y = (side.get(name, defaults.get(name)) for side in (a, b))
            if x != y and (x or y):  # off: false, 0 or none
                found.append(f"{name} {as_text(x)} (not {as_text(y)})")
    named = any(line.startswith("tokenizer ") for line in found)
    if mine["tokenizer"] != reference["tokenizer"] and not named:
        found.append("tokenizer (another one under the same name)")
    return found


def known_bands(reference: str | None) -> list[Band]:
    """The bands for --reference: that of a file, no band, or all that are shipped."""
    if reference == "none":
        return []
    paths = sorted(FOLDER.glob("*.json")) if reference is None else [Path(reference)]
    return [read_band(path) for path in paths]


def read_band(path: Path) -> Band:
    """The band in a file; raises ValueError for any other file."""
    way_out = "give a file that python -m benchmarks.make_bands wrote"
    with reading(path, "a reference band", way_out=way_out):
        content = read_json(path)
        settings, tags = content["settings"], content["tags"]
        differences(settings, settings)  # raises for settings that cannot be compared
        curves = {tag: edges(tag, columns) for tag, columns in tags.items()}
        return Band(path.stem, len(content["runs"]), settings, curves)


def edges(tag: str, columns: dict[str, list[float]]) -> tuple[np.ndarray, ...]:
    """Tokens, lower edge, mean and upper edge."""
    tokens, mean, sd = as_numbers([columns[name] for name in ("tokens", "mean", "sd")], tag)
    if not (np.diff(tokens, prepend=0) > 0).all():  # needed to interpolate
        raise ValueError(f"the tokens of {tag} must rise from above 0")
    half = np.maximum(DEVIATIONS * sd, LEAST_SHARE * np.abs(mean))
    return tokens, mean - half, mean, mean + half


class Match(NamedTuple):
    """The band of a run, and a line about the choice."""

    band: Band | None
    line: str  # "" if the settings match


def match(run: LoggedRun, bands: list[Band], reference: str | None = None) -> Match:
    """The band with the settings of the run, or the one that --reference names, whatever its settings."""
    if reference == "none":
        return Match(None, "")
    if not bands:
        return Match(None, "no reference: there are no bands; python -m benchmarks.make_bands makes one")
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
        return Match(band, f"reference {band.name}, although {run.name} differs in {listed}")
    return Match(None, f"no reference for {run.name}: it differs from the nearest, {band.name}, in {listed}")


# --------------------------------------------------------------------------------------------------
# the verdict


class Verdict(NamedTuple):
    """The place of a run's newest value."""

    place: str  # normal, above or below
    line: str


def verdict(run: LoggedRun, band: Band, tag: str) -> Verdict | None:
    """The verdict on a run's newest value; None if the run or the band has no such curve, or if the run has
    not reached the first point of the band.
    """
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
    # A learning curve is nearly straight over the logarithm of tokens.
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
        line += "normal" + (f" (outside at {share:.0%} of the points so far)" if share > 0.1 else "")
    else:
        apart = values[-1] - high[-1] if place == "above" else low[-1] - values[-1]
        line += f"{place} the band by {apart:.2g}"
        if not differences(ours, theirs):  # otherwise the settings are the cause
            line += f": {getattr(kind, place)}"
    return Verdict(place, line)
