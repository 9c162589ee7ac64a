"""Details that a story tells once and must not tell otherwise: who gave the thing, how many pieces, who tells."""

import re
from collections.abc import Iterator

from data.stories.checker.patterns import pattern
from data.stories.checker.report import Problem
from data.stories.checker.retold import GROWN_UPS, Retold

_KIN = "aunt|uncle|cousin|neighbor|teacher|sister|brother|mother|father|mom|dad|grandma|grandpa|grandmother|grandfather"
_GIVER = re.compile(
    rf"(?<!\w)(?:from N_(?: \w+)? ({_KIN})|N_(?: \w+)? ({_KIN}) (?:have )?(?:give|make|buy|send|knit))(?!\w)"
)
_OWN = pattern(
    r"N have (?:buy|make|win|build|sew) (?:O|it)|(?:buy|find|make|win)<1> O (?:in|at|with|on)<2> (?:shop|store|market|street|money|fair)"
)
_PIECES = re.compile(r"(?<!\w)(two|three|four|five|six|ten|hundred) (?:pieces|parts)(?!\w)")


def check_details(retold: Retold) -> Iterator[Problem]:
    first, last = retold.frame
    giver = pieces = ""
    for line in retold.lines:
        if not first <= line.paragraph <= last:
            continue
        what = None
        for text in (line.told, *(said.text for said in line.said if said.speaker == "N")):
            about = re.search(r"(?<!\w)(?:O|it)(?!\w)", text)
            if about and (match := _GIVER.search(text)):
                named = match[1] or match[2]
                if giver and named != giver:
                    what = f"the {retold.thing} came from the {giver}"
                giver = giver or named
            elif giver and _OWN.search(text):
                what = f"the {retold.thing} came from the {giver}"
            if match := _PIECES.search(text):
                if pieces and match[1] != pieces:
                    what = f"there were {pieces} pieces"
                pieces = pieces or match[1]
        if what:
            yield Problem("object", what, line.sentence.text)
    if first:
        yield from _teller(retold)


def _teller(retold: Retold) -> Iterator[Problem]:
    """The one who tells the story at its beginning also ends it."""
    first, last = retold.frame
    began = {word.lower for line in retold.lines if line.paragraph < first for word in line.sentence.words}
    for line in retold.lines:
        if line.paragraph > last:
            for word in line.sentence.words:
                if word.lower in GROWN_UPS and word.lower not in began and not word.spoken:
                    yield Problem("name", f"{word.text} did not tell the story", line.sentence.text)
