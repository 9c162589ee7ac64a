"""Measure the bundled stories and their checker: are the stories varied, is the checker right?

    python -m benchmarks.stories     writes benchmarks/results/stories.json

Over all training and validation stories: how many differ, their length, the most frequent run of eight words
with names masked, and the share that the checker accepts. Further: the share of copies with one swapped name,
place or object that it rejects, and the share of validation stories with a run of 20 words from the training
stories. A swapped word is nearly always one that the story does not have elsewhere, so the share of rejected
copies says little about other contradictions. Exits with 1 if a limit is missed.
"""

from __future__ import annotations

import random
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from benchmarks.publish import judge, publish
from data.stories import TRAIN_STORIES, VALIDATION_STORIES, story, world
from data.stories.checker import check
from data.stories.copies import RunIndex

COPIES = 200  # with a swapped word
RUN = 8  # words
KINDS = {"name": sorted(world.NAMES), "place": sorted(world.PLACES), "object": sorted(world.OBJECTS)}
_NAME = re.compile(rf"\b({'|'.join(KINDS['name'])})\b")


def commonest_run(texts: list[str]) -> tuple[str, float]:
    """The run of words, with names masked, that most of the texts contain, and their share."""
    # Hashes, because the runs of all stories as text take hundreds of MB.
    counts = Counter(key for text in texts for key in set(map(hash, _runs(text))))
    ((key, count),) = counts.most_common(1)
    return next(run for text in texts for run in _runs(text) if hash(run) == key), count / len(texts)


def _runs(text: str) -> list[str]:
    words = re.findall(r"[a-z']+", _NAME.sub("NAME", text).lower())
    return [" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1)]


def swapped(text: str, words: list[str], generator: random.Random) -> str | None:
    """The text with one mention of one of the words replaced by another of them; None without a mention."""
    mentions = list(re.finditer(rf"\b({'|'.join(words)})\b", text))
    if not mentions:
        return None
    mention = generator.choice(mentions)
    other = generator.choice([word for word in words if word != mention[0]])
    return text[: mention.start()] + other + text[mention.end() :]


def copied_share(texts: list[str], training: Iterable[str]) -> float:
    """The share of the texts with a run of 20 words from the training texts."""
    index = RunIndex(training)
    return sum(index.copied_run(text) is not None for text in texts) / len(texts)


def measure() -> dict[str, Any]:
    indices = range(TRAIN_STORIES + VALIDATION_STORIES)
    texts = [story(index).text for index in tqdm(indices, desc="stories", leave=False, disable=None)]
    training, validation = texts[:TRAIN_STORIES], texts[TRAIN_STORIES:]
    lengths = [len(text.split()) for text in texts]
    accepted = [check(text).passes for text in tqdm(texts, desc="checking", leave=False, disable=None)]
    generator, copies = random.Random(0), []
    while len(copies) < COPIES:
        kind = generator.choice(list(KINDS.values()))
        copy = swapped(generator.choice(texts), kind, generator)
        copies += [copy] if copy else []
    return {
        "stories": len(texts),
        "different": len(set(texts)),
        "words": [min(lengths), statistics.median(lengths), max(lengths)],
        "commonest_eight_words": commonest_run(training),
        "accepted": sum(accepted) / len(accepted),
        "swapped_copies_rejected": sum(not check(copy).consistent for copy in copies) / COPIES,
        "validation_stories_with_20_words_of_training": copied_share(validation, training),
    }


def limits(figures: dict[str, Any]) -> dict[str, bool]:
    shortest, _, longest = figures["words"]
    copied = figures["validation_stories_with_20_words_of_training"]
    return {
        "all different": figures["different"] == figures["stories"],
        "80 to 300 words": shortest >= 80 and longest <= 300,
        "commonest eight words in at most 2 %": figures["commonest_eight_words"][1] <= 0.02,
        "at least 99 % accepted": figures["accepted"] >= 0.99,
        "at least 95 % of the copies rejected": figures["swapped_copies_rejected"] >= 0.95,
        "at most 10 % of validation stories copied": copied <= 0.10,
    }


def main() -> int:
    figures = measure()
    for name, value in figures.items():
        print(f"{name:<48} {value}")
    publish("stories", figures)
    return judge(limits(figures))


if __name__ == "__main__":
    sys.exit(main())
