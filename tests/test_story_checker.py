"""The checker: accepts the corpus, rejects small changes of it, and reads wording it has never seen."""

import io
import json
import random
import re
from functools import cache

import pytest

from data.stories import TRAIN_STORIES, story, world
from data.stories.checker import check
from data.stories.copies import RUN, RunIndex
from evaluation.check import main, read_stories

CLASSES = {
    "name": sorted(world.NAMES),
    "place": sorted(world.PLACES),
    "object": sorted({*world.OBJECTS, *world.FOODS}),
}

SOUND = """There was a girl named Lily. She had a red kite and a friend called Tim.
One day, Lily and Tim went to the park. Lily ran fast, and the kite flew up. "Look at my kite!" she said.
But the string broke and the kite was lost. Lily began to cry. Tim looked for it in the park and
found the red kite behind a bush. "Here it is, Lily," he said.
Lily was happy again. She hugged Tim, and they walked home together."""


@cache
def corpus(count: int):
    return [story(index) for index in (*range(count), *range(TRAIN_STORIES, TRAIN_STORIES + count))]


def rules(text: str) -> set[str]:
    return {problem.rule for problem in check(text).problems}


def swapped(s, kind: str, rng: random.Random) -> str:
    """A copy of a story with one mention of one name, place or object changed into another."""
    facts = s.facts
    own = {
        "name": [c.name for c in facts.characters if c.name in world.NAMES],
        "place": list(facts.places),
        "object": [facts.object],
    }[kind]
    mentions = [m for word in own for m in re.finditer(rf"\b{word}\b", s.text)]
    mention = rng.choice(mentions)
    other = rng.choice([word for word in CLASSES[kind] if word != mention[0]])
    return s.text[: mention.start()] + other + s.text[mention.end() :]


def test_the_corpus_is_consistent_and_finished():
    stories = corpus(400)
    failing = [(s.text, check(s.text).problems) for s in stories if not check(s.text).passes]
    assert len(failing) <= 0.01 * len(stories), failing[0]


@pytest.mark.slow
def test_the_whole_corpus_is_consistent_and_finished():
    failing = sum(not check(story(index).text).passes for index in range(TRAIN_STORIES + 1000))
    assert failing <= 0.01 * (TRAIN_STORIES + 1000)


@pytest.mark.parametrize("kind", CLASSES)
def test_one_swapped_mention_is_noticed(kind):
    rng = random.Random(7)
    changed = [swapped(s, kind, rng) for s in corpus(400)[:200]]
    noticed = sum(not check(text).consistent for text in changed)
    assert noticed >= 0.95 * len(changed)


def test_a_story_cut_at_a_random_word_is_unfinished():
    rng = random.Random(3)
    cut = []
    for s in corpus(400)[:200]:
        words = s.text.split(" ")
        cut.append(" ".join(words[: rng.randrange(1, len(words) - 1)]))
    assert sum(not check(text).finished for text in cut) >= 0.95 * len(cut)


def test_an_empty_or_very_short_text_is_unfinished():
    assert rules("") == rules(" \n ") == {"unfinished"}
    assert "too few" in check("Tom was happy. The end.").problems[0].what


def test_sound_words_of_nobody_we_know_pass():
    assert check(SOUND).problems == ()


@pytest.mark.parametrize(
    "old, new, rule",
    [
        ('"Here it is, Lily,"', '"Here it is, Anna,"', "name"),
        ("Tim looked for it", "Ben looked for it", "name"),
        ("and the kite flew up", "and the ball flew up", "object"),
        ("found the red kite", "found the blue kite", "adjective"),
        ("for it in the park", "for it in the kitchen", "place"),
        ("Lily was happy again", "The broken kite was mended. Her broken kite was still broken", "state"),
        ("and they walked home together.", "and they walked", "unfinished"),
        ('found the red kite behind a bush. "Here it is, Lily," he said.', "saw only leaves.", "unfinished"),
        ("Here it is, Lily,", "Nothing here, Lily,", None),
        ("he said.\nLily", "he said.\nLily", None),
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


def test_a_dog_does_not_become_a_cat():
    text = "A dog named Spot lived in a house. " + SOUND
    assert "kind" not in rules(text)
    assert "kind" in rules(text.replace("Lily was happy", "Spot the cat came. Lily was happy"))
    assert "kind" in rules(SOUND.replace("Lily was happy", "The fox came. Lily was happy"))


def test_a_call_is_not_an_introduction():
    text = SOUND.replace("she said", "called Anna")
    assert "name" in rules(text)


def test_an_open_quotation_is_unfinished():
    assert "unfinished" in rules(SOUND.replace('Lily," he said', "Lily, he said"))


def test_a_problem_is_reported_with_its_sentence():
    (problem,) = check(SOUND.replace("found the red kite", "found the blue kite")).problems
    assert "blue kite" in problem.sentence and "red kite" in problem.what


def test_a_run_of_twenty_words_is_copied_and_of_nineteen_is_not():
    source = [f"word{n}" for n in range(40)]
    index = RunIndex([" ".join(source)])
    assert len(index) == 40 - RUN + 1
    run = source[5 : 5 + RUN]
    assert index.copied_run("Before, " + ", ".join(run).upper() + "! after.") == " ".join(run)
    assert index.copied_run(" ".join(["before", *run[:-1], "after"])) is None
    assert RunIndex([]).copied_run("a " * 30) is None


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
    monkeypatch.setattr("sys.stdin", io.StringIO(SOUND))
    main(["-", "--against", "none"])
    assert "1 of 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", b"x", "must be a .txt or .jsonl file"),
        ("a.txt", b"", "must hold at least one story"),
        ("a.txt", b"\xff", "not UTF-8"),
        ("a.jsonl", b"{", "line 1 is not JSON"),
        ("a.jsonl", b'{"story": "x"}', "--text_column"),
        ("a.jsonl", b"[" * 20_000, "line 1 is not JSON (brackets are nested too deeply)"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "is not JSON (a number has too many"),
        ("none.txt", None, "no such file"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main([str(tmp_path / name), "--against", "none"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err


def test_standard_input_that_is_not_utf8_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    assert main(["-", "--against", "none"]) == 2
    told = capsys.readouterr().err
    assert told == "evaluation/check.py: error: standard input is not UTF-8 (byte 3); convert it to UTF-8\n"


def test_none_and_files_to_compare_with_exclude_each_other(files, capsys):
    assert main([files[0], "--against", "none", files[1]]) == 2
    assert "leave out none" in capsys.readouterr().err
