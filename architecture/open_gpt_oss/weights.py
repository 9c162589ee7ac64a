"""Read a folder in one of the two layouts of gpt-oss: OpenAI's original, or Hugging Face's.

The files are memory-mapped, and a tensor is read when it is asked for, so that a load takes the memory of the
model and of one stack of experts. Both layouts may have one file or several, in float64, float32, bfloat16 or
float16, with the experts also in MXFP4.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tiktoken
import torch
import torch.nn.functional as F
from torch import nn

from architecture import checkpoint
from architecture.gptoss import ModelConfig
from architecture.images import IMAGE
from architecture.open_gpt_oss import mxfp4, names
from architecture.open_gpt_oss.names import VOCABULARY
from architecture.tokenizer import HARMONY, get_tokenizer, tokenizer_from_state, tokenizer_state
from architecture.tokenizer_json import read_vocabulary
from common.files import parse_json, read_json_object, reading

CONFIG, INDEX, TOKENIZER = "config.json", "model.safetensors.index.json", "tiktoken.json"
CHECKSUMS = "crc32"  # of each tensor's bytes, as JSON in the metadata of the files that export writes
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
BELONG = f"use a folder whose {CONFIG} and weights belong together"


def read_config(folder: str | Path) -> tuple[str, ModelConfig]:
    """The layout of a folder, "original" or "hf", and its config, the vocabulary padded to a multiple of 64."""
    if not Path(folder).exists():
        raise ValueError(f"{folder} does not exist; name a folder of gpt-oss, or export a checkpoint into it")
    if Path(folder).is_dir() and checkpoint.checkpoints(folder):
        raise ValueError(
            f"{folder} is the folder of a run, which train.py --init_from and sample.py --checkpoint take as it is; "
            f"to make a folder of gpt-oss of it, call python -m architecture.open_gpt_oss export --checkpoint {folder} "
            "--format hf --output_dir DIR"
        )
    if not checkpoint.is_model_folder(folder):
        raise ValueError(
            f"{folder} is no folder of gpt-oss, which has a {CONFIG} and .safetensors files; name one that has them"
        )
    path = Path(folder) / CONFIG
    return names.read_config(read_json_object(path), path)


class FolderWeights(checkpoint.LazyWeights):
    """The tensors of a folder under this project's names.

    A stack of experts in MXFP4 is unpacked; with packed=True it appears as NAME.blocks and NAME.scales, which
    stay in the mapped file. `layout` is original, hf or mlx; `in_mxfp4` holds the names of the stacks in MXFP4.
    Raises ValueError if the folder's tensors are not those of the config.
    """

    def __init__(self, folder: str | Path, *, packed: bool = False):
        self.folder = Path(folder)
        self.layout, self.config = read_config(folder)
        self._files, self._checksums = _open_files(self.folder)
        if any(".gate_proj." in name for name in self._files):
            self.layout = "mlx"
        model = checkpoint.without_values(names.class_of(self.config), self.config).state_dict()
        self.in_mxfp4 = {
            name for name in model
            if name.endswith(mxfp4.MATRICES) and self._sources(f"{name}.blocks")[0] in self._files
        }  # fmt: skip
        stored = names.stored(model, self.config)
        for name in self.in_mxfp4:
            whole = stored.pop(name)
            with reading(self.folder, f"weights with {name} in MXFP4", way_out=BELONG):
                blocks, scales = mxfp4.packed_shapes(whole.shape)
            stored |= {f"{name}.blocks": whole.new_empty(blocks, dtype=torch.uint8)}
            stored |= {f"{name}.scales": whole.new_empty(scales, dtype=torch.uint8)}
        self._require(stored)
        found = {}
        for name, tensor in model.items():
            if name in self.in_mxfp4 and packed:
                found |= {part: stored[part] for part in (f"{name}.blocks", f"{name}.scales")}
            else:  # what follows from another tensor has the type of the embedding
                found[name] = tensor.to(self._dtype(name if name in stored else VOCABULARY[0]))
        super().__init__(found, self._tensor, fresh=self.in_mxfp4)

    def rows(self, name: str, rows: slice) -> torch.Tensor:
        """Rows of a tensor; the experts of a stack in MXFP4 that are not among them stay packed."""
        if name not in self.in_mxfp4:
            return super().rows(name, rows)
        blocks, scales = (self._stored(f"{name}.{part}")[rows] for part in ("blocks", "scales"))
        described = self.described[name][rows]
        experts = torch.empty(described.shape, dtype=described.dtype)
        for expert, *parts in zip(experts, blocks, scales):  # one at a time: unpacking takes memory
            expert.copy_(mxfp4.unpack(*parts, described.dtype))
        return experts

    def _tensor(self, name: str) -> torch.Tensor:
        described = self.described[name]
        if names.SELECTION_BIAS.fullmatch(name):
            return torch.zeros(described.shape, dtype=described.dtype)
        if name in self.in_mxfp4:
            return self.rows(name, slice(None))
        tensor = self._stored(VOCABULARY[0] if name in VOCABULARY and self.config.tie_embeddings else name)
        if name in VOCABULARY:
            tensor = F.pad(tensor, (0, 0, 0, self.config.vocab_size - len(tensor)))
        return tensor

    def _sources(self, name: str) -> tuple[str, ...]:
        """The names in the files of one of our tensors."""
        return names.their_names(name, self.layout)

    def _dtype(self, name: str) -> torch.dtype:
        source = self._sources(name)[0]
        return DTYPES[self._files[source].get_slice(source).get_dtype()]

    def _stored(self, name: str) -> torch.Tensor:
        """One of our tensors as the files hold it, in our layout."""
        with reading(self.folder, "weights of gpt-oss", way_out=names.ANOTHER):
            parts = []
            for source in self._sources(name):
                tensor = self._files[source].get_tensor(source)
                if source in self._checksums and self._checksums[source] != checksum(tensor):
                    raise ValueError(f"its tensor {source} was changed after it was written")
                parts.append(tensor)
            return names.from_theirs(name, parts, self.layout)

    def _require(self, stored: dict[str, torch.Tensor]) -> None:
        """Raise ValueError unless the files hold these tensors and no others."""
        wanted = {}
        for name, tensor in stored.items():
            wanted |= names.to_theirs(name, tensor, self.config, self.layout)
        for problem, odd in (
            ("lacks {} tensor(s) of its model", wanted.keys() - self._files.keys()),
            ("holds {} tensor(s) that its model lacks", self._files.keys() - wanted.keys()),
        ):
            if odd:
                some = ", ".join(sorted(odd)[:5]) + ", ..." * (len(odd) > 5)
                raise ValueError(f"{self.folder} {problem.format(len(odd))} ({some}); {BELONG}")
        for source, tensor in wanted.items():
            found = self._files[source].get_slice(source)
            kind, shape = found.get_dtype(), list(found.get_shape())
            floating = tensor.dtype != torch.uint8
            if shape != list(tensor.shape) or kind not in (DTYPES if floating else ("U8",)):
                content = "floating point numbers" if floating else "bytes (U8)"
                raise ValueError(
                    f"{source} of {self.folder} must hold {content} in the shape {list(tensor.shape)}, got {kind} "
                    f"in {shape}; {BELONG}"
                )


def _open_files(folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """{tensor: the open file that holds it} and {tensor: checksum}. ValueError for missing or damaged files."""
    from safetensors import safe_open

    paths = sorted(folder.glob("*.safetensors"))
    wanted = {path.name for path in paths}
    if (folder / INDEX).is_file():
        with reading(folder / INDEX, "an index of weights", way_out=names.ANOTHER):
            wanted = set(map(str, read_json_object(folder / INDEX)["weight_map"].values()))
    elif counted := re.search(r"-of-(\d+)\.safetensors$", paths[0].name if paths else ""):
        count = int(counted[1])
        if len(paths) != count:
            raise ValueError(f"{folder} has {len(paths)} of the {count} files of its weights; get the others")
    if missing := sorted(wanted - {path.name for path in paths}):
        raise ValueError(f"{folder} has no {missing[0]}, which its {INDEX} names; get this file")
    if not wanted:
        raise ValueError(f"{folder} has no .safetensors file; use a complete folder")
    files, checksums = {}, {}
    for path in paths:
        if path.name not in wanted:
            continue
        with reading(path, "a safetensors file", way_out=names.ANOTHER):
            file = safe_open(path, "pt")
            files |= dict.fromkeys(file.keys(), file)
            checksums |= dict(parse_json((file.metadata() or {}).get(CHECKSUMS, "{}")).items())
    return files, checksums


def checksum(tensor: torch.Tensor) -> int:
    """The CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy())


def read_tokenizer(folder: str | Path, config: ModelConfig) -> tiktoken.Encoding:
    """The encoding in a folder, or gpt-oss's own for a model with its number of ids. Raises ValueError."""
    path, used = Path(folder) / TOKENIZER, config.num_ids
    if path.is_file():
        encoding = tokenizer_from_state(read_json_object(path))
    elif used == names.OFFICIAL_IDS:
        encoding = get_tokenizer(HARMONY, other="")
    elif (encoding := read_vocabulary(Path(folder), without={IMAGE})) is None:
        raise ValueError(
            f"{folder} has {used:,} ids and no {TOKENIZER} or tokenizer.json, and gpt-oss's own tokenizer has "
            f"{names.OFFICIAL_IDS:,}; copy the tokenizer of the weights into it"
        )
    if encoding.n_vocab > used:
        raise ValueError(
            f"{folder} has {used:,} ids, but its tokenizer {encoding.name} has {encoding.n_vocab:,}; use the "
            "tokenizer files that were written with these weights"
        )
    return encoding


def read_folder(folder: str | Path) -> dict[str, Any]:
    """A dictionary like that of checkpoint.read_checkpoint, with step 0 and no training state."""
    weights = FolderWeights(folder)
    if weights.layout == "mlx":
        raise ValueError(
            f"{folder} was exported for MLX, which only MLX reads; use the checkpoint, or export it with --format hf"
        )
    name = names.class_of(weights.config).name
    state = {"model_name": name, "config": asdict(weights.config), "step": 0, "model": weights}
    return state | {"tokenizer": tokenizer_state(read_tokenizer(folder, weights.config))}


def packing_for(folder: str | Path, room: int) -> str | None:
    """What load_model's `weights` should be: "mxfp4" if experts in MXFP4 would not fit into `room` bytes unpacked.

    None for a checkpoint, for a folder of another model, and where all fits.
    """
    if not checkpoint.is_model_folder(folder):
        return None
    found = read_json_object(Path(folder) / CONFIG).get("model_type", names.MODEL_TYPE)
    if found not in (names.MODEL_TYPE, names.VISION_TYPE):
        return None
    held = FolderWeights(folder)
    needed = sum(tensor.numel() * tensor.element_size() for tensor in held.described.values())
    return "mxfp4" if held.fresh and needed > room else None


def load_packed(folder: str | Path, *, attention: str = "auto") -> nn.Module:
    """The model of a folder in eval mode on the CPU, its experts in MXFP4, unpacked as steps need them."""
    if not checkpoint.is_model_folder(folder):
        told = "export the checkpoint with --mxfp4"
        raise ValueError(f"weights=mxfp4 needs a folder of gpt-oss, got {folder}; {told}")
    weights = FolderWeights(folder, packed=True)
    if not weights.in_mxfp4:
        told = "load it without weights=mxfp4, or export with --mxfp4"
        raise ValueError(f"{folder} has no weights in MXFP4; {told}")
    model = checkpoint.without_values(names.class_of(weights.config), weights.config, attention=attention)
    mxfp4.pack_experts(model)
    checkpoint.load_weights(model, weights, folder)
    model.tokenizer = read_tokenizer(folder, weights.config)
    return model.eval()
