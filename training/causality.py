"""Show that a model is causal before a score of it is printed.

A probe runs the model several times on fixed random ids, and compares what must not differ: the logits up to a
position when the tokens after it are others, those of a row when the other rows are others, and all logits when
the targets are others. It calls the model as an evaluation does: in eval mode, with the same backends, autocast
and compiled code.

Rounding. All passes have one shape, so the same kernels add the same numbers in the same order, and most results
are equal to the bit. Only the groups of tokens that experts process change their sizes, and with them sometimes
the order of a sum. ROUNDING bounds what this may change. Rounding in bfloat16 could hide a leak, so a model that
is evaluated with autocast must pass in float32, too.

Near ties. Rounding can change which experts a router chooses, if two scores are almost equal. That is no leak, and
changes much. So the scores of the routers are compared as well as the logits. If the choice of a token differs
although its scores agree up to rounding, the probe leaves out what depends on it, which is the rest of the row.

Shapes: B rows, T tokens, V vocabulary, D hidden_size.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from architecture.interface import ModelOutput
from training.causality_passes import (
    ROUNDING,
    Inputs,
    Moved,
    changed,
    compare,
    contents,
    inner,
    kept_tokens,
    padded,
)
from training.distributed.mesh import ONE, Ranks

# Of the rows that change after a position, the share in which near ties must leave this position comparable
LEAST_ENDS = {torch.float64: 0.75, torch.float32: 0.75, torch.float16: 0.25, torch.bfloat16: 0.25}
MOST_ROWS, MOST_TOKENS = 4, 256  # of a probe; more tokens if two windows are more
MOST_LOGITS = 2**27  # 512 MiB in float32
SEEDS = (1, 2, 3)  # of the ids; the next one is used if near ties leave too little

# Models that passed in this process, with the types in which they did
_passed: weakref.WeakKeyDictionary[nn.Module, set[torch.dtype]] = weakref.WeakKeyDictionary()


class Probe(NamedTuple):
    """What a model that passed has shown in one dtype."""

    dtype: torch.dtype
    positions: int  # compared, in all passes
    left_out: int  # positions after near ties
    largest: float  # change of a logit
    allowed: float  # by rounding

    @property
    def line(self) -> str:
        return (
            f"causality probe in {name_of(self.dtype)}: the logits of {self.positions:,} positions moved by at most "
            f"{self.largest:.1e}, and rounding explains {self.allowed:.1e}; {self.left_out:,} positions left out after "
            "near ties of a router"
        )


Autocast = Callable[[], contextlib.AbstractContextManager]


@torch.no_grad()
def require_causal(
    model: nn.Module, rows: int, tokens: int, *, device: torch.device, autocast: Autocast, ranks: Ranks = ONE
) -> list[Probe]:
    """Probe a model that has not passed yet in this process with this dtype; [] if it has.

    model: in eval mode, on the device, as it is evaluated: compiled or wrapped, or not.
    rows, tokens: the shape of the batches.  autocast: as in the evaluation.
    ranks: all call this together, and all raise if one finds a leak.
    A model whose logits are not finite gives [], too, and has not passed: its loss will tell.
    Raises ValueError if a logit changes that must not, with what was changed, the place, and the size.
    """
    dtype = computing_dtype(model, device, autocast)
    if dtype in _passed.get(model, ()):
        return []
    compiled, config = is_compiled(model), inner(model).config
    small = smaller(rows, tokens, config)
    probes = []
    if dtype != parameter_dtype(model) and not hasattr(model, "unshard"):  # FSDP casts parameters itself
        with (
            without_compiling() if compiled else contextlib.nullcontext()
        ):  # for another dtype, and only once
            probes.append(probe(model, *small, device, contextlib.nullcontext, parameter_dtype(model), ranks))
    # compiled code is compiled for one shape
    shape = within_memory(rows, tokens, config.vocab_size) if compiled else small
    probes.append(probe(model, *shape, device, autocast, dtype, ranks))
    if None in probes:
        return []
    _passed.setdefault(model, set()).add(dtype)
    return probes


def probe(
    model: nn.Module,
    rows: int,
    tokens: int,
    device: torch.device,
    autocast: Autocast,
    dtype: torch.dtype,
    ranks: Ranks,
) -> Probe | None:
    """One probe; None if logits are not finite. Arguments as for require_causal; dtype: of matrix products."""

    def run(given: Inputs, **options: Any) -> ModelOutput:
        with autocast():
            return model(**given.batch(), carry=given.carry, **options)

    for seed in SEEDS:
        base, constant, random = contents(model, rows, tokens, seed, device)
        buffers = state_of_buffers(model)
        if base.reset is not None:
            base = base._replace(carry=run(random).carry)
        reference = run(base, return_logits=True)
        used = reference.logits[..., : inner(model).config.num_ids]
        if not all(ranks.gather(bool(used.isfinite().all()))):
            return None
        first, second = kept_tokens(rows, tokens)
        last = padded(changed(base, random, second), second)
        found = [
            compare(reference, run(given, **options), given, kept, dtype)
            for given, kept, options in (
                (changed(base, constant, first), first, {"return_logits": True}),
                (last, second, {}),  # exactly as an evaluation
            )
        ]
        told = written_in_eval_mode(model, buffers)
        moved = next((x.moved for x in found if x.moved), None)
        if any(ranks.gather(bool(moved))) and not any(ranks.gather(told)):
            told = diagnose(model, run, base, (constant, random), dtype, moved, ranks)
        if told := next(filter(None, ranks.gather(told)), None):
            raise ranks.failure(f"the model is not causal, so it is not scored: {told} (docs/comparing.md)")
        ends, all_ends = sum(x.ends for x in found), sum(x.all_ends for x in found)
        if all(ranks.gather(ends >= LEAST_ENDS[dtype] * all_ends)):
            positions, left_out = sum(x.positions for x in found), sum(x.left_out for x in found)
            largest_change = max(x.largest for x in found)
            return Probe(dtype, positions, left_out, largest_change, found[0].allowed)
    raise ranks.failure(
        f"the model is not shown to be causal, so it is not scored: its routers chose other experts in a second pass "
        f"although their scores agree within the rounding of {name_of(dtype)}, and that left {ends} of {all_ends} "
        f"places to compare, where {LEAST_ENDS[dtype]:.0%} are needed; look for what else changes between passes, or "
        "use --dtype float32 (docs/comparing.md)"
    )


def state_of_buffers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """What changes when a buffer is replaced or written to."""
    return {name: (id(b), b._version) for name, b in model.named_buffers() if not b.is_inference()}


def written_in_eval_mode(model: nn.Module, before: dict[str, tuple[int, int]]) -> str | None:
    """The message if a buffer is not as before."""
    now = state_of_buffers(model)
    changed = next((name for name in now if now[name] != before.get(name)), None)
    return changed and (
        f"a forward pass in eval mode wrote the buffer {changed}, so that each batch changes what the next one gets; "
        "write it in training only"
    )


def smaller(rows: int, tokens: int, config: Any) -> tuple[int, int]:
    """The shape of the batches, or a smaller one that costs less and still has two windows of tokens in a row."""
    most = max(MOST_TOKENS, *(2 * (window or 0) + 2 for window in config.windows))
    return within_memory(min(rows, MOST_ROWS), min(tokens, most), config.vocab_size)


def within_memory(rows: int, tokens: int, vocab_size: int) -> tuple[int, int]:
    """The shape, or less of it so that there are at most MOST_LOGITS logits."""
    rows = min(rows, max(2, MOST_LOGITS // (tokens * vocab_size)))
    return rows, min(tokens, max(1, MOST_LOGITS // (rows * vocab_size)))


# ------------------------------------------------------------------------------------------------ after a failure
def diagnose(
    model: nn.Module,
    run: Callable[..., ModelOutput],
    base: Inputs,
    others: tuple[Inputs, Inputs],
    dtype: torch.dtype,
    together: Moved | None,
    ranks: Ranks,
) -> str | None:
    """The message for a model that failed: which change alone is enough, the place, and the first layer.

    together: what all changes at once moved; None if this rank saw nothing, which then may return None.
    """
    name, found, where = "changing later tokens, other rows and targets at once", together, ""
    with recorded(model) as hidden:
        reference = run(base, return_logits=True)
        before = list(hidden)
        # the same number of passes on all ranks
        for some in zip(*(single_changes(base, other) for other in others)):
            moved = []
            for _, given, kept in some:
                hidden.clear()
                if one := compare(reference, run(given, return_logits=True), given, kept, dtype).moved:
                    moved.append((one, first_layer(before, hidden, one, base.ids.shape[1], dtype)))
            if moved:
                name, (found, where) = some[0][0], moved[0]
            if any(ranks.gather(bool(moved))):
                break
    return found and (
        f"{name} moved {found.what} of position {found.position} in row {found.row} by {found.size:.2g}, and rounding "
        f"in {name_of(dtype)} explains at most {found.allowed:.2g}{where}; make each output depend on nothing but the "
        "tokens of its row up to its position"
    )


def single_changes(base: Inputs, other: Inputs) -> list[tuple[str, Inputs, torch.Tensor]]:
    """(name, what the pass gets, tokens that stay), the simplest change first."""
    rows, tokens = base.ids.shape
    whole = torch.full((rows,), tokens)
    first, second = kept_tokens(rows, tokens)
    cut = first.where((first > 0) & (first < tokens), second.clamp(1, max(1, tokens // 2)))
    found = [
        ("a second pass over the same input, as with dropout,", base, whole),
        ("changing the targets", base._replace(targets=other.targets), whole),
    ]
    if rows > 1:
        some = whole.where(torch.arange(rows) % 2 == 0, 0)
        given = changed(base, other, some)._replace(targets=base.targets)
        found += [("changing the tokens of other rows", given, some)]
        found += [("padding other rows", padded(given, some), some)]
    if base.carry is not None:
        given = changed(base, base, whole)
        found += [("changing the state before a document begins", given, whole)]
    return [
        *found,
        ("changing the later tokens", changed(base, other, cut)._replace(targets=base.targets), cut),
    ]


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
    return "; no layer's output differs there" if before else ""


# ------------------------------------------------------------------------------------------------------- the model
def is_compiled(model: nn.Module) -> bool:
    """Whether parts of the model are compiled for the shapes that they get; flex_attention always is."""
    parts = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())
    return parts or getattr(inner(model), "attention_backend", None) == "flex"


@contextlib.contextmanager
def without_compiling() -> Iterator[None]:
    """Run what is compiled as plain code, without flex_attention's warning that it is slow so."""
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def parameter_dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def computing_dtype(model: nn.Module, device: torch.device, autocast: Autocast) -> torch.dtype:
    """The type of matrix products in an evaluation."""
    with autocast():
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
    return parameter_dtype(model)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
