"""Load a checkpoint and generate text, from Python.

from inference import generate_text, load_model

model = load_model("model")  # a run's folder, RUN/best.json or a checkpoint_<step>.pt
print(generate_text(model, "Once upon a time", max_tokens=200, temperature=0.8))
"""

from __future__ import annotations

from pathlib import Path

import torch

from architecture.generation.text import encode_prompt, generate_text, generate_texts, stream_text
from architecture.registry import load_model

__all__ = [
    "generate_text",
    "generate_texts",
    "load_model",
    "load_model_and_generate",
    "stream_text",
]


def load_model_and_generate(
    checkpoint_path: str | Path,
    prompt: str,
    max_length: int,
    temperature: float,
    *,
    device: str | torch.device = "cpu",
    **options,
) -> str:
    """The prompt with its continuation by the model of a checkpoint.

    checkpoint_path: as for load_model.  options: as for stream_text.
    max_length: most tokens in all: the end-of-text token in front, the prompt, and the new ones; at most the
    context limit of the model.
    Raises ValueError for an unusable checkpoint, and if max_length leaves no room for a new token.
    """
    model = load_model(checkpoint_path, device=device)
    prompt_length = len(encode_prompt(model.tokenizer, prompt))
    if max_length <= prompt_length:
        raise ValueError(
            f"max_length must be above the prompt's {prompt_length} tokens (with the end-of-text token in "
            f"front), got {max_length}; raise max_length or shorten the prompt"
        )
    return generate_text(model, prompt, max_length - prompt_length, temperature, **options)
