"""The passes of the causality probe (training/causality.py): what the model gets, and what must not move.

Shapes: B rows, T tokens, V vocabulary, D hidden_size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from architecture.interface import IGNORE_INDEX, ModelOutput

# The largest change that rounding explains, as a share of the largest value compared. On a CPU, the logits of 640
# models with up to three times the usual weights moved by at most 3.3e-6 of it in float32 and 6.0e-15 in float64.
# In narrow types the logits themselves are rounded. In bfloat16 none moved, and with the results of the experts off
# by their last bit, none by more than 7.4e-3, which is the last bit of a logit; here four times that is allowed.
ROUNDING = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 2.0**-8, torch.bfloat16: 2.0**-5}
LOSS_ROUNDING = 1e-5  # nats: the logarithm in a loss is float32, whatever the logits are


class Inputs(NamedTuple):
    """What a pass gets. targets are no part of the base: any targets must give the same logits."""

    ids: torch.Tensor  # (B, T) int64
    targets: torch.Tensor  # (B, T) int64
    images: torch.Tensor | None = None  # (B, 3, S, S) uint8, one in each row
    image_start: int = 0  # position of their first token
    reset: torch.Tensor | None = None  # (B,) bool, for a model with a carry
    carry: torch.Tensor | None = None  # (B, D)

    def batch(self) -> dict[str, torch.Tensor]:
        """The batch that the model gets; its carry is apart, as in an evaluation."""
        named = {"input_ids": self.ids, "targets": self.targets, "images": self.images, "reset": self.reset}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


class Moved(NamedTuple):
    """A value that changed by more than rounding."""

    what: str
    row: int
    position: int
    size: float
    allowed: float


class Comparison(NamedTuple):
    """Two passes compared."""

    moved: Moved | None  # the first that the model computes, and of these the largest
    positions: int  # whose logits were compared
    left_out: int
    ends: int  # rows that were compared up to the last position before their change
    all_ends: int
    largest: float
    allowed: float


# ------------------------------------------------------------------------------------------- what a pass gets
def kept_tokens(rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How many tokens of each row stay in two passes, (B,) int64 each.

    One row stays whole, one goes whole (with four rows or more), and the others change after 1, 2, 4, ... tokens:
    close steps at the beginning, where one more key moves much, and some beyond a window.
    """
    fixed = [tokens][: rows - 1] + [0] * (rows > 3)
    many = 2 * (rows - len(fixed))
    steps = [max(1, int(tokens ** ((number + 0.5) / many))) for number in range(many)]
    return torch.tensor(fixed + steps[::2]), torch.tensor((fixed + steps[1::2])[::-1])


def contents(
    model: nn.Module, rows: int, tokens: int, seed: int, device: torch.device
) -> tuple[Inputs, Inputs, Inputs]:
    """The base, and two others to change it to: one id everywhere, and random ids.

    With one id, sums over the batch or the sequence change much, and a few experts get most tokens.
    """
    config, generator = inner(model).config, torch.Generator().manual_seed(seed)

    def draw(high: int, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    base, constant, random = (
        Inputs(draw(config.num_ids, (rows, tokens)), draw(config.num_ids, (rows, tokens))) for _ in range(3)
    )
    constant = constant._replace(ids=constant.ids[:1, :1].expand(rows, tokens))
    found = [base, constant, random]
    form = getattr(config, "image_format", None)
    if form is not None and form.tokens + 2 <= tokens:
        start = (tokens - form.tokens) // 2
        ids = form.first_id + torch.arange(rows * form.tokens).view(rows, -1)  # rows of the table of features
        base.ids[:, start : start + form.tokens] = ids
        shape = (rows, 3, form.size, form.size)
        found = [x._replace(images=draw(256, shape).to(torch.uint8), image_start=start) for x in found]
    if getattr(inner(model), "carries", False):
        found = [x._replace(reset=torch.arange(rows) % 2 == 1) for x in found]
    return tuple(
        Inputs(*(x.to(device) if isinstance(x, torch.Tensor) else x for x in given)) for given in found
    )


def changed(base: Inputs, other: Inputs, kept: torch.Tensor) -> Inputs:
    """The first `kept` (B,) tokens of each row of the base, then those of the other; the targets of the other.

    Images that begin later change, too, and so does the state before a document and before a row that goes whole.
    """
    kept = kept.to(base.ids.device)
    stays = torch.arange(base.ids.shape[1], device=kept.device) < kept[:, None]
    given = other._replace(ids=torch.where(stays, base.ids, other.ids), images=base.images, carry=base.carry)
    if base.images is not None:
        later = (kept <= base.image_start)[:, None, None, None]
        given = given._replace(images=torch.where(later, other.images, base.images))
        # rows without an image token would have no image
    if base.carry is not None:
        foreign = (base.reset | (kept == 0))[:, None]
        given = given._replace(carry=torch.where(foreign, -base.carry, base.carry))
    return given


def padded(given: Inputs, kept: torch.Tensor) -> Inputs:
    """The same, with padding in place of the rows that go whole."""
    gone = (kept == 0).to(given.ids.device)[:, None]
    return given._replace(
        ids=given.ids.masked_fill(gone, 0), targets=given.targets.masked_fill(gone, IGNORE_INDEX)
    )


# ------------------------------------------------------------------------------------------------ what must not move
def compare(
    base: ModelOutput, other: ModelOutput, given: Inputs, kept: torch.Tensor, dtype: torch.dtype
) -> Comparison:
    """Compare the routers, the logits or the losses, and the carry, where the tokens are the same.

    base: with logits.  other: of the pass that got `given`; without logits, its losses must be those that the
    logits of the base give to its targets.  kept: (B,), how many tokens of each row stayed.
    """
    share, kept = ROUNDING[dtype], kept.to(base.logits.device)
    stays = torch.arange(base.logits.shape[1], device=kept.device) < kept[:, None]
    tied, moved = torch.zeros_like(stays), []
    if base.router is not None:
        both = zip(base.router.logits, other.router.logits, base.router.chosen, other.router.chosen)
        for layer, (scores, others, chosen, others_chosen) in zip(base.router.layers, both):
            change, size = (scores - others).abs().amax(-1), scores.abs().amax(-1)
            what = f"the scores of the router in layer {layer}"
            moved += exceeding(what, change, share * largest(size, stays), stays & ~tied)
            differs = (chosen.sort(-1).values != others_chosen.sort(-1).values).any(-1)
            tied |= (differs & stays).cumsum(1) > 0  # in the layers above, later tokens see this one
    compared = stays & ~tied
    change, size = logit_changes(base, other, given)
    allowed = share * largest(size, stays) + (LOSS_ROUNDING if other.logits is None else 0)
    moved += exceeding("the logits" if other.logits is not None else "the loss", change, allowed, compared)
    if given.carry is not None:  # rows that stayed whole must leave the same state
        whole = torch.zeros_like(compared)
        whole[:, -1] = compared.all(1)
        state = (base.carry - other.carry).abs().amax(-1, keepdim=True).expand(stays.shape)
        bound = share * float(base.carry.abs().max())
        moved += exceeding("the state that goes to the next segment", state, bound, whole)
    ends = (kept > 0) & (kept < stays.shape[1])
    last = compared.gather(1, (kept - 1).clamp(min=0)[:, None])[:, 0]
    return Comparison(
        moved=moved[0] if moved else None,
        positions=int(compared.sum()),
        left_out=int((stays & tied).sum()),
        ends=int((last & ends).sum()),
        all_ends=int(ends.sum()),
        largest=largest(change, compared),
        allowed=allowed,
    )


def logit_changes(base: ModelOutput, other: ModelOutput, given: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) each: the largest change of a logit, or the change of the loss; and the largest logit of the base."""
    change = base.logits.new_zeros(base.logits.shape[:2])
    size = torch.zeros_like(change)
    for row, logits in enumerate(base.logits):  # row by row, because logits take much memory
        used = logits > -torch.inf  # ids that are padding have no probability
        size[row] = logits.abs().where(used, 0).amax(-1)
        if other.logits is not None:
            change[row] = (logits - other.logits[row]).abs().where(used, 0).amax(-1)
        else:
            target = given.targets[row]
            label = logits.gather(1, target.clamp(min=0)[:, None])[:, 0]
            loss = logits.logsumexp(-1) - label
            change[row] = (loss - other.token_losses[row]).abs().where(target != IGNORE_INDEX, 0)
    return change, size


def largest(values: torch.Tensor, where: torch.Tensor) -> float:
    """The largest of non-negative values (B, T) where it is true; 0 if it is true nowhere."""
    return float(values.where(where, 0).max())


def exceeding(what: str, change: torch.Tensor, allowed: float, where: torch.Tensor) -> list[Moved]:
    """[the largest change among those that are not allowed, at the places (B, T)], or []. NaN is not allowed."""
    over = (~(change <= allowed) & where).nonzero().tolist()
    sizes = [float(change[row, position]) for row, position in over]
    found = max(zip(sizes, over), key=lambda pair: (pair[0] != pair[0], pair[0]), default=None)
    return [Moved(what, *found[1], found[0], allowed)] if found else []


def inner(model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel, or the model itself."""
    return model if hasattr(model, "config") else model.module
