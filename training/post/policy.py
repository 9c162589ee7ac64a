"""The log-probabilities that a model gives to responses."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import nn

from architecture.interface import IGNORE_INDEX, RouterStats, token_losses


class Scored(NamedTuple):
    """What a model says about rows of tokens."""

    logprobs: torch.Tensor  # (B, T) float32, of each target, 0 where there is none
    hidden: torch.Tensor  # (B, T, D), what the head read
    router: RouterStats | None  # counts the positions with a target; None for a dense model


def score(
    model: nn.Module,
    input_ids: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 1.0,
    positions: torch.Tensor | None = None,
) -> Scored:
    """The log-probability of each target at a temperature, with gradients unless they are off.

    input_ids, targets: (B, T) int64; targets are IGNORE_INDEX where not scored.  positions: as in forward.
    The temperature must be that of the sampler, so that the ratio of a policy to itself is 1.
    """
    out = model(input_ids, positions=positions, return_logits=False)
    weight = model.unembedding.weight[: model.config.num_ids]
    hidden = out.hidden if temperature == 1 else out.hidden / temperature
    losses = token_losses(hidden, weight, targets)
    return Scored(-losses, out.hidden, counted(out.router, targets != IGNORE_INDEX))


def counted(router: RouterStats | None, mask: torch.Tensor) -> RouterStats | None:
    """The statistics over the positions of mask, (B, T) bool."""
    if router is None:
        return None
    return dataclasses.replace(router, routing=tuple(r._replace(counted=mask) for r in router.routing))
