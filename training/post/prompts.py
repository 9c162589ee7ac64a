"""The prompts of each step of GRPO and PPO."""

from __future__ import annotations

import hashlib
from typing import Any

from data.documents import Source
from data.examples import Example
from data.loader import LoaderProgress


class Prompts:
    """Takes the place of a TrainLoader: each item is the list of examples of a step. Its position is exact."""

    def __init__(self, source: Source, seed: int, number: int, state: dict[str, Any] | None):
        self._seed, self._number = seed, number
        self._documents = source.shuffled(seed, state and state["source"])
        self.progress = LoaderProgress(self._documents.epoch, state["documents"] if state else 0, 0)
        first = source.shuffled(seed, state and state["source"])
        texts = "\0".join(next(first).prompt for _ in range(number))
        self.first_batch_sha256 = hashlib.sha256(texts.encode()).hexdigest()

    def __next__(self) -> list[Example]:
        examples = [next(self._documents) for _ in range(self._number)]
        documents = self.progress.documents + self._number
        self.progress = LoaderProgress(self._documents.epoch, documents, 0)
        return examples

    def state_dict(self) -> dict[str, Any]:
        position = {"packing": "prompts", "seed": self._seed, "source": self._documents.state_dict()}
        return position | {"documents": self.progress.documents, "tokens": []}

    def close(self) -> None:
        self._documents.close()
