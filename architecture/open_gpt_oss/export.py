"""Write a checkpoint in the official formats of gpt-oss.

    python -m architecture.open_gpt_oss export --checkpoint model --format hf --output_dir exported
    python -m architecture.open_gpt_oss export --checkpoint model --format original --mxfp4 --output_dir exported
    python -m architecture.open_gpt_oss export --checkpoint model --format gguf --output_dir exported

--checkpoint also takes a folder in one of these formats, and so converts between them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import tiktoken
import torch
from tqdm import tqdm

from architecture.checkpoint import (
    config_from_dict,
    described,
    find_checkpoint,
    is_model_folder,
    model_of,
    read_checkpoint,
    require_fit,
    without_values,
)
from architecture.gptoss import ModelConfig
from architecture.gptoss_vision import VisionConfig
from architecture.open_gpt_oss import gguf_file, mxfp4, names, targets, vision_files
from architecture.open_gpt_oss.model_card import energy, model_card
from architecture.open_gpt_oss.weights import (
    CHECKSUMS,
    CONFIG,
    INDEX,
    TOKENIZER,
    checksum,
    read_folder,
)
from architecture.tokenizer import HARMONY, tokenizer_from_state, tokenizer_state
from architecture.tokenizer_json import tokenizer_files
from common.files import as_json, atomic_write, new_folder, require_new_folder
from common.script import say

SHARD_BYTES = 10**9  # of one file, unless one tensor is larger; a file is in memory while it is written
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMATS = {
    "hf": "of transformers and vLLM",
    "original": "of OpenAI",
    "gguf": "of llama.cpp and what is built on it",
    "mlx": "of mlx-lm",
}
NOT_PACKED = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
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
    told = "of the other weights (default: that of the checkpoint); float16: gguf and mlx"
    add("--dtype", choices=DTYPES, help=told)
    add("--yarn", action="store_true", help="hf: write plain RoPE as YaRN with factor 1, for vLLM")
    told = "leave out the bias of --balance bias, which gpt-oss lacks, and print what that changes"
    add("--drop_selection_bias", action="store_true", help=told)
    add("--watts", type=float, metavar="W", help="power of the machine in training, for the model card")


def run(args: argparse.Namespace) -> None:
    if args.yarn and args.format != "hf":
        raise ValueError("--yarn is for --format hf; no other format needs YaRN for plain RoPE; leave it out")
    if args.dtype == "float16" and args.format not in targets.PROGRAMS:
        raise ValueError("--dtype float16 is for --format gguf and mlx; gpt-oss itself has bfloat16")
    folder = Path(args.output_dir)
    require_new_folder(folder)
    path = find_checkpoint(args.checkpoint, say)
    state = read_folder(path) if is_model_folder(path) else read_checkpoint(path)
    config = exportable(state, args.format)
    energy(state, args.watts)  # raises before the work begins
    if args.yarn and config.rope_scaling_factor > 1:
        raise ValueError("--yarn is for a model with plain RoPE, and this one has YaRN already; leave it out")
    notes = []
    biases = (state["model"][f"block.{n}.mlp.selection_bias"] for n in range(config.num_hidden_layers))
    if any(bias.any() for bias in biases):  # --balance bias chose experts by it
        if not args.drop_selection_bias:
            raise ValueError(
                f"{path} was trained with --balance bias, and gpt-oss has no selection bias; add "
                "--drop_selection_bias, which leaves it out and prints what that changes"
            )
        notes.append(change_without_bias(state, config, path))
        say(notes[-1])
    for warning in warnings_of(state, config, args.format):
        say(f"warning: {warning}")
        notes.append(f"{warning}.")
    for line in write_folder(
        state, folder, layout=args.format, pack=args.mxfp4, dtype=DTYPES.get(args.dtype), yarn=args.yarn,
        card=dict(path=path, changes=notes, watts=args.watts),
    ):  # fmt: skip
        say(line)
    program = targets.PROGRAMS.get(args.format, "transformers")
    command = f"python -m architecture.open_gpt_oss verify {quote(args.output_dir)} --with {program}"
    say(f"wrote {folder}; compare it with {program}: {command}")


def exportable(state: Mapping[str, Any], layout: str) -> ModelConfig:
    """The config of a checkpoint's model. ValueError if the format cannot hold it, or its tensors do not fit it."""
    if state["model_name"] == "gpt2":
        raise ValueError(
            "this is a GPT-2; export it with python -m architecture.gpt2_hugging_face export --checkpoint CKPT --out "
            "DIR, in GPT-2's format"
        )
    if (cls := names.CLASSES.get(state["model_name"])) is None:
        raise ValueError(
            f"the formats of gpt-oss hold no {state['model_name']} model, whose additions other programs do not "
            "know; export a model trained by train.py"
        )
    config = config_from_dict(cls.config_class, state["config"])
    targets.require_expressible(config, layout)
    require_fit(without_values(cls, config).state_dict(), state["model"], "the checkpoint")
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
@torch.no_grad()
def change_without_bias(state: Mapping[str, Any], config: ModelConfig, path: Path) -> str:
    """A line with the change of the model's loss if its selection bias is left out.

    It is no evaluation: the text is what the model itself writes with the bias (seed 0, temperature 1), because an
    export has no validation data, and a model's loss on its own text says nothing about another text.
    """
    from architecture.generation.decode import generate_steps
    from architecture.generation.sampling import row_generators

    model = model_of(names.class_of(config), dict(state), path)
    tokens, start = (
        min(MEASURED_TOKENS, config.context_limit - 1),
        [[model.tokenizer.eot_token]] * MEASURED_ROWS,
    )
    generators = row_generators(0, MEASURED_ROWS)
    steps = generate_steps(model, start, max_tokens=tokens, temperature=1.0, generators=generators)
    ids = torch.tensor([[row[0] for row in start], *steps]).T
    losses = []
    for _ in range(2):
        losses.append(model(ids[:, :-1], ids[:, 1:]).loss.item())
        for name, buffer in model.named_buffers():
            if names.SELECTION_BIAS.fullmatch(name):
                buffer.zero_()
    return (
        f"selection bias left out: {losses[1] - losses[0]:+.4f} nats per token on {ids[:, 1:].numel():,} tokens that the "
        "model wrote itself"
    )


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

    state: of checkpoint.read_checkpoint or weights.read_folder.  layout: one of FORMATS.  pack: experts in MXFP4.
    dtype: of the other weights; None keeps it.  yarn: see names.hugging_face_config.
    card: path, changes and watts for model_card; None writes no README.md.
    Returns a line with the error of each packed tensor.
    Raises ValueError for a model that the format cannot hold, and CannotWrite.
    """
    require_new_folder(folder)
    config, tokenizer, weights = (
        exportable(state, layout),
        tokenizer_from_state(state["tokenizer"]),
        state["model"],
    )
    if layout in targets.PROGRAMS:
        weights, config = targets.completed(weights, config)
    kind = dtype or described(weights)["embedding.weight"].dtype
    precision = str(kind).removeprefix("torch.")
    with new_folder(folder) as temporary:
        errors = write_weights(temporary, weights, config, tokenizer, layout=layout, pack=pack, dtype=dtype)
        files = files_beside(config, tokenizer, precision, layout=layout, pack=pack, yarn=yarn)
        lines = [
            f"{name}: relative error {sum(each) / len(each):.4f}, of the worst expert {max(each):.4f}"
            for name, each in errors.items()
        ]
        if pack:
            files["mxfp4_errors.json"] = as_json(errors)
        if card is not None:
            text = model_card(state=state, layout=layout, dtype=precision, error_lines=lines, **card)
            files["README.md"] = text.encode()
        for name, content in files.items():
            with atomic_write(temporary / name) as file:
                file.write(content)
    return lines


def files_beside(
    config: ModelConfig, tokenizer: tiktoken.Encoding, dtype: str, *, layout: str, pack: bool, yarn: bool
) -> dict[str, bytes]:
    """{name: content} of the files that a format has beside the weights; a GGUF holds all that itself."""
    if layout == "gguf":
        return {}
    files = {TOKENIZER: as_json(tokenizer_state(tokenizer))}
    if layout == "original":
        return files | {CONFIG: as_json(names.original_config(config))}
    ids: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eot_token)
    tokens = {}
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
    files |= tokenizer_files(tokenizer, model_max_length=config.context_limit, **tokens)
    return files | (vision_files.made_from(files, config) if isinstance(config, VisionConfig) else {})


def write_weights(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    config: ModelConfig,
    tokenizer: tiktoken.Encoding,
    *,
    layout: str,
    pack: bool,
    dtype: torch.dtype | None,
) -> dict[str, list[float]]:
    """Write the tensors, for --format gguf with all else; returns the relative error of each packed expert."""
    stored, errors = names.stored(described(weights), config), {}

    def parts(name: str) -> dict[str, torch.Tensor]:
        """What the files hold of one of our tensors: itself, or its blocks and scales."""
        bar.update()
        tensor = weights[name]
        if pack and name.endswith(mxfp4.MATRICES):
            blocks, scales = mxfp4.quantise(tensor)
            unpacked = mxfp4.unpack(blocks, scales, torch.float32)
            errors[name] = [round(error, 6) for error in mxfp4.relative_error(tensor, unpacked).tolist()]
            return {f"{name}.blocks": blocks, f"{name}.scales": scales}
        kind = dtype or stored[name].dtype
        if layout == "gguf" and not name.endswith(gguf_file.MATRICES):
            kind = torch.float32
        return {name: tensor[: len(stored[name])].to(kind)}

    with tqdm(total=len(stored), desc="tensors", unit="", leave=False, disable=None) as bar:
        if layout == "gguf":
            gguf_file.write(
                folder / gguf_file.FILE, parts, config, tokenizer, pack=pack,
                dtype=dtype or stored["embedding.weight"].dtype,
                chat_template=TEMPLATE.read_text() if tokenizer.name == HARMONY else None,
            )  # fmt: skip
        else:
            sizes = {name: t.numel() * (dtype or t.dtype).itemsize for name, t in stored.items()}
            spelling = "hf" if layout == "mlx" and pack else layout  # as mlx-lm reads packed experts
            write_tensors(folder, spelling, sizes, parts, config)
    return errors


def write_tensors(
    folder: Path,
    layout: str,
    sizes: Mapping[str, int],
    parts: Callable[[str], dict[str, torch.Tensor]],
    config: ModelConfig,
) -> None:
    """Write tensors to one or more .safetensors files.

    sizes: bytes of each of our tensors, at most.  parts: what the files hold for one of them.
    """
    from safetensors.torch import save

    shards, room = [[]], SHARD_BYTES
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, start=1):
        several = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file_name, tensors = f"model{several}.safetensors", {}
        for name in shard:
            for part, tensor in parts(name).items():
                tensors |= names.to_theirs(part, tensor.detach(), config, layout)
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        checksums = json.dumps({name: checksum(tensor) for name, tensor in tensors.items()})
        data = memoryview(save(tensors, {"format": "pt", CHECKSUMS: checksums}))
        begin = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(bytes(data[8:begin]))
        # safetensors writes its metadata in a random order, and the same model should give the same bytes
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with atomic_write(folder / file_name) as file:
            for part in (len(text).to_bytes(8, "little"), text, data[begin:]):
                file.write(part)
        weight_map |= dict.fromkeys(tensors, file_name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        with atomic_write(folder / INDEX) as file:
            file.write(as_json({"metadata": {"total_size": total}, "weight_map": weight_map}))
