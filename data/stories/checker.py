"""Check whether a story contradicts itself and whether it ends.

The rules know the words of world.py and some plain English, but not the templates of the generator:

- A name must be introduced ("a girl named Mia", "her friend Tom", the subject of the first sentence) before
  it is used, and its kind must not change. "he" and "she" need somebody whom they can stand for.
- "the kite" and "her kite" need a kite before them, and a red kite must not become a blue one.
- "in the park" needs somebody to have gone there.
- What was mended must not be broken afterwards unless it breaks again, and only a broken thing can be mended.
- A problem must be settled, and the last sentences must end the story.

Words outside the tables are ignored, and a doubtful case is not reported. A story that passes can still be
wrong: if all sentences but the first and the last are shuffled, 22 % of the bundled stories pass.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from data.stories import world
from data.stories.reading import Sentence, Word, plain, sentences

MIN_WORDS = 40
CONTRADICTIONS = ("name", "kind", "pronoun", "object", "adjective", "place", "state")


class Problem(NamedTuple):
    rule: str  # one of CONTRADICTIONS, or "unfinished", or "copied"
    what: str
    sentence: str


@dataclass(frozen=True)
class Report:
    problems: tuple[Problem, ...]

    @property
    def consistent(self) -> bool:
        return not any(problem.rule in CONTRADICTIONS for problem in self.problems)

    @property
    def finished(self) -> bool:
        return not any(problem.rule == "unfinished" for problem in self.problems)

    @property
    def passes(self) -> bool:
        return not self.problems


def check(text: str) -> Report:
    """Return the problems of a story: contradictions in the order of its sentences, then the missing ends."""
    text = plain(text)
    read = sentences(text)
    problems = _check_characters(read) + _check_objects(read) + _check_places(read) + _check_states(read)
    order = {sentence.text: number for number, sentence in reversed(list(enumerate(read)))}
    problems.sort(key=lambda problem: order.get(problem.sentence, 0))
    return Report((*problems, *_check_ending(text.strip(), read)))


# Characters

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
SPEAKING = set("said asked cried called shouted replied whispered yelled thought".split())


def _check_characters(read: list[Sentence]) -> list[Problem]:
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
        named = before and (before.text in NAMES or before.lower in RELATIVES)
        new = kind in ANIMALS - self.kinds
        if new and not named and _determiner(words, i)[0] == "the":
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
        if joined or (called and speaks and len(between) <= 1):
            return word.text
    return None


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
        return _determiner(words, i - 1)[0] is not None or last == "friend"
    behind = [word.lower for word in words[i + 1 : i + 5]]
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
    joined = len(behind) > 1 and not words[i + 1].break_before and _joined(words, i + 1)
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


# Objects

INDEFINITE = set("a an one another some any every each many two three".split())
DEFINITE = set("the this that no her his its my your our their".split())
OBJECTS = {*world.OBJECTS, *world.OTHER_OBJECTS, *world.FOODS}
PLURALS = {noun + "s": noun for noun in OBJECTS} | {"boxes": "box", "scarves": "scarf"}
CLASSES = {
    "color": {*world.COLORS, "orange", "black", "gray", "grey"},
    "big": {"big", "large", "huge"},
    "little": {"little", "tiny", "small"},
    "old": {"old"},
    "new": {"new"},
}
CLASS_OF = {adjective: name for name, members in CLASSES.items() for adjective in members}
OPPOSITE = {"big": "little", "little": "big", "old": "new", "new": "old"}
ADJECTIVES = {
    *world.COLORS,
    *world.SIZES,
    *world.LOOKS,
    *(
        "orange black gray grey large huge small nice lovely fine great good best favorite favourite own "
        "dear poor dirty muddy clean wet dry broken mended fixed lost stuck beautiful warm cold same other "
        "special kind brave cheerful quiet curious clever gentle happy shy playful polite friendly careful "
        "jolly lively calm sweet merry sad lonely proud tall short fat thin long tired sleepy hungry angry "
        "scared loyal close neat cool hot fast toy magic very only funny silly young older younger big pet "
        "colorful bright fluffy yummy tasty delicious empty full heavy closed open strange"
    ).split(),
}


def _determiner(words, i) -> tuple[str | None, list[str], bool]:
    """The noun's determiner (or None), its adjectives, and whether "what" or "such" comes before."""
    adjectives = []
    at = i - 1
    while at >= 0 and _is_adjective(words[at]) and _joined(words, at + 1):
        adjectives.append(words[at].lower)
        at -= 1
    if at < 0 or not _joined(words, at + 1):
        return None, adjectives, False
    word = words[at]
    if word.possessive:
        return "the", adjectives, False
    if word.lower in INDEFINITE | DEFINITE:
        return word.lower, adjectives, at > 0 and words[at - 1].lower in ("what", "such")
    return None, adjectives, False


def _is_adjective(word):
    superlative = word.lower.endswith("est") and word.lower != "forest"
    return (word.lower in ADJECTIVES or superlative) and not word.possessive  # "Fluffy's kite"


def _joined(words, i):
    """Whether at most a comma is between the word at i and the word before it, in the same quotation."""
    return words[i].break_before in ("", ",") and words[i].spoken == words[i - 1].spoken


def _check_objects(read: list[Sentence]) -> list[Problem]:
    """ "the kite" and "her kite" need a kite before them, and a kite keeps its color, size and age."""
    problems = []
    told: dict[str, dict[str, set[str]]] = {}  # noun: class of adjectives: adjectives
    reported: set[str] = set()
    first = None  # the first sentence with a thing introduces it: "My red kite is gone!"
    for number, sentence in enumerate(read):
        words = sentence.words
        for i, word in enumerate(words):
            noun = word.lower
            if noun in PLURALS:
                told.setdefault(PLURALS[noun], defaultdict(set))
            if noun not in OBJECTS or _is_part_of_a_name(words, i):
                continue
            determiner, adjectives, exclaimed = _determiner(words, i)
            if determiner and first is None and sentence.paragraph == 0:
                first = number
            if determiner and (number == first or (determiner in INDEFINITE and not exclaimed)):
                known = told.setdefault(noun, defaultdict(set))
                for adjective in CLASS_OF.keys() & adjectives:
                    known[CLASS_OF[adjective]].add(adjective)
            elif noun in told:
                problems += _adjective_problems(told[noun], noun, adjectives, sentence)
            elif determiner and noun not in reported:
                problems.append(Problem("object", f"there was no {noun} before", sentence.text))
                reported.add(noun)
        problems += _color_problems(told, sentence)
    return problems


def _is_part_of_a_name(words, i):
    """Whether the noun at i only describes the next one: "train station", "teddy bear"."""
    return (
        i + 1 < len(words)
        and not words[i].possessive
        and _joined(words, i + 1)
        and f"{words[i].lower} {words[i + 1].lower}" in COMPOUNDS
    )


COMPOUNDS = set(
    "train station,train track,train tracks,teddy bear,car seat,apple tree,pear tree,box car,balloon man,"
    "boat ride,bike ride,car ride,train ride,plane ride,book shelf,book store,apple juice,carrot cake,"
    "apple pie,banana bread,cookie jar,drum set,doll house,bag pack".split(",")
)


def _adjective_problems(known, noun, adjectives, sentence):
    problems = []
    for adjective in filter(CLASS_OF.get, adjectives):
        name = CLASS_OF[adjective]
        same, opposite = known[name], known[OPPOSITE.get(name)]
        if (name == "color" and same and adjective not in same) or (opposite and not same):
            before = min(same or opposite)
            problems.append(Problem("adjective", f"the {before} {noun} is now {adjective}", sentence.text))
        else:
            same.add(adjective)
    return problems


_IT_IS = re.compile(r"\b(?:it is|something) (" + "|".join(sorted(world.COLORS)) + r")\b")


def _color_problems(told, sentence):
    """ "It is red" contradicts the color of the only thing in the story that has one."""
    match = _IT_IS.search(_lower(sentence))
    colored = [(noun, known["color"]) for noun, known in told.items() if known["color"]]
    if match and len(colored) == 1 and match[1] not in colored[0][1]:
        noun, colors = colored[0]
        return [Problem("adjective", f"the {min(colors)} {noun} is now {match[1]}", sentence.text)]
    return []


# Places

PLACES = set(world.PLACES) | set(
    "zoo kitchen bedroom bathroom shop store library castle cave island town".split()
)
GOING = set(
    "to into towards toward onto for from reached entered left visited visit found saw see seen leave reach "
    "enter find called near".split()
)
_NEW_SCENE = re.compile(
    r"\b(?:next (?:day|morning|week)|(?:one|another) (?:\w+ )?(?:day|morning|afternoon|evening)|"
    r"that (?:\w+ )?(?:day|morning|afternoon|evening))\b"
)
_LATER = re.compile(
    r"\b(?:next (?:day|morning|week|time)|one day|another day|later|that (?:night|evening|afternoon)|"
    r"every day|had|home|went|ran|came|walked|go|back)\b"
)


def _check_places(read: list[Sentence]) -> list[Problem]:
    """ "in the park" needs somebody to have gone there, and to be there still."""
    problems = []
    visited: set[str] = set()
    current = None  # where the characters are, or None if that is not known
    for sentence in read:
        words = sentence.words
        later = _LATER.search(sentence.narrated)
        if later and not any(word.lower in PLACES for word in words):
            current = None
        for i, word in enumerate(words):
            noun, determiner = word.lower, _determiner(words, i)[0]
            if noun not in PLACES or determiner is None:
                continue
            before = _before_noun_phrase(words, i)
            goes = before in GOING or determiner in INDEFINITE
            if not visited or goes or (noun not in visited and _NEW_SCENE.search(sentence.narrated)):
                visited.add(noun)
                if not word.spoken and before != "from":
                    current = noun
            elif noun not in visited:
                problems.append(Problem("place", f"nobody had gone to the {noun}", sentence.text))
                visited.add(noun)
            elif before in ("in", "at", "on") and not (word.spoken or later or current in (None, noun)):
                what = f"they were at the {current}, not the {noun}"
                problems.append(Problem("place", what, sentence.text))
                current = noun
    return problems


def _before_noun_phrase(words, i):
    """The word before the determiner and the adjectives of the noun at i, or ""."""
    at = i - 1
    while at >= 0 and _is_adjective(words[at]):
        at -= 1
    at -= 1  # skips the determiner
    return words[at].lower if at >= 0 else ""


# States of things


class State(NamedTuple):
    begins: re.Pattern
    settles: re.Pattern  # probably ends the state, which is enough for the ending of a story
    ends: re.Pattern  # certainly ends it
    presupposes: re.Pattern  # is wrong unless the state has begun
    lasts: re.Pattern  # is wrong after the state has ended


def _any_of(*patterns: str) -> re.Pattern:
    return re.compile(rf"\b(?:{'|'.join(patterns)})\b")


_OBJECT = "|".join(sorted(OBJECTS))
STATES = {
    "broken": State(
        begins=_any_of(
            rf"(?:{_OBJECT}|it|and|he|she|i|they|we|toy|then) broke"
            r"(?! (?:it|(?:the|that) (?:\w+ )?\w+) (?:in|down))",
            r"broken|breaks|came apart|fell apart|torn|ripped",
        ),
        settles=_any_of(
            r"mended|fixed|repaired|whole again|good as new|fix it|new one|another one|works again|"
            r"worked again|glued|put it (?:all )?back together"
        ),
        ends=_any_of(r"mended|fixed|repaired|whole again|good as new"),
        presupposes=_any_of(r"mended|repaired|whole again"),
        lasts=_any_of(r"still broken|the broken|(?:is|was) broken"),
    ),
    "dirty": State(
        begins=_any_of(r"dirty|muddy|full of mud|in the mud|into the mud"),
        settles=_any_of(
            r"washed|scrubbed|clean|cleaned|bath|mud (?:came off|was gone|went away)|wiped|good as new"
        ),
        ends=_any_of(r"clean again|all clean|nice and clean"),
        presupposes=_any_of(r"clean again"),
        lasts=_any_of(r"still (?:dirty|muddy)"),
    ),
    "wet": State(
        begins=_any_of(r"got wet|(?:all|so|very|was|is|too) wet|soaked|still wet|the wet"),
        settles=_any_of(r"dry|dried|dries|sun|towel|warm"),
        ends=_any_of(r"dry again|all dry|warm and dry"),
        presupposes=_any_of(r"dry again|dried off"),
        lasts=_any_of(r"still wet"),
    ),
    "lost": State(
        begins=_any_of(
            r"lost|missing|nowhere|(?:cannot|could not|couldn't|can't) find",
            rf"(?:{_OBJECT}|it|toy|they|all) (?:is|was|were) (?:gone|not there)",
        ),
        settles=_any_of(
            r"found|find it|(?:gave|give|brought|handed|got|had|came|have|took|put)(?: \w+){0,4} (?:back|to|"
            r"in)|here it is|here is|there (?:was|lay|it was|it is)|it (?:really )?was the|is this|new one|"
            r"came back"
        ),
        ends=_any_of(r"had found|found (?:the|his|her|my)|i found"),
        presupposes=_any_of(r"found (?:it|the \w+|the \w+ \w+) (?:again|at last)"),
        lasts=_any_of(r"still (?:lost|missing)"),
    ),
    "stuck": State(
        begins=_any_of(r"stuck|(?:is|was|got) caught"),
        settles=_any_of(r"free|freed|down|loose|unstuck|let go|out|off|pulled|fell"),
        ends=_any_of(r"was free|came loose|down came"),
        presupposes=_any_of(r"got free|was free again"),
        lasts=_any_of(r"still stuck"),
    ),
}


def _check_states(read: list[Sentence]) -> list[Problem]:
    """A mended thing must not be broken unless it breaks again, and only a broken thing can be mended."""
    problems = []
    for name, state in STATES.items():
        begun = ended = False
        for sentence in read:
            said = _lower(sentence)
            if ended and state.lasts.search(said) and not _again(said):
                problems.append(Problem("state", f"it was not {name} any more", sentence.text))
                ended = False
            if state.begins.search(said):
                begun, ended = True, False
            elif not begun and state.presupposes.search(said):
                problems.append(Problem("state", f"nothing had been {name}", sentence.text))
                begun = True
            if begun and state.ends.search(said) and not re.search(r"\b(?:not|never|cannot|could)\b", said):
                ended = True
    return problems


def _again(said):
    """Whether a sentence says that the state began again, is over, or belongs to the past."""
    words = r"\b(?:again|broke|fell|dropped|was|were|had been|never|not|no|any ?more)\b"
    return re.search(words, said) and not re.search(r"\bstill\b", said)


# The ending


class Need(NamedTuple):
    opens: re.Pattern
    settles: re.Pattern
    every_time: bool = False  # whether the last opening must be settled, and not only the first


DOING = "do|ride|fly|play|sail|throw|swim|jump|climb|catch"
NEEDS = {
    **{
        name: Need(state.begins, _any_of(state.settles.pattern, "settled"), every_time=name != "lost")
        for name, state in STATES.items()
    },
    "unshared": Need(
        _any_of(r"(?:not|n't) (?:want to |like to )?share|would not share|it is mine|get your own"),
        _any_of(r"shared?|sharing|turns?|gave|together|sorry|take|have|half|split|settled"),
    ),
    "unlearned": Need(
        _any_of(
            rf"(?:could not|cannot|can't|couldn't|did not know how to|i will never) (?:{DOING}) "
            r"(?:it|the|my|his|her|this)"
        ),
        _any_of(
            rf"could (?:{DOING})|can (?:{DOING})|did it|rode|flew|played|sailed|threw|swam|learned",
            r"i am (?:riding|flying|playing|sailing|throwing)|settled",
        ),
    ),
    "hungry": Need(
        _any_of(r"hungry|tummy is empty|nothing to eat"),
        _any_of(
            r"ate|eat|eats|eaten|full|food|fed|lunch|dinner|half|shared|milk|bread|water|berries|cheese|"
            r"settled"
        ),
    ),
    "lonely": Need(
        _any_of(
            r"(?:i am|i was|was|felt|were) (?:\w+ )?lonely|no one to play with|no friends|nobody to play with"
        ),
        _any_of(
            r"friends?|friend in|together|hugged|took turns|played with|laughed|play with|both|two|not alone",
            r"glad (?:you|we)|had company|held the|tried the|settled",
        ),
    ),
    "afraid": Need(
        _any_of(r"afraid|scared|frightened"),
        _any_of(
            r"no longer|okay|ran away|calm|any more|nothing|so small|brave|laughed|smiled|happy|safe|glad|"
            r"better|hugged|friends?|home|proud|laugh|settled",
        ),
    ),
    "ungiven": Need(
        _any_of(r"wanted to (?:give|make) (?:\w+ ){0,5}(?:gift|present|surprise)"),
        _any_of(
            r"gave|give|for you|here is|put|made (?:it|me)|loved it|love it|handed|took|thank you|settled"
        ),
    ),
}
ENDING = _any_of(
    "end|happy|happily|glad|proud|smiled?|smiling|laughs?|laughed|laughing|home|bed|asleep|sleep|sleeping|"
    "night|ever|never|always|friends?|friendship|together|learned|thank|thanked|hugged?|hug|love|loved|best|"
    "fun|better|safe|forgot|remember|remembered|knew|enjoyed|joy|day|cheerful|delighted|pleased|danced|sang|"
    "played|warm|well|hello|watched|great|wonderful|lovely|perfect|eyes|bedtime|dreams?|dreamed|keeps|kept|"
    "sun|understood|saw that|found out|forever|favorite|careful|sorry|promised|evening|inside|belonged|"
    "good again|for (?:days|weeks)",
)


def _check_ending(text, read: list[Sentence]) -> list[Problem]:
    if not read:
        return [Problem("unfinished", "it is empty", "")]
    count = sum(len(sentence.words) for sentence in read)
    last = read[-1].text
    problems = []

    def unfinished(what, sentence=last):
        problems.append(Problem("unfinished", what, sentence))

    if count < MIN_WORDS:
        unfinished(f"{count} words are too few for a story (at least {MIN_WORDS})")
    if not re.search(r'[.!?]"?$', text):
        unfinished("it breaks off")
    for line in text.split("\n"):
        if line.count('"') % 2:
            unfinished("a quotation is not closed", line.strip()[-120:])
    said = [_affirmed(sentence) for sentence in read]
    if not any(ENDING.search(sentence) for sentence in said[-2:]):
        unfinished("the last sentences do not end it")
    for name, need in NEEDS.items():
        openings = [
            (number, match.end())
            for number, sentence in enumerate(said)
            for match in need.opens.finditer(sentence)
        ]
        if openings:
            number, end = openings[-1 if need.every_time else 0]
            rest = [said[number][end:], *said[number + 1 :]]
            if not any(need.settles.search(sentence) for sentence in rest):
                unfinished(f"nothing settles what was {name}", read[number].text)
    return problems


_DENIED = re.compile(
    r"\b(?:not|never|nobody was|no longer|thought it was|neither|hardly)"
    r"(?: (?:be|so|very|too|even|at all|at|all|any|more|and|a|little))* "
    r"(?:afraid|scared|lonely|hungry|broken|torn|lost|gone|sad|wet|dirty|stuck)\b"
)


def _affirmed(sentence: Sentence) -> str:
    """The words in lower case, with "settled" in place of a state that is denied: "not afraid"."""
    return _DENIED.sub("settled", _lower(sentence))


def _lower(sentence: Sentence) -> str:
    return " ".join(word.lower for word in sentence.words)
