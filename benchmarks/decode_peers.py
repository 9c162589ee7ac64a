"""Measure generation by this project against transformers' GptOssForCausalLM with the same weights.

    python -m benchmarks.decode_peers [--repeats 3] [--no-compile]
        writes benchmarks/results/decode_peers.json     (needs requirements-peers.txt)

Model, prompts and sampling are those of benchmarks/decode.py. transformers has two caches and three
implementations of its experts; a trial of 40 tokens finds the fastest of the six ways for each number of rows.
Then ours and that way take turns in one process of one thread, set-up included. Figures are medians of process
CPU time. Its compiled way (static cache, one row) is timed once, with the seconds that its first call takes
longer than its second. Exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time

import torch

from architecture.open_gpt_oss.verify import peer_of
from benchmarks.decode import LIGHT, NEW, PROMPT, TEMPERATURE, random_model, seconds
from benchmarks.publish import judge, publish

ROWS = (1, 8, 64)
CACHES, EXPERTS = ("dynamic", "static"), ("eager", "grouped_mm", "batched_mm")
GOAL = 3.0  # times the tokens per second of the fastest uncompiled way
TRIAL = 40  # new tokens


def peer_seconds(peer, rows: int, cache: str, experts: str, new: int = NEW) -> float:
    """Process seconds of a generation by transformers."""
    peer.set_experts_implementation(experts)
    draw = torch.Generator().manual_seed(rows)
    ids = torch.randint(peer.config.vocab_size, (rows, PROMPT), generator=draw)
    options = dict(
        do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, eos_token_id=None, pad_token_id=0
    )
    start = time.process_time()
    made = peer.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        cache_implementation=cache,
        disable_compile=True,  # compiled() compiles the whole forward
        **options,
    )
    taken = time.process_time() - start
    if made.shape != (rows, PROMPT + new):
        raise AssertionError(f"transformers made {tuple(made.shape)} ids, not {(rows, PROMPT + new)}")
    return taken


def compare(model, peer, rows: int, repeats: int) -> dict:
    ways = list(itertools.product(CACHES, EXPERTS))
    for way in ways:
        peer_seconds(peer, rows, *way, new=4)
    trial = {way: peer_seconds(peer, rows, *way, new=TRIAL) for way in ways}
    fastest = min(trial, key=trial.get)
    ours, theirs = [], []
    turns = [
        (ours, lambda: seconds(model, "lean", rows)[0]),
        (theirs, lambda: peer_seconds(peer, rows, *fastest)),
    ]
    for _ in range(repeats):
        for times, run in turns:
            times.append(run())
        turns.reverse()
    tokens = {
        name: rows * NEW / statistics.median(times)
        for name, times in (("ours", ours), ("transformers", theirs))
    }
    return {
        "tokens_per_cpu_second": tokens,
        "ratio": tokens["ours"] / tokens["transformers"],
        "fastest_way": " ".join(fastest),
        "trial_tokens_per_cpu_second": {" ".join(way): rows * TRIAL / taken for way, taken in trial.items()},
        "cpu_seconds": {"ours": ours, "transformers": theirs},
    }


def compiled(peer) -> dict[str, float]:
    """One row with a compiled forward and the static cache."""
    peer.forward = torch.compile(peer.forward)
    first, second = (peer_seconds(peer, 1, "static", "batched_mm") for _ in range(2))
    return {"compile_cpu_seconds": first - second, "tokens_per_cpu_second": NEW / second}


def main() -> int:
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="generations by each side (default: 3)")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled way")
    parser.add_argument("--no-write", action="store_true", help="print the figures only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    model = random_model()
    peer, found, limits = peer_of(model), {}, {}
    for rows in ROWS:
        found[rows] = figures = compare(model, peer, rows, arguments.repeats)
        tokens, ratio = figures["tokens_per_cpu_second"], figures["ratio"]
        print(
            f"{rows:3} rows  transformers ({figures['fastest_way']}) {tokens['transformers']:8,.0f}, "
            f"ours {tokens['ours']:8,.0f} tokens/s  {ratio:.2f} times",
            flush=True,
        )
        limits[f"{rows} rows: {ratio:.2f} times transformers (at least {GOAL})"] = ratio >= GOAL
    figures = {"transformers": transformers.__version__, "model": LIGHT, "prompt": PROMPT, "new_tokens": NEW}
    figures |= {"temperature": TEMPERATURE, "threads": 1, "rows": found}
    if not arguments.no_compile:
        figures["compiled_one_row"] = compiled(peer)
        print(f"compiled, one row: {figures['compiled_one_row']}")
    if not arguments.no_write:
        publish("decode_peers", figures)
    return judge(limits)


if __name__ == "__main__":
    sys.exit(main())
