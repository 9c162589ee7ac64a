"""Ids, step by step, for any model that keeps interface.py's contract; generation/text.py makes text of them.

A row is one prompt and what follows it. Each row has a random generator of its own and draws one
number per token, so what is sampled for a row depends on its logits and its generator alone: not on
the other rows, on when they end, on the cache or on the device (beyond the rounding of the logits).

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from architecture.generation.sampling import (
    check_sampling,
    draw,
    filter_logits,
    require_finite,
)


def generate_steps(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    generators: Sequence[torch.Generator] | None = None,
    use_cache: bool = True,
) -> Iterator[list[int | None]]:
    """The next id of every row, step by step; None for a row that has ended.

    prompts: ids, of any lengths of at least 1.  max_tokens: most new ids per row.
    temperature: 0 takes the most probable id and draws nothing.  top_k, top_p, min_p: filter_logits.
    stop_tokens: ids that end a row; such an id is still handed out.
    generators: one per row, see row_generators; needed unless temperature is 0.
    use_cache: False runs every token again at each step: slow, the specification of the cached way.

    The model is in eval mode while this runs and in its earlier mode afterwards.
    Raises ValueError, before anything runs, for arguments out of range and where the longest prompt
    and max_tokens together pass the model's context limit: nothing is ever cut off silently.
    """
    check_prompts(prompts, model.config.vocab_size)
    check_sampling(max_tokens, temperature, top_k, top_p, min_p)
    longest, limit = max(map(len, prompts)), length_limit(model)
    if longest + max_tokens > limit:
        raise ValueError(
            f"a sequence may have {limit} tokens (the model's context limit), got a prompt of {longest} "
            f"and max_tokens={max_tokens}; shorten the prompt or lower max_tokens"
        )
    if temperature > 0 and (generators is None or len(generators) != len(prompts)):
        raise ValueError(
            f"sampling needs one generator per prompt ({len(prompts)}), got "
            f"{'none' if generators is None else len(generators)}; pass "
            "generators=row_generators(seed, len(prompts)), or temperature=0"
        )

    def choose(logits: torch.Tensor, rows: list[int]) -> list[int]:
        """logits (B, V) -> an id for each of these rows."""
        logits = logits[rows]
        require_finite(logits)
        if temperature == 0:
            return logits.argmax(-1).tolist()
        # on the CPU in float64: the same draw on every device, and MPS has no float64
        logits = filter_logits(logits.cpu().double(), temperature, top_k, top_p, min_p)
        uniform = [torch.rand(1, generator=generators[row], dtype=torch.float64) for row in rows]
        return draw(logits, torch.cat(uniform)).tolist()

    return _steps(model, prompts, max_tokens, frozenset(stop_tokens), use_cache, choose)


@torch.no_grad()
def _steps(model, prompts, max_tokens, stop_tokens, use_cache, choose):
    """The loop behind generate_steps, which checks the arguments."""
    active = list(range(len(prompts)))
    new_decoder = getattr(model, "new_decoder", functools.partial(Decoder, model))
    was_training = model.training
    model.eval()
    try:
        decoder = new_decoder(len(prompts), max(map(len, prompts)) + max_tokens - 1, use_cache)
        feed = prompts
        for step in range(max_tokens):
            logits = decoder.feed(feed)
            new: list[int | None] = [None] * len(prompts)
            for row, token in zip(active, choose(logits, active)):
                new[row] = token
            yield new
            active = [row for row in active if new[row] not in stop_tokens]
            if not active or step == max_tokens - 1:
                return
            # a row that has ended goes on with any id: nobody looks at it
            feed = [[token or 0] for token in new]
    finally:
        model.train(was_training)


class Decoder:
    """Rows that grow column by column, all in the same one: shorter prompts are padded on the left.

    A model that does not read a text in one piece brings a decoder of its own, by `new_decoder`.
    """

    def __init__(self, model: nn.Module, rows: int, max_length: int, use_cache: bool):
        self.model, device = model, next(model.parameters()).device
        self.cache = model.new_cache(rows, max_length) if use_cache else None
        self.next_position = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.seen = self.next_position[:, :0], self.next_position[:, :0]  # ids and their positions

    def feed(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """The prompts, and after them one id for each row -> (B, V) logits of what comes next."""
        longest, device = max(map(len, ids)), self.next_position.device
        padding = torch.tensor([longest - len(row) for row in ids], device=device)[:, None]
        # (B, T), negative: padding
        positions = self.next_position + torch.arange(longest, device=device) - padding
        self.next_position = positions[:, -1:] + 1
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in ids], device=device)
        if self.cache is None:
            old_ids, old_positions = self.seen
            self.seen = (
                torch.cat((old_ids, ids), dim=1),
                torch.cat((old_positions, positions), dim=1),
            )
            return self.model(self.seen[0], positions=self.seen[1]).logits[:, -1]
        if longest > 1:  # all but the last token: its keys and values, and no logits
            self.model(ids[:, :-1], positions=positions[:, :-1], cache=self.cache, return_logits=False)
        output = self.model(ids[:, -1:], positions=positions[:, -1:], cache=self.cache)
        return output.logits[:, -1]


def length_limit(model: nn.Module) -> int:
    """Most tokens of a prompt and what follows it: the context limit, unless the model has another."""
    return getattr(model, "length_limit", model.config.context_limit)


def generate(model: nn.Module, prompts: Sequence[Sequence[int]], **options) -> list[list[int]]:
    """The new ids of every row, without its prompt; a stop token that ended a row is its last id.

    options: those of generate_steps.
    """
    rows: list[list[int]] = [[] for _ in prompts]
    for new in generate_steps(model, prompts, **options):
        for row, token in zip(rows, new):
            if token is not None:
                row.append(token)
    return rows


def check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int) -> None:
    """ValueError unless there are prompts, each of at least one id below vocab_size."""
    if not prompts:
        raise ValueError("prompts must hold at least one prompt, got none; pass a list of id lists")
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(
                f"a prompt must have at least one token, prompt {row} has none; "
                "start a new text with the end-of-text token"
            )
        if not (0 <= min(prompt) and max(prompt) < vocab_size):
            raise ValueError(
                f"token ids must be from 0 to {vocab_size - 1}, prompt {row} has {min(prompt)} to "
                f"{max(prompt)}; encode it with the model's own tokenizer"
            )
