"""Checkpoints of the trunk and of the context variant that commit 6d82eb2 wrote still work as they did.

Each folder in tests/fixtures/ is a run of 12 steps that was stopped at step 6. The numbers below are what that
commit found; a CPU of another kind may round the last digits differently.
"""

import shutil
from pathlib import Path

import pytest
from toy_run import load, run_here

from inference import generate_text, load_model
from training.monitor.metrics import read_metrics

FIXTURES = Path(__file__).resolve().parent / "fixtures"
RUNS = {  # script, validation loss at steps 6 and 12
    "trunk": ("train", 7.1511459946632385, 6.992778241634369),
    "context": ("train_context", 7.145321123301983, 6.986341089010239),
}
MUON_OF_THEN = (  # what those runs had in place of training.muon.POLYNOMIALS
    (7.7110, -22.1138, 16.2487),
    (3.2153, -2.4112, 0.5013),
    (2.2183, -1.5940, 0.4107),
)
TOLD = {"trunk": " the" * 6, "context": " was the" * 3}
HERE = ["--device", "cpu", "--threads", "1"]

each_run = pytest.mark.parametrize("name", RUNS)


@pytest.fixture
def folder(tmp_path, name):
    shutil.copytree(FIXTURES / name, tmp_path / "old")
    return tmp_path


@each_run
def test_an_old_checkpoint_tells_the_same_story_by_gpt_oss_s_routing_rule(name):
    path = FIXTURES / name / "checkpoint_6.pt"
    assert not {"router", "shared_experts", "position_init"} & load(path)["config"].keys()
    model = load_model(path)
    assert generate_text(model, "Once upon", 6, 0.0) == "Once upon" + TOLD[name]
    assert (model.config.router, model.config.shared_experts) == ("topk_softmax", 0)


@each_run
def test_an_old_checkpoint_has_the_loss_that_it_had(folder, name, capsys):
    script, loss, _ = RUNS[name]
    assert run_here(folder, "--eval_only", "old", "--eval_tokens", 256, *HERE, script=script) == 0
    assert f"validation loss {loss:.4f} " in capsys.readouterr().out


@each_run
def test_an_old_run_goes_on_to_the_end_that_it_had_but_for_muon(folder, name, capsys, monkeypatch):
    script, _, loss = RUNS[name]
    monkeypatch.setattr("training.muon.POLYNOMIALS", MUON_OF_THEN)
    assert run_here(folder, "--resume", "--out_dir", "old", script=script) == 0
    told = "Muon's polynomials of this version (were others): after step 6 the bits differ from those of a run without"
    assert told in capsys.readouterr().err
    records = read_metrics(folder / "old/metrics.jsonl")
    (end,) = (record["final/loss"] for record in records if "final/loss" in record)
    assert end == pytest.approx(loss, rel=1e-6)
    assert [r["step"] for r in records if "train/loss" in r] == list(range(1, 13))


@each_run
def test_a_new_run_starts_from_old_weights(folder, name):
    script, loss, _ = RUNS[name]
    flags = "--dataset bundled --max_iters 1 --batch_size 3 --block_size 16 --eval_tokens 256 --final_eval_tokens 256 "
    flags += "--lr 1e-30 --out_dir new --no-use_tensorboard"
    assert run_here(folder, "--init_from", "old", *flags.split(), *HERE, script=script) == 0
    records = read_metrics(folder / "new/metrics.jsonl")
    (end,) = (record["final/loss"] for record in records if "final/loss" in record)
    assert end == pytest.approx(loss, rel=1e-5)
