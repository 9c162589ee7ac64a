"""Write each record to metrics.jsonl, to TensorBoard and to the progress line; read metrics.jsonl."""

import contextlib
import itertools
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.files import CannotWrite, append_line, atomic_write, parse_json, writing

SHOWN = {  # tags that the progress line shows, in this order
    "train/loss": "loss {:.4f}",
    "post/reward": "reward {:.3f}",
    "train/bits_per_byte": "{:.3f} bits/byte",
    "val/bits_per_byte": "val {:.3f} bits/byte",
    "perf/tokens_per_second": "{:,.0f} tokens/s",
    "data/epoch": "pass {:.0f}",  # over the data, counted from 1 here
}

COMPARED = ("loss", "bits_per_byte", "tokens", "tokens_per_second")  # final figures on TensorBoard


class MetricsWriter:
    """Writes OUT_DIR/metrics.jsonl, a TensorBoard folder (if one is given) and a progress line.

    resume_step: continue after that step and drop the later records. A checkpoint must therefore be saved
    after the records of its own step. A TensorBoard folder without event files is new: it gets the page of
    charts and the records until that step.
    The progress line goes to stderr: a bar on a terminal, otherwise a line for each record.
    """

    def __init__(
        self, out_dir: str | Path, *, tensorboard_dir: str | Path | None, resume_step: int | None = None
    ):
        self.stream = sys.stderr or open(os.devnull, "w")  # None: Python without a stderr
        self.tensorboard, self.tensorboard_dir = None, tensorboard_dir
        self.new_board = tensorboard_dir is not None and not has_events(tensorboard_dir)
        path = Path(out_dir) / "metrics.jsonl"
        with contextlib.ExitStack() as stack:
            if tensorboard_dir is not None:
                summary_writer = require_tensorboard()
                stack.enter_context(event_thread_errors_told_once())
                purge_step = None if resume_step is None else resume_step + 1
                with writing(tensorboard_dir):
                    self.tensorboard = summary_writer(tensorboard_dir, purge_step=purge_step)
                stack.callback(self._close_tensorboard)
            if resume_step is not None:
                drop_records_after(path, resume_step)
                if self.new_board and path.exists():
                    self._write_earlier(read_metrics(path))
            with writing(path):
                self.file = stack.enter_context(open(path, "ab", buffering=0))
            self._open = stack.pop_all()
        form = "{percentage:3.0f}%|{bar:20}| {desc}"
        self.bar = tqdm(total=1.0, bar_format=form, file=self.stream) if self.stream.isatty() else None
        self.latest: dict[str, float] = {}  # newest value of each tag in SHOWN
        self.began: tuple[float, float] | None = None  # progress and clock at the first record

    def log(self, step: int, record: dict[str, Any], *, progress: float | None = None) -> None:
        """Record {tag: number or () tensor}; with progress, in [0, 1], also update the progress line."""
        numbers = {tag: v if isinstance(v, int) else float(v) for tag, v in record.items()}
        self._append(step, {tag: v if math.isfinite(v) else None for tag, v in numbers.items()})
        if self.tensorboard:
            with writing(self.tensorboard_dir):
                for tag, number in numbers.items():
                    self.tensorboard.add_scalar(tag, number, step)
        self.latest |= {tag: v + (tag == "data/epoch") for tag, v in numbers.items() if tag in SHOWN}
        if progress is not None:
            self._show(step, progress)

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Record a text."""
        self.show(step, tag, markdown, markdown=lambda: markdown)

    def show(
        self,
        step: int,
        tag: str,
        value: Any,
        *,
        pictures: Callable[[], dict[str, Any]] = dict,
        markdown: Callable[[], str] | None = None,
    ) -> None:
        """Record any JSON value.

        pictures, which returns {tag: (height, width, 3) uint8}, and markdown are called only for TensorBoard.
        """
        self._append(step, {tag: value})
        if self.tensorboard:
            drawn, table = pictures(), markdown and markdown()
            with writing(self.tensorboard_dir):
                for name, pixels in drawn.items():
                    self.tensorboard.add_image(name, pixels, step, dataformats="HWC")
                if table:
                    self.tensorboard.add_text(tag, table, step)

    def layout(self, charts: dict[str, dict[str, list[str]]]) -> None:
        """Set the page of custom charts in TensorBoard: {group: {title of a chart: patterns of its tags}}.

        A folder that is not new has it.
        """
        if self.new_board:
            page = {
                group: {title: ["Multiline", tags] for title, tags in within.items()}
                for group, within in charts.items()
            }
            with writing(self.tensorboard_dir):
                self.tensorboard.add_custom_scalars(page)

    def final(
        self, step: int, config: dict[str, Any], figures: dict[str, float], texts: dict[str, str]
    ) -> None:
        """Record the closing figures, under final/, and texts as the last line of metrics.jsonl.

        A run that has this line is finished, including its TensorBoard files. TensorBoard shows the main
        figures beside the configuration, on its page that compares runs, and not as curves of one point.
        """
        if self.tensorboard:
            plain = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in config.items()}
            results = {f"hparam/{name}": float(figures[name]) for name in COMPARED}
            with writing(self.tensorboard_dir):
                for tag, markdown in texts.items():
                    self.tensorboard.add_text(tag, markdown, step)
                self.tensorboard.add_hparams(plain, results, run_name=".")
                self.tensorboard.flush()
        self._append(step, texts | {f"final/{name}": value for name, value in figures.items()})

    def sync(self) -> None:
        """Force metrics.jsonl to the disk, so that it survives a power cut, and TensorBoard's records to its file."""
        with writing(self.file.name):
            os.fsync(self.file.fileno())
        if self.tensorboard:
            with writing(self.tensorboard_dir):
                self.tensorboard.flush()

    def say(self, line: str) -> None:
        """Print a line of text, above the progress bar if there is one. A line that nobody can read is lost."""
        with contextlib.suppress(OSError):
            tqdm.write(line, file=self.stream)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self._open.close()

    def _append(self, step: int, entries: dict[str, Any]) -> None:
        append_line(self.file, json.dumps({"step": step, **entries}, allow_nan=False))

    def _write_earlier(self, records: list[dict[str, Any]]) -> None:
        """Write to TensorBoard the numbers and texts of earlier records."""
        with writing(self.tensorboard_dir):
            for record in records:
                for tag, value in record.items():
                    if isinstance(value, str):
                        self.tensorboard.add_text(tag, value, record["step"])
                    elif isinstance(value, (int, float)) and tag != "step":
                        self.tensorboard.add_scalar(tag, value, record["step"])
        self.say(f"wrote the earlier records to {self.tensorboard_dir}/, without pictures")

    def _close_tensorboard(self) -> None:
        with writing(self.tensorboard_dir):
            self.tensorboard.close()

    def _show(self, step: int, progress: float) -> None:
        now = time.monotonic()
        start, clock = self.began = self.began or (progress, now)
        parts = [form.format(self.latest[tag]) for tag, form in SHOWN.items() if tag in self.latest]
        if progress > start:
            left = (now - clock) / (progress - start) * (1 - progress)
            parts.append(f"{tqdm.format_interval(left)} left")
        if self.bar is not None:
            self.bar.n = progress
            self.bar.set_description_str(f"step {step}  " + "  ".join(parts))
        else:
            self.say(f"step {step}  {progress:4.0%}  " + "  ".join(parts))


def new_run_dir(out_dir: str | Path, root: str | Path) -> Path:
    """Create and return the TensorBoard folder of a new run, ROOT/<name of out_dir>-<time>."""
    name = f"{Path(out_dir).resolve().name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        path = Path(root) / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # another run began in the same second
            continue
        except OSError as error:
            raise CannotWrite(path, error) from error
        return path


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read the records of a metrics.jsonl in order. A number that was not finite becomes NaN."""
    return [
        {tag: math.nan if value is None else value for tag, value in record.items()}
        for _, record in _whole_lines(Path(path))
    ]


def has_events(tensorboard_dir: str | Path) -> bool:
    """Whether TensorBoard has records in a folder."""
    return any(Path(tensorboard_dir).glob("*tfevents*"))


def drop_records_after(path: str | Path, step: int) -> None:
    """Rewrite a metrics.jsonl, if it exists, without the records after `step` and any closing figures."""
    path = Path(path)
    if path.exists():
        kept = [
            line
            for line, record in _whole_lines(path)
            if record["step"] <= step and "final/loss" not in record
        ]
        with atomic_write(path) as file:
            file.write("".join(line + "\n" for line in kept).encode())


def _whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("not a record")
        except ValueError:
            if number == len(lines):
                return  # the end of the file, or a line that a kill cut short
            raise ValueError(
                f"{path}: each line must be a JSON object with a step, and line {number} is {line[:40]!r}; "
                "delete that line"
            ) from None
        yield line, record


def require_tensorboard():
    """Return the SummaryWriter class of torch; ValueError if the package tensorboard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "use_tensorboard needs the package tensorboard, which is not installed; "
            "run pip install tensorboard, or pass --no-use_tensorboard"
        ) from None
    return SummaryWriter


@contextlib.contextmanager
def event_thread_errors_told_once() -> Iterator[None]:
    """Keep the thread of TensorBoard from printing the traceback of an OSError.

    The thread also keeps the error, and the next call of the writer raises it.
    """
    before = threading.excepthook

    def hook(args: Any) -> None:
        told = type(args.thread).__module__ == "tensorboard.summary.writer.event_file_writer"
        if not (told and isinstance(args.exc_value, OSError)):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
