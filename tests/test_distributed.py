"""Several processes train as one process with the same global batch does, whatever the layout.

The processes are joined by gloo on the CPU. The reference is the same command in one process, whose batch_size or
grad_accum is larger by the number of ranks.
"""

import shutil
from pathlib import Path

import pytest
import torch
from toy_ranks import SMALL, launch
from toy_run import load

from training.monitor.metrics import read_metrics

LAYOUTS = ("ddp", "fsdp", "ep", "fsdp+ep")
# the figures of the first validation batch, whose size is batch_size, are not among them
COMPARED = ("train/", "optim/", "moe/max_violation", "moe/entropy", "val/loss", "val/bits", "data/")
COMPARED += ("moe/choice_margin_under", "moe/router_logit_grad_rms", "moe/update_to_weight")
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
                # the norms of kinds are parts of the total norm
                near = tolerance * record["optim/grad_norm"] if "grad_norm/" in tag else 1e-12
                # Muon makes whole steps of small directions, in which rounding is large
                relative = 10 * tolerance if "update_to_weight" in tag else tolerance
                assert other[tag] == pytest.approx(value, rel=relative, abs=near), (record["step"], tag)
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
    compare_layouts(corpus, tmp_path, 2, LAYOUTS, ("muon aux_global", "adamw bias"), 1e-10, double=True)


@pytest.mark.slow
def test_two_processes_train_as_one_with_other_settings(corpus, tmp_path):
    compare_layouts(corpus, tmp_path, 2, LAYOUTS, ("adamw none", "muon bias"), 1e-10, double=True)


@pytest.mark.peer
def test_two_processes_train_as_one_in_float32(corpus, tmp_path):
    compare_layouts(corpus, tmp_path, 2, ("fsdp", "ep"), ["muon bias"], 1e-4, double=False)


@pytest.mark.slow
def test_four_processes_train_as_one(corpus, tmp_path):
    layouts = ("ddp", "fsdp", "ep:2", "fsdp+ep:2")  # with ep:2, two copies of each expert
    compare_layouts(corpus, tmp_path, 4, layouts, SETTINGS, 1e-10, double=True)


def resumed(
    corpus, folder: Path, settings: str, first: int, layout: str, others: list[tuple[int, str]]
) -> None:
    """A run of `first` ranks is continued from step 5 on with other numbers of ranks and layouts: same curve."""
    start = flags(corpus, settings, "run", "--grad_accum", 4, "--save_every", 5, "--parallel", layout)
    launch(folder, first, [start])
    whole = shutil.copytree(folder / "run", folder / "whole")
    for step, (number, other) in zip((5, 10), others):
        launch(folder, number, [["--resume_from", f"run/checkpoint_{step}.pt", "--parallel", other]])
        settings_now = load(folder / "run/checkpoint_20.pt")["train_config"]
        rows = number * settings_now["batch_size"] * settings_now["grad_accum"]
        assert rows == first * 2 * 4
    compare(whole, folder / "run", 1e-4)


@pytest.mark.peer
def test_a_run_of_two_processes_goes_on_with_one_and_back(corpus, tmp_path):
    resumed(corpus, tmp_path, "muon aux_global", 2, "fsdp+ep", [(1, "ddp"), (2, "fsdp")])


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_four_and_back(corpus, tmp_path):
    resumed(corpus, tmp_path, "adamw bias", 2, "ddp", [(4, "fsdp"), (2, "ep")])


@pytest.mark.peer
def test_all_processes_stop_together_for_a_signal_or_an_error_of_one(corpus, tmp_path):
    events = {"stop": "fsdp", "data": "fsdp", "nan": "ep", "closing": "fsdp"}
    more = {"closing": ["--max_iters", 2, "--final_eval_tokens", "all"]}
    cases = [
        flags(corpus, "muon aux_global", name, "--parallel", layout, *more.get(name, ()))
        for name, layout in events.items()
    ]
    first, second = launch(tmp_path, 2, cases, events=list(events))
    for name, step in (("stop", 4), ("data", 3)):
        assert [path.name for path in (tmp_path / name).glob("*.pt")] == [f"checkpoint_{step}.pt"]
    again = "torchrun --nproc_per_node 2 train.py --resume --out_dir stop\n"
    assert f"stopped by SIGTERM and saved stop/checkpoint_4.pt; continue with: {again}" in first
    told = "line 7 is damaged; the run was saved as data/checkpoint_3.pt; continue it with --resume"
    assert told in first and f"FailedElsewhere: {told}" in second
    told = "line 7 is damaged; the run was saved as closing/checkpoint_2.pt; continue it with --resume"
    assert f"rank 1 failed with ValueError: {told}" in first and f"FailedElsewhere: {told}" in second
    assert "step 4 is not finite, first in the parameter block.1.mlp.mlp1_bias; " in first
    # the second one prints nothing of its own
    assert [line for line in second.splitlines() if not line.startswith(("FailedElsewhere", "[Gloo]"))] == []


@pytest.mark.peer
def test_segments_with_a_carry_train_as_in_one_process(corpus, tmp_path):
    many = [*SMALL, *corpus, "--block_size", 8, "--grad_clip", CLIP, "--balance", "none"]
    one = [flag if many[i - 1] != "--batch_size" else 4 for i, flag in enumerate(many)]
    launch(tmp_path, 1, [[*one, "--out_dir", "one"]], double=True, script="train_context")
    launch(tmp_path, 2, [[*many, "--out_dir", "many"]], double=True, script="train_context")
    compare(tmp_path / "one", tmp_path / "many", 1e-10)
    carries = (load(tmp_path / name / "checkpoint_20.pt")["progress"]["carry"] for name in ("one", "many"))
    torch.testing.assert_close(*carries, rtol=0, atol=1e-10)


@pytest.mark.peer
def test_aux_takes_the_load_of_each_micro_batch_of_each_process(corpus, tmp_path):
    """So its curve is that of one process with grad_accum times the number of processes."""
    settings = [*SMALL, *corpus, "--balance", "aux", "--balance_coef", 0.1, "--grad_clip", CLIP]
    launch(tmp_path, 1, [[*settings, "--grad_accum", 4, "--out_dir", "one"]], double=True)
    launch(tmp_path, 2, [[*settings, "--grad_accum", 2, "--out_dir", "many"]], double=True)
    compare(tmp_path / "one", tmp_path / "many", 1e-10)
