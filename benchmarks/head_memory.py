"""Memory and time of head and loss with their gradients at the official vocabulary.

    python -m benchmarks.head_memory     writes benchmarks/results/head_memory.json

4,096 tokens, hidden size 256, 201,088 ids, float32: architecture.interface.next_token_loss against
F.cross_entropy of all the logits. Each measurement is a process of its own, the two in turn, and the
figures are medians. Memory is the growth of the peak resident size over that before the call, with
inputs and weight in place. Exits with 1 if the extra memory exceeds 1.5 GB or the time twice the naive.
Needs about 14 GB for the naive way.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "head_memory.json"

TOKENS, HIDDEN, VOCABULARY = 4096, 256, 201_088
MEMORY_LIMIT_GB, TIME_LIMIT = 1.5, 2.0


def peak_gb() -> float:
    """Peak resident size of this process, GB (ru_maxrss counts KiB on Linux, bytes on macOS)."""
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    )


def measure(way: str) -> dict[str, float]:
    """Seconds, extra GB and loss of one forward and backward, after a warm-up at a small size."""
    import torch
    import torch.nn.functional as F

    from architecture.interface import next_token_loss

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
    before, start = peak_gb(), time.perf_counter()
    loss = head_and_loss(*real)
    return {
        "seconds": time.perf_counter() - start,
        "extra_gb": peak_gb() - before,
        "loss": loss,
        "threads": torch.get_num_threads(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="of each way (default: 3)")
    parser.add_argument("--no-write", action="store_true", help="print, but leave the file alone")
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
        print(
            f"{way:6} {values['extra_gb']:6.2f} GB extra  {values['seconds']:6.1f} s  loss {values['loss']:.6f}"
        )
    print(f"time ratio {time_ratio:.2f}")
    if not arguments.no_write:
        from common.provenance import provenance

        result = provenance() | {
            "tokens": TOKENS,
            "hidden_size": HIDDEN,
            "vocab_size": VOCABULARY,
            "dtype": "float32",
            "device": "cpu",
            "median": median,
            "time_ratio": time_ratio,
            "runs": runs,
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        print(f"wrote {RESULT}")
    assert abs(median["ours"]["loss"] - median["naive"]["loss"]) < 1e-4
    return int(median["ours"]["extra_gb"] > MEMORY_LIMIT_GB or time_ratio > TIME_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
