"""Chat with the official models, in their harmony format, through openai-harmony (requirements-chat.txt).

A conversation has a system message, optional instructions of the developer, and turns of the user and of the
assistant, which answers in channels: its reasoning in "analysis", the answer in "final". Special tokens that a
user types are text, never control tokens.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

from torch import nn

from architecture.generation.decode import generate_steps, length_limit
from architecture.generation.sampling import row_generators
from architecture.generation.text import TextStream
from architecture.tokenizer import cache_folder

REASONING = ("low", "medium", "high")
UNPARSED = "unparsed"  # the channel of what follows a malformed header


class HarmonyChat:
    """The conversation with a model that knows the harmony format."""

    def __init__(self, model: nn.Module, *, instructions: str = "", reasoning: str = "medium"):
        """instructions: of the developer.  reasoning: low, medium or high.

        Raises ValueError if openai-harmony is missing or its vocabulary cannot be loaded.
        """
        if importlib.util.find_spec("openai_harmony") is None:
            raise ValueError("a chat with gpt-oss needs openai-harmony; pip install -r requirements-chat.txt")
        # openai-harmony reads tiktoken's cache, under another variable.
        os.environ.setdefault("TIKTOKEN_RS_CACHE_DIR", str(cache_folder()))
        import openai_harmony as harmony

        self.model, self._harmony = model, harmony
        self._encoding = harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
        self._stop = tuple(self._encoding.stop_tokens_for_assistant_actions())
        effort = harmony.ReasoningEffort(reasoning.capitalize())
        self.messages = [self._message("system", harmony.SystemContent.new().with_reasoning_effort(effort))]
        if instructions:
            developer = harmony.DeveloperContent.new().with_instructions(instructions)
            self.messages.append(self._message("developer", developer))

    def _message(self, role: str, content: Any) -> Any:
        return self._harmony.Message.from_role_and_content(self._harmony.Role(role), content)

    def ask(self, text: str) -> list[int]:
        """Add a turn of the user; returns the ids from which the model answers."""
        self.messages.append(self._message("user", text))
        conversation = self._harmony.Conversation.from_messages(self.messages)
        return self._encoding.render_conversation_for_completion(conversation, self._harmony.Role.ASSISTANT)

    def answer(
        self, text: str, *, max_tokens: int | None, seed: int, **sampling: Any
    ) -> Iterator[tuple[str, str]]:
        """Yield (channel, piece of text) of the answer to a turn of the user.

        max_tokens: most new tokens; None for what fits into the context.  sampling: temperature, top_k, top_p
        and min_p, as for generate_steps. An answer that is stopped stays in the conversation as far as it came.
        Raises ValueError if the conversation leaves no room, and then forgets this turn.
        """
        ids = self.ask(text)
        room = length_limit(self.model) - len(ids)
        if room < 1:
            self.messages.pop()
            raise ValueError(
                f"the conversation has {len(ids):,} tokens with this message, and the model's context has "
                f"{length_limit(self.model):,}; shorten the message, or start a new conversation"
            )
        steps = generate_steps(
            self.model,
            [ids],
            max_tokens=min(room, max_tokens or room),
            stop_tokens=self._stop,
            generators=row_generators(seed, 1),
            **sampling,
        )
        return self._read(steps)

    def _read(self, steps: Iterator[list[int | None]]) -> Iterator[tuple[str, str]]:
        """Parse the ids of one answer. Text behind a malformed header, or without one, is shown as it came."""
        # A parser that has failed or has read a turn cannot read another one.
        parser = self._harmony.StreamableParser(self._encoding, role=self._harmony.Role.ASSISTANT)
        stream, failed, unparsed = TextStream(self.model.tokenizer), False, ""
        header: list[int] = []  # ids that no piece of text has shown yet
        try:
            for (token,) in steps:
                if token is None or token in self._stop:
                    break
                header.append(token)
                if not failed:
                    try:
                        parser.process(token)
                    except self._harmony.HarmonyError:
                        failed = True
                    else:
                        if parser.state != self._harmony.StreamState.HEADER:
                            header.clear()
                        if parser.last_content_delta:
                            yield parser.current_channel or UNPARSED, parser.last_content_delta
                if failed:
                    piece = "".join(map(stream.push, header))
                    header.clear()
                    unparsed += piece
                    yield UNPARSED, piece
            if piece := "".join(map(stream.push, header)) + stream.finish():  # it ended inside a header
                unparsed += piece
                yield UNPARSED, piece
        finally:  # also if the reader stops the answer
            self._remember(parser, unparsed)

    def _remember(self, parser: Any, unparsed: str) -> None:
        said = [(message.channel, message.content[0].text) for message in parser.messages]
        if parser.current_content:
            said.append((parser.current_channel, parser.current_content))
        if unparsed:
            said.append(("final", unparsed))
        for channel, text in said:
            self.messages.append(self._message("assistant", text).with_channel(channel or "final"))
