"""Models and foreign checkpoint formats by name.

Each is written as "module:attribute" and imported when it is used. A model class has `name`, `config_class`
(a frozen dataclass) and `presets`; interface.py describes its config and its forward.
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
    "gptoss_vision": "architecture.gptoss_vision:VisionLanguageTransformer",
    "gpt2": "architecture.gpt2:GPT2",
}
# Readers of folders of weights by the model_type in config.json. OpenAI's layout of gpt-oss has none there.
FOLDERS = {
    "gpt2": "architecture.gpt2_hugging_face:read_folder",
    "gpt_oss": "architecture.open_gpt_oss.weights:read_folder",
    "gpt_oss_vision": "architecture.open_gpt_oss.weights:read_folder",
}
PACKED = "architecture.open_gpt_oss.weights:load_packed"


def model_class(name: str) -> type[nn.Module]:
    """The model class of that name."""
    if name not in MODELS:
        raise ValueError(
            f"model must be one of {', '.join(MODELS)}, got {name!r}{did_you_mean(name, MODELS)}"
        )
    return _imported(MODELS[name])


def build_config(name: str, size: str, overrides: dict[str, Any] | None = None) -> Any:
    """The config of the preset `size` of a model, with some fields replaced."""
    cls = model_class(name)
    if size not in cls.presets:
        known = ", ".join(cls.presets)
        near = did_you_mean(size, cls.presets)
        raise ValueError(f"model_size must be one of {known}, got {size!r}{near}")
    return config_from_dict(name, {**cls.presets[size], **(overrides or {})})


def config_from_dict(name: str, values: dict[str, Any]) -> Any:
    """The config of the model `name`, validated by checkpoint.config_from_dict."""
    return checkpoint.config_from_dict(model_class(name).config_class, values)


def build_model(name: str, config: Any, *, values: bool = True, **arguments: Any) -> nn.Module:
    """A new model. arguments: attention, experts and generator of its constructor.

    values: False builds it on the meta device, as checkpoint.without_values.
    """
    cls = model_class(name)
    return cls(config, **arguments) if values else checkpoint.without_values(cls, config, **arguments)


def read_weights(path: str | Path, part: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """The dictionary of a checkpoint, as from checkpoint.read_checkpoint, or of a folder of GPT-2 or gpt-oss.

    A folder has step 0 and no training state.
    """
    if not checkpoint.is_model_folder(path):
        return checkpoint.read_checkpoint(path, part=part)
    values = read_json_object(Path(path) / "config.json")
    found = values.get("model_type", "gpt_oss" if "swiglu_limit" in values else None)
    if not isinstance(found, str) or found not in FOLDERS:
        raise ValueError(
            f"model_type in {Path(path) / 'config.json'} must be one of {', '.join(FOLDERS)}, got {found!r}; "
            "this code reads no other models"
        )
    return _imported(FOLDERS[found])(path)


def load_model(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    attention: str = "auto",
    experts: str = "auto",
    weights: str | None = None,
) -> nn.Module:
    """The model of a checkpoint, in eval mode, with its tokenizer at `.tokenizer`.

    path: a checkpoint_<step>.pt, a run's folder for its newest, RUN/best.json for its best, or a folder of
    GPT-2 (transformers) or of gpt-oss (transformers or original). The checkpoint names the model's class.
    weights: "mxfp4" keeps the experts of a gpt-oss folder packed in four bits; experts is then not used.
    """
    if weights not in (None, "mxfp4"):
        raise ValueError(f"weights must be mxfp4 or left out, got {weights!r}")
    path = checkpoint.find_checkpoint(path)
    if weights:
        return _imported(PACKED)(path, attention=attention).to(device)
    state = read_weights(path)
    cls = model_class(state["model_name"])
    return checkpoint.model_of(cls, state, path, attention=attention, experts=experts).to(device)


def _imported(target: str) -> Any:
    """The attribute that "module:attribute" names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
