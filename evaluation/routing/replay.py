"""Split the difference between two ways to compute one model into arithmetic and routing flips.

A and B are backends and precisions of the same weights. B runs twice: by itself, and forced along the routing of
A, where each token goes to the experts that A chose and the weights are B's own for these experts. Then

    logits of B - logits of A  =  (forced - A)      arithmetic: the same experts, other rounding
                                + (B - forced)      flips: tokens that went to other experts
    KL(A || B)                 =  KL(A || forced)   arithmetic
                                + the rest          flips

Both sums hold exactly. Logits are taken minus their mean over the ids, because a constant changes no probability.
The share of a part in the logits is <part, difference> / <difference, difference>, summed over tokens; the two
shares add up to 1, and one can be negative if the parts work against each other. With A and B exchanged the parts
differ somewhat: they are those of the other order.

A flip is direct if the forced B, on the hidden states of A's routing, would have chosen other experts as well. The
other flips follow from flips in earlier layers or at earlier tokens.

Shapes: T tokens, L layers with a router, E experts, k experts per token, V ids.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

from architecture.routing_rules import forced as forced_rule
from architecture.routing_rules import routers, routing_rules

DTYPES = ("float32", "bfloat16", "float64")


class Backend(NamedTuple):
    """A way to compute a model: names of backends, and the type of the computations."""

    experts: str
    attention: str
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.experts}+{self.attention}:{self.dtype}"


class Pass(NamedTuple):
    """One forward pass."""

    logits: torch.Tensor  # (T, V) float64, minus their mean over the ids
    chosen: torch.Tensor  # (L, T, E) bool, the experts that run
    choice: torch.Tensor  # (L, T, E) float64, the values whose k largest the model would choose


class Split(NamedTuple):
    """A difference of two passes, in parts; all on the CPU."""

    arithmetic: torch.Tensor  # (T, V) float64, forced - A
    flips: torch.Tensor  # (T, V) float64, B - forced
    kl: torch.Tensor  # (T,) float64, KL(A || B) in nats
    kl_arithmetic: torch.Tensor  # (T,) float64, KL(A || forced)
    flipped: torch.Tensor  # (L, T) bool, B ran other experts than A
    direct: torch.Tensor  # (L, T) bool, the forced B would have chosen other experts than A
    lead: torch.Tensor | None  # (L, T) float64, A's last chosen value minus the next; None if all experts run
    error: torch.Tensor  # (L, T) float64, largest difference of these values between the forced B and A
    bits: torch.Tensor  # (3, T) float64, bits of each token by A, by the forced B and by B; 0 for the first
    control: (
        float  # largest difference of logits between A and A forced along its own routing; 0 if all is well
    )

    @property
    def shares(self) -> tuple[float, float] | None:
        """The shares of arithmetic and flips in the difference of the logits; None without a difference."""
        difference = self.arithmetic + self.flips
        total = float(difference.square().sum())
        parts = (self.arithmetic, self.flips)
        return tuple(float((part * difference).sum()) / total for part in parts) if total else None

    @property
    def kl_shares(self) -> tuple[float, float] | None:
        """The shares of arithmetic and flips in KL(A || B); None if it is 0."""
        total = float(self.kl.sum())
        share = float(self.kl_arithmetic.sum()) / total if total else math.nan
        return (share, 1 - share) if total else None


def parse_backend(text: str) -> Backend:
    """The backend that "loop:float32" or "sorted+eager:bfloat16" names. Raises ValueError.

    The constructor of the model checks the names of the backends.
    """
    names, colon, dtype = text.partition(":")
    experts, _, attention = names.partition("+")
    if not colon or not experts or dtype not in DTYPES:
        raise ValueError(
            f"--replay takes EXPERTS:DTYPE or EXPERTS+ATTENTION:DTYPE, with DTYPE one of {', '.join(DTYPES)}, such "
            f"as loop:float32 or sorted+eager:bfloat16, got {text!r}"
        )
    return Backend(experts, attention or "auto", dtype)


@torch.no_grad()
def run(model: Any, ids: torch.Tensor, autocast: Callable[[], AbstractContextManager]) -> Pass:
    """One pass over ids (1, T). Raises ValueError if the logits are not finite."""
    T = ids.shape[1]
    with autocast():
        output = model(ids)
    logits = output.logits[0, :, : model.config.num_ids].double().cpu()
    if not logits.isfinite().all():
        raise ValueError("the logits are not finite, so they have no difference; give an earlier checkpoint")
    layers = output.router.routing
    # the last T rows of a router, because a model with a state has a slot in front of the tokens
    chosen = [
        torch.zeros_like(r.choice, dtype=torch.bool).scatter_(1, r.chosen, True)[-T:].cpu() for r in layers
    ]
    choice = [r.choice[-T:].double().cpu() for r in layers]
    return Pass(logits - logits.mean(-1, keepdim=True), torch.stack(chosen), torch.stack(choice))


def forced(
    model: Any, ids: torch.Tensor, autocast: Callable[[], AbstractContextManager], chosen: torch.Tensor
) -> Pass:
    """As run(), but each token goes to the experts `chosen` (L, T, E) of another pass.

    The result has the forced experts in `chosen`, and in `choice` the values of the model's own rule.
    """
    experts = {layer: rows.nonzero()[:, 1].view(len(rows), -1) for layer, rows in zip(routers(model), chosen)}

    def rule_of(layer: int, rule: Any) -> Any:
        def choose(own: torch.Tensor) -> torch.Tensor:
            # a slot in front, which is no token, keeps the model's own choice
            return torch.cat((own[: -len(experts[layer])], experts[layer].to(own.device)))

        return forced_rule(rule, choose)

    with routing_rules(model, rule_of):
        return run(model, ids, autocast)


def split(
    model_a: Any,
    model_b: Any,
    ids: torch.Tensor,
    autocast_a: Callable[[], AbstractContextManager],
    autocast_b: Callable[[], AbstractContextManager],
) -> Split:
    """Split the difference of two models with the same routers. ids: (1, T) int64, for the device of both.

    autocast_a, autocast_b: make the contexts in which the models compute.
    """
    a, b = run(model_a, ids, autocast_a), run(model_b, ids, autocast_b)
    forced_b = forced(model_b, ids, autocast_b, a.chosen)
    again = forced(model_a, ids, autocast_a, a.chosen)
    log_a, log_b, log_forced = (p.logits.log_softmax(-1) for p in (a, b, forced_b))
    k = int(a.chosen[0, 0].sum())
    would = torch.zeros_like(a.chosen).scatter_(-1, forced_b.choice.topk(k, dim=-1).indices, True)
    top = a.choice.topk(k + 1, dim=-1).values if k < a.choice.shape[-1] else None
    return Split(
        arithmetic=forced_b.logits - a.logits,
        flips=b.logits - forced_b.logits,
        kl=_kl(log_a, log_b),
        kl_arithmetic=_kl(log_a, log_forced),
        flipped=(a.chosen != b.chosen).any(-1),
        direct=(a.chosen != would).any(-1),
        lead=None if top is None else top[..., k - 1] - top[..., k],
        error=(forced_b.choice - a.choice).abs().amax(-1),
        bits=torch.stack([_bits(log, ids) for log in (log_a, log_forced, log_b)]),
        control=float((again.logits - a.logits).abs().max()),
    )


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of each row, in nats: (T, V) -> (T,)"""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _bits(log_probability: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Bits to predict each token from those before it: (T, V), ids (1, T) -> (T,)"""
    found = torch.zeros(len(log_probability), dtype=torch.float64)
    found[1:] = -log_probability[:-1].gather(1, ids[0, 1:, None].cpu())[:, 0] / math.log(2)
    return found


def load(path: str, backend: Backend, device: Any) -> tuple[Any, Callable[[], AbstractContextManager]]:
    """The model of a checkpoint with these backends, and what makes the context in which it computes."""
    from architecture.registry import load_model
    from common.device import autocast

    model = load_model(path, device=device, attention=backend.attention, experts=backend.experts)
    if backend.dtype == "float64":
        return model.double(), functools.partial(autocast, device, "float32")
    return model, functools.partial(autocast, device, backend.dtype)


def table(found: Split, layers: list[int]) -> list[tuple[int, int, int, float, float, float]]:
    """For each layer: its index, flips, direct flips, median lead of all tokens and of those with a flip, and the
    median error of the values that decide. Medians are nan without a token.
    """
    nan = torch.full_like(found.error, math.nan)
    lead = nan if found.lead is None else found.lead
    return [
        (
            layer,
            int(found.flipped[row].sum()),
            int((found.flipped & found.direct)[row].sum()),
            float(lead[row].median()),
            float(lead[row][found.flipped[row]].median()) if found.flipped[row].any() else math.nan,
            float(found.error[row].median()),
        )
        for row, layer in enumerate(layers)
    ]
