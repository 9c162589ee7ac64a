"""Plan a run on many GPUs from its settings: python train.py --dry_run --gpus 64 --gpu h100

Nothing here was measured, and no constant was fitted to a measurement; python -m benchmarks.planner_rows compares
the plans with published figures. No model with values is built, and no process group.

A rank is one process with one GPU. Bytes of a collective are those of its whole tensor on one rank: the output of
an all-gather, the input of a reduce-scatter or an all-to-all, the tensor of an all-reduce. Tests count them.
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
from training.muon import POLYNOMIALS
from training.optimizer import freeze, parameter_groups

# ------------------------------------------------------------------------------------------- the machine


class Card(NamedTuple):
    """A GPU in a node of NODE of them. Rates are peaks of one GPU in one direction, in bytes/s."""

    device: str  # its name in PEAK_FLOPS
    memory: float  # bytes
    node_rate: float  # to the other GPUs of its node
    network_rate: float  # to other nodes


# Memory and links from NVIDIA's data sheets of the cards and of the DGX with eight of them: half of NVLink's rate,
# which counts both directions, and one network adapter for each GPU (200 Gb/s with A100, 400 Gb/s with the others).
# The RTX 4090 has no NVLink: PCIe 4.0 with 16 lanes; we assume one adapter of 100 Gb/s for the eight of a node.
CARDS = {
    "a100": Card("NVIDIA A100-SXM4-80GB", 80e9, 300e9, 25e9),
    "h100": Card("NVIDIA H100 80GB HBM3", 80e9, 450e9, 50e9),
    "h200": Card("NVIDIA H200", 141e9, 450e9, 50e9),
    "b200": Card("NVIDIA B200", 180e9, 900e9, 50e9),
    "rtx4090": Card("NVIDIA GeForce RTX 4090", 24e9, 32e9, 12.5e9 / 8),
}
NODE = 8  # GPUs in a node
# Assumptions, fixed before any comparison.
EFFICIENCY = 0.3  # share of a GPU's peak that the products reach, as in costs.MACHINES
LINK_EFFICIENCY = 0.7  # share of a link's rate that a collective reaches
LATENCY = 5e-5  # seconds before the first byte of a collective arrives
USABLE = 0.9  # share of the memory for tensors; the rest is for CUDA, NCCL and gaps between tensors
BUCKET = 25 * 2**20  # bytes that DDP reduces at once, the default of torch


class Group(NamedTuple):
    """The ranks of a collective."""

    ranks: int
    per_node: int  # how many of them are in one node


class Collective(NamedTuple):
    """All collectives of one kind in an optimizer step, on one rank."""

    what: str
    kind: str  # all-gather, reduce-scatter, all-reduce or all-to-all
    size: float  # bytes in a step
    calls: int
    group: Group
    overlaps: bool  # whether the GPU computes meanwhile

    def seconds(self, card: Card) -> float:
        """A ring moves the tensor once around, all-reduce twice; between nodes it uses the adapters of all its
        ranks in a node. In an all-to-all with even experts each rank sends an equal part to each other.
        """
        ranks, per_node = self.group
        nodes = math.ceil(ranks / per_node)
        if self.kind == "all-to-all":
            inside = self.size * (per_node - 1) / ranks
            outside = self.size * (ranks - per_node) / ranks
        else:
            turns = 2 if self.kind == "all-reduce" else 1
            inside = turns * self.size * (ranks - 1) / ranks * (per_node > 1)
            outside = turns * self.size * (nodes - 1) / nodes / per_node
        slowest = max(inside / card.node_rate, outside / card.network_rate)
        return slowest / LINK_EFFICIENCY + self.calls * LATENCY * (ranks > 1)


# ------------------------------------------------------------------------------------------- the layouts


class Layout(NamedTuple):
    """How parameters are spread over the ranks, as --parallel names it."""

    sharded: bool  # with FSDP2
    degree: int = 1  # ranks that hold the experts of a layer together; 1: each rank computes with all of them

    def __str__(self) -> str:
        names = ["fsdp"] * self.sharded + [f"ep:{self.degree}"] * (self.degree > 1)
        return "+".join(names) or "ddp"


class Tensor(NamedTuple):
    """A parameter of the model."""

    shape: tuple[int, ...]
    block: int | None  # the transformer block that it is in; None: in none
    expert: bool  # whether expert parallelism splits it
    trained: bool
    matrix: bool  # whether Muon updates it

    def spread(self, layout: Layout) -> bool:
        """Whether expert parallelism splits it; then FSDP2 leaves it alone."""
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


def tensors_of(cfg: TrainConfig, config: Any) -> list[Tensor]:
    """The parameters of a model, from one without values."""
    model = checkpoint.without_values(registry.model_class(cfg.model), config)
    freeze(model, cfg.freeze)
    matrices = parameter_groups(model)["matrix"] if cfg.optimizer == "muon" else {}
    tensors = []
    for name, parameter in model.named_parameters():
        block = re.match(r"block\.(\d+)\.", name)
        # a layer without experts has one dense expert
        expert = re.fullmatch(r"block\.\d+\.mlp\.mlp[12]_(weight|bias)", name) and len(parameter) > 1
        tensors.append(
            Tensor(
                shape=tuple(parameter.shape),
                block=int(block[1]) if block else None,
                expert=bool(expert),
                trained=parameter.requires_grad,
                matrix=name in matrices,
            )
        )
    return tensors


def layouts(tensors: list[Tensor], gpus: int) -> list[Layout]:
    """Every layout of a model on this many GPUs."""
    most = math.gcd(gpus, *{tensor.shape[0] for tensor in tensors if tensor.expert} or {1})
    degrees = [degree for degree in range(1, most + 1) if most % degree == 0]
    return [Layout(sharded, degree) for degree in degrees for sharded in (False, True)]


# ------------------------------------------------------------------------- communication, memory and time


def collectives(
    cfg: TrainConfig, config: Any, tensors: list[Tensor], layout: Layout, gpus: int
) -> list[Collective]:
    """The communication of an optimizer step; a test counts its bytes.

    Left out, because they are a few KB: the norm of the gradient, losses, and numbers of tokens.
    """
    if gpus == 1:
        return []
    per_node, micro = min(gpus, NODE), cfg.micro_batches
    everyone, found = Group(gpus, per_node), []
    shared = [t for t in tensors if not t.spread(layout)]
    gradients = 4 * sum(t.used(layout, gpus) for t in shared if t.trained)
    if layout.sharded:
        # Each block is gathered for the forward pass and again for the backward pass; the rest stays in between.
        times = {t.block: micro * (1 if t.block is None else 2) for t in shared}
        size = sum(times[t.block] * gathered_width(cfg, t) * t.used(layout, gpus) for t in shared)
        found.append(Collective("weights", "all-gather", size, sum(times.values()), everyone, True))
        found.append(Collective("gradients", "reduce-scatter", gradients, len(times), everyone, True))
        rows = [t for t in shared if t.matrix and len(t.shape) == 2]  # Muon needs whole matrices
        size = 4 * sum(t.used(layout, gpus) for t in rows)
        found.append(Collective("updates", "all-gather", size, len(rows), everyone, False))
    else:
        calls = math.ceil(gradients / BUCKET)
        found.append(Collective("gradients", "all-reduce", gradients, calls, everyone, True))
    if spread := [t for t in tensors if t.spread(layout)]:
        # The ranks of a degree are neighbours. The others have copies of the same experts.
        copies, inside = gpus // layout.degree, min(layout.degree, per_node)
        group = Group(copies, max(1, min(copies, per_node // layout.degree)))
        size = 4 * sum(t.held(layout, gpus) for t in spread if t.trained) * (copies > 1)
        found.append(Collective("experts' gradients", "all-reduce", size, len(spread), group, False))
        # to the experts and back, in both passes; full activation checkpointing repeats the forward pass
        trips = (6 if cfg.activation_checkpointing == "full" else 4) * len({t.block for t in spread}) * micro
        rows = cfg.batch_size * cfg.block_size * config.experts_per_token
        size = trips * rows * config.hidden_size * bytes_per_value(cfg)
        found.append(Collective("tokens", "all-to-all", size, trips, Group(layout.degree, inside), False))
    return [collective for collective in found if collective.size]


def bytes_per_value(cfg: TrainConfig) -> int:
    """Bytes of a value in a matrix product."""
    return 2 if cfg.dtype == "bfloat16" else 4


def gathered_width(cfg: TrainConfig, tensor: Tensor) -> int:
    """Bytes of a value that FSDP2 gathers: blocks in the dtype of the products, the rest in float32."""
    return 4 if tensor.block is None else bytes_per_value(cfg)


def memory(
    cfg: TrainConfig, config: Any, tensors: list[Tensor], layout: Layout, gpus: int
) -> dict[str, float]:
    """Bytes on a GPU by part. Weights, gradients and optimizer state are exact; the rest is estimated."""
    one, width = costs.memory_bytes(cfg, config), bytes_per_value(cfg)
    trained = [t for t in tensors if t.trained]
    gradients = 4 * sum(t.held(layout, gpus) for t in trained)
    if cfg.micro_batches > 1:  # FSDP2 reduces them once a step, and keeps them whole until then
        gradients += 4 * sum(t.used(layout, gpus) for t in trained if t.sharded(layout))
    # Copies of weights: those for the products, and what FSDP2 gathers: all outside of blocks, the block that
    # computes, and the next one, which is on its way. The gradients of two blocks are on their way back.
    copies, on_the_way, blocks = 0, 0, {}
    for t in tensors:
        size = t.used(layout, gpus)
        if not t.sharded(layout):
            copies += width * size if width < 4 else 0
        elif t.block is None:
            copies += 4 * size
        else:
            blocks[t.block] = blocks.get(t.block, 0) + size
    if blocks and gpus > 1:
        copies += 2 * width * max(blocks.values())
        on_the_way += 2 * 4 * max(blocks.values())
    activations = one["activations"]
    if spread := {t.block for t in tensors if t.spread(layout)}:
        # the rows that arrive at the experts, and those that come back
        layers = 1 if cfg.activation_checkpointing == "full" else len(spread)
        rows = cfg.batch_size * cfg.block_size * config.experts_per_token
        activations += 2 * layers * rows * config.hidden_size * width * cfg.tbptt
    return {
        "weights": 4 * sum(t.held(layout, gpus) for t in tensors),
        "gradients": gradients,
        "optimizer": 4 * sum(t.held(layout, gpus) * (1 if t.matrix else 2) for t in trained),
        "activations": activations,
        "logits": one["logits"],
        "copies of weights": copies,
        "communication": on_the_way,
    }


def muon_flops(tensors: list[Tensor], layout: Layout, gpus: int) -> float:
    """FLOPs of a step of Muon on a rank: three products for each matrix and polynomial (muon.orthogonalize).

    A rank updates the experts that it holds, and every other matrix as a whole.
    """
    flops = 0.0
    for t in (t for t in tensors if t.matrix):
        short, long = sorted(t.shape[-2:])
        values = t.held(layout, gpus) if len(t.shape) == 3 else math.prod(t.shape)
        flops += values / (short * long) * (4 * short**2 * long + 2 * short**3)
    return len(POLYNOMIALS) * flops


class Plan(NamedTuple):
    """What a layout takes on each GPU."""

    cfg: TrainConfig  # with the activation checkpointing that it needs
    layout: Layout
    memory: dict[str, float]  # bytes by part
    collectives: list[Collective]
    computation: float  # seconds of a step
    muon: float  # seconds of a step
    communication: float  # seconds of a step, overlapped or not
    seconds: float  # of a step

    @property
    def bytes(self) -> float:
        return sum(self.memory.values())

    def fits(self, card: Card) -> bool:
        return self.bytes <= USABLE * card.memory

    def tokens_per_second(self, gpus: int) -> float:
        return gpus * self.cfg.slots_per_step / self.seconds


CHECKPOINTING = ("none", "selective", "full")
# FLOPs of a step over those without checkpointing: `selective` keeps the results of all products, `full` repeats
# the forward pass, which is a third of a step.
REPEATED = {"none": 1.0, "selective": 1.0, "full": 4 / 3}


def plan(cfg: TrainConfig, config: Any, tensors: list[Tensor], layout: Layout, gpus: int, card: Card) -> Plan:
    """The plan of a layout, with the least activation checkpointing with which it fits; at least that of cfg."""
    for level in CHECKPOINTING[CHECKPOINTING.index(cfg.activation_checkpointing) :]:
        now = replace(cfg, activation_checkpointing=level)
        parts = memory(now, config, tensors, layout, gpus)
        if sum(parts.values()) <= USABLE * card.memory:
            break
    rate = EFFICIENCY * PEAK_FLOPS[card.device][cfg.dtype]
    computation = REPEATED[level] * costs.step_seconds(cfg, config, costs.Machine("", cfg.dtype, rate, None))
    muon = muon_flops(tensors, layout, gpus) / rate
    moved = collectives(now, config, tensors, layout, gpus)
    hidden = sum(c.seconds(card) for c in moved if c.overlaps)
    waited = sum(c.seconds(card) for c in moved if not c.overlaps)
    seconds = max(computation, hidden) + waited + muon
    return Plan(now, layout, parts, moved, computation, muon, hidden + waited, seconds)


def plans(cfg: TrainConfig, config: Any, gpus: int, card: Card, named: bool = False) -> list[Plan]:
    """The plans of all layouts, or of that of cfg.parallel if named: first those that fit, the fastest first.

    Raises ValueError for a layout that this number of GPUs cannot have.
    """
    tensors = tensors_of(cfg, config)
    possible = layouts(tensors, gpus)
    if named:
        data, degree = cfg.layout
        largest = max(layout.degree for layout in possible)
        asked = Layout(data == "fsdp", largest if degree == 0 else degree or 1)
        if asked not in possible:
            degrees = ", ".join(str(layout.degree) for layout in possible if layout.sharded)
            raise ValueError(
                f"the degree of parallel must divide the {gpus} GPUs and the experts of a layer ({degrees}), got "
                f"{cfg.parallel}"
            )
        possible = [asked]
    found = [plan(cfg, config, tensors, layout, gpus, card) for layout in possible]
    return sorted(found, key=lambda p: (not p.fits(card), p.seconds if p.fits(card) else p.bytes))


# -------------------------------------------------------------------------------------------- the report


def report(cfg: TrainConfig, config: Any, named: bool) -> str:
    """The text of --dry_run --gpus.  named: whether cfg.parallel was given, so that no other layout counts."""
    gpus, name = cfg.gpus or 1, cfg.gpu or "h100"
    card, peak = CARDS[name], PEAK_FLOPS[CARDS[name].device][cfg.dtype]
    found = plans(cfg, config, gpus, card, named)
    fitting = [p for p in found if p.fits(card)]
    tokens, rows = gpus * cfg.slots_per_step, gpus * cfg.batch_size * cfg.micro_batches
    nodes = math.ceil(gpus / NODE)
    lines = [
        *costs.model_lines(cfg, config),
        f"machine          {gpus} {name} in {nodes} {'nodes' if nodes > 1 else 'node'}; each {peak / 1e12:,.0f} "
        f"TFLOP/s in {cfg.dtype}, {card.memory / 1e9:g} GB, {card.node_rate / 1e9:g} GB/s in its node, "
        f"{card.network_rate / 1e9:g} GB/s to other nodes",
        f"step             {tokens:,} tokens: {gpus} GPUs x {cfg.micro_batches} micro-batches x {cfg.batch_size} rows x "
        f"{cfg.block_size:,} tokens",
        f"assumed          {EFFICIENCY:.0%} of the peak, {LINK_EFFICIENCY:.0%} of the links, {USABLE:.0%} of the memory, "
        "even experts; gradients and weights travel while the GPU computes. Nothing of it was measured",
    ]
    for number, p in enumerate(fitting, start=1):
        lines += ["", *plan_lines(p, number, config, gpus, card)]
    if others := [f"{p.layout} ({p.bytes / 1e9:,.0f} GB)" for p in found if not p.fits(card)]:
        lines += ["", f"do not fit, even with full activation checkpointing: {', '.join(others)}"]
    if not fitting:
        lines.append(what_would_fit(cfg, config, gpus, name, named))
    return "\n".join(lines)


def plan_lines(p: Plan, number: int, config: Any, gpus: int, card: Card) -> list[str]:
    """The lines of one layout in the report."""
    cfg, speed = p.cfg, p.tokens_per_second(gpus)
    peak = PEAK_FLOPS[card.device][cfg.dtype]
    mfu = speed * config.flops_per_token(cfg.block_size) / (gpus * peak)
    if cfg.max_iters is None:
        steps = 60 * cfg.max_minutes / p.seconds
        length = f"{steps:,.0f} steps, {steps * gpus * cfg.slots_per_step:.3g} tokens in {cfg.max_minutes:g} minutes"
    else:
        length = f"{cfg.max_iters:,} steps in {cfg.max_iters * p.seconds / 3600:,.1f} hours"
    parts = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in p.memory.items() if size)
    times = {"computation": p.computation, "muon": p.muon, "communication": p.communication}
    told = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in times.items() if seconds)
    moved = "; ".join(
        f"{c.kind} of {c.what} {c.size / 1e9:,.3g} GB in {c.seconds(card):.3g} s" for c in p.collectives
    )
    return [
        f"{number}  {p.layout}, activation_checkpointing {cfg.activation_checkpointing}: {length}",
        f"   speed         {speed:,.0f} tokens/s, {speed / gpus:,.0f} for each GPU, {mfu:.0%} MFU",
        f"   memory        {p.bytes / 1e9:.1f} of {card.memory / 1e9:g} GB: {parts}",
        f"   step          {p.seconds:.3g} s: {told}",
        f"   communication {moved or 'none'}",
    ]


def what_would_fit(cfg: TrainConfig, config: Any, gpus: int, name: str, named: bool) -> str:
    """A sentence for a model that fits in no layout: what to change."""
    ways = []
    for change in ({"batch_size": 1}, {"grad_accum": 1}, {"batch_size": 1, "grad_accum": 1}):
        if any(
            best.fits(CARDS[name])
            for best in plans(replace(cfg, **change), config, gpus, CARDS[name], named)[:1]
        ):
            ways.append(" ".join(f"--{key} {value}" for key, value in change.items()))
            break
    for number in (gpus * 2**power for power in range(1, 11)):
        if (best := plans(cfg, config, number, CARDS[name], named)[0]).fits(CARDS[name]):
            ways.append(f"--gpus {number} with {best.layout}")
            break
    for other, card in CARDS.items():
        if card.memory > CARDS[name].memory and (best := plans(cfg, config, gpus, card, named)[0]).fits(card):
            ways.append(f"--gpu {other} with {best.layout}")
            break
    if not ways:
        return "no layout fits, with up to 1,024 times as many GPUs; take a smaller model or block_size"
    return f"no layout fits on {gpus} {name}; this would: {'; or '.join(ways)}"
