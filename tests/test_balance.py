"""Balancing through real steps: what each rule adds, when the selection bias moves, what validation sees."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_trainer import CFG, TOKEN_BYTES, batch_of, new_model, split, step
from toy_run import TINY, load, run_here

from training import trainer
from training.balance import update_selection_bias
from training.config import TrainConfig
from training.optimizer import learning_rate
from training.validation import evaluate

TRUNK = Path(__file__).parent / "fixtures/trunk/checkpoint_6.pt"
RUN = [*TINY, "--grad_accum", "3", "--eval_every", "1", "--no-use_tensorboard"]
PLAIN = replace(CFG, z_loss_coef=0.0)
SHARE = torch.rand(3, 7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def balance_by_hand(share, router) -> torch.Tensor:
    """The number of experts times shares times probabilities, averaged over the layers."""
    return sum(7 * (s * p).sum() for s, p in zip(share, router.mean_probability)) / 3


# ------------------------------------------------------------------------------------ the auxiliary terms


@pytest.mark.parametrize(
    "rule, previous_share, z_loss_coef, by_hand",
    [
        ("aux", None, 0.0, lambda r: 0.5 * balance_by_hand(r.load / r.load.sum(-1, keepdim=True), r)),
        ("aux_global", SHARE, 0.0, lambda r: 0.5 * balance_by_hand(SHARE, r)),
        ("aux_global", None, 0.0, lambda r: 0.0),  # the first step: an even share has no gradient
        ("none", None, 0.0, lambda r: 0.0),
        ("bias", None, 0.0, lambda r: 0.0),
        ("none", None, 0.25, lambda r: 0.25 * r.z_loss),
    ],
    ids=["aux", "aux_global", "aux_global, first step", "none", "bias", "z_loss"],
)
def test_a_rule_adds_the_gradient_of_its_formula(rule, previous_share, z_loss_coef, by_hand):
    ours, reference = new_model(), new_model()
    step(ours, [batch_of(4)], replace(PLAIN, balance=rule, z_loss_coef=z_loss_coef), previous_share)
    out = reference(**batch_of(4))
    (out.loss + by_hand(out.router)).backward()
    for (name, p), q in zip(ours.named_parameters(), reference.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("rule", ["none", "bias"])
def test_a_rule_without_a_loss_measures_the_balance_all_the_same(rule):
    result = step(new_model(), split(batch_of(4), 2), replace(PLAIN, balance=rule))
    router = new_model()(**batch_of(4)).router
    expected = balance_by_hand(router.load / router.load.sum(-1, keepdim=True), router).item()
    assert float(result.balance_loss) == pytest.approx(expected, rel=1e-6)
    assert expected > 1.001  # any even routing gives 1


# ------------------------------------------------------------------------------------------- real runs


def test_aux_global_uses_the_load_of_the_whole_previous_step(tmp_path, corpus, monkeypatch):
    accumulate, seen = trainer.accumulate_gradients, []

    def watched(*args, previous_share, **kwargs):
        result = accumulate(*args, previous_share=previous_share, **kwargs)
        seen.append((previous_share, result.load))
        return result

    monkeypatch.setattr(trainer, "accumulate_gradients", watched)
    assert run_here(tmp_path, *RUN, *corpus, "--balance", "aux_global", "--max_iters", 4) == 0
    shares, loads = zip(*seen)
    assert shares[0] is None
    for share, before in zip(shares[1:], loads):
        assert before.sum(-1).tolist() == [3 * 4 * 16 * 2] * 2  # micro-batches, rows, tokens, k
        torch.testing.assert_close(share, before / before.sum(-1, keepdim=True), rtol=1e-6, atol=0)
    saved = load(tmp_path / "model/checkpoint_4.pt")["progress"]["expert_share"]
    torch.testing.assert_close(saved, loads[-1] / loads[-1].sum(-1, keepdim=True), rtol=1e-6, atol=0)


def test_the_bias_moves_once_per_step_in_proportion_to_the_learning_rate(tmp_path, corpus, monkeypatch):
    loads, rates = [], []

    def watched(model, load, rate):
        loads.append(load.clone())
        rates.append(rate)
        update_selection_bias(model, load, rate)

    monkeypatch.setattr(trainer, "update_selection_bias", watched)
    flags = "--balance bias --bias_rate 0.01 --max_iters 5 --save_every 1".split()
    assert run_here(tmp_path, *RUN, *corpus, *flags) == 0
    assert len(loads) == 5
    cfg = TrainConfig(max_iters=5)
    expected = torch.zeros(2, 6)
    for number, counts in enumerate(loads, start=1):
        assert counts.sum(-1).tolist() == [3 * 4 * 16 * 2] * 2
        share = learning_rate((number - 0.5) / 5, cfg) / cfg.lr
        assert rates[number - 1] == pytest.approx(0.01 * share)
        expected += 0.01 * share * torch.sign(counts.mean(-1, keepdim=True) - counts)
        expected -= expected.mean(-1, keepdim=True)
        weights = load(tmp_path / f"model/checkpoint_{number}.pt")["model"]
        for layer in range(2):
            bias = weights[f"block.{layer}.mlp.selection_bias"]
            torch.testing.assert_close(bias, expected[layer], rtol=0, atol=1e-7)
            assert abs(float(bias.mean())) < 1e-8
    assert min(rates) < max(rates) == pytest.approx(0.01)
    assert expected.abs().max() > 0.01  # more than one step moves it


def test_evaluation_leaves_weights_and_bias_alone():
    model = new_model()
    update_selection_bias(model, torch.arange(21.0).view(3, 7), 0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = {"device": torch.device("cpu"), "autocast": torch.no_grad, "eot": 0, "packing": "packed"}
    evaluate(model, [batch_of(4)], TOKEN_BYTES, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_no_setting_of_the_rules_moves_the_validation_loss(tmp_path, corpus, capsys):
    scores = set()
    for settings in ("balance: none", "balance: aux\nbalance_coef: 50\nz_loss_coef: 3"):
        (tmp_path / "rules.yaml").write_text(settings)
        score = ["--eval_only", TRUNK, *corpus, "--block_size", 16, "--threads", 1]
        assert run_here(tmp_path, *score, "--config", "rules.yaml") == 0
        scores.add(capsys.readouterr().out)
    assert len(scores) == 1 and "validation loss" in scores.pop()
