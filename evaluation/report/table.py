"""The part of a report in the terminal: figures side by side, and whether they can be compared."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from common.settings import as_text
from evaluation.report.bands import FREE
from evaluation.report.read import LoggedRun, data_name, figure, short, status, validation_name

NONE = "-"
GAP = "  "


def figures_table(runs: list[LoggedRun], width: int) -> str:
    """A row per figure and a column per run; columns that do not fit in `width` continue below."""
    rows = [(name, [words(run) for run in runs]) for name, words in FIGURES.items()]
    rows += [(name, values) for name, values in differing_settings(runs).items()]
    rows = [(name, cells) for name, cells in rows if set(cells) != {NONE}]
    heads = [run.name for run in runs]
    first = max(len(name) for name, _ in rows)
    wide = [max(len(heads[i]), *(len(cells[i]) for _, cells in rows)) for i in range(len(runs))]
    blocks, start = [], 0
    while start < len(runs):
        end, used = start + 1, first + len(GAP) + wide[start]
        while end < len(runs) and used + len(GAP) + wide[end] <= width:
            used += len(GAP) + wide[end]
            end += 1
        columns = range(start, end)
        lines = [
            GAP.join([name.ljust(first), *(cells[i].rjust(wide[i]) for i in columns)])
            for name, cells in [("", heads), *rows]
        ]
        blocks.append("\n".join(line.rstrip() for line in lines))
        start = end
    return "\n\n".join(blocks)


# ------------------------------------------------------------------------------------ one figure


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _cell(value: float | None, form: Callable[[float], str] = _count) -> str:
    return NONE if value is None or not math.isfinite(value) else form(value)


def training_tokens(run: LoggedRun) -> float:
    """The training tokens so far; NaN if not recorded."""
    return run.last_finite("final/tokens", "data/tokens")


def speed(run: LoggedRun) -> float:
    """Training tokens per second of the whole run; before it has finished, the median so far."""
    final = run.last_finite("final/tokens_per_second")
    rates = run.series("perf/tokens_per_second").values
    return final if math.isfinite(final) or not len(rates) else float(np.median(rates))


def _score(run: LoggedRun, name: str) -> str:
    if not run.finished:
        return _cell(run.last_finite(f"val/{name}"), "{:.4f} so far".format)
    # Old records have final/loss_standard_error, over tokens as if they were independent: not shown.
    half_width = run.last_finite(f"final/{name}_half_width")
    told = f"{run.last_finite(f'final/{name}'):.4f}"
    return told if math.isnan(half_width) else f"{told} +- {half_width:.4f}"


def max_violation(run: LoggedRun) -> tuple[float, float] | None:
    """Mean over layers and worst layer, of all tokens since the last evaluation or else of the last batch."""
    layers = run.layers("moe/max_violation_since_eval") or run.layers("moe/max_violation")
    return layers and tuple(layers.reduced(how).values[-1] for how in (np.mean, np.max))


def _violation(run: LoggedRun) -> str:
    found = max_violation(run)
    return " / ".join(map(figure, found)) if found else NONE


def dead_experts(run: LoggedRun) -> tuple[int, int | None] | None:
    """(number of dead experts, number of experts), over all layers."""
    layers = run.layers("moe/dead_experts")
    if layers is None:
        return None
    experts = run.setting("num_experts")
    dead = int(layers.reduced(np.sum).values[-1])
    return dead, len(layers.values) * experts if experts else None


def _dead(run: LoggedRun) -> str:
    found = dead_experts(run)
    return " of ".join(str(n) for n in found if n is not None) if found else NONE


def _of_layers(run: LoggedRun, tag: str) -> str:
    layers = run.layers(tag)
    return NONE if layers is None else figure(layers.reduced(np.mean).values[-1])


FIGURES: dict[str, Callable[[LoggedRun], str]] = {
    "status": status,
    "parameters": lambda run: _cell(run.parameters("total")),
    "active per token": lambda run: _cell(run.parameters("active")),
    "training tokens": lambda run: _cell(training_tokens(run)),
    "training seconds": lambda run: _cell(run.last_finite("final/seconds", "perf/seconds")),
    "tokens per second": lambda run: _cell(speed(run)),
    "validation loss, nats/token": lambda run: _score(run, "loss"),
    "bits per byte": lambda run: _score(run, "bits_per_byte"),
    "train loss, last batch": lambda run: _cell(run.last_finite("train/loss"), "{:.4f}".format),
    "gradient norm, last batch": lambda run: _cell(run.last_finite("optim/grad_norm"), figure),
    "max violation, mean / worst layer": _violation,
    "dead experts": _dead,
    "router entropy, mean of layers": lambda run: _of_layers(run, "moe/entropy"),
    "flip rate, mean of layers": lambda run: _of_layers(run, "moe/flip_rate"),
}


def differing_settings(runs: list[LoggedRun]) -> dict[str, list[str]]:
    """{setting: value of each run} for the settings that can change a curve and differ between the runs."""
    runs_of = [run.config.get("train", {}) | run.config.get("model", {}) for run in runs]
    names = {name: None for config in runs_of for name in config}  # in order, once
    found = {}
    for name in names:
        if name in FREE - {"seed", "dtype"}:
            continue
        values = [config.get(name, NONE) for config in runs_of]
        shown = [value if value == NONE else _setting(name, value) for value in values]
        if len(set(shown)) > 1:
            found[name] = shown
    return found


def _setting(name: str, value) -> str:
    if name in ("dataset", "val_dataset"):
        return str(data_name(value) or "none")
    return as_text(tuple(value) if isinstance(value, list) else value)


# ----------------------------------------------------------------------------------- do they compare


def comparability(runs: list[LoggedRun]) -> list[str]:
    """A line for each reason why figures of these runs cannot be compared."""
    lines, one_tokenizer = [], len({_tokenizer(run) for run in runs}) == 1
    for words, of, so in REASONS:
        values = {run.name: of(run) for run in runs}
        if len({value for value in values.values() if value is not None}) > 1:
            if of is not _scored or one_tokenizer:
                said = ", ".join(f"{name}: {value}" for name, value in values.items())
                lines.append(f"{words} differ ({said}): {so}")
    if len(runs) > 1:
        unknown = "has no config.json, so it is not known whether it can be compared"
        lines += [f"{run.name} {unknown}" for run in runs if not run.config]
    return lines


def _tokenizer(run: LoggedRun) -> str | None:
    recorded = run.config.get("tokenizer", {})
    name, sha = recorded.get("name", run.setting("tokenizer")), recorded.get("sha256")
    return f"{name} {sha[:8]}" if sha else name


def _scored(run: LoggedRun) -> int | None:
    return run.last("final/validation_tokens")


REASONS: tuple[tuple[str, Callable[[LoggedRun], object], str], ...] = (  # what differs, and what follows
    ("tokenizers", _tokenizer, "losses cannot be compared, bits per byte can"),
    ("validation data", validation_name, "neither losses nor bits per byte can be compared"),
    ("eval_tokens", lambda run: run.setting("eval_tokens"),
     "the curves are from different validation tokens and cannot be compared"),
    ("final_eval_tokens", lambda run: run.setting("final_eval_tokens") or "all",
     "the closing figures are from different validation tokens and cannot be compared"),
    ("block_size", lambda run: run.setting("block_size"),
     "the amount of text before a scored token differs, which changes bits per byte too"),
    ("training data", lambda run: data_name(run.setting("dataset")),
     "differences may come from the data as well as from the models"),
    ("validation tokens of the closing figures", _scored, "the closing figures cannot be compared"),
)  # fmt: skip


def in_short(run: LoggedRun) -> str:
    """The model and its parameters in a few words."""
    size, kind = run.setting("model_size"), run.setting("model")
    words = [" ".join(str(w) for w in (kind, size) if w)] if kind or size else []
    if run.parameters("total"):
        words.append(f"{short(run.parameters('total'))} parameters")
        words.append(f"{short(run.parameters('active') or math.nan)} active")
    if run.setting("num_hidden_layers"):
        words.append(f"{run.setting('num_hidden_layers')} layers")
    if run.setting("num_experts") and run.setting("experts_per_token"):
        words.append(f"{run.setting('num_experts')} experts, {run.setting('experts_per_token')} per token")
    return ", ".join(words)
