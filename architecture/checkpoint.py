"""The one reader of checkpoints: a file's content, the config that it names, its weights into a model.

It knows no model by name: a class is handed in, with its `name` and `config_class` (architecture/registry.py has
the names).
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import nn

from common.script import did_you_mean
from common.settings import cast, require_bounds

# No model comes near these: beyond them is a slip, or a number that would only be found out of memory.
LARGEST_SIZE, MOST_LAYERS, LARGEST_NUMBER, MOST_PARAMETERS = 2**20, 1024, 1e12, 10**15
REQUIRED_KEYS = ("model_name", "config", "model", "tokenizer", "step")  # of any checkpoint


def read_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The dictionary a checkpoint holds. Code inside a pickle is never run (weights_only).

    Raises ValueError, in one sentence, for a missing, truncated, corrupt or foreign file.
    """
    path = Path(path)
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


def config_from_dict(cls: type, values: dict[str, Any]) -> Any:
    """A validated config of a config class; an unknown key or a value that does not fit its field is an error."""
    hints = get_type_hints(cls)
    typed = {}
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"{key} is not a field of {cls.__name__}{did_you_mean(key, hints)}")
        typed[key] = cast(key, value, hints[key])
        if type(typed[key]) in (int, float):
            largest = MOST_LAYERS if key == "num_hidden_layers" else LARGEST_SIZE
            largest = LARGEST_NUMBER if hints[key] in (float, float | None) else largest
            require_bounds(key, typed[key], {"at_most": largest}, "lower it")
    config = cls(**typed)
    total = config.parameter_counts()["total"]
    if total > MOST_PARAMETERS:  # more than tensors can count, even without memory
        raise ValueError(
            f"a model may have {MOST_PARAMETERS:.0e} parameters, and these sizes give {total:.2e}; lower them"
        )
    return config


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


def load(
    cls: type[nn.Module], path: str | Path, *, device: str | torch.device = "cpu"
) -> nn.Module:
    """The model of class cls that a checkpoint holds, in eval mode, with its tokenizer at `.tokenizer`."""
    state = read_checkpoint(path)
    if state["model_name"] != cls.name:
        raise ValueError(
            f"checkpoint {path} holds a {state['model_name']!r} model, not {cls.name!r}; "
            f"load it with architecture.registry.load_model"
        )
    return model_of(cls, state, path).to(device)


def model_of(
    cls: type[nn.Module],
    state: dict[str, Any],
    path: str | Path,
    *,
    attention: str = "auto",
    experts: str = "auto",
) -> nn.Module:
    """The model of class cls, in eval mode on the CPU, of what read_checkpoint returned for path."""
    from architecture.tokenizer import tokenizer_from_state  # tiktoken is needed only when loading

    config = config_from_dict(cls.config_class, state["config"])
    # on the meta device the checkpoint's tensors become the weights: nothing is initialised
    with torch.device("meta"):
        model = cls(config, attention=attention, experts=experts)
    load_weights(model, state["model"], path)
    model.tokenizer = tokenizer_from_state(state["tokenizer"])
    return model.eval()
