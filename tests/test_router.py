"""The routing rules, and the router in a model: balance, z-loss, padding, selection bias, capacity."""

import math

import pytest
import small_model
import torch
from small_model import SHAPE, B, D, T, batch, figures, of_one_layer

from architecture.gptoss import ROUTERS, MLPBlock, ModelConfig
from architecture.interface import IGNORE_INDEX

E, K = 7, 2
each_rule = pytest.mark.parametrize("rule", ROUTERS)


def model(**changes):
    made = small_model.model(**{"num_hidden_layers": 2, **changes})
    with torch.no_grad():  # routers with clear preferences
        for block in made.block:
            if block.mlp.routed:
                block.mlp.gate.weight.mul_(30)
    return made


def block(training=True, **changes):
    made = MLPBlock(ModelConfig(**SHAPE | changes), layer=0, backend="loop").train(training)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in (*made.parameters(), *made.buffers()):  # the selection bias is a buffer
            p.normal_(generator=draw)
    return made


def router_logits(made, x):
    return x @ made.gate.weight.T + made.gate.bias


def rows(n=13, dtype=torch.float64):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(5), dtype=dtype)


# -------------------------------------------------------------------------------------------- the rules
# For one logit: what the choice compares, before the bias, and the expert's share of weight and probability.
FORMULAS = {
    "topk_softmax": (lambda z: z, torch.exp),
    "topk_sigmoid": (lambda z: 1 / (1 + torch.exp(-z)), lambda z: 1 / (1 + torch.exp(-z))),
}
FORMULAS["topk_sigmoid_unnormalized"] = FORMULAS["topk_sigmoid"]  # but the shares are the weights


def rule_by_loops(rule, logits, bias, k=K):
    """The formula, one token at a time -> index (N, k) as a list, weight (N, k), probability (N, E)."""
    compared, share = FORMULAS[rule]
    index, weight, probability = [], [], []
    for row in logits:
        preference = [(compared(z) + b).item() for z, b in zip(row, bias)]
        chosen = sorted(range(len(row)), key=lambda e: -preference[e])[:k]
        shares = [share(z) for z in row]
        index.append(chosen)
        whole = 1 if rule == "topk_sigmoid_unnormalized" else sum(shares[c] for c in chosen)
        weight.append(torch.stack([shares[e] / whole for e in chosen]))
        probability.append(torch.stack([s / sum(shares) for s in shares]))
    return index, torch.stack(weight), torch.stack(probability)


@each_rule
def test_a_rule_is_its_formula_in_values_and_gradients(rule):
    draw = torch.Generator().manual_seed(8)
    logits = (3 * torch.randn(13, E, generator=draw, dtype=torch.float64)).requires_grad_()
    bias = torch.randn(E, generator=draw, dtype=torch.float64)
    index, weight, log_score, choice = ROUTERS[rule](logits, bias, K)
    their_index, their_weight, their_probability = rule_by_loops(rule, logits, bias)
    assert index.tolist() == their_index and not index.requires_grad
    assert torch.equal(choice.topk(K).indices, index) and not choice.requires_grad
    assert their_index != rule_by_loops(rule, logits, 0 * bias)[0]  # the bias changes the choice
    for ours, theirs in ((weight, their_weight), (log_score.softmax(-1), their_probability)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        direction = torch.randn(ours.shape, generator=draw, dtype=torch.float64)
        gradients = (torch.autograd.grad(x, logits, direction, retain_graph=True) for x in (ours, theirs))
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", ["topk_softmax", "topk_sigmoid"])
@pytest.mark.parametrize("far", [-120.0, 120.0])
def test_a_rule_stays_exact_where_sigmoid_underflows_in_float32(rule, far):
    """sigmoid(-120) is 0 in float32, so dividing by the sum of the scores would give NaN."""
    logits = far + torch.linspace(-2, 2, E)[None]
    logits.requires_grad_()
    index, weight, log_score, _ = ROUTERS[rule](logits, torch.zeros(E), K)
    exact, shares = logits.detach().double()[0], FORMULAS[rule][1]
    expected = shares(exact[index[0]]) / shares(exact[index[0]]).sum()
    torch.testing.assert_close(weight[0].double(), expected, rtol=1e-5, atol=0)
    probability = shares(exact) / shares(exact).sum()
    torch.testing.assert_close(log_score.softmax(-1)[0].double(), probability, rtol=1e-5, atol=0)
    (weight[0, 0] + log_score.softmax(-1)[0, 0]).backward()
    assert logits.grad.isfinite().all()


@each_rule
def test_with_one_expert_per_token_only_an_unnormalized_weight_teaches_the_router(rule):
    made = model(router=rule, experts_per_token=1).train()
    made(*batch()).loss.backward()
    largest = max(layer.mlp.gate.weight.grad.abs().max().item() for layer in made.block)
    assert (largest > 1e-6) == (rule == "topk_sigmoid_unnormalized")


def test_a_new_rule_is_a_function_and_an_entry_in_the_table(monkeypatch):
    def last_k(logits, selection_bias, k):
        index = torch.arange(E - k, E).expand(len(logits), -1)
        return index, logits.new_full(index.shape, 1 / k), logits, torch.arange(E).expand_as(logits)

    with pytest.raises(ValueError, match="^router must be one of topk_softmax, .*; got"):
        model(router="last_k")
    monkeypatch.setitem(ROUTERS, "last_k", last_k)
    made = model(router="last_k", capacity_factor=1.0).train()
    output = made(*batch())
    assert output.router.load.tolist() == [[0] * (E - K) + [B * T] * K] * 2
    capacity = math.ceil(B * T * K / E)  # capacity works with the new rule, too
    torch.testing.assert_close(output.router.dropped, torch.full((2,), 1 - capacity / (B * T)))
    (output.loss + output.router.balance_loss).backward()
    assert made.block[0].mlp.gate.weight.grad.abs().max() > 0


# ------------------------------------------------------------------------------------------ balance
def test_the_balance_loss_of_a_model_is_the_mean_of_its_layers():
    made = model()
    stats = made(*batch()).router
    assert stats.load.sum(-1).tolist() == [B * T * K] * 2 and len(set(stats.load[0].tolist())) > 2
    torch.testing.assert_close(stats.mean_probability.sum(-1), torch.ones(2))
    share = stats.load / (B * T * K)
    expected = sum(E * (share[n] * stats.mean_probability[n]).sum() for n in range(2)) / 2
    torch.testing.assert_close(stats.balance_loss, expected)


# -------------------------------------------------------------------------------------- the statistics
@each_rule
def test_choice_weights_and_statistics_are_their_definitions_in_values_and_gradients(rule):
    made, x = block(router=rule).double(), rows()
    index, weight, routing = made.route(x, None)
    stats = of_one_layer(routing)
    logits = router_logits(made, x)
    chosen, their_weight, probability = rule_by_loops(rule, logits, made.selection_bias)
    z_loss = sum(torch.log(torch.exp(row).sum()) ** 2 for row in logits) / len(x)
    torch.testing.assert_close(stats.z_loss, z_loss)
    torch.testing.assert_close(stats.mean_probability[0], probability.mean(0))
    torch.testing.assert_close(routing.log_score.softmax(-1), probability)  # where entropy comes from
    torch.testing.assert_close(routing.logits, logits)
    if rule == "topk_softmax":
        assert routing.log_score is routing.logits
    assert routing.chosen.tolist() == index.tolist() == chosen
    torch.testing.assert_close(weight, their_weight)
    load = [sum(e in row for row in chosen) for e in range(E)]
    assert stats.load.tolist() == [load] and stats.dropped == 0
    expected = E * sum(n / (len(x) * K) * p for n, p in zip(load, probability.mean(0)))
    torch.testing.assert_close(stats.balance_loss, expected)
    for ours, theirs in ((stats.z_loss, z_loss), (stats.balance_loss, expected)):
        gradients = (torch.autograd.grad(v, made.gate.weight, retain_graph=True) for v in (ours, theirs))
        torch.testing.assert_close(*gradients)
    assert not stats.load.requires_grad


@each_rule
def test_statistics_count_only_positions_with_a_target(rule):
    made, x = block(training=False, router=rule).double(), rows()
    counted = torch.rand(13, generator=torch.Generator().manual_seed(6)) > 0.4
    _, _, some = made.route(x, counted)
    _, _, alone = made.route(x[counted], None)
    torch.testing.assert_close(*(figures(of_one_layer(routing)) for routing in (some, alone)))
    assert torch.equal(some.chosen[counted], alone.chosen)  # chosen has every position


def test_a_model_counts_positions_with_a_target_and_without_targets_all_positions():
    made = model()
    input_ids, targets = batch()
    targets[0, :5] = IGNORE_INDEX
    assert made(input_ids, targets).router.load.sum(-1).tolist() == [(B * T - 5) * K] * 2
    assert made(input_ids).router.load.sum(-1).tolist() == [B * T * K] * 2


def test_a_batch_without_any_target_gives_finite_statistics():
    made = model(capacity_factor=1.0).train()
    input_ids, targets = batch()
    output = made(input_ids, torch.full_like(targets, IGNORE_INDEX))
    assert all(value.isfinite().all() for value in figures(output.router)) and output.loss == 0
    (output.loss + output.router.balance_loss + output.router.z_loss).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


def test_a_dense_model_has_no_router_and_a_mixed_one_a_row_per_routed_layer():
    assert model(moe_layers=())(*batch()).router is None
    mixed = model(num_hidden_layers=3, moe_layers=(0, 2))
    assert mixed(*batch()).router.load.shape == (2, E)
    assert not any("block.1.mlp.gate" in name for name in mixed.state_dict())


def test_a_dense_layer_is_one_expert_with_weight_one():
    dense = block(moe_layers=())
    hidden = rows(B * T, torch.float32).view(B, T, D)
    out, stats = dense(hidden, None)
    inner = dense.expert_weights().activation(
        dense.norm(hidden) @ dense.mlp1_weight[0].T + dense.mlp1_bias[0]
    )
    expected = inner @ dense.mlp2_weight[0].T + dense.mlp2_bias[0]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)
    assert stats is None


# ----------------------------------------------------------------------------- the bias and the precision
def test_the_selection_bias_is_a_buffer_in_the_checkpoint_that_starts_at_zero():
    state = model().state_dict()
    for layer in range(2):
        bias = state[f"block.{layer}.mlp.selection_bias"]
        assert bias.shape == (E,) and bias.dtype == torch.float32 and not bias.any()
    assert not any("selection_bias" in name for name, _ in model().named_parameters())


@each_rule
def test_the_router_is_float32_under_bfloat16_autocast_and_in_a_bfloat16_model(rule):
    made, x = block(router=rule), rows(dtype=torch.float32)
    index, weight, routing = made.route(x, None)
    with torch.autocast("cpu", torch.bfloat16):
        index16, weight16, routing16 = made.route(x, None)
    assert weight16.dtype == torch.float32 and torch.equal(index, index16)
    torch.testing.assert_close((weight, *routing[:4]), (weight16, *routing16[:4]), rtol=0, atol=0)
    _, weight, routing = made.bfloat16().route(x.bfloat16(), None)
    every = (weight, routing.logits, routing.log_score, *figures(of_one_layer(routing)))
    assert all(value.dtype == torch.float32 for value in every)


# ------------------------------------------------------------------------------------------ capacity
@each_rule
def test_capacity_drops_the_lowest_probabilities_of_an_expert_and_reports_the_share(rule):
    factor, n = 0.6, 13
    made, x = block(capacity_factor=factor, router=rule).double(), rows(n)
    index, weight, routing = made.route(x, None)
    stats = of_one_layer(routing)
    capacity = math.ceil(factor * n * K / E)
    chosen, full, probability = rule_by_loops(rule, router_logits(made, x), made.selection_bias)
    chosen = torch.tensor(chosen)
    kept = torch.zeros_like(chosen, dtype=torch.bool)
    for e in range(E):
        ranked = sorted((chosen == e).nonzero().tolist(), key=lambda p: -probability[p[0], e])
        for token, slot in ranked[:capacity]:
            kept[token, slot] = True
    assert 0 < kept.sum() < n * K
    assert torch.equal(index, chosen.where(kept, E))
    torch.testing.assert_close(weight, full * kept)  # the remaining weights are not scaled up
    torch.testing.assert_close(stats.dropped[0], 1 - kept.double().mean())
    assert stats.load.sum() == n * K  # load is counted before the capacity limit


def test_capacity_acts_in_training_only_and_ample_room_drops_nothing():
    x = rows()
    for training, factor in ((False, 0.2), (True, float(E))):
        index, _, stats = block(training, capacity_factor=factor).double().route(x, None)
        assert (index < E).all() and stats.dropped == 0


def test_capacity_looks_ahead_in_training_as_its_help_says_and_never_in_evaluation():
    made, cut = model(capacity_factor=1.0), T // 2
    x, _ = batch()
    y = x.clone()
    y[:, cut:] = (y[:, cut:] + 1) % made.config.vocab_size
    for training in (True, False):
        made.train(training)
        with torch.no_grad():
            one, other = (made(ids, targets=ids, return_logits=True).logits[:, :cut] for ids in (x, y))
        same = torch.allclose(one, other, rtol=0, atol=1e-6)
        assert same is not training
    told = ModelConfig.__dataclass_fields__["capacity_factor"].metadata["help"]
    assert "train/loss is not causal then, val/loss is" in told


def test_capacity_ties_go_to_the_earlier_token():
    made = block(capacity_factor=0.5, experts_per_token=1).double()
    index, _, _ = made.route(rows(1).repeat(9, 1), None)  # nine times the same token
    assert (index < E).flatten().tolist() == [True] + [False] * 8


def test_padding_takes_no_capacity_and_does_not_count_in_it():
    made = block(capacity_factor=0.6).double()
    x, counted = rows(), torch.arange(13) % 3 > 0
    x[~counted] *= 10  # padding that would win every place
    index, weight, routing = made.route(x, counted)
    alone_index, alone_weight, alone = made.route(x[counted], None)
    assert torch.equal(index[counted], alone_index)
    torch.testing.assert_close(weight[counted], alone_weight)
    torch.testing.assert_close(*(figures(of_one_layer(each)) for each in (routing, alone)))
    assert (index[~counted] < E).all()  # a prompt without targets keeps its experts
