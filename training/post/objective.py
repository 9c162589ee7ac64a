"""What a kind of post-training is: its data, its step, and what it measures on held-out examples."""

from __future__ import annotations

from typing import Any

from torch import nn

from data.documents import Source
from data.loader import TrainLoader
from data.sources import open_dataset
from training.post.settings import PostTrainConfig
from training.state.checkpoint import Progress
from training.state.run import Run
from training.step import StepResult
from training.trainer import train_step


class Objective:
    """The interface of all kinds; as it is, the next-token prediction of train.py."""

    step_in_words = ""  # what a step consists of, if not of rows of block_size tokens

    def __init__(self, cfg: PostTrainConfig, tokenizer: Any):
        self.cfg, self.tokenizer = cfg, tokenizer

    def open_data(self, *, split: str, identity: str | None = None) -> Source:
        """The training data of this kind (split "train"), or the stories of val/loss ("validation").

        It also opens the held-out examples, and raises ValueError for bad data before a file is written.
        """
        raise NotImplementedError

    def stories(self, identity: str | None) -> Source:
        """The validation stories, which show what the model forgets."""
        return open_dataset(
            self.cfg.story_dataset,
            split="validation",
            text_column=self.cfg.text_column,
            identity=identity,
        )

    def open_loader(self, source: Source, tokenizer: Any, **options: Any) -> Any:
        """What gives the batches of a step, with the methods of TrainLoader; options: those of it."""
        return TrainLoader(source, tokenizer, **options)

    def open_model(self, model: nn.Module, state: dict[str, Any] | None) -> None:
        """Prepare what needs the model before it trains, and raise ValueError before a file is written.

        model: with the weights to begin or to continue with, on the CPU.  state: as for `open`.
        """

    def open(self, run: Run, state: dict[str, Any] | None) -> None:
        """Prepare what needs the run. state: from state_dict, of the checkpoint that is continued."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold besides model and optimizers, as torch.load reads it with weights_only=True."""
        return {}

    def step(self, run: Run, progress: Progress) -> tuple[StepResult, dict[str, float], dict[str, float]]:
        """One step, as training.trainer.train_step, with the records of this kind."""
        return train_step(run, progress)

    def evaluate(self, run: Run, progress: Progress) -> dict[str, float]:
        """The records of an evaluation on held-out examples; the first one is of the model before its first step."""
        return {}
