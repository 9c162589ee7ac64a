"""Templates with choices, such as "{One day|Once}, $name {ran|walked} off."

{a|b|} takes one of its alternatives with equal probability; an empty alternative leaves the words out. $name
is replaced by the template of that name. Both can be nested.
"""

import random
import re
from collections.abc import Mapping
from functools import cache

_PIECE = re.compile(r"\$[A-Za-z_]+|[{}|]|[^${}|]+")
_AN = re.compile(r"\b([Aa]) (?=[aeiou])")
_SPACES = re.compile(r" {2,}")
# A sentence begins at the start and after the end of a sentence. A quotation ends one only with `."`, because
# in `!" said Tom` the sentence continues.
_BEGINNING = re.compile(r'(?:^|(?<=[.!?] )|(?<=\." ))("?)([a-z])')
# These words lose their capital when an interjection is put in front of their sentence.
_CONTINUES = (
    "Any|Are|Be|But|Can|Catch|Cheer|Come|Could|Dear|Did|Do|Done|Dry|Half|Have|Here|Hooray|Is|It|Let|"
    "Listen|Look|May|Maybe|My|Never|Nobody|Not|Now|Oh|Please|Sit|Something|Thank|Thanks|That|The|"
    "There|Things|This|Together|Try|Two|Wait|Was|Watch|We|What|Who|Why|Would|You|Your"
)
_AFTER_INTERJECTION = re.compile(rf"\b(?:Oh|Well|Ah|My|Hm), (?:{_CONTINUES})\b")
_SPACE_BEFORE = re.compile(r" (?=[,.!?])")


class _Slot(str):
    """The name of a template to put here."""


@cache
def parse(template: str) -> tuple:
    """Split a template into literal strings, slots, and choices (tuples of alternatives)."""
    stack = [[[]]]
    for piece in _PIECE.findall(template):
        alternatives = stack[-1]
        if piece == "{":
            stack.append([[]])
        elif piece == "|" and len(stack) > 1:
            alternatives.append([])
        elif piece == "}":
            choice = stack.pop()
            if not stack:
                raise ValueError(f"template {template!r} has a closing brace too many")
            stack[-1][-1].append(tuple(tuple(parts) for parts in choice))
        else:
            alternatives[-1].append(_Slot(piece[1:]) if piece[0] == "$" else piece)
    if len(stack) != 1:
        raise ValueError(f"template {template!r} has a brace that is not closed")
    return tuple(stack[0][0])


def pick(rng: random.Random, options):
    """Draw one of the options. rng.choice may differ between versions of Python; rng.random does not."""
    return options[int(rng.random() * len(options))]


def expand(template: str, slots: Mapping[str, str], rng: random.Random) -> str:
    """Draw a text from the template, with capital letters where sentences begin."""
    words = []
    _expand(parse(template), slots, rng.random, words.append)
    text = _SPACE_BEFORE.sub("", _SPACES.sub(" ", "".join(words))).strip()
    text = _AN.sub(r"\1n ", text)
    if ", " in text:
        text = _AFTER_INTERJECTION.sub(_lower_second, text)
    return _BEGINNING.sub(lambda match: match[1] + match[2].upper(), text)


def _lower_second(match):
    interjection, _, word = match[0].rpartition(" ")
    return f"{interjection} {word.lower()}"


def _expand(parts, slots, draw, say):
    # Most of the loader's time goes here: the exact type is faster to test than isinstance, and the most
    # frequent type comes first.
    for part in parts:
        kind = type(part)
        if kind is str:
            say(part)
        elif kind is _Slot:
            _expand(parse(slots[part]), slots, draw, say)
        else:
            _expand(part[int(draw() * len(part))], slots, draw, say)
