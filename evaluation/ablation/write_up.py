"""report.md and results.csv. The report can be read without any other file."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from common.files import atomic_write
from evaluation.ablation import contracts, pictures, plan_file, segments
from evaluation.ablation.plan_text import RUN_UNITS, arms_table, fixed_plan, matched, search_table, test_set
from evaluation.ablation.results import LOADS, Results
from evaluation.ablation.spec import FIRST_SEEDS, Spec
from evaluation.ablation.statistics import ALPHA, POWER, part, summary, table, with_interval
from evaluation.ablation.verdict import Ablation, Verdict, verdicts

UNITS = RUN_UNITS | {"loss_after_first_segment": "nats per token after the first segment"}
# Simulated: 40,000 pairs without a difference, tested with 3 seeds and again with 5, each time at 5 %.
TWO_LOOKS = "about 9 % of the time, not 5 %"


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
    spec, results, found = x.spec, x.results, verdicts(x)
    stored = plan_file.read(x.folder / plan_file.NAME)
    # with the arms of the other contracts that were trained, but not the reference at shares of its budget
    run = [name for name in stored.plan.further if results.of("search", name) or results.of("verdict", name)]
    further = {name: stored.plan.further[name] for name in run if name not in stored.plan.shares}
    every = replace(x, arms=x.arms | further)
    yield f"# {spec.name}\n\n{spec.question}"
    told = [in_words(v, spec.measure) for v in found] + segments.gap_in_words(x)
    yield "\n".join(f"- {line}" for line in told) or "The specification asks for no pairs."
    if by_contract := contracts.section(x, stored.plan, found):
        yield f"## Contracts\n\n{by_contract}"
    yield f"## Arms\n\n{matched(spec, x.arms)}{test_set(x)}\n\n{arms_table(x.arms, further)}"
    yield f"## Learning rates\n\n{search_table(every)}"
    scored = [line["validation_tokens"] for line in results.of("verdict") if line["status"] == "ok"]
    tokens = f"{min(scored):,}" if scored else "no"
    if len(set(scored)) > 1:  # tokenizers differ
        tokens += f" to {max(scored):,}"
    yield (
        f"## Results\n\nThe closing evaluation, over {tokens} validation tokens of the same text. sd and +- "
        f"(95 % interval of the mean) are over seeds.\n\n{_results(every)}"
    )
    yield f"## Pairs\n\n{_pairs(spec, found)}"
    if spec.segments:
        yield f"## By segment\n\n{segments.section(x)}"
    if loads := _loads(every):
        yield f"## Load of the experts\n\n{loads}"
    yield f"## Costs\n\n{_costs(every)}"
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
        f"## How\n\n    {came['command']}\n\n{fixed_plan(x, stored)} Commit {', '.join(commits) or came['commit']}, torch "
        f"{came['torch']}, Python {came['python']}, on {stored.machine}. `python ablate.py plan.json` "
        "repeats the same runs. results.jsonl has a line for each run; results.csv holds the same as a "
        "table."
    )


def in_words(v: Verdict, measure: str) -> str:
    """A verdict as a sentence."""
    c, unit = v.comparison, UNITS[measure]
    if v.refused:
        return f"**{v.first}** against **{v.second}**: not compared, because {v.refused}."
    interval = f"95 % interval of this pair over {len(v.seeds)} seeds"
    if v.lost:
        interval += f"; {v.lost} more did not end well in both arms and are left out"
    if c.verdict == "not resolved":
        return (
            f"**{v.first}** against **{v.second}**: not resolved: {c.difference:+.4f} +- {c.half_width:.4f} "
            f"{unit} ({interval}); this design resolves {c.resolves:.4f}."
        )
    return (
        f"**{v.first}** is {c.verdict} than **{v.second}** by {abs(c.difference):.4f} +- {c.half_width:.4f} "
        f"{unit} ({interval}; p {c.p:.2g})."
    )


# ------------------------------------------------------------------------------------ the parts


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
        return "The specification asks for no pairs."
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
        f"{UNITS[spec.measure].capitalize()}, lower is better. p: paired t-test over seeds, corrected for "
        f"the number of pairs ({len(found)}) by Holm's rule at {ALPHA:.0%}. +-: 95 % interval of the "
        "difference of this pair over seeds, not corrected for the number of pairs; it does not include the "
        f"choice of validation text. `resolves`: the difference that this design detects {POWER:.0%} of the "
        "time. It is estimated from the spread of a few differences: with three seeds the true value is 0.5 "
        "to 6 times as large, with five 0.6 to 3 times (95 %)."
    )
    if any(len(v.seeds) > FIRST_SEEDS for v in found):
        words += (
            f" Pairs not resolved by {FIRST_SEEDS} seeds got more seeds: with two looks a pair without a "
            f"difference is called different {TWO_LOOKS}."
        )
    return part(words, head, rows)


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
    memory, rows = "peak_memory_gb", []
    training = {"training s": "seconds", "tokens/s": "tokens_per_second", "peak GB": memory}
    use = {"checkpoint MB": "checkpoint_bytes", "weights MB": "weight_bytes", "in use: peak GB": memory}
    measured = [line for line in x.results.of("inference") if line["status"] == "ok"]
    for kind in ("prefill", "decode"):
        for unit, tag in {"s": "second", "CPU s": "cpu_second"}.items():
            if any(f"{kind}_tokens_per_{tag}" in line for line in measured):
                use[f"{kind} tokens/{unit}"] = f"{kind}_tokens_per_{tag}"
    for name in x.arms:
        runs = list(x.ended_well(name).values())
        used = [line for line in measured if line["arm"] == name]
        row = [name]
        for lines, columns in ((runs, training), (used, use)):
            for column, tag in columns.items():
                values = [line[tag] for line in lines if line.get(tag) is not None]
                row.append(
                    _figure(statistics.median(values or [math.nan]) / (1e6 if column.endswith("MB") else 1))
                )
                if each := [rate for line in lines for rate in line.get(f"{tag}_each_round", ())]:
                    row[-1] += f" ({_figure(min(each))} to {_figure(max(each))})"
        rows.append(row)
    words = "Training: medians over the runs, evaluation not counted."
    around = ("matmul_gflops_before", "matmul_gflops_after")
    rates = [
        line[tag] for name in x.arms for line in x.ended_well(name).values() for tag in around if tag in line
    ]
    if rates:
        words += (
            f" Right before and after the runs, a fixed product of matrices ran at {min(rates):,.0f} to "
            f"{max(rates):,.0f} GFLOP/s on this machine."
        )
    words += " In use: one checkpoint per arm, one row, with the cache, "
    if rates := [rate for line in measured for rate in line.get("matmul_gflops_each_round", ())]:
        rounds = max(len(line.get("matmul_gflops_each_round", ())) for line in measured)
        words += (
            f"median (smallest to largest) of {rounds} rounds in which the arms took turns, while that product ran at "
            f"{min(rates):,.0f} to {max(rates):,.0f} GFLOP/s. The time of other programs does not count in a CPU "
            "second, and they can only lower this rate: a tenth of the rounds exceed its figure. Compare arms by it."
        )
    else:
        words += "median of repeats; measured once, so other work on the machine shows in it."
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
