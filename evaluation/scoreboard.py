"""Sort language models by bits per byte, with what each costs: a table, a picture and a JSON.

    python -m evaluation.scoreboard RUN_OR_FOLDER... [--data FILE] [--stories N] [--out FOLDER]

RUN_OR_FOLDER is any model of evaluation.ruler, or a folder whose subfolders are such models. FOLDER gets

  ruler.json        the numbers of evaluation.ruler; finished models are kept, and the same command goes on
  scoreboard.md     the table
  scoreboard.png    bits per byte with their intervals
  scoreboard.json   all figures, and where they come from

Columns: bits per byte with the 95 % interval over documents; the difference to the row above, document by document,
with its own interval; parameters, and those that one token passes through; FLOPs per token of training in rows as
long as the ruler's window; tokens per second of decoding (evaluation.inference_cost, all models in turn), on a CPU per
CPU second; and grammar, consistency and variety from a stories.json of evaluation.stories in the folder of the model.
"-" stands for what is not known: speed is measured only for models that this project runs itself.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.files import atomic_write, read_json, reading, write_json_atomic
from common.script import Parser, exit_code, one_line, say
from common.threads import set_threads
from evaluation import ruler
from evaluation.from_checkpoint import require_at_least

SCORES = "stories.json"
GRAMMAR, CONSISTENCY, VARIETY = "grammar", "consistency", "distinct_3"


def models_in(paths: Sequence[Path]) -> list[Path]:
    """The paths, with a folder that is no model replaced by its subfolders that are, in the order of their names."""
    found = []
    for path in paths:
        inside = sorted(child for child in path.iterdir() if is_model(child)) if path.is_dir() else []
        found += inside if inside and not is_model(path) else [path]
    if len(set(found)) < len(found):
        raise ValueError("a model was given twice; name each once")
    return found


def is_model(path: Path) -> bool:
    """Whether a folder is a run with a checkpoint, weights of transformers, or holds a GGUF file."""
    from architecture.checkpoint import checkpoints, is_model_folder
    from architecture.shards import is_sharded

    return path.is_dir() and (
        is_model_folder(path) or is_sharded(path) or bool(checkpoints(path)) or any(path.glob("*.gguf"))
    )


def costs(path: Path, program: str, window: int) -> dict[str, Any]:
    """parameters, active and flops_per_token of a model whose config this project reads; else {}."""
    from architecture import checkpoint, registry
    from architecture.open_gpt_oss import gguf_file

    try:
        if program == "llama.cpp":
            config = gguf_file.read(path if path.is_file() else next(path.glob("*.gguf")))[0]
        else:
            state = registry.read_weights(checkpoint.find_checkpoint(path))
            config = registry.config_from_dict(state["model_name"], state["config"])
    except (ValueError, ImportError):
        return {}  # a model of another kind
    counts = config.parameter_counts()
    return {
        "parameters": counts["total"],
        "active": counts["active"],
        "flops_per_token": config.flops_per_token(window),
    }


def story_scores(path: Path) -> dict[str, dict[str, Any]]:
    """{score: {"mean", "interval"}} of a model from the stories.json of evaluation.stories beside it; {} without."""
    from architecture.checkpoint import find_checkpoint

    file = (path if path.is_dir() else path.parent) / SCORES
    if not file.is_file():
        return {}
    with reading(file, "scores of evaluation.stories", way_out="write it again, or move it away"):
        content = read_json(file)
        pairs, texts = content["pairs"]["scores"], content["texts"]
        file_of_model = find_checkpoint(path)
        same = [key for key in pairs if Path(key).resolve() == file_of_model.resolve()]
        mine = same or [key for key in pairs if Path(key).name == file_of_model.name]  # the folder was moved
        if len(mine) != 1:
            say(f"{file} has scores of {', '.join(pairs)}, and none is that of {path}; they are left out")
            return {}
        parts = {GRAMMAR: pairs, CONSISTENCY: pairs, VARIETY: texts}
        return {score: part[mine[0]][score] for score, part in parts.items() if score in part[mine[0]]}


def rows_of(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """The models of ruler.json, the lowest bits per byte first, each with its difference to the row above."""
    sizes = measured["bytes_of_documents"]
    entries = sorted(measured["models"], key=lambda entry: entry["bits_per_byte"])
    rows = []
    for above, entry in zip([None, *entries], entries):
        row = {name: value for name, value in entry.items() if name != "nats_of_documents"}
        if above is not None:
            both = zip(entry["nats_of_documents"], above["nats_of_documents"])
            value, half = ruler.bits_per_byte([mine - theirs for mine, theirs in both], sizes)
            low, high = (None, None) if half is None else (value - half, value + half)
            row["above"] = {"difference": value, "low": low, "high": high}
        path = Path(entry["model"])
        row |= costs(path, entry["program"], entry["context"])
        row["stories"] = story_scores(path)
        rows.append(row)
    return rows


def add_speeds(rows: list[dict[str, Any]], tokens: int, device: str, rounds: int | None) -> None:
    """Measure the models that this project runs, in turn, and add "speed" to their rows."""
    from evaluation.inference_cost import measure

    ours = [row for row in rows if "active" in row and row["program"] != "llama.cpp"]
    if not ours:
        return
    paths = [Path(row["model"]) for row in ours]
    try:
        found = measure(paths, tokens, device, rounds)
    except ValueError as error:  # the scores are there, and do not depend on it
        say(f"the speed is left out: {one_line(error)}")
        return
    for row, cost in zip(ours, found):
        row["speed"] = cost


def decode_speed(row: dict[str, Any]) -> float | None:
    speed = row.get("speed", {})
    return speed.get("decode_tokens_per_cpu_second", speed.get("decode_tokens_per_second"))


# ---------------------------------------------------------------------------------------------------- what is shown
def as_markdown(found: dict[str, Any]) -> str:
    """The table, with what its numbers are numbers of."""
    rows, data = found["models"], found["data"]
    per_cpu = any("decode_tokens_per_cpu_second" in row.get("speed", {}) for row in rows)
    heads = ["model", "bits per byte", "95 %", "to the row above", "parameters", "active", "FLOPs per token"]
    heads += [f"decoding, tokens per {'CPU ' if per_cpu else ''}second", GRAMMAR, CONSISTENCY, "variety"]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        above, scores = row.get("above"), row["stories"]
        lines.append([
            f"`{row['model']}`", f"{row['bits_per_byte']:.4f}", interval(row["low"], row["high"]),
            "-" if above is None else f"{above['difference']:+.4f} ({interval(above['low'], above['high'])})",
            number(row["parameters"]), number(row.get("active")), number(row.get("flops_per_token")),
            number(decode_speed(row)),
            *(score_cell(scores.get(name)) for name in (GRAMMAR, CONSISTENCY, VARIETY)),
        ])  # fmt: skip
    told = [
        f"Ruler `{found['ruler_sha256'][:12]}`, data `{data['sha256'][:12]}` ({data['name']}, {data['documents']:,} "
        f'documents, {data["bytes"]:,} bytes). Intervals of bits per byte are over documents; "to the row above" is '
        "taken document by document.",
    ]
    rates = [rate for row in rows for rate in row.get("speed", {}).get("matmul_gflops_each_round", ())]
    if rates:
        told.append(
            f"During the measurements of speed, a fixed product of matrices ran at {min(rates):,.0f} to "
            f"{max(rates):,.0f} GFLOP/s."
        )
    told += [f"No number: {sentence}" for sentence in found["without_a_number"]]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", "\n\n".join(told), ""])


def interval(low: float | None, high: float | None) -> str:
    return "-" if low is None else f"{low:.4f} to {high:.4f}"


def score_cell(score: dict[str, Any] | None) -> str:
    if not score or score["mean"] is None:
        return "-"
    low, high = score["interval"] or (None, None)
    return f"{score['mean']:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")


def number(value: float | None) -> str:
    """Three digits and a unit."""
    if value is None:
        return "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def draw(found: dict[str, Any], path: Path) -> None:
    """Write a PNG: a line for each model with its interval, the best on top."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot would keep global state
    from matplotlib.figure import Figure

    from evaluation.report.look import COLOURS, clip_name
    from evaluation.report.page import DPI, STYLE

    rows, data = found["models"], found["data"]
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 1.5 + 0.35 * len(rows)), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for place, row in enumerate(rows):
            value = row["bits_per_byte"]
            ends = (value, value) if row["low"] is None else (row["low"], row["high"])
            axes.plot(ends, (place, place), color=COLOURS[0], lw=2, solid_capstyle="butt")
            axes.plot(value, place, "o", color=COLOURS[0], ms=5)
            label = f"{value:.4f}" + (f", {number(row['active'])} active" if "active" in row else "")
            axes.annotate(
                label, (ends[1], place), (6, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set_yticks(range(len(rows)), [clip_name(row["model"], 40) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        left, right = axes.get_xlim()
        axes.set_xlim(left, right + 0.25 * (right - left))  # room for the label of the last one
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(
            f"bits per byte with 95 % interval over {data['documents']:,} documents; ruler "
            f"{found['ruler_sha256'][:12]}, data {data['sha256'][:12]}"
        )
        with atomic_write(path) as file:
            figure.savefig(file, format="png", dpi=DPI)


# ------------------------------------------------------------------------------------------------------ the command
def run(argv: list[str] | None) -> None:
    title = "Models sorted by bits per byte, with intervals and costs, as a table, a picture and a JSON."
    parser = Parser(prog="python -m evaluation.scoreboard", allow_abbrev=False, description=title)
    add = parser.add_argument
    models = "a model of evaluation.ruler, or a folder whose subfolders are models"
    add("models", type=Path, nargs="+", metavar="RUN_OR_FOLDER", help=models)
    ruler.add_flags(parser)
    add(
        "--tokens",
        type=int,
        default=256,
        metavar="N",
        help="of a text whose decoding is timed (default: 256)",
    )
    add(
        "--rounds",
        type=int,
        metavar="N",
        help="measurements of each model's speed (default: 25, or fewer of slow ones)",
    )
    add("--no_speed", action="store_true", help="leave out the speed")
    add(
        "--out", type=Path, default=Path("runs/scoreboard"), metavar="FOLDER", help="default: runs/scoreboard"
    )
    args = parser.parse_args(argv)
    require_at_least(args, stories=1, threads=1, rounds=1, tokens=2)
    data = ruler.read_data(args.data, args.stories)

    from common.device import choose_device
    from common.provenance import provenance

    if told := set_threads(args.threads, common.begin.STARTED):
        say(told)
    paths = models_in(args.models)
    args.out.mkdir(parents=True, exist_ok=True)
    measured, failed = ruler.measure(paths, data, choose_device(args.device), args.out / "ruler.json", say)
    asked = set(map(str, paths))
    measured["models"] = [entry for entry in measured["models"] if entry["model"] in asked]
    if not measured["models"]:
        raise ValueError("no model has a number, so there is no scoreboard; see above")
    rows = rows_of(measured)
    if not args.no_speed:
        add_speeds(rows, args.tokens, args.device, args.rounds)
    found = {name: measured[name] for name in ("ruler_sha256", "data")} | provenance()
    found |= {"models": rows, "without_a_number": failed}
    write_json_atomic(args.out / "scoreboard.json", found)
    table = as_markdown(found)
    with atomic_write(args.out / "scoreboard.md") as file:
        file.write(table.encode())
    draw(found, args.out / "scoreboard.png")
    print(table, end="")
    if failed:
        raise ValueError(f"{len(failed)} of {len(paths)} models have no number, the others are in {args.out}")


if __name__ == "__main__":
    words = "interrupted; the models that are finished are kept in ruler.json, and the same command goes on"
    sys.exit(exit_code("evaluation.scoreboard", lambda: run(None), interrupted=words))
