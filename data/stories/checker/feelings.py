"""How everybody feels, and what they learn: it fits to what happened."""

import re
from collections.abc import Iterator

from data.stories.checker.courses import Course
from data.stories.checker.patterns import affirmed, denied, pattern
from data.stories.checker.report import Problem
from data.stories.checker.retold import Retold

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
_HOBBY = re.compile(r"N (?:who )?(?:like|love) to (\w+)|who (?:like|love) to (\w+)")


def check_feelings(retold: Retold, courses: dict[str, Course]) -> Iterator[Problem]:
    first, last = retold.frame
    closed = [course.closed for course in courses.values() if course.closed is not None]
    settled = max(closed, default=None)
    hobbies: set[str] = set()
    for number, line in enumerate(retold.lines):
        if not first <= line.paragraph <= last:
            continue
        told, says = line.told, affirmed(line.told)
        what, rule = None, "feeling"
        late = line.paragraph == last or (
            settled is not None and number > settled and line.paragraph > last - 2
        )
        cries = line.said or (number and retold.lines[number - 1].said and not retold.lines[number - 1].told)
        if (late and _NEVER_SO_SAD.search(told)) or _GLAD_OF_IT.search(told):
            what = "all had ended well" if late else "that was nothing to be glad of"
        elif late and not cries and _UNHAPPY.search(says) and not _JOY.search(says):
            what = "all had ended well"
        elif late and (_ENEMIES.search(_HAPPILY.sub("", denied(told))) or _FORGOTTEN.search(says)):
            what = "they were friends"
        elif _DEAD.search(says):
            what = "nobody dies"
        elif _COLD.search(told):
            what = "they were good to each other"
        elif _UNKIND.search(says) and "share" not in courses:
            what = "they were good to each other"
        elif "share" not in courses and any(_HARSH.search(said.text) for said in line.said):
            what = "they were good to each other"
        elif (
            line.paragraph < last
            and _help_is_needed(number, courses)
            and any(said.speaker == "N" and _HOORAY.search(said.text) for said in line.said)
        ):
            what = "something was wrong at the time"
        elif (
            line.paragraph < last - 1
            and _is_open(number, courses)
            and (_CAREFREE.search(says) or _UNMOVED.search(told))
        ):
            what = "something was wrong at the time"
        elif "share" not in courses and _WICKED.search(says):
            what = "the hero is good"
        elif any(
            re.search(
                rf"(?<!\w)N(?: \w+){{0,2}} (?:hate|never|(?:can|could) not|not (?:like|love|want|stand|care|know how))(?: \w+){{0,2}} (?:to )?{hobby}(?:ing)?(?!\w)",
                told,
            )
            for hobby in hobbies
        ):
            what = "this is what the hero likes"
        elif re.search(
            r"N_ (?:least favorite|worst)|N<1> (?:hate|never like|do not like|not care for)".replace(
                "<1>", "(?: \\S+)?"
            )
            + r" (?:N_ )?(?:O|P)(?!\w)",
            told,
        ):
            what = f"the hero likes the {retold.thing}"
        match = _LEARNED.search(told)
        if (match and _WRONG_LESSON.search(match[1])) or (late and _LEARNED_NOTHING.search(told)):
            what, rule = "this is not what the story teaches", "lesson"
        if what:
            yield Problem(rule, what, line.sentence.text)
        if match := _HOBBY.search(told):
            hobbies |= {match[1] or match[2]} - _COMMON_DEEDS


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
