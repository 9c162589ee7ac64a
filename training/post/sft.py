"""Supervised fine-tuning: next-token prediction of responses, several examples in a row.

The loss of a step is the sum over the response tokens of all its micro-batches, divided by their number. The end of a
response is one of its tokens; prompts and padding do not count.
"""

from __future__ import annotations

import torch

from architecture.interface import evaluation_mode
from data.documents import Source
from data.rows import RowEncoder, packed
from training.post import objective
from training.post.sampling import end_tokens, sample_in_rows, share_truncated
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
        # temperature 0 draws nothing, so that it needs no seed
        options = dict(block_size=self.cfg.block_size, temperature=0.0)
        rollout = sample_in_rows(run.model, self.tokenizer, self.held_out, "", **options)
        record = {
            "val/response_loss": self.loss(run),
            "val/ended": float(rollout.ended.double().mean()),
        }
        return self.shown(run, progress, rollout.responses, record)

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
