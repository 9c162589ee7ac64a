"""Where imports may point, read from the syntax tree, and that importing does no work.

    common  <-  architecture  <-  data  <-  training  <-  evaluation  <-  scripts, benchmarks, tests

`python tests/test_imports.py` prints the arrows between folders.
"""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("common", "architecture", "data", "training", "evaluation")  # a folder may import those before it
SCRIPTS = {p.stem for p in REPO_ROOT.glob("*.py")}
CONCRETE = {
    f"architecture.{name}"
    for name in ("gptoss", "gpt2", "gpt2_hugging_face", "gptoss_context", "gptoss_vision", "backends")
}


def modules(folder: str) -> list[Path]:
    return sorted((REPO_ROOT / folder).rglob("*.py"))


def imported_names(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it, as dotted names; from a import b gives a and a.b.

    A module that is named in a text, "architecture.gptoss:Transformer", is imported later, and counts.
    """
    names = set()
    package = path.relative_to(REPO_ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            source = (base + (node.module or "")).rstrip(".")
            names |= {source} | {f"{source}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if named := re.fullmatch(r"(\w+(?:\.\w+)+):\w+", node.value):
                names.add(named[1])
    return names


def crossings(paths: list[Path], forbidden: set[str]) -> list[str]:
    """Imports of anything forbidden or inside it, as 'file imports name'."""
    return [
        f"{path.relative_to(REPO_ROOT)} imports {name}"
        for path in paths
        for name in sorted(imported_names(path))
        if any(name == root or name.startswith(root + ".") for root in forbidden)
    ]


def file_of(name: str) -> Path | None:
    """The file of one of our modules; None for a name inside a module and for another's module."""
    path = REPO_ROOT.joinpath(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def arrows(folder: Path) -> dict[str, set[str]]:
    """Which rooms (files and folders) directly in a folder import which others of them."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in folder.rglob("*.py"):
        here = path.relative_to(folder).parts[0]
        for target in filter(None, map(file_of, imported_names(path))):
            if target.is_relative_to(folder) and target != folder / "__init__.py":
                there = target.relative_to(folder).parts[0]
                if there != here and not path.match("__init__.py"):
                    found[here].add(there)
    return found


def loop(graph: dict[str, set[str]]) -> list[str]:
    """The rooms of a loop, or [] if there is none."""
    done: set[str] = set()

    def visit(room: str, way: list[str]) -> list[str]:
        if room in way:
            return way[way.index(room) :] + [room]
        for other in sorted(graph.get(room, ())) if room not in done else ():
            if found := visit(other, [*way, room]):
                return found
        done.add(room)
        return []

    return next(filter(None, (visit(room, []) for room in sorted(graph))), [])


def test_the_folders_are_there_to_be_read():
    assert all(len(modules(folder)) > 3 for folder in FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_those_before_it(folder):
    later = set(FOLDERS[FOLDERS.index(folder) + 1 :])
    assert crossings(modules(folder), later | SCRIPTS | {"tests", "benchmarks"}) == []


def test_imports_form_no_loop_between_files_or_folders():
    """Checked among the files and folders of each folder, where a folder counts as one room."""
    houses = {path.parent for folder in FOLDERS for path in modules(folder)}
    loops = {str(house.relative_to(REPO_ROOT)): loop(arrows(house)) for house in houses}
    assert {house: found for house, found in loops.items() if found} == {}


@pytest.mark.parametrize("pattern, forbidden", [
    ("architecture/**/*.py", {"datasets", "yaml", "tensorboard", "torch.utils.tensorboard"}),
    ("architecture/gptoss.py", {"architecture.gptoss_context", "architecture.gptoss_vision"}),
    ("architecture/interface.py", CONCRETE),
    ("architecture/generation/*.py", CONCRETE),
    ("data/**/*.py", CONCRETE),
    ("training/**/*.py", CONCRETE),
    ("gpt_oss_vision/*.py", {"data", "training", "evaluation", *SCRIPTS}),
])  # fmt: skip
def test_these_files_never_import(pattern, forbidden):
    files = list(REPO_ROOT.glob(pattern))
    assert files and crossings(files, forbidden) == []


def test_importing_loads_nothing_unneeded_and_prints_opens_and_changes_nothing():
    """In one new process, import each module and then look for modules that must not be loaded yet; at last
    load a model, which must not load torch's compiler: random values on the meta device would.
    """
    unwanted = {
        "training.config": "torch numpy datasets",
        "training.command_line": "torch numpy datasets yaml",
        "architecture.interface": "datasets transformers tensorboard yaml tiktoken",
        "architecture.registry": "architecture.gptoss tiktoken",
        "architecture.gptoss": "datasets transformers tensorboard yaml tiktoken PIL",
    }
    names = [
        ".".join(path.relative_to(REPO_ROOT).with_suffix("").parts)
        for folder in FOLDERS
        for path in modules(folder)
        if path.name != "__init__.py"
    ]
    trunk = REPO_ROOT / "tests/fixtures/trunk/checkpoint_6.pt"
    code = f"""
import importlib, os, sys
sys.dont_write_bytecode = True
def check(event, arguments):
    if watching and event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.mkdir"):
        raise RuntimeError(f"{{event}} {{arguments}} at import")
watching = False  # imports of libraries are not checked
sys.addaudithook(check)
for name, unwanted in {unwanted}.items():
    importlib.import_module(name)
    there = [module for module in unwanted.split() if module in sys.modules]
    assert not there, f"{{name}} imports {{there}}"
import torch, tqdm
watching = True
before = dict(os.environ)
for name in {names}:
    importlib.import_module(name)
assert dict(os.environ) == before, "os.environ was changed at import"
watching = False
from architecture.registry import load_model
load_model({str(trunk)!r})
assert "torch._dynamo" not in sys.modules, "a second for each start of sample.py"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


if __name__ == "__main__":
    for folder in FOLDERS:
        names = {name.split(".")[0] for path in modules(folder) for name in imported_names(path)}
        print(f"{folder:<13} -> {', '.join(other for other in FOLDERS if other in names - {folder})}")
    for folder in FOLDERS:
        for room, others in sorted(arrows(REPO_ROOT / folder).items()):
            print(f"{folder}/{room} -> {', '.join(sorted(others))}")
