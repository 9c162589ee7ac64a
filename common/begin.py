"""The first import of every script: what must hold before the slow imports begin.

- Ctrl-C ends the process with exit code 130 and one line. It raises KeyboardInterrupt only within work(), and
  never inside an import, because modules may swallow an exception there and go on half imported.
- The numbers 0, 1 and 2 are open. Otherwise the next file that is opened gets a number of a closed stream,
  and what is meant for the stream lands in that file.
- A line for stderr that cannot be written is lost in silence.
- Idle threads of torch spin for a bounded time only, and STARTED has seen how busy the cores are.

Importing this module does something only if a script imports it.
"""

import _signal as signal  # these four take no time, and signal, typing and contextlib do
import io
import os
import sys

from common.threads import bound_spinning, look


class Unfailing(io.FileIO):
    """A file that loses what cannot be written: a closed pipe, a full disk, a terminal that is gone."""

    def write(self, data: bytes | memoryview) -> int:
        try:
            return super().write(data) or len(data)  # None: a full pipe that does not wait
        except OSError:
            return len(data)


def make_unfailing(name: str) -> None:
    """Make "stdout" or "stderr" a stream whose lines may be lost; a stream that a caller replaced stays."""
    plain = getattr(sys, f"__{name}__")
    if getattr(sys, name) is plain:
        file = io.BufferedWriter(Unfailing(1 if name == "stdout" else 2, "wb", closefd=False))
        coding = getattr(plain, "encoding", "utf-8"), "backslashreplace"
        setattr(sys, name, io.TextIOWrapper(file, *coding, line_buffering=True))


def open_streams() -> None:
    """Open each closed standard stream on the null device, and make stderr unfailing."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the system gives the lowest free number, which is this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None and name != "stderr":
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))
    make_unfailing("stderr")


def work(function):
    """Call a function. Within it Ctrl-C raises KeyboardInterrupt."""
    return function()


def _interrupt(_number: int, frame) -> None:
    while frame is not None and not _imports(frame):
        if frame.f_code is work.__code__:
            raise KeyboardInterrupt
        frame = frame.f_back
    try:
        os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted\n".encode())
    finally:
        os._exit(128 + signal.SIGINT)


def _imports(frame) -> bool:
    return frame.f_code.co_filename.startswith("<frozen importlib")


STARTED = None  # a look at the cores, if a script imports this module
_importer = sys._getframe().f_back
while _imports(_importer):
    _importer = _importer.f_back
if _importer.f_globals["__name__"] == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored
        signal.signal(signal.SIGINT, _interrupt)
    open_streams()
    bound_spinning()
    STARTED = look()
