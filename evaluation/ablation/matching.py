"""From a specification to arms of equal size: what each costs by every measure, before anything is built."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import os
import platform
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from architecture import registry
from architecture.checkpoint import LARGEST_SIZE
from architecture.tokenizer import get_tokenizer
from common.files import read_json, reading, write_json_atomic
from common.provenance import provenance
from common.settings import as_text
from data.documents import Source
from data.packing import encode
from data.sources import AUTO
from evaluation.ablation.spec import Arm, Spec, require
from training.command_line import parse_command_line
from training.config import TrainConfig
from training.start import new_config, require_context, settings_class, with_segment_length

TOLERANCE = 0.02  # of the reference's figure on the axis
ENOUGH = 0.01  # where multiples of 8, which GPUs like, come this near, no other size is tried
DATA = ("dataset", "val_dataset", "text_column", "tokenizer", "packing", "batch_size", "block_size")


class Vocabulary(NamedTuple):
    """What sizes need of a tokenizer."""

    n_vocab: int


# planning needs no table that may have to be downloaded
WELL_KNOWN = {"gpt2": Vocabulary(50257), "o200k_harmony": Vocabulary(201088)}


@dataclass(frozen=True)
class PlannedArm:
    """All that plan.json keeps of an arm; it is enough to run it again to the last bit."""

    name: str
    reference: str  # the arm that it is matched to
    settings: dict[str, Any]  # of the script that trains it, with the adjusted field
    without: tuple[str, ...]  # shared settings that its model or that script does not have
    adjusted: str | None  # the field, what it was and what it became
    axes: dict[str, float]  # total, active, active_non_embedding, flops (per token, training)
    data: str  # all that decides the batches of a seed
    block_size: int
    lr: float
    tokens_per_step: int | None  # None until the padding of its lanes is measured
    seconds_per_token: float | None = None  # measured, where the budget needs it
    steps: int | None = None  # None until all that it follows from is measured
    search_steps: int | None = None

    @property
    def tokens(self) -> int | None:
        return None if self.steps is None else self.steps * self.tokens_per_step

    def with_dataset(self, chosen: str) -> PlannedArm:
        """With what `auto` became; an arm that names its data keeps it."""
        named = self.settings.get("dataset", AUTO) != AUTO
        return self if named else replace(self, settings=self.settings | {"dataset": chosen})


def plan(spec: Spec) -> dict[str, PlannedArm]:
    """Every arm, resolved and matched, with its length where that needs no measuring.

    Raises ValueError, one sentence, for settings that are none, for arms that are the same, and for an
    axis that cannot be met.
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
    _refuse_the_same(spec, arms, resolved)
    _refuse_what_does_not_compare(spec, resolved)
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
    if twins := _twins(spec, matched):  # which differed in the adjusted field alone
        first, second = twins
        raise ValueError(
            f"the arms {first} and {second} are the same once they are matched ({planned[second].adjusted}); change "
            "another setting in one, or leave it out"
        )
    in_order = {arm.name: planned[arm.name] for arm in arms}
    measuring = needs_pace(spec) or any(a.tokens_per_step is None for a in in_order.values())
    return in_order if measuring else with_lengths(spec, in_order, {})


# ------------------------------------------------------------------------------------ one arm


def resolve(name: str, settings: dict[str, Any]) -> tuple[TrainConfig, Any]:
    """Settings as the script that trains the arm understands them, and the model's config; ValueError
    names the arm.
    """
    try:
        command = parse_command_line(flags(settings), model_fields, config_class=config_class(settings))
        cfg = command.config
        command = with_segment_length(command) if cfg.carries else command
        cfg = command.config
        config = new_config(command, _vocabulary(cfg.tokenizer).n_vocab)  # as train.py will
        require_context(cfg, config)
    except ValueError as error:
        raise ValueError(f"arm {name}: {error}") from None
    return cfg, config


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as a command line has them."""
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return [f"--{name}={as_text(value)}" for name, value in plain.items()]


@functools.cache
def _vocabulary(tokenizer: str) -> Any:
    return WELL_KNOWN.get(tokenizer) or get_tokenizer(tokenizer)


@functools.cache
def model_fields(model: str) -> dict[str, Any]:
    """{name: type} of a model's own settings."""
    return typing.get_type_hints(registry.model_class(model).config_class)


def config_class(settings: dict[str, Any]) -> type[TrainConfig]:
    """The settings of the script that trains an arm."""
    return settings_class(_model(settings))


@functools.cache
def own_fields(model: str) -> frozenset[str]:
    """The names of all settings of an arm of a model: of the script that trains it, and the model's."""
    return frozenset(f.name for f in fields(settings_class(model))) | model_fields(model).keys()


def _model(settings: dict[str, Any]) -> str:
    return str(settings.get("model", TrainConfig.model))


def axes(cfg: TrainConfig, config: Any) -> dict[str, float]:
    """What an arm costs by each measure. Non-embedding is without the head, tied or not."""
    counts = config.parameter_counts()
    return {
        "total": counts["total"],
        "active": counts["active"],
        "active_non_embedding": counts["active"] - config.vocab_size * config.hidden_size,
        "flops": config.flops_per_token(cfg.block_size),
    }


# ------------------------------------------------------------------------------------ equal size


def adjust(name: str, settings: dict[str, Any], axis: str, field: str, target: float) -> dict[str, Any]:
    """The settings with `field` such that the arm's figure on the axis is nearest to the target.

    The figure grows with the field, so that halving finds it. ValueError, with how near it came, where
    that is further than TOLERANCE.
    """
    cfg, config = resolve(name, settings)
    if field not in model_fields(cfg.model):
        raise ValueError(f"arm {name}: {cfg.model} has no {field} to adjust; take another for adjust")
    heads = config.num_attention_heads  # of gpt2 the width must be a multiple

    def figure(value: int) -> float:
        try:
            return axes(cfg, replace(config, **{field: value}))[axis]
        except ValueError:  # fewer experts than a token takes
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
            f"arm {name} cannot be matched to {target:,.0f} of axis {axis} within {TOLERANCE:.0%}: the "
            f"nearest is {found:,.0f} ({off:+.1%}), with {field}={value}; adjust another field, or start "
            "from other sizes"
        )
    return settings | {field: value}


def _nearest(figure: Callable[[int], float], target: float, step: int) -> int:
    """The multiple of step whose figure is nearest to the target."""
    values = range(step, LARGEST_SIZE + 1, step)
    place = bisect.bisect_left(values, target, key=figure)
    return min(values[max(0, place - 1) : place + 1], key=lambda value: abs(figure(value) - target))


# ------------------------------------------------------------------------------------ length


def tokens_per_step(cfg: TrainConfig) -> int | None:
    """Targets of a step; None where that depends on the documents, which end before their lanes do."""
    return cfg.slots_per_step if cfg.packing == "packed" else None


def flops_in_all(arm: PlannedArm) -> float:
    """Of a run of the verdict: padding is computed as tokens are."""
    cfg, _ = resolve(arm.name, arm.settings)
    return arm.steps * cfg.slots_per_step * arm.axes["flops"]


def needs_pace(spec: Spec) -> bool:
    """Whether the length of a run follows from a measured pace."""
    budgets = (spec.budget, spec.search_budget)
    return spec.axis == "time" or any(budget.minutes is not None for budget in budgets)


def with_lengths(spec: Spec, arms: dict[str, PlannedArm], pace: dict[str, float]) -> dict[str, PlannedArm]:
    """The arms with their steps; pace: seconds per token of each, where needs_pace says so."""

    def steps(arm: PlannedArm, budget) -> int:
        if budget.minutes is not None:
            tokens = 60 * budget.minutes / pace[arm.name]
        elif spec.axis == "time":  # as many as it makes in the reference's time
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


def _refuse_the_same(spec: Spec, arms: list[Arm], resolved: dict[str, Any]) -> None:
    for arm in arms:
        this, model = _identity(spec, resolved[arm.name]), _model(arm.shared | arm.own)
        if arm.origin != spec.reference and model == _model(arm.shared):
            mine = own_fields(model)
            base = {name: value for name, value in arm.shared.items() if name in mine}
            told = f"arm {arm.name} differs from the base in nothing; change a setting in it"
            same = _identity(spec, resolve(arm.name, base)) == this
            require(not same, f"{told}, or name it as the reference")
    if twins := _twins(spec, resolved):
        told = f"the arms {twins[0]} and {twins[1]} are the same, down to every setting"
        raise ValueError(f"{told}; change one, or leave it out")


def _twins(spec: Spec, resolved: dict[str, Any]) -> tuple[str, str] | None:
    """The first two arms that are the same."""
    seen: dict[str, str] = {}
    for name, values in resolved.items():
        first = seen.setdefault(_identity(spec, values), name)
        if first != name:
            return first, name
    return None


def _identity(spec: Spec, resolved: tuple[TrainConfig, Any]) -> str:
    """All that tells an arm from another."""
    free = {"lr"} if spec.learning_rates and not spec.factors else set()  # the search's to set
    cfg, config = resolved
    return repr(({k: v for k, v in asdict(cfg).items() if k not in free}, config))


def _row(cfg: TrainConfig) -> tuple[str, int | None]:
    """What decides which share of its slots is padding."""
    return cfg.packing, None if cfg.packing == "packed" else cfg.block_size


def _refuse_what_does_not_compare(spec: Spec, resolved: dict[str, Any]) -> None:
    cfgs = {name: cfg for name, (cfg, _) in resolved.items()}
    tokenizers = sorted({cfg.tokenizer for cfg in cfgs.values()})
    one, listed = len(tokenizers) == 1, ", ".join(tokenizers)
    require(
        one or not spec.segments,
        f"segments are of tokens, which all arms must have from one tokenizer; got {listed}: give all of them one, "
        "or leave segments out",
    )
    require(
        one or spec.measure != "val_loss",
        f"measure must be bits_per_byte, as losses under different tokenizers ({listed}) do not compare; got val_loss",
    )
    for name, cfg in cfgs.items():
        require(
            not cfg.carries or spec.segments in (None, cfg.block_size),
            f"segments must be {cfg.block_size}, the block_size of arm {name}, which carries its state from one of "
            f"those to the next; got {spec.segments}",
        )
    require(
        spec.axis != "flops" or len({_row(cfg) for cfg in cfgs.values()}) == 1,
        "axis flops counts a row's slots, of which lanes of another block_size fill another share with tokens; give "
        "all arms one packing and block_size, or take another axis",
    )
    parts = {cfg.final_eval_tokens for cfg in cfgs.values()}
    require(
        len(parts) == 1 and (one or parts == {None}),
        "the arms must be scored on the same text, of which final_eval_tokens takes the first tokens, got "
        f"{', '.join(sorted(map(str, parts)))} under {listed}; give all arms one, and none where their tokenizers differ",
    )
    data = {name: (cfg.val_dataset or cfg.dataset, cfg.text_column) for name, cfg in cfgs.items()}
    first = next(iter(data))
    for name, validation in data.items():
        require(
            validation == data[first],
            f"the arms must be scored on the same text, and {name} has {validation[0]}, {first} {data[first][0]}; "
            "give all of them one val_dataset",
        )


MOST_EXTENSIONS = 3  # beyond the given rates, each a step of the ratio at that edge


def best_rate(tried: dict[float, float | None]) -> float | None:
    """The rate with the lowest score; None where no run ended well. tried: rate: score or None."""
    scored = {rate: score for rate, score in tried.items() if score is not None}
    return min(scored, key=scored.__getitem__, default=None)


def next_rates(given: Sequence[float], tried: dict[float, float | None]) -> list[float]:
    """What to try now: the given rates, then one beyond the edge as long as the best is there; [] when
    the search is over. Where nothing ended well, lower ones. given: at least three, in rising order.
    """
    if missing := [rate for rate in given if rate not in tried]:
        return missing
    rates, best = sorted(tried), best_rate(tried)
    if len(tried) - len(given) >= MOST_EXTENSIONS:
        return []
    if best is None or best == rates[0]:
        return [tidy(rates[0] * rates[0] / rates[1])]
    return [tidy(rates[-1] * rates[-1] / rates[-2])] if best == rates[-1] else []


def tidy(rate: float) -> float:
    """Six significant digits: the name of a run, the same on every machine."""
    return float(f"{rate:.6g}")


NAME = "plan.json"


class StoredPlan(NamedTuple):
    """What an earlier start settled."""

    sha256: str  # of the specification
    arms: dict[str, PlannedArm]
    threads: int | None
    provenance: dict[str, Any]
    machine: str


def write(path: Path, spec: Spec, arms: dict[str, PlannedArm], threads: int | None) -> None:
    plan = {
        "spec": spec.as_values(),
        "sha256": spec.sha256,
        "arms": {name: asdict(arm) for name, arm in arms.items()},
        "threads": threads,
        "provenance": provenance(),
        "machine": machine(),
    }
    write_json_atomic(path, plan)


def read(path: Path | None) -> StoredPlan | None:
    """What write wrote; None where there is no such file; ValueError for anything else."""
    if path is None or not path.exists():
        return None
    with reading(path, "the plan of an ablation", way_out="start from the specification"):
        plan = read_json(path)
        arms = {name: PlannedArm(**arm) for name, arm in plan["arms"].items()}
        rest = (plan[name] for name in ("threads", "provenance", "machine"))
        return StoredPlan(plan["sha256"], arms, *rest)


def machine() -> str:
    """In words: what the seconds are of."""
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cores = f"{os.cpu_count()} CPU cores ({platform.machine()}, {platform.system()})"
    return ", ".join((cores, *names))


LANE_DOCUMENTS = 4000  # of TinyStories in rows of 512: the mean of a row to 0.7 %, in two seconds


def tokens_per_step_of_lanes(cfg: TrainConfig, source: Source) -> int:
    """Targets of a step, as they will be on average: by the first documents of the training data, each
    [EOT, tokens, EOT] along as many rows as it takes.
    """
    tokenizer, tokens, rows = get_tokenizer(cfg.tokenizer), 0, 0
    for document in itertools.islice(source.documents(), LANE_DOCUMENTS):
        targets = len(encode(tokenizer, document)) + 1
        tokens += targets
        rows += -(-targets // cfg.block_size)
    return max(1, round(cfg.batch_size * cfg.micro_batches * tokens / max(1, rows)))
