"""Measure what a model costs to use: size, memory and speed.

    python -m evaluation.inference_cost CHECKPOINT --tokens N --out FILE.json

The model reads half of N tokens at once (prefill) and generates the other half one by one as sample.py does
(decode); N is limited to what the model can read. Speeds are medians of several repeats. The measurement is a
process of its own, so that the peak memory is that of the model.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import statistics
import sys
import time
from pathlib import Path

from common.script import Parser, exit_code, say
from common.threads import set_threads

REPEATS = 5


def measure(checkpoint: Path, tokens: int, device_name: str) -> dict[str, float]:
    """Bytes of the checkpoint and of its weights, peak memory in 1e9 bytes, tokens per second."""
    import torch

    from architecture.checkpoint import find_checkpoint
    from architecture.generation.decode import generate_steps, length_limit
    from architecture.registry import load_model
    from common.device import autocast, choose_device, choose_dtype, peak_memory_gb

    device, checkpoint = choose_device(device_name), find_checkpoint(checkpoint, say)
    model = load_model(checkpoint, device=device)
    half = max(1, min(tokens, length_limit(model)) // 2)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.tokenizer.n_vocab, (1, half), generator=generator).tolist()

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    prefill, decode = [], []
    with torch.inference_mode(), autocast(device, choose_dtype("auto", device)):
        for _ in range(REPEATS + 1):  # the first is a warm-up
            steps = generate_steps(model, prompt, max_tokens=half, temperature=0)
            began = clock()
            next(steps)
            read = clock()
            written = sum(1 for _ in steps)
            prefill.append(half / (read - began))
            decode.append(written / (clock() - read))
    return {
        "checkpoint_bytes": sum(f.stat().st_size for f in (checkpoint, *checkpoint.glob("*")) if f.is_file()),
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "peak_memory_gb": peak_memory_gb(device),
        "prefill_tokens_per_second": statistics.median(prefill[1:]),
        "decode_tokens_per_second": statistics.median(decode[1:]),
    }


def run(argv: list[str] | None) -> None:
    parser = Parser(prog="python -m evaluation.inference_cost", allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)

    from common.files import write_json_atomic

    if line := set_threads(args.threads, common.begin.STARTED):
        say(line)
    write_json_atomic(args.out, measure(args.checkpoint, args.tokens, args.device))


if __name__ == "__main__":
    sys.exit(exit_code("evaluation/inference_cost.py", lambda: run(None)))
