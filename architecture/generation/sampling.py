"""Filters of logits, and drawing an id.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math

import torch


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Keep exactly the k largest logits, or all if there are fewer; of equal logits the lower id is kept."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return logits.scatter(-1, order[..., min(k, order.shape[-1]) :], -torch.inf)


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the fewest ids whose probabilities sum to at least p, the most probable first; 1 keeps all.

    Of equal logits the lower id is kept. Also called nucleus sampling (arXiv:1904.09751).
    """
    if p == 1:
        return logits  # rounding could make the sum reach 1 early
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    mass = ordered.softmax(-1).cumsum(-1)
    dropped = mass.roll(1, dims=-1) >= p  # the ids before this one already reach p
    dropped[..., 0] = False
    return logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)


def keep_min_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep ids at least p times as probable as the most probable one (arXiv:2407.01082); 0 keeps all."""
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
    """Apply temperature (above 0), then top-k, top-p and min-p, each to what the one before it kept."""
    # Subtracting the maximum first keeps a tiny temperature from overflowing.
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return logits if min_p is None else keep_min_p(logits, min_p)


def row_generators(seed: int, rows: int) -> list[torch.Generator]:
    """One generator per row, seeded from (seed, row), so that a row does not depend on their number."""
    digests = (hashlib.blake2b(f"{seed} {row}".encode(), digest_size=7) for row in range(rows))
    return [torch.Generator().manual_seed(int(digest.hexdigest(), 16)) for digest in digests]


def draw(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw one id per row with probability softmax(logits).

    logits: (B, V), -inf for an id that is never drawn.  uniform: (B,) float64 in [0, 1).  Returns (B,) int64.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)  # (B, V)
    cumulative = cumulative / cumulative[:, -1:]  # the last is exactly 1, above every uniform number
    # right=True finds the first sum above the number, so an id of probability 0 is never drawn.
    return torch.searchsorted(cumulative, uniform[:, None], right=True).squeeze(-1)


def require_finite(logits: torch.Tensor) -> None:
    """ValueError if a row of logits (B, V) has no finite maximum."""
    if not logits.amax(-1).isfinite().all():
        raise ValueError(
            "the model's logits are not finite, so no token can be sampled; "
            "use a checkpoint from before the loss became NaN or infinite"
        )


def check_sampling(max_tokens, temperature, top_k=None, top_p=None, min_p=None) -> None:
    """ValueError for an option of generate_steps that is out of range."""
    all_ids = "leave it out to keep all"
    for name, value, holds, rule, way_out in (
        ("max_tokens", max_tokens, max_tokens >= 1, "at least 1", "ask for 1 token or more"),
        ("temperature", temperature, 0 <= temperature < math.inf, "finite and at least 0", "0 is greedy"),
        ("top_k", top_k, top_k is None or top_k >= 1, "at least 1", all_ids),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1, "above 0 and at most 1", all_ids),
        ("min_p", min_p, min_p is None or 0 <= min_p <= 1, "from 0 to 1", all_ids),
    ):
        if not holds:
            raise ValueError(f"{name} must be {rule}, got {value}; {way_out}")
