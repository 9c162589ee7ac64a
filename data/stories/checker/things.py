"""The things of the story: each is introduced, and keeps its color, size and age."""

import re
from collections import defaultdict

from data.stories import world
from data.stories.checker.noun_phrases import INDEFINITE, determiner_of, is_joined
from data.stories.checker.report import Problem
from data.stories.reading import Sentence, in_lower_case

TOOLS = "ladder broom pole rope glue wire hammer needle umbrella key net".split()
OBJECTS = {*TOOLS, *world.OBJECTS, *world.OTHER_OBJECTS, *world.FOODS}
PLURALS = {noun + "s": noun for noun in OBJECTS} | {"boxes": "box", "scarves": "scarf"}
CLASSES = {
    "color": {*world.COLORS, "orange", "black", "gray", "grey"},
    "big": {"big", "large", "huge"},
    "little": {"little", "tiny", "small"},
    "old": {"old"},
    "new": {"new"},
    "material": set("wooden metal plastic glass stone golden gold silver iron paper rubber".split()),
    "soft": {"soft"},
    "hard": {"hard"},
    "round": {"round"},
    "square": {"square"},
    "sweet": {"sweet"},
    "sour": {"sour", "bitter", "salty"},
    "fresh": {"fresh"},
    "stale": {"stale", "rotten"},
    "warm": {"warm", "hot"},
    "cold": {"cold", "frozen"},
    "shiny": {"shiny"},
    "dull": {"dull", "rusty"},
}
CLASS_OF = {adjective: name for name, members in CLASSES.items() for adjective in members}
_PAIRS = "big little,old new,soft hard,round square,sweet sour,fresh stale,warm cold,shiny dull"
OPPOSITE = {}
for _one, _other in map(str.split, _PAIRS.split(",")):
    OPPOSITE |= {_one: _other, _other: _one}
EXCLUSIVE = ("color", "material")  # a thing has only one of them


def check_objects(read: list[Sentence]) -> list[Problem]:
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
            determiner, adjectives, exclaimed = determiner_of(words, i)
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
        and is_joined(words, i + 1)
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
        if (name in EXCLUSIVE and same and adjective not in same) or (opposite and not same):
            before = min(same or opposite)
            problems.append(Problem("adjective", f"the {before} {noun} is now {adjective}", sentence.text))
        else:
            same.add(adjective)
    return problems


_IT_IS = re.compile(r"\b(?:it is|something) (" + "|".join(sorted(world.COLORS)) + r")\b")


def _color_problems(told, sentence):
    """ "It is red" contradicts the color of the only thing in the story that has one."""
    match = _IT_IS.search(in_lower_case(sentence))
    colored = [(noun, known["color"]) for noun, known in told.items() if known["color"]]
    if match and len(colored) == 1 and match[1] not in colored[0][1]:
        noun, colors = colored[0]
        return [Problem("adjective", f"the {min(colors)} {noun} is now {match[1]}", sentence.text)]
    return []
