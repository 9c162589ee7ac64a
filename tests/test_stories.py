"""The story world: lazy, repeatable, varied, not copied from one split to the other, well formed."""

import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from data.sources import open_dataset
from data.stories import TRAIN_STORIES, VALIDATION_STORIES, story, world
from data.stories import phrases as phrase_module
from data.stories.copies import RunIndex
from data.stories.grammar import expand, parse
from data.stories.plots import PLOTS

REPO_ROOT = Path(__file__).resolve().parent.parent
FAST, ALL = 3_000, TRAIN_STORIES


@cache
def told(count: int):
    return [story(index) for index in range(count)]


@cache
def held_out(count: int):
    return [story(TRAIN_STORIES + index) for index in range(count)]


def words(text: str) -> list[str]:
    return re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("\n", " ")).split()


def templates():
    """Every template with a name that finds it."""
    for name, value in vars(phrase_module).items():
        if name.isupper():
            rows = value.values() if isinstance(value, dict) else value
            yield from ((name, template) for template in rows)
    for plot in PLOTS:
        for pool, rows in plot.pools.items():
            yield from ((f"{plot.name}.{pool}", template) for template in rows)


def test_a_number_gives_the_same_story_in_every_process():
    code = "from data.stories import story; print(story(17).text + story(21, seed=3).text)"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPO_ROOT,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert printed == {story(17).text + story(21, seed=3).text + "\n"}


def test_another_seed_is_another_world():
    assert story(5).text != story(5, seed=1).text


def test_the_bundled_source_has_two_splits_without_a_common_story():
    train, validation = (open_dataset("bundled", split=split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (TRAIN_STORIES, VALIDATION_STORIES) == (20_000, 1_000)
    assert train[7] == story(7).text and validation[7] == story(TRAIN_STORIES + 7).text
    texts = {s.text for s in told(FAST)}
    assert len(texts) == FAST and not texts & {s.text for s in held_out(VALIDATION_STORIES)}


def test_the_bundled_source_shuffles_and_resumes():
    source = open_dataset("bundled", split="validation")
    shuffled = source.shuffled(seed=3)
    first = [next(shuffled) for _ in range(5)]
    resumed = source.shuffled(seed=3, state=shuffled.state_dict())
    assert next(resumed) == next(shuffled) and len(set(first)) == 5


def test_a_split_of_another_name_is_refused():
    with pytest.raises(ValueError, match="'test'.*'train' or 'validation'"):
        open_dataset("bundled", split="test")


def test_stories_are_80_to_300_words_of_ascii_in_lines():
    for s in told(FAST):
        assert 80 <= len(s.text.split()) <= 300
        assert s.text.isascii() and "\n\n" not in s.text and s.text == s.text.strip()


def test_no_slot_brace_or_double_blank_is_left_in_a_story():
    for s in told(FAST):
        assert not re.search(r'[${}|]|  | [,.!?]|[.,]{2}|\?\.|!\.|[.!?]"[.,]', s.text), s.text


def test_every_sentence_begins_with_a_capital_and_every_paragraph_ends():
    for s in told(FAST):
        for line in s.text.split("\n"):
            assert re.match(r'"?[A-Z]', line) and re.search(r'[.!?]"?$', line), line
            assert line.count('"') % 2 == 0, line
        assert not re.search(r"[.!?] [a-z]", s.text), s.text


def test_no_capital_follows_an_interjection_but_that_of_a_name():
    capitals = {*world.NAMES, *world.GROWN_UPS, "I"}
    for s in told(FAST):
        after = re.findall(r'"(?:Oh|Well|Ah|My|Hm), ([A-Z]\w*)', s.text)
        assert set(after) <= capitals, after


def test_a_and_an_agree_with_the_next_word():
    for s in told(FAST):
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n (?!hour|honest)[^aeiou]", s.text), s.text


def test_the_facts_of_a_story_are_in_its_text_at_least_twice():
    for s in told(300):
        facts = s.facts
        names = [c.name for c in facts.characters if c.name in world.NAMES]
        for word in (*names, facts.object, *facts.places):
            assert len(re.findall(rf"\b{word}\b", s.text)) >= 2, (word, s.text)
        assert f"{facts.adjective} {facts.object}" in s.text


def test_main_and_other_character_never_share_a_pronoun():
    assert all(a.pronoun != b.pronoun for a, b in (s.facts.characters for s in told(300)))


def test_plots_voices_and_orders_are_all_told():
    facts = [s.facts for s in told(FAST)]
    plots = Counter(f.plot for f in facts)
    assert len(plots) == len(PLOTS) >= 10 and min(plots.values()) > FAST / len(PLOTS) / 2
    assert {f.voice for f in facts} == {"plain", "dialogue", "storyteller", "first person"}
    assert {f.order for f in facts} == {"straight", "problem first", "in a frame"}


def test_no_template_names_what_the_checker_watches_for():
    tracked = {*world.NAMES, *world.OBJECTS, *world.FOODS, *world.ANIMALS, *world.GROWN_UPS}
    tracked |= {*world.PLACES, *world.OTHER_OBJECTS, *world.OTHER_NAMES}
    for where, template in templates():
        parse(template)
        plain = set(re.findall(r"[A-Za-z]+", re.sub(r"\$[A-Za-z_]+", " ", template)))
        assert not plain & tracked, (where, template)


@pytest.mark.parametrize("name", ["stories4k", "bundled1536"])
def test_the_words_of_the_world_are_single_tokens(name):
    from architecture.tokenizer import get_tokenizer

    tokenizer = get_tokenizer(name)
    nouns = [*world.NAMES, *world.OBJECTS, *world.FOODS, *world.ANIMALS, *world.GROWN_UPS]
    nouns += list(world.PLACES)
    assert [noun for noun in nouns if len(tokenizer.encode(" " + noun)) != 1] == []


def most_common_run(stories, length=8):
    """The largest share of the stories that one run of words is in, names masked."""
    names = {name.lower() for name in world.NAMES}
    counts = Counter()
    for s in stories:
        masked = ["*" if word.removesuffix("'s") in names else word for word in words(s.text)]
        counts.update({" ".join(masked[i : i + length]) for i in range(len(masked) - length + 1)})
    run, count = counts.most_common(1)[0]
    return count / len(stories), run


def copied_share(stories, index):
    return sum(index.copied_run(s.text) is not None for s in stories) / len(stories)


def test_no_eight_words_are_in_more_than_two_percent_of_the_stories():
    share, run = most_common_run(told(FAST))
    assert share <= 0.02, run


def test_held_out_stories_copy_no_twenty_words_of_the_training_stories():
    index = RunIndex(s.text for s in told(FAST))
    assert copied_share(held_out(300), index) <= 0.03


@pytest.mark.slow
def test_the_whole_training_split_keeps_all_three_rules():
    share, run = most_common_run(told(ALL))
    assert share <= 0.02, run
    assert len({s.text for s in told(ALL)} | {s.text for s in held_out(1000)}) == ALL + 1000
    # 8.4 % when this was written: a story has one of fourteen casts, and the wording must do the rest
    assert copied_share(held_out(1000), RunIndex(s.text for s in told(ALL))) <= 0.10


def test_a_template_takes_one_alternative_and_begins_with_a_capital():
    import random

    slots = {"o": "{owl|ant}", "well": "{Oh, |}"}
    texts = {
        expand('a $o {saw|met} it. "{$well}It is big," he said.', slots, random.Random(n)) for n in range(200)
    }
    assert len(texts) == 8
    assert 'An owl saw it. "Oh, it is big," he said.' in texts
    assert 'An ant met it. "It is big," he said.' in texts


@pytest.mark.parametrize("template", ["{a|b", "a}", "{{a}"])
def test_an_unbalanced_template_is_refused(template):
    with pytest.raises(ValueError, match="brace"):
        parse(template)
