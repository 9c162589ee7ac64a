"""Who is there, and where: nobody acts who was never introduced, is away, or has not come."""

import re
from collections.abc import Iterator

from data.stories.checker.cast import ANIMALS
from data.stories.checker.courses import Course
from data.stories.checker.noun_phrases import determiner_of
from data.stories.checker.patterns import affirmed, denied, pattern
from data.stories.checker.report import Problem
from data.stories.checker.retold import GROWN_UPS, Retold
from data.stories.reading import Sentence

# People who need an introduction: "a farmer", "her teacher", and only then "the farmer".
PEOPLE = set(
    "farmer teacher policeman policewoman doctor nurse king queen prince princess witch wizard baker butcher fireman "
    "driver sailor pirate captain hunter gardener shopkeeper postman mailman stranger man woman lady gentleman "
    "neighbor cousin uncle aunt brother sister mother father dad mom daddy mommy grandmother grandfather giant dragon "
    "fairy robber thief soldier clown knight boy girl".split()
)
HELPED = ("lost", "stuck", "broken", "dirty", "wet")
_TOO_MANY = pattern(
    r"N be (?:a |an )?(?:old (?:man|woman)|grandmother|grandfather|mother|father|grown)",
    r"(?:with|and) (?:all )?N_<1> friends|N_ (?:wife|husband|children|grandchildren|son|daughter|job|office|boss)",
    r"(?:all|the) (?:three|four|five|six|ten)(?: of B| friends| children| boys| girls| of us| of them)?(?! (?:day|hour|minute|time|piece))",
    r"(?:three|four|five) of B|B (?:three|four|five)|another friend",
)
_NOT_THERE = pattern(
    r"S<6> stay away|S<2> not want to (?:see|come|go)",
    r"S(?: \S+)?(?: have)? (?:not|never) (?:be )?(?:there|with N|at P|in P|come|be)(?! (?:a|so|sure|afraid|scare|sad|want|very|too|in a hurry))",
    r"S (?:stand|sit|wait|lie|stay|be)<5> at home|S<2> (?:stay|remain)<2> (?:at home|home|in bed|behind|away)|S<2> be<1> (?:at home|in bed|far away|away|ill in bed|on holiday|(?:stand|sit|wait|lie|stay|be)<4> at home|at work|at school|on a<1> (?:trip|journey|visit)|in (?:another|a different))",
    r"nobody except N|nobody but N|nobody else come|(?:can|could) not find S",
    r"nobody (?:be|come|stand) (?:near|with N|there|at P|by P|on P|in P)(?! (?:to|O|it|N_|S_|a O))|not<2> with (?:N|S)|(?:go|come|be|walk|stay|play|run)<2> without S",
    r"S (?:do|could|can|would|will|have) not (?:come|be there|go with)|nobody (?:come|go) (?:with N|along)",
    r"S have<2> (?:go|leave|run)<1> (?:home|away|off)|S<6> (?:can|could|do|would|be) not (?:allow to )?(?:come|go along|be there)",
    r"S<6> (?:be )?not with N",
)
_FAR_AWAY = pattern(
    r"S<2> be<1> (?:at home|in bed|far away|ill in bed|on holiday|at work|at school|on a<1> (?:trip|journey))|S<2> stay (?:at home|in bed)"
)
_AWAY = pattern(
    r"S<2> (?:go|run|walk|hurry|leave|move)<1> (?:home|away|off)|S<1> leave(?: P| N)?$",
)
_ALONE = pattern(
    r"N<2> (?:be|stand|sit|play|stay|walk|come|go|leave)<3> (?:all alone|alone|on N_ own|by N)|alone (?:at|in|on|by) P|N be left alone",
    r"N<1> (?:all )?alone",
)
_CAME_ALONE = pattern(r"(?:all )?alone$")
_CAME_WITH = pattern(r"S(?: [^,]+)? be with N")
_STAYED_AWAY = pattern(
    r"(?:be|have) no P|no P (?:in|near|at)",
    r"(?:never|not)<2> (?:go|come|get|arrive|reach|be|walk|run)<2> (?:to |at |in |on |by )?(?:a )?P|(?:never|not)<2> (?:leave|be out of|go out of) (?:the |[NSB]_ )?(?:house|home|room|bed)",
    r"(?:not|never) go out",
)
_STAYED_HOME = pattern(
    r"(?:stay|remain)<1> (?:at home|home|in bed|in the house|inside|indoors)(?! with)|turn back before"
)
_LEFT_BEHIND = pattern(
    r"(?:leave|forget) <O><2> (?:at home|home|in the (?:house|room|kitchen)|in bed|in N_ room|on the shelf)|forget to (?:take|bring) O",
    r"(?:come|go|walk|run|be)<3> (?<!never )without (?:O|it|a O)|O<2> (?:be|lie|stay|sit)<2> at home|N have no O|not (?:take|bring|carry) O",
    r"N<2> (?:not|never)<1> (?:have|own|hold|see)<1> (?:a|any|one) O|N<1> (?:not|never) have O|no O at all",
)
_FORGOTTEN = pattern(
    r"(?:leave|forget) (?:N_ )?O<2> (?:at home|home)|(?:come|go|arrive) with nothing|with empty hands"
)
_ELSEWHERE = pattern(
    r"(?:N|S|B)<2> be<3> (?:on a (?:boat|ship|train|plane|bus)|at sea|in (?:a|the) (?:car|bus|city|school|shop|library|desert|jungle|cave))"
)
_UNHELPED = pattern(
    r"S<1> (?:can|could) not help|N<2> not (?:want|need|let)<3> help(?! but)",
    r"tell nobody|N<1> (?:not|never) tell (?:S|anybody)|S<1> (?:never|not) (?:hear|find out|notice)<2> (?:of|about)",
    r"nobody<2> help|S<3> (?:not|never)<3> (?:help|lift a finger|do (?:anything|a thing))|without<1> help|without S_ help",
    r"N<4> (?:do|mend|fix|find|wash|clean|get|reach)<4> (?:all alone|all by N|by N|on N_ own)|S (?:do|would|could) not (?:want to )?help|refuse to help",
    r"S only (?:watch|look on)|S do nothing",
)
_NEVER_MET = pattern(
    r"(?:never|not)<2> (?:see|meet|hear of|know)<1> S(?:<2> before)?|S<2> (?:never|not)<2> (?:see|meet|know) N(?: before)?(?=$| ,)|(?:never|not)<2> (?:meet|see each other)<2> before",
    r"S be a stranger|(?:the|a) stranger name S|N<2> (?:not|never)<1> know (?:anybody|a soul)|know nobody|(?:meet|see) nobody|who S be|who be S|what be S_ name|N (?:have|know) no<1> friend|no friends?<4> (?:world|at all)",
    r"B do not know each other|not know each other",
)
_KIN = pattern(
    r"N_<1> (?:brother|sister|cousin|twin|son|daughter|uncle|aunt|teacher|neighbor|mother|father|mom|dad)<1> S(?!_)",
    r"S be N_<1> (?:brother|sister|cousin|twin|son|daughter|uncle|aunt|mother|father)",
)
_WINGS = pattern(r"[NSB]_<1> (?:wing|wings|beak|feathers)", r"(?:N|S) (?:flap|quack)")
_FUR = pattern(
    r"(N|S)(?:_<1> (?:tail|fur|paw|paws|whiskers|snout|trunk|claws)| (?:bark|meow|growl|purr|wag))"
)


def check_company(read: list[Sentence], retold: Retold, courses: dict[str, Course]) -> list[Problem]:
    problems = [*_strangers(read, retold), *_people(read, retold)]
    if not retold.crowd:
        problems += _kin(read, retold)
        problems += _early_pronouns(read, retold)
        problems += _presence(retold, courses)
    return problems


def _strangers(read, retold: Retold) -> Iterator[Problem]:
    """Names that nobody introduced, and grown-ups who are not at home with the hero at the end."""
    first, last = retold.frame
    seen = set()
    known: set[str] = set()
    owned: set[str] = set()
    for sentence in read:
        for i, word in enumerate(sentence.words):
            lower = word.lower
            if word.text in retold.strangers and word.text not in seen:
                seen.add(word.text)
                yield Problem("name", f"{word.text} was not introduced", sentence.text)
            if lower not in GROWN_UPS or lower in known or not first <= sentence.paragraph <= last:
                continue
            introduced = i and (
                sentence.words[i - 1].lower in ("his", "her", "my", "their", "our", "a", "and")
            )
            if lower == retold.companion.lower() and lower not in owned:
                if introduced or sentence.paragraph > first + 2 or word.text[0].isupper():
                    owned.add(lower)
                if word.text[0].isupper() and not introduced:
                    yield Problem("name", f"{word.text} was not introduced", sentence.text)
            if word.text[0].islower() or introduced or not sentence.paragraph - first:
                known.add(lower)
            elif sentence.paragraph < last:
                known.add(lower)
                yield Problem("name", f"{word.text} was not introduced", sentence.text)


def _people(read, retold: Retold) -> Iterator[Problem]:
    """ "The farmer" needs a farmer before, "the boy" a boy."""
    known = {retold.companion.lower()}
    first, last = retold.frame
    human = {token: not _is_animal(retold, token) for token in "NS"}
    for token in "NS":
        if human[token]:
            known.add({"he": "boy", "she": "girl"}.get(retold.genders[token], ""))
    for sentence in read:
        words = sentence.words
        for i, word in enumerate(words):
            noun = word.lower
            if noun not in PEOPLE or noun in known:
                continue
            is_definite = determiner_of(words, i)[0] in ("the", "that")
            if is_definite and not word.spoken and first <= sentence.paragraph <= last:
                yield Problem("name", f"the {noun} was not introduced", sentence.text)
            known.add(noun)


_OF_GENDER = {
    "he": {"he", "him", "his", "himself"},
    "she": {"she", "her", "hers", "herself"},
}
_HE = set(
    "uncle father dad grandpa grandfather brother man boy son king prince cousin teacher neighbor".split()
)
_SHE = set(
    "aunt mother mom grandma grandmother sister woman girl daughter queen princess cousin teacher neighbor".split()
)


def _early_pronouns(read, retold: Retold) -> Iterator[Problem]:
    """He or she, told before there is anybody else than a hero of the other gender."""
    gender = {"he": "she", "she": "he"}.get(retold.genders["N"], "")
    first, last = retold.frame
    if not gender or not retold.hero:
        return
    others = _HE if gender == "he" else _SHE
    near, paragraph = False, first  # whether such a person was mentioned just before
    for sentence in read:
        if not first <= sentence.paragraph <= last:
            continue
        near, paragraph = near and sentence.paragraph == paragraph, sentence.paragraph
        mentioned = False
        if retold.companion.lower() in {word.lower for word in sentence.words}:
            return
        for i, word in enumerate(sentence.words):
            is_theirs = i + 1 < len(sentence.words) and sentence.words[i + 1].lower in others | {"big"}
            if (
                not word.spoken
                and word.lower in _OF_GENDER[gender]
                and not mentioned
                and (is_theirs or not near)
            ):
                yield Problem("pronoun", f"nobody so far is {gender!r}", sentence.text)
                return
            mentioned = mentioned or word.lower in others
        near = mentioned


KIN = set(
    "uncle aunt mother father mom dad grandma grandpa grandmother grandfather brother sister cousin teacher neighbor".split()
)
_DOES = set(
    "showed found fetched brought helped said asked mended fixed washed got came took held pulled reached laughed went "
    "made told called shouted cried answered whispered threw pushed saw looked ran stood sat dried cleaned picked played "
    "wanted tied opened knew had smiled".split()
)


def _kin(read, retold: Retold) -> Iterator[Problem]:
    """ "Her uncle found a ladder", in the middle of a story in which no uncle has come."""
    first, last = retold.frame
    mentioned = {retold.companion.lower()}
    for sentence in read:
        words = [word for word in sentence.words if not word.spoken]
        for i, word in enumerate(words):
            noun = word.lower
            if noun not in KIN:
                continue
            is_subject = (
                i
                and i + 1 < len(words)
                and words[i - 1].lower in ("his", "her", "my")
                and words[i + 1].lower in _DOES
            )
            begins = (
                i < 2 or words[i - 1].break_before or words[i - 2].lower in ("and", "then", "but", "that")
            )
            if is_subject and begins and first + 1 < sentence.paragraph < last and noun not in mentioned:
                yield Problem("name", f"the {noun} was not there", sentence.text)
            mentioned.add(noun)


def _is_animal(retold: Retold, token: str) -> bool:
    kinds = "|".join(sorted(ANIMALS))
    found = re.search(
        rf"(?<!\w)(?:{kinds}) (?:name|called|call|named) {token}(?!\w)|(?<!\w){token} the (?:{kinds})(?!\w)|(?<!\w){token} (?:, )?(?:be )?a (?:\S+ ){{0,3}}(?:{kinds})(?!\w)|friend (?:the )?(?:{kinds})|(?:{kinds}) {token}(?!\w)",
        retold.told,
    )
    return bool(found)


_AT_HOME = pattern(
    r"(?:be|sit|stand|play|look|lie|stay)<3> (?:at home|in (?:[NSB]_|the) (?:room|house|kitchen|bed|bath|bedroom))|(?<!to )(?:go|run|walk|hurry) home(?! to get)"
)
_WHO_ARE_YOU = pattern(
    r"who be (?:N|S|you)|what be (?:N_|S_|your) name|(?:N|S)<1> (?:not|never)<2> (?:know|see|meet) (?:N|S)(?= |$)(?! (?:cry|so|like))"
)
_OLD_FRIENDS = pattern(
    r"(?:old|best|dear|good) friend S|know (?:S|N|each other)<2> (?:for|since|all)|be old friends"
)
_TWO_ALIKE = pattern(r"(?:two|both)<1> (?:girls|boys|brothers|sisters|women|men)")
_ASLEEP = pattern(r"(?:N|S|B)<4> (?:be|fall|lie)<1> (?:asleep|dead)|(?:N|S|B) (?:go to sleep|sleep)")
_LITTLE_ONES = pattern(
    r"(?:two|three|four|more|many|ten|all)<1> (?:kittens|puppies|birds|chicks|lambs|beetles)"
)
_LITTLE_ONE = re.compile(r"(?<!\w)(kitten|puppy|bird|chick|beetle|lamb|duckling|bunny|mouse|frog)(?!\w)")


def _calls_oneself(said) -> bool:
    """'"Do not cry, Tim," said Tim.'"""
    return said.is_told and bool(re.search(rf", {said.speaker}(?= ,|$)|^{said.speaker} ,", said.text))


def said_or_told(line) -> str:
    return " ".join((affirmed(line.told), *(affirmed(said.text) for said in line.said)))


def _presence(retold: Retold, courses: dict[str, Course]) -> Iterator[Problem]:
    first, last = retold.frame
    told_of = arrived = False
    inside = ""
    friend = family = False
    animal = {token: _is_animal(retold, token) for token in "NS"}
    helped = any(name in courses for name in HELPED)
    owns = not {"noise", "return", "gift", "hungry"} & set(courses)
    acts = [
        number
        for number, line in enumerate(retold.lines)
        if first < line.paragraph < last
        and (_ACTS.search(line.told) or any(s.speaker == "S" for s in line.said))
    ]
    for number, line in enumerate(retold.lines):
        if not first <= line.paragraph <= last:
            continue
        told, says, says_not = line.told, affirmed(line.told), denied(line.told)
        what = None
        body = line.paragraph < last
        if retold.companion and arrived:
            apart = _apart(number, courses)
            if (
                not apart
                and body
                and (_AWAY.search(says) or ("skill" not in courses and _ALONE.search(says)))
            ):
                what = "the two were together"
            elif _TOO_MANY.search(told):
                what = "there were two of them"
            elif (friend or family) and _NEVER_MET.search(told):
                what = f"{retold.companion} was no stranger"
            elif _KIN.search(told) and (friend or not family):
                what = f"{retold.companion} was not of the family"
            elif (
                helped
                and any(c.began is not None and c.began < number for n, c in courses.items() if n in HELPED)
                and _UNHELPED.search(denied(told))
            ):
                what = f"{retold.companion} helped"
        if not what:
            if retold.companion and acts and number < acts[-1] and _absent(number, courses, says_not):
                what = f"{retold.companion} was there"
            elif arrived and retold.companion and _absent(number, courses, says_not):
                what = f"{retold.companion} was there"
            elif (
                line.paragraph > first
                and (_STAYED_AWAY.search(told) or _STAYED_HOME.search(says))
                and retold.place
            ):
                what = "they had gone out"
            elif "gift" in courses and _FORGOTTEN.search(told):
                what = f"the {retold.thing} was there"
            elif line.paragraph > first and "gift" not in courses and _ELSEWHERE.search(says):
                what = f"they were at the {retold.place}"
            elif owns and _LEFT_BEHIND.search(told) and not _closed_or_open_lost(number, courses):
                what = f"the {retold.thing} was there"
            elif _WINGS.search(told):
                what = "nobody here has wings"
            elif (match := _FUR.search(told)) and not animal[match[1]]:
                what = "a child has no fur"
            elif first + 1 < line.paragraph < last - 1 and "gift" not in courses and _AT_HOME.search(says):
                what = f"they were at the {retold.place}"
            elif (friend or family) and any(_WHO_ARE_YOU.search(said.text) for said in line.said):
                what = f"{retold.companion} was no stranger"
            elif (
                told_of and not friend and not family and _OLD_FRIENDS.search(told) and line.paragraph < last
            ):
                what = "they had not known each other"
            elif (
                retold.genders["N"] and retold.genders["N"] != retold.genders["S"] and _TWO_ALIKE.search(told)
            ):
                what = "one was a boy, the other a girl"
            elif "noise" in courses and _LITTLE_ONES.search(told):
                what = "there was one of them"
            elif "noise" in courses and (match := _LITTLE_ONE.search(said_or_told(line))):
                inside = inside or match[1]
                if match[1] != inside:
                    what = f"the {inside} is now a {match[1]}"
            elif told_of and re.search(r"(?<!\w)an?(?: \S+){0,4} (?:name|named|call|called) S(?!\w)", told):
                what = f"{retold.companion} was known already"
            elif first + 1 < line.paragraph < last - 1 and "gift" not in courses and _ASLEEP.search(says):
                what = "nobody slept"
            elif number and _CAME_ALONE.search(retold.lines[number - 1].told) and _CAME_WITH.search(told):
                what = f"{retold.hero} had come alone"
            elif any(_calls_oneself(said) for said in line.said):
                what = "nobody talks to oneself by name"
        if what:
            yield Problem("company", what, line.sentence.text)
        if not told_of and re.search(r"(?<!\w)S(?!\w)", told):
            told_of = True
            friend = bool(re.search(r"friend,? (?:S|the)|friend S", told))
            family = retold.companion.lower() in GROWN_UPS
        if told_of and not arrived:
            arrived = "gift" not in courses or bool(
                re.search(r"S be|give S|S_", told) and line.paragraph > first + 1
            )


_ACTS = pattern(r"(?:^|, |and |then )S (?!have )[a-z]+|(?:say|ask|answer|reply|whisper|cry|call|shout) S")


def _absent(number: int, courses: dict[str, Course], told: str) -> bool:
    if "gift" in courses:
        return bool(re.search(r"S (?:be (?:not there|far away|away)|do not come)|not find S", told))
    if _FAR_AWAY.search(told):
        lonely = courses.get("lonely")
        return not lonely or lonely.is_closed(number)
    return not _apart(number, courses) and bool(_NOT_THERE.search(told))


def _apart(number: int, courses: dict[str, Course]) -> bool:
    """Whether one has sent the other away, or they have not met yet."""
    share, lonely = courses.get("share"), courses.get("lonely")
    return bool(
        (share and (share.is_open(number) or share.closed == number))
        or (lonely and (not lonely.is_closed(number)))
        or "gift" in courses
    )


def _closed_or_open_lost(number: int, courses: dict[str, Course]) -> bool:
    lost = courses.get("lost")
    return bool(lost and lost.began is not None and lost.began <= number)
