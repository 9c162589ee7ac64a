"""Who tells the story, and when it happens."""

import re
from collections.abc import Iterator

from data.stories.checker.courses import Course
from data.stories.checker.patterns import pattern
from data.stories.checker.report import Problem
from data.stories.checker.retold import Retold

# A storyteller may say "I think" or "I will tell you a story", but did not go to the park.
_I = re.compile(r"(?:^|[ ,])(i|me|my|we|us|our|mine)(?= |$)")
_STORYTELLER = pattern(
    r"my ,|i (?:think|be sure|tell|will|would|might|want to|can|know|hope|promise|say|could|do not)|have i|(?:tell|to) (?:me|us)|let me|my (?:dear|story|tale|own)|our (?:story|tale)|like us|make us"
)
_DAYTIME = pattern(r"(?:one|a|this|in the|that|on a)<2> (morning|afternoon|evening)")
_DAY = re.compile(r"(?:one|this|on a|be a)(?: \w+){0,2} (morning|afternoon|evening|night)(?!\w)")
_THAT_DAY = re.compile(
    r"(?<!\w)(?:what a|be a|be the|forget that|from that|since that|about the|of the)(?: \w+){0,2} (morning|afternoon|evening)(?!\w)"
)
_NIGHT = pattern(
    r"(?:it be|in|at)<4> (?:night|midnight)(?! be)|(?<!until )(?<!when )(?<!before )(?<!till )it be<2> dark|middle of the night|pitch dark"
)
_SEASONS = {
    "spring": "spring",
    "march": "spring",
    "april": "spring",
    "may": "spring",
    "june": "summer",
    "july": "summer",
    "august": "summer",
    "summer": "summer",
    "fall": "fall",
    "autumn": "fall",
    "september": "fall",
    "october": "fall",
    "november": "fall",
    "december": "winter",
    "january": "winter",
    "winter": "winter",
}
_IN_SEASON = re.compile(
    rf"(?<!\w)(?:in (?:the )?({'|'.join(_SEASONS)})|({'|'.join(_SEASONS)}) (?:day|morning|afternoon|evening))(?!\w)"
)
_STORM = pattern(
    r"(?:rain|pour)<1> (?:hard|all (?:day|morning|afternoon)|without end|and rain)|storm|thunder|it be rain"
)
_SUMMER = pattern(
    r"(?:in|of) (?:summer|may|june)|sunny|bright|warm|sun (?:be|shine)|sky be (?:blue|clear|bright)"
)
_SNOW = pattern(r"snow(?! be go)|snowing|snowy|ice|snowflakes|freeze|frost")


def check_telling(retold: Retold, courses: dict[str, Course]) -> Iterator[Problem]:
    first, last = retold.frame
    day = season = None
    summer = False
    flashback = any(
        re.search(r"have (?:go|come|walk|run|take|bring|carry)|(?:begin|start) when", line.told)
        for line in retold.lines
    )
    for line in retold.lines:
        if not first <= line.paragraph <= last:
            continue
        told = line.told
        what, rule = None, "time"
        if not retold.first_person and retold.hero and _I.search(told) and not _STORYTELLER.search(told):
            what, rule = "nobody tells this story as I", "voice"
        elif retold.first_person and line.paragraph > first and _names_hero(line.sentence, retold.hero):
            what, rule = f"{retold.hero} tells the story", "voice"
        elif first + 1 < line.paragraph < last and "gift" not in courses and _NIGHT.search(told):
            what = "it was day"
        elif first < line.paragraph and summer and _SNOW.search(told):
            what = "it was warm"
        elif first < line.paragraph and summer and "wet" not in courses and _STORM.search(told):
            what = "the weather was fine"
        elif season and (match := _IN_SEASON.search(told)) and _SEASONS[match[1] or match[2]] != season:
            what = f"it was {season}"
        elif (
            line.paragraph >= last - 1
            and day
            and "gift" not in courses
            and not flashback
            and (match := _THAT_DAY.search(told))
            and match[1] != day
        ):
            what = f"it was {day}"
        if what:
            yield Problem(rule, what, line.sentence.text)
        if line.paragraph <= first + 1:
            summer = summer or bool(_SUMMER.search(told))
            if season is None and (match := _IN_SEASON.search(told)) and "last" not in told.split():
                season = _SEASONS[match[1] or match[2]]
            if day is None and (match := _DAY.search(told)):
                day = match[1]


def _names_hero(sentence, hero: str) -> bool:
    return any(word.text == hero and not word.spoken for word in sentence.words)
