"""Models by name, and the one reader of checkpoints.

Names are strings and the model's module is imported when it is asked for, so that this file can be
used by the models themselves. A model class brings `config_class`, a frozen dataclass, and `presets`.
"""

from __future__ import annotations

import difflib
import importlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import nn

MODELS = {
    "gptoss": "architecture.gptoss:Transformer",
    "gptoss_context": "architecture.gptoss_context:ContextTransformer",
    "gpt2": "architecture.gpt2:GPT2",
}
# Who reads a folder as transformers' save_pretrained writes it, by the model_type in its config.json.
HUGGING_FACE = {"gpt2": "architecture.gpt2_hugging_face:read_folder"}
# No model comes near these: beyond them is a slip, or a number that would only be found out of memory.
LARGEST_SIZE, MOST_LAYERS, LARGEST_NUMBER, MOST_PARAMETERS = 2**20, 1024, 1e12, 10**15
REQUIRED_KEYS = ("model_name", "config", "model", "tokenizer", "step")  # of any checkpoint


def model_class(name: str) -> type[nn.Module]:
    """The class behind a model's name."""
    if name not in MODELS:
        raise ValueError(
            f"model must be one of {', '.join(MODELS)}, got {name!r}{_nearest(name, MODELS)}"
        )
    return _imported(MODELS[name])


def model_name(model: nn.Module | type[nn.Module]) -> str:
    """The name of a model or its class, the inverse of model_class."""
    cls = model if isinstance(model, type) else type(model)
    return {target: name for name, target in MODELS.items()}[f"{cls.__module__}:{cls.__qualname__}"]


def extends(name: str) -> str | None:
    """The name of the model whose weights a variant can start from; None for a model of its own."""
    return getattr(model_class(name), "extends", None)


def build_config(name: str, size: str, overrides: dict[str, Any] | None = None) -> Any:
    """The preset `size` of a model with some fields replaced."""
    cls = model_class(name)
    if size not in cls.presets:
        raise ValueError(
            f"model_size must be one of {', '.join(cls.presets)}, got {size!r}{_nearest(size, cls.presets)}"
        )
    return config_from_dict(name, {**cls.presets[size], **(overrides or {})})


def build_model(name: str, config: Any, **arguments: Any) -> nn.Module:
    """A new model; arguments are its constructor's: attention, experts, generator."""
    total = config.parameter_counts()["total"]
    if total > MOST_PARAMETERS:  # more than tensors can count, even without memory
        raise ValueError(
            f"a model may have {MOST_PARAMETERS:.0e} parameters, and these sizes give {total:.2e}; lower them"
        )
    return model_class(name)(config, **arguments)


def config_to_dict(config: Any) -> dict[str, Any]:
    """A config as plain values, ready for JSON."""
    return asdict(config)


def config_from_dict(name: str, values: dict[str, Any]) -> Any:
    """A validated config; an unknown key or a value of another type than the field's is an error."""
    cls = model_class(name).config_class
    hints = get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"{key} is not a field of {cls.__name__}{_nearest(key, hints)}")
        if not _fits(value, hints[key]):
            hint = hints[key]
            kind = hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("typing.")
            raise ValueError(f"{key} must be of type {kind}, got {value!r}; write it as one")
        if type(value) in (int, float):
            largest = MOST_LAYERS if key == "num_hidden_layers" else LARGEST_SIZE
            largest = LARGEST_NUMBER if hints[key] in (float, float | None) else largest
            if value > largest:
                raise ValueError(f"{key} must be at most {largest:,}, got {value!r}; lower it")
    return cls(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value, as JSON brings it, is of a field's type: a list does for a tuple, an int for a
    float, a bool for neither."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return value in options
    if get_origin(hint) is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(v, options[0]) for v in value)
    if options:  # A | B
        return any(_fits(value, option) for option in options)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def read_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The dictionary a checkpoint holds, or a folder of transformers as one. Code inside a pickle is
    never run (weights_only).

    Raises ValueError, in one sentence, for a missing, truncated, corrupt or foreign file.
    """
    path = Path(path)
    if is_hugging_face(path):
        return _hugging_face_reader(path)(path, device)
    if path.is_dir():
        raise ValueError(
            f"a checkpoint must be a file, and {path} is a folder; name a checkpoint_<step>.pt in it"
        )
    if not path.is_file():
        raise ValueError(
            f"checkpoint {path} does not exist; look into its folder for checkpoint_<step>.pt"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about old pickles: one sentence is enough
            state = torch.load(path, map_location=device, weights_only=True)
    except PermissionError:
        raise  # says itself what is wrong
    except Exception as error:  # of many kinds, and for a person of two
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            raise ValueError(
                f"checkpoint {path} holds more than tensors and plain values and was not loaded, "
                "because that could run code; use a checkpoint written by this project"
            ) from error
        raise ValueError(
            f"checkpoint {path} is truncated or corrupt, or no checkpoint at all; "
            "use another checkpoint_<step>.pt from its folder"
        ) from error
    missing = [key for key in REQUIRED_KEYS if not isinstance(state, dict) or key not in state]
    if missing:
        raise ValueError(
            f"checkpoint {path} is not one of this project's, it has no {', '.join(missing)}; "
            "use a checkpoint_<step>.pt that train.py wrote"
        )
    shapes = {"model_name": str, "config": dict, "model": dict, "tokenizer": dict, "step": int}
    for key, kind in shapes.items():
        if not isinstance(state[key], kind):
            raise ValueError(
                f"checkpoint {path} is damaged, its {key} is a {type(state[key]).__name__} and not a "
                f"{kind.__name__}; use another checkpoint_<step>.pt from its folder"
            )
    return state


def is_hugging_face(path: str | Path) -> bool:
    """Whether this is a folder with weights as transformers' save_pretrained writes them."""
    path = Path(path)
    if not path.is_dir():
        return False
    if any(path.glob("model*.safetensors*")):
        return True
    try:
        return "model_type" in read_json_object(path / "config.json")  # which no run's has
    except ValueError:
        return False


def _hugging_face_reader(folder: Path) -> Any:
    found = read_json_object(folder / "config.json").get("model_type")
    if not isinstance(found, str) or found not in HUGGING_FACE:
        raise ValueError(
            f"model_type in {folder / 'config.json'} must be one of {', '.join(HUGGING_FACE)}, "
            f"got {found!r}; other models cannot be read"
        )
    return _imported(HUGGING_FACE[found])


def read_json_object(path: str | Path) -> dict[str, Any]:
    """A JSON object that somebody else may have written; ValueError, in one sentence, for anything else."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}; use a folder that is whole")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object; use another copy of it")
    return value


def load_weights(
    model: nn.Module,
    weights: dict[str, torch.Tensor],
    source: str | Path,
    added: Collection[str] = (),
) -> None:
    """Give tensors to a model by name, also to one on the meta device.

    added: names that a variant has beyond the trunk whose weights these are; they stay as they are.
    Raises ValueError for a missing, a surplus or a misshapen tensor, and for what is none.
    """
    expected = model.state_dict()
    require_tensors(weights, source)
    weights = {name: expected[name] for name in added} | weights
    for problem, names in (
        ("tensors that this model lacks", weights.keys() - expected.keys()),
        ("no tensor for some of this model's", expected.keys() - weights.keys()),
        (
            "tensors of another shape",
            {n for n in expected if n in weights and weights[n].shape != expected[n].shape},
        ),
    ):
        if names:
            raise ValueError(
                f"{source} has {problem} ({len(names)}, first {sorted(names)[0]}); "
                "use the model and shape that it was trained with"
            )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not any(p.is_meta for p in parameters.values()):
        model.load_state_dict(weights)
        return
    # nothing to copy into: the tensors become the parameters, and a tied parameter stays one object
    made: dict[int, nn.Parameter] = {}
    for name, parameter in parameters.items():
        made.setdefault(id(parameter), nn.Parameter(weights[name]))
    tied = {name: made[id(parameter)] for name, parameter in parameters.items()}
    model.load_state_dict({**weights, **tied}, assign=True)


def require_tensors(weights: dict[Any, Any], source: str | Path) -> None:
    """ValueError unless these are tensors of numbers by name, all of one floating point type."""
    for name, tensor in weights.items():
        plain = isinstance(name, str) and isinstance(tensor, torch.Tensor)
        if not plain or tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(
                f"{source} is damaged, its {name!r} is no tensor of weights; use another "
                "checkpoint_<step>.pt from its folder"
            )
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()})
    if len(kinds) > 1 or not all(t.is_floating_point() for t in weights.values()):
        raise ValueError(
            f"{source} has weights of type {' and '.join(kinds)}, and all must be of one floating point "
            "type; use another checkpoint_<step>.pt from its folder"
        )


def load_model(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    attention: str = "auto",
    experts: str = "auto",
    expected: type[nn.Module] | None = None,
) -> nn.Module:
    """The model of a checkpoint, in eval mode, with its tokenizer at `.tokenizer`.

    expected: refuse a checkpoint of any other architecture.
    """
    state = read_checkpoint(path)
    name = state["model_name"]
    if expected is not None and name != model_name(expected):
        raise ValueError(
            f"checkpoint {path} holds a {name!r} model, not {model_name(expected)!r}; "
            f"load it with architecture.registry.load_model"
        )
    return model_of(state, path, attention=attention, experts=experts).to(device)


def model_of(
    state: dict[str, Any], path: str | Path, *, attention: str = "auto", experts: str = "auto"
) -> nn.Module:
    """What load_model returns, on the CPU, of what read_checkpoint returned for path."""
    from architecture.tokenizer import tokenizer_from_state  # tiktoken is needed only when loading

    name = state["model_name"]
    config = config_from_dict(name, state["config"])
    with torch.device(
        "meta"
    ):  # the checkpoint's tensors become the weights: nothing is initialised
        model = build_model(name, config, attention=attention, experts=experts)
    load_weights(model, state["model"], path)
    model.tokenizer = tokenizer_from_state(state["tokenizer"])
    return model.eval()


def _imported(target: str) -> Any:
    """What "module:name" says, imported now."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1) if isinstance(name, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""
