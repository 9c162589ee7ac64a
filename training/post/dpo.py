"""Direct preference optimization (arXiv:2305.18290): a policy learns which of two responses is preferred.

The loss of a pair is -log sigmoid(beta ((log p_c - log r_c) - (log p_r - log r_r))), eq. 7, with the log-probabilities
of the chosen response c and of the rejected one r, each summed over its tokens and its end, under the policy p and the
frozen reference r. The loss of a step is the mean over its pairs, in all of its micro-batches.
"""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from architecture.interface import IGNORE_INDEX, ModelOutput, RouterStats, evaluation_mode
from common.intervals import exact_interval
from data.defaults import BUNDLED
from data.documents import Source
from data.examples import Example, Pair
from data.packing import as_tensors
from data.rows import PairEncoder, pair_batch
from data.stories.pairs import pairs
from training.post import objective
from training.post.policy import score
from training.post.replay import flips
from training.post.rewards import checked
from training.post.sampling import sample_in_rows, share_truncated
from training.state.checkpoint import Progress
from training.state.run import Run
from training.step import StepResult
from training.trainer import end_step, gradients, next_is_logged, take_batches, update
from training.validation import text_nats_and_bytes


class Compared(NamedTuple):
    """What policy and reference say about B pairs. Rows are 0, the chosen responses, and 1, the rejected ones."""

    logprobs: torch.Tensor  # (2, B) float32, of each response under the policy
    log_ratios: torch.Tensor  # (2, B) float32, logprobs minus those of the reference
    router: RouterStats | None  # of the policy
    routing_shift: torch.Tensor | None  # () float32, share of other sets of experts; None for a dense model
    token_losses: torch.Tensor  # (2 B, T) float32, of the policy, without a gradient

    def losses(self, beta: float) -> torch.Tensor:
        """(B,) the loss of each pair."""
        return -F.logsigmoid(beta * (self.log_ratios[0] - self.log_ratios[1]))


def compare(
    policy: nn.Module, reference: nn.Module, input_ids: torch.Tensor, targets: torch.Tensor
) -> Compared:
    """Score B pairs of responses. input_ids, targets: (2 B, T) int64, B chosen responses, then B rejected ones.

    The gradient is that of the policy. Its log-probabilities and those of the reference are subtracted token by token,
    because the differences are much smaller than the sums.
    """
    scored = score(policy, input_ids, targets)
    with torch.no_grad():
        frozen = score(reference, input_ids, targets)
    log_ratios = (scored.logprobs - frozen.logprobs).sum(1).view(2, -1)
    logprobs = scored.logprobs.detach()
    shift = None
    if scored.router is not None:
        chosen = torch.stack(frozen.router.chosen, dim=2)
        counted = (targets != IGNORE_INDEX)[..., None, None]
        differ, number = flips(scored.router, chosen.where(counted, -1))
        shift = differ / number.clamp(min=1)
    return Compared(logprobs.sum(1).view(2, -1), log_ratios, scored.router, shift, -logprobs)


class PairLoss:
    """The loss of pairs, which accumulate_gradients calls in place of the policy. `seen`: its results, batch by batch."""

    def __init__(self, policy: nn.Module, reference: nn.Module, beta: float):
        self.policy, self.reference, self.beta = policy, reference, beta
        self.seen: list[Compared] = []

    def __call__(self, input_ids: torch.Tensor, targets: torch.Tensor, carry: None = None) -> ModelOutput:
        found = compare(self.policy, self.reference, input_ids, targets)
        self.seen.append(found._replace(log_ratios=found.log_ratios.detach(), router=None))
        return ModelOutput(
            logits=None,
            loss_sum=found.losses(self.beta).sum(),
            num_targets=(targets != IGNORE_INDEX).sum(),
            token_losses=found.token_losses,
            router=found.router,
        )


def of_chosen(
    seen: list[Compared], batches: list[dict[str, torch.Tensor]], token_bytes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """loss, nats and num_bytes of a StepResult, of the chosen responses. token_bytes: (V,) int64."""
    parts = []
    for found, batch in zip(seen, batches):
        losses, targets = (rows.chunk(2)[0] for rows in (found.token_losses, batch["targets"]))
        targets = targets.to(losses.device)
        nats, num_bytes = text_nats_and_bytes(losses, targets, token_bytes)
        sums = (losses.sum(), (targets != IGNORE_INDEX).sum(), nats, num_bytes)
        parts.append(torch.stack([x.to(nats.dtype) for x in sums]))
    total, tokens, nats, num_bytes = torch.stack(parts).sum(0)
    return (total / tokens).float(), nats, num_bytes


def preference(seen: list[Compared], beta: float) -> dict[str, float]:
    """The loss of pairs, the rewards that their responses imply, and how often the chosen one has the larger reward."""
    losses = torch.cat([found.losses(beta) for found in seen])
    chosen, rejected = rewards = beta * torch.cat([found.log_ratios for found in seen], dim=1)
    right = ((chosen - rejected).sign() + 1) / 2  # a tie, as at the first step, is half right
    names = ("loss", "accuracy", "reward_margin", "reward_chosen", "reward_rejected")
    means = torch.stack((losses, right, chosen - rejected, *rewards)).mean(1)
    return dict(zip(names, means.tolist()))


def step_record(
    seen: list[Compared], batches: list[dict[str, torch.Tensor]], beta: float, eot: int
) -> dict[str, float]:
    """The records of a step beside those of every training."""
    record = {f"post/{name}": value for name, value in preference(seen, beta).items()}
    logprobs = torch.cat([found.logprobs for found in seen], dim=1).mean(1)
    record |= dict(zip(("post/logp_chosen", "post/logp_rejected"), logprobs.tolist()))
    if seen[0].routing_shift is not None:
        record["post/routing_shift"] = float(torch.stack([found.routing_shift for found in seen]).mean())
    targets = [batch["targets"] for batch in batches]
    scored = sum(int((rows != IGNORE_INDEX).sum()) for rows in targets)
    positions = sum(rows.numel() for rows in targets)
    return record | {
        "data/truncated": share_truncated(batches, [eot]),
        "data/padding_share": 1 - scored / positions,
    }


def held_out_record(seen: list[Compared], beta: float) -> dict[str, float]:
    """The records of an evaluation: how often the model itself, and how often its reward, prefers the chosen response."""
    logprobs = torch.cat([found.logprobs for found in seen], dim=1)
    found, right = preference(seen, beta), int((logprobs[0] > logprobs[1]).sum())
    number = logprobs.shape[1]
    low, high = exact_interval(right, number)
    return {
        "val/pair_accuracy": right / number,
        "val/pair_accuracy_low": low,
        "val/pair_accuracy_high": high,
        "val/reward_accuracy": found["accuracy"],
        "val/reward_margin": found["reward_margin"],
        "val/dpo_loss": found["loss"],
    }


class Objective(objective.Objective):
    """Trains on pairs of responses; batch_size counts pairs, each of which has two rows."""

    example_type, bundled, packing = Pair, staticmethod(pairs), "pairs"

    def open_data(self, *, split: str, identity: str | None = None) -> Source:
        source, cfg = super().open_data(split=split, identity=identity), self.cfg
        if split == "train":
            encoded = self.encode_held_out(PairEncoder(self.tokenizer, cfg.block_size))
            parts = [encoded[n : n + cfg.batch_size] for n in range(0, len(encoded), cfg.batch_size)]
            self.held_out_batches = [as_tensors(pair_batch(part, self.tokenizer.eot_token)) for part in parts]
            some = self.held_out[: self.cfg.sampled_rows]
            self.asked = [Example(pair.prompt, pair.chosen, name=pair.name) for pair in some]
        return source

    def step(self, run: Run, progress: Progress) -> tuple[StepResult, dict[str, float], dict[str, float]]:
        batches, counts = take_batches(run, progress)
        measured = next_is_logged(run, progress)
        forward = PairLoss(run.compiled, self.reference, self.cfg.beta)
        num_pairs = [len(batch["targets"]) // 2 for batch in batches]
        result = gradients(run, progress, batches, num_pairs, measured, forward)
        loss, nats, num_bytes = of_chosen(forward.seen, batches, run.token_bytes)
        result, record = result._replace(tokens=sum(counts), loss=loss), {}
        if measured:
            result = result._replace(nats=nats, num_bytes=num_bytes)
            record = step_record(forward.seen, batches, self.cfg.beta, self.tokenizer.eot_token)
        result, norms = update(run, progress, result, batches, measured)
        end_step(run, progress, result)
        return result, norms, record

    @torch.no_grad()
    def evaluate(self, run: Run, progress: Progress) -> dict[str, float]:
        seen = []
        with evaluation_mode(run.compiled), run.autocast():
            for batch in self.held_out_batches:
                batch = {name: part.to(run.device) for name, part in batch.items()}
                seen.append(compare(run.compiled, self.reference, **batch))
        record = held_out_record(seen, self.cfg.beta) | self.sampled(run, progress)
        told = ""
        if (passes := record.get("val/passes")) is not None:
            told = f"; {passes:.1%} of {len(self.asked)} sampled stories pass the checker"
        run.writer.say(
            f"step {progress.step}: of {len(self.held_out):,} held-out pairs, the "
            f"chosen response is more probable in {record['val/pair_accuracy']:.1%} (95 %: "
            f"{record['val/pair_accuracy_low']:.1%} to {record['val/pair_accuracy_high']:.1%}), loss "
            f"{record['val/dpo_loss']:.4f}{told}"
        )
        return record

    def sampled(self, run: Run, progress: Progress) -> dict[str, float]:
        """What the model itself writes, at temperature 1, with the same seeds every time.

        A model can prefer every good response and write bad ones: the loss says nothing about those of neither kind.
        """
        cfg = self.cfg
        seed, options = f"{cfg.seed} held-out", dict(block_size=cfg.block_size, temperature=1.0)
        rollout = sample_in_rows(run.model, self.tokenizer, self.asked, seed, **options)
        self.answers = objective.with_prompts(rollout.responses)
        texts = [response.example.prompt + response.text for response in rollout.responses]
        run.writer.text(progress.step, "samples/response", texts[0])
        record = {"val/ended": float(rollout.ended.double().mean())}
        if self.source.name == BUNDLED:
            record["val/passes"] = fmean(checked(text).passes for text in texts)
        return record
