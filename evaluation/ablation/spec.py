"""The specification of an ablation: one YAML file, checked as a whole before anything runs.

    name: gpt2_vs_gptoss          of the report's folder (default: the file's name)
    question: Is ... better?      the report's first sentence
    config: ../toy.yaml           a recipe of train.py under the base, found from this file's folder
    base: {dataset: bundled}      settings of train.py that all arms share: any of its flags, of training
                                  or of the model; an arm whose model has no such field goes without it
    arms:                         name: settings over the base, {} for none; an arm whose model carries a
                                  state is trained by train_context.py, with its settings and defaults
      gptoss: {}
      gpt2: {model: gpt2}
    reference: gptoss             the arm that the others are matched to and compared with (default: the first)
    grid:                         every arm at every combination of these values
      num_hidden_layers: [2, 4]
      width:                      or of whole sets of settings under a name; the first value is the label
        - {hidden_size: 96, num_attention_heads: 3}
        - {hidden_size: 128, num_attention_heads: 4, gpt2: {intermediate_size: 512}}   # of one arm alone
    seeds: [1, 2, 3, 4, 5]        of the verdict; the first three, then the rest for the pairs in
                                  `headline` that three did not resolve
    budget: {tokens: 1000000}     of a run, without padding: with packing lanes the first documents tell
                                  how many a step has; or {minutes: 5}: the pace of each arm is measured
                                  once, the tokens that it makes of the minutes are kept in plan.json
    axis: active                  on which the arms are equal to within 2 %:
                                  none, total (parameters), active (per token, head included),
                                  active_non_embedding (without the head), flops (per token),
                                  time (training seconds: the budget is the reference's, the others get
                                  the tokens that they make in its time; with minutes, all get those)
    adjust: intermediate_size     the field that gives way in each arm but the reference: that,
                                  hidden_size or num_experts (default: intermediate_size)
    learning_rates: [2e-3, 4e-3, 8e-3]   searched for every arm alike, at least three; or
                                  {factors: [0.5, 1, 2]} of the arm's own lr; or none: no search
    search_seed: 0                of the search; none of `seeds`
    search_budget: {tokens: 250000}      of a run of the search (default: the budget; the best rate of a
                                  shorter run is higher than that of a longer one)
    headline: [[gptoss, gpt2]]    the pairs that get a verdict (default: each arm against the reference;
                                  [] for none); under a grid, at each of its points
    segments: 64                  documents' segments, tokens: every finished run is also evaluated document
                                  by document, in segments of this many, by evaluation.context
    measure: bits_per_byte        or val_loss, where all arms have one tokenizer; or, with segments,
                                  loss_after_first_segment (nats per token): the search then goes by
                                  val_loss, which is compared within an arm alone
    gap: [trunk, whole]           with segments: the share of the distance from one arm's loss after the
                                  first segment to another's that each further arm closes

Settings that this sets itself are no part of it: seed, max_iters, max_minutes, out_dir, use_tensorboard.
Unless they are given, a run has ten evaluations and keeps one checkpoint beside the best.

Imports no torch, so that --help is immediate.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from common.files import parse_json
from common.settings import cast
from training.command_line import read_yaml
from training.config import TrainConfig

Axis = Literal["none", "total", "active", "active_non_embedding", "flops", "time"]
Adjust = Literal["intermediate_size", "hidden_size", "num_experts"]
Measure = Literal["bits_per_byte", "val_loss", "loss_after_first_segment"]
# What a run is told by this program, or would make it something else than a new run.
OWN = ("seed", "max_iters", "max_minutes", "out_dir", "use_tensorboard",
       "resume", "init_from", "eval_only", "dry_run")  # fmt: skip
FIRST_SEEDS = 3  # before anybody asks which pairs need more


class Budget(NamedTuple):
    """Of one run; one of the two is None."""

    tokens: int | None
    minutes: float | None

    def as_value(self) -> dict[str, float]:
        return {"tokens": self.tokens} if self.tokens else {"minutes": self.minutes}

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens" if self.tokens else f"{self.minutes:g} minutes"


class Arm(NamedTuple):
    """One thing that is trained: an arm of the specification at a point of its grid."""

    name: str
    origin: str  # the arm's name in the specification
    point: str  # of the grid; "" where there is none
    shared: dict[str, Any]  # settings of all arms at this point
    own: dict[str, Any]  # settings over those


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A specification as it was read; names and types are checked, the settings of the arms are not."""

    name: str
    question: str
    base: dict[str, Any]  # config and base together
    arms: dict[str, dict[str, Any]]
    reference: str
    grid: dict[str, list[dict[str, Any]]]  # name: a set of settings for each value
    seeds: tuple[int, ...]
    budget: Budget
    axis: Axis
    adjust: Adjust | None  # None where the axis needs none
    learning_rates: tuple[float, ...]  # () for no search
    factors: bool  # whether those multiply each arm's own lr
    search_seed: int
    search_budget: Budget
    headline: tuple[tuple[str, str], ...] | None  # None: each arm against the reference
    measure: Measure
    segments: int | None
    gap: tuple[str, str] | None

    @property
    def run_measure(self) -> str:
        """What a run finds by itself as it goes: by this the search chooses, and of this the curves are."""
        return "val_loss" if self.measure == "loss_after_first_segment" else self.measure

    @property
    def sha256(self) -> str:
        """Of all that it says: two specifications of one hash ask for the same runs."""
        text = json.dumps(self.as_values(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def as_values(self) -> dict[str, Any]:
        """What a file would say; read_spec takes it back from plan.json."""
        rates = list(self.learning_rates)
        optional = {"adjust": self.adjust, "headline": self.headline, "grid": self.grid or None,
                    "segments": self.segments, "gap": self.gap}  # fmt: skip
        plain = [f.name for f in fields(self) if f.name not in ("factors", *optional)]
        return {
            **{name: getattr(self, name) for name in plain},
            **{name: value for name, value in optional.items() if value is not None},
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
        """{arm: the arm it is matched to}: the reference at its point; with one arm, the first point."""
        if len(self.arms) == 1:
            return {arm.name: arms[0].name for arm in arms}
        at = {arm.point: arm.name for arm in arms if arm.origin == self.reference}
        return {arm.name: at[arm.point] for arm in arms}

    def pairs(self, arms: list[Arm]) -> list[tuple[str, str]]:
        """The pairs that get a verdict, by the arms' full names."""
        if self.headline is None:
            references = self.reference_of(arms)
            return [(a.name, references[a.name]) for a in arms if a.name != references[a.name]]
        return [named for pair in self.headline for named in self._named("headline", pair, arms)]

    def gaps(self, arms: list[Arm]) -> list[tuple[str, str, list[str]]]:
        """(from, to, all others at that point of the grid, of which each closes a share)"""
        point = {arm.name: arm.point for arm in arms}
        pairs = self._named("gap", self.gap, arms) if self.gap else []
        return [
            (a, b, [n for n in point if n not in (a, b) and point[n] == point[a]]) for a, b in pairs
        ]

    def _named(self, key: str, pair: tuple[str, str], arms: list[Arm]) -> list[tuple[str, str]]:
        """A pair of full names as it is; of names in the specification, at each point of the grid."""
        names = {arm.name for arm in arms}
        if names.issuperset(pair):
            return [pair]
        for name in pair:
            if name not in self.arms:
                raise ValueError(f"{key} names the arm {name!r}, which is none{_near(name, names)}")
        at = {(arm.origin, arm.point): arm.name for arm in arms}
        points = dict.fromkeys(arm.point for arm in arms)
        return [(at[pair[0], point], at[pair[1], point]) for point in points]


def read_spec(path: str | Path, over_base: Mapping[str, Any] | None = None) -> Spec:
    """The specification in a YAML file, or in a plan.json; ValueError, one sentence, for anything wrong.

    over_base: settings that take the place of the base's.
    """
    path = Path(path)
    try:
        if path.suffix == ".json":
            plan = _mapping(
                "a plan.json", parse_json(path.read_bytes())
            )  # YAML reads 1e-05 as text
            values = _mapping("spec", plan.get("spec"))
        else:
            values = _read(path)
        return _spec(values, path, over_base or {})
    except ValueError as error:
        told = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: {told}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(str(path))
    except ValueError as error:
        raise ValueError(str(error).removeprefix("--config ")) from None


def _spec(values: dict[str, Any], path: Path, over_base: Mapping[str, Any]) -> Spec:
    known = [f.name for f in fields(Spec) if f.name != "factors"] + ["config"]
    for key in values:
        if key not in known:
            raise ValueError(f"key {key!r} is unknown{_near(key, known)}; --help lists the keys")
    for key in ("arms", "seeds", "budget", "learning_rates"):
        if key not in values:
            raise ValueError(f"{key} is missing; --help says what it holds")
    name = cast("name", values.get("name", path.stem), str)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"name must be letters, digits, _ . and -, as a folder's; got {name!r}")
    arms = {cast("an arm's name", key, str): value for key, value in _mapping("arms", values["arms"]).items()}  # fmt: skip
    if not arms:
        raise ValueError("arms must hold at least one arm, and it is empty; name one")
    for arm, settings in arms.items():
        if not re.fullmatch(r"[\w.+-]+", arm):
            raise ValueError(f"an arm's name must be letters, digits, _ . + and -; got {arm!r}")
        arms[arm] = _settings(f"arm {arm}", settings or {})
    if not values.get("grid", True):
        raise ValueError(
            "grid must hold at least one name with values, and it is empty; leave it out"
        )
    reference = cast("reference", values.get("reference", next(iter(arms))), str)
    if reference not in arms:
        raise ValueError(f"reference must be one of the arms, got {reference!r}{_near(reference, arms)}")  # fmt: skip
    base = _settings("base", values.get("base") or {})
    if "config" in values:  # a recipe has a length of its own, which gives way to the budget
        recipe = _read(path.parent / cast("config", values["config"], str))
        base = {key: value for key, value in recipe.items() if key not in OWN} | base
    base |= _settings("the command line", over_base)
    axis = cast("axis", values.get("axis", "none"), Axis)
    equalised = axis not in ("none", "time")
    if "adjust" in values and not equalised:
        raise ValueError(f"adjust is for an axis of the model's size, and axis is {axis}; leave it out")  # fmt: skip
    rates, factors = _learning_rates(values["learning_rates"])
    budget = _budget("budget", values["budget"])
    search = _budget("search_budget", values["search_budget"]) if "search_budget" in values else budget  # fmt: skip
    for had, most in zip(search, budget):
        if had is not None and most is not None and had > most:
            raise ValueError(f"search_budget must be at most the budget ({most:,}), got {had:,}; lower it")  # fmt: skip
    spec = Spec(
        name=name,
        question=cast("question", values.get("question", f"How do the arms of {name} compare?"), str),
        base=base,
        arms=arms,
        reference=reference,
        grid={cast("a name in grid", key, str): _points(key, value, arms)
              for key, value in _mapping("grid", values.get("grid") or {}).items()},
        seeds=_distinct("seeds", values["seeds"], int),
        budget=budget,
        axis=axis,
        adjust=cast("adjust", values.get("adjust", "intermediate_size"), Adjust) if equalised else None,
        learning_rates=rates,
        factors=factors,
        search_seed=cast("search_seed", values.get("search_seed", 0), int),
        search_budget=search,
        headline=_headline(values["headline"]) if "headline" in values else None,
        measure=cast("measure", values.get("measure", "bits_per_byte"), Measure),
        segments=cast("segments", values.get("segments"), int | None),
        gap=_pair("gap must be", values["gap"]) if "gap" in values else None,
    )  # fmt: skip
    if spec.segments is not None and spec.segments < 1:
        raise ValueError(f"segments must be at least 1, got {spec.segments}")
    for key, asked in (("gap", spec.gap), (f"measure {spec.measure}", spec.measure != spec.run_measure)):  # fmt: skip
        if asked and not spec.segments:
            raise ValueError(f"{key} is of the loss by segment and needs segments, as 64; set it")
    expanded = spec.expanded()
    spec.gaps(expanded)
    if len({arm.name for arm in expanded}) < len(expanded):
        raise ValueError(
            "grid has two points of one name, which is the first value of each; change one"
        )
    if spec.pairs(expanded) and len(spec.seeds) < 2:
        raise ValueError(
            f"a verdict needs at least two seeds, got {len(spec.seeds)} in seeds; add some (three tell "
            "more), or set headline: [] to have none"
        )
    for seed in (*spec.seeds, spec.search_seed):
        TrainConfig(seed=seed)  # has its limits
    if rates and spec.search_seed in spec.seeds:
        raise ValueError(
            f"search_seed must be none of the seeds of the verdict, got {spec.search_seed}: what was "
            "chosen on a seed looks too good there; take another"
        )
    return spec


# ------------------------------------------------------------------------------------ values


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must hold lines of `name: value`; got {value!r}")
    return dict(value)


def _settings(name: str, value: Any) -> dict[str, Any]:
    settings = _mapping(name, value)
    for key, setting in settings.items():
        if key in OWN:
            raise ValueError(f"{name} sets {key}, which is not its to set: the runs, their seeds and their length follow from the rest; leave it out")  # fmt: skip
        if not isinstance(key, str) or not re.fullmatch(r"(?!(help.*|config)$)\w+", key):
            raise ValueError(f"{name} sets {key!r}, which is no setting of train.py; leave it out")
        if not isinstance(setting, (str, int, float, list, type(None))):
            raise ValueError(f"{name}: {key} must be text, a number or a list; got {setting!r}")
    return settings


def _points(name: str, value: Any, arms: dict[str, Any]) -> list[dict[str, Any]]:
    """Sets of settings, in which a mapping is of the arm of that name alone."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"grid: {name} must be a list of at least one value; got {value!r}")
    points = []
    for point in value:
        point = dict(point) if isinstance(point, Mapping) else {name: point}
        of_arms = {k: v for k, v in point.items() if isinstance(v, Mapping) and k in arms}
        _settings(f"grid: {name}", {k: v for k, v in point.items() if k not in of_arms})
        for arm, settings in of_arms.items():
            _settings(f"grid: {name}: {arm}", settings)
        points.append(point)
    return points


def _label(settings: dict[str, Any]) -> str:
    return str(next(iter(settings.values()), "none"))


def _budget(name: str, value: Any) -> Budget:
    held = value if isinstance(value, dict) else {}
    if held.keys() not in ({"tokens"}, {"minutes"}):
        raise ValueError(f"{name} must be {{tokens: N}} or {{minutes: M}}; got {value!r}")
    tokens = cast(f"{name}: tokens", held.get("tokens"), int | None)
    minutes = cast(f"{name}: minutes", held.get("minutes"), float | None)
    if not (tokens or minutes or 0) > 0:
        raise ValueError(f"{name} must be above 0; got {value!r}")
    return Budget(tokens, minutes)


def _distinct(name: str, value: Any, kind: type) -> tuple[Any, ...]:
    values = cast(name, value, tuple[kind, ...])
    if not values or len(set(values)) < len(values) or min(values) < 0:
        raise ValueError(f"{name} must hold different numbers of at least 0; got {value!r}")
    return values


def _learning_rates(value: Any) -> tuple[tuple[float, ...], bool]:
    """The rates in rising order, and whether they are factors."""
    if value is None or value == "none":
        return (), False
    factors = isinstance(value, Mapping)
    if factors and value.keys() != {"factors"}:
        raise ValueError(f"learning_rates must be a list, or {{factors: [...]}}; got {value!r}")
    rates = _distinct("learning_rates", value["factors"] if factors else value, float)
    if len(rates) < 3 or min(rates) <= 0:
        raise ValueError(
            f"learning_rates must be at least three above 0, got {value!r}: with two the best is always "
            "at the edge; or none to search for none"
        )
    return tuple(sorted(rates)), factors


def _headline(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list):
        raise ValueError(f"headline must be a list of pairs of arms; got {value!r}")
    return tuple(_pair("headline must hold pairs of", pair) for pair in value)


def _pair(rule: str, value: Any) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 2 or value[0] == value[1]:
        raise ValueError(f"{rule} two different arms; got {value!r}")
    return cast(rule.split()[0], value[0], str), cast(rule.split()[0], value[1], str)


def _near(name: Any, known: Any) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
