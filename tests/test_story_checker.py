"""The checker: accepts the corpus, rejects small changes of it, and reads wording it has never seen."""

import io
import json
import random
from functools import cache
from pathlib import Path

import pytest

from benchmarks.stories import KINDS, swapped
from data.stories import TRAIN_STORIES, story, world
from data.stories.checker import check
from data.stories.checker.retold import retell
from data.stories.copies import RUN, RunIndex
from data.stories.reading import sentences
from evaluation.check import main, read_stories

SOUND = """There was a girl named Lily. She had a red kite and a friend called Tim.
One day, Lily and Tim went to the park. Lily ran fast, and the kite flew up. "Look at my kite!" she said.
But the string broke and the kite was lost. Lily began to cry. Tim looked for it in the park and
found the red kite behind a bush. "Here it is, Lily," he said.
Lily was happy again. She hugged Tim, and they walked home together."""


@cache
def corpus():
    return [story(index).text for index in (*range(100), *range(TRAIN_STORIES, TRAIN_STORIES + 100))]


def rules(text: str) -> set[str]:
    return {problem.rule for problem in check(text).problems}


def test_the_corpus_is_consistent_and_finished():
    failing = [report for report in map(check, corpus()) if not report.passes]
    assert len(failing) <= 0.01 * len(corpus()), failing


@pytest.mark.parametrize("kind", KINDS)
def test_one_swapped_mention_is_noticed(kind):
    words, rng = KINDS[kind] + list(world.FOODS if kind == "object" else ()), random.Random(7)
    copies = [swapped(text, words, rng) for text in corpus()]
    noticed = [not check(copy).consistent for copy in copies if copy]
    assert len(noticed) >= 150 and sum(noticed) >= 0.95 * len(noticed)


def test_a_story_cut_at_a_random_word_is_unfinished():
    rng = random.Random(3)
    cut = []
    for text in corpus()[:100]:
        words = text.split(" ")
        cut.append(" ".join(words[: rng.randrange(1, len(words) - 1)]))
    assert sum(not check(text).finished for text in cut) >= 0.95 * len(cut)


def test_words_in_any_order_are_checked_without_an_error():
    draw = random.Random(0)
    for index in range(150):  # what a model writes at first
        words = story(index).text.split()
        check(" ".join(draw.sample(words, 60)))
    assert "unfinished" in rules("One day. Mom. Dad.")


def test_an_empty_or_very_short_text_is_unfinished():
    assert rules("") == rules(" \n ") == {"unfinished"}
    assert "too few" in check("Tom was happy. The end.").problems[0].what


PET = "A dog named Spot lived in a house. "


@pytest.mark.parametrize(
    "old, new, rule",
    [
        ("", "", None),
        ('"Here it is, Lily,"', '"Here it is, Anna,"', "name"),
        ("Tim looked for it", "Ben looked for it", "name"),
        ("she said", "called Anna", "name"),  # a call is not an introduction
        ("and the kite flew up", "and the ball flew up", "object"),
        ("found the red kite", "found the blue kite", "adjective"),
        ("for it in the park", "for it in the kitchen", "place"),
        ("Lily was happy again", "The broken kite was mended. Her broken kite was still broken", "state"),
        ("and they walked home together.", "and they walked", "unfinished"),
        ('found the red kite behind a bush. "Here it is, Lily," he said.', "saw only leaves.", "unfinished"),
        ('Lily," he said', "Lily, he said", "unfinished"),
        ("Here it is, Lily,", "Nothing here, Lily,", None),
        ("he said.\nLily", "he said. Lily", None),
        ("There was", PET + "There was", None),
        ("There was", PET + "Spot the cat came. There was", "kind"),
        ("Lily was happy", "The fox came. Lily was happy", "kind"),
        ("Tim looked for it", "Nora looked for it", "name"),
        ("Lily began to cry", "Lily gave Lily a hug and began to cry", "name"),
        ("Lily ran fast", "Tim was not there. Lily ran fast", "company"),
        ("Lily began to cry", "Lily flew the kite and laughed", "outcome"),
        ("Lily was happy again", "Nobody ever found the kite. Lily was happy again", "outcome"),
        ("Lily was happy again", "Lily would never lose the kite again. She was happy", None),
        ('"Here it is, Lily," he said', '"Here is my kite, Lily," he said', "owner"),
        ("they walked home together", "they were angry with each other", "feeling"),
        ("home together.", "home. Lily learned that it is bad to ask for help.", "lesson"),
        ("home together.", "home. Lily learned that it is never bad to ask for help.", None),
        ("Lily was happy again", "I was happy again. Lily was happy, too", "voice"),
    ],
)
def test_a_change_is_told_by_its_rule(old, new, rule):
    assert old in SOUND
    found = rules(SOUND.replace(old, new))
    assert (rule in found) if rule else not found


def test_a_pronoun_needs_somebody_to_stand_for():
    text = SOUND.replace("Tim", "Mia").replace("he said", "she said")
    assert "pronoun" not in rules(text)
    assert "pronoun" in rules(text.replace("Mia looked", "He looked"))


def test_a_problem_is_reported_with_its_sentence():
    (problem,) = check(SOUND.replace("found the red kite", "found the blue kite")).problems
    assert "blue kite" in problem.sentence and "red kite" in problem.what


def test_a_run_of_twenty_words_is_copied_and_of_nineteen_is_not():
    source = [f"word{n}" for n in range(40)]
    index = RunIndex([" ".join(source)])
    run = source[5 : 5 + RUN]
    assert index.copied_run("Before, " + ", ".join(run).upper() + "! after.") == " ".join(run)
    assert index.copied_run(" ".join(["before", *run[:-1], "after"])) is None
    assert RunIndex([]).copied_run("a " * 30) is None


# Edits by hand of training stories, against which the checker was developed. Those that measure it are others.

EDITS = Path(__file__).parent / "fixtures" / "story_checker_edits.jsonl"


def test_contradictions_by_hand_are_rejected_and_harmless_edits_of_the_same_stories_are_not():
    rejected = {True: [], False: []}
    for line in EDITS.read_text().splitlines()[1:]:
        edit = json.loads(line)
        text = story(edit["story"]).text
        assert text.count(edit["before"]) == 1, f"story {edit['story']} has changed: write its edit anew"
        report = check(text.replace(edit["before"], edit["after"]))
        rejected[edit["contradicts"]].append(not report.passes)
    assert len(rejected[True]) > 250 and sum(rejected[True]) >= 0.92 * len(rejected[True])
    assert len(rejected[False]) > 150 and sum(rejected[False]) <= 0.01 * len(rejected[False])


def test_a_story_whose_hero_comes_alone_with_a_friend_contradicts_itself():
    (problem,) = check(story(19349).text).problems
    assert problem.rule == "company" and "come alone" in problem.what


def test_names_pronouns_and_forms_of_verbs_are_retold_in_one_form():
    read = sentences(
        "A girl named Lily had a red kite. Her good friend Tim was in the park.\n"
        '"I can\'t find my kite," she said. He found it and gave it to her. They were happy in the park.'
    )
    told = retell(read)
    assert (told.hero, told.companion, told.thing, told.place) == ("Lily", "Tim", "kite", "park")
    assert [line.told for line in told.lines] == [
        "a girl named N have a O",
        "N_ good friend S be in P",
        "N say",
        "S find it and give it to N",
        "B be happy in P",
    ]
    ((speaker, said, is_told),) = told.lines[2].said
    assert (speaker, said, is_told) == ("N", "N can not find N_ O", True)


# The command


@pytest.fixture
def files(tmp_path):
    copied = story(3).text
    told = tmp_path / "told.txt"
    told.write_text(f"{SOUND}\n<|endoftext|>\n{copied}\n<|endoftext|>\nTom was\n<|endoftext|>\n")
    train = tmp_path / "train.jsonl"
    train.write_text(json.dumps({"text": copied}) + "\n")
    return str(told), str(train)


def test_the_command_prints_failing_stories_and_a_summary(files, capsys):
    told, train = files
    assert main([told, "--against", train]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"story 2: copied: {RUN} words in a row")
    assert lines[1].startswith("story 3: unfinished: 2 words are too few")
    assert lines[-1] == ("consistent and finished: 1 of 3; contradictions 0, unfinished 1, copied 1")


def test_the_command_prints_json(files, capsys):
    main([files[0], "--against", "none", "--json"])
    out = json.loads(capsys.readouterr().out)
    assert out["stories"] == 3 and out["consistent and finished"] == 2
    assert [problem["rule"] for problem in out["failing"]["3"]][0] == "unfinished"


def test_the_command_reads_jsonl_and_standard_input(files, tmp_path, capsys, monkeypatch):
    assert len(read_stories(files[0])) == 3
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"story": SOUND}) for _ in range(2)))
    main([str(tmp_path / "a.jsonl"), "--text_column", "story", "--against", "none"])
    assert "2 of 2" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(SOUND.encode()), encoding="utf-8"))
    main(["-", "--against", "none"])
    assert "1 of 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", b"x", "must be a .txt, .jsonl or .parquet file"),
        ("a.txt", b"", "is empty; give a file with at least one story"),
        ("a.txt", b"\xff", "not UTF-8"),
        ("-", b"caf\xe9", "standard input, byte 3 is not UTF-8"),
        ("a.jsonl", b"{", "line 1 is not JSON"),
        ("a.jsonl", b'{"story": "x"}', "--text_column"),
        ("none.txt", None, "no such file"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(tmp_path, capsys, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    if name == "-":
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    assert main([name, "--against", "none"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err


def test_none_and_files_to_compare_with_exclude_each_other(files, capsys):
    assert main([files[0], "--against", "none", files[1]]) == 2
    assert "leave out none" in capsys.readouterr().err
