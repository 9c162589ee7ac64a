"""GGUF, the file of llama.cpp: model, config and tokenizer in one. Written and read with the gguf package.

llama.cpp's own converter knows no tokenizer that was trained here. Matrices are in the type that is asked for,
the experts' also in MXFP4; biases, norms, sinks and routers are float32, which llama.cpp expects.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import torch
import torch.nn.functional as F

from architecture.checkpoint import LazyWeights, config_from_dict, without_values
from architecture.gptoss import ModelConfig, RMSNorm, Transformer
from architecture.open_gpt_oss import mxfp4, names
from architecture.tokenizer import HARMONY
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
# {field of our config: key}
KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "expert_feed_forward_length",
    "num_experts": "expert_count",
    "experts_per_token": "expert_used_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
    "rope_theta": "rope.freq_base",
}
YARN_KEYS = {
    "initial_context_length": "rope.scaling.original_context_length",
    "rope_scaling_factor": "rope.scaling.factor",
    "rope_ntk_beta": "rope.scaling.yarn_beta_fast",
    "rope_ntk_alpha": "rope.scaling.yarn_beta_slow",
}
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
    if encoding.name == HARMONY:
        return "gpt-4o", None
    if encoding._pat_str not in PRE:
        raise ValueError(
            f"llama.cpp has no pre-tokenizer with the pattern of the tokenizer {encoding.name}, so --format gguf "
            "would split texts in another way; use --format hf"
        )
    name, otherwise = PRE[encoding._pat_str]
    tokens = (token.decode(errors="ignore") for token in encoding._mergeable_ranks)
    if not any(sum(map(str.isnumeric, token)) > 1 for token in tokens):
        otherwise = None  # digits are never merged, so groups of digits do not matter
    return name, otherwise


# ------------------------------------------------------------------------------------------------ writing
def write(
    path: Path,
    parts: Callable[[str], dict[str, torch.Tensor]],
    config: ModelConfig,
    encoding: tiktoken.Encoding,
    *,
    pack: bool,
    dtype: torch.dtype,
    chat_template: str | None = None,
) -> None:
    """Write a model to `path`, one tensor in memory at a time.

    parts: what is stored of one of our tensors: itself, or NAME.blocks and NAME.scales if it is packed.
    dtype: of the matrices, float32, float16 or bfloat16.
    Raises ValueError for a tokenizer that llama.cpp does not know, and OSError.
    """
    gguf = package()
    kinds, files = gguf.GGMLQuantizationType, gguf.LlamaFileType
    matrix, file_type = {
        torch.float32: (kinds.F32, files.ALL_F32),
        torch.float16: (kinds.F16, files.MOSTLY_F16),
        torch.bfloat16: (kinds.BF16, files.MOSTLY_BF16),
    }[dtype]
    writer = gguf.GGUFWriter(None, ARCHITECTURE)
    writer.add_file_type(files.MOSTLY_MXFP4_MOE if pack else file_type)
    for key, value in settings(config).items():
        {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](key, value)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(writer, encoding, config.num_ids, chat_template)
    stored = names.stored(without_values(Transformer, config).state_dict(), config)
    for name, whole in stored.items():
        kind = matrix if name.endswith(MATRICES) else kinds.F32
        kind = kinds.MXFP4 if pack and name.endswith(mxfp4.MATRICES) else kind
        block, size = gguf.GGML_QUANT_SIZES[kind]
        for part, tensor in names.to_theirs(name, whole, config, "gguf").items():
            count = tensor.numel() // block * size
            writer.add_tensor_info(part, tuple(tensor.shape), np.dtype(np.float32), count, raw_dtype=kind)
    writer.write_header_to_file(path)
    try:
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        file = writer.fout[0]  # writer.write_tensor_data gives no reason when the disk is full
        for name in stored:
            for array in _arrays(name, parts(name), config):
                writer.write_padding(file, file.tell())
                file.write(array.data)
        writer.write_padding(file, file.tell())
        file.flush()
        os.fsync(file.fileno())
    finally:
        writer.close()


def _arrays(name: str, parts: dict[str, torch.Tensor], config: ModelConfig) -> Iterator[np.ndarray]:
    """What the file holds of one of our tensors, in the order of names.their_names."""
    tensor = parts[name].detach() if name in parts else pack_blocks(*parts.values())
    for part in names.to_theirs(name, tensor, config, "gguf").values():
        part = part.contiguous()
        yield (
            part.view(torch.int16) if part.dtype == torch.bfloat16 else part
        ).numpy()  # numpy has no bfloat16


def settings(config: ModelConfig) -> dict[str, Any]:
    """{key: value} of the model's config; floats and ints are stored as such."""
    values = {key: getattr(config, name) for name, key in KEYS.items()}
    values |= {
        "context_length": config.context_limit,
        "vocab_size": config.num_ids,
        "feed_forward_length": config.intermediate_size,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": RMSNorm.eps,
        "rope.dimension_count": config.head_dim,
    }
    if config.rope_scaling_factor > 1:
        values |= {"rope.scaling.type": "yarn"} | {
            key: getattr(config, name) for name, key in YARN_KEYS.items()
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
    harmony = encoding.name == HARMONY
    writer.add_bos_token_id(special["<|startoftext|>"] if harmony else encoding.eot_token)
    writer.add_eos_token_id(special["<|return|>"] if harmony else encoding.eot_token)
    writer.add_pad_token_id(encoding.eot_token)
    # As in sample.py, end-of-text precedes a prompt; in harmony the messages have tokens of their own.
    writer.add_add_bos_token(not harmony)
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def pack_blocks(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """(..., G, 16) and (..., G) uint8 of mxfp4.quantise -> (..., 17 G) uint8 in llama.cpp's order.

    A block is its scale and 16 bytes, whose low halves hold values 0 to 15 and high halves values 16 to 31.
    """
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2)  # (..., G, 32) in order
    halves = codes[..., :16] | codes[..., 16:] << 4
    return torch.cat((scales[..., None], halves), dim=-1).flatten(-2)


# ------------------------------------------------------------------------------------------------ reading
def read(path: str | Path) -> tuple[ModelConfig, LazyWeights, set[str]]:
    """The config, the tensors under our names in float32, and the names of the types that matrices have.

    Raises ValueError for a file that is no GGUF of gpt-oss, or lacks what its config needs.
    """
    gguf = package()
    with reading(path, "a GGUF of gpt-oss", way_out="export it again"):
        reader = gguf.GGUFReader(path)
        found = {name: field.contents() for name, field in reader.fields.items()}
        if (kind := found["general.architecture"]) != ARCHITECTURE:
            raise ValueError(f"its architecture is {kind}")
        config = read_settings({k.removeprefix(f"{ARCHITECTURE}."): value for k, value in found.items()})
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        model = without_values(Transformer, config).state_dict()
        for name, tensor in names.stored(model, config).items():
            for part, wanted in names.to_theirs(name, tensor, config, "gguf").items():
                shape = tensors[part].shape[::-1].tolist()
                if shape != list(wanted.shape):
                    raise ValueError(f"its {part} has the shape {shape}, not {list(wanted.shape)}")

    def values(name: str) -> torch.Tensor:
        if names.SELECTION_BIAS.fullmatch(name):
            return torch.zeros(model[name].shape)
        with reading(path, "a GGUF of gpt-oss", way_out="export it again"):
            parts = [tensors[part] for part in names.their_names(name, "gguf")]
            parts = [gguf.quants.dequantize(part.data, part.tensor_type) for part in parts]
            parts = [torch.from_numpy(np.array(part, dtype=np.float32)) for part in parts]
            tensor = names.from_theirs(name, parts, "gguf")
        return (
            F.pad(tensor, (0, 0, 0, len(model[name]) - len(tensor))) if name in names.VOCABULARY else tensor
        )

    kinds = {tensor.tensor_type.name for tensor in reader.tensors if tensor.name.endswith(".weight")}
    return config, LazyWeights(model, values), kinds


def read_settings(values: Mapping[str, Any]) -> ModelConfig:
    """The inverse of settings, from keys without the prefix. Raises KeyError for a missing key."""
    ours = {name: values[key] for name, key in KEYS.items()}
    ours |= {"initial_context_length": values["context_length"], "rope_scaling_factor": 1.0}
    if values.get("rope.scaling.type") == "yarn":
        ours |= {
            name: values[key] for name, key in YARN_KEYS.items() if key in values
        }  # gpt-oss's are the defaults
    return names.padded(config_from_dict(ModelConfig, ours | {"vocab_size": values["vocab_size"]}))
