"""GGUF (llama.cpp) and MLX: their names for this project's tensors, and what each cannot express.

    ours                       GGUF                                  MLX
    block.N.attn.qkv           attn_q, attn_k, attn_v                self_attn.q_proj, k_proj, v_proj
    block.N.mlp.mlp1_weight    ffn_gate_exps, ffn_up_exps            mlp.experts.gate_proj, up_proj

Both store mlp1's even rows (gate) and odd rows (up) apart, (E, F, D) each, and mlp2 as it is here, (E, D, F).
All other tensors differ in their names only. Sizes: E experts, D hidden_size, F intermediate_size.
Sources: gguf 0.19, constants.py; llama.cpp, src/models/openai-moe.cpp; mlx-lm 0.32, models/gpt_oss.py.
"""

from __future__ import annotations

import math
import re
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from architecture.checkpoint import without_values
from architecture.gptoss import FULL, SLIDING, ModelConfig, Transformer
from architecture.open_gpt_oss import names

PROGRAMS = {"gguf": "llama.cpp", "mlx": "mlx"}  # the program that reads each format
SWIGLU_LIMIT = 7.0  # both programs have it as a constant
LLAMA_CPP_BETAS = (32.0, 1.0)
NEAR = 1e-6  # pairs of dimensions: limits of YaRN that are so near give the same model
MODEL = {
    "gguf": {
        "embedding.weight": "token_embd.weight",
        "norm.scale": "output_norm.weight",
        "unembedding.weight": "output.weight",
    },
    "mlx": names.MODEL,
}
BLOCK = {
    "gguf": {
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
    "mlx": names.BLOCK
    | {
        "mlp.mlp1_weight": ("mlp.experts.gate_proj.weight", "mlp.experts.up_proj.weight"),
        "mlp.mlp1_bias": ("mlp.experts.gate_proj.bias", "mlp.experts.up_proj.bias"),
        "mlp.mlp2_weight": ("mlp.experts.down_proj.weight",),
        "mlp.mlp2_bias": ("mlp.experts.down_proj.bias",),
    },
}
PREFIX = {"gguf": "blk", "mlx": "model.layers"}


# ------------------------------------------------------------------------------------------------ tensors
def target_names(name: str, target: str) -> tuple[str, ...]:
    """The names of one of our tensors in a target: three for qkv, two for mlp1, otherwise one."""
    if name in MODEL[target]:
        return (MODEL[target][name],)
    _, layer, rest = name.split(".", 2)
    return tuple(f"{PREFIX[target]}.{layer}.{theirs}" for theirs in BLOCK[target][rest])


def to_target(name: str, tensor: torch.Tensor, config: ModelConfig, target: str) -> dict[str, torch.Tensor]:
    """One of our tensors under a target's names and in its layout."""
    parts = target_names(name, target)
    if len(parts) == 2:  # the rows are the last axis of a bias, and the one before the last of a matrix
        rows = tensor.ndim - (2 if name.endswith("weight") else 1)
        every_second = (slice(None),) * rows
        return {part: tensor[*every_second, odd::2] for odd, part in enumerate(parts)}
    if len(parts) == 3:
        groups = config.num_key_value_heads
        sizes = [number * config.head_dim for number in (config.num_attention_heads, groups, groups)]
        return dict(zip(parts, tensor.split(sizes)))
    return {parts[0]: tensor}


def from_target(name: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The inverse of to_target. parts: in the order of target_names(name)."""
    if len(parts) == 2:
        rows = 2 if name.endswith("weight") else 1
        return torch.stack(tuple(parts), dim=-rows).flatten(-rows - 1, -rows)
    return torch.cat(tuple(parts)) if len(parts) == 3 else parts[0]


def whole(config: ModelConfig, target: str, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
    """All tensors of a model under our names, from read(name in the target), the vocabulary padded."""
    weights = {}
    for name, described in without_values(Transformer, config).state_dict().items():
        if names.SELECTION_BIAS.fullmatch(name):
            weights[name] = torch.zeros(described.shape)
            continue
        tensor = from_target(name, [read(part) for part in target_names(name, target)])
        if name in MODEL[target]:
            tensor = F.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, len(described) - len(tensor)))
        weights[name] = tensor
    return weights


# ----------------------------------------------------------------------------------------- what fits where
def require_expressible(config: ModelConfig, target: str) -> None:
    """Raise ValueError for a model of the official formats that the target's program cannot compute."""
    kinds, program = config.resolved_layer_types, PROGRAMS[target]
    rules = {"swiglu_limit": (config.swiglu_limit == SWIGLU_LIMIT, f"be {SWIGLU_LIMIT}")}
    if target == "gguf":
        alternating = replace(config, layer_types=None).resolved_layer_types
        rules["layer_types"] = kinds == alternating, "alternate, sliding first"
    else:
        rules["layer_types"] = {SLIDING, FULL} == set(kinds), f"hold both {SLIDING} and {FULL}"
    for name, (fits, rule) in rules.items():
        if not fits:
            found = list(kinds) if name == "layer_types" else getattr(config, name)
            raise ValueError(
                f"{name} must {rule} in --format {target}, because {program} has no setting for it, and this "
                f"model has {found}; use --format hf"
            )


def rounded_yarn(config: ModelConfig, target: str) -> tuple[int, int] | None:
    """The limits of YaRN's ramp that the target's program uses; None if they are those of the model.

    Both programs round the limits, because they do not read gpt-oss's `truncate: false`. For gpt-oss, llama.cpp
    does not read the betas in the file either: it takes 32 and 1, unless its flags --yarn-beta-fast and
    --yarn-beta-slow say otherwise.
    Sources: llama.cpp, ggml_rope_yarn_corr_dims in ggml.c; mlx-lm, rope_utils.py; tried with both.
    """
    if config.rope_scaling_factor == 1:
        return None
    limits, number = [], np.float32 if target == "gguf" else np.float64  # the precision that they compute in
    betas = LLAMA_CPP_BETAS if target == "gguf" else (config.rope_ntk_beta, config.rope_ntk_alpha)
    size, base = number(config.head_dim), number(config.rope_theta)
    for turns in betas:  # in the order of their operations, because a limit may be 0.99999994
        ratio = number(config.initial_context_length) / (number(turns) * number(2) * number(math.pi))
        limits.append(float(size * np.log(ratio) / (number(2) * np.log(base))))
    rounded = max(math.floor(limits[0]), 0), min(math.ceil(limits[1]), config.head_dim - 1)
    return None if np.allclose(rounded, config.yarn_range, rtol=0, atol=NEAR) else rounded


def yarn_warning(config: ModelConfig, target: str) -> str | None:
    """A sentence for a model whose YaRN the target's program changes, or None."""
    if (rounded := rounded_yarn(config, target)) is None:
        return None
    low, high = config.yarn_range
    why = "it does not read truncate: false"
    if target == "gguf" and (config.rope_ntk_beta, config.rope_ntk_alpha) != LLAMA_CPP_BETAS:
        why += " and takes the betas 32 and 1"
    return (
        f"{PROGRAMS[target]} puts the limits of YaRN at {rounded[0]} and {rounded[1]}, not at {low:.2f} and "
        f"{high:.2f} ({why}), so its texts differ from those of this model, most with a small head_dim; "
        "transformers and vLLM compute it exactly from --format hf"
    )


def completed(
    weights: Mapping[str, torch.Tensor], config: ModelConfig
) -> tuple[Mapping[str, torch.Tensor], ModelConfig]:
    """The same model with a head of its own and with biases of zero where it has none, and its config.

    The two programs always read both.
    """
    described, added = getattr(weights, "described", weights), {}
    for name in described if not config.attention_bias else ():
        if re.fullmatch(r"block\.\d+\.attn\.(qkv|out)\.weight", name):
            matrix = described[name]
            added[name.replace("weight", "bias")] = torch.zeros(len(matrix), dtype=matrix.dtype)
    if config.tie_embeddings:  # safetensors holds no two tensors in one memory
        added["unembedding.weight"] = weights["embedding.weight"].clone()
    both = ChainMap(added, weights)
    both.described = {**described, **added}
    return both, replace(config, tie_embeddings=False, attention_bias=True)
