"""Publish figures: with where they come from, and without the paths of the machine that made them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.provenance import CHANGES, provenance, record_path
from common.provenance import RECORDS as RESULTS


def publish(name: str, figures: dict[str, Any], folders: Iterable[Path] = ()) -> None:
    """Write provenance and figures to benchmarks/results/NAME.json; folders: as for public_text."""
    text = json.dumps(provenance() | figures, indent=1, ensure_ascii=False) + "\n"
    path = record_path(RESULTS / f"{name}.json")
    path.write_text(public_text(text, folders), encoding="utf-8")
    print(f"wrote {path}")


def public_text(text: str, folders: Iterable[Path], tinystories: str | None = None) -> str:
    """Replace the paths of folders by their last names, and the path `tinystories` by $TINYSTORIES."""
    for folder in folders:
        text = text.replace(f"{folder.resolve().parent}/", "")
    if tinystories:
        text = text.replace(tinystories.rstrip("/") + "/", "$TINYSTORIES/")
    return text


def require_clean_commits(text: str, path: Path) -> None:
    """Raise ValueError for a record of finished runs whose code was not that of a commit."""
    if CHANGES in text:
        raise ValueError(
            f"{path} would hold runs of a commit with changes, and nobody could repeat them; commit the changes "
            "and train again"
        )


def judge(limits: dict[str, bool]) -> int:
    """Print which limits are met; return the exit code: 0 if all are, else 1."""
    for name, met in limits.items():
        print(f"{'met   ' if met else 'MISSED'} {name}")
    return 0 if all(limits.values()) else 1
