"""What a kind of post-training is: its data, its step, and what it measures on held-out examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from torch import nn

from data.documents import Source
from data.examples import Example, open_examples
from data.loader import TrainLoader
from data.sources import open_dataset
from data.stories.tasks import tasks
from training.post.reference import open_reference
from training.post.rewards import Response, task_record
from training.post.settings import PostTrainConfig
from training.state.checkpoint import Progress
from training.state.run import Run
from training.step import StepResult
from training.trainer import train_step


class Objective:
    """The interface of all kinds; as it is, the next-token prediction of train.py."""

    step_in_words = ""  # what a step consists of, if not of rows of block_size tokens
    example_type, bundled, answered = Example, staticmethod(tasks), True  # of the data, see open_examples
    packing = "packed"  # how TrainLoader puts the data into rows

    def __init__(self, cfg: PostTrainConfig, tokenizer: Any):
        self.cfg, self.tokenizer = cfg, tokenizer
        self.reference: nn.Module | None = None  # frozen; with its sha256 if the kind reads one
        self.answers: list[str] = []  # what the last evaluation sampled; the end of the run prints it

    def open_data(self, *, split: str, identity: str | None = None) -> Source:
        """The training data of this kind (split "train"), or the stories of val/loss ("validation").

        "train" also opens the held-out examples, and raises ValueError for bad data before a file is written.
        """
        cfg = self.cfg
        if split == "validation":  # shows what the model forgets
            return open_dataset(
                cfg.story_dataset,
                split=split,
                val_dataset=cfg.story_val_dataset,
                text_column=cfg.text_column,
                identity=identity,
            )
        self.source, held_out = (
            open_examples(
                cfg.dataset,
                self.example_type,
                split=side,
                val_dataset=cfg.val_dataset,
                bundled=self.bundled,
                answered=self.answered,
            )
            for side in ("train", "validation")
        )
        if held_out.identity == self.source.identity:
            raise ValueError(
                f"the training data ({self.source.name}) and the held-out examples ({held_out.name}) are the same, so "
                "that evaluations would measure what was learned by heart; give others with --val_dataset, or leave it out"
            )
        self.held_out = [held_out[n] for n in range(min(cfg.held_out, len(held_out)))]
        return self.source

    def encode_held_out(self, encode: Callable[[Any], Any]) -> list[Any]:
        """Encode the held-out examples; a prompt without room for a response raises, before a run is in its middle."""
        encoded = [encode(example) for example in self.held_out]
        for example in self.source.long_prompts(self.cfg.block_size):
            encode(example)
        return encoded

    def open_loader(self, source: Source, tokenizer: Any, **options: Any) -> Any:
        """What gives the batches of steps, with the methods of TrainLoader. options: as TrainLoader has them."""
        return TrainLoader(source, tokenizer, **options | {"packing": self.packing})

    def open_model(self, model: nn.Module, state: dict[str, Any] | None) -> None:
        """Prepare what needs the model before it trains, and raise ValueError before a file is written.

        model: with the weights to begin or to continue with, on the CPU, without adapters.  state: as for `open`.
        """
        if self.cfg.uses_reference:
            held = state and state["reference"]
            self.reference, self.reference_sha256 = open_reference(self.cfg, model, self.tokenizer, held)

    def open(self, run: Run, state: dict[str, Any] | None) -> None:
        """Prepare what needs the run. state: from state_dict, of the checkpoint that is continued."""
        if self.reference is not None:
            self.reference.to(run.device)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold besides model and optimizers, as torch.load reads it with weights_only=True."""
        return {} if self.reference is None else {"reference": self.reference_sha256}

    def step(self, run: Run, progress: Progress) -> tuple[StepResult, dict[str, float], dict[str, float]]:
        """One step, as training.trainer.train_step, with the records of this kind."""
        return train_step(run, progress)

    def evaluate(self, run: Run, progress: Progress) -> dict[str, float]:
        """The records of an evaluation on held-out examples; the first one is of the model before its first step."""
        return {}

    def shown(
        self, run: Run, progress: Progress, responses: Sequence[Response], record: dict[str, float]
    ) -> dict[str, float]:
        """Add what the tasks of the held-out examples say of the responses to a record, and show it."""
        texts, self.answers = [response.text for response in responses], with_prompts(responses)
        record |= task_record(self.held_out, texts)
        told = ", ".join(f"{tag.removeprefix('val/')} {value:.4g}" for tag, value in record.items())
        run.writer.text(progress.step, "samples/response", self.held_out[0].prompt + texts[0])
        run.writer.say(f"step {progress.step}: on {len(texts)} held-out examples {told}")
        return record


def with_prompts(responses: Sequence[Response]) -> list[str]:
    """The first three responses, each below its prompt."""
    return [
        f"{response.example.prompt}\n--- response\n{response.text.lstrip()}" for response in responses[:3]
    ]


def new_objective(cfg: PostTrainConfig, tokenizer: Any) -> Objective:
    """The objective of cfg.kind; it is the class `Objective` of training/post/KIND.py."""
    return import_module(f"training.post.{cfg.kind}").Objective(cfg, tokenizer)
