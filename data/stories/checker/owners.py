"""To whom the thing belongs, and who thanks whom."""

import re
from collections.abc import Iterator

from data.stories.checker.courses import Course
from data.stories.checker.patterns import affirmed, pattern
from data.stories.checker.report import Problem
from data.stories.checker.retold import Retold

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
    if retold.crowd:
        return
    owner = _owner(courses)
    helped = any(name in courses for name in HELPED) and not {
        "return",
        "gift",
        "hungry",
        "noise",
        "share",
        "lonely",
    } & set(courses)
    given = {"return", "gift", "hungry"} & set(courses) and not {"noise"} & set(courses)
    thankless = "S" if helped else "N" if given else ""  # who has no reason to thank the other one
    kept = courses and not {"return", "gift", "hungry", "noise"} & set(courses)
    first, last = retold.frame
    for line in retold.lines:
        if not first <= line.paragraph <= last or not retold.companion:
            continue
        told = line.told
        what = None
        if owner:
            other = "S" if owner == "N" else "N"
            said = [saying.text for saying in line.said if saying.speaker in ("N", "S")]
            name = retold.hero if owner == "N" else retold.companion
            if any(_OF[other].search(text) for text in (told, *said)) or _IS_OF[other].search(told):
                what = f"the {retold.thing} was {name}'s"
            elif _GIVEN_BACK[owner].search(affirmed(told)):
                what = f"it was {name} who got it back"
            elif any(s.speaker == owner and _DISOWNED[owner].search(s.text) for s in line.said):
                what = f"the {retold.thing} was {name}'s"
        if not what and helped:
            if any(
                s.speaker == "N" and _HELPER_SAYS.search(s.text) for s in line.said
            ) or _HELPER_DOES.search(told):
                what = f"it was {retold.companion} who helped"
            elif any(s.speaker == "S" and _HELPED_SAYS.search(s.text) for s in line.said):
                what = f"it was {retold.companion} who helped"
        if not what and _RUINED.search(affirmed(told)):
            what = f"the {retold.thing} was not thrown away"
        if not what and kept and re.search(r"(?<!\w)N(?: have)? (?:find|buy|steal) a O(?!\w)", told):
            what = f"the {retold.thing} was {retold.hero}'s already"
        if not what and kept and line.paragraph >= last - 1 and _GONE.search(told):
            what = f"{retold.hero} had the {retold.thing}"
        if not what and "share" in courses and _REFUSED.search(told):
            what = f"it was {retold.hero} who would not share"
        if (
            not what
            and "share" in courses
            and any(s.speaker == "S" and _REFUSED_SAYS.search(s.text) for s in line.said)
        ):
            what = f"it was {retold.hero} who would not share"
        if (
            not what
            and "share" in courses
            and re.search(r"(?<!\w)S have(?: \w+)? (?:an?|another) O(?!\w)", told)
        ):
            what = f"there was one {retold.thing}"
        if not what and _PLURAL.search(told):
            what = f"there was one {retold.thing}"
        taps = "noise" in courses and all(_TAPS.fullmatch(s.text) for s in line.said)
        if not what and not taps and _THING_SPEAKS.search(told):
            what = f"the {retold.thing} cannot speak"
        if thankless and not what:
            said_thanks = any(s.speaker == thankless and _THANKS[thankless].search(s.text) for s in line.said)
            if said_thanks or _THANKED[thankless].search(told):
                what = "the wrong one says thanks"
        if what:
            yield Problem("owner", what, line.sentence.text)


def _owner(courses: dict[str, Course]) -> str:
    if {"gift", "noise"} & set(courses):
        return ""
    if "return" in courses:
        return "S"
    return "N" if courses else ""
