"""Measure what activation checkpointing saves and costs, and how well --dry_run estimates the memory.

    python -m benchmarks.activation_memory     writes benchmarks/results/activation_memory.json

Three models take steps with each setting of --activation_checkpointing, on a CPU in float32 with one thread:
two micro-batches a step, Muon, random tokens. Each measurement is a process of its own. Memory is its peak
resident size less what is resident before the model is built, when all garbage is collected. The allocator gives back at once what is freed,
so this is the memory of the tensors in use. Speed is per second of the processor, because other work may run
beside. Exits with 1 if an estimate is off by more than 15 %, or if the weights at the end depend on the setting.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import hashlib
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from architecture.registry import build_config, build_model
from benchmarks.publish import judge, publish
from common.device import peak_memory_gb
from training.config import TrainConfig
from training.costs import memory_bytes
from training.memory import checkpoint_blocks
from training.optimizer import build_optimizers, parameter_kinds
from training.step import accumulate_gradients, apply_gradients

SHAPES = {  # model, changes of its size toy, rows, tokens of a row
    "toy": ("gptoss", {}, 8, 256),
    "deep": ("gptoss", {"num_hidden_layers": 8, "experts_per_token": 4}, 4, 256),
    "dense": ("gpt2", {"hidden_size": 256, "intermediate_size": 1024}, 8, 256),
}
KINDS = "none", "selective", "full"
LIMIT, STEPS = 0.15, 2


def measure(shape: str, kind: str) -> dict[str, Any]:
    """Peak memory and its estimate in GB, speed after the first step, and a hash of the weights."""
    model, changes, rows, tokens = SHAPES[shape]
    train(model, changes, 1, tokens, kind, steps=1)  # the first use of the libraries, which is not measured
    gc.collect()  # what that left in reference cycles would be freed, and its memory used again, during the measurement
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # the peak of that may be higher; the peak begins again here
    before = os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[1]) / 1e9
    trained, cfg, rate = train(model, changes, rows, tokens, kind, STEPS)
    weights = b"".join(p.detach().numpy().tobytes() for p in trained.parameters())
    return {
        "peak_gb": peak_memory_gb(torch.device("cpu")) - before,
        "estimate_gb": sum(memory_bytes(cfg, trained.config).values()) / 1e9,
        "tokens_per_cpu_second": rate,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }


def train(
    name: str, changes: dict, rows: int, tokens: int, kind: str, steps: int
) -> tuple[nn.Module, TrainConfig, float]:
    """Train a new model. Returns it, its settings, and tokens per second of the processor after the first step."""
    cfg = TrainConfig(
        batch_size=rows, block_size=tokens, grad_accum=2, device="cpu", dtype="float32", attention="sdpa",
        activation_checkpointing=kind,
    )  # fmt: skip
    random = torch.Generator().manual_seed(0)
    model = build_model(name, build_config(name, "toy", changes), generator=random).train()
    checkpoint_blocks(model, kind)
    optimizers, kinds = build_optimizers(model, cfg), parameter_kinds(model)
    for _ in range(steps):
        ids = torch.randint(model.config.vocab_size, (cfg.grad_accum, rows, tokens + 1), generator=random)
        began = time.process_time()
        result = accumulate_gradients(
            model, [{"input_ids": part[:, :-1], "targets": part[:, 1:]} for part in ids], cfg,
            previous_share=None, carry=None, token_bytes=torch.ones(model.config.vocab_size, dtype=torch.int64),
            autocast=contextlib.nullcontext,
        )  # fmt: skip
        apply_gradients(kinds, optimizers, result, cfg.grad_clip)
        seconds = time.process_time() - began
    return model, cfg, cfg.slots_per_step / seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-write", action="store_true", help="print the figures only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 2**16)  # M_MMAP_THRESHOLD of glibc: larger blocks are mapped one by one
    # Libraries keep memory from their first use, which is not counted as that of a run.
    for name, changes, _, tokens in SHAPES.values():
        train(name, changes, 1, tokens, "selective", steps=1)
    found: dict[str, dict[str, Any]] = {shape: {} for shape in SHAPES}
    fork = multiprocessing.get_context("fork")
    for shape, kind in ((shape, kind) for shape in SHAPES for kind in KINDS):
        with fork.Pool(1) as pool:
            one = found[shape][kind] = pool.apply(measure, (shape, kind))
        plain = found[shape]["none"]
        lost = 1 - one["tokens_per_cpu_second"] / plain["tokens_per_cpu_second"]
        print(
            f"{shape:6} {kind:10} {one['peak_gb']:.3f} GB (estimate {one['estimate_gb']:.3f}), "
            f"{plain['peak_gb'] - one['peak_gb']:.3f} GB saved, {one['tokens_per_cpu_second']:,.0f} tokens per "
            f"second of the processor ({lost:.0%} lost)",
            flush=True,
        )
    if not arguments.no_write:
        shapes = {shape: dict(zip(("model", "changes", "rows", "tokens"), SHAPES[shape])) for shape in SHAPES}
        publish("activation_memory", {"dtype": "float32", "threads": 1, "shapes": shapes, "measured": found})
    limits = {}
    for shape, kinds in found.items():
        worst = max(abs(one["estimate_gb"] / one["peak_gb"] - 1) for one in kinds.values())
        limits[f"{shape}: estimates off by {worst:.0%} (at most {LIMIT:.0%})"] = worst <= LIMIT
        limits[f"{shape}: the same weights"] = len({one["weights_sha256"] for one in kinds.values()}) == 1
    return judge(limits)


if __name__ == "__main__":
    sys.exit(main())
