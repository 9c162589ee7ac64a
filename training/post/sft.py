"""Supervised fine-tuning: next-token prediction of responses, several examples in a row.

The loss of a step is the sum over the response tokens of all its micro-batches, divided by their number. The end of a
response is one of its tokens; prompts and padding do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from architecture.generation.decode import generate, length_limit
from architecture.interface import evaluation_mode
from data.documents import Source
from data.rows import Row, RowEncoder, packed
from training.post import objective
from training.post.sampling import end_tokens, share_truncated, text_of
from training.state.checkpoint import Progress
from training.state.run import Run
from training.step import StepResult
from training.trainer import take_batches, train_on


class Objective(objective.Objective):
    """Trains on the responses of examples."""

    packing = "examples"

    def open_data(self, *, split: str, identity: str | None = None) -> Source:
        source = super().open_data(split=split, identity=identity)
        if split == "train":
            self.rows = self.encode_held_out(RowEncoder(self.tokenizer, self.cfg.block_size, None))
            self.ends = end_tokens(self.tokenizer)
        return source

    def step(self, run: Run, progress: Progress) -> tuple[StepResult, dict[str, float], dict[str, float]]:
        batches, counts = take_batches(run, progress)
        result, norms = train_on(run, progress, batches, counts)
        return result, norms, {"data/truncated": share_truncated(batches, self.ends)}

    def evaluate(self, run: Run, progress: Progress) -> dict[str, float]:
        responses = respond(run.model, self.rows, self.cfg.block_size, self.ends)
        ended = [ids[-1] in self.ends for ids in responses]
        texts = [
            text_of(self.tokenizer, example, [i for i in ids if i not in self.ends])
            for example, ids in zip(self.held_out, responses)
        ]
        record = {"val/response_loss": self.loss(run), "val/ended": fmean(ended)}
        return self.shown(run, progress, texts, record)

    @torch.no_grad()
    def loss(self, run: Run) -> float:
        """Cross-entropy of the held-out responses, nats per token."""
        total = targets = 0
        with evaluation_mode(run.model), run.autocast():
            for batch in packed(
                self.rows, self.cfg.batch_size, self.tokenizer.eot_token, self.cfg.block_size
            ):
                out = run.model(**{name: part.to(run.device) for name, part in batch.items()})
                total, targets = total + out.loss_sum.double(), targets + out.num_targets
        return float(total / targets)


def respond(model: Any, rows: list[Row], block_size: int, ends: Sequence[int]) -> list[list[int]]:
    """The most probable ids after the prompt of each row, up to its end, or to as many as a row holds."""
    prompts = [row.prompt for row in rows]
    room = min(block_size + 1, length_limit(model)) - max(map(len, prompts))
    return generate(model, prompts, max_tokens=max(1, room), temperature=0, stop_tokens=ends)
