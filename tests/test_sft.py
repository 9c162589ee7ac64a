"""Supervised fine-tuning: several documents in a row, the loss of responses, held-out tasks, and whole runs."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from small_model import V, model
from toy_run import TINY, differences, load, run_here

from architecture import gpt2
from architecture.interface import IGNORE_INDEX, documents_of
from architecture.tokenizer import get_tokenizer
from data.examples import Example
from data.rows import Row, packed_batch
from data.stories.tasks import tasks
from training.config import TrainConfig
from training.post import sampling
from training.post.rewards import task_record
from training.post.sampling import sample_in_rows, share_truncated
from training.post.sft import Objective
from training.step import accumulate_gradients

LENGTHS = 9, 4, 13  # of the documents of a row; the longest exceeds two windows


def small(name: str) -> torch.nn.Module:
    if name == "gpt2":
        sizes = dict(num_hidden_layers=2, vocab_size=V, hidden_size=20, intermediate_size=9)
        config = gpt2.ModelConfig(**sizes, num_attention_heads=5, initial_context_length=64)
        return gpt2.GPT2(config, generator=torch.Generator().manual_seed(0)).double()
    return model(attention=name, position="rope").double()


def row_of(lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of tokens, (2, T), and the positions of documents of these lengths in the second one."""
    ids = torch.randint(V, (2, sum(lengths)), generator=torch.Generator().manual_seed(5))
    positions = torch.cat([torch.arange(n) for n in lengths])
    return ids, torch.stack((torch.arange(sum(lengths)), positions))


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("name", ["eager", "sdpa", "flex", "gpt2"])
def test_each_document_of_a_row_has_the_logits_that_it_has_alone(name):
    made, (ids, positions) = small(name), row_of(LENGTHS)
    with torch.no_grad():
        together = made(ids, positions=positions).logits
        alone = [made(part[None]).logits[0] for part in ids[1].split(LENGTHS)]
        whole = made(ids[:1]).logits[0]
    torch.testing.assert_close(together[1], torch.cat(alone), rtol=0, atol=1e-12)
    torch.testing.assert_close(together[0], whole, rtol=0, atol=1e-12)


def test_only_a_position_that_does_not_rise_begins_a_document():
    padded = torch.tensor([[-2, -1, 0, 1, 2, 3], [0, 1, 0, 0, 1, 2]])
    assert documents_of(padded).tolist() == [[0] * 6, [0, 0, 1, 2, 2, 2]]
    assert documents_of(None) is None


# ------------------------------------------------------------------------------------------------- loss
def example_rows() -> list[Row]:
    """Examples of unequal lengths, with prompts of unequal lengths."""
    draw, rows = torch.Generator().manual_seed(7), []
    for prompt, response in ((3, 2), (5, 9), (2, 4), (6, 1), (1, 7)):
        ids = torch.randint(V, (prompt + response,), generator=draw).numpy()
        rows.append(Row(ids, torch.arange(prompt + response).numpy() >= prompt, ()))
    return rows


def step_of(made: torch.nn.Module, rows: list[list[Row]]) -> tuple[float, list[torch.Tensor]]:
    """The loss and the gradients of a step with these micro-batches, each of which has these rows of examples."""
    batches = [packed_batch(part, 0, 20) for part in rows]
    batches = [{name: torch.from_numpy(part) for name, part in batch.items()} for batch in batches]
    result = accumulate_gradients(
        made, batches, TrainConfig(balance="none", compile="off"), previous_share=None, carry=None,
        token_bytes=torch.ones(V), autocast=contextlib.nullcontext, measured=False,
    )  # fmt: skip
    gradients = [p.grad.clone() for p in made.parameters()]
    made.zero_grad()
    return float(result.loss), gradients


def test_the_loss_of_a_step_is_the_mean_over_its_response_tokens_however_it_is_divided():
    made, rows = model().double(), example_rows()
    total, sum_of_losses = 0, 0.0
    for row in rows:  # each alone, from its logits
        ids = torch.from_numpy(row.ids)[None]
        losses = -made(ids[:, :-1]).logits.log_softmax(-1).gather(2, ids[:, 1:, None])[0, :, 0]
        scored = torch.from_numpy(row.scored[1:])
        sum_of_losses, total = sum_of_losses + losses[scored].sum(), total + int(scored.sum())
    (sum_of_losses / total).backward()
    wanted = float(sum_of_losses.detach() / total), [p.grad.clone() for p in made.parameters()]
    made.zero_grad()
    a, b, c, d, e = rows
    for divided in ([[[a], [b], [c, d], [e]]], [[[a]], [[b]], [[c, d]], [[e]]], [[[a, c, e], [b]], [[d]]]):
        loss, gradients = step_of(made, divided)
        assert loss == pytest.approx(wanted[0], abs=1e-12)
        for ours, theirs in zip(gradients, wanted[1]):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_a_response_that_is_cut_off_counts_with_its_kept_tokens_and_is_told():
    whole, cut = example_rows()[:2]
    cut = cut._replace(ids=cut.ids[:11], scored=cut.scored[:11])
    cut.ids[cut.ids == 36], whole.ids[whole.ids == 36] = 0, 0
    whole.ids[-1] = 36  # the end of a response
    batch = {name: torch.from_numpy(part) for name, part in packed_batch([[whole], [cut]], 0, 10).items()}
    assert (batch["targets"] != IGNORE_INDEX).sum() == 2 + 6
    assert share_truncated([batch], [36]) == 0.5


# ------------------------------------------------------------------------------------------- held-out tasks
def test_a_story_is_judged_by_its_own_task():
    source, _ = tasks("validation")
    some = [source[n] for n in range(3)]
    own = task_record(some, [example.response for example in some])
    assert own == {"val/words": 1, "val/all_words": 1, "val/feature": 1, "val/passes": 1}
    words = some[0].task["words"]
    assert task_record(some[:1], [f"The {words[0]} and the {words[2]}."]) == {
        "val/words": pytest.approx(2 / 3), "val/all_words": 0, "val/feature": 0, "val/passes": 0,
    }  # fmt: skip
    for task in (
        {},
        dict(words=["kite"], feature="blue"),
        dict(words=120, feature="lesson"),
    ):  # of other data
        assert task_record([some[0]._replace(task=task)], [""]) == {}


@pytest.mark.parametrize("block_size, room", [(20, 12), (1000, 55), (5, 1)])
def test_a_response_has_the_tokens_that_the_longest_prompt_leaves_in_a_row(monkeypatch, block_size, room):
    tokenizer, asked = get_tokenizer("bundled1536"), {}
    monkeypatch.setattr(sampling, "generate", lambda *_, **options: asked.update(options) or [[1]] * 2)
    examples = [Example(" kite" * number, "") for number in (3, 8)]
    sample_in_rows(model(), tokenizer, examples, "", block_size=block_size, temperature=0.0)
    assert asked["max_tokens"] == room  # a row is no longer than the 64 tokens that the model can take


# ----------------------------------------------------------------------------------------------- whole runs
@pytest.fixture(scope="module")
def base(tmp_path_factory, corpus) -> Path:
    folder = tmp_path_factory.mktemp("base")
    flags = [*TINY, *corpus, "--max_iters", 2, "--initial_context_length", 64, "--no-use_tensorboard"]
    assert run_here(folder, *flags, "--out_dir", "base") == 0
    lines = [dict(prompt=f"{n} kites.", response=" It was red." + " Yes." * (n % 9)) for n in range(60)]
    for name, some in (("train", lines[:50]), ("held_out", lines[50:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in some))
    return folder


FLAGS = (
    "sft --init_from base --val_dataset held_out.jsonl --story_dataset bundled --device cpu --threads 1 "
    "--batch_size 2 --grad_accum 2 --block_size 32 --max_iters 8 --save_every 4 --eval_every 8 --eval_tokens 128 "
    "--final_eval_tokens 128 --log_every 1 --lr 1e-2 --no-use_tensorboard --dataset"
).split()


def test_a_run_learns_its_responses_and_ends_with_the_same_bits_after_a_stop(base, monkeypatch, capsys):
    flags = [*FLAGS, "train.jsonl", "--out_dir"]
    assert run_here(base, *flags, "straight", script="post_train") == 0
    records = [json.loads(line) for line in (base / "straight/metrics.jsonl").read_text().splitlines()]
    at = {r["step"]: r for r in records if "val/response_loss" in r}
    assert at.keys() == {0, 8} and at[8]["val/response_loss"] < 0.7 * at[0]["val/response_loss"]
    err = capsys.readouterr().err
    assert "step 8: on 10 held-out examples response_loss" in err
    assert "sample.py --checkpoint straight/checkpoint_8.pt --prompt '50 kites.'" in err
    answers = [records[-1][f"samples/final_{number}"] for number in (1, 2, 3)]
    assert (
        answers[0].startswith("50 kites.\n--- response\n") and f"--- held-out prompt 1\n{answers[0]}\n" in err
    )
    assert "--- story" not in err
    assert any(0 < r.get("data/truncated", 0) < 1 for r in records)
    original = Objective.step

    def stopping(objective, run, progress):
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(objective, run, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "step", stopping)
        assert run_here(base, *flags, "stopped", script="post_train") == 128 + signal.SIGTERM
    assert run_here(base, "sft", "--resume", "--out_dir", "stopped", script="post_train") == 0
    ends = [load(base / name / "checkpoint_8.pt") for name in ("straight", "stopped")]
    for part in ("model", "optimizers", "rng", "data", "post"):
        assert differences(ends[0][part], ends[1][part], part) == []
    metrics = base / "stopped/metrics.jsonl"
    *earlier, closing = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(earlier))  # as if it had been stopped in its closing evaluation
    assert run_here(base, "sft", "--resume", "--out_dir", "stopped", script="post_train") == 0
    again = json.loads(metrics.read_text().splitlines()[-1])
    for number, answer in enumerate(answers, start=1):
        assert again[tag := f"samples/final_{number}"] == json.loads(closing)[tag] == answer


@pytest.mark.parametrize(
    "line, told",
    [
        (dict(prompt="A", response=" "), "line 2: response must have text in it, got ' '; mend or remove it"),
        (dict(prompt=" kite" * 40, response="x"), "line 2: its prompt needs 41 tokens, but a row has block_size 32;"),
        (dict(prompt="A"), "line 2: must have the columns prompt, response, each a text, and there is no response, only prompt;"),
    ],
    ids=["empty", "long prompt", "no response"],
)  # fmt: skip
def test_bad_examples_are_refused_before_anything_is_written(base, line, told, capsys):
    good = dict(prompt="A", response="x")
    (base / "bad.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(line)}\n")
    capsys.readouterr()
    assert run_here(base, *FLAGS, "bad.jsonl", "--out_dir", "refused", script="post_train") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"bad.jsonl, {told}" in error and not (base / "refused").exists()
