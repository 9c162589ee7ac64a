"""Data is known by its content: the same under any name goes on, other data under the same name does not."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import torch
from toy_corpus import documents, write_jsonl
from toy_run import TINY, at_step, differences, load, run_here

from architecture.tokenizer import get_tokenizer
from common.files import write_json_atomic
from data import hub
from data.documents import common_documents
from data.prepare import main as prepare_main
from data.prepare import prepare
from data.sources import open_dataset
from data.stories import TRAIN_STORIES, VALIDATION_STORIES, VERSION, story
from evaluation.context import main as context_main
from tests.test_data_files import STORIES, WRITERS, whole

RESUME = ["--resume", "--out_dir", "model"]
QUIET = [*TINY, "--no-use_tensorboard", "--out_dir", "model"]
TRAIN, VALID = documents(308)[8:], documents(308)[:8]


# ---------------------------------------------------------------------------------------- identity


def test_the_same_documents_have_one_identity_in_every_format_and_under_every_name(tmp_path):
    paths = [write(tmp_path / f"a.{kind}", STORIES) for kind, write in WRITERS.items()]
    paths.append(tmp_path / "link.jsonl")
    paths[-1].symlink_to(paths[0])
    assert len({whole(path).identity for path in paths}) == 1
    column = write_jsonl_of(tmp_path / "b.jsonl", STORIES, "story")
    assert whole(column, text_column="story").identity == whole(paths[0]).identity


def write_jsonl_of(path, texts, column):
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return path


OTHERS = {
    "another order": STORIES[::-1],
    "another text": [*STORIES[:-1], "other"],
    "one less": STORIES[1:],
    "one twice": [*STORIES, STORIES[0]],
    "a text cut in two": [STORIES[0][:4], STORIES[0][4:], *STORIES[1:]],
}


@pytest.mark.parametrize("texts", OTHERS.values(), ids=OTHERS)
def test_other_documents_have_another_identity(tmp_path, texts):
    same, other = (write_jsonl(tmp_path / f"{n}.jsonl", t) for n, t in enumerate((STORIES, texts)))
    assert whole(same).identity != whole(other).identity


def test_the_order_of_a_parquet_file_depends_on_its_row_groups(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    table = pyarrow.table({"text": STORIES})
    for size in (5, 6):
        parquet.write_table(table, tmp_path / f"{size}.parquet", row_group_size=size)
    first, second = (whole(tmp_path / f"{size}.parquet") for size in (5, 6))
    assert first.identity == second.identity and first.shuffled_by != second.shuffled_by


def test_prepared_tokens_carry_the_identity_of_their_source(tmp_path):
    paths = [str(write_jsonl(tmp_path / f"{n}.jsonl", t)) for n, t in enumerate((STORIES, VALID))]
    prepare(paths[0], tmp_path / "tokens", get_tokenizer("bundled1536"), val_dataset=paths[1])
    for split, path in zip(("train", "validation"), paths):
        assert open_dataset(str(tmp_path / "tokens"), split=split).identity == whole(path).identity


def test_prepared_tokens_of_older_versions_are_known_by_their_checksums(tmp_path):
    found = []
    for name, texts in (("a", STORIES), ("b", STORIES), ("c", STORIES[::-1])):
        path, valid = (str(write_jsonl(tmp_path / f"{name}{n}", t)) for n, t in enumerate((texts, VALID)))
        paths = [os.rename(p, p + ".jsonl") or p + ".jsonl" for p in (path, valid)]
        prepare(paths[0], tmp_path / name, get_tokenizer("bundled1536"), val_dataset=paths[1])
        meta = json.loads((tmp_path / name / "tokens.json").read_text())
        del meta["seal"], meta["splits"]["train"]["identity"]
        write_json_atomic(tmp_path / name / "tokens.json", meta)
        found.append(open_dataset(str(tmp_path / name), split="train").identity)
    assert found[0] == found[1] != found[2] and whole(paths[0]).identity not in found


def test_the_version_of_the_bundled_stories_says_their_content():
    numbers = range(0, TRAIN_STORIES + VALIDATION_STORIES, 100)
    digest = hashlib.sha256("\0".join(story(number).text for number in numbers).encode()).hexdigest()
    assert (VERSION, digest[:16]) == (1, "3a24dd29652bc876"), "raise data.stories.VERSION with the stories"
    train, validation = (open_dataset("bundled", split=split) for split in ("train", "validation"))
    assert f"bundled stories {VERSION}, " in train.identity != validation.identity


def test_data_of_the_hub_is_opened_again_at_the_revision_of_the_run(monkeypatch):
    class Split:
        column_names, num_shards = ["text"], 1

    opened = []
    monkeypatch.setattr(hub, "open_splits", lambda *at: opened.append(at) or {"train": Split()})
    monkeypatch.setattr(hub, "cached_copy", lambda *at: None)
    monkeypatch.setattr(hub, "current_revision", lambda name: "b" * 40)
    options = {"split": "train", "val_dataset": "bundled"}
    newest = open_dataset("org/name", **options)
    again = open_dataset("org/name", **options, identity=newest.identity.replace("b" * 40, "a" * 40))
    assert [revision for _, revision in opened[::2]] == ["b" * 40, "a" * 40]
    assert again.identity.startswith(f"org/name@{'a' * 40}, ") and again.identity != newest.identity
    assert open_dataset("org/other", **options, identity=again.identity).revision == "b" * 40
    with pytest.raises(ValueError, match="the revision of org/name must be a commit"):
        open_dataset("org/name", **options, identity="org/name@../../x, train")


# ---------------------------------------------------------------------------- the same on both sides


def test_the_same_documents_on_both_sides_are_refused_in_any_order_and_format(tmp_path):
    paths = [write(tmp_path / f"a.{kind}", STORIES) for kind, write in WRITERS.items()]
    paths.append(write_jsonl(tmp_path / "b.jsonl", [*STORIES[::-1], STORIES[0]]))
    for path in paths:
        with pytest.raises(ValueError, match=r"are the same documents.*--val_dataset"):
            common_documents(whole(paths[0]), whole(path))


def test_documents_on_both_sides_are_counted(tmp_path):
    train, valid, none = (
        whole(write_jsonl(tmp_path / f"{n}.jsonl", texts))
        for n, texts in enumerate((STORIES, [*STORIES[:3], STORIES[0], "new"], ["zzz"]))
    )
    (line,) = common_documents(train, valid)
    assert line.startswith("4 of the 5 validation documents are also training documents")
    assert (
        common_documents(train, none)
        == common_documents(train, hub.GatheredSource("x", STORIES, "x@1"))
        == ()
    )


def test_every_command_refuses_the_same_data_on_both_sides(tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", TRAIN)
    (tmp_path / "again.jsonl").symlink_to(path)
    data = ["--dataset", "a.jsonl", "--val_dataset", "./again.jsonl"]
    for script in ("train", "train_context"):
        assert run_here(tmp_path, *data, "--device", "cpu", "--threads", 1, script=script) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "the training data (a.jsonl) and the validation data (again.jsonl) are the same" in error
    data = ["--dataset", str(path), "--val_dataset", str(tmp_path / "again.jsonl")]
    assert prepare_main([*data, "--out_dir", str(tmp_path / "tokens")]) == 2
    assert "are the same documents" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "again.jsonl"]


# --------------------------------------------------------------------------------- runs that go on


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run to its end, with a checkpoint of step 8, on tr.jsonl and va.jsonl."""
    folder = tmp_path_factory.mktemp("ended")
    write_jsonl(folder / "tr.jsonl", TRAIN), write_jsonl(folder / "va.jsonl", VALID)
    assert run_here(folder, *QUIET, "--dataset", "tr.jsonl", "--val_dataset", "va.jsonl") == 0
    return folder


@pytest.fixture
def stopped(tmp_path, ended):
    """A copy of that run as it was at step 8, and its data."""
    shutil.copytree(ended, tmp_path / "run", ignore=shutil.ignore_patterns("*_16.pt", "*_20.pt", "*.lock"))
    folder = tmp_path / "run"
    lines = (folder / "model/metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "model/metrics.jsonl").write_text("".join(x for x in lines if json.loads(x)["step"] <= 8))
    return folder


def same_end(folder, ended):
    ours, theirs = (load(f / "model/checkpoint_20.pt") for f in (folder, ended))
    return not [
        d for part in ("model", "optimizers", "rng", "data") for d in differences(ours[part], theirs[part])
    ]


def refused(folder, capsys, *flags):
    """The error of a resume that is refused before it writes anything."""
    before = {path: path.stat().st_mtime_ns for path in (folder / "model").iterdir()}
    assert run_here(folder, *RESUME, *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert {path: path.stat().st_mtime_ns for path in (folder / "model").iterdir()} == before
    return error


def test_a_run_goes_on_where_its_data_has_moved(stopped, ended, tmp_path, capsys):
    (stopped / "new").mkdir()
    os.rename(stopped / "tr.jsonl", stopped / "new/texts.jsonl")
    told = refused(stopped, capsys)
    assert (
        "'tr.jsonl': no such file or folder; if the data of the run has moved, give its place with --dataset"
        in told
    )
    assert run_here(stopped, *RESUME, "--dataset", "new/texts.jsonl", "--val_dataset", "./va.jsonl") == 0
    assert same_end(stopped, ended)
    state = load(stopped / "model/checkpoint_20.pt")
    assert state["train_config"]["dataset"] == "new/texts.jsonl"
    assert state["data_identity"] == load(ended / "model/checkpoint_8.pt")["data_identity"]


def test_a_run_on_text_goes_on_with_the_same_bits_on_its_prepared_tokens(stopped, ended):
    paths = [str(stopped / name) for name in ("tr.jsonl", "va.jsonl")]
    prepare(paths[0], stopped / "tokens", get_tokenizer("bundled1536"), val_dataset=paths[1])
    assert run_here(stopped, *RESUME, "--dataset", "tokens", "--val_dataset", "tokens") == 0
    assert same_end(stopped, ended)


CHANGES = {
    "lines reversed": ("tr.jsonl", TRAIN[::-1], "training data"),
    "other texts": ("tr.jsonl", [text.upper() for text in TRAIN], "training data"),
    "another number": ("tr.jsonl", TRAIN[:-1], "training data"),
    "other validation texts": ("va.jsonl", [text.upper() for text in VALID], "validation data"),
}


@pytest.mark.parametrize("name, texts, part", CHANGES.values(), ids=CHANGES)
def test_other_content_under_the_same_name_is_refused(stopped, capsys, name, texts, part):
    write_jsonl(stopped / name, texts)
    told = refused(stopped, capsys)
    assert f"the {part} is not that of model/checkpoint_8.pt (here: {len(texts)} documents, blake2b " in told
    assert "name the original data with --dataset and --val_dataset, start a new run" in told


def test_the_same_documents_in_another_order_of_training_are_refused(stopped, capsys):
    WRITERS["parquet"](stopped / "tr.parquet", TRAIN)
    told = refused(stopped, capsys, "--dataset", "tr.parquet")
    assert "the order of the training data is not that of" in told and "there: document" in told


def test_an_evaluation_of_a_run_does_not_read_other_data_under_its_name(stopped, capsys, monkeypatch):
    write_jsonl(stopped / "va.jsonl", VALID[::-1])
    assert run_here(stopped, "--eval_only", "model", "--device", "cpu") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "the validation data is not that of" in told and "other data with --val_dataset" in told
    monkeypatch.chdir(stopped)
    assert context_main(["model", "--device", "cpu"]) == 2
    assert "the validation data is not that of" in capsys.readouterr().err
    assert run_here(stopped, "--eval_only", "model", "--device", "cpu", "--val_dataset", "va.jsonl") == 0


def test_another_machine_is_said_in_one_line_and_continued(stopped, capsys):
    assert run_here(stopped, *RESUME, "--attention", "eager", "--experts", "loop") == 0
    told = capsys.readouterr().err
    assert (
        "attention eager (was sdpa), experts loop (was sorted): after step 8 the bits differ from those of a run "
        "without this change\n"
    ) in told
    assert load(stopped / "model/checkpoint_20.pt")["train_config"]["attention"] == "eager"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_run_of_a_device_that_is_missing_is_told_the_flags_to_add(stopped, capsys):
    path = stopped / "model/checkpoint_8.pt"
    state = load(path)
    machine = {
        "device": "cuda",
        "dtype": "bfloat16",
        "compile": "on",
        "attention": "flex",
        "experts": "grouped",
    }
    state["train_config"] |= machine
    state["rng"]["cuda"] = torch.get_rng_state()
    torch.save(state, path)
    told = refused(stopped, capsys)
    here = "mps" if torch.backends.mps.is_available() else "cpu"
    flags = f"--device {here} --dtype float32 --compile off --attention sdpa --experts sorted"
    assert told.endswith(f"add {flags}") and "the run was on device cuda, which this machine does not" in told
    assert "must be auto or one that this machine has" in refused(stopped, capsys, "--device", "cuda:3")
    assert run_here(stopped, *RESUME, *flags.split()) == 0
    assert f"device {here} (was cuda), dtype float32 (was bfloat16)" in capsys.readouterr().err


def test_an_old_checkpoint_takes_the_identity_of_its_data_at_the_first_resume(stopped, ended, capsys):
    path = stopped / "model/checkpoint_8.pt"
    state = load(path)
    held = state.pop("data_identity")
    torch.save(state, path)
    assert run_here(stopped, *RESUME, "--dataset", "./tr.jsonl") == 0
    assert capsys.readouterr().err.count("did not store what its data is") == 1
    assert load(stopped / "model/checkpoint_16.pt")["data_identity"] == held
    assert same_end(stopped, ended)


# --------------------------------------------------------------------- data that changes during a run


def cut(path, texts):
    os.truncate(path, path.stat().st_size // 3)


def hidden(path, texts):
    """Other documents in place, without another size or time."""
    stat, content = path.stat(), path.read_bytes()
    swapped = content.replace(b"stones", b"stOnes") if path.suffix != ".npy" else content[:-2] + b"\0\0"
    assert swapped != content or path.suffix == ".parquet"
    path.write_bytes(swapped)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def moved(path, texts):
    write = WRITERS.get(path.suffix[1:])
    if write:
        os.replace(write(path.with_name(f"other{path.suffix}"), [f"Other {text}" for text in texts]), path)
    else:
        np.save(path, np.zeros(9, np.uint16))


def removed(path, texts):
    path.unlink()


def training_data(folder, kind):
    """A dataset of 30 documents, the file of it that changes, and the flag values of the data."""
    texts, valid = documents(30), write_jsonl(folder / "valid.jsonl", VALID)
    path = WRITERS.get(kind, WRITERS["txt"])(folder / f"train.{'txt' if kind == 'tokens' else kind}", texts)
    if kind != "tokens":
        return texts, path, str(path), str(valid)
    prepare(str(path), folder / "tokens", get_tokenizer("bundled1536"), val_dataset=str(valid))
    texts = [get_tokenizer("bundled1536").encode_ordinary(text) for text in texts]
    return texts, folder / "tokens/train_00000.tokens.npy", str(folder / "tokens"), str(valid)


@pytest.mark.parametrize("change", [cut, moved, removed, hidden])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "tokens"])
def test_data_that_changes_is_read_as_it_was_or_refused(tmp_path, monkeypatch, kind, change):
    if (kind, change) in (("parquet", hidden), ("tokens", hidden)):
        pytest.skip("blocks are verified once, and parquet pages are compressed")
    texts, path, dataset, valid = training_data(tmp_path, kind)
    monkeypatch.setattr("data.files.WINDOW_BYTES", 600)
    read = open_dataset(dataset, split="train", val_dataset=valid).shuffled(3)
    assert all(list(next(read)) in map(list, texts) for _ in range(4))
    change(path, documents(30))
    with pytest.raises(ValueError, match=f"{path.name} changed while it was being read"):
        for _ in range(60):
            assert list(next(read)) in map(list, texts)


@pytest.mark.parametrize(
    "kind, change",
    [
        ("txt", cut),
        ("tokens", cut),
        pytest.param("jsonl", removed, marks=pytest.mark.slow),
        pytest.param("parquet", moved, marks=pytest.mark.slow),
    ],
)
def test_a_run_whose_data_changes_is_saved(tmp_path, monkeypatch, capsys, kind, change):
    _, path, dataset, valid = training_data(tmp_path, kind)
    monkeypatch.setattr("data.files.WINDOW_BYTES", 600)
    at_step(monkeypatch, 3, lambda: change(path, documents(30)))
    flags = ["--dataset", dataset, "--val_dataset", valid, "--max_iters", 400, "--eval_every", 400]
    assert run_here(tmp_path, *QUIET, *flags, "--save_every", 400, "--log_every", 100) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert path.name in error and "; the run was saved as model/checkpoint_" in error


def test_validation_data_that_changes_leaves_the_trained_run_saved(tmp_path, monkeypatch, capsys):
    train, valid = (write_jsonl(tmp_path / f"{n}.jsonl", texts) for n, texts in enumerate((TRAIN, VALID)))
    at_step(monkeypatch, 3, lambda: moved(valid, VALID))
    flags = ["--dataset", train, "--val_dataset", valid, "--max_iters", 4, "--eval_tokens", 32]
    assert run_here(tmp_path, *QUIET, *flags) == 2
    told = "1.jsonl changed while it was being read, or can no longer be read; restore the original file, or start "
    assert (
        f"{told}a new run; the run was saved as model/checkpoint_4.pt"
        in capsys.readouterr().err.splitlines()[-1]
    )
