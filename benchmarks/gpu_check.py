"""On a CUDA device: are the fast backends right there, and how fast is a training step?

    python -m benchmarks.gpu_check [--steps 30]

Checks each backend against its specification in values and gradients, the whole model in float32 and
under bfloat16 autocast against float64 on the CPU, then times training steps of `medium` with and
without torch.compile. Writes benchmarks/results/gpu_check.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from architecture import gptoss, registry
from training.config import TrainConfig
from training.device import autocast, peak_flops
from training.optimizer import build_optimizers, parameter_kinds
from training.provenance import provenance
from training.step import accumulate_gradients, apply_gradients

RESULT = Path(__file__).parent / "results" / "gpu_check.json"
MEDIUM_BATCH, MEDIUM_BLOCK = 64, 512


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected||, in float64 on the CPU."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def worst_gradient_error(model: torch.nn.Module, reference: torch.nn.Module) -> float:
    """The largest relative error over the parameters' gradients."""
    pairs = zip(model.parameters(), reference.parameters())
    return max(relative_error(ours.grad, theirs.grad) for ours, theirs in pairs)


def check_models() -> dict[str, dict[str, float]]:
    """Loss and gradients on the device against the specification in float64 on the CPU."""
    config = gptoss.ModelConfig(
        num_hidden_layers=3, num_experts=6, experts_per_token=2, vocab_size=320, hidden_size=96,
        intermediate_size=80, head_dim=32, num_attention_heads=6, num_key_value_heads=2, sliding_window=17,
        initial_context_length=256, rope_scaling_factor=1.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 320, (3, 71), generator=generator)
    reference = gptoss.Transformer(config, attention="eager", experts="loop", generator=generator)
    with torch.no_grad():
        for parameter in reference.parameters():  # biases and sinks far from zero, routing decided
            parameter.add_(
                0.3 * torch.randn(parameter.shape, generator=generator) * (parameter.ndim == 1)
            )
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    reference.double()
    reference(ids[:, :-1], ids[:, 1:]).loss.backward()
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
                expected = reference(ids[:, :-1], ids[:, 1:]).loss
                report[f"{attention} {experts} {dtype}"] = {
                    "loss_relative_error": relative_error(out.loss, expected),
                    "worst_gradient_relative_error": worst_gradient_error(model, reference),
                }
    return report


def time_medium(steps: int, compiled: bool) -> dict[str, float]:
    """Training steps of the medium preset in bfloat16: tokens/s, share of the peak, memory."""
    device = torch.device("cuda")
    config = registry.build_config("gptoss", "medium")
    raw = registry.build_model("gptoss", config, generator=torch.Generator().manual_seed(0)).to(
        device
    )
    model = torch.compile(raw) if compiled else raw
    cfg = TrainConfig(batch_size=MEDIUM_BATCH, block_size=MEDIUM_BLOCK)
    optimizers, kinds = build_optimizers(raw, cfg), parameter_kinds(raw)
    token_bytes = torch.ones(config.vocab_size, dtype=torch.int64, device=device)
    generator = torch.Generator(device).manual_seed(0)
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(steps):
        shape = (MEDIUM_BATCH, MEDIUM_BLOCK + 1)
        ids = torch.randint(0, config.vocab_size, shape, device=device, generator=generator)
        torch.cuda.synchronize()
        began = time.perf_counter()
        result = accumulate_gradients(
            model,
            [{"input_ids": ids[:, :-1], "targets": ids[:, 1:]}],
            cfg,
            previous_share=None,
            carry=None,
            token_bytes=token_bytes,
            autocast=lambda: autocast(device, "bfloat16"),
        )
        assert apply_gradients(kinds, optimizers, result, 1.0) is not None
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    median = sorted(seconds[steps // 3 :])[
        (steps - steps // 3) // 2
    ]  # after warm-up and compilation
    rate = MEDIUM_BATCH * MEDIUM_BLOCK / median
    return {
        "median_step_ms": 1e3 * median,
        "tokens_per_second": rate,
        "mfu": rate * config.flops_per_token(MEDIUM_BLOCK) / (peak_flops(device) or float("nan")),
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9,
        "first_step_s": seconds[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=30, help="steps to time, a third of them warm-up"
    )
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file to write")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this needs a CUDA device, and PyTorch finds none; run it where there is one")
    result = {**provenance(), "device": torch.cuda.get_device_name(), "agreement": check_models()}
    for name, error in result["agreement"].items():
        print(f"{name:28} " + "  ".join(f"{k} {v:.2e}" for k, v in error.items()), flush=True)
    for name, compiled in (("medium", False), ("medium compiled", True)):
        result[name] = time_medium(args.steps, compiled)
        print(name, {k: round(v, 4) for k, v in result[name].items()}, flush=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
