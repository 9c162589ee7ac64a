"""Checkpoints and best.json: written whole, found by name.

Reading a checkpoint is architecture/checkpoint.py's.
"""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from architecture.registry import is_hugging_face
from common.files import atomic_write, parse_json, write_json_atomic
from training.config import TrainConfig

TRAINING_STATE = ("train_config", "progress", "optimizers", "rng", "data", "tensorboard_dir")


def checkpoint_path(out_dir: str | Path, step: int) -> Path:
    return Path(out_dir) / f"checkpoint_{step}.pt"


def checkpoints(out_dir: str | Path) -> list[Path]:
    """The checkpoints of a folder, oldest step first."""
    found = {}
    for path in Path(out_dir).glob("checkpoint_*.pt"):
        if match := re.fullmatch(r"checkpoint_(\d+)\.pt", path.name):
            found[int(match[1])] = path
    return [found[step] for step in sorted(found)]


def latest_checkpoint(out_dir: str | Path) -> Path | None:
    return next(reversed(checkpoints(out_dir)), None)


def find_checkpoint(path: str | Path, say: Callable[[str], None]) -> Path:
    """The checkpoint that a person names: a file, or a folder of transformers, as it is; of a run's folder
    the newest, and says so.
    """
    path = Path(path)
    if not path.is_dir() or is_hugging_face(path):
        return path
    newest, best = latest_checkpoint(path), best_checkpoint(path)
    if newest is None:
        raise ValueError(
            f"{path} is a folder without a checkpoint_<step>.pt; name another, or train a model into it "
            f"with train.py --out_dir {quote(str(path))}"
        )
    other = best["checkpoint"] if best else newest.name
    note = f"; the lowest validation loss is {other}'s" if other != newest.name else ""
    say(f"{newest}: the newest checkpoint of {path}{note}")
    return newest


def require_training_state(state: dict[str, Any], path: str | Path) -> None:
    """ValueError unless a checkpoint holds all that continuing its run needs."""
    missing = [key for key in TRAINING_STATE if key not in state]
    if missing:
        raise ValueError(
            f"{path} holds a model but no run to continue, it has no {', '.join(missing)}; "
            "start a new run from its weights with --init_from"
        )


def save_checkpoint(
    out_dir: str | Path, step: int, state: dict[str, Any], *, keep: int | None = None
) -> Path:
    """Write OUT_DIR/checkpoint_<step>.pt, then do what finish_saving says.

    state: tensors, numbers, strings and containers of these, so that weights_only=True reads it;
    "scored", if it is there, goes to finish_saving.
    """
    path = checkpoint_path(out_dir, step)
    with atomic_write(path) as file:
        torch.save(state, file)
    finish_saving(out_dir, step, state.get("scored"), keep)
    return path


def finish_saving(
    out_dir: str | Path, step: int, scored: dict[str, float] | None, keep: int | None
) -> None:
    """What follows a new checkpoint: best.json, then all but the newest `keep` and the best go.

    A resumed run does it once more for the checkpoint that it starts from: a kill may have come
    before it.  scored: "val_loss" and further entries, if the model of that step was evaluated.
    """
    if scored:
        update_best(out_dir, step, **scored)
    if keep is not None:
        best = best_checkpoint(out_dir)
        for old in checkpoints(out_dir)[:-keep]:
            if best is None or old.name != best["checkpoint"]:
                old.unlink()


def update_best(out_dir: str | Path, step: int, val_loss: float, **more: Any) -> bool:
    """Point best.json at the saved checkpoint of `step` if no other has a lower val_loss.

    val_loss: nats per token.  more: further entries, such as val_bits_per_byte.
    """
    path = checkpoint_path(out_dir, step)
    assert path.exists(), f"{path} must be saved before it can be the best"
    best = best_checkpoint(out_dir)
    if not math.isfinite(val_loss) or (best is not None and val_loss >= best["val_loss"]):
        return False
    entry = {"step": step, "checkpoint": path.name, "val_loss": val_loss, **more}
    write_json_atomic(Path(out_dir) / "best.json", entry)
    return True


def best_checkpoint(out_dir: str | Path) -> dict[str, Any] | None:
    """What best.json says, unless there is none or its checkpoint was deleted."""
    path = Path(out_dir) / "best.json"
    if not path.exists():
        return None
    damaged = ValueError(f"{path} is damaged; delete it, the checkpoints do not need it")
    try:
        best = parse_json(path.read_bytes())
    except ValueError:
        raise damaged from None
    name, loss = (
        (best.get(k) for k in ("checkpoint", "val_loss")) if isinstance(best, dict) else (0, 0)
    )
    if not isinstance(name, str) or not re.fullmatch(r"checkpoint_\d{1,20}\.pt", name):
        raise damaged
    if type(loss) not in (int, float) or not abs(loss) < math.inf:
        raise damaged
    return best if (path.parent / name).exists() else None


# --------------------------------------------------------------------------------------------------
# random state


def rng_state(device: torch.device) -> dict[str, Any]:
    """The global generators, safe for weights_only=True; all other code is handed its generator."""
    state = {"python": random.getstate(), "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    torch.set_rng_state(state["cpu"].cpu())  # .cpu(): generator states live there, wherever loaded
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    if device.type == "mps":
        torch.mps.set_rng_state(state["mps"].cpu())


@dataclass
class Progress:
    """How far a run is; a checkpoint holds all of it."""

    step: int = 0
    seconds: float = 0.0  # of training alone: evaluating and saving do not count
    tokens: int = 0
    expert_share: torch.Tensor | None = None  # (L, E), of the previous step, for "aux_global"
    carry: Any = None  # what a variant keeps from one segment to the next
    load: torch.Tensor | None = None  # (L, E), assignments of training since the last evaluation
    choices: torch.Tensor | None = None  # (L, N, k), of the validation tokens at that evaluation

    def share_done(self, cfg: TrainConfig, margin: float = 0.0) -> float:
        """Progress in [0, 1] over max_iters or max_minutes; margin in steps."""
        if cfg.max_iters is not None:
            return min(1.0, (self.step + margin) / cfg.max_iters)
        per_step = self.seconds / max(1, self.step)
        return min(1.0, (self.seconds + margin * per_step) / (60 * cfg.max_minutes))
