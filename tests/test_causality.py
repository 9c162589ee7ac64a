"""The causality probe: leaks that an engineer might write are found, and models without one pass."""

import contextlib
import functools
from dataclasses import replace

import pytest
import small_model
import tiny_vision
import torch
import torch.nn.functional as F
from toy_run import TINY, run_here

from architecture import gptoss
from architecture.gpt2 import GPT2
from architecture.gpt2 import ModelConfig as GPT2Config
from architecture.gptoss_context import ContextConfig, ContextTransformer
from common.device import autocast
from evaluation.context import document_losses
from training.causality import require_causal
from training.causality_passes import compare, contents, kept_tokens
from training.compiled import with_compiled_blocks
from training.validation import evaluate

CPU = torch.device("cpu")
ROWS, TOKENS = 4, 19  # three windows


def prepared(made, scale=3.0):
    """In eval mode, with weights `scale` times the initial ones, and biases and sinks that are not 0."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(scale * p if p.ndim > 1 else p + 0.1 * torch.randn(p.shape, generator=draw))
    return made.eval()


def model(**changes):
    return prepared(small_model.model(**{"hidden_size": 24, "intermediate_size": 16, **changes}))


def context_model(**changes):
    config = ContextConfig(**small_model.SHAPE | dict(segment_length=TOKENS), **changes)
    return prepared(ContextTransformer(config, generator=torch.Generator().manual_seed(0)))


def gpt2():
    sizes = dict(
        num_hidden_layers=2, vocab_size=37, hidden_size=20, intermediate_size=28, num_attention_heads=5
    )
    return prepared(GPT2(GPT2Config(**sizes), generator=torch.Generator().manual_seed(0)))


def probe(made, rows=ROWS, tokens=TOKENS, dtype="float32"):
    return require_causal(made, rows, tokens, device=CPU, autocast=functools.partial(autocast, CPU, dtype))


# ------------------------------------------------------------------------------------------------ planted leaks
def replaced(made, path, make):
    """Put make(the attribute) in the place of an attribute of every block, or of the model without blocks."""
    for owner in made.block if path.startswith("block.") else [made]:
        *parents, name = path.removeprefix("block.").split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        object.__setattr__(owner, name, make(getattr(owner, name), owner))
    return made


def next_key_visible(made):
    return replaced(made, "mask", lambda old, _: lambda query, key, window: old(query + 1, key, window))


def capacity_by_score(made):
    """What the training of a capacity does: the least probable assignments of the batch are dropped."""

    def leaky(old, mlp):
        mlp.config, mlp.training = replace(mlp.config, capacity_factor=1.0), True
        return old

    return replaced(made, "block.mlp.route", leaky)


class NormOverMany(torch.nn.Module):
    def __init__(self, norm, axes):
        super().__init__()
        self.scale, self.axes = norm.scale, axes

    def forward(self, x):
        return x / (x.square().mean(self.axes, keepdim=True) + 1e-5).sqrt() * self.scale


def norm_over(*axes):
    def plant(made):
        for block in made.block:
            block.mlp.norm = NormOverMany(block.mlp.norm, axes)
        return made

    return plant


def last_norm_over_the_batch(made):
    made.norm = NormOverMany(made.norm, (0, 1, 2))
    return made


def sees_targets(shift):
    def leaky(old, made):
        def embed(ids, targets, *others, **more):
            hidden, *rest = old(ids, targets, *others, **more)
            return hidden + 0.1 * made.embedding(targets.roll(shift, 1).clamp(min=0)), *rest

        return embed

    return lambda made: replaced(made, "embed", leaky)


def ids_rolled(made):
    return replaced(made, "embed_tokens", lambda old, _: lambda ids: old(ids.roll(-1, 1)))


def router_without_the_mean(made):
    return replaced(made, "block.mlp.route", lambda old, _: lambda x, *more: old(x - x.mean(0), *more))


def bias_moved_by_the_batch(made):
    def leaky(old, mlp):
        def forward(hidden, counted):
            out, routing = old(hidden, counted)
            load = routing.assigned.sum(0)
            mlp.selection_bias += 0.03 * (load.mean() - load).sign()
            return out, routing

        return forward

    return replaced(made, "block.mlp.forward", leaky)


def dropout_left_on(made):
    return replaced(made, "embed_tokens", lambda old, _: lambda ids: F.dropout(old(ids), 0.1))


LEAKS = {
    next_key_visible: "changing the later tokens moved .* position 0 .* that of layer 0",
    capacity_by_score: "changing the tokens of other rows moved .* that of layer 0",
    norm_over(0, 1, 2): "changing the tokens of other rows moved .* that of layer 0",
    norm_over(1): "changing the later tokens moved .* that of layer 0",
    last_norm_over_the_batch: "changing the tokens of other rows moved the logits .* no layer's output differs",
    sees_targets(0): "changing the targets moved .* that of the embedding",
    sees_targets(-1): "changing the targets moved .* that of the embedding",
    ids_rolled: "changing the later tokens moved .* that of the embedding",
    router_without_the_mean: "changing the tokens of other rows moved the scores of the router in layer 0",
    bias_moved_by_the_batch: "wrote the buffer block.0.mlp.selection_bias",
    dropout_left_on: "a second pass over the same input, as with dropout, moved .* that of the embedding",
}


@pytest.mark.parametrize("plant, words", LEAKS.items(), ids=lambda x: getattr(x, "__name__", "words"))
def test_a_leak_is_found_and_named_with_its_layer(plant, words):
    with pytest.raises(ValueError, match=f"^the model is not causal, so it is not scored: .*{words}"):
        probe(plant(model()))


@pytest.mark.parametrize("plant", list(LEAKS)[:3], ids=["mask", "capacity", "norm"])
def test_a_leak_is_found_at_initial_weights_and_in_bfloat16(plant):
    with pytest.raises(ValueError, match="not causal"):
        probe(plant(small_model.model().eval()), dtype="bfloat16")


def test_one_row_is_enough_to_find_a_mask_that_is_off_by_one():
    with pytest.raises(ValueError, match="changing the later tokens"):
        probe(next_key_visible(model()), rows=1)


def test_a_state_that_passes_a_reset_or_comes_from_other_rows_is_found():
    made = context_model()
    forward = made.forward
    made.forward = lambda *args, reset=None, **others: forward(*args, **others)
    with pytest.raises(ValueError, match="changing the state before a document begins moved"):
        probe(made)
    made = replaced(
        context_model(),
        "next_state",
        lambda old, _: lambda *args: old(*args) + 0.1 * old(*args).mean(0),
    )
    with pytest.raises(ValueError, match="moved the state that goes to the next segment .* in row"):
        probe(made)


def test_an_encoder_that_mixes_the_images_of_a_batch_is_found():
    made = tiny_vision.model()
    forward = made.vision.forward
    made.vision.forward = lambda images: forward(images) + forward(images).mean(0)
    with pytest.raises(ValueError, match="changing the tokens of other rows moved .* that of the embedding"):
        probe(made, tokens=30)


# ---------------------------------------------------------------------------------------------- no false alarm
@pytest.mark.parametrize(
    "make",
    [
        lambda: model(attention="eager", experts="loop", norm="layernorm", shared_experts=1),
        lambda: model(attention="sdpa", experts="sorted", router="topk_sigmoid", capacity_factor=0.5),
        pytest.param(lambda: model(attention="flex", experts="grouped"), marks=pytest.mark.slow),  # compiles
        lambda: model(attention="sdpa", experts="grouped"),
        lambda: model(mlp="gelu", position="learned", moe_layers=(1,), dropout=0.3),
        gpt2,
        context_model,
        lambda: context_model(gated_update=True, slot_always_visible=False),
        tiny_vision.model,
    ],
    ids="eager_loop sorted_sigmoid flex grouped gelu_learned gpt2 context gated_context vision".split(),
)
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_a_causal_model_passes_in_float32_and_bfloat16_and_nothing_of_it_changes(make):
    made = make()
    before, random = {name: t.clone() for name, t in made.state_dict().items()}, torch.get_rng_state()
    found = probe(made, dtype="bfloat16")
    assert [p.dtype for p in found] == [torch.float32, torch.bfloat16]
    kept = sum(int(k.sum()) for k in kept_tokens(ROWS, TOKENS))
    assert all(p.positions == kept and p.left_out == 0 and p.largest <= p.allowed for p in found)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, before[name]) for name, t in made.state_dict().items())


@pytest.mark.slow
def test_compiled_blocks_are_probed_as_they_run():
    assert [p.dtype for p in probe(with_compiled_blocks(model()))] == [torch.float32]
    with pytest.raises(ValueError, match="changing the later tokens moved .* that of layer 0"):
        probe(with_compiled_blocks(next_key_visible(model())))


def test_a_model_is_probed_once_for_each_dtype():
    made, calls = model(), []
    made.register_forward_pre_hook(lambda *_: calls.append(1))
    assert probe(made) and len(calls) == 3
    assert probe(made) == [] and len(calls) == 3
    assert len(probe(made, dtype="bfloat16")) == 2 and len(calls) == 9


def test_logits_that_are_not_finite_are_left_to_the_loss():
    made = model()
    made.unembedding.weight.data[3] = torch.nan
    assert probe(made) == []


# --------------------------------------------------------------------------------------------------- near ties
def test_a_choice_that_rounding_decides_is_left_out_and_is_no_leak():
    def noisy(old, _):
        """Results depend on the sizes of the groups of tokens, as with kernels of a GPU, in the last bit or two."""

        def run(x, index, weight, experts):
            out = old(x, index, weight, experts)
            sizes = torch.bincount(index.flatten(), minlength=7) * 11 ** torch.arange(7)
            noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(int(sizes.sum()))) - 0.5
            return out * (1 + 2**-6 * noise) if torch.is_autocast_enabled("cpu") else out

        return run

    made = prepared(small_model.model(hidden_size=24, intermediate_size=16), scale=8.0)
    exact, found = probe(replaced(made, "block.mlp.run_experts", noisy), tokens=64, dtype="bfloat16")
    kept = sum(int(k.sum()) for k in kept_tokens(ROWS, 64))
    assert (exact.positions, exact.left_out) == (kept, 0)
    assert found.left_out > 0 and found.positions + found.left_out == kept
    assert 1e-3 < found.largest < found.allowed


def test_routers_that_choose_at_random_are_not_taken_for_ties():
    def leaky(old, mlp):
        draw = torch.Generator().manual_seed(0)

        def rule(logits, bias, k):
            return old(
                logits, torch.randn(len(logits), 1, generator=draw) * torch.ones_like(bias).cumsum(0), k
            )

        return rule

    with pytest.raises(
        ValueError, match="not shown to be causal.* its routers chose other experts .* left [0-2] of"
    ):
        probe(replaced(model(), "block.mlp.routing_rule", leaky))


# --------------------------------------------------------------------------------------- what the probe compares
def test_losses_are_compared_with_those_of_the_logits_by_hand():
    made = model()
    base, _, other = contents(made, 2, 5, 1, CPU)
    whole = torch.full((2,), 5)
    with torch.no_grad():
        reference = made(**base.batch(), return_logits=True)
        out = made(base.ids, other.targets)
    assert compare(reference, out, base._replace(targets=other.targets), whole, torch.float32).moved is None
    out.token_losses[1, 3] += 0.25
    found = compare(reference, out, base._replace(targets=other.targets), whole, torch.float32).moved
    assert found[:3] == ("the loss", 1, 3) and found.size == pytest.approx(0.25, rel=1e-3)
    assert found.allowed == pytest.approx(1e-4 * float(reference.logits.abs().max()) + 1e-5, rel=1e-3)


# ------------------------------------------------------------------------------------------ before an evaluation
def test_an_evaluation_of_a_model_with_a_leak_scores_nothing():
    made, read = next_key_visible(model()).train(), []

    def batches():
        for number in range(3):
            read.append(number)
            ids, targets = small_model.batch()
            yield {"input_ids": ids, "targets": targets}

    options = dict(device=CPU, autocast=contextlib.nullcontext, eot=0, packing="packed")
    with pytest.raises(ValueError, match="not causal"):
        evaluate(made, batches(), torch.ones(small_model.V, dtype=torch.long), **options)
    assert read == [0] and made.training
    sound = evaluate(model(), batches(), torch.ones(small_model.V, dtype=torch.long), **options)
    assert sound.tokens == 3 * 2 * 19
    assert sound.probes[0].line.startswith("causality probe in float32: the logits of")


def test_the_losses_by_segment_of_a_model_with_a_leak_are_not_computed():
    documents = [[0, *range(1, 20 + n), 0] for n in range(3)]
    with pytest.raises(ValueError, match="not causal"):
        list(
            document_losses(norm_over(0, 1, 2)(context_model()), documents, 19, 19, 2, contextlib.nullcontext)
        )


def test_training_stops_at_the_first_evaluation_and_eval_only_prints_no_loss(
    corpus, tmp_path, monkeypatch, capsys
):
    flags = [*TINY, *corpus, *"--max_iters 2 --save_every 1 --no-use_tensorboard --out_dir model".split()]
    with monkeypatch.context() as patch:
        visible = gptoss.visible_keys
        patch.setattr("architecture.gptoss.visible_keys", lambda q, k, w: visible(q + 1, k, w))
        assert run_here(tmp_path, *flags, "--eval_every", 2) == 2
        printed = capsys.readouterr()
        assert "the model is not causal" in printed.err and "in row" in printed.err
        assert "bits per byte" not in printed.out + printed.err
        assert "val/" not in (tmp_path / "model/metrics.jsonl").read_text()
        assert run_here(tmp_path, "--eval_only", "model/checkpoint_1.pt", *corpus) == 2
        printed = capsys.readouterr()
        assert "not causal" in printed.err and "bits per byte" not in printed.out + printed.err
