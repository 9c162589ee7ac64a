"""GPT-2 as transformers keeps it: a folder with config.json and model.safetensors, read and written.

    python -m architecture.gpt2_hugging_face export --checkpoint CKPT --out FOLDER

Reading is registry.read_weights', which comes here: the folder serves wherever a checkpoint does. Only
tensors are read, never a pickle. transformers itself is not needed.

What differs: names; the matrices of a block, (in, out) there and (out, in) here; the vocabulary, which is
padded to a multiple of 64 here; dropout, a setting of a run here, so that what the folder says of it is left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from architecture.checkpoint import config_from_dict
from architecture.gpt2 import GPT2, LAYER_NORM_EPS, ModelConfig
from architecture.tokenizer import get_tokenizer, padded_vocab_size, tokenizer_from_state, tokenizer_state
from common.files import atomic_write, read_json_object, reading, writing
from common.script import Parser, exit_code

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER = "tiktoken.json"  # beside them where we wrote the folder; without it GPT-2's own
GPT2_IDS = 50257  # of that

# Our name: theirs, and the value that GPT2Config has where its config.json says nothing.
SIZES = {
    "num_hidden_layers": ("n_layer", 12),
    "vocab_size": ("vocab_size", GPT2_IDS),
    "hidden_size": ("n_embd", 768),
    "intermediate_size": ("n_inner", None),  # null: 4 n_embd
    "num_attention_heads": ("n_head", 12),
    "initial_context_length": ("n_positions", 1024),
    "tie_embeddings": ("tie_word_embeddings", True),
}
# Settings that would make another model of the same weights: what they must be, the default first.
FIXED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (LAYER_NORM_EPS,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
# the causal mask and the number that it puts in: buffers in files of older versions
IGNORED = re.compile(r"h\.\d+\.attn\.(masked_)?bias")


# ------------------------------------------------------------------------------------------------- names
def their_names(config: ModelConfig) -> dict[str, str]:
    """{our name: theirs} of every tensor, without the "transformer." that some files put in front."""
    parts = {
        "attn.norm": "ln_1",
        "attn.qkv": "attn.c_attn",
        "attn.out": "attn.c_proj",
        "mlp.norm": "ln_2",
        "mlp.mlp1": "mlp.c_fc",
        "mlp.mlp2": "mlp.c_proj",
    }
    names = {"embedding.weight": "wte.weight", "position_embedding.weight": "wpe.weight"}
    for kind in ("weight", "bias"):
        names[f"norm.{kind}"] = f"ln_f.{kind}"
        for layer in range(config.num_hidden_layers):
            for ours, theirs in parts.items():
                names[f"block.{layer}.{ours}.{kind}"] = f"h.{layer}.{theirs}.{kind}"
    if not config.tie_embeddings:
        names["unembedding.weight"] = "lm_head.weight"
    return names


def _turned(theirs: str, tensor: torch.Tensor) -> torch.Tensor:
    """A matrix of a block between their layout and ours, either way; anything else as it is."""
    return tensor.T if re.fullmatch(r"h\..+\.c_\w+\.weight", theirs) else tensor


def to_hugging_face(weights: dict[str, torch.Tensor], config: ModelConfig) -> dict[str, torch.Tensor]:
    """Our tensors (or their gradients) under the names and in the layouts of GPT2LMHeadModel."""
    tensors = {}
    for ours, theirs in their_names(config).items():
        tensor = weights[ours]
        if theirs in ("wte.weight", "lm_head.weight"):
            tensor = tensor[: config.used_vocab_size]
        prefix = "" if theirs == "lm_head.weight" else "transformer."
        tensors[prefix + theirs] = _turned(theirs, tensor).contiguous()
    return tensors


def from_hugging_face(
    tensors: dict[str, torch.Tensor], config: ModelConfig, source: str | Path
) -> dict[str, torch.Tensor]:
    """Their tensors as ours, in float32, the vocabulary padded with zeros to that of config.

    Raises ValueError, in one sentence that names source, for tensors that are not those of this config.
    """
    found = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    found = {name: tensor for name, tensor in found.items() if not IGNORED.fullmatch(name)}
    if config.tie_embeddings and "wte.weight" in found and "lm_head.weight" in found:
        if not torch.equal(found.pop("lm_head.weight"), found["wte.weight"]):
            raise ValueError(
                f"{source} has a head of its own (lm_head.weight is not wte.weight), and its {CONFIG} says "
                "tie_word_embeddings true; correct that to false"
            )
    with torch.device("meta"):
        wanted = to_hugging_face(GPT2(config).state_dict(), config)
    shapes = {name.removeprefix("transformer."): tensor.shape for name, tensor in wanted.items()}
    for problem, odd in (
        ("lacks tensors of a GPT-2", shapes.keys() - found.keys()),
        ("has tensors that no GPT-2 has", found.keys() - shapes.keys()),
    ):
        if odd:
            raise ValueError(
                f"{source} {problem} ({len(odd)}, first {min(odd)}); write it with GPT2LMHeadModel's "
                "save_pretrained"
            )
    for name, tensor in found.items():
        if tensor.shape != shapes[name] or not tensor.is_floating_point():
            raise ValueError(
                f"{name} of {source} must hold floating point numbers in the shape {list(shapes[name])}, as "
                f"its {CONFIG} says, got {tensor.dtype} in {list(tensor.shape)}; use a folder whose two files "
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
    """The shape that the config.json of a GPT-2 describes, its vocabulary padded to a multiple of 64."""
    path = Path(folder) / CONFIG
    theirs = read_json_object(path)
    for name, allowed in FIXED.items():
        if theirs.get(name, allowed[0]) not in allowed:
            raise ValueError(
                f"{name} in {path} must be {json.dumps(allowed[0])}, got {theirs[name]!r}; a GPT-2 that "
                "was trained with another cannot be read"
            )
    values = {ours: theirs.get(name, default) for ours, (name, default) in SIZES.items()}
    with reading(path, "the shape of a GPT-2", way_out="use another copy of it"):
        if values["intermediate_size"] is None:
            values["intermediate_size"] = 4 * values["hidden_size"]
        used = values["vocab_size"]
        values["vocab_size"] = padded_vocab_size(used)
        values["used_vocab_size"] = used if used % 64 else None
        return config_from_dict(ModelConfig, values)


def read_weights(folder: str | Path, config: ModelConfig) -> dict[str, torch.Tensor]:
    """The tensors of a folder under our names, float32."""
    from safetensors.torch import load_file

    path = Path(folder) / WEIGHTS
    if not path.is_file():
        several = (Path(folder) / f"{WEIGHTS}.index.json").is_file()
        state = "the weights in several files" if several else f"no {WEIGHTS}"
        raise ValueError(
            f"{folder} has {state}; write one with GPT2LMHeadModel's "
            "save_pretrained(FOLDER, max_shard_size='20GB')"
        )
    with reading(path, "weights", way_out="use another copy of it"):
        tensors = load_file(path)
    return from_hugging_face(tensors, config, folder)


def read_tokenizer(folder: str | Path, config: ModelConfig) -> dict[str, Any]:
    """State of the tokenizer: what stands beside the weights, or else GPT-2's own."""
    path = Path(folder) / TOKENIZER
    used = config.used_vocab_size or config.vocab_size
    if path.is_file():
        encoding = tokenizer_from_state(read_json_object(path))
        way_out = f"use the {TOKENIZER} that was written with these weights"
    else:
        if used != GPT2_IDS:
            raise ValueError(
                f"{folder} has {used:,} ids, and GPT-2's tokenizer {GPT2_IDS:,}; only folders of that "
                f"tokenizer, or with the {TOKENIZER} that export writes beside the weights, can be read"
            )
        encoding, way_out = get_tokenizer("gpt2"), "use the weights that belong to it"
    if encoding.n_vocab != used:
        raise ValueError(
            f"{folder} has {used:,} ids, and its tokenizer {encoding.name} {encoding.n_vocab:,}; {way_out}"
        )
    return tokenizer_state(encoding)


def read_folder(folder: str | Path) -> dict[str, Any]:
    """What checkpoint.read_checkpoint returns, of a folder of transformers; step 0, and no run to continue."""
    config = read_config(folder)
    tokenizer = read_tokenizer(folder, config)
    return {
        "model_name": "gpt2",
        "config": asdict(config),
        "model": read_weights(folder, config),
        "tokenizer": tokenizer,
        "step": 0,
    }


# ----------------------------------------------------------------------------------------------- writing
def write_folder(model: GPT2, folder: str | Path) -> None:
    """What GPT2LMHeadModel.from_pretrained reads, and read_folder; it is there whole or not at all.

    The tokenizer of the model, if it has one, goes beside the weights in our own form.
    Raises ValueError for a folder that holds something and for one that cannot be written.
    """
    from safetensors.torch import save

    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} must be a new or an empty folder; choose another name")
    if not folder.absolute().parent.is_dir():
        raise ValueError(f"{folder} is in a folder that does not exist; make that first")
    config, tokenizer = model.config, model.tokenizer
    theirs = {name: getattr(config, ours) for ours, (name, _) in SIZES.items()}
    theirs |= {name: allowed[0] for name, allowed in FIXED.items()}
    theirs |= {name: config.dropout for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop")}
    end_of_text = tokenizer.eot_token if tokenizer else None
    theirs |= {"bos_token_id": end_of_text, "eos_token_id": end_of_text}  # a text begins and ends with it
    theirs |= {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "dtype": "float32"}
    theirs["vocab_size"] = config.used_vocab_size or config.vocab_size
    weights = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}
    files = {CONFIG: _as_json(theirs), WEIGHTS: save(to_hugging_face(weights, config), {"format": "pt"})}
    if tokenizer:
        files[TOKENIZER] = _as_json(tokenizer_state(tokenizer))
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
    with writing(folder):
        try:
            temporary.mkdir()
            for name, content in files.items():
                with atomic_write(temporary / name) as file:
                    file.write(content)
            os.replace(temporary, folder)  # an empty folder gives way
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


# ----------------------------------------------------------------------------------------------- command
def run(argv: list[str] | None) -> None:
    parser = Parser(prog="gpt2_hugging_face", description=__doc__.splitlines()[0], allow_abbrev=False)
    export = parser.add_subparsers(required=True, metavar="export").add_parser(
        "export", help="a checkpoint of --model gpt2 as a folder that transformers reads"
    )
    export.add_argument(
        "--checkpoint", required=True, metavar="CKPT", help="checkpoint_<step>.pt, RUN or RUN/best.json"
    )
    export.add_argument("--out", required=True, metavar="FOLDER", help="to write; new or empty")
    args = parser.parse_args(argv)
    write_folder(GPT2.from_checkpoint(args.checkpoint), args.out)
    print(f"wrote {args.out}")


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, or as common/script.py says for bad input and Ctrl-C."""
    return exit_code("gpt2_hugging_face", lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
