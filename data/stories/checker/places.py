"""Where the characters are."""

import re

from data.stories import world
from data.stories.checker.noun_phrases import INDEFINITE, determiner_of, is_adjective
from data.stories.checker.report import Problem
from data.stories.reading import Sentence

PLACES = set(world.PLACES) | set(
    "beach lake market school desert jungle mountain attic cellar barn hospital church station ship circus pool palace zoo kitchen bedroom bathroom shop store library castle cave island town".split()
)
GOING = set(
    "to into towards toward onto for from reached entered left visited visit found saw see seen leave reach "
    "enter find called near".split()
)
_NEW_SCENE = re.compile(
    r"\b(?:next (?:day|morning|week)|(?:one|another) (?:\w+ )?(?:day|morning|afternoon|evening)|"
    r"that (?:\w+ )?(?:day|morning|afternoon|evening))\b"
)
_LATER = re.compile(
    r"\b(?:next (?:day|morning|week|time)|one day|another day|later|that (?:night|evening|afternoon)|"
    r"every day|had|home|went|ran|came|walked|go|back)\b"
)


def check_places(read: list[Sentence]) -> list[Problem]:
    """ "in the park" needs somebody to have gone there, and to be there still."""
    problems = []
    visited: set[str] = set()
    current = None  # where the characters are, or None if that is not known
    for sentence in read:
        words = sentence.words
        later = _LATER.search(sentence.narrated)
        if later and not any(word.lower in PLACES for word in words):
            current = None
        for i, word in enumerate(words):
            noun, determiner = word.lower, determiner_of(words, i)[0]
            if noun not in PLACES or determiner is None:
                continue
            before = _before_noun_phrase(words, i)
            goes = before in GOING or determiner in INDEFINITE
            if not visited or goes or (noun not in visited and _NEW_SCENE.search(sentence.narrated)):
                visited.add(noun)
                if not word.spoken and before != "from":
                    current = noun
            elif noun not in visited:
                problems.append(Problem("place", f"nobody had gone to the {noun}", sentence.text))
                visited.add(noun)
            elif before in ("in", "at", "on") and not (word.spoken or later or current in (None, noun)):
                what = f"they were at the {current}, not the {noun}"
                problems.append(Problem("place", what, sentence.text))
                current = noun
    return problems


def _before_noun_phrase(words, i):
    """The word before the determiner and the adjectives of the noun at i, or ""."""
    at = i - 1
    while at >= 0 and is_adjective(words[at]):
        at -= 1
    at -= 1  # skips the determiner
    return words[at].lower if at >= 0 else ""
