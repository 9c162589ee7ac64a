"""Check the fast backends on a CUDA device, and compare the speed of a training step with transformers.

    python -m benchmarks.gpu_check [--steps 30]     writes benchmarks/results/gpu_check.json

transformers must be installed: requirements-peers.txt.

First, loss and gradients of every pair of backends, in float32 and under bfloat16 autocast, are compared with
the specification in float64 on the CPU. Then training steps of `medium` (AdamW, bfloat16) are timed for every
pair of fast backends and every kind of experts in transformers, with and without torch.compile. At last the
fastest of each side take turns, which gives the published ratio. A combination that cannot run is recorded
with its error. `make bench-gpu` also trains `medium` for ten minutes.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from architecture import gptoss, registry
from benchmarks.peer_step import adamw, loss_of, training_peer, update
from benchmarks.publish import publish
from common.device import autocast, peak_flops

MEDIUM_BATCH, MEDIUM_BLOCK = 64, 512
OURS = ("sdpa+sorted", "sdpa+grouped", "flex+grouped")
PEERS = ("eager", "batched_mm", "grouped_mm")  # transformers' kinds of experts


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected||, in float64 on the CPU."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def worst_gradient_error(model: torch.nn.Module, reference: torch.nn.Module) -> float:
    """The largest relative error over the parameters' gradients."""
    pairs = zip(model.parameters(), reference.parameters())
    return max(relative_error(ours.grad, theirs.grad) for ours, theirs in pairs)


def check_models() -> dict[str, dict[str, float]]:
    """Relative errors of loss and gradients on the device, compared with float64 on the CPU."""
    sizes = dict(num_hidden_layers=3, hidden_size=96, head_dim=32, num_attention_heads=6)
    sizes |= dict(num_key_value_heads=2, num_experts=6, experts_per_token=2, intermediate_size=80)
    sizes |= dict(sliding_window=17, initial_context_length=256, rope_scaling_factor=1.0, vocab_size=320)
    config = gptoss.ModelConfig(**sizes)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 320, (3, 71), generator=generator)
    reference = gptoss.Transformer(config, attention="eager", experts="loop", generator=generator)
    with torch.no_grad():
        for parameter in reference.parameters():  # biases and sinks far from zero, and no ties in the routing
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator) * (parameter.ndim == 1))
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    reference.double()
    expected = reference(ids[:, :-1], ids[:, 1:]).loss
    expected.backward()
    report = {}
    for attention in gptoss.ATTENTION_BACKENDS:
        for experts in gptoss.EXPERT_BACKENDS:
            for dtype in ("float32", "bfloat16"):
                model = gptoss.Transformer(config, attention=attention, experts=experts)
                model.load_state_dict(reference.state_dict())
                model.float().cuda()
                with autocast(torch.device("cuda"), dtype):
                    out = model(ids[:, :-1].cuda(), ids[:, 1:].cuda())
                out.loss.backward()
                report[f"{attention} {experts} {dtype}"] = {
                    "loss_relative_error": relative_error(out.loss, expected),
                    "worst_gradient_relative_error": worst_gradient_error(model, reference),
                }
    return report


class Side:
    """One way to train `medium`: its model and its optimizer on the device, and a timed step."""

    def __init__(self, name: str):
        whose, backends, compiled = name.split()
        config = registry.build_config("gptoss", "medium")
        generator = torch.Generator().manual_seed(0)
        attention, experts = backends.split("+") if whose == "ours" else ("eager", "loop")
        kernels = dict(attention=attention, experts=experts)
        model = registry.build_model("gptoss", config, generator=generator, **kernels)
        if whose != "ours":
            model = training_peer(model, backends)
        self.ours, self.flops = whose == "ours", config.flops_per_token(MEDIUM_BLOCK)
        self.device, self.vocabulary = torch.device("cuda"), config.vocab_size
        self.model = model.to(self.device)
        self.forward = torch.compile(self.model) if compiled == "compiled" else self.model
        self.optimizer = adamw(self.model)
        self.generator = torch.Generator(self.device).manual_seed(0)

    def step(self) -> float:
        """Seconds of one training step, the device's work included."""
        shape = (MEDIUM_BATCH, MEDIUM_BLOCK + 1)
        ids = torch.randint(0, self.vocabulary, shape, device=self.device, generator=self.generator)
        torch.cuda.synchronize()
        began = time.perf_counter()
        with autocast(self.device, "bfloat16"):
            loss = loss_of(self.forward, ids, self.ours)
        update(self.model, self.optimizer, loss)
        torch.cuda.synchronize()
        return time.perf_counter() - began


def time_alone(name: str, steps: int) -> dict[str, float | str]:
    """Tokens per second, share of the device's peak FLOP/s and peak memory of one side, or its error."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        side = Side(name)
        seconds = [side.step() for _ in range(steps)]
    except Exception as error:  # another library may raise anything on an unknown device
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    median = statistics.median(seconds[steps // 3 :])  # after warm-up and compilation
    rate = MEDIUM_BATCH * MEDIUM_BLOCK / median
    return {
        "median_step_ms": 1e3 * median,
        "tokens_per_second": rate,
        "mfu": rate * side.flops / (peak_flops(side.device, "bfloat16") or float("nan")),
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9,
        "first_step_s": seconds[0],
    }


def time_in_turn(names: tuple[str, str], steps: int) -> list[float]:
    """Median seconds of a step of each of two sides that take turns."""
    sides = [Side(name) for name in names]
    rounds = [[side.step() for side in sides] for _ in range(steps)]
    return [statistics.median(column) for column in zip(*rounds[steps // 3 :])]


def fastest(whose: str, timings: dict[str, dict]) -> str | None:
    names = [n for n, t in timings.items() if n.startswith(whose) and "error" not in t]
    return max(names, key=lambda n: timings[n]["tokens_per_second"], default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = "timed steps, of which a third are warm-up (default: 30)"
    parser.add_argument("--steps", type=int, default=30, help=steps)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device; run this on a machine with one")
    result = {"device": torch.cuda.get_device_name(), "agreement": check_models()}
    for name, error in result["agreement"].items():
        print(f"{name:28} " + "  ".join(f"{k} {v:.2e}" for k, v in error.items()), flush=True)
    timings = result["timings"] = {}
    for backends in OURS + PEERS:
        for compiled in ("plain", "compiled"):
            name = f"{'ours' if backends in OURS else 'transformers'} {backends} {compiled}"
            timings[name] = time_alone(name, args.steps)
            print(name, timings[name], flush=True)
    best = tuple(fastest(whose, timings) for whose in ("ours", "transformers"))
    if all(best):
        ours, theirs = time_in_turn(best, args.steps)
        result["in_turn"] = {
            "sides": best,
            "median_step_ms": [1e3 * ours, 1e3 * theirs],
            "speed": theirs / ours,
            "memory": timings[best[0]]["peak_memory_gb"] / timings[best[1]]["peak_memory_gb"],
        }
        print(f"{best[0]} against {best[1]}: {result['in_turn']}", flush=True)
    publish("gpu_check", result)


if __name__ == "__main__":
    main()
