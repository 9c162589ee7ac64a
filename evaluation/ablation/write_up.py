"""report.md, results.csv, and the plan in the terminal. The report can be read without any other file."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from common.files import atomic_write
from evaluation.ablation import matching, pictures, segments
from evaluation.ablation.matching import TOLERANCE, PlannedArm, best_rate, flops_in_all
from evaluation.ablation.results import LOADS, Results
from evaluation.ablation.spec import Spec
from evaluation.ablation.statistics import part, summary, table, with_interval
from evaluation.ablation.verdict import Ablation, beside, verdicts
from evaluation.ablation.verdict_text import RUN_UNITS, UNITS, beside_in_words, in_words, pairs_section
from training.costs import EVALUATION


def plan_text(spec: Spec, arms: dict[str, PlannedArm]) -> str:
    """The costs of every arm, before anything runs."""
    title = f"{spec.name}: {len(arms)} arms, axis {spec.axis}, {spec.budget} per run"
    return "\n".join((title, _arms(arms), *map(_evaluations, arms.values())))


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


def write(x: Ablation) -> None:
    """Write the report of all results in results.jsonl."""
    logged = pictures.logged_runs(x)
    images = pictures.write_curves(x, logged) + pictures.write_differences(x, logged)
    gone = sum(len(x.ended_well(name)) - len(runs) for name, runs in logged.items())
    if x.spec.segments:
        images += pictures.write_segments(x)
    text = "\n\n".join(_sections(x, images, gone)) + "\n"
    for name, content in (("report.md", text), ("results.csv", _csv(x.results))):
        with atomic_write(x.folder / name) as file:
            file.write(content.encode())
    print(text)


def _sections(x: Ablation, images: list[Path], gone: int) -> Iterable[str]:
    spec, results, found, others = x.spec, x.results, verdicts(x), beside(x)
    stored = matching.read(x.folder / matching.NAME)
    yield f"# {spec.name}\n\n{spec.question}"
    told = [in_words(v, spec.measure) for v in found] + beside_in_words(x, others) + segments.gap_in_words(x)
    yield "\n".join(f"- {line}" for line in told) or "The specification asks for no pairs."
    yield f"## Arms\n\n{_matched(spec, x.arms)}\n\n{_arms(x.arms)}"
    yield f"## Learning rates\n\n{_search(x)}"
    yield f"## Results\n\n{_results(x)}"
    yield f"## Pairs\n\n{pairs_section(x, found, others)}"
    if spec.segments:
        yield f"## By segment\n\n{segments.section(x)}"
    if loads := _loads(x):
        yield f"## Load of the experts\n\n{loads}"
    yield f"## Costs\n\n{_costs(x)}"
    if images:
        yield "\n\n".join(f"![{path.stem}]({path.name})" for path in images)
    if gone:
        yield f"The curves are without {gone} of the runs: their results were kept, but not their folders."
    if bad := [line for line in results.lines.values() if line["status"] != "ok"]:
        told = "\n".join(f"- {line['id']}: {line['status']}: {line['message']}" for line in bad)
        yield f"## What did not end well\n\n{told}"
    came = stored.provenance
    trained = [*results.of("search"), *results.of("verdict")]
    commits = dict.fromkeys(str(line.get("commit", came["commit"])) for line in trained)
    yield (
        f"## How\n\n    {came['command']}\n\nCommit {', '.join(commits) or came['commit']}, torch "
        f"{came['torch']}, Python {came['python']}, on {stored.machine}. `python ablate.py plan.json` "
        "repeats the same runs. results.jsonl has a line for each run; results.csv holds the same as a "
        "table."
    )


# ------------------------------------------------------------------------------------ the parts


def _matched(spec: Spec, arms: dict[str, PlannedArm]) -> str:
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


def _arms(arms: dict[str, PlannedArm]) -> str:
    """The table of costs, and below it the shared settings that an arm's model does not have."""

    def count(value: float | None) -> str:
        return "measured first" if value is None else f"{value:,.0f}"

    head = ["arm", "total", "active", "active, no head", "FLOPs/token"]
    head += ["FLOPs in all", "tokens", "steps", "adjusted"]
    paced = any(arm.seconds_per_token for arm in arms.values())
    rows = []
    for arm in arms.values():
        in_all = "measured first" if arm.steps is None else f"{flops_in_all(arm):.3g}"
        row = [arm.name, *map(count, arm.axes.values()), in_all, count(arm.tokens), count(arm.steps)]
        row.append(arm.adjusted or ("reference" if arm.reference == arm.name and len(arms) > 1 else ""))
        rows.append(row + ([f"{1e6 * arm.seconds_per_token:,.0f}"] if paced else []))
    told = table(head + ["s per 1M tokens"] * paced, rows)
    lacking: dict[str, list[str]] = {}
    for arm in arms.values():
        for setting in arm.without:
            lacking.setdefault(setting, []).append(arm.name)
    if lacking:
        told += "\n\nShared settings that an arm's model does not have: " + ", ".join(
            f"{setting} ({', '.join(names)})" for setting, names in lacking.items()
        )
    return told


def _search(x: Ablation) -> str:
    spec, rows = x.spec, []
    given, unit = len(spec.learning_rates), UNITS[spec.run_measure]
    if not given:
        return (
            "There was no search: every arm ran at its own learning rate, so a difference between arms may "
            "come from their learning rates."
        )
    for name in x.arms:
        lines = sorted(x.results.of("search", name), key=lambda line: line["lr"])
        tried = {line["lr"]: line[spec.run_measure] for line in lines}
        best = best_rate(tried)
        told = [
            f"{line[spec.run_measure]:.4f}" if line["status"] == "ok" else line["status"] for line in lines
        ]
        shown = [f"{rate:g}: {words}" for rate, words in zip(tried, told)]
        remarks = [f"{len(lines) - given} beyond the edge"] if len(lines) > given else []
        remarks += ["best rate at the edge"] if best in (min(tried), max(tried)) else []
        rows.append([name, "; ".join(shown), f"{best:g}" if best else "none", ", ".join(remarks)])
    words = (
        f"Every arm had the same search: {given} learning rates with seed {spec.search_seed}, which is not "
        f"in the verdict, and {spec.search_budget} per run; if the best rate was at the edge, more rates at "
        "the same ratio. With a single seed, the best rate is known only to within the ratio of "
        "neighbouring rates."
    )
    if spec.search_budget != spec.budget:
        words += " A shorter run has a higher best rate than a longer one, so these rates may be too high."
    return part(words, ["arm", f"{unit} by learning rate", "best", "remark"], rows)


def _results(x: Ablation) -> str:
    """The scores of every arm; those of the test set first, where there is one."""
    scored = [line["validation_tokens"] for line in x.results.of("verdict") if line["status"] == "ok"]
    tokens = f"{min(scored):,}" if scored else "no"
    if len(set(scored)) > 1:  # tokenizers differ
        tokens += f" to {max(scored):,}"
    words = (
        f"The closing evaluation, over {tokens} validation tokens of the same text. sd and +- (95 % interval of the "
        "mean) are over seeds."
    )
    columns = dict(RUN_UNITS)
    if any(x.ended_well(name, "test_bits_per_byte") for name in x.arms):
        columns = {"test_bits_per_byte": f"test: {RUN_UNITS['bits_per_byte']}"} | columns
        words += " `test`: over the test set, which only verdicts look at; the other columns are of validation text."
    rows = []
    for name in x.arms:
        lines = list(x.ended_well(name).values())
        begun = len(x.results.of("verdict", name))
        row = [name, f"{len(lines)} of {begun}", f"{lines[0]['lr']:g}" if lines else "-"]
        for measure in columns:
            values = [line[measure] for line in lines if measure in line]
            found = summary(values) if values else (math.nan,) * 3
            row += ["-" if math.isnan(value) else f"{value:.4f}" for value in found]
        rows.append(row)
    head = [cell for unit in columns.values() for cell in (unit, "sd", "95 %: +-")]
    return part(words, ["arm", "runs", "lr", *head], rows)


def _loads(x: Ablation) -> str:
    """The load of the experts; "" if no arm has routers."""
    rows = []
    for name in x.arms:
        lines = [line for line in x.ended_well(name).values() if line.get(LOADS[0]) is not None]
        if lines:
            found = [summary([line[key] for line in lines]) for key in LOADS]
            rows.append([name, *map(with_interval, found)])
    words = (
        "Over all validation tokens of the closing evaluation. +-: 95 % interval of the mean over seeds. "
        "Max violation: load of the busiest expert / mean load - 1, 0 = even. Dead experts: below 1 % of an "
        "even load, all layers."
    )
    head = ["arm", "max violation, mean over layers", "worst layer", "dead experts"]
    return part(words, head, rows)


def _costs(x: Ablation) -> str:
    memory = "peak_memory_gb"
    training = {"training s": "seconds", "tokens/s": "tokens_per_second", "peak GB": memory}
    use = {"checkpoint MB": "checkpoint_bytes", "weights MB": "weight_bytes", "in use: peak GB": memory}
    use |= {f"{kind} tokens/s": f"{kind}_tokens_per_second" for kind in ("prefill", "decode")}
    rows = []
    for name in x.arms:
        runs = list(x.ended_well(name).values())
        used = [line for line in x.results.of("inference", name) if line["status"] == "ok"]
        row = [name]
        for lines, columns in ((runs, training), (used, use)):
            for column, tag in columns.items():
                value = statistics.median([line[tag] for line in lines] or [math.nan])
                row.append(_figure(value / 1e6 if column.endswith("MB") else value))
        rows.append(row)
    words = (
        "Training: medians over the runs, evaluation not counted. In use: one checkpoint per arm, one row, "
        "with the cache, median of repeats; measured once, so other work on the machine shows in it."
    )
    at_once = max((line.get("at_once", 1) for line in x.results.of("verdict")), default=1)
    if at_once > 1:
        words += (
            f" Up to {at_once} runs shared this machine at the same time, so each took longer than alone."
        )
    return part(words, ["arm", *training, *use], rows)


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _csv(results: Results) -> str:
    lines = list(results.lines.values())
    file = io.StringIO()
    names = dict.fromkeys(name for line in lines for name in line)
    writer = csv.DictWriter(file, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()
