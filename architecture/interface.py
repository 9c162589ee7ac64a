"""What every model promises: its output, its loss, and the balance of its routers.

The loss and the balance are defined here and not in the models, so that all models are compared by the same
numbers.

Optional attributes of a model class or a model, besides forward, config and new_cache:
carries            True if `carry` is a tensor (B, D) that is passed from segment to segment; forward then
                   takes reset, (B,) bool, the rows in which a document begins
extends            name of a model whose weights it can start from; added_parameters names those it adds
block              nn.ModuleList of its layers, which torch.compile compiles and FSDP shards one by one; parts of
                   the model may have one, too. The backward pass may compute a layer again (training/memory.py),
                   so a layer changes nothing but its results. The function in place of its forward has same_values
routed_experts     returns its modules with routed experts, which may be spread over devices: run_experts is their
                   backend, and expert_parameters names the parameters (E, ...) that it gets; routing_rule picks
                   the experts of a token, and another rule may take its place (gptoss.ROUTERS says what one returns)
new_decoder        creates the decoder of a model that reads a text in pieces (generation/decode.py)
lean_parts         classes of its modules, if generation/lean.py can decode the model; that holds for this class
                   only, not for one that extends it. lean_functions: its backends. lean_attention: with sinks
length_limit       largest number of tokens in a text, if that is not the context limit
optimizer_rules    optimizer groups of its own parameters (training/optimizer.py)
auto_backends      (config, device_type, dtype) -> {"attention": ..., "experts": ...}, what "auto" means there

The config of a model has parameter_counts(), matrix_parameters(), flops_per_token(block_size) and
bytes_kept_per_token(...), from which the cost of a run is computed; windows, dropout and context_limit; and
num_hidden_layers and further fields under the names of OpenAI's ModelConfig.

A model that reads images has image_format in its config: what it makes of one (architecture/images.py), or None if
its encoder is off. It has encode_images(images), which returns their features, and its forward takes `images`, or
`features` in their place.

Shapes: B batch, T tokens, N = tokens in a batch, D hidden_size, V vocabulary, L MoE layers, E experts.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100  # marks a target that is not scored; the default of F.cross_entropy
# next_token_loss computes blocks of this many logits: on a CPU they fit its caches, elsewhere they take 256 MB.
# A block has at least CHUNK_ROWS rows, because matrix products of fewer rows are slow.
CHUNK_ROWS = 256
CHUNK_LOGITS = {"cpu": 2**20, "other": 2**26}


class LayerRouting(NamedTuple):
    """The decisions of one router in a forward pass, from which RouterStats computes its figures."""

    logits: torch.Tensor  # (N, E) float32, with a gradient
    log_score: torch.Tensor  # (N, E) float32, with a gradient; its softmax is the probability of each expert
    chosen: torch.Tensor  # (N, k) int64, the experts before the capacity limit
    dropped: torch.Tensor  # () float32, share of the assignments beyond the capacity
    counted: torch.Tensor | None  # (B, T) bool, the positions that the figures count; None for all
    choice: torch.Tensor  # (N, E) float32 without a gradient, the values whose k largest are `chosen`

    @property
    def counts(self) -> torch.Tensor:
        """(N,) float32, 1 for a counted position, else 0."""
        ones = torch.ones_like(self.logits[:, 0])
        return ones if self.counted is None else self.counted.flatten().to(ones.dtype)

    @property
    def assigned(self) -> torch.Tensor:
        """(N, E) float32, 1 where a counted position chose an expert, else 0."""
        chosen = torch.zeros_like(self.log_score).scatter_(1, self.chosen, 1.0)
        return chosen * self.counts[:, None]

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the counted positions: (N, ...) -> (...)"""
        counts = self.counts
        total = counts.sum().clamp(min=1)
        return (values * counts.view(-1, *[1] * (values.ndim - 1))).sum(0) / total


@dataclass(frozen=True, eq=False)
class RouterStats:
    """How the routers of one forward pass distribute tokens over experts; one row per MoE layer.

    A figure is computed when it is first read, so that one that nobody reads costs nothing. Only positions with
    a target count, so that padding does not affect the balance. Without targets all positions count.
    """

    routing: tuple[LayerRouting, ...]
    layers: tuple[int, ...]  # index of the layer of each row
    # one tensor per MoE layer, for every position of input_ids, counted or not
    logits: tuple[torch.Tensor, ...]  # (B, T, E) float32, log_score without its gradient
    chosen: tuple[torch.Tensor, ...]  # (B, T, k) int64

    @functools.cached_property
    def balance_loss(self) -> torch.Tensor:
        """() float32, 1.0 when even, E/k when k experts take everything."""
        return load_balancing_loss(self.mean_probability, load_share(self.load))

    @functools.cached_property
    def z_loss(self) -> torch.Tensor:
        """() float32, mean squared logsumexp of the router logits."""
        return torch.stack([layer.mean(layer.logits.logsumexp(-1).square()) for layer in self.routing]).mean()

    @functools.cached_property
    def load(self) -> torch.Tensor:
        """(L, E) float32, assignments per expert before the capacity limit."""
        return torch.stack([layer.assigned.sum(0) for layer in self.routing])

    @functools.cached_property
    def mean_probability(self) -> torch.Tensor:
        """(L, E) float32, mean probability of each expert; has a gradient."""
        return torch.stack([layer.mean(layer.log_score.softmax(-1)) for layer in self.routing])

    @functools.cached_property
    def dropped(self) -> torch.Tensor:
        """(L,) float32, share of the assignments beyond the capacity."""
        return torch.stack([layer.dropped for layer in self.routing])


def documents_of(positions: torch.Tensor | None) -> torch.Tensor | None:
    """The number of the document that each token belongs to, if a row may have several.

    positions: (B or 1, T) int64; one that does not exceed the position before it begins a document. None, which
    counts from 0 to T, means one document and gives None.  Returns (B or 1, T) int64, counted from 0.
    """
    if positions is None:
        return None
    return torch.nn.functional.pad(positions.diff(dim=1) <= 0, (1, 0)).cumsum(1)


class ModelOutput(NamedTuple):
    """The result of forward. Losses are cross-entropy in nats; the trainer adds the auxiliary terms."""

    logits: torch.Tensor | None  # (B, T, V) float32; with targets only if return_logits
    loss_sum: torch.Tensor | None  # () float32, summed over the targets
    num_targets: torch.Tensor | None  # () int64
    token_losses: torch.Tensor | None  # (B, T) float32, detached, 0 where there is no target
    router: RouterStats | None  # None for a dense model
    cache: Any = None  # pass it as `cache` with the next tokens
    carry: Any = None  # pass it as `carry` with the next segment
    hidden: torch.Tensor | None = None  # (B, T, D), what the head reads; None with targets

    @property
    def loss(self) -> torch.Tensor:
        """Mean cross-entropy per target, nats, () float32."""
        return self.loss_sum / self.num_targets.clamp(min=1)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set the evaluation mode for the body."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def load_balancing_loss(mean_probability: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Load balancing loss of the Switch Transformer: E * sum_e f_e * P_e, averaged over the layers.

    mean_probability: P, (L, E) float32.  share: f, (L, E) float32, rows sum to 1, no gradient.
    Returns () float32: 1.0 for an even distribution, E/k if k experts take everything.
    Source: Fedus et al. 2021 (arXiv:2101.03961) eq. 4-6, with f as the share of the N*k assignments.
    The layers are not pooled, because two layers that collapsed onto different experts would look balanced.
    """
    num_experts = mean_probability.shape[-1]
    return (num_experts * (share.detach() * mean_probability).sum(-1)).mean()


def load_share(load: torch.Tensor) -> torch.Tensor:
    """(L, E) numbers of assignments -> (L, E) shares; each row sums to 1."""
    return load / load.sum(-1, keepdim=True).clamp(min=1)


def next_token_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross-entropy of `hidden @ weight.T`, in blocks, so that the logits are never in memory as a whole.

    hidden: (B, T, D).  weight: (V, D).  targets: (B, T) int64, IGNORE_INDEX where not scored.
    Returns loss_sum () float32 in nats, num_targets () int64, token_losses (B, T) float32 detached.
    """
    flat = targets.reshape(-1)
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(
            f"targets must have the shape {tuple(hidden.shape[:-1])}, one entry per position, "
            f"got {tuple(targets.shape)}; pass targets of the same shape as input_ids"
        )
    loss_sum, token_losses = _LinearCrossEntropy.apply(
        hidden.reshape(flat.shape[0], -1), weight, flat, torch.is_grad_enabled()
    )
    return loss_sum, (flat != IGNORE_INDEX).sum(), token_losses.view(targets.shape)


def logit_rows(vocab_size: int, device_type: str) -> int:
    """Number of rows in a block of next_token_loss, which holds two copies of the logits."""
    return max(CHUNK_ROWS, CHUNK_LOGITS.get(device_type, CHUNK_LOGITS["other"]) // vocab_size)


class _LinearCrossEntropy(torch.autograd.Function):
    """Head and loss in blocks of rows. The forward pass of a block also computes its gradients.

    A block takes three matrix products, as without blocks, and no product is repeated. Only the gradients
    (N, D) and (V, D) stay in memory. torch 2.13 has F.linear_cross_entropy for this, but torch 2.11 does not,
    and we need the loss of every token.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, grad_enabled):
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        block_weight = weight.to(dtype)
        # needs_input_grad is also True under no_grad
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
            # masked_fill and not clamp, so that any other negative target fails as in F.cross_entropy
            target = targets[block].unsqueeze(1).masked_fill(~scored, 0)
            top, label = logits.amax(-1, keepdim=True), logits.gather(1, target)
            softmax = logits.softmax(-1)
            # The largest probability is exp(top - normaliser) and at least 1/V, so its logarithm is accurate.
            # This takes two passes over the logits; logsumexp and exp take five.
            normaliser = top - softmax.amax(-1, keepdim=True).log()
            losses.append(((normaliser - label) * scored).squeeze(1))
            if not (need_hidden or need_weight):
                continue
            grad = softmax.scatter_add_(1, target, torch.full_like(normaliser, -1.0)).to(dtype)
            # rows that are not scored are masked in the narrow factor or result of each product
            if need_hidden:
                grad_hidden[block] = (grad @ block_weight) * scored
            if need_weight and dtype == weight.dtype:
                grad_weight.addmm_(grad.T, x * scored)
            elif need_weight:
                grad_weight += grad.T @ (x * scored)  # accumulated in the wider type of the weight
        token_losses = torch.cat(losses)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(token_losses)
        return token_losses.sum(), token_losses

    @staticmethod
    @once_differentiable  # the gradient is precomputed, so a second derivative would be wrong
    def backward(ctx, grad_loss_sum, _):
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_loss_sum,
            None if grad_weight is None else grad_weight * grad_loss_sum,
            None,
            None,
        )


def token_losses(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each token from `hidden @ weight.T`, with a gradient of its own, in blocks.

    hidden: (B, T, D).  weight: (V, D).  targets: (B, T) int64, IGNORE_INDEX where not scored.
    Returns (B, T) float32 (float64 for float64) in nats, 0 where not scored. The backward pass computes the
    logits again, because the gradient of `weight` depends on what each token's loss is multiplied by.
    """
    flat = targets.reshape(-1)
    return _TokenCrossEntropy.apply(hidden.reshape(len(flat), -1), weight, flat).view(targets.shape)


class _TokenCrossEntropy(torch.autograd.Function):
    """token_losses: keeps the input and one number for each token."""

    @staticmethod
    def blocks(hidden, weight, targets):
        """Yield (slice, x (n, D), logits (n, V) float32 or wider, target (n, 1), scored (n, 1)) of each block."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        rows = logit_rows(len(weight), device)
        for start in range(0, len(hidden), rows):
            block = slice(start, start + rows)
            x = hidden[block].to(dtype)
            logits = x @ weight.to(dtype).T
            scored = (targets[block] != IGNORE_INDEX).unsqueeze(1)
            target = targets[block].unsqueeze(1).masked_fill(~scored, 0)
            yield block, x, logits.to(torch.promote_types(dtype, torch.float32)), target, scored

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        normalisers, losses = [], []
        for _, _, logits, target, scored in _TokenCrossEntropy.blocks(hidden, weight, targets):
            normalisers.append(logits.logsumexp(-1, keepdim=True))
            losses.append(((normalisers[-1] - logits.gather(1, target)) * scored).squeeze(1))
        ctx.save_for_backward(hidden, weight, targets, torch.cat(normalisers))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_losses):
        hidden, weight, targets, normaliser = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # a head may be frozen
        for block, x, logits, target, scored in _TokenCrossEntropy.blocks(hidden, weight, targets):
            grad = (logits - normaliser[block]).exp_()
            grad.scatter_add_(1, target, torch.full_like(normaliser[block], -1.0))
            grad = (grad * (grad_losses[block].unsqueeze(1) * scored)).to(x.dtype)
            grad_hidden[block] = grad @ weight.to(x.dtype)
            if grad_weight is not None:
                grad_weight += grad.T @ x
        return grad_hidden, grad_weight, None
