"""Run a Python program that a model wrote, in a process of its own, with limits.

The process has

- CPU time, wall time, memory, file size and number of open files limited; CodeEval.unlimited has what the system
  does not limit (macOS)
- its own empty folder, which is deleted afterwards
- none of your environment variables, and isolated mode (python -I)
- no network, where the system lets a user make a network namespace (Linux); CodeEval.network says whether
- no new processes, if the user is not root, whom the system does not limit

It runs as the user who starts it, and can read what this user can read, and write where this user can write.
The limits stop accidents and loops. For code that may be hostile, run the whole command in a container or a virtual
machine.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

CPU_SECONDS = 3  # of one program, as in OpenAI's and Hugging Face's runs of HumanEval
WALL = 4  # times as many seconds of wall time, because other work may share the cores
MEMORY_BYTES = 2**30
FILE_BYTES = 2**20
OPEN_FILES = 32
ANSWER_BYTES = 2**16

# What the process runs. It reads one line of JSON and the program from stdin, and answers with the token, which
# the program does not get: a program that ends the process early has not passed.
RUNNER = """
import json, sys
given = json.loads(sys.stdin.readline())
program, answer = sys.stdin.read(), {"network": True}
import ctypes, os, resource
libc = ctypes.CDLL(None, use_errno=True)
if hasattr(libc, "unshare"):
    # CLONE_NEWUSER | CLONE_NEWNET: a network namespace of its own has no interface but a loopback that is down
    answer["network"] = libc.unshare(0x10000000 | 0x40000000) != 0
if hasattr(libc, "prctl"):
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
answer["unlimited"] = []
for name, limit in given["limits"].items():
    try:
        most = resource.getrlimit(getattr(resource, name))[1]  # a limit may not be raised
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(getattr(resource, name), (limit, limit))
    except (AttributeError, OSError, ValueError):
        answer["unlimited"].append(name)
names = {"__name__": "__main__"}
try:
    exec(compile(program, "program", "exec"), names)
    answer |= {"token": given["token"], "told": "passed"}
except BaseException as error:
    answer["told"] = f"{type(error).__name__}: {error}"[:500]
os.write(given["answer"], json.dumps(answer).encode())
os._exit(0)
"""


class Outcome(NamedTuple):
    """How a program ended. told: "passed", the exception, or what stopped it."""

    passed: bool
    told: str
    network: bool | None  # whether the program had a network; None if it did not say
    unlimited: tuple[str, ...] = ()  # limits that the system did not set


def run_program(program: str, *, cpu_seconds: int = CPU_SECONDS, memory_bytes: int = MEMORY_BYTES) -> Outcome:
    """Run a program to its end. It passes if it raises nothing."""
    token, limits = (
        secrets.token_hex(16),
        {
            "RLIMIT_CPU": cpu_seconds,
            "RLIMIT_AS": memory_bytes,
            "RLIMIT_FSIZE": FILE_BYTES,
            "RLIMIT_NOFILE": OPEN_FILES,
            "RLIMIT_NPROC": 0,
            "RLIMIT_CORE": 0,
        },
    )
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as answer:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", RUNNER],
            cwd=folder,
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[answer.fileno()],
            start_new_session=True,
        )
        given = json.dumps({"token": token, "limits": limits, "answer": answer.fileno()})
        late = False
        try:
            process.communicate(f"{given}\n{program}".encode(errors="replace"), timeout=WALL * cpu_seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
            except ProcessLookupError:
                pass
            process.wait()
        told = os.pread(answer.fileno(), ANSWER_BYTES, 0)
    try:
        found = json.loads(told)
        if not isinstance(found, dict):
            raise ValueError
    except ValueError:  # the program ended the process, or wrote into the answer
        found = {}
    if late or process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Outcome(False, f"stopped after {cpu_seconds} s of CPU time or {WALL * cpu_seconds} s", None)
    passed = found.get("token") == token
    told = str(found.get("told", f"ended with {process.returncode}"))
    return Outcome(passed, told, found.get("network"), tuple(found.get("unlimited", ())))


class CodeEval:
    """In place of the metric `code_eval` of Hugging Face's evaluate, which it would download as a script.

    network: whether one of the programs had a network; None before the first one.
    unlimited: limits that the system did not set for one of the programs.
    """

    def __init__(self, cpu_seconds: int = CPU_SECONDS):
        self.cpu_seconds = cpu_seconds
        self.network: bool | None = None
        self.unlimited: set[str] = set()

    def compute(
        self,
        *,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
    ) -> tuple[dict[str, float], list[list[Outcome]]]:
        """pass@k of programs, each followed by its tests, and how each ended.

        references: the tests of each problem.  predictions: some programs for each problem.
        Only k up to the least number of programs are computed (Chen et al. 2021, arXiv:2107.03374, eq. 1).
        """
        outcomes = [
            [self._run(f"{program}\n{tests}") for program in programs]
            for tests, programs in zip(references, predictions)
        ]
        counts = [(len(runs), sum(run.passed for run in runs)) for runs in outcomes]
        least = min(number for number, _ in counts)
        return {
            f"pass@{one}": math.fsum(pass_at(one, *count) for count in counts) / len(counts)
            for one in k
            if one <= least
        }, outcomes

    def _run(self, program: str) -> Outcome:
        outcome = run_program(program, cpu_seconds=self.cpu_seconds)
        if outcome.network is not None:
            self.network = bool(self.network) or outcome.network
        self.unlimited |= set(outcome.unlimited)
        return outcome


def pass_at(k: int, number: int, passed: int) -> float:
    """The chance that one of k programs drawn out of `number` is among the `passed`."""
    return 1.0 - math.comb(number - passed, k) / math.comb(number, k)


def instead_of_code_eval(code_eval: CodeEval) -> Any:
    """A context in which evaluate.load("code_eval") returns this one, without the Hub."""
    from unittest import mock

    import evaluate

    load = evaluate.load

    def loaded(path: str, *args: Any, **kwargs: Any) -> Any:
        return code_eval if path == "code_eval" else load(path, *args, **kwargs)

    return mock.patch.object(evaluate, "load", loaded)
