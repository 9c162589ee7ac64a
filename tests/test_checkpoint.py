"""Checkpoints that are whole or absent, best.json, random state, and one writer per folder."""

import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from architecture.checkpoint import find_checkpoint
from common.files import atomic_write, read_json, write_json_atomic
from training.state import checkpoint
from training.state.checkpoint import (
    best_checkpoint,
    latest_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
    update_best,
)
from training.state.out_dir import check_out_dir, claim_out_dir

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# checkpoints


def test_the_latest_checkpoint_is_the_one_of_the_highest_step(tmp_path):
    assert latest_checkpoint(tmp_path) is None and latest_checkpoint(tmp_path / "no") is None
    for step in (500, 1000, 90):
        save_checkpoint(tmp_path, step, {})
    (tmp_path / "checkpoint_final.pt").touch()
    (tmp_path / ".checkpoint_2000.pt.tmp").touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint_1000.pt"


def test_a_file_has_its_name_only_after_it_is_on_the_disk(tmp_path, monkeypatch):
    events, path = [], tmp_path / "file"
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(path.exists()), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("renamed"), replace(a, b)))
    with atomic_write(path) as file:
        file.write(b"whole")
    assert events == [False, "renamed", True]  # the file, its name, the folder
    assert path.read_bytes() == b"whole"


@pytest.mark.parametrize("keep, left", [(2, [2, 4, 5]), (None, [1, 2, 3, 4, 5])])
def test_keep_removes_the_oldest_but_never_the_best(tmp_path, keep, left):
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5), (5, 2.6)]:
        save_checkpoint(tmp_path, step, {"scored": {"val_loss": loss}}, keep=keep)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == [f"checkpoint_{n}.pt" for n in left]


def test_a_run_s_folder_means_its_newest_checkpoint_and_best_json_its_best_one(tmp_path):
    told = []
    assert find_checkpoint(tmp_path / "no.pt", told.append) == tmp_path / "no.pt" and told == []
    with pytest.raises(ValueError, match="is a folder without a checkpoint_<step>.pt; name another"):
        find_checkpoint(tmp_path, told.append)
    for step in (90, 500):
        save_checkpoint(tmp_path, step, {})
    update_best(tmp_path, 500, 1.0)
    newest = tmp_path / "checkpoint_500.pt"
    assert find_checkpoint(str(tmp_path), told.append) == newest
    assert told.pop() == f"{newest}: the newest checkpoint of {tmp_path}"
    update_best(tmp_path, 90, 0.5)
    assert find_checkpoint(tmp_path, told.append) == newest
    best = f"; checkpoint_90.pt has the lowest validation loss ({tmp_path}/best.json)"
    assert told.pop().endswith(best)
    assert find_checkpoint(tmp_path / "best.json", told.append) == tmp_path / "checkpoint_90.pt"
    assert (
        told.pop()
        == f"{tmp_path}/checkpoint_90.pt: the checkpoint of {tmp_path} with the lowest validation loss"
    )
    (tmp_path / "checkpoint_90.pt").unlink()
    with pytest.raises(ValueError, match="best.json names no checkpoint that exists; give a"):
        find_checkpoint(tmp_path / "best.json")
    assert find_checkpoint(newest, told.append) == newest and told == []


# best.json


def test_best_json_points_at_the_lowest_loss(tmp_path):
    for step, loss in [(10, 2.0), (20, 1.5), (30, 1.5), (40, math.nan), (50, 1.75)]:
        save_checkpoint(tmp_path, step, {})
        update_best(tmp_path, step, loss, val_bits_per_byte=loss / 2)
    assert read_json(tmp_path / "best.json") == {
        "step": 20,
        "checkpoint": "checkpoint_20.pt",
        "val_loss": 1.5,
        "val_bits_per_byte": 0.75,
    }


def test_a_deleted_checkpoint_is_not_the_best_any_more(tmp_path):
    save_checkpoint(tmp_path, 10, {}).touch()
    update_best(tmp_path, 10, 1.0)
    (tmp_path / "checkpoint_10.pt").unlink()
    assert best_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 20, {})
    update_best(tmp_path, 20, 2.0)
    assert best_checkpoint(tmp_path)["step"] == 20


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        "[" * 20_000,
        '{"checkpoint": "checkpoint_10.pt"}',
        '{"checkpoint": "checkpoint_10.pt", "val_loss": "low"}',
        '{"checkpoint": "checkpoint_10.pt", "val_loss": NaN}',
        '{"checkpoint": "checkpoint_10.pt", "val_loss": 1' + "0" * 5000 + "}",
        '{"checkpoint": ".", "val_loss": 1.5}',
        '{"checkpoint": 7, "val_loss": 1.5}',
        '{"checkpoint": "' + "x" * 5000 + '", "val_loss": 1.5}',
        '{"checkpoint": "a\\u0000b", "val_loss": 1.5}',
    ],
)
def test_a_damaged_best_json_is_one_sentence(tmp_path, content):
    (tmp_path / "best.json").write_text(content)
    with pytest.raises(ValueError, match=r"best.json cannot be read as .*\); delete it"):
        best_checkpoint(tmp_path)


def test_json_that_strict_readers_refuse_is_not_written(tmp_path):
    with pytest.raises(ValueError):
        write_json_atomic(tmp_path / "config.json", {"lr": math.nan})
    assert names(tmp_path) == []


# random state


def test_random_numbers_continue_where_the_state_was_taken(tmp_path):
    torch.manual_seed(3)
    random.seed(3)
    save_checkpoint(tmp_path, 0, {"rng": rng_state(CPU)})
    expected = torch.rand(5), random.random()
    set_rng_state(torch.load(tmp_path / "checkpoint_0.pt", weights_only=True)["rng"], CPU)
    assert torch.equal(torch.rand(5), expected[0]) and random.random() == expected[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_random_numbers_continue_on_cuda_too(tmp_path):
    device = torch.device("cuda")
    save_checkpoint(tmp_path, 0, {"rng": rng_state(device)})
    expected = torch.rand(5, device=device)
    path = tmp_path / "checkpoint_0.pt"
    set_rng_state(torch.load(path, weights_only=True, map_location=device)["rng"], device)
    assert torch.equal(torch.rand(5, device=device), expected)


# the folder


def test_a_new_folder_is_made_and_an_empty_one_is_taken(tmp_path):
    with claim_out_dir(tmp_path / "a" / "b", resume=False):
        assert (tmp_path / "a" / "b").is_dir()
    with claim_out_dir(tmp_path / "a" / "b", resume=False):
        pass  # a run that ended before it wrote anything is not in the way


def test_a_folder_with_other_output_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "config.json").touch()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds 'config.json'; choose another --out_dir") as caught:
        check_out_dir(tmp_path, resume=False)
    assert "rm -r" not in str(caught.value)
    assert names(tmp_path) == ["config.json", "thesis.tex"]


@pytest.mark.parametrize("left", [["metrics.jsonl"], ["config.json", "metrics.jsonl", ".a.tmp"]])
def test_a_run_without_a_checkpoint_gives_a_new_run_and_resume_the_same_message(tmp_path, left):
    folder = tmp_path / "my model"
    folder.mkdir()
    for name in [*left, ".lock"]:
        (folder / name).touch()
    told = set()
    for resume in (False, True):
        with pytest.raises(ValueError) as caught:
            claim_out_dir(folder, resume=resume)
        told.add(str(caught.value))
    (message,) = told
    assert "ended before its first checkpoint, so there is nothing to continue" in message
    assert f"rm -r '{folder}'" in message and "another --out_dir" in message
    assert names(folder) == sorted([*left, ".lock"])


def test_a_folder_has_one_writer_and_is_not_offered_for_removal_while_it_lives(tmp_path):
    script = (
        "import pathlib, sys, time\n"
        "from common.files import lock_file\n"  # as claim_out_dir does, without torch
        "lock = lock_file(pathlib.Path(sys.argv[1]) / '.lock', ValueError)\n"
        "open(sys.argv[1] + '/metrics.jsonl', 'w').close()\n"
        "print('started', flush=True)\n"
        "time.sleep(60)\n"
    )
    run = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(run, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "started\n"
        for resume in (False, True):
            with pytest.raises(ValueError, match=f"process {first.pid} is writing"):
                claim_out_dir(tmp_path, resume=resume)
        save_checkpoint(tmp_path, 1, {})
        with pytest.raises(ValueError, match=f"process {first.pid} is writing"):
            claim_out_dir(tmp_path, resume=True)
        first.kill()
    (tmp_path / ".checkpoint_2.pt.tmp").write_bytes(b"half")  # a kill cut this write short
    with claim_out_dir(tmp_path, resume=True):  # a lock dies with its process
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
        assert names(tmp_path) == [".lock", "checkpoint_1.pt", "metrics.jsonl"]
        with pytest.raises(ValueError, match=f"process {os.getpid()} is writing"):
            claim_out_dir(tmp_path, resume=True)
    (tmp_path / ".lock").write_text(f"{os.getppid()}\n")  # alive, but it does not hold the lock
    claim_out_dir(tmp_path, resume=True).close()
