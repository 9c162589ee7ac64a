"""Signals, standard streams that are lost, and memory that runs out: nothing is lost, and one line tells it."""

import ast
import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_run import TINY, at_step, load, run_here, write_corpus

from common import device
from common.files import reading
from training import trainer
from training.monitor.metrics import read_metrics
from training.state.interrupt import StopRequest

ROOT = Path(__file__).parents[1]
QUIET = [*TINY, "--no-use_tensorboard", "--recipe", "none"]
FULL = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


# ------------------------------------------------------------------------------------ SIGHUP


def test_a_closed_terminal_saves_the_run_as_sigterm_does(tmp_path, corpus, monkeypatch, capsys):
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGHUP))
    assert run_here(tmp_path, *QUIET, *corpus) == 128 + signal.SIGHUP
    assert "stopped by SIGHUP and saved model/checkpoint_4.pt" in capsys.readouterr().err


def test_under_nohup_a_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# ------------------------------------------------------------------------------------ several ranks


def test_the_first_ctrl_c_of_a_rank_that_stops_because_of_another_gives_nothing_up():
    with StopRequest(says=False) as stop:
        stop.signal = signal.SIGTERM  # as Ranks.after_step sets it
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


# ------------------------------------------------------------------------------------ lost streams


class Lost:
    """A stream that nobody reads any more."""

    def isatty(self):
        return False

    def write(self, *_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    flush = close = write


@pytest.mark.parametrize("stream", [None, Lost()])
def test_a_run_whose_log_is_lost_goes_on_and_records_everything(tmp_path, corpus, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    assert run_here(tmp_path, *QUIET, *corpus) == 0
    records = read_metrics(tmp_path / "model/metrics.jsonl")
    assert sum("train/loss" in record for record in records) == 20 and "final/loss" in records[-1]


SCRIPT = """
import common.begin

import os, sys, warnings
from pathlib import Path
from tqdm import tqdm
from common.script import exit_code, say

def run():
    with open("file", "w") as file:  # must not get the number of a closed stream
        for _ in tqdm(range(3)):
            say("said")
        warnings.warn("warned")
        print("logged", file=sys.stderr)
        print("the story")
        sys.stdin.read()

sys.exit(exit_code("x.py", run))
"""


def shell(folder, script, redirected="", **options):
    """The finished process of a script that the shell starts with redirected streams."""
    (folder / "x.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = f"exec {sys.executable} x.py {redirected}"
    pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.run(["sh", "-c", command], cwd=folder, env=environment, **(pipes | options))


@pytest.mark.parametrize("closed", ["2>&-", "2>&- <&-", "2>/dev/full", "2>&- >&- <&-", ">&- <&-"])
def test_a_lost_stream_changes_nothing_else(tmp_path, closed):
    done = shell(tmp_path, SCRIPT, closed)
    assert done.returncode == 0
    assert done.stdout == ("" if ">&- <&-" in closed and closed != "2>&- <&-" else "the story\n")
    assert "the story" not in done.stderr and (tmp_path / "file").read_text() == ""


def test_a_lost_reader_of_stderr_does_not_end_a_script(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = shell(tmp_path, SCRIPT, stderr=write)
    os.close(write)
    assert (done.returncode, done.stdout) == (0, "the story\n")


def test_a_result_that_cannot_be_written_is_one_line(tmp_path):
    done = shell(tmp_path, SCRIPT.replace("sys.stdin.read()", "print('more' * 9999)"), ">/dev/full")
    assert done.returncode == 2 and done.stderr.endswith(
        "x.py: error: the disk or device of the output is full; free space, or write the output elsewhere\n"
    )


# ------------------------------------------------------------------------------------ early Ctrl-C

SWALLOWS = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except BaseException:
    pass
"""


@pytest.mark.parametrize("place", ["before the work", "in an import of the work", "in an import before it"])
def test_an_early_ctrl_c_is_130_and_one_line(tmp_path, place):
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    work = "import swallows" if place == "in an import of the work" else "pass"
    first = {"before the work": SWALLOWS, "in an import before it": "import swallows\n"}.get(place, "")
    script = f"import common.begin\n{first}\nfrom common.script import exit_code\ndef run():\n    {work}\n"
    done = shell(tmp_path, script + "raise SystemExit(exit_code('x.py', run))\n")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "x.py: interrupted\n")


def test_ctrl_c_in_the_work_cleans_up_and_after_it_ends_at_once(tmp_path):
    script = (
        "import common.begin\nimport os, signal\nfrom common.script import exit_code\n"
        "def run():\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally:\n        print('cleaned', flush=True)\n"
        "exit_code('x.py', run)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = shell(tmp_path, script)
    assert (done.returncode, done.stdout, done.stderr) == (130, "cleaned\n", "x.py: interrupted\n" * 2)


def test_an_ignored_ctrl_c_stays_ignored(tmp_path):
    script = "import common.begin\nimport os, signal\nos.kill(os.getpid(), signal.SIGINT)\nprint('here')\n"
    ignore = dict(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert shell(tmp_path, script, **ignore).stdout == "here\n"


def test_every_script_imports_begin_first():
    folders = (
        "",
        "architecture",
        "architecture/open_gpt_oss",
        "architecture/open-gpt-oss",
        "common",
        "data",
        "training",
        "evaluation",
        "evaluation/report",
        "evaluation/routing",
    )
    scripts = [
        p for f in folders for p in (ROOT / f).glob("*.py") if 'if __name__ == "__main__"' in p.read_text()
    ]
    scripts = [path for path in scripts if path.name not in ("begin.py", "server.py")]  # Streamlit starts it
    assert len(scripts) >= 14
    for path in scripts:
        imports = [
            n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)
        ]
        first = next(n for n in imports if getattr(n, "module", None) != "__future__")
        assert isinstance(first, ast.Import) and first.names[0].name == "common.begin", path


def test_the_errors_of_a_module_begin_with_the_name_that_python_m_takes():
    named = {}
    for folder in ("architecture", "benchmarks", "data", "evaluation", "training"):
        for path in (ROOT / folder).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
            for name in re.findall(r'exit_code\(\s*"([^"]+)"', path.read_text(encoding="utf-8")):
                named[module] = name
    # the first is run as a file, and the text of the second is the ruler of the published numbers
    others = "architecture.open_gpt_oss.download_weights", "evaluation.ruler"
    assert len(named) > 20 and {m for m, name in named.items() if m != name} == {*others}


# ------------------------------------------------------------------------------------ memory


def run_out(monkeypatch, where: str, step: int):
    """Memory runs out once, in a function of the trainer, when that many steps are done."""
    original, done = getattr(trainer, where), []
    at_step(monkeypatch, step, lambda: done.append("now"))

    def failing(*given, **named):
        if done == ["now"]:
            done.append("failed")
            torch.rand(3)  # as dropout would: the random state has moved on
            raise RuntimeError(FULL)
        return original(*given, **named)

    monkeypatch.setattr(trainer, where, failing)


DROPOUT = ["--save_every", "100", "--max_iters", "12", "--dropout", "0.1"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("straight")
    assert run_here(folder, *QUIET, *corpus, *DROPOUT) == 0
    return load(folder / "model/checkpoint_12.pt")["model"]


@pytest.mark.parametrize("where", ["accumulate_gradients", "evaluate"])
def test_a_run_that_runs_out_of_memory_saves_and_continues_to_the_same_bits(
    tmp_path, corpus, straight, monkeypatch, capsys, where
):
    with monkeypatch.context() as patch:
        run_out(patch, where, 5)
        assert run_here(tmp_path, *QUIET, *corpus, *DROPOUT) == 2
    step = {"accumulate_gradients": 5, "evaluate": 10}[where]
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"train.py: error: out of memory after step {step} (RuntimeError: {FULL})")
    assert f"the last good checkpoint is model/checkpoint_{step}.pt; free memory" in error
    assert "lower batch_size" in error
    assert run_here(tmp_path, "--resume") == 0
    weights = load(tmp_path / "model/checkpoint_12.pt")["model"]
    assert all(torch.equal(weights[name], straight[name]) for name in straight)


def test_memory_that_runs_out_during_an_update_saves_nothing_between_two_steps(
    tmp_path, corpus, monkeypatch, capsys
):
    run_out(monkeypatch, "apply_gradients", 11)
    assert run_here(tmp_path, *QUIET, *corpus) == 2
    assert "after step 11" in (told := capsys.readouterr().err) and "model/checkpoint_8.pt" in told
    assert [path.name for path in (tmp_path / "model").glob("*.pt")] == ["checkpoint_8.pt"]


def test_memory_that_runs_out_in_the_first_step_is_one_line_that_says_what_to_lower(
    tmp_path, corpus, monkeypatch, capsys
):
    run_out(monkeypatch, "accumulate_gradients", 0)
    assert run_here(tmp_path, *QUIET, *corpus) == 2
    assert "there is no checkpoint yet; free memory" in (told := capsys.readouterr().err)
    assert "lower batch_size" in told


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(FULL),
        RuntimeError("can't start new thread"),
        SystemError("error return without exception set"),  # Python could not even make the MemoryError
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_a_file_that_memory_is_too_small_for_is_not_called_damaged(error):
    with pytest.raises(MemoryError, match="^there is not enough memory to read x.pt$"):
        with reading("x.pt", "a checkpoint"):
            raise error


def test_the_available_memory_knows_the_limit_of_the_process(monkeypatch):
    used = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (used + 10**9, resource.RLIM_INFINITY))
    assert 0.9e9 < device.available_memory(torch.device("cpu")) < 1.1e9
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (10**6, 10**6))
    assert device.available_memory(torch.device("cpu")) == 0


@pytest.mark.parametrize(
    "cgroup, limits",
    [
        ("0::/user/run", {"user/run/memory.max": "max", "user/memory.max": "5000", "memory.max": "9000"}),
        ("0::/", {"memory.max": "5000"}),
        ("4:cpu,memory:/job", {"memory/job/memory.limit_in_bytes": "5000"}),
        ("4:memory:/of/the/host", {"memory/memory.limit_in_bytes": "5000"}),
    ],
)
def test_the_available_memory_knows_the_limits_of_cgroups(tmp_path, monkeypatch, cgroup, limits):
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text(f"7:pids:/other\n{cgroup}\n")
    for name, limit in limits.items():
        path = tmp_path / "cgroups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
        (path.parent / "memory.stat").write_text("cache 3\nanon 1000\ntotal_rss 1000\nfile 800\n")
    monkeypatch.setattr(device, "PROC", tmp_path)
    monkeypatch.setattr(device, "CGROUPS", tmp_path / "cgroups")
    assert device.available_memory(torch.device("cpu")) == 4000


# ------------------------------------------------------------------------------------ whole commands


@pytest.mark.slow
def test_under_a_limit_of_memory_a_good_checkpoint_is_never_called_damaged(tmp_path, corpus):
    assert run_here(tmp_path, *QUIET, *corpus) == 0
    command = [sys.executable, str(ROOT / "sample.py"), "--checkpoint", "model", "--max_tokens", "5"]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    for megabytes in range(600, 1000, 100):
        limit = dict(
            preexec_fn=lambda n=megabytes: resource.setrlimit(resource.RLIMIT_AS, (n << 20, n << 20))
        )
        done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, **limit)
        assert "damaged" not in done.stderr and "cut off" not in done.stderr, done.stderr


@pytest.mark.slow
def test_train_and_ablate_go_on_after_their_readers_have_left(tmp_path, corpus):
    base = dict(zip((word.removeprefix("--") for word in [*TINY, *corpus][::2]), [*TINY, *corpus][1::2]))
    del base["max_iters"]
    spec = {
        "base": base,
        "arms": {"a": {}, "b": {"balance": "none"}},
        "seeds": [1, 2],
        "budget": {"tokens": 256},
    }
    (tmp_path / "spec.yaml").write_text(json.dumps(spec | {"learning_rates": "none"}))
    for words in (["train.py", *QUIET, *corpus], ["ablate.py", "spec.yaml", "--out_dir", "out"]):
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, str(ROOT / words[0]), *words[1:]]
        assert subprocess.run(command, cwd=tmp_path, stdout=write, stderr=write).returncode == 0
        os.close(write)
    assert "final/loss" in read_metrics(tmp_path / "model/metrics.jsonl")[-1]
    assert (tmp_path / "out/report.md").exists()
