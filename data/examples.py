"""Examples for post-training: instructions with a response, and prompts with a good and a bad response.

Records come from a .jsonl or .parquet file, a set on the Hugging Face Hub, or the story world (data/stories/tasks.py and
pairs.py). All of them are in memory: such sets are small. A set without held-out examples is divided by the
hash of each prompt, so that one prompt is never on both sides.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.files import decode_text, parse_json, without_surrogates
from common.script import did_you_mean, first_line, shown
from data.defaults import BUNDLED
from data.documents import IndexedSource, is_validation_document
from data.files import FORMATS

FILES = ".jsonl or .parquet"
OTHER_FILES = ".txt", ".csv", ".tsv"
ROLES = "system", "developer", "user", "assistant"  # of a message


class Example(NamedTuple):
    """A prompt and its response. `task`: what the prompt asks for, by which rewards judge a response.

    messages: the conversation that prompt and response are a plain form of, for a tokenizer with a chat format.
    """

    prompt: str
    response: str
    task: Mapping[str, Any] = {}
    name: str = "an example"
    messages: Sequence[Mapping[str, str]] = ()


class Pair(NamedTuple):
    """A prompt with a response that is preferred to another one."""

    prompt: str
    chosen: str
    rejected: str
    name: str = "a pair"


class ExampleSource(IndexedSource):
    """Examples or pairs in memory, or made one by one."""

    def __init__(self, name: str, examples: Sequence[Any], identity: str):
        self.name, self._examples, self.identity = name, examples, identity

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, index):
        return self._examples[index]

    def in_memory(self) -> Sequence[Any]:
        """Those that are in memory; none of the story world: making all of them takes minutes."""
        return self._examples if self.name != BUNDLED else ()

    def long_prompts(self, tokens: int) -> Iterator[Any]:
        """Those whose prompt may have this many tokens or more, because a token has a byte or more.

        The prompts of the story world are short.
        """
        for example in self.in_memory():
            if getattr(example, "messages", ()) or len(example.prompt.encode()) >= tokens:
                yield example


def open_examples(
    dataset: str,
    kind: type[Example] | type[Pair],
    *,
    split: str,
    val_dataset: str | None = None,
    bundled: Callable[[str], tuple[Sequence[Any], str]],
    answered: bool = True,
) -> ExampleSource:
    """Open the "train" or the "validation" examples of a dataset.

    kind: Example or Pair; its fields of text are the columns of a record.
    bundled: gives the examples of the story world for a split, with their identity.
    answered: whether each example must have a response; without one it is "".
    Raises ValueError for a record that is no example, with its line.
    """
    name = val_dataset if split == "validation" and val_dataset else dataset
    if name == BUNDLED:
        return ExampleSource(BUNDLED, *bundled(split))
    records = read_records(name, split)
    found = [example_of(record, kind, where, answered) for where, record in records]
    if not found:
        raise ValueError(f"{name}: has no example; add some, or name another set")
    number = len(found)
    if not val_dataset and not isinstance(records, OneSide):
        found = [e for e in found if is_validation_document(e.prompt) == (split == "validation")]
    if not found:
        others = "held out" if split == "train" else "trained on"
        raise ValueError(
            f"{name}: one prompt in a hundred is held out, by its hash, and all {number} examples would be {others}; "
            "name held-out ones with --val_dataset FILE, or add more"
        )
    digest = hashlib.blake2b(json.dumps([tuple(e[:3]) for e in found], default=str).encode(), digest_size=16)
    return ExampleSource(name, found, f"{len(found):,} examples, blake2b {digest.hexdigest()}")


class OneSide(list):
    """Records of a split that the set itself has."""


def read_records(name: str, split: str) -> list[tuple[str, dict[str, Any]]]:
    """(where, record) of each line of a .jsonl file, or of each row of a .parquet file or of a set on the Hub."""
    path = Path(name).expanduser()
    if path.suffix.lower() in OTHER_FILES and path.is_file():
        raise ValueError(
            f"dataset {name!r}: a {path.suffix} file is not read here; give a {FILES} file, ORG/NAME on the "
            f"Hub, or {BUNDLED}"
        )
    if path.suffix.lower() == ".parquet" and path.is_file():
        return list(parquet_rows(path))
    if path.suffix == ".jsonl" or path.exists():
        return list(json_lines(path))
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) or path.suffix.lower() in FORMATS:
        hint = did_you_mean(name, [BUNDLED]) or f"; use {BUNDLED}, a {FILES} file, or ORG/NAME on the Hub"
        raise ValueError(f"dataset {name!r}: no such file{hint}")
    from data.hub import current_revision, in_one_sentence, open_splits

    with in_one_sentence(name, "reading it from the Hub"):
        splits = open_splits(name, current_revision(name))
        whole = "validation" in splits
        rows = splits[split if whole else "train"]
        found = list(of_rows(name, rows))
    return OneSide(found) if whole else found


def parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) of each row."""
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise ValueError(f"{path} is not a whole parquet file: {first_line(error)}") from error
    return of_rows(path, rows)


def of_rows(name: Any, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, record) of each row. A row has no way but None to say that a column is missing."""
    for number, row in enumerate(rows, start=1):
        yield f"{name}, row {number}", {column: value for column, value in row.items() if value is not None}


def json_lines(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield (where, object) of each line that is not blank."""
    if not path.is_file():
        found = "it is a folder" if path.is_dir() else "there is no such file"
        raise ValueError(f"{path}: cannot be read: {found}; name a {FILES} file, or {BUNDLED}")
    text = decode_text(path.read_bytes(), lambda place: f"{path}, byte {place}")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{where}: is not valid JSON: {error}; mend or remove it") from None
        if not isinstance(record, dict):
            raise ValueError(
                f"{where}: must be an object such as {{...}}, got {shown(record)}; mend or remove it"
            )
        yield where, record


def example_of(
    record: Mapping[str, Any], kind: type[Example] | type[Pair], where: str, answered: bool = True
) -> Any:
    """The example of a record. Raises ValueError if a column is missing, no text or empty, or a pair is equal."""
    columns = ("prompt", "response") if kind is Example else ("prompt", "chosen", "rejected")
    if kind is Example and "messages" in record:
        return of_messages(record, where, answered)
    held = ", ".join(map(str, record)) or "nothing"
    needed = f"the columns {', '.join(columns)}, each a text"
    if not answered:
        record, needed = {"response": "", **record}, "a column prompt, a text (a response is optional)"
    for column in columns:
        value = record.get(column)
        if not isinstance(value, str):
            got = f"{column} is {shown(value)}" if column in record else f"there is no {column}, only {held}"
            raise ValueError(f"{where}: must have {needed}, and {got}; mend or remove it")
        if column != "prompt" and answered and not value.strip():
            raise ValueError(f"{where}: {column} must have text in it, got {shown(value)}; mend or remove it")
    if kind is Pair and record["chosen"] == record["rejected"]:
        raise ValueError(f"{where}: chosen and rejected must differ, and are equal; mend or remove it")
    texts = [without_surrogates(record[column]) for column in columns]
    if kind is Pair:
        return Pair(*texts, where)
    rest = {name: value for name, value in record.items() if name not in columns}
    return Example(*texts, rest, where)


def of_messages(record: Mapping[str, Any], where: str, answered: bool = True) -> Example:
    """The example of a conversation, {"messages": [{"role", "content"}, ...]}: its last answer, and all before it.

    As plain text, each message is a line "role: content", and the prompt ends in "assistant:".
    answered: False takes a conversation that does not end in an answer as a prompt, with the answer "".
    """
    messages = record["messages"]
    rule = f"{where}: messages must be a list of objects with role ({', '.join(ROLES)}) and content, a text"
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ValueError(f"{rule}, got {shown(messages)}; mend or remove it")
    for message in messages:
        found = message if isinstance(message, Mapping) else {}
        if found.get("role") not in ROLES or not isinstance(found.get("content"), str):
            raise ValueError(f"{rule}, got {shown(message)}; mend or remove it")
    if messages and not answered and messages[-1]["role"] != "assistant":
        messages = [*messages, {"role": "assistant", "content": ""}]
    last = max((n for n, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    if last is None or answered and not messages[last]["content"].strip():
        got = "none" if last is None else shown(messages[last]["content"])
        raise ValueError(
            f"{where}: the last answer of the assistant must have text in it, got {got}; mend or remove it"
        )
    kept = tuple(
        {"role": message["role"], "content": without_surrogates(message["content"])}
        for message in messages[: last + 1]
    )
    prompt = "".join(f"{message['role']}: {message['content']}\n" for message in kept[:-1])
    rest = {name: value for name, value in record.items() if name != "messages"}
    answer = kept[-1]["content"]
    return Example(f"{prompt}assistant:", answer and f" {answer}", rest, where, kept)
