"""Reads any story and reports where it contradicts itself or does not end.

The rules know the words of world.py and some plain English, not the templates of the generator:

- a name is introduced ("a girl named Mia", "her friend Tom", the subject of the opening) before it is
  used, keeps its kind, and he and she need somebody they can stand for;
- "the kite", "her kite" need a kite before them, and a red kite does not become a blue one;
- "in the park" needs somebody to have gone there;
- what was mended is not broken afterwards unless it breaks again, and nothing is mended that was whole;
- a problem that is opened is settled, and the last sentences end the story.

Words outside the tables are ignored. Where the text leaves a doubt, it is given the benefit.
"""

import re
from collections import Counter
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
    """What is wrong with a story, in the order of its sentences."""
    read = sentences(plain(text))
    problems = [
        *_check_characters(read),
        *_check_objects(read),
        *_check_places(read),
        *_check_states(read),
    ]
    order = {sentence.text: number for number, sentence in reversed(list(enumerate(read)))}
    problems.sort(key=lambda problem: order.get(problem.sentence, 0))
    return Report((*problems, *_check_ending(plain(text).strip(), read)))


# Characters

GENDER_OF_NAME = {
    person.name: person.pronoun for person in world.PEOPLE if person.kind in ("girl", "boy")
} | world.OTHER_NAMES
NAMES = world.NAMES | set(world.OTHER_NAMES)
ANIMALS = {*world.ANIMALS, *world.OTHER_ANIMALS}
PRONOUNS = {
    **dict.fromkeys(("he", "him", "his", "himself"), "he"),
    **dict.fromkeys(("she", "her", "hers", "herself"), "she"),
}
MALE = set("boy man dad daddy father grandpa grandfather brother uncle king prince son mr sir".split())
FEMALE = set(
    "girl woman lady mom mommy mum mummy mother grandma granny grandmother sister aunt queen princess "
    "daughter mrs miss witch".split()
)
ANYBODY = set(
    "child kid baby friend teacher doctor neighbor farmer driver cousin somebody someone person stranger "
    "classmate bird bee bug fish lion horse cow sheep monkey elephant tiger wolf monster dragon fairy robot puppy "
    "kitten chick lamb chicken snake butterfly ant bunny goat crab whale clown twin teddy doll toy "
    "children people everyone everybody nobody he she".split()
) - {"he", "she"}
RELATIVES = set("friend brother sister cousin neighbor son daughter uncle aunt teacher twin baby".split())
SAME_KIND = {
    "puppy": "dog",
    "kitten": "cat",
    "bunny": "rabbit",
    "duckling": "duck",
    "woman": "girl",
    "man": "boy",
}
KINDS = {*ANIMALS, "girl", "boy", *SAME_KIND}
TRACKED_KINDS = ANIMALS  # "the fox" needs a fox before it
SPEAKING = set("said asked cried called shouted replied whispered yelled thought".split())


def _check_characters(read: list[Sentence]) -> list[Problem]:
    cast = _Cast(Counter(word.text for sentence in read for word in sentence.words))
    problems, last = [], ()  # last: the last word of the sentence before
    for sentence in read:
        wrong = cast.wrong_in(sentence.words, last)
        problems += [Problem(rule, what, sentence.text) for rule, what in wrong]
        last = sentence.words[-1:]
    return problems


class _Cast:
    """Who is known so far in a story that is read sentence by sentence."""

    def __init__(self, mentions: Counter[str]):
        self.mentions = mentions  # of each word in the whole story
        self.kind_of: dict[str, str | None] = {}  # by name; None before it is told
        self.strangers: set[str] = set()  # names that were reported
        self.genders: set[str] = set()  # which pronouns have somebody to stand for
        self.kinds: set[str] = set()

    def wrong_in(self, words, last) -> Iterator[tuple[str, str]]:
        """Rule and words of each problem in the next sentence."""
        opening = not self.kind_of
        for place, word in enumerate(words):
            known = word.text in self.kind_of
            if word.text in NAMES and (known or not _is_plain_word(words, place)):
                yield from self._read_name(words, place, opening)
            else:
                self._read_person(words, place)
            if word.lower in KINDS:
                yield from self._read_kind(words, place)
        twice = _with_oneself(last + words if last and last[0].spoken else words)
        if twice:
            yield "name", f"{twice} and {twice} cannot be two"
        yield from self._read_pronouns(words)

    def _read_name(self, words, place, opening):
        """A name is introduced before it is used, and keeps its kind."""
        name = words[place].text
        if name not in self.kind_of:
            if not (opening or _introduces(words, place, self.mentions)):
                if name not in self.strangers:
                    yield "name", f"{name} was not introduced"
                self.strangers.add(name)
                return
            self.kind_of[name] = None
        gender = GENDER_OF_NAME.get(name, "any")
        self.genders.add(gender)
        told, kind = self.kind_of[name], _told_kind(words, place)
        if kind:
            before = told or {"he": "boy", "she": "girl"}.get(gender)
            if before and before != kind and (told or kind not in ANIMALS):
                yield "kind", f"{name} was a {before}, now a {kind}"
            self.kind_of[name] = kind

    def _read_person(self, words, place):
        """Somebody without a name, or with one that we do not know, whom a pronoun may stand for."""
        word = words[place]
        if word.lower in MALE or word.lower in FEMALE:
            self.genders.add("he" if word.lower in MALE else "she")
        elif (word.lower in ANYBODY and not _is_named(words, place)) or (
            word.text[:1].isupper() and word.text not in NAMES and _is_a_name(words, place)
        ):
            self.genders.add("any")

    def _read_kind(self, words, place):
        """ "the fox" needs a fox before it, unless it is Rex the fox or her friend the fox."""
        word = words[place]
        kind = SAME_KIND.get(word.lower, word.lower)
        before = words[place - 2] if place > 1 else None
        named = before and (before.text in NAMES or before.lower in RELATIVES)
        new = kind in TRACKED_KINDS - self.kinds
        if new and not named and _determiner(words, place)[0] == "the":
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
    """A name in "Tom and Tom", or who is called by the own name: "Thank you, Tom," said Tom."""
    named = [place for place, word in enumerate(words) if word.text in NAMES]
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


def _is_plain_word(words, place):
    """Spot, Buddy and the like at the start of a sentence may be ordinary words."""
    following = words[place + 1].lower if place + 1 < len(words) else ""
    return place == 0 and words[place].text in ("Spot", "Fluffy", "Daisy") and following in ("the", "a")


def _is_named(words, place):
    """Whether the name of this person follows: "a friend called Tom", "her friend Tom"."""
    following = [word for word in words[place + 1 : place + 3] if not word.break_before]
    if following and following[0].lower in ("named", "called"):
        following = following[1:]
    return bool(following) and following[0].text in NAMES


def _is_a_name(words, place):
    """A capital that no beginning of a sentence explains."""
    before = words[place].break_before
    return place > 0 and '"' not in before and words[place].text != "I"


def _introduces(words: tuple[Word, ...], place: int, mentions) -> bool:
    """Whether the name at this place is introduced by what stands before or behind it."""
    before = [word.lower for word in words[max(0, place - 5) : place]]
    name = words[place]
    last = before[-1] if before else ""
    if last in ("named", "called"):
        # `"Come here!" called Tom` and `... called Tom in a low voice` call, they do not name.
        verb = words[place - 1]
        named = place > 1 and words[place - 2].lower in {
            *KINDS,
            *MALE,
            *FEMALE,
            *ANYBODY,
            "was",
            "is",
            "them",
            "him",
            "her",
        }
        return named and '"' not in verb.break_before and '"' not in name.break_before
    if before[-2:] in (["name", "is"], ["name", "was"], ["i", "am"]) or last in ("i'm", "it's"):
        return mentions[name.text] > 1
    if last in RELATIVES | KINDS | MALE | FEMALE | ANYBODY and not name.break_before.strip(","):
        # "her friend Tom", "the dog, Rex"; but not "said the girl. Tom ..."
        return _determiner(words, place - 1)[0] is not None or last in ("friend", "friends")
    if place + 2 < len(words) and words[place + 1].lower in ("the", "a") and mentions[name.text] > 1:
        behind = [word.lower for word in words[place + 2 : place + 5]]
        return any(word in KINDS for word in behind) and words[place + 1].lower == "a" and place > 0
    return False


def _told_kind(words, place) -> str | None:
    """The kind that is told of the name here: a dog named X, X the dog, X was a (kind little) dog."""
    before = [word.lower for word in words[max(0, place - 2) : place]]
    kind = None
    if before and before[-1] in KINDS and not words[place].break_before:
        kind = before[-1]
    elif len(before) == 2 and before[1] in ("named", "called") and before[0] in KINDS:
        kind = before[0]
    behind = [word.lower for word in words[place + 1 : place + 7]]
    joined = len(behind) > 1 and not words[place + 1].break_before and _joined(words, place + 1)
    if joined and behind[0] == "the" and behind[1] in KINDS:
        kind = behind[1]
    elif behind[:2] in (["was", "a"], ["is", "a"]) or behind[:1] == ["a"] or behind[:1] == ["an"]:
        skipped = behind[2:] if behind[0] in ("was", "is") else behind[1:]
        for word in skipped[:4]:
            if word in KINDS:
                kind = word
                break
            if word in ("who", "with", "and", "that", "in", "of"):
                break
    return SAME_KIND.get(kind, kind)


# Objects

INDEFINITE = {"a", "an", "one", "another", "some", "any", "every", "each", "many", "two", "three"}
POSSESSIVE = {"her", "his", "its", "my", "your", "our", "their"}
DEFINITE = {"the", "this", "that", *POSSESSIVE}
OBJECTS = {*world.OBJECTS, *world.OTHER_OBJECTS, *world.FOODS}
PLURALS = {noun + "s": noun for noun in OBJECTS} | {"boxes": "box", "scarves": "scarf"}
ADJECTIVE_CLASSES = (
    set(world.COLORS) | {"orange", "black", "gray", "grey"},
    {"big", "large", "huge"},  # against the next line
    {"little", "tiny", "small"},
    {"old"},
    {"new"},
)
OPPOSITE = {1: 2, 2: 1, 3: 4, 4: 3}
ADJECTIVES = {
    *world.COLORS,
    *world.SIZES,
    *world.LOOKS,
    *(
        "orange black gray grey large huge small nice lovely fine great good best favorite favourite own dear "
        "poor dirty muddy clean wet dry broken mended fixed lost stuck beautiful warm cold same other special "
        "kind brave cheerful quiet curious clever gentle happy shy playful polite friendly careful jolly lively calm sweet "
        "merry sad lonely proud tall short fat thin long tired sleepy hungry angry scared loyal close neat cool hot fast "
        "toy magic very only funny silly young older younger big pet colorful bright fluffy yummy tasty delicious empty full heavy closed open strange"
    ).split(),
}


def _determiner(words, place) -> tuple[str | None, list[str], bool]:
    """Of the noun at this place: its determiner (None if bare), adjectives, and whether it follows "what"."""
    adjectives = []
    at = place - 1
    while at >= 0 and _is_adjective(words[at]) and _joined(words, at + 1):
        adjectives.append(words[at].lower)
        at -= 1
    if at < 0 or not _joined(words, at + 1):
        return None, adjectives, False
    word = words[at]
    if word.possessive:
        return "the", adjectives, False
    if word.lower in INDEFINITE | DEFINITE | {"no"}:
        return word.lower, adjectives, at > 0 and words[at - 1].lower in ("what", "such")
    return None, adjectives, False


def _is_adjective(word):
    if word.possessive:  # Fluffy's kite
        return False
    return word.lower in ADJECTIVES or (word.lower.endswith("est") and word.lower != "forest")


def _joined(words, place):
    """Whether a word follows the one before it with at most a comma between, in the same quotation."""
    return words[place].break_before in ("", ",") and words[place].spoken == words[place - 1].spoken


def _check_objects(read: list[Sentence]) -> list[Problem]:
    problems = []
    known: dict[str, dict[int, set[str]]] = {}  # noun -> class -> adjectives told
    reported = set()
    first_sentence = None
    for number, sentence in enumerate(read):
        words = sentence.words
        for place, word in enumerate(words):
            noun = word.lower
            if noun in PLURALS and noun not in OBJECTS:
                known.setdefault(PLURALS[noun], {})
                continue
            if noun not in OBJECTS or _is_part_of_a_name(words, place):
                continue
            determiner, adjectives, exclaimed = _determiner(words, place)
            if determiner is None:
                if noun in known:
                    problems += _adjective_problems(known[noun], noun, adjectives, sentence)
                continue
            if first_sentence is None and sentence.paragraph == 0:
                first_sentence = number  # a story may begin in the middle: "My red kite is gone!"
            introduces = (determiner in INDEFINITE and not exclaimed) or number == first_sentence
            if noun not in known:
                if not introduces:
                    if noun not in reported:
                        problems.append(Problem("object", f"there was no {noun} before", sentence.text))
                        reported.add(noun)
                    continue
                known[noun] = {}
            if introduces:
                for adjective in adjectives:
                    for label in _classes(adjective):
                        known[noun].setdefault(label, set()).add(adjective)
            else:
                problems += _adjective_problems(known[noun], noun, adjectives, sentence)
        problems += _colour_problems(known, sentence)
    return problems


def _is_part_of_a_name(words, place):
    """ "train station", "teddy bear", "car seat": the tracked noun only describes the next one."""
    following = words[place + 1] if place + 1 < len(words) else None
    return (
        following is not None
        and not words[place].possessive
        and _joined(words, place + 1)
        and (words[place].lower, following.lower) in COMPOUNDS
    )


COMPOUNDS = {
    ("train", "station"), ("train", "track"), ("train", "tracks"), ("teddy", "bear"), ("car", "seat"), ("apple", "tree"),
    ("pear", "tree"), ("box", "car"), ("balloon", "man"), ("boat", "ride"), ("bike", "ride"), ("car", "ride"),
    ("train", "ride"), ("plane", "ride"), ("book", "shelf"), ("book", "store"), ("clock", "tower"), ("apple", "juice"),
    ("carrot", "cake"), ("apple", "pie"), ("banana", "bread"), ("toy", "box"), ("cookie", "jar"), ("chair", "leg"),
    ("key", "hole"), ("drum", "set"), ("doll", "house"), ("ring", "box"), ("bag", "pack"),
}  # fmt: skip


def _classes(adjective):
    return [label for label, members in enumerate(ADJECTIVE_CLASSES) if adjective in members]


def _adjective_problems(told, noun, adjectives, sentence):
    problems = []
    for adjective in adjectives:
        for label in _classes(adjective):
            same, other = told.get(label, set()), told.get(OPPOSITE.get(label), set())
            wrong = (label == 0 and same and adjective not in same) or (other and not same)
            if wrong:
                before = sorted(same or other)[0]
                problems.append(
                    Problem("adjective", f"the {before} {noun} is now {adjective}", sentence.text)
                )
            else:
                told.setdefault(label, set()).add(adjective)
    return problems


_IT_IS = re.compile(r"\b(?:it is|something) (" + "|".join(sorted(world.COLORS)) + r")\b")


def _colour_problems(known, sentence):
    """ "It is red" of the one thing in the story that has a colour, and another one."""
    match = _IT_IS.search(" ".join(word.lower for word in sentence.words))
    coloured = [(noun, told[0]) for noun, told in known.items() if told.get(0)]
    if match and len(coloured) == 1 and match[1] not in coloured[0][1]:
        noun, colours = coloured[0]
        return [Problem("adjective", f"the {sorted(colours)[0]} {noun} is now {match[1]}", sentence.text)]
    return []


# Places

PLACES = set(world.PLACES) | set(
    "zoo kitchen bedroom bathroom shop store library castle cave island town".split()
)
MOVING = set("to into towards toward onto for from".split())
ARRIVING = set(
    "reached entered left visited visit found saw see seen leave reach enter find called near".split()
)
_NEW_SCENE = re.compile(
    r"\b(?:next (?:day|morning|week)|(?:one|another) (?:\w+ )?(?:day|morning|afternoon|evening)|"
    r"that (?:\w+ )?(?:day|morning|afternoon|evening))\b"
)
_LATER = re.compile(
    r"\b(?:next (?:day|morning|week|time)|one day|another day|later|that (?:night|evening|afternoon)|every day|"
    r"had|home|went|ran|came|walked|go|back)\b"
)


def _check_places(read: list[Sentence]) -> list[Problem]:
    problems = []
    visited: set[str] = set()
    current = None
    for sentence in read:
        words = sentence.words
        if _LATER.search(sentence.narrated) and not any(word.lower in PLACES for word in words):
            current = None  # they may be anywhere now
        for place, word in enumerate(words):
            noun = word.lower
            if noun not in PLACES:
                continue
            determiner, _, _ = _determiner(words, place)
            if determiner is None:
                continue
            before = _before_noun_phrase(words, place)
            moves = before in MOVING or before in ARRIVING or determiner in INDEFINITE
            if not visited or moves or (noun not in visited and _NEW_SCENE.search(sentence.narrated)):
                visited.add(noun)
                current = noun if not word.spoken and before != "from" else current
            elif noun not in visited:
                problems.append(Problem("place", f"nobody had gone to the {noun}", sentence.text))
                visited.add(noun)
            elif (
                before in ("in", "at", "on")
                and not word.spoken
                and current not in (None, noun)
                and not _LATER.search(sentence.narrated)
            ):
                problems.append(
                    Problem("place", f"they were at the {current}, not the {noun}", sentence.text)
                )
                current = noun
    return problems


def _before_noun_phrase(words, place):
    at = place - 1
    while at >= 0 and _is_adjective(words[at]):
        at -= 1
    at -= 1  # the determiner
    return words[at].lower if at >= 0 else ""


# States of things


class State(NamedTuple):
    problem: re.Pattern  # it is so from here on
    solved: re.Pattern  # it is no longer so
    presupposes: re.Pattern  # can only be said if it was so
    claims: re.Pattern  # says that it is so now, without making it so


def _state(problem, solved, presupposes, claims):
    return State(*(re.compile(rf"\b(?:{pattern})\b") for pattern in (problem, solved, presupposes, claims)))


STATES = {
    "broken": _state(
        rf"(?:{'|'.join(sorted(OBJECTS))}|it|and|he|she|i|they|we|toy|then) broke(?! (?:it|(?:the|that) (?:\w+ )?\w+) (?:in|down))|broken|breaks|came apart|fell apart|torn|ripped",
        r"mended|fixed|repaired|whole again|good as new|fix it|new one|another one|works again|worked again|glued|put it (?:all )?back together",
        r"mended|repaired|whole again",
        r"still broken|the broken|(?:is|was) broken",
    ),
    "dirty": _state(
        r"dirty|muddy|full of mud|in the mud|into the mud",
        r"washed|scrubbed|clean|cleaned|bath|mud (?:came off|was gone|went away)|wiped|good as new",
        r"clean again",
        r"still (?:dirty|muddy)",
    ),
    "wet": _state(
        r"got wet|(?:all|so|very|was|is|too) wet|soaked|still wet|the wet",
        r"dry|dried|dries|sun|towel|warm",
        r"dry again|dried off",
        r"still wet",
    ),
    "lost": _state(
        r"lost|missing|nowhere|(?:cannot|could not|couldn't|can't) find|"
        rf"(?:{'|'.join(sorted(OBJECTS))}|it|toy|they|all) (?:is|was|were) (?:gone|not there)",
        r"found|find it|(?:gave|give|brought|handed|got|had|came|have|took|put)(?: \w+){0,4} (?:back|to|in)|"
        r"here it is|here is|there (?:was|lay|it was|it is)|it (?:really )?was the|is this|new one|came back",
        r"found (?:it|the \w+|the \w+ \w+) (?:again|at last)",
        r"still (?:lost|missing)",
    ),
    "stuck": _state(
        r"stuck|(?:is|was|got) caught",
        r"free|freed|down|loose|unstuck|let go|out|off|pulled|fell",
        r"got free|was free again",
        r"still stuck",
    ),
}


def _check_states(read: list[Sentence]) -> list[Problem]:
    """Claims of a state after it was over, and ends of a state that never began."""
    problems = []
    for label, state in STATES.items():
        if label in ("lost", "wet", "stuck", "dirty"):
            definite_end = {
                "lost": r"\b(?:had found|found (?:the|his|her|my)|i found)\b",
                "wet": r"\b(?:dry again|all dry|warm and dry)\b",
                "stuck": r"\b(?:was free|came loose|down came)\b",
                "dirty": r"\b(?:clean again|all clean|nice and clean)\b",
            }[label]
            over = re.compile(definite_end)
        else:
            over = re.compile(r"\b(?:mended|fixed|repaired|whole again|good as new)\b")
        is_so, ended = False, False
        for sentence in read:
            said = " ".join(word.lower for word in sentence.words)
            if ended and state.claims.search(said) and not _again(said):
                problems.append(Problem("state", f"it was not {label} any more", sentence.text))
                ended = False
            if not is_so and state.presupposes.search(said) and not state.problem.search(said):
                problems.append(Problem("state", f"nothing had been {label}", sentence.text))
                is_so = True
            if state.problem.search(said):
                is_so = True
                ended = False
            if is_so and over.search(said) and not re.search(r"\b(?:not|never|cannot|could)\b", said):
                ended = True
    return problems


def _again(said):
    return re.search(
        r"\b(?:again|broke|fell|dropped|was|were|had been|never|not|no|any ?more)\b", said
    ) and not re.search(r"\bstill\b", said)


# The ending


class Need(NamedTuple):
    opens: re.Pattern
    settles: re.Pattern
    every_time: bool = False  # each opening must be settled, not only the first


def _need(opens, settles):
    return Need(re.compile(rf"\b(?:{opens})\b"), re.compile(rf"\b(?:{settles}|settled)\b"))


DOING = "do|ride|fly|play|sail|throw|swim|jump|climb|catch"
NEEDS = {
    **{
        label: Need(state.problem, re.compile(state.solved.pattern + r"|\bsettled\b"), label != "lost")
        for label, state in STATES.items()
    },
    "unshared": _need(
        r"(?:not|n't) (?:want to |like to )?share|would not share|it is mine|get your own",
        r"shared?|sharing|turns?|gave|together|sorry|take|have|half|split",
    ),
    "unlearned": _need(
        rf"(?:could not|cannot|can't|couldn't|did not know how to|i will never) (?:{DOING}) (?:it|the|my|his|her|this)",
        rf"could (?:{DOING})|can (?:{DOING})|did it|rode|flew|played|sailed|threw|swam|learned|i am (?:riding|flying|playing|sailing|throwing)",
    ),
    "hungry": _need(
        r"hungry|tummy is empty|nothing to eat",
        r"ate|eat|eats|eaten|full|food|fed|lunch|dinner|half|shared|milk|bread|water|berries|cheese",
    ),
    "lonely": _need(
        r"(?:i am|i was|was|felt|were) (?:\w+ )?lonely|no one to play with|no friends|nobody to play with",
        r"friends?|friend in|together|hugged|took turns|played with|laughed|play with|both|two|not alone|glad (?:you|we)|had company|held the|tried the",
    ),
    "afraid": _need(
        r"afraid|scared|frightened",
        r"no longer|okay|ran away|calm|any more|nothing|so small|brave|laughed|smiled|happy|safe|glad|better|hugged|friends?|home|proud|laugh",
    ),
    "ungiven": _need(
        r"wanted to (?:give|make) (?:\w+ ){0,5}(?:gift|present|surprise)",
        r"gave|give|for you|here is|put|made (?:it|me)|loved it|love it|handed|took|thank you",
    ),
}
ENDING = re.compile(
    r"\b(?:end|happy|happily|glad|proud|smiled?|smiling|laughs?|laughed|laughing|home|bed|asleep|sleep|sleeping|night|ever|"
    r"never|always|friends?|friendship|together|learned|thank|thanked|hugged?|hug|love|loved|best|fun|better|safe|"
    r"forgot|remember|remembered|knew|enjoyed|joy|day|cheerful|delighted|pleased|danced|sang|played|warm|well|"
    r"hello|watched|great|wonderful|lovely|perfect|eyes|bedtime|dreams?|dreamed|keeps|kept|sun|understood|saw that|found out|forever|favorite|careful|sorry|promised|evening|"
    r"inside|belonged|good again|for (?:days|weeks))\b"
)


def _check_ending(text, read: list[Sentence]) -> list[Problem]:
    count = sum(len(sentence.words) for sentence in read)
    if not read:
        return [Problem("unfinished", "it is empty", "")]
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
    for label, need in NEEDS.items():
        openings = [
            (number, match.end())
            for number, sentence in enumerate(said)
            for match in need.opens.finditer(sentence)
        ]
        if openings:
            number, end = openings[-1 if need.every_time else 0]
            rest = [said[number][end:], *said[number + 1 :]]
            if not any(need.settles.search(sentence) for sentence in rest):
                unfinished(f"nothing settles what was {label}", read[number].text)
    return problems


_DENIED = re.compile(
    r"\b(?:not|never|nobody was|no longer|thought it was|neither|hardly)(?: (?:be|so|very|too|even|at all|at|all|any|more|and|a|little))* "
    r"(?:afraid|scared|lonely|hungry|broken|torn|lost|gone|sad|wet|dirty|stuck)\b"
)


def _affirmed(sentence: Sentence) -> str:
    """The words in lower case; "not afraid any more" becomes "settled"."""
    return _DENIED.sub("settled", " ".join(word.lower for word in sentence.words))
