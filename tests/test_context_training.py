"""train_context.py: windows of segments, resume with the state, what it shows, what it refuses."""

import contextlib
import functools
import json
import math
import re
import signal

import pytest
import torch
from scipy import stats
from toy_corpus import documents, write_jsonl
from toy_run import SMALL, TINY, blank, differences, load, run, run_here

from architecture.gptoss import ModelConfig
from architecture.gptoss_context import ContextConfig, ContextTransformer
from evaluation import context
from training.config import ContextTrainConfig, TrainConfig
from training.costs import memory_bytes
from training.monitor.metrics import read_metrics
from training.step import accumulate_gradients

here = functools.partial(run_here, script="train_context")
FLAGS = [*TINY, "--block_size", "6", "--no-use_tensorboard"]
SHAPE = SMALL | dict(vocab_size=64, sliding_window=4, initial_context_length=16)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, corpus):
    """A run of 20 steps that nothing interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    assert here(folder, *FLAGS, "--gated_update", *corpus) == 0
    return folder


def closing(folder, out_dir="model_context") -> dict:
    """The last record of a run: its closing figures."""
    return read_metrics(folder / out_dir / "metrics.jsonl")[-1]


# ------------------------------------------------------------------------------------------------ windows


def segments(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    batches = []
    for number in range(count):
        ids, targets = torch.randint(64, (2, 3, 5), generator=generator).unbind()
        targets[number % 3, 2:] = -100
        batches.append({"input_ids": ids, "targets": targets, "reset": torch.arange(3) == number})
    return batches


@pytest.mark.parametrize("tbptt, grad_accum", [(1, 4), (2, 2), (4, 1)])
def test_gradients_flow_through_the_windows_segments_and_no_further(tbptt, grad_accum):
    config = ContextConfig(**SHAPE, segment_length=5, gated_update=True)
    model = ContextTransformer(config, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        model.state_projection.weight.mul_(30)
    cfg = ContextTrainConfig(tbptt=tbptt, grad_accum=grad_accum, balance="none")
    batches, start = segments(cfg.micro_batches), torch.randn(3, 20, dtype=torch.float64)
    result = accumulate_gradients(
        model,
        batches,
        cfg,
        previous_share=None,
        carry=start,
        token_bytes=torch.ones(64, dtype=torch.int64),
        autocast=contextlib.nullcontext,
    )
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    total, carry, tokens = 0.0, start, 0
    for number, batch in enumerate(batches):
        out = model(**batch, carry=carry.detach() if number % tbptt == 0 else carry)
        total, carry, tokens = total + out.loss_sum, out.carry, tokens + int(out.num_targets)
    (total / tokens).backward()
    assert result.tokens == tokens and not result.carry.requires_grad
    torch.testing.assert_close(result.carry, carry.detach(), rtol=0, atol=1e-12)
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(ours[name], p.grad, rtol=0, atol=1e-12)
    # the gate has a gradient only where the state passes from one segment to the next within a window
    gate = ours.get("update_gate.linear.weight")
    assert (gate is None) == (tbptt == 1)


def test_a_window_is_counted_in_memory_and_in_the_tokens_of_a_step():
    config = ModelConfig(**SHAPE)
    one, four = (memory_bytes(ContextTrainConfig(tbptt=n), config) for n in (1, 4))
    assert four["activations"] == 4 * one["activations"] and four["weights"] == one["weights"]
    assert ContextTrainConfig(tbptt=3, grad_accum=2).micro_batches == 6
    assert TrainConfig(grad_accum=5).micro_batches == 5


# ------------------------------------------------------------------------------------------------- resume


def test_a_killed_run_goes_on_bit_for_bit_with_its_state(tmp_path, corpus, straight):
    flags = [*FLAGS, "--gated_update", *corpus, "--out_dir", "model_context"]
    killed = run(tmp_path, *flags, at_step=11, script="train_context")
    assert killed.code == -signal.SIGKILL, killed.err
    saved = load(tmp_path / "model_context/checkpoint_8.pt")
    assert saved["progress"]["carry"].shape == (4, 32)
    assert saved["progress"]["carry"].abs().max() > 0
    assert here(tmp_path, "--resume") == 0
    ends = [load(folder / "model_context/checkpoint_20.pt") for folder in (tmp_path, straight)]
    for part in ("model", "optimizers", "rng", "data"):
        assert differences(ends[0][part], ends[1][part], part) == []
    assert torch.equal(*(end["progress"]["carry"] for end in ends))


def test_a_stop_saves_at_the_end_of_a_window_and_names_its_script(tmp_path, corpus):
    flags = [*FLAGS, *corpus, "--tbptt", 3]
    stopped = run(tmp_path, *flags, at_step=5, action=signal.SIGTERM, script="train_context")
    assert stopped.code == 128 + signal.SIGTERM
    assert "20 steps of 72 tokens (4 rows x 3 segments x 6 tokens) on cpu" in stopped.err
    assert "python train_context.py --resume --out_dir model_context" in stopped.err
    saved = load(tmp_path / "model_context/checkpoint_6.pt")
    lanes = saved["data"]["tokens"]
    assert len(lanes) == 4 and saved["train_config"]["tbptt"] == 3


# --------------------------------------------------------------------------------------------- what it shows


def test_metrics_include_the_state_and_each_segment(straight):
    records = read_metrics(straight / "model_context/metrics.jsonl")
    shown = {tag: value for record in records for tag, value in record.items()}
    assert 0 < shown["context/state_norm"] <= 32**0.5 + 1e-4
    assert 0 < shown["context/gate"] < 1
    by_segment = [tag for tag in shown if tag.startswith("val/loss_by_segment/from_")]
    assert len(by_segment) >= 4
    padding = [record["data/padding_share"] for record in records if "train/loss" in record]
    tokens = [record["data/tokens"] for record in records if "train/loss" in record]
    assert tokens[-1] == round(sum(1 - share for share in padding) * 4 * 6 * 4)  # log_every is 1
    assert 0 < sum(padding) / 20 < 0.3
    assert math.isfinite(shown["final/loss"]) and shown["samples/final_1"]
    losses = [record["train/loss"] for record in records if "train/loss" in record]
    assert losses[-1] < losses[0] - 0.3


def test_runs_have_a_tensorboard_folder_of_their_own(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr("training.monitor.instruments.heat_map", blank)
    assert here(tmp_path, *FLAGS[:-1], *corpus, "--max_iters", 1) == 0
    assert (tmp_path / "runs_context").is_dir() and not (tmp_path / "runs").exists()


def test_eval_only_gives_the_closing_figures(straight, capsys):
    assert here(straight, "--eval_only", "model_context") == 0
    assert f"validation loss {closing(straight)['final/loss']:.4f}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_trunk_on_the_same_lanes_scores_the_same_tokens(tmp_path, corpus, straight):
    flags = [*FLAGS, *corpus, "--packing", "lanes", "--grad_accum", 4]
    assert run_here(tmp_path, *flags) == 0
    ours, theirs = (
        read_metrics(path)
        for path in (straight / "model_context/metrics.jsonl", tmp_path / "model/metrics.jsonl")
    )
    for tag in ("data/tokens", "data/padding_share", "final/validation_tokens"):
        assert [r[tag] for r in ours if tag in r] == [r[tag] for r in theirs if tag in r]
    ends = (load(straight / "model_context/checkpoint_20.pt"), load(tmp_path / "model/checkpoint_20.pt"))
    assert differences(ends[0]["data"], ends[1]["data"]) == []


# ------------------------------------------------------------------------------------------- its evaluation


def evaluation(folder, capsys, *flags) -> dict:
    capsys.readouterr()
    with contextlib.chdir(folder):
        assert context.main([*map(str, flags), "--batch_size", "3", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)


def test_carried_zeroed_and_swapped_differ_from_the_second_segment_on(straight, capsys):
    found = evaluation(straight, capsys, "model_context")
    # the first six ids, and so the first state, are the same in all of these documents
    first, _, second = found["segments"][:3]
    assert first["carried"] == first["zeroed"] == first["swapped"]
    assert second["zeroed - carried"]["mean"] != 0 and second["swapped - carried"]["mean"] != 0
    for name in ("zeroed", "swapped"):
        difference = second[name]["mean"] - second["carried"]["mean"]
        assert second[f"{name} - carried"]["mean"] == pytest.approx(difference, abs=1e-9)
    final = closing(straight)
    assert (
        found["all"]["tokens"]
        == final["final/validation_tokens"]
        == sum(s["tokens"] for s in found["segments"])
    )
    assert found["all"]["carried"]["mean"] == pytest.approx(final["final/loss"], rel=1e-5)


def test_a_trunk_is_put_into_the_same_rows(tmp_path, corpus, straight, capsys):
    flags = "--packing lanes --max_iters 1 --initial_context_length 256 --block_size 256".split()
    assert run_here(tmp_path, *FLAGS, *corpus, *flags) == 0
    whole = evaluation(tmp_path, capsys, "model", "--segment_length", 6)
    ours = evaluation(straight, capsys, "model_context")
    assert whole["window"] == 256
    for name in ("segment", "tokens", "documents"):
        assert [s[name] for s in whole["segments"]] == [s[name] for s in ours["segments"]]
    final = closing(tmp_path, "model")["final/loss"]
    assert whole["all"]["plain"]["mean"] == pytest.approx(final, rel=1e-5)


def test_standard_errors_are_over_documents():
    tokens, nats = [4, 2, 6], [8.0, 2.0, 6.0]
    found = context.ratio(nats, tokens)
    assert found["mean"] == 16 / 12
    residuals = [n - 16 / 12 * t for n, t in zip(nats, tokens)]
    expected = math.sqrt(sum(r * r for r in residuals) * 3 / 2) / 12
    assert found["standard_error"] == pytest.approx(expected)
    assert found["half_width"] == pytest.approx(stats.t.ppf(0.975, 2) * expected, rel=0.04)
    assert context.ratio([3.0], [2])["standard_error"] is None


# -------------------------------------------------------------------------------------------- starting points


def test_a_run_starts_from_the_weights_of_a_trunk(tmp_path, corpus):
    assert run_here(tmp_path, *FLAGS, *corpus, "--max_iters", 2) == 0
    flags = "--init_from model --segment_length 5 --batch_size 4 --max_iters 1 --lr 1e-12 --sliding_window 8"
    assert here(tmp_path, *flags.split(), *corpus, "--device", "cpu", "--no-use_tensorboard") == 0
    trunk, ours = (
        load(tmp_path / name) for name in ("model/checkpoint_2.pt", "model_context/checkpoint_1.pt")
    )
    assert ours["model_name"] == "gptoss_context" and ours["config"]["segment_length"] == 5
    assert ours["train_config"]["block_size"] == 5
    for name, weight in trunk["model"].items():
        torch.testing.assert_close(ours["model"][name], weight, rtol=0, atol=1e-6)


def test_documents_may_have_any_length(tmp_path):
    texts = ["a", "b c", *documents(8), " ".join(documents(10, seed=1)), *(f"{n} z" for n in range(20))]
    train = write_jsonl(tmp_path / "stories.jsonl", texts)
    valid = write_jsonl(tmp_path / "valid.jsonl", texts[:-1])
    flags = ["--dataset", train, "--val_dataset", valid, "--batch_size", 40, "--max_iters", 1]
    assert here(tmp_path, *FLAGS, *flags, "--eval_tokens", 10**6) == 0


@pytest.mark.parametrize(
    "script, flags, message",
    [
        ("train", "--model gptoss_context", "which train.py does not support; use train_context.py"),
        ("train", "--resume --out_dir model_context", "use train_context.py"),
        ("train", "--eval_only model_context", "use train_context.py"),
        ("train", "--init_from model_context --out_dir new", "use train_context.py"),
        (
            "train_context",
            "--model gptoss",
            "model gptoss carries no state .* use train.py, with --packing lanes",
        ),
        ("train_context", "--packing packed", "packing must be one of lanes; got 'packed'"),
        ("train_context", "--tbptt 0", "tbptt must be at least 1; got 0"),
        ("train_context", "--block_size 8 --segment_length 9", "are one setting here, got 8 and 9"),
        (
            "train_context",
            "--block_size 2000",
            r"segment_length must be between 1 and the context limit \(1024\)",
        ),
        ("train_context", "--resume --tbptt 3", r"tbptt=3 \(saved: 4\) would change it"),
        ("train_context", "--resume --block_size 7", r"=7 \(saved: 6\) would change it"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_sentence(
    straight, corpus, capsys, script, flags, message
):
    before = sorted(straight.rglob("*"))
    data = corpus if "--resume" not in flags and "--eval_only" not in flags else []
    assert run_here(straight, *flags.split(), *data, script=script) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{script}.py: error: ")
    assert re.search(message, last), last
    assert sorted(straight.rglob("*")) == before


def test_a_dry_run_and_the_models_fields_are_printed(tmp_path, capsys):
    assert here(tmp_path, "--dry_run") == 0
    out = capsys.readouterr().out
    assert "gptoss_context toy" in out and "step             2,048 tokens" in out
    assert here(tmp_path, "--help_model") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("--segment_length", "--gated_update", "--carry_state"))
