"""ModelConfig: validation, and the counts of parameters and FLOPs."""

import dataclasses
import json
from dataclasses import asdict

import pytest
import torch
from small_model import SHAPE
from small_model import config as config_of

from architecture import registry
from architecture.gptoss import FULL, PRESETS, SLIDING, ModelConfig, Transformer

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


# ---------------------------------------------------------------------------------- reading, refusing
def test_the_official_config_json_reads_unchanged_and_its_fields_come_first():
    official = json.loads(OFFICIAL_JSON)
    config = ModelConfig(**official)
    assert config == ModelConfig(**PRESETS["gpt-oss-20b"])
    assert config.context_limit == 131072
    ours = (config.router, config.shared_experts, config.position_init)
    assert ours == ("topk_softmax", 0, "normal")  # which is gpt-oss
    assert {field.name for field in dataclasses.fields(ModelConfig)[:16]} == official.keys()


LEARNED = dict(position="learned")
INVALID = [  # the field that the message begins with, what is set, rule and value, way out
    ("num_hidden_layers", dict(num_hidden_layers=0), "at least 1; got 0", "default: 36"),
    ("sliding_window", dict(sliding_window=0), "at least 1; got 0", "default: 128"),
    ("swiglu_limit", dict(swiglu_limit=0.0), "above 0; got 0.0", "default: 7.0"),
    ("swiglu_limit", dict(swiglu_limit=float("nan")), "a finite number such as 3e-4; got nan", ""),
    ("rope_theta", dict(rope_theta=1.0, rope_scaling_factor=2.0), "above 1; got 1.0", "default: 150000.0"),
    ("dropout", dict(dropout=1.0), "below 1; got 1.0", "default: 0.0"),
    ("rope_scaling_factor", dict(rope_scaling_factor=0.5), "at least 1; got 0.5", "default: 32.0"),
    ("capacity_factor", dict(capacity_factor=0.0), "above 0; got 0.0", "default: none"),
    ("nope_stride", dict(nope_stride=0), "at least 1; got 0", "default: none"),
    ("used_vocab_size", dict(used_vocab_size=0), "at least 1; got 0", "default: none"),
    ("shared_experts", dict(shared_experts=-1), "at least 0; got -1", "default: 0"),
    ("position", dict(position="alibi"), "one of rope, learned, none; got 'alibi'", ""),
    ("norm", dict(norm="batchnorm"), "one of rmsnorm, layernorm; got 'batchnorm'", ""),
    ("mlp", dict(mlp="relu"), "one of swiglu, gelu; got 'relu'", ""),
    ("router", dict(router="expert_choice"), "_unnormalized; got 'expert_choice'", ""),
    ("position_init", LEARNED | dict(position_init="zero"), "normal, small, sinusoidal; got 'zero'", ""),
    ("num_attention_heads", dict(num_attention_heads=14), "multiple of num_key_value_heads (3), got 14",
     "num_key_value_heads=14"),
    ("experts_per_token", dict(experts_per_token=8), "at most num_experts (7), got 8", "num_experts=8"),
    ("head_dim", dict(head_dim=5), "even, because RoPE rotates pairs, got 5", "head_dim=6"),
    ("shared_experts", dict(shared_experts=2, moe_layers=()), "0 when no layer has experts", "moe_layers=all"),
    ("position_init", dict(position_init="small"), "normal with position=rope", "position=learned"),
    ("hidden_size", LEARNED | dict(position_init="sinusoidal", hidden_size=21), "even for", "hidden_size=22"),
    ("used_vocab_size", dict(used_vocab_size=38), "at most vocab_size (37), got 38", "used_vocab_size=none"),
    ("layer_types", dict(layer_types=(FULL,)), "once per layer (3), got ('full_attention',)", "layer_types=none"),
    ("layer_types", dict(layer_types=("full",) * 3), "once per layer (3), got ('full',", "layer_types=none"),
    ("moe_layers", dict(moe_layers=(0, 3)), "different layer numbers from 0 to 2, got (0, 3)", "moe_layers=all"),
    ("moe_layers", dict(moe_layers=(1, 1)), "different layer numbers from 0 to 2, got (1, 1)", "moe_layers=all"),
    ("initial_context_length", dict(rope_scaling_factor=8.0), "must exceed 2 pi rope_ntk_beta",
     "rope_scaling_factor=1"),
    ("hidden_size", dict(hidden_size=20.0), "a whole number such as 1000; got 20.0", ""),
    ("vocab_size", dict(vocab_size=True), "a whole number such as 1000; got True", ""),
    ("num_experts", dict(num_experts=None), "a whole number such as 1000; got None", ""),
    ("tie_embeddings", dict(tie_embeddings="no"), "true or false; got 'no'", ""),
    ("layer_types", dict(layer_types=7), "values separated by commas; got 7", ""),
    ("moe_layers", dict(moe_layers=["first"]), "a whole number such as 1000; got 'first'", ""),
]  # fmt: skip


@pytest.mark.parametrize("field, changes, rule, way_out", INVALID, ids=lambda x: str(x)[:40])
def test_a_refusal_names_the_field_the_rule_the_value_and_the_way_out(field, changes, rule, way_out):
    for make in (config_of, lambda **values: registry.config_from_dict("gptoss", SHAPE | values)):
        with pytest.raises(ValueError, match=f"^{field} must ") as error:
            make(**changes)
        told_rule, told_way_out = str(error.value).split(rule)
        assert way_out in told_way_out and "\n" not in told_rule + told_way_out


def test_a_config_is_frozen_hashable_and_replaceable_and_survives_json():
    config = config_of(layer_types=[SLIDING, FULL, SLIDING], moe_layers=[0, 2])  # lists, as JSON brings
    assert config.layer_types == (SLIDING, FULL, SLIDING) and config.moe_layers == (0, 2)
    assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 24
    deeper = dataclasses.replace(config_of(), num_hidden_layers=6)  # nothing derived was stored
    assert deeper.resolved_layer_types == (SLIDING, FULL) * 3
    assert deeper.resolved_moe_layers == tuple(range(6))
    assert registry.config_from_dict("gptoss", json.loads(json.dumps(asdict(config)))) == config


# ------------------------------------------------------------------------------------------- counts
@pytest.mark.parametrize(
    "values", [*(SHAPE | switches for switches in SWITCHES), *PRESETS.values()], ids=lambda v: str(v)[-60:]
)
def test_the_counts_are_those_of_the_built_model(values):
    """Active is counted here by walking the parameters, not by a formula."""
    config = ModelConfig(**values)
    with torch.device("meta"):
        model = Transformer(config)
    counts = config.parameter_counts()
    assert counts["total"] == sum(p.numel() for p in model.parameters())
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


@pytest.mark.parametrize("preset, total, active", [
    ("gpt-oss-20b", (20.914e9, 20.916e9), (3.607e9, 3.609e9)),  # the model card's
    ("gpt-oss-120b", (116.828e9, 116.830e9), (5.132e9, 5.134e9)),
    ("toy", (1e6, 5e6), (0, 2e6)),
    ("medium", (5e7, 7e7), (1.7e7, 2.3e7)),
    ("large", (3.6e8, 4.4e8), (1.22e8, 1.26e8)),
])  # fmt: skip
def test_the_presets_have_the_sizes_that_were_promised(preset, total, active):
    counts = ModelConfig(**PRESETS[preset]).parameter_counts()
    assert total[0] <= counts["total"] <= total[1] and active[0] <= counts["active"] <= active[1]


# -------------------------------------------------------------------------------------------- FLOPs
@pytest.mark.parametrize(
    "switches", [{}, dict(layer_types=(FULL, FULL, SLIDING)), dict(moe_layers=(1,))], ids=str
)
@pytest.mark.parametrize("block_size", [1, 6, 19])
def test_flops_per_token_is_a_count_over_visible_pairs(switches, block_size):
    config = config_of(**switches)
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

    config = config_of(shared_experts=shared)
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
def test_yarn_has_the_official_range_and_needs_a_ramp_inside_the_rotated_pairs():
    low, high = ModelConfig().yarn_range
    assert (round(low, 4), round(high, 4)) == (8.0928, 17.3980)
    ModelConfig(initial_context_length=202)  # 32 * 2 pi is 201.06
    with pytest.raises(ValueError, match="initial_context_length"):
        ModelConfig(initial_context_length=201)
    ModelConfig(initial_context_length=8, rope_scaling_factor=1.0)  # no YaRN, no rule
    ModelConfig(initial_context_length=8, position="none")
