"""Noun phrases: the determiner and the adjectives in front of a noun."""

from data.stories import world
from data.stories.reading import Word

INDEFINITE = set("a an one another some any every each many two three".split())
DEFINITE = set("the this that no her his its my your our their".split())
ADJECTIVES = {
    *world.COLORS,
    *world.SIZES,
    *world.LOOKS,
    *(
        "orange black gray grey large huge small nice lovely fine great good best favorite favourite own "
        "dear poor dirty muddy clean wet dry broken mended fixed lost stuck beautiful warm cold same other "
        "special kind brave cheerful quiet curious clever gentle happy shy playful polite friendly careful "
        "jolly lively calm sweet merry sad lonely proud tall short fat thin long tired sleepy hungry angry "
        "scared loyal close neat cool hot fast toy magic very only funny silly young older younger big pet "
        "colorful bright fluffy yummy tasty delicious empty full heavy closed open strange metal plastic glass stone golden gold silver iron rubber hard square sour bitter salty stale rotten "
        "frozen dull rusty whole"
    ).split(),
}


def determiner_of(words: tuple[Word, ...], i: int) -> tuple[str | None, list[str], bool]:
    """The noun's determiner (or None), its adjectives, and whether "what" or "such" comes before."""
    adjectives = []
    at = i - 1
    while at >= 0 and is_adjective(words[at]) and is_joined(words, at + 1):
        adjectives.append(words[at].lower)
        at -= 1
    if at < 0 or not is_joined(words, at + 1):
        return None, adjectives, False
    word = words[at]
    if word.possessive:
        return "the", adjectives, False
    if word.lower in INDEFINITE | DEFINITE:
        return word.lower, adjectives, at > 0 and words[at - 1].lower in ("what", "such")
    return None, adjectives, False


def is_adjective(word):
    superlative = word.lower.endswith("est") and word.lower != "forest"
    return (word.lower in ADJECTIVES or superlative) and not word.possessive  # "Fluffy's kite"


def is_joined(words, i):
    """Whether at most a comma is between the word at i and the word before it, in the same quotation."""
    return words[i].break_before in ("", ",") and words[i].spoken == words[i - 1].spoken
