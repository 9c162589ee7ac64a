"""Valid inputs of every kind, made by the project itself, which mutations start from."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml

from common.files import read_json, sealed, write_json_atomic

MACHINE = {"device": "cpu", "threads": "1"}
TINY = MACHINE | {  # flags of a model and a run with steps of a few milliseconds
    "tokenizer": "small.tiktoken",
    "num_hidden_layers": "2",
    "hidden_size": "16",
    "head_dim": "4",
    "num_attention_heads": "4",
    "num_key_value_heads": "2",
    "intermediate_size": "12",
    "num_experts": "4",
    "experts_per_token": "2",
    "sliding_window": "8",
    "initial_context_length": "16",
    "rope_scaling_factor": "1",
    "block_size": "16",
    "batch_size": "2",
    "eval_tokens": "64",
    "log_every": "1",
    "save_every": "1",
    "max_iters": "2",
}
DATA = {"dataset": "stories.jsonl", "val_dataset": "valid.jsonl"}
RUN, FINISHED = "run", "finished"  # a run that can continue after step 2 of 3; a finished run
NEWEST = f"{RUN}/checkpoint_2.pt"


def flags(settings: dict[str, str]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def make_materials(folder: Path, more: dict[str, str] | None = None) -> Path:
    """Fill a new folder with data in three formats, a tokenizer, an unfinished and a finished run, a band.

    more: further settings of the runs.
    """
    import train
    from data import prepare, train_tokenizer
    from evaluation.report.bands import FOLDER
    from tests.toy_corpus import documents, write_jsonl
    from training.monitor.metrics import drop_records_after

    folder.mkdir(parents=True)
    texts = documents(48)
    write_jsonl(folder / "stories.jsonl", texts[8:])
    write_jsonl(folder / "valid.jsonl", texts[:8])
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(texts[8:]), encoding="utf-8")
    (folder / "prompts.txt").write_text("Once upon\nA caf\u00e9 \u2603\n", encoding="utf-8")
    _write_parquet(folder / "stories.parquet", texts[8:])
    settings = TINY | DATA | {"out_dir": "model_new"}
    recipe = {name: yaml.safe_load(value) for name, value in settings.items()}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    shutil.copy(FOLDER / "quickstart_bundled.json", folder / "band.json")
    new = "--tokenizer small.tiktoken --out_dir tokens"
    run = flags(settings | {"out_dir": FINISHED, "max_iters": "3", "eval_every": "1"} | (more or {}))
    with contextlib.chdir(folder):
        _succeed(train_tokenizer, "--dataset stories.jsonl --vocab_size 300 --out small.tiktoken".split())
        _succeed(prepare, f"--dataset stories.jsonl --val_dataset valid.jsonl {new}".split())
        _succeed(train, [*run, "--no-use_tensorboard"])
        shutil.copytree(FINISHED, RUN)
        for spare in ("checkpoint_1.pt", "checkpoint_3.pt"):
            Path(RUN, spare).unlink()
        for spare in ("checkpoint_1.pt", "checkpoint_2.pt"):
            Path(FINISHED, spare).unlink()
        drop_records_after(Path(RUN, "metrics.jsonl"), 2)
        best = read_json(Path(RUN, "best.json")) | {"step": 2, "checkpoint": "checkpoint_2.pt"}
        write_json_atomic(Path(RUN, "best.json"), best)
        state = torch.load(NEWEST, weights_only=True)
        state["train_config"] |= {"out_dir": RUN}
        torch.save(state, NEWEST)
    return folder


def _succeed(program: ModuleType, argv: list[str]) -> None:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = program.main(argv)
    assert code == 0, f"the materials could not be made: {output.getvalue()}"


def read_tree(path: Path) -> Any:
    """Read a file of the materials as nested containers."""
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def write_tree(suffix: str, value: Any) -> bytes:
    """Return the bytes of a file that holds `value`. It is the inverse of read_tree."""
    if suffix == ".pt":
        file = io.BytesIO()
        torch.save(value, file)
        return file.getvalue()
    if isinstance(value, dict) and "seal" in value:  # a wrong seal would hide all other faults
        rest = {key: entry for key, entry in value.items() if key != "seal"}
        value = sealed(json.loads(json.dumps(rest)))  # JSON has text for keys
    if suffix == ".jsonl":
        lines = value if isinstance(value, list) else [value]
        return "".join(json.dumps(line) + "\n" for line in lines).encode()
    if suffix == ".json":
        return (json.dumps(value, indent=2) + "\n").encode()
    return yaml.safe_dump(value, allow_unicode=True).encode(errors="replace")


def write_table(path: Path, steps: tuple[tuple, ...]) -> bytes:
    """Return the parquet file of the materials with its text column or its storage changed."""
    import pyarrow as pa
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    texts, name, codec = table["text"].to_pylist(), "text", "snappy"
    column = pa.array(texts)
    for step, value in steps:
        if step == "name":
            name = value
        elif step == "codec":
            codec = value
        elif step == "twice":
            table = table.append_column("text", column)
        elif step == "rows":
            column, table = column[:value], table.slice(0, value)
        elif step == "nulls":
            column = pa.array(
                [None if i % value == 0 else v for i, v in enumerate(column.to_pylist())], column.type
            )
        else:
            column = _typed(value, len(column), texts)
    ids = table["id"].combine_chunks()
    file, more = io.BytesIO(), table.num_columns - 2
    changed = pa.Table.from_arrays([ids, column, *[ids] * more], names=["id", name, *["text"] * more])
    pyarrow.parquet.write_table(changed, file, row_group_size=16, compression=codec)
    return file.getvalue()


def _typed(kind: str, count: int, texts: list[str]):
    import pyarrow as pa

    values, of_type = {
        "int64": (range(count), None),
        "float64": ([0.5] * count, None),
        "bool": ([True] * count, None),
        "binary": ([text.encode() for text in texts[:count]], pa.binary()),
        "large_string": (texts[:count], pa.large_string()),
        "dictionary": (texts[:count], None),
        "list": ([[text] for text in texts[:count]], None),
        "struct": ([{"text": text} for text in texts[:count]], None),
        "null": ([None] * count, pa.null()),
        "timestamp": ([0] * count, pa.timestamp("s")),
        "broken_utf8": ([b"caf\xe9"] * count, pa.binary()),
    }[kind]
    column = pa.array(values, of_type)
    if kind == "dictionary":
        return column.dictionary_encode()
    return column.view(pa.string()) if kind == "broken_utf8" else column


def _write_parquet(path: Path, texts: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    pyarrow.parquet.write_table(table, path, row_group_size=16)
