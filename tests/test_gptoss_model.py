"""Norms, positions, initialisation and the contract of forward."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_model import B, D, T, V, batch, inputs_of, model

from architecture.gptoss import PRESETS, LayerNorm, ModelConfig, RMSNorm, RotaryEmbedding, Transformer
from architecture.interface import IGNORE_INDEX


# ------------------------------------------------------------------------------------------- norms
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rmsnorm_is_its_formula_in_values_and_in_the_gradient_of_its_input(dtype):
    draw = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(B, T, D, generator=draw, dtype=torch.float64)).to(dtype)
    x[0, 0] = 0  # only eps keeps the norm finite
    x.requires_grad_()
    norm = RMSNorm(D).to(dtype)
    with torch.no_grad():
        norm.scale.normal_(generator=draw)
    formula = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.scale
    direction = torch.randn(B, T, D, generator=draw).to(dtype)
    ours, theirs = (torch.autograd.grad(out, (x, norm.scale), direction) for out in (norm(x), formula))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close((norm(x), *ours), (formula, *theirs), rtol=tolerance, atol=tolerance)


def test_rmsnorm_in_bfloat16_is_the_float32_norm_rounded_once_after_the_scale():
    x = 100 * torch.randn(T, D, generator=torch.Generator().manual_seed(0)).bfloat16()
    norm = RMSNorm(D)
    norm.scale.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    assert norm(x).dtype == torch.bfloat16
    assert torch.equal(norm(x), norm(x.float()).bfloat16())


def test_autocast_does_not_change_rmsnorm():
    draw = torch.Generator().manual_seed(0)
    x, direction = (torch.randn(2, 5, 12, generator=draw) for _ in range(2))
    norm, found = RMSNorm(12), []
    for enabled in (False, True):
        x = x.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = norm(x)
        found.append((out, *torch.autograd.grad(out, (x, norm.scale), direction)))
    assert all(torch.equal(plain, mixed) for plain, mixed in zip(*found))


def test_layernorm_is_torchs():
    ours, theirs = LayerNorm(D), torch.nn.LayerNorm(D, eps=1e-5)
    for p, q in zip(ours.parameters(), theirs.parameters()):
        p.data.normal_(generator=torch.Generator().manual_seed(1))
        q.data.copy_(p.data)
    x = torch.randn(T, D, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), theirs(x))


# ------------------------------------------------------------------------------------ RoPE and YaRN
def angles_by_formula(config, position):
    """One angle per pair and the concentration, after the official model.py, in plain floats."""
    half, factor = config.head_dim // 2, config.rope_scaling_factor
    angles = []
    for pair in range(half):
        frequency = config.rope_theta ** (2 * pair / config.head_dim)
        if factor == 1:
            angles.append(position / frequency)
            continue
        low, high = (
            half
            * math.log(config.initial_context_length / (beta * 2 * math.pi))
            / math.log(config.rope_theta)
            for beta in (config.rope_ntk_beta, config.rope_ntk_alpha)
        )
        ramp = min(1.0, max(0.0, (pair - low) / (high - low)))
        angles.append(position * (ramp / (factor * frequency) + (1 - ramp) / frequency))
    return angles, 1.0 if factor == 1 else 0.1 * math.log(factor) + 1


@pytest.mark.parametrize("config", [
    ModelConfig(),
    ModelConfig(rope_scaling_factor=1.0),
    ModelConfig(head_dim=12, initial_context_length=64, rope_theta=500.0, rope_ntk_beta=4.0, rope_scaling_factor=8.0),
], ids=["official", "plain", "small"])  # fmt: skip
def test_rope_tables_are_the_independent_formula(config):
    positions = torch.tensor([[0, 1, 127, 130], [3, 4, 5, 1000]])
    cos, sin = RotaryEmbedding(config).tables(positions)
    assert cos.shape == (2, 4, 1, config.head_dim // 2) and cos.dtype == torch.float32
    for row, column in ((0, 0), (0, 2), (1, 1), (1, 3)):
        angles, scale = angles_by_formula(config, positions[row, column].item())
        expected = torch.tensor([[scale * f(a) for a in angles] for f in (math.cos, math.sin)])
        ours = torch.stack((cos[row, column, 0], sin[row, column, 0]))
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-4)  # angles up to 1000 in float32


def test_nope_layers_are_not_rotated():
    made = model(num_hidden_layers=6, nope_stride=3)
    assert [block.attn.rotated for block in made.block] == [True, True, False] * 2


def test_a_shift_of_all_positions_changes_logits_with_learned_positions_only():
    input_ids, _ = batch()
    shifted = torch.arange(5, 5 + T)[None]
    for position, feels in (("none", False), ("rope", False), ("learned", True)):
        made = model(position=position).double().eval()
        same = torch.allclose(made(input_ids).logits, made(input_ids, positions=shifted).logits, atol=1e-6)
        assert same != feels


# ------------------------------------------------------------------------------------ the contract
def test_the_fast_backends_give_the_whole_model_the_same_values_and_gradients():
    input_ids, targets = batch()
    targets[0, :3] = IGNORE_INDEX
    reference, fast = (
        model(attention=a, experts=e).double() for a, e in (("eager", "loop"), ("auto", "auto"))
    )
    outputs = [made(input_ids, targets) for made in (reference, fast)]
    for output in outputs:
        (output.loss + output.router.balance_loss + output.router.z_loss).backward()
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss, rtol=1e-12, atol=0)
    gradients = [{n: p.grad for n, p in made.named_parameters()} for made in (reference, fast)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_the_loss_is_the_cross_entropy_of_the_logits():
    input_ids, targets = batch()
    targets[1, 4:9] = IGNORE_INDEX
    made = model()
    with_targets, asked = made(input_ids, targets), made(input_ids, targets, return_logits=True)
    assert with_targets.logits is None and with_targets.num_targets == B * T - 5
    logits = asked.logits
    assert logits.shape == (B, T, V) and logits.dtype == torch.float32
    torch.testing.assert_close(logits, made(input_ids).logits)
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORE_INDEX
    )
    torch.testing.assert_close(with_targets.token_losses, losses.view(B, T))
    torch.testing.assert_close(with_targets.loss, losses.sum() / (B * T - 5))


def test_padded_ids_get_no_probability_in_loss_logits_and_gradients():
    input_ids, targets = (ids % 30 for ids in batch())
    padded = model(used_vocab_size=30)
    with torch.no_grad():
        padded.unembedding.weight[30:] = 100.0  # would win everything
    output = padded(input_ids, targets, return_logits=True)
    assert output.logits.shape == (B, T, V) and (output.logits[..., 30:] == -torch.inf).all()
    expected = F.cross_entropy(output.logits[..., :30].flatten(0, 1), targets.flatten())
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert not padded.unembedding.weight.grad[30:].any()
    assert padded.unembedding.weight.grad[:30].any(1).all()


def test_a_model_looks_at_nothing_to_the_right_and_sliding_layers_at_no_more_than_their_window():
    input_ids, _ = batch()
    made = model(num_hidden_layers=1).double().eval()  # one sliding layer of 6
    changed = input_ids.clone()
    changed[:, 8] = (changed[:, 8] + 1) % V
    difference = (made(input_ids).logits - made(changed).logits).abs().amax((0, 2))
    different = difference > 1e-13  # below it is rounding: groups of tokens have other sizes
    assert different.nonzero().flatten().tolist() == list(range(8, 14))


def test_logits_are_float32_under_bfloat16_autocast_and_near_those_without():
    input_ids, targets = batch()
    made = model()
    with torch.autocast("cpu", torch.bfloat16):
        output = made(input_ids, targets, return_logits=True)
    assert output.logits.dtype == output.loss.dtype == torch.float32
    assert output.router.balance_loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, made(input_ids, targets).loss, rtol=2e-2, atol=0)


def test_a_model_without_a_state_refuses_a_carry():
    with pytest.raises(ValueError, match="carr"):
        model()(*batch(), carry=torch.zeros(1))


def test_a_sequence_over_the_context_limit_is_refused_with_the_limit():
    made = model(initial_context_length=16)
    with pytest.raises(ValueError, match="16.*got 19"):
        made(*batch())
    made(*(ids[:, :16] for ids in batch()))


@pytest.mark.parametrize("kind", ["attention", "experts"])
def test_an_unknown_backend_is_refused_with_the_known_ones(kind):
    with pytest.raises(ValueError, match=f"^{kind} must be auto or one of .*'flash'"):
        model(**{kind: "flash"})


# ------------------------------------------------------------------------------------ a look inside
@torch.no_grad()
def test_attention_weights_are_the_softmax_with_its_window_and_sinks_for_every_head():
    made, (input_ids, _) = model(attention="sdpa").double().eval(), batch()
    draw = torch.Generator().manual_seed(1)
    for p in made.parameters():  # weights that are far from even, sinks that differ
        p.add_(torch.randn(p.shape, generator=draw), alpha=0.3)
    layers = [block.attn for block in made.block]
    ages = torch.arange(T)[:, None] - torch.arange(T)
    found = made.attention_weights(input_ids)
    for ours, attn, window, inputs in zip(found, layers, (6, T, 6), inputs_of(made, layers, input_ids)):
        q, k, _ = attn.project(*inputs[:2])
        terms = torch.einsum("bthc,bshc->bhts", q, k.repeat_interleave(5, dim=2) / math.sqrt(4)).exp()
        terms = terms * ((ages >= 0) & (ages < window))
        total = terms.sum(-1, keepdim=True) + attn.sinks.exp()[:, None, None]
        torch.testing.assert_close(ours, (terms / total).float(), rtol=0, atol=1e-6)
        mass = attn.sink_mass(*inputs[:3]).transpose(1, 2)  # of the backend, (B, H, T)
        torch.testing.assert_close(ours.sum(-1) + mass, torch.ones(B, 15, T), rtol=0, atol=1e-5)
    assert not any(attn._forward_pre_hooks for attn in layers)
    assert model(attention_sinks=False).attention_weights(input_ids)[0].sum(-1).allclose(torch.ones(B, 15, T))
    with pytest.raises(ValueError, match="use attention=sdpa"):
        model(attention="flex").attention_weights(input_ids)


# ------------------------------------------------------------------------------------ initialisation
def test_two_models_of_one_seed_are_equal_to_the_bit_and_of_two_seeds_are_not():
    torch.manual_seed(1)
    first = model(seed=5).state_dict()
    torch.manual_seed(2)  # the global generator does not matter
    second, other = model(seed=5).state_dict(), model(seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_initial_weights_have_the_documented_spread():
    config = ModelConfig(**PRESETS["toy"], shared_experts=2, position="learned")
    made = Transformer(config, generator=torch.Generator().manual_seed(0))
    for name, p in made.named_parameters():
        if name.endswith("norm.scale"):
            assert (p == 1).all(), name
        elif name.endswith("bias"):
            assert not p.any(), name
        elif p.numel() > 1000:
            residual = name.endswith(("out.weight", "mlp2_weight"))
            expected = 0.02 / math.sqrt(2 * config.num_hidden_layers) if residual else 0.02
            assert p.std().item() == pytest.approx(expected, rel=0.1), name
            assert abs(p.mean().item()) < 0.1 * expected, name


def sinusoids_by_formula(number, size):
    """Vaswani et al. 2017, section 3.5, in plain floats; divided by its root mean square and times 0.02."""
    table = [
        [(math.cos if j % 2 else math.sin)(t / 10000 ** ((j - j % 2) / size)) for j in range(size)]
        for t in range(number)
    ]
    rms = math.sqrt(sum(x * x for row in table for x in row) / (number * size))
    return torch.tensor([[0.02 * x / rms for x in row] for row in table], dtype=torch.float64)


def test_learned_positions_begin_as_the_config_says_and_nothing_else_depends_on_it():
    starts = ("normal", "small", "sinusoidal")
    changes = dict(position="learned", initial_context_length=512)
    states = [model(position_init=start, **changes).state_dict() for start in starts]
    tables = {s: state.pop("position_embedding.weight") for s, state in zip(starts, states)}
    for state in states[1:]:
        assert all(torch.equal(tensor, state[name]) for name, tensor in states[0].items())
    limit = len(tables["normal"])
    torch.testing.assert_close(
        tables["sinusoidal"].double(), sinusoids_by_formula(limit, D), rtol=0, atol=1e-8
    )
    assert tables["sinusoidal"].square().mean().sqrt().item() == pytest.approx(0.02, rel=1e-6)
    assert tables["normal"].std().item() == pytest.approx(0.02, rel=0.05)
    torch.testing.assert_close(tables["small"], 0.1 * tables["normal"])  # std 0.002


@pytest.mark.parametrize("start", ["small", "sinusoidal"])
def test_learned_positions_get_the_gradients_of_their_tokens(start):
    """The gradient of a position's row is that of its tokens' hidden states, summed over the batch."""
    made = model(position="learned", position_init=start).double()
    table = made.position_embedding.weight
    input_ids, targets = batch()
    hidden, positions, counted = made.embed(input_ids, targets, None, None, None)
    expected = made.embedding.weight[input_ids] + table[:T]
    torch.testing.assert_close(hidden, expected, rtol=0, atol=0)
    hidden.retain_grad()
    out, _ = made.run_blocks(hidden, positions, counted, None)
    made.head(out, targets, False, None).loss.backward()
    torch.testing.assert_close(table.grad[:T], hidden.grad.sum(0), rtol=0, atol=1e-14)
    assert table.grad[:T].abs().amax(-1).min() > 0 and not table.grad[T:].any()


def test_dropout_acts_in_training_only():
    made, plain = model(dropout=0.5), model()
    made.load_state_dict(plain.state_dict())
    input_ids, _ = batch()
    assert torch.equal(made.eval()(input_ids).logits, plain.eval()(input_ids).logits)
    made.train()
    assert not torch.equal(made(input_ids).logits, made(input_ids).logits)


def test_a_tied_head_is_one_parameter_with_both_gradients():
    made = model(tie_embeddings=True)
    assert made.unembedding.weight is made.embedding.weight
    assert len(list(made.parameters())) == len(list(model().parameters())) - 1
    made(*batch()).loss.backward()
    unused = set(range(V)) - set(batch()[0].flatten().tolist())
    assert made.embedding.weight.grad[list(unused)].any()  # through the head alone
