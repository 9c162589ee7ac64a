"""The objective of each kind of post-training."""

from importlib import import_module
from typing import Any

from training.post.objective import Objective
from training.post.settings import PostTrainConfig


def new_objective(cfg: PostTrainConfig, tokenizer: Any) -> Objective:
    """The objective of cfg.kind; it is the class `Objective` of training/post/KIND.py."""
    return import_module(f"training.post.{cfg.kind}").Objective(cfg, tokenizer)
