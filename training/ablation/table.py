"""Tables of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from training.ablation.statistics import Summary


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown that is also read as it stands: names to the left, the rest to the right, padded."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    # a rule of a column is a hyphen and a colon at least
    first, *rest = (max(2, *map(len, column)) for column in zip(*cells))
    lines = [
        [row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], rest))]
        for row in cells
    ]
    lines.insert(1, ["-" * first, *("-" * (width - 1) + ":" for width in rest)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_interval(found: Summary, digits: int = 4, scale: float = 1) -> str:
    """Mean and half width of the 95 % interval, where several values give one."""
    mean, _, half_width = (scale * value for value in found)
    interval = "" if math.isnan(half_width) else f" +- {half_width:.{digits}f}"
    return f"{mean:.{digits}f}{interval}"
