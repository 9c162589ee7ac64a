"""Parameter groups, Muon against the formula and torch's own, and the learning rate."""

import math

import pytest
import torch
from torch import nn

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

SHAPE = dict(
    num_hidden_layers=2,
    hidden_size=20,
    intermediate_size=9,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=4,
    num_experts=5,
    experts_per_token=2,
    vocab_size=64,
    initial_context_length=32,
    rope_scaling_factor=1.0,
)


def small_model(**switches):
    return Transformer(ModelConfig(**SHAPE | switches))


def random_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


# groups

BLOCK = {
    "attn.norm.scale": "no_decay",
    "attn.sinks": "no_decay",
    "attn.qkv.weight": "matrix",
    "attn.qkv.bias": "no_decay",
    "attn.out.weight": "matrix",
    "attn.out.bias": "no_decay",
    "mlp.norm.scale": "no_decay",
    "mlp.gate.weight": "decay",
    "mlp.gate.bias": "no_decay",
    "mlp.mlp1_weight": "matrix",
    "mlp.mlp1_bias": "no_decay",
    "mlp.mlp2_weight": "matrix",
    "mlp.mlp2_bias": "no_decay",
}
SHARED = {
    "mlp.shared_mlp1_weight": "matrix",
    "mlp.shared_mlp1_bias": "no_decay",
    "mlp.shared_mlp2_weight": "matrix",
    "mlp.shared_mlp2_bias": "no_decay",
}
TRUNK = {"embedding.weight": "decay", "norm.scale": "no_decay", "unembedding.weight": "decay"}


def group_of_each(model):
    return {name: group for group, named in parameter_groups(model).items() for name in named}


@pytest.mark.parametrize("shared", [0, 3])
def test_every_parameter_has_its_group_by_name(shared):
    of_block = BLOCK | SHARED if shared else BLOCK
    blocks = {f"block.{n}.{name}": group for n in range(2) for name, group in of_block.items()}
    assert group_of_each(small_model(shared_experts=shared)) == TRUNK | blocks


def test_shared_experts_are_of_the_kind_experts_and_their_biases_are_biases():
    model = small_model(shared_experts=3)
    kind_of = {p: kind for kind, params in parameter_kinds(model).items() for p in params}
    found = {n: kind_of[p] for n, p in model.named_parameters() if n.startswith("block.1.mlp.shared_")}
    kinds = {"matrix": "experts", "no_decay": "biases"}
    assert found == {f"block.1.{name}": kinds[group] for name, group in SHARED.items()}


def test_the_parameters_of_the_switches_have_their_groups():
    groups = group_of_each(small_model(norm="layernorm", position="learned", moe_layers=(1,)))
    assert groups["norm.bias"] == groups["block.0.attn.norm.bias"] == "no_decay"
    assert groups["position_embedding.weight"] == "no_decay"
    assert groups["block.0.mlp.mlp1_weight"] == "matrix"  # a dense layer is one expert
    assert "block.0.mlp.gate.weight" not in groups


def test_a_tied_head_is_one_parameter():
    groups = group_of_each(small_model(tie_embeddings=True))
    assert groups["embedding.weight"] == "decay" and "unembedding.weight" not in groups


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


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_each_parameter_is_in_one_optimizer_and_only_weights_decay(optimizer):
    model = small_model(shared_experts=3)
    config = TrainConfig(optimizer=optimizer, weight_decay=0.25, lr=0.5)
    optimizers = build_optimizers(model, config)
    assert [type(o).__name__ for o in optimizers] == ["AdamW", "Muon"][: len(optimizers)]
    assert len(optimizers) == (2 if optimizer == "muon" else 1)
    decay = {p: g["weight_decay"] for o in optimizers for g in o.param_groups for p in g["params"]}
    assert sum(len(g["params"]) for o in optimizers for g in o.param_groups) == len(decay)
    groups = group_of_each(model)
    for name, parameter in model.named_parameters():
        assert decay[parameter] == (0.0 if groups[name] == "no_decay" else 0.25), name
    set_learning_rate(optimizers, 0.125)
    assert {g["lr"] for o in optimizers for g in o.param_groups} == {0.125}


def test_adamw_moves_a_bias_by_the_learning_rate_and_decays_a_weight():
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    random_gradients(model.parameters(), seed=1)
    for optimizer in build_optimizers(model, TrainConfig(optimizer="adamw", weight_decay=0.1)):
        optimizer.step()
    lr = TrainConfig().lr
    for name, parameter in model.named_parameters():
        decay = 0.0 if group_of_each(model)[name] == "no_decay" else 0.1
        first_step = parameter.grad / (parameter.grad.abs() + 1e-8)  # Adam's, bias-corrected
        expected = before[name] * (1 - lr * decay) - lr * first_step
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6)


# Muon


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
        for a, b, c in POLYNOMIALS:
            s = a * s + b * s**3 + c * s**5
        update = 0.2 * math.sqrt(max(shape)) * (u * s) @ vh
        expected = expected - 0.02 * 0.1 * expected - 0.02 * update
    torch.testing.assert_close(muon_steps(start, gradients), expected, rtol=0, atol=1e-10)


def test_the_polynomials_bring_what_is_above_a_fiftieth_within_a_tenth_of_one():
    s = torch.linspace(0.02, 1, 10_000, dtype=torch.float64)
    for a, b, c in POLYNOMIALS:
        s = a * s + b * s**3 + c * s**5
    assert (s - 1).abs().max() < 0.1


@pytest.mark.parametrize("shape", [(24, 10), (10, 24)])
def test_muon_goes_where_torch_s_goes(shape):
    start, gradients = problem(*shape, dtype=torch.float32)
    ours = muon_steps(start, gradients)
    theirs = muon_steps(start, gradients, torch.optim.Muon, adjust_lr_fn="match_rms_adamw")
    apart = torch.cosine_similarity((ours - start).flatten(), (theirs - start).flatten(), dim=0)
    assert apart > 0.98  # theirs levels the singular values less


def test_parameters_of_one_shape_are_updated_each_on_its_own(monkeypatch):
    start, gradients = problem(5, 12, 7)
    alone = torch.stack([muon_steps(start[i], [g[i] for g in gradients]) for i in range(5)])
    monkeypatch.setattr("training.muon.STACKED_VALUES", 2 * 12 * 7)  # two at once, and one left
    parameters = [nn.Parameter(part.clone()) for part in start]
    optimizer = Muon(parameters, lr=0.02, weight_decay=0.1)
    for gradient in gradients:
        for parameter, part in zip(parameters, gradient):
            parameter.grad = part.clone()
        optimizer.step()
    torch.testing.assert_close(torch.stack(parameters).detach(), alone, rtol=0, atol=1e-12)


def test_a_stack_of_experts_is_as_many_separate_matrices():
    start, gradients = problem(30, 24, 10)  # more experts than rows or columns
    together = muon_steps(start, gradients)
    apart = [muon_steps(start[e], [g[e] for g in gradients]) for e in range(30)]
    torch.testing.assert_close(together, torch.stack(apart), rtol=0, atol=1e-12)


def test_an_expert_without_gradient_only_decays():
    start, gradients = problem(3, 8, 6)
    for gradient in gradients:
        gradient[1] = 0
    end = muon_steps(start, gradients)
    assert end.isfinite().all()
    torch.testing.assert_close(end[1], start[1] * (1 - 0.02 * 0.1) ** 4, rtol=1e-12, atol=0)


def test_muon_moves_a_matrix_about_as_far_as_adamw_does():
    start, gradients = problem(3, 64, 48, steps=1, dtype=torch.float32)
    update = (muon_steps(start, gradients) - start * (1 - 0.02 * 0.1)) / 0.02
    rms = update.square().mean((1, 2)).sqrt()
    assert ((rms > 0.15) & (rms < 0.25)).all()


def test_orthogonalize_keeps_directions_and_levels_their_sizes():
    u, v = (torch.linalg.qr(torch.randn(n, 4, dtype=torch.float64))[0] for n in (12, 7))
    matrix = (u * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)) @ v.T
    result = orthogonalize(matrix)
    assert result.shape == matrix.shape
    sizes = torch.linalg.svdvals(result)
    assert (sizes[:4] - 1).abs().max() < 0.1 and sizes[4:].abs().max() < 1e-6
    torch.testing.assert_close(u @ (u.T @ result), result, rtol=0, atol=1e-6)


def test_optimizers_continue_to_the_bit_from_their_state():
    def steps(model, optimizers, seeds):
        for seed in seeds:
            random_gradients(model.parameters(), seed)
            for optimizer in optimizers:
                optimizer.step()

    config = TrainConfig()
    straight = small_model()
    stopped = small_model()
    stopped.load_state_dict(straight.state_dict())
    steps(straight, build_optimizers(straight, config), range(5))

    first = build_optimizers(stopped, config)
    steps(stopped, first, range(3))
    second = build_optimizers(stopped, config)
    for new, old in zip(second, first):
        new.load_state_dict(old.state_dict())
    steps(stopped, second, range(3, 5))
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, stopped.get_parameter(name)), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_muon_on_cuda_follows_the_cpu_up_to_bfloat16():
    start, gradients = problem(5, 48, 20, dtype=torch.float32)
    expected = muon_steps(start, gradients)
    got = muon_steps(start.cuda(), [g.cuda() for g in gradients]).cpu()
    assert (got - expected).norm() < 0.02 * (expected - start).norm()


# learning rate


def test_wsd_rises_stays_and_falls_to_zero_in_straight_lines():
    config = TrainConfig(lr=2.0, schedule="wsd", warmup=0.1, decay=0.4)
    points = [(0, 0), (0.05, 1), (0.1, 2), (0.3, 2), (0.6, 2), (0.7, 1.5), (0.8, 1), (1, 0)]
    for progress, expected in points:
        assert learning_rate(progress, config) == pytest.approx(expected, abs=1e-12)


def test_cosine_rises_and_falls_to_zero_along_half_a_wave():
    config = TrainConfig(lr=2.0, schedule="cosine", warmup=0.2)
    half = 2 * (1 + math.cos(math.pi / 4)) / 2
    for progress, expected in [(0, 0), (0.1, 1), (0.2, 2), (0.4, half), (0.6, 1), (1, 0)]:
        assert learning_rate(progress, config) == pytest.approx(expected, abs=1e-12)


def test_no_warmup_and_no_decay_is_a_constant_rate():
    config = TrainConfig(lr=2.0, warmup=0.0, decay=0.0)
    assert {learning_rate(progress, config) for progress in (0.0, 0.5, 1.0)} == {2.0}
