"""Valid files of every kind that the project reads back, and their readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.stress.fuzzing import judge
from tests.stress.fuzzing.cases import Case
from tests.stress.fuzzing.materials import DATA, NEWEST, RUN, TINY, flags, make_materials

CONTEXT_RUN = "model_context"
CONTEXT_NEWEST = f"{CONTEXT_RUN}/checkpoint_2.pt"


class Kind(NamedTuple):
    """A file of the samples and the function of the product that reads it."""

    file: str
    read: Callable[[Path], Any]


def make_samples(folder: Path) -> Path:
    """Fill a folder with the materials of the fuzzer, with Muon, a run of the context variant and a plan."""
    from evaluation.ablation import contracts, plan_file
    from evaluation.ablation.spec import read_spec
    from training.monitor.metrics import drop_records_after
    from training.state.checkpoint import update_best

    make_materials(folder, {"optimizer": "muon", "balance": "aux_global"})
    settings = TINY | DATA | {"max_iters": "3", "block_size": "6", "out_dir": CONTEXT_RUN}
    argv = (*flags(settings), "--no-use_tensorboard")
    ending = judge.call(Case("materials", "train_context", argv), folder)
    assert ending.code == 0, f"the samples could not be made: {ending.err}"
    run = folder / CONTEXT_RUN
    for name in ("checkpoint_1.pt", "checkpoint_3.pt", "best.json"):
        (run / name).unlink(missing_ok=True)
    drop_records_after(run / "metrics.jsonl", 2)
    update_best(run, 2, 5.0)
    small = {"hidden_size": 96, "num_attention_heads": 6, "num_hidden_layers": 3, "block_size": 32}
    asked = {
        "base": {"dataset": "bundled", "tokenizer": "bundled1536"} | small,
        "arms": {"a": {}, "dense": {"model": "gpt2"}},
        "seeds": [1, 2],
        "budget": {"tokens": 10_000},
        "learning_rates": [1e-3, 2e-3, 4e-3],
    }
    (folder / "spec.yaml").write_text(json.dumps(asked))
    spec = read_spec(folder / "spec.yaml")
    plan_file.write(folder / "plan.json", spec, contracts.planned(spec), 1)
    return folder


def kinds(samples: Path) -> dict[str, Kind]:
    """Return every kind of file that we read back."""
    from architecture.checkpoint import read_checkpoint
    from architecture.tokenizer import load_rank_file, tokenizer_state
    from data.sources import open_dataset
    from evaluation.ablation import plan_file, results
    from evaluation.ablation.spec import read_spec
    from evaluation.report.bands import read_band
    from training.state.checkpoint import best_checkpoint
    from training.state.out_dir import earlier_starts

    def ranks(path: Path) -> Any:
        return tokenizer_state(load_rank_file(path.with_suffix(".tiktoken")))

    def documents(path: Path) -> Any:
        splits = ("train", "validation")
        return [list(open_dataset(str(path.parent), split=s).documents()) for s in splits]

    files = sorted(path for path in (samples / "tokens").iterdir() if path.suffix in (".json", ".npy"))
    return {
        "checkpoint": Kind(NEWEST, read_checkpoint),
        "context checkpoint": Kind(CONTEXT_NEWEST, read_checkpoint),
        "config.json": Kind(
            f"{RUN}/config.json", lambda p: (results.facts(p.parent), earlier_starts(p.parent))
        ),
        "best.json": Kind(f"{RUN}/best.json", lambda p: best_checkpoint(p.parent)),
        "plan.json": Kind("plan.json", lambda p: (plan_file.read(p), read_spec(p).as_values())),
        "band": Kind("band.json", read_band),
        "ranks": Kind("small.tiktoken", ranks),
        "ranks' .json": Kind("small.json", ranks),
        **{f"tokens: {path.name}": Kind(f"tokens/{path.name}", documents) for path in files},
    }
