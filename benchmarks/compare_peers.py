"""Compare training on a CPU with transformers' GptOssForCausalLM: tokens per second and peak memory.

    python -m benchmarks.compare_peers [--steps 12] [--threads N]
        writes benchmarks/results/compare_peers.json

transformers must be installed: requirements-peers.txt.

Both sides have the same shape, weights, tokens, AdamW and float32. The peer has several implementations of
its experts; the fastest one in a short trial is compared. Each side is a process of its own, and the sides
take their steps in turn, so that other work on the machine slows both down alike. The published ratios are
ratios of medians. Memory is the peak of the process above its size after the model was built: gradients,
optimizer and activations. Exits with 1 if a limit is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time

import torch
from tqdm import tqdm

from benchmarks.peer_step import adamw, loss_of, training_peer, update
from benchmarks.publish import judge, publish
from common.device import peak_memory_gb

SHAPES = {
    "toy": {},
    "4 layers of 256, 8 experts top-2": dict(
        hidden_size=256, intermediate_size=256, head_dim=64, num_attention_heads=4
    ),
}
BATCH, BLOCK = 8, 256
OURS = "ours"
PEERS = ("transformers eager", "transformers batched_mm", "transformers grouped_mm")
LEAST_SPEED, MOST_MEMORY = 1.6, 0.7  # our speed and our memory, as multiples of the peer's
TRIAL = 2  # steps of each side before the fastest peer is chosen; the first one is a warm-up
PAUSE = 0.3  # seconds before a turn, because the idle threads of the other side spin for a while
TOLERANCE = 2e-3  # nats between the losses of the first steps, which are of the same model and tokens


def peak_bytes() -> int:
    return round(1e9 * peak_memory_gb(torch.device("cpu")))


def serve(pipe, side: str, shape: dict, threads: int) -> None:
    """Run the process of one side: take a step for each batch, and send (seconds, loss, extra bytes)."""
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
    """Let the sides take turns, and return their speeds, memory and ratios."""
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
        raise AssertionError(f"the two sides do not train the same model: their losses differ by {apart}")
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
    publish(
        "compare_peers",
        {
            "transformers": transformers.__version__,
            "steps": options.steps,
            "threads": options.threads,
            "tokens_per_step": BATCH * BLOCK,
            "shapes": shapes,
        },
    )
    limits = {}
    for name, found in shapes.items():
        print(f"{name}: the fastest peer is {found['fastest_peer']}")
        for side, rate in found["tokens_per_second"].items():
            print(f"  {side:<26} {rate:8,.0f} tokens/s  {found['peak_bytes'][side] / 2**20:6,.0f} MiB")
        speed, memory = found["speed"], found["memory"]
        limits[f"{name}: {speed:.2f} times its speed (at least {LEAST_SPEED})"] = speed >= LEAST_SPEED
        limits[f"{name}: {memory:.2f} of its memory (at most {MOST_MEMORY})"] = memory <= MOST_MEMORY
    return judge(limits)


if __name__ == "__main__":
    sys.exit(main())
