"""DPO: the rows of pairs, the loss and its gradient, the reference, the bundled pairs, and whole runs."""

import hashlib
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import small_model
import torch
from toy_run import TINY, differences, load, run_here

from architecture.interface import IGNORE_INDEX
from architecture.tokenizer import get_tokenizer, tokenizer_state
from data.examples import Pair, open_examples
from data.loader import TrainLoader
from data.rows import Row, pair_batch
from data.stories import TRAIN_STORIES, story
from data.stories.pairs import KINDS, pairs
from training.post.dpo import PairLoss, of_chosen, step_record
from training.post.reference import open_reference
from training.post.sampling import share_truncated
from training.post.settings import DPOConfig
from training.step import accumulate_gradients

BETA = 0.3
EOT = small_model.V - 1
THINGS = ("ball", "kite", "box", "hat", "boat", "drum")


def write_pairs(path: Path, number: int = 60, **changes) -> Path:
    """Pairs in which a good response is about the red one, and a bad one about the blue one."""
    rows = [
        dict(
            prompt=f"{n} {THINGS[n % 6]}s.",
            chosen=" It was red." + " Yes." * (n % 3),
            rejected=" It was blue.",
        )
        for n in range(number)
    ]
    path.write_text("".join(json.dumps(row | changes) + "\n" for row in rows), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------ rows
def test_prompt_and_responses_are_tokenized_apart_and_only_responses_with_their_ends_are_targets(tmp_path):
    tokenizer = get_tokenizer("bundled1536")
    source = open_examples(
        str(write_pairs(tmp_path / "p.jsonl", 1)), Pair, split="train", bundled=lambda split: ([], "")
    )
    with TrainLoader(source, tokenizer, batch_size=1, block_size=40, packing="pairs") as loader:
        batch = next(loader)
    pair, eot = source[0], tokenizer.eot_token
    ids = [tokenizer.encode(part) for part in pair[:3]]
    prompt, longest = [eot, *ids[0]], max(len(ids[1]), len(ids[2]))
    for row, response in enumerate(ids[1:]):
        padding = longest - len(response)
        assert batch["input_ids"][row].tolist() == [*prompt, *response, *[eot] * padding]
        masked = [IGNORE_INDEX] * len(ids[0])
        assert batch["targets"][row].tolist() == [*masked, *response, eot, *[IGNORE_INDEX] * padding]


def test_pairs_go_on_where_they_were_and_a_cut_response_has_no_end_and_is_counted(tmp_path):
    tokenizer = get_tokenizer("bundled1536")
    path = write_pairs(tmp_path / "p.jsonl")
    source = open_examples(str(path), Pair, split="train", bundled=lambda split: ([], ""))
    options = dict(batch_size=3, block_size=9, packing="pairs", seed=5)
    with TrainLoader(source, tokenizer, **options) as loader:
        batches = [next(loader)]
        position = loader.state_dict()
        batches += [next(loader) for _ in range(30)]  # into the second pass over the pairs
    with TrainLoader(source, tokenizer, **options, state=position) as loader:
        assert all(torch.equal(next(loader)[name], b[name]) for b in batches[1:] for name in ("targets",))
    shapes = {tuple(batch["targets"].shape) for batch in batches}
    assert {rows for rows, _ in shapes} == {6} and max(length for _, length in shapes) == 9
    lengths = [(batch["targets"] != IGNORE_INDEX).sum(1) for batch in batches]
    assert any(len(set(row.tolist())) > 1 for row in lengths)
    ends = torch.cat([(batch["targets"] == tokenizer.eot_token).sum(1) for batch in batches])
    assert set(ends.tolist()) == {0, 1}
    assert share_truncated(batches, [tokenizer.eot_token]) == pytest.approx(
        float((ends == 0).double().mean())
    )


# ------------------------------------------------------------------------------- the loss and its gradient
def random_pairs(lengths: list[tuple[int, int, int]], seed: int) -> list[tuple[Row, Row]]:
    """Pairs of rows [EOT, prompt, response, EOT] with these lengths of prompt, chosen and rejected response."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for prompt, *responses in lengths:
        first = torch.randint(EOT, (prompt,), generator=draw).tolist()
        texts = [[EOT, *first, *torch.randint(EOT, (n,), generator=draw).tolist(), EOT] for n in responses]
        scored = [[False] * (1 + prompt) + [True] * (len(ids) - 1 - prompt) for ids in texts]
        made.append(tuple(Row(np.array(i), np.array(s), ()) for i, s in zip(texts, scored)))
    return made


def log_probability(model, row: Row) -> torch.Tensor:
    """Of the response and its end, from the logits of this row alone."""
    ids = torch.from_numpy(row.ids)
    found = model(ids[None, :-1]).logits[0].log_softmax(-1)
    return sum(found[place - 1, ids[place]] for place in range(len(ids)) if row.scored[place])


def shift_of(one, other, pairs: list[tuple[Row, Row]]) -> float:
    """Share of the choices at tokens with a target that are another set of experts in another model."""
    differs = []
    for row in (row for pair in pairs for row in pair):
        both = [model(torch.from_numpy(row.ids)[None, :-1]).router.chosen for model in (one, other)]
        for layer, other_layer in zip(*both):
            for place in np.flatnonzero(row.scored[1:]):
                differs.append(set(layer[0, place].tolist()) != set(other_layer[0, place].tolist()))
    return sum(differs) / len(differs)


def test_loss_gradient_and_records_are_those_of_plain_autograd_over_all_logits_whatever_the_micro_batches():
    policy, reference, twin = (small_model.model(seed=seed).double() for seed in (0, 1, 0))
    reference.requires_grad_(False)
    rows = random_pairs([(3, 5, 9), (6, 7, 2), (1, 1, 4), (4, 7, 6), (2, 12, 3)], seed=2)
    logp, ref = (
        torch.stack([torch.stack([log_probability(model, row) for row in pair]) for pair in rows])
        for model in (twin, reference)
    )  # (pairs, 2) each
    rewards = BETA * (logp - ref)
    margins = rewards[:, 0] - rewards[:, 1]
    expected = torch.log1p(torch.exp(-margins)).mean()
    expected.backward()
    expected, logp, rewards, margins = (x.detach() for x in (expected, logp, rewards, margins))

    batches = [
        {name: torch.from_numpy(part) for name, part in pair_batch(some, EOT).items()}
        for some in (rows[:2], rows[2:])
    ]
    model = PairLoss(policy, reference, BETA)
    bytes_of = torch.ones(small_model.V, dtype=torch.long).index_fill(0, torch.tensor([EOT]), 0)
    result = accumulate_gradients(
        model,
        batches,
        DPOConfig(),
        previous_share=None,
        carry=None,
        token_bytes=bytes_of,
        autocast=torch.enable_grad,
        counts=[2, 3],
    )
    assert abs(float(result.loss - expected)) < 1e-12
    wanted = {name: p.grad for name, p in twin.named_parameters()}
    assert max(float(grad.abs().max()) for grad in wanted.values()) > 1e-3
    for name, p in policy.named_parameters():
        assert (p.grad - wanted[name]).abs().max() < 1e-12, name

    record = step_record(model.seen, batches, BETA, EOT)
    means = logp.mean(0)
    assert record == pytest.approx(
        {
            "post/loss": float(expected),
            "post/accuracy": float((margins > 0).double().mean()),
            "post/reward_margin": float(margins.mean()),
            "post/reward_chosen": float(rewards[:, 0].mean()),
            "post/reward_rejected": float(rewards[:, 1].mean()),
            "post/logp_chosen": float(means[0]),
            "post/logp_rejected": float(means[1]),
            "post/routing_shift": sum(shift_of(policy, reference, some) for some in (rows[:2], rows[2:])) / 2,
            "data/truncated": 0.0,
            "data/padding_share": 1 - (32 + 24 + 10) / (4 * 14 + 6 * 15),
        },
        abs=1e-7,
    )
    assert 0.5 < record["post/routing_shift"] <= 1  # two models that have nothing in common
    loss, nats, num_bytes = of_chosen(model.seen, batches, bytes_of)
    assert float(loss) == pytest.approx(float(-logp[:, 0].sum()) / 37, rel=1e-6)
    assert num_bytes == 32 and 0 < nats < 37 * loss


# ------------------------------------------------------------------------------------------ the reference
def saved_reference(path: Path, tokenizer: str = "bundled1536", seed: int = 1, **changes) -> str:
    made = small_model.model(seed=seed, **changes)
    state = {"model_name": "gptoss", "config": vars(made.config), "step": 0, "model": made.state_dict()}
    torch.save(state | {"tokenizer": tokenizer_state(get_tokenizer(tokenizer))}, path)
    return str(path)


def test_the_reference_is_a_frozen_copy_of_the_start_or_the_model_of_a_file_and_is_recognised_again(tmp_path):
    policy, tokenizer = small_model.model(dropout=0.5).train(), get_tokenizer("bundled1536")
    path = saved_reference(tmp_path / "r.pt")
    own, sha256 = open_reference(DPOConfig(init_from=str(tmp_path / "unread.pt")), policy, tokenizer, None)
    other, other_sha256 = open_reference(DPOConfig(reference=path), policy, tokenizer, None)
    assert other_sha256 != sha256
    for reference, same in ((own, policy), (other, small_model.model(seed=1))):
        weights = dict(same.named_parameters())
        assert all(torch.equal(p, weights[name]) for name, p in reference.named_parameters())
        assert not any(p.requires_grad for p in reference.parameters()) and not reference.training
    assert own.embedding.weight.data_ptr() != policy.embedding.weight.data_ptr()
    again = open_reference(DPOConfig(init_from=path), policy, tokenizer, other_sha256)  # at a resume
    assert all(torch.equal(a, b) for a, b in zip(again[0].parameters(), other.parameters()))
    for cfg in (DPOConfig(init_from=path), DPOConfig(reference=path)):
        with pytest.raises(
            ValueError, match="are not those of the reference model with which this run began"
        ):
            open_reference(cfg, policy, tokenizer, sha256)
    with pytest.raises(
        ValueError, match="is needed again: .*unread.pt does not exist.*place with --reference"
    ):
        open_reference(DPOConfig(init_from=str(tmp_path / "unread.pt")), policy, tokenizer, sha256)


@pytest.mark.parametrize(
    "changes, told",
    [
        (dict(tokenizer="stories4k"), "has tokenizer stories4k .* must have that of the model, bundled1536"),
        (dict(intermediate_size=12), "and has intermediate_size 12 in place of 9; name another"),
        (dict(sliding_window=8), "and has sliding_window 8 in place of 6; name another"),
    ],
    ids=str,
)
def test_a_reference_of_another_tokenizer_or_of_other_sizes_is_refused(tmp_path, changes, told):
    cfg = DPOConfig(reference=saved_reference(tmp_path / "r.pt", **changes))
    with pytest.raises(ValueError, match=told):
        open_reference(cfg, small_model.model(), get_tokenizer("bundled1536"), None)


# ---------------------------------------------------------------------------------------- the bundled pairs
def test_bundled_pairs_are_stories_that_go_on_as_told_or_in_a_wrong_way():
    (train, identity), (held_out, other) = pairs("train"), pairs("validation")
    assert len(train) == TRAIN_STORIES and len(held_out) == 1000 and identity != other
    assert held_out[3].prompt + held_out[3].chosen == story(TRAIN_STORIES + 3).text
    some = [train[number] for number in range(90)]
    for name in ("stories4k", "bundled1536"):
        encode = get_tokenizer(name).encode  # as in the stories on which a model was trained before
        assert all(encode(p.prompt) + encode(p.chosen) == encode(p.prompt + p.chosen) for p in some)
    for number, pair in enumerate(some):
        assert pair.prompt + pair.chosen == story(number).text and pair.rejected != pair.chosen
    assert {pair.name.partition("(")[2].removesuffix(")") for pair in some} == set(KINDS)
    # EDITION changes with the edits
    told = hashlib.sha256(json.dumps([pair[:3] for pair in some]).encode()).hexdigest()
    assert (identity.split()[2], told[:12]) == ("1", "9ffd3d03f2f6")


# ----------------------------------------------------------------------------------------------- whole runs
@pytest.fixture(scope="module")
def base(tmp_path_factory, corpus) -> Path:
    folder = tmp_path_factory.mktemp("base")
    flags = [*TINY, *corpus, "--max_iters", 2, "--initial_context_length", 32, "--no-use_tensorboard"]
    assert run_here(folder, *flags, "--out_dir", "base") == 0
    write_pairs(folder / "pairs.jsonl"), write_pairs(folder / "held_out.jsonl", 8)
    return folder


FLAGS = (
    "dpo --init_from base --dataset pairs.jsonl --val_dataset held_out.jsonl --story_dataset bundled --device cpu "
    "--threads 1 --batch_size 3 --grad_accum 2 --block_size 24 --max_iters 8 --save_every 4 --eval_every 8 "
    "--eval_tokens 128 --final_eval_tokens 128 --log_every 1 --lr 1e-2 --no-use_tensorboard --out_dir"
).split()


def test_a_run_learns_the_preference_and_ends_with_the_same_bits_after_a_stop(base, monkeypatch, capsys):
    from training.post import dpo

    assert run_here(base, *FLAGS, "straight", script="post_train") == 0
    records = [json.loads(line) for line in (base / "straight/metrics.jsonl").read_text().splitlines()]
    at = {r["step"]: r for r in records if "val/pair_accuracy" in r}
    err = capsys.readouterr().err
    assert at.keys() == {0, 8} and "of 8 held-out pairs" in err and "--- held-out prompt 3" in err
    assert at[0]["val/dpo_loss"] == pytest.approx(math.log(2)) and at[0]["val/reward_accuracy"] == 0.5
    assert at[8]["val/dpo_loss"] < 0.6 and at[8]["val/reward_accuracy"] == 1.0
    assert at[8]["val/pair_accuracy_low"] <= at[8]["val/pair_accuracy"] <= at[8]["val/pair_accuracy_high"]
    assert all(0 <= r["val/ended"] <= 1 for r in at.values()) and "val/passes" not in at[0]  # not of stories
    steps = [r for r in records if "train/loss" in r]
    final = next(r["final/loss"] for r in records if "final/loss" in r)
    capsys.readouterr()
    alone = "--eval_only straight --eval_tokens 128 --device cpu --threads 1".split()
    assert run_here(base, *alone) == 0 and f"validation loss {final:.4f}" in capsys.readouterr().out
    assert len(steps) == 8 and all(0 < r["post/logp_chosen"] / -r["train/loss"] < 20 for r in steps)

    original = dpo.Objective.step

    def stopping(objective, run, progress):
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(objective, run, progress)

    with monkeypatch.context() as patch:
        patch.setattr(dpo.Objective, "step", stopping)
        assert run_here(base, *FLAGS, "stopped", script="post_train") == 128 + signal.SIGTERM
    resume = "dpo --resume --out_dir stopped".split()
    began, moved = base / "base/checkpoint_2.pt", base / "moved.pt"
    began.rename(moved)
    capsys.readouterr()
    assert run_here(base, *resume, script="post_train") == 2
    error = capsys.readouterr().err
    assert "if the file was moved, give its place with --reference" in error and error.count("\n") == 1
    assert run_here(base, *resume, "--reference", "moved.pt", script="post_train") == 0
    moved.rename(began)
    ends = [load(base / name / "checkpoint_8.pt") for name in ("straight", "stopped")]
    for part in ("model", "optimizers", "rng", "data", "post"):
        assert differences(ends[0][part], ends[1][part], part) == []


@pytest.mark.parametrize(
    "changes, told",
    [
        (dict(chosen=" It was blue."), "line 1: chosen and rejected must differ, and are equal; mend or remove it"),
        (dict(prompt="A ball and a kite. " * 5), "line 1, chosen: its prompt needs 37 tokens, but a row has block_size 24"),
    ],
    ids=["equal", "long prompt"],
)  # fmt: skip
def test_bad_pairs_are_refused_before_anything_is_written(base, changes, told, capsys):
    write_pairs(base / "bad.jsonl", 2, **changes)
    capsys.readouterr()
    assert run_here(base, *FLAGS, "refused", "--val_dataset", "bad.jsonl", script="post_train") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"bad.jsonl, {told}" in error and not (base / "refused").exists()
