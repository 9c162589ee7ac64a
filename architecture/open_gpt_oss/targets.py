"""llama.cpp (GGUF) and MLX: what each cannot express, and what each computes in another way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from architecture.checkpoint import LazyWeights, described, without_values
from architecture.gptoss import FULL, SLIDING, ModelConfig, Transformer

PROGRAMS = {"gguf": "llama.cpp", "mlx": "mlx"}  # the program that reads each format
SWIGLU_LIMIT = 7.0  # both programs have it as a constant
LLAMA_CPP_BETAS = (32.0, 1.0)
NEAR = 1e-6  # pairs of dimensions: limits of YaRN that are so near give the same model


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
    config = replace(config, tie_embeddings=False, attention_bias=True)
    found = dict(described(weights))
    kind = found["embedding.weight"].dtype
    whole = without_values(Transformer, config).state_dict()
    added = {name: tensor.to(kind) for name, tensor in whole.items() if name not in found}

    def read(name: str) -> torch.Tensor:
        if name in added:
            return torch.zeros(added[name].shape, dtype=kind)
        return weights[name].clone() if name == "unembedding.weight" else weights[name]

    return LazyWeights(found | added, read), config
