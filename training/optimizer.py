"""Which parameter gets which optimizer, and the learning rate as a pure function of progress."""

import math
import re

import torch

from training.config import TrainConfig
from training.muon import Muon

# By name and never by shape: the expert biases are 2-D and must not look like matrices.
# The first pattern that matches the whole name decides.
PARAMETER_RULES = (
    (r"block\.\d+\.attn\.(qkv|out)\.weight", "matrix"),
    # (E, rows, columns): each expert is a matrix
    (r"block\.\d+\.mlp\.(shared_)?mlp[12]_weight", "matrix"),
    (r"block\.\d+\.mlp\.mlp[12]\.weight", "matrix"),  # of a model without experts
    (r"block\.\d+\.mlp\.gate\.weight", "decay"),  # the router
    (r"(un)?embedding\.weight", "decay"),
    (r"(.+[._])?bias", "no_decay"),
    (r"block\.\d+\.attn\.sinks", "no_decay"),
    (r"(.+\.)?norm\.(scale|weight)", "no_decay"),
    (r"position_embedding\.weight", "no_decay"),
)


def parameter_groups(model: torch.nn.Module) -> dict[str, dict[str, torch.nn.Parameter]]:
    """The trainable parameters by group: {"matrix" | "decay" | "no_decay": {name: parameter}}.

    A model with parameters of its own sets `optimizer_rules`, (pattern, group) pairs that are asked
    before PARAMETER_RULES.  Raises ValueError for a name that no rule matches.  Hand it the raw
    module: wrappers (torch.compile, DDP) change the names.
    """
    rules = (*getattr(model, "optimizer_rules", ()), *PARAMETER_RULES)
    groups = {"matrix": {}, "decay": {}, "no_decay": {}}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group = next((group for pattern, group in rules if re.fullmatch(pattern, name)), None)
        if group is None:
            raise ValueError(
                f"parameter {name!r} must match a rule of an optimizer group; "
                f"add (pattern, group) to {type(model).__name__}.optimizer_rules"
            )
        groups[group][name] = parameter
    return groups


# For people who read the gradient's norm by kind of parameter; a name of no other kind is "other".
PARAMETER_KINDS = (
    (r".+\.attn\.(qkv|out)\.weight", "attention"),
    (r".+\.sinks", "sinks"),
    (r".+\.gate\.weight", "router"),
    (r".+\.(shared_)?mlp[12]_weight", "experts"),
    (r".+\.mlp[12]\.weight", "mlp"),
    (r"(position_)?embedding\.weight", "embedding"),
    (r"unembedding\.weight", "head"),
    (r"(.+\.)?norm\.(scale|weight|bias)", "norms"),
    (r"(.+[._])?bias", "biases"),
)


def parameter_kinds(model: torch.nn.Module) -> dict[str, list[torch.nn.Parameter]]:
    """The trainable parameters by PARAMETER_KINDS, in that order, a kind that is not there left out."""
    kinds = {kind: [] for _, kind in PARAMETER_KINDS} | {"other": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found = (kind for pattern, kind in PARAMETER_KINDS if re.fullmatch(pattern, name))
            kinds[next(found, "other")].append(parameter)
    return {kind: parameters for kind, parameters in kinds.items() if parameters}


# What each optimizer keeps for a parameter, and whether it has the parameter's shape; in float32.
STATE = {
    torch.optim.AdamW: {"step": False, "exp_avg": True, "exp_avg_sq": True},
    Muon: {"momentum_buffer": True},
}


def build_optimizers(model: torch.nn.Module, cfg: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all but the matrices, and Muon, or the same AdamW, for these."""
    matrix, decay, no_decay = (list(g.values()) for g in parameter_groups(model).values())
    if cfg.optimizer == "adamw":
        matrix, decay = [], matrix + decay
    groups = [{"params": decay, "weight_decay": cfg.weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    # (0.9, 0.95): the betas of GPT-3 (arXiv:2005.14165, appendix B) and of nanoGPT
    adamw = torch.optim.AdamW(groups, lr=cfg.lr, betas=(0.9, 0.95), fused=True)
    return [adamw, Muon(matrix, lr=cfg.lr, weight_decay=cfg.weight_decay)] if matrix else [adamw]


def learning_rate(progress: float, cfg: TrainConfig) -> float:
    """Learning rate at a share of the run; no state, so resuming needs none.

    progress: from 0 (nothing done) to 1 (finished): steps / max_iters, or seconds / max_minutes.
    Both schedules end at 0, so that they differ in shape only.  wsd: arXiv:2405.18392.
    """
    if progress < cfg.warmup:
        return cfg.lr * progress / cfg.warmup
    if cfg.schedule == "cosine":
        return cfg.lr * (1 + math.cos(math.pi * (progress - cfg.warmup) / (1 - cfg.warmup))) / 2
    if progress > 1 - cfg.decay:
        return cfg.lr * (1 - progress) / cfg.decay
    return cfg.lr


def set_learning_rate(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """One rate for all: Muon scales its updates to the size of AdamW's."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
