"""Retell a story in a plain form, so that one pattern finds an event in whatever words it is told.

"Lily's red kite couldn't be found," said she.   ->   O can not be find , say N

The two characters become N (who is introduced first) and S, both of them B; the thing that the story is
mostly about becomes O, its place P. Pronouns become the character whom they stand for. N_, S_ and B_ are
possessive. Verbs lose their endings, contractions are written out, every mark becomes a comma.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from data.stories import world
from data.stories.checker.cast import FEMALE, GENDER_OF_NAME, KINDS, MALE, NAMES, RELATIVES
from data.stories.checker.noun_phrases import ADJECTIVES
from data.stories.checker.places import PLACES
from data.stories.checker.things import OBJECTS
from data.stories.checker.verbs import LEMMA
from data.stories.reading import Sentence, Word


class Saying(NamedTuple):
    speaker: str  # N, S, B or "" if that is not known
    text: str
    is_told: bool  # whether the narrator names the speaker


@dataclass(frozen=True)
class Line:
    """A sentence, retold."""

    told: str  # what the narrator says
    said: tuple[Saying, ...]
    paragraph: int
    sentence: Sentence


@dataclass(frozen=True)
class Retold:
    lines: tuple[Line, ...]
    hero: str  # names; "" if there is none
    companion: str
    thing: str
    place: str
    first_person: bool
    genders: dict[str, str]  # "he" or "she" for N and for S, where known
    frame: tuple[int, int]  # the first and the last paragraph of the story itself, without its frame
    strangers: tuple[str, ...]  # names that nobody introduced
    crowd: bool  # whether there are more than two names, so that "she" and "they" may be others

    @property
    def told(self) -> str:
        return "\n".join(line.told for line in self.lines)


GROWN_UPS = {"mom": "she", "dad": "he", "grandma": "she", "grandpa": "he"}
_SAY = "say ask cry call shout reply answer whisper yell think murmur laugh sing exclaim sigh beg add tell".split()
_SAYS = set(
    "said asked cried called shouted replied answered whispered yelled thought murmured laughed sang sighed".split()
)
_NO_NAMES = set(
    "my oh well ah hm dear goodness mmm yes no hooray i i'm i'll i've i'd january february march april may june july august september october november december "
    "monday tuesday wednesday thursday friday saturday sunday mr mrs miss sir god christmas easter halloween".split()
)

_WRITTEN_OUT = {
    "can't": "can not",
    "cannot": "can not",
    "won't": "will not",
    "shan't": "will not",
    "no-one": "nobody",
    "everyone": "everybody",
    "everything": "everything",
    "anyone": "anybody",
    "someone": "somebody",
    "mommy": "mom",
    "mum": "mom",
    "daddy": "dad",
    "granny": "grandma",
}
_ENDINGS = {"ll": "will", "ve": "have", "d": "had", "re": "are", "m": "am"}
_SHORT_IS = set("it he she that there here what who where let's how".split())
# After these, "her" is the object of a verb: "gave her a kite", "hugged her and".
_AFTER_OBJECT = set(
    "a an the and or but to with in on at from for of up down how that so very again tight back when while if as "
    "because until into by what why who not too there then out over his her my their your our any some one two "
    "close away around about alone home all once before after every each nothing something anything".split()
)


def retell(read: list[Sentence]) -> Retold:
    """Read who the story is about, then retell each sentence."""
    strangers, names, genders = _names(read)
    mentions = Counter(word.text for sentence in read for word in sentence.words)
    most = sorted(names, key=lambda name: -mentions[name])[:2]
    crowd = len(names) > 2
    names = [name for name in names if name in most]  # in the order of their introductions
    frame = _frame(read)
    inside = [sentence for sentence in read if frame[0] <= sentence.paragraph <= frame[1]]
    first_person, hero = _hero(inside, names)
    companion = _companion(inside, hero, names)
    counts = Counter(word.lower for sentence in inside for word in sentence.words)
    thing = _most_frequent(counts, OBJECTS)
    place = _most_frequent(counts, PLACES)
    gender = {
        "N": genders.get(hero) or _gender_by_pronouns(counts, genders.get(companion)),
        "S": genders.get(companion) or GROWN_UPS.get(companion.lower(), ""),
    }
    if gender["N"] and not gender["S"]:  # usually a boy and a girl
        other = {"he": "she", "she": "he"}[gender["N"]]
        gender["S"] = other if counts[other] else gender["N"]
    teller = _Teller(hero, companion, thing, place, first_person, gender)
    lines = tuple(teller.lines(read))
    return Retold(lines, hero, companion, thing, place, first_person, gender, frame, tuple(strangers), crowd)


def _most_frequent(counts, words):
    found = [(counts[word] + counts[word + "s"], word) for word in words if counts[word]]
    return max(found)[1] if found else ""


def _frame(read) -> tuple[int, int]:
    """The paragraphs of the story itself: "Grandma told a story" comes before it."""
    last = read[-1].paragraph if read else 0
    first = " ".join(sentence.narrated for sentence in read if sentence.paragraph == 0)
    opens = re.search(
        r"\b(?:stor(?:y|ies)|one)\b", " ".join(w.lower for s in read if not s.paragraph for w in s.words)
    )
    tells = re.search(
        r"\b(?:mom|dad|grandma|grandpa)\b(?: \w+)? (?:told|began|started|tells|said)|said (?:mom|dad|grand)",
        first,
    )
    if (
        last >= 3
        and opens
        and tells
        and not any(w.text in NAMES for s in read if not s.paragraph for w in s.words)
    ):
        return 1, last - 1
    return 0, last


_PRONOUN_OF = {person.name: person.pronoun for person in world.PEOPLE}


def _names(read):
    """The names that are used, in order, each with its gender, and those that nobody introduced."""
    certain: Counter[str] = Counter()
    for sentence in read:
        for i, word in enumerate(sentence.words):
            if _is_certain_name(sentence.words, i):
                certain[word.text] += 1
    for name in list(certain):
        if name.lower() in _NO_NAMES or name.lower() in GROWN_UPS or name.lower() in _WRITTEN_OUT:
            del certain[name]
    names: list[str] = []
    strangers: list[str] = []
    genders: dict[str, str] = {}
    for sentence in read:
        for i, word in enumerate(sentence.words):
            name = word.text
            if name not in names and (name in certain or name in NAMES) and name not in strangers:
                (names if not names or _is_introduced(sentence.words, i) else strangers).append(name)
            if name in names and name not in genders:
                kind = _kind_before(sentence.words, i)
                genders[name] = kind or _PRONOUN_OF.get(name) or GENDER_OF_NAME.get(name, "")
    return strangers, names, {name: gender for name, gender in genders.items() if gender}


def _is_certain_name(words, i):
    word = words[i]
    if not word.text[:1].isupper() or len(word.text) < 2:
        return False
    if i and not re.search(r'[.!?:"]', word.break_before):
        return True
    if (
        i
        and not word.spoken
        and i + 1 < len(words)
        and words[i + 1].lower in _SAYS
        and word.lower not in _COMMON
    ):
        return True  # '"Okay," Nora replied'
    # "Peter and Mary were happy", "Nora clapped", but not "Round and round" or "Birds chirped".
    if i or word.spoken or word.lower in _COMMON or word.lower.endswith(("s", "ly", "ing")) or len(words) < 3:
        return False
    after, second = words[1].lower, words[2].text
    return after in ("was", "had") or after.endswith("ed") or (after == "and" and second[:1].isupper())


_COMMON = set(
    "his her my your our their its up down back by round here out in on off over away high far near inside outside before after with without "
    "everything enough plenty half almost nearly so but and or if when while as at for from of to into not too very "
    "slowly even much little big all else hop jump splash crack snap come go let please thank oh ah well "
    "the a an it he she they we i you there then this that one two all both nobody everybody everyone somebody "
    "someone nothing something mom dad grandma grandpa who what each neither some many now here still even half "
    "children people leaves birds bees not never others tears rain mud water only just soon sun wind another "
    "everything anyone anybody those these time more most any no sky air light clouds footsteps sharing giving "
    "things work dinner lunch night day morning evening afternoon today later first next once such life school".split()
)


def _is_introduced(words, i):
    before = [word.lower for word in words[max(0, i - 4) : i]]
    last = before[-1] if before else ""
    behind = [word.lower for word in words[i + 1 : i + 7]]
    if RELATIVES.intersection(behind) and {"his", "her", "my", "a"}.intersection(behind):
        return True
    if behind[:1] == ["a"] and not KINDS.isdisjoint(behind[:4]):
        return True
    if not before or words[i].spoken and last not in ("am", "is", "i'm"):
        return False
    return (
        last in ("named", "called", "is", "am", "about", "of", "knew", "me", "was", "i'm", "like")
        or last in KINDS | MALE | FEMALE | RELATIVES
        or (last == "and" and len(before) > 1 and before[-2][:1].isalpha() and i > 3)
    )


def _kind_before(words, i):
    for word in words[max(0, i - 4) : i + 6]:
        if word.lower in ("girl", "woman", "sister"):
            return "she"
        if word.lower in ("boy", "man", "brother"):
            return "he"
    return ""


def _gender_by_pronouns(counts, other):
    if other:
        return {"he": "she", "she": "he"}[other]
    return ""


def _hero(read, names) -> tuple[bool, str]:
    """Whether the hero tells the story, and the name."""
    opening = [sentence for sentence in read if sentence.paragraph == (read[0].paragraph if read else 0)]
    for sentence in opening:
        narrated = sentence.narrated
        match = re.search(r"\b(?:my name is|i am|i'm|people call me|call me) (\w+)", narrated)
        for name in names:
            if match and name.lower() == match[1]:
                return True, name
    return False, names[0] if names else ""


def _companion(read, hero, names) -> str:
    for sentence in read:
        for word in sentence.words:
            if word.text in names and word.text != hero:
                return word.text
    counts = Counter(word.lower for sentence in read for word in sentence.words if word.lower in GROWN_UPS)
    for name, count in counts.most_common():
        mentioned = {word.text for sentence in read for word in sentence.words if word.lower == name}
        if count > 1 or name in mentioned:
            return name.capitalize()
    return ""


class _Teller:
    def __init__(self, hero, companion, thing, place, first_person, gender):
        self.first_person = first_person
        self.tokens = {hero: "N", companion: "S"} if companion else {hero: "N"}
        self.tokens.pop("", None)
        if companion.lower() in GROWN_UPS:
            self.tokens[companion.lower()] = "S"
        self.thing, self.place = thing, place
        self.who = {gender[token]: token for token in "NS" if gender[token]}
        if gender["N"] == gender["S"]:
            self.who = {}

    def lines(self, read: list[Sentence]) -> Iterator[Line]:
        said_before, me = "", "N" if self.first_person else ""
        paragraph = None
        for at, sentence in enumerate(read):
            if sentence.paragraph != paragraph:
                paragraph, said_before = sentence.paragraph, ""
            # '"Where is it?" Tom asked.' is two sentences.
            following = (
                read[at + 1].words if at + 1 < len(read) and read[at + 1].paragraph == paragraph else ()
            )
            tag = (
                [word for word in following[:3] if not word.spoken]
                if following and not following[0].spoken
                else []
            )
            told = self.text([word for word in sentence.words if not word.spoken], me, "")
            runs = list(_runs(sentence.words))
            sayings = []
            for number, (spoken, words) in enumerate(runs):
                if not spoken:
                    continue
                if number or not re.search(r'[!?]"$', sentence.text):
                    tag = []
                after = runs[number + 1][1][:3] if number + 1 < len(runs) else tag
                before = runs[number - 1][1] if number else []
                told_before, told_after = (self.text(list(part), me, "") for part in (before, after))
                speaker = _speaker(told_before + (" :" if ":" in words[0].break_before else ""), told_after)
                is_told = speaker in ("N", "S")
                speaker = speaker or self._not_called(words) or said_before
                sayings.append(
                    Saying(speaker, self.text(words, speaker, {"N": "S", "S": "N"}.get(speaker, "")), is_told)
                )
                said_before = speaker
            yield Line(told, tuple(sayings), sentence.paragraph, sentence)

    def _not_called(self, words) -> str:
        """Who speaks if the other one is called by name: "Do not cry, Lily" is not said by Lily."""
        for at, word in enumerate(words):
            token = self.tokens.get(word.text)
            called = word.break_before == "," or (not at and len(words) > 1 and words[1].break_before == ",")
            if token and called:
                return {"N": "S", "S": "N"}[token]
        return ""

    def text(self, words: list[Word], i: str, you: str) -> str:
        """The words, retold. i, you: who says "I" and who is "you"."""
        out: list[str] = []
        for at, word in enumerate(words):
            if at and word.break_before.strip('"') and out and out[-1] != ",":
                out.append(",")
            out += self._word(words, at, word, i, you)
        text = " ".join(out)
        text = _NOBODY.sub("nobody", text)
        text = _OWN_FAMILY.sub("S", text)
        text = _PHRASE.sub(lambda match: (match[1] or match[2] or "").replace("an ", "a ") + match[3], text)
        return _BOTH.sub(lambda match: "B_" if match[0].endswith("_") else "B", text)

    def _word(self, words, at, word, i, you) -> list[str]:
        lower = word.lower
        possessive = word.possessive
        if word.text in self.tokens and (word.text in NAMES or word.text[:1].isupper() or lower in GROWN_UPS):
            token = self.tokens[word.text]
            return [token + "_" if possessive else token]
        token, kind = self._person(words, at, lower, i, you)
        if token:
            return [token + "_"] if kind else [token, *(["be"] if possessive else [])]
        if lower == self.thing or lower == self.thing + "s" and self.thing:
            return ["O" if lower == self.thing else "Os"] + (["_"] if possessive else [])
        if lower == self.place and self.place:
            return ["P"]
        if possessive and lower in _SHORT_IS:
            return [lower, "be"]
        if possessive and lower == "let":
            return ["let", "B" if i else "us"]
        if lower in _WRITTEN_OUT:
            return [LEMMA.get(part, part) for part in _WRITTEN_OUT[lower].split()]
        if "'" in lower:
            stem, _, end = lower.partition("'")
            if end == "t" and stem.endswith("n"):
                stem = stem[:-1]
                return [LEMMA.get(stem, stem), "not"]
            token, _ = self._person(words, at, stem, i, you)
            full = _ENDINGS.get(end, end)
            return [token or LEMMA.get(stem, stem), LEMMA.get(full, full)]
        return [LEMMA.get(lower, lower) + ("_" if possessive else "")]

    def _person(self, words, at, lower, i, you) -> tuple[str, bool]:
        """Whom a pronoun stands for ("" if it is none), and whether it is possessive."""
        if lower in ("i", "me", "myself") and i:
            return i, False
        if lower in ("my", "mine") and i:
            return i, True
        if lower in ("you", "yourself") and you:
            return you, False
        if lower in ("your", "yours") and you:
            return you, True
        if lower in ("they", "them", "themselves"):
            return "B", False
        if lower in ("their", "theirs"):
            return "B", True
        if lower in ("we", "us", "ourselves") and i:
            return "B", False
        if lower in ("our", "ours") and i:
            return "B", True
        gender = {
            "him": "he",
            "his": "he",
            "himself": "he",
            "her": "she",
            "hers": "she",
            "herself": "she",
        }.get(lower, lower)
        token = self.who.get(gender, "")
        if lower in ("he", "him", "himself", "she", "herself"):
            return token, False
        if lower == "his":
            return token, True
        if lower == "her":
            after = words[at + 1] if at + 1 < len(words) else None
            is_object = after is None or after.break_before != "" or after.lower in _AFTER_OBJECT
            return token, not is_object
        return "", False


def _runs(words) -> Iterator[tuple[bool, list[Word]]]:
    """The words in runs that are all spoken, in one quotation, or all told."""
    run: list[Word] = []
    for word in words:
        if run and (word.spoken != run[-1].spoken or word.break_before.count('"') == 2):
            yield run[-1].spoken, run
            run = []
        run.append(word)
    if run:
        yield run[-1].spoken, run


_TAG = rf"(?:{'|'.join(_SAY)})(?: out)?"
_SAID_AFTER = re.compile(rf"(?:{_TAG} ([NSB])(?![_\w])|([NSB]) {_TAG}\b)")
_SAID_BEFORE = re.compile(rf"\b([NSB])(?![_\w])(?: [^, ]+){{0,9}}? (?:{_TAG})\b[^,]*$")


def _speaker(before: str, after: str) -> str:
    if before.endswith(" :") and (match := re.search(r"(?<!\w)([NSB])(?!\w)", before)):
        return match[1]
    if (match := _SAID_BEFORE.search(before)) and not _SAID_AFTER.match(after):
        return match[1]
    if match := _SAID_AFTER.match(after):
        return match[1] or match[2]
    if re.match(rf"{_TAG}\b", after):
        return "?"  # somebody else
    return ""


_OWN_FAMILY = re.compile(r"(?<!\w)(?:N_|B_) S(?!_)(?!\w)")  # "her dad"
_NOBODY = re.compile(r"\bno one\b|\bnot (?:a|one|a single) soul\b")
# "the lost kite" and "the broken kite" keep what happened to it.
_TOLD_BY_ADJECTIVE = set("lost broken dirty muddy wet dry clean mended fixed stuck same empty full".split())
_ADJECTIVE = "|".join(sorted(ADJECTIVES - _TOLD_BY_ADJECTIVE))
_PHRASE = re.compile(
    rf"\b(?:(?:the|that|this|own) |([NSB]_ )|((?:an?|no|another|any|every) ))(?:own )?(?:(?:{_ADJECTIVE}),? (?:, )?)*(Os?|P)\b"
)
_BOTH = re.compile(
    r"\b(?:N and S|S and N|both of B|the two of B|the (?:two|both) friends?|the friend|the two|two of B|B both)(?![\w])(_?)"
)
