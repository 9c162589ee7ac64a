"""The contracts beside the first: which arms they need, which of them are trained, and the verdicts side by side.

All other arms are planned under every contract before the first run, because the one that is trained is known
only later: it is the other arm with the best mean validation score under the first contract. Test scores take
no part in this choice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from evaluation.ablation import matching
from evaluation.ablation.matching import TOLERANCE, PlannedArm, flops_in_all
from evaluation.ablation.plan_file import Plan
from evaluation.ablation.spec import Spec
from evaluation.ablation.statistics import ALPHA, part
from evaluation.ablation.verdict import Ablation, Verdict, verdicts
from evaluation.ablation.worth import Worth, worth

# ------------------------------------------------------------------------------------ before the runs


def planned(spec: Spec) -> Plan:
    """All arms of a specification, under each of its contracts.

    Raises ValueError for unknown settings, for two equal arms, and for a contract that an arm cannot meet.
    """
    arms = matching.plan(spec)
    further: dict[str, PlannedArm] = {}
    meets: dict[str, dict[str, str]] = {}
    for contract in spec.contracts[1:]:
        meets[contract] = {}
        for name, arm in arms.items():
            if name != arm.reference:
                target = arms[arm.reference].axes.get(contract)
                there = _versions(spec, arm, further, meets)
                version = _version(spec, contract, arm, there, target)
                meets[contract][name] = version.name
                if version.name != name:
                    further[version.name] = version
    plan = Plan(arms, further, meets, {f"{spec.reference}@{share:g}": share for share in spec.worth})
    plan.further.update({name: replace(arms[spec.reference], name=name) for name in plan.shares})
    by_time = spec.axis == "time" or None in (spec.budget.tokens, spec.search_budget.tokens)
    if by_time or any(arm.tokens_per_step is None for arm in arms.values()):
        return plan
    return with_lengths(spec, plan, {})


def is_unmeasured(spec: Spec, plan: Plan) -> bool:
    """Whether lengths or paces are still missing, because they are measured on this machine."""
    missing = any(arm.steps is None for arm in plan.every.values())
    return missing or (
        matching.needs_pace(spec) and any(a.seconds_per_token is None for a in paced(spec, plan))
    )


def _versions(
    spec: Spec, arm: PlannedArm, further: dict[str, PlannedArm], meets: dict[str, dict[str, str]]
) -> Iterable[PlannedArm]:
    """The versions of an arm so far that train on the tokens of the budget."""
    if spec.axis != "time":
        yield arm
    for contract, names in meets.items():
        if contract != "time" and names.get(arm.name) in further:
            yield further[names[arm.name]]


def _version(
    spec: Spec, contract: str, arm: PlannedArm, versions: Iterable[PlannedArm], target: float | None
) -> PlannedArm:
    """The version of an arm that meets a contract: one that there is, or a new one."""
    name = f"{arm.name}@{contract}"
    if target is None:  # time: the same model on more or fewer tokens
        return replace(arm, name=name, adjusted=None)
    for version in versions:
        if abs(version.axes[contract] / target - 1) <= TOLERANCE:
            return version
    settings = matching.adjust(arm.name, arm.settings, contract, spec.adjust, target)
    before = getattr(matching.resolve(arm.name, arm.settings)[1], spec.adjust)
    adjusted = f"{spec.adjust} {before} -> {settings[spec.adjust]}"
    costs = matching.axes(*matching.resolve(name, settings))
    return replace(arm, name=name, settings=settings, adjusted=adjusted, axes=costs)


def with_lengths(spec: Spec, plan: Plan, pace: dict[str, float]) -> Plan:
    """The plan with the steps of every run.

    pace: seconds per token of the arms of paced(). Without it, arms under time stay without a length.
    """
    arms = matching.with_lengths(spec, plan.arms, pace)
    further, meets = {}, {contract: dict(names) for contract, names in plan.contracts.items()}
    for contract, names in meets.items():
        for name, version in names.items():
            if version not in plan.further:
                continue
            if contract == "time" and not pace:
                further[version] = plan.further[version]
                continue
            its_pace = pace | ({version: pace[name]} if contract == "time" else {})
            (long,) = matching.with_lengths(
                spec, {version: plan.further[version]}, its_pace, axis=contract
            ).values()
            if contract == "time" and abs(long.steps / arms[name].steps - 1) <= TOLERANCE:
                names[name] = name  # as many tokens as it has already
            else:
                further[version] = long
    for name, share in plan.shares.items():
        whole = arms[spec.reference]
        steps = max(1, round(share * whole.steps))
        further[name] = replace(whole, name=name, steps=steps, search_steps=None)
    return Plan(arms, further, meets, plan.shares)


def paced(spec: Spec, plan: Plan) -> list[PlannedArm]:
    """The arms whose pace is measured; the others are the same models on other numbers of tokens, or need none."""
    if not plan.shares and None not in (spec.budget.tokens, spec.search_budget.tokens):
        return list(plan.arms.values())
    same = {*plan.contracts.get("time", {}).values(), *plan.shares} - plan.arms.keys()
    return [arm for name, arm in plan.every.items() if name not in same]


def amount(spec: Spec, plan: Plan) -> str:
    """How many runs there are at most, and how many tokens, if the lengths are known."""
    searches = len(spec.learning_rates) * len(spec.search_seeds)
    first = [(arm, searches, len(spec.seeds)) for arm in plan.arms.values()]
    others = []
    for name in plan.arms:
        own = {names[name] for names in plan.contracts.values() if names.get(name) in plan.further}
        others.append([(plan.further[version], searches, len(spec.seeds)) for version in own])
    largest = max(others, key=lambda runs: (len(runs), sum(arm.steps or 0 for arm, *_ in runs)), default=[])
    shares = [(plan.further[name], 0, len(spec.seeds)) for name in plan.shares]
    runs = [*first, *largest, *shares]
    searched, judged = (sum(row[column] for row in runs) for column in (1, 2))
    told = f"at most {searched} runs of the search and {judged} of the verdict"
    known = [run for run in runs if run[0].steps is not None]

    def cost(unit) -> float:
        return sum(
            unit(arm) * (s * (arm.search_steps or 0) + v * arm.steps) * arm.tokens_per_step
            for arm, s, v in known
        )

    if known:
        rest = "" if len(known) == len(runs) else " and those under time, whose number is measured first"
        told += f", {cost(lambda arm: 1):,.0f} training tokens in all{rest}"
        if not rest and all(arm.seconds_per_token for arm, *_ in runs):
            minutes = cost(lambda arm: arm.seconds_per_token) / 60
            told += f": about {minutes:,.0f} minutes of training at the measured paces, one run at a time"
    told += (
        ". Each run also has its start and its evaluations, and each run of the verdict a score on the test set. "
        "Rates beyond the edge come on top"
    )
    if len(spec.seeds) > spec.first_seeds:
        told += f"; pairs that {spec.first_seeds} seeds resolve get no more"
    return f"{told}."


# ------------------------------------------------------------------------------------ after the first contract


def best_other(x: Ablation) -> str | None:
    """The other arm with the best mean validation score, over the seeds at which all of them ended well.

    None if there is no other arm, or none of them ended well. An arm is left out if it has fewer seeds than
    another.
    """
    scores: dict[str, dict[int, float]] = {}
    for name, arm in x.arms.items():
        if name != arm.reference:
            good = [line for line in x.results.of("verdict", name) if line["status"] == "ok"]
            scores[name] = {line["seed"]: line[x.spec.run_measure] for line in good}
    first = x.spec.seeds[: x.spec.first_seeds]  # all arms have these, unless a run failed
    scores = {name: {s: v for s, v in by_seed.items() if s in first} for name, by_seed in scores.items()}
    most = max(map(len, scores.values()), default=0)
    means = {
        name: statistics.fmean(by_seed.values())
        for name, by_seed in scores.items()
        if len(by_seed) == most > 0
    }
    return min(means, key=means.__getitem__, default=None)


def versions_of(plan: Plan, name: str) -> list[str]:
    """The further arms under the other contracts, each once."""
    own = (names[name] for names in plan.contracts.values() if name in names)
    return list(dict.fromkeys(version for version in own if version in plan.further))


def family(x: Ablation, plan: Plan, versions: list[str]) -> Ablation:
    """The reference and the versions of the best other arm, whose pairs are judged together."""
    reference = x.spec.reference
    names = [reference, *versions]
    spec = replace(
        x.spec,
        arms={name: {} for name in names},
        grid={},
        headline=tuple((reference, version) for version in versions),
        explored=(),
        gap=None,
    )
    return Ablation(spec, {name: plan.every[name] for name in names}, x.folder, x.results)


# ------------------------------------------------------------------------------------ the report


class Row(NamedTuple):
    """The verdict under one contract."""

    contract: str
    arm: str  # the arm that meets it
    verdict: Verdict | None  # reference against arm; None if the specification asks for no such pair
    compute: Worth | None
    clock: Worth | None


def chosen(x: Ablation) -> str | None:
    """The arm that the other contracts were for; None before that choice."""
    lines = x.results.of("choice")
    return lines[0]["arm"] if lines else None


def rows(x: Ablation, plan: Plan, first: list[Verdict]) -> list[Row]:
    """The contracts of a report that has chosen its best other arm.  first: the verdicts under the first."""
    best, reference = chosen(x), x.spec.reference
    versions = versions_of(plan, best)
    found = {v.second: v for v in verdicts(family(x, plan, versions))} if versions else {}
    found.update((best, v) for v in first if {v.first, v.second} == {reference, best})
    told = []
    for contract in x.spec.contracts:
        arm = best if contract == x.spec.axis else plan.contracts[contract][best]
        verdict = found.get(arm)
        differs = verdict is None or verdict.look > 0
        compute = _worth(x, plan, arm, flops_in_all, differs) if plan.shares else None
        clock = _worth(
            x, plan, arm, lambda one: one.steps * one.tokens_per_step * one.seconds_per_token, differs
        )
        told.append(Row(contract, arm, verdict, compute, clock if plan.shares else None))
    return told


def _worth(x: Ablation, plan: Plan, arm: str, cost: Any, differs: bool) -> Worth | None:
    """What the reference is worth against an arm, by a cost of whole runs; None if a score or cost is missing.

    differs: whether the verdict says that their whole runs do.
    """
    names = [*sorted(plan.shares, key=plan.shares.__getitem__), x.spec.reference]
    scores = {name: test_scores(x, name) for name in (*names, arm)}
    seeds = sorted(set.intersection(*map(set, scores.values())))
    planned_arms = [plan.every[name] for name in names]
    if not seeds or any(one.seconds_per_token is None for one in (*planned_arms, plan.every[arm])):
        return None
    curve = [[scores[name][seed] for seed in seeds] for name in names]
    return worth(
        [cost(one) for one in planned_arms],
        curve,
        cost(plan.every[arm]),
        [scores[arm][seed] for seed in seeds],
        differs,
    )


def test_scores(x: Ablation, arm: str) -> dict[int, float]:
    """{seed: score on the test set}, bits per byte."""
    return {
        line["seed"]: line["bits_per_byte"] for line in x.results.of("test", arm) if line["status"] == "ok"
    }


def section(x: Ablation, plan: Plan, first: list[Verdict]) -> str:
    """The contracts side by side; "" for a report with one contract and no shares."""
    if len(x.spec.contracts) == 1 and not plan.shares:
        return ""
    if chosen(x) is None:
        return "No other arm ended well, so no arm was chosen for the other contracts."
    table = []
    for row in rows(x, plan, first):
        arm = plan.every[row.arm]
        size = [row.contract, row.arm, f"{arm.axes['total']:,.0f}", f"{arm.axes['active']:,.0f}"]
        size += [f"{arm.tokens:,.0f}", f"{flops_in_all(arm):.3g}"]
        table.append([*size, *_judged(row.verdict, x.spec.reference)])
        if plan.shares:
            table[-1] += [one.in_words() if one else "-" for one in (row.compute, row.clock)]
    reference, best = x.spec.reference, chosen(x)
    words = (
        f"**{reference}** against **{best}**, which had the best mean validation score of the other arms under "
        f"{x.spec.axis}, over the first seeds; test scores took no part in this choice. Under each other contract "
        f"{best} was matched anew, with a search of its own; an arm that meets two contracts to within "
        f"{TOLERANCE:.0%} stands in both rows with the same runs. Their pairs with {reference} are judged together, "
        f"in a family beside that of {x.spec.axis}, which errs in at most another {ALPHA:.0%} of reports."
    )
    head = ["equal", "arm", "total", "active", "tokens", "FLOPs in all"]
    head += ["seeds", f"{reference} - arm", "95 %"]
    head += [f"{reference} is", "resolves"]
    if plan.shares:
        head += ["worth, compute", "worth, clock"]
        words += (
            f"\n\nWorth: the cost of the arm divided by the cost at which {reference} reaches the arm's score, both on "
            f"the test set. {reference} was also trained at {', '.join(f'{s:g}' for s in plan.shares.values())} of its "
            "budget, each with a whole schedule and the same learning rate; between these points its score is a straight line "
            "in log(score) over log(cost), and beyond them nothing is said. Clock: tokens times the seconds per "
            "token measured alone, before the runs (median of rounds; its noise is not in the interval). In brackets "
            "the 95 % interval over the seeds that all of these runs have, not over documents: the costs at which the "
            "reference's score does not differ from the arm's by a paired t-test, not corrected for the other rows, "
            "and always the whole budget if the verdict is not resolved. A score beyond the curve without brackets "
            "differs from that of the curve's end."
        )
    return part(words, head, table)


def _judged(v: Verdict | None, reference: str) -> list[Any]:
    """Seeds, difference, interval, verdict and what is resolved, said of the reference."""
    if v is None:
        return ["-", "-", "-", "not in headline", "-"]
    c = v.comparison
    if v.refused or math.isnan(c.difference):
        return [len(v.seeds), "-", "-", "not compared", "-"]
    turned = {"better": "worse", "worse": "better"}
    sign, said = (1, c.verdict) if v.first == reference else (-1, turned.get(c.verdict, c.verdict))
    return [
        len(v.seeds),
        f"{sign * c.difference:+.4f}",
        f"+- {c.half_width:.4f}",
        said,
        f"{getattr(c.resolves, 'value', c.resolves):.4f}",  # with or without an interval of its own
    ]
