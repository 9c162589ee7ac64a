"""train.py --model gpt2: parameter groups, costs, a run, its resuming, and what it prints."""

import contextlib
import re
from pathlib import Path

import pytest
import torch
from test_gpt2 import as_trunk
from test_resume import assert_kill_and_resume_join
from toy_run import load, run_here

import train
from architecture.gpt2 import GPT2, ModelConfig
from architecture.registry import build_config, build_model
from training.config import TrainConfig
from training.costs import memory_bytes
from training.monitor.metrics import read_metrics
from training.optimizer import build_optimizers, parameter_groups, parameter_kinds

SIZES = (
    "--model gpt2 --num_hidden_layers 2 --hidden_size 32 --num_attention_heads 4 --intermediate_size 24 "
    "--initial_context_length 24"
).split()
RUN = (
    SIZES
    + (
        "--device cpu --threads 1 --block_size 16 --batch_size 4 --max_iters 20 --save_every 8 --eval_every 10 "
        "--eval_tokens 256 --log_every 1 --out_dir model"
    ).split()
)
SHAPE = dict(num_hidden_layers=2, vocab_size=90, hidden_size=20, intermediate_size=33)
SHAPE |= dict(num_attention_heads=5, initial_context_length=29)


def small_model(**changes):
    return GPT2(ModelConfig(**SHAPE | changes), generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------ optimizers
BLOCK = {
    "attn.norm.weight": ("no_decay", "norms"),
    "attn.norm.bias": ("no_decay", "norms"),
    "attn.qkv.weight": ("matrix", "attention"),
    "attn.qkv.bias": ("no_decay", "biases"),
    "attn.out.weight": ("matrix", "attention"),
    "attn.out.bias": ("no_decay", "biases"),
    "mlp.norm.weight": ("no_decay", "norms"),
    "mlp.norm.bias": ("no_decay", "norms"),
    "mlp.mlp1.weight": ("matrix", "mlp"),
    "mlp.mlp1.bias": ("no_decay", "biases"),
    "mlp.mlp2.weight": ("matrix", "mlp"),
    "mlp.mlp2.bias": ("no_decay", "biases"),
}
TRUNK = {
    "embedding.weight": ("decay", "embedding"),
    "position_embedding.weight": ("no_decay", "embedding"),
    "norm.weight": ("no_decay", "norms"),
    "norm.bias": ("no_decay", "norms"),
}


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "own head"])
def test_every_parameter_has_its_group_and_its_kind_by_name(tie):
    wanted = TRUNK | {f"block.{n}.{name}": where for n in range(2) for name, where in BLOCK.items()}
    if not tie:
        wanted["unembedding.weight"] = ("decay", "head")
    model = small_model(tie_embeddings=tie)
    kind_of = {p: kind for kind, params in parameter_kinds(model).items() for p in params}
    groups = parameter_groups(model)
    found = {n: (group, kind_of[p]) for group, named in groups.items() for n, p in named.items()}
    assert found == wanted


def test_a_parameter_has_the_group_of_its_counterpart_in_the_model_that_is_compared():
    ours = small_model(tie_embeddings=False)
    dense = dict(head_dim=4, num_key_value_heads=5, rope_scaling_factor=1.0, attention_sinks=False)
    dense |= dict(position="learned", norm="layernorm", mlp="gelu", moe_layers=())
    trunk = build_model("gptoss", build_config("gptoss", "toy", SHAPE | dense))
    for group, theirs in parameter_groups(trunk).items():
        found = as_trunk(parameter_groups(ours)[group])
        assert {n: p.shape for n, p in found.items()} == {n: p.shape for n, p in theirs.items()}


# ----------------------------------------------------------------------------------------------- costs
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "own head"])
def test_the_memory_of_weights_and_optimizer_is_that_of_a_built_model(optimizer, tie):
    model, cfg = small_model(tie_embeddings=tie), TrainConfig(optimizer=optimizer)
    ids = torch.arange(29)[None]
    model(ids, ids).loss.backward()
    optimizers, state = build_optimizers(model, cfg), []
    for part in optimizers:
        part.step()
        state += [v for kept in part.state.values() for k, v in kept.items() if k != "step"]
    expected = memory_bytes(cfg, model.config)
    for name, tensors in (("weights", model.parameters()), ("optimizer", state)):
        assert expected[name] == sum(4 * tensor.numel() for tensor in tensors), name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "rows, tokens, changes",
    [(4, 128, dict(intermediate_size=1500)), (2, 96, dict(hidden_size=256, num_attention_heads=2))],
)
def test_activations_are_estimated_to_15_percent(rows, tokens, changes, attention):
    config = build_config("gpt2", "toy", changes)
    model = build_model("gpt2", config, attention=attention)
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (
                storage.nbytes(),
                tensor,
            )  # keeping the tensor keeps its address in use
        return tensor

    ids = torch.randint(4096, (rows, tokens), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _loss = model(ids, ids.roll(-1, 1)).loss
    cfg = TrainConfig(batch_size=rows, block_size=tokens, attention=attention, dtype="float32")
    estimate = memory_bytes(cfg, config)["activations"]
    assert estimate == pytest.approx(sum(size for size, _ in kept.values()), rel=0.15)


# ----------------------------------------------------------------------------------------------- a run
@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus) -> Path:
    """A folder with a run in model/ and its stderr."""
    folder = tmp_path_factory.mktemp("gpt2")
    with open(folder / "stderr", "w") as file, contextlib.redirect_stderr(file):
        assert run_here(folder, *RUN, *corpus) == 0
    return folder


def test_a_run_learns_and_logs_what_a_dense_model_has(finished):
    records = read_metrics(finished / "model/metrics.jsonl")
    losses = [record["train/loss"] for record in records if "train/loss" in record]
    assert len(losses) == 20 and losses[-1] < losses[0] - 1
    tags = set().union(*records)
    kinds = {f"optim/grad_norm/{kind}" for kind in ("attention", "mlp", "embedding")}
    assert {"val/loss", "val/bits_per_byte", "samples/story", *kinds} <= tags
    assert not [tag for tag in tags if re.search("moe|router|sink|balance_loss|z_loss|expert", tag)]
    final = next(record for record in records if "final/loss" in record)
    assert final["final/active_parameters"] < final["final/parameters"]


def test_a_run_prints_its_parameters_and_nothing_about_experts(finished):
    err = (finished / "stderr").read_text()
    # per block: norms 4 * 32, attention 4 * 32 * 33, MLP 24 * 65 + 32; then a norm, the table, positions
    active = 2 * (4 * 32 + 4 * 32 * 33 + 24 * 65 + 32) + 2 * 32 + 4096 * 32
    assert f": {active + 24 * 32:,} parameters, {active:,} active per token\n" in err
    assert "(1 thread, attention sdpa)\n" in err and "balance" not in err
    saved = load(finished / "model/checkpoint_20.pt")
    assert saved["model_name"] == saved["train_config"]["model"] == "gpt2"
    assert saved["train_config"]["experts"] == "none"


def test_a_run_that_was_killed_goes_on_to_the_same_bits(tmp_path, corpus):
    rules = "--optimizer muon --grad_accum 2 --dropout 0.2 --no-use_tensorboard".split()
    assert_kill_and_resume_join(tmp_path, [*RUN, *corpus, *rules])


# ------------------------------------------------------------------------------------------ command line
def test_help_model_lists_the_fields_of_gpt2_alone(capsys):
    assert train.main(["--help_model", "--model", "gpt2"]) == 0
    out = capsys.readouterr().out
    fields = re.findall(r"^  --(\w+)", out, re.MULTILINE)
    assert fields == list(ModelConfig.__dataclass_fields__)
    assert "model sizes: toy, medium, large, gpt2, gpt2-medium, gpt2-large, gpt2-xl" in out


def test_a_dry_run_of_gpt2_prices_it(tmp_path, capsys):
    flags = "--model gpt2 --model_size gpt2-xl --tokenizer stories4k --dry_run".split()
    assert run_here(tmp_path, *flags) == 0
    out = capsys.readouterr().out
    counts = build_config("gpt2", "gpt2-xl", dict(vocab_size=4096, used_vocab_size=None)).parameter_counts()
    assert "gpt2 gpt2-xl with 4,096 ids" in out
    assert f"{counts['total']:,} total, {counts['active']:,} active" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--num_experts", 8], "flag '--num_experts' is unknown"),
        (["--experts", "sorted"], "experts must be auto or none, as gpt2 is dense, got 'sorted'; leave"),
        (["--block_size", 32], "block_size must be at most the model's context limit of 24 tokens"),
        (["--model_size", "gpt-2"], "model_size must be one of toy, medium, large, gpt2,"),
    ],
    ids=str,
)
def test_a_setting_that_gpt2_does_not_have_is_one_line(tmp_path, corpus, capsys, flags, told):
    assert run_here(tmp_path, *RUN, *corpus, *flags) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
