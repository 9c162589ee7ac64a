"""What a model must be to fit each format, and what llama.cpp (GGUF) and MLX compute in another way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from architecture.checkpoint import LazyWeights, described, without_values
from architecture.gptoss import FULL, SLIDING, ModelConfig, Transformer
from architecture.gptoss_vision import VisionConfig

PROGRAMS = {"gguf": "llama.cpp", "mlx": "mlx"}  # the program that reads each format
SWIGLU_LIMIT = 7.0  # both programs have it as a constant
LLAMA_CPP_BETAS = (32.0, 1.0)
# Settings of this project that gpt-oss lacks, with the value that it stands for.
SWITCHES = dict(
    attention_sinks=True, nope_stride=None, position="rope", norm="rmsnorm", mlp="swiglu", router="topk_softmax",
    shared_experts=0,
)  # fmt: skip
NEAR = 1e-6  # pairs of dimensions: limits of YaRN that are so near give the same model


def require_expressible(config: ModelConfig, layout: str) -> None:
    """Raise ValueError for a model that a format cannot hold, or that its program cannot compute.

    dropout, capacity_factor and the initial values act in training only, so they do not matter here.
    """
    kinds, limit = config.resolved_layer_types, config.swiglu_limit
    alternating = replace(config, layer_types=None).resolved_layer_types
    if isinstance(config, VisionConfig) and layout != "hf":
        raise ValueError(
            f"--format {layout} holds no images, and this model sees; use --format hf, for the package gpt_oss_vision"
        )
    own = {"nope_stride": config.nope_stride} if isinstance(config, VisionConfig) else {}  # has this setting
    rules = [
        (name, getattr(config, name), value, str(value).lower()) for name, value in (SWITCHES | own).items()
    ]
    rules += [("moe_layers", config.resolved_moe_layers, tuple(range(len(kinds))), "all layers")]
    if layout in ("original", "gguf"):
        rules += [("layer_types", kinds, alternating, "alternating, sliding first,")]
    if layout == "original":
        rules += [("tie_embeddings", config.tie_embeddings, False, "false")]
        rules += [("attention_bias", config.attention_bias, True, "true")]
    if layout == "mlx":
        both = kinds if {SLIDING, FULL} == set(kinds) else ()
        rules += [("layer_types", kinds, both, "of both kinds")]
    if layout in PROGRAMS:
        rules += [("swiglu_limit", limit, SWIGLU_LIMIT, f"{SWIGLU_LIMIT}")]
    for name, found, wanted, rule in rules:
        if found != wanted:
            never = name in SWITCHES or name == "moe_layers"
            raise ValueError(
                f"{name} must be {rule} in --format {layout}, because {PROGRAMS.get(layout, 'gpt-oss')} has no "
                f"setting for it, and this model has {found!r}; "
                f"{'export a model that was trained that way' if never else 'use --format hf'}"
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


def completed(weights: Mapping[str, torch.Tensor], config: ModelConfig) -> tuple[LazyWeights, ModelConfig]:
    """The same model as both programs read it, and its config.

    It has a head of its own, biases of zero where it has none, and no float64.
    """
    config = replace(config, tie_embeddings=False, attention_bias=True)
    found, whole = described(weights), without_values(Transformer, config).state_dict()
    kind = found["embedding.weight"].dtype
    whole = {name: tensor.to(found[name].dtype if name in found else kind) for name, tensor in whole.items()}
    if kind == torch.float64:
        whole = {name: tensor.float() for name, tensor in whole.items()}

    def read(name: str) -> torch.Tensor:
        if name not in found:
            return torch.zeros(whole[name].shape, dtype=whole[name].dtype)
        tensor = weights[name].to(whole[name].dtype)
        # safetensors writes no two tensors in one memory, as those of a tied head are
        return tensor.clone() if name == "unembedding.weight" else tensor

    return LazyWeights(whole, read), config
