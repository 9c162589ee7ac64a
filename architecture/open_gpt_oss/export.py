"""Write a checkpoint in the official formats of gpt-oss.

    python -m architecture.open_gpt_oss export --checkpoint model --format hf --output_dir exported
    python -m architecture.open_gpt_oss export --checkpoint model --format original --mxfp4 --output_dir exported
    python -m architecture.open_gpt_oss export --checkpoint model --format gguf --output_dir exported

--checkpoint also takes a folder in one of these formats, and so converts between them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tiktoken
import torch
from tqdm import tqdm

from architecture.checkpoint import (
    config_from_dict,
    find_checkpoint,
    is_model_folder,
    model_of,
    read_checkpoint,
    require_fit,
    without_values,
)
from architecture.gptoss import ModelConfig, Transformer
from architecture.open_gpt_oss import gguf_file, mxfp4, names, targets
from architecture.open_gpt_oss.model_card import model_card
from architecture.open_gpt_oss.weights import (
    CHECKSUMS,
    CONFIG,
    INDEX,
    TOKENIZER,
    VOCABULARY,
    checksum,
    read_folder,
)
from architecture.tokenizer import token_byte_lengths, tokenizer_from_state, tokenizer_state
from architecture.tokenizer_json import tokenizer_files
from common.files import atomic_write, writing
from common.script import say

SHARD_BYTES = (
    10**9
)  # one file holds at most this many bytes, or one tensor; a file is in memory while it is written
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMATS = {
    "hf": "of transformers and vLLM",
    "original": "of OpenAI",
    "gguf": "of llama.cpp and what is built on it",
    "mlx": "of mlx-lm",
}
NOT_PACKED = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
HARMONY = "o200k_harmony"
TEMPLATE = Path(__file__).parent / "chat_template.jinja"
MEASURED_ROWS, MEASURED_TOKENS = 16, 128  # of the text that shows what the selection bias did


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    told = "checkpoint_<step>.pt, RUN for its newest, RUN/best.json, or a folder of gpt-oss"
    add("--checkpoint", required=True, metavar="CKPT", help=told)
    told = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    add("--format", required=True, choices=FORMATS, help=told)
    add("--output_dir", required=True, metavar="DIR", help="a new or an empty folder")
    add("--mxfp4", action="store_true", help="experts in four bits, as in the official weights")
    add(
        "--dtype",
        choices=DTYPES,
        help="of the other weights (default: that of the checkpoint); float16: gguf and mlx",
    )
    add("--yarn", action="store_true", help="hf: write plain RoPE as YaRN with factor 1, for vLLM")
    told = "leave out the bias of --balance bias, which gpt-oss lacks, and print what that changes"
    add("--drop_selection_bias", action="store_true", help=told)
    add("--watts", type=float, metavar="W", help="power of the machine in training, for the model card")


def run(args: argparse.Namespace) -> None:
    if args.watts is not None and not 0 < args.watts < float("inf"):
        raise ValueError(f"--watts must be a positive number, got {args.watts}")
    if args.yarn and args.format != "hf":
        raise ValueError(
            "--yarn is for --format hf; the other formats need no YaRN for plain RoPE, so leave --yarn out"
        )
    if args.dtype == "float16" and args.format not in targets.PROGRAMS:
        raise ValueError("--dtype float16 is for --format gguf and mlx; gpt-oss itself has bfloat16")
    folder = Path(args.output_dir)
    require_new(folder)
    path = find_checkpoint(args.checkpoint, say)
    state = read_folder(path) if is_model_folder(path) else read_checkpoint(path)
    config = exportable(state, args.format)
    if args.yarn and config.rope_scaling_factor > 1:
        raise ValueError("--yarn is for a model with plain RoPE, and this one has YaRN already; leave it out")
    notes = []
    if selects_by_bias(state["model"], config):
        if not args.drop_selection_bias:
            raise ValueError(
                f"{path} was trained with --balance bias, and gpt-oss has no selection bias; add "
                "--drop_selection_bias, which leaves it out and prints what that changes"
            )
        notes.append(change_without_bias(state, config, path))
    for warning in warnings_of(state, config, args.format):
        say(f"warning: {warning}")
        notes.append(f"{warning}.")
    dtype = DTYPES.get(args.dtype)
    for line in write_folder(
        state, folder, layout=args.format, pack=args.mxfp4, dtype=dtype, yarn=args.yarn,
        card=dict(path=path, changes=notes, watts=args.watts),
    ):  # fmt: skip
        say(line)
    program = targets.PROGRAMS.get(args.format)
    told = f"compare it with {program or 'transformers'}: python -m architecture.open_gpt_oss verify {folder}"
    say(f"wrote {folder}; {told}{f' --with {program}' if program else ''}")


def require_new(folder: Path) -> None:
    """Raise ValueError unless the folder can be made, or is there and empty."""
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if held or (folder.exists() and not folder.is_dir()):
        found = f"holds {held[0]}" if held else "is a file"
        raise ValueError(f"{folder} must be a new or an empty folder, and {found}; choose another name")
    if not folder.absolute().parent.is_dir():
        raise ValueError(f"{folder} is in a folder that does not exist; create that first")


def exportable(state: Mapping[str, Any], layout: str) -> ModelConfig:
    """The config of a checkpoint's model. Raises ValueError if the official formats cannot hold it.

    Also if its tensors are not those of the config.
    """
    if state["model_name"] == "gpt2":
        raise ValueError(
            "this is a GPT-2; export it with python -m architecture.gpt2_hugging_face export --checkpoint CKPT --out "
            "DIR, in GPT-2's format"
        )
    if state["model_name"] != Transformer.name:
        raise ValueError(
            f"the formats of gpt-oss hold no {state['model_name']} model, whose additions other programs do not "
            "know; export a model trained by train.py"
        )
    config = config_from_dict(ModelConfig, state["config"])
    names.require_expressible(config, layout)
    if layout in targets.PROGRAMS:
        targets.require_expressible(config, layout)
    expected = without_values(Transformer, config).state_dict()
    require_fit(expected, getattr(state["model"], "described", state["model"]), "the checkpoint")
    return config


def warnings_of(state: Mapping[str, Any], config: ModelConfig, layout: str) -> list[str]:
    """What the program of a format does otherwise than this project, a sentence each."""
    if layout not in targets.PROGRAMS:
        return []
    told = [targets.yarn_warning(config, layout)]
    if layout == "gguf":
        told.append(gguf_file.pre_tokenizer(tokenizer_from_state(state["tokenizer"]))[1])
    return [sentence for sentence in told if sentence]


# ----------------------------------------------------------------------------------------- selection bias
def selects_by_bias(weights: Mapping[str, torch.Tensor], config: ModelConfig) -> bool:
    """Whether a bias of balance=bias takes part in the choice of the experts."""
    return any(weights[f"block.{n}.mlp.selection_bias"].any() for n in range(config.num_hidden_layers))


@torch.no_grad()
def change_without_bias(state: Mapping[str, Any], config: ModelConfig, path: Path) -> str:
    """A line with the bits per byte of the model with and without its selection bias.

    The text is what the model itself writes with the bias (seed 0, temperature 1), because an export has no
    validation data.
    """
    from architecture.generation.decode import generate_steps
    from architecture.generation.sampling import row_generators

    model = model_of(Transformer, dict(state), path)
    tokens = min(MEASURED_TOKENS, config.context_limit - 1)
    start = [model.tokenizer.eot_token]
    rows = [list(start) for _ in range(MEASURED_ROWS)]
    generators = row_generators(0, MEASURED_ROWS)
    for new in generate_steps(
        model, [start] * MEASURED_ROWS, max_tokens=tokens, temperature=1.0, generators=generators
    ):
        for row, token in zip(rows, new):
            row.append(token)
    ids = torch.tensor(rows)
    lengths = token_byte_lengths(model.tokenizer, config.vocab_size)
    targets = ids[:, 1:].where(lengths[ids[:, 1:]] > 0, -100)  # as everywhere, end-of-text has no bytes
    bits = []
    for _ in range(2):
        nats = model(ids[:, :-1], targets).loss_sum.item()
        bits.append(nats / 0.6931471805599453 / lengths[ids[:, 1:]].sum().item())
        for name, buffer in model.named_buffers():
            if names.SELECTION_BIAS.fullmatch(name):
                buffer.zero_()
    line = (
        f"selection bias left out: {bits[1] - bits[0]:+.4f} bits per byte ({bits[0]:.4f} with it, {bits[1]:.4f} "
        f"without) on {targets.ge(0).sum()} tokens that the model wrote itself"
    )
    say(line)
    return line


# ------------------------------------------------------------------------------------------------ writing
def write_folder(
    state: Mapping[str, Any],
    folder: Path,
    *,
    layout: str,
    pack: bool = False,
    dtype: torch.dtype | None = None,
    yarn: bool = False,
    card: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write a checkpoint as a folder of gpt-oss: whole, or nothing.

    state: of checkpoint.read_checkpoint or weights.read_folder.  layout: one of FORMATS.  pack: experts in MXFP4.  dtype: of the other
    weights; None keeps it.  yarn: see names.hugging_face_config.
    card: path, changes and watts for model_card; None writes no README.md.
    Returns a line with the error of each packed tensor.
    Raises ValueError for a model that the format cannot hold, and CannotWrite.
    """
    require_new(folder)
    config = exportable(state, layout)
    tokenizer = tokenizer_from_state(state["tokenizer"])
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # a killed export leaves it behind
    with writing(folder):
        try:
            temporary.mkdir()
            weights = state["model"]
            precision = str(dtype or _dtype(weights)).removeprefix("torch.")
            if layout in targets.PROGRAMS:
                weights, config = targets.completed(weights, config)
            if layout == "gguf":  # config and tokenizer are in the file
                errors, files = write_gguf(weights, config, tokenizer, temporary, pack, dtype), {}
            else:
                errors = write_weights(weights, config, temporary, layout, pack, dtype)
                files = {TOKENIZER: as_json(tokenizer_state(tokenizer))}
            if layout == "original":
                files[CONFIG] = as_json(names.original_config(config))
            elif layout != "gguf":
                files |= hugging_face_files(config, tokenizer, precision, pack=pack, yarn=yarn)
            lines = []
            if pack:
                files["mxfp4_errors.json"] = as_json(errors)
                lines = [
                    f"{name}: relative error {sum(each) / len(each):.4f}, of the worst expert {max(each):.4f}"
                    for name, each in errors.items()
                ]
            if card is not None:
                text = model_card(state=state, layout=layout, dtype=precision, error_lines=lines, **card)
                files["README.md"] = text.encode()
            for name, content in files.items():
                with atomic_write(temporary / name) as file:
                    file.write(content)
            os.replace(temporary, folder)  # replaces an empty folder
            return lines
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def hugging_face_files(
    config: ModelConfig, tokenizer: tiktoken.Encoding, dtype: str, *, pack: bool, yarn: bool
) -> dict[str, bytes]:
    """{name: content} of the files beside the weights for transformers."""
    ids: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eot_token)
    tokens, files = {}, {}
    if tokenizer.name == HARMONY:
        special = tokenizer._special_tokens
        tokens = dict(bos_token="<|startoftext|>", eos_token="<|return|>", pad_token="<|endoftext|>")
        ids = {f"{kind}_id": special[token] for kind, token in tokens.items()}
        files["chat_template.jinja"] = TEMPLATE.read_bytes()
        ids["eos_token_id"] = [special[token] for token in ("<|return|>", "<|endoftext|>", "<|call|>")]
    content = names.hugging_face_config(config, dtype, yarn=yarn) | ids
    if pack:
        content["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": NOT_PACKED}
    files |= {CONFIG: as_json(content), "generation_config.json": as_json(ids | {"do_sample": True})}
    return files | tokenizer_files(tokenizer, model_max_length=config.context_limit, **tokens)


def write_weights(
    weights: Mapping[str, torch.Tensor],
    config: ModelConfig,
    folder: Path,
    layout: str,
    pack: bool,
    dtype: torch.dtype | None,
) -> dict[str, list[float]]:
    """Write the tensors to one or more .safetensors files; returns the relative error of each packed expert."""
    from safetensors.torch import save

    described = getattr(weights, "described", weights)
    kept = [name for name in described if not names.SELECTION_BIAS.fullmatch(name)]
    if config.tie_embeddings:
        kept.remove("unembedding.weight")
    sizes = {name: described[name].numel() * (dtype or described[name].dtype).itemsize for name in kept}
    shards, room = [[]], SHARD_BYTES
    for name in kept:
        if sizes[name] > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= sizes[name]
    errors, weight_map, total = {}, {}, 0
    with tqdm(total=len(kept), desc="tensors", unit="", leave=False, disable=None) as bar:
        for number, shard in enumerate(shards, start=1):
            file_name = "model.safetensors"
            if len(shards) > 1:
                file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            tensors = {}
            for name in shard:
                for part, tensor in _stored(name, weights[name], config, pack, dtype, errors):
                    if layout == "original":
                        tensors[part] = tensor
                    elif layout == "mlx" and not pack:  # mlx-lm reads packed experts under the names of hf
                        tensors |= targets.to_target(part, tensor, config, layout)
                    else:
                        tensors |= names.to_theirs(part, tensor, config)
                bar.update()
            tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
            checksums = json.dumps({name: checksum(tensor) for name, tensor in tensors.items()})
            with atomic_write(folder / file_name) as file:
                file.write(save(tensors, {"format": "pt", CHECKSUMS: checksums}))
            weight_map |= dict.fromkeys(tensors, file_name)
            total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        with atomic_write(folder / INDEX) as file:
            file.write(as_json(index))
    return errors


def write_gguf(
    weights: Mapping[str, torch.Tensor],
    config: ModelConfig,
    tokenizer: tiktoken.Encoding,
    folder: Path,
    pack: bool,
    dtype: torch.dtype | None,
) -> dict[str, list[float]]:
    """Write all to one GGUF file; returns the relative error of each packed expert."""
    described, errors = getattr(weights, "described", weights), {}
    with tqdm(total=len(described), desc="tensors", unit="", leave=False, disable=None) as bar:

        def stored(name: str) -> Iterator[tuple[str, torch.Tensor]]:
            bar.update()
            of_matrix = dtype if name.endswith(gguf_file.MATRICES) else None
            return _stored(name, weights[name], config, pack, of_matrix, errors)

        gguf_file.write(
            folder / gguf_file.FILE, stored, described, config, tokenizer, pack=pack,
            dtype=dtype or _dtype(weights), chat_template=TEMPLATE.read_text() if tokenizer.name == HARMONY else None,
        )  # fmt: skip
    return errors


def _stored(name, tensor, config, pack, dtype, errors) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that hold one of ours in a file: itself, or blocks and scales, whose error is noted."""
    if pack and name.endswith(mxfp4.MATRICES):
        blocks, scales = mxfp4.quantise(tensor)
        unpacked = mxfp4.unpack(blocks, scales, torch.float32)
        errors[name] = [round(error, 6) for error in mxfp4.relative_error(tensor, unpacked).tolist()]
        yield f"{name}.blocks", blocks
        yield f"{name}.scales", scales
        return
    if name in VOCABULARY:
        tensor = tensor[: config.used_vocab_size]
    yield name, tensor.to(dtype or tensor.dtype)


def _dtype(weights: Mapping[str, torch.Tensor]) -> torch.dtype:
    return getattr(weights, "described", weights)["embedding.weight"].dtype


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
