"""Command line and YAML: dataclass < YAML (--config FILE.yaml) < flags.

The model's own fields (--num_experts 16) share the namespace and are collected apart. Imports no
torch, so that --help is immediate.
"""

import argparse
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from common.script import Parser, did_you_mean, shown
from common.settings import as_text, cast, is_switch
from training import other_names
from training.config import TrainConfig


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
) -> CommandLine:
    """Resolve dataclass < YAML < flags.

    model_fields: the name of a model -> {name: type} of its config; called only when a name is not a field of
    config_class, because it imports torch.
    Raises ValueError, one sentence, for anything wrong.  --help prints and exits.
    """
    hints = {f.name: f.type for f in fields(config_class)}
    train_names = frozenset(hints)
    parser = _parser(config_class)
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
            level = {name: _value(name, value, hints[name]) for name, value in level.items()}
            values |= _one_length(level)
        except ValueError as error:
            raise ValueError(f"{source}{error}") from None
    return CommandLine(
        config=config_class(**{name: values[name] for name in values.keys() & train_names}),
        model_overrides={name: values[name] for name in values.keys() - train_names},
        given=frozenset(from_yaml) | frozenset(flags),
        help_model=help_model,
    )


def read_settings(path: str | Path, config_class: type[TrainConfig]) -> dict[str, Any]:
    """The settings of a run that a YAML file names, cast to their types."""
    hints = {f.name: f.type for f in fields(config_class)}
    return {name: _value(name, value, hints[name]) for name, value in read_yaml(path).items()}


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


def _value(name: str, value: Any, hint: Any) -> Any:
    """cast(), which also answers values that other trainers use."""
    remark = other_names.VALUES.get((name, value), "") if isinstance(value, str) else ""
    return cast(name, value, hint, remark)


def _yaml_text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # a device may have no end
            raise ValueError(f"{path}: cannot be read: it is a folder or a device, and must be a file")
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


def _parser(config_class: type[TrainConfig]) -> Parser:
    parser = Parser(
        prog=config_class.program,
        usage="%(prog)s [--config FILE.yaml] [--name VALUE ...]",
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
    if hint is bool or is_switch(hint):  # bare --NAME turns it on
        choices = "true|false" if hint is bool else "|".join(get_args(hint))
        parser.add_argument(f"--{name}", nargs="?", const="true", metavar=choices, help=help)
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
    if dashes + ours in known:
        hint = f"; here it is called {dashes}{ours}" + (f", {remark}" if remark else "")
    else:
        hint = did_you_mean(name, known) or "; --help and --help_model list the names"
    return ValueError(f"{what} {name!r} is unknown{hint}")
