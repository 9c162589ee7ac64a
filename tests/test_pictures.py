"""The pictures of data/pictures: a reader of pixels finds in each what its words say, and nothing is held out
in vain."""

import hashlib
import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from scipy import ndimage

from data.pictures import COUNTS, item
from data.pictures.scenes import make_scene
from data.pictures.words import tell

SIZE = 180
# Colors and shapes as this test knows them: names of CSS, and the share of its box that a shape fills.
COLORS = {
    "red": (255, 0, 0), "orange": (255, 165, 0), "yellow": (255, 255, 0), "green": (0, 128, 0),
    "blue": (0, 0, 255), "purple": (128, 0, 128), "pink": (255, 192, 203), "black": (0, 0, 0),
}  # fmt: skip
FILLS = {"star": 0.384, "cross": 0.564, "circle": 0.785, "square": 1.0}
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six"]
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")


class Seen(NamedTuple):
    color: str
    shape: str
    size: str
    row: int
    column: int


def look(image: np.ndarray) -> list[Seen]:
    """What is in a picture, from its pixels alone."""
    pixels = image.transpose(1, 2, 0).astype(float)
    difference = np.linalg.norm(pixels - pixels[0, 0], axis=2)
    labels, count = ndimage.label(difference > 20, structure=np.ones((3, 3)))  # corners touch, too
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        mine = labels[rows, columns] == number
        color = np.median(pixels[rows, columns][mine], axis=0)
        # at least half a pixel
        inside = mine * difference[rows, columns] > np.linalg.norm(color - pixels[0, 0]) / 2
        inside = inside[inside.any(1)][:, inside.any(0)]
        (height, width), fill = inside.shape, inside.mean()
        shape = min(FILLS, key=lambda name: abs(FILLS[name] - fill))
        if not inside[height // 2, width // 2]:
            shape = "ring"
        elif inside[height // 2 :].mean() - inside[: height // 2].mean() > 0.35:
            shape = "triangle"
        found.append(
            Seen(
                min(COLORS, key=lambda name: np.linalg.norm(color - COLORS[name])),
                shape,
                "big" if width > SIZE * 0.2 else "small",
                int((rows.start + height / 2) * 3 / SIZE),
                int((columns.start + width / 2) * 3 / SIZE),
            )
        )
    assert len(found) == count
    return found


def place_of(one: Seen) -> str:
    row, column = ROWS[one.row], COLUMNS[one.column]
    if row == column == "middle":
        return "in the middle"
    if row == "middle":
        return f"on the {column}"
    return f"at the {row}" if column == "middle" else f"at the {row} {column}"


def singular(word: str) -> str:
    return {"crosses": "cross"}.get(word, word.removesuffix("s") if word != "cross" else word)


def groups_of(caption: str) -> Counter:
    """(color, shape, size) of every shape that a caption without a place tells of."""
    found = Counter()
    for part in caption.split(" and "):
        count, size, color, shape = part.split()
        number = 1 if count == "a" else NUMBERS.index(count)
        assert (number == 1) == (singular(shape) == shape)
        found[color, singular(shape), size] += number
    return found


def answer_of(question: str, seen: list[Seen]) -> str:
    """The answer to a question about what was seen."""

    def of(word):
        return [one for one in seen if one.shape == singular(word)]

    if question == "How many shapes are there?":
        return NUMBERS[len(seen)]
    if found := re.fullmatch(r"How many (\w+) are there\?", question):
        return NUMBERS[len(of(found[1]))]
    if found := re.fullmatch(r"What color (?:is|are) the (\w+)\?", question):
        (answer,) = {one.color for one in of(found[1])}
    elif found := re.fullmatch(r"Which shape is (\w+)\?", question):
        (answer,) = {one.shape for one in seen if one.color == found[1]}
    elif found := re.fullmatch(r"(?:Is|Are) the (\w+) small or big\?", question):
        (answer,) = {one.size for one in of(found[1])}
    elif found := re.fullmatch(r"Where is the (\w+)\?", question):
        (one,) = of(found[1])
        answer = place_of(one)
    elif found := re.fullmatch(r"Are there more (\w+) than (\w+)\?", question):
        first, second = (len(of(word)) for word in found.groups())
        assert 0 < first != second > 0
        answer = "yes" if first > second else "no"
    else:
        found = re.fullmatch(r"Is the (\w+) (left of|above) the (\w+)\?", question)
        (first,), (second,) = of(found[1]), of(found[3])
        axis = "column" if found[2] == "left of" else "row"
        assert getattr(first, axis) != getattr(second, axis)
        answer = "yes" if getattr(first, axis) < getattr(second, axis) else "no"
    return answer


@pytest.mark.parametrize("split", COUNTS)
def test_a_reader_of_pixels_finds_what_the_words_say(split):
    kinds = set()
    for index in range(72):
        made = item(split, index, SIZE)
        seen = look(made.image)
        kinds.add(made.kind)
        if made.prompt:
            question = re.fullmatch(r"Question: (.+) Answer:", made.prompt)[1]
            assert made.text == " " + answer_of(question, seen), (index, question, seen)
        elif len(seen) == 1:
            (one,) = seen
            assert made.text == f"a {one.size} {one.color} {one.shape} {place_of(one)}"
        else:
            assert groups_of(made.text) == Counter(one[:3] for one in seen), (index, made.text)
    assert len(kinds) == 10


def test_a_caption_names_two_groups_in_one_fixed_order():
    order = list(COLORS)
    found = 0
    for index in range(0, 300, 2):
        _, caption = tell(make_scene("train", index))
        colors = [part.split()[2] for part in caption.split(" and ")] if " and " in caption else []
        found += bool(colors)
        assert colors == sorted(colors, key=order.index)
    assert found > 30


def combinations(split: str, number: int) -> list[set[tuple]]:
    scenes = (make_scene(split, index) for index in range(number))
    return [{(group.count, group.color, group.shape) for group in scene.groups} for scene in scenes]


def test_a_tenth_of_the_combinations_is_in_validation_alone():
    every = {
        (n, color, shape) for n in range(1, 6) for color in COLORS for shape in [*FILLS, "triangle", "ring"]
    }
    held_out = set()
    for n, color, shape in every:
        digest = hashlib.blake2b(f"{n} {color} {shape}".encode(), digest_size=8).digest()
        if int.from_bytes(digest, "big") % 10 == 0:
            held_out.add((n, color, shape))
    assert (len(every), len(held_out)) == (240, 25)
    train, familiar = set().union(*combinations("train", 4000)), combinations("familiar", 1000)
    assert train == every - held_out  # each of the others is trained on
    assert all(there <= every - held_out for there in familiar)
    validation = combinations("validation", 1000)
    assert all(there & held_out for there in validation)
    assert set().union(*validation) >= held_out
    # What makes a combination is in training pictures, if not together.
    for place in range(3):
        assert {known[place] for known in train} == {known[place] for known in every}


def test_a_question_of_validation_asks_about_what_is_held_out():
    for index in range(1, 400, 2):
        scene = make_scene("validation", index)
        first = scene.groups[0]
        prompt, text = tell(scene)
        assert first.shape in prompt + text or first.color in prompt or scene.kind == "total"


@pytest.mark.parametrize("split", COUNTS)
def test_the_most_frequent_answer_is_right_as_often_as_chance(split):
    answers = {}
    for index in range(1, 1620, 2):  # 90 answers to each kind of question
        scene = make_scene(split, index)
        answers.setdefault(scene.kind, Counter())[tell(scene)[1]] += 1
    chance = {"count": 5, "total": 5, "size": 2, "place": 9, "more": 2, "left": 2, "above": 2}
    for kind, number in chance.items():
        assert sorted(answers[kind].values()) == [90 // number] * number, kind
    assert sum(answers["color"].values()) == sum(answers["shape"].values()) == 90


def test_a_picture_depends_on_its_split_and_number_alone():
    """A change of these bytes needs another VERSION, since a run would resume on other pictures."""
    digest = hashlib.sha256()
    for split in COUNTS:
        for index in (0, 1, 17, 4999):
            made = item(split, index, 48)
            assert made.image.shape == (3, 48, 48) and made.image.dtype == np.uint8
            digest.update(made.image.tobytes() + f"{made.prompt}{made.text}{made.kind}".encode())
    assert digest.hexdigest() == "9e91f5b4dbe5815a4b3955d9bd4a1b98819acafb10f2887abf01941e0df2bb80"


def test_a_smaller_picture_is_the_same_picture():
    """The mean of blocks of 5 x 5 pixels of a large picture is close to the small one, whatever is in it."""
    for index in range(40):
        large, small = (item("train", index, size).image.astype(float) for size in (240, 48))
        means = large.reshape(3, 48, 5, 48, 5).mean((2, 4))
        assert abs(means - small).mean() < 2.5
        other = item("train", index + 1, 48).image
        assert abs(means - other).mean() > 2.5
