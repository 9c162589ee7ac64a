"""Draw a scene: shapes with smooth edges on a plain, light background.

The coverage of each pixel is counted on a grid of SAMPLES x SAMPLES points. Shapes stand at multiples of a
quarter of a pixel, so that few different masks are ever needed, and each is made once.
"""

import functools
import math
import random

import numpy as np

from data.pictures.scenes import COLORS, Scene

RGB = dict(
    zip(
        COLORS,
        [(220, 40, 40), (245, 140, 20), (245, 220, 40), (45, 160, 70), (45, 95, 220), (130, 60, 180)]
        + [(250, 150, 200), (25, 25, 25)],
    )
)
SHADE = 8  # how much a color differs from RGB at most
LIGHTEST, DARKEST = 255, 228  # bounds of the gray of the background
DIAMETER = {"small": 0.46, "big": 0.78}  # in widths of a place, as JITTER is
JITTER = 0.07  # how far a shape is from the middle of its place at most
SAMPLES, STEPS = 8, 4  # STEPS: positions of a shape in a pixel, along each axis


def draw_scene(scene: Scene, size: int) -> np.ndarray:
    """Return the picture, (3, size, size) uint8. The same scene gives the same picture."""
    draw = random.Random(scene.seed)
    canvas = np.empty((3, size, size), np.float32)
    canvas[:] = draw.randint(DARKEST, LIGHTEST)
    cell = size / 3
    for group, places in zip(scene.groups, scene.places):
        shade = [min(max(channel + draw.randint(-SHADE, SHADE), 0), 255) for channel in RGB[group.color]]
        color = np.array(shade, np.float32)[:, None, None]
        for place in places:
            corner, phase = [], []
            for cells in divmod(place, 3):  # y, then x
                middle = (cells + 0.5 + draw.uniform(-JITTER, JITTER)) * cell
                start = round((middle - DIAMETER[group.size] * cell / 2) * STEPS)
                corner.append(start // STEPS)
                phase.append(start % STEPS)
            cover = mask(group.shape, DIAMETER[group.size] * cell, *phase)
            part = canvas[:, corner[0] : corner[0] + len(cover), corner[1] : corner[1] + len(cover)]
            part += (color - part) * cover[: part.shape[1], : part.shape[2]]
    return (canvas + 0.5).astype(np.uint8)


@functools.lru_cache(maxsize=4096)
def mask(shape: str, diameter: float, down: int, right: int) -> np.ndarray:
    """Return the share of each pixel that a shape covers, square float32.

    diameter: in pixels.  down, right: where its box begins in the first pixel, in steps of a pixel.
    """
    pixels = math.ceil(diameter + 1)
    points = (np.arange(pixels * SAMPLES) + 0.5) / SAMPLES
    y, x = (2 * (points - start / STEPS) / diameter - 1 for start in (down, right))
    inside = INSIDE[shape](*np.broadcast_arrays(x, y[:, None]))
    return inside.reshape(pixels, SAMPLES, pixels, SAMPLES).mean((1, 3), dtype=np.float32)


def in_star(x, y):
    """A star of five points, whose inner corners are at 0.45 of the radius."""
    fifth = math.tau / 5
    angle = np.abs((np.arctan2(x, -y) + fifth / 2) % fifth - fifth / 2)  # from the nearest point
    radius = np.hypot(x, y)
    corner_x, corner_y = 0.45 * math.cos(fifth / 2), 0.45 * math.sin(fifth / 2)
    return (corner_x - 1) * radius * np.sin(angle) >= corner_y * (radius * np.cos(angle) - 1)


# Whether points are inside a shape whose box is from -1 to 1 along both axes; y points down.
INSIDE = {
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.85,
    "triangle": lambda x, y: (y <= 0.85) & (abs(x) <= (y + 1) / 1.85),
    "star": in_star,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.34) & (np.maximum(abs(x), abs(y)) <= 1),
    "ring": lambda x, y: (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.3),
}
