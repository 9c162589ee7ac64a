"""Train a language model. `python train.py --help` lists the flags."""

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import sys

from training.config import TrainConfig
from training.train_command import train_command


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0; 2 for bad input; 128 + signal after a stop."""
    return train_command(TrainConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
