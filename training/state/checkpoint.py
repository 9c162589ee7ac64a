"""Save, find and restore the checkpoints of a run, and keep best.json.

architecture/checkpoint.py reads and verifies a file. This module copies its values into tensors and objects
that the run created itself, so a crafted file can bring wrong numbers but nothing worse.
"""

from __future__ import annotations

import contextlib
import math
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from architecture.checkpoint import (
    ANOTHER,
    FORMAT,
    best_checkpoint,
    checkpoints,
    load_weights,
    owned,
    read_checkpoint,
)
from architecture.shards import Stored, held_here
from architecture.tokenizer import tokenizer_state
from common.files import atomic_write, reading, write_json_atomic
from common.provenance import git_commit
from common.settings import cast, require_bounds
from data.defaults import TEXT_COLUMN
from data.documents import Source
from training.balance import BIAS_BUFFER
from training.config import TrainConfig
from training.distributed.mesh import ONE, Ranks
from training.memory import StateOnHost
from training.muon import POLYNOMIALS
from training.optimizer import STATE, saved_order

TRAINING_STATE = ("train_config", "progress", "optimizers", "rng", "data", "tensorboard_dir")
OLDER = "continue from an older one with --resume_from CHECKPOINT"


@dataclass
class Progress:
    """How far a run is. A checkpoint holds all of it."""

    step: int = 0
    seconds: float = 0.0  # training only, without evaluations and saves
    tokens: int = 0
    expert_share: torch.Tensor | None = None  # (L, E), load shares of the previous step, for "aux_global"
    carry: Any = None  # what a variant passes from one segment to the next
    load: torch.Tensor | None = None  # (L, E), training assignments since the last evaluation
    choices: torch.Tensor | None = None  # (L, N, k), experts of the validation tokens at that evaluation

    def share_done(self, cfg: TrainConfig, margin: float = 0.0) -> float:
        """Progress in [0, 1] toward max_iters or max_minutes, `margin` steps from now."""
        if cfg.max_iters is not None:
            length = cfg.extend or cfg.max_iters  # with extend, the schedule is that of the last steps alone
            return min(1.0, (self.step + margin - (cfg.max_iters - length)) / length)
        per_step = self.seconds / max(1, self.step)
        return min(1.0, (self.seconds + margin * per_step) / (60 * cfg.max_minutes))


# --------------------------------------------------------------------------------------------------
# writing


def contents(
    cfg: TrainConfig,
    model: nn.Module,
    tokenizer: Any,
    progress: Progress,
    optimizers: list[torch.optim.Optimizer],
    rest: dict[str, Any],
) -> dict[str, Any]:
    """Return the dictionary of a checkpoint: the model, and everything that a bit-exact resume needs.

    rest: data, the position of the loader; data_identity; tensorboard_dir; scored, which is val_loss and
    val_bits_per_byte if the model of this step was evaluated, else None.
    """
    return {
        "format": FORMAT,
        "commit": git_commit(),
        "model_name": cfg.model,
        "config": asdict(model.config),
        "model": model.state_dict(),
        "tokenizer": tokenizer_state(tokenizer),
        "step": progress.step,
        "train_config": asdict(cfg),
        "progress": vars(progress).copy(),
        "optimizers": [
            optimizer_state(optimizer, order)
            for optimizer, order in zip(optimizers, saved_order(model, optimizers))
        ],
        "rng": rng_state(torch.device(cfg.device)),
        **({"lora": model.adapters.state_dict()} if cfg.lora_rank else {}),
        **rest,
    }


def optimizer_state(optimizer: torch.optim.Optimizer, order: list[nn.Parameter]) -> dict[str, Any]:
    """The state of an optimizer, in which the parameters are numbered in the given order."""
    saved, number = optimizer.state_dict(), {parameter: i for i, parameter in enumerate(order)}
    there = [number[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    return saved | {"state": {there[i]: state for i, state in saved["state"].items()}}


def save_checkpoint(
    out_dir: str | Path, step: int, state: dict[str, Any], *, keep: int | None = None
) -> Path:
    """Write OUT_DIR/checkpoint_<step>.pt, then call finish_saving with state["scored"].

    state: tensors, numbers, strings and containers of these, which torch.load reads with weights_only=True.
    """
    path = checkpoint_path(out_dir, step)
    with atomic_write(path) as file:
        torch.save(state, file)
    finish_saving(out_dir, step, state.get("scored"), keep)
    return path


def finish_saving(out_dir: str | Path, step: int, scored: dict[str, float] | None, keep: int | None) -> None:
    """Update best.json after a new checkpoint, then delete all but the newest `keep` and the best.

    A resumed run repeats this for the checkpoint that it starts from, because a kill may have prevented it.
    scored: the arguments of update_best, or None if the model of that step was not evaluated.
    """
    if scored:
        update_best(out_dir, step, **scored)
    if keep is not None:
        best = best_checkpoint(out_dir)
        for old in checkpoints(out_dir)[:-keep]:
            if best is None or old.name != best["checkpoint"]:
                remove(old)


def remove(path: Path) -> None:
    """Delete a checkpoint. A kill meanwhile leaves no part of one under its name."""
    if path.is_dir() and not path.name.endswith(".tmp"):
        path = path.rename(path.with_name(f".{path.name}.tmp"))
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def update_best(out_dir: str | Path, step: int, val_loss: float, **more: Any) -> None:
    """Point best.json at the saved checkpoint of `step` if its val_loss is finite and the lowest so far.

    val_loss: nats per token.  more: further entries, such as val_bits_per_byte.
    """
    path = checkpoint_path(out_dir, step)
    assert path.exists(), f"{path} must be saved before it can be the best"
    best = best_checkpoint(out_dir)
    if math.isfinite(val_loss) and (best is None or val_loss < best["val_loss"]):
        entry = {"step": step, "checkpoint": path.name, "val_loss": val_loss, **more}
        write_json_atomic(Path(out_dir) / "best.json", entry)


# --------------------------------------------------------------------------------------------------
# finding


def checkpoint_path(out_dir: str | Path, step: int) -> Path:
    return Path(out_dir) / f"checkpoint_{step}.pt"


def latest_checkpoint(out_dir: str | Path) -> Path | None:
    return next(reversed(checkpoints(out_dir)), None)


@contextlib.contextmanager
def naming_a_good_one(path: Path) -> Iterator[None]:
    """Have a ValueError about a damaged checkpoint also name the newest older one that can be read."""
    try:
        yield
    except ValueError as error:
        found = re.search(f"{re.escape(OLDER)}|{re.escape(ANOTHER)}", str(error))
        if found is None:
            raise
        there = checkpoints(path.parent)
        older = there[: there.index(path)] if path in there else there  # all, if it has another name
        good = next(filter(_reads, reversed(older)), None)
        kind = "older " if path in there else ""
        told = f"the newest {kind}one that can be read is {good} (for --resume_from or --checkpoint)"
        way_out = told if good else f"its folder has no {kind}checkpoint that can be read"
        raise ValueError(str(error).replace(found[0], way_out)) from None


def _reads(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except ValueError:
        return False
    return True


def set_aside_newer(path: Path) -> list[str]:
    """Rename the checkpoints that are newer than `path`, which becomes the newest of its folder.

    best.json is deleted if the checkpoint that it names is renamed.  Returns a line of text for each file.
    """
    there, best, told = checkpoints(path.parent), best_checkpoint(path.parent), []
    for newer in there[there.index(path) + 1 :]:
        if best is not None and newer.name == best["checkpoint"]:
            (path.parent / "best.json").unlink()
        aside = free_name_beside(newer)
        newer.rename(aside)
        told.append(f"set aside: {newer} is now {aside.name}")
    return told


def free_name_beside(path: Path) -> Path:
    """The first of PATH.set_aside, PATH.set_aside2, ... that does not exist."""
    names = (f"{path.name}.set_aside{number}" for number in ("", *range(2, 10**6)))
    return next(found for name in names if not (found := path.with_name(name)).exists())


# --------------------------------------------------------------------------------------------------
# restoring


def saved_settings(
    saved: dict[str, Any], path: Any, config_class: type[TrainConfig] = TrainConfig
) -> dict[str, Any]:
    """Return the train_config of a checkpoint, cast to the types of config_class; {} if there is none.

    Settings that config_class does not know stay as they are.
    """
    hints = {f.name: f.type for f in fields(config_class)}
    with reading(path, "a run's settings", way_out=OLDER):
        found = saved.get("train_config", {})
        return {k: cast(k, v, hints[k]) if k in hints else v for k, v in found.items()}


def stories_of(before: dict[str, Any]) -> tuple[str | None, str | None, str]:
    """dataset, val_dataset and text_column of the documents of val/loss, from the saved settings of a run."""
    # in post-training, dataset is that of the kind
    prefix = "story_" if "story_dataset" in before else ""
    names = (before.get(f"{prefix}{name}") for name in ("dataset", "val_dataset"))
    return *names, before.get("text_column", TEXT_COLUMN)


def saved_ranks(saved: dict[str, Any], path: Any) -> int:
    """The number of processes that saved a checkpoint, each with its batch_size; 1 if it does not say."""
    with reading(path, "a run's settings", way_out=OLDER):
        ranks = cast("ranks", saved.get("ranks", 1), int)
        require_bounds("ranks", ranks, {"at_least": 1}, "the number of processes that saved it")
        return ranks


def require_run(saved: dict[str, Any], path: Path) -> None:
    """Raise ValueError unless a checkpoint holds a run to continue and its name says its step."""
    missing = [key for key in TRAINING_STATE if key not in saved]
    if missing:
        raise ValueError(
            f"{path} holds a model but no run to continue: it has no {', '.join(missing)}; "
            "start a new run from its weights with --init_from"
        )
    if path.name != f"checkpoint_{saved['step']}.pt":
        raise ValueError(
            f"{path} holds step {saved['step']}, but its name says another step; "
            f"rename it to checkpoint_{saved['step']}.pt"
        )


def require_kind(saved: dict[str, Any], path: Any, cfg: TrainConfig) -> None:
    """Raise ValueError if another kind of training made a checkpoint."""
    with reading(path, "a run to continue", way_out=OLDER):
        kind = cast("kind", saved["post"]["kind"], str) if "post" in saved else ""
    if kind != cfg.kind:
        ours = f"post_train.py {kind}" if kind else "train.py"
        raise ValueError(f"{path} is of a run of {ours}, not of {cfg.program}; continue it with {ours}")


def data_identity(train: Source | None, validation: Source) -> dict[str, str | None]:
    """The content of the data, and the order of training, to compare at a resume."""
    training = (
        {}
        if train is None
        else {
            "training data": train.identity,
            "order of the training data": train.shuffled_by,
        }
    )
    return training | {"validation data": validation.identity}


def has_other_muon(saved: dict[str, Any], path: Any) -> bool:
    """Whether a checkpoint is of a run whose Muon had other polynomials; the first versions stored none."""
    with reading(path, "a run to continue", way_out=OLDER):
        groups = [group for optimizer in saved["optimizers"] for group in optimizer["param_groups"]]
        return any("momentum" in group and group.get("polynomials") != POLYNOMIALS for group in groups)


def saved_identity(saved: dict[str, Any]) -> dict[str, Any]:
    """The data_identity in a checkpoint; {} if a version wrote it that had none."""
    return held if isinstance(held := saved.get("data_identity"), dict) else {}


def require_same_data(held: dict[str, Any], found: dict[str, Any], path: Any) -> None:
    """Raise ValueError if `found`, from data_identity, is not what a checkpoint holds."""
    for part, here in found.items():
        if here != held.get(part):
            raise ValueError(
                f"the {part} is not that of {path} (here: {here}; there: {held.get(part)!s:.200}); name the "
                "original data with --dataset and --val_dataset, start a new run from the weights with "
                f"--init_from {path} --out_dir NEW, or evaluate on other data with --val_dataset"
            )


def restore(
    saved: dict[str, Any],
    path: Path,
    cfg: TrainConfig,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    ranks: Ranks = ONE,
) -> tuple[Progress, dict[str, Any]]:
    """Restore the optimizers and the random state in place, and return what else the checkpoint holds.

    Returns the progress and the rest, as in `contents`.  Raises ValueError if a part
    does not fit the run. Nothing is written.
    """
    device = torch.device(cfg.device)
    with reading(path, "a run to continue", way_out=OLDER):
        if cfg.lora_rank:
            restore_adapters(model, saved, path, cfg)
        orders = saved_order(model, optimizers)
        for optimizer, order, state in zip(optimizers, orders, saved["optimizers"], strict=True):
            restore_optimizer(optimizer, order, state["state"])
        progress = restored_progress(saved["progress"], cfg, model, ranks)
        if progress.step != saved["step"]:
            raise ValueError(f"it says both step {saved['step']} and step {progress.step}")
        rest = {
            "data": restored_position(saved["data"], cfg, model, ranks),
            "tensorboard_dir": restored_board(saved["tensorboard_dir"], cfg),
            "scored": restored_scores(saved.get("scored")),
            "post": saved.get("post"),
        }
        seed_everything(cfg, ranks, progress.step)  # for a device or rank of which there is no generator
        states = [saved["rng"], *saved.get("rng_of_ranks", ())]
        if len(states) == ranks.number:
            set_rng_state(states[ranks.rank], device)
    return progress, rest


@torch.no_grad()
def restore_adapters(model: nn.Module, saved: dict[str, Any], path: Path, cfg: TrainConfig) -> None:
    """Copy the saved factors, then the saved merged weights in place of those of the base; see training.lora.attach."""
    if saved["lora"]["base_sha256"] != model.adapters.base_sha256:
        raise ValueError(
            f"{path} has adapters for other weights than those that {cfg.init_from} holds now; put back there what the "
            f"run began from, or start a new run from the merged weights with --init_from {path} --out_dir NEW"
        )
    for name, parameter in model.adapters.named_parameters():
        parameter.copy_(owned(saved["lora"]["factors"][name], name, parameter.shape, parameter.dtype))
    load_weights(model, saved["model"], path)


def restore_optimizer(
    optimizer: torch.optim.Optimizer, order: list[nn.Parameter], saved: dict[int, dict[str, Any]]
) -> None:
    """Copy the saved averages, each with the shape of its parameter; order: the parameters by number.

    The saved parameter groups are not used, because the settings of the run already decide them.
    """
    by_number = dict(enumerate(order))
    for number, entry in saved.items():
        parameter, names = by_number[number], STATE[type(optimizer)]
        if entry.keys() != names.keys():
            raise ValueError(
                f"its optimizer state of parameter {number} has other entries than {', '.join(names)}"
            )
        for name, like_parameter in names.items():
            told = f"{name} of parameter {number}"
            if like_parameter and not isinstance(optimizer, StateOnHost):
                tensor = restored_like(parameter, entry[name], told)
            else:
                tensor = owned(entry[name], told, parameter.shape if like_parameter else (), torch.float32)
                tensor = tensor if like_parameter else tensor.to(parameter.device)
            optimizer.state[parameter][name] = tensor


def restored_like(parameter: torch.Tensor, saved: Any, what: str) -> torch.Tensor:
    """A saved float32 tensor on the device of a parameter, and in parts over the ranks if the parameter is."""
    if isinstance(saved, Stored) and (saved.shape, saved.dtype) == (parameter.shape, torch.float32):
        tensor = torch.empty_like(parameter.detach(), dtype=torch.float32)
        saved.read_into(tensor)  # only the part of this rank
        return tensor
    if not hasattr(parameter, "device_mesh"):
        return owned(saved, what, parameter.shape, torch.float32).to(parameter.device)
    tensor = torch.empty_like(parameter.detach(), dtype=torch.float32)
    here, rows = held_here(tensor)
    here.copy_(owned(saved, what, parameter.shape, torch.float32, rows))
    return tensor


def restored_progress(saved: dict[str, Any], cfg: TrainConfig, model: nn.Module, ranks: Ranks) -> Progress:
    routers = [buffer for name, buffer in model.named_buffers() if name.endswith(BIAS_BUFFER)]
    experts = len(routers), len(routers[0]) if routers else 0
    shapes = {
        "expert_share": experts,
        "load": experts,
        "choices": (len(routers), None, None),
        "carry": (ranks.number * cfg.batch_size, model.config.hidden_size),
    }
    progress = Progress(**saved)
    for name, kind in (("step", int), ("tokens", int), ("seconds", float)):
        setattr(progress, name, cast(name, getattr(progress, name), kind))
    for name, shape in shapes.items():
        if (value := getattr(progress, name)) is not None:
            value = owned(value, name, shape)
            setattr(progress, name, value if name == "choices" else value.to(cfg.device))
    if progress.carry is not None:
        progress.carry = progress.carry.chunk(ranks.number)[ranks.rank]
    return progress


def restored_position(
    saved: dict[str, Any], cfg: TrainConfig, model: nn.Module, ranks: Ranks
) -> dict[str, Any]:
    """Return the position of the loader. The source of the data checks its own part later."""
    rows = ranks.number * cfg.batch_size
    tokens = [owned(rest, "tokens", (None,), torch.int64) for rest in saved["tokens"][:rows]]
    for rest in tokens:
        if not (0 <= int(rest.min()) and int(rest.max()) < model.config.vocab_size):
            raise ValueError(f"its tokens are not all ids from 0 to {model.config.vocab_size - 1}")
    documents = cast("documents", saved["documents"], int)
    position = {"packing": saved["packing"], "seed": saved["seed"], "source": dict(saved["source"])}
    if not position["source"] or not tokens and position["packing"] in ("packed", "lanes"):
        raise ValueError("its position in the data is empty")
    return position | {"documents": documents, "tokens": tokens}


def restored_board(saved: Any, cfg: TrainConfig) -> str | None:
    """Return the folder of the TensorBoard files, which must lie directly in cfg.tensorboard_root."""
    if saved is None:
        return None
    folder = Path(cast("tensorboard_dir", saved, str))
    if folder != Path(cfg.tensorboard_root) / folder.name or folder.name in ("", ".."):
        raise ValueError(f"its tensorboard_dir is not a folder in {cfg.tensorboard_root}/")
    return str(folder)


def restored_scores(saved: Any) -> dict[str, float] | None:
    return {k: cast(k, saved[k], float) for k in ("val_loss", "val_bits_per_byte")} if saved else None


def seed_everything(cfg: TrainConfig, ranks: Ranks, step: int = 0) -> None:
    """Seed the global generators, which dropout uses; each rank draws other numbers than the first one."""
    seed = cfg.seed if ranks.number == 1 else hash((cfg.seed, ranks.number, ranks.rank, step)) % 2**31
    random.seed(seed)
    torch.manual_seed(seed)


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the state of the global generators, which torch.load reads with weights_only=True."""
    state = {"python": random.getstate(), "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    torch.set_rng_state(state["cpu"].cpu())  # a generator state must be on the CPU
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    if device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"].cpu())
