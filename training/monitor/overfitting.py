"""Says when a run plainly overfits: it learns its training text by heart."""

from collections.abc import Sequence
from statistics import fmean

GAP = 0.25  # as a share of the training loss


def overfitting(val: float, train: Sequence[float], epoch: int) -> str:
    """What to say if the validation loss is far above the training loss in the third pass or later, else "".

    train: the training losses since the evaluation before.  epoch: the pass, counted from 0.
    """
    if epoch < 2 or not train or val <= (1 + GAP) * fmean(train):
        return ""
    return (
        f"overfitting: in pass {epoch + 1} over the data, validation loss is {val:.4f}, and training loss "
        f"{fmean(train):.4f}; use more text, a smaller model or a shorter run (sample.py --best takes the "
        "checkpoint of lowest validation loss)"
    )
