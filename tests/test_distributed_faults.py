"""Ranks that differ, hang, die or start again."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ranks import on_ranks
from toy_run import TINY, differences, load, run, run_here

from architecture.checkpoint import checkpoints, read_checkpoint
from tests.stress.kill_ranks import processes_of, wait_for_step
from training import restart
from training.command_line import CommandLine
from training.config import TrainConfig
from training.distributed import faults
from training.distributed.mesh import FailedElsewhere, Ranks
from training.monitor.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
RUN = (*TINY, "--max_iters", "8", "--save_every", "3", "--eval_every", "4", "--no-use_tensorboard")
FIRST = {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "0"}
AGAIN = FIRST | {"TORCHELASTIC_RESTART_COUNT": "1"}


# ------------------------------------------------------------------------------------------- the start


class Told(Ranks):
    """Rank 0 of ranks that hold these facts."""

    def gather(self, value):
        return [value, ("there", self.others)]


def two_ranks(others) -> Told:
    ranks = Told(2, 0)
    object.__setattr__(ranks, "others", others)
    return ranks


@pytest.mark.parametrize(
    "name, one, other",
    [("lr", 0.1, 0.2), ("training/step.py", 17, 18), ("training data", "aa", None), ("new", None, 3)],
)
def test_the_first_difference_between_ranks_is_named(name, one, other):
    same = {"seed": 1, name: one} if one is not None else {"seed": 1}
    with pytest.raises(
        ValueError, match=rf"same {name}, and it is {one!r} on rank 0 .* {other!r} on rank 1 \(there\)"
    ):
        faults.require_same(two_ranks({"seed": 1} | ({name: other} if other else {})), same)
    faults.require_same(two_ranks(dict(same)), same)


@dataclass
class ModelSettings:
    width: int = 3


def disagree() -> None:
    import torch.distributed as dist

    ranks = Ranks(2, dist.get_rank())
    cfg = TrainConfig(seed=5 + ranks.rank, threads=1 + ranks.rank)
    with pytest.raises(
        FailedElsewhere if ranks.rank else ValueError, match="same seed, and it is 5 on rank 0"
    ):
        faults.require_agreement(ranks, cfg, ModelSettings(), 0, {"validation data": "x"})
    cfg = TrainConfig(seed=5, threads=1 + ranks.rank)
    faults.require_agreement(ranks, cfg, ModelSettings(), 0, {"validation data": "x"})
    with pytest.raises(ValueError, match="same validation data, and it is '0'"):
        faults.require_agreement(ranks, cfg, ModelSettings(), 0, {"validation data": str(ranks.rank)})
    with pytest.raises(ValueError, match="same width, and it is 3"):
        faults.require_agreement(ranks, cfg, ModelSettings(3 + ranks.rank), 0, {})


@pytest.mark.peer
def test_two_ranks_that_differ_are_refused_and_a_number_of_threads_is_no_difference():
    on_ranks(2, disagree)


# --------------------------------------------------------------------------------------------- waits


def test_a_step_that_never_ends_ends_its_process_and_names_rank_and_step():
    program = (
        "import time; from training.distributed import faults; faults.STEP_LIMIT = 0.05\n"
        "with faults.limited(faults.Ranks(4, 3), 11): pass\n"
        "time.sleep(0.2); print('still here')\n"
        "with faults.limited(faults.Ranks(4, 3), 12): time.sleep(60)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout) == (1, "still here\n")
    assert "rank 3 of 4 on " in done.stderr and "step 12 has taken 0.05 s" in done.stderr
    assert 'File "<string>", line 4' in done.stderr  # where it waits


@contextlib.contextmanager
def torchrun(folder: Path, program: list[str], flags: list[str]) -> Iterator[subprocess.Popen]:
    """Two ranks, which print to the file `log`. They are killed at the end."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *program]
    with open(folder / "log", "wb") as log:
        job = subprocess.Popen([*words, *map(str, flags)], cwd=folder, stdout=log, stderr=log)
    try:
        yield job
    finally:
        if job.poll() is None:
            for pid in (*processes_of(job), job.pid):
                os.kill(pid, signal.SIGKILL)
            job.wait()


@pytest.mark.peer
def test_a_rank_that_dies_ends_the_job_within_a_minute_with_a_checkpoint_to_load(tmp_path, corpus):
    flags = [*RUN, *corpus, "--max_iters", "5000", "--parallel", "fsdp"]
    with torchrun(tmp_path, [str(ROOT / "train.py")], flags) as job:
        wait_for_step(7, job, tmp_path)
        began = time.monotonic()
        os.kill(processes_of(job)[1], signal.SIGKILL)
        assert job.wait(60) != 0 and time.monotonic() - began < 60
    told = (tmp_path / "log").read_text()
    assert "rank 0 of 2 on " in told and "lost another rank after step" in told
    assert "Signal 9 (SIGKILL)" in told
    newest = checkpoints(tmp_path / "model")[-1]
    assert read_checkpoint(newest)["step"] >= 3  # the save of step 6 may have been cut off


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_job_and_the_other_one_names_the_step(tmp_path, corpus):
    (tmp_path / "limited.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom training.distributed import faults\n"
        "faults.STEP_LIMIT = 5\nimport train\nsys.exit(train.main())"
    )
    with torchrun(tmp_path, ["limited.py"], [*RUN, *corpus, "--max_iters", "5000"]) as job:
        wait_for_step(7, job, tmp_path)
        os.kill(processes_of(job)[1], signal.SIGSTOP)
        assert job.wait(90) != 0  # torchrun gives the hanging process half a minute
    told = (tmp_path / "log").read_text()
    assert "rank 0 of 2 on " in told and "has taken 5 s" in told


# ----------------------------------------------------------------------------------------- the restart


@pytest.fixture(scope="module")
def straight(tmp_path_factory, corpus) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    assert run_here(folder, *RUN, *corpus) == 0
    return folder / "model"


def same_end(folder: Path, straight: Path) -> None:
    states = [load(out / "checkpoint_8.pt") for out in (folder / "model", straight)]
    for key in ("model", "optimizers", "rng", "data"):
        assert differences(states[0][key], states[1][key]) == []
    losses = [
        [(r["step"], r["train/loss"]) for r in read_metrics(out / "metrics.jsonl") if "train/loss" in r]
        for out in (folder / "model", straight)
    ]
    assert losses[0] == losses[1]


def test_a_restarted_run_goes_on_from_its_newest_checkpoint(tmp_path, corpus, straight):
    assert run(tmp_path, *RUN, *corpus, at_step=5, environment=FIRST).code == -9
    ended = run(tmp_path, *RUN, *corpus, environment=AGAIN)
    assert ended.code == 0 and "goes on from model/checkpoint_3.pt" in ended.err
    same_end(tmp_path, straight)
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert run(tmp_path, *RUN, *corpus, environment=AGAIN).code == 0  # killed when it had just finished
    assert {path: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


def test_a_restarted_run_without_a_checkpoint_begins_anew(tmp_path, corpus, straight):
    assert run(tmp_path, *RUN, *corpus, at_step=2, environment=FIRST).code == -9
    assert run(tmp_path, *RUN, *corpus, environment=AGAIN).code == 0
    same_end(tmp_path, straight)


def test_a_restart_leaves_the_run_of_another_job_alone(tmp_path, corpus):
    for step in (2, 5):
        folder = tmp_path / str(step)
        assert run(folder, *RUN, *corpus, at_step=step, environment=FIRST).code == -9
        before = {path: path.read_bytes() for path in (folder / "model").iterdir()}
        refused = run(folder, *RUN, *corpus, environment=AGAIN | {"TORCHELASTIC_RUN_ID": "b"})
        assert refused.code == 2 and "--out_dir" in refused.err
        assert {path: path.read_bytes() for path in (folder / "model").iterdir()} == before


class OnASecondNode(Ranks):
    """Rank 1 of two; the first one belongs to job "a", and none fails."""

    def gather(self, value):
        return [value and "a", value]


def test_a_restart_on_a_second_node_knows_the_run_by_the_job_of_the_first_rank(tmp_path, corpus, monkeypatch):
    """Without --rdzv_id, torchrun calls the job of each node "none"."""
    assert run(tmp_path, *RUN, *corpus, at_step=5, environment=FIRST).code == -9
    command = CommandLine(TrainConfig(out_dir=str(tmp_path / "model")), {}, frozenset(), False)
    for name, value in (AGAIN | {"TORCHELASTIC_RUN_ID": "none"}).items():
        monkeypatch.setenv(name, value)
    assert restart.after_restart(OnASecondNode(2, 1), command).config.resume
    assert restart.after_restart(Ranks(), command) is command


def test_a_restart_asks_for_nothing_that_the_checkpoint_decides(tmp_path, corpus, straight):
    shutil.copytree(straight, tmp_path / "first")
    begun = [*RUN, *corpus, "--init_from", "first", "--lr", "1e-3"]
    assert run(tmp_path, *begun, at_step=5, environment=FIRST).code == -9
    (tmp_path / "first").rename(tmp_path / "gone")
    assert run(tmp_path, *begun, environment=AGAIN).code == 0


def test_a_restart_of_a_run_that_went_back_does_not_go_back_again(tmp_path, straight):
    shutil.copytree(straight, tmp_path / "model")
    went_back = ["--resume_from", "model/checkpoint_3.pt"]
    assert run(tmp_path, *went_back, at_step=7, environment=FIRST).code == -9
    ended = run(tmp_path, *went_back, environment=AGAIN)
    assert ended.code == 0 and "goes on from model/checkpoint_6.pt" in ended.err
