"""The plan in words: what is compared at which cost, what was fixed before the runs, and the learning rates."""

from __future__ import annotations

from collections.abc import Mapping

from common.provenance import git_commit
from evaluation.ablation import contracts, matching, plan_file
from evaluation.ablation.matching import TOLERANCE, PlannedArm, flops_in_all
from evaluation.ablation.plan_file import Plan, StoredPlan
from evaluation.ablation.rates import means, optimum, scores_of
from evaluation.ablation.spec import Spec
from evaluation.ablation.statistics import part, table
from evaluation.ablation.verdict import Ablation
from training.costs import EVALUATION

RUN_UNITS = {"bits_per_byte": "bits per byte", "val_loss": "nats per token"}


def plan_text(spec: Spec, plan: Plan) -> str:
    """The costs of every arm, before anything runs."""
    title = f"{spec.name}: {len(plan.arms)} arms, equal {spec.axis}, {spec.budget} per run"
    lines = [title, arms_table(plan.arms)]
    if plan.further:
        told = "Further arms. Under each other contract one arm is trained: the other arm with the best mean validation score"
        lines += [
            "",
            told + "." if not plan.shares else told + "; of the reference, all shares of its budget.",
        ]
        lines += [arms_table({}, plan.further)]
    for contract, names in plan.contracts.items():
        same = [f"{name} ({version})" for name, version in names.items() if version not in plan.further]
        same += [
            f"{name} ({version})"
            for name, version in names.items()
            if version in plan.further and version != f"{name}@{contract}"
        ]
        if same:
            lines.append(f"{contract} is met already by: {', '.join(same)}")
    lines += ["", *map(_evaluations, plan.arms.values()), contracts.amount(spec, plan)]
    if contracts.is_unmeasured(spec, plan):
        lines.append("The plan's sha256 is known when its paces and lengths are measured.")
    else:
        lines.append(f"plan sha256 {plan_file.content_sha256(spec, plan)}, commit {git_commit()}")
    return "\n".join(lines)


def _evaluations(arm: PlannedArm) -> str:
    """What the evaluations of a run cost beside its training."""
    cfg, _ = matching.resolve(arm.name, arm.settings)
    many = "the" if "eval_every" in arm.settings else matching.EVALUATIONS
    closing = f"{bound:,}" if isinstance(bound := cfg.final_eval_tokens, int) else "all"
    return (
        f"{arm.name}: {many} evaluations score {cfg.eval_tokens:,} validation tokens each, in the time of about "
        f"{cfg.eval_tokens / (EVALUATION * cfg.slots_per_step):,.2g} steps, and the closing one {closing} "
        "(final_eval_tokens)"
    )


def matched(spec: Spec, arms: dict[str, PlannedArm]) -> str:
    how = {
        "none": "The arms are matched only by their budget.",
        "time": "The arms train for equal seconds: their numbers of tokens follow from their measured paces.",
    }.get(spec.axis, f"The arms are equal in {spec.axis} to within {TOLERANCE:.0%}, by {spec.adjust}.")
    same = "Runs with the same seed get the same batches in the same order; their first ones were compared."
    if len({arm.data for arm in arms.values()}) > 1:
        same = (
            "Runs with the same seed and the same shape of batches get the same batches in the same order; "
            "their first batches were compared. The other runs read the documents in the same order."
        )
    return f"{how} Budget of a run: {spec.budget}. {same}"


def arms_table(arms: dict[str, PlannedArm], further: Mapping[str, PlannedArm] | None = None) -> str:
    """The table of costs of arms and of their further versions, and below it the shared settings that an arm's
    model does not have.
    """

    def count(value: float | None) -> str:
        return "measured first" if value is None else f"{value:,.0f}"

    head = ["arm", "total", "active", "active, no head", "FLOPs/token"]
    head += ["FLOPs in all", "tokens", "steps", "adjusted"]
    every = arms | (further or {})
    paced = any(arm.seconds_per_token for arm in every.values())
    rows = []
    for arm in every.values():
        in_all = "measured first" if arm.steps is None else f"{flops_in_all(arm):.3g}"
        row = [arm.name, *map(count, arm.axes.values()), in_all, count(arm.tokens), count(arm.steps)]
        row.append(arm.adjusted or ("reference" if arm.reference == arm.name and len(every) > 1 else ""))
        rows.append(row + ([f"{1e6 * arm.seconds_per_token:,.0f}"] if paced else []))
    told = table(head + ["s per 1M tokens"] * paced, rows)
    without: dict[str, list[str]] = {}
    for arm in arms.values():
        for setting in arm.without:
            without.setdefault(setting, []).append(arm.name)
    if without:
        told += "\n\nShared settings that an arm's model does not have: " + ", ".join(
            f"{setting} ({', '.join(names)})" for setting, names in without.items()
        )
    return told


def fixed_plan(x: Ablation, stored: StoredPlan) -> str:
    """Whether the plan was fixed before the runs, and its hash."""
    under = {line.get("plan") for line in x.results.lines.values()}
    if under <= {None}:
        return "This report is of a version that did not store the hash of its plan with the runs."
    if under != {stored.content}:
        return (
            f"**plan.json was changed after the first run**: its sha256 is {stored.content}, and runs were made under "
            f"{', '.join(sorted(map(str, under - {stored.content})))}."
        )
    return f"The plan was written before the first run and has not changed since: sha256 {stored.content}."


def test_set(x: Ablation) -> str:
    """Which documents the test scores are of; "" for a report without them."""
    sets = sorted({line["test_set"] for line in x.results.of("test") if "test_set" in line})
    return f" The test set, which nothing else looks at: {'; '.join(sets)}." if sets else ""


# ------------------------------------------------------------------------------------ learning rates


def search_table(x: Ablation) -> str:
    spec, rows = x.spec, []
    given, unit = len(spec.learning_rates), RUN_UNITS[spec.run_measure]
    if not given:
        return (
            "There was no search: every arm ran at its own learning rate, so a difference between arms may "
            "come from their learning rates."
        )
    for name in x.arms:
        lines = x.results.of("search", name)
        scores = scores_of(lines, spec.run_measure, spec.search_seeds)
        found, tried = optimum(scores), means(scores)
        failed = {line["lr"]: line["status"] for line in lines if line["status"] != "ok"}
        told = [f"{rate:g}: {failed.get(rate) or format(mean, '.4f')}" for rate, mean in tried.items()]
        remarks = [f"{len(tried) - given} beyond the edge"] if len(tried) > given else []
        interval = "-" if found.low is None else _within(found.low, found.high, tried)
        if found.remark.startswith("not bounded"):
            interval = "not bounded"
        used = [line["lr"] for line in x.results.of("verdict", name)][:1]
        rate = used[0] if used else found.rate
        remarks += [found.remark] if found.remark else []
        rows.append([name, "; ".join(told), f"{rate:g}" if rate else "none", interval, ", ".join(remarks)])
    seeds = spec.search_seeds
    words = (
        f"Every arm had the same search: {given} learning rates, each with the seeds {', '.join(map(str, seeds))}, "
        f"which are not in the verdict, and {spec.search_budget} per run, scored on validation stories outside of "
        "the test set; if the best rate was at the edge, more rates at the same ratio. The table has the means over "
        "these seeds. Optimum: the lowest point of a parabola in log(rate) through all scores at the best rate and "
        "its two neighbours, with an effect of each seed, in two digits; the verdict used it. 95 %: Fieller's "
        "interval of that point, not bounded where the scores do not resolve the curvature; an end beyond the rates that "
        "were tried is given as that."
    )
    if len(seeds) == 1:
        words = (
            f"Every arm had the same search: {given} learning rates with seed {seeds[0]}, which is not in the verdict, "
            f"and {spec.search_budget} per run; if the best rate was at the edge, more rates at the same ratio. With "
            "a single seed, the best rate is known only to within the ratio of neighbouring rates."
        )
    if spec.search_budget != spec.budget:
        words += " A shorter run has a higher best rate than a longer one, so these rates may be too high."
    return part(words, ["arm", f"{unit} by learning rate", "optimum", "95 %", "remark"], rows)


def _within(low: float, high: float, tried: Mapping[float, float | None]) -> str:
    """An interval in words; an end outside of the rates that were tried is not a measurement."""
    first = f"{low:.2g}" if low >= min(tried) else f"below {min(tried):g}"
    return f"{first} to {high:.2g}" if high <= max(tried) else f"{first} to above {max(tried):g}"
