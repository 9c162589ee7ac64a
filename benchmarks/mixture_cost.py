"""Measure what a mixture of experts costs, in training and in decoding, against dense models of its active size.

    python -m benchmarks.mixture_cost     writes benchmarks/results/mixture_cost.json

A mixture of E experts of width F, of which a token uses k, stands beside two models of one MLP in each layer:

same FLOPs        width k F, the same multiplications per token as the chosen experts together; the router is
                  the mixture's own extra work
same parameters   a little wider, so that it has as many active parameters as the mixture with its router

A step is that of the trainer with AdamW: forward and backward of 2,048 random ids, the balance loss, the norms,
clipping and the update. Decoding is the lean decoder's, with its set-up, for 1, 8 and 64 rows. The models take
turns, in rotated order, in one process of one thread. A ratio is the median over the rounds of the mixture's
process CPU time by that of the dense model, with the 95 % interval of this median by order statistics.
Exits with 1 if a step of a mixture costs more than its limit.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from architecture.generation.decode import generate
from architecture.generation.lean import LeanDecoder
from architecture.generation.sampling import row_generators
from architecture.gptoss import ModelConfig, Transformer
from architecture.registry import build_config
from benchmarks.publish import judge, publish
from training.config import TrainConfig
from training.optimizer import build_optimizers, parameter_kinds
from training.step import accumulate_gradients, apply_gradients

SHAPES: dict[str, dict[str, Any]] = {  # changes to the preset toy
    "toy 8:2": {},
    "4x256 8:2": dict(hidden_size=256, intermediate_size=256, head_dim=64),
    "toy 32:8": dict(num_experts=32, experts_per_token=8, intermediate_size=48),
}
LIMITS = {"toy 8:2": 1.15, "4x256 8:2": 1.1, "toy 32:8": 1.2}  # for a step, against the same FLOPs
BATCH, BLOCK = 8, 256
ROWS, PROMPT, NEW = (1, 8, 64), 8, 64
MIXTURE, FLOPS, PARAMETERS = "mixture", "same FLOPs", "same parameters"


def configs_of(shape: dict[str, Any]) -> dict[str, ModelConfig]:
    """The mixture and the two dense models."""
    mixture = build_config("gptoss", "toy", shape)

    def dense(width: int) -> ModelConfig:
        return build_config("gptoss", "toy", shape | dict(moe_layers=(), intermediate_size=width))

    width = mixture.experts_per_token * mixture.intermediate_size
    active = mixture.parameter_counts()["active"]
    nearest = min(range(width, 2 * width), key=lambda w: abs(dense(w).parameter_counts()["active"] - active))
    return {MIXTURE: mixture, FLOPS: dense(width), PARAMETERS: dense(nearest)}


def training_step(config: ModelConfig) -> Callable[[dict[str, torch.Tensor]], None]:
    """A function that takes one step of a new model on a batch."""
    cfg = TrainConfig(optimizer="adamw", lr=1e-3)
    model = Transformer(config, generator=torch.Generator().manual_seed(0)).train()
    kinds, optimizers = parameter_kinds(model), build_optimizers(model, cfg)
    fixed = dict(previous_share=None, carry=None, token_bytes=torch.ones(config.vocab_size))

    def step(batch: dict[str, torch.Tensor]) -> None:
        result = accumulate_gradients(model, [batch], cfg, autocast=contextlib.nullcontext, **fixed)
        apply_gradients(kinds, optimizers, result, cfg.grad_clip)

    return step


def generation(config: ModelConfig) -> Callable[[int], None]:
    """A function that generates NEW ids for some rows by a new decoder."""
    model = Transformer(config, generator=torch.Generator().manual_seed(0)).eval()

    def write(rows: int) -> None:
        draw = torch.Generator().manual_seed(rows)
        prompts = torch.randint(config.vocab_size, (rows, PROMPT), generator=draw).tolist()
        decoder = LeanDecoder(model, rows, PROMPT + NEW - 1)
        generate(model, prompts, max_tokens=NEW, generators=row_generators(0, rows), decoder=decoder)

    return write


def take_turns(sides: dict[str, Callable], arguments: Sequence[Any], warm_up: int) -> dict[str, list[float]]:
    """Process seconds of each side for each argument after the first `warm_up`; the order rotates."""
    taken, order = {side: [] for side in sides}, list(sides)
    for number, argument in enumerate(arguments):
        for side in order:
            began = time.process_time()
            sides[side](argument)
            if number >= warm_up:
                taken[side].append(time.process_time() - began)
        order.append(order.pop(0))
    return taken


def median_of_ratios(mixture: list[float], dense: list[float]) -> dict[str, Any]:
    """The median of the ratios of all rounds, and its 95 % interval by order statistics."""
    ratios = sorted(a / b for a, b in zip(mixture, dense))
    n = len(ratios)
    outside = max(0, math.floor((n - 1.96 * math.sqrt(n)) / 2))  # normal approximation of the binomial
    return {"ratio": statistics.median(ratios), "interval": [ratios[outside], ratios[n - 1 - outside]]}


def compare(taken: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "cpu_ms": {side: 1e3 * statistics.median(times) for side, times in taken.items()},
        "against": {
            side: median_of_ratios(taken[MIXTURE], times) for side, times in taken.items() if side != MIXTURE
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each model (default: 20)")
    parser.add_argument("--texts", type=int, default=7, help="timed generations, each (default: 7)")
    parser.add_argument("--shape", choices=SHAPES, help="this shape only; nothing is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures, limits, draw = {}, {}, torch.Generator().manual_seed(1)
    for name in [options.shape] if options.shape else SHAPES:
        configs = configs_of(SHAPES[name])
        ids = torch.randint(4096, (options.steps + 3, BATCH, BLOCK + 1), generator=draw)
        batches = [dict(input_ids=x[:, :-1], targets=x[:, 1:].contiguous()) for x in ids]
        steps = {side: training_step(config) for side, config in configs.items()}
        found = {"training": compare(take_turns(steps, batches, warm_up=3))}
        writers = {side: generation(config) for side, config in configs.items()}
        for rows in ROWS:
            if options.texts:
                found[f"decoding, {rows} rows"] = compare(
                    take_turns(writers, [rows] * (options.texts + 1), warm_up=1)
                )
        for what, result in found.items():
            for side, against in result["against"].items():
                low, high = against["interval"]
                print(
                    f"{name:10} {what:18} {against['ratio']:.3f} ({low:.3f} to {high:.3f}) times {side}, "
                    f"{result['cpu_ms'][MIXTURE]:.1f} and {result['cpu_ms'][side]:.1f} ms",
                    flush=True,
                )
        figures[name] = found | {
            "intermediate_size": {side: config.intermediate_size for side, config in configs.items()},
            "active_parameters": {
                side: config.parameter_counts()["active"] for side, config in configs.items()
            },
        }
        ratio, most = found["training"]["against"][FLOPS]["ratio"], LIMITS[name]
        limits[f"a step of {name} costs {ratio:.2f} times a dense one (at most {most})"] = ratio <= most
    if not options.shape:
        publish(
            "mixture_cost",
            {"threads": 1, "tokens_per_step": BATCH * BLOCK, "prompt": PROMPT, "new_tokens": NEW}
            | {"steps": options.steps, "texts": options.texts, "shapes": figures},
        )
    return judge(limits)


if __name__ == "__main__":
    sys.exit(main())
