"""Tiny training runs: flags, data, and processes of their own that may be killed.

The processes come from multiprocessing's fork server, which has imported torch and the trainer once, so that
a run takes half a second and not five.
"""

import contextlib
import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from toy_corpus import documents, write_jsonl

TINY = (  # with 1,536 ids: with the default's 4,096 half of the time goes to tables of them
    "--device cpu --threads 1 --tokenizer bundled1536 --num_hidden_layers 2 --hidden_size 32 --head_dim 8 --num_attention_heads 4 "
    "--num_key_value_heads 2 --intermediate_size 24 --num_experts 6 --sliding_window 8 "
    "--initial_context_length 16 --block_size 16 --batch_size 4 --max_iters 20 --save_every 8 --eval_every 10 "
    "--eval_tokens 256 --log_every 1"
).split()

# Sizes of a model in which no two axes are equal, so that a transpose cannot hide.
SMALL = dict(num_hidden_layers=2, hidden_size=20, num_attention_heads=6, num_key_value_heads=3, head_dim=4)
SMALL |= dict(num_experts=5, experts_per_token=2, intermediate_size=9, rope_scaling_factor=1.0)

SAMPLE_TOKENS = 4  # of a sampled story, in place of 300: sampling took half of the time of a run
EXAMPLES = 8  # images that are captioned, in place of 100

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    "toy_run train training.trainer training.start training.recipes architecture.gptoss data.sources yaml "
    "torch.utils.tensorboard torch._dynamo pandas pyarrow.dataset".split()
)


def blank(*_, **__) -> np.ndarray:
    """In place of instruments.heat_map: drawing takes two thirds of the time of a run with TensorBoard."""
    return np.zeros((2, 3, 3), np.uint8)


def write_corpus(folder: Path) -> list[str]:
    """300 training and 8 validation documents as files; the flags that name them."""
    texts = documents(308)
    train = write_jsonl(folder / "stories.jsonl", texts[8:])
    valid = write_jsonl(folder / "stories_valid.jsonl", texts[:8])
    return ["--dataset", str(train), "--val_dataset", str(valid)]


class Finished(NamedTuple):
    """A run that has ended: exit code (-9 after a kill -9) and what it printed."""

    code: int
    out: str
    err: str


class ToyRun:
    """`python train.py FLAGS` in a process of its own, with `folder` as its working directory.

    script: the module of another script that trains.
    at_step, action: when that many steps are done, send the process this signal; signal.SIGSTOP holds it.
    """

    def __init__(
        self, folder: Path, *flags, at_step=None, action=signal.SIGKILL, environment=None, script="train"
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self._logs = [folder / "stdout", folder / "stderr"]
        arguments = list(map(str, flags)), folder, self._logs, at_step, action, environment or {}, script
        self._process = started(_run, *arguments)
        self.pid = self._process.pid

    def wait(self, seconds: float = 60) -> Finished:
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            pytest.fail(f"the run still goes after {seconds} s: {self._logs[1].read_text()}")
        return Finished(self._process.exitcode, *(log.read_text() for log in self._logs))

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def started(function: Callable[..., None], *arguments: Any) -> multiprocessing.Process:
    """A process of the fork server that calls a function of a test module."""
    process = _processes.Process(target=function, args=arguments, daemon=True)
    with pytest.MonkeyPatch.context() as patch:  # the server may start here, without this sys.path
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("OMP_NUM_THREADS", "1")
        multiprocessing.forkserver.ensure_running()
    process.start()
    return process


def _run(argv, folder, logs, at_step, action, environment, script):
    for descriptor, log in zip((1, 2), logs):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(folder)
    os.environ.update(environment)  # before anything that reads it is imported
    from training import reporting, trainer
    from training.monitor import instruments
    from training.state import run as run_state

    instruments.heat_map = blank
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written
    reporting.SAMPLE_TOKENS, run_state.EXAMPLES = SAMPLE_TOKENS, EXAMPLES
    train_step = trainer.train_step

    def interrupted_train_step(run, progress):
        if progress.step == at_step:
            os.kill(os.getpid(), action)
        return train_step(run, progress)

    if at_step is not None:
        trainer.train_step = interrupted_train_step
    sys.exit(importlib.import_module(script).main(argv))


def run(folder: Path, *flags, **options) -> Finished:
    return ToyRun(folder, *flags, **options).wait()


def run_here(folder: Path, *flags, script: str = "train") -> int:
    """train.main(FLAGS) in this process, with `folder` as its working directory: the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.reporting.SAMPLE_TOKENS", SAMPLE_TOKENS)
        patch.setattr("training.state.run.EXAMPLES", EXAMPLES)
        try:
            return importlib.import_module(script).main([str(flag) for flag in flags])
        finally:
            torch.set_num_threads(threads)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], Any]) -> None:
    """Call `action` once, when a run of this process has done that many steps."""
    from training import trainer

    train_step, done = trainer.train_step, []

    def acting(run, progress):
        if progress.step == step and not done:
            done.append(action())
        return train_step(run, progress)

    monkeypatch.setattr(trainer, "train_step", acting)


def load(path: Path) -> dict[str, Any]:
    """The dictionary of a checkpoint, plain or sharded."""
    if path.is_dir():
        from training.distributed.sharded_checkpoint import in_memory

        return in_memory(path)
    return torch.load(path, weights_only=True)


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """The places where two checkpoints differ, to the last bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{where}: keys"]
        return [d for key in a for d in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [d for i, pair in enumerate(zip(a, b)) for d in differences(*pair, f"{where}.{i}")]
    return [] if a == b else [where]
