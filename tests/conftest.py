"""Options, markers and fixtures of the whole suite."""

import gc
import os
import sys
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO_ROOT))  # the tests import the project as the scripts do


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")
    parser.addoption("--browser", action="store_true", help="run the tests marked browser, too")
    parser.addoption("--peers", action="store_true", help="run the tests marked peer, too")


def pytest_configure(config):
    # One thread for each worker, whatever cores are free: bits depend on the number. torch is not imported yet.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from common.threads import bound_spinning

    bound_spinning()


def pytest_collection_modifyitems(config, items):
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        has_gpu = torch.cuda.is_available()
    # the commands of GPT-OSS-Vision's README: pytest tests/gpt_oss_vision/... and -m "slow"
    slow = config.getoption("--slow") or config.getoption("-m") == "slow"
    peers = config.getoption("--peers") or all("gpt_oss_vision" in argument for argument in config.args)
    for item in items:
        if item.get_closest_marker("slow") and not slow:
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if item.get_closest_marker("browser") and not config.getoption("--browser"):
            item.add_marker(pytest.mark.skip(reason="browser: run with --browser"))
        if item.get_closest_marker("peer") and not peers:
            item.add_marker(pytest.mark.skip(reason="peer: run with --peers"))
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="gpu: needs a CUDA device"))


def pytest_collection_finish(session):
    gc.freeze()  # the imported modules, so that no collection looks through them again


@pytest.fixture(scope="session", autouse=True)
def no_fsync():
    """No test takes the power away, and a disk is slow to answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def pytest_terminal_summary(terminalreporter):
    reasons = [str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])]
    ways = {
        "slow": "run them with --slow",
        "browser": "run them with make test-browser",
        "peer": "run them with make test-peers",
        "gpu": "they need a CUDA device",
    }
    for mark, way in ways.items():
        count = sum(f"{mark}: " in reason for reason in reasons)
        if count:
            terminalreporter.write_line(f"left out: {count} tests marked {mark}; {way}")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> list[str]:
    """Flags that name a small training file and a smaller validation file."""
    from toy_run import write_corpus

    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; tests that need it are skipped without it."""
    folder = REPO_ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no {folder.relative_to(REPO_ROOT.parent)} beside the repository")
    return folder
