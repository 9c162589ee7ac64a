"""Compare a folder of gpt-oss with transformers: every layer, and the log-probabilities of the next token.

    python -m architecture.open_gpt_oss verify exported
    python -m architecture.open_gpt_oss verify exported --with transformers,llama.cpp,mlx

Both models compute in float32 on the CPU, on random ids over more than three windows, with the RoPE of the
folder and with YaRN switched the other way. Exits with 1 if a difference exceeds the tolerance. llama.cpp
and MLX: see verify_engines.py. transformers needs pip install -r requirements-export.txt, the others
requirements-peers.txt.
"""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from architecture import checkpoint
from architecture.gptoss import ModelConfig, Transformer
from architecture.open_gpt_oss import names, verify_engines
from architecture.open_gpt_oss.weights import FolderWeights, read_config
from common.files import read_json_object
from common.script import say

TOLERANCE = 1e-5  # largest difference over the largest absolute value, in float32
OTHER_YARN, YARN_CONTEXT = 8.0, 4096  # factor and initial context for a folder without YaRN
ROWS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="DIR", help="an exported folder, or a GGUF file")
    told = "one or more of transformers, llama.cpp, mlx, with commas (default: what the folder was made for)"
    add("--with", dest="engines", metavar="PROGRAMS", help=told)
    add(
        "--tokens",
        type=int,
        metavar="N",
        help="tokens per row (default: three windows and one more, or what fits)",
    )
    told = f"largest relative difference (default: {TOLERANCE:g})"
    add("--tolerance", type=float, default=TOLERANCE, metavar="X", help=told)


def run(args: argparse.Namespace) -> int:
    folder, failed = Path(args.folder), False
    chosen = verify_engines.choose(args.engines, folder)
    for engine in chosen:
        if engine == "transformers":
            failed |= with_transformers(folder, args)
        else:
            failed |= verify_engines.run(engine, folder, args.tokens, args.tolerance, ROWS)
    print(f"tolerance {args.tolerance:g}: {'exceeded' if failed else 'kept'}")
    return int(failed)


def with_transformers(folder: Path, args: argparse.Namespace) -> bool:
    """Print the differences from transformers; returns whether one exceeds the tolerance."""
    layout, config = read_config(folder)
    ids = verify_engines.random_ids(config, args.tokens, ROWS)
    tokens = ids.shape[1]
    verify_engines.require_memory(config)
    weights = {name: tensor.float() for name, tensor in FolderWeights(folder, layout, config).items()}
    failed = False
    variants = [config, other_rope(config)]
    if variants[-1] is None:
        say(f"head_dim {config.head_dim} leaves no room for YaRN, so only RoPE without YaRN is compared")
        variants.pop()
    for number, variant in enumerate(variants):
        ours = checkpoint.without_values(Transformer, variant)
        checkpoint.load_weights(ours, weights, folder)
        peer = peer_of_folder(folder) if layout == "hf" and number == 0 else peer_of(ours)
        rope = (
            f"YaRN x {variant.rope_scaling_factor:g}"
            if variant.rope_scaling_factor > 1
            else "RoPE without YaRN"
        )
        print(
            f"{rope}, {ROWS} rows of {tokens} tokens, {tokens / config.sliding_window:.1f} windows, float32"
        )
        for name, difference in compare(ours.eval(), peer, ids).items():
            bad = not difference <= args.tolerance
            failed |= bad
            print(f"  {name:24} relative difference {difference:.1e}{'  <-- too large' if bad else ''}")
    return failed


def other_rope(config: ModelConfig) -> ModelConfig | None:
    """The config with YaRN switched the other way, or None if its head_dim leaves no room for YaRN's ramp."""
    if config.rope_scaling_factor > 1:
        return replace(config, rope_scaling_factor=1.0)
    for context in (config.initial_context_length, YARN_CONTEXT):  # a short context has no place for the ramp
        with contextlib.suppress(ValueError):
            return replace(config, rope_scaling_factor=OTHER_YARN, initial_context_length=context)
    return None


def peer_of_folder(folder: Path) -> nn.Module:
    """The model that transformers itself reads from a folder in its layout, in float32."""
    from transformers import GptOssForCausalLM, Mxfp4Config
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options: dict[str, Any] = dict(
        dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    if "quantization_config" in read_json_object(folder / "config.json"):
        options["quantization_config"] = Mxfp4Config(dequantize=True)
    return GptOssForCausalLM.from_pretrained(folder, local_files_only=True, **options).eval()


def peer_of(model: Transformer) -> nn.Module:
    """transformers' model with the config and the weights of ours, in their dtype."""
    from transformers import GptOssConfig, GptOssForCausalLM

    config = model.config
    dtype = model.embedding.weight.dtype
    content = names.hugging_face_config(config, str(dtype).removeprefix("torch."))
    peer_config = GptOssConfig(**content, attn_implementation="eager", experts_implementation="eager")
    peer = GptOssForCausalLM(peer_config).to(dtype).eval()
    used, tensors = config.used_vocab_size or config.vocab_size, {}
    for name, tensor in model.named_parameters():
        tensor = tensor.detach()[:used] if "embedding" in name else tensor.detach()
        tensors |= {theirs: part.clone() for theirs, part in names.to_theirs(name, tensor, config).items()}
    peer.load_state_dict(tensors, strict=not config.tie_embeddings)
    return peer


@torch.no_grad()
def compare(ours: Transformer, peer: nn.Module, ids: torch.Tensor) -> dict[str, float]:
    """{layer or output: largest difference over the largest absolute value of the peer}. ids: (B, T)."""
    logits, found = _with_outputs(ours, ours.block, ids)
    theirs, expected = _with_outputs(peer, peer.model.layers, ids)
    pairs = {f"after layer {n}": pair for n, pair in enumerate(zip(found, expected))}
    pairs["logits"] = logits[..., : theirs.shape[-1]], theirs
    pairs["log-probabilities"] = tuple(x.float().log_softmax(-1) for x in pairs["logits"])
    return {name: ((a - b).abs().max() / b.abs().max()).item() for name, (a, b) in pairs.items()}


def _with_outputs(model: nn.Module, layers: nn.ModuleList, ids: torch.Tensor):
    """The logits, and what leaves each layer."""
    found: list[torch.Tensor] = []

    def keep(_module, _arguments, out) -> None:
        found.append(out if isinstance(out, torch.Tensor) else out[0])

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        return model(ids).logits, found
    finally:
        for hook in hooks:
            hook.remove()
