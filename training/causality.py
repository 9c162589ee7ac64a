"""Show that a model is causal before a score of it is printed.

A probe runs the model several times on fixed random ids, and compares what must not differ: the logits up to a
position when the tokens after it are others, those of a row when the other rows are others, and all logits when
the targets are others. It calls the model as an evaluation does: in eval mode, with the same backends, autocast,
compiled code and shape of the batch.

Rounding. All passes have one shape, so the same kernels add the same numbers in the same order, and most results
are equal to the bit. Only the groups of tokens that experts process change their sizes, and with them sometimes
the order of a sum. ROUNDING bounds what this may change.

Near ties. Rounding can change which experts a router chooses, if two scores are almost equal. That is no leak, and
changes much. So the scores of the routers are compared as well as the logits. If the choice of a token differs
although its scores agree up to rounding, the probe leaves out what depends on it, which is the rest of the row.

Shapes: B rows, T tokens, V vocabulary, D hidden_size.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from architecture.interface import IGNORE_INDEX, ModelOutput
from training.distributed.mesh import ONE, Ranks

# The largest change that rounding explains, as a share of the largest value compared. Measured on 380 models with
# weights up to three times as large as usual, it was 3e-6 in float32 and 4e-15 in float64; in bfloat16 nothing
# changed on a CPU. Narrow types get 16 units of roundoff: kernels of other devices may round each layer otherwise.
ROUNDING = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 2.0**-7, torch.bfloat16: 2.0**-4}
LOSS_ROUNDING = 1e-5  # nats: the logarithm in a loss is float32, whatever the logits are
MOST_LOGITS = 2**27  # 512 MiB in float32; a probe with more has fewer rows, and then fewer tokens
LEAST_ENDS = 0.25  # share of the changes before which the last position must be compared
SEEDS = (1, 2, 3)  # of the ids; the next one is used if near ties leave too little

_passed: weakref.WeakKeyDictionary[nn.Module, set[torch.dtype]] = weakref.WeakKeyDictionary()


class Probe(NamedTuple):
    """What a model that passed has shown."""

    rows: int
    tokens: int  # of each row
    positions: int  # compared, in all passes
    left_out: int  # positions after near ties
    largest: float  # change of a logit
    allowed: float  # by rounding
    dtype: torch.dtype

    @property
    def line(self) -> str:
        return (
            f"causality probe passed: logits of {self.positions:,} positions moved by at most {self.largest:.1e} "
            f"(rounding in {name_of(self.dtype)} explains {self.allowed:.1e}); {self.left_out:,} more were left out "
            "after near ties of a router"
        )


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


@torch.no_grad()
def require_causal(
    model: nn.Module,
    rows: int,
    tokens: int,
    *,
    device: torch.device,
    autocast: Callable[[], contextlib.AbstractContextManager],
    ranks: Ranks = ONE,
) -> Probe | None:
    """Probe a model that has not passed yet in this process with this dtype; None if it has.

    model: in eval mode, on the device, as it is evaluated: compiled or wrapped, or not.
    rows, tokens: the shape of the batches.  autocast: as in the evaluation.
    ranks: all call this together, and all raise if one finds a leak.
    A model whose logits are not finite gives None, too, and has not passed: its loss will tell.
    Raises ValueError if a logit changes that must not, with what was changed, the place, and the size.
    """
    dtype = computing_dtype(model, device, autocast)
    if dtype in _passed.get(model, ()):
        return None
    rows, tokens = probe_shape(rows, tokens, inner(model).config.vocab_size)

    def run(given: Inputs, **options: Any) -> ModelOutput:
        with autocast():
            return model(**given.batch(), carry=given.carry, **options)

    for seed in SEEDS:
        base, constant, random = contents(model, rows, tokens, seed, device)
        if base.reset is not None:
            base = base._replace(carry=run(random).carry)
        reference = run(base, return_logits=True)
        finite = bool(reference.logits[..., : inner(model).config.num_ids].isfinite().all())
        if not all(ranks.gather(finite)):
            return None
        first, second = kept_tokens(rows, tokens)
        found = [
            compare(reference, run(given, **options), given, kept, dtype)
            for given, kept, options in (
                (changed(base, constant, first), first, {"return_logits": True}),
                (padded(changed(base, random, second), second), second, {}),  # exactly as an evaluation
            )
        ]
        if any(ranks.gather(any(x.moved for x in found))):
            told = diagnose(
                model,
                run,
                base,
                (constant, random),
                dtype,
                next(filter(None, (x.moved for x in found)), None),
            )
            told = next(filter(None, ranks.gather(told)))
            raise ranks.failure(told)
        ends, all_ends = sum(x.ends for x in found), sum(x.all_ends for x in found)
        if all(ranks.gather(ends >= LEAST_ENDS * all_ends)):
            _passed.setdefault(model, set()).add(dtype)
            return Probe(
                rows,
                tokens,
                sum(x.positions for x in found),
                sum(x.left_out for x in found),
                max(x.largest for x in found),
                found[0].allowed,
                dtype,
            )
    raise ranks.failure(
        f"the causality probe cannot decide, so nothing is scored: near ties of the routers, decided by rounding in "
        f"{name_of(dtype)}, must leave {LEAST_ENDS:.0%} of its {all_ends} changes comparable, and left {ends}; "
        "score the model with --dtype float32"
    )


# ------------------------------------------------------------------------------------------- what a pass gets
def probe_shape(rows: int, tokens: int, vocab_size: int) -> tuple[int, int]:
    """The shape of the batches, or less of it so that there are at most MOST_LOGITS logits."""
    rows = min(rows, max(2, MOST_LOGITS // (tokens * vocab_size)))
    return rows, min(tokens, max(1, MOST_LOGITS // (rows * vocab_size)))


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


# ------------------------------------------------------------------------------------------------ after a failure
def diagnose(
    model: nn.Module,
    run: Callable[..., ModelOutput],
    base: Inputs,
    others: tuple[Inputs, Inputs],
    dtype: torch.dtype,
    together: Moved | None,
) -> str | None:
    """The message for a model that failed: which change alone is enough, the place, and the first layer.

    together: what all changes at once moved; None if this rank saw nothing. All ranks run the same passes.
    """
    told = []
    with recorded(model) as hidden:
        reference = run(base, return_logits=True)
        before = list(hidden)
        for other in others:
            for name, given, kept in single_changes(base, other):
                for options in ({"return_logits": True}, {}):
                    hidden.clear()
                    found = compare(reference, run(given, **options), given, kept, dtype).moved
                    if found:
                        told.append(
                            (name, found, first_layer(before, hidden, found, base.ids.shape[1], dtype))
                        )
    if not told and together:
        told = [("later tokens, other rows and targets at once", together, "")]
    if not told:
        return None
    order = [name for name, *_ in single_changes(base, others[0])]
    name, found, where = min(told, key=lambda one: order.index(one[0]) if one[0] in order else 0)
    return (
        f"the model is not causal, so it is not scored: {name} moved {found.what} of position {found.position} in row "
        f"{found.row} by {found.size:.2g}, and rounding in {name_of(dtype)} explains at most {found.allowed:.2g}"
        f"{where}; make each output depend on nothing but the tokens of its row up to its position (docs/comparing.md)"
    )


def single_changes(base: Inputs, other: Inputs) -> list[tuple[str, Inputs, torch.Tensor]]:
    """(name, what the pass gets, tokens that stay), the simplest change first."""
    rows, tokens = base.ids.shape
    whole = torch.full((rows,), tokens)
    first, second = kept_tokens(rows, tokens)
    cut = first.where((first > 0) & (first < tokens), second.clamp(1, max(1, tokens // 2)))
    found = [
        ("a second pass with the same input (is dropout on, or does a buffer change?)", base, whole),
        ("other targets", base._replace(targets=other.targets), whole),
    ]
    if rows > 1:
        some = whole.where(torch.arange(rows) % 2 == 0, 0)
        given = changed(base, other, some)._replace(targets=base.targets)
        found += [("other tokens in other rows", given, some)]
        found += [("padding in other rows", padded(given, some), some)]
    if base.carry is not None:
        given = changed(base, base, whole)
        found += [("another state before a document begins", given, whole)]
    return [*found, ("other tokens after it", changed(base, other, cut)._replace(targets=base.targets), cut)]


@contextlib.contextmanager
def recorded(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """A list that gets the input of the first block and the output of each, in the order of their computation."""
    hidden: list[torch.Tensor] = []
    blocks = list(getattr(inner(model), "block", ()))
    with contextlib.ExitStack() as stack:
        for block in blocks[:1]:
            hook = block.register_forward_pre_hook(lambda block, inputs: hidden.append(inputs[0]))
            stack.callback(hook.remove)
        for block in blocks:
            hook = block.register_forward_hook(
                lambda block, inputs, out: hidden.append(out[0] if isinstance(out, tuple) else out)
            )
            stack.callback(hook.remove)
        yield hidden


def first_layer(
    before: list[torch.Tensor], after: list[torch.Tensor], found: Moved, tokens: int, dtype: torch.dtype
) -> str:
    """Words for the first layer whose output differs at the place; "" if no layer was seen."""
    names = ["the embedding", *(f"layer {number}" for number in range(len(before) - 1))]
    for name, x, y in zip(names, before, after):
        place = found.row, found.position - tokens  # from the end, because a slot may stand in front
        change = (x[place] - y[place]).abs().max()
        if not change <= ROUNDING[dtype] * x.abs().max():
            return f"; the first output that differs is that of {name}"
    return "; no output of a layer differs, so look behind the last one" if before else ""


# ------------------------------------------------------------------------------------------------------- the model
def inner(model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel, or the model itself."""
    return model if hasattr(model, "config") else model.module


def computing_dtype(
    model: nn.Module, device: torch.device, autocast: Callable[[], contextlib.AbstractContextManager]
) -> torch.dtype:
    """The type of matrix products in an evaluation."""
    with autocast():
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
    return next(model.parameters()).dtype


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
