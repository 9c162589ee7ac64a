"""The step and the loop: what a split batch changes, what a run does with numbers that are not finite."""

import contextlib
import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy_run import SMALL, TINY, differences, load, run_here

from architecture.gptoss import ModelConfig, Transformer
from architecture.interface import IGNORE_INDEX, RouterStats
from training import trainer
from training.balance import update_selection_bias
from training.config import ContextTrainConfig, TrainConfig
from training.optimizer import build_optimizers, parameter_groups, parameter_kinds
from training.state.checkpoint import latest_checkpoint
from training.state.run import matrices_in_bfloat16
from training.step import accumulate_gradients, apply_gradients

CONFIG = ModelConfig(
    **SMALL
    | dict(num_hidden_layers=3, num_experts=7, vocab_size=29, sliding_window=5, initial_context_length=16)
)
CFG = TrainConfig(dataset="none", balance_coef=0.5, z_loss_coef=0.1, lr=1e-2, grad_clip=0.3)
TOKEN_BYTES = torch.arange(29) % 5


def new_model() -> Transformer:
    generator = torch.Generator().manual_seed(0)
    model = Transformer(CONFIG, generator=generator).double().train()
    with torch.no_grad():  # weights at which routers decide and every term has a gradient
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def batch_of(rows: int, padded: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(29, (rows, 12), generator=generator)
    targets = ids.roll(-1, 1)
    if padded:  # row r keeps its first 11 - r targets: every micro-batch has another number
        targets = targets.masked_fill(torch.arange(12) >= 11 - torch.arange(rows)[:, None], IGNORE_INDEX)
    return {"input_ids": ids, "targets": targets}


def step(model, batches, cfg, previous_share=None):
    return accumulate_gradients(
        model,
        batches,
        cfg,
        previous_share=previous_share,
        carry=None,
        token_bytes=TOKEN_BYTES,
        autocast=contextlib.nullcontext,
    )


def split(batch, parts: int):
    pieces = {name: tensor.chunk(parts) for name, tensor in batch.items()}
    return [{name: pieces[name][i] for name in batch} for i in range(parts)]


def updated(batches, cfg, share=None):
    """The model after one step, and what the step measured."""
    model = new_model()
    optimizers = build_optimizers(model, cfg)
    result = step(model, batches, cfg, share)
    norms = apply_gradients(parameter_kinds(model), optimizers, result, cfg.grad_clip)
    assert norms["total"] > cfg.grad_clip  # so the gradient is clipped
    if cfg.balance == "bias":
        update_selection_bias(model, result.load, cfg.bias_rate)
    return model, result


# -------------------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("balance", ["none", "bias", "aux_global"])
def test_four_micro_batches_are_one_batch_four_times_as_large(optimizer, balance):
    cfg = replace(CFG, optimizer=optimizer, balance=balance)
    share = torch.rand(3, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    share = share / share.sum(-1, keepdim=True)
    batch = batch_of(8, padded=True)
    whole, one = updated([batch], cfg, share)
    parts, four = updated(split(batch, 4), cfg, share)
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")
    assert one.tokens == four.tokens == sum(11 - r for r in range(8))
    assert torch.equal(one.load, four.load)
    for name in ("loss", "nats", "num_bytes", "balance_loss", "z_loss", "dropped"):
        torch.testing.assert_close(getattr(one, name), getattr(four, name), msg=lambda m, n=name: f"{n}: {m}")


def test_aux_depends_on_how_a_batch_is_split():
    cfg, batch = replace(CFG, balance="aux"), batch_of(8)
    whole, parts = updated([batch], cfg)[0], updated(split(batch, 4), cfg)[0]
    router = "block.0.mlp.gate.weight"
    difference = (whole.state_dict()[router] - parts.state_dict()[router]).abs().max()
    assert difference > 1e-5


def test_the_gradient_is_that_of_the_mean_over_all_target_tokens():
    batch = batch_of(8, padded=True)
    model = new_model()
    result = step(model, split(batch, 4), replace(CFG, balance="none", z_loss_coef=0.0))
    reference = new_model()
    logits = reference(batch["input_ids"]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
    loss.backward()
    assert float(result.loss) == pytest.approx(float(loss.detach()), rel=1e-6)
    for (name, p), q in zip(model.named_parameters(), reference.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_bits_per_byte_of_a_step_counts_text_tokens_only():
    batch = batch_of(4)
    result = step(new_model(), split(batch, 2), CFG)
    losses = new_model()(**batch).token_losses.double()
    text = TOKEN_BYTES[batch["targets"]] > 0  # ids 0, 5, 10, ... have no bytes, like special tokens
    assert not text.all() and float(result.nats) == pytest.approx(float(losses[text].sum()), rel=1e-6)
    assert float(result.num_bytes) == float(TOKEN_BYTES[batch["targets"]].sum())


def test_copies_of_the_matrices_made_once_in_a_step_give_the_bits_of_copies_in_each_micro_batch():
    """Autocast makes one copy in each forward pass; the gradients of all of them are added in float32."""
    found, copied = [], []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
                copied.append(id(args[0]))
            return function(*args, **kwargs or {})

    for once in (False, True):
        model = new_model().float()
        matrices = list(parameter_groups(model)["matrix"].values())
        copied.clear()
        with Copies():
            result = accumulate_gradients(
                model, split(batch_of(8, padded=True), 4), CFG, previous_share=None, carry=None,
                token_bytes=TOKEN_BYTES, autocast=lambda: torch.autocast("cpu", torch.bfloat16),
                copied=matrices if once else (),
            )  # fmt: skip
        for p in matrices:
            assert copied.count(id(p)) == (1 if once else 4)
        found.append((result.loss, {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_matrices_are_not_copied_once_where_gradients_flow_through_several_micro_batches():
    """The gradients of a window arrive together: one copy would add them in bfloat16."""
    model, settings = new_model(), {"dataset": "none", "dtype": "bfloat16"}
    assert len(matrices_in_bfloat16(model, TrainConfig(**settings))) == 12
    assert matrices_in_bfloat16(model, ContextTrainConfig(**settings, tbptt=2)) == []


@pytest.mark.parametrize("balance, z_loss_coef", [("aux", 0.0), ("none", 0.0), ("bias", 0.1)])
def test_a_step_that_is_not_measured_has_the_same_gradients_and_reads_only_what_it_trains_on(
    balance, z_loss_coef, monkeypatch
):
    cfg, found, read = replace(CFG, balance=balance, z_loss_coef=z_loss_coef), [], set()
    for name in ("balance_loss", "z_loss", "load", "mean_probability", "dropped"):
        figure = getattr(RouterStats, name).func

        def watched(self, name=name, figure=figure):
            read.add(name)
            return figure(self)

        monkeypatch.setattr(RouterStats, name, property(watched))
    for measured in (True, False):
        model = new_model()
        read.clear()
        result = accumulate_gradients(
            model, split(batch_of(8), 2), cfg, previous_share=None, carry=None, token_bytes=TOKEN_BYTES,
            autocast=contextlib.nullcontext, measured=measured,
        )  # fmt: skip
        found.append((result.loss, result.load, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    figures = (result.nats, result.num_bytes, result.balance_loss, result.z_loss, result.dropped)
    assert figures == (None,) * 5
    trained_on = {"aux": {"balance_loss", "mean_probability"}, "none": set(), "bias": {"z_loss"}}[balance]
    assert read == {"load"} | trained_on


# ------------------------------------------------------------------------------------------ clipping


@pytest.mark.parametrize("clip", [0.0, 1e-3, 1e6])
def test_clipping_scales_the_whole_gradient_to_its_limit_and_reports_the_norm_before(clip):
    model = new_model()
    result = step(model, [batch_of(2)], CFG)
    before = torch.cat([p.grad.flatten() for p in model.parameters()])
    seen = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.register_step_pre_hook(lambda *_: seen.extend(p.grad.clone() for p in model.parameters()))
    kinds = parameter_kinds(model)
    by_hand = {
        kind: math.sqrt(sum(float(p.grad.square().sum()) for p in parameters))
        for kind, parameters in kinds.items()
    }
    norms = apply_gradients(kinds, [optimizer], result, clip)
    norm = norms.pop("total")
    assert norm == pytest.approx(float(before.norm())) and norms == pytest.approx(by_hand)
    after = torch.cat([grad.flatten() for grad in seen])
    scale = min(1, clip / norm) if clip else 1
    torch.testing.assert_close(after, scale * before, rtol=1e-3, atol=0)
    assert all(p.grad is None for p in model.parameters())


# --------------------------------------------------------------------------- numbers that are not finite


@pytest.mark.parametrize(
    "overflowing, place",
    [("block.1.attn.out.weight", "the output of block.1.attn.out"), ("unembedding.weight", "the loss")],
)
def test_a_step_that_is_not_finite_is_named_with_the_place_and_the_last_good_checkpoint(
    tmp_path, corpus, capsys, monkeypatch, overflowing, place
):
    train_step, kept = trainer.train_step, {}

    def breaking_train_step(run, progress):
        if progress.step == 5:
            weight = run.model.get_parameter(overflowing).data
            weight.copy_(weight.sign() * 3e38)
            kept.update({n: t.clone() for n, t in run.model.state_dict().items()}, model=run.model)
        return train_step(run, progress)

    monkeypatch.setattr(trainer, "train_step", breaking_train_step)
    flags = ["--save_every", 4, "--eval_every", 50, "--no-use_tensorboard", "--grad_accum", 2]
    assert run_here(tmp_path, *TINY, *corpus, *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"train.py: error: step 6 is not finite, first in {place}; ")
    assert "the last good checkpoint is model/checkpoint_4.pt" in error
    assert differences(kept.pop("model").state_dict(), kept) == []
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {".lock", "config.json", "metrics.jsonl", "checkpoint_4.pt"}


def test_an_absurd_learning_rate_never_saves_weights_that_are_not_finite(tmp_path, corpus, capsys):
    flags = (
        "--lr 1e38 --save_every 1 --warmup 0 --eval_every 50 --no-use_tensorboard --optimizer adamw".split()
    )
    assert run_here(tmp_path, *TINY, *corpus, *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "is not finite, first in " in error and "try a lower --lr" in error
    for path in (tmp_path / "model").glob("checkpoint_*.pt"):
        assert all(torch.isfinite(t).all() for t in load(path)["model"].values()), path.name


# -------------------------------------------------------------------------------------------- the loop


def test_a_run_limited_by_minutes_ends_by_its_own_clock(tmp_path, corpus):
    flags = [flag for flag in TINY if flag not in ("--max_iters", "20")]
    limit = 0.003  # minutes
    assert run_here(tmp_path, *flags, *corpus, "--max_minutes", limit, "--eval_every", 10**6) == 0
    progress = load(latest_checkpoint(tmp_path / "model"))["progress"]
    assert 60 * limit <= progress["seconds"] < 60 * limit + 1
    assert progress["tokens"] == progress["step"] * 64


def test_runs_with_one_seed_are_equal_and_another_seed_differs(tmp_path, corpus):
    flags = [*TINY, *corpus, "--max_iters", 3, "--dropout", 0.1, "--no-use_tensorboard"]
    ends = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        torch.rand(3)  # random numbers drawn before a run must not matter
        assert run_here(tmp_path / name, *flags, "--seed", seed) == 0
        ends.append(load(tmp_path / name / "model/checkpoint_3.pt"))
    for part in ("model", "optimizers", "rng", "data"):
        assert differences(ends[0][part], ends[1][part]) == []
    assert differences(ends[0]["model"], ends[2]["model"]) != []


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(tmp_path, corpus):
    flags = [*TINY, *corpus, "--max_iters", 3, "--no-use_tensorboard"]
    for name, how in (("plain", "--no-compile"), ("compiled", "--compile")):
        assert run_here(tmp_path, *flags, how, "--out_dir", name) == 0
    plain, compiled = (load(tmp_path / name / "checkpoint_3.pt") for name in ("plain", "compiled"))
    assert plain["model"].keys() == compiled["model"].keys()  # no prefix of the wrapper
    for name, weight in plain["model"].items():
        torch.testing.assert_close(compiled["model"][name], weight, rtol=1e-4, atol=1e-4, msg=name)
