"""What the logits allow, and drawing from it.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math

import torch


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Exactly the k largest (all, when there are fewer); among equals the lower id wins."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return logits.scatter(-1, order[..., min(k, order.shape[-1]) :], -torch.inf)


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """The smallest set of largest probabilities whose sum reaches p, at least one; 1 keeps all.

    Among equals the lower id wins. Also called nucleus sampling (arXiv:1904.09751).
    """
    if p == 1:
        return logits  # rounding could make the sum reach 1 early
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    mass = ordered.softmax(-1).cumsum(-1)
    dropped = mass.roll(1, dims=-1) >= p  # the mass in front of an id has reached p already
    dropped[..., 0] = False
    return logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)


def keep_min_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Those at least p times as probable as the most probable (arXiv:2407.01082); 0 keeps all."""
    if p == 0:
        return logits
    least = logits.amax(-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < least, -torch.inf)


def filter_logits(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> torch.Tensor:
    """Temperature (above 0), then top-k, top-p, min-p; each works on what the one before it left."""
    # the maximum first: a tiny temperature must not overflow
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return logits if min_p is None else keep_min_p(logits, min_p)


def row_generators(seed: int, rows: int) -> list[torch.Generator]:
    """One generator per row, from (seed, row): more rows do not change the earlier ones."""
    digests = (hashlib.blake2b(f"{seed} {row}".encode(), digest_size=7) for row in range(rows))
    return [torch.Generator().manual_seed(int(digest.hexdigest(), 16)) for digest in digests]


def draw(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One id per row in proportion to exp(logits).

    logits: (B, V), -inf for never.  uniform: (B,) float64 in [0, 1). Returns (B,) int64.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)  # (B, V)
    cumulative = cumulative / cumulative[:, -1:]  # ends at exactly 1, above every uniform number
    # right=True: the first id whose sum is above the number, never one that adds nothing to it
    return torch.searchsorted(cumulative, uniform[:, None], right=True).squeeze(-1)


def require_finite(logits: torch.Tensor) -> None:
    """ValueError where a row (B, V) has nothing to choose from."""
    if not logits.amax(-1).isfinite().all():
        raise ValueError(
            "the model's logits are not finite, so nothing can be sampled; "
            "use a checkpoint from before its loss became NaN or infinite"
        )


def check_sampling(max_tokens, temperature, top_k=None, top_p=None, min_p=None) -> None:
    """ValueError for an option of generate_steps that is out of range."""
    for name, value, holds, rule, way_out in (
        ("max_tokens", max_tokens, max_tokens >= 1, "at least 1", "ask for 1 token or more"),
        ("temperature", temperature, 0 <= temperature < math.inf, "finite and at least 0", "0 is greedy, 1 the model's own"),
        ("top_k", top_k, top_k is None or top_k >= 1, "at least 1", "leave it out to keep all"),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1, "above 0 and at most 1", "leave it out to keep all"),
        ("min_p", min_p, min_p is None or 0 <= min_p <= 1, "from 0 to 1", "leave it out to keep all"),
    ):  # fmt: skip
        if not holds:
            raise ValueError(f"{name} must be {rule}, got {value}; {way_out}")
