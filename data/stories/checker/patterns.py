"""Patterns for retold sentences (retold.py), and what a sentence affirms."""

import re
from collections.abc import Iterable
from functools import cache

# <O> is the thing or "it"; <2>, <4>: up to so many words without a comma; <not> denies.
_SHORT = {
    "<O>": r"(?:(?:[NSB]_ )?O|it|one)(?![\w])",
    "<1>": r"(?: [^ ,]+)?",
    "<2>": r"(?: [^ ,]+){0,2}",
    "<3>": r"(?: [^ ,]+){0,3}",
    "<5>": r"(?: [^ ,]+){0,5}",
    "<6>": r"(?: [^ ,]+){0,6}",
    "<4>": r"(?: [^ ,]+){0,4}",
    "<not>": r"(?:not|never|nobody|nothing|neither|nor|hardly|without)",
    "<anyone>": r"[NSB](?!_)",
}


def pattern(*alternatives: str) -> re.Pattern:
    """Compile alternatives of whole words, with the short forms above written out."""
    text = "|".join(alternatives)
    for short, full in _SHORT.items():
        text = text.replace(short, full)
    return re.compile(rf"(?<![\w])(?:{text})(?![\w])")


_CLAUSE = re.compile(
    r"( ?, | (?=(?:and|but|because|while|when|so|until|who|before|after|though|although)(?: |$)))"
)
_DENIES = re.compile(
    r"(?<!\w)(?:not|never|nobody|nothing|no(?! (?:time|longer|doubt))|none|neither|nor|hardly|without(?! (?:any |a )?(?:help|mistake|word|trouble|break|rest))|nowhere|if|almost|nearly)(?!\w)"
)
_EARLIER = re.compile(
    r"(?<!\w)(?:have (?:once |all |just )?be(?! (?:look|search|wait|angry|sad|alone))|used to|instead of|have begin|have start|would have|could have|might have|wish|no longer|any more|anymore)(?!\w)"
)
# "It had never been so clean", "nobody had a better friend", "not only": these deny nothing.
_BOAST = re.compile(
    r"(?<!\w)(?:never|not|nobody|nothing)(?: (?!again|any)[^ ,]+){0,5}? (?:so|such|a better|a nicer|better|more|only|as (?:much|well) as|stop|help but)(?!\w)[^,]*"
)
_OBLIGED = re.compile(r"(?<!\w)(?:not|never|nobody|nothing) (?:ever )?(?:have|need|has) to(?!\w)[^,]*")


_AS_IF = re.compile(r" as if .*")


@cache
def affirmed(told: str) -> str:
    """The clauses that say what is, not what is not, or was earlier."""
    parts = _CLAUSE.split(_AS_IF.sub("", told))
    kept = ""
    for clause, mark in zip(parts[::2], (*parts[1::2], "")):
        left_out = _DENIES.search(clause) or _EARLIER.search(clause)
        kept += " , " if left_out else clause + mark
    return kept


@cache
def denied(told: str) -> str:
    """The sentence without what only looks like a denial: "not any more", "never so happy"."""
    told = _OBLIGED.sub("obliged", told)
    told = _BOAST.sub("boast", told)
    return " , ".join(clause for clause in told.split(" , ") if not _NO_LONGER.search(clause))


_NO_LONGER = re.compile(
    r"(?<!\w)(?:no longer (?!friend|be friend|come|go|want|let|speak|talk|play|see|find|get)|(?:not|nobody|nothing|never)(?: \w+)*? (?:lose|miss|break|dirty|muddy|wet|"
    r"stuck|sad|afraid|scare|frighten|lonely|hungry|alone|worried|hard|sorry|shy|angry|upset|empty|go|need|matter|hurt|rain)"
    r"(?: \w+)* (?:any more|anymore|any longer))(?!\w)"
)


def first_match(patterns: Iterable[re.Pattern], text: str) -> bool:
    return any(found.search(text) for found in patterns)
