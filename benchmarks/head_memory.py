"""Measure memory and time of the head and the loss with their gradients at the official vocabulary.

    python -m benchmarks.head_memory     writes benchmarks/results/head_memory.json

architecture.interface.next_token_loss is compared with F.cross_entropy of all logits ("naive"), with 4,096
tokens, hidden size 256, 201,088 ids and float32. Each measurement is a process of its own, the two ways take
turns, and the figures are medians. Memory is the growth of the peak resident size during the call. Exits with
1 if ours takes more than 1.5 GB extra or twice the naive time. The naive way needs about 14 GB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

from benchmarks.publish import judge, publish

TOKENS, HIDDEN, VOCABULARY = 4096, 256, 201_088
MEMORY_LIMIT_GB, TIME_LIMIT = 1.5, 2.0


def measure(way: str) -> dict[str, float]:
    """Seconds, extra GB and loss of one forward and backward pass, after a warm-up at a small size."""
    import torch
    import torch.nn.functional as F

    from architecture.interface import next_token_loss
    from common.device import peak_memory_gb

    def head_and_loss(hidden, weight, targets):
        if way == "ours":
            loss_sum, _, _ = next_token_loss(hidden, weight, targets)
        else:
            logits = (hidden @ weight.T).flatten(0, 1)
            loss_sum = F.cross_entropy(logits, targets.flatten(), reduction="sum")
        (loss_sum / targets.numel()).backward()
        return loss_sum.item() / targets.numel()

    def inputs(tokens, vocabulary):
        hidden = torch.randn(1, tokens, HIDDEN).requires_grad_()
        weight = (0.02 * torch.randn(vocabulary, HIDDEN)).requires_grad_()
        return hidden, weight, torch.randint(vocabulary, (1, tokens))

    torch.manual_seed(0)
    head_and_loss(*inputs(64, 512))
    real = inputs(TOKENS, VOCABULARY)
    cpu = torch.device("cpu")
    before, start = peak_memory_gb(cpu), time.perf_counter()
    loss = head_and_loss(*real)
    return {
        "seconds": time.perf_counter() - start,
        "extra_gb": peak_memory_gb(cpu) - before,
        "loss": loss,
        "threads": torch.get_num_threads(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="processes for each way (default: 3)")
    parser.add_argument("--no-write", action="store_true", help="print the figures only")
    parser.add_argument("--way", choices=("ours", "naive"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way)))
        return 0

    runs: dict[str, list[dict]] = {"ours": [], "naive": []}
    for _ in range(arguments.repeats):
        for way, results in runs.items():
            command = [sys.executable, "-m", "benchmarks.head_memory", "--way", way]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append(json.loads(done.stdout))
    median = {
        way: {key: statistics.median(run[key] for run in results) for key in results[0]}
        for way, results in runs.items()
    }
    time_ratio = median["ours"]["seconds"] / median["naive"]["seconds"]
    for way, values in median.items():
        extra, took, loss = (values[key] for key in ("extra_gb", "seconds", "loss"))
        print(f"{way:6} {extra:6.2f} GB extra  {took:6.1f} s  loss {loss:.6f}")
    if not arguments.no_write:
        publish(
            "head_memory",
            {
                "tokens": TOKENS,
                "hidden_size": HIDDEN,
                "vocab_size": VOCABULARY,
                "dtype": "float32",
                "device": "cpu",
                "median": median,
                "time_ratio": time_ratio,
                "runs": runs,
            },
        )
    assert abs(median["ours"]["loss"] - median["naive"]["loss"]) < 1e-4
    return judge(
        {
            f"extra memory at most {MEMORY_LIMIT_GB} GB": median["ours"]["extra_gb"] <= MEMORY_LIMIT_GB,
            f"{time_ratio:.2f} of the naive time (at most {TIME_LIMIT})": time_ratio <= TIME_LIMIT,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
