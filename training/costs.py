"""What a run would cost, from its settings alone: nothing is built. Printed by --dry_run."""

from __future__ import annotations

from typing import Any

from training.config import TrainConfig

SUSTAINED_FLOPS = {  # FLOP/s that training of this kind keeps up; orders of magnitude, not promises
    "2 laptop cores (0.06 TFLOP/s)": 0.06e12,
    "one GPU at 40 TFLOP/s": 40e12,
    "one H100 at 30 % of its bf16 peak": 0.3 * 989e12,
}


def memory_bytes(cfg: TrainConfig, config: Any) -> dict[str, int]:
    """Bytes of training on one device. Weights, gradients and optimizer state are exact; what the
    forward pass keeps for the backward is an estimate from the shapes (tested to 30 %).
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
    """Estimate of what one micro-batch keeps for its backward pass, head included."""
    d, f, k = config.hidden_size, config.intermediate_size, config.experts_per_token
    attention = 4 * d + 6 * config.num_attention_heads * config.head_dim  # two norms; q, k, v, out
    experts = k * (2 * d + 8 * f)  # rows in and out; gate, up and the steps of their product
    router = 6 * config.num_experts
    tokens = cfg.batch_size * cfg.block_size
    values = tokens * (config.num_hidden_layers * (attention + experts + router) + 4 * d)
    logits = min(tokens * config.vocab_size, 2**26)  # next_token_loss holds one block of them
    return (2 if cfg.dtype == "bfloat16" else 4) * values + 2 * 4 * logits


def report(cfg: TrainConfig, config: Any) -> str:
    """Parameters, FLOPs per token, memory per device, and time on a few machines, as text."""
    counts, flops = config.parameter_counts(), config.flops_per_token(cfg.block_size)
    per_step = cfg.batch_size * cfg.block_size * cfg.grad_accum
    memory = memory_bytes(cfg, config)
    lines = [
        f"{cfg.model} {cfg.model_size}",
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
