"""What is in a picture: one or two groups of shapes on a grid of nine places.

The shapes of a group have one size, color and kind; two groups differ in color and in kind. A picture is made
for a kind of question: first what the answer is, then all else, so that no answer is more frequent than
another, except where the combinations that are held out make a difference.
"""

import hashlib
import random
from typing import NamedTuple

SEED = 0  # seed of all pictures; another value gives other pictures
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "big")
LARGEST_COUNT = 5
LARGEST_COUNT_OF_TWO = 3  # of a group in a picture with two
PLACES = 9  # 3 * row + column, from the top left
# Half of all pictures have a caption. The others share these questions evenly.
QUESTIONS = ("count", "color", "shape", "size", "place", "more", "total", "left", "above")
CAPTION_SHARE = 0.5
TWO_GROUPS_SHARE = 0.6  # among pictures that may have one group or two


class Group(NamedTuple):
    count: int
    size: str
    color: str
    shape: str


class Scene(NamedTuple):
    """A picture before it is drawn.

    groups: the first one is the one that the question asks about.  places: those of each group's shapes.
    yes: what the answer is to a question of yes or no.  seed: of all that only the drawing needs.
    """

    kind: str
    groups: tuple[Group, ...]
    places: tuple[tuple[int, ...], ...]
    yes: bool
    seed: int


def is_held_out(group: Group) -> bool:
    """Whether no training picture has so many shapes of this kind and color."""
    name = f"{group.count} {group.color} {group.shape}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") % 10 == 0


def make_scene(split: str, index: int) -> Scene:
    """Return scene number `index` of train, validation or familiar."""
    draw = random.Random(f"{SEED}/{split}/{index}")
    kind = "caption" if draw.random() < CAPTION_SHARE else draw.choice(QUESTIONS)
    yes = draw.random() < 0.5
    counts = _counts(draw, kind, yes)
    while True:
        groups = _groups(draw, counts)
        held_out = [is_held_out(group) for group in groups]
        if held_out[0] if split == "validation" else not any(held_out):
            break
    return Scene(kind, groups, _places(draw, kind, yes, counts), yes, draw.getrandbits(32))


def _counts(draw, kind, yes):
    """How many shapes each group has."""
    few = range(1, LARGEST_COUNT_OF_TWO + 1)
    if kind in ("left", "above"):
        return 1, 1
    if kind == "more":
        less, more = sorted(draw.sample(few, 2))
        return (more, less) if yes else (less, more)
    if kind == "total":
        total = draw.randint(2, 2 * LARGEST_COUNT_OF_TWO)
        first = draw.choice([n for n in few if total - n in few])
        return first, total - first
    first = 1 if kind == "place" else draw.randint(1, LARGEST_COUNT)
    if first > LARGEST_COUNT_OF_TWO or draw.random() >= TWO_GROUPS_SHARE:
        return (first,)
    return first, draw.choice(few)


def _groups(draw, counts):
    colors, shapes = draw.sample(COLORS, len(counts)), draw.sample(SHAPES, len(counts))
    return tuple(Group(n, draw.choice(SIZES), *look) for n, *look in zip(counts, colors, shapes))


def _places(draw, kind, yes, counts):
    """The places of each group's shapes, no two the same."""
    while True:
        places = draw.sample(range(PLACES), sum(counts))
        first, second = (divmod(place, 3) for place in (places[0], places[-1]))
        axis = {"above": 0, "left": 1}.get(kind)
        if axis is None or first[axis] != second[axis] and (first[axis] < second[axis]) == yes:
            return tuple(tuple(part) for part in (places[: counts[0]], places[counts[0] :]) if part)
