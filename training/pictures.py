"""Pictures for TensorBoard, drawn with matplotlib and returned as pixels."""

from __future__ import annotations

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
    cell = 0.55 if width <= 16 else 8.8 / width  # inches
    margin = 0.09 * max(map(len, rows)) + 0.3
    figure = Figure(
        figsize=(max(cell * width + margin + 1.2, 0.085 * len(title)), 0.3 * height + 1.1),
        dpi=110,
        layout="constrained",
    )
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    top = 2 * even if even is not None else max(float(values.max()), 1e-9)
    colors = "RdBu_r" if even is not None else "Reds"
    picture = axes.imshow(values, cmap=colors, vmin=0, vmax=top, aspect="auto")
    axes.set_xticks(range(width), columns, fontsize=8)
    axes.set_yticks(range(height), rows, fontsize=8)
    axes.set_title(title, fontsize=9)
    if width <= 16:  # beyond that numbers do not fit a cell
        for (row, column), value in np.ndenumerate(values):
            dark = value > 0.8 * top if even is None else not 0.2 * top < value < 0.8 * top
            color = "white" if dark else "black"
            label = form.format(value)
            axes.text(column, row, label, ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(picture, format=lambda value, _: form.format(value)).ax.tick_params(labelsize=7)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
