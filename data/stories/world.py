"""The lexicon of the story world: who can be in a story, what they hold, where they go.

The generator chooses from these tables and the checker watches for the words in them; every name,
object and place is one token of the tokenizer stories4k with a space in front.
"""

from typing import NamedTuple


class Person(NamedTuple):
    """Somebody who comes again from story to story."""

    name: str
    kind: str
    pronoun: str
    grown_up: str = ""  # who helps a child


class Row(NamedTuple):
    """Two who belong together, the place where they are at home, and what is theirs alone.

    Every name, place and thing is in one row, so that any of them tells the others: a small model
    learns such company long before it learns to copy a word it saw a hundred words ago.
    """

    one: Person
    other: Person
    place: str
    things: tuple[str, ...]
    food: str

    def owner(self, thing: str) -> Person:
        """Whose story it is: the first and third thing are one's, the second and the food the other's."""
        return self.other if thing in (self.things[1], self.food) else self.one


def _children(line: str) -> Row:
    girl, her_grown_up, boy, his_grown_up, place, *things, food = line.split()
    one, other = Person(girl, "girl", "she", her_grown_up), Person(boy, "boy", "he", his_grown_up)
    return Row(one, other, place, tuple(things), food)


def _creatures(line: str) -> Row:
    he, his_kind, she, her_kind, place, *things, food = line.split()
    return Row(Person(he, his_kind, "he"), Person(she, her_kind, "she"), place, tuple(things), food)


CHILDREN = tuple(
    _children(line)
    for line in (
        "Lily Grandpa Tim Mom park kite truck box apple",
        "Sue Dad Ben Grandma garden hat bike basket pie",
        "Mia Grandpa Max Mom forest plane teddy bag carrot",
        "Lucy Dad Sam Grandma farm ball guitar bucket pear",
        "Anna Grandpa Tom Grandma yard scarf car wagon cake",
        "Emma Dad Jack Mom field umbrella book drum cookie",
        "Molly Grandpa Leo Grandma playground balloon boat blanket banana",
    )
)
CREATURES = tuple(
    _creatures(line)
    for line in (
        "Spot dog Fluffy rabbit meadow crown doll necklace sandwich",
        "Rex fox Momo mouse hill flag train flute muffin",
        "Bobo bear Remy squirrel river robot cup shell treat",
    )
)
ROWS = CHILDREN + CREATURES
PEOPLE = tuple(person for row in ROWS for person in row[:2])
NAMES = frozenset(person.name for person in PEOPLE)
ANIMALS = tuple(person.kind for person in PEOPLE if person.kind not in ("girl", "boy"))
# Who other stories tell of; the checker watches for them, too.
OTHER_NAMES = {
    **dict.fromkeys(
        "Lisa Sara Sally Jane Daisy Bella Jill Luna Ella Jenny Emily Mary".split(), "she"
    ),
    **dict.fromkeys("Bob John Joe Billy Andy Jake Fred Pete Danny Toby Tommy Timmy".split(), "he"),
}
OTHER_ANIMALS = "cat duck frog owl pig turtle".split()
GROWN_UPS = {"Mom": "she", "Dad": "he", "Grandma": "she", "Grandpa": "he"}


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
    "ball": ("blue", "luds"),
    "doll": ("pretty", "lbds"),
    "drum": ("big", "lbsm"),
    "boat": ("little", "lbdsm"),
    "car": ("green", "lbds"),
    "truck": ("yellow", "lbds"),
    "train": ("brown", "lbs"),
    "robot": ("shiny", "lbs"),
    "plane": ("white", "lubsm"),
    "flute": ("old", "ls"),
    "crown": ("yellow", "lubm"),
    "hat": ("purple", "ludwm"),
    "scarf": ("pink", "ludwm"),
    "teddy": ("soft", "ldws"),
    "book": ("new", "lws"),
    "bucket": ("blue", "cs"),
    "shell": ("white", "l"),
    "necklace": ("pink", "lm"),
    "cup": ("green", "lbm"),
    "basket": ("round", "cm"),
    "umbrella": ("red", "lub"),
    "blanket": ("soft", "dws"),
    "flag": ("blue", "lum"),
    "bike": ("red", "bds"),
    "wagon": ("wooden", "bdsc"),
    "guitar": ("brown", "bs"),
    "box": ("big", "c"),
    "bag": ("old", "cd"),
    "balloon": ("green", "us"),
}
# How each thing that takes practice is used, and what it is called when it works.
SKILLS = {
    "bike": ("ride", "riding", "rode"),
    "kite": ("fly", "flying", "flew"),
    "drum": ("play", "playing", "played"),
    "flute": ("play", "playing", "played"),
    "guitar": ("play", "playing", "played"),
    "ball": ("throw", "throwing", "threw"),
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
