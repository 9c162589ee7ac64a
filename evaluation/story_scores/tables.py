"""The result of python -m evaluation.stories as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Why a measure does not tell some texts apart. Printed only where it does not.
_SAME_SENTENCES = "they have the same sentences"
NATURE = {
    **{("well_formed", other): _SAME_SENTENCES for other in ("shuffled", "joined")},
    **{
        (measure, other): _SAME_SENTENCES
        for measure in ("distinct_3", "self_bleu")
        for other in ("shuffled", "joined")
    },
    ("copied_8", "shuffled"): "most runs are inside a sentence",
    ("copied_8", "joined"): _SAME_SENTENCES,
    ("names_kept", "shuffled"): "they have the same names: this part sees joined stories",
    ("pronouns_fit", "joined"): "it changes at one place: this part sees shuffled stories",
    ("context_gain", "joined"): "a second model that hardly uses its context sees little",
    ("introduced", "joined"): "it changes at one place: this part sees shuffled stories",
}
# Smaller is better in one, and neither is better in the others.
_HEAD = {"bits_per_byte": "bits_per_byte (lower)", "self_bleu": "self_bleu (lower: more varied)"}


def number(found: dict[str, Any], digits: int = 3) -> str:
    """ "mean [low, high]", without what is unknown."""
    if found["mean"] is None:
        return "none"
    if not found["interval"]:
        return f"{found['mean']:.{digits}f}"
    low, high = found["interval"]
    return f"{found['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    from evaluation.ablation.statistics import (
        table as with_rules,  # here: it loads scipy, and --help needs none
    )

    return with_rules(head, rows)


def as_text(found: dict[str, Any]) -> str:
    """All tables, each under a line that says what it holds."""
    parts = [_pairs(found), _texts(found), _separation(found)]
    if "known_order" in found.get("judge", ()):
        parts.append(_judge(found["judge"]))
    return "\n\n".join(parts) + "\n[ ]: 95 % interval, exact for pairs, by bootstrap over prompts for texts"


def _pairs(found: dict[str, Any]) -> str:
    scores = found["pairs"]["scores"]
    kinds = list(scores["bigram"])
    rows = [
        [kind, scores["bigram"][kind]["number"], *(number(scores[name][kind]) for name in scores)]
        for kind in kinds
    ]
    head = (
        f"minimal pairs {found['pairs']['sha256'][:12]} of {found['held_out']['data']}: share in which the true text is "
        "more probable (chance 0.5, ceiling 1)"
    )
    lines = [head, table(["kind", "pairs", *scores], rows)]
    for name, contexts in found["pairs"]["context"].items():
        for context, taken in contexts.items():
            still = ", which still holds the word" if context == "shuffled" else ""
            lines.append(f"{name}: the real context is worth {number(taken)} above a {context} one{still}")
    empty = [kind for kind in kinds if not scores["bigram"][kind]["number"]]
    if empty:
        lines.append(
            f"no pairs ({', '.join(empty)}): a bigram model is right in every candidate, or there is none"
        )
    return "\n".join(lines)


def _texts(found: dict[str, Any]) -> str:
    texts = found["texts"]
    rows = [
        [_HEAD.get(measure, measure), *(number(texts[name][measure]) for name in texts)]
        for measure in texts["real"]
    ]
    head = (
        f"texts: {found['settings']['completions']} for each of {found['settings']['prompts']} openings, their first "
        f"{found['words']} words"
    )
    return f"{head}\n{table(['measure', *texts], rows)}"


def _separation(found: dict[str, Any]) -> str:
    rows = []
    for measure, others in found["separation"].items():
        for other, taken in others.items():
            low, high = taken["interval"] or (-1, 1)
            told = "yes" if low * high > 0 else "no"
            reason = NATURE.get((measure, other), "") if told == "no" else ""
            rows.append([measure, other, number(taken), told, reason])
    return "does a measure tell real stories from others?\n" + table(
        ["measure", "others", "real - others", "told apart", "why not"], rows
    )


def _judge(found: dict[str, Any]) -> str:
    known = found["known_order"]
    rows = [
        [name, *(number(one["grades"][g], 2) for g in one["grades"]), number(one["better"]), one["ties"]]
        for name, one in (("real (beside shuffled)", known), *found["models"].items())
    ]
    other = [number(known["grades_of_the_other"][grade], 2) for grade in known["grades"]]
    rows.insert(1, ["shuffled", *other, "", ""])
    lines = [
        f"judge {found['model']} at {found['url']}: grades from 1 to 10",
        table(["stories", *known["grades"], "better than the other", "ties"], rows),
        f"real is more consistent than shuffled in {number(known['better'])} of {known['better']['number']} pairs, "
        f"{known['ties']} ties; models stand beside real stories with the same opening",
        f"the first place wins {number(found['first_place'])} of the decided pairs; {found['without_an_answer']} pairs "
        "have no usable answer",
    ]
    return "\n".join(lines)
