"""plan.json: what is run, in full; another start from it makes the same runs to the last bit."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from training.ablation.matching import PlannedArm
from training.ablation.spec import Spec
from training.atomic_files import write_json_atomic
from training.json_text import parse_json
from training.provenance import provenance

NAME = "plan.json"


class StoredPlan(NamedTuple):
    """What an earlier start settled."""

    sha256: str  # of the specification
    arms: dict[str, PlannedArm]
    threads: int | None
    provenance: dict[str, Any]
    machine: str


def write(path: Path, spec: Spec, arms: dict[str, PlannedArm], threads: int | None) -> None:
    plan = {
        "spec": spec.as_values(),
        "sha256": spec.sha256,
        "arms": {name: asdict(arm) for name, arm in arms.items()},
        "threads": threads,
        "provenance": provenance(),
        "machine": machine(),
    }
    write_json_atomic(path, plan)


def read(path: Path | None) -> StoredPlan | None:
    """What write wrote; None where there is no such file; ValueError for anything else."""
    if path is None or not path.exists():
        return None
    try:
        plan = parse_json(path.read_bytes())
        arms = {name: PlannedArm(**arm) for name, arm in plan["arms"].items()}
        return StoredPlan(
            plan["sha256"], arms, plan["threads"], plan["provenance"], plan["machine"]
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"{path} is not what ablate.py wrote; start from the specification"
        ) from None


def machine() -> str:
    """In words: what the seconds are of."""
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cores = f"{os.cpu_count()} CPU cores ({platform.machine()}, {platform.system()})"
    return ", ".join((cores, *names))
