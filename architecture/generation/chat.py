"""A text that a user and a model write in turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from architecture.generation.decode import generate_steps, length_limit
from architecture.generation.sampling import row_generators
from architecture.generation.text import TextStream, encode_prompt


class TextChat:
    """The text so far. After the model's end-of-text token, the next turn begins a new text."""

    def __init__(self, model: nn.Module):
        self.model, self.text = model, ""

    def answer(
        self, text: str, *, max_tokens: int | None, seed: int, **sampling: Any
    ) -> Iterator[tuple[str, str]]:
        """Append a turn of the user; yield ("text", piece) of the model's continuation.

        max_tokens: most new tokens; None for what fits into the context.  sampling: temperature, top_k, top_p
        and min_p, as for generate_steps. A continuation that is stopped stays as far as it came.
        Raises ValueError if the text leaves no room, and then leaves this turn out.
        """
        gap = " " if self.text and text and not (self.text[-1] + text[0]).count(" ") else ""
        whole, limit = self.text + gap + text, length_limit(self.model)
        ids = encode_prompt(self.model.tokenizer, whole)
        room = limit - len(ids)
        if room < 1:
            raise ValueError(
                f"the text has {len(ids):,} tokens with this turn, and the model's context has {limit:,}; shorten "
                "the turn, or start a new text"
            )
        self.text = whole
        end = self.model.tokenizer.eot_token
        steps = generate_steps(
            self.model,
            [ids],
            max_tokens=min(room, max_tokens or room),
            stop_tokens=(end,),
            generators=row_generators(seed, 1),
            **sampling,
        )
        return self._read(steps, end)

    def _read(self, steps: Iterator[list[int | None]], end: int) -> Iterator[tuple[str, str]]:
        stream = TextStream(self.model.tokenizer)
        for (token,) in steps:
            if token in (None, end):
                self.text = ""
                return
            if piece := stream.push(token):
                self.text += piece
                yield "text", piece
        if piece := stream.finish():
            self.text += piece
            yield "text", piece
