"""benchmarks/judging.py: names and seeds, and the differences between names."""

import json
import math
import statistics

import numpy as np
import pytest
from scipy.stats import t

from benchmarks import judging
from benchmarks.publish import RESULTS
from evaluation.ablation.statistics import ALPHA


def test_runs_have_a_name_and_names_with_several_runs_have_the_same_seeds(tmp_path, monkeypatch):
    named = judging.named_runs(["toy=a/b,c", "gpt2=d,e"])
    assert {name: list(map(str, runs)) for name, runs in named.items()} == {
        "toy": ["a/b", "c"], "gpt2": ["d", "e"],
    }  # fmt: skip
    for wrong in (["model_toy"], ["toy="], ["toy=a", "toy=b"], ["a/b=c"]):
        with pytest.raises(ValueError, match="--runs takes NAME=RUN,RUN"):
            judging.named_runs(wrong)
    monkeypatch.setattr(judging, "linked", lambda run, folder: folder)

    def facts(*seeds, lr=1.0):
        return [
            {
                "model": {},
                "train": {"seed": seed, "lr": lr, "resume": seed == 2},
                "final": {"final/bits_per_byte": 1.0},
            }
            for seed in seeds
        ]

    found = judging.models_of(named, {"toy": facts(2, 1), "gpt2": facts(1, 2)}, tmp_path)
    assert found["toy"] == {2: tmp_path / "toy_2", 1: tmp_path / "toy_1"}
    with pytest.raises(ValueError, match=r"same seeds, got toy \[1, 2\]; gpt2 \[1, 3\]"):
        judging.models_of(named, {"toy": facts(1, 2), "gpt2": facts(1, 3)}, tmp_path)
    with pytest.raises(ValueError, match="the same except for their seeds"):
        judging.models_of(named, {"toy": facts(1) + facts(2, lr=2.0), "gpt2": facts(1, 2)}, tmp_path)


def test_scores_over_seeds_are_their_means_and_two_names_differ_as_in_a_paired_t_test(tmp_path):
    generator = np.random.default_rng(0)
    models, parts = {}, {"pairs": {}, "texts": {"real": dict.fromkeys(judging.MEASURES[4:])}}
    values = generator.uniform(0.4, 0.9, (2, 5, len(judging.MEASURES)))
    for place, name in enumerate(("toy", "gpt2")):
        models[name] = {seed: tmp_path / f"{name}_{seed}" for seed in (3, 1, 2, 5, 4)}
        for number, model in enumerate(models[name].values()):
            model.mkdir()
            (model / "checkpoint_7.pt").touch()
            scores = {
                measure: {"mean": float(value), "interval": None}
                for measure, value in zip(judging.MEASURES, values[place, number])
            }
            parts["pairs"][str(model / "checkpoint_7.pt")] = scores
            parts["texts"][str(model / "checkpoint_7.pt")] = scores
    models["once"] = {3: tmp_path / "once"}  # a name with one run is left out
    nothing = str(tmp_path / "toy_1" / "checkpoint_7.pt"), "copied_8"
    parts["texts"][nothing[0]] = parts["texts"][nothing[0]] | {nothing[1]: {"mean": None, "interval": None}}
    content = {"pairs": {"scores": parts["pairs"]}, "texts": parts["texts"]}
    found = judging.over_the_seeds(content, models)
    assert list(found["scores"]) == list(found["over_seeds"]) == ["toy", "gpt2"]
    for number, measure in enumerate(judging.MEASURES[:-1]):
        first, second = values[0, :, number], values[1, :, number]
        assert found["over_seeds"]["gpt2"][measure]["mean"] == pytest.approx(second.mean())
        assert found["over_seeds"]["gpt2"][measure]["deviation"] == pytest.approx(second.std(ddof=1))
        (one,) = found["differences"][measure]
        wanted = (first - second).mean()
        half = t.isf(ALPHA / len(judging.MEASURES) / 2, 4) * (first - second).std(ddof=1) / math.sqrt(5)
        assert (one["first"], one["second"]) == ("toy", "gpt2")
        assert one["difference"] == pytest.approx(wanted) and one["half_width"] == pytest.approx(half)
        assert one["resolved"] == (abs(wanted) > half) and one["resolves"] > one["half_width"] * 0.8
    assert nothing[1] not in found["differences"] and nothing[1] not in found["over_seeds"]["toy"]
    assert "| toy " in (told := judging.as_text(found)) and "distinct_3: toy - gpt2" in told


# ------------------------------------------------------------------------- the tables of docs/judging.md


def recorded(name: str) -> dict:
    return json.loads((RESULTS / f"judging_{name}.json").read_text(encoding="utf-8"))


def interval(one: dict, digits: int = 2) -> str:
    low, high = one["interval"]
    return f"{one['mean']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table_rows() -> list[str]:
    """The rows of the tables of docs/judging.md, from the records."""
    stories, seeds = recorded("stories"), recorded("seeds")
    noise, board = recorded("noise"), recorded("scoreboard")
    kinds = ("real", "shuffled", "joined", "bigram")
    rows = [
        f"| `{measure}` | {' | '.join(interval(stories['texts'][kind][measure]) for kind in kinds)} |"
        for measure in stories["texts"]["real"]
    ]
    rows += [
        f"| {name} | {' | '.join('{mean:.3f} +- {half_width:.3f}'.format(**one[m]) for m in judging.MEASURES)} |"
        for name, one in seeds["over_seeds"].items()
    ]
    pairs, measures = stories["pairs"]["scores"]["bigram"], judging.MEASURES
    for name, scores in (("real", {}), ("bigram", pairs)):  # of pairs, the real text is the right one
        told = scores | stories["texts"][name]
        cells = " | ".join(f"{told[m]['mean']:.3f}" if m in told else "1" for m in measures)
        rows.append(f"| {name} stories | {cells} |")
    rows += [
        f"| {line['first']} - {line['second']} | `{measure}` | {line['difference']:+.3f} +- {line['half_width']:.3f} |"
        for measure, lines in seeds["differences"].items()
        for line in lines
        if line["resolved"]
    ]
    rows += [
        f"| {name} | {statistics.fmean(one['bits_per_byte']):.4f} | {one['seeds']['deviation']:.4f} | "
        f"{one['documents']['standard_error']:.4f} |"
        for name, one in noise["noise"].items()
    ]
    for one in board["models"]:
        speed = one.get("speed", {}).get("decode_tokens_per_cpu_second")
        rows.append(
            f"| {one['model']} | {one['bits_per_byte']:.4f} ({one['low']:.4f} to {one['high']:.4f}) | "
            f"{one['parameters']:,} | {one['active']:,} | {one['flops_per_token'] / 1e6:.1f} M | "
            f"{f'{speed:,.0f}' if speed else '-'} |"
        )
    return rows


def test_the_tables_of_the_page_about_judging_are_those_of_the_records():
    page = (RESULTS.parents[1] / "docs/judging.md").read_text(encoding="utf-8").splitlines()
    assert [row for row in table_rows() if row not in page] == []
