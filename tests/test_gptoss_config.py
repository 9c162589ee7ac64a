"""ModelConfig: what it refuses and how it says so, and the counts it makes without building anything."""

import dataclasses
import json
from dataclasses import asdict

import pytest
import torch

from architecture import registry
from architecture.gptoss import FULL, PRESETS, SLIDING, ModelConfig, Transformer
from architecture.interface import count_parameters

SMALL = dict(num_hidden_layers=3, num_experts=7, experts_per_token=2, vocab_size=37, hidden_size=20,
             intermediate_size=9, head_dim=4, num_attention_heads=15, num_key_value_heads=3, sliding_window=6,
             initial_context_length=64, rope_scaling_factor=1.0)  # fmt: skip
OFFICIAL_JSON = """{"num_hidden_layers": 24, "num_experts": 32, "experts_per_token": 4, "vocab_size": 201088,
    "hidden_size": 2880, "intermediate_size": 2880, "swiglu_limit": 7.0, "head_dim": 64,
    "num_attention_heads": 64, "num_key_value_heads": 8, "sliding_window": 128,
    "initial_context_length": 4096, "rope_theta": 150000, "rope_scaling_factor": 32.0,
    "rope_ntk_alpha": 1, "rope_ntk_beta": 32}"""
SWITCHES = [
    dict(),
    dict(tie_embeddings=True),
    dict(position="learned"),
    dict(position="none"),
    dict(norm="layernorm"),
    dict(mlp="gelu"),
    dict(attention_bias=False),
    dict(attention_sinks=False),
    dict(moe_layers=(1,)),
    dict(moe_layers=()),
    dict(router="topk_sigmoid"),
    dict(shared_experts=3),
    dict(shared_experts=2, moe_layers=(0, 2), mlp="gelu"),
    dict(position="learned", position_init="sinusoidal"),
    dict(layer_types=(FULL, FULL, SLIDING), nope_stride=2),
    dict(position="learned", norm="layernorm", mlp="gelu", attention_sinks=False, moe_layers=(),
         tie_embeddings=True, num_key_value_heads=15, layer_types=(FULL,) * 3),
]  # fmt: skip


def small(**changes):
    return ModelConfig(**{**SMALL, **changes})


def name_of(switches):
    return ", ".join(f"{k}={v}" for k, v in switches.items()) or "gpt-oss"


def on_meta(config):
    with torch.device("meta"):
        return Transformer(config)


# ---------------------------------------------------------------------------------- reading, refusing
def test_the_official_config_json_reads_unchanged():
    config = ModelConfig(**json.loads(OFFICIAL_JSON))
    assert config == ModelConfig(**PRESETS["gpt-oss-20b"])
    assert config.context_limit == 131072
    ours = (config.router, config.shared_experts, config.position_init)
    assert ours == ("topk_softmax", 0, "normal")  # which is gpt-oss


def test_the_sixteen_official_fields_come_first():
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    assert set(names[:16]) == set(json.loads(OFFICIAL_JSON))


INVALID = [
    ("num_hidden_layers", dict(num_hidden_layers=0), "at least 1", "0", "num_hidden_layers=1"),
    ("num_experts", dict(num_experts=-2), "at least 1", "-2", "num_experts=1"),
    ("vocab_size", dict(vocab_size=0), "at least 1", "0", "vocab_size=1"),
    ("sliding_window", dict(sliding_window=0), "at least 1", "0", "sliding_window=1"),
    ("swiglu_limit", dict(swiglu_limit=0.0), "above 0", "0.0", "7.0"),
    ("swiglu_limit", dict(swiglu_limit=float("nan")), "above 0", "nan", "7.0"),
    ("rope_theta", dict(rope_theta=-1.0), "above 1", "-1.0", "150000"),
    ("rope_theta", dict(rope_theta=1.0, rope_scaling_factor=2.0), "above 1", "1.0", "150000"),
    ("num_attention_heads", dict(num_attention_heads=14), "multiple of num_key_value_heads (3)", "14",
     "num_key_value_heads=14"),
    ("experts_per_token", dict(experts_per_token=8), "at most num_experts (7)", "8", "num_experts=8"),
    ("head_dim", dict(head_dim=5), "even", "5", "head_dim=6"),
    ("position", dict(position="alibi"), "rope, learned, none", "alibi", "position=rope"),
    ("norm", dict(norm="batchnorm"), "rmsnorm, layernorm", "batchnorm", "norm=rmsnorm"),
    ("mlp", dict(mlp="relu"), "swiglu, gelu", "relu", "mlp=swiglu"),
    ("router", dict(router="expert_choice"), "topk_softmax, topk_sigmoid", "expert_choice", "router=topk_softmax"),
    ("shared_experts", dict(shared_experts=-1), "at least 0", "-1", "shared_experts=0"),
    ("shared_experts", dict(shared_experts=2, moe_layers=()), "0 when no layer has experts", "2", "moe_layers=none"),
    ("position_init", dict(position="learned", position_init="zero"), "normal, small, sinusoidal", "zero",
     "position_init=normal"),
    ("position_init", dict(position_init="small"), "normal with position=rope", "small", "position=learned"),
    ("position_init", dict(position="none", position_init="sinusoidal"), "normal with position=none", "sinusoidal",
     "position_init=normal"),
    ("hidden_size", dict(position="learned", position_init="sinusoidal", hidden_size=21), "even", "21",
     "hidden_size=22"),
    ("dropout", dict(dropout=1.0), "[0, 1)", "1.0", "dropout=0"),
    ("rope_scaling_factor", dict(rope_scaling_factor=0.5), "at least 1", "0.5", "rope_scaling_factor=1"),
    ("capacity_factor", dict(capacity_factor=0.0), "positive", "0.0", "none"),
    ("nope_stride", dict(nope_stride=0), "at least 1", "0", "none"),
    ("used_vocab_size", dict(used_vocab_size=38), "vocab_size (37)", "38", "none"),
    ("used_vocab_size", dict(used_vocab_size=0), "vocab_size (37)", "0", "none"),
    ("layer_types", dict(layer_types=(FULL,)), "once per layer (3)", "full_attention", "none"),
    ("layer_types", dict(layer_types=("full", "full", "full")), "once per layer (3)", "full", "none"),
    ("moe_layers", dict(moe_layers=(0, 3)), "0 to 2", "(0, 3)", "none"),
    ("moe_layers", dict(moe_layers=(1, 1)), "different", "(1, 1)", "none"),
    ("initial_context_length", dict(rope_scaling_factor=8.0), "2 pi rope_ntk_beta", "64", "rope_scaling_factor=1"),
]  # fmt: skip


@pytest.mark.parametrize("field, changes, rule, value, way_out", INVALID, ids=lambda x: str(x)[:40])
def test_a_refusal_names_the_field_the_rule_the_value_and_the_way_out(field, changes, rule, value, way_out):
    with pytest.raises(ValueError) as error:
        small(**changes)
    message = str(error.value)
    assert message.startswith(field) and "\n" not in message
    told_rule, _, told_way_out = message.partition("; ")
    assert rule in told_rule and f"got {value}" in told_rule.replace("'", "").replace("(full", "full")
    assert way_out in told_way_out


@pytest.mark.parametrize(
    "changes",
    [
        dict(hidden_size="wide"),
        dict(hidden_size=20.0),
        dict(vocab_size=True),
        dict(swiglu_limit="high"),
        dict(tie_embeddings="no"),
        dict(norm=None),
        dict(layer_types=7),
        dict(position="alibi"),
        dict(moe_layers=["first"]),
        dict(router="expert_choice"),
        dict(shared_experts=1.0),
        dict(position_init=None),
        dict(num_experts=None),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_in_a_file_is_refused_by_name(changes):
    (field,) = changes
    with pytest.raises(ValueError, match=f"^{field} must be (a|one|true|values) .*; got "):
        registry.config_from_dict("gptoss", {**SMALL, **changes})


def test_a_config_is_frozen_hashable_and_replaceable():
    config = small(layer_types=[SLIDING, FULL, SLIDING], moe_layers=[0, 2])  # lists, as JSON brings
    assert config.layer_types == (SLIDING, FULL, SLIDING) and config.moe_layers == (0, 2)
    assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 24
    deeper = dataclasses.replace(small(), num_hidden_layers=6)  # nothing derived was stored
    assert deeper.resolved_layer_types == (SLIDING, FULL) * 3
    assert deeper.resolved_moe_layers == tuple(range(6))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_survives_json(preset):
    config = registry.build_config("gptoss", preset)
    text = json.dumps(asdict(config))
    assert registry.config_from_dict("gptoss", json.loads(text)) == config


# ------------------------------------------------------------------------------------------- counts
@pytest.mark.parametrize("switches", SWITCHES, ids=name_of)
def test_the_counts_are_those_of_the_built_model_for_every_switch(switches):
    config = small(**switches)
    check_counts(config, on_meta(config))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_counts_are_those_of_the_built_model_for_every_preset(preset):
    config = ModelConfig(**PRESETS[preset])
    check_counts(config, on_meta(config))


def check_counts(config, model):
    """Active is counted here by walking the parameters, not by a formula."""
    counts = config.parameter_counts()
    assert counts["total"] == count_parameters(model)
    tables = {n: p.numel() for n, p in model.named_parameters() if "embedding.weight" in n}
    tables.pop("unembedding.weight", None)
    assert counts["embedding"] == sum(tables.values())
    active = config.vocab_size * config.hidden_size  # the head, tied or not
    for name, p in model.named_parameters():
        if "embedding" in name:
            continue
        experts = ".mlp.mlp" in name and p.shape[0] > 1
        active += p.numel() * config.experts_per_token // p.shape[0] if experts else p.numel()
    assert counts["active"] == active


@pytest.mark.parametrize(
    "preset, total, active", [("gpt-oss-20b", 20.915, 3.608), ("gpt-oss-120b", 116.829, 5.133)]
)
def test_the_official_sizes_are_those_of_the_model_card(preset, total, active):
    counts = ModelConfig(**PRESETS[preset]).parameter_counts()
    assert round(counts["total"] / 1e9, 3) == total
    assert round(counts["active"] / 1e9, 3) == active


@pytest.mark.parametrize(
    "preset, total, active",
    [("toy", (1e6, 5e6), (0, 2e6)), ("medium", (5e7, 7e7), (1.7e7, 2.3e7)), ("large", (3.6e8, 4.4e8), (1.22e8, 1.26e8))],
)  # fmt: skip
def test_our_presets_have_the_sizes_that_were_promised(preset, total, active):
    config = ModelConfig(**PRESETS[preset])
    counts = config.parameter_counts()
    assert total[0] <= counts["total"] <= total[1] and active[0] <= counts["active"] <= active[1]
    assert config.rope_scaling_factor == 1.0


# -------------------------------------------------------------------------------------------- FLOPs
@pytest.mark.parametrize("switches", SWITCHES, ids=name_of)
@pytest.mark.parametrize("block_size", [1, 6, 19])
def test_flops_per_token_is_a_count_over_visible_pairs(switches, block_size):
    config = small(**switches)
    pairs = 0
    for kind in config.resolved_layer_types:
        for i in range(block_size):
            pairs += sum(j > i - config.sliding_window or kind == FULL for j in range(i + 1))
    per_pair = 12 * config.num_attention_heads * config.head_dim  # q.k and w.v, 2 FLOPs, 3 passes
    expected = 6 * config.parameter_counts()["active"] + per_pair * pairs / block_size
    assert config.flops_per_token(block_size) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shared", [0, 3])
def test_flops_per_token_is_what_torch_counts_but_for_three_definitions(shared):
    """torch counts matrix products only and computes masked pairs as well: it has no 6 FLOPs for the
    parameters that are added or multiplied elementwise, and T keys where a window leaves fewer. It has
    no entry for addmm_, in which the head adds up its weight gradient: 2 of 6 FLOPs a value."""
    from torch.utils.flop_counter import FlopCounterMode

    config = small(shared_experts=shared)
    model = Transformer(config, attention="eager", experts="loop")
    batch, tokens = 2, 19
    input_ids, targets = torch.randint(config.vocab_size, (2, batch, tokens))
    with FlopCounterMode(display=False) as counter:
        model(input_ids, targets).loss.backward()
    counted = counter.get_total_flops() / (batch * tokens)

    elementwise = sum(  # biases, norms and sinks, of the k experts that a token meets
        p.numel() if p.dim() == 1 or "shared" in name else p[0].numel() * config.experts_per_token
        for name, p in model.named_parameters()
        if p.dim() == 1 or name.endswith(("mlp1_bias", "mlp2_bias"))
    )
    per_pair = 12 * config.num_attention_heads * config.head_dim
    pairs = (config.flops_per_token(tokens) - 6 * config.parameter_counts()["active"]) / per_pair
    masked = config.num_hidden_layers * tokens - pairs
    expected = config.flops_per_token(tokens) - 6 * elementwise + per_pair * masked
    expected -= 2 * model.unembedding.weight.numel()
    assert counted == pytest.approx(expected, rel=1e-12)


# --------------------------------------------------------------------------------------------- YaRN
def test_the_official_yarn_range_and_concentration():
    config = ModelConfig()
    low, high = config.yarn_range
    assert (round(low, 4), round(high, 4)) == (8.0928, 17.3980)


def test_yarn_needs_a_ramp_inside_the_rotated_pairs():
    ModelConfig(initial_context_length=202)  # 32 * 2 pi is 201.06
    with pytest.raises(ValueError, match="initial_context_length"):
        ModelConfig(initial_context_length=201)
    ModelConfig(initial_context_length=8, rope_scaling_factor=1.0)  # no YaRN, no rule
    ModelConfig(initial_context_length=8, position="none")
