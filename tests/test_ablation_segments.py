"""Ablations of a carried state: arms of both scripts, tokens of lanes, losses by segment, the share of a gap."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from test_ablation_runs import (  # noqa: F401
    REPO_ROOT,
    TINY,
    Ended,
    Pretence,
    data,
    draw,
    folder,
    lines,
    report,
    write,
)
from test_context_lanes import Ids
from toy_run import run_here

import ablate
from architecture.tokenizer import get_tokenizer
from data.loader import TrainLoader
from data.sources import open_dataset
from evaluation import context, inference_cost, test_set
from evaluation.ablation import launch, matching, pictures, segments
from evaluation.ablation.spec import read_spec
from evaluation.ablation.verdict import Ablation
from training.config import ContextTrainConfig, TrainConfig

BASE = TINY | {"packing": "lanes", "initial_context_length": 128, "eval_every": 99}
ARMS = {
    "carried": {"model": "gptoss_context", "tbptt": 2},
    "trunk_segments": {"grad_accum": 2},
    "trunk_whole": {"block_size": 64, "batch_size": 3},
}


@pytest.fixture
def spec(folder, data):  # noqa: F811
    """The folder's specification asks about a carried state, at seeds 1 and 2 without a search."""
    write(
        folder, base=BASE | data, arms=ARMS, learning_rates="none", budget={"tokens": 1000}, segments=16,
        search_budget={"tokens": 1000}, measure="loss_after_first_segment", gap=["trunk_segments", "trunk_whole"],
        headline=[["carried", "trunk_segments"], ["trunk_whole", "carried"]],
    )  # fmt: skip
    return folder


# ------------------------------------------------------------------------------------ runs that train


def trained(words, log, environment):
    """launch() of real runs in this process."""
    if words[:2] == ["-m", "evaluation.context"]:
        return Ended(context.main(words[2:]))
    if words[:2] == ["-m", "evaluation.test_set"]:
        return Ended(test_set.main(words[2:]))
    if words[0] == "-m":
        return Ended(inference_cost.run(words[2:]) or 0)
    return Ended(run_here(log.parent, *words[1:], script=Path(words[0]).stem))


def test_arms_of_both_scripts_go_to_one_report(spec, monkeypatch):
    monkeypatch.setattr(launch, "POLL_SECONDS", 0)
    monkeypatch.setattr(pictures, "_write", draw)
    monkeypatch.setattr(inference_cost, "ROUNDS", 1)
    monkeypatch.setattr(inference_cost, "SECONDS", 0)
    write(spec, seeds=[1], headline=[])
    assert ablate.main(["spec.yaml", "--out_dir", "out"], launch=trained) == 0
    found = lines(spec)
    assert all(line["status"] == "ok" for line in found), found
    one, other, whole = (line for line in found if line["phase"] == "verdict")
    assert one["first_batch_sha256"] == other["first_batch_sha256"] != whole["first_batch_sha256"]
    assert (one["tokens"], one["steps"]) == (other["tokens"], other["steps"])
    assert all(850 < line["tokens"] < 1150 for line in (one, whole))  # padding is not counted
    scored = [line for line in found if line["phase"] == "segments"]
    assert len(scored) == 3 and len({tuple(line["segment_tokens"]) for line in scored}) == 1
    for line in scored:
        assert ("loss_after_first_segment_swapped" in line) == (line["arm"] == "carried")
        tokens, losses = line["segment_tokens"][1:], line["loss_by_segment"][1:]
        mean = sum(n * loss for n, loss in zip(tokens, losses)) / sum(tokens)
        assert line["loss_after_first_segment"] == pytest.approx(mean)
    assert all(line["decode_tokens_per_second"] > 0 for line in found[-3:])
    text = report(spec)
    for told in ("## By segment", "tokens seen", "from 1 on", "state of another document", "loss_by_segment.png",
                 "val_loss_by_tokens.png", "the same shape of batches get the same batches"):  # fmt: skip
        assert told in text
    for picture in ("loss_by_segment.png", "loss_by_segment_above_reference.png"):
        assert (spec / "out" / picture).read_bytes().startswith(b"\x89PNG")


def test_a_run_is_continued_by_the_script_that_started_it(tmp_path):
    out, begun = tmp_path / "seed-1", []
    out.mkdir()
    (out / "checkpoint_3.pt").write_bytes(b"weights")
    (out / "config.json").write_text(json.dumps({"train": {"device": "cpu"}}))
    job = launch.Job(
        {"id": "a", "phase": "verdict"}, ["train_context.py", "--seed=1"], out, segments.segments_outcome
    )
    launch.start(job, 0, lambda words, log, environment: begun.append(words))
    assert begun == [["train_context.py", "--resume", f"--out_dir={out}"]]


# ------------------------------------------------------------------------------------ runs that pretend

FIRST, TOKENS = 3.0, [100, 60, 40, 1]  # the last segment has under one per cent of the tokens
AFTER = {"carried": 2.3, "trunk_segments": 2.5, "trunk_whole": 2.0}


class Scored(Pretence):
    """Runs that pretend to train, and losses by segment that follow from the arm and the seed."""

    def __init__(self, failing=()):
        super().__init__(lambda given: 2.0)
        self.failing, self.asked = failing, {}

    def __call__(self, words, log, environment):
        if words[:2] != ["-m", "evaluation.context"]:
            return super().__call__(words, log, environment)
        given = dict(word[2:].split("=", 1) for word in words[3:] if "=" in word)
        assert given["segment_length"] == "16" and "--test_set" in words
        place = Path(words[2]).parent
        arm, seed = place.parent.name[3:], int(place.name[5:])
        if (arm, seed) in self.failing:
            log.write_text("evaluation.context: error: no room\n")
            return Ended(2)
        after = AFTER[arm] - 0.1 * seed * (arm == "carried")
        worse = {"carried": 0.0, "zeroed": 0.3, "swapped": 0.4 + 0.2 * seed}
        columns = {"plain": 0.0} if arm != "carried" else worse
        for flag, way, harm in (("overlap", "overlap", -0.2), ("keep_keys", "kept", 0.1)):
            self.asked.setdefault(arm, {})[flag] = given.get(flag)
            columns |= {f"{way}_{n}": harm * seed for n in given.get(flag, "").split(",") if n}

        def entry(loss, more):
            return {name: {"mean": loss + more * harm} for name, harm in columns.items()}

        found = {"all": entry(2.7, 0.5), "after_the_first": entry(after, 1)}
        scores = [entry(FIRST, 0), *[entry(after, 1)] * (len(TOKENS) - 1)]
        found["costs"] = {name: {"tokens_computed_per_scored_token": 1.125} for name in columns}
        found["segments"] = [{"tokens": n} | score for n, score in zip(TOKENS, scores)]
        Path(given["out"]).write_text(json.dumps(found))
        return Ended()


def ablation(*flags, failing=()) -> int:
    return ablate.main(["spec.yaml", "--out_dir", "out", *flags], launch=Scored(failing))


def row(text: str, *begins: str) -> list[str]:
    """The cells behind those that a row of a table begins with."""
    rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines())
    return next(cells[len(begins) :] for cells in rows if tuple(cells[: len(begins)]) == begins)


def test_verdicts_controls_and_the_gap_are_of_the_loss_after_the_first_segment(spec):
    assert ablation() == 0
    text = report(spec)
    # carried has 2.2 and 2.1, the trunk 2.5, the whole document 2.0; with two seeds t is 12.7062
    half = 12.7062 * 0.05
    assert row(text, "carried", "trunk_segments", "2")[0] == "-0.3500"
    assert row(text, "trunk_whole", "carried", "2")[0] == "-0.1500"
    assert (
        f"**carried** closes 70.0 +- {2 * 100 * half:.1f} % of the gap between **trunk_segments** and "
        "**trunk_whole** (mean of the share at each seed); the gap is 0.5000 +- 0.0000 nats per token after "
        "the first segment."
    ) in text
    assert "The scores are of the test set." in text and "on the same test documents" in text
    assert "The scores are of the validation text" not in text
    sure = ["2.5000 +- 0.0000", "2.0000 +- 0.0000"]
    _, by_segment = text.split("## By segment")
    assert row(by_segment, "0", "100") == ["3.0000 +- 0.0000"] * 3
    assert row(by_segment, "2", "40") == [f"2.1500 +- {half:.4f}", *sure]
    with pytest.raises(StopIteration):
        row(by_segment, "3", "1")  # too few tokens to be shown
    assert row(by_segment, "from 1 on", "101") == [f"2.1500 +- {half:.4f}", *sure]
    _, differences = by_segment.split("differences at the same seeds")
    apart = [f"0.3500 +- {half:.4f}", f"-0.1500 +- {half:.4f}"]  # the trunk's two above carried
    assert row(differences, "0") == ["0.0000 +- 0.0000"] * 2
    assert row(differences, "2") == row(differences, "from 1 on") == apart
    # the state of another document costs 0.6 and 0.8
    assert row(by_segment, "carried") == ["0.3000 +- 0.0000", f"0.7000 +- {12.7062 * 0.1:.4f}"]


def test_overlaps_and_kept_keys_are_rivals_that_need_no_run_of_their_own(spec):
    write(spec, overlap=[4, 8], keep_keys=[16])
    runs = Scored()
    assert ablate.main(["spec.yaml", "--out_dir", "out"], launch=runs) == 0
    none = {"overlap": None, "keep_keys": None}
    rivals = {"overlap": "4,8", "keep_keys": "16"}
    # no state and one segment at a time; the whole document is not read in segments
    assert runs.asked == {"carried": none, "trunk_segments": rivals, "trunk_whole": none}
    read = report(spec).split("read in other ways")[1]
    # overlaps: 2.5 - 0.2 seed, carried: 2.3 - 0.1 seed, so 0.1 and 0.0 above it; kept keys: 2.5 + 0.1 seed
    half, double = f"+- {12.7062 * 0.05:.4f}", f"+- {12.7062 * 0.1:.4f}"
    expected = [f"2.2000 {double}", f"-0.3000 {double}", f"0.0500 {half}", "1.125"]
    assert row(read, "trunk_segments", "overlap_8") == expected
    expected = [f"2.6500 {half}", f"0.1500 {half}", f"0.5000 {double}", "1.125"]
    assert row(read, "trunk_segments", "kept_16") == expected
    assert row(read, "carried", "as trained") == [f"2.1500 {half}", "", "", "1.125"]
    with pytest.raises(StopIteration):
        row(read, "trunk_whole", "overlap_8")


def test_overlaps_are_shorter_than_a_segment_and_need_segments(spec):
    path = spec / "spec.yaml"
    values = yaml.safe_load(path.read_text())
    bare = {key: value for key, value in values.items() if key not in ("segments", "gap", "measure")}
    for changed, told in (
        (
            values | {"overlap": [8, 16]},
            "overlap must be from 1 to 15 tokens, for segments of 16, got 16; change it",
        ),
        (
            values | {"keep_keys": [0]},
            "keep_keys must be from 1 to 16 tokens, for segments of 16, got 0; change it",
        ),
        (bare | {"overlap": [8]}, "overlap needs the loss by segment; set segments"),
    ):
        path.write_text(yaml.safe_dump(changed))
        with pytest.raises(ValueError, match=told):
            read_spec(path)


@pytest.mark.slow
def test_a_run_that_could_not_be_scored_is_left_out_of_the_verdict(spec):
    assert ablation(failing=[("carried", 2)]) == 0
    text = report(spec)
    told = "**carried** against **trunk_segments**: not compared, because fewer than two seeds ended well"
    assert told in text
    assert "segments carried seed 2: refused: no room" in text
    assert "**carried** closes 60.0 % of the gap" in text  # of seed 1: 0.3 of 0.5
    # what is missing is made up for where its line is taken out
    kept = [line for line in lines(spec) if line["id"] != "segments carried seed 2"]
    (spec / "out/results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert ablation("--resume") == 0
    assert "**carried** closes 70.0 +- " in report(spec)


def test_arms_without_a_seed_in_common_with_their_reference_have_no_differences(spec):
    failing = [("carried", 1), ("carried", 2), ("trunk_whole", 1)]
    assert ablation(failing=failing) == 0
    assert "differences at the same seeds" not in report(spec)
    assert row(report(spec).split("## By segment")[1], "2", "40") == ["2.5000 +- 0.0000", "2.0000"]


def test_a_gap_that_is_not_positive_has_no_share(spec, monkeypatch):
    monkeypatch.setitem(AFTER, "trunk_whole", 2.6)
    assert ablation() == 0
    told = "**carried**: no share of the gap between **trunk_segments** and **trunk_whole**, because it is not above 0"
    assert told in report(spec)


def test_documents_of_one_segment_cannot_be_scored(tmp_path):
    losses = {"plain": {"mean": 3.0}}
    scored = {"segments": [{"tokens": 5} | losses], "all": losses}
    (tmp_path / "run.json").write_text(json.dumps(scored))
    found = segments.segments_outcome(tmp_path / "run", 0)
    assert found["status"] == "failed" and "no validation document is longer" in found["message"]


# ------------------------------------------------------------------------------------ tokens of lanes


def test_tokens_per_step_of_lanes_follow_from_the_lengths_of_the_documents():
    source = Ids([5, 12])  # 6 and 13 targets, in 1 and 2 rows of 7
    size = {"tokenizer": "stories4k", "block_size": 7, "batch_size": 3}
    trunk = TrainConfig(**size, packing="lanes", grad_accum=2)
    assert matching.tokens_per_step_of_lanes(trunk, source) == round(6 * 19 / 3)
    carrying = ContextTrainConfig(**size, tbptt=4)
    assert matching.tokens_per_step_of_lanes(carrying, source) == round(12 * 19 / 3)


def test_the_lanes_of_a_run_hold_what_was_counted(corpus):
    source = open_dataset(corpus[1], split="train", val_dataset=corpus[3])
    for block_size in (16, 128):
        cfg = TrainConfig(tokenizer="bundled1536", block_size=block_size, packing="lanes")
        size = {"batch_size": cfg.batch_size, "block_size": block_size, "packing": "lanes"}
        with TrainLoader(source, get_tokenizer(cfg.tokenizer), **size) as batches:
            counts = [int((next(batches)["targets"] != -100).sum()) for _ in range(150)]
        counted = matching.tokens_per_step_of_lanes(cfg, source)
        assert counted == pytest.approx(sum(counts) / 150, rel=0.02)


def test_the_recorded_gap_is_told_beside_the_first_segment():
    """An independent computation from the same results gave 55.7 +- 10.0 %."""
    path = REPO_ROOT / "benchmarks/results/ablations/context_vector/results.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]

    def of(phase, arm=None):
        return [line for line in found if line["phase"] == phase and arm in (None, line["arm"])]

    ends = ("trunk_segments", "trunk_whole", ["carried"])
    asked = SimpleNamespace(seeds=(1, 2, 3), expanded=dict, gaps=lambda arms: [ends])
    (told,) = segments.gap_in_words(Ablation(asked, {}, path.parent, SimpleNamespace(of=of)))
    assert "**carried** closes 63.9 +- 17.8 % of the gap" in told
    assert "**trunk_whole** minus **trunk_segments** is 0.0124 +- 0.0083" in told
    assert "from its own first segment, it is 55.7 +- 10.0 %." in told
