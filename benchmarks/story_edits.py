"""Measure the checker of bundled stories on edits: which contradictions does it see, what is a false alarm?

    python -m benchmarks.story_edits             writes benchmarks/results/story_edits.json
    python -m benchmarks.story_edits --seed 1    other edits by rule, to work on the checker with; no record

Four parts, all of held-out stories of data/stories:
- edits by hand, tests/fixtures/story_edits.jsonl: 50 contradict their story, 50 are harmless;
- edits by rule, 20 of each kind: ten kinds contradict (data/stories/contradictions.py), seven are harmless
  (story_paraphrases.py);
- the floors: all sentences but the first and the last shuffled, and the first half of one story joined to the
  second half of another with the same characters and the same object;
- the stories without any edit.

Each row tells how many the checker rejects, as a contradiction and in any way, with exact 95 % intervals
(Clopper and Pearson 1934). Exits with 1 if a limit is missed.

The edits by hand measure the checker only as long as nobody who changes it has read them. Therefore nothing
prints them but --show, and their kinds have no rows.
"""

from __future__ import annotations

import difflib
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.publish import judge, publish
from benchmarks.story_paraphrases import HARMLESS
from common.intervals import exact_interval
from common.script import Parser, exit_code
from data.stories import TRAIN_STORIES, VALIDATION_STORIES
from data.stories import story as tell
from data.stories.checker import Report, check
from data.stories.contradictions import CONTRADICTIONS, halves, joined, shuffled
from data.stories.grammar import pick

HAND = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "story_edits.jsonl"
HELD_OUT = range(TRAIN_STORIES, TRAIN_STORIES + VALIDATION_STORIES)
FOR_RULES = HELD_OUT[240:]  # the edits by hand are of the first 240
COUNT = 20  # edits by rule of each kind
MOST_SEEN, MOST_FALSE = 0.85, 0.03  # limits: at least, at most
story = cache(tell)


class Edit(NamedTuple):
    """A story with an edit."""

    kind: str
    stories: tuple[int, ...]  # the number of the story; of both stories if halves are joined
    text: str
    contradicts: bool


def by_hand(path: Path = HAND) -> list[Edit]:
    """Read the edits by hand. The first line of the file is a note.

    Raises ValueError if a story no longer has the text that an edit replaces exactly once.
    """
    edits = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[1:], start=2):
        row = json.loads(line)
        text = story(row["story"]).text
        for place in row["places"]:
            pattern = re.escape(place["before"])
            pattern = rf"\b{pattern}\b" if row.get("everywhere") else pattern
            found = len(re.findall(pattern, text))
            if not found or (found > 1 and not row.get("everywhere")):
                raise ValueError(
                    f"{path.name} line {number}: story {row['story']} has the text that the edit replaces "
                    f"{found} times, not once; the stories have changed, so write this edit anew"
                )
            text = re.sub(pattern, lambda _, new=place["after"]: new, text)
        edits.append(Edit(row["kind"], (row["story"],), text, row["contradicts"]))
    return edits


def by_rule(seed: int = 0, count: int = COUNT) -> list[Edit]:
    """Make `count` edits of each kind, each of another story: the same ones on every machine.

    Raises ValueError if the held-out stories do not have so many places for a kind.
    """
    used: set[int] = set()
    edits = []
    for rules, contradicts in ((CONTRADICTIONS, True), (HARMLESS, False)):
        for kind, rule in rules.items():
            rng = random.Random(f"{seed}/{kind}")
            found = list(_of_kind(rule, rng, used, count))
            if len(found) < count:
                raise ValueError(
                    f"the held-out stories have places for {len(found)} edits of the kind {kind!r}, not for "
                    f"{count}; ask for fewer"
                )
            edits += [Edit(kind, stories, text, contradicts) for stories, text in found]
    return edits


def _of_kind(rule: Callable, rng, used: set[int], count: int) -> Iterator[tuple[tuple[int, ...], str]]:
    order = sorted(FOR_RULES, key=lambda _: rng.random())
    for index in order:
        if not count:
            return
        if index in used:
            continue
        if rule is joined:
            others = ((other, joined(story(index), story(other))) for other in order if other not in used)
            stories, text = next((((index, other), text) for other, text in others if text), ((), None))
        else:
            stories, text = (index,), rule(story(index), rng)
        if text:
            used.update(stories)
            count -= 1
            yield stories, text


def floors(seed: int = 0) -> dict[str, list[str]]:
    """Every held-out story shuffled, and every one joined to another with its characters and its object."""
    rng = random.Random(f"{seed}/floors")
    texts: dict[str, list[str]] = {"sentences shuffled": [], "halves joined": []}
    alike = defaultdict(list)
    for index in HELD_OUT:
        alike[story(index).facts.characters, story(index).facts.object].append(index)
    for index in HELD_OUT:
        told = story(index)
        others = [other for other in alike[told.facts.characters, told.facts.object] if other != index]
        texts["sentences shuffled"].append(shuffled(told.text, rng)[0])
        texts["halves joined"] += [halves(told, story(pick(rng, others)))] if others else []
    return texts


def rejections(reports: Iterable[Report]) -> dict[str, Any]:
    """How many are rejected, as a contradiction and in any way, each with its exact 95 % interval in percent."""
    reports = list(reports)
    row: dict[str, Any] = {"texts": len(reports)}
    for name, passes in (("contradiction", "consistent"), ("any_way", "passes")):
        count = sum(not getattr(report, passes) for report in reports)
        row[name] = {
            "rejected": count,
            "interval": [round(100 * end, 1) for end in exact_interval(count, len(reports))],
        }
    return row


def measure(seed: int, with_hand: bool) -> dict[str, Any]:
    edits = by_rule(seed)
    contradictions = [edit for edit in edits if edit.contradicts]
    harmless = [edit for edit in edits if not edit.contradicts]

    def row(texts: Iterable[str]) -> dict[str, Any]:
        return rejections(check(text) for text in texts)

    figures = {
        "by rule, contradictions": {
            kind: row(edit.text for edit in contradictions if edit.kind == kind) for kind in CONTRADICTIONS
        }
        | {"all": row(edit.text for edit in contradictions)},
        "by rule, harmless": {
            kind: row(edit.text for edit in harmless if edit.kind == kind) for kind in HARMLESS
        }
        | {"all": row(edit.text for edit in harmless)},
        "floors": {kind: row(texts) for kind, texts in floors(seed).items()},
        "without an edit": {"held-out stories": row(story(index).text for index in HELD_OUT)},
    }
    if with_hand:
        hand = by_hand()
        figures["by hand"] = {
            name: row(edit.text for edit in hand if edit.contradicts == contradicts)
            for name, contradicts in (("contradictions", True), ("harmless", False))
        }
    return figures


def shown(figures: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = [f"{'':<50}{'texts':>6}{'contradiction':>16}{'95 %':>16}{'any way':>10}{'95 %':>16}"]
    for part, kinds in figures.items():
        lines.append(part)
        for kind, row in kinds.items():
            cells = f"  {kind:<48}{row['texts']:>6}"
            for name, width in (("contradiction", 16), ("any_way", 10)):
                low, high = row[name]["interval"]
                cells += f"{row[name]['rejected']:>{width}}{f'{low:.1f} to {high:.1f} %':>16}"
            lines.append(cells)
    return "\n".join(lines)


def limits(figures: dict[str, Any]) -> dict[str, bool]:
    """Whether enough contradictions and few enough harmless edits are rejected, in any way."""
    pairs = [("by rule", figures["by rule, contradictions"]["all"], figures["by rule, harmless"]["all"])]
    if "by hand" in figures:
        pairs.append(("by hand", figures["by hand"]["contradictions"], figures["by hand"]["harmless"]))
    met = {}
    for name, wrong, right in pairs:
        seen, false = (row["any_way"]["rejected"] / row["texts"] for row in (wrong, right))
        met[f"{name}: at least {MOST_SEEN:.0%} of the contradictions rejected"] = seen >= MOST_SEEN
        met[f"{name}: at most {MOST_FALSE:.0%} of the harmless edits rejected"] = false <= MOST_FALSE
    return met


def show(edits: Iterable[Edit]) -> None:
    """Print each edit as the paragraphs that it changes, with what the checker says."""
    for edit in edits:
        problems = [f"{problem.rule}: {problem.what}" for problem in check(edit.text).problems]
        print(
            f"\n=== {edit.kind}, of {', '.join(map(str, edit.stories))}: {'; '.join(problems) or 'accepted'}"
        )
        lines = difflib.ndiff(story(edit.stories[0]).text.split("\n"), edit.text.split("\n"))
        print("\n".join(line for line in lines if line[0] in "-+"))


def main() -> int:
    parser = Parser("benchmarks.story_edits", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the edits by rule and the floors; any but 0 leaves out the edits by hand and the record (default: 0)",
    )
    parser.add_argument(
        "--show", action="store_true", help="print the edits, which spoils them for who changes the checker"
    )
    options = parser.parse_args()
    figures = measure(options.seed, with_hand=options.seed == 0)
    print(shown(figures))
    if options.show:
        show([*(by_hand() if options.seed == 0 else ()), *by_rule(options.seed)])
    if options.seed == 0:
        publish("story_edits", {"seed": options.seed, "rejections": figures})
    return judge(limits(figures))


if __name__ == "__main__":
    sys.exit(exit_code("benchmarks.story_edits", main))
