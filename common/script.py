"""What all scripts share: the parser of flags, messages and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import io
import os
import re
import reprlib
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

from common.begin import open_streams, work


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ValueError for a wrong flag; exit_code() prints it."""

    def error(self, message: str):
        unknown = re.match(r"unrecognized arguments: --([\w-]+)", message)
        known = [
            name.removeprefix("--") for name in self._option_string_actions
        ]  # "--" would make all similar
        near = did_you_mean(unknown[1], known).replace("'", "'--", 1) if unknown else ""
        raise ValueError(message + (near or "; --help lists the flags"))


def say(text: str) -> None:
    """Print a line about progress to stderr, which open_streams keeps from failing; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def exit_code(
    program: str,
    function: Callable[[], int | None],
    *,
    interrupted: str = "interrupted",
    under_torchrun: bool = False,
) -> int:
    """Run the work of a script and return its exit code, which is that of function, or 0 for None, or

    2    after ValueError, OSError or ImportError, which a user can fix, or if memory ran out; stderr gets one line
    130  after Ctrl-C; stderr gets `interrupted`, which says what was left behind
    141  after the reader of a pipe closed it, as `| head` does; without a message

    under_torchrun: whether torchrun may start several processes of this script.
    """
    open_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape what the terminal cannot show, as stderr does
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        require_one_process(program, under_torchrun)
        code = work(function) or 0
        sys.stdout.flush()  # here, because Python tells of a failure at its end in words of its own
        return code
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        say(f"{program}: {interrupted}")
        return 128 + signal.SIGINT
    except Exception as error:
        told = one_line(error)
        if is_out_of_memory(error):
            told = f"out of memory ({told}); free memory, or lower the batch, the lengths or the model"
        elif type(error) is OSError and error.errno == errno.ENOSPC and error.filename is None:  # from print
            told = "the disk or device of the output is full; free space, or write the output elsewhere"
        elif not isinstance(error, (ValueError, OSError, ImportError)):
            raise
        if not getattr(error, "is_told", False):  # another process of a torchrun tells of it
            say(f"{program}: error: {told}")
        return 2
    finally:
        try:
            sys.stdout.flush()
        except (OSError, ValueError):  # without this, Python fails again when it closes the stream
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python, the system, torch and a loader say it differently."""
    told = r"out of memory|allocate memory|alloc_failed|new thread|map segment|without (exception|setting an exc)"
    known = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    kinds = (RuntimeError, ImportError, SystemError)
    return known or isinstance(error, kinds) and re.search(told, str(error).lower()) is not None


def require_one_process(program: str, under_torchrun: bool) -> None:
    """Raise ValueError if several processes were started by what this script does not work with.

    They would write to one folder. torchrun sets TORCHELASTIC_RUN_ID; what started torchrun does not matter.
    """
    if under_torchrun and "TORCHELASTIC_RUN_ID" in os.environ:
        return
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if (count := os.environ.get(name, "1")) != "1":
            way = ", or several with torchrun" if under_torchrun else ", without torchrun or mpirun"
            raise ValueError(
                f"{program} runs as one process on one device, and {name}={count} says that it was started as "
                f"one of {count}; start it with python{way}, or unset {name}"
            )


def number_of_ranks() -> int:
    """The number of processes that torchrun started for this run; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_rank() -> bool:
    """Whether this process tells what all processes of a run would tell; True without torchrun."""
    return os.environ.get("RANK", "0") == "0"


def place_in_node() -> tuple[int, int]:
    """The number of this process among those of the run on this machine, from 0, and how many they are."""
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def one_line(error: Exception) -> str:
    """The message of an exception as one line of printable characters, with long words and texts cut."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"  # without [Errno 2]
    text = re.sub(r"\S{300,}", lambda word: f"{word[0][:150]}...{word[0][-50:]}", text)
    text = " ".join(text.splitlines())
    if len(text) > 800:  # keep the end, which says what to do
        text = f"{text[:400]} ... {text[-300:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def first_line(error: BaseException) -> str:
    """The type of an exception and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the most similar of the known names, or "" if none is similar."""
    near = difflib.get_close_matches(name, list(known), n=1) if isinstance(name, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


_bounded = reprlib.Repr()  # reads only the first values of a long list
_bounded.maxstring = _bounded.maxlong = _bounded.maxother = 100
_bounded.maxlevel = 2


def shown(value: Any) -> str:
    """A value as text for a message, at most about 200 characters."""
    try:
        text = _bounded.repr(value)
    except ValueError:  # more than 4300 digits, the limit of Python
        return "a number with too many digits"
    return text if len(text) <= 200 else f"{text[:200]}..."
