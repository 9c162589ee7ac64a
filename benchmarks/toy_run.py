"""The toy recipe as a run that a benchmark takes apart: bundled stories, CPU, float32, at most two threads."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
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
    """An open run and its progress, in a folder that is removed; settings: of TrainConfig."""
    cfg = TrainConfig(dataset="bundled", device="cpu", dtype="float32", out_dir="model", **settings)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    model = build_model("gptoss", build_config("gptoss", cfg.model_size))
    source, home = open_dataset("bundled", split="train"), os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with open_run(cfg, model, get_tokenizer(cfg.tokenizer), source, None) as opened:
                yield opened
        finally:
            os.chdir(home)
