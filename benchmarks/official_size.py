"""Load a model of gpt-oss-20b's true shape in MXFP4 and generate with it: memory and time, beside transformers.

    python -m benchmarks.official_size --folder FOLDER      writes benchmarks/results/official_size.json

The first call makes FOLDER: random weights, 12.8 GiB, in the Hugging Face layout. Each measurement is a
process of its own. Memory is the peak of RssAnon, which does not count the pages of mapped files. transformers
runs under a limit on its data (RLIMIT_DATA), because it unpacks all experts, which takes 42 GB. The tokenizer
o200k_harmony must be in the cache (TIKTOKEN_CACHE_DIR).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.publish import publish

PROMPT_TOKENS, LAYERS = 32, 24
LIMIT_GIB = 20  # of the data of transformers: what a machine with 24 GB can give
SCALE = 120  # 2**-7, so that the weights have a standard deviation of about 0.02


def make(folder: Path) -> None:
    """Write random weights of gpt-oss-20b's shape, a layer per file. An interrupted call goes on."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    from architecture.checkpoint import without_values
    from architecture.gptoss import PRESETS, ModelConfig, Transformer
    from architecture.open_gpt_oss import mxfp4, names
    from architecture.open_gpt_oss.export import NOT_PACKED
    from common.files import as_json

    config = ModelConfig(**PRESETS["gpt-oss-20b"])
    model = without_values(Transformer, config)
    mxfp4.pack_experts(model)
    described = {n: t for n, t in model.state_dict().items() if not names.SELECTION_BIAS.fullmatch(n)}
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"block.{layer}." for layer in range(LAYERS)]
    for number in range(LAYERS + 1):
        path = folder / f"model-{number + 1:05}-of-{LAYERS + 1:05}.safetensors"
        if path.exists():
            continue
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for name, tensor in described.items():
            if not (name.startswith(parts[number]) if number < LAYERS else not name.startswith("block.")):
                continue
            if tensor.dtype == torch.uint8:
                value = torch.randint(0, 256, tensor.shape, dtype=torch.uint8, generator=generator)
                value = torch.full_like(value, SCALE) if name.endswith("scales") else value
            else:
                value = torch.randn(tensor.shape, generator=generator).mul_(0.02).bfloat16()
                value = torch.ones_like(value) if name.endswith("norm.scale") else value
            tensors |= names.to_theirs(name, value, config, "hf")
        unfinished = path.with_suffix(".tmp")
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, {"format": "pt"}
        )
        unfinished.rename(path)
        print(f"wrote {path}")
    weight_map = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            weight_map |= dict.fromkeys(file.keys(), path.name)
    (folder / "model.safetensors.index.json").write_bytes(as_json({"metadata": {}, "weight_map": weight_map}))
    content = names.hugging_face_config(config, "bfloat16")
    content["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": NOT_PACKED}
    (folder / "config.json").write_bytes(as_json(content))


def anonymous_gib() -> float:
    """Anonymous resident memory of this process."""
    with open("/proc/self/status") as file:
        kib = next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))
    return kib / 2**20


def watched(function: Callable[[], object]) -> tuple[object, float, float]:
    """The result of a function, its seconds, and the peak of the anonymous memory in GiB meanwhile."""
    peak, done = [anonymous_gib()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak.append(max(peak.pop(), anonymous_gib()))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    start = time.perf_counter()
    try:
        result = function()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        thread.join()
    return result, seconds, peak[0]


def ours(folder: Path, tokens: int) -> dict:
    import torch

    from architecture.generation.decode import generate_steps
    from architecture.registry import load_model

    before = anonymous_gib()
    model, seconds, peak = watched(lambda: load_model(folder, weights="mxfp4"))
    found = {"load_seconds": seconds, "load_peak_gib": peak, "imports_gib": before}
    prompt = torch.randint(200_000, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    steps = generate_steps(model, [prompt], max_tokens=tokens + 1, temperature=0)
    _, found["prompt_seconds"], _ = watched(lambda: next(steps))
    ids, seconds, found["generate_peak_gib"] = watched(lambda: [new[0] for new in steps])
    return found | {"seconds_per_token": seconds / tokens, "threads": torch.get_num_threads(), "ids": ids}


def theirs(folder: Path, tokens: int) -> dict:
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_GIB * 2**30,) * 2)
    import torch
    from transformers import AutoModelForCausalLM, Mxfp4Config

    options = dict(
        quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16, local_files_only=True
    )
    outcome: dict = {"limit_gib": LIMIT_GIB, "threads": torch.get_num_threads()}
    error = None

    def load():
        nonlocal error
        try:
            return AutoModelForCausalLM.from_pretrained(folder, **options)
        except (MemoryError, RuntimeError, OSError) as found:
            error = f"{type(found).__name__}: {str(found).splitlines()[0][:200]}"

    model, outcome["load_seconds"], outcome["load_peak_gib"] = watched(load)
    if error:
        return outcome | {"error": error}
    ids = torch.zeros(1, PROMPT_TOKENS, dtype=torch.int64)
    _, seconds, peak = watched(lambda: model.generate(ids, max_new_tokens=tokens, do_sample=False))
    return outcome | {"seconds_per_token": seconds / tokens, "generate_peak_gib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of the random weights; made if needed")
    parser.add_argument("--tokens", type=int, default=8, help="to generate (default: 8)")
    parser.add_argument("--way", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        result = {"ours": ours, "theirs": theirs}[arguments.way](arguments.folder, arguments.tokens)
        print(json.dumps(result))
        return
    make(arguments.folder)
    size = sum(path.stat().st_size for path in arguments.folder.glob("*.safetensors"))
    figures: dict = {"folder_gib": size / 2**30, "prompt_tokens": PROMPT_TOKENS, "tokens": arguments.tokens}
    for way in ("ours", "theirs"):
        command = [sys.executable, "-m", "benchmarks.official_size", "--folder", str(arguments.folder)]
        command += ["--tokens", str(arguments.tokens), "--way", way]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        lines = done.stdout.splitlines()
        figures[way] = json.loads(lines[-1]) if done.returncode == 0 else {"exit_code": done.returncode}
        print(way, figures[way])
    figures["memory_gib"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    publish("official_size", figures, [arguments.folder])


if __name__ == "__main__":
    main()
