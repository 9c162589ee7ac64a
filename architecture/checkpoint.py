"""The one reader of checkpoints: which file is meant, its content, the config that it names, its weights into a model.

It knows no model by name: a class is handed in, with its `name` and `config_class` (architecture/registry.py has
the names).
"""

from __future__ import annotations

import logging
import mmap
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shlex import quote
from typing import Any, get_type_hints

import torch
from torch import nn

from common.files import read_json, read_json_object, reading
from common.script import did_you_mean
from common.settings import cast, require_bounds

# No model comes near these: beyond them is a slip, or a number that would only be found out of memory.
LARGEST_SIZE, MOST_LAYERS, LARGEST_NUMBER, MOST_PARAMETERS = 2**20, 1024, 1e12, 10**15
FORMAT = 2  # what train.py writes; files of format 1 carry no number
REQUIRED_KEYS = {"model_name": str, "config": dict, "model": dict, "tokenizer": dict, "step": int}
ANOTHER = "use another checkpoint_<step>.pt from its folder"

BEST = "best.json"  # in a run's folder, names the checkpoint with the lowest validation loss
logger = logging.getLogger(__name__)


def find_checkpoint(path: str | Path, say: Callable[[str], None] = logger.info) -> Path:
    """The checkpoint that a person means: a run's folder means its newest one, and RUN/best.json its best one.

    say: called with one line where the path is not that of the checkpoint itself.
    A file and a folder of transformers are returned as they are, whether or not they exist.
    """
    path = Path(path)
    if path.name == BEST:
        best = best_checkpoint(path.parent)
        if best is None:
            raise ValueError(
                f"{path} names no checkpoint that is there; name a checkpoint_<step>.pt, or {path.parent} for its "
                "newest"
            )
        found = path.parent / best["checkpoint"]
        say(f"{found}: the lowest validation loss of {path.parent}")
        return found
    if not path.is_dir() or is_hugging_face(path):
        return path
    there, best = checkpoints(path), best_checkpoint(path)
    if not there:
        raise ValueError(
            f"{path} is a folder without a checkpoint_<step>.pt; name another, or train a model into it "
            f"with train.py --out_dir {quote(str(path))}"
        )
    newest = there[-1]
    other = best["checkpoint"] if best else newest.name
    note = f"; the lowest validation loss is {other}'s ({path / BEST})" if other != newest.name else ""
    say(f"{newest}: the newest checkpoint of {path}{note}")
    return newest


def checkpoints(out_dir: str | Path) -> list[Path]:
    """The checkpoints of a folder, oldest step first."""
    found = {}
    for path in Path(out_dir).glob("checkpoint_*.pt"):
        if match := re.fullmatch(r"checkpoint_(\d+)\.pt", path.name):
            found[int(match[1])] = path
    return [found[step] for step in sorted(found)]


def best_checkpoint(out_dir: str | Path) -> dict[str, Any] | None:
    """What best.json says; None if the file or the checkpoint that it names does not exist."""
    path = Path(out_dir) / BEST
    if not path.exists():
        return None
    with reading(path, "the name of the best checkpoint", way_out="delete it, nothing needs it"):
        best = read_json(path)
        best["val_loss"] = cast("val_loss", best["val_loss"], float)
        if not re.fullmatch(r"checkpoint_\d{1,20}\.pt", best["checkpoint"]):
            raise ValueError("its checkpoint is not named as one")
    return best if (path.parent / best["checkpoint"]).exists() else None


def is_hugging_face(path: str | Path) -> bool:
    """Whether this is a folder with weights as transformers' save_pretrained writes them."""
    path = Path(path)
    if not path.is_dir():
        return False
    if any(path.glob("model*.safetensors*")):
        return True
    try:
        return "model_type" in read_json_object(path / "config.json")  # a run's config.json has none
    except ValueError:
        return False


def read_checkpoint(path: str | Path, way_out: str = ANOTHER) -> dict[str, Any]:
    """The dictionary a checkpoint holds, on the CPU, verified by the checksums in the file. Code inside a
    pickle is never run (weights_only), and no tensor of it may be used in place: see owned().

    Raises ValueError, in one sentence that ends with way_out, for a damaged or foreign file, also for a missing
    or a newer one, and MemoryError.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist; look into its folder for checkpoint_<step>.pt")
    with reading(path, "a checkpoint", way_out=way_out):
        state = _verified(path)
        state = state if isinstance(state, dict) else {}
        if (found := state.get("format", 1)) > FORMAT:
            raise ValueError(
                f"{path} has format {found}, written at commit {state.get('commit')}, and this code reads formats "
                f"up to {FORMAT}; update this code, or use a checkpoint that it wrote"
            )
        wrong = [key for key, kind in REQUIRED_KEYS.items() if not isinstance(state.get(key), kind)]
        if wrong:
            raise ValueError(f"it has no usable {', '.join(wrong)}, so another program wrote it")
    return state


def _verified(path: Path) -> Any:
    """What a file holds; a thread computes its checksums meanwhile, and what they say comes first."""
    records = _records(path)
    with ThreadPoolExecutor(1) as thread:
        checked = thread.submit(verify, path, records)
        try:
            return _unpickled(path)
        finally:
            checked.result()


def _records(path: Path) -> list[zipfile.ZipInfo]:
    """The records of a file; ValueError where they would take more room than it has: torch writes them
    uncompressed, one after another.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError):
        raise ValueError("it is cut off, damaged, or no checkpoint") from None
    if sum(r.file_size for r in records) > path.stat().st_size or any(r.compress_type for r in records):
        raise ValueError("its records do not fit into it")
    return records


def verify(path: Path, records: Sequence[zipfile.ZipInfo]) -> None:
    """ValueError for a file that is not as it was written, by the CRC-32 that each record carries."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for record in records:
            if not _is_whole(data, record):
                raise ValueError(f"its record {record.filename} is damaged")


def _is_whole(data: mmap.mmap, record: zipfile.ZipInfo) -> bool:
    """Whether a record's bytes have its CRC-32; its local header is 30 bytes, a name and an extra field."""
    at = record.header_offset
    if data[at : at + 4] != b"PK\3\4":
        return False
    name, extra = struct.unpack_from("<HH", data, at + 26)
    start = at + 30 + name + extra
    named = data[at + 30 : at + 30 + name] == record.orig_filename.encode()
    with memoryview(data) as view, view[start : start + record.file_size] as content:
        return named and len(content) == record.file_size and zlib.crc32(content) == record.CRC


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about old pickles: one sentence is enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            "it holds more than tensors and plain values, which could run code, and was not loaded"
        ) from None
    except RuntimeError as error:  # the content is as it was written
        if "alloc" in str(error) or "memory" in str(error):
            raise MemoryError(f"there is not enough memory to read {path}; free some") from error
        raise


def owned(
    value: Any, what: str, shape: Sequence[int | None], dtype: torch.dtype | None = None
) -> torch.Tensor:
    """A copy, in a tensor of our own, of a tensor that came from a file; ValueError unless it fits.

    shape: None for a size that the file decides; such a tensor may not be larger than what the file stores.
    A tensor of a file may repeat one number in all places, or share its memory with another.
    """
    fits = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
    fits = fits and len(value.shape) == len(shape)
    fits = fits and all(want in (None, size) for want, size in zip(shape, value.shape))
    if not fits or dtype not in (None, value.dtype) or None in shape and not value.is_contiguous():
        raise ValueError(f"its {what} is no tensor of the right shape and type")
    return torch.empty(value.shape, dtype=value.dtype).copy_(value)


def config_from_dict(cls: type, values: dict[str, Any]) -> Any:
    """A validated config of a config class; an unknown key or a value that does not fit its field is an error."""
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
    if total > MOST_PARAMETERS:  # more than tensors can count, even without memory
        raise ValueError(
            f"a model may have {MOST_PARAMETERS:.0e} parameters, and these sizes give {total:.2e}; lower them"
        )
    return config


def load_weights(
    model: nn.Module,
    weights: dict[str, torch.Tensor],
    source: str | Path,
    added: Collection[str] = (),
) -> None:
    """Give tensors to a model by name, also to one on the meta device.

    added: names that a variant has beyond the trunk whose weights these are; they stay as they are.
    Raises ValueError for a missing, a surplus or a misshapen tensor, and for what is none.
    """
    expected = model.state_dict()
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    for problem, names in (
        ("tensors that this model lacks", weights.keys() - shapes.keys()),
        ("no tensor for some of this model's", shapes.keys() - added - weights.keys()),
        (
            "tensors of another shape",
            {name for name in weights if getattr(weights[name], "shape", None) != shapes.get(name)},
        ),
    ):
        if names:
            raise ValueError(
                f"{source} has {problem} ({len(names)}, first {min(map(str, names))}); "
                "use the model and shape that it was trained with"
            )
    with reading(source, "weights", way_out=ANOTHER):
        kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}
        if len(kinds) > 1 or not all(t.is_floating_point() for t in weights.values()):
            raise ValueError(
                f"they are of type {' and '.join(sorted(kinds))}, not of one floating point type"
            )
        ours = {name: owned(tensor, name, shapes[name]) for name, tensor in weights.items()}
    ours |= {name: expected[name] for name in added}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not any(p.is_meta for p in parameters.values()):
        model.load_state_dict(ours)
        return
    # nothing to copy into: the tensors become the parameters, and a tied parameter stays one object
    made: dict[int, nn.Parameter] = {}
    for name, parameter in parameters.items():
        made.setdefault(id(parameter), nn.Parameter(ours[name]))
    tied = {name: made[id(parameter)] for name, parameter in parameters.items()}
    model.load_state_dict({**ours, **tied}, assign=True)


def load(cls: type[nn.Module], path: str | Path, *, device: str | torch.device = "cpu") -> nn.Module:
    """The model of class cls that a checkpoint holds, in eval mode, with its tokenizer at `.tokenizer`."""
    path = find_checkpoint(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder of transformers; load it with architecture.registry.load_model")
    state = read_checkpoint(path)
    if state["model_name"] != cls.name:
        raise ValueError(
            f"checkpoint {path} holds a {state['model_name']!r} model, not {cls.name!r}; "
            f"load it with architecture.registry.load_model"
        )
    return model_of(cls, state, path).to(device)


def model_of(
    cls: type[nn.Module],
    state: dict[str, Any],
    path: str | Path,
    *,
    attention: str = "auto",
    experts: str = "auto",
) -> nn.Module:
    """The model of class cls, in eval mode on the CPU, of what read_checkpoint returned for path."""
    from architecture.tokenizer import tokenizer_from_state  # tiktoken is needed only when loading

    config = config_from_dict(cls.config_class, state["config"])
    # on the meta device the checkpoint's tensors become the weights: nothing is initialised
    with torch.device("meta"):
        model = cls(config, attention=attention, experts=experts)
    load_weights(model, state["model"], path)
    model.tokenizer = tokenizer_from_state(state["tokenizer"])
    return model.eval()
