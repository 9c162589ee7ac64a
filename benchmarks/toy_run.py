"""The toy recipe as an open run for benchmarks: bundled stories, CPU, float32, at most two threads."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from architecture.registry import build_config, build_model
from architecture.tokenizer import get_tokenizer
from data.sources import open_dataset
from training.config import TrainConfig
from training.state.checkpoint import Progress
from training.state.run import Run, open_run


@contextlib.contextmanager
def toy_run(**settings: Any) -> Iterator[tuple[Run, Progress]]:
    """Open a run in a temporary folder and yield it with its progress; settings: fields of TrainConfig."""
    cfg = TrainConfig(dataset="bundled", device="cpu", dtype="float32", out_dir="model", **settings)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    model = build_model("gptoss", build_config("gptoss", cfg.model_size))
    source, home = open_dataset("bundled", split="train"), os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with open_run(cfg, model, get_tokenizer(cfg.tokenizer), source, source, None) as opened:
                yield opened
        finally:
            os.chdir(home)


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Seconds that one call takes."""
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began
