"""Make a reference band from finished runs of one recipe that differ in their seed.

    python -m benchmarks.make_bands RUN RUN RUN --recipe toy --out configs/reference/toy_tinystories.json

python -m evaluation.report draws the band behind the curves of a run with the same settings. The file holds
no folders of this machine: --tinystories FOLDER is written as $TINYSTORIES, and other paths by their last
name.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from common.script import Parser, exit_code
from evaluation.report.bands import make_band
from evaluation.report.read import read_runs


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.make_bands", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="the --out_dir of three finished runs or more")
    add("--recipe", required=True, metavar="NAME", help="the recipe of the runs, such as toy")
    add("--out", required=True, type=Path, metavar="FILE.json", help="the band file")
    add("--tinystories", metavar="FOLDER", help="the folder that is written as $TINYSTORIES")
    return parser.parse_args(argv)


def public_command(command: str, tinystories: str | None = None) -> str:
    """The command without the paths of the machine that ran it."""
    words = []
    for word in shlex.split(command):
        flag, path = word.split("=", 1) if re.match(r"--\w+=", word) else ("", word)
        if tinystories and path.startswith(tinystories.rstrip("/") + "/"):
            path = "$TINYSTORIES" + path[len(tinystories.rstrip("/")) :]
        elif path.startswith("/"):
            path = Path(path).name
        quoted = path if path.startswith("$TINYSTORIES") else shlex.quote(path)
        words.append(f"{flag}={quoted}" if flag else quoted)
    return " ".join(words)


def as_lines(band: dict[str, Any]) -> str:
    """JSON with one line for each tag, so that a diff of a new band shows which curves changed."""
    head = json.dumps({name: v for name, v in band.items() if name != "tags"}, indent=1)
    tags = [f"  {json.dumps(tag)}: {json.dumps(curve)}" for tag, curve in band["tags"].items()]
    return head.removesuffix("\n}") + ',\n "tags": {\n' + ",\n".join(tags) + "\n }\n}\n"


def run(args: argparse.Namespace) -> None:
    command = functools.partial(public_command, tinystories=args.tinystories)
    band = make_band(read_runs(args.runs), args.recipe, command)
    from common.files import atomic_write, sealed

    with atomic_write(args.out) as file:
        file.write(as_lines(sealed(band)).encode())
    for tag, curve in band["tags"].items():
        print(f"{tag}: {len(curve['tokens'])} points, last {curve['min'][-1]} to {curve['max'][-1]}")


def main(argv: list[str] | None = None) -> int:
    return exit_code("benchmarks.make_bands", lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
