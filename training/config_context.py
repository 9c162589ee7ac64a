"""Settings of train_context.py: those of train.py, some with another default, and --tbptt.

Imports no torch, so that --help is immediate.
"""

from dataclasses import dataclass
from typing import Literal

from training.config import TrainConfig, option


@dataclass(frozen=True, kw_only=True)
class ContextTrainConfig(TrainConfig):
    """A run whose model carries a state from each segment of a document to the next."""

    program = "train_context.py"
    tensorboard_root = "runs_context"
    carries = True

    model: str = option("gptoss_context", "architecture, one that carries a state")
    packing: Literal["lanes"] = option("lanes", "one document along each row")
    block_size: int = option(
        64, "tokens of a segment; --segment_length is another name", at_least=1
    )
    tbptt: int = option(
        4, "segments of a window, through which gradients flow back in time", at_least=1
    )
    grad_accum: int = option(1, "windows per optimizer step", at_least=1)
    out_dir: str = option("model_context", "folder of config.json, metrics.jsonl and checkpoints")
