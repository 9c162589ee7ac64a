"""Shared experts: a whole MoE layer against plain loops, and a training run."""

import math

import pytest
import torch
from small_model import figures, of_one_layer
from test_router import rule_by_loops
from toy_run import TINY, load, run_here

from architecture.gptoss import EXPERT_BACKENDS, ROUTERS, MLPBlock, ModelConfig, Transformer
from inference import generate_text, load_model
from training.monitor.metrics import read_metrics

# every axis differs; D and F are multiples of 8 for the grouped backend
B, T, E, K, D, F, SHARED = 4, 5, 7, 2, 24, 16, 3
SHAPE = dict(num_hidden_layers=2, num_experts=E, experts_per_token=K, vocab_size=37, hidden_size=D,
             intermediate_size=F, head_dim=4, num_attention_heads=15, num_key_value_heads=5, sliding_window=6,
             initial_context_length=64, rope_scaling_factor=1.0, swiglu_limit=1.5)  # fmt: skip
NAMES = ("shared_mlp1_weight", "shared_mlp1_bias", "shared_mlp2_weight", "shared_mlp2_bias")


def block(backend="loop", **changes) -> MLPBlock:
    """A layer in float64 whose weights, biases and selection bias all matter."""
    config = ModelConfig(**SHAPE | dict(shared_experts=SHARED) | changes)
    made = MLPBlock(config, layer=0, backend=backend)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for tensor in (*made.parameters(), made.selection_bias):
            tensor.normal_(0.0, 0.7, generator=draw)
    return made.double()


def hidden(seed=5) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(B, T, D, generator=draw, dtype=torch.float64)


# ------------------------------------------------------------------------------------------ the layer
def expert_by_formula(x, w1, b1, w2, b2, mlp):
    """One expert and one token: x (D,) -> (D,)."""
    inner = w1 @ x + b1
    if mlp == "gelu":
        cube = inner + 0.044715 * inner**3
        return w2 @ (0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * cube))) + b2
    gate, up = inner[0::2].clamp(max=1.5), inner[1::2].clamp(min=-1.5, max=1.5)
    return w2 @ (gate / (1 + torch.exp(-1.702 * gate)) * (up + 1)) + b2


def layer_by_loops(hidden, weights, bias, rule, mlp):
    """What a layer adds to the residual stream, one token and one expert at a time."""
    rows = hidden.reshape(-1, D)
    x = [row / torch.sqrt((row**2).mean() + 1e-5) * weights["norm.scale"] for row in rows]
    logits = torch.stack([weights["gate.weight"] @ row + weights["gate.bias"] for row in x])
    index, weight, _ = rule_by_loops(rule, logits, bias)
    names = ("mlp1_weight", "mlp1_bias", "mlp2_weight", "mlp2_bias")
    out = []
    for n, row in enumerate(x):
        total = 0
        for slot, e in enumerate(index[n]):
            of_expert = (weights[name][e] for name in names)
            total = total + weight[n, slot] * expert_by_formula(row, *of_expert, mlp)
        for s in range(len(weights["shared_mlp1_weight"])):
            of_expert = (weights["shared_" + name][s] for name in names)
            total = total + expert_by_formula(row, *of_expert, mlp)
        out.append(total)
    return torch.stack(out).view_as(hidden)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("rule", ROUTERS)
@pytest.mark.parametrize("backend", EXPERT_BACKENDS)
def test_a_layer_is_the_formula_in_values_and_gradients(backend, rule, mlp):
    made, x = block(backend, router=rule, mlp=mlp), hidden()
    dtype = torch.float32 if backend == "grouped" else torch.float64  # grouped takes no float64
    made = made.to(dtype)
    weights = {n: p.detach().double().requires_grad_() for n, p in made.named_parameters()}
    ours, theirs = x.to(dtype).requires_grad_(), x.to(dtype).double().requires_grad_()
    out, _ = made(ours, None)
    expected = layer_by_loops(theirs, weights, made.selection_bias.double(), rule, mlp)
    direction = hidden(seed=6)
    found = torch.autograd.grad(out, (ours, *made.parameters()), direction.to(dtype))
    wanted = torch.autograd.grad(expected, (theirs, *weights.values()), direction)
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    for name, a, b in zip(("out", "hidden", *weights), (out, *found), (expected, *wanted)):
        scale = b.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(
            a.double(), b, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_statistics_are_those_of_the_routed_experts():
    with_shared, x = block(), hidden()
    without = block(shared_experts=0)
    weights = {n: t for n, t in with_shared.state_dict().items() if "shared" not in n}
    without.load_state_dict(weights)
    (_, ours), (_, theirs) = with_shared(x, None), without(x, None)
    ours, theirs = of_one_layer(ours), of_one_layer(theirs)
    assert ours.load.shape == (1, E) and ours.load.sum() == B * T * K
    for one, other in zip(figures(ours), figures(theirs)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", ["loop", "sorted"])
def test_a_token_that_its_experts_drop_still_passes_through_the_shared_ones(backend):
    made, x = block(backend, capacity_factor=0.01, experts_per_token=1).train(), hidden()
    out, stats = made(x, None)
    index, _, _ = made.route(made.norm(x).flatten(0, 1), None)
    dropped = (index == E).view(B, T)
    assert stats.dropped > 0 and not dropped.all()
    with torch.no_grad():
        made.mlp2_weight.zero_(), made.mlp2_bias.zero_()  # only the shared experts are left
    shared, _ = made(x, None)
    torch.testing.assert_close(out[dropped], shared[dropped], rtol=0, atol=1e-12)
    assert (out[~dropped] - shared[~dropped]).abs().amax(-1).min() > 1e-3


# ------------------------------------------------------------------------------------------- the model
def test_shared_experts_add_four_tensors_to_each_layer_with_experts_and_nothing_else():
    plain, made = (
        {n: tuple(t.shape) for n, t in Transformer(ModelConfig(**SHAPE | switch)).state_dict().items()}
        for switch in ({}, dict(shared_experts=SHARED))
    )
    shapes = (SHARED, 2 * F, D), (SHARED, 2 * F), (SHARED, D, F), (SHARED, D)
    added = {f"block.{n}.mlp.{name}": shape for n in range(2) for name, shape in zip(NAMES, shapes)}
    assert made == plain | added
    mixed = Transformer(ModelConfig(**SHAPE, shared_experts=SHARED, moe_layers=(1,)))
    assert {name for name in mixed.state_dict() if "shared" in name} == {n for n in added if ".1." in n}


# ---------------------------------------------------------------------------------------------- a real run
SWITCHES = ["--router", "topk_sigmoid", "--shared_experts", 2, "--num_experts", 6,
            "--position", "learned", "--position_init", "sinusoidal"]  # fmt: skip


def test_a_run_learns_balances_and_its_checkpoint_is_the_model(tmp_path, corpus):
    flags = [*TINY, *corpus, *SWITCHES, "--no-use_tensorboard", "--max_iters", 40, "--lr", 0.01]
    assert run_here(tmp_path, *flags, "--balance", "bias", "--eval_every", 40, "--save_every", 40) == 0
    losses = [r["train/loss"] for r in read_metrics(tmp_path / "model/metrics.jsonl") if "train/loss" in r]
    assert len(losses) == 40 and sum(losses[-5:]) / 5 < losses[0] - 1
    path = tmp_path / "model/checkpoint_40.pt"
    state = load(path)
    biases = [t for n, t in state["model"].items() if n.endswith("selection_bias")]
    assert len(biases) == 2 and all(b.any() for b in biases)
    made = load_model(path)
    new = (made.config.router, made.config.shared_experts, made.config.position_init)
    assert new == ("topk_sigmoid", 2, "sinusoidal")
    assert made.state_dict().keys() == state["model"].keys()
    assert all(torch.equal(t, state["model"][n]) for n, t in made.state_dict().items())
    assert sum(".shared_" in n for n in state["model"]) == 2 * len(NAMES)
    assert len(generate_text(made, "Once upon", 6, 0.0)) > len("Once upon")
