"""The optimizer of each parameter, and the learning rate as a pure function of progress."""

import math
import re

import torch

from common.script import number_of_ranks
from training.config import TrainConfig
from training.memory import HostAdamW, HostMuon
from training.muon import Muon

# (pattern, group). The first pattern that matches the whole name decides. Shapes cannot decide: the biases of
# experts are 2-D and are not matrices.
PARAMETER_RULES = (
    (r".+\.lora_[ab]", "decay"),  # training/lora.py says why not "matrix"
    (r"block\.\d+\.attn\.(qkv|out)\.weight", "matrix"),
    (
        r"block\.\d+\.mlp\.(shared_)?mlp[12]_weight",
        "matrix",
    ),  # (E, rows, columns): one matrix for each expert
    (r"block\.\d+\.mlp\.mlp[12]\.weight", "matrix"),  # a model without experts
    (r"block\.\d+\.mlp\.gate\.weight", "decay"),  # the router
    (r"(un)?embedding\.weight", "decay"),
    (r"(.+[._])?bias", "no_decay"),
    (r"block\.\d+\.attn\.sinks", "no_decay"),
    (r"(.+\.)?norm\.(scale|weight)", "no_decay"),
    (r"position_embedding\.weight", "no_decay"),
)


def freeze(model: torch.nn.Module, part: str) -> None:
    """Exclude a part of the model from training: "trunk", "vision" (what the model adds to its trunk) or "none".

    model: the raw module, with `added_parameters` unless part is "none".
    """
    if part != "none":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_((name in model.added_parameters) == (part == "trunk"))


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """{name: parameter} of what the optimizers update: the adapters of a model that has them (training/lora.py)."""
    named = getattr(model, "adapters", model).named_parameters()
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def parameter_groups(model: torch.nn.Module) -> dict[str, dict[str, torch.nn.Parameter]]:
    """Sort the trainable parameters into groups: {"matrix" | "decay" | "no_decay": {name: parameter}}.

    model: the raw module; wrappers (torch.compile, DDP) change the names. It may have `optimizer_rules`,
    (pattern, group) pairs that are tried before PARAMETER_RULES.
    Raises ValueError for a name that no rule matches.
    """
    rules = (*getattr(model, "optimizer_rules", ()), *PARAMETER_RULES)
    groups = {"matrix": {}, "decay": {}, "no_decay": {}}
    for name, parameter in trainable(model).items():
        group = next((group for pattern, group in rules if re.fullmatch(pattern, name)), None)
        if group is None:
            raise ValueError(
                f"parameter {name!r} matches no rule that assigns it to an optimizer group; "
                f"add (pattern, group) to {type(model).__name__}.optimizer_rules"
            )
        groups[group][name] = parameter
    return groups


# (pattern, kind): the logs show the norm of the gradient for each kind. Other names are of the kind "other".
PARAMETER_KINDS = (
    (r"vision\..+", "vision"),
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
    """Sort the trainable parameters by PARAMETER_KINDS, in that order, without empty kinds; adapters as their matrices."""
    kinds = {kind: [] for _, kind in PARAMETER_KINDS} | {"other": []}
    for name, parameter in trainable(model).items():
        matrix = re.sub(r"\.lora_[ab]$", "", name)
        found = (kind for pattern, kind in PARAMETER_KINDS if re.fullmatch(pattern, matrix))
        kinds[next(found, "other")].append(parameter)
    return {kind: parameters for kind, parameters in kinds.items() if parameters}


# The float32 tensors that each optimizer keeps for a parameter: {name: whether it has the parameter's shape}.
STATE = {
    torch.optim.AdamW: {"step": False, "exp_avg": True, "exp_avg_sq": True},
    Muon: {"momentum_buffer": True},
}
ON_HOST = {torch.optim.AdamW: HostAdamW, Muon: HostMuon}  # with --offload optimizer
STATE |= {on_host: STATE[plain] for plain, on_host in ON_HOST.items()}


def build_optimizers(model: torch.nn.Module, cfg: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and for cfg.optimizer "muon" also Muon, which then updates the matrices."""
    matrix, decay, no_decay = (list(g.values()) for g in parameter_groups(model).values())
    if cfg.optimizer == "adamw":
        matrix, decay = [], matrix + decay
    groups = [
        {"params": some, "weight_decay": weight_decay}
        for group, weight_decay in ((decay, cfg.weight_decay), (no_decay, 0.0))
        for some in on_one_mesh(group)
    ]
    # (0.9, 0.95): the betas of GPT-3 (arXiv:2005.14165, appendix B) and of nanoGPT
    # FSDP's own offload keeps parameters and gradients on the host, too, and steps there
    on_host = cfg.offload == "optimizer" and (cfg.layout[0] == "ddp" or number_of_ranks() == 1)
    adamw_class, muon_class = ON_HOST.values() if on_host else ON_HOST.keys()
    adamw = adamw_class(groups, lr=cfg.lr, betas=(0.9, 0.95), fused=True)
    if adapters := getattr(model, "adapters", None):
        adamw.register_step_post_hook(lambda *_: adapters.merge())
    return [adamw, muon_class(matrix, lr=cfg.lr, weight_decay=cfg.weight_decay)] if matrix else [adamw]


def on_one_mesh(parameters: list[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """The parameters in lists of one device mesh each, because a fused optimizer cannot mix DTensors of several."""
    meshes = {}
    for parameter in parameters:
        meshes.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    return list(meshes.values()) or [[]]


def saved_order(
    model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]
) -> list[list[torch.nn.Parameter]]:
    """The parameters of each optimizer in the order of a checkpoint, which is the same for every layout."""
    names = [name for group in parameter_groups(model).values() for name in group]
    parameters = trainable(model)
    held = [{p for group in optimizer.param_groups for p in group["params"]} for optimizer in optimizers]
    return [[parameters[name] for name in names if parameters[name] in some] for some in held]


def learning_rate(progress: float, cfg: TrainConfig) -> float:
    """The learning rate at a share of the run.

    progress: from 0 (start) to 1 (end): steps / max_iters, or seconds / max_minutes.
    Both schedules end at 0.  Source of "wsd": arXiv:2405.18392.
    """
    if progress < cfg.warmup:
        return cfg.lr * progress / cfg.warmup
    if cfg.schedule == "cosine":
        return cfg.lr * (1 + math.cos(math.pi * (progress - cfg.warmup) / (1 - cfg.warmup))) / 2
    if progress > 1 - cfg.decay:
        return cfg.lr * (1 - progress) / cfg.decay
    return cfg.lr


def set_learning_rate(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Set one learning rate for all optimizers. Muon scales its updates to the order of AdamW's."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
