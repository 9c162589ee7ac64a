"""benchmarks/gpu_check.py: a case that breaks or hangs does not stop the others, and nothing is measured twice."""

import json
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_check

WORKER = """
import json, os, sys, time
for name in sys.argv[1:]:
    print(json.dumps({"begins": name}), flush=True)
    if name == "dies":
        os.abort()
    if name == "hangs":
        time.sleep(60)
    print("a library says something")
    print(json.dumps({"ends": name, "found": {"value": len(name)}}), flush=True)
"""


def measured(names, until=60.0, patience=2.0):
    found = {}
    command = [sys.executable, "-c", WORKER]
    left = gpu_check.measure(names, command, time.monotonic() + until, patience, found.__setitem__)
    return found, left


def test_a_case_that_kills_its_process_or_hangs_is_an_error_and_the_others_are_measured():
    found, left = measured(["one", "dies", "three", "hangs", "fifth"])
    assert left == [] and list(found) == ["one", "dies", "three", "hangs", "fifth"]
    assert [found[name] for name in ("one", "three", "fifth")] == [{"value": 3}, {"value": 5}, {"value": 5}]
    assert found["dies"] == {"error": "the process ended with exit code -6"}
    assert found["hangs"] == {"error": "the process took more than 2 s"}


def test_at_the_end_of_its_time_the_command_leaves_the_rest_for_the_next_one():
    found, left = measured(["one", "hangs", "three"], until=2.0, patience=50.0)
    assert found == {"one": {"value": 3}} and left == ["hangs", "three"]


def test_the_goals_are_judged_by_what_was_measured():
    def values(error):
        return {"gradient_relative_error": error}

    found = {
        "values eager+loop bfloat16": values(0.02),
        "values flex+grouped bfloat16": values(0.03),
        "values flex+sorted bfloat16": values(0.05),
        "values flex+grouped float32": {"error": "RuntimeError: no kernel"},
        "speed best": {"step_ms": 12.0},
        "speed dense of the active size": {"step_ms": 10.0},
        "speed large": {"mfu": 0.29},
    }
    limits = gpu_check.limits(found)
    assert list(limits.values()) == [True, True, False, False, True, False]
    assert "medium takes 1.20 times the dense step (at most 1.33)" in limits
    assert gpu_check.limits({"speed large": {"mfu": None}, "speed best": {"error": "x"}}) == {}


@pytest.mark.slow
def test_the_whole_script_runs_on_a_cpu_and_a_second_run_measures_nothing_again(tmp_path, monkeypatch):
    """Without transformers its cases are errors, as flex_attention is, which has no backward pass on a CPU."""
    (tmp_path / "transformers.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = tmp_path / "found.json"
    argv = ["--tiny", "--dataset", "bundled", "--out", str(path), "--minutes", "60"]
    assert gpu_check.main(argv) == 0
    cases = json.loads(path.read_text())["cases"]
    failed = {name for name, case in cases.items() if "error" in case}
    assert failed == {name for name in cases if "flex" in name or "transformers" in name}
    assert all("not here" in cases[name]["error"] for name in failed if "transformers" in name)
    assert cases["curve"]["curve"]["val/loss"] and cases["speed large"]["tokens_per_second"] > 0
    assert str(Path.home()) not in path.read_text() and str(tmp_path) not in path.read_text()
    before = path.stat().st_mtime_ns
    assert gpu_check.main(argv) == 0 and path.stat().st_mtime_ns == before
