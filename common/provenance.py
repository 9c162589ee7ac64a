"""The origin of a result: command, commit and versions."""

from __future__ import annotations

import functools
import platform
import shlex
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "results"
CHANGES = "+changes"  # behind a commit, if code or configurations differ from it
# What no program reads. A benchmark that writes its record does not change the commit of the next one.
NOT_CODE = ("benchmarks/results", "docs", "runs", "**/*.md")


def provenance() -> dict[str, Any]:
    """What is stored with every published result."""
    import torch

    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def source_checksums(*folders: str) -> dict[str, int]:
    """The CRC-32 of each Python file in these folders of the project, by its path."""
    files = sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return {str(file.relative_to(ROOT)): zlib.crc32(file.read_bytes()) for file in files}


@functools.cache  # edits after the start do not affect the code that runs
def git_commit() -> str | None:
    """The commit of this source tree, with "+changes" if code or configurations differ from it; None outside a
    repository.
    """
    if not (ROOT / ".git").exists():  # installed, perhaps inside the repository of another project
        return None
    try:
        options = dict(cwd=ROOT, capture_output=True, text=True, check=True, timeout=5)
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **options).stdout.strip()
        rest = [f":(exclude,glob){path}" for name in NOT_CODE for path in (name, f"{name}/**")]
        status = ["git", "status", "--porcelain", "-uno", "--", ".", *rest]
        changed = subprocess.run(status, **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + (CHANGES if changed else "")


def record_path(path: Path) -> Path:
    """The file for a result that is to be published as `path`: one in benchmarks/results names a clean commit.

    If files differ from the commit, it is NAME.changes.SUFFIX beside it, which git ignores, and stderr gets a line. A
    file elsewhere stays as it is.
    """
    if RECORDS not in path.resolve().parents or not (git_commit() or "").endswith(CHANGES):
        return path
    other = path.with_name(f"{path.stem}.changes{path.suffix}")
    print(
        f"a record must name a commit that repeats it, and files differ from {git_commit().removesuffix(CHANGES)}; "
        f"this result goes to {other.name}: commit the changes and measure again to publish it",
        file=sys.stderr,
        flush=True,
    )
    return other
