"""Report the stories that contradict themselves, do not end, or are copied from the training text.

    python sample.py --checkpoint model --num_samples 100 --max_tokens 400 --out told.jsonl
    python -m evaluation.check told.jsonl
    python -m evaluation.check stories.jsonl --against none --json

FILE is a .txt with <|endoftext|> between the stories, a .jsonl, a .parquet, or - for standard input, read as
a .txt. The rules are those of data/stories/checker/. A story is copied if 20 of its words in a row also
occur in the training text, by default the bundled training stories.
"""

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from common.files import decode_text
from common.script import Parser, exit_code
from data.files import FORMATS
from data.stories import TRAIN_STORIES, story
from data.stories.checker import CONTRADICTIONS, Problem, Report, check
from data.stories.copies import RUN, RunIndex

SEPARATOR = "<|endoftext|>"


def read_stories(file: str, text_column: str = "text") -> list[str]:
    """The stories of a file in order, with empty ones, except after the last separator of a .txt."""
    path = Path(file)
    if file == "-":
        text = decode_text(sys.stdin.buffer.read(), "standard input, byte {}".format)
        stories = [piece.strip() for piece in text.split(SEPARATOR)]
    elif path.suffix.lower() not in FORMATS:
        raise ValueError(f"{file} must be a .txt, .jsonl or .parquet file, or - for standard input")
    elif not path.is_file():
        raise ValueError(
            f"{file}: no such file; give a .txt, .jsonl or .parquet file, or - for standard input"
        )
    else:
        documents = FORMATS[path.suffix.lower()](path, text_column)
        stories = [text for _, _, text in documents.scan()]
    if path.suffix.lower() in ("", ".txt") and stories and not stories[-1]:
        stories.pop()
    return stories


def training_text(against: list[str], text_column: str = "text") -> RunIndex | None:
    """The runs of words that count as copied.

    against: files; ["none"] for None; an empty list for the bundled training stories.
    """
    if against == ["none"]:
        return None
    if "none" in against:
        raise ValueError("--against takes either files or none, but got both; leave out none or the files")
    if against:
        return RunIndex(text for file in against for text in read_stories(file, text_column))
    indices = tqdm(range(TRAIN_STORIES), desc="training stories", unit=" stories", leave=False, disable=None)
    return RunIndex(story(index).text for index in indices)


def examine(text: str, runs: RunIndex | None) -> Report:
    """The checker's report, with a copied run as a further problem."""
    report = check(text)
    run = runs.copied_run(text) if runs is not None else None
    if run is None:
        return report
    copied = Problem("copied", f"{RUN} words in a row are in the training text", run)
    return Report((*report.problems, copied))


def summary(reports: list[Report]) -> dict[str, int]:
    """Numbers of stories. A story that fails in several ways is counted in each of them."""
    return {
        "stories": len(reports),
        "consistent and finished": sum(report.passes for report in reports),
        "contradictions": sum(not report.consistent for report in reports),
        "unfinished": sum(not report.finished for report in reports),
        "copied": sum(any(p.rule == "copied" for p in report.problems) for report in reports),
    }


def _lines(number: int, report: Report) -> Iterator[str]:
    for problem in report.problems:
        label = "contradiction: " + problem.rule if problem.rule in CONTRADICTIONS else problem.rule
        yield f"story {number}: {label}: {problem.what}: {problem.sentence!r}"


def parse_command_line(argv=None) -> argparse.Namespace:
    parser = Parser(prog="python -m evaluation.check", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "file",
        metavar="FILE",
        help=f".txt ({SEPARATOR} between stories), .jsonl, .parquet, or - for standard input",
    )
    copied = "training text that the stories must not copy, or none (default: the bundled stories)"
    add("--against", nargs="+", default=[], metavar="FILE", help=copied)
    add("--text_column", default="text", help="column of the text in a .jsonl or .parquet (default: text)")
    add("--json", action="store_true", help="print one JSON object instead of lines")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    return exit_code("evaluation.check", lambda: run(argv))


def run(argv=None) -> None:
    args = parse_command_line(argv)
    texts = read_stories(args.file, args.text_column)
    if not texts:
        raise ValueError(f"{args.file} is empty; give a file with at least one story")
    runs = training_text(args.against, args.text_column)
    reports = [examine(text, runs) for text in texts]
    counts = summary(reports)
    if args.json:
        failing = {
            number: [problem._asdict() for problem in report.problems]
            for number, report in enumerate(reports, 1)
            if not report.passes
        }
        print(json.dumps({**counts, "failing": failing}, indent=2))
        return
    for number, report in enumerate(reports, 1):
        for line in _lines(number, report):
            print(line)
    print(
        f"consistent and finished: {counts['consistent and finished']} of {counts['stories']}; "
        f"contradictions {counts['contradictions']}, unfinished {counts['unfinished']}, "
        f"copied {counts['copied']}"
    )


if __name__ == "__main__":
    sys.exit(main())
