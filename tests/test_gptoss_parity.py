"""The whole model against transformers' GptOssForCausalLM, on mapped random weights."""

import pytest
import torch

from architecture.gptoss import PRESETS, ModelConfig, Transformer
from benchmarks import parity

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(
    "dtype, rope, backends, limit",
    [
        ("float32", "yarn", ("eager", "loop"), 1e-5),
        ("float32", "yarn", ("sdpa", "sorted"), 1e-5),
        ("float32", "plain rope", ("eager", "loop"), 1e-5),
        # in float64 only the angles are float32, and the peer rounds those of YaRN in another order
        ("float64", "yarn", ("eager", "loop"), 1e-6),
        ("float64", "plain rope", ("eager", "loop"), 1e-12),
    ],
)
def test_logits_and_all_gradients_agree_with_transformers(dtype, rope, backends, limit):
    attention, experts = backends
    result = parity.compare(dtype, rope, attention=attention, experts=experts)
    assert result["logits_max_difference"] < limit
    assert result["gradient_max_difference"] < limit
    assert result["gradient_max_relative_difference"] < 100 * limit  # each tensor by its own size
    # the comparison covers clamps, windows and clear router choices
    assert result["router_smallest_margin"] > parity.SMALLEST_MARGIN  # no tie that rounding flips
    assert 0.05 < result["clamped_share"] < 0.5  # swiglu's limit is active
    assert result["logits_max"] > 1 and result["gradient_smallest_of_tensor_maxima"] > 1e-5
    assert parity.TOKENS >= 3 * parity.SHAPE["sliding_window"]
    assert len(set(v for v in parity.SHAPE.values() if v > 2)) > 10  # hardly two sizes are equal


@pytest.mark.parametrize(
    "change",
    [dict(sliding_window=7), dict(rope_scaling_factor=9.0), dict(swiglu_limit=1.6), dict(rope_ntk_beta=4.1)],
)
def test_the_comparison_would_notice_a_small_change(change):
    config = ModelConfig(**parity.SHAPE, rope_scaling_factor=8.0)
    model = parity.random_model(config, torch.float32)
    changed = Transformer(ModelConfig(**{**parity.SHAPE, "rope_scaling_factor": 8.0, **change}))
    changed.load_state_dict(model.state_dict())
    peer = parity.build_peer(model)
    input_ids = torch.randint(37, (parity.BATCH, parity.TOKENS), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        difference = (changed(input_ids).logits - peer(input_ids).logits).abs().max()
    assert difference > 3e-5


@pytest.mark.parametrize("preset", ["gpt-oss-20b", "gpt-oss-120b"])
def test_the_official_presets_have_every_shape_of_the_peers(preset):
    from transformers import GptOssConfig, GptOssForCausalLM

    config = ModelConfig(**PRESETS[preset])
    with torch.device("meta"):
        ours = parity.to_peer(dict(Transformer(config).named_parameters()), config)
        peer = GptOssForCausalLM(
            GptOssConfig(num_hidden_layers=config.num_hidden_layers, num_local_experts=config.num_experts)
        )
    shapes = {name: p.shape for name, p in peer.named_parameters()}
    assert {name: p.shape for name, p in ours.items()} == shapes
