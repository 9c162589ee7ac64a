"""Verdicts in words and tables, for the report and for `python -m evaluation.ablation.judge`."""

from __future__ import annotations

import math

from evaluation.ablation.contrasts import OUTLIER
from evaluation.ablation.statistics import ALPHA, POWER, part
from evaluation.ablation.verdict import DERIVED, PLANNED, Ablation, Spreads, Verdict, spreads

RUN_UNITS = {"bits_per_byte": "bits per byte", "val_loss": "nats per token"}
UNITS = RUN_UNITS | {"loss_after_first_segment": "nats per token after the first segment"}


def in_words(v: Verdict, measure: str) -> str:
    """A verdict as a sentence."""
    c, unit, names = v.comparison, UNITS[measure], f"**{v.first}** against **{v.second}**"
    if v.kind != PLANNED:
        names += f" ({v.kind})"
    if v.refused:
        return f"{names}: not compared, because {v.refused}."
    interval = f"95 % interval for all pairs together, over {len(v.seeds)} seeds"
    if v.lost:
        interval += f"; {v.lost} more did not end well in both arms and are left out"
    if c.verdict == "not resolved":
        resolves = f"this design resolves {c.resolves.value:.4f}"
        if math.isnan(c.resolves.value):
            resolves = "the runs have no spread, which would say what the design resolves"
        if v.withdrawn:
            resolves = (
                f"the first seeds alone resolve this pair, and all seeds do not bear it out; {resolves}"
            )
        return f"{names}: not resolved: {c.difference:+.4f} +- {c.half_width:.4f} {unit} ({interval}); {resolves}."
    said = f"**{v.first}** is {c.verdict} than **{v.second}**"
    if v.kind != PLANNED:
        said += f" ({v.kind})"
    return f"{said} by {abs(c.difference):.4f} +- {c.half_width:.4f} {unit} ({interval}; p {c.p:.2g})."


def beside_in_words(x: Ablation, found: list[Verdict]) -> list[str]:
    """A sentence for each pair that was chosen after the runs, and one for all derived pairs."""
    told = [in_words(v, x.spec.measure) for v in found if v.kind != DERIVED]
    derived = [v for v in found if v.kind == DERIVED and not v.refused]
    resolved = [
        f"**{v.first}** is {c.verdict} than **{v.second}** by {abs(c.difference):.4f} +- {c.half_width:.4f}"
        for v in derived
        if (c := v.comparison).verdict != "not resolved"
    ]
    rest = [
        f"**{v.first}** against **{v.second}**" for v in derived if v.comparison.verdict == "not resolved"
    ]
    if derived:
        words = (
            f"Derived from the plan's chain, corrected for all pairs of arms, in {UNITS[x.spec.measure]}: "
        )
        words += "; ".join(resolved)
        words += "; " * bool(resolved and rest) + ("not resolved: " + ", ".join(rest) if rest else "")
        told.append(f"{words}.")
    return told


def looks_in_words(x: Ablation) -> str:
    """How often the seeds were looked at, and what that costs."""
    if len(x.looks) == 1:
        return (
            f"One look, at all seeds. If no planned pair differed, one of them would be called different in at most "
            f"{ALPHA:.0%} of such reports."
        )
    return (
        f"Two looks: at the first {x.spec.first_seeds} seeds of all arms, and then at all seeds, which only the arms of "
        "pairs get that the first look does not resolve. A verdict is that of the last look; an earlier look that says "
        f"the opposite withdraws it. Each look is held to {x.level:.1%}. If no planned pair differed, one of them would "
        f"be called different in at most {ALPHA:.0%} of such reports, both looks together."
    )


def set_in_words(x: Ablation, found: Spreads | None) -> str:
    """Which text the scores are of, and whether the intervals include its choice."""
    if not x.tested:
        return (
            "The scores are of the validation text. The intervals are over seeds only: they do not include the choice "
            "of the text."
        )
    if found is None or found.documents is None:
        return (
            "The scores are of the test set. The sums of its documents for this score are not stored for all runs, so "
            "that the intervals are over seeds only: they do not include the choice of the documents."
        )
    return f"The scores are of the test set. The intervals are over seeds and over its {found.documents:,} documents."


def pairs_section(x: Ablation, planned: list[Verdict], others: list[Verdict]) -> str:
    """The planned pairs, the pairs beside the plan, and the spread of the runs."""
    found = spreads(x)
    told = [_planned(x, planned, found)] if planned else ["The specification asks for no pairs."]
    told += [_beside(x, others), _spreads(found)]
    return "\n\n".join(filter(None, told))


HEAD = ["first", "second", "seeds", "first - second", "95 %", "p", "first is", "resolves"]


def _rows(x: Ablation, found: list[Verdict]) -> list[list[str]]:
    """The rows of a table of pairs; the look that resolved a pair is named where there are two."""
    rows = []
    for v in found:
        c, row = v.comparison, [v.first, v.second, str(len(v.seeds))]
        if v.refused:
            rows.append([*row, "-", "-", "-", "not compared", v.refused])
            continue
        resolves = f"{c.resolves.value:.4f} ({c.resolves.low:.4f} to {c.resolves.high:.4f})"
        resolves = "-" if math.isnan(c.resolves.value) else resolves
        look = f" (look {v.look})" if v.look and v.kind == PLANNED and len(x.looks) > 1 else ""
        look = " (at look 1 only)" if v.withdrawn else look
        apart = [f"{c.difference:+.4f}", f"+- {c.half_width:.4f}", f"{c.p:.3g}"]
        rows.append([*row, *apart, c.verdict + look, resolves])
    return rows


def _planned(x: Ablation, found: list[Verdict], spread: Spreads | None) -> str:
    several = f"all {len(found)} planned pairs" if len(found) > 1 else "the planned pair"
    if len(x.looks) > 1:
        several += f" and {len(x.looks)} looks"
    words = (
        f"{UNITS[x.spec.measure].capitalize()}, lower is better. {set_in_words(x, spread)}\n\n{looks_in_words(x)}\n\n"
        f"+- and p are corrected for {several}. The difference comes from a model of arms and seeds over all runs; "
        "among arms with the same seeds it is the mean of the paired differences. An interval is the wider of two: "
        "the simultaneous one from the pooled spread of all arms (largest |t|), and the one from the spreads of "
        f"these two arms (Welch). `resolves`: the difference that this design detects {POWER:.0%} of the time if all "
        "arms have the pooled spread, with the 95 % interval that comes from the uncertainty of this spread."
    )
    return part(words, HEAD, _rows(x, found))


def _beside(x: Ablation, found: list[Verdict]) -> str:
    arms = len(x.spec.expanded())
    words = (
        "Beside the plan. Pairs are derived where the plan compares each arm with the one before it: the arms against "
        "the first one, and the last one against the arms. Others were chosen after the runs. +- and p are corrected "
        f"for all {arms * (arms - 1) // 2} pairs of arms, so that it costs nothing to pick among them. This table is a "
        f"family of its own: it errs in at most another {ALPHA:.0%} of reports."
    )
    rows = [[row[0], row[1], v.kind, *row[2:]] for v, row in zip(found, _rows(x, found))]
    return part(words, [*HEAD[:2], "pair", *HEAD[2:]], rows)


def _spreads(found: Spreads | None) -> str:
    if found is None:
        return ""
    rows = [
        [arm, f"{one.deviation:.4f}", f"{one.p:.2g}", "left out of the pool" if one.left_out else ""]
        for arm, one in found.arms.items()
    ]
    words = (
        f"Spread of the runs about the model of arms and seeds: pooled standard deviation {found.pooled:.4f} with "
        f"{found.df} degrees of freedom."
    )
    if len(rows) < 3:  # two arms always spread equally about the model
        return words
    words += (
        " Each arm alone, with p of an F test that it spreads more than the others, corrected for the number of arms. "
        f"Below {OUTLIER:g} its pairs are judged by its own spread, and it is left out of the pool of the other pairs."
    )
    return part(words, ["arm", "standard deviation", "p", ""], rows)
