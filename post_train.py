"""Train a checkpoint further: sft, dpo, grpo or ppo. `python post_train.py KIND --help` lists the flags."""

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import sys

from common.script import did_you_mean, exit_code
from training.post.settings import KINDS
from training.train_command import train_command


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0; 2 for bad input; 128 + signal after a stop."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in KINDS:
        return train_command(KINDS[argv[0]], argv[1:])
    return exit_code("post_train.py", lambda: explain(argv))


def explain(argv: list[str]) -> int:
    """Say how the script is called. Raises ValueError for a call without a kind."""
    if argv and argv[0] in ("-h", "--help"):
        print("usage: post_train.py KIND --init_from CHECKPOINT [--config FILE.yaml] [--name VALUE ...]\n")
        for kind, config in KINDS.items():
            print(f"  {kind:<5} {config.__doc__}")
        print("\n`post_train.py KIND --help` lists the flags of a kind.")
        return 0
    got = argv[0] if argv else "nothing"
    raise ValueError(
        f"the first argument must be a kind of training, {', '.join(KINDS)}, got {got}"
        f"{did_you_mean(got, KINDS) or '; begin with one, as in post_train.py sft --init_from model'}"
    )


if __name__ == "__main__":
    sys.exit(main())
