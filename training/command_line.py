"""Command line and YAML: dataclass < YAML (--config FILE.yaml) < flags.

The model's own fields (--num_experts 16) share the namespace and are collected apart. Imports no
torch, so that --help is immediate.
"""

import argparse
import difflib
import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from common.script import Parser, shown
from training import other_names
from training.config import TrainConfig, as_text


class CommandLine(NamedTuple):
    """What a person asked for."""

    config: TrainConfig
    model_overrides: dict[str, Any]  # ModelConfig fields, cast to their types
    given: frozenset[str]  # every name that YAML or a flag set, of both configs
    help_model: bool  # --help_model: print the model's fields and stop


def parse_command_line(
    argv: list[str],
    model_fields: Callable[[str], dict[str, Any]],
    *,
    config_class: type[TrainConfig] = TrainConfig,
    prog: str | None = None,
    description: str | None = None,
) -> CommandLine:
    """Resolve dataclass < YAML < flags.

    model_fields: the name of a model -> {name: type} of its config; called only when a name is not a field of
    config_class, because it imports torch.
    Raises ValueError, one sentence, for anything wrong.  --help prints and exits.
    """
    hints = {f.name: f.type for f in fields(config_class)}
    train_names = frozenset(hints)
    parser = _parser(config_class, prog, description)
    parsed, unknown = parser.parse_known_args(argv)
    yaml_path = getattr(parsed, "config", None)
    from_yaml = read_yaml(yaml_path) if yaml_path else {}
    model = getattr(parsed, "model", from_yaml.get("model"))
    if unknown or from_yaml.keys() - hints.keys():
        hints |= model_fields(model if isinstance(model, str) else config_class.model)
        for name in hints.keys() - train_names:
            _add_flag(parser, name, hints[name])
        parsed, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = next((word for word in unknown if word.startswith("--")), None)
        if flag is None:
            raise ValueError(f"{unknown[0]!r} is not a flag; a setting is written as --name VALUE")
        raise _unknown("flag", flag.split("=")[0], ["--config", *(f"--{name}" for name in hints)])

    flags = vars(parsed)
    help_model = flags.pop("help_model", False)
    flags.pop("config", None)
    for name in from_yaml:
        if name not in hints:
            raise _unknown(f"{yaml_path}: key", str(name), list(hints))

    values: dict[str, Any] = {}
    for source, level in ((f"{yaml_path}: ", from_yaml), ("", flags)):
        try:
            level = {name: cast(name, value, hints[name]) for name, value in level.items()}
            values |= _one_length(level)
        except ValueError as error:
            raise ValueError(f"{source}{error}") from None
    return CommandLine(
        config=config_class(**{name: values[name] for name in values.keys() & train_names}),
        model_overrides={name: values[name] for name in values.keys() - train_names},
        given=frozenset(from_yaml) | frozenset(flags),
        help_model=help_model,
    )


LARGEST_YAML = 1_000_000  # bytes
MOST_VALUES = 100_000  # of a YAML file, each alias (*name) counted as all that it stands for


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """A YAML mapping; ValueError, one sentence, for a file that is none or says a thing twice."""
    import yaml

    text = _yaml_text(Path(path))
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        size = _size(node, {}) if node else 0
        keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        values = loader.construct_document(node) if 0 < size <= MOST_VALUES else None
    except RecursionError:
        raise ValueError(f"{path}: is not valid YAML: it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    except (ValueError, LookupError, AttributeError, TypeError):
        # what PyYAML meets where a value is not of the kind that it looks like: 2001-99-99, !!bool x
        reason = "it has a date, a number or a !!tag that means nothing"
        raise ValueError(f"{path}: is not valid YAML: {reason}; quote text") from None
    if size > MOST_VALUES:
        raise ValueError(
            f"{path}: must hold at most {MOST_VALUES:,} values, aliases (*name) counted as what they "
            "stand for, and holds more; write settings alone"
        )
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must hold lines of `name: value`; got {shown(values)}")
    for key, times in Counter(keys).items():
        if times > 1:  # YAML would keep the last in silence
            raise ValueError(f"{path}: {shown(key)} is set {times} times; keep one")
    return values


def _yaml_text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # a device may have no end
            raise ValueError(
                f"{path}: cannot be read: it is a folder or a device, and must be a file"
            )
        with open(path, "rb") as file:
            content = file.read(LARGEST_YAML + 1)
        if len(content) > LARGEST_YAML:
            raise ValueError(f"{path}: must be at most {LARGEST_YAML:,} bytes, and is larger")
        return content.decode()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: must be a YAML file in UTF-8; it is not UTF-8") from None


def _size(node: Any, sizes: dict[Any, float]) -> float:
    """How many values a YAML node holds, with its aliases written out; infinite if it holds itself."""
    if node not in sizes:
        sizes[node] = math.inf
        parts = () if isinstance(node.value, str) else node.value
        pairs = (part if isinstance(part, tuple) else (part,) for part in parts)
        sizes[node] = 1.0 + sum(_size(part, sizes) for pair in pairs for part in pair)
    return sizes[node]


def _one_length(level: dict[str, Any]) -> dict[str, Any]:
    """max_iters and max_minutes replace each other: where a level sets one, it unsets the other."""
    lengths = {"max_iters": None, "max_minutes": None}
    given = [name for name in lengths if level.get(name) is not None]
    if len(given) == 2:
        raise ValueError(
            f"max_iters ({level['max_iters']}) and max_minutes ({level['max_minutes']}) "
            "both set the length of the run; give one of them"
        )
    return lengths | level if given else level


def _parser(config_class: type[TrainConfig], prog: str | None, description: str | None) -> Parser:
    parser = Parser(
        prog=prog,
        usage="%(prog)s [--config FILE.yaml] [--name VALUE ...]",
        description=description,
        epilog="--no-NAME turns a true|false setting off. Any field of the model is a flag too, "
        "for example --num_experts 16: see --help_model.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # the result holds only what was given
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="settings; flags override them")
    parser.add_argument("--help_model", action="store_true", help="list the model's fields")
    for f in fields(config_class):
        help = f"{f.metadata['help']} (default: {as_text(f.default)})"
        _add_flag(parser, f.name, f.type, help.replace("%", "%%"))  # argparse formats with %
    return parser


def _add_flag(parser: argparse.ArgumentParser, name: str, hint: Any, help: str = "") -> None:
    """--name VALUE, kept as text: cast() is the one judge of values."""
    if hint is bool:
        parser.add_argument(f"--{name}", nargs="?", const="true", metavar="true|false", help=help)
        parser.add_argument(
            f"--no-{name}", dest=name, action="store_const", const="false", help=argparse.SUPPRESS
        )
        return
    if get_origin(hint) is Literal:
        metavar = "|".join(get_args(hint))
    else:
        kinds = {hint, *get_args(hint)}
        metavar = "N" if int in kinds else "X" if float in kinds else "TEXT"
    parser.add_argument(f"--{name}", metavar=metavar, help=help)


def _unknown(what: str, name: str, known: list[str]) -> ValueError:
    """For a flag (with its dashes) or a key that is no setting: ours, if we know what is meant."""
    dashes = "--" if name.startswith("--") else ""
    ours, remark = other_names.SETTINGS.get(name.removeprefix("--").replace("-", "_"), ("", ""))
    nearest = difflib.get_close_matches(name, known, n=1)
    if dashes + ours in known:
        hint = f"here it is called {dashes}{ours}" + (f", {remark}" if remark else "")
    elif nearest:
        hint = f"did you mean {nearest[0]!r}?"
    else:
        hint = "--help and --help_model list the names"
    return ValueError(f"{what} {name!r} is unknown; {hint}")


# --------------------------------------------------------------------------------------------------
# values

LARGEST_INTEGER = 2**63 - 1  # what files and tensors can hold


def cast(name: str, value: Any, hint: Any) -> Any:
    """The text of a flag, or a YAML value, as a field's type; ValueError unless it fits exactly."""
    if NoneType in get_args(hint):  # T | None
        (hint,) = set(get_args(hint)) - {NoneType}
        return None if value is None or value == "none" else cast(name, value, hint)
    if get_origin(hint) is tuple:  # tuple[T, ...]
        items = value
        if isinstance(value, str):  # "" is the empty tuple
            items = [item.strip() for item in value.split(",")] if value else []
        _require(isinstance(items, list), name, "values separated by commas", value)
        return tuple(cast(name, item, get_args(hint)[0]) for item in items)
    if get_origin(hint) is Literal:
        remark = other_names.VALUES.get((name, value)) if isinstance(value, str) else None
        rule = f"one of {', '.join(get_args(hint))}" + (f" ({remark})" if remark else "")
        _require(value in get_args(hint), name, rule, value)
        return value
    if hint is str:
        _require(isinstance(value, str) and value, name, "text (quoted, in YAML)", value)
        _require("\0" not in value, name, "text without the character NUL", value)
        # a byte of an argument that is not UTF-8 arrives as a lone surrogate, which nothing can record
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


def _number(kind: type, value: Any) -> Any:
    """Text as a number; anything else, and text that is no such number, as it came."""
    try:
        return kind(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _require(holds: Any, name: str, rule: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{name} must be {rule}; got {shown(value)}")
