"""Plan a run on many GPUs from its settings: python train.py --dry_run --gpus 64 --gpu h100

Nothing here was measured. No constant is fitted to a measurement either: python -m benchmarks.planner_rows compares
plans with published figures, after the constants were fixed. No model with values is built, and no process group.

A rank is a process with its GPU. The size of a collective is that of its whole tensor on one rank: the output of an
all-gather, the input of a reduce-scatter or an all-to-all, the tensor of an all-reduce.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any, NamedTuple

from architecture import checkpoint, registry
from common.device import PEAK_FLOPS
from training import costs
from training.config import TrainConfig
from training.memory import PORTION
from training.muon import POLYNOMIALS
from training.optimizer import freeze, parameter_groups

# ------------------------------------------------------------------------------------------ the machine
NODE = 8  # GPUs in a node
# Assumptions, fixed before any comparison with a measurement.
EFFICIENCY = 0.3  # share of a GPU's peak that a step reaches, as for the H100 of costs.MACHINES
LINK_EFFICIENCY = 0.7  # share of a link's rate that a transfer reaches
LATENCY = 5e-5  # seconds before the first byte of a collective arrives
USABLE = 0.9  # share of the memory for tensors; the rest is for CUDA, NCCL and the gaps between tensors
BUCKET = 25 * 2**20  # bytes that DDP reduces at once, torch's default


class Card(NamedTuple):
    """A GPU. Rates are the peaks of one GPU in one direction, in bytes/s."""

    device: str  # its name in PEAK_FLOPS
    memory: float  # bytes
    node_rate: float  # to the other GPUs of its node
    network_rate: float  # to other nodes
    host_rate: float  # to the memory of the host


# From NVIDIA's data sheets of the cards and of the DGX with eight of them: half of the rate of NVLink, which counts
# both directions; one network adapter for each GPU, of 200 Gb/s (A100) or 400 Gb/s; PCIe 4.0 or 5.0 with 16 lanes.
# The RTX 4090 has no NVLink, and we assume one adapter of 100 Gb/s for the eight of a node.
CARDS = {
    "a100": Card("NVIDIA A100-SXM4-80GB", 80e9, 300e9, 25e9, 32e9),
    "h100": Card("NVIDIA H100 80GB HBM3", 80e9, 450e9, 50e9, 64e9),
    "h200": Card("NVIDIA H200", 141e9, 450e9, 50e9, 64e9),
    "b200": Card("NVIDIA B200", 180e9, 900e9, 50e9, 64e9),
    "rtx4090": Card("NVIDIA GeForce RTX 4090", 24e9, 32e9, 12.5e9 / NODE, 32e9),
}


class Machine(NamedTuple):
    """Equal GPUs in nodes of NODE."""

    gpus: int
    card: Card

    @property
    def per_node(self) -> int:
        return min(self.gpus, NODE)

    def peak(self, cfg: TrainConfig) -> float:
        """FLOP/s of a GPU."""
        return PEAK_FLOPS[self.card.device][cfg.dtype]

    @property
    def room(self) -> float:
        """Bytes for tensors on a GPU."""
        return USABLE * self.card.memory


class Collective(NamedTuple):
    """The collectives of one kind in an optimizer step, on one rank."""

    kind: str  # all-gather, reduce-scatter, all-reduce or all-to-all
    what: str
    size: float  # bytes in a step
    calls: int
    ranks: int
    per_node: int  # ranks of a group that share a node
    overlaps: bool  # whether the GPU computes meanwhile

    def seconds(self, card: Card) -> float:
        """A ring moves the tensor once around, all-reduce twice. Between nodes it uses the network adapters of all
        its ranks in a node. In an all-to-all, each rank sends as much to every other: experts are evenly loaded.
        """
        if self.kind == "all-to-all":
            in_node = self.size * (self.per_node - 1) / self.ranks
            between = self.size * (self.ranks - self.per_node) / self.ranks
        else:
            moved = self.size * (2 if self.kind == "all-reduce" else 1)
            in_node = moved * (self.ranks - 1) / self.ranks if self.per_node > 1 else 0
            between = moved * (1 - self.per_node / self.ranks) / self.per_node
        slowest = max(in_node / card.node_rate, between / card.network_rate)
        return slowest / LINK_EFFICIENCY + self.calls * LATENCY


# ---------------------------------------------------------------------------------- models and layouts
class Layout(NamedTuple):
    """How parameters are spread over the ranks (training/distributed/shard.py)."""

    sharded: bool  # with FSDP2
    degree: int = 1  # ranks that hold the experts of a layer together; 1: each computes with all of them

    def __str__(self) -> str:
        """As --parallel names it."""
        names = ["fsdp"] * self.sharded + [f"ep:{self.degree}"] * (self.degree > 1)
        return "+".join(names) or "ddp"


class Tensor(NamedTuple):
    """A parameter of the model."""

    shape: tuple[int, ...]
    block: int | None  # the transformer block that it is in; None: in none
    expert: bool  # whether expert parallelism can split it
    trained: bool
    matrix: bool  # whether Muon updates it

    def spread(self, layout: Layout) -> bool:
        """Whether expert parallelism splits it. FSDP2 then leaves it alone."""
        return self.expert and layout.degree > 1

    def sharded(self, layout: Layout) -> bool:
        """Whether FSDP2 splits it."""
        return layout.sharded and not self.spread(layout)

    def held(self, layout: Layout, gpus: int) -> int:
        """Values that rank 0 keeps, which has the most: FSDP2 splits the first axis as torch.chunk does."""
        rows = self.shape[0] // layout.degree if self.spread(layout) else self.shape[0]
        rows = math.ceil(rows / gpus) if self.sharded(layout) else rows
        return rows * math.prod(self.shape[1:])

    def used(self, layout: Layout, gpus: int) -> int:
        """Values that a rank computes with: all, or its own experts; from FSDP2 with the padding of the parts."""
        return self.held(layout, gpus) * (gpus if self.sharded(layout) else 1)


class Model(NamedTuple):
    """What a plan needs of a model."""

    config: Any
    tensors: list[Tensor]


def model_of(cfg: TrainConfig, config: Any) -> Model:
    """The parameters of a model, from one without values."""
    model = checkpoint.without_values(registry.model_class(cfg.model), config)
    freeze(model, cfg.freeze)
    matrices = parameter_groups(model)["matrix"] if cfg.optimizer == "muon" else {}
    experts = {
        id(getattr(layer, name))
        for layer in getattr(model, "routed_experts", list)()
        for name in layer.expert_parameters
    }
    tensors = []
    for name, parameter in model.named_parameters():
        block = re.match(r"block\.(\d+)\.", name)
        tensors.append(
            Tensor(
                shape=tuple(parameter.shape),
                block=int(block[1]) if block else None,
                expert=id(parameter) in experts,
                trained=parameter.requires_grad,
                matrix=name in matrices,
            )
        )
    return Model(config, tensors)


def layouts(cfg: TrainConfig, model: Model, gpus: int) -> list[Layout]:
    """Every layout of a model on this many GPUs that training/start.py accepts."""
    if getattr(model.config, "image_format", None) is not None:
        return [Layout(False)]
    if cfg.offload == "optimizer":
        return [Layout(False), Layout(True)]
    most = math.gcd(gpus, *{t.shape[0] for t in model.tensors if t.expert} or {1})
    degrees = [degree for degree in range(1, most + 1) if most % degree == 0]
    return [Layout(sharded, degree) for degree in degrees for sharded in (False, True)]


def named_layout(cfg: TrainConfig, model: Model, gpus: int) -> Layout:
    """The layout that cfg.parallel names."""
    data, degree = cfg.layout
    possible = layouts(cfg, model, gpus)
    layout = Layout(data == "fsdp", degree or (1 if degree is None else possible[-1].degree))
    if layout not in possible or degree is not None and possible[-1].degree == 1:
        raise ValueError(
            f"parallel must be one of {', '.join(map(str, possible))} for this model on {gpus} GPUs, got "
            f"{cfg.parallel}"
        )
    return layout


# ------------------------------------------------------------------------ communication, memory, time
def collectives(cfg: TrainConfig, model: Model, layout: Layout, gpus: int) -> list[Collective]:
    """The communication of an optimizer step; tests count its bytes.

    Left out, because they are a few KB: losses, the norm of the gradient, and numbers of tokens.
    """
    if gpus == 1:
        return []
    per_node, micro, found = min(gpus, NODE), cfg.micro_batches, []
    tensors = [t for t in model.tensors if not t.spread(layout)]
    gradients = 4 * sum(t.used(layout, gpus) for t in tensors if t.trained)
    if layout.sharded:
        # A block is gathered for the forward pass and again for the backward pass; the rest stays in between.
        times = {t.block: micro * (1 if t.block is None else 2) for t in tensors}
        size = sum(times[t.block] * gathered_width(cfg, t) * t.used(layout, gpus) for t in tensors)
        found.append(("all-gather", "weights", size, sum(times.values()), gpus, per_node, True))
        found.append(("reduce-scatter", "gradients", gradients, len(times), gpus, per_node, True))
        split = [t for t in tensors if t.matrix and len(t.shape) == 2]  # Muon needs whole matrices
        size = 4 * sum(t.used(layout, gpus) for t in split)
        found.append(("all-gather", "Muon's matrices", size, len(split), gpus, per_node, False))
    else:
        calls = math.ceil(gradients / BUCKET)
        found.append(("all-reduce", "gradients", gradients, calls, gpus, per_node, True))
    if experts := [t for t in model.tensors if t.spread(layout)]:
        # The ranks of a degree are neighbours. The other ranks have copies of the same experts.
        copies, in_node = gpus // layout.degree, min(layout.degree, per_node)
        trained = [t for t in experts if t.trained]
        size = 4 * sum(t.held(layout, gpus) for t in trained) * (copies > 1)
        same_node = max(1, per_node // layout.degree)
        found.append(("all-reduce", "experts' gradients", size, len(trained), copies, same_node, False))
        # to the experts and back, in both passes; full activation checkpointing repeats the forward pass
        trips = micro * len({t.block for t in experts}) * (6 if cfg.activation_checkpointing == "full" else 4)
        size = trips * row_bytes(cfg, model.config)
        found.append(("all-to-all", "tokens", size, trips, layout.degree, in_node, False))
    return [Collective(*values) for values in found if values[2]]


def width(cfg: TrainConfig) -> int:
    """Bytes of a value in a matrix product."""
    return 2 if cfg.dtype == "bfloat16" else 4


def gathered_width(cfg: TrainConfig, tensor: Tensor) -> int:
    """Bytes of a value that FSDP2 gathers: blocks in the dtype of the products, the rest in float32."""
    return 4 if tensor.block is None else width(cfg)


def row_bytes(cfg: TrainConfig, config: Any) -> int:
    """Bytes of the rows that the tokens of a micro-batch send to the experts of a layer."""
    return cfg.batch_size * cfg.block_size * config.experts_per_token * config.hidden_size * width(cfg)


def memory(cfg: TrainConfig, model: Model, layout: Layout, gpus: int) -> dict[str, float]:
    """Bytes on a GPU by part. Weights, gradients and optimizer state are exact; the rest is estimated."""
    one, tensors = costs.memory_bytes(cfg, model.config), model.tensors
    trained = [t for t in tensors if t.trained]
    gradients = sum(t.held(layout, gpus) for t in trained)
    if cfg.micro_batches > 1:  # FSDP2 reduces them once a step, and keeps them whole until then
        gradients += sum(t.used(layout, gpus) for t in trained if t.sharded(layout)) * (gpus > 1)
    state = sum(t.held(layout, gpus) * (1 if t.matrix else 2) for t in trained)
    if cfg.offload == "optimizer":  # as in costs.memory_bytes
        state = min(state, 2 * 2 * max(PORTION, *(t.held(layout, gpus) for t in trained)))
    blocks: dict[int, int] = {}
    for t in (t for t in tensors if t.sharded(layout) and t.block is not None):
        blocks[t.block] = blocks.get(t.block, 0) + t.used(layout, gpus)
    two_blocks = 2 * max(blocks.values(), default=0) * (gpus > 1)  # one computes, the next one is on its way
    outside = sum(t.used(layout, gpus) for t in tensors if t.sharded(layout) and t.block is None)
    copied = sum(t.used(layout, gpus) for t in tensors if not t.sharded(layout)) * (cfg.dtype == "bfloat16")
    activations = one["activations"]
    if cfg.offload != "activations":
        activations += cfg.tbptt * exchanged_rows(cfg, model, layout)
    parameters = sum(t.held(layout, gpus) for t in tensors)
    if updates_on_host(cfg, layout):
        parameters = state = 0
        gradients -= sum(t.held(layout, gpus) for t in trained)
    return {
        "weights": 4 * parameters,
        "gradients": 4 * gradients,
        "optimizer": 4 * state,
        "activations": activations,
        "logits": one["logits"],
        "copies of weights": width(cfg) * (copied + two_blocks) + 4 * outside * (gpus > 1),
        "communication": 4 * two_blocks,  # their gradients
    }


def host_memory(cfg: TrainConfig, model: Model, layout: Layout, gpus: int) -> dict[str, float]:
    """Bytes for tensors in the memory of the first host by part. "start" comes first, and the others may be there together.

    What programs and libraries take is not counted, and neither are files that the system keeps in memory.
    """
    ranks, in_parts = min(gpus, NODE), gpus > 1 and (layout.sharded or layout.degree > 1)
    total, trained = sum(math.prod(t.shape) for t in model.tensors), [t for t in model.tensors if t.trained]
    held = sum(t.held(layout, gpus) for t in model.tensors)
    state = sum(t.held(layout, gpus) * (1 if t.matrix else 2) for t in trained)
    offloaded = 0.0
    if updates_on_host(cfg, layout):
        offloaded = 4 * (held + state + sum(t.held(layout, gpus) for t in trained))
    elif cfg.offload == "optimizer":
        offloaded = 4 * state
    elif cfg.offload == "activations":
        offloaded = memory(replace(cfg, offload="none"), model, layout, gpus)["activations"]
    return {
        # a rank draws or reads one tensor at a time, and DDP the whole model before it is on the GPU
        "start": 4 * ranks * (max(math.prod(t.shape) for t in model.tensors) if in_parts else total),
        "offload": ranks * offloaded,
        "copies to save": 4 * ranks * (held + state) * in_parts,
        "whole model of the first rank": 4 * total * in_parts,  # for the story of an evaluation
    }


def exchanged_rows(cfg: TrainConfig, model: Model, layout: Layout) -> float:
    """Bytes of the rows that a micro-batch keeps at the experts, those that arrive and those that come back."""
    if layout.degree == 1:
        return 0
    layers = len({t.block for t in model.tensors if t.expert})
    return 2 * row_bytes(cfg, model.config) * (1 if cfg.activation_checkpointing == "full" else layers)


def keeps_products(cfg: TrainConfig, model: Model) -> bool:
    """Whether selective checkpointing keeps all products; `sorted` experts compute theirs again."""
    return cfg.experts == "grouped" or not any(t.expert for t in model.tensors)


def updates_on_host(cfg: TrainConfig, layout: Layout) -> bool:
    """Whether parameters, gradients and optimizer rest on the host, as FSDP2 offloads them, and are updated there."""
    return cfg.offload == "optimizer" and layout.sharded


def offload_seconds(cfg: TrainConfig, model: Model, layout: Layout, machine: Machine) -> float:
    """Seconds of a step for the copies to the memory of the host and back, which are not hidden here."""
    if updates_on_host(cfg, layout):  # parameters come for each all-gather, and gradients go once
        times = {t: cfg.micro_batches * (1 if t.block is None else 2) + t.trained for t in model.tensors}
        moved = 4 * sum(times[t] * t.held(layout, machine.gpus) for t in model.tensors)
    elif cfg.offload == "optimizer":
        held = sum(t.held(layout, machine.gpus) * (1 if t.matrix else 2) for t in model.tensors if t.trained)
        moved = 4 * held  # both directions at once
    elif cfg.offload == "activations":
        kept = memory(replace(cfg, offload="none"), model, layout, machine.gpus)["activations"]
        moved = 2 * cfg.grad_accum * kept  # there in the forward pass, back in the backward pass
    else:
        return 0.0
    return moved / machine.card.host_rate / LINK_EFFICIENCY


def muon_flops(model: Model, layout: Layout, gpus: int) -> float:
    """FLOPs of a step of Muon on a rank: three products for each matrix and polynomial (muon.orthogonalize).

    A rank updates the experts that it holds, and every other matrix as a whole.
    """
    flops = 0.0
    for t in (t for t in model.tensors if t.matrix):
        short, long = sorted(t.shape[-2:])
        values = t.held(layout, gpus) if len(t.shape) == 3 else math.prod(t.shape)
        flops += values / (short * long) * (4 * short**2 * long + 2 * short**3)
    return len(POLYNOMIALS) * flops


# -------------------------------------------------------------------------------------------- the plan
CHECKPOINTING = ("none", "selective", "full")


class Plan(NamedTuple):
    """What a layout takes on each GPU."""

    cfg: TrainConfig  # with the activation checkpointing that it needs
    layout: Layout
    memory: dict[str, float]  # bytes by part
    collectives: list[Collective]
    seconds: dict[str, float]  # the time of a step by part, without what computation hides

    @property
    def bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())

    @property
    def speed(self) -> float:
        """Tokens/s of one GPU."""
        return self.cfg.slots_per_step / self.step


def plan(cfg: TrainConfig, model: Model, layout: Layout, machine: Machine) -> Plan:
    """The plan of a layout, with the least activation checkpointing with which it fits; at least that of cfg."""
    for level in CHECKPOINTING[CHECKPOINTING.index(cfg.activation_checkpointing) :]:
        cfg = replace(cfg, activation_checkpointing=level)
        parts = memory(cfg, model, layout, machine.gpus)
        if sum(parts.values()) <= machine.room:
            break
    rate = EFFICIENCY * machine.peak(cfg)
    one = costs.Machine("", cfg.dtype, rate, None)
    computation = costs.step_seconds(cfg, model.config, one)
    level = cfg.activation_checkpointing
    if level == "full" or level == "selective" and not keeps_products(cfg, model):
        computation /= 1 - costs.recomputed_share(cfg, model.config)
    moved = collectives(cfg, model, layout, machine.gpus)
    overlapping = sum(c.seconds(machine.card) for c in moved if c.overlaps)
    alone = sum(c.seconds(machine.card) for c in moved if not c.overlaps)
    seconds = {
        "computation": computation,
        "Muon": 0.0 if updates_on_host(cfg, layout) else muon_flops(model, layout, machine.gpus) / rate,
        "waiting for other GPUs": alone + max(0.0, overlapping - computation),
        "copies to the host and back": offload_seconds(cfg, model, layout, machine),
    }
    return Plan(cfg, layout, parts, moved, seconds)


def plans(cfg: TrainConfig, model: Model, machine: Machine, named: bool = False) -> list[Plan]:
    """The plans of all layouts, or of that of cfg.parallel if named: first those that fit, the fastest first."""
    possible = [named_layout(cfg, model, machine.gpus)] if named else layouts(cfg, model, machine.gpus)
    found = [plan(cfg, model, layout, machine) for layout in possible]
    return sorted(
        found, key=lambda p: (p.bytes > machine.room, p.step if p.bytes <= machine.room else p.bytes)
    )


# ------------------------------------------------------------------------------------------ the report
def report(cfg: TrainConfig, config: Any, named: bool) -> str:
    """The text of --dry_run with --gpus.  named: whether cfg.parallel was given, so that no other layout counts."""
    name = cfg.gpu or "h100"
    model, machine = model_of(cfg, config), Machine(cfg.gpus or 1, CARDS[name])
    gpus, card = machine
    found = plans(cfg, model, machine, named)
    fitting = [p for p in found if p.bytes <= machine.room]
    lines = [
        *costs.model_lines(cfg, config),
        f"machine          {gpus} {name}, {NODE} in a node; each {machine.peak(cfg) / 1e12:,.0f} TFLOP/s in {cfg.dtype}, "
        f"{card.memory / 1e9:g} GB, {card.node_rate / 1e9:g} GB/s in its node, {card.network_rate / 1e9:.3g} GB/s "
        "to other nodes",
        f"assumed          {share(EFFICIENCY)} of the peak, {share(LINK_EFFICIENCY)} of the links and "
        f"{share(USABLE)} of the memory are reached; experts are evenly loaded; nothing was measured",
        f"step             {gpus * cfg.slots_per_step:,} tokens, {cfg.slots_per_step:,} on each GPU"
        + same_step(cfg, gpus),
    ]
    for number, p in enumerate(fitting, start=1):
        lines += ["", *plan_lines(p, number, model, machine)]
    if others := [f"{p.layout} {p.bytes / 1e9:,.0f} GB" for p in found if p.bytes > machine.room]:
        lines += ["", f"too large, with full activation checkpointing: {', '.join(others)}"]
    if not fitting:
        lines.append(what_would_fit(cfg, model, machine, name, named))
    return "\n".join(lines)


def share(number: float) -> str:
    return f"{100 * number:.2g} %"


def same_step(cfg: TrainConfig, gpus: int) -> str:
    """The end of a line: the grad_accum that keeps the step of one process, if there is one."""
    if gpus == 1 or cfg.grad_accum % gpus:
        return ""
    return f"; grad_accum {cfg.grad_accum // gpus} keeps the {cfg.slots_per_step:,} tokens of one process"


def plan_lines(p: Plan, number: int, model: Model, machine: Machine) -> list[str]:
    """The lines of one layout in the report."""
    cfg, (gpus, card) = p.cfg, machine
    mfu = p.speed * model.config.flops_per_token(cfg.block_size) / machine.peak(cfg)
    if cfg.max_iters is None:
        steps = 60 * cfg.max_minutes / p.step
        length = f"{gpus * cfg.slots_per_step * steps:.3g} tokens in {cfg.max_minutes:g} minutes"
    else:
        length = f"{cfg.max_iters:,} steps in {costs.duration(cfg.max_iters * p.step)}"
    moved = (f"{c.kind} of {c.what} {amount(c.size)} in {time(c.seconds(card))}" for c in p.collectives)
    parts = (f"{part} {amount(size)}" for part, size in p.memory.items() if size)
    times = [f"{part} {time(seconds)}" for part, seconds in p.seconds.items() if seconds]
    times += ["without the update on the host, which is not estimated"] * updates_on_host(cfg, p.layout)
    return [
        f"{number}. --parallel {p.layout} --activation_checkpointing {cfg.activation_checkpointing}",
        f"  speed          {gpus * p.speed:,.0f} tokens/s, {p.speed:,.0f} on each GPU, MFU {share(mfu)}; {length}",
        f"  memory         {amount(p.bytes)} of {amount(card.memory)}: {', '.join(parts)}",
        f"  host           {host_line(host_memory(cfg, model, p.layout, gpus))}",
        f"  step           {time(p.step)}: {', '.join(times)}",
        f"  communication  {', '.join(moved) or 'none'}",
    ]


def host_line(parts: dict[str, float]) -> str:
    """The memory of the first host in words."""
    start, *later = parts.values()
    named = ", ".join(f"{part} {amount(size)}" for part, size in parts.items() if size)
    return f"{amount(max(start, sum(later)))} of the first node's memory: {named}"


def amount(size: float) -> str:
    return f"{size / 1e9:,.{1 if size >= 1e10 else 3}f} GB"


def time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def what_would_fit(cfg: TrainConfig, model: Model, machine: Machine, name: str, named: bool) -> str:
    """A sentence for a run that fits in no layout: what to change."""

    def fits(cfg: TrainConfig, machine: Machine) -> Layout | None:
        best = plans(cfg, model, machine, named)[0]
        return best.layout if best.bytes <= machine.room else None

    gpus, card = machine
    larger = sorted((other.memory, key) for key, other in CARDS.items() if other.memory > card.memory)
    # the sentence names the first change of each list that fits
    kinds: tuple[list[tuple[str, TrainConfig, Machine]], ...] = (
        [
            (" ".join(f"--{key} {value}" for key, value in change.items()), replace(cfg, **change), machine)
            for change in ({"batch_size": 1}, {"grad_accum": 1}, {"batch_size": 1, "grad_accum": 1})
        ],
        [("--offload optimizer", replace(cfg, offload="optimizer"), machine)] * (cfg.layout[1] is None),
        [(f"--gpus {gpus * 2**power}", cfg, Machine(gpus * 2**power, card)) for power in range(1, 11)],
        [(f"--gpu {key}", cfg, Machine(gpus, CARDS[key])) for _, key in larger],
    )
    ways = []
    for kind in kinds:
        found = ((words, fits(changed, other)) for words, changed, other in kind)
        ways += [f"{words} ({layout})" for words, layout in found if layout][:1]
    if not ways:
        return f"nothing fits, not even on {1024 * gpus:,} GPUs; take a smaller model or a shorter block_size"
    return f"nothing fits on {gpus} {name}; any of these would: {', '.join(ways)}"
