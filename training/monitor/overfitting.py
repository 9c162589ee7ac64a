"""Says when a run plainly overfits: it learns its training text by heart.

Either the validation loss rose at two evaluations in a row, by RISE in all, while the training loss fell, in the
second pass over the data or later; or the validation loss is more than GAP above the training loss, in the third
pass or later. The training loss is the mean of its records since the evaluation before.
"""

from collections.abc import Iterable
from statistics import fmean
from typing import Any

RISE = 0.01  # as a share of the loss
GAP = 0.25  # as a share of the loss


class Overfitting:
    """Watches the records of a run.  records: the earlier ones of a run that continues."""

    def __init__(self, records: Iterable[dict[str, Any]] = ()):
        self._losses: list[float] = []  # training losses since the last evaluation
        self._evaluations: list[tuple[float, float]] = []  # validation and training loss
        for record in records:
            self.add(record)

    def add(self, record: dict[str, Any]) -> None:
        """Take in a record of a step or of an evaluation."""
        if "train/loss" in record:
            self._losses.append(float(record["train/loss"]))
        if "val/loss" in record and self._losses:
            self._evaluations.append((record["val/loss"], fmean(self._losses)))
            self._losses = []

    def line(self, epoch: int) -> str:
        """What to say after an evaluation in this epoch, counted from 0; "" if the run does not overfit."""
        if not self._evaluations:
            return ""
        (val, train), what = self._evaluations[-1], ""
        before, between = ([(0.0, 0.0)] * 2 + self._evaluations)[-3:-1]
        rises = 0 < before[0] < between[0] < val and val > (1 + RISE) * before[0]
        if epoch >= 1 and rises and before[1] > between[1] > train:
            what = (
                f"rose to {val:.4f} over two evaluations (before: {before[0]:.4f}), while training loss fell"
            )
        elif epoch >= 2 and val > (1 + GAP) * train:
            what = f"is {val:.4f}, and training loss {train:.4f}"
        return what and (
            f"overfitting: in pass {epoch + 1} over the data, validation loss {what}; use more text, a smaller "
            "model or a shorter run (sample.py --best takes the checkpoint of lowest validation loss)"
        )
