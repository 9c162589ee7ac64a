"""One run, or several side by side, as a PNG page and a table: the pictures of TensorBoard without a server.

    python -m evaluation.report model
    python -m evaluation.report model model_sixteen --out compared.png

RUN is the --out_dir of a training run, finished or not, or a metrics.jsonl.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import argparse
import functools
import shutil
import sys
import time
from pathlib import Path

from common.script import Parser, exit_code, say


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m evaluation.report",
        description="Show runs as one PNG page and a table in the terminal.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run's folder (--out_dir), or a metrics.jsonl")
    out = "the page (default: RUN/report.png; for several runs, runs/report-<time>.png)"
    add("--out", type=Path, metavar="FILE.png", help=out)
    axes, x = ("tokens", "step", "minutes"), "the x axis of the curves (default: tokens)"
    add("--x", choices=axes, default="tokens", metavar="|".join(axes), help=x)
    band = "a band of earlier runs (default: the one in configs/reference that has the settings of the run)"
    add("--reference", metavar="FILE|none", help=band)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    out = page_path(args)
    from common.files import reading
    from evaluation.report import bands, read

    runs = read.read_runs(args.runs)
    for one in runs:
        one.at([0], args.x)  # raises before anything is shown
    known = bands.known_bands(args.reference)
    folders = " or ".join(str(one.path.parent) for one in runs)
    way_out = "move its config.json away, or leave the run out of the report"
    wall = functools.partial(reading, folders, "a run of train.py", way_out=way_out)
    with wall():
        matches = [bands.match(one, known, args.reference) for one in runs]
        text = in_words(runs, matches)
    print(text, flush=True)
    with wall():
        png = page(runs, matches, args.x)
    write(out, png)


def in_words(runs: list, matches: list) -> str:
    """The table, and below it warnings and verdicts."""
    from evaluation.report import bands, table

    figures = table.figures_table(runs, shutil.get_terminal_size((100, 24)).columns)
    lines = [
        "+-: 95 % interval of the closing evaluation, over documents; it does not include the spread "
        "between seeds"
    ] * ("+-" in figures)
    lines += [f"warning: {line}" for line in table.comparability(runs)]
    lines += dict.fromkeys(match.line for match in matches if match.line)
    for one, match in zip(runs, matches):
        found = [bands.verdict(one, match.band, tag) for tag in bands.TAGS if match.band]
        name = f"{one.name}: " if len(runs) > 1 else ""
        lines += [f"{name}{verdict.line}" for verdict in found if verdict]
    return "\n".join([figures, "", *lines] if lines else [figures])


def page(runs: list, matches: list, axis: str) -> bytes:
    """The PNG page, with the band of the first run that has one."""
    from evaluation.report.look import Look
    from evaluation.report.page import page_png

    band = next((match.band for match in matches if match.band), None)
    in_band = [one for one, match in zip(runs, matches) if band and match.band is band]
    return page_png(Look(runs, axis, band, in_band))


# ------------------------------------------------------------------------------------ the file


def page_path(args: argparse.Namespace) -> Path:
    """The file of the page; raises ValueError if --out cannot be written."""
    if args.out is None:
        if len(args.runs) > 1:
            return Path("runs") / f"report-{time.strftime('%Y%m%d-%H%M%S')}.png"
        run = Path(args.runs[0])
        return (run if run.is_dir() else run.parent) / "report.png"
    if args.out.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png, got {args.out}")
    if not args.out.parent.is_dir():
        raise ValueError(f"--out {args.out}: the folder {args.out.parent} does not exist; create it first")
    return args.out


def write(out: Path, png: bytes) -> None:
    from common.files import atomic_write, writing

    with writing(out):
        out.parent.mkdir(exist_ok=True)  # runs/ may not exist yet
    with atomic_write(out) as file:
        file.write(png)
    say(f"wrote {out}")


def main(argv: list[str] | None = None) -> int:
    return exit_code("evaluation.report", lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
