"""Estimates of the memory and time of a run from its settings. --dry_run prints them."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch

from architecture import checkpoint, registry
from architecture.generation import lean
from architecture.interface import logit_rows
from common.device import PEAK_FLOPS, peak_flops
from common.settings import as_text
from training.config import TrainConfig
from training.lora import num_factors
from training.memory import PORTION
from training.optimizer import freeze, parameter_groups


class Machine(NamedTuple):
    """A machine whose training time is estimated."""

    name: str
    dtype: str  # memory and speed are both of this dtype
    flops: float  # FLOP/s that training reaches, roughly
    memory: float | None  # bytes; None: no limit is assumed


# The shortest time for one layer of a micro-batch in seconds, on every machine: starting about 200 operations,
# forward and backward, takes about 10 us each, however small they are.
LAUNCHES = 2e-3
MACHINES = (
    # 5,259 tokens/s of toy: benchmarks/results/tinystories_20_minutes.json
    Machine("two laptop cores", "float32", 0.045e12, None),
    Machine(
        "one RTX 4090 (24 GB) at 25 % of its peak",
        "bfloat16",
        0.25 * PEAK_FLOPS["NVIDIA GeForce RTX 4090"]["bfloat16"],
        24e9,
    ),
    Machine(
        "one H100 (80 GB) at 30 % of its peak",
        "bfloat16",
        0.3 * PEAK_FLOPS["NVIDIA H100 80GB HBM3"]["bfloat16"],
        80e9,
    ),
)


LONG_HOURS = 12  # a longer run prints a warning when it starts


def this_machine(device: str, dtype: str) -> Machine | None:
    """The machine for a device and the type of its computations; None if its speed is not known."""
    if device == "cpu":
        return MACHINES[0]
    known = device.startswith("cuda") and torch.cuda.is_available()
    peak = peak_flops(torch.device(device), dtype) if known else None
    return peak and Machine("this GPU at 30 % of its peak", dtype, 0.3 * peak, None)


def step_seconds(cfg: TrainConfig, config: Any, machine: Machine) -> float:
    """Seconds of one optimizer step, estimated from its FLOPs and the time that starting them takes."""
    least = cfg.micro_batches * config.num_hidden_layers * LAUNCHES
    return max(cfg.slots_per_step * config.flops_per_token(cfg.block_size) / machine.flops, least)


# A forward pass costs a third of a step, so an evaluation on three times the tokens of training takes as long.
EVALUATION = 3


def bounded_evaluations(cfg: TrainConfig, given: frozenset[str]) -> tuple[TrainConfig, tuple[str, ...]]:
    """The settings of a new run of max_iters with fewer eval_tokens if one evaluation would take longer than the
    training, and a line that says so; unless eval_tokens was given.
    """
    most = max(EVALUATION * (cfg.max_iters or math.inf) * cfg.slots_per_step, cfg.block_size)
    if cfg.resume or cfg.eval_only or most >= cfg.eval_tokens or "eval_tokens" in given:
        return cfg, ()
    line = f"an evaluation scores {most:,} tokens, so that it takes no longer than the training"
    return replace(cfg, eval_tokens=most), (line,)


def closing_tokens(cfg: TrainConfig, trained: int) -> int | None:
    """The most tokens of the closing evaluation after training on `trained` tokens; None for no limit.

    It scores at least what the evaluations before it scored, so that the last of them may take its place.
    """
    if cfg.final_eval_tokens is None:
        return max(EVALUATION * trained, cfg.eval_tokens)
    return None if cfg.final_eval_tokens == "all" else cfg.final_eval_tokens


def evaluation_seconds(cfg: TrainConfig, config: Any, machine: Machine, steps: float) -> float:
    """Seconds of all evaluations of a run, estimated; at most, because validation data may be smaller."""
    closing = closing_tokens(cfg, int(steps * cfg.slots_per_step)) or 0
    closing = 0 if closing == cfg.eval_tokens else closing  # the last of the others takes its place
    tokens = math.ceil(steps / cfg.eval_every) * cfg.eval_tokens + closing
    return tokens / cfg.slots_per_step * step_seconds(cfg, config, machine) / EVALUATION


def warning(cfg: TrainConfig, config: Any) -> tuple[str, ...]:
    """A line for a run of max_iters that would take more than LONG_HOURS here; () for other runs."""
    machine = this_machine(cfg.device, cfg.dtype)
    if machine is None or cfg.max_iters is None:
        return ()
    seconds = cfg.max_iters * step_seconds(cfg, config, machine)
    if seconds <= 3600 * LONG_HOURS:
        return ()
    return (
        f"this run would take {duration(seconds)} on this machine; --max_minutes 60 plans it for an hour, a "
        "smaller --model_size or a GPU makes each step faster, --dry_run shows the costs",
    )


def memory_bytes(cfg: TrainConfig, config: Any) -> dict[str, int]:
    """Bytes that training needs on one device.

    Weights, gradients and optimizer state are exact, except for a state on the host, of which a part is on the
    device during an update, and for gradients with LoRA. Weights are those of a reference, too. Activations, the
    tensors that the forward pass keeps for the backward pass, are estimated from their shapes (tested to 15 % on a CPU).
    """
    total, half = config.parameter_counts()["total"], cfg.dtype == "bfloat16"
    trained, matrices = trained_parameters(cfg, config)
    # AdamW keeps two float32 values for each parameter, Muon one for each value of a matrix
    moments = 2 * (trained - matrices) + matrices if cfg.optimizer == "muon" else 2 * trained
    if cfg.offload == "optimizer":
        # an update holds two portions with two moments each, of several parameters or of a large one
        largest = max(config.vocab_size * config.hidden_size, matrices // config.num_hidden_layers)
        moments = min(moments, 2 * 2 * max(PORTION, largest))
    # with LoRA, each matrix has a base beside it, and few gradients of whole matrices exist at a time, say a layer's
    bases = config.matrix_parameters() if cfg.lora_rank else 0
    tokens = cfg.rows * cfg.row_length
    everything, kept = (
        tokens
        * config.bytes_kept_per_token(
            cfg.rows,
            cfg.row_length,
            attention=cfg.attention,
            experts=cfg.experts,
            checkpointing=checkpointing,
            width=2 if half else 4,
            compiled=cfg.compile == "on",
        )
        for checkpointing in ("none", cfg.activation_checkpointing)
    )
    kept = 0 if cfg.offload == "activations" else kept
    block = (everything - kept) / config.num_hidden_layers  # what is made again or comes back at a time
    head = 4 * config.vocab_size * config.hidden_size  # the head keeps its gradient, in float32
    # next_token_loss holds one block of logits and its softmax at a time
    rows = min(tokens, logit_rows(config.vocab_size, cfg.device))
    found = {
        "weights": 4 * (total * (1 + cfg.uses_reference) + bases + (trained if cfg.lora_rank else 0)),
        "gradients": 4 * (trained + bases // config.num_hidden_layers),
        "optimizer": 4 * moments,
        "activations": cfg.tbptt * (int(kept) + head) + int(block),  # until the end of a window
        # the per-token losses of dpo, grpo and ppo keep a third block
        "logits": (2 + (cfg.kind not in ("", "sft"))) * 4 * rows * config.vocab_size,
        "copies of weights": 2 * config.matrix_parameters() if half else 0,
    }
    if cfg.sampled_rows:  # the sampler has gone before gradients and activations come
        training = sum(size for name, size in found.items() if name not in ("weights", "optimizer"))
        found["sampling"] = max(0, sampler_bytes(cfg, config) - training)
    return found


def sampler_bytes(cfg: TrainConfig, config: Any) -> int:
    """Bytes that sampling responses in post-training takes beside the weights, estimated (tested to 15 %)."""
    rows, length, counts = cfg.sampled_rows, cfg.row_length, config.parameter_counts()
    slots = sum(min(window or length, length) for window in config.windows)
    cache = 4 * slots * (2 * config.num_key_value_heads * config.head_dim + config.num_attention_heads)
    prompts = rows * min(length, cfg.prompt_length)  # their tokens, read one layer at a time
    layer = config.bytes_kept_per_token(rows, length, attention=cfg.attention, experts=cfg.experts)
    layer *= 1.5 / config.num_hidden_layers  # what training keeps, and half as much again (measured)
    if cfg.device == "cpu" and counts["total"] <= lean.LARGEST_MODEL:
        # it lays out the weights a second time; those of all experts only once prompts are read and rows have ended
        work = max(4 * counts["total"], 4 * counts["active"] + layer * min(prompts, lean.TOKENS_AT_ONCE))
    else:
        work = layer * prompts
    return int(rows * (cache + 4 * config.vocab_size) + work)


def recomputed_share(cfg: TrainConfig, config: Any) -> float:
    """The share of a step's FLOPs that full activation checkpointing adds: a second forward pass without the head."""
    flops = config.flops_per_token(cfg.block_size)
    again = flops / 3 - 2 * config.vocab_size * config.hidden_size  # a forward pass is a third of a step
    return again / (flops + again)


def memory_for_time(cfg: TrainConfig, config: Any) -> tuple[str, ...]:
    """Lines for the start of a run: what activation checkpointing, offload and LoRA save, and what they cost."""
    lines = []
    if (kind := cfg.activation_checkpointing) != "none":
        saved = _saved(replace(cfg, offload="none"), config, "activations", activation_checkpointing="none")
        share = f"{'about' if kind == 'full' else 'at most'} {recomputed_share(cfg, config):.0%}"
        lines.append(
            f"activation_checkpointing={kind} saves {saved} of activations, for {share} of the tokens/s"
        )
    if cfg.offload != "none":
        saved = _saved(cfg, config, cfg.offload, offload="none")
        often = {"optimizer": "step", "activations": "micro-batch"}[cfg.offload]
        lines.append(
            f"offload={cfg.offload} saves {saved} on the GPU; each {often} takes it to the host and back, so the "
            "tokens/s that this costs depend on the link"
        )
    if cfg.lora_rank:
        held, all_train = (memory_bytes(c, config)["optimizer"] for c in (cfg, replace(cfg, lora_rank=None)))
        lines.append(
            f"lora_rank={cfg.lora_rank} has {held:,} bytes of optimizer state, and {all_train:,} if all weights train"
        )
    return tuple(lines)


def _saved(cfg: TrainConfig, config: Any, part: str, **plain: str) -> str:
    """How much less a part of the memory is than with the settings `plain`, in words."""
    held, before = (memory_bytes(c, config)[part] for c in (cfg, replace(cfg, **plain)))
    return f"about {(before - held) / 1e9:.3f} of {before / 1e9:.3f} GB"


def tokens_lost(cfg: TrainConfig, config: Any, rate: float) -> str:
    """A line about the tokens/s that activation checkpointing costs, by its FLOPs, at a measured rate; "" without it."""
    if (kind := cfg.activation_checkpointing) == "none":
        return ""
    share = recomputed_share(cfg, config)
    return (
        f"{rate:,.0f} tokens/s with activation_checkpointing={kind}; by the FLOPs, it costs "
        f"{'about' if kind == 'full' else 'at most'} {rate * share / (1 - share):,.0f} tokens/s"
    )


def trained_parameters(cfg: TrainConfig, config: Any) -> tuple[int, int]:
    """Number of parameters that train, and of those among them that are in matrices for Muon."""
    if cfg.freeze == "none" and not cfg.lora_rank:
        return config.parameter_counts()["total"], config.matrix_parameters()
    model = checkpoint.without_values(registry.model_class(cfg.model), config)
    if cfg.lora_rank:
        return num_factors(model, cfg.lora_rank), 0
    freeze(model, cfg.freeze)
    sizes = {kind: sum(p.numel() for p in group.values()) for kind, group in parameter_groups(model).items()}
    return sum(sizes.values()), sizes["matrix"]


def report(cfg: TrainConfig, config: Any, available: float | None = None) -> str:
    """The text of --dry_run: parameters, FLOPs per token, memory on this device, time on a few machines.

    available: bytes on cfg.device, if known.
    """
    flops, per_step = config.flops_per_token(cfg.block_size), cfg.slots_per_step
    memory = memory_bytes(cfg, config)
    needed = sum(memory.values())
    lines = [
        *model_lines(cfg, config),
        f"memory           on {cfg.device} in {cfg.dtype}: "
        + ", ".join(f"{name} {size / 1e9:.3f} GB" for name, size in memory.items()),
        f"                 {needed / 1e9:.3f} GB in all{_room(needed, available)}",
        f"step             {per_step:,} tokens",
    ]
    if cfg.max_iters is None:
        lines.append(f"run              {cfg.max_minutes:g} minutes of training")
    else:
        tokens = per_step * cfg.max_iters
        lines.append(
            f"run              {cfg.max_iters:,} steps, {tokens:,} tokens, {tokens * flops:.3g} FLOPs"
        )
    if cfg.uncounted:
        lines.append(f"not counted      {cfg.uncounted}")
    all_but = " without the closing one, on all tokens" if cfg.final_eval_tokens == "all" else ""
    here = this_machine(cfg.device, cfg.dtype)
    for machine in MACHINES if here in (None, *MACHINES) else (here, *MACHINES):
        if cfg.mostly_uncounted and machine is not MACHINES[0]:
            continue
        run = cfg if machine is here else on_machine(cfg, config, machine)
        taken = sum(memory_bytes(run, config).values())
        room = available if machine is here else machine.memory
        if taken > (room or math.inf):
            outcome = "does not fit"
        else:
            seconds = step_seconds(cfg, config, machine)
            steps = cfg.max_iters or 60 * cfg.max_minutes / seconds
            outcome = f"about {_rounded(steps)} steps, {_rounded(steps * per_step)} tokens"
            if cfg.max_iters:
                outcome = duration(steps * seconds)
            scoring = evaluation_seconds(cfg, config, machine, steps)
            outcome += f"; evaluations: {duration(scoring)} at most{all_but}"
        place = "here, " if machine is here else ""
        lines.append(f"  {place}{machine.name}, {machine.dtype}, {taken / 1e9:.3f} GB: {outcome}")
    return "\n".join(lines)


def on_machine(cfg: TrainConfig, config: Any, machine: Machine) -> TrainConfig:
    """The settings of a run on another machine, with the dtype and the engines that it takes there by itself."""
    device_type = "cpu" if machine is MACHINES[0] else "cuda"
    backends = getattr(registry.model_class(cfg.model), "auto_backends", None)
    chosen = backends(config, device_type, machine.dtype) if backends else {}
    compiled = "on" if device_type == "cuda" else "off"
    return replace(cfg, device=device_type, dtype=machine.dtype, compile=compiled, **chosen)


def model_lines(cfg: TrainConfig, config: Any) -> tuple[str, str, str]:
    """The first lines of --dry_run: the model, its parameters, its FLOPs per token."""
    counts, flops = config.parameter_counts(), config.flops_per_token(cfg.block_size)
    differences = (*changed_fields(cfg, config), f"{config.vocab_size:,} ids")
    return (
        f"{cfg.model} {cfg.model_size} with {', '.join(differences)}",
        f"parameters       {counts['total']:,} total, {counts['active']:,} active per token, "
        f"{counts['embedding']:,} of the total in the input embedding{expert_layers(config)}",
        f"FLOPs per token  {flops:,.0f} (forward and backward)",
    )


def expert_layers(config: Any) -> str:
    """How many layers have experts, where some are dense, as the end of a line; "" for other models."""
    routed, layers = getattr(config, "resolved_moe_layers", None), config.num_hidden_layers
    if routed is None or len(routed) == layers:
        return ""
    return f", experts in {len(routed)} of {layers} layers"


def changed_fields(cfg: TrainConfig, config: Any) -> list[str]:
    """The fields in which a model differs from the preset of its size, with their values, at most five items.

    The fields that follow the tokenizer are left out.
    """
    if cfg.model_size not in registry.model_class(cfg.model).presets:
        return []
    preset = asdict(registry.build_config(cfg.model, cfg.model_size))
    changed = {name: value for name, value in asdict(config).items() if value != preset[name]}
    texts = {name: as_text(value, name) for name, value in changed.items() if not name.endswith("vocab_size")}
    told = [f"{name} {text if len(text) <= 60 else text[:57] + '...'}" for name, text in texts.items()]
    return told if len(told) <= 5 else [*told[:4], f"{len(told) - 4} more changes"]


def _room(needed: float, available: float | None) -> str:
    if available is None:
        return ""
    if needed <= available:
        return f", of {available / 1e9:.1f} GB available"
    return (
        f": does not fit into the {available / 1e9:.1f} GB available; lower batch_size (with a higher "
        "grad_accum) or take a smaller model"
    )


def _rounded(number: float) -> str:
    """A number to two digits, the precision of the estimates."""
    return f"{float(f'{number:.2g}'):,.0f}"


def duration(seconds: float) -> str:
    """A time to two or three digits, the precision of the estimates."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:,.1f} {unit}"
    whole = f"{max(seconds, 1):.0f}"
    return f"about {whole} {'second' if whole == '1' else 'seconds'}"


ESTIMATE = 0.85  # activations are estimated to 15 %, and a run that may fit is not refused
TOKEN_BYTES = 16  # input and target of a token, int64


def require_memory(cfg: TrainConfig, config: Any, available: float) -> None:
    """Raise ValueError if a run cannot fit into `available` bytes.

    Without this check the system would kill the run later, without a message.
    """
    memory = memory_bytes(cfg, config)
    tokens = cfg.rows * cfg.row_length
    if cfg.eval_only:  # without gradients only the activations of one layer exist at a time
        needed = memory["weights"] + ESTIMATE * memory["activations"] / (cfg.tbptt * config.num_hidden_layers)
        way_out = "lower batch_size or block_size"
    else:
        exact = memory["weights"] + memory["gradients"] + memory["optimizer"] + memory.get("sampling", 0)
        needed = exact + ESTIMATE * memory["activations"] + TOKEN_BYTES * tokens * cfg.micro_batches
        way_out = f"lower batch_size, {cfg.sized_by} or the sizes of the model"
    if needed > available:
        raise ValueError(
            f"this run needs about {needed / 1e9:,.1f} GB of memory, and {available / 1e9:,.1f} GB are "
            f"available on {cfg.device}; {way_out}; --dry_run shows what needs it"
        )
