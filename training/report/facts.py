"""What the files of a run must hold to be shown, checked where they are read: nothing behind asks again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_origin

from training.command_line import cast
from training.config import TrainConfig

TEXTS = "samples/"  # tags of this beginning are stories; those of TABLES have a shape; the rest are numbers
LARGEST = 1e60  # far beyond the squares of what float32 holds; pictures are computed from it
GROUPS = {"train": dict, "model": dict, "parameters": dict, "tokenizer": dict, "starts": list}
COUNTS = (
    "num_hidden_layers",
    "num_experts",
    "experts_per_token",
)  # of the model, that words are made of


def checked_records(records: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; ValueError for a value that its tag cannot have."""
    for record in records:
        for tag, value in record.items():
            rule, holds = _rule(tag)
            if not holds(value):
                raise ValueError(
                    f"{path}: {tag} at step {record['step']} must be {rule}; delete that line, or its {tag}"
                )
    return records


def checked_config(config: Any, path: Path) -> dict[str, Any]:
    """What config.json says of a run, its settings as the types of their fields; ValueError where it
    says what no run has.
    """

    def require(holds: Any, what: str) -> None:
        if not holds:
            raise ValueError(f"{path} must be what train.py wrote, and {what}; move it away")

    require(isinstance(config, dict), "is no JSON object")
    for name, kind in GROUPS.items():
        require(isinstance(config.get(name, kind()), kind), f"its {name} is no {kind.__name__}")
    train, model = config.get("train", {}), config.get("model", {})
    hints = {f.name: f.type for f in fields(TrainConfig)}
    require(model.keys().isdisjoint(hints), "its model has settings of training")
    for name, hint in hints.items():  # other code had other choices
        hints[name] = str if get_origin(hint) is Literal else hint
    try:
        train = {k: cast(k, v, hints[k]) if k in hints else v for k, v in train.items()}
    except ValueError as error:
        require(False, f"its {error}")
    for name in ("batch_size", "block_size", "grad_accum", "max_iters"):
        require(train.get(name) is None or train[name] >= 1, f"its {name} is below 1")
    for name in COUNTS:
        require(_is_count(model.get(name, 1), 1), f"its {name} is no number of them")
    for name, value in config.get("parameters", {}).items():
        require(_is_count(value), f"its {name} parameters are no number of them")
    for name in ("name", "sha256"):
        require(
            isinstance(config.get("tokenizer", {}).get(name, ""), str), f"its {name} is no text"
        )
    for start in config.get("starts", []):
        require(isinstance(start, dict), "its starts are no list of starts")
        require(isinstance(start.get("command", ""), str), "the command of a start is no text")
    return config | ({"train": train} if "train" in config else {})


def _rule(tag: str) -> tuple[str, Callable[[Any], bool]]:
    if tag.startswith(TEXTS):
        return "text", lambda value: isinstance(value, str)
    return TABLES.get(tag, ("a number, or null", _is_number))


def _is_number(value: Any) -> bool:
    """NaN is what stood there as null; infinity is none of what a run writes, and no harm."""
    return type(value) in (int, float) and not LARGEST < abs(value) < math.inf


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**63


def _is_table(value: Any, *shape: int | None) -> bool:
    """Lists in lists of these lengths, at the bottom numbers or null; None: any length above 0, the same
    for all beside each other.
    """
    if not shape:
        return value is None or _is_number(value)
    if not isinstance(value, list) or not value or len(value) != (shape[0] or len(value)):
        return False
    rest = shape[1:]
    if rest and rest[0] is None and isinstance(value[0], list):
        rest = (len(value[0]), *rest[1:])
    return all(_is_table(part, *rest) for part in value)


def _is_kinds_table(value: Any) -> bool:
    """As training/instruments.py: kinds_table makes it."""
    if not isinstance(value, dict) or not _is_count(value.get("experts"), 1):
        return False
    kinds, layers = value.get("kinds"), value.get("layers")
    return (
        isinstance(kinds, list)
        and all(isinstance(kind, str) for kind in kinds)
        and isinstance(layers, list)
        and all(_is_count(layer) for layer in layers)
        and _is_table(value.get("tokens"), len(kinds))
        and _is_table(value.get("share"), len(layers), len(kinds), value["experts"])
    )


TABLES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "step": ("a whole number", _is_count),
    "moe/load": ("a row of numbers for each layer", lambda value: _is_table(value, None, None)),
    "moe/token_kinds": ("a table of shares by layer, kind and expert", _is_kinds_table),
    "attention/sink_mass": ("a table of shares by layer", lambda value: isinstance(value, dict)),
}
