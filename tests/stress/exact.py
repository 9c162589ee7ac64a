"""Values as plain Python that compares to the last bit."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch


def exact(value: Any, without: Collection[str] = ()) -> Any:
    """Convert a value so that == compares types, shapes and every bit, including signs of zero and NaNs.

    without: keys of dictionaries, at any depth, that are left out.
    """
    if isinstance(value, torch.Tensor):
        bits = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), bits
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if is_dataclass(value):
        return exact(vars(value), without)
    if isinstance(value, dict):
        return [(key, exact(entry, without)) for key, entry in value.items() if key not in without]
    if isinstance(value, list | tuple):
        return [exact(entry, without) for entry in value]
    return repr(value)
