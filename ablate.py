"""Compare models: arms matched on a stated axis, one learning-rate search and the same data for all, several
seeds, and verdicts that name the smallest difference they can detect. `python ablate.py --help` explains the
specification.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import argparse
import sys
from pathlib import Path

from common.begin import make_unfailing
from common.script import Parser, exit_code
from evaluation.ablation import spec


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="ablate.py",
        usage="ablate.py SPEC.yaml [--plan] [--jobs N] [--resume] [--out_dir DIR] [--SETTING VALUE ...]",
        description="Train and compare the arms of a specification and write a report with verdicts.",
        epilog="A flag of train.py, such as --dataset FILE, replaces that setting of the base.\n\n"
        f"{spec.__doc__}\n--resume does not repeat a run that failed. To repeat it, delete its line in "
        "results.jsonl.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    source = "the specification, or the plan.json of an earlier report, which repeats its runs bit for bit"
    jobs = "number of runs at the same time: one per GPU; on a CPU they share the cores (default: 1)"
    resume = "continue the newest report of this specification, or the one in --out_dir"
    add("path", type=Path, metavar="SPEC.yaml", help=source)
    add("--plan", action="store_true", help="print what each arm costs and how many runs there are, and stop")
    add("--jobs", type=int, default=1, metavar="N", help=jobs)
    add("--resume", action="store_true", help=resume)
    add(
        "--out_dir", type=Path, metavar="DIR", help="folder of the report (default: runs/ablations/NAME-TIME)"
    )
    args, rest = parser.parse_known_args(argv)
    args.over_base = settings(rest)
    return args


def settings(words: list[str]) -> dict[str, str]:
    """{name: value} of --name VALUE and --name=VALUE; they are checked later, with the arms."""
    words, found = list(words), {}
    while words:
        name, given, value = words.pop(0).partition("=")
        if not name.startswith("--") or not (given or words):
            raise ValueError(
                f"{name!r} is not a flag, and a setting is written as --name VALUE; --help lists the flags"
            )
        found[name.removeprefix("--")] = value if given else words.pop(0)
    return found


def main(argv: list[str] | None = None, **tools) -> int:
    """Returns the exit code: 0, 2 for bad input, 130 after Ctrl-C. tools: `launch`, for tests."""

    def run() -> None:
        args = parse(argv)
        from evaluation.ablation import experiment

        experiment.run(**vars(args), **tools)

    make_unfailing("stdout")  # a lost reader does not end the runs; the report is also in files
    return exit_code("ablate.py", run)


if __name__ == "__main__":
    sys.exit(main())
