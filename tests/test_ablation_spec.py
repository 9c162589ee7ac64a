"""Specifications of ablations: what is refused, how arms are matched, and that the shipped ones hold."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

import ablate
from architecture import registry
from architecture.tokenizer import DOWNLOADS
from evaluation.ablation import contracts, matching
from evaluation.ablation.plan_text import plan_text
from evaluation.ablation.rates import best_rate, next_rates
from evaluation.ablation.spec import FIRST_SEEDS, Spec, read_spec
from training.start import parameter_shapes

SHIPPED = sorted((Path(__file__).resolve().parent.parent / "configs" / "ablations").glob("*.yaml"))
BASE = {"dataset": "bundled", "tokenizer": "bundled1536", "hidden_size": 96, "num_attention_heads": 6,
        "num_hidden_layers": 3, "block_size": 32}  # fmt: skip
VALID = {
    "base": BASE,
    "arms": {"a": {}, "b": {"norm": "layernorm"}, "dense": {"model": "gpt2"}},
    "seeds": [1, 2],
    "budget": {"tokens": 10_000},
    "learning_rates": [1e-3, 2e-3, 4e-3],
}


def spec_of(tmp_path, **changes):
    path = tmp_path / "spec.yaml"
    values = {key: value for key, value in (VALID | changes).items() if value != "absent"}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return read_spec(path)


def planned(tmp_path, **changes):
    return matching.plan(spec_of(tmp_path, **changes))


def test_a_number_that_yaml_reads_otherwise_is_refused_wherever_it_is(tmp_path):
    (tmp_path / "recipe.yaml").write_text("batch_size: 010\n")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(VALID | {"config": "recipe.yaml"}))
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(VALID).replace("block_size: 32", "block_size: 0x20"))
    for name, told in (("a", "recipe.yaml: line 1: .* got '010'"), ("b", "b.yaml: line .* got '0x20'")):
        with pytest.raises(ValueError, match=told):
            read_spec(tmp_path / f"{name}.yaml")


# ------------------------------------------------------------------------------------ the shipped ones


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_specification_plans_what_will_be_trained_without_building_a_model(path):
    spec = read_spec(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "build_model", lambda *_, **__: pytest.fail("a model was built"))
        arms = matching.plan(spec)
    assert len(spec.seeds) >= FIRST_SEEDS and spec.pairs(spec.expanded())
    for arm in arms.values():
        cfg, config = matching.resolve(arm.name, arm.settings)
        assert cfg.program == f"train{'_context' * (cfg.model == 'gptoss_context')}.py"
        shapes = parameter_shapes(cfg.model, config)
        assert sum(shape.numel() for shape in shapes.values()) == arm.axes["total"]
        assert arm.axes["flops"] == config.flops_per_token(cfg.block_size)
        if spec.adjust:
            assert arm.axes[spec.axis] == pytest.approx(arms[arm.reference].axes[spec.axis], rel=0.02)


def test_the_arms_of_context_vector_differ_only_in_the_state_and_the_window():
    spec = read_spec(next(path for path in SHIPPED if path.stem == "context_vector"))
    arms = matching.plan(spec)
    carried, zeroed, trunk, whole = (matching.resolve(name, arm.settings) for name, arm in arms.items())
    assert zeroed == (carried[0], replace(carried[1], carry_state=False)) != carried
    rows = [
        (cfg.packing, cfg.batch_size, cfg.block_size, cfg.micro_batches) for cfg, _ in (carried, trunk, whole)
    ]
    assert rows == [("lanes", 8, 64, 4), ("lanes", 8, 64, 4), ("lanes", 9, 512, 1)]
    assert trunk[1] == whole[1] and trunk[0].lr == carried[0].lr == whole[0].lr
    assert arms["carried"].data == arms["trunk_segments"].data  # so that their batches are compared
    ((start, end, others),) = spec.gaps(spec.expanded())
    assert (start, end, others) == ("trunk_segments", "trunk_whole", ["carried", "zeroed"])


def test_the_nano_gpt_oss_table_has_the_sizes_in_its_readme():
    arms = matching.plan(read_spec(next(p for p in SHIPPED if p.stem == "nano_gpt_oss_table")))
    assert len(arms) == 18
    at = "@heads=12,num_hidden_layers=12"
    # its README: 588 M and 564 M parameters
    assert arms[f"gptoss{at}"].axes["total"] == pytest.approx(588.24e6, rel=1e-3)
    assert arms[f"gpt2{at}"].axes["total"] == pytest.approx(564.1e6, rel=1e-3)
    for arm in arms.values():
        heads, groups = (arm.settings.get(f"num_{k}_heads") for k in ("attention", "key_value"))
        assert groups in (None, max(g for g in range(1, 7) if heads % g == 0))


def test_the_ladder_changes_one_switch_at_a_time():
    spec = read_spec(next(path for path in SHIPPED if path.stem == "ladder"))
    steps = list(spec.arms.values())
    for before, after in zip(steps, steps[1:]):
        assert len({k for k in before | after if before.get(k) != after.get(k)}) == 1
    assert spec.headline == tuple(zip(list(spec.arms)[1:], spec.arms))


# ------------------------------------------------------------------------------------ matching


def test_known_vocabularies_are_those_of_the_tokenizers_that_are_downloaded():
    assert matching.WELL_KNOWN.keys() == DOWNLOADS.keys()
    assert matching.WELL_KNOWN["gpt2"] == 50257  # the ids of Radford et al. 2019
    assert matching.WELL_KNOWN["o200k_harmony"] == 201088  # of the official config.json


@pytest.mark.parametrize("axis", ["total", "active", "active_non_embedding", "flops"])
@pytest.mark.parametrize("adjust, width", [("intermediate_size", 96), ("hidden_size", 768)])
def test_arms_meet_the_axis_within_two_percent_by_the_named_field(tmp_path, axis, adjust, width):
    arms = planned(tmp_path, base=BASE | {"hidden_size": width}, contracts=[axis], adjust=adjust)
    reference, changed = arms["a"], arms["dense"]
    assert changed.axes[axis] == pytest.approx(reference.axes[axis], rel=0.02)
    assert changed.adjusted.startswith(adjust) and reference.adjusted is None
    cfg, config = matching.resolve("dense", changed.settings)
    built = sum(p.numel() for p in registry.build_model(cfg.model, config).parameters())
    assert built == changed.axes["total"]  # what is printed is what is trained


def test_experts_are_adjusted_to_equal_total_parameters(tmp_path):
    arms = {"a": {}, "wide": {"intermediate_size": 24, "experts_per_token": 5}}
    found = planned(tmp_path, arms=arms, contracts=["total"], adjust="num_experts")
    assert found["wide"].settings["num_experts"] > 8
    assert found["wide"].axes["total"] == pytest.approx(found["a"].axes["total"], rel=0.02)


def test_the_refusal_of_an_axis_names_the_nearest_size(tmp_path):
    arms = {"a": {}, "tall": {"model": "gpt2", "num_hidden_layers": 60}}
    told = r"tall cannot be .* nearest is [\d,]+ \(\+\d+.*intermediate_size=1;"
    with pytest.raises(ValueError, match=told):
        planned(tmp_path, arms=arms, contracts=["active"])
    with pytest.raises(ValueError, match="arm dense: gpt2 has no num_experts to adjust"):
        planned(tmp_path, contracts=["total"], adjust="num_experts")


def test_each_point_of_a_grid_is_matched_to_the_reference_there(tmp_path):
    widths = [{"hidden_size": 96}, {"hidden_size": 192, "dense": {"dropout": 0.1}}]
    grid = {"num_hidden_layers": [2, 4], "width": widths}
    arms = planned(tmp_path, grid=grid, contracts=["active"], headline=[["a", "dense"]])
    assert len(arms) == 12 and "b@num_hidden_layers=4,width=96" in arms
    assert all(arm.reference.startswith("a@") for arm in arms.values())
    for arm in arms.values():
        assert arm.axes["active"] == pytest.approx(arms[arm.reference].axes["active"], rel=0.02)
    has = [name for name, arm in arms.items() if "dropout" in arm.settings]
    assert has == ["dense@num_hidden_layers=2,width=192", "dense@num_hidden_layers=4,width=192"]
    spec = spec_of(tmp_path, grid=grid, headline=[["a", "dense"]])
    assert len(spec.pairs(spec.expanded())) == 4


def test_shared_settings_that_a_model_lacks_are_recorded(tmp_path):
    arms = planned(tmp_path, base=BASE | {"num_experts": 6})
    assert arms["dense"].without == ("num_experts",) and "num_experts" not in arms["dense"].settings
    with pytest.raises(ValueError, match="arm a: flag '--num_expert' is unknown; did you mean"):
        planned(tmp_path, base=BASE | {"num_expert": 6})


def test_an_arm_that_carries_a_state_is_planned_as_train_context_will_run_it(tmp_path):
    arms = {"a": {}, "carried": {"model": "gptoss_context", "gated_update": False}}
    base = BASE | {"packing": "lanes", "tbptt": 3, "gated_update": True}
    found = planned(tmp_path, base=base, arms=arms, contracts=["active"])
    assert found["a"].without == ("gated_update", "tbptt") and found["carried"].without == ()
    (trunk, _), (cfg, config) = (matching.resolve(name, found[name].settings) for name in found)
    assert (trunk.program, trunk.micro_batches) == ("train.py", 1)
    assert (cfg.program, cfg.micro_batches) == ("train_context.py", 3)
    assert config.segment_length == cfg.block_size == 32 and not config.gated_update
    assert found["carried"].data == found["a"].data and found["carried"].tokens is None
    with pytest.raises(ValueError, match="arm carried: packing must be one of lanes; got 'packed'"):
        planned(tmp_path, base=base | {"packing": "packed"}, arms=arms)


def test_a_model_that_reads_images_is_refused_before_anything_is_planned(tmp_path):
    with pytest.raises(
        ValueError, match="arm eyes: ablate.py compares models of text, and this one reads images"
    ):
        planned(tmp_path, arms={"a": {}, "eyes": {"model": "gptoss_vision"}})


def test_settings_of_one_arm_from_several_dimensions_of_a_grid_are_combined(tmp_path):
    grid = {
        "w": [{"hidden_size": 96, "b": {"intermediate_size": 40}}],
        "l": [{"num_hidden_layers": 2, "b": {"dropout": 0.1}}, {"num_hidden_layers": 3}],
    }
    found = {arm.name: arm.own for arm in spec_of(tmp_path, grid=grid).expanded()}
    assert found["b@w=96,l=2"] == {"norm": "layernorm", "intermediate_size": 40, "dropout": 0.1}
    assert found["b@w=96,l=3"] == {"norm": "layernorm", "intermediate_size": 40}
    assert found["a@w=96,l=2"] == {}


def test_flops_in_all_count_padding_and_tokens_alike(tmp_path):
    base = BASE | {"packing": "lanes", "batch_size": 4}
    found = planned(tmp_path, base=base, arms={"a": {}, "b": {"grad_accum": 3}}, headline=[["a", "b"]])
    for arm, rows in zip(found.values(), (4, 12)):
        arm = replace(arm, tokens_per_step=100, steps=50)  # of which 32 a row were possible
        assert arm.tokens == 5_000
        assert matching.flops_in_all(arm) == 50 * rows * 32 * arm.axes["flops"]


def test_equal_time_gives_each_arm_the_tokens_of_its_pace(tmp_path):
    spec = spec_of(tmp_path, contracts=["time"], search_budget={"tokens": 5_120})
    arms = matching.plan(spec)
    assert all(arm.steps is None for arm in arms.values())
    arms = matching.with_lengths(spec, arms, {"a": 2e-4, "b": 4e-4, "dense": 1e-4})
    assert [arm.tokens for arm in arms.values()] == [9_984, 5_120, 19_968]  # in steps of 8 x 32
    assert [arm.search_steps for arm in arms.values()] == [20, 10, 40]
    spec = spec_of(tmp_path, budget={"minutes": 0.5})
    arms = matching.with_lengths(spec, matching.plan(spec), {"a": 1e-3, "b": 2e-3, "dense": 1e-3})
    assert [arm.steps for arm in arms.values()] == [117, 59, 117]


def test_a_plan_is_read_back_as_the_specification_that_it_came_from(tmp_path):
    changes = dict(
        contracts=["active"], grid={"num_hidden_layers": [2, 3]}, headline=[["a", "b"]], gap=["a", "b"]
    )
    changes |= dict(segments=32, learning_rates=[1e-5, 2e-5, 4e-5], search_budget={"tokens": 99})
    spec = spec_of(tmp_path, **changes)
    plan = {"spec": spec.as_values(), "sha256": spec.sha256, "arms": {}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    again = read_spec(tmp_path / "plan.json")
    assert again == spec and again.sha256 == spec.sha256
    assert spec_of(tmp_path, **changes | {"seeds": [1, 3]}).sha256 != spec.sha256
    a, b, dense = (f"{name}@num_hidden_layers=3" for name in ("a", "b", "dense"))
    assert spec.gaps(spec.expanded())[1] == (a, b, [dense])


# ------------------------------------------------------------------------------------ the search


def test_the_search_goes_on_beyond_the_edge_and_stops_inside():
    given = [1e-3, 2e-3, 4e-3]
    assert next_rates(given, {1e-3: 2.0}) == [2e-3, 4e-3]
    assert next_rates(given, {1e-3: 2.0, 2e-3: 1.0, 4e-3: 3.0}) == []
    assert next_rates(given, {1e-3: 3.0, 2e-3: 2.0, 4e-3: 1.0}) == [8e-3]
    assert next_rates(given, {1e-3: 1.0, 2e-3: 2.0, 4e-3: 3.0}) == [5e-4]
    falling = {1e-3: 6.0, 2e-3: 5.0, 4e-3: 4.0, 8e-3: 3.0, 16e-3: 2.0}
    assert next_rates(given, falling) == [32e-3]
    assert next_rates(given, falling | {32e-3: 1.0}) == []  # three times and no further
    assert best_rate(falling | {32e-3: None}) == 16e-3


def test_where_every_rate_diverged_the_search_goes_lower():
    tried = dict.fromkeys([1e-3, 2e-3, 4e-3])
    assert next_rates([1e-3, 2e-3, 4e-3], tried) == [5e-4] and best_rate(tried) is None


# ------------------------------------------------------------------------------------ what is refused

REFUSED = {
    "key 'arm' is unknown; did you mean 'arms'?": {"arm": {}},
    "budget is missing": {"budget": "absent"},
    "arms must hold at least one arm, got none": {"arms": {}},
    "grid must hold at least one name with values, got none": {"grid": {}},
    "grid: dropout must be a list of at least one value": {"grid": {"dropout": []}},
    "grid has two points with the same name": {"grid": {"dropout": [0.1, 0.1]}},
    "grid: w: c must be text, a number or a list": {"grid": {"w": [{"dropout": 0.1, "c": {"norm": "layernorm"}}]}},
    "arm a: norm must be text, a number or a list": {"arms": {"a": {"norm": {"kind": 1}}}},
    "reference must be one of the arms, got 'c'": {"reference": "c"},
    "headline names the arm 'c', which does not exist": {"headline": [["a", "c"]]},
    "headline must hold pairs of two different arms": {"headline": [["a", "a"]]},
    "a verdict needs at least two seeds, got 1": {"seeds": [1]},
    "seeds must hold different numbers": {"seeds": [1, 1]},
    "seed must be at most 2,147,483,647; got 2147483648": {"seeds": [1, 2147483648]},
    "search_seeds must hold different numbers of at least 0": {"search_seeds": [0, -1]},
    "search_seeds must not be among seeds, got 1 in both": {"search_seeds": [0, 1]},
    "search_seeds must be at least two seeds, got [0]": {"search_seeds": [0]},
    "key search_seed is now search_seeds, a list such as [0, 6]": {"search_seed": 0},
    "key axis is now contracts, a list such as [active]": {"axis": "active"},
    "contracts must hold at least one axis, each once, got [active, active]": {"contracts": ["active", "active"]},
    "contracts must hold at least one axis, each once, got []": {"contracts": []},
    "contracts must not hold none beside others, got [none, total]": {"contracts": ["none", "total"]},
    "worth must hold shares below 1": {"worth": [0.5, 1]},
    "several contracts need at least two arms and no grid": {"contracts": ["active", "total"], "grid": {"dropout": [0.1]}},
    "shares in worth need at least two arms and no grid": {"arms": {"a": {}}, "worth": [0.5], "headline": []},
    "explored names the arm 'c', which does not exist": {"explored": [["a", "c"]]},
    "learning_rates must be at least three rates above 0": {"learning_rates": [1e-3, 2e-3]},
    "search_budget must be at most the budget (10,000), got 20,000": {"search_budget": {"tokens": 20_000}},
    "budget must be {tokens: N} or {minutes: M}": {"budget": 10},
    "budget: tokens must be a whole number": {"budget": {"tokens": "1e6"}},
    "contracts must be one of none, total": {"contracts": ["params"]},
    "adjust needs a contract that measures the model's size, got [none]": {"adjust": "hidden_size"},
    "arm b must not set seed": {"arms": {"a": {}, "b": {"seed": 3}}},
    "base must not set max_iters": {"base": BASE | {"max_iters": 3}},
    "an arm's name must be letters": {"arms": {"a/b": {}}},
    "an arm's name must be letters, digits, _ . + and -, and not begin with a dot; got '..'": {"arms": {"..": {}}},
    "base: layer_types must be text, a number or a list of these": {"base": {"layer_types": [["a"]]}},
    "arm a: norm must be text, a number or a list of these": {"arms": {"a": {"norm": [{}]}}},
    "measure must be one of bits_per_byte": {"measure": "accuracy"},
    "measure loss_after_first_segment needs the loss by segment; set segments": {"measure": "loss_after_first_segment"},
    "gap needs the loss by segment; set segments": {"gap": ["a", "b"]},
    "gap must be two different arms; got ['a']": {"gap": ["a"]},
    "gap names the arm 'c', which does not exist": {"gap": ["a", "c"], "segments": 32},
    "segments must be at least 1, got 0": {"segments": 0},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_a_wrong_specification_is_refused_in_one_sentence(tmp_path, message):
    with pytest.raises(ValueError) as error:
        spec_of(tmp_path, **REFUSED[message])
    assert f"spec.yaml: {message}" in str(error.value) and "\n" not in str(error.value)


def test_large_values_are_quoted_in_few_words(tmp_path):
    large = [["x" * 99] * 99] * 99
    for key in ("base", "arms", "grid", "budget", "headline", "gap", "learning_rates", "seeds"):
        with pytest.raises(ValueError) as error:
            spec_of(tmp_path, **{key: large})
        assert len(str(error.value)) < 1000


UNPLANNABLE = {
    "the arms a and b have the same settings; change one, or leave it out": {"arms": {"a": {}, "b": {"norm": "rmsnorm"}}},
    "arm b: flag '--nrom' is unknown; did you mean '--norm'?": {"arms": {"a": {}, "b": {"nrom": "layernorm"}}},
    "arm b: lr must be above 0": {"arms": {"a": {}, "b": {"lr": -1}}},
    "arm dense: hidden_size must be a multiple": {"base": BASE | {"hidden_size": 97}},
    "arm a: block_size must be at most": {"base": BASE | {"block_size": 4096}},
    "model must be one of gptoss": {"arms": {"a": {}, "b": {"model": "gpt3"}}},
    "segments and measure val_loss need the same tokenizer in all arms":
        {"arms": {"a": {}, "b": {"tokenizer": "stories4k"}}, "measure": "val_loss"},
    "need the same tokenizer in all arms, got bundled1536, stories4k; give all arms one":
        {"arms": {"a": {}, "b": {"tokenizer": "stories4k"}}, "segments": 32},
    "segments must be 32, the block_size of arm b, because its state is carried from one such segment to the next; got 64":
        {"base": BASE | {"packing": "lanes"}, "arms": {"a": {}, "b": {"model": "gptoss_context"}}, "segments": 64},
    "the arms must be scored on the same text, but b has tinystories": {"arms": {"a": {}, "b": {"dataset": "tinystories"}}},
    "final_eval_tokens takes its first tokens, got 64, all under bundled1536":
        {"arms": {"a": {}, "b": {"final_eval_tokens": 64}}},
    "got 64 under bundled1536, stories4k":
        {"base": BASE | {"final_eval_tokens": 64}, "arms": {"a": {}, "b": {"tokenizer": "stories4k"}}},
    "the arms b and c have the same settings once they are matched":
        {"contracts": ["active"], "arms": {"a": {}, "b": {"intermediate_size": 400, "dropout": 0.1},
                                    "c": {"intermediate_size": 800, "dropout": 0.1}}},
    "contract flops counts padding too":
        {"contracts": ["flops"], "base": BASE | {"packing": "lanes"}, "arms": {"a": {}, "b": {"block_size": 16}}},
}  # fmt: skip


@pytest.mark.parametrize("message", UNPLANNABLE)
def test_arms_that_cannot_be_compared_are_refused_in_one_sentence(tmp_path, message):
    with pytest.raises(ValueError) as error:
        planned(tmp_path, **UNPLANNABLE[message])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_command_prints_the_plan_and_writes_nothing(tmp_path, monkeypatch, capsys):
    spec_of(tmp_path, contracts=["active"])
    monkeypatch.chdir(tmp_path)
    assert ablate.main(["spec.yaml", "--plan"]) == 0
    out = capsys.readouterr().out
    assert "FLOPs/token" in out and "intermediate_size 512 -> " in out and "reference" in out
    assert [path.name for path in tmp_path.iterdir()] == ["spec.yaml"]
    assert ablate.main(["absent.yaml"]) == 2
    assert capsys.readouterr().err.startswith("ablate.py: error: absent.yaml: cannot be read")


def test_flags_replace_settings_of_the_base_but_not_of_an_arm(tmp_path, capsys):
    path = tmp_path / "spec.yaml"
    plain = spec_of(
        tmp_path, base={"batch_size": 4, "block_size": 32}, arms={"a": {}, "b": {"block_size": 64}}
    )
    given = ablate.parse([str(path), "--batch_size=2", "--block_size", "16", "--plan"])
    assert given.plan and given.over_base == {"batch_size": "2", "block_size": "16"}
    spec = read_spec(path, given.over_base)
    assert spec.sha256 != plain.sha256  # so that --resume without them is refused
    assert {n: a.tokens_per_step for n, a in matching.plan(spec).items()} == {"a": 32, "b": 128}
    for words, told in {
        ("--max_iters=7",): "the command line must not set max_iters",
        ("--bath_size=7",): "arm a: flag '--bath_size' is unknown; did you mean",
        ("--batch_size",): "'--batch_size' is not a flag, and a setting is written as",
        ("seven",): "'seven' is not a flag, and a setting is written as",
    }.items():
        assert ablate.main([str(path), "--plan", *words]) == 2
        assert told in capsys.readouterr().err


def test_help_explains_every_key_of_a_specification(capsys):
    with pytest.raises(SystemExit):
        ablate.main(["--help"])
    out = capsys.readouterr().out
    for name in [f.name for f in fields(Spec)] + ["config"]:
        assert f"{name}:" in out


def test_a_plan_tells_what_the_evaluations_of_a_run_cost(tmp_path):
    spec = spec_of(tmp_path, base=BASE | {"eval_tokens": 300, "final_eval_tokens": 6000})
    told = plan_text(spec, contracts.planned(spec))
    line = "10 evaluations score 300 validation tokens each, in the time of about 0.39 steps, and the closing one "
    assert f"\na: {line}6,000 (" in told and f"\ndense: {line}6,000 (" in told
    spec = spec_of(tmp_path)
    assert "and the closing one all (final_eval_tokens)" in plan_text(spec, contracts.planned(spec))
