"""Responses that a model samples, as rows to train on.

They are sampled from softmax(logits / temperature) of all ids, without top-k and top-p, and trained under the same
distribution. The log-probabilities that are trained are those of the training forward, never the sampler's. The
sampler computes in float32, as sample.py does, whatever the dtype of the training forward is.

Shapes: R responses, T input tokens of the longest prompt with its response, L layers with a router, k experts per
token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from architecture.generation.decode import generate, length_limit
from architecture.generation.sampling import row_generators
from architecture.generation.text import TextStream
from architecture.interface import IGNORE_INDEX
from architecture.tokenizer import HARMONY
from data.examples import Example
from data.packing import as_tensors
from data.rows import RowEncoder, batch_of, chat_format, row_of
from training.post.replay import chosen_experts
from training.post.rewards import Response

ANY_LENGTH = 2**31  # tokens


class Rollout(NamedTuple):
    """The responses of a step, on the CPU. A response ends with EOT, which is a target, or is truncated."""

    input_ids: torch.Tensor  # (R, T) int64, [EOT, prompt, response], padded on the right with EOT
    targets: torch.Tensor  # (R, T) int64, IGNORE_INDEX on the prompt and behind the response
    responses: list[Response]  # their texts, for the rewards
    ended: torch.Tensor  # (R,) bool, whether a response ends with EOT
    chosen: torch.Tensor | None  # (R, T, L, k) int64, see chosen_experts; None if not kept

    @property
    def mask(self) -> torch.Tensor:
        """(R, T) bool, where a token of a response is the target."""
        return self.targets != IGNORE_INDEX

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """What micro-batches hold of it beside the targets."""
        return {"input_ids": self.input_ids} | ({} if self.chosen is None else {"chosen": self.chosen})

    @property
    def lengths(self) -> torch.Tensor:
        """(R,) int64, tokens of each response, with its EOT."""
        return self.mask.sum(1)


def sample(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    seed: str,
    *,
    max_response: int,
    temperature: float,
    routing: bool = False,
) -> Rollout:
    """One response for each example, in one batch.

    seed: for row_generators.  routing: keep the experts that the sampler chooses.
    Raises ValueError if a prompt and max_response exceed the context of the model.
    """
    prompts, ends = list(map(prompt_encoder(tokenizer), examples)), end_tokens(tokenizer)
    log: list[tuple[list[int], torch.Tensor]] | None = [] if routing else None
    sampled = generate(
        model,
        prompts,
        max_tokens=max_response,
        temperature=temperature,
        stop_tokens=ends,
        generators=row_generators(seed, len(prompts)),
        routing=log,
    )
    starts = [len(prompt) for prompt in prompts]
    lengths = [start + len(response) for start, response in zip(starts, sampled)]
    rows = [row_of([*prompt, *response], len(prompt)) for prompt, response in zip(prompts, sampled)]
    batch = as_tensors(batch_of(rows, tokenizer.eot_token, max(lengths) - 1, None))
    ended = [response[-1] in ends for response in sampled]
    responses = [
        Response(text_of(tokenizer, example, ids[:-1] if over else ids), example, over, len(ids))
        for ids, over, example in zip(sampled, ended, examples)
    ]
    chosen = None if log is None else chosen_experts(log, starts, lengths)
    return Rollout(**batch, responses=responses, ended=torch.tensor(ended), chosen=chosen)


def sample_in_rows(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    seed: str,
    *,
    block_size: int,
    temperature: float,
) -> Rollout:
    """As `sample`, with as many tokens for each response as the longest prompt leaves in a row of block_size tokens."""
    longest = max(map(len, map(prompt_encoder(tokenizer), examples)))
    room = max(1, min(block_size + 1, length_limit(model)) - longest)
    return sample(model, tokenizer, examples, seed, max_response=room, temperature=temperature)


def prompt_encoder(tokenizer: Any) -> Callable[[Example], list[int]]:
    """What turns an example into the ids in front of its response, as in supervised fine-tuning."""
    encode = RowEncoder(tokenizer, ANY_LENGTH, None)
    return lambda example: encode(example).prompt


def end_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a response: EOT, and those of the chat format of gpt-oss."""
    chat = ("<|return|>", "<|call|>") if tokenizer.name == HARMONY else ()
    return tokenizer.eot_token, *map(tokenizer.encode_single_token, chat)


def share_truncated(batches: Sequence[dict[str, torch.Tensor]], ends: Sequence[int]) -> float:
    """The share of the responses of batches that are cut off, so that their end is no target. ends: from end_tokens.

    Each row has one response, or, in batches with positions, one for each position 0.
    """
    number = sum(int((b["positions"] == 0).sum()) if "positions" in b else len(b["targets"]) for b in batches)
    ended = sum(int((b["targets"] == end).sum()) for b in batches for end in ends)
    return 1 - ended / number


def text_of(tokenizer: Any, example: Example, ids: Sequence[int]) -> str:
    """The text of a response to an example, without its end; in a chat format the answer, without its reasoning."""
    if chat := chat_format(tokenizer, example):
        stream = chat.reader()
        pieces = ((stream.push(token), stream.channel) for token in ids)
        return "".join(piece for piece, channel in pieces if channel == "final")
    stream = TextStream(tokenizer)
    return "".join(map(stream.push, ids)) + stream.finish()
