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
    root = Path(__file__).resolve().parent.parent
    files = sorted(file for folder in folders for file in (root / folder).rglob("*.py"))
    return {str(file.relative_to(root)): zlib.crc32(file.read_bytes()) for file in files}


@functools.cache  # edits after the start do not affect the code that runs
def git_commit() -> str | None:
    """The commit of this source tree, with "+changes" if files differ from it; None outside a repository."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # installed, perhaps inside the repository of another project
        return None
    try:
        options = dict(cwd=root, capture_output=True, text=True, check=True, timeout=5)
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **options).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")
