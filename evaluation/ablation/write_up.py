"""report.md, results.csv and the plan in the terminal: what was asked, done and found, to be read alone."""

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
from evaluation.ablation.spec import FIRST_SEEDS, Spec
from evaluation.ablation.statistics import ALPHA, POWER, part, summary, table, with_interval
from evaluation.ablation.verdict import Ablation, Verdict, verdicts

RUN_UNITS = {"bits_per_byte": "bits per byte", "val_loss": "nats per token"}
UNITS = RUN_UNITS | {"loss_after_first_segment": "nats per token after the first segment"}
# Simulated, 40,000 pairs without a difference: a test at 3 seeds and another at 5, each at 5 %.
TWO_LOOKS = "about 9 % of the time and not 5"


def plan_text(spec: Spec, arms: dict[str, PlannedArm]) -> str:
    """Every arm by every measure, before anything runs."""
    return f"{spec.name}: {len(arms)} arms, axis {spec.axis}, {spec.budget} a run\n{_arms(arms)}"


def write(x: Ablation) -> None:
    """The report of everything that results.jsonl holds."""
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
    spec, results, found = x.spec, x.results, verdicts(x)
    stored = matching.read(x.folder / matching.NAME)
    yield f"# {spec.name}\n\n{spec.question}"
    told = [in_words(v, spec.measure) for v in found] + segments.gap_in_words(x)
    yield "\n".join(f"- {line}" for line in told) or "No pair was asked for."
    yield f"## Arms\n\n{_matched(spec, x.arms)}\n\n{_arms(x.arms)}"
    yield f"## Learning rates\n\n{_search(x)}"
    scored = [line["validation_tokens"] for line in results.of("verdict") if line["status"] == "ok"]
    tokens = f"{min(scored):,}" if scored else "no"
    if len(set(scored)) > 1:  # tokenizers differ
        tokens += f" to {max(scored):,}"
    yield f"## Results\n\nThe closing evaluation, over {tokens} validation tokens.\n\n{_results(x)}"
    yield f"## Pairs\n\n{_pairs(spec, found)}"
    if spec.segments:
        yield f"## By segment\n\n{segments.section(x)}"
    if loads := _loads(x):
        yield f"## Load of the experts\n\n{loads}"
    yield f"## Costs\n\n{_costs(x)}"
    if images:
        yield "\n\n".join(f"![{path.stem}]({path.name})" for path in images)
    if gone:
        yield f"The curves are without {gone} of the runs, of which the results were kept and not the folders."
    if bad := [line for line in results.lines.values() if line["status"] != "ok"]:
        told = "\n".join(f"- {line['id']}: {line['status']}: {line['message']}" for line in bad)
        yield f"## What did not end well\n\n{told}"
    came = stored.provenance
    trained = [*results.of("search"), *results.of("verdict")]
    commits = dict.fromkeys(str(line.get("commit", came["commit"])) for line in trained)
    yield (
        f"## How\n\n    {came['command']}\n\nCommit {', '.join(commits) or came['commit']}, torch {came['torch']}, Python "
        f"{came['python']}, on {stored.machine}. plan.json makes the same runs again: python ablate.py "
        "plan.json. results.jsonl has a line for each run, results.csv the same as a table."
    )


def in_words(v: Verdict, measure: str) -> str:
    """A verdict as a sentence."""
    c, unit = v.comparison, UNITS[measure]
    seeds = f"{len(v.seeds)} seeds"
    if v.lost:
        seeds += f"; {v.lost} did not end well in both and count nowhere"
    if v.refused:
        return f"**{v.first}** against **{v.second}**: not compared, as {v.refused}."
    if c.verdict == "not resolved":
        return (
            f"**{v.first}** against **{v.second}**: not resolved: this design resolves {c.resolves:.4f} {unit} "
            f"(found {c.difference:+.4f}, {seeds})."
        )
    return (
        f"**{v.first}** is {c.verdict} than **{v.second}** by {abs(c.difference):.4f} +- {c.half_width:.4f} {unit} "
        f"(p {c.p:.2g}, {seeds})."
    )


# ------------------------------------------------------------------------------------ the parts


def _matched(spec: Spec, arms: dict[str, PlannedArm]) -> str:
    how = {
        "none": "The arms are matched on nothing but their budget.",
        "time": "The arms train for equal seconds: their paces were measured, the tokens follow.",
    }.get(spec.axis, f"The arms are equal in {spec.axis} to within {TOLERANCE:.0%}, by {spec.adjust}.")
    same = "At one seed all get the same batches in the same order; the first batch of each run was compared."
    if len({arm.data for arm in arms.values()}) > 1:
        same = (
            "At one seed arms with the same shape of batches get the same ones in the same order, and the first "
            "were compared; the others read their documents in the same order."
        )
    return f"{how} A run has {spec.budget}. {same}"


def _arms(arms: dict[str, PlannedArm]) -> str:
    """The table, and below it which shared settings an arm does without."""

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
        return "There was no search: every arm ran at its own learning rate, and a difference may be one of learning rates."
    for name in x.arms:
        lines = sorted(x.results.of("search", name), key=lambda line: line["lr"])
        tried = {line["lr"]: line[spec.run_measure] for line in lines}
        best = best_rate(tried)
        told = [
            f"{line[spec.run_measure]:.4f}" if line["status"] == "ok" else line["status"] for line in lines
        ]
        shown = [f"{rate:g}: {words}" for rate, words in zip(tried, told)]
        remarks = [f"{len(lines) - given} beyond the edge"] if len(lines) > given else []
        remarks += ["the best still at the edge"] if best in (min(tried), max(tried)) else []
        rows.append([name, "; ".join(shown), f"{best:g}" if best else "none", ", ".join(remarks)])
    words = (
        f"Every arm had the same search: {given} learning rates, seed {spec.search_seed} (not in the verdict), "
        f"{spec.search_budget} a run, and further steps of the same ratio where the best was at the edge."
    )
    if spec.search_budget != spec.budget:
        words += " The best rate of a shorter run is higher than that of a longer one: these may be too high."
    return part(words, ["arm", f"{unit} by learning rate", "best", "remark"], rows)


def _results(x: Ablation) -> str:
    rows = []
    for name in x.arms:
        lines = list(x.ended_well(name).values())
        begun = len(x.results.of("verdict", name))
        row = [name, f"{len(lines)} of {begun}", f"{lines[0]['lr']:g}" if lines else "-"]
        for measure in RUN_UNITS:
            found = summary([line[measure] for line in lines]) if lines else (math.nan,) * 3
            row += ["-" if math.isnan(value) else f"{value:.4f}" for value in found]
        rows.append(row)
    head = [cell for unit in RUN_UNITS.values() for cell in (unit, "sd", "95 %: +-")]
    return table(["arm", "runs", "lr", *head], rows)


def _pairs(spec: Spec, found: list[Verdict]) -> str:
    if not found:
        return "None were asked for."
    rows = []
    for v in found:
        c, pair = v.comparison, [v.first, v.second, len(v.seeds)]
        if v.refused:
            rows.append([*pair, "-", "-", "-", "not compared", v.refused])
            continue
        apart = [f"{c.difference:+.4f}", f"+- {c.half_width:.4f}", f"{c.p:.3g}"]
        rows.append([*pair, *apart, c.verdict, f"{c.resolves:.4f}"])
    head = ["first", "second", "seeds", "first - second", "95 %", "p", "first is", "resolves"]
    words = (
        f"{UNITS[spec.measure].capitalize()}, lower is better; paired t over the seeds, p corrected for the "
        f"number of pairs ({len(found)}) by Holm's rule at {ALPHA:.0%}. `resolves`: the difference that this design finds "
        f"{POWER:.0%} of the time at this spread. An interval is of its pair alone."
    )
    if any(len(v.seeds) > FIRST_SEEDS for v in found):
        words += (
            f" Pairs that {FIRST_SEEDS} seeds left open got more: with two looks a pair without a "
            f"difference is called different {TWO_LOOKS}."
        )
    return part(words, head, rows)


def _loads(x: Ablation) -> str:
    """Empty where no arm has routers."""
    rows = []
    for name in x.arms:
        lines = [line for line in x.ended_well(name).values() if line.get(LOADS[0]) is not None]
        if lines:
            found = [summary([line[key] for line in lines]) for key in LOADS]
            rows.append([name, *map(with_interval, found)])
    words = (
        "Over all validation tokens of the closing evaluation, mean over the runs and 95 % interval. Max violation: load "
        "of the busiest expert / mean load - 1, 0 = even; dead: under 1 % of an even load, of all layers."
    )
    head = ["arm", "max violation, mean of the layers", "of the worst layer", "dead experts"]
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
    words = "Training: medians over the runs, evaluation not counted. In use: one row, with the cache, median of repeats."
    at_once = max((line.get("at_once", 1) for line in x.results.of("verdict")), default=1)
    if at_once > 1:
        words += f" Up to {at_once} runs at once shared this machine: their seconds are more than alone."
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
