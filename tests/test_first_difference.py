"""Where two runs part: what they wrote, and what their replays compute."""

import re
import shutil

import pytest
import torch
from conftest import REPO_ROOT
from toy_run import TINY, load, run_here, write_corpus

from common.files import read_json, write_json_atomic
from evaluation import first_difference, replay
from training import trainer

SHORT = [*TINY, "--max_iters", 6, "--save_every", 2, "--eval_every", 6, "--eval_tokens", 128]
SHORT += ["--final_eval_tokens", 128, "--no-use_tensorboard"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with training data, as text and in the opposite order, and a run of six steps on it."""
    folder = tmp_path_factory.mktemp("runs")
    write_corpus(folder)
    lines = (folder / "stories.jsonl").read_text().splitlines()
    (folder / "reversed.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    train(folder, "one")
    return folder


def train(folder, name, *flags, data="stories.jsonl"):
    files = "--dataset", folder / data, "--val_dataset", folder / "stories_valid.jsonl"
    assert run_here(folder, *SHORT, *files, *flags, "--out_dir", name) == 0


def compare(folder, other, capsys, *flags) -> tuple[int, str]:
    """The exit code and the printed text for the run `one` and another."""
    capsys.readouterr()
    code = first_difference.main([str(folder / "one"), str(folder / other), *flags])
    return code, capsys.readouterr().out


def test_two_equal_runs_have_no_difference(here, capsys):
    train(here, "same")
    code, told = compare(here, "same", capsys)
    assert code == 0 and "origin: equal" in told and "the newest equal one is 6" in told
    assert told.endswith("no difference in 6 logged steps and the checkpoints\n")


def test_another_backend_parts_in_the_experts_of_the_first_block(here, capsys):
    train(here, "loop", "--experts", "loop", "--activation_checkpointing", "none")
    code, told = compare(here, "loop", capsys)
    assert code == 1 and "  train.experts: sorted | loop\n" in told and "train.threads" not in told
    assert "replays from the start: step 1 is the first that differs\n  batch: equal\n" in told
    assert "first different operation: A aten." in told and "in block.0.mlp, B aten." in told
    assert "first different output of a module: block.0.mlp (number 7 of 17 | 17)" in told
    assert "first different gradient: unembedding.weight" in told
    assert compare(here, "loop", capsys, "--no-replay")[1] == told[: told.index("replays")]


def test_a_run_that_was_continued_otherwise_parts_after_their_newest_equal_checkpoint(here, capsys):
    train(here, "continued")
    path = here / "continued/checkpoint_4.pt"
    assert run_here(here, "--resume_from", path, "--experts", "loop", "--out_dir", "continued") == 0
    code, told = compare(here, "continued", capsys)
    assert code == 1 and "the newest equal one is 4" in told and "starts.1.step: None | 4" in told
    assert "replays from step 4: step 5 is the first that differs" in told


def test_a_weight_that_a_hand_changed_is_told_from_settings_by_the_replay(here, capsys, monkeypatch):
    step = trainer.train_step

    def changing(run, progress):
        result = step(run, progress)
        if progress.step == 3:
            with torch.no_grad():
                run.model.block[1].mlp.mlp1_weight[3, 2, 5] += 0.125
        return result

    monkeypatch.setattr(trainer, "train_step", changing)
    train(here, "changed")
    monkeypatch.undo()
    code, told = compare(here, "changed", capsys)
    assert code == 1 and "origin: equal" in told and "log: step 4 is the first that differs" in told
    assert "replays from step 2: equal until step 4" in told
    assert (
        "  A logged the 2 losses of its replay\n  B logged train/loss " in told and " at step 4, and" in told
    )


def test_a_log_that_leaves_equal_checkpoints_is_held_against_the_replay(here, capsys):
    shutil.copytree(here / "one", here / "edited")
    log = here / "edited/metrics.jsonl"
    log.write_text(re.sub(r'("step": 4.*"train/loss": )[0-9.]+', r"\g<1>9.5", log.read_text()))
    code, told = compare(here, "edited", capsys)
    assert code == 1 and "the newest equal one is 6" in told and "replays from step 2: equal until" in told
    assert "B logged train/loss 9.5 at step 4, and its replay has" in told


def test_another_order_of_the_data_parts_in_the_first_batch(here, capsys):
    train(here, "reversed", data="reversed.jsonl")
    code, told = compare(here, "reversed", capsys)
    assert code == 1 and "data.training data: 300 documents" in told and "first_batch_sha256" in told
    assert "first different batch: micro-batch 1" in told
    assert "first different operation: aten.embedding.default in embedding" in told


def test_a_checkpoint_names_values_and_optimizer_state_as_the_replay_does(here, tmp_path):
    path, changed = here / "one/checkpoint_4.pt", tmp_path / "checkpoint_4.pt"
    saved = load(path)
    held = first_difference.named(saved)
    with replay.opened(here / "one", 4) as (run, _):
        here_now = replay.updated(run)
        assert here_now.keys() == {name for name in held if name.startswith(("weight", "optimizer"))}
        assert sum(name.startswith("optimizer state momentum_buffer of block.1") for name in here_now) == 4
        assert all(torch.equal(value, held[name]) for name, value in here_now.items())
    assert first_difference.differences(path, path) == []
    saved["model"]["block.0.attn.sinks"][1] = -saved["model"]["block.0.attn.sinks"][1]
    saved["progress"]["tokens"] += 1
    torch.save(saved, changed)
    sinks, tokens = first_difference.differences(path, changed)
    assert sinks.startswith("weight block.0.attn.sinks: 1 of 4 values, by at most ")
    assert tokens == "progress.tokens: 256 | 257"


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--max_iters", "none", "--max_minutes", "0.001"], "has max_minutes"),
        ([], "has changed"),
    ],
)
def test_what_cannot_be_replayed_is_refused_after_the_comparison_of_files(here, capsys, flags, reason):
    name = "refused_" + reason.replace(" ", "_")
    train(here, name, "--lr", "1e-3", *flags)
    if not flags:
        data = here / "stories.jsonl"
        text = data.read_text()
        data.write_text(text.replace("the", "a", 1))
    code, told = compare(here, name, capsys)
    if not flags:
        data.write_text(text)
    assert code == 1 and "train.lr: 0.008 | 0.001" in told and "log: step 1" in told
    assert "no replay, because" in told.splitlines()[-1] and reason in told.splitlines()[-1]


def test_a_run_whose_first_batch_is_not_repeated_is_not_replayed(here, capsys):
    """As for a run of several processes that has no checkpoint left to say so."""
    train(here, "alone", "--experts", "loop", "--batch_size", 2)
    facts = read_json(here / "alone/config.json")
    write_json_atomic(here / "alone/config.json", facts | {"train": facts["train"] | {"batch_size": 3}})
    code, told = compare(here, "alone", capsys)
    assert code == 1 and told.endswith("/alone, so it would be another run\n")


def test_a_folder_that_is_no_run_is_an_error_and_nothing_is_written(here, capsys):
    before = {path: path.read_bytes() for path in (here / "one").iterdir()}
    replay.replay(here / "one", 2, 3)
    assert {path: path.read_bytes() for path in (here / "one").iterdir()} == before
    assert first_difference.main([str(here / "one"), str(REPO_ROOT / "docs")]) == 2
    assert "docs has no config.json; give its --out_dir" in capsys.readouterr().err


def test_a_run_of_post_train_is_refused_in_its_own_words(tmp_path):
    facts = {"train": {"model": "gptoss", "story_dataset": "bundled"}, "model": {}}
    write_json_atomic(tmp_path / "config.json", facts)
    with pytest.raises(ValueError, match=r"config.json is of a run of post_train.py, of which only files"):
        replay.settings(tmp_path)
