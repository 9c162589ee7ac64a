"""Measure where the time of a training step goes, and how much of it the data loader takes.

    python -m benchmarks.step_profile [--steps 10] [--label NAME] [--dataset '$TINYSTORIES/train.jsonl']
        adds to benchmarks/results/step_profile.json

The run is the toy recipe on the bundled stories with all defaults, on a CPU. The shares come from a profile
of whole steps, forward and backward together. The loader is measured in steps without a profile: how long the
trainer waits for a batch, and how long the loader's thread takes to make one. Of --dataset only the latter is
measured; environment variables in it are expanded here, so that the published command has no path of this
machine. Each label keeps its newest entry, so that a change can be compared with the state before it. Exits
with 1 if waiting and making a batch take 2 % of a step or more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from benchmarks.publish import RESULTS, judge
from benchmarks.toy_run import seconds, toy_run
from common.provenance import provenance
from data.loader import TrainLoader
from data.sources import open_dataset
from training.trainer import take_batches, train_step

RESULT = RESULTS / "step_profile.json"
LOADER_LIMIT = 0.02
BACKWARD = "autograd::engine::evaluate_function: "
# The part of a step: its autograd functions and operators, whose time includes all that they call.
PARTS = {
    "experts": ("_Distribute", "_SwigluExperts", "_Combine"),
    "attention without its projections": ("_SinkAttention", "Rotate"),
    "head and loss": ("_LinearCrossEntropy",),
    "projections and router": ("aten::linear", "Addmm"),
    "norms": ("RMSNorm",),
    "optimizer": ("Optimizer.step#Muon.step", "Optimizer.step#AdamW.step"),
}
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm_")


def shares(step, steps: int) -> dict[str, float]:
    """Each part's share of the time of some steps, and the share of the matrix products of all parts."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        total = sum(seconds(step) for _ in tqdm(range(steps), desc="profile", disable=None))
    events = {event.key: event for event in record.key_averages()}
    found = {}
    for part, names in PARTS.items():
        keys = [
            key
            for name in names
            for key in (name, f"{BACKWARD}{name}Backward", f"{BACKWARD}{name}Backward0")
            if key in events
        ]
        if not keys:
            raise RuntimeError(f"the profile has no function of {part} ({', '.join(names)}); update PARTS")
        found[part] = sum(events[key].cpu_time_total for key in keys) / 1e6 / total
    found["the rest"] = 1 - sum(found.values())
    products = sum(events[key].self_cpu_time_total for key in PRODUCTS if key in events)
    return found | {"matrix products": products / 1e6 / total}


def product_rate(size: int = 1024, repeats: int = 15) -> float:
    """FLOP/s of a float32 product of two square matrices, median."""
    a, b = torch.randn(2, size, size)
    return 2 * size**3 / statistics.median(seconds(torch.mm, a, b) for _ in range(repeats))


def batch_seconds(dataset: str, cfg, tokenizer, batches: int) -> float:
    """Mean seconds that the loader's thread takes for a batch."""
    source, rows = open_dataset(dataset, split="train"), cfg.batch_size
    with TrainLoader(source, tokenizer, batch_size=rows, block_size=cfg.block_size, seed=1) as loader:
        next(loader)
        return statistics.mean(seconds(next, loader) for _ in range(batches))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=10, help="timed, waiting and profiled steps, each (default: 10)"
    )
    parser.add_argument("--dataset", help="a file or folder whose loading is measured, too")
    parser.add_argument("--label", default="now", help="name of the entry (default: now)")
    args = parser.parse_args(argv)
    waits = []
    with toy_run(use_tensorboard=False) as (run, progress):
        cfg, config, tokenizer = run.cfg, run.model.config, run.tokenizer
        steps = [seconds(train_step, run, progress) for _ in range(args.steps + 3)]
        for _ in range(args.steps):
            waits.append(seconds(take_batches, run, progress))
            train_step(run, progress)
        parts = shares(lambda: train_step(run, progress), args.steps)
    step = statistics.median(steps[3:])  # after warm-up
    batch = {
        Path(dataset).name: batch_seconds(os.path.expandvars(dataset), cfg, tokenizer, 20 * args.steps)
        for dataset in filter(None, ("bundled", args.dataset))
    }
    flops = config.flops_per_token(cfg.block_size) * cfg.batch_size * cfg.block_size
    rate = product_rate()
    wait = statistics.median(waits)
    for part, share in parts.items():
        print(f"{part:36} {share:6.1%}  {1e3 * share * step:6.1f} ms")
    print(f"{'a step':36} {1e3 * step:14.1f} ms, {cfg.batch_size * cfg.block_size / step:,.0f} tokens/s")
    print(
        f"FLOPs of a step / its time: {flops / step / 1e9:.0f} GFLOP/s, {flops / step / rate:.2f} of "
        f"this machine's matrix products"
    )
    print(f"loader: the trainer waits {1e3 * wait:.2f} ms a step ({wait / step:.2%})")
    for dataset, taken in batch.items():
        print(f"a batch of {dataset} takes {1e3 * taken:.2f} ms of the loader's thread ({taken / step:.2%})")
    entry = {
        "step_ms": 1e3 * step,
        "shares": parts,
        "share_of_product_rate": flops / step / rate,
        "loader_wait_share": wait / step,
        "loader_thread_share": {dataset: taken / step for dataset, taken in batch.items()},
        "threads": torch.get_num_threads(),
    }
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    known[args.label] = provenance() | entry
    RESULT.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    share = (wait + max(batch.values())) / step
    return judge({f"the loader takes {share:.2%} of a step (below {LOADER_LIMIT:.0%})": share < LOADER_LIMIT})


if __name__ == "__main__":
    sys.exit(main())
