"""Text that continues text: prompts are encoded, ids come back as pieces of UTF-8."""

from __future__ import annotations

import codecs
import secrets
from collections.abc import Iterator, Sequence

import tiktoken
from torch import nn

from architecture.generation.decode import generate_steps
from architecture.generation.sampling import row_generators


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
        raise ValueError("the model has no tokenizer; load it from a checkpoint, or set model.tokenizer")
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
    for row, piece in stream_text(model, prompts, max_tokens=max_tokens, temperature=temperature, **options):
        texts[row] += piece
    return texts


def generate_text(model: nn.Module, prompt: str, max_tokens: int, temperature: float, **options) -> str:
    """The prompt and its continuation of at most max_tokens new tokens; options as of stream_text.

    "" starts a new text. The end-of-text token is put in front and is never part of the result.
    """
    return generate_texts(model, [prompt], max_tokens, temperature, **options)[0]
