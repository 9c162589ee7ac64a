"""The rewards of GRPO and PPO, and what is said of bad ones."""

import math

import pytest

from data.examples import Example
from data.stories import story
from data.stories.tasks import Tasks
from training.post import rewards
from training.post.rewards import Response, parse_rewards, reward_of

STORY = story(3).text


def response(text, ended=True, **task):
    return Response(text, Example("Tell a story. ", "Yes.", task), ended, 9)


def test_words_count_as_whole_words_in_any_case():
    task = {"words": ["kite", "red", "Run"]}
    assert rewards.words(response("The KITE ran. I run. A redder one.", **task)) == 2 / 3
    assert rewards.words(response("", **task)) == 0


def test_a_story_gets_all_and_its_fragments_do_not():
    whole, first = response(STORY), response(STORY.split(".")[0] + ".")
    assert [f(whole) for f in (rewards.ends, rewards.checker, rewards.length)] == [1, 1, 1]
    assert rewards.ends(response(STORY, ended=False)) == rewards.ends(first) == rewards.checker(first) == 0
    assert rewards.ends(response("")) == rewards.checker(response("")) == 0


def test_length_falls_on_both_sides():
    assert [rewards.length(response("a " * n)) for n in (0, 40, 80, 300, 450, 600, 900)] == [
        0,
        0.5,
        1,
        1,
        0.5,
        0,
        0,
    ]


def test_repetition_costs_its_share():
    assert rewards.no_repetition(response("one two three four five")) == 1
    assert rewards.no_repetition(response("a b c d a b c d")) == 4 / 5  # a b c d comes twice
    assert rewards.no_repetition(response("no no no no no no no")) == 1 / 4
    assert rewards.no_repetition(response("too short here")) == 0


def test_rewards_are_read_with_their_weights():
    assert parse_rewards("words:2, ends:-0.5,checker") == {"words": 2, "ends": -0.5, "checker": 1}
    for text, told in (
        ("word:1", "'word' is no reward; did you mean 'words'"),
        ("xyz", "'xyz' is no reward; use words, feature, ends"),
        ("", "'' is no reward"),
        ("ends:1,ends:2", "ends is there twice"),
        ("ends:nan", "the weight of ends must be a number; write ends:1"),
        ("ends:much", "the weight of ends must be a number"),
        (
            "words:0,ends:0.0",
            "must give some reward a weight other than 0, got 'words:0,ends:0.0'; write words:1",
        ),
    ):
        with pytest.raises(ValueError, match=told):
            parse_rewards(text)


def test_a_reward_that_raises_or_gives_no_number_names_itself_and_the_prompt(monkeypatch):
    with pytest.raises(
        ValueError,
        match=r"reward words for the prompt 'Tell a story. ' \(an example\) raised .*must have \"words\", a list of them, got None",
    ):
        reward_of("words", response("A kite."))
    with pytest.raises(ValueError, match="a list of them, got 'kite'"):  # each letter would be a word
        reward_of("words", response("A kite.", words="kite"))
    monkeypatch.setitem(rewards.REWARDS, "mine", lambda response: math.inf)
    with pytest.raises(
        ValueError, match="the reward mine for the prompt 'Tell.* must be a finite number, got inf"
    ):
        reward_of("mine", response("A kite."))


def test_the_story_of_a_task_has_its_words_and_its_feature():
    example = Tasks(50)[7]
    other = Response(STORY.replace('"', ""), example._replace(task={"feature": "dialogue"}), True, 9)
    assert rewards.words(Response(example.response, example, True, 9)) == 1
    assert rewards.feature(Response(example.response, example, True, 9)) == 1
    assert rewards.feature(other) == 0
