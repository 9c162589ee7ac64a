"""What a run would cost, from its settings alone: nothing is built. Printed by --dry_run."""

from __future__ import annotations

from typing import Any

from architecture.interface import LOGITS_PER_CHUNK
from training.config import TrainConfig

SUSTAINED_FLOPS = {  # FLOP/s that training of this kind keeps up; orders of magnitude, not promises
    "2 laptop cores (0.06 TFLOP/s)": 0.06e12,
    "one GPU at 40 TFLOP/s": 40e12,
    "one H100 at 30 % of its bf16 peak": 0.3 * 989e12,
}


def memory_bytes(cfg: TrainConfig, config: Any) -> dict[str, int]:
    """Bytes of training on one device. Weights, gradients and optimizer state are exact; what the
    forward pass keeps for the backward is an estimate from the shapes (tested to 15 % in float32).
    """
    total = config.parameter_counts()["total"]
    matrices = matrix_parameters(config)
    # AdamW keeps two float32 values for each parameter, Muon one for each value of a matrix
    moments = 2 * (total - matrices) + matrices if cfg.optimizer == "muon" else 2 * total
    return {
        "weights": 4 * total,
        "gradients": 4 * total,
        "optimizer": 4 * moments,
        "activations": activation_bytes(cfg, config),
        "logits": logits_bytes(cfg, config),
    }


def matrix_parameters(config: Any) -> int:
    """Values in the matrices that Muon takes: qkv, out and every expert's mlp1 and mlp2."""
    d, c = config.hidden_size, config.head_dim
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    up = config.intermediate_size * (2 if config.mlp == "swiglu" else 1)
    moe = len(config.resolved_moe_layers)
    experts = moe * config.num_experts + config.num_hidden_layers - moe
    attention = config.num_hidden_layers * d * c * (2 * heads + 2 * groups)
    return attention + experts * d * (up + config.intermediate_size)


def activation_bytes(cfg: TrainConfig, config: Any) -> int:
    """Estimate of what the forward pass of one micro-batch keeps for its backward pass.

    The factors count the tensors that autograd holds in gptoss.py, per token and layer.
    """
    d, f, t = config.hidden_size, config.intermediate_size, cfg.block_size
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    attention = (
        6 * d + 5 * heads * config.head_dim + t / cfg.batch_size
    )  # norms; q, k, v, out; mask
    if cfg.attention == "eager":
        attention += 2 * heads * t  # scores and weights
    row = 2 * d + (7 if config.mlp == "swiglu" else 2) * f  # one token in one expert
    moe = len(config.resolved_moe_layers)
    routed = config.experts_per_token * row + 6 * config.num_experts
    per_token = layers * attention + moe * routed + (layers - moe) * row + 3 * d
    values = cfg.batch_size * t * per_token
    head = 4 * config.vocab_size * d  # it keeps its gradient, in float32
    return int((2 if cfg.dtype == "bfloat16" else 4) * values) + head


def logits_bytes(cfg: TrainConfig, config: Any) -> int:
    """What next_token_loss holds of the logits for a moment: a block of them and its exponential."""
    return 2 * 4 * min(cfg.batch_size * cfg.block_size * config.vocab_size, LOGITS_PER_CHUNK)


def report(cfg: TrainConfig, config: Any) -> str:
    """Parameters, FLOPs per token, memory per device, and time on a few machines, as text."""
    counts, flops = config.parameter_counts(), config.flops_per_token(cfg.block_size)
    per_step = cfg.batch_size * cfg.block_size * cfg.grad_accum
    memory = memory_bytes(cfg, config)
    lines = [
        f"{cfg.model} {cfg.model_size} with {config.vocab_size:,} ids, computing in {cfg.dtype}",
        f"parameters       {counts['total']:,} total, {counts['active']:,} active per token, "
        f"{counts['embedding']:,} of the total in the input embedding",
        f"FLOPs per token  {flops:,.0f} (forward and backward)",
        "memory           " + ", ".join(f"{name} {size / 1e9:.3f} GB" for name, size in memory.items())
        + f"; {sum(memory.values()) / 1e9:.3f} GB in all",
        f"step             {per_step:,} tokens",
    ]  # fmt: skip
    if cfg.max_iters is None:
        lines.append(f"run              {cfg.max_minutes:g} minutes of training")
        return "\n".join(lines)
    tokens = per_step * cfg.max_iters
    lines.append(
        f"run              {cfg.max_iters:,} steps, {tokens:,} tokens, {tokens * flops:.3g} FLOPs"
    )
    for machine, rate in SUSTAINED_FLOPS.items():
        lines.append(f"  {tokens * flops / rate / 3600:10.2f} h on {machine}")
    return "\n".join(lines)
