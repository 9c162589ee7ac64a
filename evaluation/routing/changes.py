"""Change which experts run, without touching a weight: knock an expert out, or swap two.

A change replaces the routing rule of a layer (architecture/routing_rules.py). The next best expert takes the place of
one that is knocked out; the weights are then those of the experts that run.

Layers and experts are counted from 0. N tokens, E experts, k experts per token.
"""

# Import no torch here, so that --help is immediate.

from __future__ import annotations

import contextlib
import math
import re
from typing import Any, NamedTuple

from architecture.routing_rules import routers, routing_rules


class Change(NamedTuple):
    """What differs from the model as it is. Knock-outs come first, then the swaps."""

    knocked_out: tuple[tuple[int, int], ...] = ()  # (layer, expert)
    swapped: tuple[tuple[int, int, int], ...] = ()  # (layer, expert, other expert)

    @property
    def name(self) -> str:
        """Such as "without 1:3, 2:0", or "" for no change."""
        parts = []
        if self.knocked_out:
            parts.append("without " + ", ".join(f"{layer}:{expert}" for layer, expert in self.knocked_out))
        if self.swapped:
            parts.append("swapped " + ", ".join(f"{layer}:{a}={b}" for layer, a, b in self.swapped))
        return "; ".join(parts)


UNCHANGED = Change()


def knock_out(text: str) -> Change:
    """The change that "1:3" or "1:3,2:0" names. Raises ValueError."""
    if not re.fullmatch(r"\d{1,6}:\d{1,6}(,\d{1,6}:\d{1,6})*", text):
        raise ValueError(
            f"--knock_out takes LAYER:EXPERT, or several at once with commas, such as 1:3 or 1:3,2:0, got {text!r}"
        )
    return Change(knocked_out=tuple(tuple(map(int, part.split(":"))) for part in text.split(",")))


def swap(text: str) -> Change:
    """The change that "1:3=5" or "1:3=5,2:0=4" names. Raises ValueError."""
    pattern = r"\d{1,6}:\d{1,6}=\d{1,6}"
    if not re.fullmatch(f"{pattern}(,{pattern})*", text):
        raise ValueError(
            f"--swap takes LAYER:EXPERT=EXPERT, or several at once with commas, such as 1:3=5, got {text!r}"
        )
    return Change(swapped=tuple(tuple(map(int, re.split("[:=]", part))) for part in text.split(",")))


def require_possible(change: Change, model: Any) -> None:
    """Raise ValueError for a layer or an expert that the model does not have, or if too few experts are left."""
    found, config = routers(model), model.config
    experts, k = config.num_experts, config.experts_per_token
    for flag, parts in (("knock_out", change.knocked_out), ("swap", change.swapped)):
        for layer, *names in parts:
            if layer not in found:
                layers = ", ".join(map(str, found))
                raise ValueError(f"--{flag}: layer {layer} has no router; those with one are {layers}")
            if max(names) >= experts:
                raise ValueError(
                    f"--{flag}: layer {layer} has {experts} experts, 0 to {experts - 1}, got {max(names)}; name "
                    "one of them"
                )
    for layer, a, b in change.swapped:
        if a == b:
            raise ValueError(f"--swap takes two different experts, got {layer}:{a}={b}; name another one")
    for layer in found:
        gone = len({expert for where, expert in change.knocked_out if where == layer})
        if experts - gone < k:
            raise ValueError(
                f"--knock_out leaves {experts - gone} of {experts} experts in layer {layer}, and the router picks "
                f"{k} for each token; knock out {experts - k} at most"
            )


def changed(model: Any, change: Change) -> contextlib.AbstractContextManager[None]:
    """The model with a change, for as long as the `with` lasts.  Raises ValueError, see require_possible.

    All decoders of the model follow its rules. UNCHANGED replaces the rules by others with the same results, so
    that both sides of a comparison compute in the same way.
    """
    require_possible(change, model)

    def rule_of(layer: int, rule: Any) -> Any:
        gone = [expert for where, expert in change.knocked_out if where == layer]
        places = list(range(model.config.num_experts))  # which expert runs in the place of each
        for where, a, b in change.swapped:
            if where == layer:
                places[a], places[b] = places[b], places[a]

        def changed_rule(logits, selection_bias, k):
            bias = selection_bias.clone()
            bias[gone] = -math.inf
            index, *others = rule(logits, bias, k)
            return index.new_tensor(places)[index], *others

        return changed_rule

    return routing_rules(model, rule_of)
