"""What is in a picture: one or two groups of shapes on a grid of nine places.

The shapes of a group have one size, color and kind; two groups differ in color and in kind. A picture is made
for a caption or for a question, in turns, and so are the answers to a question, except for colors and kinds,
which depend on the combinations that are held out. So the share of the most frequent answer is known.
"""

import hashlib
import random
from typing import NamedTuple

SEED = 0  # seed of all pictures; another value gives other pictures
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "big")
LARGEST_COUNT = 5
LARGEST_COUNT_OF_TWO = 3  # where a picture has two groups, the most shapes in each
PLACES = 9  # 3 * row + column, from the top left
# Every second picture has a caption. The others have these questions in turn.
QUESTIONS = ("count", "color", "shape", "size", "place", "more", "total", "left", "above")
TWO_GROUPS_SHARE = 0.6  # among pictures that may have one group or two


class Group(NamedTuple):
    count: int
    size: str
    color: str
    shape: str


class Scene(NamedTuple):
    """A picture before it is drawn.

    groups: the first one is the one that the question asks about.  places: those of each group's shapes.
    yes: the answer to a question of yes or no.  seed: of all that only the drawing needs.
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
    turn, number = divmod(index // 2, len(QUESTIONS))
    kind = QUESTIONS[number] if index % 2 else "caption"
    yes = turn % 2 == 0
    while True:
        counts = _counts(draw, kind, turn)
        groups = _groups(draw, counts)
        if kind == "size":
            groups = groups[0]._replace(size=SIZES[turn % len(SIZES)]), *groups[1:]
        held_out = [is_held_out(group) for group in groups]
        if held_out[0] if split == "validation" else not any(held_out):
            break
    return Scene(kind, groups, _places(draw, kind, turn, counts), yes, draw.getrandbits(32))


def _counts(draw, kind, turn):
    """How many shapes each group has."""
    few = range(1, LARGEST_COUNT_OF_TWO + 1)
    if kind in ("left", "above"):
        return 1, 1
    if kind == "more":
        less, more = sorted(draw.sample(few, 2))
        return (more, less) if turn % 2 == 0 else (less, more)
    if kind == "total":
        total = 2 + turn % (2 * LARGEST_COUNT_OF_TWO - 1)
        first = draw.choice([n for n in few if total - n in few])
        return first, total - first
    first = 1 if kind == "place" else draw.randint(1, LARGEST_COUNT)
    if kind == "count":
        first = 1 + turn % LARGEST_COUNT
    if first > LARGEST_COUNT_OF_TWO or draw.random() >= TWO_GROUPS_SHARE:
        return (first,)
    return first, draw.choice(few)


def _groups(draw, counts):
    colors, shapes = draw.sample(COLORS, len(counts)), draw.sample(SHAPES, len(counts))
    return tuple(Group(n, draw.choice(SIZES), *look) for n, *look in zip(counts, colors, shapes))


def _places(draw, kind, turn, counts):
    """The places of each group's shapes, no two the same."""
    while True:
        places = draw.sample(range(PLACES), sum(counts))
        if kind in ("left", "above"):
            first, second = (divmod(place, 3)[kind == "left"] for place in places)  # row or column
            fits = first < second if turn % 2 == 0 else first > second
        else:
            fits = kind != "place" or places[0] == turn % PLACES
        if fits:
            return tuple(tuple(part) for part in (places[: counts[0]], places[counts[0] :]) if part)
