"""The configs of gpt-oss, and the names and layouts of its tensors where they are stored.

    original    OpenAI's, also this project's
    hf          Hugging Face's
    gguf, mlx   those of llama.cpp and MLX

    original                          hf                              gguf, mlx
    block.N.attn.qkv                  q_proj, k_proj, v_proj: the rows of qkv in this order; attn_q, _k, _v in gguf
    block.N.mlp.mlp1_weight (E, 2F, D)    gate_up_proj (E, D, 2F)     even rows (gate) and odd rows (up) apart, (E, F, D)
    block.N.mlp.mlp2_weight (E, D, F)     down_proj (E, F, D)         (E, D, F)
    block.N.mlp.mlp1_weight.blocks, .scales   gate_up_proj_blocks, _scales: the same layout, also for MLX

All other tensors differ in their names only. Sizes: E experts, D hidden_size, F intermediate_size.

A model that sees has a layout of its own, that of the package gpt_oss_vision: hf with model_type gpt_oss_vision,
and the encoder's tensors below model.vision.
Sources: transformers 5.23, models/gpt_oss/convert_gpt_oss_weights_to_hf.py and modeling_gpt_oss.py; gguf 0.19,
constants.py; llama.cpp, src/models/openai-moe.cpp; mlx-lm 0.32, models/gpt_oss.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from architecture.checkpoint import config_from_dict
from architecture.gptoss import SWIGLU_ALPHA, ModelConfig, RMSNorm, Transformer
from architecture.gptoss_vision import VisionConfig, VisionLanguageTransformer
from architecture.tokenizer import padded_vocab_size

CLASSES = {cls.name: cls for cls in (Transformer, VisionLanguageTransformer)}  # the models of these formats
MODEL_TYPE, VISION_TYPE = "gpt_oss", "gpt_oss_vision"
OFFICIAL_IDS, OFFICIAL_IMAGE_ID = 201088, 200014  # an id that gpt-oss's tokenizer reserves, so no text has it
ANOTHER = "use another copy of it"
# The 16 fields of original/config.json. OpenAI's reader accepts no other key.
ORIGINAL_FIELDS = tuple(field.name for field in fields(ModelConfig))[:16]
VOCABULARY = ("embedding.weight", "unembedding.weight")  # their rows are those of the used ids
_HF = {
    "embedding.weight": ("model.embed_tokens.weight",),
    "norm.scale": ("model.norm.weight",),
    "unembedding.weight": ("lm_head.weight",),
    "attn.norm.scale": ("input_layernorm.weight",),
    "attn.qkv.weight": tuple(f"self_attn.{letter}_proj.weight" for letter in "qkv"),
    "attn.qkv.bias": tuple(f"self_attn.{letter}_proj.bias" for letter in "qkv"),
    "attn.sinks": ("self_attn.sinks",),
    "attn.out.weight": ("self_attn.o_proj.weight",),
    "attn.out.bias": ("self_attn.o_proj.bias",),
    "mlp.norm.scale": ("post_attention_layernorm.weight",),
    "mlp.gate.weight": ("mlp.router.weight",),
    "mlp.gate.bias": ("mlp.router.bias",),
    "mlp.vision_router_bias": ("mlp.router.vision_router_bias",),
    "mlp.mlp1_weight": ("mlp.experts.gate_up_proj",),
    "mlp.mlp1_weight.blocks": ("mlp.experts.gate_up_proj_blocks",),
    "mlp.mlp1_weight.scales": ("mlp.experts.gate_up_proj_scales",),
    "mlp.mlp1_bias": ("mlp.experts.gate_up_proj_bias",),
    "mlp.mlp2_weight": ("mlp.experts.down_proj",),
    "mlp.mlp2_weight.blocks": ("mlp.experts.down_proj_blocks",),
    "mlp.mlp2_weight.scales": ("mlp.experts.down_proj_scales",),
    "mlp.mlp2_bias": ("mlp.experts.down_proj_bias",),
}
# {layout: {the end of our name: the ends of the names there}}; those of a block follow PREFIX and its number.
NAMES = {
    "hf": _HF,
    "gguf": {
        "embedding.weight": ("token_embd.weight",),
        "norm.scale": ("output_norm.weight",),
        "unembedding.weight": ("output.weight",),
        "attn.norm.scale": ("attn_norm.weight",),
        "attn.qkv.weight": tuple(f"attn_{letter}.weight" for letter in "qkv"),
        "attn.qkv.bias": tuple(f"attn_{letter}.bias" for letter in "qkv"),
        "attn.sinks": ("attn_sinks.weight",),
        "attn.out.weight": ("attn_output.weight",),
        "attn.out.bias": ("attn_output.bias",),
        "mlp.norm.scale": ("post_attention_norm.weight",),
        "mlp.gate.weight": ("ffn_gate_inp.weight",),
        "mlp.gate.bias": ("ffn_gate_inp.bias",),
        "mlp.mlp1_weight": ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
        "mlp.mlp1_bias": ("ffn_gate_exps.bias", "ffn_up_exps.bias"),
        "mlp.mlp2_weight": ("ffn_down_exps.weight",),
        "mlp.mlp2_bias": ("ffn_down_exps.bias",),
    },
    "mlx": _HF
    | {
        "mlp.mlp1_weight": ("mlp.experts.gate_proj.weight", "mlp.experts.up_proj.weight"),
        "mlp.mlp1_bias": ("mlp.experts.gate_proj.bias", "mlp.experts.up_proj.bias"),
        "mlp.mlp2_weight": ("mlp.experts.down_proj.weight",),
        "mlp.mlp2_bias": ("mlp.experts.down_proj.bias",),
    },
}
PREFIX = {"hf": "model.layers", "gguf": "blk", "mlx": "model.layers"}
MATRIX = re.compile(r"block\.\d+\.mlp\.mlp[12]_weight")  # (E, out, in) here, (E, in, out) in hf
SELECTION_BIAS = re.compile(r"block\.\d+\.mlp\.selection_bias")  # has no name in any of these layouts

SAME_NAME = (
    "num_hidden_layers hidden_size intermediate_size swiglu_limit head_dim num_attention_heads "
    "num_key_value_heads sliding_window attention_bias"
).split()
# {name in Hugging Face's config: ours}; the second name of a setting counts if there are both.
RENAMED = {
    "num_experts": "num_experts",
    "num_local_experts": "num_experts",
    "experts_per_token": "experts_per_token",
    "num_experts_per_tok": "experts_per_token",
    "tie_word_embeddings": "tie_embeddings",
    "layer_types": "layer_types",
}
VISION_SAME_NAME = tuple(field.name for field in fields(VisionConfig) if field not in fields(ModelConfig))
# Settings of transformers that change the function and that this model has no setting for.
FIXED = {"hidden_act": "silu", "rms_norm_eps": RMSNorm.eps, "swiglu_alpha": SWIGLU_ALPHA}
ROPE_FIXED = {"attention_factor": None, "mscale": None, "mscale_all_dim": None, "partial_rotary_factor": 1.0}
OFFICIAL_ROPE = {"rope_type": "yarn", "factor": 32.0, "truncate": False}


# ------------------------------------------------------------------------------------------------ tensors
def their_names(name: str, layout: str) -> tuple[str, ...]:
    """The names of one of our tensors: three for qkv, two for mlp1 where its rows are stored apart, else one."""
    if layout == "original":
        return (name,)
    if name in NAMES[layout]:
        return NAMES[layout][name]
    if name.startswith("vision."):
        return (f"model.{name}",)
    _, layer, rest = name.split(".", 2)
    return tuple(f"{PREFIX[layout]}.{layer}.{theirs}" for theirs in NAMES[layout][rest])


def to_theirs(name: str, tensor: torch.Tensor, config: ModelConfig, layout: str) -> dict[str, torch.Tensor]:
    """One of our tensors, or its gradient, under the names and in the shapes of a layout."""
    names, parts = their_names(name, layout), (tensor,)
    if len(names) == 3:
        groups = config.num_key_value_heads
        heads = config.num_attention_heads, groups, groups
        parts = tensor.split([number * config.head_dim for number in heads])
    elif len(names) == 2:
        parts = tensor.unflatten(_rows(name), (-1, 2)).unbind(_rows(name))
    elif layout == "hf" and MATRIX.fullmatch(name):
        parts = (tensor.mT,)
    return dict(zip(names, parts))


def from_theirs(name: str, parts: Sequence[torch.Tensor], layout: str) -> torch.Tensor:
    """The inverse of to_theirs. parts: in the order of their_names(name, layout)."""
    if len(parts) == 3:
        return torch.cat(tuple(parts))
    if len(parts) == 2:
        return torch.stack(tuple(parts), dim=_rows(name)).flatten(_rows(name) - 1, _rows(name))
    return parts[0].mT if layout == "hf" and MATRIX.fullmatch(name) else parts[0]


def stored(model: Mapping[str, torch.Tensor], config: ModelConfig) -> dict[str, torch.Tensor]:
    """The tensors of a model that files hold: the rows of used ids, no selection bias, no head that is tied."""
    tensors = {name: tensor for name, tensor in model.items() if not SELECTION_BIAS.fullmatch(name)}
    if config.tie_embeddings:
        del tensors["unembedding.weight"]
    rows = {name: tensors[name][: config.used_vocab_size] for name in VOCABULARY if name in tensors}
    return tensors | rows


def _rows(name: str) -> int:
    """The axis of the rows of mlp1."""
    return -2 if name.endswith("weight") else -1


# ------------------------------------------------------------------------------------------------ configs
def class_of(config: ModelConfig) -> type[Transformer]:
    """The class of the models with this config."""
    return VisionLanguageTransformer if isinstance(config, VisionConfig) else Transformer


def image_token_id(num_ids: int) -> int:
    """The id that stands for every image token in Hugging Face's layout; without a free one, that after the text."""
    return OFFICIAL_IMAGE_ID if num_ids == OFFICIAL_IDS else num_ids


def original_config(config: ModelConfig) -> dict[str, Any]:
    """The content of original/config.json."""
    values = {name: getattr(config, name) for name in ORIGINAL_FIELDS}
    return values | {"vocab_size": config.num_ids}


def hugging_face_config(config: ModelConfig, dtype: str, *, yarn: bool = False) -> dict[str, Any]:
    """The content of config.json for GptOssForCausalLM or GPTOSSVisionForCausalLM, without ids of special tokens.

    yarn: writes plain RoPE as YaRN with factor 1, the same function, for readers that know only YaRN (vLLM).
    RoPE is written in the spelling of transformers 4 (rope_scaling, rope_theta) and of 5 (rope_parameters),
    because MLX reads only the first; for a model that sees, only in that of 5, because without gpt_oss_vision
    the AutoTokenizer of 5 does not open a folder of an unknown kind that has both.
    """
    rope: dict[str, Any] = {"rope_type": "default"}
    if yarn or config.rope_scaling_factor > 1:
        rope = {
            "rope_type": "yarn",
            "factor": config.rope_scaling_factor,
            "beta_fast": config.rope_ntk_beta,
            "beta_slow": config.rope_ntk_alpha,
            "truncate": False,
            "original_max_position_embeddings": config.initial_context_length,
        }
    vision = {}
    if isinstance(config, VisionConfig):
        vision = {name: getattr(config, name) for name in VISION_SAME_NAME}
        vision |= {"image_token_id": image_token_id(config.num_ids), "use_nope": bool(config.nope_stride)}
        vision |= {"nope_stride": config.nope_stride} if config.nope_stride else {}
    older = {"rope_theta": config.rope_theta, "rope_scaling": rope if "factor" in rope else None}
    return {
        "architectures": ["GPTOSSVisionForCausalLM" if vision else "GptOssForCausalLM"],
        "model_type": VISION_TYPE if vision else MODEL_TYPE,
        **vision,
        **{name: getattr(config, name) for name in SAME_NAME},
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "experts_per_token": config.experts_per_token,
        "vocab_size": config.num_ids,
        "layer_types": list(config.resolved_layer_types),
        "initial_context_length": config.initial_context_length,
        "max_position_embeddings": config.context_limit,
        **({} if vision else older),
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": dtype,
        **FIXED,
    }


def read_hugging_face_config(values: dict[str, Any]) -> ModelConfig:
    """The config of a config.json of hugging_face_config. Raises ValueError for what this model cannot be."""
    for name, value in FIXED.items():
        if values.get(name, value) != value:
            raise ValueError(
                f"{name} must be {value!r}, got {values[name]!r}; this code has no other gpt-oss"
            )
    ours = {name: values[name] for name in (*SAME_NAME, "vocab_size") if name in values}
    ours |= {name: values[theirs] for theirs, name in RENAMED.items() if values.get(theirs) is not None}
    rope = values.get("rope_parameters") or values.get("rope_scaling")
    if rope is None:
        rope = OFFICIAL_ROPE if "rope_theta" not in values else {"rope_type": "default"}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_parameters must be an object, got {json.dumps(rope)}")
    for name, value in ROPE_FIXED.items():
        if rope.get(name) not in (None, value):
            raise ValueError(
                f"{name} must be left out of rope_parameters, got {rope[name]!r}; this code has no other RoPE"
            )
    ours["rope_theta"] = rope.get("rope_theta", values.get("rope_theta", 150000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "yarn":
        ours["initial_context_length"] = rope.get("original_max_position_embeddings", 4096)
        ours["rope_scaling_factor"] = rope["factor"]
        ours["rope_ntk_beta"] = rope.get("beta_fast") or 32.0
        ours["rope_ntk_alpha"] = rope.get("beta_slow") or 1.0
    elif kind == "default":
        ours["initial_context_length"] = values.get("max_position_embeddings", 131072)
        ours["rope_scaling_factor"] = 1.0
    else:
        raise ValueError(f"rope_type must be default or yarn, got {kind!r}; this code has no other RoPE")
    vision = values["model_type"] == VISION_TYPE
    if vision:
        ours |= {name: values[name] for name in VISION_SAME_NAME if name in values}
        ours |= {"nope_stride": values.get("nope_stride", 4)} if values.get("use_nope") else {}
    config = config_from_dict(VisionConfig if vision else ModelConfig, ours)
    if rope.get("truncate", True) and config.rope_scaling_factor > 1:
        if any(not edge.is_integer() for edge in config.yarn_range):
            raise ValueError(
                "truncate must be false for YaRN, as in gpt-oss, got true (which is transformers' default); this "
                "code does not round the limits of YaRN"
            )
    return padded(config)


def read_config(values: dict[str, Any], path: Path) -> tuple[str, ModelConfig]:
    """The layout, "original" or "hf", and the config that a config.json holds. path: of it, for messages."""
    try:
        if "model_type" not in values:
            return "original", padded(config_from_dict(ModelConfig, values))  # refuses unknown keys
        if values["model_type"] not in (MODEL_TYPE, VISION_TYPE):
            raise ValueError(
                f"model_type must be {MODEL_TYPE} or {VISION_TYPE}, got {values['model_type']!r}; name a folder of "
                "gpt-oss (one of GPT-2 is for train.py --init_from and sample.py --checkpoint)"
            )
        return "hf", read_hugging_face_config(values)
    except (KeyError, TypeError) as error:
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is no config of gpt-oss ({told}); {ANOTHER}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def padded(config: ModelConfig) -> ModelConfig:
    """The config with its vocabulary padded to a multiple of 64, as a model that is trained here has it."""
    used = config.vocab_size
    size = padded_vocab_size(used)
    return replace(config, vocab_size=size, used_vocab_size=used if used < size else None)
