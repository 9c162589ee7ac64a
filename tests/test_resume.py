"""A run that was killed or stopped goes on as if nothing had happened: the same bits, the same records."""

import json
import os
import queue
import random
import shlex
import signal
import time
from pathlib import Path

import pytest
from hub_server import HubServer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_corpus import documents, write_jsonl
from toy_run import TINY, ToyRun, differences, load, run, run_here

from architecture.tokenizer import get_tokenizer
from data.loader import TrainLoader
from data.prepare import prepare
from training import trainer
from training.config import TrainConfig
from training.monitor.metrics import read_metrics
from training.state import interrupt
from training.state.interrupt import StopRequest
from training.trainer import Stopped

QUIET = [*TINY, "--no-use_tensorboard", "--out_dir", "model"]
# of the clock and of this machine, or of the call: not of the sequence
FREE = (".progress.seconds", ".train_config.resume", ".tensorboard_dir", ".commit")


def last_state(folder: Path) -> dict:
    return load(folder / "model/checkpoint_20.pt")


def untimed_metrics(folder: Path) -> list[dict]:
    timing = ("perf/", "final/seconds", "final/tokens_per_second")
    records = read_metrics(folder / "model/metrics.jsonl")
    return [{k: v for k, v in r.items() if not k.startswith(timing)} for r in records]


def assert_same_end(resumed: Path, straight: Path) -> None:
    found = differences(last_state(resumed), last_state(straight))
    assert [place for place in found if place not in FREE] == []
    assert untimed_metrics(resumed) == untimed_metrics(straight)


def assert_kill_and_resume_join(
    folder: Path, flags: list, environment: dict | None = None, straight: Path | None = None
) -> None:
    """20 steps straight, and 8 steps that a kill -9 in step 12 leaves, continued to 20."""
    if straight is None:
        straight = folder / "straight"
        assert run(straight, *flags, environment=environment).code == 0
    killed = run(folder / "killed", *flags, environment=environment, at_step=11)
    assert killed.code == -signal.SIGKILL, killed.err
    saved = [path.name for path in (folder / "killed/model").glob("checkpoint_*")]
    assert saved == ["checkpoint_8.pt"]
    assert untimed_metrics(folder / "killed")[-1]["step"] == 11  # three steps to be done again
    resumed = run(folder / "killed", "--resume", "--out_dir", "model", environment=environment)
    assert resumed.code == 0, resumed.err
    assert_same_end(folder / "killed", straight)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, corpus) -> list[str]:
    folder = tmp_path_factory.mktemp("tokens") / "toy"
    prepare(corpus[1], folder, get_tokenizer("stories4k"), val_dataset=corpus[3])
    return ["--dataset", str(folder)]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder, texts = tmp_path_factory.mktemp("hub"), documents(308)
    files = {
        f"data/{split}.jsonl": write_jsonl(folder / split, part).read_bytes()
        for split, part in (("train", texts[8:]), ("validation", texts[:8]))
    }
    with HubServer(files) as server:
        yield {"HF_ENDPOINT": server.url, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"}


@pytest.fixture(scope="module")
def flags(corpus) -> list[str]:
    """Those of `straight`; dropout makes the random state matter."""
    rules = "--optimizer adamw --balance aux_global --dropout 0.2".split()
    return [*TINY, *corpus, *rules, "--out_dir", "model"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, flags) -> Path:
    """One run that nothing interrupts, for several tests."""
    folder = tmp_path_factory.mktemp("straight")
    assert run(folder, *flags).code == 0
    return folder


# ----------------------------------------------------------------------------------------- kill -9


def test_adamw_with_global_balance_and_dropout_on_text_files(tmp_path, flags, straight):
    assert_kill_and_resume_join(tmp_path, flags, straight=straight)
    assert last_state(tmp_path / "killed")["progress"]["expert_share"].shape == (2, 6)

    # TensorBoard, too, holds each step once
    records = read_metrics(tmp_path / "killed/model/metrics.jsonl")
    (board,) = (tmp_path / "killed/runs").iterdir()
    events = EventAccumulator(str(board))
    events.Reload()
    for tag in ("train/loss", "val/loss"):
        drawn = [(event.step, event.value) for event in events.Scalars(tag)]
        told = [(r["step"], r[tag]) for r in records if tag in r]
        assert drawn == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in told]


def test_muon_with_selection_bias_in_lanes_of_prepared_tokens(tmp_path, prepared):
    flags = ["--optimizer", "muon", "--balance", "bias", "--packing", "lanes", "--grad_accum", 2]
    assert_kill_and_resume_join(tmp_path, [*QUIET, *prepared, *flags])
    assert last_state(tmp_path / "killed")["model"]["block.1.mlp.selection_bias"].abs().max() > 0


@pytest.mark.slow
def test_tinystories_streamed_from_the_hub(tmp_path, hub):
    flags = ["--optimizer", "muon", "--balance", "aux_global", "--dataset", "tinystories"]
    assert_kill_and_resume_join(tmp_path, [*QUIET, *flags], hub)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("balance", ["aux_global", "bias"])
@pytest.mark.parametrize("packing", ["packed", "lanes"])
@pytest.mark.parametrize("data", ["file", "prepared", "streamed"])
def test_every_combination(tmp_path, corpus, prepared, hub, optimizer, balance, packing, data):
    named = {"file": corpus, "prepared": prepared, "streamed": ["--dataset", "tinystories"]}[data]
    flags = ["--optimizer", optimizer, "--balance", balance, "--packing", packing]
    environment = hub if data == "streamed" else None
    assert_kill_and_resume_join(tmp_path, [*QUIET, *named, *flags], environment)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(5))
def test_kills_at_random_moments_lose_nothing_but_steps_since_the_last_save(
    tmp_path, flags, straight, attempt
):
    draw = random.Random(attempt)
    for _ in range(8):
        process = ToyRun(tmp_path, *flags)
        time.sleep(draw.uniform(0.1, 1.5))
        process.kill()
        if any((tmp_path / "model").glob("checkpoint_*.pt")):
            flags = ["--resume", "--out_dir", "model"]
        else:  # killed before the first save: nothing to go on from
            for path in (tmp_path / "model").glob("*"):
                path.unlink()
    finished = run(tmp_path, *flags)  # unless it had ended before the last kill
    assert finished.code == 0 or "the run in model is finished" in finished.err, finished.err
    found = differences(last_state(tmp_path), last_state(straight))
    assert [place for place in found if place not in FREE] == []


# -------------------------------------------------------------------------------- Ctrl-C and SIGTERM


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_saves_says_how_to_go_on_and_the_rest_joins(tmp_path, flags, straight, sent):
    stopped = run(tmp_path, *flags, at_step=5, action=sent)
    assert stopped.code == 128 + sent
    told = stopped.err.splitlines()[-1]
    answer = "stopping after this step, then saving (Ctrl-C again gives up what is not saved)\n"
    assert stopped.err.count(answer) == 1
    assert stopped.err.index("step 5 ") < stopped.err.index(answer) < stopped.err.index("step 6 ")
    assert told.startswith(f"stopped by {sent.name} and saved model/checkpoint_6.pt; ")
    program, script, *rest = shlex.split(told.partition("continue with: ")[2])
    assert (program, script) == ("python", "train.py")
    assert run(tmp_path, *rest).code == 0
    assert_same_end(tmp_path, straight)


def test_the_first_ctrl_c_is_answered_and_the_second_stops_at_once(capfd):
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        assert capfd.readouterr().err == interrupt.ANSWER.decode()
        os.kill(os.getpid(), signal.SIGTERM)  # some launchers send both: nothing is given up
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert capfd.readouterr().err == ""


def test_an_answer_that_nobody_can_read_stops_nothing(monkeypatch):
    monkeypatch.setattr(interrupt, "STDERR", os.open(os.devnull, os.O_RDONLY))
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
    os.close(interrupt.STDERR)


# --------------------------------------------------------------------------------- one run per folder


def listing(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_a_folder_has_one_writer_and_an_ended_run_is_not_written_over(tmp_path, corpus, capsys):
    flags = [*QUIET, *corpus, "--save_every", 2]
    first = ToyRun(tmp_path, *flags, at_step=3, action=signal.SIGSTOP)
    metrics = tmp_path / "model/metrics.jsonl"
    limit = time.monotonic() + 30
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        assert time.monotonic() < limit
        time.sleep(0.02)
    try:
        before = None
        while before != listing(tmp_path):  # until it stands still
            before = listing(tmp_path)
            time.sleep(0.3)
        assert run_here(tmp_path, "--resume", "--out_dir", "model") == 2
        assert f"process {first.pid} is writing to model" in capsys.readouterr().err
        assert run_here(tmp_path, *flags) == 2
        capsys.readouterr()
        assert listing(tmp_path) == before
    finally:
        first.kill()
    assert run_here(tmp_path, *flags) == 2
    error = capsys.readouterr().err
    assert "model holds another run" in error and "--resume" in error and error.count("\n") == 1
    assert listing(tmp_path) == before


# ------------------------------------------------------------------------------------- what may change


@pytest.mark.parametrize(
    "flag, value, told",
    [
        ("lr", "0.01", f"lr=0.01 (saved: {TrainConfig.lr})"),
        ("batch_size", "8", "batch_size=8 (saved: 4)"),
        ("seed", "7", "seed=7 (saved: 1337)"),
        ("max_iters", "40", "max_iters=40 (saved: 20)"),
        ("num_experts", "4", "num_experts=4 (saved: 6)"),
        ("balance", "bias", "balance=bias (saved: aux_global)"),
    ],
)
def test_resume_refuses_what_changes_the_sequence(straight, capsys, flag, value, told):
    before = listing(straight)
    assert run_here(straight, "--resume", "--out_dir", "model", f"--{flag}", value) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert "these may change: eval_every, final_eval_tokens, keep, log_every, save_every" in error
    assert listing(straight) == before


def test_what_may_change_at_resume_leaves_the_sequence_alone(tmp_path, flags, straight):
    assert run(tmp_path, *flags, at_step=9).code == -signal.SIGKILL
    free = ["--eval_every", 3, "--log_every", 5, "--save_every", 7, "--keep", 1]
    assert run(tmp_path, "--resume", "--out_dir", "model", *free).code == 0
    ours, theirs = last_state(tmp_path), last_state(straight)
    for part in ("model", "optimizers", "rng", "data"):
        assert differences(ours[part], theirs[part], part) == []


def test_resume_without_a_checkpoint_is_refused_and_writes_nothing(tmp_path, capsys):
    assert run_here(tmp_path, "--resume", "--out_dir", "nothing") == 2
    error = capsys.readouterr().err
    assert "--resume needs a checkpoint_<step>.pt in nothing" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_killed_before_its_first_checkpoint_says_what_to_do(tmp_path, flags, capsys):
    assert run(tmp_path, *flags, at_step=3).code == -signal.SIGKILL
    assert run_here(tmp_path, *flags) == 2
    told = capsys.readouterr().err
    assert "model holds a run that ended before its first checkpoint" in told
    assert "remove it with rm -r model, or choose another --out_dir" in told
    assert run_here(tmp_path, "--resume", "--out_dir", "model") == 2
    assert capsys.readouterr().err == told


def test_the_command_to_go_on_with_survives_a_folder_with_a_space():
    stop = StopRequest()
    stop.signal = signal.SIGTERM
    told = str(Stopped(stop, Path("my runs/first/checkpoint_6.pt"), "train.py"))
    command = shlex.split(told.partition("continue with: ")[2])
    assert command == ["python", "train.py", "--resume", "--out_dir", "my runs/first"]


def test_a_run_from_given_weights_resumes_like_any_other(tmp_path, corpus):
    flags = [*TINY, *corpus, "--no-use_tensorboard"]
    assert run_here(tmp_path, *flags, "--max_iters", 4, "--save_every", 4, "--out_dir", "first") == 0
    given = ["--init_from", "first/checkpoint_4.pt", *corpus, *TINY[-10:], "--block_size", 16,
             "--batch_size", 4, "--max_iters", 6, "--save_every", 2, "--no-use_tensorboard"]  # fmt: skip
    assert run_here(tmp_path, *given, "--out_dir", "straight") == 0
    stopped = run(tmp_path, *given, "--out_dir", "stopped", at_step=3, action=signal.SIGTERM)
    assert stopped.code == 128 + signal.SIGTERM
    assert run_here(tmp_path, "--resume", "--out_dir", "stopped") == 0
    ends = [load(tmp_path / name / "checkpoint_6.pt") for name in ("straight", "stopped")]
    assert differences(ends[0]["model"], ends[1]["model"]) == []


def test_data_that_fails_in_mid_run_is_saved_up_to_there(tmp_path, corpus, monkeypatch, capsys):
    taken, original = [], TrainLoader.__next__

    def failing(loader):
        taken.append(1)
        if len(taken) == 12:  # the second micro-batch of step 6: the loader is past the weights
            raise ValueError("the network is gone")
        return original(loader)

    flags = [*TINY, *corpus, "--grad_accum", 2, "--max_iters", 8, "--no-use_tensorboard"]
    assert run_here(tmp_path, *flags, "--out_dir", "straight") == 0
    with monkeypatch.context() as patch:
        patch.setattr(TrainLoader, "__next__", failing)
        assert run_here(tmp_path, *flags, "--out_dir", "broken") == 2
    error = capsys.readouterr().err
    assert "the network is gone; the run was saved as broken/checkpoint_5.pt" in error
    assert run_here(tmp_path, "--resume", "--out_dir", "broken") == 0
    ends = [load(tmp_path / name / "checkpoint_8.pt") for name in ("straight", "broken")]
    for part in ("model", "optimizers", "data"):
        assert differences(ends[0][part], ends[1][part]) == []


def test_a_stop_is_answered_while_the_data_is_slow(tmp_path, corpus, monkeypatch, capsys):
    original = trainer.train_step

    def stopping(run, progress):
        if progress.step == 3:
            run.loader._queue = queue.Queue()
            os.kill(os.getpid(), signal.SIGTERM)
        return original(run, progress)

    monkeypatch.setattr(trainer, "train_step", stopping)
    assert run_here(tmp_path, *TINY, *corpus, "--no-use_tensorboard") == 128 + signal.SIGTERM
    assert "saved model/checkpoint_3.pt" in capsys.readouterr().err


def test_a_finished_run_has_nothing_to_resume(tmp_path, corpus, capsys):
    assert run_here(tmp_path, *TINY, *corpus, "--max_iters", 2, "--no-use_tensorboard") == 0
    before = listing(tmp_path / "model")
    capsys.readouterr()
    assert run_here(tmp_path, "--resume") == 2
    error = capsys.readouterr().err
    assert "is finished" in error and "--init_from" in error and error.count("\n") == 1
    assert listing(tmp_path / "model") == before


def test_each_start_of_a_run_stands_in_its_config_file(tmp_path, corpus):
    flags = [*TINY, *corpus, "--max_iters", 4, "--no-use_tensorboard"]
    run(tmp_path, *flags, at_step=2, action=signal.SIGTERM)
    assert run_here(tmp_path, "--resume") == 0
    starts = json.loads((tmp_path / "model/config.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, starts[1]["step"]] and starts[1]["step"] >= 2
    assert all({"command", "commit", "torch"} <= start.keys() for start in starts)
