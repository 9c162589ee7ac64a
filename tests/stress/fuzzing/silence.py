"""Kinds of cases that a program may get wrong in silence, and the rules that tell.

encodings      documents in many encodings, in each format: what is read is what was written, or a refusal
folders        a folder of odd names: each file is read, left out by name, or refused
both sides     the same documents for training and validation: refused
yaml numbers   numbers that YAML reads in another way than a flag: the same value, or a refusal
lossy ranks    rank files that drop text or share ids: the text survives, or a refusal
streams        commands with a closed, full or abandoned output: training goes on, stdout stays clean
first seconds  Ctrl-C while a command starts: exit code 130 and a line

A rule sees a case that ended with exit code 0, or that the judge stopped while it trained. It returns what is
wrong, or "". The last two kinds run as commands only.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

MARK = "\ufeff"  # the byte order mark
PROBE = 'Tom said: "Hi!"\n\n\tBye, 12 caf\u00e9s. '

# --------------------------------------------------------------------------------------------------
# encodings

TEXTS = {  # with a story around them
    "plain": "It was a ball.",
    "accents": "A caf\u00e9, na\u00efve.",
    "emoji": "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2603",
    "lines": "One.\nTwo.\n\nThree.",
    "windows": "One.\r\nTwo.\r\n\r\nThree.",
    "old mac": "One.\rTwo.",
    "mark": f"A {MARK}mark.",
    "zero": "A \0 zero.",
    "surrogate": "A \ud83d half.",
    "separators": "A \u2028 line \u2029 and \u0085 more \x1c \x0b \x0c.",
    "blanks": "A" + " " * 1_000_011 + "b",
    "tabs": "A" + "\t" * 1_000_011 + "b",
    "spaces": "A" + "\u00a0" * 500_000 + "b",
}
CODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252")


class Encoded(NamedTuple):
    """A file of documents that contain TEXTS, in a coding.

    line_end: of the lines of the file.  marked: each document begins with a byte order mark, as in files that
    were joined.
    """

    file: str
    texts: tuple[str, ...]
    coding: str
    line_end: str
    marked: bool

    def written(self) -> list[str]:
        mark = MARK * self.marked
        if self.file == "prompts.txt":  # the context of the model is short
            return [f"{mark}{n} {' '.join(TEXTS[name][:4].split())}" for n, name in enumerate(self.texts)]
        return [f"{mark}Story {n}. {TEXTS[name]} The end." for n, name in enumerate(self.texts * 3)]

    def build(self, materials: Path) -> bytes:
        texts, suffix = self.written(), Path(self.file).suffix
        if suffix == ".parquet":
            return _parquet([_without_surrogates(text) for text in texts])
        if suffix == ".jsonl":
            content = "".join(
                json.dumps({"text": text}, ensure_ascii=not self.marked) + "\n" for text in texts
            )
        elif self.file == "prompts.txt":
            content = "".join(f"{text}\n" for text in texts)
        else:
            content = "\n<|endoftext|>\n".join(texts)
        return content.replace("\n", self.line_end).encode(self.coding, "replace")

    def expected(self) -> list[str]:
        """The documents by the rule: marks are dropped, CR LF is a line feed, surrogates are replaced."""
        if Path(self.file).suffix == ".parquet" or Path(self.file).suffix == ".jsonl" and not self.marked:
            texts = [_without_surrogates(text) for text in self.written()]  # JSON escapes are ASCII
        else:  # what the coding lacks was written as "?"
            texts = [text.encode(self.coding, "replace").decode(self.coding) for text in self.written()]
        return [_plain(text) for text in texts]


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _plain(text: str) -> str:
    return text.replace(MARK, "").replace("\r\n", "\n").strip()


def _parquet(texts: list[str]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file, row_group_size=4)
    return file.getvalue()


def documents(name: str, split: str, **options: str) -> list[str]:
    """Read the documents of a dataset in the working directory as text."""
    from architecture.tokenizer import load_rank_file
    from data.sources import open_dataset

    found = list(open_dataset(name, split=split, **options).documents())
    ranks = load_rank_file(Path("small.tiktoken"))
    return [d if isinstance(d, str) else ranks.decode(list(map(int, d))) for d in found]


def same_documents(case, ending) -> str:
    """What data.prepare wrote is what the file holds."""
    found = [text.strip() for text in documents("prepared", "train")]
    for ours, theirs in zip(found, case.files[0].expected()):
        if ours != theirs:
            place = next(
                (n for n, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs))
            )
            return f"a document is read as {ours[place : place + 20]!r} in place of {theirs[place : place + 20]!r}"
    if len(found) != len(case.files[0].expected()):
        return f"{len(found)} documents are read and not {len(case.files[0].expected())}"
    return ""


def same_prompts(case, ending) -> str:
    """The prompts that sample.py continued are the lines of the file."""
    lines = Path("told.jsonl").read_text(encoding="utf-8").split("\n")
    found, expected = [json.loads(line)["text"] for line in lines if line], case.files[0].expected()
    for text, prompt in zip(found, expected):
        if not text.startswith(prompt):
            return f"a prompt is {text[: len(prompt)]!r} in place of {prompt!r}"
    return "" if len(found) == len(expected) else f"{len(found)} prompts are read and not {len(expected)}"


# --------------------------------------------------------------------------------------------------
# folders

FILES = (
    *"a b train-0 train_1 train training eval stories_eval valid-0 val validation dev evaluation".split(),
    *"heldout held-out holdout test tests ._a ._train-0 .hidden README readme LICENSE".split(),
    *"more/a more/train-2 valid/a train/a .git/a latest contested".split(),
)
SUFFIXES = (
    *[".jsonl"] * 6,
    ".txt",
    ".txt",
    ".parquet",
    ".jsonl.gz",
    ".txt.zst",
    ".JSONL",
    ".json",
    ".md",
    ".csv",
    "",
)
HELD_OUT = re.compile(
    r"(^|[^a-z])(eval|evaluation|held.?out|holdout|dev|val|valid|validation|test|tests)([^a-z]|$)"
)


class InFolder(NamedTuple):
    """A file of a folder of data, with eight documents of its own."""

    file: str

    def written(self) -> list[str]:
        more = "It was a long day in the park, and everybody had a good time there with the ball."
        return [f"Story {n} of {self.file}. {more}" for n in range(8)]

    def build(self, materials: Path) -> bytes:
        if Path(self.file).name.startswith("._"):
            return b"\0\5\x16\7\0\2\0\0Mac OS X\xff\xfe"
        texts, name = self.written(), self.file.lower()
        if name.endswith(".parquet"):
            return _parquet(texts)
        lines = (
            "\n<|endoftext|>\n".join(texts)
            if ".txt" in name
            else "".join(json.dumps({"text": text}) + "\n" for text in texts)
        )
        return gzip.compress(lines.encode()) if name.endswith(".gz") else lines.encode()


def read_or_named(case, ending) -> str:
    """Each file of a folder is read or named, on its right side."""
    options = {"val_dataset": "valid.jsonl"} if "--val_dataset" in case.argv else {}
    train = documents("folder", "train", **options)
    validation = documents("folder", "validation", **options)
    if set(train) & set(validation):
        return "a document is read for training and for validation"
    for file in case.files:
        path = Path(file.file).relative_to("folder")
        trained, seen = (sum(text in side for text in file.written()) for side in (train, validation))
        hidden = any(part.startswith(".") for part in path.parts)
        if hidden or path.stem.lower() in ("readme", "license"):
            if trained + seen:
                return f"{path.name} is read"
        elif HELD_OUT.search(path.stem.lower()) and trained:
            return f"{path.name} is trained on"
        elif trained + seen < 8 and path.parts[0] not in ending.out + ending.err:
            # validation files may be left out if there is another validation dataset, but not unsaid
            return f"{8 - trained - seen} documents of {path} are left out in silence"
    return ""


# --------------------------------------------------------------------------------------------------
# both sides, YAML numbers, rank files


def refused(case, ending) -> str:
    return f"{' '.join(case.argv[:4])} is accepted"


NUMBERS = (
    *"1:30 1:00:00 0:05 -1:30 1:30.5 010 0123 08 00 -010 0x10 0b11 0o10 1_000 0_8 1_0 1e1 1e-3".split(),
    *"1. .5 +3 1,000 12e03 07.5 0.10 '010' \"08\" !!int 010 !!float 010".split(),
)
ODD_NUMBER = re.compile(r"[-+]?0[0-7_]*[1-7][0-7_]*|.*:.*")  # YAML does not read what is written
KEYS = "batch_size block_size max_iters seed warmup lr eval_every keep grad_accum hidden_size".split()


def as_a_flag(case, ending) -> str:
    """A number in YAML has the value that the same word has as a flag."""
    from training.command_line import parse_command_line
    from training.config import TrainConfig
    from training.train_command import model_fields

    def parsed(*argv: str) -> Any:
        command = parse_command_line([*argv, "--dry_run"], model_fields, config_class=TrainConfig)
        return (vars(command.config) | command.model_overrides)[name]

    name, _, spelled = case.files[0].content.decode().strip().splitlines()[-1].partition(": ")
    ours = parsed("--config", "odd.yaml")
    try:
        theirs = parsed("--config", "recipe.yaml", f"--{name}={spelled}")
    except ValueError:
        return f"{spelled} is {ours!r} in YAML and none as a flag" if ":" in spelled else ""
    return "" if repr(ours) == repr(theirs) else f"{spelled} is {ours!r} in YAML and {theirs!r} as a flag"


PATTERNS = (r"\w+", ".", r"\S+", "[a-z]+", r"\p{L}+", r"\p{L}+|\s+", r"[^\d]+", r"[ -~]+", r"\w+|[^\w\s]", r"[\s\S]",
            r"\s+|\S+", r"(?s:.)", "", "a|")  # fmt: skip


class Ranks(NamedTuple):
    """The description of the rank file with another pattern and other ids of special tokens."""

    file: str
    pattern: str
    special: int | None  # None: as it is
    more: int | None  # the id of a second special token

    def build(self, materials: Path) -> bytes:
        from architecture.tokenizer import _fingerprint
        from common.files import sealed

        state = json.loads((materials / self.file).read_text())
        state["pattern"] = self.pattern
        if self.special is not None:
            state["special_tokens"]["<|endoftext|>"] = self.special
        if self.more is not None:
            state["special_tokens"]["<|more|>"] = self.more
        ranks = (materials / self.file).with_suffix(".tiktoken").read_text()
        state["sha256"] = _fingerprint(state | {"ranks": ranks})
        return json.dumps(sealed({key: value for key, value in state.items() if key != "seal"})).encode()


def lossless(case, ending) -> str:
    """What the tokenizer encodes comes back."""
    from architecture.tokenizer import load_rank_file
    from data.packing import encode

    ranks = load_rank_file(Path("small.tiktoken"))
    for text in (PROBE, *documents("stories.jsonl", "train", val_dataset="valid.jsonl")[:8]):
        ids = list(map(int, encode(ranks, text)))
        if (back := ranks.decode(ids)) != text or ranks.eot_token in ids:
            return f"the tokenizer makes {back[:30]!r} of {text[:30]!r}"
    return ""


# --------------------------------------------------------------------------------------------------
# commands

REDIRECTIONS = ("2>&-", "2>/dev/full", "2>&1 | head -2", "2> >(head -1)", "</dev/null", "<&- 2>&-")
RESULTS = (">&-", ">/dev/full", "| head -1", ">&- 2>&-")  # what the command is for is lost


def undisturbed(case, ending) -> str:
    """A command with lost messages does its work, and prints to stdout what it prints without a redirection."""
    if case.program in ("train", "train_context"):
        done = Path("model_new/checkpoint_2.pt").exists() and ending.code == 0
        return "" if done else f"training ended with {ending.code}"
    if case.program == "ablate" and case.shell not in RESULTS:
        done = Path("report/report.md").exists() and ending.code == 0
        return "" if done else f"the ablation ended with {ending.code}"
    if ending.code != 0:
        return f"it ended with {ending.code}" if case.shell in REDIRECTIONS else ""
    if "&1" in case.shell or case.shell in RESULTS or case.program not in ("sample", "check"):
        return ""
    from tests.stress.fuzzing.judge import command

    plain = command(case._replace(shell=""), Path()).out
    return "" if ending.out == plain else f"stdout has {ending.out[:60]!r}"


def interrupted(case, ending) -> str:
    """Ctrl-C ends a command with 130 and a line, unless it has ended before."""
    return "Ctrl-C says nothing" if ending.code == 130 and not ending.err.strip() else ""


RULES: dict[str, Callable] = {
    rule.__name__: rule
    for rule in (
        same_documents,
        same_prompts,
        read_or_named,
        refused,
        as_a_flag,
        lossless,
        undisturbed,
        interrupted,
    )
}
