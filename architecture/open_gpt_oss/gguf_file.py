"""GGUF, the file of llama.cpp: model, config and tokenizer in one. Written and read with the gguf package.

llama.cpp's own converter knows no tokenizer that was trained here. Matrices are in the type that is asked for,
the experts' also in MXFP4; biases, norms, sinks and routers are float32, which llama.cpp expects.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import torch

from architecture.checkpoint import config_from_dict
from architecture.gptoss import ModelConfig, RMSNorm
from architecture.open_gpt_oss import mxfp4, names, targets
from architecture.tokenizer import padded_vocab_size
from architecture.tokenizer_json import tokenizer_json
from common.files import reading

ARCHITECTURE = "gpt-oss"
FILE = "model.gguf"
NORMAL, CONTROL, UNUSED = 1, 3, 5  # kinds of token
# llama.cpp knows patterns by name. {pattern: (name, what it does otherwise)}
OURS = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,2}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
NUMBERS = (
    "llama.cpp has no name for this tokenizer's pattern: it reads numbers in groups of three digits, not of two, "
    "so numbers of three and more digits get other ids; everything else gets the same"
)
WORDS = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
GPT2 = (
    rf"'s|'t|'re|'ve|'m|'ll|'d|{WORDS}|\s+(?!\S)|\s+",
    rf"'(?:[sdmt]|ll|ve|re)|{WORDS}|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
)
PRE = {OURS: ("llama-bpe", NUMBERS)} | dict.fromkeys(GPT2, ("gpt-2", None))
MATRICES = ("embedding.weight", "qkv.weight", "out.weight", *mxfp4.MATRICES)  # the rest is float32


@functools.cache
def package():
    """The gguf package. ImportError with the line that installs it."""
    try:
        import gguf
        import gguf.quants  # noqa: F401
    except ImportError:
        raise ImportError(
            "GGUF files need the package gguf; pip install -r requirements-export.txt"
        ) from None
    return gguf


def pre_tokenizer(encoding: tiktoken.Encoding) -> tuple[str, str | None]:
    """llama.cpp's name of an encoding's pattern, and a sentence about what it does otherwise, or None.

    Raises ValueError for a pattern that llama.cpp does not know.
    """
    if encoding.name == "o200k_harmony":
        return "gpt-4o", None
    if encoding._pat_str not in PRE:
        raise ValueError(
            f"llama.cpp has no pre-tokenizer with the pattern of the tokenizer {encoding.name}, so --format gguf "
            "would split texts in another way; use --format hf"
        )
    name, otherwise = PRE[encoding._pat_str]
    if otherwise and not any(map(_has_two_digits, encoding._mergeable_ranks)):
        otherwise = None  # digits are never merged, so groups of digits do not matter
    return name, otherwise


def _has_two_digits(token: bytes) -> bool:
    return sum(character.isnumeric() for character in token.decode(errors="ignore")) > 1


# ------------------------------------------------------------------------------------------------ writing
def write(
    path: Path,
    stored: Callable[[str], Iterable[tuple[str, torch.Tensor]]],
    described: Mapping[str, torch.Tensor],
    config: ModelConfig,
    encoding: tiktoken.Encoding,
    *,
    pack: bool,
    dtype: torch.dtype,
    chat_template: str | None = None,
) -> None:
    """Write a model to `path`, one tensor in memory at a time.

    stored: the parts (name, tensor) of a tensor of ours: itself, or NAME.blocks and NAME.scales if it is
    packed.  described: all tensors of the model, with their shapes.  dtype: of the matrices, float32, float16
    or bfloat16.  Raises ValueError for a tokenizer that llama.cpp does not know, and OSError.
    """
    gguf = package()
    kinds, used = gguf.GGMLQuantizationType, config.used_vocab_size or config.vocab_size
    matrix = {torch.float32: kinds.F32, torch.float16: kinds.F16, torch.bfloat16: kinds.BF16}[dtype]
    writer = gguf.GGUFWriter(None, ARCHITECTURE)
    for key, value in {**settings(config), "general.file_type": int(_file_type(pack, matrix))}.items():
        {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](key, value)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(writer, encoding, used, chat_template)
    kept = [name for name in described if not names.SELECTION_BIAS.fullmatch(name)]
    for name in kept:
        shape = torch.empty(described[name].shape, device="meta")
        kind = kinds.MXFP4 if pack and name.endswith(mxfp4.MATRICES) else kinds.F32
        kind = matrix if kind == kinds.F32 and name.endswith(MATRICES) else kind
        shape = shape[:used] if name in targets.MODEL["gguf"] and shape.ndim == 2 else shape
        block, size = gguf.GGML_QUANT_SIZES[kind]
        for part, tensor in targets.to_target(name, shape, config, "gguf").items():
            writer.add_tensor_info(
                part,
                tuple(tensor.shape),
                np.dtype(np.float32),
                tensor.numel() // block * size,
                raw_dtype=kind,
            )
    writer.write_header_to_file(path)
    try:
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        file = writer.fout[0]
        for name in kept:
            for array in _arrays(name, dict(stored(name)), config, matrix == kinds.BF16):
                writer.write_padding(file, file.tell())
                file.write(array.data)
        writer.write_padding(file, file.tell())
        file.flush()
        os.fsync(file.fileno())
    finally:
        writer.close()


def settings(config: ModelConfig) -> dict[str, Any]:
    """{key: value} of the model's config; floats and ints are stored as such."""
    values = {
        "block_count": config.num_hidden_layers,
        "context_length": config.context_limit,
        "vocab_size": config.used_vocab_size or config.vocab_size,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "expert_feed_forward_length": config.intermediate_size,
        "expert_count": config.num_experts,
        "expert_used_count": config.experts_per_token,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": RMSNorm.eps,
        "attention.sliding_window": config.sliding_window,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
    }
    if config.rope_scaling_factor > 1:
        values |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(config.rope_scaling_factor),
            "rope.scaling.original_context_length": config.initial_context_length,
            "rope.scaling.yarn_beta_fast": float(config.rope_ntk_beta),
            "rope.scaling.yarn_beta_slow": float(config.rope_ntk_alpha),
        }
    return {f"{ARCHITECTURE}.{key}": value for key, value in values.items()}


def _add_tokenizer(writer, encoding: tiktoken.Encoding, used: int, chat_template: str | None) -> None:
    content, special = tokenizer_json(encoding), encoding._special_tokens
    tokens, types = [f"<|unused_{number}|>" for number in range(used)], [UNUSED] * used
    for token, number in content["model"]["vocab"].items():
        tokens[number], types[number] = token, NORMAL
    for added in content["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], CONTROL
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre(pre_tokenizer(encoding)[0])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    harmony = encoding.name == "o200k_harmony"
    writer.add_bos_token_id(special["<|startoftext|>"] if harmony else encoding.eot_token)
    writer.add_eos_token_id(special["<|return|>"] if harmony else encoding.eot_token)
    writer.add_pad_token_id(encoding.eot_token)
    # As in sample.py, end-of-text precedes a prompt; in harmony the messages have tokens of their own.
    writer.add_add_bos_token(not harmony)
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def _file_type(pack: bool, matrix):
    gguf = package()
    if pack:
        return gguf.LlamaFileType.MOSTLY_MXFP4_MOE
    types, kinds = gguf.LlamaFileType, gguf.GGMLQuantizationType
    return {kinds.F32: types.ALL_F32, kinds.F16: types.MOSTLY_F16, kinds.BF16: types.MOSTLY_BF16}[matrix]


def _arrays(name: str, parts: dict[str, torch.Tensor], config: ModelConfig, bfloat16: bool):
    """The numpy arrays of a tensor's parts, in the order of targets.target_names."""
    if name in parts:
        tensor = parts[name] if name.endswith(MATRICES) else parts[name].float()
        for part in targets.to_target(name, tensor, config, "gguf").values():
            part = part.detach().contiguous()
            yield (part.view(torch.int16) if bfloat16 and part.dtype == torch.bfloat16 else part).numpy()
        return
    packed = pack_blocks(parts[f"{name}.blocks"], parts[f"{name}.scales"])
    for part in targets.to_target(name, packed, config, "gguf").values():
        yield part.contiguous().numpy()


def pack_blocks(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """(..., G, 16) and (..., G) uint8 of mxfp4.quantise -> (..., 17 G) uint8 in llama.cpp's order.

    A block is its scale and 16 bytes, whose low halves hold values 0 to 15 and high halves values 16 to 31.
    """
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2)  # (..., G, 32) in order
    halves = codes[..., :16] | codes[..., 16:] << 4
    return torch.cat((scales[..., None], halves), dim=-1).flatten(-2)


# ------------------------------------------------------------------------------------------------ reading
def read(
    path: str | Path, accept: Callable[[ModelConfig], None] = lambda config: None
) -> tuple[ModelConfig, dict[str, torch.Tensor], set[str]]:
    """The config, the tensors under our names in float32, and the names of the types that matrices have.

    accept: may refuse the config by a ValueError, before tensors are read.
    Raises ValueError for a file that is no GGUF of gpt-oss, or lacks what its config needs.
    """
    gguf = package()
    with reading(path, "a GGUF of gpt-oss", way_out="export it again"):
        reader = gguf.GGUFReader(path)
        found = {name: field.contents() for name, field in reader.fields.items()}
        if (kind := found["general.architecture"]) != ARCHITECTURE:
            raise ValueError(f"its architecture is {kind}")
        config = read_settings({k.removeprefix(f"{ARCHITECTURE}."): value for k, value in found.items()})
    accept(config)
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def values(name: str) -> torch.Tensor:
        array = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        return torch.from_numpy(np.array(array, dtype=np.float32))

    with reading(path, "a GGUF of gpt-oss", way_out="export it again"):
        weights = targets.whole(config, "gguf", values)
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if tensor.name.endswith(".weight")}
    return config, weights, kinds


def read_settings(values: Mapping[str, Any]) -> ModelConfig:
    """The inverse of settings, from keys without the prefix. Raises KeyError for a missing key."""
    used, ours = values["vocab_size"], {}
    for name, key in (
        ("num_hidden_layers", "block_count"),
        ("hidden_size", "embedding_length"),
        ("intermediate_size", "expert_feed_forward_length"),
        ("num_experts", "expert_count"),
        ("experts_per_token", "expert_used_count"),
        ("num_attention_heads", "attention.head_count"),
        ("num_key_value_heads", "attention.head_count_kv"),
        ("head_dim", "attention.key_length"),
        ("sliding_window", "attention.sliding_window"),
        ("rope_theta", "rope.freq_base"),
        ("initial_context_length", "context_length"),
    ):
        ours[name] = values[key]
    ours["rope_scaling_factor"] = 1.0
    if values.get("rope.scaling.type") == "yarn":
        ours["initial_context_length"] = values["rope.scaling.original_context_length"]
        ours["rope_scaling_factor"] = values["rope.scaling.factor"]
        ours["rope_ntk_beta"] = values.get("rope.scaling.yarn_beta_fast", 32.0)
        ours["rope_ntk_alpha"] = values.get("rope.scaling.yarn_beta_slow", 1.0)
    size = padded_vocab_size(used)
    ours |= {"vocab_size": size, "used_vocab_size": used if used < size else None}
    return config_from_dict(ModelConfig, ours)
