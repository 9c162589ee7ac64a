"""Measure what models cost to use: size, memory and speed.

    python -m evaluation.inference_cost CHECKPOINT... --tokens N --out FILE.json [--rounds 25]

A model reads half of N tokens at once (prefill) and generates the other half one by one as sample.py does
(decode); N is limited to what the model can read.

The models are measured in turn, round after round, in one process, so that a machine that becomes slower slows
all of them. Right before and after each measurement, the same clock times a fixed product of two matrices, which
says how fast the machine was at that moment. FILE.json has for each model the median over the rounds, and the
speeds of every round, those of the fixed product, too.

On a CPU there are tokens per CPU second, too, in which the time of other programs does not count. Compare models
by these. Other programs can only lower them, because they use the same cache, so the figure is not the median but
that of nearly the fastest round.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.script import Parser, exit_code, say
from common.threads import set_threads

# Many short rounds compare better than a few long ones beside other work (benchmarks/LOG.md).
ROUNDS = 25
FEWEST, LONG = 5, 60.0  # from so many rounds on, they end when they have taken so many seconds for each model
SECONDS = 0.1  # of decoding in each measurement; one text of a larger model takes longer
WARM_UP = 8  # tokens that a model generates before its speed is measured
KINDS = ("prefill", "decode")


def measure(
    checkpoints: Sequence[Path], tokens: int, device_name: str, rounds: int | None = None
) -> list[dict[str, Any]]:
    """For each checkpoint its bytes, those of its weights, its peak memory in 1e9 bytes, and its speeds.

    rounds: None for ROUNDS, or fewer if the models are slow.

    With KIND of prefill and decode, KIND_tokens_per_second is the median over the rounds, and on a CPU
    KIND_tokens_per_cpu_second the rate that a tenth of the rounds exceed; the same names with _each_round hold all
    of them. matmul_gflops_each_round is the GFLOP/s
    of the fixed product (common.device.matmul_rate) around each measurement. peak_memory_gb is None if the system
    cannot tell one model's memory from that of another.
    """
    from architecture.checkpoint import find_checkpoint
    from common.device import choose_device

    device = choose_device(device_name)
    paths = [find_checkpoint(path, say) for path in checkpoints]
    found: list[list[dict[str, Any]]] = [[] for _ in paths]
    began = time.monotonic()
    for turn in range(rounds or ROUNDS):
        if rounds is None and turn >= FEWEST and time.monotonic() - began > LONG * len(paths):
            break
        order = range(len(paths)) if turn % 2 == 0 else reversed(range(len(paths)))  # a steady drift cancels
        for place in order:
            found[place].append(visit(paths[place], tokens, device))
    costs = []
    for given, path, visits in zip(checkpoints, paths, found):
        files = (f for f in (path, *path.glob("*")) if f.is_file())
        cost = {"checkpoint": str(given), "checkpoint_bytes": sum(f.stat().st_size for f in files)}
        cost["weight_bytes"] = visits[0]["weight_bytes"]
        peaks = [one["peak_memory_gb"] for one in visits]
        cost["peak_memory_gb"] = None if None in peaks else statistics.median(peaks)
        for name in (name for name in visits[0] if name not in cost):
            cost[f"{name}_each_round"] = rates = [round(one[name], 1) for one in visits]
            if name.endswith("_cpu_second"):
                cost[name] = sorted(rates)[-1 - len(rates) // 10]
            elif name != "matmul_gflops":
                cost[name] = statistics.median(rates)
        costs.append(cost)
    return costs


@dataclass
class Spent:
    """Tokens, and the time that they took."""

    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def add(self, tokens: int, began: tuple[float, float], ended: tuple[float, float]) -> None:
        self.tokens += tokens
        self.seconds += ended[0] - began[0]
        self.cpu_seconds += ended[1] - began[1]


def visit(checkpoint: Path, tokens: int, device: Any) -> dict[str, Any]:
    """Load a model, measure it once, and forget it: there is one model in memory at a time."""
    import torch

    from architecture.generation.decode import generate_steps, length_limit
    from architecture.registry import load_model
    from common.device import (
        autocast,
        choose_dtype,
        forget_peak_memory,
        matmul_rate,
        peak_memory_gb,
        synchronize,
    )

    def now() -> tuple[float, float]:
        synchronize(device)
        return time.perf_counter(), time.process_time()

    gc.collect()
    known = forget_peak_memory(device)
    model = load_model(checkpoint, device=device)
    half = max(2, min(tokens, length_limit(model)) // 2)  # the first new token belongs to prefill
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.tokenizer.n_vocab, (1, half), generator=generator).tolist()
    read, written = Spent(), Spent()
    with torch.inference_mode(), autocast(device, choose_dtype("auto", device)):
        sum(1 for _ in generate_steps(model, prompt, max_tokens=min(half, WARM_UP), temperature=0))
        memory = peak_memory_gb(device)
        rate = matmul_rate(device)
        forget_peak_memory(device)  # what the product took
        while written.tokens == 0 or written.seconds < SECONDS:
            steps = generate_steps(model, prompt, max_tokens=half, temperature=0)
            began = now()
            next(steps)
            first = now()
            new = sum(1 for _ in steps)
            read.add(half, began, first)
            written.add(new, first, now())
        memory = max(memory, peak_memory_gb(device)) if known else None
        rate = (rate + matmul_rate(device)) / 2
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    found = {"weight_bytes": weights, "peak_memory_gb": memory, "matmul_gflops": rate / 1e9}
    for kind, spent in zip(KINDS, (read, written)):
        found[f"{kind}_tokens_per_second"] = spent.tokens / spent.seconds
        if device.type == "cpu":
            found[f"{kind}_tokens_per_cpu_second"] = spent.tokens / spent.cpu_seconds
    return found


def in_words(cost: dict[str, Any]) -> str:
    """The speeds of one model, as one line."""
    told = []
    for kind in KINDS:
        each = cost[f"{kind}_tokens_per_second_each_round"]
        told.append(
            f"{kind} {cost[f'{kind}_tokens_per_second']:,.0f} ({min(each):,.0f} to {max(each):,.0f}) tokens/s"
        )
        if per_cpu := cost.get(f"{kind}_tokens_per_cpu_second"):
            told[-1] += f", {per_cpu:,.0f} per CPU second"
    low, high = (limit(cost["matmul_gflops_each_round"]) for limit in (min, max))
    return f"{cost['checkpoint']}: {'; '.join(told)}; a fixed product of matrices {low:,.0f} to {high:,.0f} GFLOP/s"


def run(argv: list[str] | None) -> None:
    parser = Parser(
        prog="python -m evaluation.inference_cost",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="checkpoint_<step>.pt or RUN")
    add("--tokens", type=int, required=True, help="length of a text; half of it is read, half is written")
    add("--rounds", type=int, help=f"measurements of each model (default: {ROUNDS}, or fewer of slow ones)")
    add("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N (default: auto)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: one for each core that is free)")
    add("--out", type=Path, required=True, metavar="FILE", help="file for the figures (JSON)")
    args = parser.parse_args(argv)
    for name, value, least in (("tokens", args.tokens, 2), ("rounds", args.rounds, 1)):
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")

    from common.files import write_json_atomic

    if line := set_threads(args.threads, common.begin.STARTED):
        say(line)
    found = measure(args.checkpoints, args.tokens, args.device, args.rounds)
    write_json_atomic(args.out, {"tokens": args.tokens, "checkpoints": found})
    print(*map(in_words, found), sep="\n")


if __name__ == "__main__":
    sys.exit(exit_code("evaluation.inference_cost", lambda: run(None)))
