"""What the report says of documents' segments: tokens seen, loss by segment, controls, the share of a gap."""

from __future__ import annotations

import statistics

from training.ablation.matching import PlannedArm
from training.ablation.results import Results
from training.ablation.segments import (
    CONTROLS,
    LEAST_SHARE,
    MEASURE,
    above,
    beside_references,
    closed,
    evaluated,
    harm,
    loss_of_segment,
    shown_segments,
)
from training.ablation.spec import Spec
from training.ablation.statistics import summary
from training.ablation.table import table, with_interval


def section(spec: Spec, arms: dict[str, PlannedArm], results: Results) -> str:
    """The tables."""
    names = [name for name in arms if evaluated(name, results)]
    if not names:
        return "No run was scored by segment."
    parts = [
        _losses(spec, names, results),
        _above(arms, names, results),
        _controls(names, results),
        _tokens(spec, names, results),
    ]
    return "\n\n".join(part for part in parts if part)


def gap_in_words(spec: Spec, results: Results) -> list[str]:
    """A sentence for each arm that may close the gap."""
    told = []
    for found in closed(spec, results):
        between = f"the gap between **{found.start}** and **{found.end}**"
        if found.distance is None:
            told.append(f"**{found.arm}**: no seed ended well in it and at both ends of {between}.")
        elif found.share is None:
            told.append(
                f"**{found.arm}**: there is no {between[4:]} to close, as it is not above 0 at every seed."
            )
        else:
            told.append(
                f"**{found.arm}** closes {with_interval(found.share, 1, scale=100)} % of {between}, which is "
                f"{with_interval(found.distance)} nats per token after the first segment."
            )
    return told


def _losses(spec: Spec, names: list[str], results: Results) -> str:
    tokens = shown_segments(names, results)
    rows = [
        [
            number,
            f"{count:,}",
            *(with_interval(loss_of_segment(name, results, number)) for name in names),
        ]
        for number, count in enumerate(tokens)
    ]
    after = [
        summary([line[MEASURE] for line in evaluated(name, results).values()]) for name in names
    ]
    every = next(iter(evaluated(names[0], results).values()))["segment_tokens"]
    rows.append(["from 1 on", f"{sum(every[1:]):,}", *map(with_interval, after)])
    words = (
        f"Nats per token of the same validation documents, by segment of {spec.segments} tokens, numbered from 0: mean "
        f"over the seeds and 95 % interval. Segments with under {LEAST_SHARE:.0%} of the tokens are in results.jsonl only."
    )
    return f"{words}\n\n{table(['segment', 'tokens', *names], rows)}"


def _above(arms: dict[str, PlannedArm], names: list[str], results: Results) -> str:
    pairs = beside_references(arms, results)
    if not pairs:
        return ""
    rows = []
    for number in (*range(len(shown_segments(names, results))), None):
        found = [with_interval(above(*pair, results, number)) for pair in pairs]
        rows.append(["from 1 on" if number is None else number, *found])
    words = "How far each arm is above its reference there: differences at the same seeds."
    return f"{words}\n\n{table(['segment', *map(' - '.join, pairs)], rows)}"


def _controls(names: list[str], results: Results) -> str:
    harms = {name: [harm(name, results, control) for control in CONTROLS] for name in names}
    rows = [
        [name, *map(with_interval, found)] for name, found in harms.items() if None not in found
    ]
    if not rows:
        return ""
    words = (
        "What it costs a trained model, in nats per token after the first segment, to begin each segment with another "
        "state than it carries: differences of the same run, mean over the seeds and 95 % interval."
    )
    return f"{words}\n\n{table(['arm', *CONTROLS.values()], rows)}"


def _tokens(spec: Spec, names: list[str], results: Results) -> str:
    seen = {
        name: [statistics.fmean(line[key] for line in evaluated(name, results).values()) for key in ("steps", "tokens")]
        for name in names
    }  # fmt: skip
    most = max(tokens for _, tokens in seen.values())
    rows = [
        [name, f"{steps:,.0f}", f"{tokens:,.0f}", f"{tokens / most:.1%}"]
        for name, (steps, tokens) in seen.items()
    ]
    words = "Training tokens, without padding: means over the runs."
    return f"{words}\n\n{table(['arm', 'steps', 'tokens seen', 'of the most'], rows)}"
