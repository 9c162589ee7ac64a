"""Intervals, paired tests and power of an ablation against tabulated values and simulation."""

import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
from scipy import integrate, stats

from evaluation.ablation.statistics import (
    compare,
    paired_p,
    resolvable,
    summary,
    t_power,
    table,
    with_interval,
)

# any textbook's table of Student's t at 97.5 %, by the number of values
QUANTILES = {2: 12.7062, 3: 4.3027, 5: 2.7764, 31: 2.0423}


@pytest.mark.parametrize("n", QUANTILES)
def test_an_interval_is_as_wide_as_the_tables_of_t_say(n):
    values = [0.0, 1.0] * (n // 2) + [0.5] * (n % 2)
    error = summary(values).deviation / math.sqrt(n)
    assert summary(values).half_width / error == pytest.approx(QUANTILES[n], abs=6e-5)


# R's power.t.test, one sample or paired, two-sided at 0.05: (n, effect in deviations, power)
POWERS = [(34, 0.5, 0.8078), (15, 0.8, 0.8213)]


@pytest.mark.parametrize("n, effect, power", POWERS)
def test_a_design_resolves_what_published_tables_of_power_say(n, effect, power):
    assert resolvable(2.0, n, power=power) == pytest.approx(2 * effect, rel=1e-3)


@pytest.mark.parametrize("df, alpha", [(1, 0.05), (2, 0.05), (2, 0.05 / 9), (4, 0.05), (49, 0.001)])
def test_power_is_the_noncentral_t_distribution_integrated_by_its_definition(df, alpha):
    critical = stats.t.isf(alpha / 2, df)
    for shift in (0.0, 1.0, 4.0, 2 * critical):

        def density(s, shift=shift):  # of T = (Z + shift) / s with s^2 = chi^2 / df, beyond +- critical
            beyond = stats.norm.sf(critical * s - shift) + stats.norm.sf(critical * s + shift)
            return math.sqrt(df) * stats.chi.pdf(math.sqrt(df) * s, df) * beyond

        expected, _ = integrate.quad(density, 0, 1 + 12 / math.sqrt(2 * df), epsabs=1e-13)
        assert t_power(shift, df, critical) == pytest.approx(expected, abs=1e-11)
    assert t_power(0.0, df, critical) == pytest.approx(alpha, rel=1e-12)


@pytest.mark.parametrize("n, alpha", [(2, 0.05), (2, 1e-4), (3, 0.05 / 20), (5, 0.05), (1000, 1e-4)])
def test_what_a_design_resolves_is_found_at_any_size_and_level(n, alpha):
    effect = resolvable(1.0, n, alpha, power=0.9) * math.sqrt(n)
    assert t_power(effect, n - 1, stats.t.isf(alpha / 2, n - 1)) == pytest.approx(0.9, abs=1e-9)


def test_four_of_five_simulated_experiments_see_what_a_design_resolves():
    draw, n = random.Random(1), 3
    effect = resolvable(1.0, n)
    trials = 1000
    seen = sum(paired_p([draw.gauss(effect, 1) for _ in range(n)]) < 0.05 for _ in range(trials))
    assert seen / trials == pytest.approx(0.8, abs=0.05)  # four standard errors


def test_a_summary_is_mean_deviation_and_interval_by_t():
    mean, deviation, half_width = summary([1.0, 2.0, 6.0])
    assert (mean, deviation) == (3.0, pytest.approx(math.sqrt(7)))
    assert half_width == pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-6)
    assert summary([2.5])[0] == 2.5 and math.isnan(summary([2.5]).half_width)


def test_the_paired_p_is_twice_the_tail_of_t():
    # differences 1, 2, 6: t = 3 / sqrt(7 / 3) = 1.9640 with 2 degrees of freedom, whose tail is closed
    t = 3 / math.sqrt(7 / 3)
    assert paired_p([-1, -2, -6]) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-10)
    assert paired_p([0.1, 0.1]) == 0 and paired_p([0.0, 0.0]) == 1


def test_holms_rule_corrects_for_the_number_of_pairs_and_stops_at_the_first_that_fails():
    sure, middling, third = [-1.0, -1.01, -1.02], [0.5, 0.54, 0.46], [0.9, 1.3, 0.7]
    raw = [paired_p(pair) for pair in (middling, sure, third)]
    assert raw[1] < raw[0] < raw[2] < 0.05  # each alone is resolved
    found = compare([middling, sure, third, []])
    assert [one.verdict for one in found] == ["worse", "better", "worse", "not resolved"]
    assert found[1].p == pytest.approx(3 * raw[1]) and found[0].p == pytest.approx(2 * raw[0])
    noise = [0.3, -0.2, 0.1]
    found = compare([noise, third, noise, noise])
    assert found[1].p == pytest.approx(4 * raw[2]) and found[1].verdict == "not resolved"
    assert found[0].p == 1
    assert math.isnan(compare([[0.1]])[0].difference)


def test_what_a_design_resolves_is_at_the_level_that_holms_rule_has_reached():
    sure, noise = [-1.0, -1.01, -1.02], [0.3, -0.2, 0.1]
    pairs = [[(1 + k) * x for x in noise] for k in range(4)]
    found = compare([sure, *pairs])
    assert [one.verdict for one in found] == ["better"] + ["not resolved"] * 4
    assert found[0].resolves == pytest.approx(resolvable(summary(sure).deviation, 3, 0.05 / 5))
    for pair, one in zip(pairs, found[1:]):
        assert one.resolves == pytest.approx(resolvable(summary(pair).deviation, 3, 0.05 / 4))


def test_a_table_is_markdown_whose_rule_has_a_hyphen_in_every_column():
    lines = table(["arm", "n", ""], [["a", 1, ""], ["longer", 20, ""]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "| ------ | -: | -: |" and lines[3] == "| longer | 20 |    |"
    assert with_interval(summary([1.0, 3.0]), 1) == "2.0 +- 12.7"
    assert with_interval(summary([1.5]), 1) == "1.5"


def test_help_does_not_import_scipy():
    root = Path(__file__).resolve().parent.parent
    words = [sys.executable, "-X", "importtime", str(root / "ablate.py"), "--help"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and "argparse" in done.stderr and "scipy" not in done.stderr
