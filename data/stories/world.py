"""The lexicon of the story world: who can be in a story, what they hold, where they go.

The generator chooses from these tables and the checker watches for the words in them; every name,
object and place is one token of the tokenizer stories4k with a space in front.
"""

from typing import NamedTuple


class Person(NamedTuple):
    """Somebody who comes again from story to story."""

    name: str
    kind: str  # girl, boy, fox, ..., grandma
    pronoun: str


class Cast(NamedTuple):
    """Whose stories are told: a hero, who is always with them, where they are at home, what is theirs.

    A name plays one part in one cast, and a thing belongs to one cast, so that either tells all the
    others: a small model learns such company long before it learns to copy a word it saw a hundred
    words ago.
    """

    hero: Person
    companion: Person  # of the other gender, so that he and she are never in doubt
    place: str
    thing: str
    food: str | None = None  # what the hero shares with a hungry friend


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
CASTS = (
    *(
        _friends(line)
        for line in (
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
    ),
    *(
        _family(line)
        for line in (
            "Jill girl Grandpa park hat",
            "Billy boy Grandma yard drum",
            "Daisy girl Dad field teddy",
            "Toby boy Mom garden boat",
        )
    ),
)
PEOPLE = tuple(person for cast in CASTS for person in cast[:2] if person.name not in GROWN_UPS)
NAMES = frozenset(person.name for person in PEOPLE)
ANIMALS = tuple(person.kind for person in PEOPLE if person.kind not in ("girl", "boy"))
# Who other stories tell of; the checker watches for them, too.
OTHER_NAMES = {
    **dict.fromkeys("Lisa Sara Sally Jane Bella Luna Ella Jenny Emily Mary".split(), "she"),
    **dict.fromkeys("Bob John Joe Andy Jake Fred Pete Danny Tommy Timmy".split(), "he"),
}
OTHER_ANIMALS = "cat duck frog owl pig turtle".split()

PLACES = {  # with the preposition for being there
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

# What can be done with an object decides which plots it fits; the letters are explained by USES.
USES = {
    "l": "small enough to lose and to find",
    "u": "light enough to end up in a tree",
    "b": "breaks, and can be mended",
    "d": "gets dirty, and can be washed",
    "w": "is spoiled by rain, and dries",
    "s": "two can share it",
    "m": "a child can make it for somebody",
    "c": "something can hide inside",
}
OBJECTS = {  # how it looks, in every story, and what can be done with it
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
# What other stories have; the checker watches for them, too.
OTHER_OBJECTS = (
    "ball doll car truck flute necklace cup basket umbrella flag guitar box bag balloon shell blanket"
).split()
# How each thing that takes practice is used, and what it is called when it works.
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
