"""Compare models honestly: arms matched on a stated axis, the same search and data for all, several seeds,
and a verdict that says what it cannot tell. `python ablate.py --help` explains the specification.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.script import Parser, exit_code
from evaluation.ablation import spec


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="ablate.py",
        usage="ablate.py SPEC.yaml [--plan] [--jobs N] [--resume] [--out_dir DIR] [--SETTING VALUE ...]",
        description="Run a grid of comparison runs and write a report with verdicts.",
        epilog="A flag of train.py, as --dataset FILE, is a setting over the base's.\n\n"
        f"{spec.__doc__}\nA failed run is a result: --resume leaves it; delete its line in "
        "results.jsonl to have it made again.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    source = "the specification, or the plan.json of an earlier report: the same runs to the last bit"
    jobs = "runs at once: one on each GPU; on a CPU they share its cores (default: 1)"
    resume = "go on with the newest report of this specification, or the one in --out_dir"
    add("path", type=Path, metavar="SPEC.yaml", help=source)
    add("--plan", action="store_true", help="print what every arm costs, and stop")
    add("--jobs", type=int, default=1, metavar="N", help=jobs)
    add("--resume", action="store_true", help=resume)
    add("--out_dir", type=Path, metavar="DIR", help="default: runs/ablations/NAME-TIME")
    args, rest = parser.parse_known_args(argv)
    args.over_base = settings(rest)
    return args


def settings(words: list[str]) -> dict[str, str]:
    """{name: value} of --name VALUE and --name=VALUE; what they are is checked with the arms."""
    words, found = list(words), {}
    while words:
        name, given, value = words.pop(0).partition("=")
        if not name.startswith("--") or not (given or words):
            raise ValueError(
                f"{name!r} is no flag and no setting, which is written as --name VALUE; --help lists the flags"
            )
        found[name.removeprefix("--")] = value if given else words.pop(0)
    return found


def main(argv: list[str] | None = None, **tools) -> int:
    """Returns the exit code: 0; 2 for bad input; 130 after Ctrl-C. tools: launch, of the runs."""

    def run() -> None:
        args = parse(argv)
        from evaluation.ablation import experiment

        experiment.run(**vars(args), **tools)

    return exit_code("ablate.py", run)


if __name__ == "__main__":
    sys.exit(main())
