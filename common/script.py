"""How every script begins and ends: its flags, what it says, its exit code."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import re
import reprlib
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any


class Parser(argparse.ArgumentParser):
    """A parser for every script: a wrong flag raises ValueError, which exit_code() prints."""

    def error(self, message: str):
        raise ValueError(f"{message}; --help lists the flags")


def say(text: str) -> None:
    """A line for the person who waits; stdout is for what was asked for."""
    print(text, file=sys.stderr, flush=True)


def exit_code(program: str, function: Callable[[], int | None], *, interrupted: str = "interrupted") -> int:
    """Do a script's work; its exit code: what function returns or 0, and one line on stderr with

    2    what a person can put right (ValueError, OSError, ImportError, MemoryError)
    130  Ctrl-C; `interrupted` says what that leaves behind
    141  a closed pipe, as of any program in front of `| head`; that needs no words
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr: what a terminal cannot show is escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return function() or 0
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):  # whichever it was, closing it would fail again
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError, ImportError, MemoryError) as error:
        say(f"{program}: error: {one_line(error)}")
        return 2
    except KeyboardInterrupt:
        say(f"{program}: {interrupted}")
        return 128 + signal.SIGINT


def one_line(error: Exception) -> str:
    """What an exception says, as one line for a terminal: whatever a message quotes, no line feeds or
    other control characters, no word without end, and no more text than a person reads.
    """
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"  # without [Errno 2]
    text = re.sub(r"\S{300,}", lambda word: f"{word[0][:150]}...{word[0][-50:]}", text)
    text = " ".join(text.splitlines())
    if len(text) > 800:  # the way out is at the end
        text = f"{text[:400]} ... {text[-300:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def first_line(error: BaseException) -> str:
    """The kind of a library's exception and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest of the known names, or "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1) if isinstance(name, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


_bounded = reprlib.Repr()  # looks at a few values of a list, however many there are
_bounded.maxstring = _bounded.maxlong = _bounded.maxother = 100
_bounded.maxlevel = 2


def shown(value: Any) -> str:
    """A value from a file, as a message quotes it: at most some 200 characters of it."""
    try:
        text = _bounded.repr(value)
    except ValueError:  # Python writes no more than 4300 digits
        return "a number with too many digits"
    return text if len(text) <= 200 else f"{text[:200]}..."
