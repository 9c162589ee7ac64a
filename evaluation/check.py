"""Report the stories that contradict themselves, do not end, or are copied from the training text.

    python sample.py --checkpoint model --num_samples 100 --max_tokens 400 --out told.jsonl
    python -m evaluation.check told.jsonl
    python -m evaluation.check stories.jsonl --against none --json

FILE is a .txt with <|endoftext|> between the stories, a .jsonl, or - for standard input (as .txt). The rules
are those of data/stories/checker.py. A story is copied if 20 of its words in a row also occur in the training
text, by default the bundled training stories.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from common.files import parse_json
from common.script import Parser, exit_code
from data.stories import TRAIN_STORIES, story
from data.stories.checker import CONTRADICTIONS, Problem, Report, check
from data.stories.copies import RUN, RunIndex

SEPARATOR = "<|endoftext|>"


def read_stories(file: str, text_column: str = "text") -> list[str]:
    """The stories of a file in order, with empty ones, except after the last separator of a .txt."""
    if file == "-":
        try:
            return _separated(sys.stdin.read())
        except UnicodeDecodeError as error:
            raise _not_utf8("standard input", error) from None
    path = Path(file)
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{file} must be a .txt or .jsonl file, or - for standard input; give one of these")
    if not path.is_file():
        raise ValueError(f"{file}: no such file; give a .txt, a .jsonl, or - for standard input")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from None
    if path.suffix == ".txt":
        return _separated(content)
    lines = content.split("\n")
    return [_row(line, f"{file}, line {n}", text_column) for n, line in enumerate(lines, 1) if line.strip()]


def _not_utf8(where: str, error: UnicodeDecodeError) -> ValueError:
    return ValueError(f"{where} is not UTF-8 (at byte {error.start}); convert it to UTF-8")


def _separated(content: str) -> list[str]:
    if not content.strip():
        return []
    parts = [part.strip() for part in content.split(SEPARATOR)]
    return parts[:-1] if len(parts) > 1 and not parts[-1] else parts


def _row(line, where, text_column):
    try:
        row = parse_json(line)
    except ValueError as reason:
        raise ValueError(
            f"{where} is not JSON ({reason}); a .jsonl file must have one JSON object on each line"
        ) from None
    if not isinstance(row, dict) or not isinstance(row.get(text_column), str):
        raise ValueError(
            f"{where} must be a JSON object with a text in {text_column!r}, but is {line[:40]!r}; "
            "name the column of the text with --text_column"
        )
    return row[text_column]


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
    add("file", metavar="FILE", help=f".txt ({SEPARATOR} between stories), .jsonl, or - for standard input")
    copied = "training text that the stories must not copy, or none (default: the bundled stories)"
    add("--against", nargs="+", default=[], metavar="FILE", help=copied)
    add("--text_column", default="text", help="column of the text in a .jsonl (default: text)")
    add("--json", action="store_true", help="print one JSON object instead of lines")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    return exit_code("evaluation/check.py", lambda: run(argv))


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
