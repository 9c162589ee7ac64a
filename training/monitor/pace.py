"""Notices when other work on the machine slows a run down."""

from __future__ import annotations

from collections.abc import Callable

from common.threads import Look, free_threads, look, others_between

WINDOW = 10.0  # seconds of training; their mean is one pace
SLOW, RECOVERED = 2.0, 1.5  # times the best pace
LONG = 60.0  # seconds
FEWEST = 3  # windows: a process that was stopped for an hour has one


class Pace:
    """The seconds per step, against the best that the run has had.

    threads, cores: of this run, and those that it may use.  look: as in common/threads.py.
    """

    def __init__(self, threads: int, cores: int, look: Callable[[], Look] = look):
        self.threads, self.cores, self.look = threads, cores, look
        self.best = float("inf")
        self.since, self.steps, self.seconds = look(), 0, 0.0  # of the window
        self.slow: list[float] = []  # seconds of the slow windows, as long as all are slow
        self.told = False  # since the pace was last good

    def after_step(self, seconds: float) -> str:
        """Count a step that took so many seconds, without evaluations, checkpoints and sleep of the machine.

        Returns a line if the steps have been slow for LONG and other work has cores that the threads need. Returns
        "" otherwise, and until the pace has recovered.
        """
        self.steps += 1
        self.seconds += seconds
        if self.seconds < WINDOW:
            return ""
        pace, took, now = self.seconds / self.steps, self.seconds, self.look()
        others = others_between(self.since, now)
        self.since, self.steps, self.seconds = now, 0, 0.0
        self.best = min(self.best, pace)
        if pace < RECOVERED * self.best:
            self.told = False
        crowded = others > self.cores - self.threads + 0.5
        self.slow = [*self.slow, took] if pace > SLOW * self.best and crowded else []
        if self.told or sum(self.slow) < LONG or len(self.slow) < FEWEST:
            return ""
        self.told = True
        fewer = free_threads(self.threads, self.cores, others)
        way = f", or stop this run and continue it with --resume --threads {fewer}, with other last bits"
        return (
            f"steps take {pace / self.best:.1f} times as long as before, because other work has {others:.1f} of "
            f"{self.cores} cores; end that work{way if fewer < self.threads else ''}"
        )
