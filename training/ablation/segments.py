"""What a state is worth: runs scored segment by segment of their documents, and what that says over seeds.

Of a run, results.jsonl has from training.context_eval

    segment_tokens                tokens of each segment, by its number in its document
    loss_by_segment               nats per token of each; a model that carries a state carries it
    loss_after_first_segment      nats per token of all but the first

and of a model that carries a state the two losses again, with _zeroed and _swapped behind their names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from training.ablation.matching import PlannedArm
from training.ablation.outcome import written_outcome
from training.ablation.results import Results
from training.ablation.spec import Spec
from training.ablation.statistics import Summary, summary
from training.ablation.verdict import ended_well

MEASURE = "loss_after_first_segment"
CONTROLS = {"zeroed": "state zeroed", "swapped": "state of another document"}
LEAST_SHARE = (
    0.01  # of the tokens: of the few documents that reach further segments nothing is shown
)


class Closed(NamedTuple):
    """The share of the distance from one arm's loss to another's that a third one closes."""

    start: str
    end: str
    arm: str
    distance: (
        Summary | None
    )  # nats per token, over the seeds that all three ended well with; None: there are none
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
    return {seed: line for seed, line in ended_well(arm, results).items() if MEASURE in line}


def shown_segments(arms: list[str], results: Results) -> list[int]:
    """The tokens of each segment, as far as enough documents reach; the same of all runs, [] of none."""
    for arm in arms:
        for line in evaluated(arm, results).values():
            tokens = line["segment_tokens"]
            return [count for count in tokens if count >= LEAST_SHARE * sum(tokens)]
    return []


def loss_of_segment(arm: str, results: Results, number: int) -> Summary | None:
    """Over the seeds; None without any."""
    lines = evaluated(arm, results).values()
    return summary([line["loss_by_segment"][number] for line in lines]) if lines else None


def beside_references(arms: dict[str, PlannedArm], results: Results) -> list[tuple[str, str]]:
    """(arm, its reference) where both were scored at a seed that they have in common."""
    pairs = [(name, arm.reference) for name, arm in arms.items() if name != arm.reference]
    return [pair for pair in pairs if above(*pair, results, None)]


def above(arm: str, reference: str, results: Results, number: int | None) -> Summary | None:
    """How much higher an arm's loss of a segment, or of all after the first where number is None, is than its
    reference's at the same seeds; None without any.
    """

    def loss(line: dict[str, Any]) -> float:
        return line[MEASURE] if number is None else line["loss_by_segment"][number]

    mine, theirs = (evaluated(name, results) for name in (arm, reference))
    differences = [loss(mine[seed]) - loss(theirs[seed]) for seed in mine if seed in theirs]
    return summary(differences) if differences else None


def harm(arm: str, results: Results, control: str) -> Summary | None:
    """How much higher the loss after the first segment is with the state of a control; None of a model
    that carries none.
    """
    differences = [
        line[f"{MEASURE}_{control}"] - line[MEASURE]
        for line in evaluated(arm, results).values()
        if f"{MEASURE}_{control}" in line
    ]
    return summary(differences) if differences else None


def closed(spec: Spec, results: Results) -> list[Closed]:
    """For each further arm, the shares that it closes seed by seed."""
    found = []
    for start, end, others in spec.gaps(spec.expanded()):
        for arm in others:
            lines = [evaluated(name, results) for name in (start, end, arm)]
            seeds = [seed for seed in spec.seeds if all(seed in runs for runs in lines)]
            losses = [[runs[seed][MEASURE] for runs in lines] for seed in seeds]
            distances = [a - b for a, b, _ in losses]
            shares = [(a - c) / (a - b) for a, b, c in losses] if min(distances, default=0) > 0 else []  # fmt: skip
            found.append(Closed(start, end, arm, *(summary(x) if x else None for x in (distances, shares))))  # fmt: skip
    return found
