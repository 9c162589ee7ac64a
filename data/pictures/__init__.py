"""Pictures of colored shapes with captions, questions and answers: no network, the same on every machine.

    from data.pictures import item
    made = item("train", 7, size=48)
    made.image, made.prompt, made.text, made.kind

scenes.py decides what is in a picture, words.py tells it, draw.py draws it. A tenth of the combinations of
count, color and shape are held out, by a hash: no picture of `train` and `familiar` has one, and each picture
of `validation` has one, about which its question asks.
"""

from typing import NamedTuple

import numpy as np

from data.pictures.draw import draw_scene
from data.pictures.scenes import Scene, make_scene
from data.pictures.words import tell

VERSION = 1  # version of all pictures; a run resumes only on the version that it began with
COUNTS = {"train": 200_000, "validation": 5_000, "familiar": 5_000}  # pictures of each split


class Item(NamedTuple):
    image: np.ndarray  # (3, size, size) uint8
    prompt: str
    text: str
    kind: str
    scene: Scene


def item(split: str, index: int, size: int) -> Item:
    """Return picture number `index` of a split, size pixels high and wide."""
    scene = make_scene(split, index)
    return Item(draw_scene(scene, size), *tell(scene), scene.kind, scene)


__all__ = ["COUNTS", "VERSION", "Item", "item"]
