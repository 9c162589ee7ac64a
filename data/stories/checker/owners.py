"""To whom the thing belongs, and who thanks whom."""

import re
from collections.abc import Iterator

from data.stories.checker.courses import Course
from data.stories.checker.patterns import affirmed, pattern
from data.stories.checker.report import Problem
from data.stories.checker.retold import Line, Retold

HELPED = ("lost", "stuck", "broken", "dirty", "wet", "skill")
_OF = {
    "N": pattern(r"(?<!get )N_(?: (?!and|own)[a-z]+)? O", r"O<2> belong to N"),
    "S": pattern(r"(?<!get )S_(?: (?!and|own)[a-z]+)? O", r"O<2> belong to S"),
}
_IS_OF = {"N": pattern(r"<O><2> be N_(?=$| ,)"), "S": pattern(r"<O><2> be S_(?=$| ,)")}
_GIVEN_BACK = {
    "N": pattern(
        r"(?:give|hand|bring)<3> back to S",
        r"give S<2> back",
        r"S have (?:O|it) back",
        r"give S S_ O",
        r"S<1> (?:keep|steal) O",
        r"S take O home(?! with)",
    ),
    "S": pattern(r"(?:give|hand|bring)<3> back to N", r"give N<2> back", r"N have (?:O|it) back"),
}
_THANKS = {
    "N": pattern(r"thank S|thanks<3>(?: ,)? S", r"you be<2> kind , S"),
    "S": pattern(r"thank N|thanks<3>(?: ,)? N"),
}
_THANKED = {"N": pattern(r"N thank S"), "S": pattern(r"S thank N")}


# In a story in which S helps N: what only S says, and what only S does.
_HELPER_SAYS = pattern(
    r"what be (?:wrong|the matter)|why be S (?:so )?(?:sad|cry)|(?:can|may|let|will)<1> N<1> help|N (?:will|can) help S",
    r"do not (?:cry|worry|be sad|give up)<1> , S|cheer up|try again , S|S can do it",
)
_HELPER_DOES = pattern(
    r"N<1> (?:help|save|rescue|comfort) S(?!_)", r"N (?:teach|show) S<1> (?:how|a<1> trick|what to do)"
)
_REFUSED_SAYS = pattern(r"S be (?:so |very )?sorry|S be (?:mean|not kind|unkind)")
_REFUSED = pattern(r"(?:^|^\S+ )S<1> (?:be|feel)<1> (?:sorry|ashamed)|S have be (?:mean|unkind)")
_HELPED_SAYS = pattern(r"(?:show|teach|help) S(?= |$)(?! (?:to|with|look))|S be too (?:small|little|young)")
_RUINED = pattern(
    r"(?:throw|toss|kick) O<1> (?:away|into the (?!air|sky|tree|wind)[a-z]+|out of)|(?:burn|sell|smash|bury|buried) O|S<4> run (?:off|away) with (?:O|it)|S (?:have )?(?:steal|hide) O|S have (?:take|hide) (?:O|it)|on purpose"
)
_GONE = pattern(
    r"O<3> (?:go|lose|ruin|ruined) (?:for ever|for good|forever)|(?:be|sleep|live) without N_ O|O be ruined|never (?:bring|give)<2> back"
)
_TAPS = re.compile(r"(?:thump|scratch|tap|squeak|bump|knock|boom|meow|peep|cheep|woof|squeal|help|[ ,])+")
_GETS_ONE = pattern(r"N(?: have)? (?:find|buy|steal) a O")
_HAS_ONE_TOO = pattern(r"S have<1> (?:an?|another) O")
_PLURAL = pattern(r"(?:two|three|four|both|many|all|other|[NSB]_|the|of)<1> Os")
_DISOWNED = {
    "N": pattern(r"be not N_ O|O be not N_(?=$| ,)|N (?:have no|do not have a|never have a) O"),
    "S": pattern(r"be not S_ O|O be not S_(?=$| ,)|S (?:have no|do not have a|never have a) O"),
}
_THING_SPEAKS = pattern(
    r"(?:answer|reply|ask|say|cry|shout|call|whisper) O(?=$| ,)",
    r"O (?:answer|reply|say|ask|shout|whisper|laugh)",
)


def check_owners(retold: Retold, courses: dict[str, Course]) -> Iterator[Problem]:
    """Left out if there are more than two characters, because "his kite" may then be anybody's."""
    if retold.crowd or not retold.companion:
        return
    first, last = retold.frame
    for line in retold.lines:
        if first <= line.paragraph <= last:
            what = (
                _whose(line, retold, courses)
                or _who_helps(line, retold, courses)
                or _who_shares(line, retold, courses)
                or _what_happens_to_it(line, retold, courses)
                or _who_thanks(line, courses)
            )
            if what:
                yield Problem("owner", what, line.sentence.text)


def _says(line: Line, speaker: str, found: re.Pattern) -> bool:
    return any(said.speaker == speaker and found.search(said.text) for said in line.said)


def _whose(line: Line, retold: Retold, courses: dict[str, Course]) -> str | None:
    """ "My kite" is said by its owner, and of nobody else."""
    if {"gift", "noise"} & set(courses) or not courses:
        return None  # a gift changes its owner, and what makes a noise has none
    owner, other, name = ("S", "N", retold.companion) if "return" in courses else ("N", "S", retold.hero)
    said = [saying.text for saying in line.said if saying.speaker in ("N", "S")]
    if any(_OF[other].search(text) for text in (line.told, *said)) or _IS_OF[other].search(line.told):
        return f"the {retold.thing} was {name}'s"
    if _GIVEN_BACK[owner].search(affirmed(line.told)):
        return f"it was {name} who got it back"
    if _says(line, owner, _DISOWNED[owner]) or (_is_kept(courses) and _GETS_ONE.search(line.told)):
        return f"the {retold.thing} was {name}'s"
    return None


def _who_helps(line: Line, retold: Retold, courses: dict[str, Course]) -> str | None:
    if not _is_helped(courses):
        return None
    says = _says(line, "N", _HELPER_SAYS) or _says(line, "S", _HELPED_SAYS)
    return f"it was {retold.companion} who helped" if says or _HELPER_DOES.search(line.told) else None


def _who_shares(line: Line, retold: Retold, courses: dict[str, Course]) -> str | None:
    if "share" not in courses:
        return None
    if _REFUSED.search(line.told) or _says(line, "S", _REFUSED_SAYS):
        return f"it was {retold.hero} who would not share"
    return f"there was one {retold.thing}" if _HAS_ONE_TOO.search(line.told) else None


def _what_happens_to_it(line: Line, retold: Retold, courses: dict[str, Course]) -> str | None:
    if _RUINED.search(affirmed(line.told)):
        return f"the {retold.thing} was not thrown away"
    if _is_kept(courses) and line.paragraph >= retold.frame[1] - 1 and _GONE.search(line.told):
        return f"{retold.hero} had the {retold.thing}"
    if _PLURAL.search(line.told):
        return f"there was one {retold.thing}"
    taps = "noise" in courses and all(_TAPS.fullmatch(said.text) for said in line.said)
    return f"the {retold.thing} cannot speak" if not taps and _THING_SPEAKS.search(line.told) else None


def _who_thanks(line: Line, courses: dict[str, Course]) -> str | None:
    given = {"return", "gift", "hungry"} & set(courses) and "noise" not in courses
    thankless = "S" if _is_helped(courses) else "N" if given else ""  # has no reason to thank the other one
    thanks = thankless and (
        _says(line, thankless, _THANKS[thankless]) or _THANKED[thankless].search(line.told)
    )
    return "the wrong one says thanks" if thanks else None


def _is_helped(courses: dict[str, Course]) -> bool:
    """Whether S helps N, and nothing goes the other way."""
    others = {"return", "gift", "hungry", "noise", "share", "lonely"}
    return any(name in courses for name in HELPED) and not others & set(courses)


def _is_kept(courses: dict[str, Course]) -> bool:
    """Whether N has the thing from the beginning to the end."""
    return bool(courses) and not {"return", "gift", "hungry", "noise"} & set(courses)
