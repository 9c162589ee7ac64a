"""The model of arms and seeds, simultaneous intervals, power and documents, against references of their own."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from benchmarks import planted_differences as planted
from benchmarks.publish import RESULTS
from evaluation.ablation.contrasts import (
    OUTLIER,
    Model,
    errors,
    family_of,
    intervals,
    p_values,
    power,
    resolutions,
)
from evaluation.ablation.documents import read_documents, sampling
from evaluation.ablation.statistics import resolvable

ARMS = "abcd"


def full(arms: str = ARMS, seeds: int = 5) -> Model:
    return Model([(arm, seed) for arm in arms for seed in range(seeds)])


def drawn(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_with_runs_missing_the_differences_are_those_of_least_squares():
    cells = [
        ("a", 0),
        ("a", 1),
        ("a", 2),
        ("b", 0),
        ("b", 1),
        ("b", 2),
        ("b", 3),
        ("b", 4),
        ("c", 0),
        ("c", 2),
    ]
    cells += [("c", 3), ("c", 4), ("d", 1)]  # the only run of d says nothing about the others
    scores = 1.06 + 0.01 * drawn(len(cells))
    # full rank: arm a and seed 0 are the reference
    design = np.array(
        [[1] + [a == x for x in "bcd"] + [s == x for x in (1, 2, 3, 4)] for a, s in cells], float
    )
    fitted, (squares,), rank, _ = np.linalg.lstsq(design, scores, rcond=None)
    model, pairs = Model(cells), [("b", "a"), ("c", "b")]
    found = errors(model, pairs, scores)
    assert model.df == len(cells) - rank == 5
    assert model.squares(scores)[0] == pytest.approx(squares, rel=1e-9)
    assert scores @ model.weights(pairs).T == pytest.approx([fitted[1], fitted[2] - fitted[1]], abs=1e-12)
    inverse = np.linalg.inv(design.T @ design) * squares / 5
    two = np.array([0, -1, 1] + [0] * 5)
    assert found.pooled == pytest.approx([math.sqrt(inverse[1, 1]), math.sqrt(two @ inverse @ two)], rel=1e-9)


def test_two_arms_are_compared_by_the_paired_t_test():
    scores = drawn(2, 5) + [[0.0], [1.3]]
    model, pair = full("ab"), [("b", "a")]
    reference = stats.ttest_rel(scores[1], scores[0])
    low, high = reference.confidence_interval(0.95)
    found = intervals(model, pair, scores.ravel(), 0.05)
    assert found.difference == pytest.approx([(low + high) / 2])
    assert found.half_width == pytest.approx([(high - low) / 2])
    assert p_values(model, pair, scores.ravel()) == pytest.approx([reference.pvalue])


@pytest.mark.parametrize(("level", "df"), [(0.05, 32.0), (0.003, 6.0)])
def test_the_largest_t_of_all_pairs_has_the_quantiles_of_the_studentized_range(level, df):
    arms = "abcdefg"
    weights = full(arms).weights(list(itertools.combinations(arms, 2)))
    family = family_of(weights @ weights.T)
    expected = stats.studentized_range.isf(level, len(arms), df) / math.sqrt(2)
    assert family.critical(level, df) == pytest.approx(expected, rel=4e-3)
    assert family.tail(expected, df) == pytest.approx(level, rel=0.03)
    many = np.linspace(df, df + 9, 40)  # interpolated
    assert family.critical(level, many)[[0, 17]] == pytest.approx(
        [family.critical(level, many[0]), family.critical(level, many[17])], rel=5e-4
    )


def test_a_half_width_is_the_wider_of_the_pooled_and_the_welch_interval():
    scores = drawn(4, 5, seed=4) * [[1.0], [1.0], [2.5], [0.5]]
    model, pairs = full(), [("a", "b"), ("c", "a"), ("c", "d")]
    pooled = math.sqrt(model.squares(scores.ravel())[0] / 12 * 2 / 5)
    weights = model.weights(pairs)
    together = pooled * family_of(weights @ weights.T).critical(0.05, 12.0)
    expected, welch = [], []
    for pair in pairs:
        parts = []
        for arm in pair:
            k = ARMS.index(arm)
            parts.append(np.var(scores[k] - np.delete(scores, k, 0).mean(0), ddof=1))
        # deviations about the others' mean are correlated by -1 / 3, and their squares by 1 / 9
        df = 4 * sum(parts) ** 2 / (parts[0] ** 2 + parts[1] ** 2 + 2 * parts[0] * parts[1] / 9)
        welch.append(math.sqrt(sum(parts) / 5) * stats.t.isf(0.05 * 2 / 3 / 2, df))
        expected.append(max(together, welch[-1]))
    assert min(welch) < together < max(welch)
    assert intervals(model, pairs, scores.ravel(), 0.05).half_width == pytest.approx(expected)


@pytest.mark.parametrize("level", [0.05, 0.011])
def test_a_p_is_the_level_at_which_the_interval_ends_at_zero(level):
    scores = drawn(4, 5, seed=4) * [[1.0], [1.0], [2.5], [0.5]]
    model, pairs = full(), [("a", "b"), ("c", "a"), ("c", "d")]
    for k in range(3):
        moved = scores.copy()
        found = intervals(model, pairs, scores.ravel(), level)
        first = ARMS.index(pairs[k][0])
        moved[first] += found.half_width[k] - found.difference[k]  # a constant leaves the residuals alone
        assert p_values(model, pairs, moved.ravel())[k] == pytest.approx(level, rel=1e-3)


def test_what_a_design_resolves_is_found_in_four_of_five_simulated_grids():
    model, pairs = full(), [("b", "a"), ("c", "b"), ("d", "c")]
    found = resolutions(model, pairs, [2.0] * 3, [12.0] * 3, 0.025)
    scores = 2.0 * drawn(6000, 4, 5, seed=5)
    scores[:, 2:] += found[1].value
    difference, half_width = intervals(model, pairs, scores.reshape(6000, 20), 0.025)
    seen = (np.abs(difference) > half_width)[:, 1].mean()
    assert seen == pytest.approx(0.8, abs=0.021)  # four standard errors
    assert found[1].low == pytest.approx(found[1].value * math.sqrt(12 / stats.chi2.isf(0.025, 12)))
    assert found[1].high == pytest.approx(found[1].value * math.sqrt(12 / stats.chi2.isf(0.975, 12)))
    alone = resolutions(full("ab"), [("b", "a")], [1.0], [4.0], 0.025)[0].value
    assert alone == pytest.approx(resolvable(math.sqrt(2), 5, 0.025), rel=0.015)
    assert power(0.0, np.array([1.96]), 1.0) == pytest.approx(0.05, abs=1e-4)


def test_an_arm_that_spreads_far_more_widens_only_its_own_pairs():
    scores = drawn(4, 5, seed=6) * [[1.0], [1.0], [300.0], [1.0]]
    pairs = [("b", "a"), ("d", "b"), ("d", "c")]
    model, rest = full(), Model([(arm, seed) for arm in "abd" for seed in range(5)])
    mine, theirs = errors(model, pairs, scores.ravel()), errors(rest, pairs[:2], scores[[0, 1, 3]].ravel())
    for name in ("difference", "pooled", "pooled_df", "welch", "welch_df", "deviation"):
        assert getattr(mine, name)[:2] == pytest.approx(getattr(theirs, name)), name
    assert mine.pooled[2] > 50 * mine.pooled[0]
    pooled, df, spread = model.spreads(scores.ravel())
    # the spreads that a report shows are those that it judges by
    own, own_df, others = rest.spreads(scores[[0, 1, 3]].ravel())
    assert (pooled, df, spread["a"].deviation) == pytest.approx((own, own_df, others["a"].deviation))
    assert [arm for arm in ARMS if spread[arm].left_out] == ["c"]
    # F test: squares that go away with the arm, against those that stay
    whole, left = model.squares(scores.ravel())[0], rest.squares(scores[[0, 1, 3]].ravel())[0]
    assert spread["c"].p == pytest.approx(4 * stats.f.sf((whole - left) / 4 / (left / 8), 4, 8), rel=1e-6)
    assert spread["a"].p > OUTLIER


def test_runs_without_any_spread_are_judged_as_they_are():
    scores = np.repeat([1.1, 1.2, 1.1], 2)
    model, pairs = full("abc", 2), [("a", "b"), ("a", "c")]
    assert p_values(model, pairs, scores) == [0.0, 1.0]
    assert intervals(model, pairs, scores, 0.05).half_width.tolist() == [0.0, 0.0]
    assert all(math.isnan(one.value) for one in resolutions(model, pairs, [0.0] * 2, [2.0] * 2, 0.05))


# ------------------------------------------------------------------------------------ documents


def test_what_documents_add_is_the_variance_of_a_ratio_over_draws_of_documents():
    """7 runs of 3 arms, 60 documents drawn anew 1,500 times from the same long list."""
    draw = np.random.default_rng(7)
    lengths = draw.integers(100, 900, 3000)
    bits = lengths * (1 + 0.3 * draw.standard_normal((7, 3000)))
    model = Model([("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2), ("c", 1), ("c", 2)])
    weights = model.weights([("a", "b"), ("c", "a")])
    differences, covariances = [], []
    for _ in range(1500):
        chosen = draw.integers(0, 3000, 60)
        nats = bits[:, chosen] * math.log(2)
        differences.append(weights @ (bits[:, chosen].sum(1) / lengths[chosen].sum()))
        covariances.append(sampling(weights, nats, lengths[chosen]).covariance)
    assert np.mean(covariances, 0) == pytest.approx(np.cov(np.array(differences).T), rel=0.15)


def test_documents_and_seeds_add_up_with_satterthwaites_degrees_of_freedom():
    scores, model, pair = 0.01 * drawn(2, 3).ravel(), full("ab", 3), [("b", "a")]
    documents = sampling(model.weights(pair), 100 * np.abs(drawn(6, 40)), np.full(40, 800.0))
    (over_seeds,), (together,) = (errors(model, pair, scores, one).pooled for one in (None, documents))
    variance = documents.covariance[0, 0]
    assert together == pytest.approx(math.sqrt(over_seeds**2 + variance))
    df = together**4 / (over_seeds**4 / 2 + variance**2 / 39)
    width = intervals(model, pair, scores, 0.05, documents).half_width[0]
    assert width == pytest.approx(together * stats.t.isf(0.025, df)) and width > over_seeds * stats.t.isf(
        0.025, 2
    )
    # many sure degrees of freedom must not make the interval narrower than over seeds
    little = documents._replace(covariance=np.array([[over_seeds**2]]))
    width = intervals(model, pair, scores, 0.05, little).half_width[0]
    assert width == pytest.approx(over_seeds * stats.t.isf(0.025, 2))


def test_documents_of_a_run_are_read_only_if_they_are_those_of_its_score(tmp_path):
    nats, sizes = np.full(3, 70.0, np.float32), np.array([100, 90, 110], np.int32)
    np.savez_compressed(tmp_path / "one.npz", nats=nats, bytes=sizes)
    line = {"document_file": "one.npz", "test_bits_per_byte": 210 / math.log(2) / 300}
    found, lengths = read_documents(tmp_path, [line, line])
    assert found.shape == (2, 3) and lengths.tolist() == [100, 90, 110]
    assert read_documents(tmp_path, [line, line | {"document_file": "gone.npz"}]) is None
    assert read_documents(tmp_path / "sub", [line | {"document_file": "../one.npz"}]) is None
    with pytest.raises(
        ValueError, match="one.npz cannot be read .* documents have 1.0099 bits per byte, and res"
    ):
        read_documents(tmp_path, [line | {"test_bits_per_byte": 1.2}])
    np.savez_compressed(tmp_path / "two.npz", nats=nats, bytes=sizes[::-1])
    with pytest.raises(ValueError, match="two.npz cannot .* other documents than the file of another run"):
        read_documents(tmp_path, [line, line | {"document_file": "two.npz"}])


# ------------------------------------------------------------------------------------ planted differences


@pytest.mark.parametrize(("number", "spreads"), [(0, None), (4, None), (2, [3, 1, 1, 1])], ids=str)
def test_at_most_one_in_twenty_simulated_grids_without_differences_has_one(number, spreads):
    found = planted.figures(planted.SCENARIOS[number], 1000, spreads=spreads)
    assert found["family_error"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.parametrize("number", [0, 4])
def test_four_of_five_simulated_grids_find_what_the_design_resolves(number):
    assert planted.figures(planted.SCENARIOS[number], 1000, 1.0)["power"] == pytest.approx(0.815, abs=0.05)


def test_intervals_over_seeds_alone_miss_the_choice_of_documents():
    found = planted.with_documents(2, 200)
    assert found["family_error"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
    assert found["family_error_over_seeds_only"] > 0.1


def test_the_recorded_simulations_keep_both_promises():
    found = json.loads((RESULTS / "planted_differences.json").read_text())["lines"]
    assert {line["planted"] for line in found} == {0.0, 0.5, 1.0} and len(found) > 40
    assert min(line["family_error"] for line in found if line["rule"] != planted.OURS) > 0.1
    for line in (line for line in found if line["rule"] == planted.OURS):
        assert (line["family_error"] or 0) <= 0.05, line
        assert line["planted"] < 1 or 0.78 < line["power"] < 0.86, line
