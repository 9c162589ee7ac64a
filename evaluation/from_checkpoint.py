"""What the commands share that measure a checkpoint on the validation data of its run, or on other data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import common.begin
from common.script import Parser, say
from common.threads import set_threads


def add_flags(parser: Parser, several: bool = False) -> None:
    """Add the checkpoint, or a list of them, and the flags of data, device and threads."""
    add = parser.add_argument
    many = {"nargs": "+"} if several else {}
    add(
        "checkpoint",
        metavar="CKPT",
        help="checkpoint_<step>.pt, RUN for its newest, or RUN/best.json",
        **many,
    )
    add("--dataset", help="as in training (default: that of the checkpoint)")
    add("--val_dataset", help="as in training (default: that of the checkpoint)")
    add("--text_column", help="column of the text (default: text, or that of the checkpoint with its data)")
    add("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N (default: auto)")
    threads = "CPU threads (default: one for each core that is free at the start)"
    add("--threads", type=int, metavar="N", help=threads)


def require_at_least(args: argparse.Namespace, **least: int) -> None:
    """Raise ValueError for a flag that is given and below its least value."""
    for name, bound in least.items():
        value = getattr(args, name)
        if value is not None and value < bound:
            raise ValueError(f"--{name} must be at least {bound}, got {value}")


def read(args: argparse.Namespace) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Choose the threads. Returns the path of the checkpoint, its content and the settings of its run."""
    from architecture import checkpoint
    from training.state.checkpoint import saved_settings

    if line := set_threads(args.threads, common.begin.STARTED):
        say(line)
    path = checkpoint.find_checkpoint(args.checkpoint, say)
    saved = checkpoint.read_checkpoint(path)
    return path, saved, saved_settings(saved, path)


def data_to_read(
    args: argparse.Namespace, saved: dict[str, Any], before: dict[str, Any]
) -> tuple[str | None, str | None, str, dict[str, Any]]:
    """dataset, val_dataset and text_column; and the identity of the run's data, {} for other data.

    saved, before: from read().  Both names are None if neither the flags nor the checkpoint name data.
    """
    from data.defaults import TEXT_COLUMN
    from training.state.checkpoint import saved_identity, stories_of

    if args.dataset is not None or args.val_dataset is not None:
        return args.dataset, args.val_dataset, args.text_column or TEXT_COLUMN, {}
    dataset, val_dataset, column = stories_of(before)
    return dataset, val_dataset, args.text_column or column, saved_identity(saved)


def validation_source(
    args: argparse.Namespace, saved: dict[str, Any], before: dict[str, Any], path: Path, tokenizer: Any
) -> Any:
    """The validation documents of text of data_to_read().

    tokenizer: of the model.  Raises ValueError if the checkpoint names no data, if the data of its run has changed,
    or if the tokens in it are of another tokenizer.
    """
    from data.sources import open_dataset, say_left_out
    from training.state.checkpoint import data_identity, require_same_data

    dataset, val_dataset, column, held = data_to_read(args, saved, before)
    if dataset is None and val_dataset is None:
        raise ValueError(f"{path} does not say which data it was trained on; give --dataset or --val_dataset")
    source = open_dataset(
        dataset or "bundled",
        split="validation",
        val_dataset=val_dataset,
        text_column=column,
        identity=held.get("validation data"),
    )
    say_left_out(say, source)
    if held:
        require_same_data(held, data_identity(None, source), path)
    source.check_tokenizer(tokenizer)
    return source


def model_on_device(args: argparse.Namespace, saved: dict[str, Any], path: Path) -> Any:
    """The model of the checkpoint on the device of the flags, in eval mode."""
    from architecture import checkpoint, registry
    from common.device import choose_device

    device = choose_device(args.device)
    return checkpoint.model_of(registry.model_class(saved["model_name"]), saved, path).to(device)
