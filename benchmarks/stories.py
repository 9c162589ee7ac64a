"""The bundled stories and their checker in figures: are the stories varied, is the checker right?

    python -m benchmarks.stories     writes benchmarks/results/stories.json     (about two minutes)

Over all training and validation stories: how many differ, their length, the commonest run of eight
words with names masked, how many the checker accepts; how many of 200 copies with one mention of a
name, place or object swapped for another it rejects; how many validation stories share a run of 20
words with the training stories. Exits with 1 where a limit is missed.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from common.provenance import provenance
from data.stories import TRAIN_STORIES, VALIDATION_STORIES, story, world
from data.stories.checker import check
from data.stories.copies import RunIndex

RESULT = Path(__file__).parent / "results" / "stories.json"
COPIES, MASK = 200, "NAME"


def commonest_run(texts: list[str], names: frozenset[str], length: int = 8) -> tuple[str, float]:
    """The run of words, names masked, that most stories contain, and their share."""
    masked = re.compile(r"\b(" + "|".join(sorted(names)) + r")\b")
    seen: Counter[int] = Counter()
    for text in texts:
        words = re.findall(r"[a-z']+", masked.sub(MASK, text).lower())
        seen.update({hash(tuple(words[i : i + length])) for i in range(len(words) - length + 1)})
    ((run, count),) = seen.most_common(1)
    for text in texts:
        words = re.findall(r"[a-z']+", masked.sub(MASK, text).lower())
        for i in range(len(words) - length + 1):
            if hash(tuple(words[i : i + length])) == run:
                return " ".join(words[i : i + length]), count / len(texts)
    raise AssertionError("a counted run is in some story")


def swapped(text: str, kinds: list[list[str]], generator: random.Random) -> str | None:
    """The story with one mention of one name, place or object replaced; None if it has none of a kind."""
    kind = generator.choice(kinds)
    found = list(re.finditer(r"\b(" + "|".join(sorted(kind)) + r")\b", text))
    if not found:
        return None
    mention = generator.choice(found)
    other = generator.choice([word for word in kind if word != mention[0]])
    return text[: mention.start()] + other + text[mention.end() :]


def main() -> int:
    names = sorted(world.NAMES)
    places = sorted(world.PLACES)
    kinds = [names, places, sorted(world.OBJECTS)]
    indices = range(TRAIN_STORIES + VALIDATION_STORIES)
    texts = [story(index).text for index in tqdm(indices, desc="stories", leave=False, disable=None)]
    training, validation = texts[:TRAIN_STORIES], texts[TRAIN_STORIES:]
    lengths = [len(text.split()) for text in texts]
    run, share = commonest_run(training, frozenset(names))
    accepted = [check(text).passes for text in tqdm(texts, desc="checking", leave=False, disable=None)]

    generator, copies = random.Random(0), []
    while len(copies) < COPIES:
        copy = swapped(texts[generator.randrange(len(texts))], kinds, generator)
        copies += [copy] if copy is not None else []
    rejected = sum(not check(copy).consistent for copy in copies) / COPIES
    index = RunIndex(training)
    copied = sum(index.copied_run(text) is not None for text in validation) / len(validation)

    figures = {
        "stories": len(texts),
        "different": len(set(texts)),
        "words": [min(lengths), statistics.median(lengths), max(lengths)],
        "commonest_eight_words": [run, share],
        "accepted": sum(accepted) / len(accepted),
        "swapped_copies_rejected": rejected,
        "validation_stories_with_20_words_of_training": copied,
    }
    limits = {
        "all different": len(set(texts)) == len(texts),
        "80 to 300 words": min(lengths) >= 80 and max(lengths) <= 300,
        "commonest eight words in at most 2 %": share <= 0.02,
        "at least 99 % accepted": figures["accepted"] >= 0.99,
        "at least 95 % of the copies rejected": rejected >= 0.95,
        "at most 10 % of validation stories copied": copied <= 0.10,
    }
    for name, value in figures.items():
        print(f"{name:<48} {value}")
    for name, met in limits.items():
        print(f"{'met   ' if met else 'MISSED'} {name}")
    RESULT.write_text(json.dumps(provenance() | figures, indent=1) + "\n", encoding="utf-8")
    return 0 if all(limits.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
