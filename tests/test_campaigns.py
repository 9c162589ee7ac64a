"""The rules by which the campaigns in tests/stress judge, each with a run that keeps and one that breaks it."""

import json
import subprocess
import sys

import pytest
from toy_corpus import documents

from tests.stress import changed_data, kill_resume
from tests.stress.fuzzing import silence
from tests.stress.fuzzing.cases import Case
from tests.stress.fuzzing.judge import ROOT, Ending
from tests.stress.processes import Broken, Ended

CHANGED = "train.py: error: train.jsonl changed while it was being read; the run was saved"


def run_folder(folder, done: int, saved: int):
    """A folder with the records of some steps and a checkpoint, as check_ending reads it."""
    records = [{"step": step, "train/loss": 1.0} for step in range(1, done + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if saved:
        (folder / f"checkpoint_{saved}.pt").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    "way, code, line, done, saved, told",
    [
        ("hangup", 129, "", 7, 7, None),
        ("hangup", 129, "", 7, 5, "7 steps were done and 5 are saved"),
        ("hangup", -1, "", 7, 5, "7 steps were done and 5 are saved"),
        ("terminal", 129, "", 7, 0, "7 steps were done and 0 are saved"),
        ("terminal", 1, "", 7, 7, "ended with 1"),
        ("nohup", -1, "", 7, 7, "ended with -1"),
        ("reader", 141, "", 7, 7, "ended with 141"),
        ("full", 1, "", 7, 7, "ended with 1"),
        ("closed", 2, "", 7, 7, "ended with 2"),
        ("replaced", 2, CHANGED, 7, 7, None),
        ("replaced", 2, CHANGED, 7, 5, "7 steps were done and 5 are saved"),
        ("replaced", 2, "train.py: error: byte 7 is not UTF-8; convert it", 7, 7, "no sentence about it"),
        ("replaced", -7, "", 7, 7, "ended with -7"),
        ("moment", -9, "", 7, 5, None),
    ],
)
def test_a_run_loses_no_step_to_a_hangup_a_lost_log_or_changed_data(
    tmp_path, way, code, line, done, saved, told
):
    folder = run_folder(tmp_path, done, saved)
    if told is None:
        kill_resume.check_ending(way, Ended(code, line), b"", folder)
    else:
        with pytest.raises(Broken, match=told):
            kill_resume.check_ending(way, Ended(code, line), b"", folder)


def test_a_process_that_did_no_step_may_end_by_the_signal(tmp_path):
    folder = run_folder(tmp_path, 7, 5)
    before = kill_resume.records(folder)
    kill_resume.check_ending("hangup", Ended(-1, ""), before, folder)


def test_a_process_that_is_killed_at_once_has_begun_its_log(tmp_path):
    (tmp_path / "sleeper.py").write_text("import time\n\ndef main(argv):\n    time.sleep(60)\n")
    words = (
        "import sys, pathlib; from tests.stress.processes import start, wait; folder = pathlib.Path(sys.argv[1])\n"
        "ended = [wait(start(folder, [], program='sleeper'), folder, lambda: True) for _ in range(3)]\n"
        "print(*(process.code for process in ended))"
    )
    ended = subprocess.run([sys.executable, "-c", words, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "-9 -9 -9\n", ended.stderr


def test_other_data_has_the_same_names_and_as_many_documents(tmp_path):
    texts = documents(12)
    for form in ("jsonl", "txt", "parquet", "folder"):
        changed_data.write(tmp_path, form, texts, texts[:2])
    for form in ("jsonl", "txt", "parquet"):
        assert (tmp_path / f"train.{form}").exists() and (tmp_path / f"valid.{form}").exists()
    assert len(changed_data.files(tmp_path / "folder")) == 4


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_marks_and_windows_line_ends_are_not_expected_in_documents(tmp_path, suffix):
    file = silence.Encoded(f"stories.{suffix}", ("windows", "mark"), "utf-8", "\r\n", True)
    assert all("\ufeff" not in text and "\r\n" not in text for text in file.expected())
    assert len(file.expected()) == 6
    if suffix != "parquet":
        assert file.build(tmp_path).count(b"\r\n") >= 5


@pytest.mark.parametrize(
    "train, said, told",
    [
        (("stories",), "data: folder (not read: eval.jsonl, more/)", ""),
        (("stories",), "data: folder (not read: eval.jsonl)", "left out in silence"),
        (("stories", "more"), "data: folder (not read: eval.jsonl)", ""),
        (("stories", "eval", "more"), "data: folder", "eval.jsonl is trained on"),
        (("stories", "more", "hidden"), "data: folder (not read: eval.jsonl)", ".hidden.jsonl is read"),
    ],
)
def test_each_file_of_a_folder_is_read_or_named(monkeypatch, train, said, told):
    names = {"stories": "stories", "eval": "eval", "more": "more/b", "hidden": ".hidden"}
    files = {key: silence.InFolder(f"folder/{name}.jsonl") for key, name in names.items()}
    found = {"train": [text for key in train for text in files[key].written()], "validation": []}
    monkeypatch.setattr(silence, "documents", lambda name, split, **options: found[split])
    case = Case("folders", "train", ("--val_dataset", "valid.jsonl"), tuple(files.values()))
    assert told in silence.read_or_named(case, Ending(0, "", said))
    assert bool(told) == bool(silence.read_or_named(case, Ending(0, "", said)))


@pytest.mark.parametrize("value, told", [(10, ""), (8, "010 is 8 in YAML and 10 as a flag")])
def test_a_number_in_yaml_is_that_of_a_flag(monkeypatch, value, told):
    read = {"odd.yaml": {"batch_size": value}, "recipe.yaml": {}}
    monkeypatch.setattr("training.command_line.find_config", lambda name, config_class: name)
    monkeypatch.setattr("training.command_line.read_yaml", read.get)
    case = Case("yaml numbers", "train", (), (type("File", (), {"content": b"batch_size: 010\n"}),))
    assert silence.as_a_flag(case, Ending(0, "", "")) == told
