"""Generation with a key/value cache, for any model that keeps interface.py's contract.

Three layers, each built on the one above it: ids step by step (generate_steps), whole id lists (generate),
text (stream_text, generate_text).

A row is one prompt and what follows it. Each row has a random generator of its own and draws one
number per token, so what is sampled for a row depends on its logits and its generator alone: not on
the other rows, on when they end, on the cache or on the device (beyond the rounding of the logits).

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import math
import secrets
from collections.abc import Iterator, Sequence

import tiktoken
import torch
from torch import nn

# --------------------------------------------------------------------------------------------------
# filters: (B, V) logits -> the same with -inf for what must not be drawn


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


# --------------------------------------------------------------------------------------------------
# drawing


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


# --------------------------------------------------------------------------------------------------
# ids


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


def require_finite(logits: torch.Tensor) -> None:
    """ValueError where a row (B, V) has nothing to choose from."""
    if not logits.amax(-1).isfinite().all():
        raise ValueError(
            "the model's logits are not finite, so nothing can be sampled; "
            "use a checkpoint from before its loss became NaN or infinite"
        )


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
            self.model(
                ids[:, :-1], positions=positions[:, :-1], cache=self.cache, return_logits=False
            )
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


# --------------------------------------------------------------------------------------------------
# text


def encode_prompt(tokenizer: tiktoken.Encoding, text: str) -> list[int]:
    """End-of-text, then the text, as documents begin in training; "" asks for a new document."""
    return [tokenizer.eot_token, *tokenizer.encode_ordinary(text)]


class TextStream:
    """Ids to text as they come: what an id leaves of a UTF-8 character waits for the next one.

    The pieces together are what tokenizer.decode gives for all ids at once.
    """

    def __init__(self, tokenizer: tiktoken.Encoding):
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        try:
            data = self.tokenizer.decode_single_token_bytes(token)
        except KeyError:  # o200k_harmony has ids without text, and an untrained model draws them
            data = b"\xff"  # decodes to the replacement character
        return self.decoder.decode(data)

    def finish(self) -> str:
        """What is left: a replacement character for each cut character."""
        return self.decoder.decode(b"", final=True)


def stream_text(
    model: nn.Module,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    temperature: float,
    seed: int | None = None,
    **options,
) -> Iterator[tuple[int, str]]:
    """(row, piece of text) as the rows grow, without the prompts; a row ends at end-of-text.

    seed: of row_generators; None is another one at each call.
    options: top_k, top_p, min_p, use_cache of generate_steps.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(
            "the model has no tokenizer; load it from a checkpoint, or set model.tokenizer"
        )
    seed = secrets.randbits(31) if seed is None else seed
    steps = generate_steps(
        model,
        [encode_prompt(tokenizer, prompt) for prompt in prompts],
        max_tokens=max_tokens,
        temperature=temperature,
        stop_tokens=(tokenizer.eot_token,),
        generators=row_generators(seed, len(prompts)),
        **options,
    )
    return _pieces(steps, [TextStream(tokenizer) for _ in prompts], tokenizer.eot_token)


def _pieces(steps, streams, eot_token):
    for new in steps:
        for row, token in enumerate(new):
            if token is not None and token != eot_token and (piece := streams[row].push(token)):
                yield row, piece
    for row, stream in enumerate(streams):
        if piece := stream.finish():
            yield row, piece


def generate_texts(
    model: nn.Module, prompts: Sequence[str], max_tokens: int, temperature: float, **options
) -> list[str]:
    """Each prompt with its continuation, all in one batch; options as of stream_text."""
    texts = list(prompts)
    for row, piece in stream_text(
        model, prompts, max_tokens=max_tokens, temperature=temperature, **options
    ):
        texts[row] += piece
    return texts


def generate_text(
    model: nn.Module, prompt: str, max_tokens: int, temperature: float, **options
) -> str:
    """The prompt and its continuation of at most max_tokens new tokens; options as of stream_text.

    "" starts a new text. The end-of-text token is put in front and is never part of the result.
    """
    return generate_texts(model, [prompt], max_tokens, temperature, **options)[0]
