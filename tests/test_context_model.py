"""The context model: equality with the trunk, a slow reference of the state, resets, padding, bounds."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from small_model import figures

from architecture import checkpoint
from architecture.gptoss import PRESETS, ModelConfig, Transformer, visible_keys
from architecture.gptoss_context import ContextConfig, ContextTransformer
from training.config import ContextTrainConfig
from training.optimizer import parameter_groups

# every axis differs, and a segment crosses the window more than twice
SHAPE = dict(
    num_hidden_layers=3, num_experts=5, experts_per_token=2, vocab_size=37, hidden_size=20, intermediate_size=9,
    head_dim=4, num_attention_heads=6, num_key_value_heads=3, sliding_window=4, initial_context_length=16,
    rope_scaling_factor=1.0,
)  # fmt: skip
ROWS, LENGTH = 2, 11
CONFIG = ContextConfig(**SHAPE, segment_length=LENGTH, gated_update=True)


def build(attention: str = "eager", **changes) -> ContextTransformer:
    """A model in float64 whose state matters as much as its tokens."""
    generator = torch.Generator().manual_seed(0)
    model = ContextTransformer(
        dataclasses.replace(CONFIG, **changes), attention=attention, generator=generator
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return model


def draw_ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(37, shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


# ------------------------------------------------------------------------------------- beside the trunk
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_with_the_slot_hidden_from_every_token_logits_and_gradients_are_the_trunks(attention):
    model = build(attention)
    trunk = Transformer(ModelConfig(**SHAPE), attention=attention).double()
    added = model.added_parameters
    trunk.load_state_dict({n: p for n, p in model.state_dict().items() if n not in added})
    model.mask = visible_keys  # in which a negative position is padding
    ids, targets = draw_ids(ROWS, LENGTH), draw_ids(ROWS, LENGTH, seed=2)
    carry = torch.randn(ROWS, 20, dtype=torch.float64)
    ours = model(ids, targets, carry=carry, return_logits=True)
    theirs = trunk(ids, targets, return_logits=True)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.token_losses, theirs.token_losses, rtol=0, atol=1e-12)
    for one, other in zip(figures(ours.router), figures(theirs.router)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    for one, other in zip(
        ours.router.logits + ours.router.chosen, theirs.router.logits + theirs.router.chosen
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    ours_grad, theirs_grad = gradients(model, ours.loss), gradients(trunk, theirs.loss)
    for name, grad in theirs_grad.items():
        torch.testing.assert_close(ours_grad[name], grad, rtol=0, atol=1e-12)


def test_the_weights_of_the_trunk_do_not_depend_on_the_variant():
    trunk = Transformer(ModelConfig(**SHAPE), generator=torch.Generator().manual_seed(5))
    model = ContextTransformer(CONFIG, generator=torch.Generator().manual_seed(5))
    state = model.state_dict()
    for name, weight in trunk.state_dict().items():
        assert torch.equal(weight, state[name]), name
    assert state.keys() - trunk.state_dict().keys() == set(model.added_parameters)


def test_a_new_variant_is_close_to_the_trunk_and_every_added_parameter_has_a_gradient():
    config = ContextConfig(**PRESETS["toy"])
    model = ContextTransformer(config, generator=torch.Generator().manual_seed(5))
    trunk = Transformer(ModelConfig(**PRESETS["toy"]), generator=torch.Generator().manual_seed(5))
    ids, targets = (draw_ids(3, 64, seed=seed) for seed in (1, 2))
    first = model(ids, targets)
    second = model(targets, ids, carry=first.carry, return_logits=True)
    with torch.no_grad():
        alone = trunk(targets, ids, return_logits=True)
    # the slot is one more key among up to 64
    assert (second.logits - alone.logits).square().mean() < 0.2 * alone.logits.var()
    assert abs(second.loss.item() - alone.loss.item()) < 0.02
    grads = gradients(model, second.loss)
    assert all(grads[name].abs().max() > 1e-8 for name in model.added_parameters)


def test_each_added_parameter_is_counted_and_has_its_optimizer_group():
    for gated in (False, True):
        config = dataclasses.replace(CONFIG, gated_update=gated)
        model = ContextTransformer(config)
        assert config.parameter_counts()["total"] == sum(p.numel() for p in model.parameters())
    assert config.flops_per_token(LENGTH) > ModelConfig(**SHAPE).flops_per_token(LENGTH)
    groups = parameter_groups(model)
    assert {"slot", "update_gate.linear.bias"} <= groups["no_decay"].keys()
    assert {"state_projection.weight", "update_gate.linear.weight"} <= groups["decay"].keys()


def test_a_segment_has_the_same_length_by_default_in_the_model_and_in_training():
    assert ContextConfig().segment_length == ContextTrainConfig().block_size


# ------------------------------------------------------------------------------------ the specification
def reference(model: ContextTransformer, documents: list[list[list[int]]]) -> torch.Tensor:
    """Summed cross-entropy of documents given as segments of ids, one at a time and without padding.

    Token by token where the variant is concerned; the blocks are the trunk's own.
    """
    config, total = model.config, 0.0
    for segments in documents:
        state = torch.zeros(20, dtype=torch.float64)
        for ids, following in segments:
            vectors = [model.slot + model.state_projection.weight @ state]
            vectors += [model.embedding.weight[i] for i in ids]
            hidden = torch.stack(vectors)[None]
            count = len(vectors)
            rope = model.rope.tables(torch.arange(-1, count - 1)[None])
            for block, window in zip(model.block, config.windows):
                mask = torch.zeros(1, 1, count, count, dtype=torch.bool)
                for i in range(count):  # 0 is the slot, token n is n + 1
                    for j in range(i + 1):
                        near = window is None or i - j < window
                        mask[0, 0, i, j] = near or (j == 0 and config.slot_always_visible)
                hidden, _ = block(hidden, rope, mask, None, None)
            out = model.norm(hidden)[0]
            total = total + F.cross_entropy(
                out[1:] @ model.unembedding.weight.T, torch.tensor(following), reduction="sum"
            )
            new = out[-1] / (out[-1].square().mean() + 1e-5).sqrt()
            if config.gated_update:
                gate = model.update_gate.linear
                share = torch.sigmoid(gate.weight @ torch.cat((state, new)) + gate.bias)
                new = (1 - share) * state + share * new
            state = new
    return total


def lanes(documents_of_rows: list[list[list[list[int]]]], length: int):
    """The segments of each row's documents as batches, with resets; padding behind."""
    rows = [
        [(segment, n == 0) for document in documents for n, segment in enumerate(document)]
        for documents in documents_of_rows
    ]
    for step in range(max(map(len, rows))):
        ids = torch.full((len(rows), length), 36)
        targets = torch.full((len(rows), length), -100)
        reset = torch.ones(len(rows), dtype=torch.bool)
        for row, segments in enumerate(rows):
            if step < len(segments):
                (inputs, following), reset[row] = segments[step]
                ids[row, : len(inputs)] = torch.tensor(inputs)
                targets[row, : len(inputs)] = torch.tensor(following)
        yield {"input_ids": ids, "targets": targets, "reset": reset}


def documents(*lengths: int) -> list[list[list[int]]]:
    """Documents of so many targets in segments of (ids, following ids)."""
    found = []
    for number, count in enumerate(lengths):
        ids = draw_ids(count + 1, seed=10 + number).tolist()
        cuts = range(0, count, LENGTH)
        found.append(
            [(ids[c : min(c + LENGTH, count)], ids[c + 1 : min(c + LENGTH, count) + 1]) for c in cuts]
        )
    return found


YARN = {"rope_scaling_factor": 4.0, "rope_theta": 100.0, "rope_ntk_beta": 2.0, "rope_ntk_alpha": 0.5, "nope_stride": 3}  # fmt: skip


@pytest.mark.parametrize(
    "attention, changes",
    [
        ("sdpa", {}),
        ("eager", {"gated_update": False}),
        ("sdpa", {"slot_always_visible": False}),
        ("eager", YARN),
    ],
    ids=str,
)
def test_lanes_give_loss_and_gradients_of_reading_each_document_alone(attention, changes):
    model = build(attention=attention, **changes)
    texts = documents(3 * LENGTH, LENGTH + 4, 2, 2 * LENGTH + 1, 1)
    rows = [[texts[0], texts[2]], [texts[1], texts[3]], [texts[4]]]  # the third lane ends first
    total, carry = 0.0, None
    for batch in lanes(rows, LENGTH):
        out = model(**batch, carry=carry)
        total, carry = total + out.loss_sum, out.carry
    expected = reference(model, texts)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    ours, theirs = gradients(model, total), gradients(model, expected)
    assert ours.keys() == theirs.keys() == dict(model.named_parameters()).keys()
    for name in ours:
        scale = float(theirs[name].abs().max())
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-10 * max(1, scale))


@pytest.mark.parametrize("always", [True, False])
def test_sliding_layers_see_the_slot_beyond_their_window_only_if_told_to(always):
    types = ("sliding_attention",)
    model = build(slot_always_visible=always, num_hidden_layers=1, layer_types=types)
    ids, carry = draw_ids(1, LENGTH), torch.randn(2, 1, 20, dtype=torch.float64)
    with torch.no_grad():
        one, other = (model(ids, carry=state).logits[0] for state in carry)
    moved = (one - other).abs().amax(-1) > 1e-9
    # the slot counts as the position before token 0
    assert moved.tolist() == [always or place + 1 < 4 for place in range(LENGTH)]


# ----------------------------------------------------------------------------------- the state by itself
def test_a_reset_row_forgets_and_the_others_do_not():
    model = build()
    carry = torch.randn(3, 20, dtype=torch.float64)
    ids = draw_ids(3, LENGTH)
    reset = torch.tensor([False, True, False])
    with torch.no_grad():
        found = model(ids, carry=carry, reset=reset)
        kept, new = model(ids, carry=carry), model(ids)
    for part in ("logits", "carry"):
        for row in range(3):
            expected = getattr(new if row == 1 else kept, part)[row]
            torch.testing.assert_close(getattr(found, part)[row], expected, rtol=0, atol=1e-12)
        assert not torch.allclose(getattr(new, part)[0], getattr(kept, part)[0])


def test_the_next_state_comes_from_the_last_target_and_a_row_of_padding_keeps_its_state():
    model = build()
    carry = torch.randn(2, 20, dtype=torch.float64)
    ids, targets = draw_ids(2, LENGTH), draw_ids(2, LENGTH, seed=2)
    targets[0, 7:], targets[1] = -100, -100
    with torch.no_grad():
        found = model(ids, targets, carry=carry).carry
        alone = model(ids[:1, :7], targets[:1, :7], carry=carry[:1]).carry
    torch.testing.assert_close(found[0], alone[0], rtol=0, atol=1e-12)
    assert torch.equal(found[1], carry[1])


@pytest.mark.parametrize("gated_update", [True, False])
def test_the_state_stays_bounded_over_many_segments(gated_update):
    model, carry = build(gated_update=gated_update), None
    with torch.no_grad():
        model.norm.scale.mul_(1e6)
        for seed in range(12):
            carry = model(draw_ids(ROWS, LENGTH, seed=seed), carry=carry).carry
            assert (carry.norm(dim=1) <= 20**0.5 * (1 + 1e-9)).all()
    assert (carry.norm(dim=1) > 0.1).all()


def test_a_gradient_reaches_a_token_of_an_earlier_segment_through_the_state_alone():
    model = build()
    first, second = torch.full((1, LENGTH), 3), torch.full((1, LENGTH), 4)
    carry = model(first).carry
    grads = gradients(model, model(second, second, carry=carry).loss)
    assert grads["embedding.weight"][3].abs().max() > 1e-6
    grads = gradients(model, model(second, second, carry=carry.detach()).loss)
    assert grads["embedding.weight"][3].abs().max() == 0


def test_without_carrying_the_state_no_segment_depends_on_another():
    model = build(carry_state=False)
    ids, carry = draw_ids(ROWS, LENGTH), torch.randn(ROWS, 20, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(model(ids, carry=carry).logits, model(ids).logits)
        again = build()(ids).logits  # the slot is there without a state, too
        assert torch.equal(model(ids).logits, again)


@pytest.mark.parametrize("cached", [True, False])
def test_padding_on_the_left_changes_nothing(cached):
    model, ids = build(), draw_ids(1, 4)
    carry = torch.randn(2, 20, dtype=torch.float64)
    rows = torch.cat((F.pad(ids, (3, 0)), draw_ids(1, 7, seed=4)))
    positions = torch.stack((torch.arange(-3, 4), torch.arange(7)))  # as generation/decode.py numbers them
    with torch.no_grad():
        cache = model.new_cache(2) if cached else None
        found = model(rows, positions=positions, cache=cache, carry=carry).logits
        alone = model(ids, carry=carry[:1]).logits
    torch.testing.assert_close(found[:1, 3:], alone, rtol=0, atol=1e-12)


def test_attention_weights_have_the_slot_in_front_and_see_the_carry():
    model, ids = build(), draw_ids(ROWS, LENGTH)
    carry = torch.randn(ROWS, 20, dtype=torch.float64)
    weights = model.attention_weights(ids, carry=carry)
    assert [w.shape for w in weights] == [(ROWS, 6, 1 + LENGTH, 1 + LENGTH)] * 3
    assert (weights[0][..., 1:, 0] > 0).all()  # every token sees the slot, from beyond the window, too
    assert not torch.equal(weights[0], model.attention_weights(ids)[0])


def test_routing_statistics_are_of_the_tokens_and_not_of_the_slot():
    model = build()
    router = model(draw_ids(ROWS, LENGTH)).router
    assert float(router.load.sum()) == ROWS * LENGTH * 2 * 3  # two experts in each of three layers
    assert all(x.shape[:2] == (ROWS, LENGTH) for x in (*router.logits, *router.chosen))


# ------------------------------------------------------------------------------------------------- errors
def with_cache_of(model: ContextTransformer, rows: int) -> None:
    with torch.no_grad():
        model(draw_ids(2, 3), positions=torch.arange(3).expand(2, 3), cache=model.new_cache(rows))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m(draw_ids(1, LENGTH + 1)), r"a segment may have at most 11 tokens .* got 12"),
        (lambda m: m(draw_ids(2, 3), carry=torch.zeros(3, 20)), r"each of 2 rows, got \(3, 20\)"),
        (lambda m: m(draw_ids(2, 3), cache=m.new_cache(2)), "positions are required"),
        (lambda m: with_cache_of(m, 3), "the cache was made for 3 rows, got 2"),
        (
            lambda m: m(draw_ids(1, 3), positions=torch.arange(3)[None], cache=m.new_cache(1)),
            "takes no gradient",
        ),
    ],
)
def test_wrong_input_is_refused_with_a_message(call, message):
    with pytest.raises(ValueError, match=message):
        call(build())


def test_a_segment_length_over_the_context_limit_and_flex_are_refused():
    with pytest.raises(ValueError, match=r"segment_length must be between 1 and .* \(16\), got 17"):
        ContextConfig(**SHAPE, segment_length=17)
    with pytest.raises(ValueError, match="attention=flex cannot mask the slot; use attention=sdpa"):
        ContextTransformer(CONFIG, attention="flex")


def test_trunk_weights_need_exactly_the_added_parameters():
    model, trunk = build(), Transformer(ModelConfig(**SHAPE)).double()
    before = {name: model.state_dict()[name].clone() for name in model.added_parameters}
    checkpoint.load_weights(model, trunk.state_dict(), "trunk.pt", added=model.added_parameters)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before.get(name, trunk.state_dict().get(name))), name
    with pytest.raises(ValueError, match="lacks .* of this model .*first: slot"):
        checkpoint.load_weights(model, trunk.state_dict(), "trunk.pt", added=model.added_parameters[1:])
