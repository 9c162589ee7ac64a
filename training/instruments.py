"""What an evaluation says of the routers and the attention: numbers, pictures and a table.

Everything here looks at the fixed validation tokens, except the load since the last evaluation, which
is that of training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from architecture.interface import load_share
from training import pictures
from training.routing import (
    Routing,
    dead_experts,
    flip_rate,
    max_violation,
    share_by_kind,
)
from training.token_kinds import KINDS


def by_layer(tag: str, layers: tuple[int, ...], values: torch.Tensor) -> dict[str, float]:
    """{tag/layer_NN: value}"""
    return {f"{tag}/layer_{layer:02d}": value for layer, value in zip(layers, values.tolist())}


def router_record(
    routing: Routing, before: torch.Tensor | None, trained_load: torch.Tensor | None
) -> dict[str, float]:
    """The routers' state in numbers, layer by layer.

    before: (L, N, k) the choices of the last evaluation; None at the first.
    trained_load: (L, E) assignments in training since then; None where nothing was trained.
    """
    record, layers = {}, routing.layers
    if trained_load is not None:
        record |= by_layer("moe/max_violation_since_eval", layers, max_violation(trained_load))
    record |= by_layer("moe/entropy", layers, routing.entropy)
    record |= by_layer("moe/dead_experts", layers, dead_experts(routing.load))
    record |= by_layer("moe/margin", layers, routing.margin)
    if before is not None and before.shape == routing.choices.shape:
        record |= by_layer("moe/flip_rate", layers, flip_rate(before, routing.choices))
    return record


def load_figures(routing: Routing | None) -> dict[str, float]:
    """How evenly the experts shared all tokens of an evaluation: max violation, mean over the layers (MaxVio of
    arXiv:2408.15664, there taken over the whole validation set) and of the worst; dead experts of all layers.
    """
    if routing is None:
        return {}
    violation = max_violation(routing.load)
    return {
        "max_violation": float(violation.mean()),
        "max_violation_worst_layer": float(violation.max()),
        "dead_experts": int(dead_experts(routing.load).sum()),
    }


def position_record(sums: torch.Tensor, tag: str = "val/loss_by_position") -> dict[str, float]:
    """Mean validation loss from number 0, 1, 2, 4, 8, ... up to the next of these; sums (N, 2): nats and
    tokens of each number. Where nothing was scored there is no mean.
    """
    length, record = len(sums), {}
    for start in [0, *(2**n for n in range(length.bit_length()) if 2**n < length)]:
        nats, tokens = sums[start : max(1, 2 * start)].sum(0).tolist()
        if tokens:
            record[f"{tag}/from_{start:04d}"] = nats / tokens
    return record


def sink_record(mass: dict[int, torch.Tensor]) -> dict[str, float]:
    """{layer: (H,)} -> a number per head."""
    return {
        f"attention/sink_mass/layer_{layer:02d}/head_{head:02d}": value
        for layer, heads in mass.items()
        for head, value in enumerate(heads.tolist())
    }


def load_picture(routing: Routing) -> dict[str, np.ndarray]:
    """The share of each expert in its layer's assignments, as a multiple of an even share."""
    share = load_share(routing.load)
    picture = pictures.heat_map(
        (share * share.shape[-1]).numpy(),
        rows=[f"layer {layer}" for layer in routing.layers],
        columns=[f"{e}" for e in range(share.shape[-1])],
        title="load of each expert / even load",
        even=1.0,
        form="{:.2f}",
    )
    return {"moe/load": picture}


def sink_picture(mass: dict[int, torch.Tensor]) -> dict[str, np.ndarray]:
    """Attention on the sink of each head."""
    values = torch.stack(list(mass.values())).numpy()
    picture = pictures.heat_map(
        100 * values,
        rows=[f"layer {layer}" for layer in mass],
        columns=[f"head {head}" for head in range(values.shape[1])],
        title="attention on the sink",
        form="{:.0f}%",
    )
    return {"attention/sink_mass": picture}


def kinds_table(routing: Routing, kind_of_token: torch.Tensor) -> dict[str, Any]:
    """Which experts take which kinds of token, as JSON; a kind that did not occur is left out."""
    share, counts = share_by_kind(routing, kind_of_token, len(KINDS))
    seen = [kind for kind, count in enumerate(counts.tolist()) if count]
    return {
        "kinds": [KINDS[kind] for kind in seen],
        "tokens": counts[seen].tolist(),
        "layers": list(routing.layers),
        "experts": share.shape[-1],
        "share": [
            [[round(x, 4) for x in row] for row in layer] for layer in share[:, seen].tolist()
        ],
    }


def kinds_markdown(table: dict[str, Any]) -> str:
    """The table for people: percent of a kind's assignments to each expert, bold from twice even on."""
    experts, parts = table["experts"], []
    for layer, shares in zip(table["layers"], table["share"]):
        head = (
            f"| layer {layer} | tokens | "
            + " | ".join(f"expert {e}" for e in range(experts))
            + " |"
        )
        lines = [head, "|---" * (experts + 2) + "|"]
        for kind, count, row in zip(table["kinds"], table["tokens"], shares):
            cells = [f"**{x:.0%}**" if x * experts >= 2 else f"{x:.0%}" for x in row]
            lines.append(f"| {kind} | {count:,} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    even = f"Even would be {1 / experts:.1%} each; bold: at least twice that."
    return "\n\n".join([even, *parts])


def kinds_pictures(table: dict[str, Any]) -> dict[str, np.ndarray]:
    """The same as a picture per layer, as a multiple of an even share."""
    experts = table["experts"]
    return {
        f"moe/token_kinds/layer_{layer:02d}": pictures.heat_map(
            np.array(share) * experts,
            rows=table["kinds"],
            columns=[f"{e}" for e in range(experts)],
            title=f"layer {layer}: a kind's share per expert / even share",
            even=1.0,
            form="{:.1f}",
        )
        for layer, share in zip(table["layers"], table["share"])
    }
