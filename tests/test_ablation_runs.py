"""Ablations from the command to the report: with runs that only pretend to train, and with real ones."""

import contextlib
import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from toy_corpus import documents, write_jsonl
from toy_run import ToyRun

import ablate
from benchmarks import record_ablation
from evaluation import inference_cost, test_set
from evaluation.ablation import launch, pictures, plan_file
from evaluation.ablation.launch import seconds_per_token
from evaluation.ablation.plan_text import fixed_plan
from evaluation.ablation.results import Results, failure, training_outcome
from evaluation.ablation.spec import read_spec
from evaluation.ablation.verdict import Ablation

REPO_ROOT = Path(__file__).resolve().parent.parent
TINY = {"device": "cpu", "threads": 1, "tokenizer": "bundled1536", "num_hidden_layers": 2, "hidden_size": 32,
        "head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24,
        "num_experts": 6, "sliding_window": 8, "initial_context_length": 16, "block_size": 16,
        "batch_size": 4, "eval_tokens": 256, "log_every": 1}  # fmt: skip
TIMES = ("seconds", "tokens_per_second", "peak_memory_gb")
USE = {"checkpoint_bytes": 3e6, "weight_bytes": 1e6, "peak_memory_gb": 0.2}
USE |= {"prefill_tokens_per_second": 900.0, "decode_tokens_per_second": 80.0}
SPEC = {
    "question": "Which one?",
    "arms": {"moe": {}, "wide": {"intermediate_size": 40}},
    "seeds": [1, 2],
    "budget": {"tokens": 320},
    "learning_rates": [1e-3, 4e-3, 16e-3],
    "search_budget": {"tokens": 192},
}


draw = pictures._write


def stand_in(x, stem, *_, **__) -> Path:
    """A file in place of a picture: drawing takes half of the time of an ablation."""
    (path := x.folder / f"{stem}.png").touch()
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory, corpus):
    """The settings of a small training file, and of a validation file with a test set of 40 documents."""
    valid = write_jsonl(tmp_path_factory.mktemp("data") / "stories_valid.jsonl", documents(120, seed=1))
    return {"dataset": corpus[1], "val_dataset": str(valid)}


@pytest.fixture
def folder(tmp_path, monkeypatch, data):
    """A working directory with a specification of two arms: seeds 1 and 2, three learning rates."""
    monkeypatch.setattr(pictures, "_write", stand_in)
    monkeypatch.setattr(launch, "matmul_rate", lambda device: 4.2e10)
    monkeypatch.chdir(tmp_path)
    write(tmp_path, base=TINY | data)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """Another such directory with the report in out/, only to be read, and the settings of its runs."""
    path = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(path), pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "matmul_rate", lambda device: 4.2e10)
        write(path, base=TINY | data)
        code, done = ablation()
    assert code == 0
    return path, done.runs


def write(folder: Path, **changes) -> None:
    path = folder / "spec.yaml"
    values = yaml.safe_load(path.read_text()) if path.exists() else SPEC
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False))


class Ended:
    """A process that has ended."""

    def __init__(self, code: int = 0):
        self.code = code

    def poll(self):
        return self.code


class Pretence:
    """launch() of runs that write at once what a run of that learning rate and seed would have found.

    bits: (settings of the run) -> bits per byte, an exit code with a last line, or an exception.
    """

    def __init__(self, bits):
        self.bits, self.runs, self.tests = bits, [], []

    def __call__(self, words, log, environment):
        if words[0] == "-c":  # there is nothing left to do
            return Ended()
        given = dict(word[2:].split("=", 1) for word in words if "=" in word)
        if words[0] == "-m":
            found = (
                USE if words[1] == "evaluation.inference_cost" else self.tested(Path(words[2]).parent, given)
            )
            Path(given["out"]).write_text(json.dumps(found))
            return Ended()
        assert given["hold_out_test"] == "true" and words[0] in (
            str(REPO_ROOT / name) for name in ("train.py", "train_context.py")
        )
        self.runs.append(given)
        found = self.bits(given)
        if isinstance(found, BaseException):
            raise found
        if isinstance(found, tuple):
            log.write_text(f"step 1\ntrain.py: error: {found[1]}\n")
            return Ended(found[0])
        out, steps = Path(given["out_dir"]), int(given["max_iters"])
        plan = json.loads((out.parents[2] / "plan.json").read_text())
        arm = out.parent.name[3:]
        out.mkdir()
        per_step = int(given["batch_size"]) * int(given["block_size"])
        rows = [{"step": s, "data/tokens": s * per_step, "perf/seconds": 0.5 * s, "train/loss": 2.0,
                 "perf/peak_memory_gb": 0.3, "val/loss": 2 * found / s, "val/bits_per_byte": found / s}
                for s in range(1, steps + 1)]  # fmt: skip
        final = {"loss": 2 * found, "bits_per_byte": found, "validation_tokens": 1000, "steps": steps,
                 "tokens": steps * per_step, "seconds": 0.5 * steps, "tokens_per_second": 128.0,
                 "parameters": (plan["arms"] | plan["further"])[arm]["axes"]["total"]}  # fmt: skip
        if arm != "wide":  # as if that were dense
            final |= {"max_violation": 0.25 * int(given["seed"]), "dead_experts": 1}
            final["max_violation_worst_layer"] = 0.5
        rows.append({"step": steps} | {f"final/{name}": value for name, value in final.items()})
        (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        start = {"step": 0, "first_batch_sha256": f"batch of {given['seed']}", "command": "python"}
        facts = {"train": {"device": "cpu"}, "starts": [start]}
        (out / "config.json").write_text(json.dumps(facts))
        (out / f"checkpoint_{steps}.pt").write_bytes(b"weights")
        return Ended()

    def tested(self, run: Path, given: dict[str, str]) -> dict[str, float]:
        """What evaluation.test_set writes: a little more than the run's own score, on three documents."""
        self.tests.append(run)
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        bits = last["final/bits_per_byte"] + 0.01
        size = np.array([30, 20, 50], np.int32)
        np.savez_compressed(
            given["out"].replace(".json", ".npz"), nats=np.float32(bits * math.log(2) * size), bytes=size
        )
        return {"bits_per_byte": bits, "half_width_over_documents": 0.02, "loss": 2 * bits, "tokens": 103,
                "documents": 3, "test_set": "3 documents, blake2b abc", "checkpoint": "run"}  # fmt: skip


def score(given) -> float:
    """The wide arm is better by 0.1 and a little more at each seed, best at 4e-3."""
    wide, seed = given["intermediate_size"] == "40", int(given["seed"])
    return (
        2.0 - 0.1 * wide - 0.001 * wide * seed + 0.3 * seed + 0.001 * math.log(float(given["lr"]) / 4e-3) ** 2
    )


def start(*words, bits=score) -> tuple[int, Pretence]:
    pretence = Pretence(bits)
    return ablate.main(list(words), launch=pretence), pretence


def ablation(*flags, bits=score) -> tuple[int, Pretence]:
    return start("spec.yaml", "--out_dir", "out", *flags, bits=bits)


def lines(folder: Path, out: str = "out") -> list[dict]:
    return [json.loads(line) for line in (folder / out / "results.jsonl").read_text().splitlines()]


def report(folder: Path) -> str:
    return (folder / "out" / "report.md").read_text()


# ------------------------------------------------------------------------------------ runs that pretend


def test_all_arms_get_the_same_search_and_seeds_and_the_best_rate(finished):
    path, runs = finished
    found = lines(path)
    assert [line["phase"] for line in found] == ["search"] * 12 + ["verdict", "test"] * 4 + ["inference"] * 2
    judged = found[12:20:2]
    assert {line["lr"] for line in judged} == {4e-3}
    in_turn = [(1, "moe"), (1, "wide"), (2, "moe"), (2, "wide")]
    assert [(line["seed"], line["arm"]) for line in judged] == in_turn
    assert [(line["seed"], line["arm"]) for line in found[13:21:2]] == in_turn  # each scored after its run
    sums = np.load(path / "out" / found[13]["document_file"])
    assert sums["nats"].sum() == pytest.approx(found[13]["bits_per_byte"] * math.log(2) * sums["bytes"].sum())
    content = plan_file.read(path / "out/plan.json").content
    assert {line["plan"] for line in found} == {content} and content in report(path)
    # 320 tokens in steps of 64; nobody draws a curve of a search
    named = [
        tuple(run[key] for key in ("max_iters", "eval_every", "use_tensorboard", "recipe")) for run in runs
    ]
    assert named == [("3", "3", "false", "none")] * 12 + [("5", "1", "false", "none")] * 4
    assert {run["seed"] for run in runs[:12]} == {"0", "3"}  # the two lowest that are not in the verdict
    searched = list((path / "out/runs").glob("*/search-*/checkpoint*"))
    assert not searched and len(list((path / "out/runs").glob("*/seed-*/checkpoint*"))) == 4


def test_the_report_says_what_was_found_and_what_it_cost(finished):
    path, text = finished[0], report(finished[0])
    assert text.startswith("# spec\n\nWhich one?")
    assert (
        "**wide** is better than **moe** by 0.1015 +- 0.0064 bits per byte (95 % interval for all pairs together, over 2 seeds; p "
        in text
    )
    # the whole search, its optimum and the interval of that
    assert "0.001: 2.4519; 0.004: 2.4500; 0.016: 2.4519 |   0.004 | 0.004 to 0.004 |" in text
    assert "The test set, which nothing else looks at: 3 documents, blake2b abc." in text
    assert "python" in text and "Commit" in text and "CPU cores" in text
    for name in ("by_tokens", "by_seconds", "above_reference"):
        png = path / "out" / f"bits_per_byte_{name}.png"
        assert png.read_bytes().startswith(b"\x89PNG") and png.name in text
    loads = text[text.index("## Load of the experts") : text.index("## Costs")]
    assert re.search(r"\| moe +\| +0.3750 \+- 1.5883 \| +0.5000 \+- 0.0000 \| +1.0000", loads)
    assert "wide" not in loads
    rows = list(csv.DictReader((path / "out/results.csv").open()))
    assert [row["id"] for row in rows] == [line["id"] for line in lines(path)]
    assert rows[12]["bits_per_byte"] == "2.3" and rows[12]["status"] == "ok"


@pytest.mark.parametrize("at", [0, 13])
def test_a_killed_grid_continues_and_ends_with_the_same_results(folder, finished, at):
    calls = iter(range(99))

    def bits(given):
        return KeyboardInterrupt() if next(calls) == at else score(given)

    killed, _ = ablation(bits=bits)
    assert killed == 130
    with open(folder / "out/results.jsonl", "a") as file:
        file.write('{"id": "verdict moe se')  # the kill came in the middle of a line
    code, rest = ablation("--resume")
    assert code == 0 and lines(folder) == lines(finished[0])
    assert len(rest.runs) == 16 - at  # nothing that had ended was run again


def test_a_run_that_finished_after_its_runner_was_killed_is_not_repeated(folder, finished):
    shutil.copytree(finished[0] / "out", "out")
    whole = (folder / "out/results.jsonl").read_text().splitlines(keepends=True)
    (folder / "out/results.jsonl").write_text("".join(whole[:14]))
    code, rest = ablation("--resume")
    assert code == 0 and rest.runs == []
    assert "".join(whole) == (folder / "out/results.jsonl").read_text()


def test_a_failed_run_is_a_result_with_its_reason(folder):
    def bits(given):
        if given["intermediate_size"] == "40" and float(given["lr"]) > 3e-3:
            return 2, "step 3 is not finite, first in block.0; try a lower --lr"
        return score(given)

    code, _ = ablation(bits=bits)
    assert code == 0
    found = {line["id"]: line for line in lines(folder)}
    bad = found["search wide seed 0 lr 0.004"]
    assert bad["status"] == "diverged" and bad["bits_per_byte"] is None
    assert bad["message"].startswith("step 3 is not finite")
    below = found["search wide seed 3 lr 0.00025"]  # beyond the edge, where the best is
    assert below["status"] == "ok"
    assert "0.004: diverged" in report(folder) and "beyond the edge" in report(folder)


def test_an_arm_that_no_learning_rate_trains_is_not_compared(folder):
    def bits(given):
        return (1, "boom") if given["intermediate_size"] == "40" else score(given)

    assert ablation(bits=bits)[0] == 0
    assert "not compared, because fewer than two seeds ended well" in report(folder)
    assert [line["status"] for line in lines(folder) if line["arm"] == "wide"] == ["failed"] * 12
    assert "search wide seed 0 lr 0.001: failed: boom" in report(folder)


def test_every_ending_has_a_status():
    assert failure(2, "train.py: error: step 3 is not finite")[0] == "diverged"
    assert failure(2, "train.py: error: block_size must") == ("refused", "block_size must")
    assert failure(1, "torch.OutOfMemoryError: CUDA out of memory. Tried")[0] == "out of memory"
    assert failure(-9, "step 4")[0] == "out of memory"
    assert failure(1, "") == ("failed", "exit code 1")


def test_a_run_of_another_size_than_planned_is_no_result(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "final/loss": 2.0, "final/parameters": 5}\n')
    assert training_outcome(tmp_path, 0, parameters=5)["status"] == "ok"
    found = training_outcome(tmp_path, 0, parameters=6)
    assert found["status"] == "failed" and found["message"] == "the run has 5 parameters, but the plan says 6"


def test_a_pace_is_the_median_of_the_steps_after_the_first(tmp_path):
    stopped = []

    def launch(words, log, environment):
        (tmp_path / "pace").mkdir()
        times = [9.0, 10.0, 10.2, 10.4, 10.6, 10.7, *(11 + 0.1 * i for i in range(30)), 99.0]
        rows = [{"step": i, "perf/seconds": t, "data/tokens": 50 * i} for i, t in enumerate(times)]
        text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 99'
        (tmp_path / "pace/metrics.jsonl").write_text(text)
        process = Ended(None)
        process.send_signal = stopped.append
        process.wait = lambda timeout: 130
        return process

    assert seconds_per_token([], tmp_path / "pace", launch) == pytest.approx(0.1 / 50)
    assert stopped == [signal.SIGINT] and not (tmp_path / "pace").exists()

    def failing(words, log, environment):
        log.write_text("train.py: error: no text")
        return Ended(2)

    with pytest.raises(ValueError, match="no text"):
        seconds_per_token([], tmp_path / "pace", failing)


def test_arms_that_saw_other_batches_get_no_verdict(folder):
    def bits(given):
        given["seed"] = given["seed"] + ("x" if given["intermediate_size"] == "40" else "")
        return score(given | {"seed": given["seed"].rstrip("x")})

    ablation(bits=bits)
    assert "not compared, because the two arms saw different batches" in report(folder)


def test_pairs_that_three_seeds_do_not_resolve_get_the_other_seeds(folder):
    arms = {"moe": {}, "wide": {"intermediate_size": 40}, "wider": {"intermediate_size": 48}}
    write(folder, arms=arms, seeds=[1, 2, 3, 4, 5])

    def bits(given):
        noise = (-1) ** int(given["seed"]) * 0.02 * (given["intermediate_size"] == "48")
        return score(given) + noise

    code, done = ablation(bits=bits)
    found = [line for line in lines(folder) if line["phase"] == "verdict"]
    seeds = {arm: [line["seed"] for line in found if line["arm"] == arm] for arm in arms}
    assert seeds == {"moe": [1, 2, 3, 4, 5], "wide": [1, 2, 3], "wider": [1, 2, 3, 4, 5]}
    text = report(folder)
    assert "**wide** is better than **moe**" in text and "Two looks: at the first 3 seeds" in text
    assert "did not end well" not in text  # of seeds that one of them was not given
    assert re.search(
        r"\*\*wider\*\* against \*\*moe\*\*: not resolved: .+ \+- .+; this design resolves", text
    )


def test_all_arms_get_as_many_seeds_as_the_first_look_has(folder):
    write(folder, seeds=[1, 2, 3, 4], first_seeds=4)
    assert ablation()[0] == 0
    found = [line["seed"] for line in lines(folder) if line["phase"] == "verdict"]
    assert sorted(found) == [1, 1, 2, 2, 3, 3, 4, 4] and "One look, at all seeds." in report(folder)


def test_seeds_that_did_not_end_well_are_reported_and_lead_to_more_seeds(folder):
    def bits(given):
        lost = {"2", "3"} if given["intermediate_size"] == "40" else set()
        return (2, "step 3 is not finite") if given["seed"] in lost else score(given)

    write(folder, seeds=[1, 2, 3, 4, 5])
    ablation(bits=bits)
    assert "over 3 seeds; 2 more did not end well in both arms and are left out" in report(folder)


def test_a_report_can_be_written_after_the_runs_were_deleted(folder, finished):
    shutil.copytree(finished[0] / "out", "out")
    shutil.rmtree(folder / "out/runs/00-moe")
    assert ablation("--resume")[0] == 0
    assert "without 2 of the runs" in report(folder)
    assert "bits_per_byte_by_tokens.png" in report(folder)
    shutil.rmtree(folder / "out/runs")
    assert ablation("--resume")[0] == 0
    assert "without 4 of the runs" in report(folder) and ".png" not in report(folder)


def test_the_plan_names_shared_settings_and_all_arms_without_them(folder, capsys):
    base = TINY | {"dataset": "bundled", "num_experts": 4}
    dense = {"model": "gpt2"}
    write(folder, base=base, arms={"moe": {}, "d1": dense, "d2": dense | {"dropout": 0.1}})
    assert ablate.main(["spec.yaml", "--plan"]) == 0
    assert "num_experts (d1, d2)" in capsys.readouterr().out


def test_minutes_become_tokens_once_and_stay_in_the_plan(folder, monkeypatch):
    paces = iter([1e-3, 2e-3, 9e-3, 2.1e-3, 0.9e-3, 1e-4])  # in turn; each arm's median counts
    monkeypatch.setattr("evaluation.ablation.experiment.seconds_per_token", lambda *_: next(paces))
    write(folder, budget={"minutes": 0.01}, search_budget={"tokens": 128})
    assert ablation()[0] == 0
    tokens = {line["arm"]: line["tokens"] for line in lines(folder) if line["phase"] == "verdict"}
    assert tokens == {"moe": 576, "wide": 320}  # 0.6 s each, in steps of 64
    # from the plan, in another folder: the same runs without measuring
    assert start("out/plan.json", "--out_dir", "again")[0] == 0
    assert lines(folder, "again") == lines(folder)


def test_runs_share_the_cores_of_a_cpu(folder, monkeypatch):
    base = yaml.safe_load((folder / "spec.yaml").read_text())["base"]
    del base["threads"]
    write(folder, base=base, learning_rates="none")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    code, done = ablation("--jobs", "2")
    assert code == 0 and {run["threads"] for run in done.runs} == {"3"}
    assert "Up to 2 runs shared this machine at the same time" in report(folder)


def test_runs_one_by_one_all_take_the_threads_that_were_free_at_the_start(folder, monkeypatch, capsys):
    base = yaml.safe_load((folder / "spec.yaml").read_text())["base"]
    del base["threads"]
    write(folder, base=base, learning_rates="none")
    monkeypatch.setattr("evaluation.ablation.experiment.set_threads", lambda asked, since: "5 threads: busy")
    monkeypatch.setattr("torch.get_num_threads", lambda: 5)
    code, done = ablation()
    assert code == 0 and {run["threads"] for run in done.runs} == {"5"}
    assert "in every run 5 threads: busy\n" in capsys.readouterr().err


def test_runs_have_a_gpu_each(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [launch.visible_gpu(slot)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["5", "7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert launch.visible_gpu(1) == {"CUDA_VISIBLE_DEVICES": "1"}


CONTRACTS = {
    "arms": {
        "moe": {},
        "wide": {"intermediate_size": 40, "num_experts": 5},
        "tall": {"num_hidden_layers": 4},
    },
    "contracts": ["active", "total", "flops", "time"],
    "worth": [0.5, 0.25],
    "seeds": [1, 2, 4],
    "budget": {"tokens": 640},
}


def contract_score(given) -> float:
    """Better with more steps and less layers; 0.04 is lost with the layers of tall."""
    seed, steps = int(given["seed"]), int(given["max_iters"])
    loss = (
        2.0 * steps**-0.1
        + 0.05 * (int(given["num_hidden_layers"]) - 2)
        - 0.02 * (given["num_experts"] == "5")
    )
    return loss + 0.3 * seed + 0.0003 * (seed * steps % 7) + 0.001 * math.log(float(given["lr"]) / 4e-3) ** 2


def test_other_contracts_are_run_for_the_best_other_arm_and_survive_a_kill_and_lost_checkpoints(
    folder, monkeypatch
):
    """A kill in the runs of the contracts; a copy of the report without the checkpoints; one test score missing."""
    paces = {"moe": 1e-3, "wide": 2e-3, "tall": 4e-3}

    def measured(words, *_):
        given = dict(word[2:].split("=", 1) for word in words if "=" in word)
        experts, layers = given["num_experts"], given["num_hidden_layers"]
        return paces["wide" if experts == "5" else "tall" if layers == "4" else "moe"]

    monkeypatch.setattr("evaluation.ablation.experiment.seconds_per_token", measured)
    write(folder, **CONTRACTS)
    done = iter(range(10**6))

    def killed(given):
        return KeyboardInterrupt() if next(done) == 34 else contract_score(given)

    code, first = ablation(bits=killed)
    assert code == 130 and any(line["phase"] == "choice" for line in lines(folder))
    for checkpoint in (folder / "out").rglob("checkpoint_*.pt"):
        checkpoint.unlink()
    kept = [line for line in lines(folder) if line["id"] != "test tall seed 2"]
    (folder / "out/results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    code, rest = ablation("--resume", bits=contract_score)
    assert code == 0
    found = {line["id"]: line for line in lines(folder)}
    again = [run for run in rest.runs if "seed-" in run["out_dir"] and "02-tall/seed-2" in run["out_dir"]]
    assert len(again) == 1 and len(first.runs) - 1 + len(rest.runs) == 1 + sum(
        line["phase"] in ("search", "verdict") for line in found.values()
    )
    assert found["choice"]["arm"] == "wide"
    trained = {line["arm"] for line in found.values() if line["phase"] == "verdict"}
    plan = plan_file.read(folder / "out/plan.json").plan
    assert trained == {"moe", "wide", "tall", "wide@total", "wide@time", "moe@0.25", "moe@0.5"}
    assert plan.contracts["flops"]["wide"] == "wide" and plan.further["wide@time"].steps == 5
    assert all(f"test {arm} seed {seed}" in found for arm in trained for seed in (1, 2, 4))
    assert {line["lr"] for line in found.values() if "lr" in line and line["arm"] in plan.shares} == {4e-3}
    text = report(folder)
    section = text[text.index("## Contracts") : text.index("## Arms")]
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in section.splitlines()
        if row.startswith("| ")
    ]
    assert [row[0] for row in rows[2:]] == CONTRACTS["contracts"]
    assert [row[1] for row in rows[2:]] == ["wide", "wide@total", "wide", "wide@time"]
    assert [row[7] for row in rows[2:5]] == ["+0.0200"] * 3 and rows[5][9] == "better"
    worth = [row[-2:] for row in rows[2:]]
    assert worth[0] == ["less than x 1", "less than x 2"]
    # half of the tokens at 0.999 of the FLOPs, and a score between those of half and of all of the budget
    assert re.match(r"x 0\.8\d \(", worth[3][0]) and re.match(r"x 1\.7\d \(", worth[3][1])
    assert "**moe** against **wide**, which had the best mean validation score" in text
    assert "has not changed since: sha256" in text


def test_a_published_report_keeps_its_hash_and_the_sums_of_each_document(folder, finished, monkeypatch):
    monkeypatch.setattr(record_ablation, "RESULTS", folder / "results")
    monkeypatch.setattr(
        record_ablation, "require_clean_commits", lambda text, path: None
    )  # those of this tree
    there = str(Path(yaml.safe_load((folder / "spec.yaml").read_text())["base"]["val_dataset"]).parent)
    words = ["record_ablation", str(finished[0] / "out"), "--tinystories", there]
    monkeypatch.setattr(sys, "argv", words)
    record_ablation.main()
    public = folder / "results/ablations/spec"
    assert "$TINYSTORIES/stories_valid.jsonl" in (public / "plan.json").read_text()
    stored = plan_file.read(public / "plan.json")
    found = [json.loads(line) for line in (public / "results.jsonl").read_text().splitlines()]
    assert {line["plan"] for line in found} == {stored.content}
    named = [line["document_file"] for line in found if line["phase"] == "test"]
    assert len(named) == 4 and all(np.load(public / name)["bytes"].sum() == 100 for name in named)


def test_a_plan_that_was_changed_after_the_first_run_is_refused_and_named_in_the_report(
    folder, finished, capsys
):
    shutil.copytree(finished[0] / "out", "out")
    plan = json.loads((folder / "out/plan.json").read_text())
    del plan["seal"]
    plan["arms"]["wide"]["steps"] = 9
    (folder / "out/plan.json").write_text(json.dumps(plan))
    assert "plan.json was changed after the first run: its hash is" in refused(capsys, "--resume")
    spec = read_spec(folder / "out/plan.json")
    stored = plan_file.read(folder / "out/plan.json")
    with Results(folder / "out/results.jsonl") as results:
        x = Ablation(spec, stored.arms, folder / "out", results)
        assert fixed_plan(x, stored).startswith("**plan.json was changed after the first run**")


def refused(capsys, *flags) -> str:
    capsys.readouterr()
    code, done = ablation(*flags)
    err = capsys.readouterr().err
    assert code == 2 and done.runs == [] and err.splitlines()[-1].startswith("ablate.py: error: "), err
    return err


def test_a_wrong_start_is_refused_in_one_sentence_before_anything_runs(folder, finished, capsys):
    assert "--jobs must be at least 1, got 0" in refused(capsys, "--jobs", "0")
    assert "--resume needs the folder of an earlier start" in refused(capsys, "--resume")
    shutil.copytree(finished[0] / "out", "out")
    assert "--out_dir must be new or empty" in refused(capsys)
    assert start("out/plan.json", "--out_dir", "new", "--lr", "1e-2")[0] == 2
    assert "their settings must not change (--lr); start" in capsys.readouterr().err
    edited = {
        name: value
        for name, value in json.loads((folder / "out/plan.json").read_text()).items()
        if name != "seal"
    }
    (folder / "edited.json").write_text(json.dumps(edited).replace("Which one?", "Which?"))
    assert start("edited.json", "--out_dir", "new")[0] == 2
    assert "must not change (its specification was edited)" in capsys.readouterr().err
    older = edited | {"arms": {name: arm | {"axes": {"total": 7}} for name, arm in edited["arms"].items()}}
    (folder / "older.json").write_text(json.dumps(older))
    assert start("older.json", "--out_dir", "new")[0] == 2
    assert "older.json: arm moe had 7 parameters, and its settings now give " in capsys.readouterr().err
    old = REPO_ROOT / "benchmarks/results/ablations/gpt2_vs_gptoss_first"
    assert start(str(old / "plan.json"), "--out_dir", "new")[0] == 2
    assert "is of an earlier version of ablate.py, whose runs had no test set" in capsys.readouterr().err
    assert start("spec.yaml", "--resume", "--out_dir", str(old))[0] == 2
    assert "holds results of an earlier version of ablate.py" in capsys.readouterr().err
    write(folder, seeds=[1, 3])
    told = refused(capsys, "--resume")
    assert "out holds results of another specification" in told and "(different: seeds, " in told
    (folder / "diary").mkdir()
    assert start("spec.yaml", "--resume", "--out_dir", "diary")[0] == 2
    assert "diary has no plan.json" in capsys.readouterr().err
    (folder / "diary/results.jsonl").touch()  # killed before there was a plan
    assert start("spec.yaml", "--resume", "--out_dir", "diary")[0] == 0
    assert start("out/plan.json", "--resume", "--out_dir", "diary")[0] == 2
    assert "diary holds results of another specification" in capsys.readouterr().err
    write(folder, seeds=[1, 2])
    (folder / "out/results.jsonl").write_text("nonsense\n{}\n")
    assert "delete line 1 to repeat that run" in refused(capsys, "--resume")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"device": "cuda:9"}, "arm wide: device"),
        ({"attention": "flexx"}, "arm wide: attention must be"),
        ({"experts": "sortedd"}, "arm wide: experts must be"),
        ({"model": "gpt2", "experts": "sorted"}, "arm wide: experts must be auto or none, as gpt2 is dense"),
        ({"dataset": "no.jsonl", "val_dataset": "bundled"}, "arm wide: dataset 'no.jsonl': no such file"),
    ],
)
def test_an_arm_that_this_machine_cannot_train_is_refused_before_anything_runs(
    folder, capsys, settings, message
):
    write(folder, arms={"moe": {}, "wide": settings}, base=TINY | {"dataset": "bundled"})
    assert message in refused(capsys)
    assert not (folder / "out").exists()


def test_resume_finds_the_newest_report_of_the_specification(folder):
    write(folder, learning_rates="none", seeds=[1], headline=[])
    assert start("spec.yaml")[0] == 0
    (place,) = (folder / "runs/ablations").iterdir()
    (place.parent / "spec-two-20990101-000000").mkdir()  # of another specification
    code, rest = start("spec.yaml", "--resume")
    assert code == 0 and rest.runs == [] and (place / "report.md").is_file()


# ------------------------------------------------------------------------------------ runs that train


class Trained:
    """launch() of real runs in processes of the fork server; inference is measured in this process."""

    def __init__(self, folder: Path, interrupt_at: int | None = None):
        self.folder, self.interrupt_at, self.count = folder, interrupt_at, 0

    def __call__(self, words, log, environment):
        if words[0] == "-c":
            return Ended()
        if words[0] == "-m":
            measure = {"evaluation.inference_cost": inference_cost.run, "evaluation.test_set": test_set.main}
            measure[words[1]](words[2:])
            return Ended()
        self.count += 1
        at = dict(at_step=3, action=signal.SIGINT) if self.count == self.interrupt_at else {}
        run = ToyRun(self.folder / f"process-{self.count}", *words[1:], **at)
        run.poll = lambda: run._process.exitcode
        return run


def comparable(record: dict) -> dict:
    speeds = re.compile("_cpu_second|_each_round")
    return {k: v for k, v in record.items() if k not in (*TIMES, *USE) and not speeds.search(k)}


def test_real_runs_go_to_a_report_and_a_killed_grid_ends_with_the_same_bits(folder, monkeypatch):
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(inference_cost, "ROUNDS", 1)
    monkeypatch.setattr(inference_cost, "SECONDS", 0)
    base = yaml.safe_load((folder / "spec.yaml").read_text())["base"]
    base |= {"save_every": 2, "eval_every": 5, "final_eval_tokens": 256}
    arms = {"moe": {}, "dense": {"model": "gpt2"}}
    write(folder, base=base, contracts=["active"], arms=arms, learning_rates="none")
    assert ablate.main(["spec.yaml", "--out_dir", "out"], launch=Trained(folder / "a")) == 0
    # the same, killed in its third run, which is then killed in its fourth step
    shutil.copytree(folder / "out", folder / "two")
    for line in lines(folder)[4:8:2]:
        shutil.rmtree(folder / "two" / line["folder"])
    whole = (folder / "out/results.jsonl").read_text().splitlines(keepends=True)
    (folder / "two/results.jsonl").write_text("".join(whole[:4]) + whole[4][:20])
    resume = ["spec.yaml", "--out_dir", "two", "--resume"]
    assert ablate.main(resume, launch=Trained(folder / "b", interrupt_at=1)) == 130
    assert len(lines(folder, "two")) == 4
    assert len(list((folder / "two").rglob("checkpoint_4.pt"))) == 1
    assert ablate.main(resume, launch=Trained(folder / "c")) == 0
    one, two = lines(folder), lines(folder, "two")
    assert list(map(comparable, one)) == list(map(comparable, two))
    assert all(line["status"] == "ok" for line in one), one
    assert not list(folder.rglob("*tfevents*"))  # TensorBoard's list of runs/ stays one of training runs
    hashes = {(line["seed"], line["first_batch_sha256"]) for line in one if line["phase"] == "verdict"}
    seeds = {line["seed"] for line in one if "seed" in line}
    assert len(hashes) == len(seeds) == 2  # both arms alike
    loads = {line["arm"]: line["max_violation"] for line in one if line["phase"] == "verdict"}
    assert loads["moe"] > 0 and loads["dense"] is None
    text = report(folder)
    assert "Shared settings that an arm's model does not have: head_dim (dense)" in text
    use = [line for line in one if line["phase"] == "inference"]
    assert [line["arm"] for line in use] == ["moe", "dense"]
    for line in use:
        assert line["decode_tokens_per_second"] > 0 and line["checkpoint_bytes"] > line["weight_bytes"] > 0
    assert use[0]["weight_bytes"] > use[1]["weight_bytes"]  # each line has the figures of its own arm
    assert "a fixed product of matrices ran at 42 to 42 GFLOP/s" in text
    assert "of 1 rounds in which the arms took turns" in text


@pytest.mark.slow
def test_the_command_itself_runs_its_processes_and_stops_them_with_ctrl_c(folder):
    write(folder, budget={"minutes": 0.001}, search_budget={"tokens": 192}, learning_rates="none")
    words = [sys.executable, str(REPO_ROOT / "ablate.py"), "spec.yaml", "--out_dir", "out", "--jobs", "2"]
    first = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    for line in first.stderr:
        if " runs, about" in line:
            first.send_signal(signal.SIGINT)
            break
    told = first.stderr.read()
    go_on = "continue with: python ablate.py spec.yaml --resume --out_dir out --jobs 2"
    assert first.wait(120) == 130 and go_on in told
    done = subprocess.run([*words, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {line["status"] for line in lines(folder)} == {"ok"}
    assert "There was no search" in report(folder) and len(lines(folder)) == 10
