"""The value of a carried state: losses by segment of a document, and their mean and interval over seeds.

evaluation.context adds to the results of a run

    segment_tokens                tokens of each segment, by its number in its document
    loss_by_segment               nats per token of each segment, with the state carried if the model has one
    loss_after_first_segment      nats per token of all segments but the first
    computed_per_token            tokens that the model computed for each scored token

and all but the first again for other ways to read with the same weights: under names that end in _zeroed and
_swapped, if the model carries a state, and in _overlap_N and _kept_N, if the specification asks for them.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from evaluation.ablation import matching
from evaluation.ablation.results import written_outcome
from evaluation.ablation.spec import Spec
from evaluation.ablation.statistics import Summary, part, summary, with_interval
from evaluation.ablation.verdict import Ablation

MEASURE, COST = "loss_after_first_segment", "computed_per_token"
CONTROLS = {"zeroed": "state zeroed", "swapped": "state of another document"}
LEAST_SHARE = 0.01  # segments with a smaller share of the tokens are not shown: few documents reach them


def reading_options(spec: Spec, arm: matching.PlannedArm) -> dict[str, Any]:
    """The flags of evaluation.context for an arm. Overlaps and kept keys are for arms that read one segment at
    a time without a state; keys are not kept where positions are learned, because those beyond the first
    segment were not trained.
    """
    cfg, config = matching.resolve(arm.name, arm.settings)
    asked: dict[str, Any] = {"segment_length": spec.segments}
    if cfg.carries or cfg.block_size != spec.segments:
        return asked
    numbers = {"overlap": spec.overlap, "keep_keys": spec.keep_keys}
    if config.position == "learned":
        del numbers["keep_keys"]
    return asked | {flag: ",".join(map(str, given)) for flag, given in numbers.items() if given}


def segments_outcome(folder: Path, code: int) -> dict[str, Any]:
    """Status, message and the losses by segment of a run."""
    record = written_outcome(folder, code)
    if record["status"] != "ok":
        return record
    if "after_the_first" not in record:
        message = "no validation document is longer than one segment; choose a smaller value for segments"
        return {"status": "failed", "message": message}
    found = {"status": "ok", "message": "", "segment_tokens": [s["tokens"] for s in record["segments"]]}
    costs = record.get("costs", {})
    for column, entry in record["all"].items():
        if isinstance(entry, dict) and " - " not in column:  # neither a count nor a difference
            suffix = "" if column in ("plain", "carried") else f"_{column}"
            found[f"loss_by_segment{suffix}"] = [s[column]["mean"] for s in record["segments"]]
            found[MEASURE + suffix] = record["after_the_first"][column]["mean"]
            if column in costs:
                found[COST + suffix] = costs[column]["tokens_computed_per_scored_token"]
    return found


def evaluated(x: Ablation, arm: str) -> dict[int, dict[str, Any]]:
    """{seed: line} for the runs of an arm that ended well and were scored by segment."""
    return x.ended_well(arm, MEASURE)


def shown_segments(x: Ablation) -> list[int]:
    """The tokens of each segment that is shown, equal in all runs; [] if no run was scored."""
    for arm in x.arms:
        for line in evaluated(x, arm).values():
            tokens = line["segment_tokens"]
            return [count for count in tokens if count >= LEAST_SHARE * sum(tokens)]
    return []


def _loss(line: dict[str, Any], number: int | None) -> float:
    """The loss of a segment of a run; of all segments after the first if number is None."""
    return line[MEASURE] if number is None else line["loss_by_segment"][number]


def _over_seeds(values: list[float]) -> Summary | None:
    return summary(values) if values else None


def loss_of_segment(x: Ablation, arm: str, number: int | None) -> Summary | None:
    return _over_seeds([_loss(line, number) for line in evaluated(x, arm).values()])


def beside_references(x: Ablation) -> list[tuple[str, str]]:
    """(arm, its reference) for the arms that share a scored seed with their reference."""
    pairs = [(name, arm.reference) for name, arm in x.arms.items() if name != arm.reference]
    return [pair for pair in pairs if above(x, *pair, None)]


def above(x: Ablation, arm: str, reference: str, number: int | None) -> Summary | None:
    """The loss of a segment minus that of the reference, at the same seeds."""
    mine, theirs = (evaluated(x, name) for name in (arm, reference))
    shared = [seed for seed in mine if seed in theirs]
    return _over_seeds([_loss(mine[seed], number) - _loss(theirs[seed], number) for seed in shared])


def harm(x: Ablation, arm: str, control: str) -> Summary | None:
    """The loss after the first segment with a control's state minus that with the carried state; None if the
    model carries no state.
    """
    lines, tag = evaluated(x, arm).values(), f"{MEASURE}_{control}"
    return _over_seeds([line[tag] - line[MEASURE] for line in lines if tag in line])


def other_readings(x: Ablation, arm: str) -> list[str]:
    """The other ways to read in which an arm was scored, in the order of the specification."""
    asked = [("overlap", x.spec.overlap), ("kept", x.spec.keep_keys)]
    names = [f"{way}_{number}" for way, given in asked for number in given or ()]
    return [name for name in names if any(f"{MEASURE}_{name}" in line for line in evaluated(x, arm).values())]


def gap_in_words(x: Ablation) -> list[str]:
    """A sentence about each arm that may close the gap, with its share of the gap at each seed."""
    told = []
    for start, end, others in x.spec.gaps(x.spec.expanded()):
        gap = f"the gap between **{start}** and **{end}**"
        for arm in others:
            lines = [evaluated(x, name) for name in (start, end, arm)]
            seeds = [seed for seed in x.spec.seeds if all(seed in runs for runs in lines)]
            losses = [[runs[seed][MEASURE] for runs in lines] for seed in seeds]
            distances = [a - b for a, b, _ in losses]
            if not seeds:
                told.append(f"**{arm}**: no seed ended well in this arm and at both ends of {gap}.")
            elif min(distances) <= 0:
                told.append(f"**{arm}**: no share of {gap}, because it is not above 0 at every seed.")
            else:
                share = summary([(a - c) / (a - b) for a, b, c in losses])
                told.append(
                    f"**{arm}** closes {with_interval(share, 1, scale=100)} % of {gap} (mean of the share at each "
                    f"seed); the gap is {with_interval(summary(distances))} nats per token after the first "
                    f"segment. +-: 95 % interval over seeds.{_from_first_segments(start, end, lines, seeds)}"
                )
    return told


def _from_first_segments(
    start: str, end: str, lines: list[dict[int, dict[str, Any]]], seeds: list[int]
) -> str:
    """What the gap is not: the ends may differ on the first segment, where context cannot matter; as sentences.

    lines: the runs of the start, of the end and of the arm that closes the gap, by seed.
    """
    first = [[runs[seed]["loss_by_segment"][0] for runs in lines] for seed in seeds]
    gains = [[runs[seed]["loss_by_segment"][0] - runs[seed][MEASURE] for runs in lines] for seed in seeds]
    apart = summary([b - a for a, b, _ in first])
    told = (
        f" On the first segment, where all have read the same, **{end}** minus **{start}** is "
        f"{with_interval(apart)}: a difference there does not come from context, so the share says less"
    )
    if min(b - a for a, b, _ in gains) <= 0:
        return f"{told}."
    share = summary([(c - a) / (b - a) for a, b, c in gains])
    return f"{told}. With each arm measured from its own first segment, it is {with_interval(share, 1, scale=100)} %."


# ------------------------------------------------------------------------------------ the tables


def section(x: Ablation) -> str:
    names = [name for name in x.arms if evaluated(x, name)]
    if not names:
        return "No run was scored by segment."
    parts = [_losses(x, names), _above(x), _readings(x, names), _controls(x, names), _tokens(x, names)]
    return "\n\n".join(part for part in parts if part)


def _row_name(number: int | None) -> str:
    return "from 1 on" if number is None else str(number)


def _losses(x: Ablation, names: list[str]) -> str:
    every = next(iter(evaluated(x, names[0]).values()))["segment_tokens"]
    counts = {**dict(enumerate(shown_segments(x))), None: sum(every[1:])}
    rows = []
    for number, count in counts.items():
        found = [with_interval(loss_of_segment(x, name, number)) for name in names]
        rows.append([_row_name(number), f"{count:,}", *found])
    words = (
        f"Loss in nats per token on the same {'test' if x.tested else 'validation'} documents, by segment of {x.spec.segments} tokens, "
        "numbered from 0. +-: 95 % interval of the mean over seeds. Segments with less than "
        f"{LEAST_SHARE:.0%} of the tokens are only in results.jsonl."
    )
    return part(words, ["segment", "tokens", *names], rows)


def _above(x: Ablation) -> str:
    pairs, rows = beside_references(x), []
    for number in (*range(len(shown_segments(x))), None) if pairs else ():
        found = [with_interval(above(x, *pair, number)) for pair in pairs]
        rows.append([_row_name(number), *found])
    words = (
        "Loss of each arm minus that of its reference, differences at the same seeds. +-: 95 % interval of "
        "the mean difference over seeds."
    )
    return part(words, ["segment", *map(" - ".join, pairs)], rows)


def _readings(x: Ablation, names: list[str]) -> str:
    """One row for each arm and each way to read it; "" if no arm was read in another way."""
    if not any(other_readings(x, name) for name in names):
        return ""
    rows = []
    for name in names:
        lines, theirs = evaluated(x, name), evaluated(x, reference := x.arms[name].reference)
        for reading in ("", *other_readings(x, name)):
            suffix = f"_{reading}" if reading else ""
            losses = {
                seed: line[MEASURE + suffix] for seed, line in lines.items() if MEASURE + suffix in line
            }
            fewer = [losses[seed] - lines[seed][MEASURE] for seed in losses] if reading else []
            beside = [losses[seed] - theirs[seed][MEASURE] for seed in losses if seed in theirs]
            cost = _over_seeds([line[COST + suffix] for line in lines.values() if COST + suffix in line])
            columns = (list(losses.values()), fewer, beside if name != reference else [])
            cells = [with_interval(summary(values)) if values else "" for values in columns]
            rows.append([name, reading or "as trained", *cells, f"{cost.mean:.3f}" if cost else ""])
    words = (
        "The same trained weights, read in other ways: overlap_N repeats the last N tokens of a window at the "
        "beginning of the next, and kept_N keeps their keys and values visible. Nats per token after the first "
        "segment; differences at the same seeds; tokens computed per scored token, with slots and repeated tokens. "
        "+-: 95 % interval over seeds, not corrected for the number of rows."
    )
    return part(words, ["arm", "read", "loss", "- as trained", "- reference", "computed"], rows)


def _controls(x: Ablation, names: list[str]) -> str:
    harms = {name: [harm(x, name, control) for control in CONTROLS] for name in names}
    rows = [[name, *map(with_interval, found)] for name, found in harms.items() if None not in found]
    words = (
        "Increase of the loss, in nats per token after the first segment, if the trained model begins each "
        "segment with another state than the carried one. The model was not trained for this. Differences "
        "within a run; +-: 95 % interval of the mean over seeds."
    )
    return part(words, ["arm", *CONTROLS.values()], rows)


def _tokens(x: Ablation, names: list[str]) -> str:
    seen = {}
    for name in names:
        lines = evaluated(x, name).values()
        seen[name] = [statistics.fmean(line[key] for line in lines) for key in ("steps", "tokens")]
    most = max(tokens for _, tokens in seen.values())
    rows = [
        [name, f"{steps:,.0f}", f"{tokens:,.0f}", f"{tokens / most:.1%}"]
        for name, (steps, tokens) in seen.items()
    ]
    words = "Training tokens, padding not counted; means over the runs."
    return part(words, ["arm", "steps", "tokens seen", "of the most"], rows)
