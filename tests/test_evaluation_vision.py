"""evaluation/vision.py: the interval, the controls, the rows of the table."""

import math

import pytest
import torch

from common.intervals import wilson_interval
from evaluation import vision
from training.monitor.routing import Routing, share_by_medium, total_variation

KINDS = [("caption", "a red ring")] * 3 + [("caption", "a blue ring"), ("count", " two"), ("count", " two")]
KINDS += [("more", " yes"), ("more", " no"), ("count", " one")]


@pytest.mark.parametrize("right, number", [(0, 7), (7, 7), (3, 7), (917, 1000)])
def test_the_interval_is_that_of_wilson(right, number):
    share, weight = right / number, 1.959963984540054**2 / number
    middle = share + weight / 2
    half = math.sqrt(share * (1 - share) * weight + weight * weight / 4)
    expected = (middle - half) / (1 + weight), (middle + half) / (1 + weight)
    assert wilson_interval(right, number) == pytest.approx(expected, abs=1e-12)


def test_swapped_images_are_those_of_another_document_with_as_many():
    images = [(f"{n}a", f"{n}b") if n % 3 == 0 else (f"{n}a",) for n in range(11)]
    swapped = vision.swapped(images)
    assert sorted(swapped) == sorted(images)
    assert all(len(own) == len(other) and own != other for own, other in zip(images, swapped))
    assert vision.swapped([("a",), ("b", "c")]) == [("a",), ("b", "c")]  # no partner


def test_a_row_counts_its_kind_and_chance_is_the_best_constant_of_each_kind():
    exact = [True, True, False, True, True, False, True, True, False]
    rows = {row["kind"]: row for row in vision.table(KINDS, {"exact": exact, "zeroed": [False] * 9})}
    assert list(rows) == ["caption", "count", "more", "all answers"]
    assert [rows[kind]["documents"] for kind in rows] == [4, 3, 2, 5]
    assert [rows[kind]["exact"]["share"] for kind in rows] == [3 / 4, 1 / 3, 1.0, 3 / 5]
    assert [rows[kind]["chance"] for kind in rows] == [3 / 4, 2 / 3, 1 / 2, 3 / 5]
    assert rows["caption"]["constant"] == "a red ring" and "constant" not in rows["all answers"]
    assert rows["count"]["zeroed"]["share"] == 0 and rows["more"]["exact"]["interval"][1] == 1


def test_the_table_shows_shares_intervals_and_the_distance_of_each_layer():
    rows = vision.table(KINDS, {name: [True] * 9 for name in ("exact", "zeroed", "swapped")})
    layer = {"layer": 2, "distance": 0.25, "text": [0.5, 0.5], "image": [0.75, 0.25]}
    text = vision.as_text({"splits": {"validation": rows}, "routing": [layer]})
    low = wilson_interval(4, 4)[0]
    assert f"100.0% ({low:.1%} to 100.0%)" in text and " 75.0%" in text  # exact match and chance of captions
    assert "layer 2: distance 0.250   experts: text 50% 50%   image 75% 25%" in text


def test_routing_is_counted_for_text_and_images_apart():
    tokens = torch.tensor([1, 9, 4, 12, 3], dtype=torch.int32)  # ids from 9 on are of images
    choices = torch.tensor(
        [[[0, 1], [2, 3], [0, 2], [2, 3], [1, 3]], [[0, 1], [0, 1], [0, 1], [0, 2], [0, 1]]]
    )
    load = torch.zeros(2, 4, dtype=torch.float64)
    text, image = share_by_medium(Routing(load, load[:, 0], load[:, 0], (0, 1), choices, tokens), 9)
    sixth = torch.tensor([[2, 2, 1, 1], [3, 3, 0, 0]], dtype=torch.float64) / 6
    torch.testing.assert_close(text, sixth, rtol=0, atol=1e-15)
    torch.testing.assert_close(image, torch.tensor([[0, 0, 2, 2], [2, 1, 1, 0]]).double() / 4)
    distance = total_variation(text, image)
    assert distance.tolist() == pytest.approx([4 / 6, 1 / 4]) and math.isclose(
        float(total_variation(text, text).sum()), 0
    )


@pytest.mark.parametrize(
    "flags, message",
    [(["x", "--number", "1"], "--number must be at least 2, got 1"),
     (["x", "--batch_size", "0"], "--batch_size must be at least 1, got 0")],
)  # fmt: skip
def test_bad_flags_give_one_sentence(flags, message):
    with pytest.raises(ValueError, match=message):
        vision.parse(flags)
