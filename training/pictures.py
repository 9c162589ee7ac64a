"""Pictures for TensorBoard, drawn with matplotlib and returned as pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def heat_map(
    values: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    form: str,
    even: float | None = None,
) -> np.ndarray:
    """values (R, C), each cell with its number in `form` -> (height, width, 3) uint8.

    even: the value drawn white; what is below is blue, above red, and twice as much is full red.
    None: white is 0 and the largest value is full red.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: nothing global
    from matplotlib.figure import Figure

    height, width = values.shape
    # All in inches and placed by hand: a layout engine takes longer than all the drawing.
    cell = 0.55 if width <= 16 else 8.8 / width
    left, right, above, below = 0.07 * max(map(len, rows)) + 0.15, 0.95, 0.32, 0.3
    wide = max(cell * width + left + right, 0.085 * len(title))
    high = 0.3 * height + above + below
    figure = Figure(figsize=(wide, high), dpi=110)
    canvas = FigureCanvasAgg(figure)
    bottom, tall = below / high, 0.3 * height / high
    axes = figure.add_axes((left / wide, bottom, 1 - (left + right) / wide, tall))
    bar = figure.add_axes((1 - (right - 0.1) / wide, bottom, 0.15 / wide, tall))
    top = 2 * even if even is not None else max(float(values.max()), 1e-9)
    colors = "RdBu_r" if even is not None else "Reds"
    picture = axes.imshow(values, cmap=colors, vmin=0, vmax=top, aspect="auto")
    step = math.ceil(width / 32)  # more labels would touch each other
    axes.set_xticks(range(0, width, step), columns[::step], fontsize=8)
    axes.set_yticks(range(height), rows, fontsize=8)
    figure.text(0.5, 1 - 0.5 * above / high, title, fontsize=9, ha="center", va="center")
    if width <= 16:  # beyond that numbers do not fit a cell
        for (row, column), value in np.ndenumerate(values):
            dark = value > 0.8 * top if even is None else not 0.2 * top < value < 0.8 * top
            color = "white" if dark else "black"
            label = form.format(value)
            axes.text(column, row, label, ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(picture, cax=bar, format=lambda value, _: form.format(value))
    bar.tick_params(labelsize=7)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
