"""The few functions to import: load a checkpoint, generate text.

from inference import generate_text, load_model
model = load_model("model/checkpoint_500.pt")
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
    """The prompt and its continuation by the model of a checkpoint; options as of stream_text.

    max_length: most tokens of the whole sequence: the end-of-text token in front, the prompt and
    what is new; at most the model's context limit.
    Raises ValueError for a bad checkpoint, and for a max_length that leaves no room.
    """
    model = load_model(checkpoint_path, device=device)
    prompt_length = len(encode_prompt(model.tokenizer, prompt))
    if max_length <= prompt_length:
        raise ValueError(
            f"max_length must be above the prompt's {prompt_length} tokens (end-of-text in front "
            f"included), got {max_length}; raise max_length or shorten the prompt"
        )
    return generate_text(model, prompt, max_length - prompt_length, temperature, **options)
