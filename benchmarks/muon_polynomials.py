"""Compare polynomials for Muon: on the gradients of real runs, by their cost, and by the loss at equal time.

    python -m benchmarks.muon_polynomials costs      writes results/muon_costs.json
    python -m benchmarks.muon_polynomials gradients light      writes results/muon_gradients_light.json
    python -m benchmarks.muon_polynomials run light today 8e-3 1    adds a line to results/muon_losses.jsonl
    python -m benchmarks.muon_polynomials losses               the table of these runs

The stories are those of $TINYSTORIES (train.jsonl, valid.jsonl). All runs have one thread.

"costs" times a whole step and Muon's step with each variant in turn, in process CPU time; then, for more and
wider experts, Muon's step with all matrices of a shape in one batch, in small batches, and through the gram.
"gradients" trains for 200 steps. At steps 20, 60 and 200 it takes the singular values of the matrices that Muon
makes orthogonal, as shares of the norm, and applies each variant's polynomials to them.
"run" trains with one variant. Its steps are those that take the time of STEPS[config] steps of `today`, by
what "costs" has measured. A run that is in the file is not repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks.publish import RESULTS, public_text, publish
from common.provenance import provenance, record_path
from evaluation.ablation.statistics import compare, summary, table
from training import muon
from training.config import TrainConfig
from training.monitor.metrics import read_metrics
from training.train_command import train_command

LOOKS = (20, 60, 200)
KINDS = ("qkv", "out", "mlp1", "mlp2")  # the order of the matrices of a block
STEPS = {"light": 160, "toy": 100}
SCORED = 32_768  # validation tokens
LOSSES = RESULTS / "muon_losses.jsonl"


def best_polynomial(low: float, high: float) -> tuple[tuple[float, float, float], float]:
    """The odd polynomial a x + b x^3 + c x^5 that is nearest to 1 on [low, high], and its largest error.

    Remez: the error has its largest size with alternating sign at both ends and at the polynomial's two
    extrema. The extrema are found again from each solution until they stay.
    """
    inner = np.array([(3 * low + high) / 4, (low + 3 * high) / 4])
    for _ in range(100):
        x = np.array([low, *inner, high])
        *abc, error = np.linalg.solve(np.stack([x, x**3, x**5, [1, -1, 1, -1]], 1), np.ones(4))
        a, b, c = abc
        extrema = np.sort(np.sqrt(np.roots([5 * c, 3 * b, a]).real))
        if np.abs(extrema - inner).max() < 1e-12:
            break
        inner = extrema
    return (float(a), float(b), float(c)), float(abs(error))


def best_polynomials(low: float, rounds: int) -> tuple[tuple[float, float, float], ...]:
    """For [low, 1]: each polynomial is the best one for the interval to which those before it map.

    The composition of these is the best of all compositions (Polar Express, arXiv:2505.16932, theorem 3.1).
    """
    found, high = [], 1.0
    for _ in range(rounds):
        polynomial, error = best_polynomial(low, high)
        found.append(polynomial)
        low, high = 1 - error, 1 + error
    return tuple(found)


VARIANTS = {
    "today": best_polynomials(0.02, 3),
    "published": ((3.4445, -4.7750, 2.0315),) * 5,
    "three_0.002": best_polynomials(0.002, 3),
    "four_0.005": best_polynomials(0.005, 4),
    "four_0.002": best_polynomials(0.002, 4),
    "five_0.002": best_polynomials(0.002, 5),
}
BY_POLYNOMIALS = {name: {"POLYNOMIALS": polynomials} for name, polynomials in VARIANTS.items()}
BY_PRODUCTS = {
    "one batch": {"batch_values": lambda _: 2**26, "LONG": math.inf},
    "small batches": {"LONG": math.inf},
    "small batches, gram": {"LONG": muon.LONG},
}
WIDE = "--hidden_size 256 --intermediate_size 384 --num_attention_heads 8 --num_key_value_heads 4".split()
GROWN = {f"toy, {n} experts": ("--num_experts", n) for n in (8, 32, 128)} | {
    "4 layers of 256, 8 experts": WIDE
}


def flags(config: str, *more: object) -> list[str]:
    stories = os.environ["TINYSTORIES"]
    files = ("--dataset", f"{stories}/train.jsonl", "--val_dataset", f"{stories}/valid.jsonl")
    fixed = "--threads 1 --device cpu --no-use_tensorboard --eval_every 100000 --save_every 100000"
    return ["--config", config, *files, *fixed.split(), *map(str, more)]


def train(*arguments) -> dict[str, float]:
    """Run train.py here in a temporary folder; return its final figures."""
    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            scored = ("--eval_tokens", SCORED, "--final_eval_tokens", SCORED)
            if code := train_command(TrainConfig, flags(*arguments, *scored)):
                raise SystemExit(code)
            records = read_metrics("model/metrics.jsonl")
        finally:
            os.chdir(home)
    return {tag: value for record in records for tag, value in record.items() if tag.startswith("final/")}


def spectrum(values: torch.Tensor) -> dict[str, dict[str, float]]:
    """Figures of singular values before ("input") and after each variant. values: (matrices, n), norm 1."""
    found = {"input": {"below_0.02": share(values, 0.02), "below_0.002": share(values, 0.002)}}
    found["input"]["median"] = values.median().item()
    for name, polynomials in VARIANTS.items():
        s = values
        for a, b, c in polynomials:
            s = a * s + b * s**3 + c * s**5
        found[name] = {"below_0.7": share(s, 0.7), "below_0.6": share(s, 0.6), "median": s.median().item()}
        # an orthogonal matrix with muon's factor has an RMS of 0.2
        found[name] |= {"max": s.max().item(), "rms": 0.2 * s.square().mean().sqrt().item()}
    return found


def share(values: torch.Tensor, limit: float) -> float:
    return (values < limit).double().mean().item()


@contextlib.contextmanager
def before_each_step(look: Callable[[int, muon.Muon], None]) -> Iterator[None]:
    """Call look(number, optimizer) before each step of Muon, from number 1 on."""
    count = itertools.count(1)

    def hook(optimizer, args, kwargs) -> None:
        if isinstance(optimizer, muon.Muon):
            look(next(count), optimizer)

    handle = register_optimizer_step_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def gradients(config: str) -> dict:
    """Spectra by step and kind of matrix."""
    looks = {}

    def look(number: int, optimizer: muon.Muon) -> None:
        if number not in LOOKS:
            return
        (group,), by_kind = optimizer.param_groups, {kind: [] for kind in KINDS}
        for number_of, p in enumerate(group["params"]):
            average = optimizer.state[p]["momentum_buffer"].lerp(p.grad, 1 - group["momentum"])
            update = p.grad.lerp(average, group["momentum"]).double()
            s = torch.linalg.svdvals(update).view(-1, min(update.shape[-2:]))
            by_kind[KINDS[number_of % 4]].append(s / s.norm(dim=-1, keepdim=True).clamp(min=1e-30))
        looks[number] = {kind: spectrum(torch.cat(s)) for kind, s in by_kind.items()}

    with before_each_step(look):
        train(config, "--max_iters", max(LOOKS), "--decay", 0, "--seed", 1)
    return looks


def costs(config: str, ways: dict[str, dict], *more: object) -> dict:
    """Median CPU milliseconds of a whole step, and of Muon's step in each way."""
    clock, shapes = [], []

    def look(number: int, optimizer: muon.Muon) -> None:
        clock.append(time.process_time())
        shapes[:] = [p.shape for p in optimizer.param_groups[0]["params"]]

    with before_each_step(look):
        train(config, "--max_iters", 16, *more)
    whole = 1e3 * statistics.median(b - a for a, b in zip(clock[3:], clock[4:]))
    return {"whole_step_ms": whole, "muon_step_ms": muon_ms(shapes, ways)}


def muon_ms(shapes: list[torch.Size], ways: dict[str, dict], repeats: int = 5) -> dict[str, float]:
    """Median CPU milliseconds of Muon's step in each way, in turn. ways: what replaces names of training.muon."""
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn(p.shape)
    taken, order, state = {name: [] for name in ways}, list(ways), None
    for repeat in range(repeats + 1):
        for name in order:
            with mock.patch.multiple(muon, **ways[name]):
                optimizer = muon.Muon(parameters, lr=0.01, weight_decay=0.1)
                optimizer.state = state = state or optimizer.state
                began = time.process_time()
                optimizer.step()
            if repeat:  # the first is a warm-up
                taken[name].append(1e3 * (time.process_time() - began))
        order = order[1:] + order[:1]
    return {name: statistics.median(times) for name, times in taken.items()}


def equal_time_steps(config: str, variant: str, of_today: int) -> int:
    measured = json.loads((RESULTS / "muon_costs.json").read_text(encoding="utf-8"))[config]
    whole, of_muon = measured["whole_step_ms"], measured["muon_step_ms"]
    return round(of_today * whole / (whole + of_muon[variant] - of_muon["today"]))


def stored() -> list[dict]:
    lines = LOSSES.read_text(encoding="utf-8").splitlines() if LOSSES.exists() else []
    return [json.loads(line) for line in lines]


def run(config: str, variant: str, lr: float, seed: int, of_today: int) -> None:
    steps = equal_time_steps(config, variant, of_today)
    key = {"config": config, "variant": variant, "lr": lr, "seed": seed, "steps": steps}
    if any(key.items() <= line.items() for line in stored()):
        return
    began = time.process_time()
    settings = ("--max_iters", steps, "--lr", lr, "--seed", seed)
    with mock.patch.object(muon, "POLYNOMIALS", VARIANTS[variant]):
        final = train(config, *settings)
    line = key | {"of_today": of_today, "bits_per_byte": final["final/bits_per_byte"]}
    line |= {"cpu_seconds": time.process_time() - began} | provenance()
    with record_path(LOSSES).open("a", encoding="utf-8") as file:
        file.write(public_text(json.dumps(line), (), os.environ["TINYSTORIES"]) + "\n")


def losses() -> None:
    """Print the mean of each arm, and its paired difference to `today` at that arm's best learning rate."""
    arms: dict[tuple, dict[int, float]] = {}
    for line in stored():
        length = line["config"], line.get("of_today", STEPS[line["config"]])
        arms.setdefault((length, line["variant"], line["lr"]), {})[line["seed"]] = line["bits_per_byte"]
    for length in dict.fromkeys(arm[0] for arm in arms):
        mine = {(v, lr): seeds for (c, v, lr), seeds in sorted(arms.items()) if c == length}
        of_today = [arm for arm in mine if arm[0] == "today"]
        if not of_today:
            continue
        base = mine[min(of_today, key=lambda arm: (-len(mine[arm]), summary(list(mine[arm].values())).mean))]
        differences = {a: [s[n] - base[n] for n in sorted(s.keys() & base.keys())] for a, s in mine.items()}
        found = compare([d if any(d) else [] for d in differences.values()])
        rows = []
        for (arm, d), pair in zip(differences.items(), found):
            mean = f"{summary(list(mine[arm].values())).mean:.4f}"
            apart = f"{statistics.fmean(d):+.4f} +- {pair.half_width:.4f}"
            rows.append(
                (f"{arm[0]} {arm[1]}", len(mine[arm]), mean, apart, f"{pair.p:.3f}", f"{pair.resolves:.4f}")
            )
        print(
            f"{length[0]}, {length[1]} steps of today\n{table(('arm', 'seeds', 'bits per byte', 'against today', 'p', 'resolves'), rows)}\n"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("costs")
    commands.add_parser("gradients").add_argument("config", choices=STEPS)
    commands.add_parser("losses")
    one = commands.add_parser("run")
    one.add_argument("config", choices=STEPS)
    one.add_argument("variant", choices=VARIANTS)
    one.add_argument("lr", type=float)
    one.add_argument("seed", type=int)
    one.add_argument("--steps", type=int, help="of today; the others get the same time (default: STEPS)")
    args = parser.parse_args()
    if args.command == "gradients":
        publish(f"muon_gradients_{args.config}", {"polynomials": VARIANTS, "steps": gradients(args.config)})
    elif args.command == "costs":
        found = {config: costs(config, BY_POLYNOMIALS) for config in STEPS}
        found |= {name: costs("toy", BY_PRODUCTS, *changes) for name, changes in GROWN.items()}
        publish("muon_costs", found)
    elif args.command == "run":
        run(args.config, args.variant, args.lr, args.seed, args.steps or STEPS[args.config])
    else:
        losses()
    return 0


if __name__ == "__main__":
    sys.exit(main())
