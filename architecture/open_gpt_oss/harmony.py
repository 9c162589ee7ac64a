"""Chat with the official models, in their harmony format, through openai-harmony (requirements-chat.txt).

A conversation has a system message, optional instructions of the developer, and turns of the user and of the
assistant, which answers in channels: its reasoning in "analysis", the answer in "final". Special tokens that a
user types are text, never control tokens.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

import tiktoken

from architecture.generation.chat import USER
from architecture.generation.text import TextStream
from architecture.tokenizer import cache_folder

REASONING = ("low", "medium", "high")
UNPARSED = "unparsed"  # the channel of what follows a malformed header


class Harmony:
    """The chat format of a model that was trained on it: a ChatFormat of architecture/generation/chat.py."""

    def __init__(self, tokenizer: tiktoken.Encoding, *, instructions: str = "", reasoning: str = "medium"):
        """tokenizer: o200k_harmony.  instructions: of the developer.  reasoning: low, medium or high.

        Raises ValueError if openai-harmony is missing.
        """
        if importlib.util.find_spec("openai_harmony") is None:
            raise ValueError("a chat with gpt-oss needs openai-harmony; pip install -r requirements-chat.txt")
        # openai-harmony reads tiktoken's cache, under another variable.
        os.environ.setdefault("TIKTOKEN_RS_CACHE_DIR", str(cache_folder()))
        import openai_harmony as library

        self.tokenizer, self.library = tokenizer, library
        self.encoding = library.load_harmony_encoding(library.HarmonyEncodingName.HARMONY_GPT_OSS)
        self.stop_tokens = tuple(self.encoding.stop_tokens_for_assistant_actions())
        effort = library.ReasoningEffort(reasoning.capitalize())
        self._first = [self._message("system", library.SystemContent.new().with_reasoning_effort(effort))]
        self._first += self._developer(instructions)

    def _developer(self, instructions: str) -> list[Any]:
        if not instructions:
            return []
        content = self.library.DeveloperContent.new().with_instructions(instructions)
        return [self._message("developer", content)]

    def _message(self, role: str, content: Any) -> Any:
        return self.library.Message.from_role_and_content(self.library.Role(role), content)

    def encode(self, turns: Sequence[dict[str, Any]]) -> list[int]:
        """The ids from which the model answers. As in training, earlier answers come without their reasoning."""
        messages = [*self._first]
        for turn in turns:
            message = self._message(turn["role"], turn["text"])
            messages.append(message if turn["role"] == USER else message.with_channel("final"))
        conversation = self.library.Conversation.from_messages(messages)
        return self.encoding.render_conversation_for_completion(conversation, self.library.Role.ASSISTANT)

    def example(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[int]]:
        """A conversation to train on: the ids from which the model answers, and those of its answer and <|return|>.

        messages: role and content; the last one is the answer. What "system" and "developer" say are instructions,
        as in the chat template of gpt-oss.
        """
        told = [m["content"] for m in messages if m["role"] in ("system", "developer")]
        said = [
            self._message(m["role"], m["content"]) for m in messages if m["role"] in ("user", "assistant")
        ]
        said = [m.with_channel("final") if m.author.role.value == "assistant" else m for m in said]
        conversation = [*self._first, *self._developer("\n\n".join(told)), *said]
        of = self.library.Conversation.from_messages
        prompt = self.encoding.render_conversation_for_completion(
            of(conversation[:-1]), self.library.Role.ASSISTANT
        )
        return prompt, self.encoding.render_conversation_for_training(of(conversation))[len(prompt) :]

    def reader(self) -> HarmonyReader:
        return HarmonyReader(self)


class HarmonyReader(TextStream):
    """Reads the ids of one answer. Text behind a malformed header, or without one, is shown as it came.

    `channel` is that of the last piece: "analysis", "final", or UNPARSED.
    """

    def __init__(self, form: Harmony):
        super().__init__(form.tokenizer)
        self.channel, self._library = UNPARSED, form.library
        # A parser that has failed or has read a turn cannot read another one.
        self._parser = form.library.StreamableParser(form.encoding, role=form.library.Role.ASSISTANT)
        self._failed = False
        self._header: list[int] = []  # ids that no piece of text has shown yet

    def push(self, token: int) -> str:
        self._header.append(token)
        if not self._failed:
            try:
                self._parser.process(token)
            except self._library.HarmonyError:
                self._failed = True
            else:
                if self._parser.state != self._library.StreamState.HEADER:
                    self._header.clear()
                if self._parser.last_content_delta:
                    self.channel = self._parser.current_channel or UNPARSED
                return self._parser.last_content_delta or ""
        return self._as_it_came()

    def finish(self) -> str:
        """The rest: ids of a header that was not completed, and a character that was not."""
        return self._as_it_came() + super().finish()

    def _as_it_came(self) -> str:
        held, self._header = self._header, []
        if held:
            self.channel = UNPARSED
        return "".join(super(HarmonyReader, self).push(token) for token in held)
