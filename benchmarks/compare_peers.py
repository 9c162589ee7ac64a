"""Training on a CPU against transformers' GptOssForCausalLM: tokens per second and peak memory.

    python -m benchmarks.compare_peers [--steps 12] [--threads N]     writes benchmarks/results/compare_peers.json

Same shape, weights, tokens, AdamW and float32 on both sides; the peer with each way of its experts, of which
the fastest in a short trial counts. Each side is a process of its own; the two take their steps in turn, one
at a time, so that whatever else the machine does falls on both alike. Published are ratios of medians. Memory is the
process's peak above what it held when its model stood: gradients, optimizer and activations.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.peer_step import adamw, loss_of, training_peer, update
from common.provenance import provenance

RESULT = Path(__file__).parent / "results" / "compare_peers.json"
SHAPES = {
    "toy": {},
    "4 layers of 256, 8 experts top-2": dict(
        hidden_size=256, intermediate_size=256, head_dim=64, num_attention_heads=4
    ),
}
BATCH, BLOCK = 8, 256
OURS = "ours"
PEERS = ("transformers eager", "transformers batched_mm", "transformers grouped_mm")
LIMITS = {"speed": 1.6, "memory": 0.7}  # at least, at most
TRIAL = 2  # steps of each side before the fastest peer is chosen; the first is a warm-up
PAUSE = 0.3  # seconds before a turn: the other side's idle threads spin for a while
TOLERANCE = 2e-3  # of the losses after the first steps, in nats: the same model on the same tokens


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(pipe, side: str, shape: dict, threads: int) -> None:
    """A process of one side: a step for each batch received; answers (seconds, loss, bytes above the start)."""
    from architecture.gptoss import Transformer
    from architecture.registry import build_config

    torch.set_num_threads(threads)
    config = build_config("gptoss", "toy", shape)
    model = Transformer(config, generator=torch.Generator().manual_seed(0))
    if side != OURS:
        model = training_peer(model, side.split()[1])
    start = peak_bytes()
    optimizer = adamw(model)
    for batch in iter(pipe.recv, None):
        began = time.perf_counter()
        loss = loss_of(model, batch, side == OURS)
        update(model, optimizer, loss)
        pipe.send((time.perf_counter() - began, loss.item(), peak_bytes() - start))


def compare(name: str, steps: int, threads: int) -> dict:
    """Median seconds a step, memory and losses of every side, the sides taking turns."""
    shape, context = SHAPES[name], multiprocessing.get_context("spawn")
    sides, processes = {}, []
    for side in (OURS, *PEERS):
        sides[side], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, side, shape, threads)))
        processes[-1].start()
        theirs.close()
    seconds = {side: [] for side in sides}
    losses = {side: [] for side in sides}
    memory = {}
    generator = torch.Generator().manual_seed(1)

    def take_turns(some: tuple[str, ...], count: int, label: str) -> None:
        for _ in tqdm(range(count), desc=f"{name}, {label}", leave=False, disable=None):
            batch = torch.randint(4096, (BATCH, BLOCK + 1), generator=generator)
            for side in some:
                time.sleep(PAUSE)
                sides[side].send(batch)
                took, loss, memory[side] = sides[side].recv()
                seconds[side].append(took)
                losses[side].append(loss)

    try:
        take_turns((OURS, *PEERS), TRIAL, "trial")
        apart = max(abs(a - b) for peer in PEERS for a, b in zip(losses[OURS], losses[peer]))
        trial = {side: min(times) for side, times in seconds.items()}
        fastest = min(PEERS, key=trial.get)
        for side, process in zip(sides, processes):
            if side not in (OURS, fastest):
                process.terminate()
        seconds[OURS], seconds[fastest] = [], []
        take_turns((OURS, fastest), steps, f"against {fastest}")
    finally:
        for process in processes:
            process.terminate()
            process.join()
    if apart > TOLERANCE:
        raise AssertionError(f"the sides do not train the same model: their losses are {apart} apart")
    median = {side: statistics.median(seconds[side]) for side in (OURS, fastest)}
    return {
        "tokens_per_second": {side: BATCH * BLOCK / time for side, time in median.items()},
        "tokens_per_second_in_trial": {side: BATCH * BLOCK / took for side, took in trial.items()},
        "peak_bytes": memory,
        "fastest_peer": fastest,
        "speed": statistics.median(theirs / ours for ours, theirs in zip(seconds[OURS], seconds[fastest])),
        "memory": memory[OURS] / memory[fastest],
        "largest_loss_difference": apart,
    }


def main() -> int:
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each side (default: 12)")
    parser.add_argument("--threads", type=int, default=2, help="of each process (default: 2)")
    options = parser.parse_args()
    shapes = {name: compare(name, options.steps, options.threads) for name in SHAPES}
    result = provenance() | {
        "transformers": transformers.__version__,
        "steps": options.steps,
        "threads": options.threads,
        "tokens_per_step": BATCH * BLOCK,
        "shapes": shapes,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    met = True
    for name, found in shapes.items():
        print(f"{name}: the fastest peer is {found['fastest_peer']}")
        for side, rate in found["tokens_per_second"].items():
            print(f"  {side:<26} {rate:8,.0f} tokens/s  {found['peak_bytes'][side] / 2**20:6,.0f} MiB")
        speed, memory = found["speed"] >= LIMITS["speed"], found["memory"] <= LIMITS["memory"]
        print(
            f"  {'met   ' if speed else 'MISSED'} {found['speed']:.2f} times its speed (at least {LIMITS['speed']})"
        )
        print(
            f"  {'met   ' if memory else 'MISSED'} {found['memory']:.2f} of its memory (at most {LIMITS['memory']})"
        )
        met &= speed and memory
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
