"""--extend: a finished run goes on, from its plateau or with a new schedule, and nothing of it is lost."""

import shutil

import pytest
import torch
from toy_run import TINY, at_step, differences, load, run_here

from training.config import TrainConfig
from training.monitor.metrics import read_metrics
from training.optimizer import learning_rate
from training.state import run as run_state

RUN = [
    *TINY,
    "--no-use_tensorboard",
    "--max_iters",
    10,
    "--save_every",
    2,
    "--eval_every",
    50,
    "--eval_tokens",
    64,
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus):
    """A folder with a run of ten steps in model/; the learning rate falls after step 6."""
    folder = tmp_path_factory.mktemp("finished")
    assert run_here(folder, *RUN, *corpus, "--warmup", 0.2) == 0
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "model"


def only_the_end(model, keep=10):
    """Delete the checkpoints before the last, as --keep 1 does."""
    for path in model.glob("checkpoint_*.pt"):
        if path.name != f"checkpoint_{keep}.pt":
            path.unlink()


def rates(model):
    return [record["optim/lr"] for record in read_metrics(model / "metrics.jsonl") if "optim/lr" in record]


def closings(path):
    return [record["step"] for record in read_metrics(path) if "final/loss" in record]


def unlike(a, b):
    """Differences of the states of two checkpoints, except settings and times."""
    found = differences(a, b)
    return [
        place for place in found if not place.startswith(".train_config") and not place.endswith("seconds")
    ]


def test_from_the_plateau_it_ends_with_the_bits_of_a_longer_run(finished, tmp_path, corpus, capsys):
    shutil.copytree(finished, tmp_path / "a")
    before = (finished / "model/metrics.jsonl").read_text()
    assert run_here(tmp_path / "a", "--extend", 5, "--out_dir", "model") == 0
    err = capsys.readouterr().err
    line = (
        "extended by 5 steps from model/checkpoint_6.pt, the last before the decay, which is made again at "
    )
    assert line + "the new end; the curve is not that of one run of 15 steps\n" in err
    warmup = 0.2 * 10 / 15
    assert run_here(tmp_path / "b", *RUN, *corpus, "--max_iters", 15, "--warmup", warmup) == 0
    a, b = (load(tmp_path / name / "model/checkpoint_15.pt") for name in "ab")
    assert unlike(a, b) == []
    model = tmp_path / "a/model"
    assert rates(model) == pytest.approx(rates(tmp_path / "b/model")) and len(rates(model)) == 15
    assert closings(model / "metrics.jsonl") == [15]
    assert (model / "metrics.jsonl.set_aside").read_text() == before
    assert {"checkpoint_8.pt.set_aside", "checkpoint_10.pt.set_aside"} <= {p.name for p in model.iterdir()}
    assert run_here(tmp_path / "a", "--resume", "--out_dir", "model") == 2
    assert "is finished; start a new one" in (err := capsys.readouterr().err) and "--extend N" in err


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_without_a_plateau_a_new_schedule_begins_at_the_end(tmp_path, corpus, capsys, schedule):
    assert run_here(tmp_path, *RUN, *corpus, "--schedule", schedule, "--warmup", 0.2) == 0
    model = tmp_path / "model"
    first, weights = rates(model), load(model / "checkpoint_10.pt")["model"]
    if schedule == "wsd":
        only_the_end(model)
    assert run_here(tmp_path, "--extend", 10, "--out_dir", "model", "--save_every", 20) == 0
    err = capsys.readouterr().err
    assert "extended by 10 steps from the finished weights, with a new schedule over the new" in err
    assert "; the curve is not that of one run of 20 steps\n" in err
    assert rates(model) == pytest.approx(first * 2)  # the same schedule again, over as many steps
    assert differences(load(model / "checkpoint_10.pt")["model"], weights) == []
    assert closings(model / "metrics.jsonl") == [20] and closings(model / "metrics.jsonl.set_aside") == [10]
    assert run_here(tmp_path, "--extend", 2, "--out_dir", "model", "--save_every", 1) == 0
    cfg = TrainConfig(**load(model / "checkpoint_22.pt")["train_config"])
    assert (cfg.max_iters, cfg.extend) == (22, 2)
    assert rates(model)[20:] == pytest.approx([learning_rate(share, cfg) for share in (0.25, 0.75)])


@pytest.mark.slow
def test_a_plateau_of_an_extension_is_gone_back_to(copied, tmp_path):
    only_the_end(copied)
    assert run_here(tmp_path, "--extend", 10, "--out_dir", "model") == 0
    assert run_here(tmp_path, "--extend", 10, "--out_dir", "model") == 0
    last = load(copied / "checkpoint_30.pt")["train_config"]
    assert (last["max_iters"], last["extend"], last["warmup"]) == (30, 20, 0.1)
    assert (copied / "checkpoint_18.pt.set_aside").exists() and not closings(copied / "metrics.jsonl")[1:]
    steps = [r["step"] for r in read_metrics(copied / "metrics.jsonl") if "optim/lr" in r]
    assert steps == list(range(1, 31))
    assert rates(copied)[10:12] == pytest.approx([0.25 * 8e-3, 0.75 * 8e-3])  # the warmup has two steps
    assert set(rates(copied)[12:22]) == {8e-3} and rates(copied)[22] < 8e-3


@pytest.mark.parametrize(("plateau", "where"), [(True, "in a step"), (False, "before the records")])
def test_a_kill_loses_no_extension(copied, tmp_path, monkeypatch, plateau, where):
    if not plateau:
        only_the_end(copied)
    shutil.copytree(copied, tmp_path / "straight/model")
    assert run_here(tmp_path / "straight", "--extend", 6, "--out_dir", "model") == 0

    def kill(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "in a step":
            at_step(patch, 11, kill)
        else:
            patch.setattr(run_state.metrics, "MetricsWriter", kill)
        assert run_here(tmp_path, "--extend", 6, "--out_dir", "model") == 130
    assert run_here(tmp_path, "--extend", 6, "--out_dir", "model") == 2  # it is not finished
    assert run_here(tmp_path, "--resume", "--out_dir", "model") == 0
    one, other = (load(f / "model/checkpoint_16.pt") for f in (tmp_path, tmp_path / "straight"))
    assert unlike(one, other) == []
    assert rates(copied) == rates(tmp_path / "straight/model") and closings(copied / "metrics.jsonl") == [16]


def test_a_kill_before_the_new_length_is_stored_leaves_a_run_that_can_be_extended(
    copied, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(run_state, "store_extension", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run_here(tmp_path, "--extend", 6, "--out_dir", "model") == 130
    assert (copied / "checkpoint_10.pt.set_aside").exists()
    assert run_here(tmp_path, "--extend", 6, "--out_dir", "model") == 0
    assert closings(copied / "metrics.jsonl") == [16]


@pytest.mark.slow
def test_a_run_of_minutes_is_extended_by_steps(tmp_path, corpus):
    assert run_here(tmp_path, *RUN, *corpus, "--max_iters", "none", "--max_minutes", 0.002) == 0
    (end,) = closings(tmp_path / "model/metrics.jsonl")
    assert run_here(tmp_path, "--extend", 4, "--out_dir", "model") == 0
    assert closings(tmp_path / "model/metrics.jsonl") == [end + 4]


@pytest.mark.slow
def test_a_run_with_a_carried_state_is_extended(tmp_path, corpus):
    flags = [*TINY, "--block_size", 6, "--max_iters", 4, "--save_every", 2, "--no-use_tensorboard"]
    assert run_here(tmp_path, *flags, *corpus, script="train_context") == 0
    assert run_here(tmp_path, "--extend", 2, "--out_dir", "model_context") == 2  # the other script
    assert run_here(tmp_path, "--extend", 2, script="train_context") == 0
    assert torch.isfinite(load(tmp_path / "model_context/checkpoint_6.pt")["progress"]["carry"]).all()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--extend", 0], "extend"),
        (["--extend", 5, "--out_dir", "away"], "--resume needs a checkpoint_<step>.pt in away"),
        (["--extend", 5, "--init_from", "model"], "extend and init_from each name the weights"),
        (
            ["--extend", 5, "--resume_from", "model/checkpoint_6.pt"],
            "resume_from and extend each name the weights",
        ),
        (["--extend", 5, "--max_iters", 15], "max_iters=15 (saved: 10) would change it"),
        (["--extend", 5, "--lr", 1], "lr=1.0 (saved: 0.008) would change it"),
        (["--resume", "--max_iters", 15], "make a finished run longer with --extend STEPS"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(finished, capsys, flags, told):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (finished / "model").iterdir())
    assert run_here(finished, *flags) == 2
    assert told in capsys.readouterr().err
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in (finished / "model").iterdir())


def test_a_run_that_is_not_finished_is_refused(tmp_path, corpus, monkeypatch, capsys):
    def stop():
        raise KeyboardInterrupt

    at_step(monkeypatch, 5, stop)
    assert run_here(tmp_path, *RUN, *corpus) == 130
    assert run_here(tmp_path, "--extend", 5) == 2
    assert "extend needs a finished run, and the run in model is not at its end" in capsys.readouterr().err
