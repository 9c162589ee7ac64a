"""What the routers do with one text, and what the text costs with and without each expert.

The text is read as a document in training: an end-of-text token in front of it, and no token after it.

Shapes: T tokens with the one in front, L layers with a router, E experts, k experts per token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from architecture.generation.decode import length_limit
from architecture.generation.text import encode_prompt, generate_text
from architecture.interface import IGNORE_INDEX
from common.files import without_surrogates
from evaluation.routing.changes import UNCHANGED, Change, changed, routers


class Text(NamedTuple):
    """A text as a model reads it."""

    text: str
    ids: torch.Tensor  # (1, T) int64, on the device of the model
    tokens: list[str]  # each token as readable text
    num_bytes: int  # UTF-8 bytes of the text


class Reading(NamedTuple):
    """One forward pass over a text, on the CPU."""

    bits: torch.Tensor  # (T,) float64, bits to predict each token from those before it; 0 for the first
    index: torch.Tensor  # (L, T, k) int64, the experts that run, in the order of their weights
    weight: torch.Tensor  # (L, T, k) float64, the factors of their outputs
    entropy: torch.Tensor  # (L, T) float64, of the probabilities / ln E: 1 undecided, 0 certain
    margin: torch.Tensor  # (L, T) float64, largest probability minus the second largest
    next_best: torch.Tensor | None  # (L, T) int64, the expert that just missed the choice; None if all run
    lead: (
        torch.Tensor | None
    )  # (L, T) float64, by how much it missed it, in the values that decide the choice


def most_tokens(model: Any) -> int:
    """How many tokens the model reads in one forward pass."""
    # a model that carries a state reads more than one segment, but one forward pass is one segment
    return min(
        model.config.context_limit, getattr(model.config, "segment_length", model.config.context_limit)
    )


def read_text(model: Any, text: str) -> Text:
    """Encode a text. Raises ValueError for an empty one, and for one beyond the context limit."""
    if not text:
        raise ValueError("--text must have at least one character, got none; give a sentence")
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer; give a run's folder or a checkpoint")
    text = without_surrogates(text)  # of bytes of a shell that are not UTF-8
    ids = encode_prompt(model.tokenizer, text)
    if len(ids) > (limit := most_tokens(model)):
        raise ValueError(
            f"--text has {len(ids)} tokens with the end-of-text token in front, and the model reads {limit} at "
            "once; shorten the text"
        )
    device = next(model.parameters()).device
    tokens = [readable(model.tokenizer, token) for token in ids]
    return Text(text, torch.tensor([ids], device=device), tokens, len(text.encode()))


def readable(tokenizer: Any, token: int) -> str:
    """A token as text; bytes that are no whole characters as \\xNN."""
    try:
        return tokenizer.decode_single_token_bytes(token).decode("utf-8", errors="backslashreplace")
    except KeyError:  # ids that are in use for no text
        return f"<{token}>"


@torch.no_grad()
def read(model: Any, text: Text, change: Change = UNCHANGED) -> Reading:
    """Read the text once with a change. Raises ValueError if the model's losses are not finite."""
    found, T = routers(model), text.ids.shape[1]
    with changed(model, change):
        bits, stats = _bits(model, text)
        rows = []
        # the last T rows of a router, because a model with a state has a slot in front of the tokens
        for mlp, routing in zip(found.values(), stats.routing):
            logits = routing.logits[-T:]
            index, weight, *_ = mlp.routing_rule(logits, mlp.selection_bias, mlp.config.experts_per_token)
            rows.append((index, weight, routing.log_score[-T:], routing.choice[-T:]))
    index, weight, score, choice = (torch.stack(column).cpu() for column in zip(*rows))
    order = weight.argsort(dim=-1, descending=True, stable=True)
    log_probability = score.double().log_softmax(-1)
    probability = log_probability.exp()
    E, k = score.shape[-1], index.shape[-1]
    best = probability.topk(min(2, E), dim=-1).values
    top = choice.double().topk(k + 1, dim=-1) if k < E else None
    return Reading(
        bits=bits,
        index=index.gather(-1, order),
        weight=weight.double().gather(-1, order),
        entropy=-(probability * log_probability).sum(-1) / math.log(max(2, E)),
        margin=best[..., 0] - best[..., -1],
        next_best=None if top is None else top.indices[..., k],
        lead=None if top is None else top.values[..., k - 1] - top.values[..., k],
    )


def _bits(model: Any, text: Text) -> tuple[torch.Tensor, Any]:
    """Bits of each token (T,) float64 on the CPU, and the RouterStats of the pass."""
    targets = torch.full_like(text.ids, IGNORE_INDEX)
    targets[:, :-1] = text.ids[:, 1:]
    output = model(text.ids, targets)
    bits = output.token_losses[0].double().cpu().roll(1) / math.log(2)
    bits[0] = 0  # the last position has no target
    if not bits.isfinite().all():
        where = int((~bits.isfinite()).nonzero()[0])
        raise ValueError(
            f"the loss of token {where} is not finite, so the model's weights are damaged; give an earlier checkpoint"
        )
    return bits, output.router


def load(reading: Reading, num_experts: int) -> torch.Tensor:
    """(L, E) float64, the share of each expert in the assignments of all T tokens; a row sums to 1."""
    counts = torch.stack([layer.flatten().bincount(minlength=num_experts) for layer in reading.index])
    return counts.double() / counts.sum(-1, keepdim=True)


@torch.no_grad()
def knock_outs(model: Any, text: Text, reading: Reading, progress=lambda steps: steps) -> torch.Tensor | None:
    """(L, E, T) float64: by how many bits each token costs more without one expert of one layer.

    reading: of the model without a change.  progress: goes through the list of (layer, expert), as tqdm does.
    An expert that no token chose is not run again: without it, every token goes the same way.
    None if every token takes all experts, because then nothing can take the place of one.
    """
    if reading.next_best is None:
        return None
    layers, E = list(routers(model)), model.config.num_experts
    found = torch.zeros(len(layers), E, len(reading.bits), dtype=torch.float64)
    used = [(row, int(e)) for row in range(len(layers)) for e in reading.index[row].unique()]
    for row, expert in progress(used):
        with changed(model, Change(knocked_out=((layers[row], expert),))):
            found[row, expert] = _bits(model, text)[0] - reading.bits
    return found


def most_changed(change: torch.Tensor, count: int) -> list[int]:
    """The places of the tokens with the largest changes (T,), either way, without those that are 0."""
    order = change.abs().argsort(descending=True, stable=True)[:count].tolist()
    return [place for place in order if change[place] != 0]


def room(model: Any, text: Text, max_tokens: int) -> int:
    """How many tokens a continuation may have: max_tokens, or fewer if the context limit leaves fewer."""
    return min(max_tokens, length_limit(model) - text.ids.shape[1])


def continuations(
    model: Any, text: Text, changes: Iterable[Change], max_tokens: int, temperature: float, seed: int
) -> list[tuple[str, str]]:
    """For each change how the model continues the text: greedy, and sampled with the seed.

    max_tokens: from room(); with 0, all continuations are "".
    """
    found = []
    for change in changes:
        told = [text.text, text.text]
        if max_tokens:
            with changed(model, change):
                told = [generate_text(model, text.text, max_tokens, t, seed=seed) for t in (0, temperature)]
        found.append(tuple(one.removeprefix(text.text) for one in told))
    return found
