"""benchmarks/teaching.py: what post-training taught, over seeds; and the table of docs/teaching.md."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import teaching

ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path, seed: int, scores: list[float], steps: int = 20, **settings) -> Path:
    """A finished run of post-training with these values of val/reward, one for each evaluation."""
    folder.mkdir()
    train = {"seed": seed, "init_from": f"model_{seed}", "max_iters": steps, **settings}
    start = {"command": f"post_train.py grpo --seed {seed}", "commit": "abc"}
    facts = {"train": train, "model": {}, "parameters": {"total": 7}, "starts": [start]}
    (folder / "config.json").write_text(json.dumps(facts))
    spent = [
        {"step": step, "post/sampling_share": step / 10, "val/bits_per_byte_by_length": 1}
        | {"post/explained_variance": 0.5}
        for step in (1, 2, 6)
    ]
    at = np.linspace(0, steps, len(scores)).astype(int).tolist()
    told = [{"step": step, "val/reward": score, "val/passes": 0.5} for step, score in zip(at, scores)]
    final = [{"step": steps, "final/bits_per_byte": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (*told, *spent, *final)))
    return folder


def test_each_measure_has_its_first_and_last_value_and_the_change_over_the_seeds_of_a_name(tmp_path):
    runs = [run(tmp_path / f"a{seed}", seed, [1.0, 9.0, 2.0 + seed]) for seed in (1, 2, 3)]
    found = teaching.taught(runs)
    change = found["change"]["val/reward"]
    assert (change["first"], change["last"], change["change"]["mean"]) == (1.0, 4.0, 3.0)
    assert change["change"]["half_width"] == pytest.approx(
        4.303 / 3**0.5, rel=1e-3
    )  # t(0.975, 2) s / sqrt(3)
    assert found["curves"]["2"]["val/reward"] == [[0, 1.0], [10, 9.0], [20, 4.0]]
    assert found["medians"]["1"] == {"post/sampling_share": 0.2} and "init_from" not in found["settings"]
    assert "val/bits_per_byte_by_length" not in found["change"]
    assert found["curves"]["1"]["post/explained_variance"] == [[1, 0.5], [2, 0.5], [6, 0.5]]


def test_what_each_step_measures_is_averaged_over_the_first_and_last_fifth_of_the_steps():
    curve = [[step, float(step**2)] for step in range(1, 11)]
    assert teaching.ends("post/reward", curve) == (2.5, 90.5)  # (1 + 4) / 2 and (81 + 100) / 2
    assert teaching.ends("val/reward", curve) == (1, 100)
    assert teaching.ends("post/reward", curve[:3]) == (1, 9)


def test_a_single_seed_has_no_interval_and_the_table_says_so(tmp_path):
    found = teaching.taught([run(tmp_path / "a", 1, [1.0, 1.5])])
    assert found["change"]["val/reward"]["change"] == {"mean": 0.5}
    assert "+0.500 (one seed)" in teaching.as_text({"grpo": found}, {})


def test_runs_of_a_name_differ_only_in_seed_and_first_model(tmp_path):
    one, other = run(tmp_path / "a", 1, [1, 2]), run(tmp_path / "b", 2, [1, 2], lr=0.1)
    with pytest.raises(ValueError, match="same except for their seeds"):
        teaching.taught([one, other])


def test_names_with_the_same_seeds_are_compared_at_their_ends(tmp_path):
    names = {"grpo": (1.0, 2.0, 3.0), "ppo": (1.5, 2.4, 3.6)}
    found = {
        name: teaching.taught([run(tmp_path / f"{name}{n}", n, [0, x]) for n, x in enumerate(ends)])
        for name, ends in names.items()
    }
    ((one,),) = teaching.compared(found).values()  # val/passes does not differ anywhere
    assert (one["first"], one["second"], one["difference"]) == ("grpo", "ppo", pytest.approx(-0.5))
    assert teaching.compared({"grpo": found["grpo"]}) == {}


def test_the_tables_of_the_page_about_teaching_are_those_of_the_records():
    page = [" ".join(line.split()) for line in (ROOT / "docs/teaching.md").read_text().splitlines()]
    records = sorted((ROOT / "benchmarks/results").glob("teaching_*.json"))
    read = [json.loads(path.read_text()) for path in records]
    rows = [row for one in read for row in teaching.as_text(one["runs"], one["differences"]).splitlines()]
    assert rows and [row for row in rows if "---" not in row and " ".join(row.split()) not in page] == []
