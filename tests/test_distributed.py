"""Several processes train as one process with the same global batch does, whatever the layout.

The processes are joined by gloo on the CPU. The reference is the same command in one process, whose batch_size or
grad_accum is larger by the number of ranks.
"""

from pathlib import Path

import pytest
import torch
from toy_ranks import SMALL, launch
from toy_run import load

from training.monitor.metrics import read_metrics

LAYOUTS = ("ddp", "fsdp", "ep", "fsdp+ep")
# the figures of the first validation batch, whose size is batch_size, are not among them
COMPARED = ("train/", "optim/", "moe/max_violation", "moe/entropy", "val/loss", "val/bits", "data/")
CLIP = 0.4  # below the norm of every step
SETTINGS = {
    "adamw none": "--optimizer adamw --balance none --lr 4e-3",
    "muon aux_global": "--optimizer muon --balance aux_global --balance_coef 0.1 --z_loss_coef 0.01",
    "adamw bias": "--optimizer adamw --balance bias --lr 4e-3 --packing lanes",
    "muon bias": "--optimizer muon --balance bias --shared_experts 1",
}


def flags(corpus: list[str], settings: str, out_dir: str, *more) -> list:
    return [*SMALL, *corpus, "--grad_clip", CLIP, *SETTINGS[settings].split(), "--out_dir", out_dir, *more]


def compare(one: Path, many: Path, tolerance: float) -> None:
    """Compare two runs: losses and gradient norms of every step, other figures, and the final weights.

    The distance of the weights is relative to the norm of all of them: some biases have no gradient but rounding,
    which AdamW divides by its own size.
    """
    records, others = (read_metrics(run / "metrics.jsonl") for run in (one, many))
    assert [r["step"] for r in records] == [r["step"] for r in others]
    for record, other in zip(records, others):
        if "optim/grad_norm" in record:
            assert record["optim/grad_norm"] > CLIP
        for tag, value in record.items():
            if tag.startswith(COMPARED):
                assert other[tag] == pytest.approx(value, rel=tolerance, abs=1e-12), (record["step"], tag)
    weights, found = (load(run / "checkpoint_20.pt")["model"] for run in (one, many))
    assert weights.keys() == found.keys()
    wanted = torch.cat([w.double().flatten() for w in weights.values()])
    difference = torch.cat([w.double().flatten() for w in found.values()]) - wanted
    assert difference.norm() <= tolerance * wanted.norm()


def compare_layouts(corpus, folder: Path, number: int, layouts, settings, tolerance: float, double: bool):
    names = {name: name.replace(" ", "_") for name in settings}
    rows = {"batch_size": 2 * number, "grad_accum": 2}
    one = [option for name, value in rows.items() for option in (f"--{name}", value)]
    launch(folder / "one", 1, [flags(corpus, name, names[name], *one) for name in settings], double=double)
    cases = [
        flags(corpus, name, f"{layout}_{names[name]}", "--parallel", layout, "--grad_accum", 2)
        for name in settings
        for layout in layouts
    ]
    launch(folder / "many", number, cases, double=double)
    for name in settings:
        for layout in layouts:
            compare(folder / "one" / names[name], folder / "many" / f"{layout}_{names[name]}", tolerance)


@pytest.mark.peer
def test_two_processes_train_as_one(corpus, tmp_path):
    settings = ("adamw none", "muon aux_global", "adamw bias")
    compare_layouts(corpus, tmp_path, 2, LAYOUTS, settings, 1e-10, double=True)


@pytest.mark.peer
def test_two_processes_train_as_one_in_float32(corpus, tmp_path):
    compare_layouts(corpus, tmp_path, 2, ("fsdp", "ep"), ["muon bias"], 1e-4, double=False)


@pytest.mark.slow
def test_four_processes_train_as_one(corpus, tmp_path):
    layouts = ("ddp", "fsdp", "ep:2", "fsdp+ep:2")  # with ep:2, two copies of each expert
    compare_layouts(corpus, tmp_path, 4, layouts, SETTINGS, 1e-10, double=True)
