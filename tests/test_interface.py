"""next_token_loss against the cross-entropy of torch, and the balance loss against its definition."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from architecture import interface
from architecture.interface import IGNORE_INDEX, load_balancing_loss, load_share, next_token_loss

B, T, D, V = 2, 11, 20, 37


def case(dtype=torch.float64, ignored=True):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, T, D, generator=draw, dtype=torch.float64)
    weight = torch.randn(V, D, generator=draw, dtype=torch.float64)
    targets = torch.randint(V, (B, T), generator=draw)
    if ignored:
        targets[0, :4] = targets[1, 7] = IGNORE_INDEX
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def naive(hidden, weight, targets):
    logits = (hidden @ weight.T).flatten(0, 1)
    losses = F.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)),
        targets.flatten(),
        reduction="none",
        ignore_index=IGNORE_INDEX,
    )
    return losses.sum(), losses.view(targets.shape)


@pytest.mark.parametrize("rows", [1000, 11, 5, 1])  # rows of a block, of B * T = 22
@pytest.mark.parametrize("ignored", [False, True])
def test_the_chunked_loss_is_torchs_cross_entropy_in_values_and_gradients(monkeypatch, rows, ignored):
    monkeypatch.setattr(interface, "logit_rows", lambda *_: rows)
    hidden, weight, targets = case(ignored=ignored)
    loss, count, token_losses = next_token_loss(hidden, weight, targets)
    expected, expected_tokens = naive(hidden, weight, targets)
    assert count == (targets != IGNORE_INDEX).sum() and count.dtype == torch.int64
    ours, theirs = (torch.autograd.grad(2.5 * x, (hidden, weight)) for x in (loss, expected))
    everything = (loss, token_losses, *ours), (expected, expected_tokens, *theirs)
    torch.testing.assert_close(*everything, rtol=1e-12, atol=1e-12)
    assert not token_losses.requires_grad


def test_nothing_scored_is_zero_with_zero_gradients():
    hidden, weight, targets = case()
    loss, count, _ = next_token_loss(hidden, weight, torch.full_like(targets, IGNORE_INDEX))
    loss.backward()
    assert (loss, count) == (0, 0)
    assert not hidden.grad.any() and not weight.grad.any()


@pytest.mark.parametrize("wrong", [-1, V])
def test_a_target_outside_the_vocabulary_is_an_error(wrong):
    hidden, weight, targets = case()
    targets[1, 2] = wrong
    with pytest.raises((RuntimeError, IndexError)):
        next_token_loss(hidden, weight, targets)


def test_targets_of_another_shape_are_refused():
    hidden, weight, targets = case()
    for wrong in (targets[:, 1:], targets.T):
        with pytest.raises(ValueError, match="same shape as input_ids"):
            next_token_loss(hidden, weight, wrong)


@pytest.mark.parametrize("frozen", [0, 1])  # hidden, weight
def test_only_the_wanted_gradients_are_made(frozen):
    *leaves, targets = case()
    leaves[frozen].requires_grad_(False)
    ours, theirs = (
        torch.autograd.grad(f(*leaves, targets)[0], leaves[1 - frozen]) for f in (next_token_loss, naive)
    )
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        loss, _, _ = next_token_loss(*leaves, targets)
        assert not loss.requires_grad
        torch.testing.assert_close(loss, naive(*leaves, targets)[0])


def test_a_second_derivative_is_refused_instead_of_wrong():
    hidden, weight, targets = case()
    loss, _, _ = next_token_loss(hidden, weight, targets)
    (grad,) = torch.autograd.grad(loss.square(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


def test_the_size_of_a_block_of_logits_depends_on_the_device():
    assert interface.logit_rows(4096, "cpu") * 4096 == 2**20
    assert interface.logit_rows(4096, "cuda") * 4096 == 2**26
    assert interface.logit_rows(201_088, "cpu") == interface.CHUNK_ROWS


def test_large_logits_do_not_overflow():
    hidden, weight, targets = case(torch.float32)
    loss, _, _ = next_token_loss(hidden * 1e4, weight, targets)
    assert loss.isfinite()
    torch.testing.assert_close(loss, naive(hidden * 1e4, weight, targets)[0])


def test_the_loss_under_bfloat16_autocast_is_near_the_naive_one_and_float32(monkeypatch):
    monkeypatch.setattr(interface, "logit_rows", lambda *_: 5)
    hidden, weight, targets = case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, token_losses = next_token_loss(hidden, weight, targets)
        expected, _ = naive(hidden, weight, targets)
    exact, _ = naive(hidden.double(), weight.double(), targets)
    assert loss.dtype == token_losses.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    truth = torch.autograd.grad(exact, (hidden, weight))
    ours = torch.autograd.grad(loss, (hidden, weight))
    theirs = torch.autograd.grad(expected, (hidden, weight))
    for exact_grad, our_grad, their_grad in zip(truth, ours, theirs):
        assert our_grad.dtype == torch.float32
        assert (our_grad - exact_grad).norm() < 1.5 * (their_grad - exact_grad).norm()


def test_the_balance_loss_is_one_when_even_and_e_over_k_when_k_experts_take_everything():
    experts, k = 7, 2
    even = torch.full((3, experts), 1 / experts)
    assert load_balancing_loss(even, even) == pytest.approx(1.0)
    collapsed = torch.zeros(3, experts)
    collapsed[:, :k] = 1 / k
    assert load_balancing_loss(collapsed, collapsed) == pytest.approx(experts / k)


def test_two_layers_collapsed_onto_opposite_experts_do_not_look_balanced():
    collapsed = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    assert load_balancing_loss(collapsed, collapsed) == 2.0
    pooled = collapsed.mean(0, keepdim=True)
    assert load_balancing_loss(pooled, pooled) == 1.0  # with pooled layers the loss would be 1


def test_the_balance_gradient_flows_through_the_probabilities_only():
    probability = torch.rand(3, 7).softmax(-1).requires_grad_()
    load = torch.rand(3, 7).requires_grad_()
    share = load_share(load)
    load_balancing_loss(probability, share).backward()
    torch.testing.assert_close(probability.grad, 7 * share.detach() / 3)
    assert load.grad is None


def test_the_share_of_no_load_is_zero_and_not_nan():
    assert load_share(torch.zeros(2, 5)).tolist() == [[0.0] * 5] * 2


@pytest.mark.slow
def test_head_and_loss_of_a_large_vocabulary_fit_in_memory_and_time():
    root = Path(__file__).resolve().parent.parent
    script = [sys.executable, "-m", "benchmarks.head_memory", "--repeats", "1", "--no-write"]
    done = subprocess.run(script, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
