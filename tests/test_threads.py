"""CPU threads beside other work: the choice, the bound of spinning, and what a slow run says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_run import TINY, run_here

from common import threads
from common.threads import free_threads, look, others_between, set_threads, set_threads_for_texts
from training.monitor.pace import Pace

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def two_threads(monkeypatch):
    """torch would take two threads here, and nobody has said how many."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def machine(monkeypatch, folder: Path, cores: int, others: float) -> threads.Look:
    """A machine whose cores work for `others` core seconds a second beside us. Returns a look ten seconds ago."""
    seconds, own = 10.0, 4.0
    monkeypatch.setattr(threads, "usable_cores", lambda: set(range(cores)))
    monkeypatch.setattr(threads, "PROC_STAT", str(folder / "stat"))
    ticks = round((others * seconds + own) * os.sysconf("SC_CLK_TCK"))
    rows = [f"cpu{n} {ticks if n == 0 else 0} 0 0 77 88 0 0 0 9 0" for n in range(cores)]
    unused = f"cpu{cores} 99999 0 0 0 0 0 0 0 0 0"  # of another process's cores
    (folder / "stat").write_text("\n".join(["cpu 1 2 3 4 5 6 7 8 9 10", *rows, unused, "intr 5"]))
    now = look()
    return now[0] - seconds, 0.0, now[2] - own


@pytest.mark.parametrize(
    "others, count", [(0.0, 8), (0.4, 8), (0.6, 7), (2.6, 5), (7.4, 1), (8.0, 1), (9.5, 1)]
)
def test_there_is_a_thread_for_each_core_that_is_mostly_free(others, count):
    assert free_threads(8, 8, others) == count
    assert free_threads(3, 8, others) == min(3, count)


def test_a_look_counts_the_work_of_others_on_the_cores_of_this_process(tmp_path, monkeypatch):
    before = machine(monkeypatch, tmp_path, cores=3, others=1.5)
    assert others_between(before, look()) == pytest.approx(1.5, abs=0.1)


def test_each_kind_of_busy_time_counts_and_waiting_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: {3})
    monkeypatch.setattr(threads, "PROC_STAT", str(tmp_path / "stat"))
    (tmp_path / "stat").write_text("cpu3 1 20 300 5000 60000 700000 8000000 90000000 5 5\n")
    assert look()[1] == pytest.approx(98_700_321 / os.sysconf("SC_CLK_TCK"))


def test_without_proc_the_load_average_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "PROC_STAT", str(tmp_path / "none"))
    monkeypatch.setattr(os, "getloadavg", lambda: (2.5, 9.0, 9.0))
    assert look()[1] is None
    assert others_between((100.0, None, 1.0), (110.0, None, 6.0)) == pytest.approx(2.0)


def test_a_busy_core_costs_a_thread_and_a_line_says_so(tmp_path, monkeypatch, two_threads):
    line = set_threads(None, machine(monkeypatch, tmp_path, cores=2, others=1.0))
    assert line == "1 thread: other work has 1.0 of 2 cores; --threads 2 takes both"
    assert torch.get_num_threads() == 1


def test_a_quiet_machine_gives_all_threads_without_a_line(tmp_path, monkeypatch, two_threads):
    assert set_threads(None, machine(monkeypatch, tmp_path, cores=2, others=0.3)) == ""
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("way", ["--threads", "OMP_NUM_THREADS"])
def test_threads_that_are_given_are_taken_on_a_busy_machine(tmp_path, monkeypatch, two_threads, way):
    before = machine(monkeypatch, tmp_path, cores=2, others=2.0)
    if way == "OMP_NUM_THREADS":
        monkeypatch.setenv(way, "2")
    assert set_threads(2 if way == "--threads" else None, before) == ""
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "asked, environment, parameters, rows, left",
    [(None, {}, 10**7, 16, 1), (None, {}, 10**7 + 1, 1, 2), (None, {}, 10**6, 17, 2), (2, {}, 10**6, 1, 2)]
    + [(None, {"OMP_NUM_THREADS": "2"}, 10**6, 1, 2)],
    ids=["small", "a larger model", "many rows", "--threads", "OMP_NUM_THREADS"],
)
def test_a_small_model_writes_a_few_texts_with_one_thread(
    monkeypatch, two_threads, asked, environment, parameters, rows, left
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    set_threads_for_texts(asked, parameters, rows)
    assert torch.get_num_threads() == left


def test_no_thread_is_refused():
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        set_threads(0, None)


def test_a_resumed_run_asks_for_the_threads_it_had_and_says_that_it_is_slow(
    tmp_path, monkeypatch, corpus, capsys
):
    asked = []

    def choosing(threads, since):
        asked.append(threads)
        torch.set_num_threads(threads or 1)
        return ""

    monkeypatch.setattr("training.train_command.set_threads", choosing)
    at = TINY.index("--threads")
    flags = [*TINY[:at], *TINY[at + 2 :], *corpus, "--max_iters", 4, "--save_every", 2]
    assert run_here(tmp_path, *flags) == 0
    (tmp_path / "model/checkpoint_4.pt").unlink()
    (tmp_path / "model/metrics.jsonl").write_text("")
    capsys.readouterr()
    monkeypatch.setattr(Pace, "after_step", lambda self, seconds: f"slow with {self.threads}")
    assert run_here(tmp_path, "--resume") == 0
    assert asked == [None, 1]
    assert capsys.readouterr().err.count("slow with 1\n") == 2  # steps 3 and 4


# ------------------------------------------------------------------------------------ spinning

SPIN = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP")
@pytest.mark.parametrize(
    "first, given, expected",
    [
        ("import common.begin", {}, str(threads.SPIN_COUNT)),
        ("import common.begin", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("import common.begin", {"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
        ("import common.script", {}, "None"),
    ],
)
def test_a_script_bounds_spinning_unless_the_user_did_and_a_library_does_not(first, given, expected):
    environment = {k: v for k, v in os.environ.items() if k not in threads.SETTLED_BY} | given
    done = subprocess.run(
        [sys.executable, "-c", f"{first}\n{SPIN}"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout == f"{expected}\n", done.stderr


# ------------------------------------------------------------------------------------ a slow run


class Clock:
    """A machine of two cores and a run of two threads, at given speeds."""

    def __init__(self):
        self.seconds = self.busy = self.own = 0.0
        self.pace, self.lines = Pace(2, 2, self.look), []

    def look(self) -> threads.Look:
        return self.seconds, self.busy, self.own

    def run(self, steps: int, seconds: float, others: float) -> list[str]:
        """The lines in so many steps of so many seconds each, beside other work."""
        lines = []
        for _ in range(steps):
            self.seconds += seconds
            self.own += seconds * (2 - others)
            self.busy += seconds * 2
            lines += filter(None, [self.pace.after_step(seconds)])
        return lines


def test_a_minute_of_slow_steps_beside_other_work_is_said_once():
    clock = Clock()
    assert clock.run(100, 0.5, others=0.0) == []
    assert clock.run(45, 1.25, others=1.0) == []  # 56 s
    (line,) = clock.run(500, 1.25, others=1.0)
    assert line == (
        "steps take 2.5 times as long as before, because other work has 1.0 of 2 cores; end that work, or stop this "
        "run and continue it with --resume --threads 1, with other last bits"
    )


def test_it_is_said_again_after_a_recovery_only():
    clock = Clock()
    clock.run(100, 0.5, others=0.0)
    assert len(clock.run(100, 1.25, others=1.0)) == 1
    assert clock.run(100, 0.8, others=0.5) == []  # better, and not yet good
    assert clock.run(100, 1.25, others=1.0) == []
    clock.run(100, 0.5, others=0.0)
    assert len(clock.run(100, 1.25, others=1.0)) == 1


@pytest.mark.parametrize(
    "why", ["the steps cost more", "not twice as slow", "slow from the start", "stopped"]
)
def test_other_slowness_is_not_said(why):
    clock = Clock()
    if why != "slow from the start":
        clock.run(100, 0.5, others=0.0)
    lines = {
        "the steps cost more": lambda: clock.run(200, 1.25, others=0.0),
        "not twice as slow": lambda: clock.run(200, 0.95, others=1.0),
        "slow from the start": lambda: clock.run(200, 1.25, others=1.0),
        "stopped": lambda: clock.run(1, 3600.0, others=2.0) + clock.run(200, 0.5, others=0.0),
    }[why]()
    assert lines == []


def test_an_interruption_of_the_slowness_starts_the_minute_again():
    clock = Clock()
    clock.run(100, 0.5, others=0.0)
    for _ in range(3):
        assert clock.run(32, 1.25, others=1.0) == []  # 40 s
        assert clock.run(40, 0.5, others=0.0) == []
