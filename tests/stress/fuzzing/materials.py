"""Valid inputs of every kind, made once by the project itself: what mutations begin with."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from common.files import read_json, sealed, write_json_atomic

TINY = {  # a model and a run of a few milliseconds a step, as flags
    "device": "cpu",
    "threads": "1",
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
DATA = {"dataset": "stories.jsonl", "val_dataset": "valid.jsonl", "tokenizer": "small.tiktoken"}
RUN, FINISHED = "run", "finished"  # a run to continue, after two of three steps; a whole one
NEWEST = f"{RUN}/checkpoint_2.pt"
SMALL_VOCABULARY = 300


def flags(settings: dict[str, str]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def make_materials(folder: Path, *, seeds: int = 1, more: dict[str, str] | None = None) -> Path:
    """Fill a new folder: data in three formats, a tokenizer, a run to continue, a finished run, texts.

    seeds: from three on there is a band of that many finished runs, too.  more: settings of the runs.
    """
    import train
    from data import prepare, train_tokenizer
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
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({name: yaml.safe_load(value) for name, value in settings.items()}),
        encoding="utf-8",
    )
    quiet = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(quiet),
        contextlib.redirect_stderr(quiet),
    ):
        _succeed(train_tokenizer.main(
            ["--dataset", "stories.jsonl", "--vocab_size", str(SMALL_VOCABULARY), "--out", "small.tiktoken"]
        ), quiet)  # fmt: skip
        _succeed(prepare.main(
            ["--dataset", "stories.jsonl", "--val_dataset", "valid.jsonl", "--tokenizer", "small.tiktoken",
             "--out_dir", "tokens"]
        ), quiet)  # fmt: skip
        longer = flags(TINY | DATA | {"max_iters": "3", "eval_every": "1"} | (more or {}))
        for seed in range(seeds):
            out_dir = FINISHED if seed == 0 else f"{FINISHED}_{seed}"
            argv = [*longer, "--out_dir", out_dir, "--seed", str(seed), "--no-use_tensorboard"]
            _succeed(train.main(argv), quiet)
        if seeds >= 3:
            _write_band(folder, seeds)
        shutil.copytree(FINISHED, RUN)
        Path(RUN, "checkpoint_3.pt").unlink()
        Path(RUN, "checkpoint_1.pt").unlink()
        drop_records_after(Path(RUN, "metrics.jsonl"), 2)
        best = read_json(Path(RUN, "best.json")) | {"step": 2, "checkpoint": "checkpoint_2.pt"}
        write_json_atomic(Path(RUN, "best.json"), best)
        state = torch.load(NEWEST, weights_only=True)
        state["train_config"] |= {"out_dir": RUN}
        torch.save(state, NEWEST)
        for spare in (f"{FINISHED}/checkpoint_1.pt", f"{FINISHED}/checkpoint_2.pt"):
            Path(spare).unlink()
        for seed in range(1, seeds):
            shutil.rmtree(f"{FINISHED}_{seed}")
    return folder


def read_tree(path: Path) -> Any:
    """What a file of the materials holds, as nested containers."""
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def write_tree(suffix: str, value: Any) -> bytes:
    """The bytes of a file that holds `value`, the inverse of read_tree."""
    if suffix == ".pt":
        file = io.BytesIO()
        torch.save(value, file)
        return file.getvalue()
    if isinstance(value, dict) and "seal" in value:  # or nothing behind the seal would be reached
        value = sealed({key: entry for key, entry in value.items() if key != "seal"})
    if suffix == ".jsonl":
        lines = value if isinstance(value, list) else [value]
        return "".join(json.dumps(line) + "\n" for line in lines).encode()
    if suffix == ".json":
        return (json.dumps(value, indent=2) + "\n").encode()
    return yaml.safe_dump(value, allow_unicode=True).encode(errors="replace")


def write_table(path: Path, steps: tuple[tuple, ...]) -> bytes:
    """The parquet file of the materials with its text column or its storage changed."""
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

    values = {
        "int64": list(range(count)),
        "float64": [0.5] * count,
        "bool": [True] * count,
        "binary": [text.encode() for text in texts[:count]],
        "large_string": texts[:count],
        "dictionary": texts[:count],
        "list": [[text] for text in texts[:count]],
        "struct": [{"text": text} for text in texts[:count]],
        "null": [None] * count,
        "timestamp": [0] * count,
        "broken_utf8": [b"caf\xe9"] * count,
    }[kind]
    types = {"binary": pa.binary(), "large_string": pa.large_string(), "null": pa.null(),
             "timestamp": pa.timestamp("s"), "broken_utf8": pa.binary()}  # fmt: skip
    column = pa.array(values, types.get(kind))
    if kind == "dictionary":
        return column.dictionary_encode()
    return column.view(pa.string()) if kind == "broken_utf8" else column


def _write_parquet(path: Path, texts: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    pyarrow.parquet.write_table(table, path, row_group_size=16)


def _write_band(folder: Path, seeds: int) -> None:
    from evaluation.report.bands import make_band
    from evaluation.report.read import read_runs

    names = [FINISHED, *(f"{FINISHED}_{seed}" for seed in range(1, seeds))]
    band = make_band(read_runs([folder / name for name in names]), "recipe.yaml", str)
    write_json_atomic(folder / "band.json", band)


def _succeed(code: int, output: io.StringIO) -> None:
    if code:
        raise AssertionError(f"the materials could not be made: {output.getvalue()}")
