"""What --dry_run says about memory and work, against models and optimizers that were built."""

import pytest
import torch

from architecture.interface import LOGITS_PER_CHUNK
from architecture.registry import build_config, build_model
from training.config import TrainConfig
from training.costs import memory_bytes, report
from training.optimizer import build_optimizers

SMALL = dict(
    num_hidden_layers=3, num_experts=5, experts_per_token=2, vocab_size=90, hidden_size=20, intermediate_size=9,
    head_dim=4, num_attention_heads=6, num_key_value_heads=3, initial_context_length=16,
)  # fmt: skip


def num_bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"tie_embeddings": True, "mlp": "gelu"},
        {"moe_layers": (1,), "attention_bias": False, "norm": "layernorm"},
        {"moe_layers": (), "attention_sinks": False, "position": "learned"},
    ],
)
def test_weights_gradients_and_optimizer_are_those_of_a_built_model(optimizer, switches):
    cfg, config = TrainConfig(optimizer=optimizer), build_config("gptoss", "toy", SMALL | switches)
    model = build_model("gptoss", config)
    ids = torch.arange(16)[None]
    model(ids, ids).loss.backward()
    for parameter in model.parameters():  # an expert that no token chose has state, too
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    state = []
    for part in build_optimizers(model, cfg):
        part.step()
        values = (v for entry in part.state.values() for k, v in entry.items() if k != "step")
        state += values
    expected = memory_bytes(cfg, config)
    assert expected["weights"] == num_bytes(model.parameters())
    assert expected["gradients"] == num_bytes(p.grad for p in model.parameters())
    assert expected["optimizer"] == num_bytes(state)


def kept_for_backward(model, ids) -> int:
    """Bytes of every tensor that autograd holds after a forward pass, the parameters' own left out."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (
                storage.nbytes(),
                tensor,
            )  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(ids, ids.roll(-1, 1))
        _loss = out.loss + out.router.balance_loss + out.router.z_loss
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(
    "rows, tokens, overrides",
    [
        (4, 128, {}),
        (2, 128, {"hidden_size": 256, "num_attention_heads": 2}),
        (2, 128, {"intermediate_size": 512}),
        (2, 96, {"experts_per_token": 5, "num_hidden_layers": 2}),
        (2, 96, {"mlp": "gelu", "moe_layers": (0, 2)}),
    ],
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_activations_are_estimated_to_15_percent(rows, tokens, overrides, attention):
    config = build_config("gptoss", "toy", overrides)
    model = build_model("gptoss", config, attention=attention)
    ids = torch.randint(4096, (rows, tokens), generator=torch.Generator().manual_seed(0))
    cfg = TrainConfig(batch_size=rows, block_size=tokens, attention=attention, dtype="float32")
    estimate = memory_bytes(cfg, config)["activations"]
    assert estimate == pytest.approx(kept_for_backward(model, ids), rel=0.15)


def test_logits_never_count_for_more_than_one_block():
    config = build_config("gptoss", "toy")
    small, large = (
        memory_bytes(TrainConfig(batch_size=rows), config)["logits"] for rows in (2, 4096)
    )
    assert small == 2 * 4 * 2 * 256 * 4096 and large == 2 * 4 * LOGITS_PER_CHUNK


def test_the_report_multiplies_tokens_and_flops():
    cfg, config = (
        TrainConfig(batch_size=3, block_size=100, grad_accum=2, max_iters=50),
        build_config("gptoss", "toy"),
    )
    text, flops = report(cfg, config), config.flops_per_token(100)
    assert "step             600 tokens" in text
    assert f"run              50 steps, 30,000 tokens, {30_000 * flops:.3g} FLOPs" in text
    hours = 30_000 * flops / 40e12 / 3600
    assert f"{hours:10.2f} h on one GPU at 40 TFLOP/s" in text
    minutes = report(TrainConfig(max_iters=None, max_minutes=7.0), config)
    assert "run              7 minutes of training" in minutes
