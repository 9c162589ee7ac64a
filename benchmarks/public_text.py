"""What is published says nothing of where files lie on the machine that made it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def public_text(text: str, tinystories: str | None, folders: Iterable[Path]) -> str:
    """The text with $TINYSTORIES in place of that folder's path, and these folders by their last names."""
    for folder in folders:
        text = text.replace(f"{folder.resolve().parent}/", "")
    if tinystories:
        text = text.replace(tinystories.rstrip("/") + "/", "$TINYSTORIES/")
    return text
