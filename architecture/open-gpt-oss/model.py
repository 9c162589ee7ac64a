"""Transformer and ModelConfig for code that puts this folder on its path, as users of nano-gpt-oss do."""

import sys
from pathlib import Path

if (ROOT := str(Path(__file__).resolve().parents[2])) not in sys.path:
    sys.path.append(ROOT)

from architecture.gptoss import ModelConfig, Transformer

__all__ = ["ModelConfig", "Transformer"]
