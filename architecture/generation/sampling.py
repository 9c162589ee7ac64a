"""Filters of logits, and drawing an id.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch

MOSTLY_ENOUGH = 256  # logits that reach top_p in most texts; sorting all takes much longer
AHEAD = 32  # numbers that a row draws at once


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Keep exactly the k largest logits, or all if there are fewer; of equal logits the lower id is kept."""
    if k >= logits.shape[-1]:
        return logits
    number = torch.full((*logits.shape[:-1], 1), k, device=logits.device)
    return _keep_largest(logits, _largest(logits, k + 1), number)


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the fewest ids whose probabilities sum to at least p, the most probable first; 1 keeps all.

    Of equal logits the lower id is kept. Also called nucleus sampling (arXiv:1904.09751).
    """
    if p == 1:
        return logits  # rounding could make the sum reach 1 early
    most_probable = logits.amax(-1, keepdim=True)
    total = (logits - most_probable).exp_().sum(-1, keepdim=True)
    ordered = _largest(logits, MOSTLY_ENOUGH)
    mass = (ordered - most_probable).exp_().div_(total).cumsum(-1)
    if (mass[..., -1] < p).any():
        ordered = _largest(logits, logits.shape[-1])
        mass = ordered.softmax(-1).cumsum(-1)
    number = torch.searchsorted(mass, torch.full_like(mass[..., :1], p)) + 1  # whose sum reaches p
    return _keep_largest(logits, ordered, number.clamp(max=ordered.shape[-1]))


def _keep_largest(logits, ordered, number):
    """Keep `number` (B, 1) of the logits (B, V); of equal ones, the lower ids. ordered: the largest, in order."""
    size = ordered.shape[-1]
    least = ordered.gather(-1, number - 1)
    next_largest = ordered.gather(-1, number.clamp(max=size - 1))
    kept = logits >= least
    if (next_largest == least).any():  # perhaps others are equal to the least one
        above = logits > least
        equal = logits == least
        kept = above | equal & (equal.cumsum(-1) <= number - above.sum(-1, keepdim=True))
    return logits.where(kept, -torch.inf)


def _largest(logits: torch.Tensor, number: int) -> torch.Tensor:
    """The `number` largest logits, the largest first. (..., V) -> (..., number)

    numpy sorts thirteen times as fast as torch on a CPU with AVX-512 (4,096 float64).
    """
    values = logits.detach().cpu().numpy()
    if number < values.shape[-1]:
        values = np.partition(values, -number, axis=-1)[..., -number:]
    values = np.sort(values, axis=-1)[..., ::-1]
    return torch.from_numpy(values.copy()).to(logits.device)


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
    logits = (logits - logits.amax(-1, keepdim=True)).div_(temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return logits if min_p is None else keep_min_p(logits, min_p)


def row_generators(seed: int | str, rows: int) -> list[torch.Generator]:
    """One generator per row, seeded from (seed, row), so that a row does not depend on their number."""
    digests = (hashlib.blake2b(f"{seed} {row}".encode(), digest_size=7) for row in range(rows))
    return [torch.Generator().manual_seed(int(digest.hexdigest(), 16)) for digest in digests]


class NumbersAhead:
    """One number in [0, 1) per row and step, drawn in blocks: the same numbers as one by one, in less time."""

    def __init__(self, generators: Sequence[torch.Generator], steps: int):
        """steps: most numbers of a row."""
        self.generators, self.left = generators, steps
        # rows that share a generator take turns
        self.ahead = AHEAD if len(set(map(id, generators))) == len(generators) else 1
        self.rows: list[int] = []  # the rows whose numbers the block holds
        self.states: list[torch.Tensor] = []  # the states of their generators before the block was drawn
        self.used = self.size = 0

    def next(self, rows: list[int]) -> torch.Tensor:
        """The next number of each of these rows, (B,) float64. A row that is left out once has ended."""
        if self.used == self.size:
            self.size, self.used = min(self.ahead, self.left), 0
            self.rows, self.left = rows, self.left - self.size
            if self.size > 1:
                self.states = [self.generators[row].get_state() for row in rows]
            drawn = [
                torch.rand(self.size, generator=self.generators[row], dtype=torch.float64) for row in rows
            ]
            self.block = torch.stack(drawn, dim=1)  # (size, B)
        elif len(rows) < len(self.rows):
            wanted = set(rows)
            self._give_back([place for place, row in enumerate(self.rows) if row not in wanted])
            kept = [place for place, row in enumerate(self.rows) if row in wanted]
            self.block, self.states, self.rows = self.block[:, kept], [self.states[i] for i in kept], rows
        self.used += 1
        return self.block[self.used - 1]

    def give_back(self) -> None:
        """Leave every generator as if it had drawn only the numbers that were used."""
        self._give_back(range(len(self.rows)))
        self.used = self.size = 0

    def _give_back(self, places) -> None:
        if self.used < self.size:
            for place in places:
                generator = self.generators[self.rows[place]]
                generator.set_state(self.states[place])
                torch.rand(self.used, generator=generator, dtype=torch.float64)


def draw(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw one id per row with probability softmax(logits).

    logits: (B, V), -inf for an id that is never drawn.  uniform: (B,) float64 in [0, 1).  Returns (B,) int64.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)  # (B, V)
    # Rounding leaves the last sum beside 1. A float64 below 1 times this sum is less than it, also when rounded.
    uniform = uniform[:, None] * cumulative[:, -1:]
    # right=True finds the first sum above the number, so an id of probability 0 is never drawn.
    return torch.searchsorted(cumulative, uniform, right=True).squeeze(-1)


def require_finite(logits: torch.Tensor) -> None:
    """ValueError if a row of logits (B, V) has no finite maximum."""
    if not all(map(math.isfinite, logits.amax(-1).tolist())):
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
