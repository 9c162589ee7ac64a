"""Supervised fine-tuning: next-token prediction of responses, several examples in a row.

The loss of a step is the sum over the response tokens of all its micro-batches, divided by their number. The end of a
response is one of its tokens; prompts and padding are none.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch

from architecture.generation.decode import generate, length_limit
from architecture.generation.text import TextStream
from architecture.tokenizer import HARMONY
from data.documents import Source
from data.examples import BUNDLED, Example, ExampleSource, open_examples
from data.loader import TrainLoader
from data.rows import Row, RowEncoder, packed
from data.stories.checker import check
from data.stories.tasks import FEATURES, has_feature, tasks, words_used
from training.post import objective
from training.state.checkpoint import Progress
from training.state.run import Run
from training.step import StepResult
from training.trainer import take_batches, train_on


class Objective(objective.Objective):
    """Trains on the responses of examples."""

    def open_data(self, *, split: str, identity: str | None = None) -> Source:
        if split == "validation":
            return self.stories(identity)
        cfg = self.cfg
        source, held_out = (
            open_examples(cfg.dataset, Example, split=side, val_dataset=cfg.val_dataset, bundled=tasks)
            for side in ("train", "validation")
        )
        encode = RowEncoder(self.tokenizer, cfg.block_size, None)
        self.examples = [held_out[n] for n in range(min(cfg.held_out, len(held_out)))]
        self.rows = [encode(example) for example in self.examples]
        require_room(source, encode, cfg.block_size)
        self.ends = [self.tokenizer.eot_token]  # what ends a response
        if self.tokenizer.name == HARMONY:
            self.ends.append(self.tokenizer.encode_single_token("<|return|>"))
        return source

    def open_loader(self, source: Source, tokenizer: Any, **options: Any) -> TrainLoader:
        return TrainLoader(source, tokenizer, **options | {"packing": "examples"})

    def step(self, run: Run, progress: Progress) -> tuple[StepResult, dict[str, float], dict[str, float]]:
        batches, counts = take_batches(run, progress)
        result, norms = train_on(run, progress, batches, counts)
        return result, norms, {"data/truncated": self.truncated(batches)}

    def truncated(self, batches: list[dict[str, torch.Tensor]]) -> float:
        """The share of the examples whose response is cut off, so that its end is no target."""
        number = sum(int((batch["positions"] == 0).sum()) for batch in batches)
        ended = sum(int(sum((batch["targets"] == end).sum() for end in self.ends)) for batch in batches)
        return 1 - ended / number

    def evaluate(self, run: Run, progress: Progress) -> dict[str, float]:
        responses = respond(run.model, self.rows, self.cfg.block_size, self.ends)
        ended = [ids[-1] in self.ends for ids in responses]
        texts = []
        for ids in responses:
            stream = TextStream(self.tokenizer)
            texts.append("".join(stream.push(i) for i in ids if i not in self.ends) + stream.finish())
        record = {"val/response_loss": self.loss(run), "val/ended": fmean(ended)} | judged(
            self.examples, texts
        )
        run.writer.text(progress.step, "samples/response", self.examples[0].prompt + texts[0])
        told = ", ".join(f"{tag.removeprefix('val/')} {value:.4g}" for tag, value in record.items())
        run.writer.say(f"step {progress.step}: on {len(texts)} held-out examples {told}")
        return record

    @torch.no_grad()
    def loss(self, run: Run) -> float:
        """Cross-entropy of the held-out responses, nats per token."""
        was_training = run.model.training
        run.model.eval()
        total = targets = 0
        for batch in packed(self.rows, self.cfg.batch_size, self.tokenizer.eot_token, self.cfg.block_size):
            batch = {name: part.to(run.device) for name, part in batch.items()}
            with run.autocast():
                out = run.model(**batch)
            total, targets = total + out.loss_sum.double(), targets + out.num_targets
        run.model.train(was_training)
        return float(total / targets)


def require_room(source: ExampleSource, encode: Callable[[Any], Any], block_size: int) -> None:
    """Raise ValueError if the prompt of an example or pair fills a row: a run that met it later could not go on.

    The tasks of the story world are short, and making all of them takes minutes.
    """
    for n in range(len(source) if source.name != BUNDLED else 0):
        example = source[n]
        if (
            getattr(example, "messages", ()) or len(example.prompt.encode()) >= block_size
        ):  # a token has a byte or more
            encode(example)


def respond(model: Any, rows: list[Row], block_size: int, ends: list[int]) -> list[list[int]]:
    """The most probable ids after the prompt of each row, up to its end, or to as many as a row holds."""
    prompts = [row.ids[: int(row.scored.argmax())].tolist() for row in rows]
    room = min(block_size + 1, length_limit(model)) - max(map(len, prompts))
    return generate(model, prompts, max_tokens=max(1, room), temperature=0, stop_tokens=ends)


def judged(examples: list[Example], texts: list[str]) -> dict[str, float]:
    """The shares of texts that do what their tasks ask for; empty without tasks of the story world."""
    for task in (example.task for example in examples):  # columns of other data may have these names, too
        if task.get("feature") not in list(FEATURES) or not isinstance(task.get("words"), list | tuple):
            return {}
    used = [words_used(text, example.task["words"]) for text, example in zip(texts, examples)]
    return {
        "val/words": fmean(used),
        "val/all_words": fmean(share == 1 for share in used),
        "val/feature": fmean(has_feature(text, e.task["feature"]) for text, e in zip(texts, examples)),
        "val/passes": fmean(check(text).passes for text in texts),
    }
