"""GRPO and its relatives: losses and gradients, rollouts, replayed routing, and a run that learns and resumes."""

import json
import re
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import small_model
import torch
from test_lean_decoder import random_model
from toy_rewards import EASY, FLAGS, easy, write_start
from toy_run import differences, load, run_here

from architecture.generation import lean
from architecture.interface import IGNORE_INDEX
from architecture.tokenizer import get_tokenizer
from data.examples import Example
from training.memory import checkpoint_blocks
from training.post import grpo, replay, rewards, rollouts, sampling
from training.post.policy import score
from training.post.replay import flips, replayed_routing
from training.post.rollouts import micro_batches
from training.post.sampling import sample
from training.post.settings import GRPOConfig

# ------------------------------------------------------------------------------------------ the loss
LENGTHS, G, MOST = (4, 1, 6, 2, 5, 3), 3, 7  # of six responses in two groups of three


def case(dtype=torch.float64, near=0.6):
    """Log-probabilities (6, 7) of a policy now, before and of a reference; rewards; the mask."""
    draw = torch.Generator().manual_seed(3)
    logp, old, ref = (-torch.rand(6, 7, generator=draw, dtype=dtype) * near for _ in range(3))
    mask = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
    return logp.requires_grad_(), old, ref, torch.tensor([1.0, 0.0, 0.5, 2.0, 2.5, 0.0], dtype=dtype), mask


def written_out(kind, logp, old, ref, R, mask, low, high, beta):
    """The loss of a step, one number after another."""
    losses = []
    for i in range(6):
        own = R[i // G * G : i // G * G + G]
        mean = sum(own) / G
        std = (sum((r - mean) ** 2 for r in own) / (G - 1)) ** 0.5
        A = R[i] - mean if kind == "dr_grpo" else (R[i] - mean) / (std + 1e-4)
        n = LENGTHS[i]
        row = []
        for t in range(n):
            ratio = (logp[i, t] - old[i, t]).exp()
            if kind == "gspo":
                ratio = (sum(logp[i, s] - old[i, s] for s in range(n)) / n).exp()
            bounded = (
                ratio
                if 1 - low <= ratio <= 1 + high
                else torch.tensor(1 - low if ratio < 1 else 1 + high, dtype=torch.float64)
            )
            d = ref[i, t] - logp[i, t]
            row.append(-min(ratio * A, bounded * A) + beta * (d.exp() - d - 1))
        losses.append(row)
    if kind == "dapo":
        return sum(map(sum, losses)) / sum(LENGTHS)
    if kind == "dr_grpo":
        return sum(map(sum, losses)) / (6 * MOST)
    return sum(sum(row) / len(row) for row in losses) / 6


@pytest.mark.parametrize("kind", grpo.CLIP)
def test_loss_and_gradient_are_those_of_the_written_out_loss(kind):
    low, high = (0.05, 0.1) if kind == "gspo" else (0.2, 0.28)
    logp, old, ref, R, mask = case()
    expected = written_out(kind, logp, old, ref, R.tolist(), mask, low, high, beta=0.3)
    (wanted,) = torch.autograd.grad(expected, logp)
    A, spread = grpo.group_advantages(R, G, kind)
    weights = grpo.token_weights(mask, kind, MOST)
    options = dict(loss=kind, clip=(low, high), beta=0.3)
    parts = [
        grpo.policy_loss(logp[r], old[r], A[r], weights[r], reference=ref[r], **options)
        for r in (slice(0, 2), slice(2, 6))  # micro-batches of unequal length and number add up to the step
    ]
    loss = sum(value for value, _ in parts)
    (got,) = torch.autograd.grad(loss, logp)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-14)
    ratio = (logp - old).exp()[mask]
    assert spread.all() and (ratio < 1 - low).any() and (ratio > 1 + high).any()
    assert 0 < sum(int(found["clip_fraction"]) for _, found in parts) < sum(LENGTHS)


# ---------------------------------------------------------------------------------------------- rollouts
TOKENIZER = get_tokenizer("bundled1536")
SCRIPTED = [[5, 6, TOKENIZER.eot_token], [7] * 9, [TOKENIZER.eot_token], [8, 9], [1], [2]]  # two of them end
EXAMPLES = [Example("Once ", "yes"), Example("Tom and Lily went to the park. ", "no")] * 3


@pytest.fixture(scope="module")
def policy():
    """Float64, so that nothing but a fault makes sampler and training forward differ."""
    return random_model(vocab_size=TOKENIZER.n_vocab)


def rollout_of(policy, seed="1", **options):
    return sample(policy, TOKENIZER, EXAMPLES, seed, **dict(max_response=9, temperature=1.5) | options)


def test_rows_hold_prompt_and_response_and_score_the_response_with_its_end(policy, monkeypatch):
    monkeypatch.setattr(sampling, "generate", lambda *_, **__: SCRIPTED)
    found = rollout_of(policy)
    for row, (example, response) in enumerate(zip(EXAMPLES, SCRIPTED)):
        ids = [TOKENIZER.eot_token, *TOKENIZER.encode(example.prompt), *response]
        scored = found.targets[row] != IGNORE_INDEX
        assert found.input_ids[row, : len(ids) - 1].tolist() == ids[:-1]
        assert found.targets[row][scored].tolist() == response
        assert scored.nonzero()[:, 0].tolist() == list(range(len(ids) - 1 - len(response), len(ids) - 1))
    assert found.ended.tolist() == [True, False, True, False, False, False]
    assert found.lengths.tolist() == [3, 9, 1, 2, 1, 1]
    assert [r.text for r in found.responses[:3]] == [TOKENIZER.decode([5, 6]), TOKENIZER.decode([7] * 9), ""]


def test_ids_are_drawn_from_the_distribution_that_is_trained(policy):
    """The share of draws of the first id that lie in the more probable half follows exp(logp at that temperature)."""
    few = [EXAMPLES[0]] * 600
    first = sample(policy, TOKENIZER, few, "2", max_response=1, temperature=0.7).targets[:, -1]
    ids = torch.tensor([[TOKENIZER.eot_token, *TOKENIZER.encode("Once ")]]).expand(TOKENIZER.n_vocab, -1)
    targets = torch.full_like(ids, IGNORE_INDEX)
    targets[:, -1] = torch.arange(TOKENIZER.n_vocab)
    with torch.no_grad():
        p = score(policy, ids, targets, temperature=0.7).logprobs[:, -1].exp()
    torch.testing.assert_close(p.sum(), p.new_ones(()), rtol=0, atol=1e-9)
    likely = p > p.median()
    share = p[likely].sum()
    assert 0.6 < share < 0.95  # so that another temperature fails
    assert abs(likely[first].double().mean() - share) < 4 * (share * (1 - share) / 600).sqrt()


@pytest.mark.parametrize("decoder", ["lean", "general"])
def test_sampler_and_training_forward_choose_the_same_experts(policy, decoder, monkeypatch):
    monkeypatch.setattr(lean, "TOKENS_AT_ONCE", 24)  # pieces of four columns
    if decoder == "general":
        monkeypatch.setattr(lean, "obstacle", lambda model: "a test")
    found = rollout_of(policy, routing=True)
    read = (
        torch.arange(found.input_ids.shape[1])
        < ((found.targets != IGNORE_INDEX).cumsum(1).argmax(1) + 1)[:, None]
    )
    known = found.chosen >= 0
    assert (known == known[..., :1]).all() and not known[~read].any()
    left_out = read[..., None] & ~known[..., 0]
    prompt = read & ((found.targets != IGNORE_INDEX).cumsum(1) == 0)
    assert left_out[..., :-1].sum() == 0 and not (left_out[..., -1] & ~prompt).any()
    assert (left_out.sum() == 0) == (decoder == "general")
    router = score(policy, found.input_ids, found.targets).router
    assert flips(router, found.chosen).tolist() == [0, int(known[..., 0].sum())]
    wrong = found.chosen.clone()
    wrong[0, 0, 1, 0] = (set(range(7)) - set(wrong[0, 0, 1].tolist())).pop()
    assert flips(router, wrong)[0] == 1
    assert flips(router, found.chosen.flip(-1))[0] == 0  # sets, not orders


def test_micro_batches_have_all_targets_and_no_column_of_padding_alone():
    targets = torch.full((5, 9), IGNORE_INDEX)
    for row, (start, end) in enumerate([(2, 5), (0, 1), (3, 9), (1, 2), (4, 6)]):
        targets[row, start:end] = 1
    rows = torch.tensor([0, 1, 3, 4])
    batches, counts = micro_batches(2, rows, targets, value=torch.arange(5), deep=torch.zeros(5, 9, 2, 3))
    assert [tuple(b["targets"].shape) for b in batches] == [(2, 5), (2, 6)] and counts == [4, 3]
    assert [b["value"].tolist() for b in batches] == [[0, 1], [3, 4]]
    assert batches[1]["deep"].shape == (2, 6, 2, 3)


# ----------------------------------------------------------------------------------------------- replay
IDS = torch.randint(small_model.V, (2, 11), generator=torch.Generator().manual_seed(5))
TARGETS = IDS.roll(-1, 1)


def loss_and_gradients(model, chosen=None):
    model.zero_grad()
    with replayed_routing(model) as follow:
        follow(chosen)
        scored = score(model, IDS, TARGETS)
        loss = -scored.logprobs.sum()
        loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}, scored.router


def experts_of(router):
    return torch.stack(router.chosen, dim=2)  # (B, T, L, k)


def others(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(2, 11, 3, 7, generator=draw).topk(2, dim=-1).indices


@pytest.mark.parametrize("router", ["topk_softmax", "topk_sigmoid_unnormalized"])
def test_replay_of_its_own_choices_gives_the_same_bits(router):
    model = random_model(torch.float32, router=router)  # with selection biases that are not 0
    scored = score(model, IDS, TARGETS)
    (-scored.logprobs.sum()).backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters()}
    chosen = experts_of(scored.router).flip(-1)
    loss, gradients, again = loss_and_gradients(model, chosen)
    assert torch.equal(loss, -scored.logprobs.detach().sum()) and differences(plain, gradients) == []
    assert torch.equal(experts_of(again).flip(-1), chosen)


def test_replay_runs_other_experts_and_leaves_unknown_places_to_the_router():
    model, chosen = random_model(), others()
    plain = experts_of(score(model, IDS, TARGETS).router)
    chosen[0, :3, 2] = -1
    _, _, router = loss_and_gradients(model, chosen)
    found = experts_of(router)
    assert torch.equal(found.sort(-1).values[1], chosen.sort(-1).values[1]) and not torch.equal(found, plain)
    (differ, compared) = flips(
        router, chosen
    ).tolist()  # what the routers would have done, on these hidden states
    assert compared == 2 * 11 * 3 - 3 and 0 < differ < compared
    assert model.block[0].mlp.routing_rule.__name__ == "topk_softmax"


def test_replay_has_the_gradient_of_the_router():
    model, chosen = random_model(), others()
    _, gradients, _ = loss_and_gradients(model, chosen)
    bias, step = model.block[1].mlp.gate.bias, 1e-5
    slopes = torch.zeros(7)
    for expert in range(7):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                bias[expert] += sign * step
            ends.append(loss_and_gradients(model, chosen)[0])
            with torch.no_grad():
                bias[expert] -= sign * step
        slopes[expert] = (ends[0] - ends[1]) / (2 * step)
    got = gradients["block.1.mlp.gate.bias"].float()
    assert got.abs().max() > 1e-2
    torch.testing.assert_close(got, slopes, rtol=1e-4, atol=1e-5)


def test_replay_holds_when_blocks_are_computed_again():
    model, chosen = random_model(torch.float32), others()
    plain = loss_and_gradients(model, chosen)
    checkpoint_blocks(model, "full")
    again = loss_and_gradients(model, chosen)
    assert torch.equal(plain[0], again[0]) and differences(plain[1], again[1]) == []


# ------------------------------------------------------------------------------------------- whole runs
@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder with a base and prompts, and the flags of a short run."""
    folder = tmp_path_factory.mktemp("grpo")
    write_start(folder)
    return folder, [*FLAGS, *"--prompts 4 --group 8 --batch_size 6 --held_out 8 --lr 0.1".split()]


@pytest.fixture(autouse=True)
def easy_reward(monkeypatch):
    monkeypatch.setitem(rewards.REWARDS, EASY, easy)


def go(start, *flags):
    folder, shared = start
    return run_here(folder, "grpo", *shared, "--rewards", EASY, *flags, script="post_train")


def records(start, out, tag):
    lines = (start[0] / out / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line[tag] for line in map(json.loads, lines) if tag in line}


def test_a_reward_that_can_be_learned_rises(start):
    assert go(start, "--out_dir", "learned", "--max_iters", 9, "--eval_every", 9) == 0
    held = records(start, "learned", "val/reward")
    assert held[0] < 0.6 and held[9] > 0.8, held
    assert set(records(start, "learned", "post/routing_flips").values()) == {0.0}
    assert records(start, "learned", "post/groups_dropped")[1] == 0
    assert 0 < records(start, "learned", "post/sampling_share")[1] < 1


def test_a_run_that_a_reward_stopped_goes_on_with_the_same_bits(start, monkeypatch, capsys):
    """With everything on: replay, recomputation, a reference, several updates, adapters."""
    flags = "--max_iters 3 --save_every 3 --eval_every 3 --group 4 --updates 2 --beta 0.1 --routing_replay --loss dapo".split()
    flags += "--batch_size 16 --activation_checkpointing full --temperature 0.8 --truncated penalize --lora_rank 2".split()
    assert go(start, "--out_dir", "straight", *flags) == 0
    kl = records(start, "straight", "post/kl")
    assert min(kl.values()) > 0  # of the base, or the resumed run, which reads the base again, would differ
    calls = []

    def failing(response):
        calls.append(response)
        return easy(response) if len(calls) < 9 + 30 + 8 + 2 * 16 + 3 else float("nan")

    monkeypatch.setitem(rewards.REWARDS, EASY, failing)
    capsys.readouterr()
    assert go(start, "--out_dir", "stopped", *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"the reward {EASY} for the prompt '" in error and "must be a finite number, got nan" in error
    assert "saved as stopped/checkpoint_2.pt; continue it with --resume" in error
    monkeypatch.setitem(rewards.REWARDS, EASY, easy)
    assert run_here(start[0], *"grpo --resume --out_dir stopped".split(), script="post_train") == 0
    ends = [load(start[0] / name / "checkpoint_3.pt") for name in ("straight", "stopped")]
    for part in ("model", "optimizers", "rng", "data", "post", "lora"):
        assert differences(ends[0][part], ends[1][part], part) == []
    for tag in ("post/reward", "post/kl", "val/reward", "train/loss"):
        assert records(start, "straight", tag) == records(start, "stopped", tag)


def test_equal_rewards_update_nothing_and_say_so(start, monkeypatch, capsys):
    monkeypatch.setitem(rewards.REWARDS, EASY, lambda response: 0.3)
    assert go(start, "--out_dir", "equal", "--max_iters", 2, "--rewards", f"{EASY}:3,words") == 0
    assert (
        "step 2: no update, because no group has responses with different rewards" in capsys.readouterr().err
    )
    assert records(start, "equal", "post/groups_dropped") == {1: 4, 2: 4}
    weights = [load(start[0] / name)["model"] for name in ("equal/checkpoint_2.pt", "base/checkpoint_2.pt")]
    assert differences(*weights) == []


def test_responses_that_do_not_train_are_in_no_denominator(policy, monkeypatch):
    monkeypatch.setattr(sampling, "generate", lambda *_, **__: SCRIPTED)
    cfg = GRPOConfig(prompts=3, group=2, max_response=9, truncated="mask", loss="dr_grpo", rewards=EASY)
    learner, seen = grpo.Objective(cfg, TOKENIZER), []

    def optimize(run, progress, batches, counts, loss_of, **options):
        seen.append((batches, counts, options))
        return SimpleNamespace(loss=torch.ones(())), {}, 0.0

    monkeypatch.setattr(learner, "optimize", optimize)
    run, progress = SimpleNamespace(writer=MagicMock()), SimpleNamespace(step=0)
    rewards_of = torch.tensor([1, 0, 0.5, 0.5, 2, 3], dtype=torch.float64)  # the second group says nothing
    rollout, judged = rollout_of(policy), rollouts.Judged(rewards_of, {})
    _, _, found = learner.learn(run, progress, rollout, judged, True)
    ((batches, counts, options),) = (
        seen  # of six responses, two groups differ, and there only the first one ended
    )
    assert counts == [3] and options["train"] and found["post/groups_dropped"] == 1
    assert batches[0]["weights"][batches[0]["weights"] > 0].tolist() == pytest.approx([1 / 9] * 3)
    assert batches[0]["advantages"].tolist() == [0.5]
    assert grpo.token_weights(torch.ones(2, 3, dtype=torch.bool), "grpo", 9).tolist() == [[1 / 6] * 3] * 2
    assert grpo.overlong_penalty(torch.tensor([80, 90, 100]), 100).tolist() == [0, -0.5, -1]


def test_micro_batches_change_memory_and_no_gradient(start):
    for size in (5, 32):
        flags = f"--max_iters 1 --loss dapo --batch_size {size} --out_dir rows{size}".split()
        assert go(start, *flags, "--eval_every", 9) == 0
    for tag in ("optim/grad_norm", "optim/grad_norm/router", "train/loss"):
        ours, theirs = (records(start, f"rows{size}", tag)[1] for size in (5, 32))
        assert ours == pytest.approx(theirs, rel=1e-4) and ours > 0


def test_a_step_in_bfloat16_counts_the_choices_in_which_sampler_and_training_differ(start, monkeypatch):
    original = replay.chosen_experts

    def others_in_the_first_layer(*arguments):
        chosen = original(*arguments)
        first = chosen[:, :, 0]
        first[first >= 0] = (first[first >= 0] + 1) % 6
        return chosen

    monkeypatch.setattr(sampling, "chosen_experts", others_in_the_first_layer)
    assert go(start, *"--out_dir half --max_iters 1 --dtype bfloat16 --eval_every 9".split()) == 0
    assert (
        0.5 <= records(start, "half", "post/routing_flips")[1] < 0.9
    )  # one layer of two, and what rounding flips


@pytest.mark.parametrize(
    "flags, told",
    [
        ("--max_response 29", "held.jsonl, line 1: the prompt needs 4 tokens, and a text may have 32 .* lower --max_response"),
        ("--rewards words:1,lenght:2", "'lenght' is no reward; did you mean 'length'"),
        ("--grad_accum 2", "grad_accum must be 1, because a step trains all .* got 2; leave it out, and set the size of a step"),
        ("--group 1", "group must be at least 2; got 1"),
        ("--beta 1 --reference nowhere", "nowhere"),
        ("--rewards feature", 'tasks.jsonl, line 1\\) .* must have "feature", one of dialogue, .* got None; mend the reward in'),
        ("--dataset auto --val_dataset nowhere.jsonl", "nowhere.jsonl: cannot be read: there is no such file"),
        ("--val_dataset tasks.jsonl", "the training data .* and the held-out examples .* are the same, .* give others with"),
        ("--dataset late.jsonl", "the reward first half for the prompt 'B ' \\(late.jsonl, line 2\\) raised KeyError: 'bad'"),
        ("--dropout 0.1", "post_train.py grpo compares .* which dropout of the model would change .*; add --dropout 0"),
        ("--reference base", "reference names a model that is read if beta is above 0, got beta=0; raise it, or leave"),
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_flag_is_one_sentence_and_writes_nothing(start, capsys, monkeypatch, flags, told):
    (start[0] / "late.jsonl").write_text('{"prompt": "A "}\n{"prompt": "B ", "bad": 1}\n')
    reward = lambda r: {}["bad"] if "bad" in r.example.task else 0.0  # noqa: E731
    monkeypatch.setitem(rewards.REWARDS, EASY, reward)
    assert go(start, "--out_dir", "bad", *flags.split()) == 2
    assert re.search(told, capsys.readouterr().err.splitlines()[-1])
    assert not (start[0] / "bad").exists()
