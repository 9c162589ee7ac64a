"""Generate token ids step by step, for any model that keeps the contract of interface.py.

A row is one prompt and its continuation. Each row has its own random generator and draws one number per
token. So the sample of a row depends only on its logits and its generator, not on other rows, the decoder or
the device (apart from the rounding of the logits).

`new_decoder` chooses the decoder: that of the model if it has one, else the lean one (lean.py) if that can run
the model, else Decoder, which can run every model.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from architecture.generation import lean
from architecture.generation.sampling import (
    NumbersAhead,
    check_sampling,
    draw,
    filter_logits,
    require_finite,
)

DRAWN_TOGETHER = 2**16  # logits that are filtered and drawn from together, which the CPU's cache holds
KEPT_ROWS = 0.75  # rows that have ended leave the decoder when this share is left


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
    decoder: Any = None,
    features: torch.Tensor | None = None,
    routing: list[tuple[list[int], torch.Tensor]] | None = None,
) -> Iterator[list[int | None]]:
    """Yield the next id of every row, step by step; None for a row that has ended.

    prompts: lists of ids, of any lengths of at least 1.  max_tokens: most new ids per row.
    temperature: 0 takes the most probable id and draws nothing.  top_k, top_p, min_p: see filter_logits.
    stop_tokens: ids that end a row; the row yields the id, then None.
    generators: one per row, see row_generators; not needed if temperature is 0. While this runs, they are ahead
    of the ids that were yielded; at the end of a row, each has drawn one number per id.
    use_cache: False runs the whole text at each step: slow, the reference for the cache.
    decoder: a decoder of this model that has read what is in front of the prompts; None begins new texts.
    features: of the images in the prompts, whose ids follow those of the vocabulary (architecture/images.py).
    routing: a list that gets, for the prompts and then for each id that the model reads, the rows in the decoder and
    what it adds to Decoder.chosen; with use_cache.

    The model is in eval mode while this runs and in its earlier mode afterwards.
    Raises ValueError at the call for arguments out of range, and if the longest prompt and max_tokens
    together exceed the model's context limit: a text is never cut silently.
    """
    check_prompts(prompts, model.config.vocab_size + (0 if features is None else len(features)))
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

    numbers = NumbersAhead(generators, max_tokens) if temperature > 0 else None

    def choose(logits: torch.Tensor, rows: list[int]) -> list[int]:
        """logits (B, V) -> one id for each of these B rows."""
        require_finite(logits)
        if temperature == 0:
            return logits.argmax(-1).tolist()
        # Drawing in float64 on the CPU is the same on every device; MPS has no float64.
        logits, uniform = logits.cpu(), numbers.next(rows)
        chosen, number = [], max(1, DRAWN_TOGETHER // logits.shape[1])
        for part, numbers_of_part in zip(logits.split(number), uniform.split(number)):
            part = filter_logits(part.double(), temperature, top_k, top_p, min_p)
            chosen += draw(part, numbers_of_part).tolist()
        return chosen

    stop_tokens = frozenset(stop_tokens)
    return _steps(
        model, prompts, max_tokens, stop_tokens, use_cache, choose, numbers, decoder, features, routing
    )


@torch.no_grad()
def _steps(model, prompts, max_tokens, stop_tokens, use_cache, choose, numbers, decoder, features, routing):
    """The loop of generate_steps, apart from it so that arguments are checked at the call."""
    held = active = list(range(len(prompts)))  # rows in the decoder, and those of them that have not ended
    was_training = model.training
    model.eval()
    try:
        may_drop = decoder is None  # another caller goes on with all rows of its decoder
        if decoder is None:
            length = max(map(len, prompts)) + max_tokens - 1
            decoder = new_decoder(model, len(prompts), length, use_cache, features)
        feed = prompts
        decoder.chosen = None if routing is None else []
        for step in range(max_tokens):
            logits = decoder.feed(feed)
            if routing is not None:
                routing.append((held, decoder.chosen.pop()))
            if len(active) < len(held):
                logits = logits[_places(active, held)]
            new: list[int | None] = [None] * len(prompts)
            for row, token in zip(active, choose(logits, active)):
                new[row] = token
            yield new
            active = [row for row in active if new[row] not in stop_tokens]
            if not active or step == max_tokens - 1:
                return
            if may_drop and len(active) <= KEPT_ROWS * len(held) and hasattr(decoder, "keep"):
                decoder.keep(_places(active, held))
                held = active
            # A row that has ended is fed an arbitrary id, and its logits are ignored.
            feed = [[new[row] or 0] for row in held]
    finally:
        if numbers is not None:
            numbers.give_back()
        model.train(was_training)


def _places(some: list[int], held: list[int]) -> list[int]:
    """Where the rows `some` are among `held`, of which they are a part in the same order."""
    wanted = set(some)
    return [place for place, row in enumerate(held) if row in wanted]


def new_decoder(
    model: nn.Module,
    rows: int,
    max_length: int,
    use_cache: bool = True,
    features: torch.Tensor | None = None,
) -> Any:
    """The fastest decoder for this model. max_length: most tokens of a row, including its padding.

    features: of the images in the texts, for a model that reads images.
    It uses the weights as they are now: a model that trains on needs another decoder.
    """
    if hasattr(model, "new_decoder"):
        return model.new_decoder(rows, max_length, use_cache)
    if use_cache and lean.obstacle(model) is None:
        return lean.LeanDecoder(model, rows, max_length, features)
    return Decoder(model, rows, max_length, use_cache, features)


class Decoder:
    """Feeds all rows together, one column per step. Shorter prompts are padded on the left.

    A model that cannot read a text in one piece has its own decoder, which its `new_decoder` returns.

    chosen: None, or a list that gets the experts of all columns of each feed, (L, B, T, k) int64, with those of the
    padding. A decoder may leave out a choice that no later column depends on; there it is -1.
    """

    chosen: list[torch.Tensor] | None = None

    def __init__(
        self,
        model: nn.Module,
        rows: int,
        max_length: int,
        use_cache: bool,
        features: torch.Tensor | None = None,
    ):
        self.model, device = model, next(model.parameters()).device
        self.inputs = {} if features is None else {"features": features}
        self.cache = model.new_cache(rows, max_length) if use_cache else None
        self.next_position = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.seen = self.next_position[:, :0], self.next_position[:, :0]  # ids and their positions

    def feed(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Append the prompts, or later one id per row. Returns (B, V) logits of the next ids."""
        longest, device = max(map(len, ids)), self.next_position.device
        padding = torch.tensor([longest - len(row) for row in ids], device=device)[:, None]
        # (B, T), negative for padding
        positions = self.next_position + torch.arange(longest, device=device) - padding
        self.next_position = positions[:, -1:] + 1
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in ids], device=device)
        if self.cache is None:
            old_ids, old_positions = self.seen
            self.seen = (
                torch.cat((old_ids, ids), dim=1),
                torch.cat((old_positions, positions), dim=1),
            )
            return self.model(self.seen[0], positions=self.seen[1], **self.inputs).logits[:, -1]
        inputs = {"cache": self.cache} | self.inputs
        routers = []
        if longest > 1:  # the prompt without its last token: only keys and values are needed, no logits
            prompt = self.model(ids[:, :-1], positions=positions[:, :-1], return_logits=False, **inputs)
            routers.append(prompt.router)
        output = self.model(ids[:, -1:], positions=positions[:, -1:], **inputs)
        if self.chosen is not None:
            parts = [torch.stack(router.chosen) for router in (*routers, output.router)]
            self.chosen.append(torch.cat(parts, dim=2))
        return output.logits[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        index = torch.tensor(rows, device=self.next_position.device)
        self.next_position = self.next_position[index]
        self.seen = tuple(x[index] for x in self.seen) if self.cache is None else self.seen
        if self.cache is not None:
            self.cache.keep(index)


def length_limit(model: nn.Module) -> int:
    """Most tokens of a prompt and its continuation: the model's length_limit, or else its context limit."""
    return getattr(model, "length_limit", model.config.context_limit)


def generate(model: nn.Module, prompts: Sequence[Sequence[int]], **options) -> list[list[int]]:
    """The new ids of every row, without its prompt. A row that ended early ends with its stop token.

    options: as for generate_steps.
    """
    rows: list[list[int]] = [[] for _ in prompts]
    for new in generate_steps(model, prompts, **options):
        for row, token in zip(rows, new):
            if token is not None:
                row.append(token)
    return rows


def check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int) -> None:
    """ValueError unless there is a prompt, and each prompt has at least one id, all below vocab_size."""
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
