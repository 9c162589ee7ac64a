"""The shipped specifications of baselines ask what their comments say: the same ends, one switch at a time."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from evaluation.ablation import matching
from evaluation.ablation.spec import read_spec

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "ablations"


def models(name):
    """{arm: the config of its model once it is matched}"""
    planned = matching.plan(read_spec(FOLDER / f"{name}.yaml"))
    found = {arm: matching.resolve(arm, plan.settings)[1] for arm, plan in planned.items()}
    return {  # the default alternates layers, and some arms write them out
        arm: replace(config, layer_types=config.resolved_layer_types)
        if hasattr(config, "layer_types")
        else config
        for arm, config in found.items()
    }


def changed(one, other):
    """The fields in which two models differ, but for the width that matches them."""
    other = asdict(other)
    return {k for k, v in asdict(one).items() if v != other[k]} - {"intermediate_size"}


@pytest.fixture(scope="module")
def ladder():
    return models("ladder")


def test_leaving_one_out_starts_where_the_ladder_ends_and_changes_one_switch(ladder):
    arms = models("leave_one_out")
    full = arms.pop("full")
    assert full == ladder["experts"]
    left_out = [changed(full, arm) for arm in arms.values()]
    assert all(len(switches) == 1 for switches in left_out)
    steps = list(ladder.values())
    ladder_switches = [changed(before, after) for before, after in zip(steps, steps[1:])]
    assert set.union(*left_out) == set.union(*ladder_switches)  # every step of the ladder is taken back


def test_swiglu_at_equal_width_repeats_a_step_of_the_ladder_and_widens_it(ladder):
    arms = models("swiglu_equal_width")
    gelu, matched, wide = arms.values()
    assert (gelu, matched) == (ladder["rmsnorm"], ladder["swiglu"])
    assert wide == replace(matched, intermediate_size=gelu.intermediate_size) != matched


def test_gpt2_differs_from_itself_in_its_positions_only():
    arms = models("gpt2_vs_gptoss")
    del arms["gptoss"]
    gpt2 = arms.pop("gpt2")
    assert gpt2.position == "learned" and gpt2.position_init == "normal"
    assert [changed(gpt2, arm) for arm in arms.values()] == [
        {"position_init"},
        {"position_init"},
        {"position"},
    ]
    assert len({arm.intermediate_size for arm in (gpt2, *arms.values())}) == 1


def test_one_of_e_with_a_shared_expert_has_the_parameters_of_two_of_e():
    arms = models("granularity")
    assert changed(arms["4_of_1"], arms["4_of_1_sigmoid"]) == {"router"}
    shared, two = (arms[name].parameter_counts() for name in ("7_of_1_shared", "8_of_2"))
    assert shared["total"] == pytest.approx(two["total"], rel=1e-3)
    assert shared["active"] == pytest.approx(two["active"], rel=1e-3)
