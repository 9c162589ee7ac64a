"""The specification of an ablation: one YAML file, checked completely before anything runs. Its arms are the
models, each with its training settings, that are compared.

    name: gpt2_vs_gptoss          name of the report's folder (default: the file's name)
    question: Is ... better?      first sentence of the report
    config: ../toy.yaml           recipe of train.py under the base; the path is relative to this file
    base: {dataset: bundled}      settings shared by all arms: any flag of train.py, of training or of the
                                  model; arms whose model has no such setting ignore it
    arms:                         name: settings that replace those of the base, {} for none; an arm whose
                                  model carries a state is trained by train_context.py, with its defaults
      gptoss: {}
      gpt2: {model: gpt2}
    reference: gptoss             arm that the others are matched to and compared with (default: the first)
    grid:                         every arm at every combination of these values
      num_hidden_layers: [2, 4]
      width:                      or sets of settings under one name, labelled by their first value
        - {hidden_size: 96, num_attention_heads: 3}
        - {hidden_size: 128, num_attention_heads: 4, gpt2: {intermediate_size: 512}}   # only for arm gpt2
    seeds: [1, 2, 3, 4, 5]        seeds of the verdict: the first three for all arms, then the rest for the
                                  pairs in `headline` that three seeds did not resolve
    budget: {tokens: 1000000}     length of a run, padding not counted (packing lanes: estimated from the
                                  first documents); or {minutes: 5}: the pace of each arm is measured once
                                  and its number of tokens is kept in plan.json
    axis: active                  what is equal in all arms to within 2 %:
                                  none, total (parameters), active (parameters per token, with the head),
                                  active_non_embedding (without the head), flops (per token),
                                  time (training seconds: each arm gets the tokens that it trains on in the
                                  time the reference needs for its budget, or in the given minutes)
    adjust: intermediate_size     field that is changed to match an arm to the reference: this one,
                                  hidden_size or num_experts (default: intermediate_size)
    learning_rates: [2e-3, 4e-3, 8e-3]   rates tried for every arm, at least three; or
                                  {factors: [0.5, 1, 2]}, multiplied by the arm's lr; or none: no search
    search_seed: 0                seed of the search, not one of `seeds`
    search_budget: {tokens: 250000}      length of a run of the search (default: the budget); the best rate
                                  of a shorter run is too high for a longer one
    headline: [[gptoss, gpt2]]    pairs that get a verdict (default: each arm with the reference; [] for
                                  none); with a grid, at each of its points
    segments: 64                  length of a segment in tokens: evaluation.context also scores each
                                  finished run document by document, in segments of this length
    overlap: [8, 16]              with segments: evaluation.context also scores the arms without a state whose
    keep_keys: [16, 64]           block_size is one segment in windows that overlap by so many tokens, or keep so
                                  many keys; flags of evaluation.context, and no further training
    measure: bits_per_byte        score to compare; or val_loss, if all arms have one tokenizer; or, with
                                  segments, loss_after_first_segment (nats per token); the search then uses
                                  val_loss, which it compares only within an arm
    gap: [trunk, whole]           with segments: report the share of the distance between the losses of these
                                  two arms after the first segment that each other arm closes

ablate.py itself sets seed, max_iters, max_minutes, out_dir and use_tensorboard; a specification cannot.
By default a run has ten evaluations and keeps its newest checkpoint and the best one.
"""

# Import no torch here, so that --help is immediate.

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from common.files import read_json, reading
from common.script import did_you_mean, shown
from common.settings import cast
from training.command_line import read_yaml
from training.config import TrainConfig

Axis = Literal["none", "total", "active", "active_non_embedding", "flops", "time"]
Adjust = Literal["intermediate_size", "hidden_size", "num_experts"]
Measure = Literal["bits_per_byte", "val_loss", "loss_after_first_segment"]
# Settings that this program sets itself, and those that would not start a new run.
OWN = {"seed", "max_iters", "max_minutes", "out_dir", "use_tensorboard", "recipe"}
OWN |= {"resume", "resume_from", "extend", "init_from", "eval_only", "dry_run"}
FIRST_SEEDS = 3  # number of seeds before the choice of the pairs that need more


class Budget(NamedTuple):
    """The length of one run; one of the two is None."""

    tokens: int | None
    minutes: float | None

    def as_value(self) -> dict[str, float]:
        return {"tokens": self.tokens} if self.tokens else {"minutes": self.minutes}

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens" if self.tokens else f"{self.minutes:g} minutes"


class Arm(NamedTuple):
    """An arm of the specification at one point of its grid."""

    name: str
    origin: str  # the arm's name in the specification
    point: str  # the point of the grid; "" without a grid
    shared: dict[str, Any]  # settings of all arms at this point
    own: dict[str, Any]  # settings of this arm, which replace the shared ones


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A specification with checked names and types; the settings of the arms are not checked yet."""

    name: str
    question: str
    base: dict[str, Any]  # settings of config and base together
    arms: dict[str, dict[str, Any]]
    reference: str
    grid: dict[str, list[dict[str, Any]]]  # name: a set of settings for each value
    seeds: tuple[int, ...]
    budget: Budget
    axis: Axis
    adjust: Adjust | None  # None for axis none and time
    learning_rates: tuple[float, ...]  # () for no search
    factors: bool  # whether learning_rates are factors of each arm's lr
    search_seed: int
    search_budget: Budget
    headline: tuple[tuple[str, str], ...] | None  # None: each arm against the reference
    measure: Measure
    segments: int | None
    overlap: tuple[int, ...] | None  # None: not asked for
    keep_keys: tuple[int, ...] | None
    gap: tuple[str, str] | None

    @property
    def run_measure(self) -> str:
        """The score that a run logs: the search uses it, and the curves show it."""
        return "val_loss" if self.measure == "loss_after_first_segment" else self.measure

    @property
    def sha256(self) -> str:
        """Two specifications with the same hash ask for the same runs."""
        text = json.dumps(self.as_values(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def as_values(self) -> dict[str, Any]:
        """The specification as plan.json stores it and read_spec reads it."""
        rates = list(self.learning_rates)
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "factors"}
        given = {name: value for name, value in values.items() if value is not None and value != {}}
        return given | {
            "base": self.base,
            "budget": self.budget.as_value(),
            "search_budget": self.search_budget.as_value(),
            "learning_rates": {"factors": rates} if self.factors else rates or "none",
        }

    def expanded(self) -> list[Arm]:
        """Every arm at every point of the grid, in the order of the file."""
        sets = [[(name, settings) for settings in sets] for name, sets in self.grid.items()]
        arms = []
        for point in itertools.product(*sets):
            labels = [f"{name}={_label(settings)}" for name, settings in point]
            given = [(key, value) for _, settings in point for key, value in settings.items()]
            shared = self.base | {k: v for k, v in given if not isinstance(v, Mapping)}
            for name, own in self.arms.items():
                for key, value in given:
                    own = own | value if key == name and isinstance(value, Mapping) else own
                full = f"{name}@{','.join(labels)}" if labels else name
                arms.append(Arm(full, name, ",".join(labels), shared, own))
        return arms

    def reference_of(self, arms: list[Arm]) -> dict[str, str]:
        """{arm: arm that it is matched to}: the reference at the same point; with a single arm, its first
        point.
        """
        if len(self.arms) == 1:
            return {arm.name: arms[0].name for arm in arms}
        at = {arm.point: arm.name for arm in arms if arm.origin == self.reference}
        return {arm.name: at[arm.point] for arm in arms}

    def pairs(self, arms: list[Arm]) -> list[tuple[str, str]]:
        """The pairs that get a verdict, by the full names of the arms."""
        if self.headline is None:
            references = self.reference_of(arms)
            return [(a.name, references[a.name]) for a in arms if a.name != references[a.name]]
        return [named for pair in self.headline for named in self._named("headline", pair, arms)]

    def gaps(self, arms: list[Arm]) -> list[tuple[str, str, list[str]]]:
        """(from, to, the other arms at that point of the grid, each of which closes a share of the gap)"""
        point = {arm.name: arm.point for arm in arms}
        pairs = self._named("gap", self.gap, arms) if self.gap else []
        return [(a, b, [n for n in point if n not in (a, b) and point[n] == point[a]]) for a, b in pairs]

    def _named(self, key: str, pair: tuple[str, str], arms: list[Arm]) -> list[tuple[str, str]]:
        """A pair of full names as it is; a pair of names in the specification at each point of the grid."""
        names = {arm.name for arm in arms}
        if names.issuperset(pair):
            return [pair]
        for name in pair:
            if name not in self.arms:
                raise ValueError(
                    f"{key} names the arm {shown(name)}, which does not exist{_near(name, names)}"
                )
        at = {(arm.origin, arm.point): arm.name for arm in arms}
        points = dict.fromkeys(arm.point for arm in arms)
        return [(at[pair[0], point], at[pair[1], point]) for point in points]


def require(holds: Any, sentence: str) -> None:
    """Raise ValueError(sentence) unless `holds`."""
    if not holds:
        raise ValueError(sentence)


def read_spec(path: str | Path, over_base: Mapping[str, Any] | None = None) -> Spec:
    """The specification in a YAML file or a plan.json; raises ValueError for anything wrong in it.

    over_base: settings that replace those of the base.
    """
    path = Path(path)
    if path.suffix == ".json":  # a YAML reader would take 1e-05 for text
        with reading(path, "a plan.json", way_out="start from the specification"):
            values = dict(read_json(path)["spec"])
    else:
        values = read_yaml(path)
    try:
        return _spec(values, path, over_base or {})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _spec(values: dict[str, Any], path: Path, over_base: Mapping[str, Any]) -> Spec:
    _require_keys(values)
    name = _name("name", values.get("name", path.stem), r"\w[\w.-]*", "letters, digits, _ . and -")
    arms = _arms(values["arms"])
    axis = cast("axis", values.get("axis", "none"), Axis)
    rates, factors = _learning_rates(values["learning_rates"])
    spec = Spec(
        name=name,
        question=cast("question", values.get("question", f"How do the arms of {name} compare?"), str),
        base=_base(values, path.parent) | _settings("the command line", over_base),
        arms=arms,
        reference=cast("reference", values.get("reference", next(iter(arms))), str),
        grid=_grid(values["grid"], arms) if "grid" in values else {},
        seeds=_distinct("seeds", values["seeds"], int),
        budget=_budget("budget", values["budget"]),
        axis=axis,
        adjust=_adjust(values, axis),
        learning_rates=rates,
        factors=factors,
        search_seed=cast("search_seed", values.get("search_seed", 0), int),
        search_budget=_budget("search_budget", values.get("search_budget", values["budget"])),
        headline=_headline(values["headline"]) if "headline" in values else None,
        measure=cast("measure", values.get("measure", "bits_per_byte"), Measure),
        segments=cast("segments", values.get("segments"), int | None),
        overlap=_distinct("overlap", values["overlap"], int) if "overlap" in values else None,
        keep_keys=_distinct("keep_keys", values["keep_keys"], int) if "keep_keys" in values else None,
        gap=_pair("gap must be", values["gap"]) if "gap" in values else None,
    )
    _require_keys_that_agree(spec)
    _require_pairs_and_seeds(spec)
    return spec


# ------------------------------------------------------------------------------------ several keys


def _require_keys(values: dict[str, Any]) -> None:
    known = [f.name for f in fields(Spec) if f.name != "factors"] + ["config"]
    for key in values:
        if key not in known:
            raise ValueError(f"key {shown(key)} is unknown{_near(key, known)}; --help lists the keys")
    for key in ("arms", "seeds", "budget", "learning_rates"):
        require(key in values, f"{key} is missing; --help says what it holds")


def _require_keys_that_agree(spec: Spec) -> None:
    if spec.reference not in spec.arms:
        raise ValueError(
            f"reference must be one of the arms, got {shown(spec.reference)}{_near(spec.reference, spec.arms)}"
        )
    for had, most in zip(spec.search_budget, spec.budget):
        if had is not None and most is not None and had > most:
            raise ValueError(f"search_budget must be at most the budget ({most:,}), got {had:,}; lower it")
    given = spec.segments is not None
    require(not given or spec.segments > 0, f"segments must be at least 1, got {spec.segments}")
    needing = {"gap": spec.gap, "overlap": spec.overlap, "keep_keys": spec.keep_keys}
    needing |= {f"measure {spec.measure}": spec.measure != spec.run_measure}
    for key, asked in needing.items():
        require(given or not asked, f"{key} needs the loss by segment; set segments, such as 64")
    for key, most in {"overlap": (spec.segments or 0) - 1, "keep_keys": spec.segments}.items():
        for number in getattr(spec, key) or ():
            require(1 <= number <= most, f"{key} must be from 1 to {most} tokens, for segments of {spec.segments}, "
                    f"got {number}; change it")  # fmt: skip


def _require_pairs_and_seeds(spec: Spec) -> None:
    arms = spec.expanded()
    require(
        len(arms) == len({arm.name for arm in arms}),
        "grid has two points with the same name, which is their first value; change one",
    )
    pairs, _ = spec.pairs(arms), spec.gaps(arms)  # these raise for unknown arms
    require(
        len(spec.seeds) > 1 or not pairs,
        f"a verdict needs at least two seeds, got {len(spec.seeds)} in seeds; add some (three or more are "
        "better), or set headline: [] for no verdict",
    )
    for seed in (*spec.seeds, spec.search_seed):
        TrainConfig(seed=seed)  # raises for a seed outside of the limits
    require(
        spec.search_seed not in spec.seeds or not spec.learning_rates,
        f"search_seed must not be one of seeds, got {spec.search_seed}: a learning rate looks too good on "
        "the seed that it was chosen on; choose another",
    )


# ------------------------------------------------------------------------------------ arms, settings


def _name(what: str, value: Any, pattern: str, rule: str) -> str:
    name = cast(what, value, str)
    require(re.fullmatch(pattern, name), f"{what} must be {rule}; got {shown(name)}")
    return name


def _arms(value: Any) -> dict[str, dict[str, Any]]:
    arms = {}
    for key, settings in _mapping("arms", value).items():
        rule = "letters, digits, _ . + and -, and not begin with a dot"
        arm = _name("an arm's name", key, r"(?!\.)[\w.+-]+", rule)
        arms[arm] = _settings(f"arm {arm}", settings or {})
    require(arms, "arms must hold at least one arm, got none; add one")
    return arms


def _base(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings shared by all arms: those of the base, then those of the recipe."""
    base = _settings("base", values.get("base") or {})
    if "config" not in values:
        return base
    recipe = read_yaml(folder / cast("config", values["config"], str))
    # the length in a recipe gives way to the budget
    shared = {key: value for key, value in recipe.items() if key not in OWN}
    return _settings("config", shared) | base


def _grid(value: Any, arms: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
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
        _settings(f"grid: {name}", {k: v for k, v in point.items() if k not in of_arms})
        for arm, settings in of_arms.items():
            _settings(f"grid: {name}: {arm}", settings)
    return points


def _label(settings: dict[str, Any]) -> str:
    return str(next(iter(settings.values()), "none"))


def _settings(name: str, value: Any) -> dict[str, Any]:
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


def _budget(name: str, value: Any) -> Budget:
    held = value if isinstance(value, dict) else {}
    require(
        held.keys() in ({"tokens"}, {"minutes"}),
        f"{name} must be {{tokens: N}} or {{minutes: M}}; got {shown(value)}",
    )
    tokens = cast(f"{name}: tokens", held.get("tokens"), int | None)
    minutes = cast(f"{name}: minutes", held.get("minutes"), float | None)
    require((tokens or minutes or 0) > 0, f"{name} must be above 0; got {shown(value)}")
    return Budget(tokens, minutes)


def _adjust(values: dict[str, Any], axis: Axis) -> Adjust | None:
    if axis not in ("none", "time"):
        return cast("adjust", values.get("adjust", "intermediate_size"), Adjust)
    require(
        "adjust" not in values,
        f"adjust needs an axis that measures the model's size, got axis {axis}; leave adjust out",
    )
    return None


def _distinct(name: str, value: Any, kind: type) -> tuple[Any, ...]:
    values = cast(name, value, tuple[kind, ...])
    require(
        values and len(set(values)) == len(values) and min(values) >= 0,
        f"{name} must hold different numbers of at least 0; got {shown(value)}",
    )
    return values


def _learning_rates(value: Any) -> tuple[tuple[float, ...], bool]:
    """The rates in rising order, and whether they are factors of each arm's lr."""
    if value is None or value == "none":
        return (), False
    factors = isinstance(value, Mapping)
    require(
        not factors or value.keys() == {"factors"},
        f"learning_rates must be a list, or {{factors: [...]}}; got {shown(value)}",
    )
    rates = _distinct("learning_rates", value["factors"] if factors else value, float)
    require(
        len(rates) > 2 and min(rates) > 0,
        f"learning_rates must be at least three rates above 0, got {shown(value)}: of two, the best is "
        "always at the edge; add some, or set none for no search",
    )
    return tuple(sorted(rates)), factors


def _headline(value: Any) -> tuple[tuple[str, str], ...]:
    require(isinstance(value, list), f"headline must be a list of pairs of arms; got {shown(value)}")
    return tuple(_pair("headline must hold pairs of", pair) for pair in value)


def _pair(rule: str, value: Any) -> tuple[str, str]:
    require(
        isinstance(value, list) and len(value) == 2 and value[0] != value[1],
        f"{rule} two different arms; got {shown(value)}",
    )
    first, second = (cast(rule.split()[0], name, str) for name in value)
    return first, second


def _near(name: Any, known: Any) -> str:
    return did_you_mean(name, known) or f"; there are {', '.join(known)}"
