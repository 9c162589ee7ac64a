"""Find a checkpoint, verify its content, build its config and load its weights into a model.

This module knows no model by name: the caller passes a model class with a `name` and a `config_class`.
architecture/registry.py maps names to classes.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shlex import quote
from typing import Any, get_type_hints

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from architecture import shards
from common.files import read_json, read_json_object, reading
from common.script import did_you_mean
from common.settings import cast, require_bounds

# Upper bounds that no real model reaches: a larger number is a mistake, and would exhaust the memory later.
LARGEST_SIZE, MOST_LAYERS, LARGEST_NUMBER, MOST_PARAMETERS = 2**20, 1024, 1e12, 10**15
FORMAT = 2  # the format that train.py writes; files of format 1 do not name theirs
REQUIRED_KEYS = {"model_name": str, "config": dict, "model": dict, "tokenizer": dict, "step": int}
ANOTHER = "use another checkpoint_<step>.pt from its folder"
ONLY_LLAMA_CPP = (
    "which only llama.cpp reads; use the checkpoint from which it was made, or export that with --format hf"
)
BEST = "best.json"  # this file of a run's folder names the checkpoint with the lowest validation loss
logger = logging.getLogger(__name__)


def find_checkpoint(path: str | Path, say: Callable[[str], None] = logger.info) -> Path:
    """The checkpoint that a path names: RUN stands for its newest checkpoint, RUN/best.json for its best one.

    A path of a file, of a sharded checkpoint, or of a folder that transformers wrote, is returned unchanged,
    whether it exists or not.
    Raises ValueError for a GGUF file and its folder, because only llama.cpp reads them.
    say: receives one line that names the checkpoint, if it is not `path` itself.
    """
    path = Path(path)
    if path.name == BEST:
        best = best_checkpoint(path.parent)
        if best is None and is_model_folder(path.parent):
            raise ValueError(
                f"{path} does not exist, because {path.parent} is an exported folder, which holds one model; give "
                f"{path.parent} itself, without --best"
            )
        if best is None:
            raise ValueError(
                f"{path} names no checkpoint that exists; give a checkpoint_<step>.pt, or {path.parent} for "
                "its newest checkpoint"
            )
        found = path.parent / best["checkpoint"]
        say(f"{found}: the checkpoint of {path.parent} with the lowest validation loss")
        return found
    if path.suffix == ".gguf" and path.is_file():
        raise ValueError(f"{path} is a GGUF file, {ONLY_LLAMA_CPP}")
    if not path.is_dir() or is_model_folder(path) or shards.is_sharded(path):
        return path
    there, best = checkpoints(path), best_checkpoint(path)
    if not there and any(path.glob("*.gguf")):
        raise ValueError(f"{path} holds a GGUF file, {ONLY_LLAMA_CPP}")
    if not there:
        raise ValueError(
            f"{path} is a folder without a checkpoint_<step>.pt; name another, or train a model into it "
            f"with train.py --out_dir {quote(str(path))}"
        )
    newest = there[-1]
    other = best["checkpoint"] if best else newest.name
    note = f"; {other} has the lowest validation loss ({path / BEST})" if other != newest.name else ""
    say(f"{newest}: the newest checkpoint of {path}{note}")
    return newest


def checkpoints_by_step(out_dir: str | Path) -> dict[int, Path]:
    """{step: checkpoint} of a folder, oldest step first."""
    found = {}
    for path in Path(out_dir).glob("checkpoint_*.pt"):
        if match := re.fullmatch(r"checkpoint_(\d+)\.pt", path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def checkpoints(out_dir: str | Path) -> list[Path]:
    """The checkpoints of a folder, oldest step first."""
    return list(checkpoints_by_step(out_dir).values())


def best_checkpoint(out_dir: str | Path) -> dict[str, Any] | None:
    """The content of best.json; None if that file or the checkpoint that it names does not exist."""
    path = Path(out_dir) / BEST
    if not path.exists():
        return None
    with reading(path, "the name of the best checkpoint", way_out="delete it, no run needs it"):
        best = read_json(path)
        best["val_loss"] = cast("val_loss", best["val_loss"], float)
        if not re.fullmatch(r"checkpoint_\d{1,20}\.pt", best["checkpoint"]):
            raise ValueError("its checkpoint is not named checkpoint_<step>.pt")
    return best if (path.parent / best["checkpoint"]).exists() else None


def is_model_folder(path: str | Path) -> bool:
    """Whether path is a folder of weights: in the layout of transformers' save_pretrained, or of gpt-oss."""
    path = Path(path)
    if not path.is_dir():
        return False
    if any(path.glob("model*.safetensors*")):
        return True
    try:
        return "model_type" in read_json_object(path / "config.json")  # a run's config.json has none
    except ValueError:
        return False


def read_checkpoint(
    path: str | Path, way_out: str = ANOTHER, part: tuple[int, int] = (0, 1)
) -> dict[str, Any]:
    """The dictionary of a checkpoint, with its tensors on the CPU, verified by the checksums in the file.

    The file is mapped, so a tensor takes memory when it is copied. Code inside a pickle is never run (weights_only). Copy a tensor before you use it: see owned().
    In a sharded checkpoint the weights are LazyWeights, and the tensors of the optimizers are shards.Stored.
    Raises ValueError for a file that is missing, damaged, foreign or newer than this code, and MemoryError.
    way_out: the last words of the message for a damaged file.
    part: (number, of): this process is one of several, which verify the files together; each gets its own errors.
    """
    path = Path(path)
    if not path.is_file() and not shards.is_sharded(path):
        there = [p.name for p in path.parent.glob("*") if p.suffix == path.suffix == ".pt" or checkpoints(p)]
        hint = (
            did_you_mean(path.name, there) or "; name a folder that train.py wrote, or a checkpoint_<step>.pt"
        )
        raise ValueError(f"checkpoint {path} does not exist{hint}")
    with reading(path, "a checkpoint", way_out=way_out):
        state = shards.read(path, part) if path.is_dir() else _read_file(path, verified=part[0] == 0)
        state = state if isinstance(state, dict) else {}
        if (found := state.get("format", 1)) > FORMAT:
            raise ValueError(
                f"{path} has format {found}, written at commit {state.get('commit')}, and this code reads "
                f"formats up to {FORMAT}; update this code, or use a checkpoint of format {FORMAT}"
            )
        wrong = [key for key, kind in REQUIRED_KEYS.items() if not isinstance(state.get(key), kind)]
        if wrong:
            raise ValueError(f"it has no valid {', '.join(wrong)}, so another program wrote it")
        if path.is_dir():
            state["model"] = StoredWeights(state["model"])
    return state


def _read_file(path: Path, verified: bool) -> Any:
    """The content of a file. A thread verifies the checksums meanwhile, and its error takes precedence."""
    _require_plain(path)
    if not verified:
        return _unpickled(path)
    with ThreadPoolExecutor(1) as thread:
        checked = thread.submit(verify, path)
        try:
            return _unpickled(path)
        finally:
            checked.result()


def _require_plain(path: Path) -> None:
    """ValueError if a file is no zip file, or if its records are larger than the file.

    torch writes records uncompressed, so larger ones mean a crafted file that would fill the memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError):
        raise ValueError("it is cut off, damaged, or not a checkpoint") from None
    if sum(r.file_size for r in records) > path.stat().st_size or any(r.compress_type for r in records):
        raise ValueError("its records are larger than the file")


def verify(path: Path) -> None:
    """ValueError if the bytes of a record do not match the CRC-32 that was stored with it."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"its record {damaged} is damaged")


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about old pickles, and the error below says enough
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ValueError(
            "it holds objects other than tensors and plain values, which could run code, so it was not loaded"
        ) from None


def owned(
    value: Any,
    what: str,
    shape: Sequence[int | None],
    dtype: torch.dtype | None = None,
    rows: slice = slice(None),
) -> torch.Tensor:
    """A copy, in a new tensor, of rows of a tensor that was read from a file; ValueError if shape or dtype is wrong.

    A tensor from a file may be an expanded view or share its memory with another one, and an in-place update
    of such a tensor is wrong.
    shape: None stands for a size that the file decides; the tensor must then be contiguous, so that it is not
    larger than the file.
    """
    if isinstance(value, shards.Stored) and value.shape == tuple(shape):
        value = value.whole()
    fits = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
    fits = fits and len(value.shape) == len(shape)
    fits = fits and all(want in (None, size) for want, size in zip(shape, value.shape))
    if not fits or dtype not in (None, value.dtype) or None in shape and not value.is_contiguous():
        raise ValueError(f"its {what} is not a tensor of the expected shape and type")
    value = value if rows == slice(None) else value[rows]
    return torch.empty(value.shape, dtype=value.dtype).copy_(value)


def config_from_dict(cls: type, values: dict[str, Any]) -> Any:
    """A validated config of class cls. Unknown keys and values of the wrong type raise ValueError."""
    hints = get_type_hints(cls)
    typed = {}
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"{key} is not a field of {cls.__name__}{did_you_mean(key, hints)}")
        typed[key] = cast(key, value, hints[key])
        if type(typed[key]) in (int, float):
            largest = MOST_LAYERS if key == "num_hidden_layers" else LARGEST_SIZE
            largest = LARGEST_NUMBER if hints[key] in (float, float | None) else largest
            require_bounds(key, typed[key], {"at_most": largest}, "lower it")
    config = cls(**typed)
    total = config.parameter_counts()["total"]
    if total > MOST_PARAMETERS:  # even tensors on the meta device have a largest size
        raise ValueError(
            f"a model may have {MOST_PARAMETERS:.0e} parameters, and these sizes give {total:.2e}; lower them"
        )
    return config


class LazyWeights(Mapping[str, torch.Tensor]):
    """Tensors by name, each read or made when it is asked for, so that they need not be in memory together.

    described: the same tensors on the meta device, for their names, shapes and types.
    fresh: names of tensors that each access makes in new memory, so that nothing else holds them.
    """

    def __init__(
        self,
        described: Mapping[str, torch.Tensor],
        read: Callable[[str], torch.Tensor],
        fresh: Collection[str] = (),
    ):
        self.described, self.read, self.fresh = described, read, fresh

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.described)

    def __len__(self) -> int:
        return len(self.described)

    def rows(self, name: str, rows: slice) -> torch.Tensor:
        """Rows of a tensor."""
        return self[name] if rows == slice(None) else self[name][rows]


class StoredWeights(LazyWeights):
    """The tensors of the model in a sharded checkpoint. stored: {name: shards.Stored}."""

    def __init__(self, stored: Mapping[str, shards.Stored]):
        shapes = {n: torch.empty(s.shape, dtype=s.dtype, device="meta") for n, s in stored.items()}
        super().__init__(shapes, lambda name: stored[name].whole(), fresh=stored)
        self.stored = stored

    def copy_into(self, target: torch.Tensor, name: str) -> None:
        """Copy a tensor, of which a DTensor reads its own part only."""
        held = self.stored[name]
        values = target if target.dtype == held.dtype else torch.empty_like(target, dtype=held.dtype)
        held.read_into(values)
        if values is not target:
            target.copy_(values)


def described(weights: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Tensors with the names, shapes and types of weights; no tensor is read for it."""
    return weights.described if isinstance(weights, LazyWeights) else weights


def packed(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds packed weights (MXFP4), which stay in the file that was mapped."""
    return tensor.dtype == torch.uint8


def _needs_the_type(name: str, tensor: torch.Tensor, expected: dict[str, torch.Tensor]) -> bool:
    """Whether a tensor must have the type of the others: norms may be float32, as in the official weights."""
    wide_norm = name.endswith("norm.scale") and tensor.dtype == torch.float32
    return not wide_norm and not packed(expected[name])


def require_fit(
    expected: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    source: str | Path,
    added: Collection[str] = (),
) -> None:
    """Raise ValueError unless weights have the names and shapes of a model's tensors, in one type.

    expected: the state dictionary of the model.  added: names that may be missing.
    """
    found = described(weights)
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    for problem, names in (
        ("holds {} tensor(s) that this model lacks", found.keys() - shapes.keys()),
        ("lacks {} tensor(s) of this model", shapes.keys() - added - found.keys()),
        (
            "holds {} tensor(s) of another shape",
            {name for name in found if getattr(found[name], "shape", None) != shapes.get(name)},
        ),
    ):
        if names:
            raise ValueError(
                f"{source} {problem.format(len(names))} (first: {min(map(str, names))}); "
                "use the model and the sizes that it was trained with"
            )
    with reading(source, "weights", way_out=ANOTHER):
        kinds = {tensor.dtype for name, tensor in found.items() if _needs_the_type(name, tensor, expected)}
        if len(kinds) > 1 or not all(kind.is_floating_point for kind in kinds):
            told = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
            raise ValueError(f"they are of type {told}, and must be of one floating point type")


def load_weights(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    source: str | Path,
    added: Collection[str] = (),
) -> None:
    """Load tensors into a model by name. Parameters on the meta device are replaced by the loaded tensors.

    A DTensor gets the rows that it holds on this rank, and only these are read.
    weights: a dictionary, or LazyWeights; then one tensor at a time is in memory twice, a fresh one only once.
    added: names of this model that the weights may lack, because a variant adds them to its trunk; they keep
    their values.
    Raises ValueError for missing, unexpected and misshapen tensors, and for values that are not tensors.
    """
    expected = model.state_dict()
    require_fit(expected, weights, source, added)
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with reading(source, "weights", way_out=ANOTHER):
        if not any(p.is_meta for p in parameters.values()):
            with torch.no_grad():
                for name, target in expected.items():
                    if name in weights:
                        _copy_weights(target, weights, name)
            return
        as_they_are = {name for name in weights if packed(expected[name])}
        if isinstance(weights, LazyWeights):
            as_they_are |= set(weights.fresh)
        ours = {
            name: weights[name] if name in as_they_are else owned(weights[name], name, shapes[name])
            for name in weights
        }
    ours |= {name: expected[name] for name in added}
    # There is nothing to copy into, so the tensors become the parameters. A tied parameter stays one object.
    made: dict[int, nn.Parameter] = {}
    for name, parameter in parameters.items():
        made.setdefault(id(parameter), nn.Parameter(ours[name]))
    tied = {name: made[id(parameter)] for name, parameter in parameters.items()}
    model.load_state_dict({**ours, **tied}, assign=True)


def _copy_weights(target: torch.Tensor, weights: Mapping[str, torch.Tensor], name: str) -> None:
    if isinstance(weights, StoredWeights):
        weights.copy_into(target, name)
        return
    here, rows = shards.held_here(target)
    if isinstance(weights, LazyWeights):
        here.copy_(owned(weights.rows(name, rows), name, here.shape))
    else:
        here.copy_(owned(weights[name], name, target.shape, rows=rows))


def weights_sha256(model: nn.Module) -> str:
    """The sha256 of the names, types, shapes and values of a model's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load(cls: type[nn.Module], path: str | Path, *, device: str | torch.device = "cpu") -> nn.Module:
    """The model of class cls in a checkpoint, in eval mode, with its tokenizer at `.tokenizer`.

    path: as for find_checkpoint.
    """
    path = find_checkpoint(path)
    if is_model_folder(path):
        raise ValueError(f"{path} is a folder of transformers; load it with architecture.registry.load_model")
    state = read_checkpoint(path)
    if state["model_name"] != cls.name:
        raise ValueError(
            f"checkpoint {path} holds a {state['model_name']!r} model, not {cls.name!r}; "
            f"load it with architecture.registry.load_model"
        )
    return model_of(cls, state, path).to(device)


class _NoRandomValues(TorchFunctionMode):
    """Leaves out random initial values: torch takes a second to load its code for them on the meta device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


def without_values(cls: type[nn.Module], config: Any, **arguments: Any) -> nn.Module:
    """A model on the meta device, to load weights into or to see its shapes. arguments: of its constructor."""
    with torch.device("meta"), _NoRandomValues():
        return cls(config, **arguments)


def model_of(
    cls: type[nn.Module],
    state: dict[str, Any],
    path: str | Path,
    *,
    attention: str = "auto",
    experts: str = "auto",
) -> nn.Module:
    """The model of class cls in eval mode on the CPU. state: the result of read_checkpoint(path)."""
    from architecture.tokenizer import tokenizer_from_state  # tiktoken is needed only here

    config = config_from_dict(cls.config_class, state["config"])
    model = without_values(cls, config, attention=attention, experts=experts)
    load_weights(model, state["model"], path)
    model.tokenizer = tokenizer_from_state(state["tokenizer"])
    return model.eval()
