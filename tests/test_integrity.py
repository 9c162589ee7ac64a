"""A few damaged and crafted files, and the campaign itself; python -m tests.stress.integrity tries thousands."""

import re
import shutil
import signal
from collections import Counter

import pytest

from tests.stress import integrity
from tests.stress.fuzzing.cases import Case
from tests.stress.fuzzing.judge import Ending
from tests.stress.fuzzing.materials import NEWEST


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield integrity.make_samples(tmp_path_factory.mktemp("integrity") / "samples")


def test_a_damaged_file_is_refused_or_read_as_it_was_written(samples):
    counts, findings = integrity.flip(samples, 60, seed=0)
    found = sum(counts.values(), Counter())
    assert findings == [] and found.keys() <= {"refused", "same"} and found["refused"] > 40


def test_a_crafted_checkpoint_ends_with_0_or_with_2_and_one_clear_sentence(samples, tmp_path):
    counts, _, findings = integrity.try_crafted(
        samples, tmp_path / "case", 12, seed=0, run=integrity.here, once=True
    )
    assert findings == [] and sum(counts.values(), Counter()).total() == 12


# ----------------------------------------------------------------------- the campaign itself


def test_without_checksums_the_campaign_counts_damage_as_wrong(samples, tmp_path, monkeypatch):
    monkeypatch.setattr("architecture.checkpoint.verify", lambda *_: None)
    monkeypatch.setattr("common.files._seal", lambda value: "constant")
    shutil.copytree(samples, tmp_path / "samples")
    sealed = [
        k.file for k in integrity.kinds(samples).values() if b'"seal"' in (samples / k.file).read_bytes()
    ]
    for file in sealed:
        content = (samples / file).read_bytes()
        (tmp_path / "samples" / file).write_bytes(re.sub(rb"crc32 of the rest: \w+", b"constant", content))
    counts, _ = integrity.flip(tmp_path / "samples", 120, seed=0)
    wrong = {name for name, count in counts.items() if count["WRONG"]}
    assert wrong >= {"checkpoint", "context checkpoint", "config.json", "band"} and len(sealed) >= 4


@pytest.mark.parametrize(
    "ending, gb, wrote, told",
    [
        (Ending(0, "", ""), 0.5, "run/new", ""),
        (Ending(0, "", ""), 0.5, "../escaped", "it wrote escaped"),
        (Ending(0, "", ""), 0.5, "marker", "it wrote work/marker"),
        (Ending(0, "", ""), 9.0, "run/new", "it took 9.00 GB"),
        (Ending(None, "", "", "ended by -11"), 0.5, "run/new", "ended by -11"),
        (Ending(1, "", "Traceback"), 0.5, "run/new", "exit code N"),
    ],
)
def test_each_effect_of_a_crafted_file_is_noticed(tmp_path, ending, gb, wrote, told):
    (tmp_path / "work/run").mkdir(parents=True)

    def run(case, work):
        (work / wrote).write_text("x")
        return ending, gb

    _, _, wrong = integrity.use(Case("kind", "train", ()), tmp_path, run)
    assert told in wrong and bool(told) == bool(wrong)


def test_a_process_that_a_signal_ends_is_reported_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.stress.fuzzing.judge.call", lambda *_: signal.raise_signal(signal.SIGTERM))
    ending, _ = integrity.in_a_child(Case("kind", "train", ()), tmp_path)
    assert ending.error == "ended by -15"


def test_every_strategy_makes_a_file_that_differs(samples, tmp_path):
    from tests.stress.fuzzing.crafting import STRATEGIES, Crafted, craft

    (tmp_path / "run").mkdir()
    whole = (samples / NEWEST).read_bytes()

    def makes(name: str, seed: int) -> bytes:
        craft(Crafted(NEWEST, name, seed), samples, tmp_path)
        return (tmp_path / NEWEST).read_bytes()

    same = [name for name in STRATEGIES if all(makes(name, seed) == whole for seed in range(4))]
    assert same == []
