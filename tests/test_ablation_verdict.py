"""Which pairs get a verdict, on which scores and at which look; recorded folders that are judged again."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import planted_differences as planted
from evaluation.ablation import judge
from evaluation.ablation.verdict import (
    DERIVED,
    EXPLORED,
    beside,
    derived_pairs,
    spreads,
    unresolved,
    verdicts,
)
from evaluation.ablation.verdict_text import beside_in_words, in_words, pairs_section

RECORDED = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
LADDER = [["b", "a"], ["c", "b"], ["d", "c"]]


def write(folder: Path, scores: dict[str, list[float | None]], headline: list, seeds=(1, 2, 3)) -> Path:
    """A report's folder in which these runs have ended; None: the run failed."""
    folder.mkdir(exist_ok=True)
    spec = {
        "name": "planted",
        "arms": {arm: {} for arm in scores},
        "seeds": list(seeds),
        "headline": headline,
    }
    spec |= {"budget": {"tokens": 100}, "learning_rates": "none", "base": {}}
    arms = {arm: {"data": "the same", "reference": "a"} for arm in scores}
    (folder / "plan.json").write_text(json.dumps({"spec": spec, "arms": arms}))
    lines = []
    for arm, values in scores.items():
        for seed, value in zip(seeds, values):
            line = {"id": f"verdict {arm} {seed}", "phase": "verdict", "arm": arm, "seed": seed}
            line |= {"status": "failed" if value is None else "ok", "bits_per_byte": value, "message": "boom"}
            lines.append(line | {"first_batch_sha256": str(seed)})
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def rows(grid: np.ndarray) -> dict[str, list[float]]:
    return {"abcdefghi"[k]: [float(x) for x in row] for k, row in enumerate(grid)}


def add(folder: Path, lines: list[dict]) -> None:
    with open(folder / "results.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_verdicts_of_a_folder_are_those_of_the_simulated_grids(tmp_path):
    """So that what benchmarks/planted_differences.py counts holds for reports."""
    scenario = planted.Scenario("", 4, [(1, 0), (2, 1), (3, 2)])
    scores = planted.drawn(scenario, [1] * 4, 3.0, 6, seed=3)
    found, runs = planted.verdicts(scores, scenario.pairs, (3, 5))
    assert 0 < found.sum() < found.size and len(planted.groups(runs)) > 1
    for grid, resolved, made in zip(scores, found, runs):
        kept = {
            arm: [x for x, there in zip(row, made["abcd".index(arm)]) if there]
            for arm, row in rows(grid).items()
        }
        x = judge.read(write(tmp_path, kept, LADDER, seeds=(1, 2, 3, 4, 5)))
        assert [v.look > 0 for v in verdicts(x)] == resolved.tolist()


def test_all_seeds_must_bear_out_the_first_look_and_each_look_has_half_of_the_level(tmp_path):
    first, second = [1.0, 1.01, 1.02, 0.5, 1.6], [1.2, 1.212, 1.219, 1.3, 1.3]
    folder = write(tmp_path, {"a": first, "b": second}, [["a", "b"]], seeds=(1, 2, 3, 4, 5))
    x = judge.read(folder)
    (v,) = verdicts(x)
    p = stats.ttest_rel(first[:3], second[:3]).pvalue
    assert p < 0.025 < stats.ttest_rel(first, second).pvalue
    assert (v.look, v.comparison.verdict, v.withdrawn) == (0, "not resolved", True)
    assert v.comparison.p == pytest.approx(2 * stats.ttest_rel(first, second).pvalue)
    assert v.comparison.difference == pytest.approx(np.mean(first) - np.mean(second))
    assert "the first seeds alone resolve this pair" in in_words(v, "bits_per_byte")
    assert "at look 1 only" in pairs_section(x, [v], [])
    (early,) = verdicts(x, (1, 2, 3))
    assert early.comparison.half_width == pytest.approx(
        stats.t.isf(0.0125, 2) * stats.sem(np.subtract(first, second)[:3])
    )
    assert (early.look, early.comparison.verdict) == (1, "better")
    # all seeds resolve the opposite: neither look is believed
    more = {"a": first[:3] + [5.0 + k / 100 for k in range(9)], "b": second[:3] + [1.3] * 9}
    (turned,) = verdicts(judge.read(write(tmp_path, more, [["a", "b"]], seeds=range(1, 13))))
    assert turned.comparison.difference - turned.comparison.half_width > 0
    assert (turned.comparison.verdict, turned.withdrawn) == ("not resolved", True)
    assert unresolved([early]) == [] and "held to 2.5%" in pairs_section(x, [v], [])
    x = judge.read(write(tmp_path, {"a": first[:3], "b": second[:3]}, [["a", "b"]]))  # a plan of one look
    assert verdicts(x)[0].comparison.p == pytest.approx(p) and "One look" in pairs_section(x, verdicts(x), [])


def test_failed_runs_and_arms_without_common_seeds_get_a_verdict_or_a_sentence(tmp_path):
    scores = {"a": [1.0, 1.1, 1.3], "b": [2.0, None, 2.31], "c": [None, 1.2, None], "d": [1.1, 1.22, 1.41]}
    x = judge.read(write(tmp_path, scores, [["b", "a"], ["c", "a"], ["d", "a"]]))
    one, lost, whole = verdicts(x)
    assert one.seeds == (1, 3) and one.lost == 1 and one.comparison.verdict == "worse"
    assert "over 2 seeds; 1 more did not end well in both arms" in in_words(one, "bits_per_byte")
    assert whole.seeds == (1, 2, 3) and math.isnan(lost.comparison.difference)
    assert "not compared, because fewer than two seeds ended well" in in_words(lost, "bits_per_byte")
    assert unresolved([one, lost]) == ["c", "a"]
    assert spreads(x).df == 9 - 4 - 2  # the only run of c tells nothing
    same = {"a": [1.0, 1.1, 1.2], "b": [1.0, 1.1, 1.2]}
    (equal,) = verdicts(x := judge.read(write(tmp_path, same, [["b", "a"]])))
    assert equal.comparison.p == 1 and "the runs have no spread" in in_words(equal, "bits_per_byte")
    assert "nan" not in pairs_section(x, [equal], [])
    x = judge.read(write(tmp_path, {"a": [1.0, 1.1, 1.2]}, []))
    assert verdicts(x) == [] and beside(x) == [] and spreads(x) is None
    assert pairs_section(x, [], []) == "The specification asks for no pairs."


def test_a_chain_is_also_compared_with_its_two_ends():
    pairs = [tuple(pair) for pair in LADDER]
    assert derived_pairs(pairs) == [("c", "a"), ("d", "a"), ("d", "b")]
    # leaving one out of the last arm is no step of the chain, and two chains are two
    more = [("d", "d_without_b"), ("d", "d_without_c"), ("y", "x"), ("z", "y")]
    assert derived_pairs(pairs + more) == [("c", "a"), ("d", "a"), ("d", "b"), ("z", "x")]
    assert derived_pairs([("b", "a"), ("c", "a"), ("d", "a")]) == []
    assert derived_pairs([("b", "a"), ("c", "b"), ("a", "c")]) == []


def test_pairs_beside_the_plan_are_marked_and_corrected_for_all_pairs_of_arms(tmp_path):
    grid = 1.0 + 0.01 * np.random.default_rng(4).standard_normal((4, 3))
    x = judge.read(write(tmp_path, rows(grid), LADDER[:2]))
    object.__setattr__(x.spec, "explored", (("d", "a"), ("b", "a")))
    found = beside(x, [("a", "d"), ("d", "b")])  # one is known the other way round, one is planned
    assert [(v.first, v.second, v.kind) for v in found] == [
        ("c", "a", DERIVED), ("d", "a", EXPLORED), ("d", "b", EXPLORED)
    ]  # fmt: skip
    planned, *_ = verdicts(x)
    # the studentized range is exact for equal spreads; the Welch interval may be wider
    residuals = grid - grid.mean(0) - grid.mean(1, keepdims=True) + grid.mean()
    error = math.sqrt((residuals**2).sum() / 6 / 3)
    tukey = stats.studentized_range.isf(0.05, 4, 6) * error
    assert min(v.comparison.half_width for v in found) >= tukey * 0.998
    assert found[0].comparison.difference == pytest.approx(grid[2].mean() - grid[0].mean())
    told = "\n".join(beside_in_words(x, found))
    assert "(chosen after the runs)" in told and "not resolved: **c** against **a**" in told
    assert "corrected for all 6 pairs of arms" in pairs_section(x, [planned], found)


def test_with_a_test_set_verdicts_are_on_its_scores_and_include_the_choice_of_its_documents(tmp_path):
    folder = write(tmp_path, {"a": [1.0, 1.1, 1.2], "b": [2.0, 2.2, 2.3]}, [["a", "b"]])
    draw = np.random.default_rng(5)
    lengths, tested = draw.integers(300, 900, 40), {}
    hard = {arm: draw.standard_normal(40) for arm in "ab"}  # documents are harder for one arm or the other
    for arm, seed in (("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2), ("b", 3)):
        nats = lengths * (0.8 + 0.005 * draw.standard_normal() + 0.2 * hard[arm])
        np.savez_compressed(
            folder / f"{arm}{seed}.npz", nats=nats.astype(np.float32), bytes=lengths.astype(np.int32)
        )
        tested[arm, seed] = nats.sum() / math.log(2) / lengths.sum()
    lines = [
        {"id": f"test {a} {s}", "phase": "test", "arm": a, "seed": s, "status": "ok", "bits_per_byte": value,
         "loss": 2.0, "tokens": 9000, "documents": 40, "document_file": f"{a}{s}.npz"}
        for (a, s), value in tested.items()
    ]  # fmt: skip
    add(folder, lines)
    x = judge.read(folder)
    (v,) = verdicts(x)
    values = list(tested.values())
    assert v.comparison.difference == pytest.approx(np.mean(values[:3]) - np.mean(values[3:]))
    assert (
        "over its 40 documents" in pairs_section(x, [v], []) and x.ended_well("a")[1]["bits_per_byte"] == 1.0
    )
    (folder / "b3.npz").unlink()
    x = judge.read(folder)
    (over_seeds,) = verdicts(x)
    assert over_seeds.comparison.half_width < 0.5 * v.comparison.half_width
    assert "not stored for all runs, so that the intervals are over seeds only" in pairs_section(x, [v], [])


# ------------------------------------------------------------------------------------ the command


def test_a_recorded_folder_is_judged_again_without_a_change_in_it(tmp_path, capsys):
    folder = write(tmp_path / "report", rows(1 + np.arange(12.0).reshape(4, 3) ** 2), LADDER[:2])
    with open(folder / "results.jsonl", "a") as file:
        file.write('{"id": "verdict a 9", "pha')  # a run that ends just now
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    out = tmp_path / "again.json"
    assert judge.main([str(folder), "--pair", "d", "b", "--planned", "b", "a", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "**b** against **a**" in told or "**b** is" in told
    found = json.loads(out.read_text())
    assert {"command", "commit", "torch"} <= found.keys()  # a record that nobody could repeat is none
    pairs = found["pairs"]
    assert [(p["first"], p["second"], p["pair"]) for p in pairs] == [
        ("b", "a", "planned"),
        ("d", "b", EXPLORED),
    ]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    for words, message in (
        ([str(folder), "--pair", "d", "bb"], "--pair names the arm 'bb', which does not exist"),
        ([str(folder), "--pair", "d", "d"], "--pair needs two different arms, got d twice"),
        ([str(folder), "--planned", "d", "bb"], "--planned names the arm 'bb', which does not exist"),
        ([str(tmp_path)], f"{tmp_path} has no plan.json; give a folder that ablate.py wrote"),
    ):
        assert judge.main(words) == 2
        assert message in capsys.readouterr().err


def test_the_record_of_verdicts_judged_again_is_that_of_the_recorded_runs():
    lines = json.loads((RECORDED / "judged_again.json").read_text())["pairs"]
    before = [
        p for p in (RECORDED / "ablations").iterdir() if not (p / "test").exists()
    ]  # the rules of today
    assert {line["ablation"] for line in lines} == {p.name for p in before}
    found = {(v.first, v.second): v for v in verdicts(judge.read(RECORDED / "ablations" / "balancing"))}
    for line in lines:
        if line["ablation"] == "balancing":
            c = found[line["first"], line["second"]].comparison
            assert line["verdict_now"] == c.verdict
            assert [line["half_width"], line["p"]] == pytest.approx([c.half_width, c.p], rel=1e-6)
    # the figures of the published reports
    (bias,) = (line for line in lines if line["first"] == "bias")
    assert (round(bias["half_width_then"], 4), round(bias["p_then"], 5)) == (0.0022, 0.00755)
