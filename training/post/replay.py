"""The experts that the sampler chose: their record, training that follows it, and how often training would not.

Shapes: R responses, B of them in a micro-batch, T input tokens, L layers with a router, k experts per token.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from architecture.interface import RouterStats
from architecture.routing_rules import forced, routing_rules


def chosen_experts(
    log: list[tuple[list[int], torch.Tensor]], starts: Sequence[int], ends: Sequence[int]
) -> torch.Tensor:
    """(R, T, L, k) int64 from what generate_steps put into `routing`; -1 where the sampler did not choose.

    starts, ends: lengths of each prompt, and of it with its response, whose last token the sampler never read.
    """
    _, first = log[0]
    L, _, longest, k = first.shape
    found = torch.full((len(starts), max(ends) - 1, L, k), -1)
    for row, start in enumerate(starts):
        found[row, :start] = first[:, row, longest - start :].transpose(0, 1)
    start, end = torch.tensor(starts), torch.tensor(ends)
    for number, (held, chosen) in enumerate(log[1:]):
        rows = torch.tensor(held)
        place = start[rows] + number
        read = place < end[rows] - 1
        found[rows[read], place[read]] = chosen[:, read, 0].transpose(0, 1)
    return found


@contextlib.contextmanager
def replayed_routing(model: nn.Module) -> Iterator[Callable[[torch.Tensor | None], None]]:
    """Have the routers of a model follow recorded experts, in the forward pass and when a block is computed again.

    Yields a function that takes the experts to follow until its next call, (B, T, L, k) int64; -1 and None leave the
    choice to the router. The router's probabilities are its present ones, from all of its logits, so that it has a gradient.
    """
    recorded: list[torch.Tensor] = []  # (B * T, k) of each layer with a router
    numbers = itertools.count()

    def rule_of(layer: int, rule: Callable) -> Callable:
        number = next(numbers)  # routing_rules asks in the order of the layers

        def choose(own: torch.Tensor) -> torch.Tensor:
            if not recorded:
                return own
            experts = recorded[number].to(own.device)
            return torch.where(experts >= 0, experts, own)

        return forced(rule, choose)

    def follow(chosen: torch.Tensor | None) -> None:
        recorded[:] = [] if chosen is None else [layer.flatten(0, 1) for layer in chosen.unbind(2)]

    with routing_rules(model, rule_of):
        yield follow


def flips(router: RouterStats, chosen: torch.Tensor) -> torch.Tensor:
    """(2,) int64: how many choices of the routers differ from recorded ones as sets, and how many were compared.

    chosen: (B, T, L, k) int64, -1 where unknown.  Under replayed_routing, the choices that the routers would have made count.
    """
    k = chosen.shape[-1]
    own = [layer.choice.topk(k, dim=-1).indices.view(*chosen.shape[:2], k) for layer in router.routing]
    known = chosen[..., 0] >= 0
    differ = (torch.stack(own, dim=2).sort(-1).values != chosen.sort(-1).values).any(-1)
    return torch.stack(((differ & known).sum(), known.sum()))  # an index would wait for the device
