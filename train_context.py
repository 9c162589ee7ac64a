"""Train the context-vector variant: as train.py, on segments whose state lives as long as their document.

`python train_context.py --help` lists the flags; what it adds is in training/config.py.
"""

import sys

from training.config import ContextTrainConfig
from training.train_command import train_command


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0; 2 for bad input; 128 + signal after a stop."""
    return train_command(ContextTrainConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
