"""The settings of a run: one flat dataclass, from which flags, YAML keys and --help are generated.

This module imports no torch, so that --help is immediate.
"""

import re
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from common.script import number_of_ranks
from common.settings import as_text, cast_fields, option
from data.defaults import TEXT_COLUMN, TOKENIZER


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a training run, except the fields of the model."""

    # constants of the program, which no flag changes; the subclass below has other values
    program = "train.py"
    tensorboard_root = "runs"
    recipe_folder = ""  # in configs/, with its slash
    carries = False  # whether the model keeps a state from each batch to the next
    tbptt = 1  # micro-batches through which gradients flow back
    kind = ""  # of post-training (training/post/settings.py); "": next-token prediction
    uncounted = ""  # parts of a step that --dry_run leaves out
    mostly_uncounted = False  # whether these take most of a step on a GPU, so that a time there would mislead
    sampled_rows = 0  # responses that the model samples at a time
    sized_by = "block_size"  # settings that a run with too little memory may lower, beside batch_size
    unread = frozenset()  # settings that nobody gives to this program; its help leaves them out
    lora_rank = None  # of adapters (training/lora.py); None: the weights train
    uses_reference = False  # whether post-training reads a frozen model beside the one that trains

    # model
    model: str = option(
        "gptoss", "architecture: gptoss, gptoss_vision, which reads images, or gpt2, a dense baseline"
    )
    model_size: str = option("toy", "preset of the architecture: toy, medium, large, ...")
    recipe: Literal["size", "none"] = option(
        "size", "settings below --config and flags: size = configs/<model_size>.yaml, none = the defaults"
    )

    # data
    dataset: str = option(
        "auto",
        "tinystories, bundled, a .txt, .jsonl or .parquet file, a folder, or a name on the Hub; "
        "with images: pictures, digits, faces, a folder with captions.jsonl, or a name on the Hub; "
        "auto = tinystories if the Hub or its cache has it, else bundled; with images, pictures",
    )
    val_dataset: str | None = option(None, "validation data; none = the dataset's split, or 1% by hash")
    hold_out_test: bool = option(
        False,
        "leave the test third of the validation stories out of every evaluation; python -m evaluation.test_set "
        "scores a checkpoint on it",
    )
    text_column: str = option(TEXT_COLUMN, "column that holds a document's text")
    tokenizer: str = option(TOKENIZER, "stories4k, bundled1536, gpt2, o200k_harmony, or a rank file")
    packing: Literal["packed", "lanes", "rows"] = option(
        "packed", "documents joined, one along each row, or one in each row, cut or padded"
    )

    # size of a step and length of the run
    batch_size: int = option(8, "rows per micro-batch of a process", at_least=1)
    block_size: int = option(256, "tokens per row", at_least=1)
    grad_accum: int = option(1, "micro-batches per optimizer step", at_least=1)
    max_iters: int | None = option(3000, "length of the run in optimizer steps", at_least=1)
    max_minutes: float | None = option(
        None, "length of the run in minutes, in place of max_iters; not reproducible", above=0
    )

    # optimization
    lr: float = option(8e-3, "peak learning rate; adamw needs about half of muon's", above=0)
    schedule: Literal["wsd", "cosine"] = option(
        "wsd", "learning rate: constant, then linear decay; or cosine"
    )
    warmup: float = option(0.02, "share of the run with linear warmup", at_least=0, below=1)
    decay: float = option(0.4, "share of the run with linear decay to 0 (wsd)", at_least=0, at_most=1)
    grad_clip: float = option(1.0, "largest norm of the whole gradient; 0 = no clipping", at_least=0)
    optimizer: Literal["adamw", "muon"] = option(
        "muon",
        "optimizer of matrices; adamw updates the rest; muon's time grows with all experts: with 64 or more, "
        "it takes longer than the model",
    )
    weight_decay: float = option(0.1, "decoupled: a step shrinks weights by lr * weight_decay", at_least=0)

    freeze: Literal["none", "trunk", "vision"] = option(
        "none", "part of a model that reads images that does not train: trunk = the text model"
    )

    # router
    balance: Literal["none", "aux", "aux_global", "bias"] = option("aux", "rule that balances experts")
    balance_coef: float = option(0.01, "weight of the balance loss (aux, aux_global)", at_least=0)
    bias_rate: float = option(
        0.03, "change of the selection bias in a step at the peak learning rate (bias)", at_least=0
    )
    z_loss_coef: float = option(0.0, "weight of the mean squared logsumexp of router logits", at_least=0)

    # evaluation, checkpoints, logs
    eval_every: int = option(250, "steps between evaluations", at_least=1)
    eval_tokens: int = option(65_536, "tokens per evaluation", at_least=1)
    final_eval_tokens: int | Literal["all"] | None = option(
        None,
        "tokens of the last evaluation, or all; none = all, but at most 3 times those of training",
        at_least=1,
    )
    eval_only: str | None = option(
        None,
        "evaluate this checkpoint, or folder of a run, and do not train; "
        "on the validation data of its run, unless dataset or val_dataset is given",
    )
    save_every: int = option(500, "steps between checkpoints", at_least=1)
    keep: int | None = option(None, "newest checkpoints to keep besides the best; none = all", at_least=1)
    log_every: int = option(10, "steps between log records", at_least=1)
    use_tensorboard: bool = option(
        True, "write TensorBoard files under runs/ (train_context.py: runs_context/)"
    )
    out_dir: str = option("model", "folder of config.json, metrics.jsonl and checkpoints")
    resume: bool = option(False, "continue from the newest checkpoint in out_dir")
    resume_from: str | None = option(
        None, "continue from this checkpoint in out_dir, and rename newer ones to .set_aside"
    )
    extend: int | None = option(
        None,
        "train the finished run in out_dir for this many more steps: from its last checkpoint before the "
        "decay (wsd), or else from its end, with the learning rate rising and falling again",
        at_least=1,
    )
    init_from: str | None = option(
        None,
        "start from the weights of this checkpoint, folder of a run, or folder of gpt-oss or GPT-2; a trained model needs a smaller lr",
    )

    # machine
    seed: int = option(1337, "seed of weights, data order and dropout", at_least=0, at_most=2**31 - 1)
    device: str = option("auto", "auto, cpu, mps, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16"] = option("auto", "auto = bfloat16 on cuda, else float32")
    attention: str = option("auto", "attention backend: auto, eager, sdpa, flex")
    experts: str = option("auto", "expert backend: auto, loop, sorted, grouped")
    threads: int | None = option(
        None, "CPU threads; none = one for each core that is free at the start", at_least=1, at_most=1024
    )
    compile: Literal["auto", "on", "off"] = option("auto", "torch.compile; auto = on a GPU")
    parallel: str = option(
        "ddp",
        "layout over the processes that torchrun starts: ddp = copies, fsdp = shards, ep or ep:N = experts "
        "spread over N processes, fsdp+ep or fsdp+ep:N = both, where fsdp shards all but the experts",
    )
    activation_checkpointing: Literal["none", "selective", "full"] = option(
        "none",
        "what a block computes again in the backward pass in place of keeping it: selective = all but matrix "
        "products and attention, full = all; the numbers stay the same",
    )
    offload: Literal["none", "optimizer", "activations"] = option(
        "none", "what a GPU keeps in the memory of the host: state of the optimizer, or activations"
    )
    dry_run: bool = option(False, "print sizes and costs, and build nothing")
    gpus: int | None = option(
        None, "with dry_run: plan the run on this many GPUs, in nodes of eight", at_least=1, at_most=65_536
    )
    gpu: Literal["a100", "h100", "h200", "b200", "rtx4090"] | None = option(
        None, "with dry_run: the GPU to plan for; none = h100"
    )

    def __post_init__(self):
        cast_fields(self)
        if (self.max_iters is None) == (self.max_minutes is None):
            raise ValueError(
                "either max_iters or max_minutes must set the length of the run; "
                f"got {self.max_iters} and {self.max_minutes}; set one of them, and the other to none"
            )
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(
                "warmup + decay must be at most 1, because both are shares of the run; "
                f"got {self.warmup} + {self.decay}; lower one of them"
            )
        if self.planned and not self.dry_run:
            raise ValueError(
                "gpus and gpu describe a machine for --dry_run; add --dry_run, or leave them out: a run takes "
                "the GPUs that torchrun gives it"
            )
        _ = self.layout  # raises for a wrong name

    @property
    def planned(self) -> bool:
        """Whether --dry_run is about the GPUs that --gpus and --gpu describe, and not about this machine."""
        return bool(self.gpus or self.gpu)

    @property
    def layout(self) -> tuple[str, int | None]:
        """("ddp" or "fsdp", degree): experts are spread over `degree` processes.

        degree: 0 = as many as possible, None = experts are not spread.
        """
        found = re.fullmatch(r"(ddp|fsdp)|(fsdp\+)?ep(?::([1-9][0-9]{0,5}))?", self.parallel)
        if found is None:
            raise ValueError(
                "parallel must be ddp, fsdp, ep, fsdp+ep, or one of the last two with a number of processes, "
                f"as in ep:8; got {self.parallel!r}"
            )
        data, sharded, degree = found.groups()
        return data or ("fsdp" if sharded else "ddp"), None if data else int(degree or 0)

    @property
    def micro_batches(self) -> int:
        """Micro-batches in a step."""
        return self.grad_accum * self.tbptt

    @property
    def rows(self) -> int:
        """Rows of a micro-batch of a process."""
        return self.batch_size

    @property
    def row_length(self) -> int:
        """Tokens of a row that trains."""
        return self.block_size

    @property
    def slots_per_step(self) -> int:
        """Tokens in a step of all processes, padding included."""
        return number_of_ranks() * self.rows * self.block_size * self.micro_batches


# --------------------------------------------------------------------------------------------------
# resume

# Settings that --resume may change, because the updates do not depend on them. max_iters and max_minutes are
# not among them: warmup and decay are shares of the run, so that another length changes the learning rate of
# every step (--extend keeps it for the steps that are done). Nor is eval_tokens: best.json would then compare
# losses of different tokens.
RESUMABLE_CHANGES = frozenset(
    {"eval_every", "final_eval_tokens", "save_every", "keep", "log_every", "use_tensorboard"}
    | {"activation_checkpointing", "offload"}
)

# Names of the data and of the reference model of post-training. A resume accepts another name, because it compares the
# content (start.check_data, training/post/reference.py).
DATA = ("dataset", "val_dataset", "text_column", "story_dataset", "story_val_dataset", "reference")

# Settings that change the last bits of the numbers. A resume may change them if they are given, and says so.
CHANGES_BITS = frozenset({"device", "dtype", "attention", "experts", "threads", "compile", "parallel"})

# Settings of one call, not of the run: always taken from the command line.
OF_THIS_CALL = frozenset({"resume", "resume_from", "out_dir", "dry_run", "gpus", "gpu"})

# Settings that --eval_only reads, beside the fields of the model.
READ_BY_EVALUATION = (CHANGES_BITS - {"compile", "parallel"}) | {
    *DATA,
    *("model", "model_size", "recipe", "tokenizer", "packing", "batch_size", "block_size"),
    *("eval_tokens", "final_eval_tokens", "eval_only", "hold_out_test"),
}

# Settings whose default leaves the choice to the run. The saved config holds what was chosen.
RESOLVED_BY_THE_RUN = frozenset(
    {"dataset", "story_dataset", "device", "dtype", "attention", "experts", "threads", "compile"}
)


def check_resume(
    saved: dict[str, Any],
    now: TrainConfig,
    saved_model: dict[str, Any],
    model_overrides: dict[str, Any],
    given: frozenset[str],
) -> TrainConfig:
    """The config that continues a saved run: the saved one, with the changes that are allowed.

    saved, saved_model: the checkpoint's TrainConfig and model config as dicts.
    now, model_overrides, given: from CommandLine.
    Raises ValueError if a given setting differs from the saved one and may not change.
    """
    defaults = {f.name: f.default for f in fields(now)}
    if unknown := sorted(saved.keys() - defaults.keys()):
        raise ValueError(
            f"the saved config has an unknown setting, {unknown[0]!r}; "
            "resume the run with the version of the code that saved it"
        )
    asked = {name: getattr(now, name) for name in sorted(given & defaults.keys())}
    for name in RESOLVED_BY_THE_RUN & asked.keys():
        if asked[name] == defaults[name]:
            del asked[name]  # "auto" asks for nothing

    before, free = saved_model | saved, RESUMABLE_CHANGES | {*DATA, "extend"} | CHANGES_BITS
    for name, value in (asked | model_overrides).items():
        was = before.get(name)
        was = tuple(was) if isinstance(was, list) else was  # JSON has no tuples
        if name not in free | OF_THIS_CALL and value != was:
            is_length = name in ("max_iters", "max_minutes")
            longer = ", make a finished run longer with --extend STEPS" if is_length else ""
            raise ValueError(
                f"--resume continues the run as it was saved, and {name}={as_text(value, name)} (saved: "
                f"{as_text(was, name)}) would change it; leave it out{longer}, or "
                "start a new run from the weights with --init_from CHECKPOINT --out_dir NEW (docs/recipes.md lists what "
                "may change)"
            )
    changes = {name: value for name, value in asked.items() if name in free}
    changes |= {name: getattr(now, name) for name in OF_THIS_CALL}
    return replace(type(now)(**saved), **changes)


@dataclass(frozen=True, kw_only=True)
class ContextTrainConfig(TrainConfig):
    """The settings of a run whose model carries a state from each segment of a document to the next."""

    program = "train_context.py"
    tensorboard_root = "runs_context"
    recipe_folder = "context/"
    carries = True

    model: str = option("gptoss_context", "architecture that carries a state")
    packing: Literal["lanes"] = option("lanes", "one document along each row")
    block_size: int = option(64, "tokens per segment; --segment_length is another name for it", at_least=1)
    tbptt: int = option(4, "segments in a window, through which gradients flow back", at_least=1)
    grad_accum: int = option(1, "windows per optimizer step", at_least=1)
    out_dir: str = option("model_context", "folder of config.json, metrics.jsonl and checkpoints")
