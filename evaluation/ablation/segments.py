"""What a state is worth: runs scored segment by segment of their documents, and what that says over seeds.

Of a run, results.jsonl has from evaluation.context

    segment_tokens                tokens of each segment, by its number in its document
    loss_by_segment               nats per token of each; a model that carries a state carries it
    loss_after_first_segment      nats per token of all but the first

and of a model that carries a state the two losses again, with _zeroed and _swapped behind their names.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.ablation.matching import PlannedArm
from evaluation.ablation.results import Results, written_outcome
from evaluation.ablation.spec import Spec
from evaluation.ablation.statistics import Summary, summary, table, with_interval
from evaluation.ablation.verdict import ended_well

MEASURE = "loss_after_first_segment"
CONTROLS = {"zeroed": "state zeroed", "swapped": "state of another document"}
LEAST_SHARE = 0.01  # of the tokens: what few documents reach is not shown


class Closed(NamedTuple):
    """The share of the distance from one arm's loss to another's that a third one closes."""

    start: str
    end: str
    arm: str
    distance: (
        Summary | None
    )  # nats per token, over the seeds that all three ended well with, if any
    share: Summary | None  # None where the distance is not above 0 at every seed


def segments_outcome(folder: Path, code: int) -> dict[str, Any]:
    """status, message and the figures of a run."""
    record = written_outcome(folder, code)
    if record["status"] != "ok":
        return record
    if "after_the_first" not in record:
        message = "no validation document is longer than one segment; lower segments"
        return {"status": "failed", "message": message}
    found = {"status": "ok", "message": "", "segment_tokens": [s["tokens"] for s in record["segments"]]}  # fmt: skip
    for column in ("plain", "carried", *CONTROLS):
        if column in record["all"]:
            suffix = f"_{column}" if column in CONTROLS else ""
            found[f"loss_by_segment{suffix}"] = [s[column]["mean"] for s in record["segments"]]
            found[MEASURE + suffix] = record["after_the_first"][column]["mean"]
    return found


def evaluated(arm: str, results: Results) -> dict[int, dict[str, Any]]:
    """{seed: line} of the runs of an arm that ended well and were scored by segment."""
    return ended_well(arm, results, MEASURE)


def over_seeds(values: list[float]) -> Summary | None:
    """None without any."""
    return summary(values) if values else None


def shown_segments(arms: list[str], results: Results) -> list[int]:
    """The tokens of each segment, as far as enough documents reach; the same of all runs, [] of none."""
    for arm in arms:
        for line in evaluated(arm, results).values():
            tokens = line["segment_tokens"]
            return [count for count in tokens if count >= LEAST_SHARE * sum(tokens)]
    return []


def _loss(line: dict[str, Any], number: int | None) -> float:
    """Of a segment of a run; where number is None, of all after the first."""
    return line[MEASURE] if number is None else line["loss_by_segment"][number]


def loss_of_segment(arm: str, results: Results, number: int | None) -> Summary | None:
    return over_seeds([_loss(line, number) for line in evaluated(arm, results).values()])


def beside_references(arms: dict[str, PlannedArm], results: Results) -> list[tuple[str, str]]:
    """(arm, its reference) where both were scored at a seed that they have in common."""
    pairs = [(name, arm.reference) for name, arm in arms.items() if name != arm.reference]
    return [pair for pair in pairs if above(*pair, results, None)]


def above(arm: str, reference: str, results: Results, number: int | None) -> Summary | None:
    """How much higher an arm's loss of a segment is than its reference's at the same seeds."""
    mine, theirs = (evaluated(name, results) for name in (arm, reference))
    shared = [seed for seed in mine if seed in theirs]
    return over_seeds([_loss(mine[seed], number) - _loss(theirs[seed], number) for seed in shared])


def harm(arm: str, results: Results, control: str) -> Summary | None:
    """How much higher the loss after the first segment is with the state of a control; None of a model
    that carries none.
    """
    lines, tag = evaluated(arm, results).values(), f"{MEASURE}_{control}"
    return over_seeds([line[tag] - line[MEASURE] for line in lines if tag in line])


def closed(spec: Spec, results: Results) -> list[Closed]:
    """For each further arm, the shares that it closes seed by seed."""
    found = []
    for start, end, others in spec.gaps(spec.expanded()):
        for arm in others:
            lines = [evaluated(name, results) for name in (start, end, arm)]
            seeds = [seed for seed in spec.seeds if all(seed in runs for runs in lines)]
            losses = [[runs[seed][MEASURE] for runs in lines] for seed in seeds]
            distances, shares = [a - b for a, b, _ in losses], []
            if min(distances, default=0) > 0:
                shares = [(a - c) / (a - b) for a, b, c in losses]
            found.append(Closed(start, end, arm, over_seeds(distances), over_seeds(shares)))
    return found


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
    every = next(iter(evaluated(names[0], results).values()))["segment_tokens"]
    counts = {**dict(enumerate(shown_segments(names, results))), None: sum(every[1:])}
    rows = []
    for number, count in counts.items():
        found = [with_interval(loss_of_segment(name, results, number)) for name in names]
        rows.append([_row_name(number), f"{count:,}", *found])
    words = (
        f"Nats per token of the same validation documents, by segment of {spec.segments} tokens, numbered from 0: mean "
        f"over the seeds and 95 % interval. Segments with under {LEAST_SHARE:.0%} of the tokens are in results.jsonl only."
    )
    return f"{words}\n\n{table(['segment', 'tokens', *names], rows)}"


def _row_name(number: int | None) -> str:
    return "from 1 on" if number is None else str(number)


def _above(arms: dict[str, PlannedArm], names: list[str], results: Results) -> str:
    pairs = beside_references(arms, results)
    if not pairs:
        return ""
    rows = []
    for number in (*range(len(shown_segments(names, results))), None):
        found = [with_interval(above(*pair, results, number)) for pair in pairs]
        rows.append([_row_name(number), *found])
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
