"""Preference pairs from the story world: how a story goes on, and how it must not.

The prompt is the first sentence of a story, the chosen response is the rest of it, and the rejected response is that
rest with an edit by which the story contradicts itself (contradictions.py), or with the ending of another story.
Held-out pairs are of the validation stories. Many stories begin with the same words, so a held-out prompt may occur in
training, but no held-out response does.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from data.examples import Pair
from data.stories import TRAIN_STORIES, VALIDATION_STORIES, VERSION, Story, story
from data.stories.contradictions import CONTRADICTIONS, halves, joined, paragraphs
from data.stories.grammar import pick

EDITION = 1  # of the edits; a run resumes only on the edition that it began with
OTHER_ENDING = "ending of another story"
EDITS = {kind: rule for kind, rule in CONTRADICTIONS.items() if rule is not joined}
KINDS = (*EDITS, OTHER_ENDING)


def pairs(split: str) -> tuple[Sequence[Pair], str]:
    """The pairs of a split, "train" or "validation", each made when it is asked for, and their identity."""
    first, count = (0, TRAIN_STORIES) if split == "train" else (TRAIN_STORIES, VALIDATION_STORIES)
    identity = f"bundled pairs {EDITION} of stories {VERSION}, {count:,} from number {first:,}"
    return StoryPairs(range(first, first + count)), identity


class StoryPairs(Sequence):
    """One pair for each of these numbers of stories: the same one on every machine and at every time."""

    def __init__(self, numbers: range):
        self.numbers = numbers

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        number = self.numbers[index]
        told = story(number)
        prompt = beginning(told.text)
        for attempt in itertools.count():  # not every edit has a place in every story
            rng = random.Random(f"pair {number}/{attempt}")
            kind = pick(rng, KINDS)
            edited = self.edited(told, kind, rng)
            if edited and edited.startswith(prompt) and edited != told.text:
                rest, worse = told.text[len(prompt) :], edited[len(prompt) :]
                return Pair(prompt, rest, worse, f"bundled pair {number} ({kind})")

    def edited(self, told: Story, kind: str, rng: random.Random) -> str | None:
        """The story with an edit of a kind; None if it has no place for one."""
        if kind == OTHER_ENDING:
            return halves(told, story(pick(rng, self.numbers)))
        return EDITS[kind](told, rng)


def beginning(text: str) -> str:
    """The first sentence. A line break behind it belongs to it, because a tokenizer joins it to the full stop."""
    (first, *more), *_ = paragraphs(text.partition("\n")[0])
    return first if more else f"{first}\n"
