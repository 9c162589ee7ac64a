"""Balancing through real steps: what each rule adds, when the selection bias moves, what validation sees."""

from dataclasses import replace

import pytest
import torch
from test_trainer import CFG, TOKEN_BYTES, batch_of, new_model, split, step
from toy_run import TINY, load, run_here

from training import trainer
from training.balance import update_selection_bias
from training.config import TrainConfig
from training.optimizer import learning_rate
from training.validation import evaluate

PLAIN = replace(CFG, z_loss_coef=0.0)


def gradients(balance: str, share=None, **settings) -> dict[str, torch.Tensor]:
    model = new_model()
    step(model, [batch_of(4)], replace(PLAIN, balance=balance, **settings), share)
    return {name: p.grad for name, p in model.named_parameters()}


def gradients_of(loss_of) -> dict[str, torch.Tensor]:
    """Those of mean cross-entropy plus loss_of(router statistics), written out by hand."""
    model = new_model()
    out = model(**batch_of(4))
    (out.loss + loss_of(out.router)).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(
            gradient, theirs[name], rtol=0, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
        )


# ------------------------------------------------------------------------------------ the auxiliary terms


def test_aux_adds_e_times_load_share_times_probability_averaged_over_layers():
    def by_hand(router):
        layers = [7 * (load / load.sum() * p).sum() for load, p in zip(router.load, router.mean_probability)]
        return CFG.balance_coef * sum(layers) / 3

    assert_equal(gradients("aux"), gradients_of(by_hand))


def test_aux_global_takes_the_share_of_the_step_before():
    share = torch.rand(3, 7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    assert_equal(
        gradients("aux_global", share),
        gradients_of(lambda router: CFG.balance_coef * 7 * (share * router.mean_probability).sum(-1).mean()),
    )


def test_aux_global_pulls_nowhere_at_the_first_step():
    assert_equal(gradients("aux_global", None), gradients("none"))


@pytest.mark.parametrize("rule", ["none", "bias"])
def test_a_rule_without_a_loss_adds_no_gradient_and_logs_the_balance_all_the_same(rule):
    assert_equal(gradients(rule), gradients_of(lambda router: 0.0))
    model = new_model()
    result = step(model, split(batch_of(4), 2), replace(PLAIN, balance=rule))
    router = new_model()(**batch_of(4)).router
    share = router.load / router.load.sum(-1, keepdim=True)
    expected = (7 * (share * router.mean_probability.detach()).sum(-1)).mean()
    assert float(result.balance_loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(expected) > 1.001  # and not by the value that any routing gives


def test_the_z_loss_is_weighed_by_its_own_coefficient():
    def by_hand(router):
        return 0.25 * router.z_loss

    assert_equal(gradients("none", z_loss_coef=0.25), gradients_of(by_hand))


# ------------------------------------------------------------------------------------------- real runs


def test_aux_global_remembers_the_whole_step_before_and_nothing_at_the_first(tmp_path, corpus, monkeypatch):
    accumulate, seen = trainer.accumulate_gradients, []

    def watched(*args, previous_share, **kwargs):
        result = accumulate(*args, previous_share=previous_share, **kwargs)
        seen.append((previous_share, result.load))
        return result

    monkeypatch.setattr(trainer, "accumulate_gradients", watched)
    flags = [
        "--balance",
        "aux_global",
        "--grad_accum",
        3,
        "--max_iters",
        4,
        "--eval_every",
        1,
        "--no-use_tensorboard",
    ]
    assert run_here(tmp_path, *TINY, *corpus, *flags) == 0
    shares, loads = zip(*seen)
    assert shares[0] is None
    for share, before in zip(shares[1:], loads):
        assert torch.equal(
            before.sum(-1), torch.full((2,), 3 * 4 * 16 * 2.0)
        )  # micro-batches, rows, tokens, k
        torch.testing.assert_close(share, before / before.sum(-1, keepdim=True), rtol=1e-6, atol=0)
    saved = load(tmp_path / "model/checkpoint_4.pt")["progress"]["expert_share"]
    torch.testing.assert_close(saved, loads[-1] / loads[-1].sum(-1, keepdim=True), rtol=1e-6, atol=0)


def test_the_bias_moves_with_the_learning_rate_once_per_step_and_never_by_evaluation(
    tmp_path, corpus, monkeypatch
):
    loads, rates = [], []

    def watched(model, load, rate):
        loads.append(load.clone())
        rates.append(rate)
        update_selection_bias(model, load, rate)

    monkeypatch.setattr(trainer, "update_selection_bias", watched)
    flags = ["--balance", "bias", "--bias_rate", 0.01, "--grad_accum", 3, "--max_iters", 5, "--eval_every", 1]
    assert run_here(tmp_path, *TINY, *corpus, *flags, "--save_every", 1, "--no-use_tensorboard") == 0
    assert len(loads) == 5
    cfg = TrainConfig(max_iters=5)
    expected = torch.zeros(2, 6)
    for number, counts in enumerate(loads, start=1):
        assert torch.equal(counts.sum(-1), torch.full((2,), 3 * 4 * 16 * 2.0))
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
    assert expected.abs().max() > 0.01  # it went on over several steps


def test_the_bias_is_not_moved_in_eval_mode():
    model = new_model().eval()
    with pytest.raises(AssertionError, match="training steps only"):
        update_selection_bias(model, torch.ones(3, 7), 0.1)


def test_evaluation_leaves_weights_and_bias_alone():
    model = new_model()
    update_selection_bias(model, torch.arange(21.0).view(3, 7), 0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, [batch_of(4)], TOKEN_BYTES, device=torch.device("cpu"), autocast=torch.no_grad)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_no_setting_of_the_rules_moves_the_validation_loss(tmp_path, corpus, capsys):
    flags = [
        *TINY,
        *corpus,
        "--max_iters",
        3,
        "--no-use_tensorboard",
        "--balance",
        "bias",
        "--bias_rate",
        0.1,
    ]
    assert run_here(tmp_path, *flags) == 0
    scores = set()
    for settings in (
        ["--balance", "none"],
        ["--balance", "aux", "--balance_coef", 50, "--z_loss_coef", 3],
        ["--balance", "aux_global", "--balance_coef", 7],
        ["--balance", "bias", "--bias_rate", 2],
    ):
        score = ["--eval_only", "model/checkpoint_3.pt", *corpus, "--block_size", 16, "--threads", 1]
        capsys.readouterr()
        assert run_here(tmp_path, *score, *settings) == 0
        scores.add(capsys.readouterr().out)
    assert len(scores) == 1 and "validation loss" in scores.pop()
