"""Make a checkpoint of a folder of gpt-oss, for train.py --init_from.

    python -m architecture.open_gpt_oss import --folder gpt_oss_weights --output_dir model_imported
    python train.py --init_from model_imported ...

train.py --init_from and sample.py --checkpoint also take the folder itself. A checkpoint is one file without
MXFP4, with the checksums of all checkpoints.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

import torch

from architecture.checkpoint import FORMAT, model_of
from architecture.open_gpt_oss.names import CLASSES
from architecture.open_gpt_oss.weights import read_folder
from common.files import atomic_write, new_folder, require_new_folder
from common.provenance import git_commit
from common.script import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    told = "in the original or the Hugging Face layout of gpt-oss"
    add("--folder", required=True, metavar="DIR", help=told)
    add("--output_dir", required=True, metavar="RUN", help="a new or an empty folder for checkpoint_0.pt")


def run(args: argparse.Namespace) -> None:
    require_new_folder(args.output_dir)
    state = read_folder(args.folder)
    model = model_of(CLASSES[state["model_name"]], state, args.folder)  # read whole before a write begins
    state["model"] = model.state_dict()
    with new_folder(args.output_dir) as folder, atomic_write(folder / "checkpoint_0.pt") as file:
        torch.save({"format": FORMAT, "commit": git_commit(), **state}, file)
    output = quote(args.output_dir)
    say(
        f"wrote {Path(args.output_dir) / 'checkpoint_0.pt'}; go on with python train.py --init_from {output}, or "
        f"python sample.py --checkpoint {output}"
    )
