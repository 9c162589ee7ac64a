"""GPT-2: its config, the contract of forward, and parity with transformers and with gptoss.py under GPT-2's settings."""

import ast
import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from architecture import gpt2, gptoss, registry
from architecture.generation.decode import generate
from architecture.generation.sampling import row_generators
from architecture.gpt2 import ATTENTION_BACKENDS, GPT2, PRESETS, ModelConfig
from architecture.gpt2_hugging_face import from_hugging_face, to_hugging_face
from architecture.interface import IGNORE_INDEX

# no two axes are equal; 37 ids of which the last 6 are padding
B, T, V, USED = 2, 19, 37, 31
SHAPE = dict(num_hidden_layers=3, vocab_size=V, used_vocab_size=USED, hidden_size=20, intermediate_size=33)
SHAPE |= dict(num_attention_heads=5, initial_context_length=29)


def small(**changes):
    return ModelConfig(**{**SHAPE, **changes})


def random_model(dtype=torch.float64, attention="auto", **changes):
    """A model with weights far from their initial values: unit biases, uneven norms."""
    model = GPT2(small(**changes), attention=attention)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0.0, 1.0, generator=draw)
            if name.endswith("norm.weight"):
                p.mul_(0.3).add_(1.0)
            elif not name.endswith("bias") and "embedding" not in name:
                p.mul_(p.shape[-1] ** -0.5)
            elif "embedding" in name:
                p.mul_(0.5)
    return model.to(dtype).eval()


def batch(rows=B, length=T):
    draw = torch.Generator().manual_seed(3)
    return tuple(torch.randint(USED, (rows, length), generator=draw) for _ in range(2))


def gradients(model, loss):
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


# ------------------------------------------------------------------------------------------- the config
@pytest.mark.parametrize(
    "changes, told",
    [
        (dict(num_hidden_layers=0), "num_hidden_layers must be at least 1; got 0 (default: 12)"),
        (
            dict(hidden_size=21),
            "hidden_size must be a multiple of num_attention_heads (5), got 21; set hidden_size=25",
        ),
        (dict(dropout=1.0), "dropout must be below 1; got 1.0 (default: 0.0)"),
        (dict(used_vocab_size=38), "used_vocab_size must be at most vocab_size (37), got 38; set"),
        (
            dict(position="none", position_init="small"),
            "position_init must be normal with position=none, which has no table of positions, got 'small'; set",
        ),
        (
            dict(hidden_size=25, position_init="sinusoidal"),
            "hidden_size must be even for position_init=sinusoidal, because its sines and cosines are pairs, got "
            "25; set hidden_size=30",
        ),
    ],
)
def test_a_refusal_names_the_field_the_rule_the_value_and_the_way_out(changes, told):
    with pytest.raises(ValueError) as error:
        small(**changes)
    assert str(error.value).startswith(told)


def test_a_preset_survives_json():
    for preset in PRESETS:
        config = registry.build_config("gpt2", preset)
        assert registry.config_from_dict("gpt2", json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    "changes", [{}, dict(tie_embeddings=False), dict(position="none"), PRESETS["gpt2"]], ids=repr
)
def test_the_counts_are_those_of_the_built_model(changes):
    """Active is counted here by walking the parameters, not by a formula."""
    config = small(**changes)
    with torch.device("meta"):
        model = registry.build_model("gpt2", config)
    counts = config.parameter_counts()
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    tables = [
        p for name, p in model.named_parameters() if name.endswith("embedding.weight") and "un" not in name
    ]
    assert counts["embedding"] == sum(table.numel() for table in tables)
    assert len(tables) == (1 if config.position == "none" else 2)
    inside = sum(p.numel() for name, p in model.named_parameters() if "embedding" not in name)
    assert counts["active"] == inside + model.unembedding.weight.numel()


@pytest.mark.parametrize("preset", ["toy", "medium", "large"])
def test_a_preset_has_as_many_active_parameters_as_the_one_it_is_compared_with(preset):
    ours, theirs = (registry.build_config(name, preset) for name in ("gpt2", "gptoss"))
    active, wanted = (config.parameter_counts()["active"] for config in (ours, theirs))
    assert active == pytest.approx(wanted, rel=0.02)
    for name in (
        *(PRESETS[preset].keys() - {"intermediate_size"}),
        "head_dim",
        "context_limit",
        "used_vocab_size",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name


OFFICIAL = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


@pytest.mark.parametrize("preset, official", OFFICIAL.items())
def test_the_official_presets_have_the_official_sizes(preset, official):
    config = registry.build_config("gpt2", preset)
    padding = (config.vocab_size - config.used_vocab_size) * config.hidden_size
    assert config.used_vocab_size == 50257 and config.vocab_size % 64 == 0
    assert config.parameter_counts()["total"] - padding == official


def test_flops_per_token_is_what_torch_counts_but_for_three_definitions():
    """torch counts matrix products only, computes masked pairs as well, and has no entry for addmm_, in
    which the head adds up its weight gradient: 2 of 6 FLOPs a value."""
    from torch.utils.flop_counter import FlopCounterMode

    model = GPT2(small(used_vocab_size=None), attention="eager")
    with FlopCounterMode(display=False) as counter:
        model(*batch()).loss.backward()
    counted = counter.get_total_flops() / (B * T)
    vectors = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    masked_pairs = 3 * 12 * 20 * (T - (T + 1) / 2)
    expected = model.config.flops_per_token(T) - 6 * vectors + masked_pairs - 2 * V * 20
    assert counted == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------ the contract
def test_the_baseline_imports_the_interface_and_no_code_of_gptoss():
    tree = ast.parse(Path(gpt2.__file__).read_text())
    imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    ours = {name for name in imported if name.startswith("architecture")}
    assert ours == {"architecture", "architecture.interface", "architecture.generation.cache"}


def test_the_fast_attention_gives_the_same_values_and_gradients_as_the_specification():
    ids, targets = batch()
    targets[0, :3] = IGNORE_INDEX
    positions = torch.arange(T) - torch.tensor([[0], [4]])
    for place in ({}, {"positions": positions}):
        outputs, grads = [], []
        for attention in ATTENTION_BACKENDS:
            model = random_model(attention=attention)
            outputs.append(model(ids, targets, return_logits=True, **place))
            grads.append(gradients(model, outputs[-1].loss))
        torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=0, atol=1e-12)
        torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_a_config_from_before_the_switches_of_positions_is_the_gpt2_of_today():
    old = asdict(small())
    assert (old.pop("position"), old.pop("position_init")) == ("learned", "normal")
    assert registry.config_from_dict("gpt2", old) == small()


def test_a_row_that_is_told_no_positions_counts_from_zero():
    ids, targets = batch()
    model, same = random_model(), random_model()
    output = model(ids, targets, return_logits=True)
    told = same(ids, targets, positions=torch.arange(T)[None], return_logits=True)
    torch.testing.assert_close(output.logits, told.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(model, output.loss), gradients(same, told.loss))


def test_the_loss_is_the_cross_entropy_of_the_logits():
    ids, targets = batch()
    targets[1, 4:9] = IGNORE_INDEX
    model = random_model(torch.float32)
    with_targets, asked = model(ids, targets), model(ids, targets, return_logits=True)
    assert with_targets.logits is None and with_targets.num_targets == B * T - 5
    assert with_targets.router is None and with_targets.carry is None
    assert asked.logits.shape == (B, T, V) and asked.logits.dtype == torch.float32
    torch.testing.assert_close(asked.logits, model(ids).logits)
    losses = F.cross_entropy(asked.logits.flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(with_targets.token_losses, losses.view(B, T))
    torch.testing.assert_close(with_targets.loss, losses.sum() / (B * T - 5))
    assert model(ids, targets, return_logits=False).logits is None


def test_padded_ids_get_no_probability_in_loss_logits_and_gradients():
    model = random_model(tie_embeddings=False)
    with torch.no_grad():
        model.unembedding.weight[USED:] = 100.0  # would have all the probability
    ids, targets = batch()
    output = model(ids, targets, return_logits=True)
    assert (output.logits[..., USED:] == -torch.inf).all()
    expected = F.cross_entropy(output.logits[..., :USED].flatten(0, 1), targets.flatten())
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert not model.unembedding.weight.grad[USED:].any()
    assert model.unembedding.weight.grad[:USED].any(1).all()


def test_attention_sees_all_earlier_tokens_and_no_later_one():
    ids, _ = batch()
    model = random_model()
    changed = ids.clone()
    changed[:, 8] = (changed[:, 8] + 1) % USED
    difference = (model(ids).logits - model(changed).logits)[..., :USED].abs().amax((0, 2))
    assert (difference > 1e-13).nonzero().flatten().tolist() == list(range(8, T))


def test_logits_are_float32_under_bfloat16_autocast_and_near_those_without():
    ids, targets = batch()
    model = GPT2(small(), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(ids, targets, return_logits=True)
    assert output.logits.dtype == output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, model(ids, targets).loss, rtol=2e-2, atol=0)


def test_what_the_model_cannot_do_is_refused_by_name():
    model, (ids, targets) = random_model(), batch()
    with pytest.raises(ValueError, match="carries nothing"):
        model(ids, targets, carry=torch.zeros(1))
    with pytest.raises(ValueError, match="may have 29 tokens .initial_context_length., got 30"):
        model(*batch(length=30))
    with pytest.raises(ValueError, match="context limit .29., got 30"):
        model.new_cache(2, 30)
    with pytest.raises(ValueError, match="^attention must be auto or one of eager, sdpa, got 'flex'"):
        GPT2(small(), attention="flex")
    with pytest.raises(ValueError, match="^experts must be auto or none, as gpt2 is dense, got 'loop'"):
        GPT2(small(), experts="loop")


# ------------------------------------------------------------------------------------ initialisation
def test_two_models_of_one_seed_are_equal_to_the_bit_and_of_two_seeds_are_not():
    first, second, other = (
        GPT2(small(), generator=torch.Generator().manual_seed(seed)).state_dict() for seed in (5, 5, 6)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_initial_weights_have_the_documented_spread_and_an_untrained_model_the_uniform_loss():
    model = GPT2(ModelConfig(**PRESETS["toy"]), generator=torch.Generator().manual_seed(0))
    for name, p in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (p == 1).all(), name
        elif name.endswith("bias"):
            assert not p.any(), name
        else:
            writes = name.endswith(("out.weight", "mlp2.weight"))
            expected = 0.02 / math.sqrt(2 * 4) if writes else 0.02
            assert p.std().item() == pytest.approx(expected, rel=0.1), name
    assert model(*batch()).loss.item() == pytest.approx(math.log(4096), rel=0.02)


def test_the_start_of_positions_is_that_of_gptoss_and_changes_no_other_weight():
    starts = [dict(position_init=start) for start in ("normal", "small", "sinusoidal")] + [
        dict(position="none")
    ]
    states = [
        GPT2(
            small(initial_context_length=301, **start), generator=torch.Generator().manual_seed(0)
        ).state_dict()
        for start in starts
    ]
    normal, small_, sines, none = (state.pop("position_embedding.weight", None) for state in states)
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in states[0].items())
    assert none is None and normal.std().item() == pytest.approx(0.02, rel=0.05)
    torch.testing.assert_close(small_, 0.1 * normal)  # std 0.002
    place, column = (torch.arange(n, dtype=torch.float64) for n in (301, 20))
    angle = place[:, None] / 10000 ** ((column - column % 2) / 20)
    wanted = torch.where(column % 2 == 0, angle.sin(), angle.cos())
    wanted *= 0.02 / wanted.square().mean().sqrt()  # the RMS of gptoss
    torch.testing.assert_close(sines.double(), wanted, rtol=0, atol=1e-8)
    trunk = gptoss.ModelConfig(
        **SHAPE | dict(initial_context_length=301), num_key_value_heads=5, head_dim=4, num_experts=1,
        experts_per_token=1, rope_scaling_factor=1.0, position="learned", position_init="sinusoidal",
    )  # fmt: skip
    assert torch.equal(sines, gptoss.Transformer(trunk).position_embedding.weight)


def test_dropout_acts_in_training_only_at_its_four_places():
    ids, _ = batch()
    plain = random_model(torch.float32)
    model = random_model(torch.float32, dropout=0.5)
    assert torch.equal(model(ids).logits, plain(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    dropped = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "dropout", lambda x, p, training: dropped.append((p, training)) or x)

        def kernel(q, k, v, dropout_p, **_):
            dropped.append((dropout_p, True))
            return q

        patch.setattr(F, "scaled_dot_product_attention", kernel)
        model(ids)
    assert dropped == [(0.5, True)] * (1 + 3 * 3)  # embedding; attention twice and MLP, in 3 layers


def test_a_tied_head_is_one_parameter_with_both_gradients():
    tied, free = random_model(), random_model(tie_embeddings=False)
    assert tied.unembedding.weight is tied.embedding.weight
    assert len(list(tied.parameters())) == len(list(free.parameters())) - 1
    tied(*batch()).loss.backward()
    unused = sorted(set(range(USED)) - set(batch()[0].flatten().tolist()))
    assert unused and tied.embedding.weight.grad[unused].any()  # their gradient comes from the head alone


# ------------------------------------------------------------------------------------ cache and padding
CHUNKS = {"a prompt, then one at a time": [9] + [1] * 10, "pieces": [7, 1, 8, 3]}


@torch.no_grad()
def in_pieces(model, ids, chunks, positions=None):
    cache, logits, start = model.new_cache(len(ids), T), [], 0
    for size in chunks:
        piece = slice(start, start + size)
        place = {} if positions is None else {"positions": positions[:, piece]}
        output = model(ids[:, piece], cache=cache, **place)
        cache, start = output.cache, start + size
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("attention", ATTENTION_BACKENDS)
def test_pieces_of_any_size_through_a_cache_equal_the_whole(attention, chunks):
    model, (ids, _) = random_model(attention=attention), batch()
    whole = model(ids).logits
    torch.testing.assert_close(in_pieces(model, ids, chunks), whole, rtol=0, atol=1e-11)


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize(
    "changes",
    [dict(attention="eager"), dict(attention="sdpa"), dict(position="none")],
    ids=["eager", "sdpa", "no positions"],
)
def test_left_padded_rows_of_different_lengths_equal_each_row_alone(changes, chunks):
    model, (ids, _) = random_model(**changes), batch(rows=3)
    padding = torch.tensor([0, 4, 11])
    positions = torch.arange(T)[None] - padding[:, None]
    cached = in_pieces(model, ids, chunks, positions)
    whole = model(ids, positions=positions).logits
    other = torch.where(positions < 0, (ids + 1) % USED, ids)  # other ids in the padding
    changed = model(other, positions=positions).logits
    for row, pad in enumerate(padding.tolist()):
        alone = model(ids[row : row + 1, pad:]).logits[0]
        for found in (whole, cached, changed):
            torch.testing.assert_close(found[row, pad:], alone, rtol=0, atol=1e-11)


def test_without_positions_a_padded_row_goes_on_from_its_own_last_position():
    model, (ids, _) = random_model(), batch()
    positions = torch.arange(T)[None] - torch.tensor([[0], [4]])
    expected = model(ids, positions=positions).logits[:, 9:]
    cache = model.new_cache(B, T)
    with torch.no_grad():
        model(ids[:, :9], positions=positions[:, :9], cache=cache)
        rest = [model(ids[:, i : i + 1], cache=cache).logits for i in range(9, T)]
    torch.testing.assert_close(torch.cat(rest, dim=1), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("position", ["learned", "none"])
def test_ragged_prompts_are_continued_as_without_a_cache_and_as_alone(position):
    model = random_model(tie_embeddings=False, position=position)
    prompts = [[7, 3, 25, 9, 11, 2, 8, 30, 4, 5, 6], [12], [20, 1, 30, 29]]

    def told(prompts, generators, **options):
        return generate(model, prompts, max_tokens=18, temperature=0.9, generators=generators, **options)

    cached = told(prompts, row_generators(5, 3))
    assert cached == told(prompts, row_generators(5, 3), use_cache=False)
    assert cached == [told([p], [g])[0] for p, g in zip(prompts, row_generators(5, 3))]
    assert max(map(max, cached)) < USED and len({tuple(row) for row in cached}) == 3


# ------------------------------------------------------------------------------------ transformers
@pytest.mark.peer
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "own head"])
@pytest.mark.parametrize("attention", ATTENTION_BACKENDS)
def test_logits_and_all_gradients_agree_with_transformers(attention, tie):
    import transformers

    ids, targets = batch()
    model = random_model(attention=attention, tie_embeddings=tie)
    sizes = dict(vocab_size=USED, n_positions=29, n_embd=20, n_layer=3, n_head=5, n_inner=33)
    options = dict(tie_word_embeddings=tie, attn_implementation="eager", bos_token_id=0, eos_token_id=0)
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **options)).double().eval()
    theirs = to_hugging_face({n: p.detach() for n, p in model.state_dict().items()}, model.config)
    lost = peer.load_state_dict(theirs, strict=False)
    assert lost.unexpected_keys == [] and lost.missing_keys == ["lm_head.weight"][: int(tie)]

    peer_logits = peer(ids).logits
    peer_loss = F.cross_entropy(peer_logits.flatten(0, 1), targets.flatten())
    output = model(ids, targets, return_logits=True)
    assert peer_logits.abs().max() > 2  # not a comparison of zeros
    torch.testing.assert_close(output.logits[..., :USED], peer_logits, rtol=0, atol=1e-12)

    found = to_hugging_face(gradients(model, output.loss), model.config)
    peer_gradients = gradients(peer, peer_loss)
    assert found.keys() == peer_gradients.keys()
    for name, wanted in peer_gradients.items():
        assert wanted.abs().max() > 1e-5, name
        torch.testing.assert_close(
            found[name], wanted, rtol=0, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_the_map_to_transformers_and_back_is_the_same_to_the_bit():
    for tie in (True, False):
        model = random_model(torch.float32, tie_embeddings=tie, vocab_size=64)
        weights = model.state_dict()
        back = from_hugging_face(to_hugging_face(weights, model.config), model.config, "memory")
        assert back.keys() == weights.keys()
        for name, tensor in weights.items():
            kept = tensor[:USED] if name in ("embedding.weight", "unembedding.weight") else tensor
            assert torch.equal(back[name][: len(kept)], kept), name
            assert not back[name][len(kept) :].any(), name  # padding


# --------------------------------------------------------------------------------- gptoss as GPT-2
@pytest.mark.parametrize(
    "dense",
    [dict(num_experts=1, experts_per_token=1), dict(moe_layers=()), dict(moe_layers=(), position="none")],
    ids=["one expert", "no experts", "no positions"],
)
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "own head"])
@pytest.mark.parametrize("backends", [("eager", "loop"), ("sdpa", "sorted")], ids=" ".join)
def test_gptoss_with_the_settings_of_gpt2_is_the_same_function(dense, tie, backends):
    """The router of one expert chooses it with a softmax of 1, and so gets no gradient."""
    position = dense.get("position", "learned")
    model = random_model(tie_embeddings=tie, position=position)
    switches = dict(rope_scaling_factor=1.0, layer_types=(gptoss.FULL,) * 3, attention_sinks=False)
    switches |= dict(position=position, norm="layernorm", mlp="gelu", tie_embeddings=tie) | dense
    config = gptoss.ModelConfig(**SHAPE, num_key_value_heads=5, head_dim=4, **switches)
    attention, experts = backends
    trunk = gptoss.Transformer(config, attention=attention, experts=experts).double().eval()
    own = {name for name in trunk.state_dict() if "gate" in name or "selection_bias" in name}
    assert bool(own) == ("num_experts" in dense)
    weights = as_trunk(model.state_dict()) | {name: trunk.state_dict()[name] for name in own}
    trunk.load_state_dict(weights)

    ids, targets = batch()
    positions = torch.arange(T) - torch.tensor([[0], [4]])
    for place in ({}, {"positions": positions}):
        ours, theirs = (m(ids, targets, return_logits=True, **place) for m in (model, trunk))
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-10)
        torch.testing.assert_close(ours.token_losses, theirs.token_losses, rtol=0, atol=1e-10)
    found = as_trunk(gradients(model, ours.loss))
    for name, wanted in gradients(trunk, theirs.loss).items():
        wanted = torch.zeros(()) if wanted is None else wanted
        if name in own:
            assert wanted.abs().max() < 1e-15, name
        else:
            torch.testing.assert_close(
                found[name], wanted, rtol=0, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}"
            )


def as_trunk(tensors):
    """GPT-2's tensors, or their gradients, under the names and in the layouts of gptoss.py."""
    mapped = {}
    for name, tensor in tensors.items():
        if ".mlp.mlp" in name:
            name = name.replace(".weight", "_weight").replace(".bias", "_bias")
            tensor = tensor[None]  # a stack of one expert
        mapped[name.replace("norm.weight", "norm.scale")] = tensor
    return mapped
