"""Generate text: encode the prompts and their images, generate ids, and decode them piece by piece."""

from __future__ import annotations

import codecs
import secrets
from collections.abc import Iterator, Sequence

import numpy as np
import tiktoken
import torch
from torch import nn

from architecture.generation.decode import generate_steps
from architecture.generation.sampling import row_generators
from architecture.images import ImageFormat, encode_with_images
from architecture.tokenizer import encode_text


def image_format(model: nn.Module) -> ImageFormat | None:
    """What the model makes of an image; None if it reads none."""
    return getattr(model.config, "image_format", None)


def encode_prompt(
    tokenizer: tiktoken.Encoding,
    text: str,
    format: ImageFormat | None = None,
    number_of_images: int = 0,
    first_image: int = 0,
) -> list[int]:
    """The end-of-text id and the ids of the text, as a document begins in training; "" starts a new one.

    format: of a model that reads images. The other arguments are those of encode_with_images.
    """
    if format is None:
        return [tokenizer.eot_token, *encode_text(tokenizer, text).tolist()]
    return [tokenizer.eot_token, *encode_with_images(tokenizer, text, number_of_images, format, first_image)]


@torch.no_grad()
def features_of(model: nn.Module, images: Sequence[np.ndarray]) -> torch.Tensor | None:
    """The features of images as of read_image; None if there are none."""
    if not images:
        return None
    if image_format(model) is None:
        raise ValueError(
            f"a {model.name} model without an encoder reads no images, got {len(images)}; leave them out, or use "
            "a checkpoint of --model gptoss_vision"
        )
    size = image_format(model).size  # another size makes another number of features than the text has ids
    for image in images:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[1:] != (size, size):
            got = getattr(image, "shape", type(image).__name__), getattr(image, "dtype", "no dtype")
            raise ValueError(
                f"an image must be an array (3, {size}, {size}) of uint8, got {got[0]} of {got[1]}; read it with "
                f"read_image(file, {size}, name), and give each prompt a list of images"
            )
    return model.encode_images(torch.from_numpy(np.stack(images)).to(next(model.parameters()).device))


class TextStream:
    """Decodes ids one by one. The bytes of an incomplete UTF-8 character wait for the next id.

    The pieces joined are what tokenizer.decode returns for all ids.
    """

    def __init__(self, tokenizer: tiktoken.Encoding):
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        try:
            data = self.tokenizer.decode_single_token_bytes(token)
        except KeyError:  # o200k_harmony has ids without text, which an untrained model may draw
            data = b"\xff"  # not UTF-8, so it becomes the replacement character
        return self.decoder.decode(data)

    @property
    def at_boundary(self) -> bool:
        """Whether no byte of an incomplete character waits."""
        return not self.decoder.getstate()[0]

    def finish(self) -> str:
        """The rest of the text: a replacement character if the last character is incomplete."""
        return self.decoder.decode(b"", final=True)


def stream_text(
    model: nn.Module,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    temperature: float,
    seed: int | None = None,
    images: Sequence[Sequence[np.ndarray]] | None = None,
    **options,
) -> Iterator[tuple[int, str]]:
    """Yield (row, piece of text) as the rows grow, without the prompts. A row ends at end-of-text.

    seed: for row_generators; None draws one.
    images: those of each prompt, as of read_image, for a model that reads images. They go where the prompt has
    "<|image|>", or else in front of it. A list that several prompts share is encoded once.
    options: top_k, top_p, min_p and use_cache, as for generate_steps. Raises ValueError at the call.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError("the model has no tokenizer; load it from a checkpoint, or set model.tokenizer")
    images = [()] * len(prompts) if images is None else images
    if len(images) != len(prompts):
        raise ValueError(
            f"images must hold a list for each of {len(prompts)} prompts, got {len(images)}; [] stands for none"
        )
    ids, every, first = [], [], {}  # first: the number of the first image of a list
    for prompt, own in zip(prompts, images):
        if id(own) not in first:
            first[id(own)] = len(every)
            every.extend(own)
        ids.append(encode_prompt(tokenizer, prompt, image_format(model), len(own), first[id(own)]))
    seed = secrets.randbits(31) if seed is None else seed
    steps = generate_steps(
        model,
        ids,
        max_tokens=max_tokens,
        temperature=temperature,
        stop_tokens=(tokenizer.eot_token,),
        generators=row_generators(seed, len(prompts)),
        features=features_of(model, every),
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
    """Each prompt with its continuation, generated in one batch. options: as for stream_text."""
    texts = list(prompts)
    for row, piece in stream_text(model, prompts, max_tokens=max_tokens, temperature=temperature, **options):
        texts[row] += piece
    return texts


def generate_text(
    model: nn.Module,
    prompt: str,
    max_tokens: int,
    temperature: float,
    *,
    images: Sequence[np.ndarray] = (),
    **options,
) -> str:
    """The prompt with its continuation of at most max_tokens new tokens. options: as for stream_text.

    "" starts a new text. The model reads an end-of-text token in front of the prompt; the result has none.
    images: those of the prompt.
    """
    return generate_texts(model, [prompt], max_tokens, temperature, images=[images], **options)[0]
