"""The frozen reference model, from which DPO, GRPO and PPO measure how far a policy has moved.

It is the model that the run began with, or that of --reference. A checkpoint holds the sha256 of its weights and not
the weights: they would make every checkpoint of a run larger by the same model. At --resume they come from the file
again, and another file, or a changed one, is refused, so that no run goes on against another reference unseen. A
file that was moved is named with --reference.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from architecture import checkpoint, registry
from architecture.tokenizer import tokenizer_state
from training.post.settings import PostTrainConfig

# fields of a model that eval mode does not read, with the values that have no effect in training either
IN_TRAINING_ONLY = {"dropout": "0", "capacity_factor": "none"}


def open_reference(
    cfg: PostTrainConfig, model: nn.Module, tokenizer: Any, held: str | None
) -> tuple[nn.Module, str]:
    """The reference model, in eval mode and without gradients on the model's device, and the sha256 of its weights.

    model: of the run, not yet trained further in a new run, where the default is a copy of it and no file is read.
    held: the sha256 in the checkpoint that is continued; None in a new run.
    Raises ValueError for a reference of another tokenizer or of other sizes, and at a resume for another one.
    """
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    path = cfg.reference or (cfg.init_from if held else None)
    if path:
        try:
            saved = registry.read_weights(path)
            require_comparable(saved, path, model, tokenizer, same_config=held is None)
            checkpoint.load_weights(reference, saved["model"], path)
        except ValueError as error:
            if held is None:
                raise
            raise ValueError(
                f"the reference model of this run is needed again: {error}; if the file was moved, give its place with "
                "--reference"
            ) from None
    found = checkpoint.weights_sha256(reference)
    if held not in (None, found):
        raise ValueError(
            f"the weights in {path} are not those of the reference model with which this run began (sha256 "
            f"{found[:12]}, was {held[:12]}); give the place of the original file with --reference, or start a new run"
        )
    return reference, found


def require_comparable(
    saved: dict[str, Any], path: str, model: nn.Module, tokenizer: Any, *, same_config: bool
) -> None:
    """Raise ValueError unless a checkpoint gives probabilities to the ids of the model, from the same architecture.

    same_config: False leaves the comparison of sizes to the names and shapes of the weights.
    """
    ours, theirs = (state["sha256"] for state in (tokenizer_state(tokenizer), saved["tokenizer"]))
    if ours != theirs:
        raise ValueError(
            f"the reference model {path} has tokenizer {saved['tokenizer'].get('name')} (sha256 {theirs[:12]}), and must "
            f"have that of the model, {tokenizer.name} ({ours[:12]}); name another checkpoint, or leave --reference out"
        )
    name = type(model).name
    differs = f"is a {saved['model_name']} model" if saved["model_name"] != name else ""
    if same_config and not differs:
        there, here = vars(registry.config_from_dict(name, saved["config"])), vars(model.config)
        names = [n for n in here if here[n] != there[n] and n not in IN_TRAINING_ONLY]
        differs = ", ".join(f"{n} {there[n]} in place of {here[n]}" for n in names)
        differs = differs and f"has {differs}"
    if differs:
        raise ValueError(
            f"the reference model {path} must have the architecture and the sizes of the model, and {differs}; "
            "name another checkpoint, or leave --reference out"
        )
