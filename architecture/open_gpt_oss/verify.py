"""Compare a folder of gpt-oss with transformers: every layer, and the log-probabilities of the next token.

    python -m architecture.open_gpt_oss verify exported
    python -m architecture.open_gpt_oss verify exported --with transformers,llama.cpp,mlx

Both models compute in float32 on the CPU, on random ids over more than three windows, with the RoPE of the
folder and with YaRN switched the other way. Of a model that sees, gpt_oss_vision is the other program, and a
random image stands in the first row. Exits with 1 if a difference exceeds the tolerance. llama.cpp
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

from architecture.checkpoint import LazyWeights, load_weights, without_values
from architecture.gptoss import ModelConfig, Transformer
from architecture.gptoss_vision import VisionConfig
from architecture.open_gpt_oss import gguf_file, names, verify_engines, vision_files
from architecture.open_gpt_oss.verify_engines import Given
from architecture.open_gpt_oss.weights import FolderWeights, read_config
from common.device import available_memory
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
    told = "tokens per row (default: three windows and one more, or what fits)"
    add("--tokens", type=int, metavar="N", help=told)
    told = f"largest relative difference (default: {TOLERANCE:g})"
    add("--tolerance", type=float, default=TOLERANCE, metavar="X", help=told)


def run(args: argparse.Namespace) -> int:
    given = opened(Path(args.folder))
    chosen = verify_engines.choose(args.engines, given.path, given.layout)
    ids = random_ids(given.config, args.tokens)
    require_memory(given.config)
    ours, failed = loaded(given), False
    for engine in chosen:
        compared = with_transformers if engine == "transformers" else verify_engines.with_engine
        failed |= compared(engine, given, ours, ids, args.tolerance)
    print(f"tolerance {args.tolerance:g}: {'exceeded' if failed else 'kept'}")
    return int(failed)


def opened(path: Path) -> Given:
    """The config and the weights at a path, before a tensor is read. Raises ValueError."""
    if path.suffix == ".gguf" and path.is_file() or (path / gguf_file.FILE).is_file():
        path = path if path.is_file() else path / gguf_file.FILE
        config, weights, kinds = gguf_file.read(path)
        return Given(path, "gguf", config, weights, kinds != {"F32"})
    weights = FolderWeights(path)
    narrow = weights.described["embedding.weight"].dtype.itemsize < torch.float32.itemsize
    return Given(path, weights.layout, weights.config, weights, narrow or bool(weights.in_mxfp4))


def random_ids(config: ModelConfig, tokens: int | None) -> torch.Tensor:
    """(ROWS, tokens) int64; without a number three windows and one more, or what fits."""
    limit, least = config.context_limit, 2
    if sees(config):
        least += config.tokens_per_image
    tokens = min(max(3 * config.sliding_window + 1, least), limit) if tokens is None else tokens
    if not least <= tokens <= limit:
        raise ValueError(f"--tokens must be from {least} to the context limit of {limit}, got {tokens}")
    used = config.num_ids
    ids = torch.randint(used, (ROWS, tokens), generator=torch.Generator().manual_seed(0))
    if sees(config):
        ids[0, 1 : least - 1] = config.vocab_size + torch.arange(config.tokens_per_image)
    return ids


def sees(config: ModelConfig) -> bool:
    return isinstance(config, VisionConfig) and config.use_vision


def require_memory(config: ModelConfig) -> None:
    """Raise ValueError unless two models in float32 fit: ours and that of the other program."""
    needed, room = 8 * config.parameter_counts()["total"], available_memory(torch.device("cpu"))
    if needed > room:
        raise ValueError(
            f"verify holds two models in float32, {needed / 1e9:.1f} GB, and {room / 1e9:.1f} GB are free; use a "
            "machine with more memory, or verify a smaller model of the same kind"
        )


def loaded(given: Given) -> Transformer:
    """Our model in float32."""
    wide = {name: tensor.float() for name, tensor in given.weights.described.items()}
    model = without_values(names.class_of(given.config), given.config)
    load_weights(model, LazyWeights(wide, lambda name: given.weights[name].float()), given.path)
    return model.eval()


# ------------------------------------------------------------------------------------------------ transformers
def with_transformers(
    engine: str, given: Given, ours: Transformer, ids: torch.Tensor, tolerance: float
) -> bool:
    """Print the differences from transformers; returns whether one exceeds the tolerance."""
    failed = False
    for config in (given.config, other_rope(given.config)):
        if config is None:
            say(
                f"head_dim {ours.config.head_dim} has no room for YaRN, so only RoPE without YaRN is compared"
            )
            continue
        model = without_values(names.class_of(config), config).eval()
        model.load_state_dict(ours.state_dict(), assign=True)  # the same tensors
        factor = config.rope_scaling_factor
        rope = f"YaRN x {factor:g}" if factor > 1 else "RoPE without YaRN"
        print(f"{rope}, {verify_engines.size(ids, config)}, float32")
        as_it_is = given.layout == "hf" and config is given.config
        found = compare(model, peer_of_folder(given.path) if as_it_is else peer_of(model), ids)
        for name, difference in found.items():
            bad = not difference <= tolerance
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
    from transformers import Mxfp4Config
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options: dict[str, Any] = dict(
        dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    if "quantization_config" in read_json_object(folder / "config.json"):
        options["quantization_config"] = Mxfp4Config(dequantize=True)
    cls, _ = peer_classes(read_config(folder)[1])
    return cls.from_pretrained(folder, local_files_only=True, **options).eval()


def peer_of(model: Transformer) -> nn.Module:
    """transformers' model with the config and the weights of ours, in their dtype."""
    config = model.config
    peer_class, config_class = peer_classes(config)
    dtype = model.embedding.weight.dtype
    content = names.hugging_face_config(config, str(dtype).removeprefix("torch."))
    peer_config = config_class(**content, attn_implementation="eager", experts_implementation="eager")
    peer = peer_class(peer_config).to(dtype).eval()
    tensors = {}
    for name, tensor in names.stored(model.state_dict(), config).items():
        tensors |= names.to_theirs(name, tensor, config, "hf")
    peer.load_state_dict(tensors, strict=not config.tie_embeddings)
    return peer


def peer_classes(config: ModelConfig) -> tuple[type[nn.Module], type]:
    """The classes of the other program's model and of its config."""
    if isinstance(config, VisionConfig):
        from gpt_oss_vision import GPTOSSVisionConfig, GPTOSSVisionForCausalLM

        return GPTOSSVisionForCausalLM, GPTOSSVisionConfig
    from transformers import GptOssConfig, GptOssForCausalLM

    return GptOssForCausalLM, GptOssConfig


@torch.no_grad()
def compare(ours: Transformer, peer: nn.Module, ids: torch.Tensor) -> dict[str, float]:
    """{layer or output: largest difference over the largest absolute value of the peer}. ids: of random_ids."""
    mine, their = {"input_ids": ids}, {"input_ids": ids}
    if sees(config := ours.config):
        shape = 1, config.vision_num_channels, config.image_size, config.image_size
        mine["images"] = torch.randint(
            256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8
        )
        their = vision_files.their_inputs(ids, mine["images"], config)
    logits, found = _with_outputs(ours, ours.block, mine)
    theirs, expected = _with_outputs(peer, peer.model.layers, their)
    pairs = {f"after layer {n}": pair for n, pair in enumerate(zip(found, expected))}
    pairs["logits"] = logits[..., : theirs.shape[-1]], theirs
    pairs["log-probabilities"] = tuple(x.float().log_softmax(-1) for x in pairs["logits"])
    return {name: ((a - b).abs().max() / b.abs().max()).item() for name, (a, b) in pairs.items()}


def _with_outputs(model: nn.Module, layers: nn.ModuleList, inputs: dict[str, torch.Tensor]):
    """The logits, and what leaves each layer."""
    found: list[torch.Tensor] = []

    def keep(_module, _arguments, out) -> None:
        found.append(out if isinstance(out, torch.Tensor) else out[0])

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        return model(**inputs).logits, found
    finally:
        for hook in hooks:
            hook.remove()
