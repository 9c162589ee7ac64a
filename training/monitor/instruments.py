"""Numbers, pictures and a table about the routers and the attention, from one evaluation.

All of it describes the fixed validation tokens, except the load since the last evaluation, which counts
training tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from training.monitor.routing import (
    MARGINS,
    Routing,
    dead_experts,
    flip_rate,
    max_violation,
    share_by_kind,
)
from training.monitor.token_kinds import KINDS


def by_layer(tag: str, layers: tuple[int, ...], values: torch.Tensor) -> dict[str, float]:
    """{tag/layer_NN: value}"""
    return {f"{tag}/layer_{layer:02d}": value for layer, value in zip(layers, values.tolist())}


def router_record(
    routing: Routing, before: torch.Tensor | None, trained_load: torch.Tensor | None
) -> dict[str, float]:
    """Return the state of the routers, layer by layer.

    before: (L, N, k) the choices of the previous evaluation; None at the first one.
    trained_load: (L, E) training assignments since then; None if there was no training.
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


def margin_record(layers: tuple[int, ...], margins: torch.Tensor) -> dict[str, float]:
    """Return the median margin of the choice, and the share of tokens under each of MARGINS, layer by layer.

    margins: (L, 1 + len(MARGINS)), or (L, 0) for {}; see choice_margins.
    """
    tags = ("moe/choice_margin", *(f"moe/choice_margin_under_{bound}" for bound in MARGINS))
    return {
        name: v for tag, column in zip(tags, margins.T) for name, v in by_layer(tag, layers, column).items()
    }


def update_record(ratios: torch.Tensor) -> dict[str, float]:
    """Return the 10th, 50th and 90th percentile over layers and experts, for each matrix of an expert.

    ratios: (L, 2, E), update over weight of mlp1 and mlp2; see ExpertUpdates.
    """
    flat = ratios.cpu().double().transpose(0, 1).flatten(1)  # (2, L * E)
    shares = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    found = torch.quantile(flat, shares, dim=1).T.tolist()
    return {
        f"moe/update_to_weight/{matrix}_{name}": value
        for matrix, row in zip(("mlp1", "mlp2"), found, strict=True)
        for name, value in zip(("p10", "median", "p90"), row)
    }


def load_figures(routing: Routing | None) -> dict[str, float]:
    """Measure how evenly the experts share all tokens of an evaluation; {} for a model without routers.

    Max violation is MaxVio of arXiv:2408.15664, where it is also measured over the whole validation set.
    dead_experts counts those of all layers.
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
    """Return the mean loss of the positions (or segments) 0, 1, 2-3, 4-7, ... that have scored tokens.

    sums: (N, 2), nats and tokens of each position.
    """
    length, record = len(sums), {}
    for start in [0, *(2**n for n in range(length.bit_length()) if 2**n < length)]:
        nats, tokens = sums[start : max(1, 2 * start)].sum(0).tolist()
        if tokens:
            record[f"{tag}/from_{start:04d}"] = nats / tokens
    return record


def sink_record(mass: dict[int, torch.Tensor]) -> dict[str, float]:
    """Return a number for each head; mass: {layer: (H,)}."""
    return {
        f"attention/sink_mass/layer_{layer:02d}/head_{head:02d}": value
        for layer, heads in mass.items()
        for head, value in enumerate(heads.tolist())
    }


def load_picture(
    share: torch.Tensor, layers: tuple[int, ...], tag: str = "moe/load", of: str = ""
) -> dict[str, np.ndarray]:
    """Draw the share of each expert in the assignments of its layer, (L, E), as a multiple of an even share."""
    picture = heat_map(
        (share * share.shape[-1]).numpy(),
        rows=[f"layer {layer}" for layer in layers],
        columns=[f"{e}" for e in range(share.shape[-1])],
        title=f"load of each expert{of} / even load",
        even=1.0,
        form="{:.2f}",
    )
    return {tag: picture}


def sink_picture(mass: dict[int, torch.Tensor]) -> dict[str, np.ndarray]:
    """Draw the attention of each head on its sink; mass: {layer: (H,)}."""
    values = torch.stack(list(mass.values())).numpy()
    picture = heat_map(
        100 * values,
        rows=[f"layer {layer}" for layer in mass],
        columns=[f"head {head}" for head in range(values.shape[1])],
        title="attention on the sink",
        form="{:.0f}%",
    )
    return {"attention/sink_mass": picture}


def kinds_table(routing: Routing, kind_of_token: torch.Tensor) -> dict[str, Any]:
    """Return the share of each expert in each kind of token, as JSON without the kinds that did not occur."""
    share, counts = share_by_kind(routing, kind_of_token, len(KINDS))
    seen = [kind for kind, count in enumerate(counts.tolist()) if count]
    return {
        "kinds": [KINDS[kind] for kind in seen],
        "tokens": counts[seen].tolist(),
        "layers": list(routing.layers),
        "experts": share.shape[-1],
        "share": [[[round(x, 4) for x in row] for row in layer] for layer in share[:, seen].tolist()],
    }


def kinds_markdown(table: dict[str, Any]) -> str:
    """Format the table: percent of the assignments of a kind, bold from twice an even share."""
    experts, parts = table["experts"], []
    for layer, shares in zip(table["layers"], table["share"]):
        head = f"| layer {layer} | tokens | " + " | ".join(f"expert {e}" for e in range(experts)) + " |"
        lines = [head, "|---" * (experts + 2) + "|"]
        for kind, count, row in zip(table["kinds"], table["tokens"], shares):
            cells = [f"**{x:.0%}**" if x * experts >= 2 else f"{x:.0%}" for x in row]
            lines.append(f"| {kind} | {count:,} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    even = f"Even would be {1 / experts:.1%} each; bold: at least twice that."
    return "\n\n".join([even, *parts])


def kinds_pictures(table: dict[str, Any]) -> dict[str, np.ndarray]:
    """Draw the table, one picture for each layer, as multiples of an even share."""
    experts = table["experts"]
    return {
        f"moe/token_kinds/layer_{layer:02d}": heat_map(
            np.array(share) * experts,
            rows=table["kinds"],
            columns=[f"{e}" for e in range(experts)],
            title=f"layer {layer}: a kind's share per expert / even share",
            even=1.0,
            form="{:.1f}",
        )
        for layer, share in zip(table["layers"], table["share"])
    }


def heat_map(
    values: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    form: str,
    even: float | None = None,
) -> np.ndarray:
    """Draw values (R, C) as an image, (height, width, 3) uint8, with the number of each cell in `form`.

    even: the value that is white; lower ones are blue, higher ones red, and twice as much is full red.
    If None, white is 0 and the largest value is full red.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot would keep global state
    from matplotlib.figure import Figure

    height, width = values.shape
    # The sizes are in inches and set by hand, because a layout engine takes longer than the drawing itself.
    cell = 0.55 if width <= 16 else 8.8 / width
    left, right, above, below = 0.07 * max(map(len, rows)) + 0.15, 0.95, 0.32, 0.3
    wide = max(cell * width + left + right, 0.085 * len(title))
    high = 0.3 * height + above + below
    figure = Figure(figsize=(wide, high), dpi=110)
    canvas = FigureCanvasAgg(figure)
    bottom, tall = below / high, 0.3 * height / high
    axes = figure.add_axes((left / wide, bottom, 1 - (left + right) / wide, tall))
    bar = figure.add_axes((1 - (right - 0.1) / wide, bottom, 0.15 / wide, tall))
    top = 2 * even if even is not None else max(float(values.max()), 1e-9)
    colors = "RdBu_r" if even is not None else "Reds"
    picture = axes.imshow(values, cmap=colors, vmin=0, vmax=top, aspect="auto")
    step = math.ceil(width / 32)  # with more labels they would touch each other
    axes.set_xticks(range(0, width, step), columns[::step], fontsize=8)
    axes.set_yticks(range(height), rows, fontsize=8)
    figure.text(0.5, 1 - 0.5 * above / high, title, fontsize=9, ha="center", va="center")
    if width <= 16:  # in more columns a number does not fit its cell
        for (row, column), value in np.ndenumerate(values):
            dark = value > 0.8 * top if even is None else not 0.2 * top < value < 0.8 * top
            color = "white" if dark else "black"
            label = form.format(value)
            axes.text(column, row, label, ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(picture, cax=bar, format=lambda value, _: form.format(value))
    bar.tick_params(labelsize=7)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
