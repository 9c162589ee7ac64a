"""The lexicon of the story world: the characters, things and places of the stories.

The generator chooses from these tables, and the checker watches for their words. Every name, object and
place, with a space in front, is one token of the tokenizers stories4k and bundled1536.
"""

from typing import NamedTuple


class Person(NamedTuple):
    """A character who appears in many stories."""

    name: str
    kind: str  # girl, boy, fox, ..., grandma
    pronoun: str


class Cast(NamedTuple):
    """A hero with the companion, the place and the things of all their stories.

    A name belongs to one cast, and so does a thing, so that each of them determines all the others. A small
    model learns such fixed company long before it learns to copy a word from a hundred words ago.
    """

    hero: Person
    companion: Person  # has the other gender, so that he and she are never ambiguous
    place: str
    thing: str
    food: str | None = None  # shared with a hungry friend


GROWN_UPS = {"Mom": "she", "Dad": "he", "Grandma": "she", "Grandpa": "he"}


def _friends(line: str) -> Cast:
    hero, kind, companion, other_kind, place, thing, *food = line.split()
    return Cast(_person(hero, kind), _person(companion, other_kind), place, thing, *food)


def _family(line: str) -> Cast:
    hero, kind, grown_up, place, thing = line.split()
    companion = Person(grown_up, grown_up.lower(), GROWN_UPS[grown_up])
    return Cast(_person(hero, kind), companion, place, thing)


def _person(name, kind):
    return Person(name, kind, "she" if kind == "girl" or name in _SHE_ANIMALS else "he")


_SHE_ANIMALS = ("Fluffy", "Momo", "Remy")
_FRIENDS = (
    "Lily girl Tim boy park kite apple",
    "Ben boy Sue girl garden bike pie",
    "Mia girl Max boy forest plane carrot",
    "Sam boy Lucy girl farm bucket pear",
    "Anna girl Tom boy yard wagon cake",
    "Jack boy Emma girl field book cookie",
    "Molly girl Leo boy playground scarf banana",
    "Spot dog Fluffy rabbit meadow crown sandwich",
    "Momo mouse Rex fox hill train muffin",
    "Bobo bear Remy squirrel river robot treat",
)
_FAMILIES = (
    "Jill girl Grandpa park hat",
    "Billy boy Grandma yard drum",
    "Daisy girl Dad field teddy",
    "Toby boy Mom garden boat",
)
CASTS = (*map(_friends, _FRIENDS), *map(_family, _FAMILIES))
PEOPLE = tuple(person for cast in CASTS for person in cast[:2] if person.name not in GROWN_UPS)
NAMES = frozenset(person.name for person in PEOPLE)
ANIMALS = tuple(person.kind for person in PEOPLE if person.kind not in ("girl", "boy"))
# Names and animals of other stories, which the checker also watches for.
OTHER_NAMES = {
    **dict.fromkeys("Lisa Sara Sally Jane Bella Luna Ella Jenny Emily Mary".split(), "she"),
    **dict.fromkeys("Bob John Joe Andy Jake Fred Pete Danny Tommy Timmy".split(), "he"),
}
OTHER_ANIMALS = "cat duck frog owl pig turtle".split()

PLACES = {  # name: the preposition for being there
    "park": "in",
    "garden": "in",
    "forest": "in",
    "farm": "on",
    "yard": "in",
    "field": "in",
    "playground": "at",
    "meadow": "in",
    "hill": "on",
    "river": "by",
}

COLORS = "red blue green yellow pink white purple brown".split()
SIZES = "big little tiny".split()
LOOKS = "shiny soft old new pretty round wooden warm sweet fresh nice tasty".split()

# What can be done with an object decides which plots it fits:
# l  it is small enough to lose and to find      u  it is light enough to end up in a tree
# b  it breaks, and can be mended                d  it gets dirty, and can be washed
# w  rain spoils it, and it dries                s  two can share it
# m  a child can make it for somebody            c  something can hide inside
OBJECTS = {  # name: how it looks in every story, what can be done with it
    "kite": ("red", "lubwsm"),
    "drum": ("big", "lbsm"),
    "boat": ("little", "lbdsm"),
    "train": ("brown", "lbs"),
    "robot": ("shiny", "lbs"),
    "plane": ("white", "lubsm"),
    "crown": ("yellow", "lubm"),
    "hat": ("purple", "ludwm"),
    "scarf": ("pink", "ludwm"),
    "teddy": ("soft", "ldws"),
    "book": ("new", "lws"),
    "bucket": ("blue", "cs"),
    "bike": ("red", "bds"),
    "wagon": ("wooden", "bdsc"),
}
# Objects of other stories, which the checker also watches for.
OTHER_OBJECTS = (
    "ball doll car truck flute necklace cup basket umbrella flag guitar box bag balloon shell blanket"
).split()
# The verb for each thing that takes practice: plain, -ing form, past.
SKILLS = {
    "bike": ("ride", "riding", "rode"),
    "kite": ("fly", "flying", "flew"),
    "drum": ("play", "playing", "played"),
    "plane": ("fly", "flying", "flew"),
}
FOODS = {
    "apple": "red",
    "cookie": "round",
    "cake": "little",
    "pie": "warm",
    "pear": "green",
    "carrot": "big",
    "banana": "sweet",
    "sandwich": "fresh",
    "muffin": "nice",
    "treat": "tasty",
}
