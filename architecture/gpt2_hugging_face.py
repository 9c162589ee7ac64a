"""Read and write GPT-2 as a folder of transformers: config.json and model.safetensors.

    python -m architecture.gpt2_hugging_face export --checkpoint CKPT --out FOLDER

registry.read_weights reads such a folder through this module, so it can be used wherever a checkpoint can.
Only tensors are read, never a pickle. transformers need not be installed.

Our format has other names, transposed matrices in the blocks ((out, in) here, (in, out) there), and a
vocabulary padded to a multiple of 64. Dropout is a setting of a run here, so that of the folder is ignored.
transformers has no GPT-2 without positions: position=none is written as a table of zeros, which adds nothing,
and is read back as that table, which further training would change.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from architecture.checkpoint import config_from_dict, without_values
from architecture.gpt2 import GPT2, LAYER_NORM_EPS, ModelConfig
from architecture.tokenizer import (
    get_tokenizer,
    padded_vocab_size,
    tokenizer_from_state,
    tokenizer_state,
)
from architecture.tokenizer_json import read_vocabulary, tokenizer_files
from common.files import as_json, atomic_write, new_folder, read_json_object, reading, require_new_folder
from common.script import Parser, exit_code

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER = "tiktoken.json"  # the tokenizer of a folder that this module wrote; without it, GPT-2's own
VOCABULARY = "tokenizer.json"  # the same for transformers
FILES = f"{TOKENIZER}, {VOCABULARY}, or vocab.json with merges.txt"
GPT2_IDS = 50257  # number of ids of GPT-2's own tokenizer

# Our name: their name, and the default of transformers' GPT2Config.
SIZES = {
    "num_hidden_layers": ("n_layer", 12),
    "vocab_size": ("vocab_size", GPT2_IDS),
    "hidden_size": ("n_embd", 768),
    "intermediate_size": ("n_inner", None),  # None stands for 4 n_embd
    "num_attention_heads": ("n_head", 12),
    "initial_context_length": ("n_positions", 1024),
    "tie_embeddings": ("tie_word_embeddings", True),
}
# Settings that change what the same weights compute: the values that this code implements, default first.
FIXED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (LAYER_NORM_EPS,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
# Buffers in files of older versions: the causal mask, and the number that masked scores get.
IGNORED = re.compile(r"h\.\d+\.attn\.(masked_)?bias")


# ------------------------------------------------------------------------------------------------- names
def their_names(config: ModelConfig) -> dict[str, str]:
    """{our name: their name} of every tensor, without the prefix "transformer." that some files use."""
    parts = {
        "attn.norm": "ln_1",
        "attn.qkv": "attn.c_attn",
        "attn.out": "attn.c_proj",
        "mlp.norm": "ln_2",
        "mlp.mlp1": "mlp.c_fc",
        "mlp.mlp2": "mlp.c_proj",
    }
    names = {"embedding.weight": "wte.weight"}
    if config.position == "learned":
        names["position_embedding.weight"] = "wpe.weight"
    for kind in ("weight", "bias"):
        names[f"norm.{kind}"] = f"ln_f.{kind}"
        for layer in range(config.num_hidden_layers):
            for ours, theirs in parts.items():
                names[f"block.{layer}.{ours}.{kind}"] = f"h.{layer}.{theirs}.{kind}"
    if not config.tie_embeddings:
        names["unembedding.weight"] = "lm_head.weight"
    return names


def _turned(theirs: str, tensor: torch.Tensor) -> torch.Tensor:
    """A matrix of a block, transposed from their layout to ours or back; other tensors unchanged."""
    return tensor.T if re.fullmatch(r"h\..+\.c_\w+\.weight", theirs) else tensor


def to_hugging_face(weights: dict[str, torch.Tensor], config: ModelConfig) -> dict[str, torch.Tensor]:
    """Our tensors, or their gradients, with the names and layouts of GPT2LMHeadModel."""
    tensors = {}
    for ours, theirs in their_names(config).items():
        tensor = weights[ours]
        if theirs in ("wte.weight", "lm_head.weight"):
            tensor = tensor[: config.used_vocab_size]
        prefix = "" if theirs == "lm_head.weight" else "transformer."
        tensors[prefix + theirs] = _turned(theirs, tensor).contiguous()
    if config.position == "none":
        embedding = weights["embedding.weight"]
        tensors["transformer.wpe.weight"] = embedding.new_zeros(config.context_limit, config.hidden_size)
    return tensors


def from_hugging_face(
    tensors: dict[str, torch.Tensor], config: ModelConfig, source: str | Path
) -> dict[str, torch.Tensor]:
    """Their tensors with our names and layouts, in float32, the vocabulary padded with zeros.

    source: the folder, for messages.  Raises ValueError for tensors that do not fit config.
    """
    found = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    found = {name: tensor for name, tensor in found.items() if not IGNORED.fullmatch(name)}
    if config.tie_embeddings and "wte.weight" in found and "lm_head.weight" in found:
        if not torch.equal(found.pop("lm_head.weight"), found["wte.weight"]):
            raise ValueError(
                f"{source} has a head of its own (lm_head.weight differs from wte.weight), but its {CONFIG} "
                "has tie_word_embeddings true; set it to false"
            )
    wanted = to_hugging_face(without_values(GPT2, config).state_dict(), config)
    shapes = {name.removeprefix("transformer."): tensor.shape for name, tensor in wanted.items()}
    for problem, odd in (
        ("lacks {} tensor(s) of GPT-2", shapes.keys() - found.keys()),
        ("holds {} tensor(s) that GPT-2 lacks", found.keys() - shapes.keys()),
    ):
        if odd:
            raise ValueError(
                f"{source} {problem.format(len(odd))} (first: {min(odd)}); write it with GPT2LMHeadModel's "
                "save_pretrained"
            )
    for name, tensor in found.items():
        if tensor.shape != shapes[name] or not tensor.is_floating_point():
            raise ValueError(
                f"{name} of {source} must hold floating point numbers in the shape {list(shapes[name])}, as "
                f"its {CONFIG} says, got {tensor.dtype} in {list(tensor.shape)}; use a folder whose files "
                "belong together"
            )
    weights = {}
    for ours, theirs in their_names(config).items():
        tensor = _turned(theirs, found[theirs]).float()
        if theirs in ("wte.weight", "lm_head.weight"):
            tensor = F.pad(tensor, (0, 0, 0, config.vocab_size - len(tensor)))
        weights[ours] = tensor.contiguous()
    weights.setdefault("unembedding.weight", weights["embedding.weight"])
    return weights


# ----------------------------------------------------------------------------------------------- reading
def read_config(folder: str | Path) -> ModelConfig:
    """The config that config.json describes, its vocabulary padded to a multiple of 64."""
    path = Path(folder) / CONFIG
    theirs = read_json_object(path)
    for name, allowed in FIXED.items():
        if theirs.get(name, allowed[0]) not in allowed:
            raise ValueError(
                f"{name} in {path} must be {json.dumps(allowed[0])}, got {theirs[name]!r}; this code has no "
                "GPT-2 with another value"
            )
    values = {ours: theirs.get(name, default) for ours, (name, default) in SIZES.items()}
    with reading(path, "the config of a GPT-2", way_out="use another copy of it"):
        if values["intermediate_size"] is None:
            values["intermediate_size"] = 4 * values["hidden_size"]
        used = values["vocab_size"]
        values["vocab_size"] = padded_vocab_size(used)
        values["used_vocab_size"] = used if used % 64 else None
        return config_from_dict(ModelConfig, values)


def read_weights(folder: str | Path, config: ModelConfig) -> dict[str, torch.Tensor]:
    """The tensors of a folder with our names, in float32."""
    from safetensors.torch import load_file

    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {WEIGHTS} with all weights; write one file with GPT2LMHeadModel's "
            "save_pretrained(FOLDER, max_shard_size='20GB')"
        )
    with reading(path, "weights", way_out="use another copy of it"):
        tensors = load_file(path)
    return from_hugging_face(tensors, config, folder)


def read_tokenizer(folder: str | Path, config: ModelConfig) -> dict[str, Any]:
    """The state of the tokenizer beside the weights, or else of GPT-2's own."""
    path = Path(folder) / TOKENIZER
    used = config.num_ids
    if path.is_file():
        encoding = tokenizer_from_state(read_json_object(path))
    elif (encoding := read_vocabulary(Path(folder))) is None:
        if used != GPT2_IDS:
            raise ValueError(
                f"{folder} has {used:,} ids and no {FILES}, and GPT-2's own tokenizer has {GPT2_IDS:,}; copy the "
                "tokenizer of the weights into it"
            )
        other = f", or copy GPT-2's vocab.json and merges.txt into {folder}, which has no {FILES}"
        encoding = get_tokenizer("gpt2", other=other)
    if encoding.n_vocab != used:
        raise ValueError(
            f"{folder} has {used:,} ids, but its tokenizer {encoding.name} has {encoding.n_vocab:,}; "
            f"use the tokenizer files that were written with these weights"
        )
    return tokenizer_state(encoding)


def read_folder(folder: str | Path) -> dict[str, Any]:
    """A dictionary like that of checkpoint.read_checkpoint, with step 0 and no training state."""
    config = read_config(folder)
    tokenizer = read_tokenizer(folder, config)
    state = {"model_name": "gpt2", "config": asdict(config), "tokenizer": tokenizer, "step": 0}
    return state | {"model": read_weights(folder, config)}


# ----------------------------------------------------------------------------------------------- writing
def write_folder(model: GPT2, folder: str | Path) -> None:
    """Write a folder for GPT2LMHeadModel.from_pretrained and read_folder. A failed write leaves nothing.

    The tokenizer of the model, if it has one, is stored beside the weights as tokenizer_state describes it.
    Raises ValueError for a folder that is not empty, and CannotWrite.
    """
    from safetensors.torch import save

    require_new_folder(folder)
    config, tokenizer = model.config, model.tokenizer
    theirs = {name: getattr(config, ours) for ours, (name, _) in SIZES.items()}
    theirs |= {name: allowed[0] for name, allowed in FIXED.items()}
    theirs |= {name: config.dropout for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop")}
    end_of_text = tokenizer.eot_token if tokenizer else None
    theirs |= {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    theirs |= {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "dtype": "float32"}
    theirs["vocab_size"] = config.num_ids
    weights = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}
    files = {CONFIG: as_json(theirs), WEIGHTS: save(to_hugging_face(weights, config), {"format": "pt"})}
    if tokenizer:
        files[TOKENIZER] = as_json(tokenizer_state(tokenizer))
        files |= tokenizer_files(tokenizer, model_max_length=config.initial_context_length)
    with new_folder(folder) as temporary:
        for name, content in files.items():
            with atomic_write(temporary / name) as file:
                file.write(content)


# ----------------------------------------------------------------------------------------------- command
def run(argv: list[str] | None) -> None:
    parser = Parser(prog="gpt2_hugging_face", description=__doc__.splitlines()[0], allow_abbrev=False)
    export = parser.add_subparsers(required=True, metavar="export").add_parser(
        "export", help="write a checkpoint of --model gpt2 as a folder that transformers reads"
    )
    checkpoint = "checkpoint_<step>.pt, RUN or RUN/best.json"
    export.add_argument("--checkpoint", required=True, metavar="CKPT", help=checkpoint)
    export.add_argument("--out", required=True, metavar="FOLDER", help="the folder to write; new or empty")
    args = parser.parse_args(argv)
    write_folder(GPT2.from_checkpoint(args.checkpoint), args.out)
    print(f"wrote {args.out}")


def main(argv: list[str] | None = None) -> int:
    """Return the exit code; see common/script.py."""
    return exit_code("architecture.gpt2_hugging_face", lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
