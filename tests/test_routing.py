"""The statistics of routers, experts and sinks in an evaluation and in a step, against independent computations."""

import contextlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import inputs_of

from architecture.gptoss import ModelConfig, Transformer
from architecture.interface import IGNORE_INDEX, LayerRouting, RouterStats, load_share
from training.config import TrainConfig
from training.memory import checkpoint_blocks
from training.monitor import updates
from training.monitor.instruments import (
    kinds_markdown,
    kinds_pictures,
    kinds_table,
    load_figures,
    load_picture,
    margin_record,
    position_record,
    router_record,
    sink_picture,
    sink_record,
    update_record,
)
from training.monitor.probes import sink_mass
from training.monitor.routing import (
    MARGINS,
    RoutingSums,
    dead_experts,
    flip_rate,
    max_violation,
    share_by_kind,
)
from training.monitor.token_kinds import KINDS
from training.monitor.updates import ExpertUpdates
from training.optimizer import build_optimizers, parameter_kinds
from training.step import accumulate_gradients, apply_gradients
from training.validation import evaluate

L, E, K, V, B, T, HEADS = 3, 7, 2, 29, 4, 11, 6
SHAPE = dict(
    num_hidden_layers=L, num_experts=E, experts_per_token=K, vocab_size=V, hidden_size=20, intermediate_size=9,
    head_dim=4, num_attention_heads=HEADS, num_key_value_heads=3, sliding_window=5, initial_context_length=16,
    rope_scaling_factor=1.0, moe_layers=(0, 2),
)  # fmt: skip
LAYERS = (0, 2)


def model(**changes) -> Transformer:
    generator = torch.Generator().manual_seed(0)
    made = Transformer(ModelConfig(**SHAPE | changes), generator=generator).train()
    with torch.no_grad():  # weights at which routers decide and sinks differ
        for parameter in made.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return made


def batches(number=3):
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(number):
        ids = torch.randint(V, (B - (index == number - 1), T), generator=generator)
        targets = ids.roll(-1, 1)
        targets[0, 7 - index :] = IGNORE_INDEX
        made.append({"input_ids": ids, "targets": targets})
    return made


def look(made, number=3, keep_choices=True):
    return evaluate(
        made, batches(number), torch.ones(V, dtype=torch.int64), device=torch.device("cpu"),
        autocast=contextlib.nullcontext, eot=0, packing="packed", keep_choices=keep_choices,
    ).routing  # fmt: skip


@torch.no_grad()
def scored_logits(made):
    """Router logits of every position that has a target, (N, E) for each routed layer, and its token."""
    logits, tokens = [], []
    for batch in batches():
        counted = batch["targets"] != IGNORE_INDEX
        layers = [made.block[n].mlp for n in LAYERS]
        inputs = inputs_of(made, layers, batch["input_ids"])
        logits.append([mlp.gate(mlp.norm(hidden))[counted] for mlp, (hidden, _) in zip(layers, inputs)])
        tokens.append(batch["input_ids"][counted])
    return [torch.cat(rows) for rows in zip(*logits)], torch.cat(tokens)


def test_load_entropy_margin_and_choices_are_those_of_the_router_logits():
    made = model()
    found, (logits, tokens) = look(made), scored_logits(made)
    assert found.layers == LAYERS and torch.equal(found.tokens.long(), tokens)
    for row, layer in enumerate(logits):
        probability = layer.double().softmax(-1)
        chosen = layer.topk(K).indices
        entropy = -(probability * probability.log()).sum(-1).mean() / math.log(E)
        best = probability.sort(descending=True).values
        assert found.load[row].tolist() == torch.bincount(chosen.flatten(), minlength=E).tolist()
        torch.testing.assert_close(found.entropy[row], entropy, rtol=1e-5, atol=0)
        torch.testing.assert_close(found.margin[row], (best[:, 0] - best[:, 1]).mean(), rtol=1e-5, atol=0)
        assert torch.equal(found.choices[row].long(), chosen.sort().values)


def test_choices_are_kept_only_on_request_and_a_dense_model_has_no_routing():
    kept, left = look(model()), look(model(), keep_choices=False)
    assert left.choices is None and left.tokens is None and torch.equal(kept.load, left.load)
    assert look(model(moe_layers=())) is None


def test_one_expert_has_neither_entropy_nor_margin():
    found = look(model(num_experts=1, experts_per_token=1))
    assert found.entropy.tolist() == [0, 0] and found.margin.tolist() == [0, 0]


def test_the_flip_rate_counts_tokens_whose_set_of_experts_changed_whatever_the_order():
    before = torch.tensor([[[0, 1], [2, 3], [0, 4], [1, 5]], [[0, 1], [0, 1], [0, 1], [0, 1]]])
    now = torch.tensor([[[0, 1], [2, 4], [0, 4], [2, 6]], [[0, 1], [0, 1], [0, 1], [0, 2]]])
    assert flip_rate(before, now).tolist() == [0.5, 0.25]
    made = model()
    first = look(made)
    assert flip_rate(first.choices, look(made).choices).tolist() == [0, 0]
    with torch.no_grad():
        made.block[2].mlp.gate.bias[3] += 100.0
    changed = flip_rate(first.choices, look(made).choices)
    had_it = (first.choices[1] == 3).any(-1).double().mean()
    assert changed[0] == 0 and changed[1] == pytest.approx(1 - float(had_it))


def test_the_share_of_a_kind_is_counted_token_by_token():
    found = look(model())
    kinds = torch.arange(V) % len(KINDS)
    kinds[kinds == 4] = 3  # a kind that does not occur
    share, counts = share_by_kind(found, kinds, len(KINDS))
    expected = torch.zeros(len(LAYERS), len(KINDS), E, dtype=torch.float64)
    for layer in range(len(LAYERS)):
        for token, chosen in zip(found.tokens.tolist(), found.choices[layer].tolist()):
            for expert in chosen:
                expected[layer, kinds[token], expert] += 1
    assert counts.tolist() == (expected[0].sum(-1) / K).tolist() and counts[4] == 0
    torch.testing.assert_close(share, expected / expected.sum(-1, keepdim=True).clamp(min=1))
    table = kinds_table(found, kinds)
    assert "function word" not in table["kinds"] and len(table["kinds"]) == len(KINDS) - 1
    text = kinds_markdown(table)
    assert text.count("| layer ") == 2 and f"| {KINDS[0]} | {counts[0]} |" in text
    bold = sum(x * E >= 2 for layer in table["share"] for row in layer for x in row)
    assert text.count("**") == 2 * bold > 0


def test_the_record_names_layers_and_leaves_out_values_that_need_an_earlier_evaluation():
    first, later = look(model()), look(model())
    record = router_record(first, None, None)
    names = {tag.rsplit("/", 1)[0] for tag in record}
    assert names == {"moe/entropy", "moe/dead_experts", "moe/margin"}
    assert {tag.rsplit("/", 1)[1] for tag in record} == {"layer_00", "layer_02"}
    trained = torch.tensor([[2.0, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]])
    record = router_record(later, first.choices, trained)
    assert record["moe/flip_rate/layer_02"] == 0
    assert record["moe/max_violation_since_eval/layer_00"] == pytest.approx(1.0)
    assert record["moe/max_violation_since_eval/layer_02"] == 0


def test_load_figures_are_mean_and_worst_violation_and_the_number_of_dead_experts():
    """A violation is the excess of the busiest expert; an expert is dead below one percent of an even share."""
    load = torch.tensor([[10.0, 10, 10, 10], [40, 0, 0, 0], [20, 19.8, 0.2, 0.05]])
    assert max_violation(load).tolist() == pytest.approx([0, 3, 4 * 20 / 40.05 - 1])
    assert dead_experts(load).tolist() == [0, 3, 1]
    figures = load_figures(look(model())._replace(load=load))
    assert figures["max_violation"] == pytest.approx((0 + 3 + 4 * 20 / 40.05 - 1) / 3)
    assert figures["max_violation_worst_layer"] == 3 and figures["dead_experts"] == 4
    assert load_figures(None) == {}  # a dense model


def test_losses_by_position_are_grouped_in_powers_of_two():
    mean = torch.arange(11, dtype=torch.float64)
    record = position_record(torch.stack((3 * mean, torch.full((11,), 3)), dim=1))
    tags = [f"val/loss_by_position/from_{n:04d}" for n in (0, 1, 2, 4, 8)]
    assert record == dict(zip(tags, [0.0, 1.0, 2.5, 5.5, 9.0]))
    unequal = torch.tensor([[2.0, 2], [0, 0], [9, 3], [5, 1]])  # one token far out weighs as one
    assert position_record(unequal, "place") == {"place/from_0000": 1.0, "place/from_0002": 3.5}


# ----------------------------------------------------------------------------------------- of a step
STEP = TrainConfig(dataset="none", balance="none", z_loss_coef=0.1, lr=1e-2, grad_clip=0.3)


def double(**changes) -> Transformer:
    return model(**changes).double()


def measured(made, parts, cfg=STEP, **options):
    return accumulate_gradients(
        made, parts, cfg, previous_share=None, carry=None, token_bytes=torch.ones(V, dtype=torch.int64),
        autocast=contextlib.nullcontext, **options,
    )  # fmt: skip


def with_logits(made, parts):
    """Each micro-batch's output, the logits of its routers and which of its tokens count, as the model makes them."""
    for batch in parts:
        out = made(**batch)
        yield (
            out,
            [layer.logits for layer in out.router.routing],
            (batch["targets"] != IGNORE_INDEX).flatten(),
        )


@pytest.mark.parametrize("rule", ["topk_softmax", "topk_sigmoid"])
def test_the_margin_of_the_choice_is_that_of_the_values_that_decide(rule):
    made, parts = double(router=rule, num_experts=E), batches()
    bias = 0.3 * np.random.default_rng(2).standard_normal((len(LAYERS), E))
    for row, layer in enumerate(LAYERS):
        made.block[layer].mlp.selection_bias.copy_(torch.from_numpy(bias[row]))
    found = measured(made, parts).margins
    assert found.shape == (len(LAYERS), 1 + len(MARGINS))
    expected, tokens = np.zeros(found.shape), 0
    for _, logits, counted in with_logits(made, parts):
        tokens += (here := int(counted.sum()))
        for row, layer in enumerate(logits):
            z = layer.detach().numpy()[counted.numpy()]
            value = np.sort((z if rule == "topk_softmax" else 1 / (1 + np.exp(-z))) + bias[row])[:, ::-1]
            margin = value[:, K - 1] - value[:, K]
            figures = [np.sort(margin)[(here - 1) // 2], *((margin < bound).mean() for bound in MARGINS)]
            expected[row] += here * np.array(figures)
    np.testing.assert_allclose(found.numpy(), expected / tokens, rtol=1e-5)
    tags = margin_record(LAYERS, found)
    assert tags["moe/choice_margin_under_0.05/layer_02"] == pytest.approx(expected[1, 2] / tokens, rel=1e-5)
    assert len(tags) == 8 and 0 < tags["moe/choice_margin_under_0.1/layer_00"] < 1


def test_a_choice_of_all_experts_has_no_margin_and_a_batch_without_targets_none_that_counts():
    assert margin_record(LAYERS, measured(model(experts_per_token=E), batches()).margins) == {}
    parts = batches()
    parts[1]["targets"] = torch.full_like(parts[1]["targets"], IGNORE_INDEX)
    without = measured(model(), [parts[0], parts[2]]).margins
    torch.testing.assert_close(measured(model(), parts).margins, without)


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_gradients_of_router_logits_are_those_of_the_summed_loss_in_any_number_of_micro_batches(
    checkpointing,
):
    """By autograd.grad of one objective, written here, with respect to the logits that the model returned."""
    made, parts = double(), batches()
    parts[0]["targets"][1, 3] = IGNORE_INDEX  # later tokens attend to it, so it has a gradient
    squares, numbers, tokens = np.zeros(len(LAYERS)), 0, sum(int((b["targets"] != -100).sum()) for b in parts)
    for out, logits, counted in with_logits(made, parts):
        z_losses = [z.logsumexp(-1).square()[counted].mean() for z in logits]
        objective = out.loss_sum + int(counted.sum()) * STEP.z_loss_coef * sum(z_losses) / len(LAYERS)
        gradients = torch.autograd.grad(objective, logits)
        squares += [np.square(g.numpy()[counted.numpy()]).sum() for g in gradients]
        numbers += int(counted.sum()) * E
    checkpoint_blocks(made, checkpointing)
    found = measured(made, parts).logit_gradients
    np.testing.assert_allclose(found.numpy(), np.sqrt(squares / numbers), rtol=1e-9)
    assert tokens == measured(made, parts, measured=False).tokens
    compiled = measured(made, parts, replace(STEP, compile="on"))
    assert compiled.logit_gradients is None and compiled.margins is not None
    unmeasured = measured(made, parts, measured=False)
    assert unmeasured.margins is None and unmeasured.logit_gradients is None


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_update_to_weight_ratio_is_that_of_each_expert_and_its_percentiles_those_of_all(optimizer):
    made = model(intermediate_size=8)
    optimizers = build_optimizers(made, replace(STEP, optimizer=optimizer))
    before = {name: p.detach().numpy().copy() for name, p in made.named_parameters()}
    result, looking = measured(made, batches()), ExpertUpdates(made)
    apply_gradients(parameter_kinds(made), optimizers, result, 0.3)
    found, after = looking.ratios().numpy(), dict(made.named_parameters())
    expected = np.zeros((len(LAYERS), 2, E))
    for row, layer in enumerate(LAYERS):  # layer 1 is dense, and has a matrix of the same name
        for column in range(2):
            name = f"block.{layer}.mlp.mlp{column + 1}_weight"
            for expert, (old, new) in enumerate(zip(before[name], after[name].detach().numpy())):
                expected[row, column, expert] = np.sqrt(((new - old) ** 2).mean() / (old**2).mean())
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    record = update_record(looking.ratios())
    for column, matrix in enumerate(("mlp1", "mlp2")):
        for share, name in ((10, "p10"), (50, "median"), (90, "p90")):
            percentile = np.percentile(expected[:, column], share)
            assert record[f"moe/update_to_weight/{matrix}_{name}"] == pytest.approx(percentile, rel=1e-4)
    assert len(record) == 6


def test_a_large_model_is_measured_by_every_nth_row_and_a_model_without_experts_not_at_all(monkeypatch):
    made = model()
    values = 2 * E * (2 * 9 * 20 + 20 * 9)
    monkeypatch.setattr(updates, "MOST_VALUES", values // 3 + 1)  # every third row is just few enough
    looking = ExpertUpdates(made)
    assert sum(old.numel() for layer in looking.before for old in layer) <= values // 3 + 2 * 2 * E * 20
    with torch.no_grad():
        made.block[0].mlp.mlp1_weight[:, 1::3] += 7  # rows that are not looked at
        made.block[2].mlp.mlp2_weight[4, ::3] *= 1.5
    expected = torch.zeros(2, 2, E)
    expected[1, 1, 4] = 0.5
    torch.testing.assert_close(looking.ratios(), expected)
    assert ExpertUpdates(model(moe_layers=())).ratios() is None
    frozen = model().requires_grad_(False)
    assert ExpertUpdates(frozen).ratios() is None


def test_an_expert_of_zeros_has_the_ratio_0_if_it_stays_and_an_infinite_one_if_not():
    made = model()
    mlp1, mlp2 = made.block[0].mlp.mlp1_weight, made.block[2].mlp.mlp2_weight
    with torch.no_grad():
        mlp1[1] = mlp2[3] = 0
        looking = ExpertUpdates(made)
        mlp2[3, 0] = 1e-9
    expected = torch.zeros(2, 2, E)
    expected[1, 1, 3] = torch.inf
    assert torch.equal(looking.ratios(), expected)
    record = update_record(looking.ratios())
    assert record["moe/update_to_weight/mlp1_p90"] == record["moe/update_to_weight/mlp2_median"] == 0
    with torch.no_grad():
        mlp1[2, 0] = torch.nan
    assert looking.ratios()[0, 0].isnan().tolist() == [expert == 2 for expert in range(E)]  # it is told


# ------------------------------------------------------------------------------------------- sinks
@torch.no_grad()
def mass_by_hand(made, batch):
    """Softmax with the sink as one more column, layer by layer, from the blocks' real inputs."""
    counted, masses = batch["targets"] != IGNORE_INDEX, {}
    layers = [block.attn for block in made.block]
    for attn, (hidden, rope, mask, _) in zip(layers, inputs_of(made, layers, batch["input_ids"])):
        q, k, _ = attn.project(hidden, rope)
        k = k.repeat_interleave(HEADS // 3, dim=2)
        scores = torch.einsum("bthc,bshc->bhts", q, k) / math.sqrt(4)
        scores = scores.masked_fill(~mask, -torch.inf)
        column = attn.sinks.view(1, HEADS, 1, 1).expand(*scores.shape[:3], 1)
        share = torch.cat((scores, column), -1).softmax(-1)[..., -1]  # (B, H, T)
        masses[attn.layer] = share.transpose(1, 2)[counted].mean(0)
    return masses


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_mass_on_each_sink_is_its_column_of_the_softmax(attention):
    made = Transformer(ModelConfig(**SHAPE), attention=attention)
    made.load_state_dict(model().state_dict())
    (batch,) = batches(1)
    made.train()
    found, expected = sink_mass(made, batch, contextlib.nullcontext), mass_by_hand(made, batch)
    assert list(found) == [0, 1, 2]
    for n in found:
        torch.testing.assert_close(found[n], expected[n], rtol=1e-4, atol=1e-6)
    assert sink_record(found)["attention/sink_mass/layer_02/head_05"] == pytest.approx(
        float(expected[2][5]), rel=1e-4
    )


def test_the_probe_restores_the_mode_leaves_no_hook_and_is_empty_without_sinks():
    made = model().train()
    (batch,) = batches(1)
    sink_mass(made, batch, contextlib.nullcontext)
    assert made.training and not any(m._forward_pre_hooks for m in made.modules())
    assert sink_mass(model(attention_sinks=False), batch, contextlib.nullcontext) == {}


# ---------------------------------------------------------------------------------------- pictures
def test_pictures_depend_on_their_data():
    found = look(model())
    even = found._replace(load=torch.ones_like(found.load))
    pixels, white = (load_picture(load_share(x.load), x.layers)["moe/load"] for x in (found, even))
    assert pixels.dtype == white.dtype and pixels.shape[2] == 3 and min(pixels.shape[:2]) > 80
    colored = [float((p.max(-1) - p.min(-1) > 60).mean()) for p in (pixels, white)]
    assert colored[0] > 2 * colored[1]  # an even load is white but for the colour bar
    table = kinds_table(found, torch.arange(V) % len(KINDS))
    by_layer = kinds_pictures(table)
    assert list(by_layer) == ["moe/token_kinds/layer_00", "moe/token_kinds/layer_02"]
    assert all(p.shape[0] > pixels.shape[0] for p in by_layer.values())
    assert not np.array_equal(*by_layer.values())
    mass = sink_mass(model(), batches(1)[0], contextlib.nullcontext)
    low, high = (sink_picture(m) for m in ({n: 0 * m for n, m in mass.items()}, mass))
    assert not np.array_equal(*low.values(), *high.values())


def test_an_expert_beyond_the_32767th_keeps_its_number():
    experts, last = 40_001, 40_000
    logits = torch.zeros(1, 1, experts)
    chosen = torch.tensor([[[last, 3]]])
    routing = LayerRouting(logits[0], logits[0], chosen[0], torch.zeros(()), None, logits[0])
    router = RouterStats(routing=(routing,), layers=(0,), logits=(logits,), chosen=(chosen,))
    sums = RoutingSums(keep_choices=True)
    sums.add(router, torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool))
    found = sums.result()
    assert found.choices.flatten().tolist() == [3, last]
    share, _ = share_by_kind(found, torch.zeros(1, dtype=torch.int64), 1)
    assert share[0, 0, last] == 0.5
