"""From a specification to arms of equal size, with the costs of each, before any model is built."""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import math
import typing
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from architecture import registry
from architecture.checkpoint import LARGEST_SIZE
from architecture.tokenizer import get_tokenizer
from common.settings import as_text
from data.documents import Source
from data.packing import encode
from data.sources import AUTO
from evaluation.ablation.spec import Spec, require
from training.command_line import parse_command_line
from training.config import TrainConfig
from training.start import new_config, require_context, settings_class, with_segment_length

TOLERANCE = 0.02  # largest relative difference from the reference on the axis
ENOUGH = 0.01  # if a multiple of 8 (fast on GPUs) comes this near, other sizes are not tried
EVALUATIONS = 10  # per run, if eval_every is not given: enough for a curve
DATA = ("dataset", "val_dataset", "text_column", "tokenizer", "packing", "batch_size", "block_size")


# {tokenizer: vocabulary size}, so that planning needs no download
WELL_KNOWN = {"gpt2": 50257, "o200k_harmony": 201088}


@dataclass(frozen=True)
class PlannedArm:
    """What plan.json keeps of an arm: enough to repeat its runs bit for bit."""

    name: str
    reference: str  # the arm that this one is matched to
    settings: dict[str, Any]  # settings of the script that trains it, with the adjusted field
    without: tuple[str, ...]  # shared settings that its model or script does not have
    adjusted: str | None  # the adjusted field with its value before and after
    axes: dict[str, float]  # total, active, active_non_embedding, flops (per token, training)
    data: str  # the settings that decide the batches of a seed
    block_size: int
    lr: float
    tokens_per_step: int | None  # None until the padding of its lanes is measured
    seconds_per_token: float | None = None  # measured if the budget needs it
    steps: int | None = None  # None until tokens_per_step and seconds_per_token are known
    search_steps: int | None = None

    @property
    def tokens(self) -> int | None:
        return None if self.steps is None else self.steps * self.tokens_per_step

    def with_dataset(self, chosen: str) -> PlannedArm:
        """The arm with `chosen` in place of dataset `auto`; an arm that names its dataset keeps it."""
        named = self.settings.get("dataset", AUTO) != AUTO
        return self if named else replace(self, settings=self.settings | {"dataset": chosen})


def plan(spec: Spec) -> dict[str, PlannedArm]:
    """All arms, resolved and matched; with their lengths if these need no measurement.

    Raises ValueError for unknown settings, for two equal arms, and for an axis that cannot be met.
    """
    arms = spec.expanded()
    known = {name for arm in arms for name in own_fields(_model(arm.shared | arm.own))}
    settings, without = {}, {}
    for arm in arms:
        mine = own_fields(_model(arm.shared | arm.own))
        without[arm.name] = tuple(sorted(arm.shared.keys() & known - mine))
        shared = {k: v for k, v in arm.shared.items() if k not in without[arm.name]}
        settings[arm.name] = shared | arm.own
    resolved = {name: resolve(name, values) for name, values in settings.items()}
    _require_distinct(spec, resolved)
    _require_comparable(spec, resolved)
    references, planned, matched = spec.reference_of(arms), {}, {}
    for arm in sorted(arms, key=lambda arm: references[arm.name] != arm.name):
        name, reference, adjusted = arm.name, references[arm.name], None
        if spec.adjust and reference != name:
            target = planned[reference].axes[spec.axis]
            before = getattr(resolved[name][1], spec.adjust, None)
            settings[name] = adjust(name, settings[name], spec.axis, spec.adjust, target)
            after = settings[name][spec.adjust]
            if after != before:
                adjusted = f"{spec.adjust} {before} -> {after}"
        cfg, config = matched[name] = resolve(name, settings[name])
        planned[name] = PlannedArm(
            name=name,
            reference=reference,
            settings=settings[name],
            without=without[name],
            adjusted=adjusted,
            axes=axes(cfg, config),
            data=", ".join(str(getattr(cfg, name)) for name in DATA),
            block_size=cfg.block_size,
            lr=cfg.lr,
            tokens_per_step=tokens_per_step(cfg),
        )
    _require_distinct(spec, matched, " once they are matched")
    in_order = {arm.name: planned[arm.name] for arm in arms}
    measuring = needs_pace(spec) or any(a.tokens_per_step is None for a in in_order.values())
    return in_order if measuring else with_lengths(spec, in_order, {})


# ------------------------------------------------------------------------------------ one arm


def resolve(name: str, settings: dict[str, Any]) -> tuple[TrainConfig, Any]:
    """The config of the script that trains the arm, and the model's config; a ValueError names the arm."""
    with naming(name):
        command = parse_command_line(flags(settings), model_fields, config_class=config_class(settings))
        command = with_segment_length(command) if command.config.carries else command
        config = new_config(command, vocabulary(command.config.tokenizer))  # as train.py does
        require_context(command.config, config)
        if getattr(config, "image_format", None) is not None:
            raise ValueError(
                "ablate.py compares models of text, and this one reads images; use train.py for each arm"
            )
    return command.config, config


@contextlib.contextmanager
def naming(arm: str) -> Iterator[None]:
    """Put the name of the arm in front of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"arm {arm}: {error}") from None


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as flags of a command line."""
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return [f"--{name}={as_text(value, name)}" for name, value in plain.items()]


@functools.cache
def vocabulary(tokenizer: str) -> int:
    return WELL_KNOWN.get(tokenizer) or get_tokenizer(tokenizer).n_vocab


@functools.cache
def model_fields(model: str) -> dict[str, Any]:
    """{name: type} of the fields of a model's config."""
    return typing.get_type_hints(registry.model_class(model).config_class)


def config_class(settings: dict[str, Any]) -> type[TrainConfig]:
    """The class of the settings of the script that trains an arm."""
    return settings_class(_model(settings))


@functools.cache
def own_fields(model: str) -> frozenset[str]:
    """The names of all settings of an arm with this model: those of its training script and of the model."""
    return frozenset(f.name for f in fields(settings_class(model))) | model_fields(model).keys()


def _model(settings: dict[str, Any]) -> str:
    return str(settings.get("model", TrainConfig.model))


def axes(cfg: TrainConfig, config: Any) -> dict[str, float]:
    """The costs of an arm by each measure. active_non_embedding leaves out the head, tied or not."""
    counts = config.parameter_counts()
    return {
        "total": counts["total"],
        "active": counts["active"],
        "active_non_embedding": counts["active"] - config.vocab_size * config.hidden_size,
        "flops": config.flops_per_token(cfg.block_size),
    }


# ------------------------------------------------------------------------------------ equal size


def adjust(name: str, settings: dict[str, Any], axis: str, field: str, target: float) -> dict[str, Any]:
    """The settings with the value of `field` that brings the arm nearest to the target on the axis.

    The cost grows with the field, so bisection finds the value.  Raises ValueError with the nearest cost if
    that is further away than TOLERANCE.
    """
    cfg, config = resolve(name, settings)
    if field not in model_fields(cfg.model):
        raise ValueError(f"arm {name}: {cfg.model} has no {field} to adjust; set adjust to another field")
    heads = config.num_attention_heads  # the width of gpt2 must be a multiple of it

    def figure(value: int) -> float:
        try:
            return axes(cfg, replace(config, **{field: value}))[axis]
        except ValueError:  # fewer experts than experts_per_token
            return -math.inf

    steps = (math.lcm(8, heads), heads) if field == "hidden_size" else (8, 1)
    for step in steps:
        value = _nearest(figure, target, step)
        found = figure(value)
        off = found / target - 1
        if abs(off) <= ENOUGH:
            break
    if not abs(off) <= TOLERANCE:
        raise ValueError(
            f"arm {name} cannot be matched to {target:,.0f} under contract {axis} within {TOLERANCE:.0%}: the "
            f"nearest is {found:,.0f} ({off:+.1%}), with {field}={value}; adjust another field, or start "
            "from other sizes"
        )
    return settings | {field: value}


def _nearest(figure: Callable[[int], float], target: float, step: int) -> int:
    """The multiple of `step` whose figure is nearest to the target."""
    values = range(step, LARGEST_SIZE + 1, step)
    place = bisect.bisect_left(values, target, key=figure)
    return min(values[max(0, place - 1) : place + 1], key=lambda value: abs(figure(value) - target))


# ------------------------------------------------------------------------------------ length


def tokens_per_step(cfg: TrainConfig) -> int | None:
    """Targets per step; None where it depends on how much padding the documents leave."""
    return cfg.slots_per_step if cfg.packing == "packed" else None


def flops_in_all(arm: PlannedArm) -> float:
    """FLOPs of a whole run of the verdict; padding costs as much as tokens."""
    cfg, _ = resolve(arm.name, arm.settings)
    return arm.steps * cfg.slots_per_step * arm.axes["flops"]


def needs_pace(spec: Spec) -> bool:
    """Whether a measured pace decides the length of a run, or what a difference is worth in seconds."""
    budgets = (spec.budget, spec.search_budget)
    by_time = "time" in spec.contracts or any(budget.minutes is not None for budget in budgets)
    return by_time or bool(spec.worth)


def with_lengths(
    spec: Spec, arms: dict[str, PlannedArm], pace: dict[str, float], axis: str | None = None
) -> dict[str, PlannedArm]:
    """The arms with their steps.

    pace: seconds per token of each arm and of its reference, used if needs_pace(spec).
    axis: the contract of these arms; None for the first.
    """
    axis = axis or spec.axis

    def steps(arm: PlannedArm, budget) -> int:
        if budget.minutes is not None:
            tokens = 60 * budget.minutes / pace[arm.name]
        elif axis == "time":  # the tokens that it trains on in the reference's time
            tokens = budget.tokens * pace[arm.reference] / pace[arm.name]
        else:
            tokens = budget.tokens
        return max(1, round(tokens / arm.tokens_per_step))

    return {
        name: replace(
            arm,
            steps=steps(arm, spec.budget),
            search_steps=steps(arm, spec.search_budget),
            seconds_per_token=pace.get(name),
        )
        for name, arm in arms.items()
    }


# ------------------------------------------------------------------------------------ what is refused


def _require_distinct(spec: Spec, resolved: dict[str, Any], when: str = "") -> None:
    """Raise ValueError if two arms have the same settings."""
    free = {"lr"} if spec.learning_rates and not spec.factors else set()  # set by the search
    seen: dict[str, str] = {}
    for name, (cfg, config) in resolved.items():
        settings = {k: v for k, v in asdict(cfg).items() if k not in free}
        first = seen.setdefault(repr((settings, config)), name)
        require(
            first == name,
            f"the arms {first} and {name} have the same settings{when}; change one, or leave it out",
        )


def _row(cfg: TrainConfig) -> tuple[str, int | None]:
    """The settings that decide which share of an arm's slots is padding."""
    return cfg.packing, None if cfg.packing == "packed" else cfg.block_size


def _require_comparable(spec: Spec, resolved: dict[str, Any]) -> None:
    cfgs = {name: cfg for name, (cfg, _) in resolved.items()}
    tokenizers = sorted({cfg.tokenizer for cfg in cfgs.values()})
    one, listed = len(tokenizers) == 1, ", ".join(tokenizers)
    require(
        one or not (spec.segments or spec.measure == "val_loss"),
        f"segments and measure val_loss need the same tokenizer in all arms, got {listed}; give all arms one, or "
        "compare bits_per_byte without segments",
    )
    for name, cfg in cfgs.items():
        require(
            not cfg.carries or spec.segments in (None, cfg.block_size),
            f"segments must be {cfg.block_size}, the block_size of arm {name}, because its state is carried "
            f"from one such segment to the next; got {spec.segments}",
        )
    require(
        "flops" not in spec.contracts or len({_row(cfg) for cfg in cfgs.values()}) == 1,
        "contract flops counts padding too, and with lanes the share of padding depends on block_size; give "
        "all arms the same packing and block_size, or choose another contract",
    )
    parts = {cfg.final_eval_tokens or "all" for cfg in cfgs.values()}
    require(
        len(parts) == 1 and (one or parts == {"all"}),
        "the arms must be scored on the same text, and final_eval_tokens takes its first tokens, got "
        f"{', '.join(sorted(map(str, parts)))} under {listed}; set one value for all arms, and all if "
        "their tokenizers differ",
    )
    data = {name: (cfg.val_dataset or cfg.dataset, cfg.text_column) for name, cfg in cfgs.items()}
    first = next(iter(data))
    for name, validation in data.items():
        require(
            validation == data[first],
            f"the arms must be scored on the same text, but {name} has {validation[0]} and {first} has "
            f"{data[first][0]}; give all arms the same val_dataset",
        )


LANE_DOCUMENTS = 4000  # on TinyStories with rows of 512, these give the mean per row to 0.7 % in two seconds


def tokens_per_step_of_lanes(cfg: TrainConfig, source: Source) -> int:
    """The expected number of targets per step, from the first training documents: each is [EOT, tokens, EOT]
    and fills as many rows of a lane as it needs, or one row that cuts it.
    """
    tokenizer, tokens, rows = get_tokenizer(cfg.tokenizer), 0, 0
    for document in itertools.islice(source.documents(), LANE_DOCUMENTS):
        targets = len(encode(tokenizer, document)) + 1
        needed = 1 if cfg.packing == "rows" else -(-targets // cfg.block_size)
        tokens += min(targets, needed * cfg.block_size)
        rows += needed
    return max(1, round(cfg.batch_size * cfg.micro_batches * tokens / max(1, rows)))
