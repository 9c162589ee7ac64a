"""The command line and YAML files: defaults < YAML (--config FILE.yaml) < flags.

The fields of the model (--num_experts 16) are flags too, and are collected apart. This module imports no
torch, so that --help is immediate.
"""

import argparse
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from shlex import quote
from typing import Any, Literal, NamedTuple, get_args, get_origin

from common.script import Parser, did_you_mean, shown
from common.settings import as_text, cast, is_switch
from training import other_names
from training.config import TrainConfig
from training.post.settings import KINDS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LARGEST_YAML = 1_000_000  # bytes
MOST_VALUES = 100_000  # in a YAML file, with each alias (*name) counted as the values that it stands for
ODD_NUMBER = re.compile(r"[-+]?0\w+|.*:.*")  # 010 is 8 in YAML, 0x10 is 16, 1:30 is 90


class CommandLine(NamedTuple):
    """The settings that a command line gives."""

    config: TrainConfig
    model_overrides: dict[str, Any]  # ModelConfig fields, cast to their types
    given: frozenset[str]  # the names in both configs that YAML or a flag sets
    help_model: bool  # whether to print the model's fields and stop
    flags: frozenset[str] = frozenset()  # the names in both configs that a flag sets
    file: Path | None = None  # the YAML file that --config names


def parse_command_line(
    argv: list[str],
    model_fields: Callable[[str], dict[str, Any]],
    *,
    config_class: type[TrainConfig] = TrainConfig,
) -> CommandLine:
    """Read the flags and the YAML file that they name.

    model_fields: maps the name of a model to {field: type} of its config. It imports torch, so it is called
    only if a name is not a field of config_class.
    Raises ValueError for bad input.  --help prints and exits.
    """
    hints = {f.name: f.type for f in fields(config_class)}
    train_names = frozenset(hints)
    parser = _parser(config_class)
    parsed, unknown = parser.parse_known_args(argv)
    yaml_path = find_config(parsed.config, config_class) if hasattr(parsed, "config") else None
    from_yaml = read_yaml(yaml_path) if yaml_path else {}
    model = getattr(parsed, "model", from_yaml.get("model"))
    if unknown or from_yaml.keys() - hints.keys():
        hints |= model_fields(model if isinstance(model, str) else config_class.model)
        for name in hints.keys() - train_names:
            _add_flag(parser, name, hints[name])
        parsed, unknown = parser.parse_known_args(argv)
    if unknown:
        named = [word.split("=")[0] for word in unknown if word.startswith("--")]
        if not named:
            raise _stray(unknown[0], config_class)
        raise ValueError(_unknown("flag", named, ["--config", *(f"--{name}" for name in hints)]))

    flags = vars(parsed)
    help_model = flags.pop("help_model", False)
    flags.pop("config", None)
    if keys := [str(name) for name in from_yaml if name not in hints]:
        raise ValueError(f"{yaml_path}: {_unknown('key', keys, list(hints))}")

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
        flags=frozenset(flags),
        file=yaml_path,
    )


def shipped_configs(config_class: type[TrainConfig], images: bool = False) -> dict[str, Path]:
    """{name: path} of the YAML files in configs/, or in its folder for the program of config_class.

    images: those in configs/vision/, for models of train.py that read images.
    """
    folder = CONFIGS / (config_class.recipe_folder or ("vision" if images else ""))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str, config_class: type[TrainConfig]) -> Path:
    """The file that --config names: a path, or the name of a file in configs/, such as "light"."""
    path, shipped = Path(name), shipped_configs(config_class)
    if path.exists() and (name not in shipped or path.is_file()):
        return path
    if name not in shipped:
        raise ValueError(
            f"{name}: cannot be read: there is no such file, and configs/{config_class.recipe_folder} has "
            f"{', '.join(shipped)}{did_you_mean(name, shipped)}"
        )
    return shipped[name]


def read_settings(path: str | Path, config_class: type[TrainConfig]) -> dict[str, Any]:
    """The settings of a run in a YAML file, cast to their types."""
    hints = {f.name: f.type for f in fields(config_class)}
    return {name: _value(name, value, hints[name]) for name, value in read_yaml(path).items()}


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """The mapping in a YAML file. Raises ValueError for another file, and for a key that occurs twice."""
    import yaml

    text = _yaml_text(Path(path))
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        sizes: dict[Any, float] = {}
        size = _size(node, sizes) if node else 0
        keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        numbers = (node for node in sizes if node.tag.endswith((":int", ":float")))
        odd = [node for node in numbers if ODD_NUMBER.fullmatch(node.value)]
        meant = [loader.construct_object(node) for node in odd[:1]]
        values = loader.construct_document(node) if 0 < size <= MOST_VALUES and not odd else None
    except RecursionError:
        raise ValueError(f"{path}: is not valid YAML: it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    except (ValueError, LookupError, AttributeError, TypeError):
        # PyYAML raises these for a value that only looks like a date, a number or a tag: 2001-99-99, !!bool x
        reason = "it has a date, a number or a !!tag that cannot be read"
        raise ValueError(f"{path}: is not valid YAML: {reason}; quote text") from None
    if size > MOST_VALUES:
        raise ValueError(
            f"{path}: must hold at most {MOST_VALUES:,} values, aliases (*name) written out, and holds more; "
            "remove what is not a setting"
        )
    if odd:
        raise ValueError(
            f"{path}: line {odd[0].start_mark.line + 1}: a number must be in plain digits, because YAML takes 010 "
            f"for 8 and 1:30 for 90; got {shown(odd[0].value)}, which counts as {shown(meant[0])}; write "
            f"{shown(meant[0])} or the number that you mean, and text in quotes"
        )
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must hold lines of `name: value`; got {shown(values)}")
    for key, times in Counter(keys).items():
        if times > 1:  # YAML itself takes the last one
            raise ValueError(f"{path}: {shown(key)} is set {times} times; keep one")
    return values


def _value(name: str, value: Any, hint: Any) -> Any:
    """cast(), with a remark about values that other trainers use."""
    remark = other_names.VALUES.get((name, value), "") if isinstance(value, str) else ""
    return cast(name, value, hint, remark)


def _yaml_text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # reading a device may not end
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
    """The number of values in a YAML node with its aliases written out; infinite if it contains itself."""
    if node not in sizes:
        sizes[node] = math.inf
        parts = () if isinstance(node.value, str) else node.value
        pairs = (part if isinstance(part, tuple) else (part,) for part in parts)
        sizes[node] = 1.0 + sum(_size(part, sizes) for pair in pairs for part in pair)
    return sizes[node]


def _one_length(level: dict[str, Any]) -> dict[str, Any]:
    """The settings of one level, in which max_iters unsets max_minutes and the other way round."""
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
        epilog="--no-NAME turns a true|false setting off. Each field of the model is a flag too, "
        "for example --num_experts 16; --help_model lists them.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # the result then holds only the flags that were given
    )
    parser.add_argument(
        "--config",
        metavar="FILE.yaml",
        help=f"a YAML file of settings, or the name of one in configs/{config_class.recipe_folder}; flags override it",
    )
    parser.add_argument("--help_model", action="store_true", help="list the fields of the model")
    for f in fields(config_class):
        help = f"{f.metadata['help']} (default: {as_text(f.default)})"
        help = (
            argparse.SUPPRESS if f.name in config_class.unread else help.replace("%", "%%")
        )  # it formats with %
        _add_flag(parser, f.name, f.type, help)
    return parser


def _add_flag(parser: argparse.ArgumentParser, name: str, hint: Any, help: str = "") -> None:
    """Add --name VALUE. The value stays text, because cast() checks all values."""
    if hint is bool or is_switch(hint):  # --NAME alone turns it on
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


def _unknown(what: str, names: list[str], known: list[str]) -> str:
    """The message about flags (with their dashes) or keys of a YAML file that are not settings."""
    hints, lists = {name: _hint(name, known) for name in names}, "--help and --help_model list the names"
    if len(hints) == 1:
        (name, hint), *_ = hints.items()
        return f"{what} {name!r} is unknown; {hint or lists}"
    told = ", ".join(f"{name!r} ({hint})" if hint else repr(name) for name, hint in hints.items())
    return f"{len(hints)} {what}s are unknown: {told}; {lists}"


def _hint(name: str, known: list[str]) -> str:
    """The setting that an unknown name probably means, in words; "" if there is none."""
    dashes = "--" if name.startswith("--") else ""
    others = (of for of in KINDS.values() if name.removeprefix("--") in {f.name for f in fields(of)})
    ours, remark = other_names.SETTINGS.get(name.removeprefix("--").replace("-", "_"), ("", ""))
    if dashes + ours in known:
        return f"here it is called {dashes}{ours}" + (f", {remark}" if remark else "")
    if other := next(others, None):
        return f"it is a setting of {other.program}"
    return did_you_mean(name, known).removeprefix("; ")


def _stray(word: str, config_class: type[TrainConfig]) -> ValueError:
    """The error for a word that belongs to no flag."""
    if word.endswith((".yaml", ".yml")) or word in shipped_configs(config_class):
        return ValueError(f"{word!r} is not a flag; use --config {quote(word)}")
    return ValueError(f"{word!r} is not a flag; a setting is written as --name VALUE")
