"""Publish figures: with where they come from, and without the paths of the machine that made them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.provenance import provenance

RESULTS = Path(__file__).parent / "results"


def publish(name: str, figures: dict[str, Any], folders: Iterable[Path] = ()) -> None:
    """Write provenance and figures to benchmarks/results/NAME.json; folders: as for public_text."""
    text = json.dumps(provenance() | figures, indent=1, ensure_ascii=False) + "\n"
    path = RESULTS / f"{name}.json"
    path.write_text(public_text(text, folders), encoding="utf-8")
    print(f"wrote {path}")


def public_text(text: str, folders: Iterable[Path], tinystories: str | None = None) -> str:
    """Replace the paths of folders by their last names, and the path `tinystories` by $TINYSTORIES."""
    for folder in folders:
        text = text.replace(f"{folder.resolve().parent}/", "")
    if tinystories:
        text = text.replace(tinystories.rstrip("/") + "/", "$TINYSTORIES/")
    return text


def judge(limits: dict[str, bool]) -> int:
    """Print which limits are met; return the exit code: 0 if all are, else 1."""
    for name, met in limits.items():
        print(f"{'met   ' if met else 'MISSED'} {name}")
    return 0 if all(limits.values()) else 1
