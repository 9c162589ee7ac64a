"""Proximal policy optimization: each formula beside loops in numpy, a bandit, and whole runs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from toy_rewards import EASY, FLAGS, easy, write_start
from toy_run import differences, load, run_here

from architecture.interface import IGNORE_INDEX
from training.monitor.metrics import read_metrics
from training.post import rewards, rollouts
from training.post.ppo import (
    Objective,
    ValueHead,
    advantages_and_returns,
    explained_variance,
    policy_losses,
    token_rewards,
    value_losses,
    whitened,
)
from training.post.settings import PPOConfig

SPANS = ((2, 7), (0, 9), (4, 5), (1, 4))  # first and end of each response, in rows of nine positions
B, T = len(SPANS), 9
KL, GAMMA, LAM, CLIP, VALUE_CLIP = 0.3, 0.97, 0.9, 0.2, 0.25


@pytest.fixture
def given():
    """Random inputs in float64, wrong on purpose where masked, and what the formulas say of them in loops."""
    draw = np.random.default_rng(5)
    names = "logprobs reference old advantages new old_values returns".split()
    x = {name: draw.normal(size=(B, T)) for name in names}
    x |= {"scores": draw.normal(size=B), "values": draw.normal(size=(B, T + 1))}
    x["mask"] = np.array([[first <= t < end for t in range(T)] for first, end in SPANS])
    return x


def tensors(x, *names):
    return [torch.tensor(x[name]) for name in names]


def same(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=0, atol=1e-12)


def test_a_token_is_rewarded_by_its_distance_from_the_reference_and_the_last_one_by_the_score(given):
    expected = np.zeros((B, T))
    for b, (first, end) in enumerate(SPANS):
        for t in range(first, end):
            expected[b, t] = -KL * (given["logprobs"][b, t] - given["reference"][b, t])
        expected[b, end - 1] += given["scores"][b]
    logprobs, reference, scores, mask = tensors(given, "logprobs", "reference", "scores", "mask")
    same(token_rewards(logprobs, reference, scores, mask, KL), expected)
    without = token_rewards(logprobs, None, scores, mask, KL)
    same(without.sum(1), given["scores"])


def test_advantages_are_the_discounted_sum_of_later_errors_of_the_value(given):
    rewards, v, mask = given["logprobs"], given["values"], given["mask"]
    expected = np.zeros((B, T))
    for b, (first, end) in enumerate(SPANS):
        for t in range(first, end):
            for later in range(t, end):  # the value after the last token counts, too
                error = rewards[b, later] + GAMMA * v[b, later + 1] - v[b, later]
                expected[b, t] += (GAMMA * LAM) ** (later - t) * error
    found, returns = advantages_and_returns(*tensors(given, "logprobs", "values", "mask"), GAMMA, LAM)
    same(found, expected)
    same(returns, np.where(mask, expected + v[:, :-1], 0))


def test_what_a_step_trains_on_pays_for_leaving_the_reference(given):
    cfg = PPOConfig(init_from="base", kl_coef=KL, gamma=1.0, lam=1.0, batch_size=B)
    logprobs, reference, scores, mask, values = tensors(
        given, "logprobs", "reference", "scores", "mask", "values"
    )
    rollout = SimpleNamespace(mask=mask, targets=torch.where(mask, 1, IGNORE_INDEX), inputs={})
    objective = SimpleNamespace(
        cfg=cfg,
        reference="the reference",
        measure=lambda run, model, batches, of: [(logprobs, values[:, :-1])],
        logprobs=lambda run, model, batches: [reference] if model == "the reference" else [logprobs],
    )
    held, records = Objective.experience(objective, SimpleNamespace(compiled="the policy"), rollout, scores)
    apart = np.where(given["mask"], given["logprobs"] - given["reference"], 0)
    paid = np.cumsum(apart[:, ::-1], axis=1)[:, ::-1]  # from each token on
    same(held["returns"][mask], (given["scores"][:, None] - KL * paid)[given["mask"]])
    same(held["old"][mask], given["logprobs"][given["mask"]])
    k3 = (np.exp(-apart) + apart - 1)[given["mask"]]
    assert records["post/kl"] == pytest.approx(k3.mean())
    assert records["post/entropy"] == pytest.approx(-given["logprobs"][given["mask"]].mean())


def test_whitened_advantages_have_mean_0_and_variance_1_over_the_tokens_of_responses_alone(given):
    inside = [given["logprobs"][b, t] for b, (first, end) in enumerate(SPANS) for t in range(first, end)]
    mean = sum(inside) / len(inside)
    variance = sum((value - mean) ** 2 for value in inside) / len(inside)
    expected = np.where(given["mask"], (given["logprobs"] - mean) / (variance + 1e-8) ** 0.5, 0)
    same(whitened(*tensors(given, "logprobs", "mask")), expected)
    assert whitened(torch.tensor([[3.0, 5.0]]), torch.tensor([[False, True]])).tolist() == [[0, 0]]


def test_the_policy_loss_and_its_gradient_stop_at_the_clip_range_on_the_side_of_the_advantage(given):
    expected, slopes, stopped = np.zeros((3, B, T))
    for b in range(B):
        for t in range(T):
            r, a = np.exp(given["new"][b, t] - given["old"][b, t]), given["advantages"][b, t]
            expected[b, t] = -min(r * a, min(max(r, 1 - CLIP), 1 + CLIP) * a)
            stopped[b, t] = r > 1 + CLIP if a > 0 else r < 1 - CLIP
            slopes[b, t] = 0 if stopped[b, t] else -r * a
    new, old, advantages = tensors(given, "new", "old", "advantages")
    losses, clipped = policy_losses(new.requires_grad_(), old, advantages, CLIP)
    losses.sum().backward()
    same(losses.detach(), expected)
    same(new.grad, slopes)
    assert clipped.tolist() == stopped.astype(bool).tolist()
    hits = stopped.astype(bool)
    assert (hits & (given["advantages"] > 0)).any() and (hits & (given["advantages"] < 0)).any()


def test_the_value_loss_takes_the_worse_of_the_value_and_the_clipped_value(given):
    expected, slopes = np.zeros((2, B, T))
    for b in range(B):
        for t in range(T):
            v, old, aim = (given[name][b, t] for name in ("new", "old_values", "returns"))
            near = min(max(v, old - VALUE_CLIP), old + VALUE_CLIP)
            expected[b, t] = 0.5 * max((v - aim) ** 2, (near - aim) ** 2)
            if near == v or (v - aim) ** 2 > (near - aim) ** 2:
                slopes[b, t] = v - aim
    values, old, returns = tensors(given, "new", "old_values", "returns")
    losses = value_losses(values.requires_grad_(), old, returns, VALUE_CLIP)
    losses.sum().backward()
    same(losses.detach(), expected)
    same(values.grad, slopes)
    assert (slopes == 0).any() and (slopes != 0).any()


def test_explained_variance_is_1_for_the_returns_and_0_for_a_constant(given):
    returns, mask = tensors(given, "returns", "mask")
    half = torch.where(mask, returns / 2, 9.0)
    for values, expected in ((returns, 1), (torch.full_like(returns, 7), 0), (half, 0.75)):
        assert explained_variance(values, returns, mask) == pytest.approx(expected, abs=1e-12)


def test_a_bandit_finds_its_best_arm_by_the_formulas_of_ppo():
    """Two choices in a row, of four arms each: 1 for the pair (2, 1), half of it for a right first choice alone.

    The value head sees only which choice it is. The policy is optimal when it takes that pair.
    """
    draw = torch.Generator().manual_seed(0)
    policy, value = nn.Parameter(torch.zeros(2, 4)), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([policy, value], lr=0.1)
    mask = torch.ones(32, 2, dtype=torch.bool)
    for _ in range(60):
        with torch.no_grad():
            table = policy.log_softmax(-1)
            choices = torch.stack([torch.multinomial(p.exp(), 32, True, generator=draw) for p in table], 1)
            old, before = log_chosen(policy, choices), value.expand(32, 2).clone()
            scores = (choices[:, 0] == 2) * (0.5 + 0.5 * (choices[:, 1] == 1))
            rewards = token_rewards(old, None, scores, mask, 0.0)
            found, returns = advantages_and_returns(
                rewards, nn.functional.pad(before, (0, 1)), mask, 1.0, 0.95
            )
            found = whitened(found, mask)
        for _ in range(4):
            loss = policy_losses(log_chosen(policy, choices), old, found, 0.2)[0].mean()
            loss = loss + value_losses(value.expand(32, 2), before, returns, 0.2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    best = policy.softmax(-1)
    assert best[0, 2] > 0.97 and best[1, 1] > 0.97
    assert abs(value[0].item() - 1) < 0.1  # the return of the optimal policy


def log_chosen(policy, choices):
    """(rows, 2) log-probabilities of what each row chose."""
    return policy.log_softmax(-1).expand(len(choices), 2, 4).gather(2, choices[:, :, None]).squeeze(2)


# ---------------------------------------------------------------------------------------- value head


def trained(head, steps, seed):
    """Train a head on random numbers; the gradient that its input got."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        hidden = torch.randn(B, T, 7, generator=draw, requires_grad=True)
        (head(hidden) - hidden.detach().sum(-1)).square().mean().backward()
        head.update()
    return hidden.grad


def test_a_value_head_begins_at_a_constant_and_draws_no_random_number():
    before = torch.get_rng_state()
    head = ValueHead(7, PPOConfig(), "cpu")
    head.begin_at(2.5)
    assert torch.equal(torch.get_rng_state(), before)
    assert head(torch.ones(B, T, 7)).tolist() == [[2.5] * T] * B


def test_value_coef_scales_what_the_model_gets_of_the_value_gradient_and_nothing_else():
    heads = {coef: ValueHead(7, PPOConfig(value_coef=coef), "cpu") for coef in (1.0, 0.25, 0.0)}
    got = {coef: trained(head, 3, 1) for coef, head in heads.items()}
    assert got[1.0].abs().min() > 0
    same(got[0.25], got[1.0] / 4)
    assert not got[0.0].any()
    for head in heads.values():
        assert torch.equal(head.linear.weight, heads[1.0].linear.weight)


def test_a_restored_value_head_goes_on_to_the_same_bits(tmp_path):
    straight, saved, restored = (ValueHead(7, PPOConfig(), "cpu") for _ in range(3))
    trained(straight, 3, 1)
    trained(saved, 3, 1)
    torch.save(saved.state_dict(), tmp_path / "state.pt")
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    trained(straight, 3, 2)
    trained(restored, 3, 2)
    for name, tensor in straight.linear.state_dict().items():
        assert torch.equal(tensor, restored.linear.state_dict()[name])
    with pytest.raises(ValueError, match="value head's weight is not a tensor of the expected shape"):
        ValueHead(8, PPOConfig(), "cpu").load_state_dict(saved.state_dict())


# ---------------------------------------------------------------------------------------- whole runs
GIVEN = "once"  # 1 for prompts that begin so, which the value head alone can learn


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder with a base and prompts, and the flags of a short run."""
    folder = tmp_path_factory.mktemp("ppo")
    write_start(folder)
    return folder, [*FLAGS, *"--prompts 12 --batch_size 5 --held_out 10 --lr 0.02".split()]


@pytest.fixture(autouse=True)
def easy_rewards(monkeypatch):
    monkeypatch.setitem(rewards.REWARDS, EASY, easy)
    monkeypatch.setitem(rewards.REWARDS, GIVEN, lambda response: response.example.prompt.startswith("Once"))


def go(start, out, *flags):
    folder, shared = start
    return run_here(
        folder,
        "ppo",
        *shared,
        "--rewards",
        f"{EASY}:1,{GIVEN}:0.4",
        "--out_dir",
        out,
        *flags,
        script="post_train",
    )


def records(start, out):
    return read_metrics(start[0] / out / "metrics.jsonl")


def test_a_reward_rises_and_the_value_head_foresees_what_the_prompt_decides(start):
    flags = "--max_iters 16 --eval_every 16 --prompts 32 --batch_size 32 --ppo_epochs 3".split()
    assert go(start, "learned", *flags, "--value_lr", 0.003, "--kl_coef", 0.01) == 0
    found = records(start, "learned")
    steps = [record for record in found if "post/kl" in record]
    easy = [record[f"post/reward/{EASY}"] for record in steps]
    assert sum(easy[-4:]) / 4 > sum(easy[:4]) / 4 + 0.07, easy
    assert steps[0]["post/kl"] == 0 and steps[-1]["post/kl"] > 0.01  # the reference is the model of the start
    assert steps[0]["post/explained_variance"] == pytest.approx(0, abs=1e-6)
    assert steps[-1]["post/explained_variance"] > 0.2
    of_the_mean = [record["post/reward_std"] ** 2 / 2 for record in steps]  # the loss of a constant
    assert steps[0]["post/value_loss"] == pytest.approx(of_the_mean[0], rel=0.1)
    assert steps[-1]["post/value_loss"] < 0.7 * of_the_mean[-1]


def test_a_run_killed_between_two_updates_of_a_step_resumes_to_the_same_bits(start, monkeypatch, capsys):
    flags = "--max_iters 4 --save_every 2 --ppo_epochs 2 --mini_batches 2".split()
    assert go(start, "straight", *flags) == 0
    original, calls = ValueHead.update, []

    def interrupted(head):
        original(head)
        calls.append(1)
        if len(calls) == 14:  # step 4 has made two of its four updates
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ValueHead, "update", interrupted)
        assert go(start, "killed", *flags) != 0
    assert not (start[0] / "killed/checkpoint_4.pt").exists()
    assert run_here(start[0], "ppo", "--resume", "--out_dir", "killed", script="post_train") == 0
    ends = [load(start[0] / out / "checkpoint_4.pt") for out in ("straight", "killed")]
    for part in ("model", "optimizers", "rng", "data", "post"):
        assert differences(ends[0][part], ends[1][part], part) == []
    head = ends[0]["post"]["value_head"]["weights"]
    assert head["weight"].abs().max() > 0
    assert ends[0]["model"].keys() == load(start[0] / "base/checkpoint_2.pt")["model"].keys()


def test_a_step_is_the_same_in_every_division_into_micro_batches(start, monkeypatch):
    def of_unequal_lengths(*arguments, **options):
        rollout = sample(*arguments, **options)
        for row, targets in enumerate(rollout.targets):
            places = (targets != IGNORE_INDEX).nonzero()[1 + row % 7 :]
            targets[places] = IGNORE_INDEX
        return rollout

    sample = rollouts.sample
    monkeypatch.setattr(rollouts, "sample", of_unequal_lengths)
    tags = ("optim/grad_norm", "post/policy_loss", "post/value_loss", "post/entropy", "data/tokens")
    found = []
    for rows in (5, 12):
        assert go(start, f"rows{rows}", *f"--max_iters 2 --ppo_epochs 2 --batch_size {rows}".split()) == 0
        found += [[r[tag] for tag in tags] for r in records(start, f"rows{rows}") if tags[0] in r]
    for number, step in enumerate(found):  # in the second step the value head has learned, too
        assert step == pytest.approx(found[number % 2], rel=1e-4)
    assert found[0][-1] == sum(1 + row % 7 for row in range(12))


def test_more_mini_batches_than_prompts_are_refused_in_a_sentence(start, capsys):
    assert go(start, "refused", "--mini_batches", 13) == 2
    assert "mini_batches must be at most prompts (12), got 13" in capsys.readouterr().err
    assert not (start[0] / "refused").exists()


def test_a_step_whose_responses_all_have_the_same_reward_updates_nothing_and_says_so(
    start, monkeypatch, capsys
):
    monkeypatch.setitem(rewards.REWARDS, EASY, lambda response: 0.5)
    monkeypatch.setitem(rewards.REWARDS, GIVEN, lambda response: 0)
    assert go(start, "equal", "--max_iters", 1) == 0
    assert "step 1: no update, because all responses have the same reward" in capsys.readouterr().err
    assert [r["post/reward_std"] for r in records(start, "equal") if "post/reward" in r] == [0]
    ends = [load(start[0] / out)["model"] for out in ("base/checkpoint_2.pt", "equal/checkpoint_1.pt")]
    assert differences(*ends) == []
