"""Where the time of a training step goes, and what the data loader takes of it.

    python -m benchmarks.step_profile [--steps 10] [--label NAME] [--dataset '$TINYSTORIES/train.jsonl']
        adds to benchmarks/results/step_profile.json; variables in --dataset are replaced here, so that the published
        command has no path of this machine

The toy recipe on the bundled stories, all defaults, on a CPU. Shares come from a profile of whole steps,
forward and backward together; the loader's from steps without a profile: how long the trainer waited for a
batch, and how long one batch takes to make, on the loader's own thread; of --dataset the latter alone. Each
label keeps its newest entry, so that a change can be held against what was before it. Exits with 1 if the
two take 2 % of a step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from benchmarks.toy_run import toy_run
from common.provenance import provenance
from data.loader import TrainLoader
from data.sources import open_dataset
from training.trainer import take_batches, train_step

RESULT = Path(__file__).parent / "results" / "step_profile.json"
LOADER_LIMIT = 0.02
BACKWARD = "autograd::engine::evaluate_function: "
# part -> autograd functions and operators whose time, with all that they call, is the part's
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
    """Each part's share of `steps` calls of step, and "matrix products", which lie across the parts."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        began = time.perf_counter()
        for _ in tqdm(range(steps), desc="profile", disable=None):
            step()
        total = time.perf_counter() - began
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
            raise RuntimeError(f"the profile has nothing of {part}: its functions were renamed")
        found[part] = sum(events[key].cpu_time_total for key in keys) / 1e6 / total
    found["the rest"] = 1 - sum(found.values())
    products = sum(events[key].self_cpu_time_total for key in PRODUCTS if key in events)
    return found | {"matrix products": products / 1e6 / total}


def product_rate(size: int = 1024, repeats: int = 15) -> float:
    """FLOP/s of a float32 product of two square matrices, median."""
    a, b = torch.randn(2, size, size)
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        torch.mm(a, b)
        taken.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(taken)


def batch_seconds(dataset: str, cfg, tokenizer, batches: int) -> float:
    """Time of the loader's thread for one batch of the run, mean."""
    with TrainLoader(
        open_dataset(dataset, split="train"),
        tokenizer,
        batch_size=cfg.batch_size,
        block_size=cfg.block_size,
        seed=1,
    ) as loader:
        next(loader)
        began = time.perf_counter()
        for _ in range(batches):
            next(loader)
        return (time.perf_counter() - began) / batches


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10, help="steps of each kind (default: 10)")
    parser.add_argument("--dataset", help="file or folder whose loading is measured besides")
    parser.add_argument("--label", default="now", help="name of the entry (default: now)")
    args = parser.parse_args(argv)
    waits, steps = [], []
    with toy_run(use_tensorboard=False) as (run, progress):
        cfg, config, tokenizer = run.cfg, run.model.config, run.tokenizer
        for _ in range(args.steps + 3):
            began = time.perf_counter()
            train_step(run, progress)
            steps.append(time.perf_counter() - began)
        for _ in range(args.steps):
            began = time.perf_counter()
            take_batches(run, progress)
            waits.append(time.perf_counter() - began)
            train_step(run, progress)
        parts = shares(lambda: train_step(run, progress), args.steps)
    step = statistics.median(steps[3:])
    batch = {  # of a dataset, its last name: a path means nothing elsewhere
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
    for dataset, seconds in batch.items():
        print(
            f"a batch of {dataset} takes {1e3 * seconds:.2f} ms of the loader's own thread "
            f"({seconds / step:.2%}; limit {LOADER_LIMIT:.0%})"
        )
    entry = {
        "step_ms": 1e3 * step,
        "shares": parts,
        "share_of_product_rate": flops / step / rate,
        "loader_wait_share": wait / step,
        "loader_thread_share": {dataset: seconds / step for dataset, seconds in batch.items()},
        "threads": torch.get_num_threads(),
    }
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    known[args.label] = provenance() | entry
    RESULT.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return 0 if wait + max(batch.values()) < LOADER_LIMIT * step else 1


if __name__ == "__main__":
    sys.exit(main())
