"""Train a run again in this process, without writing anything, and watch what one of its steps computes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from architecture import registry
from architecture.checkpoint import checkpoints, load_weights, read_checkpoint
from architecture.tokenizer import get_tokenizer, tokenizer_from_state
from common import device
from common.files import read_json, reading
from data.images import open_images
from data.sources import open_dataset
from training import optimizer, trainer
from training.config import TrainConfig
from training.distributed.mesh import Ranks
from training.start import settings_class
from training.state import checkpoint
from training.state.checkpoint import Progress
from training.state.run import Run, open_run


class Unwritten(Ranks):
    """A single process that writes no file."""

    writes = False


def settings(folder: Path) -> tuple[TrainConfig, Any, dict[str, Any]]:
    """The settings of a run's last start, the config of its model, and all of its config.json.

    Raises ValueError for a run that cannot be replayed.
    """
    path = folder / "config.json"
    with reading(path, "the settings of a run", way_out="compare runs of this version"):
        facts = read_json(path)
        name = facts["train"]["model"]
        if "story_dataset" in facts["train"]:
            raise ValueError(f"{path} is of a run of post_train.py, of which only files are compared")
        config_class = settings_class(name)
        held = checkpoint.saved_settings({"train_config": facts["train"]}, path, config_class)
        cfg, config = config_class(**held), registry.config_from_dict(name, facts["model"])
    if cfg.max_minutes:
        raise ValueError(f"{folder} has max_minutes, so that its learning rates followed the clock")
    if cfg.compile == "on":
        raise ValueError(f"{folder} has compile=on, and what compiled code computes cannot be watched")
    there = checkpoints(folder)
    if there and (ranks := checkpoint.saved_ranks(read_checkpoint(there[-1]), there[-1])) > 1:
        raise ValueError(f"{folder} was trained by {ranks} processes, and a replay is one process")
    device.choose_device(cfg.device)  # raises ValueError if this machine does not have it
    cfg = replace(cfg, out_dir=str(folder), resume_from=None, use_tensorboard=False)
    return cfg, config, facts


def open_split(cfg: TrainConfig, config: Any, identity: dict[str, Any], split: str) -> Any:
    held = identity.get("training data" if split == "train" else "validation data")
    options = {
        "split": split,
        "val_dataset": cfg.val_dataset,
        "text_column": cfg.text_column,
        "identity": held,
    }
    images = getattr(config, "image_format", None)
    if images is not None:
        return open_images(cfg.dataset, size=images.size, **options)
    return open_dataset(cfg.dataset, **options)


@contextlib.contextmanager
def opened(folder: Path, step: int) -> Iterator[tuple[Run, Progress]]:
    """A run as it was after a step: from its checkpoint, or from its start for step 0.

    Raises ValueError if its data cannot be read or is not what it was.
    """
    cfg, config, facts = settings(folder)
    identity = facts["data"]
    saved = read_checkpoint(checkpoint.checkpoint_path(folder, step)) if step else None
    tokenizer = tokenizer_from_state(saved["tokenizer"]) if saved else get_tokenizer(cfg.tokenizer)
    data = [open_split(cfg, config, identity, split) for split in ("train", "validation")]
    for part, here in checkpoint.data_identity(*data).items():
        if here != identity.get(part):
            raise ValueError(f"the {part} of {folder} has changed: {here}; it was {identity.get(part)}")
    threads = torch.get_num_threads()
    torch.set_num_threads(cfg.threads)
    try:
        backends = {"attention": cfg.attention, "experts": cfg.experts}
        generator = torch.Generator().manual_seed(cfg.seed)
        model = registry.build_model(cfg.model, config, generator=generator, **backends)
        if saved or cfg.init_from:
            held = saved or registry.read_weights(cfg.init_from)
            added = model.added_parameters if held["model_name"] != cfg.model else ()
            load_weights(model, held["model"], folder, added=added)
        optimizer.freeze(model, cfg.freeze)
        with open_run(cfg, model, tokenizer, *data, saved, Unwritten()) as (run, progress):
            if not step and run.loader.first_batch_sha256 != facts["starts"][0]["first_batch_sha256"]:
                raise ValueError(f"its first batch is not that of {folder}, so it would be another run")
            yield run, progress
    finally:
        torch.set_num_threads(threads)


def advance(run: Run, progress: Progress) -> float:
    """One step, as in trainer.train. Returns its training loss."""
    rate = optimizer.learning_rate(progress.share_done(run.cfg, margin=0.5), run.cfg)
    optimizer.set_learning_rate(run.optimizers, rate)
    result, *_ = trainer.train_step(run, progress)
    if run.stop:
        raise KeyboardInterrupt
    return float(result.loss)


def updated(run: Run) -> dict[str, torch.Tensor]:
    """What a step updates, by name: weights and buffers in the order of the model, then optimizer state."""
    values = {f"weight {name}": value for name, value in run.model.state_dict().items()}
    for name, parameter in run.model.named_parameters():
        for each in run.optimizers:
            held = each.state.get(parameter, {})
            values |= {f"optimizer state {key} of {name}": value for key, value in held.items()}
    return values


def digest(values: Any) -> str:
    """A hash of the bits of all tensors and numbers in nested containers."""
    hashed = hashlib.blake2b(digest_size=16)
    for value in tree_leaves(values):
        if isinstance(value, torch.Tensor):
            hashed.update(f"{value.dtype}{tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().flatten()
            hashed.update(flat.view(torch.uint8).numpy())
        elif isinstance(value, (int, float)):
            hashed.update(repr(value).encode())
    return hashed.hexdigest()


def replay(folder: Path, start: int, last: int) -> list[tuple[str, float]]:
    """For each step after `start` until `last`: the digest of what it updated, and its training loss."""
    steps = []
    with opened(folder, start) as (run, progress):
        for _ in range(start, last):
            loss = advance(run, progress)
            steps.append((digest(updated(run)), loss))
    return steps


class Watch(TorchDispatchMode):
    """Records the results in a step, each as (name, digest), in the order in which they are computed."""

    def __init__(self):
        super().__init__()
        # operations of torch with the module in which they run; gradients as summed up so far
        kinds = "batch", "operation", "output of a module", "gradient", "updated tensor"
        self.found: dict[str, list[tuple[str, str]]] = {kind: [] for kind in kinds}
        self.modules, self.paused = [], False

    def add(self, kind: str, name: str, value: Any) -> None:
        self.paused = True  # the operations of digest are not those of the run
        self.found[kind].append((name, digest(value)))
        self.paused = False

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        aliases = [(x, a.alias_info) for a, x in zip(operation._schema.arguments, args) if a.alias_info]
        is_view = any(not alias.is_write for _, alias in aliases)
        # no computation, and perhaps of new memory, which holds anything
        if not (self.paused or is_view or "empty" in operation.__name__):
            backward = torch._C._current_graph_task_id() != -1
            place = "the backward pass" if backward else "the loss or the optimizer"
            place = self.modules[-1] if self.modules else place
            self.add("operation", f"{operation} in {place}", (result, [x for x, _ in aliases]))
        return result

    def enter(self, name: str, _module: Any, _inputs: Any, options: dict[str, Any]) -> None:
        self.modules.append(name or "the model")
        if not name:
            batch = {
                key: value for key, value in options.items() if key != "carry"
            }  # a result of the last one
            self.add("batch", f"micro-batch {len(self.found['batch']) + 1}", batch)

    def leave(self, name: str, _module: Any, _inputs: Any, output: Any) -> None:
        self.modules.pop()
        self.add("output of a module", name or "the model", output)

    def gradient(self, name: str, parameter: torch.Tensor) -> None:
        self.add("gradient", name, parameter.grad)


def watched(folder: Path, start: int, step: int) -> dict[str, list[tuple[str, str]]]:
    """What a step computes, in a replay from `start`; see Watch."""
    watch = Watch()
    with opened(folder, start) as (run, progress):
        for _ in range(start, step - 1):
            advance(run, progress)
        for name, module in run.model.named_modules():
            module.register_forward_pre_hook(functools.partial(watch.enter, name), with_kwargs=True)
            # also if a second pass of activation checkpointing ends inside the module
            module.register_forward_hook(functools.partial(watch.leave, name), always_call=True)
        for name, parameter in run.model.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(functools.partial(watch.gradient, name))
        with watch:
            advance(run, progress)
        for name, value in updated(run).items():
            watch.add("updated tensor", name, value)
    return watch.found
