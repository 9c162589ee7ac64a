"""The panels of a report in their order; each is made by a function that gives None without data."""

from __future__ import annotations

from collections.abc import Iterator

from training.report import curves, maps
from training.report.look import Look, Panel


def panels(look: Look) -> Iterator[Panel]:
    """Those that have data, in the order of what a person wants to know."""
    found = [
        curves.bits_per_byte(look),
        curves.loss(look),
        curves.curve(
            look,
            "optim/lr",
            "Learning rate",
            "as planned by schedule, warmup, decay",
            "learning rate",
        ),
        curves.grad_norm(look),
        curves.curve(
            look,
            "perf/tokens_per_second",
            "Speed",
            "training alone; higher is faster",
            "tokens / s",
            from_zero=True,
        ),
        curves.violation(look),
        curves.layered(
            look,
            "moe/entropy",
            "Router entropy",
            "1 = undecided, 0 = certain",
            "entropy / ln(experts)",
            top=1,
        ),
        curves.layered(
            look,
            "moe/margin",
            "Router margin",
            "probability of the first choice - of the second; higher = surer",
            "probability",
        ),
        curves.layered(
            look,
            "moe/flip_rate",
            "Flip rate",
            "validation tokens whose experts changed since the last evaluation; falls to 0",
            "share of tokens",
        ),
        curves.dead_experts(look),
        curves.layered(
            look,
            "moe/dropped",
            "Dropped assignments",
            "over the capacity of their expert; 0 is good",
            "share of assignments",
        ),
        *maps.load_maps(look),
        *maps.kinds_maps(look),
        *maps.sink_maps(look),
        curves.loss_by_position(look),
        curves.grad_norm_by_kind(look),
        curves.curve(
            look,
            "perf/mfu",
            "Utilisation",
            "of the GPU's peak FLOPs; higher is better",
            "share of peak",
            from_zero=True,
        ),
    ]
    return (panel for panel in found if panel is not None)
