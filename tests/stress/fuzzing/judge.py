"""Run one case in a folder of its own, in this process or as a command, and judge how it ended.

A case passes if its exit code is 0 or 2, without a traceback or a warning. With 2, the last line of stderr,
and only that line, is an error in words. A program that fails before it starts to work writes nothing. Every
file is whole, and time and memory are bounded.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import io
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from tests.stress.fuzzing.cases import AS_COMMANDS, Case
from tests.stress.fuzzing.silence import RESULTS, RULES

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = {  # module with main(argv), and the words of the command
    "train": ("train", ("train.py",)),
    "train_context": ("train_context", ("train_context.py",)),
    "ablate": ("ablate", ("ablate.py",)),
    "sample": ("sample", ("sample.py",)),
    "check": ("evaluation.check", ("-m", "evaluation.check")),
    "report": ("evaluation.report.__main__", ("-m", "evaluation.report")),
    "train_tokenizer": ("data.train_tokenizer", ("-m", "data.train_tokenizer")),
    "prepare": ("data.prepare", ("-m", "data.prepare")),
}
CPU_SECONDS, SECONDS = 20, 120  # limits of a case: computing, and in all
MEMORY = 2 * 10**9  # bytes that a case may take, and that the programs see as free
STEPS = 3  # steps of a training run; more would show nothing new
LONGEST_MESSAGE = 1000
# These words of Python do not explain to a user what is wrong with an input.
JARGON = re.compile(
    r"error: (\[Errno|embedded null|Expecting|Extra data|'\S+' codec|invalid literal|<|\(|\w+Error)|"
    r"has no attribute|not subscriptable|not callable|not iterable|not supported between|unhashable|"
    r"must be real number|'NoneType'|positional argument|keyword argument|out of range:|to unpack|"
    r"cannot be interpreted as|unsupported operand|could not convert|CHECK failed|<class|object at 0x"
)


class TooLong(BaseException):
    """The time of a case is over. It is a BaseException so that no program catches it."""


class Enough(BaseException):
    """The training run of a case has done its steps."""


class Ending(NamedTuple):
    """How a case ended."""

    code: int | None  # None: an exception or the time limit ended it
    out: str
    err: str
    error: str = ""  # the kind of an uncaught exception and its place in our code
    finished: bool = True  # False: the judge stopped it after STEPS


class Finding(NamedTuple):
    """What is wrong with how a case ended. Equal signatures mean the same fault."""

    signature: str
    details: str


def run_case(case: Case, materials: Path, folder: Path, *, real: bool = False) -> Finding | None:
    """Set up a case in `folder`, which must not exist, run and judge it, and remove the folder."""
    work = folder / "work"  # a file that a case writes to ".." is removed, too
    shutil.copytree(materials, work)
    try:
        for file in case.files:
            (work / file.file).parent.mkdir(parents=True, exist_ok=True)
            (work / file.file).write_bytes(file.build(materials))
        before = contents(work)
        ending = command(case, work) if real else call(case, work)
        return judge(case, ending, work, before) or in_silence(case, ending, work)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def contents(folder: Path) -> dict[str, str]:
    """Return {path: digest} of all files except locks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# --------------------------------------------------------------------------------------------------
# running


def call(case: Case, work: Path) -> Ending:
    """Call main(argv) in this process."""
    module = importlib.import_module(PROGRAMS[case.program][0])
    out, err = io.BytesIO(), io.BytesIO()
    streams = (
        io.TextIOWrapper(io.BytesIO(case.stdin), encoding="utf-8"),
        io.TextIOWrapper(out, encoding="utf-8", write_through=True),
        io.TextIOWrapper(err, encoding="utf-8", errors="backslashreplace", write_through=True),
    )
    error, code, finished = "", None, True
    saved = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = streams
    try:
        with contextlib.chdir(work), _bounded(), warnings.catch_warnings():
            warnings.simplefilter("always")
            code = module.main(list(case.argv))
    except Enough:
        finished = False
    except SystemExit as stop:  # --help
        code = stop.code or 0
    except BaseException as raised:
        if isinstance(raised, KeyboardInterrupt):
            raise
        error = _where(raised)
        traceback.print_exc()
    finally:
        sys.stdin, sys.stdout, sys.stderr = saved
        gc.collect()
    texts = (stream.getvalue().decode(errors="replace") for stream in (out, err))
    return Ending(code, *texts, error, finished)


def command(case: Case, work: Path) -> Ending:
    """Run the command in a process of its own. Training gets --dry_run, which reads no data, unless the case is
    of AS_COMMANDS or has a rule about what was read."""
    words = PROGRAMS[case.program][1]
    words = [str(ROOT / word) if word.endswith(".py") else word for word in words]
    short = case.program != "train" or case.kind in AS_COMMANDS or bool(case.rule)  # none of these is long
    dry = () if short else ("--dry_run",)
    # a lone surrogate stands for a byte, as in sys.argv
    line = [os.fsencode(word) for word in (sys.executable, *words, *case.argv, *dry)]
    if case.shell:
        line = ["bash", "-c", f'set -o pipefail; "$@" {case.shell}', "bash", *line]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    options = {"cwd": work, "env": environment, "stdin": pipe, "stdout": pipe, "stderr": pipe}
    with subprocess.Popen(line, **options) as process:
        if case.ctrl_c is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(case.ctrl_c)
            process.send_signal(signal.SIGINT)
        try:
            texts = process.communicate(case.stdin, SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return Ending(None, "", "", f"TooLong: {SECONDS} s")
    return Ending(process.returncode, *(text.decode(errors="replace") for text in texts))


@contextlib.contextmanager
def _bounded():
    """Limit time, memory and steps of the body. The programs see less free memory than the limit."""
    from common import device
    from training import reporting, trainer

    ticks = itertools.count(1)

    def compute(*_):
        raise TooLong

    def tick(*_):
        if next(ticks) == SECONDS:  # ticks and not a clock, so that a fuzzer may be paused
            raise TooLong

    train_step = trainer.train_step

    done = itertools.count()

    def counted(run, progress):
        if next(done) == STEPS or run.cfg.grad_accum > 100:
            raise Enough
        return train_step(run, progress)

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    clocks = (
        (signal.SIGALRM, tick, signal.ITIMER_REAL, (1, 1)),
        (signal.SIGPROF, compute, signal.ITIMER_PROF, (CPU_SECONDS, 0)),
    )
    handlers = {number: signal.signal(number, handler) for number, handler, *_ in clocks}
    for *_, timer, seconds in clocks:
        signal.setitimer(timer, *seconds)
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2 * MEMORY, hard))
    try:
        with (
            mock.patch.object(device, "available_memory", lambda _: MEMORY),
            mock.patch.object(trainer, "train_step", counted),
            mock.patch.object(reporting, "SAMPLE_TOKENS", 8),  # shorter stories take less time
        ):
            yield
    finally:
        for number, _, timer, _ in clocks:
            signal.setitimer(timer, 0)
            signal.signal(number, handlers[number])
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _where(raised: BaseException) -> str:
    """Return the kind of an exception and the last line of our code in its traceback."""
    frames = [f for f in traceback.extract_tb(raised.__traceback__) if f.filename.startswith(str(ROOT))]
    ours = [f for f in frames if "/fuzzing/" not in f.filename and "/.venv/" not in f.filename]
    place = f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}" if ours else "?"
    return f"{type(raised).__name__} at {place}"


# --------------------------------------------------------------------------------------------------
# judging


def judge(case: Case, ending: Ending, work: Path, before: dict[str, str]) -> Finding | None:
    """Return what is wrong with how a case ended, or None."""
    said = ending.err.strip("\n").splitlines()
    told = f"exit code {ending.code}, stderr:\n{ending.err[-3000:]}"

    def finding(what: str) -> Finding:
        same = re.sub(r"'[^']*'?|\"[^\"]*\"?|\d+", "N", what)[:90]  # parts of the input make no other fault
        return Finding(f"{case.program}: {same}", told)

    if ending.error:
        return Finding(f"{case.program}: {ending.error}", told)
    codes = (0, 2) + (1, 141) * (case.shell in RESULTS)
    if case.ctrl_c is not None:
        codes += (130, -signal.SIGINT)
        if "Traceback" in ending.err and not re.search(
            rf"{ROOT}/(?!\.venv)", ending.err
        ):  # Python was starting
            return None
    if ending.finished and ending.code not in codes:
        return finding(f"exit code {ending.code}")
    for line in said:
        if re.match(r"Traceback|.*Warning: |Exception ignored", line):
            return finding(re.sub(r"^.*/", "", line))
    if ending.code == 2 and (what := unclear(said)):
        return finding(what)
    after = contents(work)
    changed = [name for name in after if after[name] != before.get(name)]
    gone = [name for name in before if name not in after]
    began = "writing " in ending.err
    if (
        ending.code == 2 and not began and not case.shell and (changed or gone)
    ):  # output may be lost after the work
        return finding(f"failed and yet changed {_kind_of(changed[0] if changed else gone[0])}")
    for name in changed:
        if what := partial(work / name):
            return finding(f"{_kind_of(name)} is {what}")
    return None


def in_silence(case: Case, ending: Ending, work: Path) -> Finding | None:
    """Return what the rule of a case says, if the program did not refuse its input."""
    if not case.rule or ending.code == 2 and not case.shell:
        return None
    with contextlib.chdir(work):
        try:
            wrong = RULES[case.rule](case, ending)
        except ValueError as error:
            wrong = f"what was accepted cannot be read again: {error}"
    same = re.sub(r"'[^']*'?|\"[^\"]*\"?|\d+", "N", wrong)[:90]
    details = f"{wrong}\nexit code {ending.code}, stderr:\n{ending.err[-3000:]}"
    return Finding(f"{case.program}: in silence: {same}", details) if wrong else None


def unclear(said: list[str]) -> str:
    """Say why the lines of stderr are not one clear sentence; "" if they are."""
    errors = [line for line in said if ": error: " in line]
    if len(errors) != 1 or not said or said[-1] != errors[0]:
        return f"{len(errors)} error lines, the last line is {(said or ['nothing'])[-1][:80]!r}"
    line = errors[0]
    message = line.split(": error: ", 1)[1]
    if len(message.split()) < 3:
        return f"no sentence: {message!r}"
    if len(line) > LONGEST_MESSAGE:
        return f"{len(line)} characters: {message[:60]!r}"
    if not line.isprintable() and not re.sub(r"[\ud800-\udfff]", "", line).isprintable():
        return f"control characters in {message[:60]!r}"
    if match := JARGON.search(line):
        return f"jargon {match[0]!r} in {message[:120]!r}"
    return ""


def partial(path: Path) -> str:
    """Say why a file is not whole; "" if it is."""
    from architecture.checkpoint import read_checkpoint
    from architecture.tokenizer import load_rank_file

    if re.fullmatch(r"\..*\.tmp", path.name):
        return "left behind"
    try:
        if path.suffix == ".pt":
            read_checkpoint(path)
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".jsonl":
            for line in path.read_bytes().splitlines():
                json.loads(line)
        elif path.suffix == ".tiktoken":
            load_rank_file(path)
        elif path.suffix == ".png":
            return "" if path.read_bytes()[-8:-4] == b"IEND" else "cut off"
    except ValueError as error:
        return f"not whole ({type(error).__name__})"
    return ""


def _kind_of(name: str) -> str:
    """Return the name of a file with its numbers replaced, which differ from case to case."""
    return re.sub(r"\d+", "N", Path(name).name)[:40]
