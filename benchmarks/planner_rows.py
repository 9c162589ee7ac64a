"""Compare the plans of --dry_run --gpus with published speeds of others, row by row.

    python -m benchmarks.planner_rows     writes benchmarks/results/planner_rows.json

The constants of training/planner.py were fixed before this comparison, and none is fitted to it. The rows are from
other programs: some have pipeline parallelism or FP8, and their experts are forced to be even. A ratio therefore says
how far a plan is from what others reach, and not how right it is for this project, which was not measured.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from architecture.registry import build_config
from benchmarks.publish import publish
from training.config import TrainConfig
from training.planner import CARDS, Machine, model_of, plans


class Row(NamedTuple):
    """A published speed of one GPU, and its settings; planned is the fastest layout that fits, or the smallest."""

    what: str
    source: str
    differs: str  # from what is planned
    size: dict[str, Any]  # fields of the model that differ from gpt-oss-120b
    card: str
    gpus: int
    settings: dict[str, Any]
    unit: str  # tokens/s or TFLOP/s, of one GPU
    published: float


BRIDGE = "Megatron-Bridge docs/performance-summary.md, 25.11"
# config.json of Qwen/Qwen3-30B-A3B; its norms of queries and keys are left out, which hold 24,576 parameters
QWEN3_30B = dict(
    num_hidden_layers=48, num_experts=128, experts_per_token=8, vocab_size=151_936, hidden_size=2048,
    intermediate_size=768, head_dim=128, num_attention_heads=32, num_key_value_heads=4,
    layer_types=("full_attention",) * 48, attention_sinks=False, attention_bias=False,
)  # fmt: skip
ROWS = (
    Row(
        "gpt-oss-120b on 8 B200", "torchtitan pull request 4604", "mixed precisions; its batch is not stated",
        {}, "b200", 8, dict(batch_size=4, block_size=4096), "TFLOP/s", 653.5,
    ),
    Row(
        "gpt-oss-120b on 64 H100", BRIDGE, "four pipeline stages", {}, "h100", 64,
        dict(batch_size=4, block_size=4096, grad_accum=2), "tokens/s", 5630.0,
    ),
    Row(
        "gpt-oss-120b on 64 B200", BRIDGE, "no pipeline", {}, "b200", 64,
        dict(batch_size=4, block_size=4096, grad_accum=2), "tokens/s", 8213.0,
    ),
    Row(
        "Qwen3-30B-A3B on 16 H100", BRIDGE, "FP8 and two pipeline stages; planned in bfloat16",
        QWEN3_30B, "h100", 16, dict(batch_size=2, block_size=4096, grad_accum=16),
        "tokens/s", 5275.0,
    ),
)  # fmt: skip


def compare(row: Row) -> dict[str, Any]:
    """The speed of a row as planned and as published."""
    config = build_config("gptoss", "gpt-oss-120b", row.size)
    engines = dict(attention="flex", experts="grouped", compile="on")  # what auto is on a GPU
    cfg = TrainConfig(device="cuda", dtype="bfloat16", optimizer="adamw", **engines, **row.settings)
    machine = Machine(row.gpus, CARDS[row.card])
    best = plans(cfg, model_of(cfg, config), machine)[0]
    planned = best.speed
    if row.unit == "TFLOP/s":
        planned *= config.flops_per_token(cfg.block_size) / 1e12
    return {
        "what": row.what,
        "source": row.source,
        "differs": row.differs,
        "layout": str(best.layout),
        "activation_checkpointing": best.cfg.activation_checkpointing,
        "fits": best.bytes <= machine.room,
        "gigabytes": round(best.bytes / 1e9, 1),
        "unit": f"{row.unit} of one GPU",
        "planned": round(planned, 1),
        "published": row.published,
        "planned_of_published": round(planned / row.published, 2),
    }


def main() -> int:
    """Print and publish the rows."""
    rows = [compare(row) for row in ROWS]
    for row in rows:
        print(
            f"{row['what']:<26} planned {row['planned']:>8,.1f}, published {row['published']:>8,.1f} {row['unit']}: "
            f"ratio {row['planned_of_published']:.2f}{'' if row['fits'] else ', does not fit here'} ({row['differs']})"
        )
    publish("planner_rows", {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
