"""The settings of post_train.py, one class for each kind of training. This module imports no torch."""

from dataclasses import dataclass
from typing import Literal

from common.settings import option
from data.defaults import BUNDLED, TEXT_COLUMN
from training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PostTrainConfig(TrainConfig):
    """What all kinds share. --dataset is the data of the kind; stories measure what the model forgets."""

    recipe_folder = "post/"
    # the checkpoint has the first three, and the rest have one value here
    unread = frozenset({"model", "model_size", "tokenizer", "freeze", "eval_only", "packing"})

    recipe: Literal["size", "none"] = option(
        "size", "settings below --config and flags: size = those of configs/post/, none = the defaults"
    )
    init_from: str | None = option(
        None,
        "the model to train further: a checkpoint, the folder of a run, or a folder of gpt-oss or GPT-2; needed unless "
        "a run is resumed",
    )
    dataset: str = option(
        BUNDLED,
        "data of this kind: bundled or auto = made from the story world, a .jsonl or .parquet file, or ORG/NAME on the Hub",
    )
    val_dataset: str | None = option(
        None, "held-out examples; none = the validation split of the dataset, or 1% of the prompts by hash"
    )
    text_column: str = option(TEXT_COLUMN, "column of story_dataset that holds a story's text")
    story_dataset: str = option(
        "auto",
        "stories for val/loss and val/bits_per_byte, as --dataset of train.py takes them; auto = those of the model that "
        "the run begins with",
    )
    story_val_dataset: str | None = option(
        None, "validation stories, as --val_dataset of train.py; none = those of story_dataset"
    )
    packing: Literal["packed"] = option("packed", "of the stories that val/loss scores")
    max_iters: int | None = option(300, "length of the run in optimizer steps", at_least=1)
    lr: float = option(1e-3, "peak learning rate", above=0)
    schedule: Literal["wsd", "cosine"] = option(
        "wsd", "learning rate: constant, then linear decay; or cosine"
    )
    balance: Literal["none", "aux", "aux_global", "bias"] = option(
        "none", "rule that balances experts; none also freezes the selection bias"
    )
    eval_every: int = option(50, "steps between evaluations", at_least=1)
    lora_rank: int | None = option(
        None,
        "train a change of this rank of each matrix of attention, MLPs and experts, with adamw, and freeze the rest; "
        "checkpoints hold the merged weights, too; none = all weights train",
        at_least=1,
    )
    lora_alpha: float = option(16.0, "the change of lora_rank is scaled by lora_alpha / lora_rank", above=0)
    held_out: int = option(64, "held-out examples that an evaluation scores", at_least=1)

    uses_reference = False  # whether a frozen model is read beside the one that trains
    uncounted = "held-out examples, in the time"
    sized_by = "block_size, held_out"
    prompt_length = (
        45  # tokens in estimates of memory, which come before the data is open; the story world has fewer
    )

    @property
    def sampled_rows(self) -> int:
        return self.held_out

    def __post_init__(self):
        super().__post_init__()
        if self.lora_rank and self.balance == "bias":
            raise ValueError(
                "lora_rank freezes the routers with their selection bias, which balance=bias would move; leave one out"
            )


@dataclass(frozen=True, kw_only=True)
class SFTConfig(PostTrainConfig):
    """Supervised fine-tuning: next-token prediction of responses."""

    program, kind = "post_train.py sft", "sft"

    out_dir: str = option("model_sft", "folder of config.json, metrics.jsonl and checkpoints")


@dataclass(frozen=True, kw_only=True)
class DPOConfig(PostTrainConfig):
    """Direct preference optimization (arXiv:2305.18290)."""

    program, kind = "post_train.py dpo", "dpo"
    uncounted = "the reference model and held-out examples, in the time"

    batch_size: int = option(8, "pairs per micro-batch, each of two rows", at_least=1)
    uses_reference = True

    beta: float = option(0.1, "strength of the pull to the reference", above=0)
    reference: str | None = option(None, "checkpoint of the reference model; none = that of --init_from")
    out_dir: str = option("model_dpo", "folder of config.json, metrics.jsonl and checkpoints")

    @property
    def rows(self) -> int:
        return 2 * self.batch_size

    @property
    def sampled_rows(self) -> int:
        """The held-out examples to which an evaluation samples a response."""
        return min(64, self.held_out)


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(PostTrainConfig):
    """Reinforcement learning from the model's own responses."""

    unread = PostTrainConfig.unread | {"grad_accum"}
    uncounted = (
        f"tokens of a prompt after the first {PostTrainConfig.prompt_length}, in the memory; sampling, the reference model "
        "and updates after the first one, in the time"
    )
    mostly_uncounted = True

    batch_size: int = option(8, "responses that are trained at a time; the step is the same", at_least=1)
    block_size: int = option(256, "tokens per row of the stories that val/loss scores", at_least=1)
    grad_accum: int = option(1, "must be 1: a step trains all of its responses", at_least=1)
    rewards: str = option(
        "words:1,ends:1",
        "functions of training/post/rewards.py and their weights: words, feature, ends, length, no_repetition, checker",
    )
    prompts: int = option(8, "prompts in a step", at_least=1)
    max_response: int = option(300, "most tokens of a response", at_least=1)
    temperature: float = option(1.0, "of the sampler and of the trained probabilities", above=0)
    reference: str | None = option(None, "checkpoint of the reference model; none = that of --init_from")
    routing_replay: bool = option(
        False, "train on the experts that the sampler chose, with the router's present probabilities"
    )
    log_every: int = option(1, "steps between log records", at_least=1)

    sized_by = "max_response, prompts, held_out"
    group = 1  # responses to a prompt in a step
    kl_weight = ""  # the setting that is the weight of the reference

    def __post_init__(self):
        super().__post_init__()
        if self.grad_accum != 1:
            raise ValueError(
                f"grad_accum must be 1, because a step trains all responses to its prompts, batch_size at a time, got "
                f"{self.grad_accum}; leave it out, and set the size of a step with prompts"
            )
        if self.reference and not self.uses_reference:
            raise ValueError(
                f"reference names a model that is read if {self.kl_weight} is above 0, got {self.kl_weight}=0; raise it, "
                "or leave --reference out"
            )

    @property
    def uses_reference(self) -> bool:
        return getattr(self, self.kl_weight) > 0

    @property
    def row_length(self) -> int:
        return self.prompt_length + self.max_response

    @property
    def sampled_rows(self) -> int:
        return max(self.prompts * self.group, self.held_out)

    @property
    def slots_per_step(self) -> int:
        """Tokens in the responses of a step, at most."""
        return self.prompts * self.group * self.max_response


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(RolloutConfig):
    """Group relative policy optimization and its relatives."""

    program, kind, kl_weight = "post_train.py grpo", "grpo", "beta"

    loss: Literal["grpo", "dr_grpo", "dapo", "gspo"] = option(
        "grpo",
        "grpo = mean over the tokens of a response, dr_grpo = all tokens have the same weight, advantages are not divided "
        "by their spread, dapo = mean over all tokens, gspo = one ratio for a response",
    )
    group: int = option(8, "responses to a prompt in a step", at_least=2)
    updates: int = option(1, "optimizer updates from the responses of a step", at_least=1)
    clip_low: float | None = option(
        None,
        "with a negative advantage, a ratio below 1 - clip_low has no gradient; none = that of the loss",
        above=0,
        at_most=1,
    )
    clip_high: float | None = option(
        None,
        "with a positive advantage, a ratio above 1 + clip_high has no gradient; none = that of the loss",
        above=0,
    )
    beta: float = option(
        0.0, "weight of the KL divergence from the reference; 0 = without a reference", at_least=0
    )
    truncated: Literal["train", "mask", "penalize"] = option(
        "train",
        "responses that reach max_response: mask = they are judged but do not train, penalize = the last fifth of "
        "max_response costs up to 1 reward",
    )
    out_dir: str = option("model_grpo", "folder of config.json, metrics.jsonl and checkpoints")


@dataclass(frozen=True, kw_only=True)
class PPOConfig(RolloutConfig):
    """Proximal policy optimization (arXiv:1707.06347) with a value head."""

    program, kind, kl_weight = "post_train.py ppo", "ppo", "kl_coef"

    ppo_epochs: int = option(4, "passes over the responses of a step", at_least=1)
    mini_batches: int = option(
        1, "parts into which a pass divides the responses; each is one optimizer update", at_least=1
    )
    clip: float = option(
        0.2, "beyond 1 +- clip, a ratio that its advantage would move further has no gradient", above=0
    )
    kl_coef: float = option(
        0.05, "reward lost per nat that a token moves from the reference; 0 = without a reference", at_least=0
    )
    gamma: float = option(1.0, "discount of the reward of the next token", above=0, at_most=1)
    lam: float = option(
        1.0, "lambda of advantage estimation; under 1 it trusts the value head more", at_least=0, at_most=1
    )
    value_lr: float = option(1e-3, "learning rate of the value head, constant", above=0)
    value_clip: float = option(0.2, "range around the old value in which the clipped value stays", above=0)
    value_coef: float = option(
        0.1, "share of the value's gradient that flows on into the model; 0 = none", at_least=0
    )
    out_dir: str = option("model_ppo", "folder of config.json, metrics.jsonl and checkpoints")

    def __post_init__(self):
        super().__post_init__()
        if self.mini_batches > self.prompts:
            raise ValueError(
                f"mini_batches must be at most prompts ({self.prompts}), got {self.mini_batches}; lower it"
            )


KINDS = {config.kind: config for config in (SFTConfig, DPOConfig, GRPOConfig, PPOConfig)}
