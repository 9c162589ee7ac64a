"""Statistics of the routers over a fixed set of tokens, and the change between two evaluations of it.

L MoE layers, E experts, k experts per token, N tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from architecture.interface import RouterStats


class Routing(NamedTuple):
    """Statistics of the routers over all tokens of an evaluation. Everything is on the CPU."""

    load: torch.Tensor  # (L, E) float64, assignments
    entropy: torch.Tensor  # (L,) float64, mean entropy of a token / ln E: 1 undecided, 0 certain
    margin: torch.Tensor  # (L,) float64, mean of largest minus second largest probability
    layers: tuple[int, ...]  # index in the model of each row
    choices: torch.Tensor | None  # (L, N, k) int32, sorted along k; None if not kept
    tokens: torch.Tensor | None  # (N,) int32, id of each routed token; None if not kept


class RoutingSums:
    """Accumulates a Routing over batches; keep_choices: with the experts of each token, 4*L*N*k bytes."""

    def __init__(self, keep_choices: bool):
        self.keep_choices = keep_choices
        self.sums: list[torch.Tensor] = []  # each (L, E + 2): load, entropy, margin
        self.choices: list[torch.Tensor] = []
        self.tokens: list[torch.Tensor] = []
        self.layers: tuple[int, ...] = ()

    def add(self, router: RouterStats, input_ids: torch.Tensor, counted: torch.Tensor) -> None:
        """Add one forward pass. input_ids: (B, T) int64.  counted: (B, T) bool, the positions that count."""
        self.layers = router.layers
        rows = []
        for load, logits in zip(router.load, router.logits):
            log_probability = logits.log_softmax(-1)
            probability = log_probability.exp()  # (B, T, E)
            best = probability.topk(min(2, logits.shape[-1]), dim=-1).values
            margin = best[..., 0] - best[..., -1]  # 0 if there is only one expert
            entropy = -(probability * log_probability).sum(-1) / math.log(max(2, logits.shape[-1]))
            means = torch.stack(((entropy * counted).sum(), (margin * counted).sum()))
            rows.append(torch.cat((load, means)))
        self.sums.append(torch.stack(rows).cpu().double())
        if self.keep_choices:
            mask = counted.cpu()
            chosen = torch.stack([c.to(torch.int32) for c in router.chosen]).cpu()  # (L, B, T, k)
            self.choices.append(chosen[:, mask].sort(-1).values)
            self.tokens.append(input_ids.cpu()[mask].to(torch.int32))

    def result(self, num_tokens: float) -> Routing | None:
        """Return the statistics of num_tokens tokens; None for a model without routers."""
        if not self.sums:
            return None
        sums = torch.stack(self.sums).sum(0)
        return Routing(
            load=sums[:, :-2],
            entropy=sums[:, -2] / num_tokens,
            margin=sums[:, -1] / num_tokens,
            layers=self.layers,
            choices=torch.cat(self.choices, dim=1) if self.keep_choices else None,
            tokens=torch.cat(self.tokens) if self.keep_choices else None,
        )


def max_violation(load: torch.Tensor) -> torch.Tensor:
    """Load of the busiest expert / mean load - 1, which is 0 for even loads: (L, E) -> (L,)."""
    return load.max(-1).values / load.mean(-1).clamp(min=1e-9) - 1


def dead_experts(load: torch.Tensor) -> torch.Tensor:
    """Number of experts with less than 1 % of an even load: (L, E) -> (L,)."""
    return (load < 0.01 * load.mean(-1, keepdim=True)).sum(-1)


def flip_rate(before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """Share of tokens whose set of experts changed: (L, N, k) choices before and now -> (L,)."""
    return (before != now).any(-1).double().mean(-1)


def share_by_kind(
    routing: Routing, kind_of_token: torch.Tensor, num_kinds: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Count which experts take which kinds of token.

    kind_of_token: (V,) int64, from token_kinds.
    Returns (L, K, E) float64, the share of each expert in the assignments of a kind (a row sums to 1, or to 0
    for a kind that did not occur), and (K,) int64, the number of tokens of each kind.
    """
    kinds = kind_of_token[routing.tokens.long()]  # (N,)
    layers, num_experts = routing.load.shape
    pairs = kinds[:, None] * num_experts + routing.choices.long()  # (L, N, k)
    counts = torch.stack([row.flatten().bincount(minlength=num_kinds * num_experts) for row in pairs])
    counts = counts.view(layers, num_kinds, num_experts).double()
    return counts / counts.sum(-1, keepdim=True).clamp(min=1), kinds.bincount(minlength=num_kinds)
