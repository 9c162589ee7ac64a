"""How everybody feels, and what they learn: it fits to what happened."""

import re
from collections.abc import Iterator, Sequence

from data.stories.checker.courses import Course
from data.stories.checker.patterns import affirmed, denied, pattern
from data.stories.checker.report import Problem
from data.stories.checker.retold import Line, Retold

_UNHAPPY = pattern(
    r"(?:N|S|B|everybody|all|nobody)<2> (?:be|feel|look|go home|go to bed|stay|become|grow)<3> (?:sad|sadder|unhappy|angry|cross|miserable|lonely|upset|mad|furious|disappointed|hopeless|jealous|bored|ashamed|grumpy|afraid|scare)",
    r"(?:N|S|B|everybody)<4> (?:cry|sob|weep)(?! (?:(?:for|with|out of|of) (?:joy|happiness)|at once|out|a little|and (?:hug|clap|jump|hold)))|in tears|burst into tears|saddest|(?:sad|worst|bad|terrible|awful|horrible|boring|dull) (?:day|morning|afternoon|night|ending|time)",
    r"(?:and|but) (?:be|feel)<2> (?:sad|unhappy|angry|cross|miserable|lonely|upset|furious|disappointed)(?! and)",
    r"broken heart|break [NSB]_ heart|heavy heart|no fun at all|tears of (?:anger|sorrow)",
)
_HAPPILY = pattern(r"(?:not|never|nobody)<2> (?:stop|help)(?: but)?<1>|not have to<4>|not only")
_NEVER_SO_SAD = pattern(r"never<4> (?:be|feel) so (?:sad|unhappy|lonely|angry|miserable|upset|bad)")
_GLAD_OF_IT = pattern(
    r"(?:glad|happy|pleased) (?:that|when|because) (?:O|it|S) (?:be|have be)<1> (?:go|lose|break|wet|dirty|muddy|stuck|away|sad|hungry)"
)
_JOY = pattern(r"(?:for|with|of) joy|happy tears|laugh")
_ENEMIES = pattern(
    r"(?:never|no longer|not|stop)<3> (?:speak|talk) (?:to|with|again|any)|never (?:speak|talk)(?! so)|(?:not|never)<2> (?:like|love|trust|stand) (?:each other|B)",
    r"(?:not|never|no longer|nobody|stop)<5> (?:friend|friends)|begin to (?:fight|quarrel|argue)|(?:not|never|no longer|nobody|stop)<3> (?:see S|see N|see each other|play with [NS]|play together|forgive|trust|meet|laugh|smile|hug|thank|visit)",
    r"nobody<1> (?:smile|laugh|be<1> (?:happy|glad|pleased))(?! (?:more|than))|rid of",
    r"enemies|enemy|hate (?:N|S|each other|B)|angry (?:with|at)|(?:quarrel|fight|argue|argued|yell) (?:with|at|all|every|about|over)|B (?:quarrel|fight|argue)",
    r"(?:not|never)<2> (?:like|love|want)<2> (?:S|N|O)|never be friends",
)
_FORGOTTEN = pattern(r"forget (?:all )?(?:about )?(?:S|N_ friend|the day|that day)")
_UNKIND = pattern(
    r"(?:S|N)<1> (?:laugh at|make fun of|scold|yell at|push|hit|kick|tease|slap|bite) (?:N|S)(?!_)"
)
_DEAD = pattern(r"be dead|(?:N|S|it) (?:have )?die|kill (?:N|S|it)")
_COLD = pattern(
    r"N<1> not want S to (?:be|have)|(?:N|S) (?:do )?not care(?! (?:if|what|how))|not<2> stand (?:N|S)"
)
_HARSH = pattern(
    r"go away , (?:N|S)|^go away$|(?:N|S) hate (?:N|S)|(?:N|S) be (?:bad|mean|stupid|horrible|no friend|a thief|a liar|not N_ friend|not S_ friend)|shut up|leave (?:N|S) alone",
    r"(?:N|S) (?:do )?not want to (?:hear|help|know)|(?:N|S)<2> (?:not|never)<2> (?:like|help|play with|be friends with|talk to) (?:N|S)",
)
_LEARNED = re.compile(
    r"(?<!\w)(?:learn|know|understand|understood|find out|see|realize|realise|decide|say)(?: now)? that (.*)"
)
_WRONG_LESSON = pattern(
    r"(?<!never )(?<!not )(?:bad|wrong|silly|foolish|stupid|useless|boring|not good|no good|not nice|no use|not right|no fun|worse|worst|dangerous) to (?:share|help|ask|give(?! up)|be honest|be kind|be brave|be good|tell the truth|try|have a|play together)",
    r"(?:good|better|best|nice|right|fine|fun|wise|clever) to (?:be alone|keep|lie|give up|be mean|steal|hide|run away|play alone|eat alone|have no|cheat|be selfish|be greedy|stay alone|trust nobody|say no|buy|throw|fight|forget|cry|be rude|be lazy|laugh at|leave|have everything)",
    r"(?:never|not) to (?:share|help|ask|give(?! up)|try|trust|tell the truth|be kind|be honest|look)",
    r"(?:friend|friends) be<1> (?:bad|useless|no good|not|worth nothing|worth less|never)|(?:should|must|need|could)<1> (?:never|not)<1> (?:share|help|ask|give(?! up)|trust|try)",
    r"(?:share|help|give(?! up)|honest|honesty|kindness|try) (?:be|make|feel)<2> (?:bad|silly|sad|boring|wrong|useless|stupid|unhappy)|toys? be worth more|lie be (?:good|fine)|(?:toy|toys)<6> than<2> (?:friend|friends)|need (?:no|not) friend|not need<3> (?:friend|friends|help)|nobody need<2> friend|without (?:friends|a friend)",
    r"nobody (?:should|can|will|want to) (?:be trusted|trust|help)|everything for (?:yourself|N|B)",
)
_LEARNED_NOTHING = pattern(
    r"(?:never|not) (?:understand|understood|know)<1> that|(?:not|never)<1> learn(?: anything| a thing|ed)?(?! to)|learn nothing"
)
_CAREFREE = pattern(
    r"N<2> be (?:very |so |really )*(?:happy|glad|cheerful|pleased|delighted)|N (?:clap|cheer|giggle|grin|beam)(?! for)|never be so (?:happy|glad)|N laugh(?! at)|happiest"
)
_UNMOVED = pattern(
    r"N do not (?:mind|care)|N be not (?:sad|upset|worried|unhappy)(?<! any more)|not mind at all"
)
_HOORAY = pattern(r"hooray|yay|how (?:nice|lovely|wonderful|funny)|N be (?:so )?(?:happy|glad)")
_WICKED = pattern(
    r"N be<2> (?:rude|nasty|cruel|wicked|unfriendly|unkind|greedy|lazy|selfish)|never (?:help|share|say thank)"
)
_COMMON_DEEDS = set("play eat make look ask help tell watch count pick".split())  # often done or not done
_DOES_NOT_LIKE = (
    r"(?<!\w)N(?: \w+){0,2} (?:hate|never|(?:can|could) not|not (?:like|love|want|stand|care|know how))"
)
_DISLIKES = pattern(
    r"N_ (?:least favorite|worst) (?:O|P)|N<1> (?:hate|never like|do not like|not care for) (?:N_ )?(?:O|P)"
)
_HOBBY = re.compile(r"N (?:who )?(?:like|love) to (\w+)|who (?:like|love) to (\w+)")


def check_feelings(retold: Retold, courses: dict[str, Course]) -> Iterator[Problem]:
    first, last = retold.frame
    settled = max((course.closed for course in courses.values() if course.closed is not None), default=None)
    hobbies: set[str] = set()
    for number, line in enumerate(retold.lines):
        if not first <= line.paragraph <= last:
            continue
        at_the_end = line.paragraph > last - 2 and settled is not None and number > settled
        late = line.paragraph == last or at_the_end
        what = (
            _against_the_end(retold.lines, number, late)
            or _against_their_friendship(line, courses)
            or _against_the_trouble(line, number, last, courses)
            or _against_what_is_liked(line.told, hobbies, retold.thing)
        )
        lesson = _LEARNED.search(line.told)
        if (lesson and _WRONG_LESSON.search(lesson[1])) or (late and _LEARNED_NOTHING.search(line.told)):
            yield Problem("lesson", "this is not what the story teaches", line.sentence.text)
        elif what:
            yield Problem("feeling", what, line.sentence.text)
        if hobby := _HOBBY.search(line.told):
            hobbies |= {hobby[1] or hobby[2]} - _COMMON_DEEDS


def _against_the_end(lines: Sequence[Line], number: int, late: bool) -> str | None:
    """Tears, anger or a broken friendship, after all has ended well."""
    line = lines[number]
    told, says = line.told, affirmed(line.told)
    if _GLAD_OF_IT.search(told):
        return "that was nothing to be glad of"
    if not late:
        return None
    # In '"Thank you!" Lily cried.', nobody weeps.
    cries = line.said or (number and lines[number - 1].said and not lines[number - 1].told)
    if _NEVER_SO_SAD.search(told) or (not cries and _UNHAPPY.search(says) and not _JOY.search(says)):
        return "all had ended well"
    if _ENEMIES.search(_HAPPILY.sub("", denied(told))) or _FORGOTTEN.search(says):
        return "they were friends"
    return None


def _against_their_friendship(line: Line, courses: dict[str, Course]) -> str | None:
    says = affirmed(line.told)
    if _DEAD.search(says):
        return "nobody dies"
    if _COLD.search(line.told):
        return "they were good to each other"
    if "share" in courses:  # here, one is mean to the other for a while
        return None
    if _UNKIND.search(says) or any(_HARSH.search(said.text) for said in line.said):
        return "they were good to each other"
    return "the hero is good" if _WICKED.search(says) else None


def _against_the_trouble(line: Line, number: int, last: int, courses: dict[str, Course]) -> str | None:
    """The hero is glad, or does not mind, while something is lost or broken."""
    hooray = any(said.speaker == "N" and _HOORAY.search(said.text) for said in line.said)
    carefree = _CAREFREE.search(affirmed(line.told)) or _UNMOVED.search(line.told)
    cheers = hooray and line.paragraph < last and _help_is_needed(number, courses)
    if cheers or (carefree and line.paragraph < last - 1 and _is_open(number, courses)):
        return "something was wrong at the time"
    return None


def _against_what_is_liked(told: str, hobbies: set[str], thing: str) -> str | None:
    if _DISLIKES.search(told):
        return f"the hero likes the {thing}"
    for hobby in hobbies:
        if re.search(rf"{_DOES_NOT_LIKE}(?: \w+){{0,2}} (?:to )?{hobby}(?:ing)?(?!\w)", told):
            return "this is what the hero likes"
    return None


def _help_is_needed(number: int, courses: dict[str, Course]) -> bool:
    return any(
        name in courses and courses[name].is_open(number)
        for name in ("lost", "stuck", "broken", "dirty", "wet")
    )


def _is_open(number: int, courses: dict[str, Course]) -> bool:
    return any(
        name in courses
        and courses[name].began is not None
        and courses[name].is_open(number)
        and number > courses[name].began
        for name in ("lost", "stuck", "broken", "dirty", "wet")
    )
