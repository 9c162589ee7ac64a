"""Parameter groups, Muon against the formula and torch's own, and the learning rate."""

import math

import pytest
import torch
from torch import nn
from toy_run import SMALL

from architecture.gptoss import ModelConfig, Transformer
from training.config import TrainConfig
from training.muon import POLYNOMIALS, Muon, orthogonalize
from training.optimizer import (
    build_optimizers,
    learning_rate,
    parameter_groups,
    parameter_kinds,
    set_learning_rate,
)


def small_model(**switches):
    return Transformer(ModelConfig(**SMALL, vocab_size=64, initial_context_length=32, **switches))


# ------------------------------------------------------------------------------------------- groups and kinds

BLOCK = {
    "attn.norm.scale": ("no_decay", "norms"),
    "attn.sinks": ("no_decay", "sinks"),
    "attn.qkv.weight": ("matrix", "attention"),
    "attn.qkv.bias": ("no_decay", "biases"),
    "attn.out.weight": ("matrix", "attention"),
    "attn.out.bias": ("no_decay", "biases"),
    "mlp.norm.scale": ("no_decay", "norms"),
    "mlp.gate.weight": ("decay", "router"),
    "mlp.gate.bias": ("no_decay", "biases"),
    "mlp.mlp1_weight": ("matrix", "experts"),
    "mlp.mlp1_bias": ("no_decay", "biases"),
    "mlp.mlp2_weight": ("matrix", "experts"),
    "mlp.mlp2_bias": ("no_decay", "biases"),
    "mlp.shared_mlp1_weight": ("matrix", "experts"),
    "mlp.shared_mlp1_bias": ("no_decay", "biases"),
    "mlp.shared_mlp2_weight": ("matrix", "experts"),
    "mlp.shared_mlp2_bias": ("no_decay", "biases"),
}
TRUNK = {
    "embedding.weight": ("decay", "embedding"),
    "norm.scale": ("no_decay", "norms"),
    "unembedding.weight": ("decay", "head"),
}


def group_of_each(model):
    return {name: group for group, named in parameter_groups(model).items() for name in named}


def test_every_parameter_has_its_group_and_its_kind_by_name():
    model = small_model(shared_experts=3)
    kind_of = {p: kind for kind, parameters in parameter_kinds(model).items() for p in parameters}
    groups = group_of_each(model)
    found = {name: (groups[name], kind_of[p]) for name, p in model.named_parameters()}
    assert found == TRUNK | {f"block.{n}.{name}": where for n in range(2) for name, where in BLOCK.items()}


def test_the_parameters_of_the_switches_have_their_groups():
    switches = dict(norm="layernorm", position="learned", moe_layers=(1,), tie_embeddings=True)
    groups = group_of_each(small_model(**switches))
    assert groups["norm.bias"] == groups["block.0.attn.norm.bias"] == "no_decay"
    assert groups["position_embedding.weight"] == "no_decay"
    assert groups["block.0.mlp.mlp1_weight"] == "matrix"  # a dense layer is one expert
    assert groups["embedding.weight"] == "decay"
    assert groups.keys().isdisjoint({"block.0.mlp.gate.weight", "unembedding.weight"})


def test_an_unknown_parameter_is_refused_until_the_model_names_its_group():
    model = small_model()
    model.memory = nn.Parameter(torch.zeros(3, 20))
    with pytest.raises(ValueError, match="'memory'.*Transformer.optimizer_rules"):
        parameter_groups(model)
    model.optimizer_rules = ((r"memory", "no_decay"),)
    assert group_of_each(model)["memory"] == "no_decay"


def test_a_frozen_parameter_is_left_out():
    model = small_model()
    model.embedding.weight.requires_grad_(False)
    assert "embedding.weight" not in group_of_each(model)


@pytest.mark.parametrize("optimizer, kinds", [("muon", ["AdamW", "Muon"]), ("adamw", ["AdamW"])])
def test_each_parameter_is_in_one_optimizer_and_only_weights_decay(optimizer, kinds):
    model = small_model(shared_experts=3)
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer, weight_decay=0.25, lr=0.5))
    assert [type(o).__name__ for o in optimizers] == kinds
    decay = {p: g["weight_decay"] for o in optimizers for g in o.param_groups for p in g["params"]}
    assert sum(len(g["params"]) for o in optimizers for g in o.param_groups) == len(decay)
    groups = group_of_each(model)
    for name, parameter in model.named_parameters():
        assert decay[parameter] == (0.0 if groups[name] == "no_decay" else 0.25), name
    set_learning_rate(optimizers, 0.125)
    assert {g["lr"] for o in optimizers for g in o.param_groups} == {0.125}


# ----------------------------------------------------------------------------------------------------- Muon

# The claims of training/muon.py: singular values from LOWEST to 1 end within NEAR_ONE of 1.
LOWEST, NEAR_ONE = 0.002, 0.3211


def muon_steps(start, gradients, make=Muon, **settings):
    parameter = nn.Parameter(start.clone())
    optimizer = make([parameter], lr=0.02, weight_decay=0.1, **settings)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def problem(*shape, steps=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    start, *gradients = torch.randn(steps + 1, *shape, generator=generator, dtype=torch.float64)
    return start.to(dtype), [gradient.to(dtype) for gradient in gradients]


@pytest.mark.parametrize("shape", [(24, 10), (10, 24), (17, 17)])
def test_muon_is_nesterov_momentum_and_the_polynomials_of_the_singular_values(shape):
    start, gradients = problem(*shape)
    expected, momentum = start.clone(), torch.zeros(shape, dtype=torch.float64)
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient
        nesterov = 0.95 * momentum + 0.05 * gradient
        u, s, vh = torch.linalg.svd(nesterov, full_matrices=False)
        s = s / s.norm()  # the iteration acts on each singular value alone
        s = apply(POLYNOMIALS, s)
        update = 0.2 * math.sqrt(max(shape)) * (u * s) @ vh
        expected = expected - 0.02 * 0.1 * expected - 0.02 * update
    torch.testing.assert_close(muon_steps(start, gradients), expected, rtol=0, atol=1e-10)


def apply(polynomials, s):
    for a, b, c in polynomials:
        s = a * s + b * s**3 + c * s**5
    return s


def test_each_polynomial_is_the_nearest_to_one_where_those_before_it_map_the_interval():
    """Chebyshev: a polynomial of three coefficients is the best if its error is largest at four places in turn."""
    s, low, high = torch.linspace(LOWEST, 1, 100_000, dtype=torch.float64), LOWEST, 1.0
    for polynomial in POLYNOMIALS:
        x = torch.linspace(low, high, 100_001, dtype=torch.float64)
        error = apply([polynomial], x) - 1
        largest = error.abs().max().item()
        turns = error[error.abs() > largest - 3e-3].sign()  # the coefficients are rounded to five digits
        assert torch.unique_consecutive(turns).tolist() == [-1, 1, -1, 1]
        low, high = 1 - largest, 1 + largest
    assert apply(POLYNOMIALS, s).sub(1).abs().max().item() == pytest.approx(largest, abs=3e-3)
    assert largest == pytest.approx(NEAR_ONE, abs=3e-3)


@pytest.mark.parametrize(
    "shape", [(5, 18, 40), (5, 40, 18), (5, 40, 23)], ids=["long", "tall", "nearly square"]
)
def test_singular_values_of_a_matrix_end_in_the_band_and_its_vectors_stay(shape):
    generator = torch.Generator().manual_seed(3)
    u, _, vh = torch.linalg.svd(
        torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False
    )
    s = torch.logspace(0, math.log10(LOWEST), u.size(-1), dtype=torch.float64)
    update = orthogonalize(((u * s) @ vh).float()).double()
    ends = u.mT @ update @ vh.mT
    found = ends.diagonal(dim1=-2, dim2=-1)
    assert (ends - torch.diag_embed(found)).abs().max() < 1e-3
    held = s / s.norm() >= LOWEST
    assert held.sum() > 12
    assert (found[:, held] - 1).abs().max() < NEAR_ONE + 1e-3
    torch.testing.assert_close(found, apply(POLYNOMIALS, s / s.norm()).expand_as(found), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype, near", [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_a_long_matrix_has_the_same_update_through_its_gram(dtype, near, monkeypatch):
    generator = torch.Generator().manual_seed(5)
    long = (
        torch.randn(3, 12, 50, generator=generator, dtype=torch.float64) * torch.logspace(0, -3, 12)[:, None]
    )
    through_gram = orthogonalize(long.to(dtype))
    monkeypatch.setattr("training.muon.LONG", math.inf)
    torch.testing.assert_close(through_gram, orthogonalize(long.to(dtype)), rtol=0, atol=near)


def test_muon_agrees_with_the_direction_of_torch_muon():
    start, gradients = problem(24, 10, dtype=torch.float32)
    ours = muon_steps(start, gradients)
    theirs = muon_steps(start, gradients, torch.optim.Muon, adjust_lr_fn="match_rms_adamw")
    apart = torch.cosine_similarity((ours - start).flatten(), (theirs - start).flatten(), dim=0)
    assert apart > 0.98  # five equal rounds bring the singular values less close to 1


@pytest.mark.parametrize("matrices", [2 * 13, 5], ids=["two parameters at once", "a parameter in parts"])
def test_each_matrix_of_each_parameter_is_updated_on_its_own(monkeypatch, matrices):
    start, gradients = problem(5, 13, 12, 7)  # more experts than rows or columns
    alone = [[muon_steps(start[i, e], [g[i, e] for g in gradients]) for e in range(13)] for i in range(5)]
    at_once = matrices * 12 * 7
    monkeypatch.setattr("training.muon.batch_values", lambda _: at_once)
    parameters = [nn.Parameter(part.clone()) for part in start]
    optimizer = Muon(parameters, lr=0.02, weight_decay=0.1)
    for gradient in gradients:
        for parameter, part in zip(parameters, gradient):
            parameter.grad = part.clone()
        optimizer.step()
    expected = torch.stack([torch.stack(experts) for experts in alone])
    torch.testing.assert_close(torch.stack(parameters).detach(), expected, rtol=0, atol=1e-12)


def test_an_expert_without_gradient_only_decays():
    start, gradients = problem(3, 8, 6)
    for gradient in gradients:
        gradient[1] = 0
    end = muon_steps(start, gradients)
    assert end.isfinite().all()
    torch.testing.assert_close(end[1], start[1] * (1 - 0.02 * 0.1) ** 4, rtol=1e-12, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_muon_on_cuda_follows_the_cpu_up_to_bfloat16():
    start, gradients = problem(5, 48, 20, dtype=torch.float32)
    expected = muon_steps(start, gradients)
    got = muon_steps(start.cuda(), [g.cuda() for g in gradients]).cpu()
    assert (got - expected).norm() < 0.02 * (expected - start).norm()


# -------------------------------------------------------------------------------------------- learning rate

HALF = 1 + math.cos(math.pi / 4)


@pytest.mark.parametrize(
    "settings, points",
    [
        (
            dict(schedule="wsd", warmup=0.1, decay=0.4),
            [(0, 0), (0.05, 1), (0.1, 2), (0.3, 2), (0.6, 2), (0.7, 1.5), (0.8, 1), (1, 0)],
        ),
        (
            dict(schedule="cosine", warmup=0.2),
            [(0, 0), (0.1, 1), (0.2, 2), (0.4, HALF), (0.6, 1), (1, 0)],
        ),
        (dict(warmup=0.0, decay=0.0), [(0, 2), (0.5, 2), (1, 2)]),
    ],
    ids=["straight lines to zero", "half a wave to zero", "constant"],
)
def test_the_learning_rate_follows_its_schedule(settings, points):
    config = TrainConfig(lr=2.0, **settings)
    for progress, expected in points:
        assert learning_rate(progress, config) == pytest.approx(expected, abs=1e-12)
