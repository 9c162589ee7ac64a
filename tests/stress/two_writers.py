"""Two `data.prepare` into one folder, in all orders of their file operations.

The first stops itself before one of its file operations. The second starts, and stops itself before one of
its own. Then both go on to their ends, in either order; or the first is killed in place of that. One of them
must write its whole folder, and the other must be refused in one sentence. The one that holds the
lock is the one that writes it. After a kill the second must do its work, unless the first was complete.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from tests.stress.fuzzing.judge import contents, unclear
from tests.stress.processes import Broken, Ended, Prepare, at_operation, nothing, raise_signal, start, wait

FLAGS = "--dataset train.jsonl --val_dataset valid.jsonl --out_dir ../out/tokens".split()
PATIENCE = 60.0  # seconds; a writer that waits for the other one would wait for ever


class Order(NamedTuple):
    """The operations before which the writers stop, and who ends first."""

    first: int
    second: int
    ends_first: str  # "first", "second", or "killed": the first is killed


class Writer:
    """A data.prepare in WORK/<name>, which stops before an operation."""

    def __init__(self, work: Path, name: str, at: int | None, act: Prepare):
        self.folder, self.ended = work / name, None
        self.pid = start(
            self.folder, FLAGS, at_operation(at, act, "../out", self.folder / "count"), program="data.prepare"
        )

    def stopped(self) -> bool:
        """Wait until the process has stopped itself; return False if it ended before."""
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            ended, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if ended and os.WIFSTOPPED(status):
                return True
            if ended:
                lines = (self.folder / "log").read_text(errors="replace").strip().splitlines()
                self.ended = Ended(os.waitstatus_to_exitcode(status), lines[-1] if lines else "")
                return False
            time.sleep(2e-3)
        self.end(signal.SIGKILL)
        raise Broken("a data.prepare waits for the other one")

    def end(self, number: int = signal.SIGCONT) -> Ended:
        if self.ended is None:
            os.kill(self.pid, number)
            self.ended = wait(self.pid, self.folder, patience=PATIENCE)
        return self.ended


def alone(work: Path, name: str) -> tuple[dict[str, str], int]:
    """Return what a writer writes alone, and the number of its operations."""
    if (ended := Writer(work, name, None, nothing).end()).code:
        raise Broken(f"data.prepare ended with {ended.code}: {ended.line}")
    found = contents(work / "out")
    shutil.rmtree(work / "out")
    return found, int((work / name / "count").read_text())


def try_order(order: Order, work: Path, expected: dict[str, dict[str, str]]) -> None:
    """Raise Broken if an order of two writers breaks a rule."""
    out, stop = work / "out", raise_signal(signal.SIGSTOP)
    first = Writer(work, "first", order.first, stop)
    writers = [first]
    try:
        first.stopped()
        complete = (out / "tokens").exists()
        # the first has the folder from the moment at which its number stands in the lock
        began = complete or any(lock.read_text() for lock in out.rglob(".lock"))
        second = Writer(work, "second", order.second, stop)
        writers.append(second)
        second.stopped()
        if order.ends_first == "killed":
            first.end(signal.SIGKILL)
            second.end()
        else:
            for writer in (first, second) if order.ends_first == "first" else (second, first):
                writer.end()
    finally:
        for writer in writers:
            with contextlib.suppress(Broken, ProcessLookupError):
                writer.end(signal.SIGKILL)
    codes = first.ended.code, second.ended.code
    # A killed first writer may have held the folder when the second one asked.
    allowed = {(0, 2)} | (set() if began else {(2, 0)})
    if order.ends_first == "killed":
        allowed = {(-signal.SIGKILL, 2)} if complete else {(-signal.SIGKILL, 0), (-signal.SIGKILL, 2)}
    if codes not in allowed:
        raise Broken(f"the writers ended with {codes}: {first.ended.line} | {second.ended.line}")
    for writer in (first, second):
        if writer.ended.code == 2 and (unclear([writer.ended.line]) or "disk" in writer.ended.line):
            raise Broken(f"a refused writer says {writer.ended.line}")
    if order.ends_first == "killed" and codes[1] == 2 and not complete:
        again = Writer(work, "second", None, nothing).end()
        if again.code != 0:
            raise Broken(f"after a killed writer another one cannot start: {again.line}")
        codes = codes[0], 0
    winner = "second" if codes[1] == 0 else "first"
    if contents(out) != expected[winner]:
        raise Broken(f"the folder is not that of the {winner} writer alone: {sorted(contents(out))}")


def go(number: int, seed: int, work: Path, data: Path, count: Any) -> None:
    """Try that many orders, drawn without repetition, and count them in count.writers and count.failures.

    data: has folders with train.jsonl and valid.jsonl.
    """
    for name, variant in (("first", "original"), ("second", "reversed")):
        shutil.copytree(data / variant, work / name)
    try:
        expected, operations = zip(*(alone(work, name) for name in ("first", "second")))
    except Broken as broken:
        count.failures.append({"order": None, "broken": str(broken)})
        return
    both = dict(zip(("first", "second"), expected))
    ranges = (range(1, n + 1) for n in operations)
    orders = [Order(*order) for order in itertools.product(*ranges, ("first", "second", "killed"))]
    random.Random(seed).shuffle(orders)
    for order in tqdm(orders[:number], desc="two writers"):
        try:
            try_order(order, work, both)
        except Broken as broken:
            said = str(broken).replace(f"{work}/", "")
            count.failures.append({"order": order._asdict(), "broken": said})
        count.writers[f"{order.ends_first} first" if order.ends_first != "killed" else "killed"] += 1
        shutil.rmtree(work / "out", ignore_errors=True)
