"""Ctrl-C and SIGTERM as a request that the training loop answers between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

ANSWER = b"stopping after this step, then saving (Ctrl-C again gives up what is not saved)\n"
STDERR = 2


class StopRequest:
    """While entered, the first Ctrl-C or SIGTERM sets `signal` and is answered on stderr; a second
    Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        first = self.signal is None
        self.signal = signal.Signals(number)
        if first:
            # not print: its buffer may be in use at this very moment; on a terminal below the bar
            below = b"\n" if os.isatty(STDERR) else b""
            with contextlib.suppress(OSError):  # nobody there to read it
                os.write(STDERR, below + ANSWER)
