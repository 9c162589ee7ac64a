"""plan.json: what is fixed before the first run, and its hash."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from common.files import read_json, reading, write_json_atomic
from common.provenance import provenance
from evaluation.ablation import matching
from evaluation.ablation.matching import PlannedArm
from evaluation.ablation.spec import Spec

NAME = "plan.json"


class Plan(NamedTuple):
    """All arms that may be trained, fixed before the first run. A rule of `contracts` chooses among the further
    ones, once the runs under the first contract have ended.
    """

    arms: dict[str, PlannedArm]  # those of the specification, under the first contract
    further: dict[str, PlannedArm] = {}  # under other contracts, and the reference at shares of its budget
    contracts: dict[str, dict[str, str]] = {}  # contract -> arm -> arm or further arm that meets it
    shares: dict[str, float] = {}  # further arm -> share of the reference's budget

    @property
    def every(self) -> dict[str, PlannedArm]:
        return self.arms | self.further

    def with_each(self, change: Callable[[PlannedArm], PlannedArm]) -> Plan:
        arms, further = ({n: change(arm) for n, arm in part.items()} for part in self[:2])
        return self._replace(arms=arms, further=further)


class StoredPlan(NamedTuple):
    """The content of a plan.json."""

    sha256: str  # Spec.sha256 of the specification
    arms: dict[str, PlannedArm]
    threads: int | None
    provenance: dict[str, Any]
    machine: str
    plan: Plan
    content: str  # content_sha256 of the whole plan
    older: bool  # of a version whose runs had no test set


def content_sha256(spec: Spec, plan: Plan) -> str:
    """The hash of a plan: equal for equal specifications, sizes and lengths of all runs.

    The places of the data are not in it, so that a published plan, whose paths are shortened, keeps its hash.
    Nor are explored pairs, which may be added after the runs.
    """
    of_spec = {key: value for key, value in spec.as_values().items() if key != "explored"}
    return _sha256({"spec": of_spec, **_as_values(plan)})


def _as_values(plan: Plan) -> dict[str, Any]:
    arms, further = ({name: asdict(arm) for name, arm in part.items()} for part in plan[:2])
    return {"arms": arms, "further": further, "contracts": plan.contracts, "shares": plan.shares}


def _sha256(values: dict[str, Any]) -> str:
    def without_places(value: Any) -> Any:
        if isinstance(value, dict):
            places = ("dataset", "val_dataset", "data")
            return {key: without_places(part) for key, part in value.items() if key not in places}
        return [without_places(part) for part in value] if isinstance(value, list | tuple) else value

    text = json.dumps(without_places(values), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, spec: Spec, plan: Plan, threads: int | None) -> None:
    values = {
        "spec": spec.as_values(),
        "sha256": spec.sha256,
        **_as_values(plan),
        "threads": threads,
        "provenance": provenance(),
        "machine": machine(),
    }
    write_json_atomic(path, values)


def read(path: Path | None) -> StoredPlan | None:
    """The plan in a file; None if there is no such file.  Raises ValueError if it is damaged."""
    if path is None or not path.exists():
        return None
    with reading(path, "the plan of an ablation", way_out="start from the specification"):
        values = read_json(path)
        arms, further = (
            {name: PlannedArm(**arm) for name, arm in values.get(part, {}).items()}
            for part in ("arms", "further")
        )
        plan = Plan(arms, further, values.get("contracts", {}), values.get("shares", {}))
        rest = [values[name] for name in ("threads", "provenance", "machine")]
        of_spec = {key: value for key, value in values["spec"].items() if key != "explored"}
        content = _sha256({"spec": of_spec, **_as_values(plan)})
        return StoredPlan(values["sha256"], arms, *rest, plan, content, older="further" not in values)


def changed_keys(path: Path, spec: Spec) -> list[str]:
    """The keys in which a specification differs from that of the plan in a file, with those of its base."""

    def flat(values: dict[str, Any]) -> dict[str, Any]:
        of_base = {f"base {key}": value for key, value in values["base"].items()}
        return {key: value for key, value in values.items() if key not in ("base", "explored")} | of_base

    before = flat(read_json(path)["spec"])
    now = flat(json.loads(json.dumps(spec.as_values(), default=str)))
    return [key for key in before | now if before.get(key) != now.get(key)]


def require_same_model(arm: PlannedArm, where: Path) -> None:
    """Raise ValueError if this version of the code reads the stored settings of an arm as another model."""
    total = matching.resolve(arm.name, arm.settings)[1].parameter_counts()["total"]
    if total != arm.axes["total"]:
        raise ValueError(
            f"{where}: arm {arm.name} had {arm.axes['total']:,} parameters, and its settings now give {total:,} "
            "(moe_layers none once meant all layers, and now means no layer); use the version of the code that "
            "wrote the plan, or start from the specification"
        )


def machine() -> str:
    """The machine in words, because seconds depend on it."""
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cores = f"{os.cpu_count()} CPU cores ({platform.machine()}, {platform.system()})"
    return ", ".join((cores, *names))
