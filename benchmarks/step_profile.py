"""Measure where the time of a training step goes, and how much of it the data loader takes.

    python -m benchmarks.step_profile [--steps 10] [--label NAME] [--dataset '$TINYSTORIES/train.jsonl']
        adds to benchmarks/results/step_profile.json

The run is the toy recipe on the bundled stories with all defaults, on a CPU. The shares come from a profile
of whole steps, forward and backward together.

How much of the machine a step uses: right before and after each timed step, the same clock times a fixed product
of matrices (common.device.matmul_rate). The FLOPs of the step are those of the products that it makes, counted as
it makes them: the model's, those inside attention's kernel (which multiplies hidden keys, too), and Muon's, which
the formula of the model (flops_per_token, for MFU) does not have. Their shares of the machine's rate add up.

The loader is measured in steps without a profile: how long the trainer waits for a batch, and how long the
loader's thread takes to make one. Of --dataset only the latter is measured; environment variables in it are
expanded here, so that the published command has no path of this machine. Each label keeps its newest entry, so
that a change can be compared with the state before it. Exits with 1 if waiting and making a batch take 2 % of a
step or more.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.publish import RESULTS, judge
from benchmarks.toy_run import seconds, toy_run
from common.device import matmul_rate
from common.provenance import provenance, record_path
from data.loader import TrainLoader
from data.sources import open_dataset
from training.muon import LONG, Muon
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
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")
aten = torch.ops.aten
KERNEL = aten._scaled_dot_product_flash_attention_for_cpu  # attention's kernel on a CPU, and its gradient
KERNELS = (KERNEL, aten._scaled_dot_product_flash_attention_for_cpu_backward)


def addmm_flops(_, a, b, **kwargs) -> int:
    """FLOPs of x += a @ b, by the shapes."""
    return 2 * math.prod(a) * b[-1]


def attention_flops(q, k, *_, **kwargs) -> int:
    """FLOPs of attention's kernel, by the shapes (B, H, T, C) and (B, H, S, C): q k^T and its product with v."""
    return 2 * 2 * math.prod(q) * k[-2]


def attention_gradient_flops(_, q, k, *rest, **kwargs) -> int:
    """FLOPs of its gradient: q k^T once more, and one product each for the gradients of weights, q, k and v."""
    return 5 * 2 * math.prod(q) * k[-2]


# What torch's counter does not know by itself.
COUNTED = {aten.addmm_: addmm_flops, KERNELS[0]: attention_flops, KERNELS[1]: attention_gradient_flops}


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
    for name, keys in (("matrix products", PRODUCTS), ("attention's kernel", map(str, KERNELS))):
        spent = sum(events[key].self_cpu_time_total for key in map(profiled, keys) if key in events)
        found[name] = spent / 1e6 / total
    return found


def profiled(name: str) -> str:
    """The name of an operator in a profile."""
    return name.replace("aten.", "aten::")


def flops_of_products(step) -> dict[str, int]:
    """FLOPs of the matrix products that one step makes: inside attention's kernel, and all others."""
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        step()
    counts = counter.get_flop_counts()["Global"]
    attention = sum(counts.get(kernel, 0) for kernel in KERNELS)
    return {"attention's kernel": attention, "matrix products": counter.get_total_flops() - attention}


def muon_flops(rows: int, columns: int, rounds: int) -> int:
    """FLOPs of orthogonalize (training/muon.py) for one float32 matrix, by its shape alone."""
    short, long = sorted((rows, columns))
    square, gram = 2 * short**3, 2 * short**2 * long  # (short, short) times itself, and times (short, long)
    if long >= LONG * short:  # the gram, one product in its first round, four in each other, and one with x
        return gram + (1 + 4 * (rounds - 1)) * square + gram
    return rounds * (gram + square + gram)


def flops_of_muon(optimizer: Muon) -> int:
    """FLOPs of the products of one of its steps, on a CPU."""
    return sum(
        parameter.numel()
        // math.prod(parameter.shape[-2:])
        * muon_flops(*parameter.shape[-2:], len(group["polynomials"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    )


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
    cpu = torch.device("cpu")
    waits, rates = [], []
    with toy_run(use_tensorboard=False) as (run, progress):
        cfg, config, tokenizer = run.cfg, run.model.config, run.tokenizer

        def step() -> None:
            train_step(run, progress)

        for _ in range(3):  # warm-up
            step()
        steps = []
        for _ in range(args.steps):
            rate = matmul_rate(cpu)
            steps.append(seconds(step))
            rates.append((rate + matmul_rate(cpu)) / 2)
        for _ in range(args.steps):
            waits.append(seconds(take_batches, run, progress))
            step()
        parts = shares(step, args.steps)
        flops = flops_of_products(step)
        flops["Muon"] = sum(flops_of_muon(o) for o in run.optimizers if isinstance(o, Muon))
    flops = {"the model": flops.pop("matrix products") - flops["Muon"]} | flops
    formula = config.flops_per_token(cfg.block_size) * cfg.batch_size * cfg.block_size
    took = statistics.median(steps)
    batch = {
        Path(dataset).name: batch_seconds(os.path.expandvars(dataset), cfg, tokenizer, 20 * args.steps)
        for dataset in filter(None, ("bundled", args.dataset))
    }
    wait = statistics.median(waits)

    def of_machine(work: float) -> float:
        """The share of the machine's rate at which a step does this many FLOPs."""
        return statistics.median(work / (second * rate) for second, rate in zip(steps, rates))

    products = flops["the model"] + flops["Muon"]
    used = {name: of_machine(work) for name, work in flops.items()}
    for part, share in parts.items():
        print(f"{part:36} {share:6.1%}  {1e3 * share * took:6.1f} ms")
    print(f"{'a step':36} {1e3 * took:14.1f} ms, {cfg.batch_size * cfg.block_size / took:,.0f} tokens/s")
    print(f"a fixed product of matrices ran at {min(rates) / 1e9:.0f} to {max(rates) / 1e9:.0f} GFLOP/s")
    for name, work in flops.items():
        print(f"products of {name:24} {work / 1e9:6.2f} GFLOP, {used[name]:5.1%} of that rate")
    print(f"{'all of them':36} {sum(flops.values()) / 1e9:6.2f} GFLOP, {sum(used.values()):5.1%}")
    print(f"{'by flops_per_token':36} {formula / 1e9:6.2f} GFLOP, {of_machine(formula):5.1%} (as MFU counts)")
    within = of_machine(products) / parts["matrix products"]
    print(
        f"while a step makes matrix products, outside of attention's kernel, it runs at {within:.0%} of that rate"
    )
    print(f"loader: the trainer waits {1e3 * wait:.2f} ms a step ({wait / took:.2%})")
    for dataset, taken in batch.items():
        print(f"a batch of {dataset} takes {1e3 * taken:.2f} ms of the loader's thread ({taken / took:.2%})")
    entry = {
        "step_ms": 1e3 * took,
        "shares": parts,
        "matmul_gflops": [min(rates) / 1e9, statistics.median(rates) / 1e9, max(rates) / 1e9],
        "flops": flops | {"by flops_per_token": formula},
        "share_of_matmul_rate": used | {"by flops_per_token": of_machine(formula)},
        "matmul_rate_within_products": within,
        "loader_wait_share": wait / took,
        "loader_thread_share": {dataset: taken / took for dataset, taken in batch.items()},
        "threads": torch.get_num_threads(),
    }
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    known[args.label] = provenance() | entry
    record_path(RESULT).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    share = (wait + max(batch.values())) / took
    return judge({f"the loader takes {share:.2%} of a step (below {LOADER_LIMIT:.0%})": share < LOADER_LIMIT})


if __name__ == "__main__":
    sys.exit(main())
