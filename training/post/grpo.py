"""Group relative policy optimization and its relatives: dr_grpo, dapo and gspo.

All of them compare a response with the others of its prompt, and raise the probability of the tokens of those that are
better than the mean. They differ in what one token counts and where the ratio is clipped. With m the mask of response
tokens, r = exp(logp - logp_old), A the advantage of the response, and lo, hi the clip range:

    l = -min(r A, clip(r, 1 - lo, 1 + hi) A) + beta k3,   k3 = exp(ref - logp) - (ref - logp) - 1

grpo      A = (R - mean) / (std + 1e-4); mean of l over the tokens of a response, then over responses (arXiv:2402.03300)
dr_grpo   A = R - mean; sum of l / (responses x max_response), so that all tokens have the same weight (arXiv:2503.20783)
dapo      A as grpo; mean of l over all tokens of the step; lo 0.2, hi 0.28 (arXiv:2503.14476)
gspo      A as grpo, means as grpo; one ratio for a response, exp of the mean log-ratio of its tokens; lo 3e-4, hi 4e-4
          (arXiv:2507.18071)

k3 estimates the KL divergence of the policy from the reference, and is there if beta > 0. A group whose rewards are all
equal says nothing: it is left out, also of the denominators and of k3. With one update of a step r is 1, and the loss
without k3 is about 0 whatever the policy does; look at the reward. The denominators are those of the whole step, in
whatever micro-batches it is computed.

Shapes: R responses in groups of G, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from training.post import rollouts
from training.post.policy import Scored
from training.post.rewards import SPREAD
from training.post.rollouts import Judged, micro_batches
from training.post.sampling import Rollout
from training.post.settings import GRPOConfig
from training.state.checkpoint import Progress
from training.state.run import Run
from training.step import StepResult

CLIP = {"grpo": (0.2, 0.2), "dr_grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4)}


def group_advantages(rewards: torch.Tensor, group: int, loss: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(R,) float64 advantages, and (R,) bool, whether the rewards in the group of a response differ.

    rewards: (R,) float64, the groups one after another.  The standard deviation divides by G - 1.
    """
    groups = rewards.view(-1, group)
    spread = groups.amax(1) - groups.amin(1) > SPREAD
    advantages = groups - groups.mean(1, keepdim=True)
    if loss != "dr_grpo":
        advantages = advantages / (groups.std(1, keepdim=True) + 1e-4)
    return advantages.flatten(), spread.repeat_interleave(group)


def token_weights(mask: torch.Tensor, loss: str, max_response: int) -> torch.Tensor:
    """(R, T) float64, what the loss of each token counts in that of the step. mask: (R, T) bool, each row with a token."""
    weights = mask.double()
    if loss == "dapo":
        return weights / weights.sum()
    if loss == "dr_grpo":
        return weights / (len(mask) * max_response)
    return weights / (len(mask) * weights.sum(1, keepdim=True))


def policy_loss(
    logp: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    *,
    loss: str,
    clip: tuple[float, float],
    reference: torch.Tensor | None = None,
    beta: float = 0.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The part of some responses in the loss of a step, (), and its measurements, sums over tokens without gradient.

    logp, old, reference: (B, T), of the policy, of the policy before its first update, and of the reference.
    advantages: (B,).  weights: (B, T), from token_weights of the whole step; 0 outside the responses.
    """
    mask = weights > 0
    log_ratio = (logp - old) * mask
    if loss == "gspo":
        log_ratio = (log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True)).expand_as(mask)
    ratio, A, (low, high) = log_ratio.exp(), advantages[:, None], clip
    losses = -torch.minimum(ratio * A, ratio.clamp(1 - low, 1 + high) * A)
    clipped = (ratio < 1 - low) & (A < 0) | (ratio > 1 + high) & (A > 0)
    sums = {"clip_fraction": (clipped & mask).sum()}
    if reference is not None:
        k3 = (reference - logp).exp() - (reference - logp) - 1
        losses = losses + beta * k3
        sums["kl"] = (k3.detach() * mask).sum()
    return (losses * weights).sum(), sums


def overlong_penalty(lengths: torch.Tensor, max_response: int) -> torch.Tensor:
    """(R,) float64: 0, and over the last fifth of max_response down to -1. Source: arXiv:2503.14476 eq. 13.

    lengths: (R,) int64, tokens of each response.
    """
    last = max_response / 5
    return ((max_response - last - lengths.double()) / last).clamp(-1, 0)


class Objective(rollouts.RolloutObjective):
    """Learns from the rewards of a group, relative to each other."""

    cfg: GRPOConfig

    def __init__(self, cfg: GRPOConfig, tokenizer: Any):
        super().__init__(cfg, tokenizer)
        low, high = CLIP[cfg.loss]
        self.clip = cfg.clip_low or low, cfg.clip_high or high

    def learn(
        self, run: Run, progress: Progress, rollout: Rollout, judged: Judged, measured: bool
    ) -> tuple[StepResult, dict[str, float], dict[str, float]]:
        cfg, rewards = self.cfg, judged.total
        if cfg.truncated == "penalize":
            rewards = rewards + overlong_penalty(rollout.lengths, cfg.max_response)
        advantages, spread = group_advantages(rewards, cfg.group, cfg.loss)
        trains = spread & rollout.ended if cfg.truncated == "mask" else spread
        records = {"post/groups_dropped": int((~spread).sum()) // cfg.group}
        rows = trains.nonzero()[:, 0]
        if train := len(rows) > 0:
            updates = cfg.updates
        else:  # measures all responses, and updates nothing
            rows, updates = torch.arange(len(trains)), 1
            run.writer.say(
                f"step {progress.step + 1}: no update, because no group has responses with different rewards"
                + (" that ended" if cfg.truncated == "mask" else "")
            )
        weights = torch.zeros(rollout.mask.shape)
        weights[rows] = token_weights(rollout.mask[rows], cfg.loss, cfg.max_response).float()
        held = rollout.inputs | {"advantages": advantages.float(), "weights": weights}
        batches, counts = micro_batches(cfg.batch_size, rows, rollout.targets, **held)
        if self.reference is not None:
            for batch, logp in zip(batches, self.logprobs(run, self.reference, batches)):
                batch["reference"] = logp
        if updates > 1:
            for batch, logp in zip(batches, self.logprobs(run, run.compiled, batches)):
                batch["old"] = logp

        def loss_of(scored: Scored, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            logp = scored.logprobs
            value, found = policy_loss(
                logp,
                batch.get("old", logp.detach()),
                batch["advantages"],
                batch["weights"],
                loss=cfg.loss,
                clip=self.clip,
                reference=batch.get("reference"),
                beta=cfg.beta,
            )
            for name, number in found.items():
                sums[name] = sums.get(name, 0) + number
            return value

        for _ in range(updates):
            sums: dict[str, torch.Tensor] = {}
            result, norms, loss = self.optimize(
                run, progress, batches, counts, loss_of, measured=measured, train=train
            )
        records |= {"post/loss": loss, "post/entropy": float(result.loss)}
        records |= {f"post/{name}": float(number) / sum(counts) for name, number in sums.items()}
        return result, norms, records
