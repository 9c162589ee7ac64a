"""The page: a header, rows of panels and a story, laid out in inches and saved as one PNG."""

from __future__ import annotations

import functools
import io
import logging
import math
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any

from common.settings import as_text
from evaluation.report import curves, maps
from evaluation.report.look import COLUMNS, GREY, Look, Panel, clip_name
from evaluation.report.read import LoggedRun, data_name, figure, short, status, validation_name
from evaluation.report.table import (
    dead_experts,
    differing_settings,
    in_short,
    max_violation,
    speed,
    training_tokens,
)

WIDTH, DPI = 16.0, 100  # inches and pixels per inch: 1600 pixels
MARGIN, GUTTER = 0.35, 0.25  # inches at the sides and between panels
ABOVE, BELOW = 0.62, 0.72  # inches above the axes for title and note, and below them for labels
STORY_RUNS, STORY_LINES = 3, 14
STYLE = {
    "font.family": "DejaVu Sans",  # part of matplotlib, so that the page looks the same on every machine
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": "#b0b0b0",
    "axes.labelcolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "text.parse_math": False,  # a story may contain dollar signs
    "axes.formatter.useoffset": False,
}


def page_png(look: Look) -> bytes:
    """The page as the bytes of a PNG."""
    from matplotlib import rc_context

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a story may contain any character
        file = io.BytesIO()
        draw_page(look).savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def draw_page(look: Look) -> Any:
    """The page as a matplotlib Figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot would keep global state
    from matplotlib.figure import Figure

    rows = in_rows(list(panels(look)))
    stories = newest_stories(look)
    header = header_lines(look)
    row_heights = [max(p.height for p in row) + ABOVE + BELOW for row in rows]
    story_height = 0.75 + 0.185 * max(len(lines) for *_, lines in stories) if stories else 0.0
    head_height = 0.95 + header_height(look, header)
    height = head_height + sum(row_heights) + story_height + MARGIN
    figure_ = Figure(figsize=(WIDTH, height), facecolor="white")
    FigureCanvasAgg(figure_)
    draw_header(figure_, look, header)
    top = head_height
    for row, row_height in zip(rows, row_heights):
        draw_row(figure_, row, top)
        top += row_height
    if stories:
        draw_stories(figure_, look, stories, top)
    return figure_


# ---------------------------------------------------------------------------------- rows


def in_rows(found: list[Panel]) -> list[list[Panel]]:
    """The panels in rows; draw_row() stretches a row that is not full."""
    rows: list[list[Panel]] = []
    for panel in found:
        used = sum(p.columns for p in rows[-1]) if rows else COLUMNS
        if panel.new_row or used + panel.columns > COLUMNS:
            rows.append([])
        rows[-1].append(panel)
    return rows


def draw_row(figure_, row: list[Panel], top: float) -> None:
    """Draw a row of panels `top` inches below the top of the page."""
    room = WIDTH - 2 * MARGIN - GUTTER * (len(row) - 1)
    unit = room / sum(panel.columns for panel in row)
    height = max(panel.height for panel in row)
    left = MARGIN
    for panel in row:
        wide = unit * panel.columns
        put(figure_, left, top + 0.16, panel.title, fontsize=11.5, fontweight="bold", color="black")
        put(figure_, left, top + 0.36, panel.note, fontsize=8.5, color=GREY)
        box = (left + panel.left, top + ABOVE, wide - panel.left - panel.right, height)
        ax = figure_.add_axes(as_share(figure_, *box))
        panel.draw(ax)
        left += wide + GUTTER


def as_share(figure_, left: float, top: float, wide: float, high: float) -> list[float]:
    """A box in inches from the upper left corner, as shares of the page from the lower left (matplotlib)."""
    width, height = figure_.get_size_inches()
    return [left / width, 1 - (top + high) / height, wide / width, high / height]


def put(figure_, left: float, top: float, text: str, **style: Any) -> Any:
    """A line of text with its middle `top` inches below the top of the page."""
    width, height = figure_.get_size_inches()
    style = {"va": "center", "ha": "left"} | style
    return figure_.text(left / width, 1 - top / height, text, **style)


# ---------------------------------------------------------------------------------- header

LINE, HEAD_LINE = 0.235, 175  # inches, characters
IN_SHORT = ("model", "num_hidden_layers", "num_experts", "experts_per_token")  # in_short() names these


def header_lines(look: Look) -> list[list[str]]:
    """For each run the lines below or beside its name."""
    if run := look.single:
        start = (run.config.get("starts") or [{}])[-1]
        machine = " ".join(str(run.setting(n)) for n in ("device", "dtype") if run.setting(n))
        commit = start.get("commit") and f"commit {start['commit']}"
        facts = [in_short(run), _data(run), _joined([status(run), machine, commit])]
        command = f"$ {start['command']}" if "command" in start else ""
        command = textwrap.wrap(command, 150, subsequent_indent="    ")
        return [[line for line in facts if line] + command[:3]]
    differing = differing_settings(look.runs)
    found = []
    for number, run in enumerate(look.runs):
        own = ", ".join(f"{n} {v[number]}" for n, v in differing.items() if n not in IN_SHORT)
        line = _joined([_tally(run), in_short(run), own])
        found.append([line if len(line) < HEAD_LINE else line[: HEAD_LINE - 4] + " ..."])
    return found


def _joined(parts: list[Any]) -> str:
    return "   |   ".join(str(part) for part in parts if part)


def _data(run: LoggedRun) -> str:
    if not run.setting("dataset"):
        return ""
    return (
        f"data {data_name(run.setting('dataset'))}, validation {validation_name(run)}, "
        f"tokenizer {run.setting('tokenizer')}, {run.setting('optimizer')} lr {as_text(run.setting('lr'))}, "
        f"balance {run.setting('balance')}, seed {run.setting('seed')}"
    )


def _tally(run: LoggedRun) -> str:
    value = last_bits(run)
    bits = f"{figure(value)} bits per byte, " if math.isfinite(value) else ""
    return bits + status(run)


def last_bits(run: LoggedRun) -> float:
    """Bits per byte of the closing evaluation, or of the last so far."""
    return run.last_finite("final/bits_per_byte", "val/bits_per_byte")


def header_height(look: Look, header: list[list[str]]) -> float:
    return LINE * sum(map(len, header)) + (0.1 if look.single else 0.15)


def draw_header(figure_, look: Look, header: list[list[str]]) -> None:
    from matplotlib.lines import Line2D

    single = look.single
    title = single.name if single else f"{len(look.runs)} runs side by side"
    put(figure_, MARGIN, 0.42, clip_name(title, 38), fontsize=19, fontweight="bold")
    if single:
        draw_tiles(figure_, single)
    code = {"family": "DejaVu Sans Mono", "fontsize": 8, "color": GREY}
    width, height = figure_.get_size_inches()
    top = 0.82
    for run, lines in zip(look.runs, header):
        for line in lines:
            if single:
                style = code if line.startswith(("$ ", "    ")) else {"fontsize": 9.5}
                put(figure_, MARGIN, top, line, **style)
            else:
                x, y = (MARGIN / width, (MARGIN + 0.38) / width), 2 * [1 - top / height]
                swatch = figure_.add_artist(Line2D(x, y, lw=3, **look.style(run)))
                swatch.set_clip_on(False)
                name = clip_name(run.name)
                put(figure_, MARGIN + 0.5, top, name, fontsize=9.5, fontweight="bold")
                put(figure_, MARGIN + 3.3, top, line, fontsize=8.5, color="#333333")
            top += LINE


def tiles(run: LoggedRun) -> list[tuple[str, str]]:
    """The most important figures of a run."""
    violation, dead = max_violation(run), dead_experts(run)
    found = [
        (figure, last_bits(run), "bits per byte"),
        (figure, run.last_finite("final/loss", "val/loss"), "validation loss"),
        (short, training_tokens(run), "training tokens"),
        (figure, speed(run), "tokens / s"),
        (figure, violation[0] if violation else math.nan, "max violation"),
        (str, dead[0] if dead else math.nan, "dead experts"),
    ]
    return [(form(value), words) for form, value, words in found if math.isfinite(value)]


def draw_tiles(figure_, run: LoggedRun) -> None:
    """Draw the figures at the right of the run's name."""
    found = tiles(run)
    step = 1.42
    left = WIDTH - MARGIN - step * len(found)
    for place, (value, words) in enumerate(found):
        x = left + step * (place + 1)
        put(figure_, x, 0.40, value, fontsize=19, ha="right", color="#0072B2", fontweight="bold")
        put(figure_, x, 0.68, words, fontsize=8.5, ha="right", color=GREY)


# ---------------------------------------------------------------------------------- stories


def newest_stories(look: Look) -> list[tuple[LoggedRun, str, list[str]]]:
    """(run, step in words, lines) for the newest story of each of the first runs."""
    found = []
    for run in look.runs[:STORY_RUNS]:
        stories = (tag for tag in ("samples/final_1", "samples/story") if run.last(tag, "").strip())
        if tag := next(stories, None):
            found.append((run, f"step {run.last_step_of(tag):,}", run.last(tag)))
    across = {1: 205, 2: 98}.get(len(found), 62)  # characters to a line
    return [(run, where, wrapped(story, across)) for run, where, story in found]


def wrapped(story: str, across: int) -> list[str]:
    lines = [line for part in story.strip().split("\n") for line in textwrap.wrap(part, across)]
    if len(lines) > STORY_LINES:
        lines = [*lines[: STORY_LINES - 1], lines[STORY_LINES - 1] + " ..."]
    return ["".join(c if c.isprintable() else " " for c in line) for line in lines]


def draw_stories(figure_, look: Look, stories, top: float) -> None:
    wide = (WIDTH - 2 * MARGIN - GUTTER * (len(stories) - 1)) / len(stories)
    for place, (run, where, lines) in enumerate(stories):
        left = MARGIN + place * (wide + GUTTER)
        title = "A story" if look.single else f"A story: {clip_name(run.name)}"
        put(figure_, left, top + 0.16, title, fontsize=11.5, fontweight="bold")
        put(figure_, left, top + 0.36, f"sampled at {where}, not selected", fontsize=8.5, color=GREY)
        for number, line in enumerate(lines):
            put(figure_, left, top + 0.64 + 0.185 * number, line, fontsize=9, color="#222222")


def panels(look: Look) -> Iterator[Panel]:
    """The panels that have data, the most important first."""
    curve, layered = (functools.partial(of, look) for of in (curves.curve, curves.layered))
    found = [
        curves.bits_per_byte(look),
        curves.loss(look),
        curve("optim/lr", "Learning rate", "set by lr, schedule, warmup and decay", "learning rate"),
        curves.grad_norm(look),
        curve("perf/tokens_per_second", "Speed", "training alone; higher is faster", "tokens / s",
              large=True),
        curves.violation(look),
        layered("moe/entropy", "Router entropy", "1 = undecided, 0 = certain", "entropy / ln(experts)",
                top=1),
        layered("moe/margin", "Router margin",
                "probability of the first choice minus the second; higher = surer", "probability"),
        layered("moe/flip_rate", "Flip rate",
                "validation tokens whose experts changed since the last evaluation; falls to 0",
                "share of tokens"),
        curves.dead_experts(look),
        layered("moe/dropped", "Dropped assignments", "assignments above an expert's capacity; 0 is good",
                "share of assignments"),
        *maps.load_maps(look),
        *maps.kinds_maps(look),
        *maps.sink_maps(look),
        curves.loss_by_position(look),
        curves.grad_norm_by_kind(look),
        curve("perf/mfu", "Utilisation", "share of the GPU's peak FLOPs; higher is better", "share of peak",
              large=True),
    ]  # fmt: skip
    return (panel for panel in found if panel is not None)
