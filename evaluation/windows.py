"""Ways in which a model without a state can read a document that is longer than its window.

plain       each window begins anew
overlap_N   the first N tokens of a window repeat the last N of the window before, and are not scored again
kept_N      the keys and values of the last N tokens of a window stay visible in the next one, and positions go on:
            the memory of Transformer-XL (arXiv:1901.02860, section 3.2), here without training for it

All score every token once. None changes the model, so they are the rivals of a state that is carried. An overlap
costs windows; kept keys cost memory, and positions further apart than in training.

Shapes: B documents, T tokens of the longest document.
"""

# Import no torch here, so that --help is immediate.

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class Reading(NamedTuple):
    """A way to read; overlap or kept is 0."""

    overlap: int = 0
    kept: int = 0

    @property
    def name(self) -> str:
        return f"overlap_{self.overlap}" if self.overlap else f"kept_{self.kept}" if self.kept else "plain"


class Scores(NamedTuple):
    """What a reading found, and what it cost."""

    losses: torch.Tensor  # (B, T) float64, nats of every token, 0 after the end of a document
    windows: torch.Tensor  # (B,) int64, windows with tokens of the document
    computed: torch.Tensor  # (B,) int64, tokens that the model computed, without padding


def readings(
    model: Any, window: int, overlaps: tuple[int, ...] = (), kept: tuple[int, ...] = ()
) -> tuple[Reading, ...]:
    """plain, then the asked for.  Raises ValueError for what the model or its window does not allow."""
    config = model.config
    for flag, numbers, most in (("overlap", overlaps, window - 1), ("keep_keys", kept, window)):
        if len(set(numbers)) < len(numbers) or not all(1 <= number <= most for number in numbers):
            raise ValueError(
                f"--{flag} must hold different numbers of tokens from 1 to {most}, for a window of {window}, got "
                f"{','.join(map(str, numbers))}; change it"
            )
    if kept and getattr(config, "position", None) == "learned":
        raise ValueError(
            "--keep_keys needs positions that go on from window to window, and a table of learned positions is "
            f"trained for the first {window} only; use --overlap"
        )
    if kept and window + max(kept) > config.context_limit:
        raise ValueError(
            f"--keep_keys {max(kept)} and a window of {window} must be at most the context limit "
            f"({config.context_limit}) together; keep fewer"
        )
    return Reading(), *(Reading(overlap=n) for n in overlaps), *(Reading(kept=n) for n in kept)


def read(
    model: Any,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    window: int,
    reading: Reading,
    autocast: Callable[[], Any],
) -> Scores:
    """Score all targets of some documents, under torch.no_grad().

    inputs, targets: (B, T) int64 on the CPU, targets IGNORE_INDEX after the end of a document.
    window: tokens that the model computes at once, with those that overlap.
    """
    import torch

    from architecture.interface import IGNORE_INDEX

    device, real = next(model.parameters()).device, targets != IGNORE_INDEX
    cache = _kept_keys(model, len(inputs), window, reading.kept) if reading.kept else None
    windows, computed = torch.zeros(2, len(inputs), dtype=torch.int64)
    losses, scored = [], 0
    while scored < inputs.shape[1]:
        begin = max(0, scored - reading.overlap)
        part = slice(begin, begin + window)
        given = {} if cache is None else {"cache": cache}
        with autocast():
            output = model(inputs[:, part].to(device), targets[:, part].to(device), **given)
        losses.append(output.token_losses[:, scored - begin :].double().cpu())
        goes_on = real[:, scored : part.stop].any(1)
        windows += goes_on
        computed += goes_on * real[:, part].sum(1)
        if cache is not None:
            cache.forget()
        scored = part.stop
    return Scores(torch.cat(losses, dim=1), windows, computed)


def require_plain_beginning(found: dict[str, Scores], window: int, dtype: torch.dtype) -> None:
    """Raise ValueError if a reading does not score the first window as the plain reading does.

    The causality probe calls the model as the plain reading does. Other readings pass through a cache, and could see
    later tokens there alone; in the first window nothing is kept or repeated yet. The median is compared, because
    rounding can change the experts of a few tokens.
    """
    from training.causality_passes import LOSS_ROUNDING, ROUNDING

    plain, allowed = found[Reading().name].losses[:, :window], ROUNDING[dtype] + LOSS_ROUNDING
    for name, scores in found.items():
        change = (scores.losses[:, :window] - plain)[plain != 0].abs().median()
        if not change <= allowed:
            raise ValueError(
                f"{name} is not scored: in the first window, where nothing is kept yet, its losses differ from those of "
                f"the model that passed the causality probe by {change:.2g} nats (median), and rounding explains "
                f"{allowed:.2g}; look for what a cache changes in a mask or in positions (docs/comparing.md)"
            )


def _kept_keys(model: Any, rows: int, window: int, kept: int) -> Any:
    """An empty cache whose forget() leaves the last `kept` tokens."""
    from architecture.generation.cache import KVCache

    class KeptKeys(KVCache):
        """One slot per token in every layer: what a sliding window hides is hidden by the mask alone."""

        def extend(self, window, positions):
            return super().extend(None, positions)  # layers with other windows write the same positions again

        def forget(self) -> None:
            left = min(kept, self.length)
            for store in (self.positions[None], *self.keys, *self.values):
                store[:, :left] = store[:, self.length - left : self.length].clone()
            self.length = left

    config, weight = model.config, model.embedding.weight
    head_shape = (config.num_key_value_heads, config.head_dim)
    layers = (None,) * config.num_hidden_layers
    return KeptKeys(layers, rows, kept + window, head_shape, weight.device, weight.dtype)
