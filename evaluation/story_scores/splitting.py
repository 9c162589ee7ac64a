"""Split a story into sentences and words, with the places that they have in it."""

from __future__ import annotations

import re
from typing import NamedTuple

# The words for people by the pronoun that stands for them.
SHE = frozenset(
    "girl lady woman mom mommy mother mum mama grandma granny sister princess queen daughter".split()
)
HE = frozenset("boy man dad daddy father papa grandpa brother prince king son".split())
PRONOUNS = {"she": "she", "her": "she", "hers": "she", "herself": "she"}
PRONOUNS |= {"he": "he", "him": "he", "his": "he", "himself": "he"}
ANIMALS = tuple(
    "dog cat bird bear bunny rabbit fish frog duck mouse squirrel fox lion owl monkey bee turtle pig horse cow puppy "
    "kitten butterfly spider wolf elephant dragon".split()
)
OBJECTS = tuple(
    "ball box car doll kite hat book bike boat truck bag key cake toy robot train drum crown scarf teddy bucket wagon "
    "plane bell stick rock flower balloon cookie bottle jar stone mirror lamp blanket necklace ring cup sandwich muffin "
    "apple pear carrot banana pie leaf basket umbrella".split()
)

_SENTENCE = re.compile(r"[^\n]+?(?:[.!?]+[\"'\u201d\u2019)]*(?=\s|$)|(?=\n|$))")
WORD = re.compile(r"[A-Za-z]+(?:['\u2019][a-z]+)?")
_INTRODUCED = re.compile(r"\b([a-z]+) (?:was )?(?:named|called) ([A-Z][a-z]+)\b")


class Span(NamedTuple):
    """A sentence: text[start:end] of its story, without the white space around it."""

    start: int
    end: int


def sentences(text: str) -> list[Span]:
    """The sentences in order. '"Where is it?" asked Tom.' is one; a line break always ends one."""
    found: list[Span] = []
    for match in _SENTENCE.finditer(text):
        piece = match[0].strip()
        if not piece:
            continue
        start = match.start() + match[0].index(piece[0])
        span = Span(start, start + len(piece))
        goes_on = piece[0].islower() and found and "\n" not in text[found[-1].end : start]
        if goes_on and text[found[-1].end - 1] in "\"\u201d'":
            found[-1] = Span(found[-1].start, span.end)
        else:
            found.append(span)
    return found


def whole_sentences(text: str, most_words: int) -> str:
    """The beginning of a story with at most so many words, up to the end of its last whole sentence.

    "" if the first sentence does not end by then.
    """
    words = 0
    end = 0
    for span in sentences(text):
        words += len(text[span.start : span.end].split())
        if words > most_words or text[span.end - 1] not in ".!?\"'\u201d\u2019)":
            break
        end = span.end
    return text[:end]


def words_of(text: str) -> list[str]:
    """The words in lower case, without punctuation."""
    return [word.lower() for word in WORD.findall(text)]


def bare(word: str) -> str:
    """The word without the 's of a possessive."""
    return word.removesuffix("'s").removesuffix("\u2019s")


def introduced_names(text: str) -> dict[str, str]:
    """{name: the noun in front} of "a girl named Lily" and "a fox called Rex", in order."""
    return {match[2]: match[1] for match in _INTRODUCED.finditer(text)}


def gender_of(noun: str) -> str:
    """The pronoun of a noun for a person; "it" for any other noun, such as an animal."""
    return "she" if noun in SHE else "he" if noun in HE else "it"
