"""The measurements of benchmarks/gpu_check.py: values of the backends, and the speed of training steps."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from architecture import gptoss, registry
from benchmarks.peer_step import adamw, loss_of, training_peer
from common.device import autocast, peak_flops, peak_memory_gb
from data.documents import IndexedSource
from data.loader import TrainLoader
from training.compiled import with_compiled_blocks
from training.config import TrainConfig
from training.optimizer import build_optimizers, parameter_groups, parameter_kinds
from training.step import accumulate_gradients, apply_gradients

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 3  # steps: the first one compiles, and the next ones find the sizes of buffers


# ------------------------------------------------------------------------------------------------- values
SHAPE = dict(num_hidden_layers=3, hidden_size=96, head_dim=32, num_attention_heads=6, num_key_value_heads=2,
             num_experts=6, experts_per_token=2, intermediate_size=80, sliding_window=17, vocab_size=320,
             initial_context_length=256, rope_scaling_factor=1.0)  # fmt: skip


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected||, in float64 on the CPU."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


@functools.cache
def specification() -> tuple[gptoss.Transformer, torch.Tensor, torch.Tensor]:
    """The model with eager attention and loop experts in float64 on the CPU, its input, and its loss with gradients."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, SHAPE["vocab_size"], (3, 71), generator=generator)
    model = gptoss.Transformer(
        gptoss.ModelConfig(**SHAPE), attention="eager", experts="loop", generator=generator
    )
    with torch.no_grad():
        for p in model.parameters():  # biases and sinks far from zero, and no ties in the routing
            p.add_(0.3 * torch.randn(p.shape, generator=generator) * (p.ndim == 1)).mul_(
                3.0 if p.ndim > 1 else 1
            )
    loss = model.double()(ids[:, :-1], ids[:, 1:]).loss
    loss.backward()
    return model, ids, loss


def values(device: torch.device, attention: str, experts: str, dtype: str) -> dict[str, float]:
    """Relative errors of the loss and of the worst gradient of a parameter, against the specification."""
    reference, ids, expected = specification()
    model = gptoss.Transformer(gptoss.ModelConfig(**SHAPE), attention=attention, experts=experts)
    model.load_state_dict(reference.state_dict())
    ids, model = ids.to(device), model.float().to(device)
    with autocast(device, dtype):
        loss = model(ids[:, :-1], ids[:, 1:]).loss
    loss.backward()
    pairs = zip(model.parameters(), reference.parameters())
    return {
        "loss_relative_error": relative_error(loss, expected),
        "worst_gradient_relative_error": max(relative_error(a.grad, b.grad) for a, b in pairs),
    }


# -------------------------------------------------------------------------------------------------- speed
@dataclass(frozen=True)
class Way:
    """A way to train. The defaults are what `train.py` does on a CUDA device, but for the optimizer."""

    size: str = "medium"
    batch_size: int = 64
    block_size: int = 512
    grad_accum: int = 2
    dtype: str = "bfloat16"
    attention: str = "flex"
    experts: str = "grouped"
    compiled: str = "blocks"  # or "model" or "off"
    optimizer: str = "adamw"  # Muon's time depends on all experts, not on those that a token uses
    copied_once: bool = True  # bfloat16 copies of the matrices
    ahead: bool = True  # batches are on the device one step ahead
    every_figure: bool = False  # router statistics and bits per byte in every step
    dense: bool = False  # one MLP of the active size in place of the experts
    peer: str | None = None  # transformers, with this implementation of its experts


class RandomIds(IndexedSource):
    """Documents of random ids: speed does not depend on the text."""

    name = "random ids"

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def __len__(self) -> int:
        return 2**20

    def __getitem__(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(1, self.vocab_size, 8192)


def dense_mlp(x, index, weight, experts):
    """The only expert for all tokens, as a plain MLP: no sort for a model without a choice."""
    inner = experts.activation(F.linear(x, experts.mlp1_weight[0], experts.mlp1_bias[0]))
    return F.linear(inner, experts.mlp2_weight[0], experts.mlp2_bias[0])


@contextlib.contextmanager
def training(way: Way, device: torch.device) -> Iterator[tuple[Callable[[], None], Any]]:
    """The training step of a way, and the config of its model."""
    cfg = TrainConfig(
        dataset="none", batch_size=way.batch_size, block_size=way.block_size, grad_accum=way.grad_accum,
        optimizer=way.optimizer, dtype=way.dtype, device=str(device),
    )  # fmt: skip
    preset = registry.build_config("gptoss", way.size)
    changes = {}
    if way.dense:
        changes = dict(moe_layers=(), intermediate_size=preset.intermediate_size * preset.experts_per_token)
    config = registry.build_config("gptoss", way.size, changes)
    backends = dict(attention=way.attention, experts=way.experts)
    if way.peer:
        backends = dict(attention="eager", experts="loop")
    model = registry.build_model("gptoss", config, generator=torch.Generator().manual_seed(0), **backends)
    if way.dense:
        for block in model.block:
            block.mlp.run_experts = dense_mlp
    loader = TrainLoader(
        RandomIds(config.vocab_size), SimpleNamespace(eot_token=0), batch_size=way.batch_size,
        block_size=way.block_size, device=device if way.ahead else None, ahead=way.grad_accum if way.ahead else 0,
    )  # fmt: skip
    if way.peer:
        model = training_peer(model, way.peer).to(device)
        forward = torch.compile(model) if way.compiled != "off" else model
        step = functools.partial(peer_step, way, model, forward, adamw(model), loader, device)
    else:
        model = model.to(device).train()
        forward = {"off": lambda m: m, "model": torch.compile, "blocks": with_compiled_blocks}[way.compiled](
            model
        )
        optimizers, kinds = build_optimizers(model, cfg), parameter_kinds(model)
        copied = list(parameter_groups(model)["matrix"].values())
        copied = copied if way.copied_once and way.dtype == "bfloat16" else []
        token_bytes = torch.ones(config.vocab_size, dtype=torch.int64, device=device)

        def step():
            batches, counts = [], []
            for _ in range(way.grad_accum):
                batches.append(next(loader))
                counts.append(loader.progress.targets)
            result = accumulate_gradients(
                forward, batches, cfg, previous_share=None, carry=None, token_bytes=token_bytes,
                autocast=functools.partial(autocast, device, way.dtype), counts=counts, copied=copied,
                measured=way.every_figure,
            )  # fmt: skip
            if apply_gradients(kinds, optimizers, result, 1.0) is None:
                raise ValueError("the step is not finite")

    try:
        yield step, config
    finally:
        loader.close()


def peer_step(way: Way, model, forward, optimizer, loader: TrainLoader, device: torch.device) -> None:
    """The same step for a model of transformers."""
    for _ in range(way.grad_accum):
        batch = next(loader)
        ids = torch.cat((batch["input_ids"], batch["targets"][:, -1:]), dim=1).to(device)
        with autocast(device, way.dtype):
            loss = loss_of(forward, ids, ours=False)
        (loss / way.grad_accum).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def speed(device: torch.device, way: Way, seconds: float) -> dict[str, float | None]:
    """Tokens per second over `seconds` of steps, share of the peak by active FLOPs, and peak memory."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    with training(way, device) as (step, config):
        for _ in range(WARM_UP):
            step()
        wait()
        start, steps = time.perf_counter(), 0
        while steps < WARM_UP or time.perf_counter() - start < seconds:
            step()
            steps += 1
        wait()
        taken = time.perf_counter() - start
    rate = steps * way.batch_size * way.block_size * way.grad_accum / taken
    peak = peak_flops(device, way.dtype)
    return {
        "step_ms": 1e3 * taken / steps,
        "tokens_per_second": rate,
        "mfu": peak and rate * config.flops_per_token(way.block_size) / peak,
        "peak_memory_gb": peak_memory_gb(device),
        "start_s": start - began,  # build, compile, warm up
        "steps": steps,
    }


# -------------------------------------------------------------------------------------------------- curve
CURVE = ("--model_size medium --eval_every 200 --eval_tokens 65536 --final_eval_tokens 524288 --log_every 20 "
         "--save_every 1000000 --no-use_tensorboard").split()  # fmt: skip
TINY_CURVE = ("--recipe none --eval_every 20 --eval_tokens 512 --final_eval_tokens 512 --save_every 1000000 "
              "--no-use_tensorboard --batch_size 2 --block_size 32 --hidden_size 32 --num_hidden_layers 1").split()  # fmt: skip


def curve(flags: list[str], minutes: float, dataset: str, device: torch.device) -> dict[str, Any]:
    """Train with train.py for some minutes: the validation loss by step, the speed, a story."""
    from benchmarks.record_run import figures

    with tempfile.TemporaryDirectory() as folder:
        out_dir = Path(folder) / "model"
        command = [sys.executable, str(ROOT / "train.py"), *flags, "--max_minutes", str(minutes)]
        command += ["--dataset", dataset, "--device", str(device), "--out_dir", str(out_dir)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            raise RuntimeError(f"train.py: {done.stderr.strip().splitlines()[-1]}")
        found = figures(out_dir)
    kept = ("final", "curve", "stories", "data")
    settings = {name: value for name, value in found["train"].items() if name != "out_dir"}
    return {name: found[name] for name in kept} | {"settings": settings}


# ------------------------------------------------------------------------------------------------ the list
def cases(device: torch.device, tiny: bool, dataset: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """{name: function that measures it}, the most important first, as ten minutes may not be enough for all."""
    best, seconds, minutes, flags = Way(), 4.0, 2.0, CURVE
    large = replace(best, size="large", batch_size=32, block_size=1024)
    if tiny:  # on a CPU, where flex_attention has no backward pass
        best = replace(best, size="toy", batch_size=1, block_size=32, attention="sdpa")
        large, seconds, minutes, flags = replace(best, block_size=64), 0.01, 0.05, TINY_CURVE
    listed = {
        f"values {attention}+{experts} {dtype}": functools.partial(values, device, attention, experts, dtype)
        for dtype in ("float32", "bfloat16")
        for attention in gptoss.ATTENTION_BACKENDS
        for experts in gptoss.EXPERT_BACKENDS
    }

    def list_speeds(ways: dict[str, Way]) -> None:
        listed.update(
            {f"speed {n}": functools.partial(speed, device, way, seconds) for n, way in ways.items()}
        )

    def peers(*kinds: str) -> dict[str, Way]:
        return {
            f"transformers {kind}, {how}": replace(best, peer=kind, compiled=compiled)
            for kind in kinds
            for how, compiled in (("not compiled", "off"), ("compiled", "model"))
        }

    list_speeds({"best": best, "dense of the active size": replace(best, dense=True), "large": large})
    list_speeds(peers("grouped_mm"))
    listed["curve"] = functools.partial(curve, flags, minutes, dataset, device)
    list_speeds(
        {
            "attention sdpa": replace(best, attention="sdpa"),
            "experts sorted": replace(best, experts="sorted"),
            "compile off": replace(best, compiled="off"),
            "compile the whole model": replace(best, compiled="model"),
            "copies in each micro-batch": replace(best, copied_once=False),
            "batches from pageable memory": replace(best, ahead=False),
            "every figure in every step": replace(best, every_figure=True),
            "optimizer muon": replace(best, optimizer="muon"),
        }
    )
    list_speeds(peers("batched_mm", "eager"))
    return listed


def work(device: torch.device, tiny: bool, dataset: str, names: list[str]) -> None:
    """Measure these cases one after another. Prints a line when one begins and one with its result."""
    if tiny:  # no C++ compiler is needed to see whether the script works
        torch.compile = functools.partial(torch.compile, backend="eager")
    listed = cases(device, tiny, dataset)
    for name in names:
        print(json.dumps({"begins": name}), flush=True)
        try:
            found = listed[name]()
        except Exception as error:  # a kernel or another library may raise anything on an unknown device
            lines = str(error).strip().splitlines()
            found = {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"}
        print(json.dumps({"ends": name, "found": found}), flush=True)
        torch._dynamo.reset()


if __name__ == "__main__":
    device, tiny, dataset, *names = sys.argv[1:]
    work(torch.device(device), tiny == "tiny", dataset, names)
