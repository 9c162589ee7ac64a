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
    contracts: [active, total]    what is equal in all arms to within 2 % (default: [none]):
                                  none, total (parameters), active (parameters per token, with the head),
                                  active_non_embedding (without the head), flops (per token),
                                  time (training seconds: each arm gets the tokens that it trains on in the
                                  time the reference needs for its budget, or in the given minutes).
                                  All arms are compared under the first. Under each other one the reference is
                                  compared with one arm: the other arm that has the best mean validation score
                                  under the first. That arm is matched anew as ARM@CONTRACT, with a search of
                                  its own; where it meets a contract already, its runs are used again
    adjust: intermediate_size     field that is changed to match an arm to the reference: this one,
                                  hidden_size or num_experts (default: intermediate_size)
    worth: [0.25, 0.5]            the reference is also trained at these shares of its budget, so that the
                                  report can say with how much compute it reaches the other arm's score
    learning_rates: [2e-3, 4e-3, 8e-3]   rates tried for every arm, at least three; or
                                  {factors: [0.5, 1, 2]}, multiplied by the arm's lr; or none: no search
    search_seeds: [0, 6]          at least two seeds of the search, none of them in `seeds` (default: the two
                                  lowest). The verdict uses the lowest point of a parabola through the scores
                                  at the best rate and its two neighbours
    search_budget: {tokens: 250000}      length of a run of the search (default: the budget); the best rate
                                  of a shorter run is too high for a longer one
    headline: [[gptoss, gpt2]]    pairs that get a verdict (default: each arm with the reference; [] for
                                  none); with a grid, at each of its points
    explored: [[gptoss, gpt2]]    pairs that were chosen after runs were seen, and are judged as such
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

All runs leave the test set out, a third of the validation stories by the hash of their text. After its run
each checkpoint of the verdict is scored on it (evaluation.test_set), and the verdict is on that score.

ablate.py itself sets seed, max_iters, max_minutes, out_dir, use_tensorboard and hold_out_test; a specification
cannot.
By default a run has ten evaluations and keeps its newest checkpoint and the best one.
"""

# Import no torch here, so that --help is immediate.

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from common.files import read_json, reading
from common.script import shown
from common.settings import cast
from evaluation.ablation.spec_values import (
    Adjust,
    Axis,
    Budget,
    Measure,
    adjust_of,
    arms_of,
    base_of,
    budget_of,
    distinct,
    grid_of,
    label,
    near,
    pair_of,
    pairs_of,
    plain_name,
    rates_of,
    require,
    settings_of,
)
from training.command_line import read_yaml
from training.config import TrainConfig

RENAMED = {"axis": "contracts, a list such as [active]", "search_seed": "search_seeds, a list such as [0, 6]"}
FIRST_SEEDS = 3  # number of seeds before the choice of the pairs that need more


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
    contracts: tuple[Axis, ...]
    adjust: Adjust | None  # None if no contract is about the model's size
    worth: tuple[float, ...]  # shares of the reference's budget, in rising order
    learning_rates: tuple[float, ...]  # () for no search
    factors: bool  # whether learning_rates are factors of each arm's lr
    search_seeds: tuple[int, ...]
    search_budget: Budget
    headline: tuple[tuple[str, str], ...] | None  # None: each arm against the reference
    explored: tuple[tuple[str, str], ...]  # pairs chosen after runs were seen
    measure: Measure
    segments: int | None
    overlap: tuple[int, ...] | None  # None: not asked for
    keep_keys: tuple[int, ...] | None
    gap: tuple[str, str] | None

    @property
    def axis(self) -> Axis:
        """The first contract, under which all arms are compared."""
        return self.contracts[0]

    @property
    def run_measure(self) -> str:
        """The score that a run logs: the search uses it, and the curves show it."""
        return "val_loss" if self.measure == "loss_after_first_segment" else self.measure

    @property
    def sha256(self) -> str:
        """Two specifications with the same hash ask for the same runs; explored pairs ask for none."""
        values = {key: value for key, value in self.as_values().items() if key != "explored"}
        text = json.dumps(values, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def as_values(self) -> dict[str, Any]:
        """The specification as plan.json stores it and read_spec reads it."""
        rates = list(self.learning_rates)
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "factors"}
        empty = (None, {}, ())
        given = {name: value for name, value in values.items() if value not in empty}
        given |= {"headline": []} if self.headline == () else {}  # no pairs, in place of the default
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
            labels = [f"{name}={label(settings)}" for name, settings in point]
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

    def explored_pairs(self, arms: list[Arm]) -> list[tuple[str, str]]:
        """The pairs that were chosen after runs were seen, by the full names of the arms."""
        return [named for pair in self.explored for named in self._named("explored", pair, arms)]

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
                    f"{key} names the arm {shown(name)}, which does not exist{near(name, names)}"
                )
        at = {(arm.origin, arm.point): arm.name for arm in arms}
        points = dict.fromkeys(arm.point for arm in arms)
        return [(at[pair[0], point], at[pair[1], point]) for point in points]


def read_spec(path: str | Path, over_base: Mapping[str, Any] | None = None) -> Spec:
    """The specification in a YAML file or a plan.json; raises ValueError for anything wrong in it.

    over_base: settings that replace those of the base.
    """
    path = Path(path)
    if path.suffix == ".json":  # a YAML reader would take 1e-05 for text
        with reading(path, "a plan.json", way_out="start from the specification"):
            values = _of_this_version(read_json(path)["spec"])
    else:
        values = read_yaml(path)
    try:
        return _spec(values, path, over_base or {})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _of_this_version(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a plan.json under the keys of today: older ones have one axis and one seed of the search."""
    renamed = {"axis": "contracts", "search_seed": "search_seeds"}
    return {renamed.get(key, key): [value] if key in renamed else value for key, value in values.items()}


def _spec(values: dict[str, Any], path: Path, over_base: Mapping[str, Any]) -> Spec:
    _require_keys(values)
    name = plain_name("name", values.get("name", path.stem), r"\w[\w.-]*", "letters, digits, _ . and -")
    arms = arms_of(values["arms"])
    contracts = cast("contracts", values.get("contracts", ["none"]), tuple[Axis, ...])
    seeds = distinct("seeds", values["seeds"], int)
    free = [seed for seed in range(len(seeds) + 2) if seed not in seeds][:2]
    rates, factors = rates_of(values["learning_rates"])
    spec = Spec(
        name=name,
        question=cast("question", values.get("question", f"How do the arms of {name} compare?"), str),
        base=base_of(values, path.parent) | settings_of("the command line", over_base),
        arms=arms,
        reference=cast("reference", values.get("reference", next(iter(arms))), str),
        grid=grid_of(values["grid"], arms) if "grid" in values else {},
        seeds=seeds,
        budget=budget_of("budget", values["budget"]),
        contracts=contracts,
        adjust=adjust_of(values, contracts),
        worth=tuple(sorted(distinct("worth", values["worth"], float))) if "worth" in values else (),
        learning_rates=rates,
        factors=factors,
        search_seeds=_search_seeds(values, free, old=path.suffix == ".json"),
        search_budget=budget_of("search_budget", values.get("search_budget", values["budget"])),
        headline=pairs_of("headline", values["headline"]) if "headline" in values else None,
        explored=pairs_of("explored", values.get("explored", [])),
        measure=cast("measure", values.get("measure", "bits_per_byte"), Measure),
        segments=cast("segments", values.get("segments"), int | None),
        overlap=distinct("overlap", values["overlap"], int) if "overlap" in values else None,
        keep_keys=distinct("keep_keys", values["keep_keys"], int) if "keep_keys" in values else None,
        gap=pair_of("gap must be", values["gap"]) if "gap" in values else None,
    )
    _require_keys_that_agree(spec)
    _require_pairs_and_seeds(spec)
    return spec


def _search_seeds(values: dict[str, Any], default: list[int], old: bool) -> tuple[int, ...]:
    """old: a plan.json, because those of earlier versions have one seed."""
    found = distinct("search_seeds", values.get("search_seeds", default), int)
    require(
        len(found) > 1 or old,
        f"search_seeds must be at least two seeds, got {shown(values.get('search_seeds'))}: with one, nothing says "
        "how sure the best learning rate is; add one",
    )
    return found


# ------------------------------------------------------------------------------------ several keys


def _require_keys(values: dict[str, Any]) -> None:
    known = [f.name for f in fields(Spec) if f.name != "factors"] + ["config"]
    for key in values:
        if key in RENAMED:
            raise ValueError(f"key {key} is now {RENAMED[key]}; change it")
        if key not in known:
            raise ValueError(f"key {shown(key)} is unknown{near(key, known)}; --help lists the keys")
    for key in ("arms", "seeds", "budget", "learning_rates"):
        require(key in values, f"{key} is missing; --help says what it holds")


def _require_keys_that_agree(spec: Spec) -> None:
    if spec.reference not in spec.arms:
        raise ValueError(
            f"reference must be one of the arms, got {shown(spec.reference)}{near(spec.reference, spec.arms)}"
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
    _require_contracts(spec)


def _require_contracts(spec: Spec) -> None:
    names = ", ".join(spec.contracts)
    require(
        spec.contracts and len(set(spec.contracts)) == len(spec.contracts),
        f"contracts must hold at least one axis, each once, got [{names}]; the first is for all arms",
    )
    require(
        len(spec.contracts) == 1 or "none" not in spec.contracts,
        f"contracts must not hold none beside others, got [{names}]; leave it out",
    )
    require(
        all(share < 1 for share in spec.worth), f"worth must hold shares below 1, got {shown(spec.worth)}"
    )
    asked = "several contracts" if len(spec.contracts) > 1 else "shares in worth" if spec.worth else ""
    require(
        not asked or (not spec.grid and len(spec.arms) > 1),
        f"{asked} need at least two arms and no grid, because one other arm is chosen for them; leave the grid "
        "out, or keep one contract and no worth",
    )


def _require_pairs_and_seeds(spec: Spec) -> None:
    arms = spec.expanded()
    require(
        len(arms) == len({arm.name for arm in arms}),
        "grid has two points with the same name, which is their first value; change one",
    )
    pairs, _, _ = spec.pairs(arms), spec.gaps(arms), spec.explored_pairs(arms)  # these raise for unknown arms
    require(
        len(spec.seeds) > 1 or not pairs,
        f"a verdict needs at least two seeds, got {len(spec.seeds)} in seeds; add some (three or more are "
        "better), or set headline: [] for no verdict",
    )
    for seed in (*spec.seeds, *spec.search_seeds):
        TrainConfig(seed=seed)  # raises for a seed outside of the limits
    if both := sorted({*spec.seeds} & {*spec.search_seeds}) if spec.learning_rates else []:
        raise ValueError(
            f"search_seeds must not be among seeds, got {both[0]} in both: a learning rate looks too good on "
            "the seed that it was chosen on; choose another"
        )
