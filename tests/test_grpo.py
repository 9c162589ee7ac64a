"""GRPO and its relatives: losses and gradients, rollouts, replayed routing, and a run that learns and resumes."""

import json

import pytest
import small_model
import torch
from test_lean_decoder import random_model
from toy_run import TINY, differences, load, run_here, write_corpus

from architecture.generation import lean
from architecture.generation.decode import Decoder
from architecture.interface import IGNORE_INDEX
from architecture.tokenizer import get_tokenizer
from data.examples import Example
from training.memory import checkpoint_blocks
from training.post import grpo, rewards, rollouts
from training.post.policy import score
from training.post.rollouts import Replay, chosen_experts, flips, micro_batches, sample

V, EOT = small_model.V, 0


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


# ------------------------------------------------------------------------------------------- whole runs
EASY = "first half"  # the share of letters up to m


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model of two steps, and 40 prompts of unequal lengths, as files; the flags of a short run."""
    folder = tmp_path_factory.mktemp("grpo")
    data = write_corpus(folder)
    assert (
        run_here(
            folder,
            *TINY,
            *data,
            "--max_iters",
            2,
            "--initial_context_length",
            32,
            "--no-use_tensorboard",
            "--out_dir",
            "base",
        )
        == 0
    )
    lines = [{"prompt": f"{'Once ' * (n % 3)}{n} ", "response": "yes", "words": ["yes"]} for n in range(40)]
    for name, some in (("tasks", lines[:30]), ("held", lines[30:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in some))
    flags = "--dataset tasks.jsonl --val_dataset held.jsonl --init_from base --no-use_tensorboard --threads 1".split()
    flags += [
        "--story_dataset",
        "bundled",
        *"--prompts 4 --group 4 --max_response 8 --batch_size 6 --block_size 16".split(),
    ]
    flags += "--eval_tokens 64 --final_eval_tokens 64 --held_out 8 --lr 0.01 --warmup 0".split()
    return folder, flags


@pytest.fixture(autouse=True)
def easy_reward(monkeypatch):
    def easy(response):
        letters = [c for c in response.text.lower() if c.isalpha()]
        return sum(c <= "m" for c in letters) / max(1, len(letters))

    monkeypatch.setitem(rewards.REWARDS, EASY, easy)


def go(start, *flags):
    folder, shared = start
    return run_here(folder, "grpo", *shared, "--rewards", EASY, *flags, script="post_train")


def records(start, out, tag):
    lines = (start[0] / out / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line[tag] for line in map(json.loads, lines) if tag in line}


def test_a_reward_that_can_be_learned_rises(start):
    assert go(start, "--out_dir", "learned", "--max_iters", 30, "--eval_every", 30) == 0
    held = records(start, "learned", "val/reward")
    assert held[30] > held[0] + 0.2, held
