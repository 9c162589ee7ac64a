"""The package that pip installs, the requirements that are written once, and the hooks."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = ("architecture", "common", "configs", "data", "evaluation", "gpt_oss_vision", "training")

# What a user does first, and what finds its files beside the code.
INSTALLED = """
import pathlib, sys
import architecture.open_gpt_oss, gpt_oss_vision
assert pathlib.Path(architecture.__file__).is_relative_to(sys.prefix), architecture.__file__
from inference import load_model_and_generate
assert pathlib.Path(gpt_oss_vision.__file__).is_relative_to(sys.prefix), gpt_oss_vision.__file__
from architecture.tokenizer import get_tokenizer
for name in ("stories4k", "bundled1536"):
    encoding = get_tokenizer(name)
    assert encoding.decode(encoding.encode("Tom had a red ball.")) == "Tom had a red ball."
from common.provenance import git_commit
assert git_commit() is None, git_commit()  # the folder around it is another project's
from evaluation.report import bands
assert len(list(bands.FOLDER.glob("*.json"))) == {bands}
from training.command_line import shipped_configs
from training.config import ContextTrainConfig, TrainConfig
assert all("toy" in shipped_configs(kind) for kind in (TrainConfig, ContextTrainConfig))
print(load_model_and_generate({checkpoint!r}, "Tom", max_length=8, temperature=0))
"""


def requirements(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line and not line.startswith("#")]


def run(*words, cwd: Path) -> str:
    done = subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_folder_of_code_or_data_is_a_listed_package():
    """A folder that is not listed is missing after pip install, and only there."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
    found = {
        path.parent for path in files if path.suffix in (".py", ".yaml") or path.parent.name == "reference"
    }
    named = {".".join(path.relative_to(ROOT).parts) for path in found}
    named -= {name for name in named if "-" in name}  # architecture/open-gpt-oss holds scripts
    assert PROJECT["tool"]["setuptools"]["packages"] == sorted(named)
    assert PROJECT["tool"]["setuptools"]["py-modules"] == sorted(path.stem for path in ROOT.glob("*.py"))


@pytest.mark.parametrize("extra", ["dev", "eval", "export", "chat", "vision"])
def test_an_extra_is_a_file_that_setuptools_can_read(extra):
    dynamic = PROJECT["tool"]["setuptools"]["dynamic"]
    for name in dynamic["dependencies"]["file"] + dynamic["optional-dependencies"][extra]["file"]:
        assert all(re.fullmatch(r"\w[\w-]*==[\w.]+", line) for line in requirements(name)), name


def test_the_hooks_use_the_pinned_ruff():
    (pinned,) = (line for line in requirements("requirements-dev.txt") if line.startswith("ruff=="))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"ruff==[\d.]+", hooks) == [pinned] * 2


def test_no_test_needs_a_peer_to_be_loaded():
    """make test runs where requirements-peers.txt is not installed, and without it no test may be lost."""
    early = re.compile(
        r"^(import|from) (transformers|tokenizers|gpt_oss_vision)\b|importorskip\(.(transformers|tokenizers)",
        re.M,
    )
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    assert [file.name for file in files if early.search(file.read_text(encoding="utf-8"))] == []


@pytest.mark.peer
def test_the_package_works_in_a_fresh_environment_from_another_folder(tmp_path):
    """Inside the repository of another project; without a network, so the dependencies are those of this one."""
    source, project = tmp_path / "source", tmp_path / "project"
    hidden = shutil.ignore_patterns("__pycache__", "cache", "prepared")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=hidden)
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*.txt"), ROOT / "pyproject.toml", ROOT / "README.md"):
        shutil.copy(path, source)
    project.mkdir()
    run("git", "init", "--quiet", cwd=project)
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    run("git", *identity, "commit", "--quiet", "--allow-empty", "--message", "first", cwd=project)
    venv.create(project / ".venv", with_pip=False)
    python = project / ".venv/bin/python"
    packages = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=project).strip()
    )
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *offline, source, cwd=tmp_path)
    checkpoint = ROOT / "tests/fixtures/trunk/checkpoint_6.pt"
    bands = len(list((ROOT / "configs/reference").glob("*.json")))
    told = run(python, "-c", INSTALLED.format(checkpoint=str(checkpoint), bands=bands), cwd=project)
    assert told.startswith("Tom")
    for module in ("train", "train_context", "sample", "ablate"):
        assert "usage" in run(python, "-m", module, "--help", cwd=project)
