"""What a chat needs, in a terminal or on a page: checkpoints, conversations in files, prompts and answers.

A model that was trained on plain text continues the text of the whole conversation, whoever wrote its parts. A
model with a chat format (architecture/open_gpt_oss/harmony.py) is asked in that format.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from architecture.checkpoint import checkpoints, is_model_folder
from architecture.generation.decode import generate_steps, length_limit, new_decoder
from architecture.generation.sampling import row_generators
from architecture.generation.text import TextStream, encode_prompt, features_of, image_format
from architecture.images import IMAGE, read_image
from architecture.tokenizer import encode_text
from common.files import atomic_write, read_json, reading, write_json_atomic

USER, MODEL = "user", "assistant"  # the roles of a turn
TEXT, ANALYSIS = "text", "analysis"  # channels of an answer: of a model without channels, and reasoning
PIECES_PER_SECOND = 20  # a browser takes about 14 ms to draw one
ONE_AT_A_TIME = threading.Lock()  # for an answer: two at once take twice the memory, and as long as in turn
_one_writer = threading.Lock()  # the pages of this process write conversations one at a time


# ------------------------------------------------------------------------------------------ checkpoints
def list_checkpoints(folders: Iterable[str | Path]) -> list[Path]:
    """The checkpoints in these folders and in the folders directly inside them, newest first.

    A folder of another library's layout counts as one checkpoint. A folder that does not exist has none.
    """
    found: dict[Path, float] = {}
    for folder in map(Path, folders):
        for place in (folder, *sorted(folder.glob("[!.]*/"))):
            for path in checkpoints(place) or ([place] if is_model_folder(place) else []):
                try:
                    found[path] = path.stat().st_mtime
                except OSError:
                    pass  # it has just been deleted
    return sorted(found, key=lambda path: (found[path], path.name), reverse=True)


# ---------------------------------------------------------------------------------------- conversations
def conversation_file(folder: Path, name: str) -> Path:
    """The file of a conversation. The name comes from a URL, so it may be 16 hexadecimal digits only."""
    if not re.fullmatch(r"[0-9a-f]{16}", name):
        raise ValueError("the address names no conversation, because the name after c= is not complete")
    return folder / f"{name}.json"


def read_turns(path: Path) -> list[dict[str, Any]]:
    """The turns of a conversation: role and text, and what else was noted about an answer."""
    if not path.exists():
        raise ValueError("the conversation of this address is not on this machine")
    with reading(path, "a conversation"):
        turns = read_json(path)["turns"]
        if not all(turn["role"] in (USER, MODEL) and isinstance(turn["text"], str) for turn in turns):
            raise ValueError("a turn has no role or no text")
    return turns


def put_turn(path: Path, index: int, turn: dict[str, Any]) -> None:
    """Write a turn into a conversation, which it begins if there is no file, in place of turn `index`."""
    with _one_writer:  # the same conversation may be open in two tabs
        turns = read_turns(path) if path.exists() else []
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json_atomic(path, {"turns": [*turns[:index], turn, *turns[index + 1 :]]})


def image_file(path: Path, name: str) -> Path:
    """The file of an image in a conversation. The name comes from the conversation's file."""
    if not re.fullmatch(r"[0-9a-f]{16}", name):
        raise ValueError(
            f"an image of a conversation has a name of 16 hexadecimal digits, got {name!r}; begin anew"
        )
    return path.with_suffix("") / name


def keep_image(path: Path, data: bytes) -> str:
    """Keep the file of an image beside the conversation; returns its name, for `images` of a turn."""
    name = hashlib.blake2b(data, digest_size=8).hexdigest()
    image_file(path, name).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with atomic_write(image_file(path, name)) as file:
        file.write(data)
    return name


def with_images(turns: Sequence[dict[str, Any]], path: Path, size: int) -> list[dict[str, Any]]:
    """The turns of a conversation with images in place of their names."""

    def read(turn: dict[str, Any]) -> list[np.ndarray]:
        return [read_image(image_file(path, name), size, name) for name in turn.get("images", ())]

    return [turn | {"images": read(turn)} for turn in turns]


def text_of(turns: Sequence[dict[str, Any]], *, placeholders: bool = False) -> str:
    """The conversation as one text. A user's words are separated from the text before them by a blank.

    placeholders: put one for each image of a turn in front of its text, unless that has its own.
    """
    text = ""
    for turn in turns:
        new = turn["text"]
        if placeholders and IMAGE not in new:
            new = IMAGE * len(turn.get("images", ())) + new
        apart = text[-1:].isspace() or new[:1].isspace() or new[:1] in ",.;:!?'"
        text += new if turn["role"] == MODEL or not text or apart else f" {new}"
    return text


def images_of(turns: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    """The images of the turns, in order."""
    return [image for turn in turns for image in turn.get("images", ())]


def story_of(path: Path) -> str:
    """The text of a conversation in a file; "" if it has not begun."""
    return text_of(read_turns(path)) if path.exists() else ""


# ---------------------------------------------------------------------------------------------- answers
class ChatFormat(Protocol):
    """How a model was trained to read turns and to answer."""

    stop_tokens: tuple[int, ...]

    def encode(self, turns: Sequence[dict[str, Any]]) -> list[int]:
        """The ids from which the model answers."""

    def reader(self) -> TextStream:
        """A new reader of the ids of one answer, with the name of a piece's channel in `channel`."""


class Prompt(NamedTuple):
    """What a model reads before it answers."""

    ids: list[int]
    stop_tokens: tuple[int, ...]
    max_tokens: int  # most new tokens that fit
    unread: int  # tokens at the beginning of the conversation that no longer fit
    text: str
    format: ChatFormat | None
    images: Sequence[np.ndarray] = ()  # whose tokens are in ids


def prompt_of(
    model: nn.Module, turns: Sequence[dict[str, Any]], max_tokens: int, form: ChatFormat | None = None
) -> Prompt:
    """The prompt of a conversation.

    turns: for a model that reads images, `images` of a turn are its images, as of read_image.
    form: the chat format of the model; None for one that continues text.
    If the conversation and max_tokens do not fit into the context, the answer gets shorter, down to half of the
    context, and then the beginning is left out: of the text, or the first turns of a chat format.
    Raises ValueError if the last message of the user alone does not fit.
    """
    tokenizer, limit, sees = model.tokenizer, length_limit(model), image_format(model)
    images = images_of(turns) if sees else []
    if form and images:
        raise ValueError(
            "the chat format of this model has no place for images; begin a conversation without them"
        )

    def encode(some: Sequence[dict[str, Any]]) -> list[int]:
        if form:
            return form.encode(some)
        if sees is None:
            return encode_prompt(tokenizer, text_of(some))
        return encode_prompt(tokenizer, text_of(some, placeholders=True), sees, len(images_of(some)))

    ids, space = encode(turns), limit - min(max_tokens, limit // 2)
    if turns and turns[-1]["role"] == USER:
        longest = len(encode(turns[-1:]))
        if longest > space:
            raise ValueError(
                f"a message may have {space} tokens with this model (its context of {limit} without the room "
                f"for an answer), got {longest}; shorten the message or lower max tokens"
            )
    whole = len(ids)
    if form:
        kept = list(turns)
        # an answer needs its question
        while len(kept) > 1 and (len(ids) > space or kept[0]["role"] == MODEL):
            ids = encode(kept := kept[1:])
    elif whole > space:
        ids = [ids[0], *ids[1 + whole - space :]]
    stop_tokens = form.stop_tokens if form else (tokenizer.eot_token,)
    room = min(max_tokens, limit - len(ids))
    return Prompt(ids, stop_tokens, room, whole - len(ids), text_of(turns), form, images)


@dataclass
class Memory:
    """The decoder of a conversation, so that a turn reads only what is new.

    A model that carries a state goes on if the text does. Any other goes on if the ids of the whole conversation
    begin with those that were read; but for rounding, its answer is then that after reading all of them again.
    """

    model: nn.Module | None = None
    decoder: Any = None
    text: str | None = None  # None: nothing that can be continued
    waiting: tuple[int, ...] = ()  # a token that is part of the text, and was not fed to the decoder
    read: Sequence[int] = ()  # the ids that were fed to the decoder, of a model without a state
    room: int = 0  # most ids that this decoder can read
    images: Sequence[np.ndarray] = ()  # that this decoder sees
    features: torch.Tensor | None = None  # what the encoder made of the images

    def resume(self, model: nn.Module, prompt: Prompt) -> list[int]:
        """The ids that the decoder has to read for this prompt; a new decoder reads all."""
        carries, size = hasattr(model, "new_decoder"), len(prompt.ids) + prompt.max_tokens
        same = len(self.images) == len(prompt.images) and all(map(np.array_equal, self.images, prompt.images))
        if self.model is model and self.text is not None and same:
            if not carries:
                known = len(self.read)
                if size <= self.room and known < len(prompt.ids) and prompt.ids[:known] == self.read:
                    return prompt.ids[known:]
            elif prompt.text.startswith(self.text):
                new = encode_text(model.tokenizer, prompt.text[len(self.text) :]).tolist()
                if ids := [*self.waiting, *new]:
                    return ids
        self.room = min(2 * size, length_limit(model))  # for turns to come
        self.images, self.features = prompt.images, features_of(model, prompt.images)
        self.model, self.decoder = model, new_decoder(model, 1, self.room, features=self.features)
        return prompt.ids


@dataclass
class Answer:
    """An answer, as far as it is written."""

    text: str = ""
    analysis: str = ""  # the reasoning in front of it, in a chat format that has it
    channel: str = TEXT  # the channel of the last piece
    tokens: int = 0
    end: str = "stopped"  # then "ended" after a stop token, or "max tokens"


def stream_answer(
    model: nn.Module, prompt: Prompt, answer: Answer, memory: Memory, *, seed: int, **sampling
) -> Iterator[str]:
    """Yield the pieces of an answer, "" for a token that completes no character, and keep `answer` current.

    The caller may stop after any piece. seed: as for stream_text, of which this gives the text.
    sampling: temperature, top_k and top_p as for generate_steps.
    """
    ids = memory.resume(model, prompt)
    steps = generate_steps(
        model,
        [ids],
        max_tokens=prompt.max_tokens,
        stop_tokens=prompt.stop_tokens,
        generators=row_generators(seed, 1),
        decoder=memory.decoder,
        features=memory.features,
        **sampling,
    )
    stream = prompt.format.reader() if prompt.format else TextStream(model.tokenizer)
    memory.text, memory.waiting, memory.read = None, (), list(prompt.ids)
    for (token,) in steps:
        memory.read += memory.waiting
        answer.tokens += 1
        if token in prompt.stop_tokens:
            answer.end, token = "ended", None
        piece = "" if token is None else stream.push(token)
        if answer.end == "ended" or answer.tokens == prompt.max_tokens:
            piece += stream.finish()
            answer.end = answer.end if answer.end == "ended" else "max tokens"
        answer.channel = getattr(stream, "channel", TEXT)
        if answer.channel == ANALYSIS:
            answer.analysis += piece
        else:
            answer.text += piece
        memory.waiting = () if token is None else (token,)
        memory.text = prompt.text + answer.text if stream.at_boundary else None
        yield piece
        memory.text = None  # a failure in the next step leaves the decoder in the middle of it
    memory.text = prompt.text + answer.text if stream.at_boundary else None


def paced(pieces: Iterable[str], clock: Callable[[], float] = time.monotonic) -> Iterator[str]:
    """The pieces joined, at most PIECES_PER_SECOND of them, the first as soon as it is there."""
    held, due = "", -float("inf")
    for piece in pieces:
        held += piece
        if held and clock() >= due:
            yield held
            held, due = "", clock() + 1 / PIECES_PER_SECOND
    if held:
        yield held
