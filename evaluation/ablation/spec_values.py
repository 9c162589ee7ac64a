"""The values of a specification: each key's own rule, checked without the other keys."""

# Import no torch here, so that --help is immediate.

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from common.script import did_you_mean, shown
from common.settings import cast
from training.command_line import read_yaml

Axis = Literal["none", "total", "active", "active_non_embedding", "flops", "time"]
Adjust = Literal["intermediate_size", "hidden_size", "num_experts"]
Measure = Literal["bits_per_byte", "val_loss", "loss_after_first_segment"]
# Settings that this program sets itself, and those that would not start a new run.
OWN = {"seed", "max_iters", "max_minutes", "out_dir", "use_tensorboard", "recipe", "hold_out_test"}
OWN |= {"resume", "resume_from", "extend", "init_from", "eval_only", "dry_run"}


class Budget(NamedTuple):
    """The length of one run; one of the two is None."""

    tokens: int | None
    minutes: float | None

    def as_value(self) -> dict[str, float]:
        return {"tokens": self.tokens} if self.tokens else {"minutes": self.minutes}

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens" if self.tokens else f"{self.minutes:g} minutes"


def require(holds: Any, sentence: str) -> None:
    """Raise ValueError(sentence) unless `holds`."""
    if not holds:
        raise ValueError(sentence)


# ------------------------------------------------------------------------------------ arms, settings


def plain_name(what: str, value: Any, pattern: str, rule: str) -> str:
    name = cast(what, value, str)
    require(re.fullmatch(pattern, name), f"{what} must be {rule}; got {shown(name)}")
    return name


def arms_of(value: Any) -> dict[str, dict[str, Any]]:
    arms = {}
    for key, settings in _mapping("arms", value).items():
        rule = "letters, digits, _ . + and -, and not begin with a dot"
        arm = plain_name("an arm's name", key, r"(?!\.)[\w.+-]+", rule)
        arms[arm] = settings_of(f"arm {arm}", settings or {})
    require(arms, "arms must hold at least one arm, got none; add one")
    return arms


def base_of(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings shared by all arms: those of the base, then those of the recipe."""
    base = settings_of("base", values.get("base") or {})
    if "config" not in values:
        return base
    recipe = read_yaml(folder / cast("config", values["config"], str))
    # the length in a recipe gives way to the budget
    shared = {key: value for key, value in recipe.items() if key not in OWN}
    return settings_of("config", shared) | base


def grid_of(value: Any, arms: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    require(value, "grid must hold at least one name with values, got none; leave it out")
    return {
        cast("a name in grid", key, str): _points(key, points, arms)
        for key, points in _mapping("grid", value).items()
    }


def _points(name: str, value: Any, arms: dict[str, Any]) -> list[dict[str, Any]]:
    """Sets of settings; a mapping in a set holds settings for the arm of that name only."""
    require(
        isinstance(value, list) and value,
        f"grid: {name} must be a list of at least one value; got {shown(value)}",
    )
    points = [dict(point) if isinstance(point, Mapping) else {name: point} for point in value]
    for point in points:
        of_arms = {k: v for k, v in point.items() if isinstance(v, Mapping) and k in arms}
        settings_of(f"grid: {name}", {k: v for k, v in point.items() if k not in of_arms})
        for arm, settings in of_arms.items():
            settings_of(f"grid: {name}: {arm}", settings)
    return points


def label(settings: dict[str, Any]) -> str:
    return str(next(iter(settings.values()), "none"))


def settings_of(name: str, value: Any) -> dict[str, Any]:
    settings = _mapping(name, value)
    for key, setting in settings.items():
        require(
            key not in OWN,
            f"{name} must not set {key}: the runs, their seeds and their length follow from the other keys; "
            "leave it out",
        )
        require(
            isinstance(key, str) and re.fullmatch(r"(?!(help.*|config)$)\w+", key),
            f"{name} sets {shown(key)}, which is not a setting of train.py; leave it out",
        )
        items = setting if isinstance(setting, list) else [setting]
        require(
            all(isinstance(item, str | int | float | None) for item in items),
            f"{name}: {key} must be text, a number or a list of these; got {shown(setting)}",
        )
    return settings


# ------------------------------------------------------------------------------------ values


def _mapping(name: str, value: Any) -> dict[str, Any]:
    require(isinstance(value, Mapping), f"{name} must hold lines of `name: value`; got {shown(value)}")
    return dict(value)


def budget_of(name: str, value: Any) -> Budget:
    held = value if isinstance(value, dict) else {}
    require(
        held.keys() in ({"tokens"}, {"minutes"}),
        f"{name} must be {{tokens: N}} or {{minutes: M}}; got {shown(value)}",
    )
    tokens = cast(f"{name}: tokens", held.get("tokens"), int | None)
    minutes = cast(f"{name}: minutes", held.get("minutes"), float | None)
    require((tokens or minutes or 0) > 0, f"{name} must be above 0; got {shown(value)}")
    return Budget(tokens, minutes)


def adjust_of(values: dict[str, Any], contracts: tuple[Axis, ...]) -> Adjust | None:
    if not {"none", "time"}.issuperset(contracts):
        return cast("adjust", values.get("adjust", "intermediate_size"), Adjust)
    require(
        "adjust" not in values,
        f"adjust needs a contract that measures the model's size, got [{', '.join(contracts)}]; leave adjust out",
    )
    return None


def distinct(name: str, value: Any, kind: type) -> tuple[Any, ...]:
    values = cast(name, value, tuple[kind, ...])
    require(
        values and len(set(values)) == len(values) and min(values) >= 0,
        f"{name} must hold different numbers of at least 0; got {shown(value)}",
    )
    return values


def rates_of(value: Any) -> tuple[tuple[float, ...], bool]:
    """The rates in rising order, and whether they are factors of each arm's lr."""
    if value is None or value == "none":
        return (), False
    factors = isinstance(value, Mapping)
    require(
        not factors or value.keys() == {"factors"},
        f"learning_rates must be a list, or {{factors: [...]}}; got {shown(value)}",
    )
    rates = distinct("learning_rates", value["factors"] if factors else value, float)
    require(
        len(rates) > 2 and min(rates) > 0,
        f"learning_rates must be at least three rates above 0, got {shown(value)}: of two, the best is "
        "always at the edge; add some, or set none for no search",
    )
    return tuple(sorted(rates)), factors


def pairs_of(key: str, value: Any) -> tuple[tuple[str, str], ...]:
    require(isinstance(value, list), f"{key} must be a list of pairs of arms; got {shown(value)}")
    return tuple(pair_of(f"{key} must hold pairs of", pair) for pair in value)


def pair_of(rule: str, value: Any) -> tuple[str, str]:
    require(
        isinstance(value, list) and len(value) == 2 and value[0] != value[1],
        f"{rule} two different arms; got {shown(value)}",
    )
    first, second = (cast(rule.split()[0], name, str) for name in value)
    return first, second


def near(name: Any, known: Any) -> str:
    return did_you_mean(name, known) or f"; there are {', '.join(known)}"
