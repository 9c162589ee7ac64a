"""A run that was killed or stopped resumes as if nothing had happened: the same bits, the same records."""

import json
import os
import queue
import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest
from conftest import REPO_ROOT
from hub_server import HubServer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_corpus import documents, write_jsonl
from toy_run import TINY, at_step, blank, differences, load, run, run_here

from architecture.tokenizer import get_tokenizer
from data.loader import TrainLoader
from data.prepare import prepare
from training import trainer
from training.config import CHANGES_BITS, DATA, RESUMABLE_CHANGES, TrainConfig
from training.monitor.metrics import read_metrics
from training.state import interrupt
from training.state.interrupt import StopRequest
from training.state.out_dir import claim_out_dir

MODEL = "my model"  # a name that a shell must have quoted
RESUME = ["--resume", "--out_dir", MODEL]
QUIET = [*TINY, "--no-use_tensorboard", "--out_dir", MODEL]
# These differ with the clock, the machine or the command, and not with the sequence.
FREE = (".progress.seconds", ".train_config.resume", ".commit")
FREE += (".tensorboard_dir", ".train_config.use_tensorboard")


def last_state(folder: Path) -> dict:
    return load(folder / MODEL / "checkpoint_20.pt")


def untimed_metrics(folder: Path) -> list[dict]:
    timing = ("perf/", "final/seconds", "final/tokens_per_second")
    records = read_metrics(folder / MODEL / "metrics.jsonl")
    return [{k: v for k, v in r.items() if not k.startswith(timing)} for r in records]


def listing(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.name != ".lock")
    return {str(path): path.stat().st_mtime_ns for path in files}


def assert_same_end(resumed: Path, straight: Path) -> None:
    found = differences(last_state(resumed), last_state(straight))
    assert [place for place in found if place not in FREE] == []
    assert untimed_metrics(resumed) == untimed_metrics(straight)


def run_and_kill(folder: Path, flags: list, environment: dict | None = None) -> None:
    """Kill a run in step 12, after a checkpoint of step 8."""
    killed = run(folder, *flags, environment=environment, at_step=11)
    assert killed.code == -signal.SIGKILL, killed.err
    assert [path.name for path in (folder / MODEL).glob("checkpoint_*")] == ["checkpoint_8.pt"]
    assert untimed_metrics(folder)[-1]["step"] == 11


def assert_resume_joins(killed: Path, straight: Path, environment: dict | None = None) -> None:
    resumed = run(killed, *RESUME, environment=environment)
    assert resumed.code == 0, resumed.err
    assert_same_end(killed, straight)


def assert_kill_and_resume_join(folder: Path, flags: list, environment: dict | None = None) -> None:
    flags = [*flags, "--out_dir", MODEL]
    assert run(folder / "straight", *flags, environment=environment).code == 0
    run_and_kill(folder / "killed", flags, environment)
    assert_resume_joins(folder / "killed", folder / "straight", environment)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, corpus) -> list[str]:
    folder = tmp_path_factory.mktemp("tokens") / "toy"
    prepare(corpus[1], folder, get_tokenizer("bundled1536"), val_dataset=corpus[3])
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
    """The flags of `straight` and `killed`; dropout makes the random state matter."""
    rules = "--optimizer adamw --balance aux_global --dropout 0.2 --grad_accum 2 --batch_size 2".split()
    return [*QUIET, *corpus, *rules]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, flags) -> Path:
    """One run that nothing interrupts; tests only read it."""
    folder = tmp_path_factory.mktemp("straight")
    assert run_here(folder, *flags) == 0
    return folder


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory, flags) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    run_and_kill(folder, [*flags, "--use_tensorboard"])
    return folder


@pytest.fixture
def killed(tmp_path, killed_once) -> Path:
    """A copy of the folder of a run that kill -9 ended in step 12."""
    return shutil.copytree(killed_once, tmp_path / "killed")


# ----------------------------------------------------------------------------------------- kill -9


def test_a_run_that_moved_without_its_tensorboard_files_writes_them_again(killed, capfd, monkeypatch):
    monkeypatch.setattr("training.monitor.instruments.heat_map", blank)
    shutil.rmtree(killed / "runs")
    assert run_here(killed, *RESUME) == 0
    assert "wrote the earlier records to runs/" in capfd.readouterr().err
    (board,) = (killed / "runs").iterdir()
    events = EventAccumulator(str(board)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 21))
    assert len(events.Tensors("custom_scalars__config__")) == 1


def test_adamw_with_global_balance_and_dropout_on_text_files(killed, straight):
    assert_resume_joins(killed, straight)
    assert last_state(killed)["progress"]["expert_share"].shape == (2, 6)

    # TensorBoard holds each step once, too
    records = read_metrics(killed / MODEL / "metrics.jsonl")
    (board,) = (killed / "runs").iterdir()
    events = EventAccumulator(str(board)).Reload()
    for tag in ("train/loss", "val/loss"):
        drawn = [(event.step, event.value) for event in events.Scalars(tag)]
        told = [(r["step"], r[tag]) for r in records if tag in r]
        assert drawn == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in told]

    starts = json.loads((killed / MODEL / "config.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 8]
    assert all({"command", "commit", "torch"} <= start.keys() for start in starts)


def test_muon_with_selection_bias_in_lanes_of_prepared_tokens(tmp_path, prepared):
    flags = ["--optimizer", "muon", "--balance", "bias", "--packing", "lanes"]
    assert_kill_and_resume_join(tmp_path, [*QUIET, *prepared, *flags])
    assert last_state(tmp_path / "killed")["model"]["block.1.mlp.selection_bias"].abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("balance", ["aux_global", "bias"])
@pytest.mark.parametrize("packing", ["packed", "lanes", "rows"])
@pytest.mark.parametrize("data", ["file", "prepared", "streamed"])
def test_every_combination(tmp_path, corpus, prepared, hub, optimizer, balance, packing, data):
    named = {"file": corpus, "prepared": prepared, "streamed": ["--dataset", "tinystories"]}[data]
    flags = ["--optimizer", optimizer, "--balance", balance, "--packing", packing]
    environment = hub if data == "streamed" else None
    assert_kill_and_resume_join(tmp_path, [*QUIET, *named, *flags], environment)


# -------------------------------------------------------------------------------- Ctrl-C and SIGTERM


def test_ctrl_c_saves_and_the_printed_command_continues_to_the_same_bits(
    tmp_path, flags, straight, monkeypatch, capfd
):
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert run_here(tmp_path, *flags) == 128 + signal.SIGINT
    error = capfd.readouterr().err
    answer = interrupt.ANSWER.decode()
    assert error.count(answer) == 1
    assert error.index("step 5 ") < error.index(answer) < error.index("step 6 ")
    told = error.splitlines()[-1]
    assert told.startswith(f"stopped by SIGINT and saved {MODEL}/checkpoint_6.pt; ")
    program, script, *rest = shlex.split(told.partition("continue with: ")[2])
    assert (program, script) == ("python", "train.py")
    assert run_here(tmp_path, *rest) == 0
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


def test_a_closed_stderr_does_not_break_a_stop_request(monkeypatch):
    monkeypatch.setattr(interrupt, "STDERR", os.open(os.devnull, os.O_RDONLY))
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
    os.close(interrupt.STDERR)


def test_a_stop_request_saves_while_the_run_waits_for_data(tmp_path, corpus, monkeypatch, capsys):
    original = trainer.train_step

    def stopping(run, progress):
        if progress.step == 3:
            run.loader._queue = queue.Queue()
            os.kill(os.getpid(), signal.SIGTERM)
        return original(run, progress)

    monkeypatch.setattr(trainer, "train_step", stopping)
    assert run_here(tmp_path, *QUIET, *corpus) == 128 + signal.SIGTERM
    assert f"saved {MODEL}/checkpoint_3.pt" in capsys.readouterr().err


def test_a_failure_of_the_data_saves_the_run_and_resume_ends_with_the_same_bits(
    tmp_path, flags, straight, monkeypatch, capsys
):
    taken, original = [], TrainLoader.__next__

    def failing(loader):
        taken.append(1)
        if len(taken) == 12:  # the second micro-batch of step 6: the loader is past the weights
            raise ValueError("the network is gone")
        return original(loader)

    with monkeypatch.context() as patch:
        patch.setattr(TrainLoader, "__next__", failing)
        assert run_here(tmp_path, *flags) == 2
    told = f"the network is gone; the run was saved as {MODEL}/checkpoint_5.pt"
    assert told in capsys.readouterr().err
    assert run_here(tmp_path, *RESUME) == 0
    assert_same_end(tmp_path, straight)


# ----------------------------------------------------------------------- what resume takes and refuses


def test_a_folder_has_one_writer_and_an_ended_run_is_not_written_over(killed, flags, capsys):
    with claim_out_dir(killed / MODEL, resume=True):
        before = listing(killed)
        assert run_here(killed, *RESUME) == 2
        assert f"process {os.getpid()} is writing to {MODEL}" in capsys.readouterr().err
    assert run_here(killed, *flags) == 2
    error = capsys.readouterr().err
    assert f"{MODEL} holds another run" in error and "--resume" in error and error.count("\n") == 1
    assert listing(killed) == before


def test_resume_refuses_what_changes_the_sequence(straight, capsys):
    before = listing(straight)
    for flag, value, saved in (
        ("lr", "0.01", TrainConfig.lr),
        ("batch_size", "8", 2),
        ("max_iters", "40", 20),
        ("num_experts", "4", 6),
        ("balance", "bias", "aux_global"),
    ):
        assert run_here(straight, *RESUME, f"--{flag}", value) == 2
        error = capsys.readouterr().err
        assert f"{flag}={value} (saved: {saved})" in error and error.count("\n") == 1
        assert len(error) < 350 and ("--extend STEPS" in error) == (flag == "max_iters")
    assert listing(straight) == before


def test_the_page_lists_every_setting_that_may_change_at_a_resume():
    page = (REPO_ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    listed = page.split("### What may change at a resume\n")[1].split("\n\n`--extend N`")[0]
    groups = [set(re.findall(r"`--(\w+)`", group)) for group in listed.split("\n- ")[1:]]
    assert groups == [RESUMABLE_CHANGES, {*DATA}, CHANGES_BITS]


def test_what_may_change_at_resume_leaves_the_sequence_alone(killed, straight):
    free = "--eval_every 3 --log_every 5 --save_every 7 --keep 1 --no-use_tensorboard".split()
    assert run_here(killed, *RESUME, *free) == 0
    ours, theirs = last_state(killed), last_state(straight)
    for part in ("model", "optimizers", "rng", "data"):
        assert differences(ours[part], theirs[part], part) == []


def test_resume_without_a_checkpoint_is_refused_and_writes_nothing(tmp_path, capsys):
    assert run_here(tmp_path, "--resume", "--out_dir", "nothing") == 2
    error = capsys.readouterr().err
    assert "--resume needs a checkpoint_<step>.pt in nothing" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_has_nothing_to_resume(straight, capsys):
    before = listing(straight)
    assert run_here(straight, *RESUME) == 2
    error = capsys.readouterr().err
    assert "is finished" in error and "--init_from" in error and error.count("\n") == 1
    assert listing(straight) == before


def test_a_run_from_given_weights_resumes_like_any_other(tmp_path, straight, corpus, monkeypatch):
    given = "--device cpu --threads 1 --block_size 16 --batch_size 4 --max_iters 6 --save_every 2".split()
    given += ["--init_from", straight / MODEL / "checkpoint_8.pt", *corpus, "--no-use_tensorboard"]
    assert run_here(tmp_path, *given, "--out_dir", "straight") == 0
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run_here(tmp_path, *given, "--out_dir", "stopped") == 128 + signal.SIGTERM
    assert run_here(tmp_path, "--resume", "--out_dir", "stopped") == 0
    ends = [load(tmp_path / name / "checkpoint_6.pt") for name in ("straight", "stopped")]
    assert differences(ends[0]["model"], ends[1]["model"]) == []
