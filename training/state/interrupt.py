"""Ctrl-C, SIGTERM and SIGHUP as a request that the training loop answers between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

ANSWER = b"stopping after this step, then saving (Ctrl-C again gives up what is not saved)\n"
STDERR = 2


class StopRequest:
    """A context manager for Ctrl-C, SIGTERM and SIGHUP, which a closed terminal sends.

    SIGHUP stays ignored if it was ignored at the start, as under nohup. The first of these signals sets `signal`
    and prints ANSWER to stderr. A later Ctrl-C raises KeyboardInterrupt.

    Ranks.after_step sets `signal`, too, if another rank was asked; the first Ctrl-C here is then still the first one.

    says: whether it prints ANSWER.
    """

    def __init__(self, says: bool = True) -> None:
        self._says = says
        self.signal: signal.Signals | None = None
        self._asked = False  # whether this process got a signal
        self._previous: dict[signal.Signals, object] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            for number in (signal.SIGINT, signal.SIGTERM, *[signal.SIGHUP] * (not ignored)):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        if not self._asked:
            self._asked = True
            self.signal = self.signal or signal.Signals(number)
            # print is unsafe here: the signal may have come while its buffer was in use.
            below = b"\n" if os.isatty(STDERR) else b""  # below the progress bar
            with contextlib.suppress(OSError):  # stderr may be closed
                if self._says:
                    os.write(STDERR, below + ANSWER)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
