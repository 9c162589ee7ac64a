"""Load a checkpoint and generate text, from Python.

from inference import generate_text, load_model

model = load_model("model")  # a run's folder, RUN/best.json or a checkpoint_<step>.pt
print(generate_text(model, "Once upon a time", max_tokens=200, temperature=0.8))

photo = read_image("photo.png", model.config.image_size, "photo.png")  # for a model that reads images
print(generate_text(model, "Question: What is this?", max_tokens=20, temperature=0, images=[photo]))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from architecture.generation.text import (
    encode_prompt,
    generate_text,
    generate_texts,
    image_format,
    stream_text,
)
from architecture.images import read_image
from architecture.registry import load_model

__all__ = [
    "generate_text",
    "generate_texts",
    "load_model",
    "load_model_and_generate",
    "read_image",
    "stream_text",
]


def load_model_and_generate(
    checkpoint_path: str | Path,
    prompt: str,
    max_length: int,
    temperature: float,
    *,
    device: str | torch.device = "cpu",
    images: Sequence[np.ndarray] = (),
    **options,
) -> str:
    """The prompt with its continuation by the model of a checkpoint.

    checkpoint_path: as for load_model.  options: as for stream_text.
    max_length: most tokens in all: the end-of-text token in front, the prompt, and the new ones; at most the
    context limit of the model. With images, their tokens count, too.
    images: those of the prompt, as for stream_text.
    Raises ValueError for an unusable checkpoint, and if max_length leaves no room for a new token.
    """
    model = load_model(checkpoint_path, device=device)
    prompt_length = len(encode_prompt(model.tokenizer, prompt, image_format(model), len(images)))
    if max_length <= prompt_length:
        raise ValueError(
            f"max_length must be above the prompt's {prompt_length} tokens (with the end-of-text token in "
            f"front), got {max_length}; raise max_length or shorten the prompt"
        )
    return generate_text(model, prompt, max_length - prompt_length, temperature, images=images, **options)
