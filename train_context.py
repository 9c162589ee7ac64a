"""Train a model that carries a state vector from each segment of a document to the next.

`python train_context.py --help` lists the flags. They are those of train.py with other defaults, and --tbptt.
"""

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import sys

from training.config import ContextTrainConfig
from training.train_command import train_command


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0; 2 for bad input; 128 + signal after a stop."""
    return train_command(ContextTrainConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
