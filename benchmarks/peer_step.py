"""The same training step for our model and for transformers' GptOssForCausalLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

LR = 1e-3


def training_peer(model: nn.Module, experts: str) -> nn.Module:
    """The peer with the same weights, in training mode; experts: its implementation of the experts."""
    from benchmarks.parity import build_peer

    peer = build_peer(model)
    peer.set_experts_implementation(experts)
    return peer.train()


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), fused=True)


def loss_of(forward: Callable[..., Any], batch: torch.Tensor, ours: bool) -> torch.Tensor:
    """Nats per token, () float32.  forward: a model, compiled or not.  batch: (B, T + 1) int64."""
    ids, targets = batch[:, :-1], batch[:, 1:]
    if ours:
        return forward(ids, targets).loss
    logits = forward(ids, use_cache=False).logits  # with labels, the peer would shift them once more
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
