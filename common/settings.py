"""Settings of runs and models: help text, type, bounds, and conversion from and to text."""

from __future__ import annotations

import operator
import re
import sys
from dataclasses import field, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from common.script import shown

BOUNDS = {  # arguments of option(): the comparison and its words in a message
    "at_least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "at_most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


def option(default: Any, help: str, **bounds: float) -> Any:
    """A field of a config: its default, its help text (with the unit) and its bounds."""
    return field(default=default, metadata={"help": help, "bounds": bounds})


def cast_fields(config: Any) -> None:
    """Cast the fields of a new config to their types, and raise ValueError for a wrong value."""
    hints = get_type_hints(type(config))
    for f in fields(config):
        value = cast(f.name, getattr(config, f.name), hints[f.name])
        object.__setattr__(config, f.name, value)
        require_bounds(f.name, value, f.metadata["bounds"], f"default: {as_text(f.default)}")


ALL = Literal["all"]  # beside a number and None: no limit
LAYERS = tuple[int, ...] | None  # a field of layer numbers; None is written `all`, and () is written `none`
LAYER_FIELDS = {"moe_layers"}  # the fields of this type


def as_text(value: Any, name: str = "") -> str:
    """The text of a value on the command line.  name: its field."""
    if value is None and name in LAYER_FIELDS:
        return "all"
    if isinstance(value, tuple):
        return ",".join(map(as_text, value)) or "none"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


LARGEST_INTEGER = 2**63 - 1  # the largest int64


def require_bounds(name: str, value: Any, bounds: dict[str, float], hint: str) -> None:
    """Raises ValueError if a number is outside the bounds; None passes.  hint: ends the message."""
    for bound, limit in bounds.items():
        holds, words = BOUNDS[bound]
        if value not in (None, "all") and not holds(value, limit):
            raise ValueError(f"{name} must be {words} {limit:,}; got {shown(value)} ({hint})")


def cast(name: str, value: Any, hint: Any, remark: str = "") -> Any:
    """Convert the text of a flag, or a value of YAML or JSON, to the type of a field.

    remark: added to the message about a value that is not one of the choices.
    Raises ValueError if the value does not fit the type exactly.
    """
    if hint == LAYERS and isinstance(value, str):
        rule = "all, none, or layer numbers separated by commas, such as 0,2"
        _require(re.fullmatch(r"(all|none|\d+(, *\d+)*)?", value), name, rule, value)
        value = {"all": None, "none": ()}.get(value, value)
    if NoneType in get_args(hint):  # T | None
        if value == "all" and ALL in get_args(hint):
            return value
        (hint,) = set(get_args(hint)) - {NoneType, ALL}
        return None if value is None or value == "none" else cast(name, value, hint, remark)
    if get_origin(hint) is tuple:  # tuple[T, ...]
        items = value
        if isinstance(value, str):  # "" is the empty tuple
            items = [item.strip() for item in value.split(",")] if value else []
        _require(isinstance(items, (list, tuple)), name, "values separated by commas", value)
        return tuple(cast(name, item, get_args(hint)[0]) for item in items)
    if get_origin(hint) is Literal:
        if is_switch(hint) and isinstance(value, (bool, str)):  # YAML parses on and off as booleans
            value = {"true": "on", "false": "off"}.get(str(value).lower(), value)
        rule = f"one of {', '.join(get_args(hint))}" + (f" ({remark})" if remark else "")
        _require(value in get_args(hint), name, rule, value)
        return value
    if hint is str:
        _require(isinstance(value, str), name, "text (quoted, in YAML)", value)
        _require(value, name, "text that is not empty (without the setting, its default holds)", value)
        _require("\0" not in value, name, "text without the character NUL", value)
        # a byte that is not UTF-8 becomes a lone surrogate in an argument and cannot be written to a file
        _require(not re.search("[\ud800-\udfff]", value), name, "UTF-8 text", value)
        return value
    if hint is bool:
        word = value.lower() if isinstance(value, str) else value
        _require(word in ("true", "false") or isinstance(word, bool), name, "true or false", value)
        return word in ("true", True)
    if hint is int:
        number = _number(int, value)
        _require(type(number) is int, name, "a whole number such as 1000", value)
        _require(abs(number) <= LARGEST_INTEGER, name, "a whole number below 2**63", value)
        return number
    if hint is float:
        number = _number(float, value)
        fits = type(number) in (int, float) and abs(number) <= sys.float_info.max
        _require(fits, name, "a finite number such as 3e-4", value)
        return float(number)
    raise TypeError(f"{name}: a config field cannot have the type {hint}")


def is_switch(hint: Any) -> bool:
    """Whether the choices of a field include on and off."""
    return get_origin(hint) is Literal and {"on", "off"} <= set(get_args(hint))


def _number(kind: type, value: Any) -> Any:
    """Text as a number. Returns the value unchanged if it is not text or not a number of this kind."""
    try:
        return kind(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _require(holds: Any, name: str, rule: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{name} must be {rule}; got {shown(value)}")
