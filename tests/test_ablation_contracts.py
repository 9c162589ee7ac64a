"""The learning rate from a parabola, what a difference is worth, and the arms of further contracts."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from evaluation.ablation import contracts, plan_file
from evaluation.ablation.rates import means, optimum, parabola, scores_of
from evaluation.ablation.spec import read_spec
from evaluation.ablation.worth import worth

# ------------------------------------------------------------------------------------ the learning rate


def bowl(rate, seed, at=5e-3, curvature=0.05, noise=0.0):
    return 1 + 0.3 * seed + curvature * math.log(rate / at) ** 2 + noise


def test_the_lowest_point_of_an_exact_parabola_is_found_whatever_the_seeds_add():
    scores = {rate: {seed: bowl(rate, seed) for seed in (0, 6)} for rate in (2e-3, 4e-3, 8e-3)}
    found = optimum(scores)
    assert (found.rate, found.fitted, found.remark) == (0.005, True, "")
    assert found.low == pytest.approx(5e-3, rel=1e-5) and found.high == pytest.approx(5e-3, rel=1e-5)
    far = scores | {16e-3: {0: 90.0, 6: 70.0}}  # not a neighbour of the best: no part of the parabola
    assert optimum(far).rate == 0.005 and means(far)[16e-3] == 80


def test_the_interval_is_that_of_a_search_over_all_vertices():
    """Every vertex that a t-test of the slope there does not reject, by brute force; the slope from other axes."""
    from scipy.stats import t

    draw = np.random.default_rng(5)
    x, seed = np.repeat([-0.7, 0.0, 0.9], 3), np.tile([4, 0, 9], 3)
    y = 2 + 0.1 * seed + 0.06 * (x - 0.2) ** 2 + draw.normal(0, 0.004, 9)
    found = parabola(x, seed, y)

    def slope(v):  # with the parabola written around v, the coefficient of (x - v) is the slope at v
        columns = [seed == one for one in (0, 4, 9)] + [x - v, (x - v) ** 2]
        design = np.column_stack([np.asarray(column, float) for column in columns])
        inverse = np.linalg.inv(design.T @ design)
        beta = inverse @ design.T @ y
        rest = y - design @ beta
        return beta[3], math.sqrt(rest @ rest / 4 * inverse[3, 3])

    kept = [v for v in np.linspace(-1, 2, 1001) if abs(slope(v)[0]) <= t.isf(0.025, 4) * slope(v)[1]]
    assert found.freedom == 4 and slope(found.vertex)[0] == pytest.approx(0, abs=1e-9)
    assert (found.low, found.high) == pytest.approx((min(kept), max(kept)), abs=4e-3)


def test_the_interval_covers_the_optimum_in_nineteen_of_twenty_searches():
    draw, hits, bounded = np.random.default_rng(0), 0, 0
    x, seed = np.repeat([-0.7, 0.0, 0.7], 2), np.tile([0, 1], 3)
    for _ in range(1000):
        y = 0.2 * seed + 0.05 * (x - 0.15) ** 2 + draw.normal(0, 0.0007, 6)
        found = parabola(x, seed, y)
        if found.low is not None:
            bounded += 1
            hits += found.low <= 0.15 <= found.high
        else:
            hits += 1  # all of the line, or all but a piece far away
    assert bounded > 500 and hits / 1000 == pytest.approx(0.95, abs=0.025)


def test_where_there_is_no_parabola_the_best_rate_that_was_tried_is_used_and_the_reason_said():
    rates = (2e-3, 4e-3, 8e-3)
    rising = {rate: {0: rate, 6: rate} for rate in rates}
    assert optimum(rising)[0] == 2e-3 and optimum(rising).remark == "best rate at the edge"
    failed = {rate: {0: bowl(rate, 0), 6: None if rate == 8e-3 else 1.0} for rate in rates}
    assert optimum(failed).rate == 4e-3 and "edge" not in optimum(failed).remark
    assert optimum(dict.fromkeys(rates, {0: None, 6: 1.0})).rate is None
    noisy = {r: {0: bowl(r, 0), 6: bowl(r, 6, noise=n)} for r, n in zip(rates, (0.03, -0.02, 0.03))}
    found = optimum(noisy)
    assert rates[0] <= found.rate <= rates[2] and found.low is None and "not bounded" in found.remark
    one = optimum({rate: {0: bowl(rate, 0)} for rate in rates})
    assert one.rate == 0.005 and one.low is None and one.remark == "one seed"


def test_a_rate_counts_as_tried_once_every_seed_has_ended():
    lines = [{"lr": 2e-3, "seed": s, "bits_per_byte": 1.0 + s} for s in (0, 6)] + [
        {"lr": 4e-3, "seed": 0, "bits_per_byte": None}
    ]
    assert scores_of(lines, "bits_per_byte", (0, 6)) == {2e-3: {0: 1.0, 6: 7.0}}


# ------------------------------------------------------------------------------------ worth


def law(cost):
    return 3.0 * cost**-0.12


def test_on_a_power_law_the_worth_is_the_ratio_of_the_costs_at_equal_scores():
    costs, seeds = [25.0, 50.0, 100.0], np.array([0.01, -0.02, 0.005])
    curve = [law(cost) * (1 + seeds) for cost in costs]
    for reached in (26.0, 40.0, 50.0, 77.0, 100.0):
        found = worth(costs, curve, 130.0, law(reached) * (1 + seeds))
        assert found.ratio == pytest.approx(130 / reached, rel=1e-9)
        # what all scores of a seed share cancels, so that nothing is left
        assert (found.low or found.ratio, found.high or found.ratio) == pytest.approx(
            (found.ratio,) * 2, rel=1e-6
        )


def test_beyond_the_curve_nothing_is_extrapolated():
    costs = [25.0, 50.0, 100.0]
    curve = [[law(cost)] * 3 for cost in costs]
    assert worth(costs, curve, 100.0, [law(24.0)] * 3).in_words() == "more than x 4"
    assert worth(costs, curve, 100.0, [law(101.0)] * 3).in_words() == "less than x 1"
    risen = [curve[0], curve[1], curve[0]]
    assert "not better with a larger budget" in worth(costs, risen, 100.0, curve[1]).in_words()
    near = worth(costs, curve, 100.0, [law(25.5), law(27.0), law(24.9)])
    assert near.high is None and near.in_words().endswith("to more than 4)")
    # a mean beyond the end of the curve by less than the seeds spread is not said to be beyond it
    over = worth(costs, curve, 100.0, [law(22.0), law(28.0), law(24.5)])
    assert over.ratio is None and over.remark == "more" and over.low < 4
    assert re.fullmatch(r"more than x 4 \(3\.\d\d to more than 4\)", over.in_words())
    # and not even by a t-test of its own, if the verdict on the whole budget is not resolved
    less = worth(costs, curve, 100.0, [law(101.0)] * 3, whole_differs=False)
    assert less.in_words() == "less than x 1 (less than 1 to 1.00)"
    assert worth(costs, np.array(curve)[:, :1], 100.0, [law(40.0)]).in_words() == "x 2.50 (one seed)"


@pytest.mark.parametrize("reached", (25.0, 95.0))  # at the ends of the curve, too
def test_the_interval_of_a_worth_covers_the_truth_in_nineteen_of_twenty_comparisons(reached):
    draw, hits, grids = np.random.default_rng(1), 0, 500
    costs = [25.0, 50.0, 100.0]
    for _ in range(grids):
        shared = draw.normal(0, 0.003, 5)

        def scores(cost, shared=shared):
            return law(cost) * (1 + shared + draw.normal(0, 0.002, 5))

        found = worth(costs, [scores(cost) for cost in costs], 100.0, scores(reached))
        hits += (found.low or 0) <= 100 / reached <= (found.high or math.inf)
    # at the end itself only one of the two tails can be in error
    assert hits / grids == pytest.approx(0.975 if reached == 25 else 0.95, abs=0.025)


# ------------------------------------------------------------------------------------ contracts

BASE = {"dataset": "bundled", "tokenizer": "bundled1536", "hidden_size": 96, "num_attention_heads": 6,
        "num_hidden_layers": 3, "block_size": 32}  # fmt: skip
VALUES = {
    "base": BASE,
    "arms": {"moe": {}, "dense": {"model": "gpt2"}, "deep": {"model": "gpt2", "num_hidden_layers": 5}},
    "seeds": [1, 2, 3, 4, 5],
    "budget": {"tokens": 10_240},
    "contracts": ["active", "total", "flops", "time"],
    "worth": [0.5, 0.25],
    "learning_rates": [1e-3, 2e-3, 4e-3],
}


def spec_of(tmp_path, **changes):
    path = tmp_path / "spec.yaml"
    path.write_text(
        yaml.safe_dump({k: v for k, v in (VALUES | changes).items() if v is not None}, sort_keys=False)
    )
    return read_spec(path)


def test_every_other_arm_is_planned_under_every_contract_before_a_run(tmp_path):
    spec = spec_of(tmp_path)
    plan = contracts.planned(spec)
    assert list(plan.arms) == ["moe", "dense", "deep"]
    for contract in ("active", "total", "flops"):
        for name in ("dense", "deep"):
            arm = plan.every[plan.contracts[contract][name] if contract != "active" else name]
            assert arm.axes[contract] == pytest.approx(plan.arms["moe"].axes[contract], rel=0.02)
            assert arm.tokens == 10_240
    assert plan.contracts["total"]["dense"] == "dense@total"
    assert plan.contracts["flops"]["dense"] == "dense"  # its runs are used again
    # 40 tokens in all: the share of the steps, with a whole schedule
    assert {name: plan.further[name].steps for name in plan.shares} == {"moe@0.25": 10, "moe@0.5": 20}
    assert plan.further["dense@time"].steps is None and contracts.is_unmeasured(spec, plan)
    told = contracts.amount(spec, plan)
    assert told.startswith("at most 30 runs of the search and 35 of the verdict") and "under time" in told


def test_under_time_an_arm_gets_the_tokens_of_the_reference_s_seconds(tmp_path):
    spec = spec_of(tmp_path)
    plan = contracts.planned(spec)
    names = [arm.name for arm in contracts.paced(spec, plan)]
    assert {"moe", "dense", "deep", "dense@total"} <= {*names} and not {"dense@time", "moe@0.5"} & {*names}
    pace = dict.fromkeys(names, 2e-4) | {"dense": 1e-4, "deep": 1.99e-4}
    full = contracts.with_lengths(spec, plan, pace)
    assert full.further["dense@time"].tokens == 20_480 and full.further["dense@time"].search_steps == 80
    assert full.contracts["time"] == {"dense": "dense@time", "deep": "deep"}  # within 2 % of it already
    assert not contracts.is_unmeasured(spec, full)
    assert "minutes of training at the measured paces" in contracts.amount(spec, full)


def test_the_hash_of_a_plan_is_that_of_its_file_and_changes_with_its_runs_alone(tmp_path):
    spec = spec_of(tmp_path, contracts=["active", "total"], worth=None)
    plan = contracts.planned(spec)
    plan_file.write(tmp_path / "plan.json", spec, plan, threads=1)
    stored = plan_file.read(tmp_path / "plan.json")
    assert stored.plan.every.keys() == plan.every.keys() and not stored.older
    assert stored.content == plan_file.content_sha256(spec, plan)
    values = json.loads((tmp_path / "plan.json").read_text())
    del values["seal"]

    def of(text):
        (tmp_path / "other.json").write_text(text)
        return plan_file.read(tmp_path / "other.json").content

    text = json.dumps(values)
    assert of(text.replace('"bundled"', '"elsewhere"')) == stored.content  # the place of the data
    assert of(text.replace('"steps": 40', '"steps": 41')) != stored.content
    explored = spec_of(tmp_path, contracts=["active", "total"], worth=None, explored=[["dense", "deep"]])
    assert plan_file.content_sha256(explored, plan) == stored.content and explored.sha256 == spec.sha256
    assert explored.explored_pairs(explored.expanded()) == [("dense", "deep")]


def test_the_best_other_arm_is_chosen_by_validation_over_the_seeds_that_all_have(tmp_path):
    spec = spec_of(tmp_path, contracts=["active"], worth=None)
    plan = contracts.planned(spec)

    def best(scores):
        lines = [
            {
                "phase": "verdict",
                "arm": arm,
                "seed": seed,
                "status": "ok" if bits else "failed",
                "bits_per_byte": bits,
            }
            for arm, row in scores.items()
            for seed, bits in enumerate(row, start=1)
        ]
        results = SimpleNamespace(
            of=lambda phase, arm: [x for x in lines if (x["phase"], x["arm"]) == (phase, arm)]
        )
        return contracts.best_other(SimpleNamespace(spec=spec, arms=plan.arms, results=results))

    assert best({"moe": [0.1] * 3, "dense": [1.0, 1.2, 1.1], "deep": [1.1, 1.0, 1.0]}) == "deep"
    # later seeds, which only some arms have, do not count
    assert best({"moe": [0.1] * 3, "dense": [1.0, 1.2, 1.1, 0.1, 0.1], "deep": [1.1, 1.0, 1.0]}) == "deep"
    assert best({"moe": [0.1] * 3, "dense": [1.0, 1.2, 1.1], "deep": [1.1, 1.0, None]}) == "dense"
    assert best({"moe": [0.1] * 3, "dense": [None], "deep": []}) is None


def test_plans_of_versions_without_a_test_set_are_read_as_one_contract_and_one_seed(tmp_path):
    spec = spec_of(tmp_path, contracts=["active"], worth=None)
    plan_file.write(tmp_path / "plan.json", spec, contracts.planned(spec), threads=1)
    values = json.loads((tmp_path / "plan.json").read_text())
    for key in ("further", "contracts", "shares", "seal"):
        del values[key]
    values["spec"] |= {
        "axis": values["spec"].pop("contracts")[0],
        "search_seed": values["spec"].pop("search_seeds")[0],
    }
    (tmp_path / "plan.json").write_text(json.dumps(values))
    old, stored = read_spec(tmp_path / "plan.json"), plan_file.read(tmp_path / "plan.json")
    assert (old.contracts, old.search_seeds, old.axis) == (("active",), (0,), "active")
    assert stored.older and stored.arms.keys() == {"moe", "dense", "deep"} and stored.plan.further == {}
