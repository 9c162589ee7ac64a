"""Replace the rule by which routers choose experts, for as long as a `with` lasts, without touching a weight.

A rule is called as rule(logits, selection_bias, k), and selection_bias affects the choice only (ROUTERS in gptoss.py).
So a bias of minus infinity takes an expert out of the choice of any rule, and the weights are those of the experts
that run, from the logits of now.

Shapes: N tokens, E experts, k experts per token.
"""

# Import no torch here, so that the --help of those who import this module is immediate.

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any


def routers(model: Any) -> dict[int, Any]:
    """The modules with routed experts, by layer. Raises ValueError for a model without any."""
    modules = model.routed_experts() if hasattr(model, "routed_experts") else []
    if not modules:
        raise ValueError(
            f"this {model.name} model is dense: no layer has a router, so there is no routing to look at; give a "
            "checkpoint with experts"
        )
    return dict(zip(sorted(model.config.resolved_moe_layers), modules))


@contextlib.contextmanager
def routing_rules(model: Any, rule_of: Callable[[int, Any], Any]) -> Iterator[None]:
    """Give each router the rule rule_of(layer, its own rule), and its own rule back at the end."""
    found = routers(model)
    own = {layer: mlp.routing_rule for layer, mlp in found.items()}
    try:
        for layer, mlp in found.items():
            mlp.routing_rule = rule_of(layer, own[layer])
        yield
    finally:
        for layer, mlp in found.items():
            mlp.routing_rule = own[layer]


def forced(rule: Callable, choose: Callable[[Any], Any]) -> Callable:
    """`rule` with another choice of experts. The values that would have decided, `choice`, are those of `rule`.

    choose: gets the experts of the rule, (N, k) int64, and returns the experts that run, of the same shape.
    They are put in the order of the rule, so that its own choice gives the same bits.
    """

    def forced_rule(logits, selection_bias, k):
        own = rule(logits, selection_bias, k)
        excluded = logits.new_ones(logits.shape).bool().scatter_(1, choose(own[0]), False)
        bias = selection_bias.expand_as(logits).masked_fill(excluded, -math.inf)
        return *rule(logits, bias, k)[:3], own[3]

    return forced_rule
