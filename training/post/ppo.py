"""Proximal policy optimization: each token of a response is an action, and a value head predicts the return.

Schulman et al. 2017 (arXiv:1707.06347); for language models Ouyang et al. 2022 (arXiv:2203.02155).
B responses, T positions; `mask` is True where a position has a target, which is one run of positions in each row.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from architecture.checkpoint import owned
from architecture.generation.sampling import row_generators
from architecture.interface import IGNORE_INDEX
from common.files import reading
from training.post.policy import Scored
from training.post.rewards import SPREAD
from training.post.rollouts import Judged, RolloutObjective, micro_batches
from training.post.sampling import Rollout
from training.post.settings import PPOConfig
from training.state.checkpoint import OLDER, Progress, latest_checkpoint, restore_optimizer
from training.state.run import Run
from training.step import StepResult


class ValueHead:
    """Predicts the return from what the policy's head reads: a linear layer that begins at a constant, and its AdamW.

    It is not a part of the model, so that every program opens the checkpoint as any other one.
    The model gets cfg.value_coef times the gradient of the value loss, see docs/teaching.md.
    """

    def __init__(self, size: int, cfg: PPOConfig, device: torch.device | str):
        # nn.Linear would draw from the global generator, which a resume has just restored
        self.linear = nn.utils.skip_init(nn.Linear, size, 1, device=device)
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter)
        self.optimizer = torch.optim.AdamW(
            self.linear.parameters(), lr=cfg.value_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self.coef, self.grad_clip = cfg.value_coef, cfg.grad_clip

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (B, T, D) -> values (B, T) float32, before each target."""
        fixed = hidden.detach()
        x = (fixed + self.coef * (hidden - fixed)).float()
        # no matrix product, which autocast would compute in bfloat16
        return (x * self.linear.weight[0]).sum(-1) + self.linear.bias

    def begin_at(self, value: float) -> None:
        """Have a new head predict this value everywhere.

        From 0 it would come to the scores by its weights, too, whose values differ from token to token: advantages
        would be noise for tens of steps, and the value loss would move the trunk.
        """
        nn.init.constant_(self.linear.bias, value)

    def update(self) -> None:
        """Clip the head's own gradient, update the head and clear the gradient."""
        if self.grad_clip:
            nn.utils.clip_grad_norm_(self.linear.parameters(), self.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.linear.state_dict(), "optimizer": self.optimizer.state_dict()["state"]}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy the values of a checkpoint. Raises an error if they do not fit."""
        for name, parameter in self.linear.named_parameters():
            held = owned(state["weights"][name], f"value head's {name}", parameter.shape, torch.float32)
            parameter.copy_(held)
        restore_optimizer(self.optimizer, list(self.linear.parameters()), state["optimizer"])


def token_rewards(
    logprobs: torch.Tensor,
    reference: torch.Tensor | None,
    scores: torch.Tensor,
    mask: torch.Tensor,
    kl_coef: float,
) -> torch.Tensor:
    """The reward of each token: -kl_coef (logprob - reference), and at the last token of a response its score, too.

    logprobs, reference: (B, T), of the targets; no reference, no penalty.  scores: (B,).  mask: (B, T) bool.
    Returns (B, T) without a gradient, 0 where masked.
    """
    rewards = torch.zeros_like(logprobs)
    if reference is not None:
        rewards = -kl_coef * (logprobs - reference).detach() * mask
    last = mask & ~F.pad(mask, (0, 1))[:, 1:]
    return torch.where(last, rewards + scores[:, None].to(rewards.dtype), rewards)


def advantages_and_returns(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    d_t = r_t + gamma V_(t+1) - V_t,  A_t = d_t + gamma lam A_(t+1),  return_t = A_t + V_t.
    rewards, mask: (B, T).  values: (B, T + 1), one more, because V after the last token counts: 0 if the episode
    is over.
    Returns two (B, T) tensors, 0 where masked.
    """
    deltas = rewards + gamma * values[:, 1:] - values[:, :-1]
    advantages, next_one = [], torch.zeros_like(rewards[:, 0])
    for delta, counts in zip(reversed(deltas.unbind(1)), reversed(mask.unbind(1))):
        next_one = torch.where(counts, delta + gamma * lam * next_one, 0.0)
        advantages.append(next_one)
    found = torch.stack(advantages[::-1], 1)
    return found, torch.where(mask, found + values[:, :-1], 0.0)


def whitened(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(x - mean) / sqrt(variance + 1e-8) over the unmasked entries, which are n; the variance divides by n.

    So a single token gives 0 and no NaN.  x, mask: (B, T).  Returns (B, T), 0 where masked.
    """
    variance, mean = torch.var_mean(x[mask], correction=0)
    return torch.where(mask, (x - mean) * (variance + 1e-8).rsqrt(), 0.0)


def policy_losses(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """max(-A r, -A clip(r, 1 - clip, 1 + clip)) with r = exp(logprob - old): eq. 7 of PPO, of each token.

    logprobs, old, advantages: (B, T); all are 0 where masked, and so is the loss.
    Returns (B, T), and where the clip took the gradient away, (B, T) bool.
    """
    ratio = (logprobs - old).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped), clipped > plain


def value_losses(values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, clip: float) -> torch.Tensor:
    """0.5 max((V - R)^2, (V_clipped - R)^2) of each token, where V_clipped is V within old +- clip.

    values, old, returns: (B, T).  Returns (B, T); the entries of masked positions have no meaning.
    """
    near = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the unmasked tokens: 1 is perfect, 0 no better than a constant."""
    left, whole = ((x[mask]).var(correction=0) for x in (returns - values, returns))
    return float(1 - left / whole)


class Objective(RolloutObjective):
    """Learns from one response to each prompt; the value head takes the place of GRPO's group."""

    cfg: PPOConfig

    def open(self, run: Run, state: dict[str, Any] | None) -> None:
        super().open(run, state)
        self.head = ValueHead(run.model.config.hidden_size, self.cfg, run.device)
        if state is not None:
            with reading(latest_checkpoint(run.cfg.out_dir), "a run to continue", way_out=OLDER):
                self.head.load_state_dict(state["value_head"])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"value_head": self.head.state_dict()}

    def learn(
        self, run: Run, progress: Progress, rollout: Rollout, judged: Judged, measured: bool
    ) -> tuple[StepResult, dict[str, float], dict[str, float]]:
        """`ppo_epochs` passes over the responses, in `mini_batches` optimizer updates each."""
        cfg, mask = self.cfg, rollout.mask
        if not progress.step:
            self.head.begin_at(float(judged.total.mean()))
        held, records = self.experience(run, rollout, judged.total)
        train = float(judged.total.max() - judged.total.min()) > SPREAD
        if not train:  # whitening would make advantages of the errors of the value head alone
            run.writer.say(f"step {progress.step + 1}: no update, because all responses have the same reward")
        epochs = cfg.ppo_epochs if train else 1
        sums = torch.zeros(3, device=run.device)  # policy loss, value loss and clipped tokens of all updates
        (draw,) = row_generators(f"{cfg.seed} mini-batches of step {progress.step}", 1)
        for _ in range(epochs):
            for rows in torch.randperm(len(mask), generator=draw).tensor_split(cfg.mini_batches):
                batches, counts = micro_batches(cfg.batch_size, rows, rollout.targets, **held)
                loss_of = functools.partial(self.loss_of, total=sum(counts), sums=sums)
                result, norms, _ = self.optimize(
                    run, progress, batches, counts, loss_of, measured=measured, train=train
                )
                if train:
                    self.head.update()
        means = (sums / (epochs * mask.sum().item())).tolist()
        records |= zip(("post/policy_loss", "post/value_loss", "post/clip_fraction"), means)
        return result._replace(tokens=int(mask.sum())), norms, records

    def experience(
        self, run: Run, rollout: Rollout, scores: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """What the updates of a step train on, (R, T) each and fixed until its end, and records.

        scores: (R,), what the responses earned.
        """
        cfg, mask, held = self.cfg, rollout.mask, rollout.inputs
        batches, _ = micro_batches(cfg.batch_size, torch.arange(len(mask)), rollout.targets, **held)
        said = self.measure(run, run.compiled, batches, lambda s: (s.logprobs, self.head(s.hidden)))
        old, values = (whole(parts, mask) for parts in zip(*said))
        records, reference = {"post/entropy": -float(old.sum() / mask.sum())}, None
        if self.reference is not None:
            reference = whole(self.logprobs(run, self.reference, batches), mask)
            apart = reference - old
            records["post/kl"] = float((apart.exp() - apart - 1).sum() / mask.sum())
        rewards = token_rewards(old, reference, scores, mask, cfg.kl_coef)
        after = F.pad(values, (0, 1))  # 0 behind the last token: the score was the last reward
        advantages, returns = advantages_and_returns(rewards, after, mask, cfg.gamma, cfg.lam)
        if returns[mask].var(correction=0) > SPREAD**2:
            records["post/explained_variance"] = explained_variance(values, returns, mask)
        held |= {"old": old, "advantages": whitened(advantages, mask)}
        return held | {"old_values": values, "returns": returns}, records

    def loss_of(
        self, scored: Scored, batch: dict[str, torch.Tensor], total: int, sums: torch.Tensor
    ) -> torch.Tensor:
        """The part of a micro-batch in the loss of an update, (); total: the tokens of the update.

        sums: (3,), to which policy loss, value loss and clipped tokens are added.
        """
        cfg, counted = self.cfg, batch["targets"] != IGNORE_INDEX
        values = self.head(scored.hidden)
        losses, clipped = policy_losses(scored.logprobs, batch["old"], batch["advantages"], cfg.clip)
        errors = value_losses(values, batch["old_values"], batch["returns"], cfg.value_clip)
        policy, value = losses.sum(), (errors * counted).sum()
        sums += torch.stack((policy.detach(), value.detach(), (clipped & counted).sum()))
        return (policy + value) / total


def whole(parts: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Join what micro-batches say of each target: (n, <= T) each -> (R, T) on the CPU, 0 where masked."""
    rows = torch.cat([F.pad(part, (0, mask.shape[1] - part.shape[1])) for part in parts])
    return torch.where(mask, rows.cpu(), 0.0)
