"""Statistics of the routers: over a fixed set of tokens, the change between two evaluations of it, and in a step.

L MoE layers, E experts, k experts per token, N tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from architecture.interface import RouterStats


class Routing(NamedTuple):
    """Statistics of the routers over the tokens of an evaluation: those with a target, and all image tokens.

    Everything is on the CPU.
    """

    load: torch.Tensor  # (L, E) float64, assignments
    entropy: torch.Tensor  # (L,) float64, mean entropy of a token / ln E: 1 undecided, 0 certain
    margin: torch.Tensor  # (L,) float64, mean of largest minus second largest probability
    layers: tuple[int, ...]  # index in the model of each row
    choices: torch.Tensor | None  # (L, N, k) int32, sorted along k; None if not kept
    tokens: torch.Tensor | None  # (N,) int32, id of each routed token; None if not kept


class RoutingSums:
    """Accumulates a Routing over batches; keep_choices: with the experts of each token, 4*L*N*k bytes.

    first_image_id: ids from here on are image tokens; None for a model of text.
    """

    def __init__(self, keep_choices: bool, first_image_id: int | None = None):
        self.keep_choices, self.first_image_id = keep_choices, first_image_id
        self.sums: list[torch.Tensor] = []  # each (L, E + 3): load, entropy, margin, tokens
        self.choices: list[torch.Tensor] = []
        self.tokens: list[torch.Tensor] = []
        self.layers: tuple[int, ...] = ()

    def add(self, router: RouterStats, input_ids: torch.Tensor, counted: torch.Tensor) -> None:
        """Add one forward pass. input_ids: (B, T) int64.  counted: (B, T) bool, the positions with a target."""
        self.layers = router.layers
        if self.first_image_id is not None:
            counted = counted | (input_ids >= self.first_image_id)
        rows = []
        for load, logits in zip(router.load, router.logits):
            log_probability = logits.log_softmax(-1)
            probability = log_probability.exp()  # (B, T, E)
            best = probability.topk(min(2, logits.shape[-1]), dim=-1).values
            margin = best[..., 0] - best[..., -1]  # 0 if there is only one expert
            entropy = -(probability * log_probability).sum(-1) / math.log(max(2, logits.shape[-1]))
            means = torch.stack(((entropy * counted).sum(), (margin * counted).sum(), counted.sum()))
            rows.append(torch.cat((load, means)))
        self.sums.append(torch.stack(rows).cpu().double())
        if self.keep_choices:
            mask = counted.cpu()
            chosen = torch.stack([c.to(torch.int32) for c in router.chosen]).cpu()  # (L, B, T, k)
            self.choices.append(chosen[:, mask].sort(-1).values)
            self.tokens.append(input_ids.cpu()[mask].to(torch.int32))

    def result(self) -> Routing | None:
        """Return the statistics of all tokens; None for a model without routers."""
        if not self.sums:
            return None
        sums = torch.stack(self.sums).sum(0)
        return Routing(
            load=sums[:, :-3],
            entropy=sums[:, -3] / sums[:, -1],
            margin=sums[:, -2] / sums[:, -1],
            layers=self.layers,
            choices=torch.cat(self.choices, dim=1) if self.keep_choices else None,
            tokens=torch.cat(self.tokens) if self.keep_choices else None,
        )


MARGINS = (0.01, 0.05, 0.1)


def choice_margins(router: RouterStats) -> torch.Tensor:
    """How narrowly the experts of one forward pass were chosen: (L, 1 + len(MARGINS)) float32.

    The margin of a token is the k-th largest of the values that decide, minus the (k+1)-th: logits, or sigmoids of
    them with router=topk_sigmoid, plus the selection bias. The columns are the (lower) median of the counted
    tokens, and the shares of them with a margin under each of MARGINS. (L, 0) if every token takes all experts.
    """
    rows = []
    for layer in router.routing:
        k = layer.chosen.shape[-1]
        if k == layer.choice.shape[-1]:
            return layer.choice.new_zeros(len(router.routing), 0)
        best = layer.choice.topk(k + 1, dim=-1).values
        margin = best[:, k - 1] - best[:, k]  # (N,)
        # without a boolean index, which waits for the device; 0 for a batch without a counted token
        median = margin.where(layer.counts > 0, math.nan).nanmedian().nan_to_num()
        below = [layer.mean((margin < bound).to(margin.dtype)) for bound in MARGINS]
        rows.append(torch.stack((median, *below)))
    return torch.stack(rows)


class LogitGradients:
    """Sums, in the backward passes of a step, of the squared gradients with respect to the router logits.

    scale: factor of the gradients.  sums: (2, L), the squares and the number of logits, of the counted tokens;
    None if no router trains.
    Hooks on the logits see all of their gradient, and once, with activation checkpointing, too. They do not in a
    compiled block, whose logits get their main gradient inside.
    """

    def __init__(self, scale: float):
        self.scale, self.sums = scale, None

    def watch(self, router: RouterStats) -> None:
        """Add the coming backward pass of one forward pass."""
        for row, layer in enumerate(router.routing):
            if not layer.logits.requires_grad:
                continue
            if self.sums is None:
                self.sums = layer.logits.new_zeros(2, len(router.routing))
            counts, (squares, numbers) = layer.counts, self.sums
            numbers[row] += counts.sum() * layer.logits.shape[-1]

            def add(gradient: torch.Tensor, row=row, counts=counts, squares=squares) -> None:
                squares[row] += ((gradient * self.scale).square().sum(-1) * counts).sum()

            layer.logits.register_hook(add)


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

    kind_of_token: int64, from token_kinds, by id. Higher ids, which are image tokens, are of its last kind.
    Returns (L, K, E) float64, the share of each expert in the assignments of a kind (a row sums to 1, or to 0
    for a kind that did not occur), and (K,) int64, the number of tokens of each kind.
    """
    kinds = kind_of_token[routing.tokens.long().clamp(max=len(kind_of_token) - 1)]  # (N,)
    layers, num_experts = routing.load.shape
    pairs = kinds[:, None] * num_experts + routing.choices.long()  # (L, N, k)
    counts = torch.stack([row.flatten().bincount(minlength=num_kinds * num_experts) for row in pairs])
    counts = counts.view(layers, num_kinds, num_experts).double()
    return counts / counts.sum(-1, keepdim=True).clamp(min=1), kinds.bincount(minlength=num_kinds)


def share_by_medium(routing: Routing, first_image_id: int) -> torch.Tensor:
    """(2, L, E) float64, the share of each expert in the assignments of text tokens and of image tokens.

    A row of a medium without tokens is 0.
    """
    is_image = torch.arange(first_image_id + 1) == first_image_id
    return share_by_kind(routing, is_image.long(), 2)[0].transpose(0, 1)


def total_variation(share: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Half of the sum of absolute differences, from 0 (equal) to 1 (no expert in common): (L, E) -> (L,)."""
    return (share - other).abs().sum(-1) / 2
