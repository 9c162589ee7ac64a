"""What every model here promises: one output, one loss, one definition of router balance.

Models are judged by the same ruler, so the ruler lives here and no model brings its own.

What a model may bring beyond forward, config and new_cache, as attributes of its class or itself:
carries            true where `carry` is a tensor (B, D) from segment to segment; forward then takes reset,
                   (B,) bool, the rows in which a document begins
extends            the name of the model whose weights it can start from; added_parameters are the rest
new_decoder        how its texts grow, where they are not read in one piece (architecture/generation/decode.py)
length_limit       most tokens of a text, where that is not the context limit
optimizer_rules    optimizer groups of its own parameters (training/optimizer.py)

What a model's config brings: parameter_counts(), matrix_parameters(), flops_per_token(block_size) and
values_kept_per_token(...), which price a run; windows and context_limit; num_hidden_layers and the other words of
OpenAI's ModelConfig that it needs.

Shapes: B batch, T tokens, N = tokens in a batch, D hidden_size, V vocabulary, L MoE layers, E experts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100  # a target that is not scored; the value is F.cross_entropy's default
CHUNK_ROWS = 256  # fewest rows of logits that next_token_loss takes at once: products want some
# It takes more while they fit these many logits: on a CPU its caches, elsewhere 256 MB.
CHUNK_LOGITS = {"cpu": 2**20, "other": 2**26}


class RouterStats(NamedTuple):
    """How the routers of one forward pass spread their tokens; one row per MoE layer.

    Only positions that have a target are counted (all of them when no targets were given), so that
    padding cannot look like balance.
    """

    balance_loss: torch.Tensor  # () float32, 1.0 when even, E/k when k experts take everything
    z_loss: torch.Tensor  # () float32, mean squared logsumexp of the router logits
    load: torch.Tensor  # (L, E) float32, assignments per expert before capacity drops any
    mean_probability: torch.Tensor  # (L, E) float32, mean full softmax; carries the gradient
    dropped: torch.Tensor  # (L,) float32, share of the assignments over capacity
    layers: tuple[int, ...]  # the model's layer behind each row
    # token by token, for whoever looks closer; of every position of input_ids, counted or not
    logits: tuple[torch.Tensor, ...]  # L of (B, T, E) float32, detached: their softmax is the probability
    chosen: tuple[torch.Tensor, ...]  # L of (B, T, k) int64, before capacity drops any


class ModelOutput(NamedTuple):
    """What forward returns. Losses are cross-entropy only, in nats; auxiliary terms are the trainer's."""

    logits: torch.Tensor | None  # (B, T, V) float32; None with targets unless asked for
    loss_sum: torch.Tensor | None  # () float32, summed over the targets
    num_targets: torch.Tensor | None  # () int64
    token_losses: torch.Tensor | None  # (B, T) float32 without gradient, 0 where there is no target
    router: RouterStats | None  # None for a dense model
    cache: Any = None  # what to pass as `cache` next
    carry: Any = None  # what a variant keeps from one segment to the next

    @property
    def loss(self) -> torch.Tensor:
        """Nats per target token, () float32."""
        return self.loss_sum / self.num_targets.clamp(min=1)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable values; a tied matrix counts once."""
    return sum(p.numel() for p in model.parameters())


def load_balancing_loss(mean_probability: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Switch-style balance penalty: per layer E * sum_e f_e * P_e, then the mean over layers.

    mean_probability: (L, E) float32, P.  share: (L, E) float32, f, rows sum to 1, without gradient.
    Returns () float32: 1.0 when even, E/k when k experts take everything.
    Source: Fedus et al. 2021 (arXiv:2101.03961) eq. 4-6, with f a share of the N*k assignments.
    Per layer first: pooled over layers, two layers collapsed onto opposite experts look balanced.
    """
    num_experts = mean_probability.shape[-1]
    return (num_experts * (share.detach() * mean_probability).sum(-1)).mean()


def load_share(load: torch.Tensor) -> torch.Tensor:
    """(L, E) assignment counts -> (L, E) shares that sum to 1 in each row."""
    return load / load.sum(-1, keepdim=True).clamp(min=1)


def next_token_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross-entropy of `hidden @ weight.T` without ever holding all the logits.

    hidden: (B, T, D).  weight: (V, D).  targets: (B, T) int64, IGNORE_INDEX where not scored.
    Returns loss_sum () float32 in nats, num_targets () int64, token_losses (B, T) float32 detached.
    """
    flat = targets.reshape(-1)
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(
            f"targets must have one entry per position of hidden {tuple(hidden.shape[:-1])}, "
            f"got {tuple(targets.shape)}; pass targets of the same shape as input_ids"
        )
    loss_sum, token_losses = _LinearCrossEntropy.apply(
        hidden.reshape(flat.shape[0], -1), weight, flat, torch.is_grad_enabled()
    )
    return loss_sum, (flat != IGNORE_INDEX).sum(), token_losses.view(targets.shape)


def logit_rows(vocab_size: int, device_type: str) -> int:
    """How many rows of logits next_token_loss holds at once, each in two copies."""
    return max(CHUNK_ROWS, CHUNK_LOGITS.get(device_type, CHUNK_LOGITS["other"]) // vocab_size)


class _LinearCrossEntropy(torch.autograd.Function):
    """Head and loss in blocks of rows, with the gradients taken while a block of logits is at hand.

    Three matrix products per block, as many as the naive way, and nothing is computed twice: only the
    gradients (N, D) and (V, D) outlive a block. torch 2.13 has F.linear_cross_entropy for this; we
    run on 2.11 too and need the loss of every token.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, grad_enabled):
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        block_weight = weight.to(dtype)
        # needs_input_grad does not know about no_grad
        need_hidden, need_weight = (grad_enabled and need for need in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        losses = []
        rows = logit_rows(weight.shape[0], device)
        for start in range(0, hidden.shape[0], rows):
            block = slice(start, start + rows)
            x = hidden[block].to(dtype)
            logits = x @ block_weight.T  # (rows, V)
            if logits.dtype in (torch.bfloat16, torch.float16):
                logits = logits.float()
            scored = (targets[block] != IGNORE_INDEX).unsqueeze(1)
            # not clamp: any other negative target must fail, as it does in F.cross_entropy
            target = targets[block].unsqueeze(1).masked_fill(~scored, 0)
            top, label = logits.amax(-1, keepdim=True), logits.gather(1, target)
            softmax = logits.softmax(-1)
            # The largest probability is exp(top - normaliser) and at least 1/V, so its logarithm is
            # exact enough: two fused passes in place of the five of logsumexp and exp.
            normaliser = top - softmax.amax(-1, keepdim=True).log()
            losses.append(((normaliser - label) * scored).squeeze(1))
            if not (need_hidden or need_weight):
                continue
            grad = softmax.scatter_add_(1, target, torch.full_like(normaliser, -1.0)).to(dtype)
            # what is not scored is taken out of the narrow sides of the products
            if need_hidden:
                grad_hidden[block] = (grad @ block_weight) * scored
            if need_weight and dtype == weight.dtype:
                grad_weight.addmm_(grad.T, x * scored)
            elif need_weight:
                grad_weight += grad.T @ (x * scored)  # accumulated in the weight's own, wider type
        token_losses = torch.cat(losses)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(token_losses)
        return token_losses.sum(), token_losses

    @staticmethod
    @once_differentiable  # the gradient is a constant here: a second derivative would be wrong
    def backward(ctx, grad_loss_sum, _):
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_loss_sum,
            None if grad_weight is None else grad_weight * grad_loss_sum,
            None,
            None,
        )
