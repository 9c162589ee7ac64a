"""Rewards: plain functions that judge a response, for --rewards words:1,ends:0.5,...

To add your own, write a function here that takes a Response and returns a finite number, and put it into REWARDS; its
name is then one for --rewards. The reward of a response is the sum of the named functions times their weights, so they
are easy to weigh if each is between 0 and 1. A policy learns what a function measures and not what it is meant to
measure: look at samples/response while a reward rises. This module imports no torch.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from common.script import did_you_mean, first_line, shown
from data.examples import Example
from data.stories.checker import check
from data.stories.tasks import FEATURES, has_feature, words_used
from data.stories.tell import MAX_WORDS, MIN_WORDS

checked = functools.lru_cache(maxsize=1024)(check)  # two rewards ask for the same text
RUN = 4  # words; stories repeat shorter runs, such as "the little girl"
SPREAD = 1e-6  # rewards that differ by less are equal, but for rounding


class Response(NamedTuple):
    """What a model answered to a prompt."""

    text: str  # without the prompt and without end-of-text
    example: Example  # prompt, a known response, and task: what the prompt asks for
    ended: bool  # by end-of-text, and not by the limit
    tokens: int


def words(response: Response) -> float:
    """The share of the words of the task that the text uses, as whole words."""
    asked = response.example.task.get("words")
    if not asked or not isinstance(asked, list | tuple):  # a text would be its letters
        raise ValueError(f'the example must have "words", a list of them, got {shown(asked)}')
    return words_used(response.text, asked)


def feature(response: Response) -> float:
    """1 if the text has the feature of the task."""
    asked = response.example.task.get("feature")
    if asked not in list(FEATURES):
        known = ", ".join(FEATURES)
        raise ValueError(f'the example must have "feature", one of {known}, got {shown(asked)}')
    return float(has_feature(response.text, asked))


def ends(response: Response) -> float:
    """1 if the text ended by itself, and its last sentences end the story."""
    return float(response.ended and checked(response.text).finished)


def length(response: Response) -> float:
    """1 for as many words as the stories have, and less outside, down to 0 for none and for twice as many."""
    number = len(response.text.split())
    return min(1.0, number / MIN_WORDS, max(0.0, 2 - number / MAX_WORDS))


def no_repetition(response: Response) -> float:
    """The share of the runs of RUN words that are the first of their kind; 0 for a shorter text."""
    found = re.findall(r"\w+", response.text.lower())
    runs = [tuple(found[start : start + RUN]) for start in range(len(found) - RUN + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0


def checker(response: Response) -> float:
    """1 if the checker of stories finds no contradiction and no open end (data/stories/checker)."""
    return float(checked(response.text).passes)


REWARDS: dict[str, Callable[[Response], float]] = {
    "words": words,
    "feature": feature,
    "ends": ends,
    "length": length,
    "no_repetition": no_repetition,
    "checker": checker,
}


def parse_rewards(text: str) -> dict[str, float]:
    """{name: weight} of "words:1,ends:0.5"; without a number the weight is 1. Raises ValueError."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition(":"))
        rule = f"--rewards takes NAME:WEIGHT, or several with commas, got {shown(text)}"
        if name not in REWARDS:
            way_out = did_you_mean(name, REWARDS) or f"; use {', '.join(REWARDS)}"
            raise ValueError(f"{rule}; {shown(name)} is no reward{way_out}")
        if name in found:
            raise ValueError(f"{rule}; {name} is there twice; name it once")
        try:
            found[name] = float(number or 1)
        except ValueError:
            found[name] = math.nan
        if not math.isfinite(found[name]):
            raise ValueError(f"{rule}; the weight of {name} must be a number; write {name}:1")
    if not any(found.values()):
        raise ValueError(
            f"--rewards must give some reward a weight other than 0, got {shown(text)}; write {next(iter(found))}:1"
        )
    return found


def reward_of(name: str, response: Response) -> float:
    """The value of a reward. Raises ValueError, with the prompt, if it raises or returns no finite number."""
    example = response.example
    told = f"the reward {name} for the prompt {shown(example.prompt)} ({example.name})"
    way_out = "mend the reward in training/post/rewards.py, or the data, or leave it out of --rewards"
    try:
        value = float(REWARDS[name](response))
    except Exception as error:
        raise ValueError(f"{told} raised {first_line(error)}; {way_out}") from error
    if not math.isfinite(value):
        raise ValueError(f"{told} must be a finite number, got {value}; {way_out}")
    return value


def task_record(examples: Sequence[Example], texts: Sequence[str]) -> dict[str, float]:
    """The shares of texts that do what their tasks ask for; empty if a task is not one of the story world."""
    asked = [(e.task.get("words"), e.task.get("feature")) for e in examples]
    if not all(words and isinstance(words, list) and feature in [*FEATURES] for words, feature in asked):
        return {}
    used = [words_used(text, words) for text, (words, _) in zip(texts, asked)]
    return {
        "val/words": fmean(used),
        "val/all_words": fmean(share == 1 for share in used),
        "val/feature": fmean(has_feature(text, feature) for text, (_, feature) in zip(texts, asked)),
        "val/passes": fmean(checked(text).passes for text in texts),
    }
