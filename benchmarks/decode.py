"""Measure generation by the lean decoder against the general one, set-up included.

    python -m benchmarks.decode     writes benchmarks/results/decode.json

The model has the shape of the `light` preset below and random weights. It generates 200 tokens after prompts of
8 at temperature 0.8, for 1, 8 and 64 rows. The two decoders take turns, in rotated order, in one process of one
thread. Figures are medians of process CPU time, so that other work on the machine counts little. Both must give
the same ids. Then 200 texts of 200 tokens with top_p=0.95 are timed. Exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

from architecture.generation.decode import Decoder, generate
from architecture.generation.lean import LeanDecoder
from architecture.generation.sampling import row_generators
from architecture.gptoss import Transformer
from architecture.registry import build_config
from benchmarks.publish import judge, publish

LIGHT = dict(num_experts=4, intermediate_size=96, num_hidden_layers=3)  # changes to the preset toy
PROMPT, NEW, TEMPERATURE = 8, 200, 0.8
STORIES, TOP_P = 200, 0.95
GOALS = {1: 5.0, 8: 4.5, 64: 3.0}  # times the tokens per second of the general decoder, by rows
WAYS = {"lean": LeanDecoder, "general": lambda *arguments: Decoder(*arguments, use_cache=True)}


def random_model() -> Transformer:
    """A model whose text depends on the context: with its initial weights, all ids are about as probable."""
    draw = torch.Generator().manual_seed(0)
    model = Transformer(build_config("gptoss", "toy", LIGHT), generator=draw).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1 and not name.endswith("bias"):
                p.normal_(0.0, 0.08, generator=draw)
        model.unembedding.weight.mul_(6.0)  # an entropy of 2 nats, about that of a trained model
    return model


def seconds(model, way: str, rows: int, **options) -> tuple[float, list[list[int]]]:
    """Process seconds of a generation, with its set-up, and the ids."""
    draw = torch.Generator().manual_seed(rows)
    prompts = torch.randint(model.config.vocab_size, (rows, PROMPT), generator=draw).tolist()
    start = time.process_time()
    decoder = WAYS[way](model, rows, PROMPT + NEW - 1)
    ids = generate(
        model,
        prompts,
        max_tokens=NEW,
        temperature=TEMPERATURE,
        generators=row_generators(0, rows),
        decoder=decoder,
        **options,
    )
    return time.process_time() - start, ids


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="generations by each decoder (default: 7)")
    parser.add_argument("--no-write", action="store_true", help="print the figures only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, speeds, limits = random_model(), {}, {}
    for rows, goal in GOALS.items():
        taken, order, differ = {way: [] for way in WAYS}, list(WAYS), 0
        for repeat in range(arguments.repeats + 1):
            ids = {}
            for way in order:
                time_taken, ids[way] = seconds(model, way, rows)
                if repeat:  # the first is a warm-up
                    taken[way].append(time_taken)
            differ = sum(a != b for a, b in zip(ids["lean"], ids["general"]))
            order.reverse()
        median = {way: statistics.median(times) for way, times in taken.items()}
        ratio = median["general"] / median["lean"]
        tokens = {way: rows * NEW / time_taken for way, time_taken in median.items()}
        speeds[rows] = {
            "tokens_per_cpu_second": tokens,
            "ratio": ratio,
            "rows_that_differ": differ,
            "cpu_seconds": taken,
        }
        print(
            f"{rows:3} rows  {tokens['general']:8,.0f} -> {tokens['lean']:8,.0f} tokens/s  {ratio:.2f} times  "
            f"{differ} rows differ",
            flush=True,
        )
        limits[f"{rows} rows: {ratio:.2f} times the general decoder (at least {goal})"] = ratio >= goal
    stories = statistics.median(seconds(model, "lean", STORIES, top_p=TOP_P)[0] for _ in range(3))
    print(f"{STORIES} texts of {NEW} tokens with top_p={TOP_P}: {stories:.2f} s")
    limits[f"{STORIES} texts in {stories:.2f} s (at most 5)"] = stories <= 5
    if not arguments.no_write:
        figures = {"model": LIGHT, "prompt": PROMPT, "new_tokens": NEW, "temperature": TEMPERATURE}
        publish("decode", figures | {"threads": 1, "rows": speeds, "stories_seconds": stories})
    return judge(limits)


if __name__ == "__main__":
    sys.exit(main())
