"""The arrows between the rooms, read from the syntax tree, and that importing does no work."""

import ast
import subprocess
import sys
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parent.parent
CONCRETE_MODELS = (
    "gptoss",
    "gpt2",
    "gpt2_hugging_face",
    "gptoss_context",
    "gptoss_vision",
    "attention_backends",
    "expert_backends",
)
TOP_LEVEL = {p.stem for p in REPO_ROOT.glob("*.py")}


def modules(folder: str) -> list[Path]:
    return sorted((REPO_ROOT / folder).rglob("*.py"))


def imported_names(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it, as dotted names; from a import b gives a and a.b."""
    names = set()
    package = path.relative_to(REPO_ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            source = (base + (node.module or "")).rstrip(".")
            names |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return names


def crossings(folder: str, forbidden: set[str]) -> list[str]:
    """Imports in a folder of anything forbidden or inside it, as 'file imports name'."""
    return [
        f"{path.relative_to(REPO_ROOT)} imports {name}"
        for path in modules(folder)
        for name in sorted(imported_names(path))
        if any(name == root or name.startswith(root + ".") for root in forbidden)
    ]


def test_the_rooms_are_there_to_be_read():
    assert len(modules("architecture")) > 3 and len(modules("training")) > 3


def test_architecture_imports_neither_the_trainer_nor_its_libraries():
    forbidden = {"training", "datasets", "yaml", "tensorboard", "torch.utils.tensorboard"}
    assert crossings("architecture", forbidden | TOP_LEVEL) == []


def test_training_never_imports_a_concrete_model_or_a_script():
    forbidden = {f"architecture.{name}" for name in CONCRETE_MODELS}
    assert crossings("training", forbidden | TOP_LEVEL) == []


def test_the_generator_and_the_ruler_import_no_concrete_model():
    for name in ("interface", "generation", "registry", "kv_cache", "tokenizer"):
        path = REPO_ROOT / "architecture" / f"{name}.py"
        concrete = {f"architecture.{model}" for model in CONCRETE_MODELS}
        assert not imported_names(path) & concrete, path


def test_the_trunk_does_not_know_its_variants():
    text = (REPO_ROOT / "architecture" / "gptoss.py").read_text().lower()
    assert "vision" not in text and "gptoss_context" not in text


def test_importing_loads_nothing_unneeded_and_prints_opens_and_changes_nothing():
    """In one new process: each module in turn, and after it the modules that must not be there yet."""
    unwanted = {
        "training.config": "torch numpy datasets",
        "training.command_line": "torch numpy datasets yaml",
        "architecture.interface": "datasets transformers tensorboard yaml tiktoken",
        "architecture.registry": "architecture.gptoss tiktoken",
        "architecture.gptoss": "datasets transformers tensorboard yaml tiktoken",
    }
    names = [
        ".".join(path.relative_to(REPO_ROOT).with_suffix("").parts)
        for folder in ("architecture", "training")
        for path in modules(folder)
        if path.name != "__init__.py"
    ]
    code = f"""
import importlib, os, sys
sys.dont_write_bytecode = True
def check(event, arguments):
    if watching and event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.mkdir"):
        raise RuntimeError(f"{{event}} {{arguments}} at import")
watching = False  # what libraries do when they are imported is their business
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
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("", 0), done.stderr
