"""Who is in the story: names, kinds, and what he and she can stand for."""

from collections import Counter
from collections.abc import Iterator

from data.stories import world
from data.stories.checker.noun_phrases import determiner_of, is_joined
from data.stories.checker.report import Problem
from data.stories.reading import Sentence, Word

GENDER_OF_NAME = {child.name: child.pronoun for child in world.PEOPLE if child.kind in ("girl", "boy")}
GENDER_OF_NAME |= world.OTHER_NAMES
NAMES = world.NAMES | set(world.OTHER_NAMES)
ANIMALS = {*world.ANIMALS, *world.OTHER_ANIMALS}
PRONOUNS = dict.fromkeys("he him his himself".split(), "he")
PRONOUNS |= dict.fromkeys("she her hers herself".split(), "she")
MALE = set("boy man dad daddy father grandpa grandfather brother uncle king prince son mr sir".split())
FEMALE = set(
    "girl woman lady mom mommy mum mummy mother grandma granny grandmother sister aunt queen princess "
    "daughter mrs miss witch".split()
)
ANYBODY = set(
    "child kid baby friend teacher doctor neighbor farmer driver cousin somebody someone person stranger "
    "classmate bird bee bug fish lion horse cow sheep monkey elephant tiger wolf monster dragon fairy robot "
    "puppy kitten chick lamb chicken snake butterfly ant bunny goat crab whale clown twin teddy doll toy "
    "children people everyone everybody nobody".split()
)
RELATIVES = set("friend brother sister cousin neighbor son daughter uncle aunt teacher twin baby".split())
SAME_KIND = dict(puppy="dog", kitten="cat", bunny="rabbit", duckling="duck", woman="girl", man="boy")
KINDS = {*ANIMALS, "girl", "boy", *SAME_KIND}
PERSONS = KINDS | MALE | FEMALE | ANYBODY
SPEAKING = set(
    "answered murmured sighed exclaimed said asked cried called shouted replied whispered yelled thought".split()
)


def check_characters(read: list[Sentence]) -> list[Problem]:
    cast = _Cast(Counter(word.text for sentence in read for word in sentence.words))
    problems, before = [], ()
    for sentence in read:
        found = cast.problems_in(sentence.words, before)
        problems += [Problem(rule, what, sentence.text) for rule, what in found]
        before = sentence.words[-1:]
    return problems


class _Cast:
    """The characters that are known so far in a story, which is read sentence by sentence."""

    def __init__(self, mentions: Counter[str]):
        self.mentions = mentions  # how often the whole story has each word
        self.kind_of: dict[str, str | None] = {}  # name: its kind, None until the story tells it
        self.strangers: set[str] = set()  # names that were reported as not introduced
        self.genders: set[str] = set()  # "he", "she", or "any": the pronouns that somebody can be meant by
        self.kinds: set[str] = set()  # the kinds that were mentioned

    def problems_in(self, words, before) -> Iterator[tuple[str, str]]:
        """Yield (rule, what is wrong) for each problem of the next sentence.

        before: the last word of the sentence before, as a tuple of one word or none.
        """
        opening = not self.kind_of
        for i, word in enumerate(words):
            known = word.text in self.kind_of
            if word.text in NAMES and (known or not _is_plain_word(words, i)):
                yield from self._read_name(words, i, opening)
            else:
                self._read_person(words, i)
            if word.lower in KINDS:
                yield from self._read_kind(words, i)
        twice = _with_oneself(before + words if before and before[0].spoken else words)
        if twice:
            yield "name", f"{twice} and {twice} cannot be two"
        oneself = _does_it_to_oneself(words)
        if oneself:
            yield "name", f"{oneself} and {oneself} cannot be two"
        yield from self._read_pronouns(words)

    def _read_name(self, words, i, opening):
        """A name must be introduced before it is used, and its kind must not change."""
        name = words[i].text
        if name not in self.kind_of:
            if not (opening or _introduces(words, i, self.mentions)):
                if name not in self.strangers:
                    yield "name", f"{name} was not introduced"
                self.strangers.add(name)
                return
            self.kind_of[name] = None
        gender = GENDER_OF_NAME.get(name, "any")
        self.genders.add(gender)
        told, kind = self.kind_of[name], _told_kind(words, i)
        if kind:
            before = told or {"he": "boy", "she": "girl"}.get(gender)
            if before and before != kind and (told or kind not in ANIMALS):
                yield "kind", f"{name} was a {before}, now a {kind}"
            self.kind_of[name] = kind

    def _read_person(self, words, i):
        """A person without a name, or with an unknown name, gives a pronoun its meaning."""
        word = words[i]
        if word.lower in MALE or word.lower in FEMALE:
            self.genders.add("he" if word.lower in MALE else "she")
        elif (word.lower in ANYBODY and not _is_named(words, i)) or (
            word.text[:1].isupper() and word.text not in NAMES and _is_a_name(words, i)
        ):
            self.genders.add("any")

    def _read_kind(self, words, i):
        """ "the fox" needs a fox before it, except in "Rex the fox" and "her friend the fox"."""
        word = words[i]
        kind = SAME_KIND.get(word.lower, word.lower)
        before = words[i - 2] if i > 1 else None
        named = before and (
            before.text in NAMES or (i > 2 and before.text[:1].isupper()) or before.lower in RELATIVES
        )
        new = kind in ANIMALS - self.kinds
        if new and not named and determiner_of(words, i)[0] == "the":
            yield "kind", f"the {word.lower} was not introduced"
        self.kinds.add(kind)
        if word.lower not in FEMALE | MALE:
            self.genders.add("any")

    def _read_pronouns(self, words):
        for word in words:
            gender = None if word.spoken else PRONOUNS.get(word.lower)
            if gender and self.genders and not self.genders & {gender, "any"}:
                yield "pronoun", f"nobody so far is {gender!r}"
                self.genders.add(gender)


def _with_oneself(words) -> str | None:
    """The name in "Tom and Tom" or in '"Thank you, Tom," said Tom', or None."""
    named = [i for i, word in enumerate(words) if word.text in NAMES]
    for first, second in zip(named, named[1:]):
        word, between = words[second], words[first + 1 : second]
        if words[first].text != word.text or words[first].possessive or word.possessive:
            continue
        joined = [w.lower for w in between] == ["and"] and between[0].spoken == word.spoken
        called = words[first].spoken and not word.spoken and "," in words[first].break_before
        speaks = (between and between[-1].lower in SPEAKING) or (
            not between and second + 1 < len(words) and words[second + 1].lower in SPEAKING
        )
        reports = [w.lower for w in words[second + 2 : second + 3]] in (
            ["that"],
            ["hard"],
            ["about"],
            ["for"],
        )  # "Daisy said that", "Max thought hard"
        if joined or (called and speaks and not reports and len(between) <= 1):
            return word.text
    return None


def _does_it_to_oneself(words) -> str | None:
    """The name in "Lily gave Lily the kite" and "Tim sat down next to Tim", or None."""
    named = [i for i, word in enumerate(words) if word.text in NAMES and not word.spoken]
    for first, second in zip(named, named[1:]):
        between = words[first + 1 : second]
        if words[first].text != words[second].text or not 1 <= len(between) <= 7:
            continue
        if words[first].possessive or words[second].possessive or any(w.spoken for w in between):
            continue
        one_clause = all(word.break_before == "" for word in words[first + 1 : second + 1])
        if one_clause and not _CLAUSE_WORDS.intersection(word.lower for word in between):
            return words[first].text
    return None


_CLAUSE_WORDS = set(
    "and while when that until who how because so but as where if before after since for or than".split()
)


def _is_plain_word(words, i):
    """Whether a name at the start of a sentence may be an ordinary word: "Spot the bird"."""
    following = words[i + 1].lower if i + 1 < len(words) else ""
    return i == 0 and words[i].text in ("Spot", "Fluffy", "Daisy") and following in ("the", "a")


def _is_named(words, i):
    """Whether a name follows the word: "a friend called Tom", "her friend Tom"."""
    following = [word for word in words[i + 1 : i + 3] if not word.break_before]
    if following and following[0].lower in ("named", "called"):
        following = following[1:]
    return bool(following) and following[0].text in NAMES


def _is_a_name(words, i):
    """Whether a word with a capital is a name: it begins neither a sentence nor a quotation."""
    before = words[i].break_before
    return i > 0 and '"' not in before and words[i].text != "I"


def _introduces(words: tuple[Word, ...], i: int, mentions) -> bool:
    """Whether the words around the name at i introduce it."""
    before = [word.lower for word in words[max(0, i - 5) : i]]
    name = words[i]
    last = before[-1] if before else ""
    if last in ("named", "called"):
        # In '"Come here!" called Tom', nobody is named.
        verb = words[i - 1]
        named = i > 1 and words[i - 2].lower in PERSONS | {"was", "is", "them", "him", "her"}
        return named and '"' not in verb.break_before and '"' not in name.break_before
    if before[-2:] in (["name", "is"], ["name", "was"], ["i", "am"]) or last in ("i'm", "it's"):
        return mentions[name.text] > 1
    if last in PERSONS and not name.break_before.strip(","):
        # "her friend Tom" and "the dog, Rex", but not "said the girl. Tom ..."
        return determiner_of(words, i - 1)[0] is not None or last == "friend"
    behind = [word.lower for word in words[i + 1 : i + 7]]
    if RELATIVES.intersection(behind) and {"his", "her", "my", "a"}.intersection(behind):
        return mentions[name.text] > 1  # "Tom, her old friend", "Remy the squirrel, his best friend"
    behind = behind[:4]
    return i > 0 and mentions[name.text] > 1 and behind[:1] == ["a"] and not KINDS.isdisjoint(behind)


def _told_kind(words, i) -> str | None:
    """The kind that the words around the name at i tell: a dog named X, X the dog, X was a dog."""
    before = [word.lower for word in words[max(0, i - 2) : i]]
    kind = None
    if before and before[-1] in KINDS and not words[i].break_before:
        kind = before[-1]
    elif len(before) == 2 and before[1] in ("named", "called") and before[0] in KINDS:
        kind = before[0]
    behind = [word.lower for word in words[i + 1 : i + 7]]
    joined = len(behind) > 1 and not words[i + 1].break_before and is_joined(words, i + 1)
    if joined and behind[0] == "the" and behind[1] in KINDS:
        kind = behind[1]
    if behind[:2] in (["was", "a"], ["is", "a"]):
        behind = behind[1:]
    if behind[:1] in (["a"], ["an"]):
        for word in behind[1:5]:
            if word in KINDS:
                kind = word
                break
            if word in ("who", "with", "and", "that", "in", "of"):
                break
    return SAME_KIND.get(kind, kind)
