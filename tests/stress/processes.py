"""Processes of a campaign: forked after the imports, killed, hung up, stopped, or left without a log.

A program that is forked starts in milliseconds. `as_command` replaces the forked process by a real
`python PROGRAM.py`, which takes seconds and shows what happens while it starts and when Python ends.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 900.0  # seconds
Prepare = Callable[[], None]


class Broken(Exception):
    """A rule that a campaign saw broken, in words."""


class Ended(NamedTuple):
    """A process that has ended: exit code, -9 after a kill -9, and the last line that it printed."""

    code: int
    line: str


def nothing() -> None:
    pass


def start(folder: Path, flags: list[str], *prepare: Prepare, program: str = "train") -> int:
    """Start `python PROGRAM.py FLAGS` with `folder` as its working directory; return its process id.

    It prints to the file `log` of the folder.
    prepare: called in the new process before it begins. Only then does start() return, so that a signal meets
    the program and not its preparation.
    """
    assert threading.active_count() == 1, (
        "a fork would copy the locks of other threads, and nobody would release them"
    )
    prepared, prepares = os.pipe()
    if pid := os.fork():
        os.close(prepares)
        os.read(prepared, 1)  # returns when the other end is closed, which an exec or an end does, too
        os.close(prepared)
        return pid
    os.close(prepared)
    code = 70  # an error that the program itself does not report
    try:
        os.setsid()  # Ctrl-C is for the parent
        os.chdir(folder)
        prints_to(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC))()
        tqdm._instances.clear()  # the bar of the parent is no part of this log
        for step in prepare:
            step()
        os.close(prepares)
        # The parent's streams remember a position in the file that it prints to.
        sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = sys.__stderr__ = open(2, "w", 1, "utf-8", "backslashreplace", closefd=False)
        code = importlib.import_module(program).main(flags)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(
    pid: int,
    folder: Path,
    when: Callable[[], bool] = lambda: False,
    act: Callable[[int], None] = lambda pid: os.kill(pid, signal.SIGKILL),
    *,
    every: float = 2e-3,
    patience: float = PATIENCE,
) -> Ended:
    """Wait for a process to end. `act` is called once, when `when`, asked every so many seconds, is true."""
    limit, acted = time.monotonic() + patience, False
    try:
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            if not acted and when():
                acted = True
                act(pid)
            if time.monotonic() > limit:
                raise Broken(f"a process still goes after {patience:g} s")
            time.sleep(every)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    lines = (folder / "log").read_text(errors="replace").strip().splitlines()
    return Ended(os.waitstatus_to_exitcode(status), lines[-1] if lines else "")


# ----------------------------------------------------------------------------- what `prepare` may do


def prints_to(descriptor: int) -> Prepare:
    def prepare() -> None:
        for standard in (1, 2):
            os.dup2(descriptor, standard)

    return prepare


def prints_to_terminal(descriptor: int) -> Prepare:
    """Make a terminal the controlling one, so that closing its other end sends SIGHUP."""

    def prepare() -> None:
        fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
        prints_to(descriptor)()

    return prepare


def prints_nowhere() -> None:
    """Close stdout and stderr, as `>&- 2>&-` does."""
    os.close(1)
    os.close(2)


def fill_the_log() -> None:
    """From now on every line of the log meets a full device."""
    prints_to(os.open("/dev/full", os.O_WRONLY))()


def ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def as_command(program: str, flags: list[str]) -> Prepare:
    """Become a real `python PROGRAM.py FLAGS`. It must be the last step."""
    words = [sys.executable, str(ROOT / f"{program}.py"), *flags]
    return lambda: os.execv(words[0], words)


def raise_signal(number: int) -> Prepare:
    return lambda: os.kill(os.getpid(), number)


def at_operation(at: int | None, act: Prepare, out_dir: str, tell: Path | None = None) -> Prepare:
    """Call `act` at file operation number `at` on paths that begin with out_dir.

    An operation is: a file is opened for writing, synced, renamed or removed, a folder is made or removed, or
    half a line of metrics.jsonl is written.
    tell: a file for the number of operations so far.
    """
    kinds = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")

    def prepare() -> None:
        from training.monitor import metrics

        done, front, append, sync = 0, str(Path(out_dir).resolve()), metrics.append_line, os.fsync

        def another(before: Callable[[], Any] = nothing) -> bool:
            """Count an operation; return whether it was the one, and the process still lives."""
            nonlocal done
            done += 1
            if tell is not None:
                tell.write_text(str(done))
            if done == at:
                before()
                act()
            return done == at

        def audited(event: str, arguments: tuple) -> None:
            writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if (writes or event in kinds) and isinstance(arguments[0], str | bytes):
                if os.path.abspath(os.fsdecode(arguments[0])).startswith(front):
                    another()

        def synced(descriptor: int) -> None:
            another()
            sync(descriptor)

        def appended(file: Any, line: str) -> None:
            half = len(line) // 2
            cut = another(lambda: file.write(line[:half].encode()))
            append(file, line[half:] if cut else line)

        os.fsync, metrics.append_line = synced, appended
        sys.addaudithook(audited)

    return prepare
