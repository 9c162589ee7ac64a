"""The edits of bundled stories that test their checker: each does what its kind says, the same on every machine.

No test here says what the checker makes of them. A failing test prints an edit; who changes the checker should
not read those by hand (the note in tests/fixtures/story_edits.jsonl).
"""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from random import Random

import pytest

from benchmarks import story_edits
from benchmarks.story_edits import FOR_RULES, HELD_OUT, by_hand, by_rule, halves, rejections, story
from benchmarks.story_paraphrases import HARMLESS, renamed, weather_moved
from data.stories import Facts, Story, world
from data.stories.checker import Problem, Report
from data.stories.contradictions import (
    CONTRADICTIONS,
    DENIALS,
    before_its_cause,
    joined,
    nobody_known,
    out_of_order,
    paragraphs,
    shuffled,
    wrong_look,
    wrong_name,
    wrong_place,
    wrong_pronoun,
    wrong_speaker,
)
from data.stories.plots import PLOTS

REPO_ROOT = Path(__file__).resolve().parent.parent
MADE = cache(by_rule)
LILY, TIM = world.CASTS[0][:2]
QUOTE = '"'


def told(text: str, **facts) -> Story:
    """A story about Lily, Tim and a red kite in the park, with these facts besides."""
    known = dict(plot="lost", voice="plain", order="straight", adjective="red", object="kite", place="park")
    return Story(text, Facts(characters=(LILY, TIM), **known | facts))


def of_kind(kind: str) -> list:
    return [edit for edit in MADE() if edit.kind == kind]


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", text)


def changes(edit) -> Counter:
    """The words that the edit puts in, without those that it only moves."""
    return Counter(words(edit.text)) - Counter(words(story(edit.stories[0]).text))


def test_fifty_edits_by_hand_contradict_and_fifty_do_not_each_of_another_held_out_story_and_of_all_plots():
    edits = by_hand()
    assert Counter(edit.contradicts for edit in edits) == {True: 50, False: 50}
    indices = [edit.stories[0] for edit in edits]
    assert len(set(indices)) == 100 and set(indices) <= set(HELD_OUT) - set(FOR_RULES)
    for contradicts in (True, False):
        plots = Counter(story(e.stories[0]).facts.plot for e in edits if e.contradicts == contradicts)
        assert min(plots[plot.name] for plot in PLOTS) >= 3
    assert len({edit.kind for edit in edits if edit.contradicts}) >= 30


def test_every_edit_changes_its_story_and_leaves_whole_quotations_and_single_spaces():
    for edit in (*by_hand(), *MADE()):
        assert edit.text not in {story(index).text for index in edit.stories}, edit.kind
        for line in edit.text.split("\n"):
            assert line.count(QUOTE) % 2 == 0 and line == " ".join(line.split()), edit.kind


def test_a_story_that_has_changed_is_named_with_its_line(tmp_path):
    row = {
        "story": HELD_OUT[3],
        "kind": "k",
        "contradicts": True,
        "places": [{"before": "no such", "after": ""}],
    }
    path = tmp_path / "edits.jsonl"
    path.write_text(f"{json.dumps({'note': 'n'})}\n{json.dumps(row)}\n")
    with pytest.raises(ValueError, match=rf"line 2: story {HELD_OUT[3]} .* 0 times, not once"):
        by_hand(path)


def test_edits_by_rule_are_twenty_of_each_kind_each_of_other_stories_than_all_the_others():
    kinds = Counter((edit.kind, edit.contradicts) for edit in MADE())
    assert kinds == {
        (kind, rules is CONTRADICTIONS): 20 for rules in (CONTRADICTIONS, HARMLESS) for kind in rules
    }
    used = [index for edit in MADE() for index in edit.stories]
    assert len(used) == len(set(used)) and set(used) <= set(FOR_RULES)
    with pytest.raises(ValueError, match="places for .* edits of the kind 'name of the other', not for 900"):
        by_rule(0, 900)


def test_edits_by_rule_are_the_same_in_every_process_and_others_with_another_seed():
    code = "from benchmarks.story_edits import by_rule; print([e.text for e in by_rule(0, 1)])"
    options = dict(cwd=REPO_ROOT, env={"PYTHONHASHSEED": "1"}, capture_output=True, text=True, check=True)
    texts = [edit.text for edit in by_rule(0, 1)]
    assert subprocess.run([sys.executable, "-c", code], **options).stdout == f"{texts}\n"
    assert not set(texts) & {edit.text for edit in by_rule(1, 1)}


def test_each_kind_of_contradiction_puts_in_what_its_name_says():
    for edit in of_kind("place changed late"):
        (place,) = {word for word in changes(edit) if word.lower() not in ("in", "on", "at", "by")}
        assert place in world.PLACES and place != story(edit.stories[0]).facts.place
    for edit in of_kind("look changed late"):
        facts = story(edit.stories[0]).facts
        ((look, count),) = changes(edit).items()
        assert (
            count == 1
            and f"{look} {facts.object}" in edit.text
            and f"{facts.adjective} {facts.object}" in edit.text
        )
    for edit in of_kind("somebody from nowhere"):
        ((name, count),) = changes(edit).items()
        assert count == 1 and name.istitle() and name not in words(story(edit.stories[0]).text)
    for edit in of_kind("pronoun of the other"):
        hero, other = story(edit.stories[0]).facts.characters
        theirs = {"he": {"he", "him", "his", "himself"}, "she": {"she", "her", "herself"}}[other.pronoun]
        assert changes(edit) and {word.lower() for word in changes(edit)} <= theirs
    for edit in of_kind("outcome denied"):
        facts = story(edit.stories[0]).facts
        added = [re.sub(r"\{\w+\}", ".+", sentence) for sentence in DENIALS[facts.plot]]
        assert any(re.search(pattern, edit.text) for pattern in added)
    for edit in of_kind("outcome before its cause"):
        before, after = story(edit.stories[0]).text.split("\n"), edit.text.split("\n")
        assert sorted(before) == sorted(after)


def test_harmless_edits_keep_the_names_the_object_and_the_place():
    for edit in MADE():
        if edit.contradicts or edit.kind == "renamed throughout":
            continue
        facts = story(edit.stories[0]).facts
        for word in (facts.object, *(c.name for c in facts.characters)):
            assert word in edit.text or word not in story(edit.stories[0]).text, edit.kind
        assert edit.kind == "another ending" or facts.place in edit.text


def test_another_name_stands_wherever_the_old_one_stood():
    text = told("Lily had a kite.\nLily's friend Tim had none. " + '"Lily!" he said.', object="kite")
    for seed in range(20):
        new = renamed(text, Random(seed))
        old = "Lily" if "Lily" not in new else "Tim"
        (name,) = set(words(new)) - set(words(text.text))
        assert new == text.text.replace(old, name)
        assert name not in ("Lily", "Tim") and world.OTHER_NAMES.get(name, "new") in ("new", "she", "he")


HARMLESS_BY_CHANCE = {
    "only the owner smiles": (wrong_name, told("Lily smiled.\nTim smiled, and Lily sang.\nThey went home.")),
    "she may be the companion": (
        wrong_pronoun,
        told("Lily was a girl. Tim came. She smiled.\nShe ran.\nThe end."),
    ),
    "your kite, not mine": (
        wrong_speaker,
        told('"Your kite is red," said Lily.\nTim smiled.\nThey went home.'),
    ),
    "a gift has two owners": (wrong_speaker, told('"I made my kite," said Lily.\nThe end.', plot="gift")),
    "the first mention of a place": (wrong_place, told("Lily ran off.\nIn the park, she sang.\nThe end.")),
    "who walks may be elsewhere": (
        wrong_place,
        told("They were in the park.\nLily walked in the park.\nThe end."),
    ),
    "the first mention of a look": (wrong_look, told("Lily had a red kite. She loved the kite.")),
    "no contrary look": (wrong_look, told("The shiny robot shone. The shiny robot fell.", adjective="shiny")),
    "who comes at the end may be new": (nobody_known, told('Lily ran.\nTim ran.\n"It is late," said Tim.')),
    "who shared may refuse later": (before_its_cause, told("\n".join("ABCDEFG"), plot="share")),
    "a story that goes back in time": (before_its_cause, told("\n".join("ABCDEFG"), order="problem first")),
    "nearly the old order": (out_of_order, told("Lily ran. Tim ran. They went home.")),
    "nobody else has come yet": (
        weather_moved,
        told("Lily came. She ran to the park. The sun shone in the park."),
    ),
}


@pytest.mark.parametrize("case", HARMLESS_BY_CHANCE)
def test_a_rule_makes_no_edit_that_could_be_harmless_by_chance(case):
    rule, text = HARMLESS_BY_CHANCE[case]
    assert [rule(text, Random(seed)) for seed in range(10)] == [None] * 10


@pytest.mark.parametrize(
    "plots", [("wet", "dirty"), ("lost", "stuck"), ("lost", "lost"), ("share", "lonely"), ("broken", "skill")]
)
def test_a_problem_is_not_joined_to_an_outcome_that_could_settle_it(plots):
    first, second = (told("\n".join(f"{plot}{n}" for n in range(7)), plot=plot) for plot in plots)
    assert joined(first, second) is None
    other = told(second.text, plot="broken")
    assert joined(told(first.text, plot="lost"), other).split("\n")[3:5] == [f"{plots[0]}3", f"{plots[1]}4"]
    stranger = Story(other.text, Facts(**vars(other.facts) | {"characters": world.CASTS[1][:2]}))
    assert joined(told(first.text, plot="lost"), stranger) is None


def test_shuffling_keeps_the_sentences_the_first_and_the_last():
    for index in HELD_OUT[:40]:
        text = story(index).text
        new, order = shuffled(text, Random(index))
        before = [sentence for line in paragraphs(text) for sentence in line]
        after = [sentence for line in paragraphs(new) for sentence in line]
        assert sorted(order) == list(range(len(before))) and order != sorted(order)
        # Two quotations that now follow each other may read as one sentence, so the letters are compared.
        assert "".join(after).replace(" ", "") == "".join(before[k] for k in order).replace(" ", "")
        assert (order[0], order[-1]) == (0, len(before) - 1)
    assert halves(told("a\nb\nc\nd\ne"), told("1\n2\n3\n4")) == "a\nb\n3\n4"


@pytest.mark.parametrize("count, total", [(0, 20), (7, 20), (20, 20), (3, 11)])
def test_intervals_leave_a_fortieth_on_each_side(count, total):
    bad, good = Report((Problem("name", "", ""),)), Report((Problem("unfinished", "", ""),))
    row = rejections([bad] * count + [good] * (total - count))
    assert (row["texts"], row["contradiction"]["rejected"], row["any_way"]["rejected"]) == (
        total,
        count,
        total,
    )
    low, high = (end / 100 for end in row["contradiction"]["interval"])

    def tail(p, counts):
        return sum(math.comb(total, k) * p**k * (1 - p) ** (total - k) for k in counts)

    assert low == 0 if count == 0 else abs(tail(low, range(count, total + 1)) - 0.025) < 1e-3
    assert high == 1 if count == total else abs(tail(high, range(count + 1)) - 0.025) < 1e-3


def test_the_command_prints_totals_of_the_edits_by_hand_and_no_edit(monkeypatch, capsys):
    published = {}
    monkeypatch.setattr(story_edits, "by_rule", lambda seed: by_rule(seed, 1))
    monkeypatch.setattr(story_edits, "HELD_OUT", HELD_OUT[:40])
    monkeypatch.setattr(story_edits, "publish", lambda name, figures: published.update({name: figures}))
    monkeypatch.setattr(sys, "argv", ["story_edits"])
    code = story_edits.main()
    printed = capsys.readouterr().out
    hand = published["story_edits"]["rejections"]["by hand"]
    assert {name: row["texts"] for name, row in hand.items()} == {"contradictions": 50, "harmless": 50}
    assert code == ("MISSED" in printed) and printed.count("by hand\n  contradictions") == 1
    for text in (printed, json.dumps(published)):
        assert not any(edit.kind in text for edit in by_hand() if edit.kind not in HARMLESS | CONTRADICTIONS)
        assert not any(line in text for edit in by_hand() for line in edit.text.split("\n"))
    monkeypatch.setattr(sys, "argv", ["story_edits", "--seed", "1", "--show"])
    published.clear()
    story_edits.main()
    printed = capsys.readouterr().out
    assert not published and "by hand" not in printed
    assert printed.count("\n=== ") == len(CONTRADICTIONS) + len(HARMLESS)
