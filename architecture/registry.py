"""Models and foreign formats by name, as "module:attribute", imported when they are asked for.

A model class brings `name`, `config_class` (a frozen dataclass), `presets` and `meanings`; interface.py says what
its config and its forward promise.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from architecture import checkpoint
from common.files import read_json_object
from common.script import did_you_mean

MODELS = {
    "gptoss": "architecture.gptoss:Transformer",
    "gptoss_context": "architecture.gptoss_context:ContextTransformer",
    "gpt2": "architecture.gpt2:GPT2",
}
# Who reads a folder as transformers' save_pretrained writes it, by the model_type in its config.json.
HUGGING_FACE = {"gpt2": "architecture.gpt2_hugging_face:read_folder"}


def model_class(name: str) -> type[nn.Module]:
    """The class behind a model's name."""
    if name not in MODELS:
        raise ValueError(
            f"model must be one of {', '.join(MODELS)}, got {name!r}{did_you_mean(name, MODELS)}"
        )
    return _imported(MODELS[name])


def build_config(name: str, size: str, overrides: dict[str, Any] | None = None) -> Any:
    """The preset `size` of a model with some fields replaced."""
    cls = model_class(name)
    if size not in cls.presets:
        known = ", ".join(cls.presets)
        near = did_you_mean(size, cls.presets)
        raise ValueError(f"model_size must be one of {known}, got {size!r}{near}")
    return config_from_dict(name, {**cls.presets[size], **(overrides or {})})


def config_from_dict(name: str, values: dict[str, Any]) -> Any:
    """A validated config of a model; see checkpoint.config_from_dict."""
    return checkpoint.config_from_dict(model_class(name).config_class, values)


def build_model(name: str, config: Any, **arguments: Any) -> nn.Module:
    """A new model; arguments are its constructor's: attention, experts, generator."""
    return model_class(name)(config, **arguments)


def read_weights(path: str | Path) -> dict[str, Any]:
    """What checkpoint.read_checkpoint returns, also of a folder of transformers (step 0, no run to continue)."""
    if not checkpoint.is_hugging_face(path):
        return checkpoint.read_checkpoint(path)
    found = read_json_object(Path(path) / "config.json").get("model_type")
    if not isinstance(found, str) or found not in HUGGING_FACE:
        raise ValueError(
            f"model_type in {Path(path) / 'config.json'} must be one of {', '.join(HUGGING_FACE)}, "
            f"got {found!r}; other models cannot be read"
        )
    return _imported(HUGGING_FACE[found])(path)


def load_model(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    attention: str = "auto",
    experts: str = "auto",
) -> nn.Module:
    """The model of a checkpoint, in eval mode, with its tokenizer at `.tokenizer`.

    path: a checkpoint_<step>.pt, a run's folder (its newest), RUN/best.json (its best), or a folder of
    transformers. The class is the one that the file names.
    """
    path = checkpoint.find_checkpoint(path)
    state = read_weights(path)
    cls = model_class(state["model_name"])
    return checkpoint.model_of(cls, state, path, attention=attention, experts=experts).to(device)


def _imported(target: str) -> Any:
    """What "module:name" says, imported now."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
