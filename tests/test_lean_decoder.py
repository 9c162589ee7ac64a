"""The lean decoder: logits equal those of the uncached forward, token by token, at sizes where all axes differ."""

import copy

import pytest
import small_model
import torch
from small_model import SHAPE, V

from architecture import gpt2
from architecture.generation import lean, lean_segments
from architecture.generation.decode import Decoder, generate, new_decoder
from architecture.generation.lean import LeanDecoder
from architecture.generation.sampling import row_generators
from architecture.generation.segments import read_from_the_beginning
from architecture.gptoss import FULL, SLIDING, Transformer
from architecture.gptoss_context import ContextConfig, ContextTransformer

W, T = SHAPE["sliding_window"], 23  # almost four windows
RAGGED = [11, 1, 4]  # lengths of prompts; the second row's padding is longer than a window
SWITCHES = {
    "gpt-oss": dict(),
    "yarn": dict(initial_context_length=64, rope_scaling_factor=4.0, head_dim=16, rope_ntk_beta=2.0),
    "learned positions, no sinks": dict(position="learned", attention_sinks=False),
    "no positions, layernorm": dict(position="none", norm="layernorm"),
    "nope layers, no biases": dict(nope_stride=2, layer_types=(FULL, SLIDING, SLIDING), attention_bias=False),
    "full": dict(layer_types=(FULL,) * 3),
    "sliding": dict(layer_types=(SLIDING,) * 3),
    "window of 1": dict(sliding_window=1),
    "window over all": dict(sliding_window=100),
    "dense gelu": dict(moe_layers=(), mlp="gelu", norm="layernorm"),
    "experts with gelu": dict(mlp="gelu"),
    "some dense layers": dict(moe_layers=(1,), shared_experts=1),
    "sigmoid router": dict(router="topk_sigmoid", shared_experts=4),
    "tied and padded": dict(tie_embeddings=True, used_vocab_size=33),
    "all experts": dict(experts_per_token=7),
    "tight clamp": dict(swiglu_limit=0.3),
}


def randomized(model, dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *model.named_buffers()]:
            scale = 0.3 if p.dim() == 1 or name.endswith("bias") else p.shape[-1] ** -0.5
            p.normal_(0.5 if "norm" in name else 0.0, scale, generator=draw)
    return model.to(dtype).eval()


def random_model(dtype=torch.float64, **changes):
    return randomized(small_model.model(**changes), dtype)


def small_gpt2(dtype=torch.float64):
    config = gpt2.ModelConfig(num_hidden_layers=2, hidden_size=20, intermediate_size=9, num_attention_heads=5,
                              vocab_size=V, used_vocab_size=33, initial_context_length=64)  # fmt: skip
    return randomized(gpt2.GPT2(config), dtype)


def tokens(rows=3, length=T):
    return torch.randint(33, (rows, length), generator=torch.Generator().manual_seed(2)).tolist()


@torch.no_grad()
def assert_decodes(model, lengths, pieces=(), relative=1e-12, rows=None):
    """Prompts of these lengths, then pieces, then single ids: each row as a forward of its own text."""
    texts = [row[: length + T] for row, length in zip(tokens(len(lengths), 2 * T), lengths)]
    decoder, at = LeanDecoder(model, len(lengths), max(lengths) + T), list(lengths)
    got = [decoder.feed([text[:length] for text, length in zip(texts, lengths)]).clone()]
    steps = [*pieces, *[1] * (T - sum(pieces))]
    for size in steps:
        got.append(decoder.feed([text[n : n + size] for text, n in zip(texts, at)]).clone())
        at = [n + size for n in at]
    ends = torch.tensor([0, *steps]).cumsum(0) - 1
    for row, (text, length) in enumerate(zip(texts, lengths)):
        whole = model(torch.tensor([text])).logits[0]
        theirs, ours = whole[length + ends], torch.stack([logits[row] for logits in got])
        assert torch.equal(ours.isinf(), theirs.isinf())
        scale = whole[whole.isfinite()].abs().max()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=relative * scale.item())


@pytest.fixture(params=["wide", "apart"])
def experts(request, monkeypatch):
    """Both ways of running experts, whatever is faster at these sizes."""
    monkeypatch.setattr(lean._Feed, "_wide_is_faster", lambda self, number: request.param == "wide")


@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES)
def test_logits_equal_the_forward_for_every_switch(changes, experts):
    model = random_model(**changes)
    assert lean.obstacle(model) is None
    assert_decodes(model, RAGGED)
    assert_decodes(model, [4])


def test_logits_in_float32_differ_by_rounding(experts):
    for changes in ({}, dict(norm="layernorm", position="learned", shared_experts=1)):
        assert_decodes(random_model(torch.float32, **changes), RAGGED, relative=1e-5)


@pytest.mark.parametrize("dtype, relative", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_gpt2_equals_its_forward(dtype, relative):
    assert_decodes(small_gpt2(dtype), RAGGED, relative=relative)
    assert_decodes(small_gpt2(dtype), [4], [3], relative=relative)


@pytest.mark.parametrize("lengths", [[1, 1], [W - 1, W - 1], [W, 2], [W + 1, 1], [2 * W + 1, W]], ids=str)
def test_prompts_around_the_edge_of_a_window(lengths):
    assert_decodes(random_model(), lengths)


@pytest.mark.parametrize("pieces", [[2, 1, W], [W + 2, W - 1], [2 * W + 1]], ids=str)
@pytest.mark.parametrize("lengths", [RAGGED, [5]], ids=str)
def test_several_ids_may_follow_the_prompts(lengths, pieces):
    assert_decodes(random_model(), lengths, pieces)


def test_long_prompts_are_read_in_pieces(monkeypatch):
    monkeypatch.setattr(lean, "TOKENS_AT_ONCE", 9)  # three columns of three rows
    assert_decodes(random_model(), RAGGED)
    assert_decodes(random_model(), [20])


def test_a_head_that_is_not_copied_gives_the_same(monkeypatch):
    monkeypatch.setattr(lean, "LARGEST_COPIED_HEAD", 0)
    assert_decodes(random_model(used_vocab_size=33), RAGGED)
    assert_decodes(small_gpt2(), RAGGED)


@torch.no_grad()
def test_rows_that_are_kept_go_on_as_before(experts):
    model, texts = random_model(), tokens(4)
    lengths = [3, 11, 1, 7]
    decoder = LeanDecoder(model, 4, 30)
    decoder.feed([text[:n] for text, n in zip(texts, lengths)])
    decoder.feed([[text[n]] for text, n in zip(texts, lengths)])
    decoder.keep([1, 3])
    for step in range(1, 10):
        got = decoder.feed([[texts[row][lengths[row] + step]] for row in (1, 3)])
        for ours, row in zip(got, (1, 3)):
            whole = model(torch.tensor([texts[row][: lengths[row] + step + 1]])).logits[0, -1]
            torch.testing.assert_close(ours, whole, rtol=0, atol=1e-11)


def test_a_sliding_layer_keeps_its_window_and_the_sink():
    decoder = LeanDecoder(random_model(layer_types=(SLIDING, FULL, SLIDING)), 2, 60)
    assert [layer.keys.shape[-1] for layer in decoder.layers] == [1 + W, 1 + 60, 1 + W]


@torch.no_grad()
def test_the_selection_bias_decides_which_experts_run(experts):
    model = random_model()
    plain = model(torch.tensor([[1, 2]])).logits
    for block in model.block:
        block.mlp.selection_bias.copy_(torch.linspace(-3, 3, 7))
    assert not torch.allclose(plain, model(torch.tensor([[1, 2]])).logits)
    assert_decodes(model, RAGGED)


# ------------------------------------------------------------------------------------ generation with it


@pytest.mark.parametrize("options", [dict(), dict(top_p=0.8), dict(top_k=5), dict(temperature=0)], ids=str)
def test_sampled_ids_are_those_of_the_general_decoder(options):
    model, prompts = random_model(), [row[:n] for row, n in zip(tokens(), RAGGED)]
    told = dict(max_tokens=20, stop_tokens=[3], **options)
    fast = generate(model, prompts, generators=row_generators(1, 3), **told)
    general = Decoder(model, 3, 31, True)
    assert fast == generate(model, prompts, generators=row_generators(1, 3), decoder=general, **told)
    assert fast == generate(model, prompts, generators=row_generators(1, 3), use_cache=False, **told)


def test_a_model_that_trains_on_writes_other_texts():
    model, prompt = random_model(), [[1, 2, 3]]
    told = dict(max_tokens=12, temperature=0)
    before = generate(model, prompt, **told)
    model.train()
    step = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.tensor(prompt), torch.tensor([[9, 9, 9]])).loss_sum.backward()
    step.step()
    after = generate(model, prompt, **told)
    assert after != before and model.training
    assert after == generate(model, prompt, use_cache=False, **told)


def test_a_decoder_goes_on_with_a_text():
    model, prompt = random_model(), tokens(1, 7)
    told = dict(temperature=0)
    (first,) = generate(model, prompt, max_tokens=6, **told)
    (second,) = generate(model, [prompt[0] + first + [4, 5]], max_tokens=6, **told)
    decoder = new_decoder(model, 1, 30)
    assert generate(model, prompt, max_tokens=6, decoder=decoder, **told) == [first]
    assert generate(model, [[first[-1], 4, 5]], max_tokens=6, decoder=decoder, **told) == [second]


def test_rows_that_ended_leave_the_decoder(monkeypatch):
    model, seen = random_model(), []
    feed = LeanDecoder.feed
    monkeypatch.setattr(LeanDecoder, "feed", lambda self, ids: (seen.append(len(ids)), feed(self, ids))[1])
    options = dict(max_tokens=30, stop_tokens=range(8))
    rows = generate(model, [[n] for n in range(10, 18)], generators=row_generators(1, 8), **options)
    assert seen[0] == 8 and seen[-1] <= 2 and len(set(map(len, rows))) > 3
    for number in range(8):
        alone = row_generators(1, 8)[number : number + 1]
        assert rows[number : number + 1] == generate(model, [[10 + number]], generators=alone, **options)


# --------------------------------------------------------------------------------------- carried states


def context_model(**changes):
    shape = SHAPE | dict(segment_length=5) | changes
    return randomized(ContextTransformer(ContextConfig(**shape)))


@pytest.mark.parametrize(
    ("pieces", "changes"),
    [
        ([1] * 13, dict(gated_update=True, nope_stride=2)),
        ([5, 1, 4, 6, 1], dict(gated_update=True, nope_stride=2)),
        ([4, 9], dict()),
        ([17, 1, 1], dict()),
        ([17, 1, 1], dict(carry_state=False)),
    ],
    ids=str,
)
def test_segments_are_read_as_from_the_beginning(changes, pieces, experts):
    model, texts, at = context_model(**changes), tokens(3, 30), 0
    decoder = model.new_decoder(3, 0, True)
    for size in pieces:
        got = decoder.feed([text[at : at + size] for text in texts])
        at += size
        for ours, text in zip(got, texts):
            theirs = read_from_the_beginning(model, text[:at])
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    assert decoder.lean is not None
    got = decoder.feed(
        [text[at : at + size] for text, size in zip(texts, (1, 7, 3))]
    )  # no longer equally long
    assert decoder.lean is None
    for ours, text, size in zip(got, texts, (1, 7, 3)):
        torch.testing.assert_close(
            ours, read_from_the_beginning(model, text[: at + size]), rtol=0, atol=1e-11
        )


def test_models_with_segments_that_it_cannot_read_go_to_the_general_decoder():
    for changes, message in (
        (dict(segment_length=6), "window is not longer"),
        (dict(position="learned"), "positions are learned"),
    ):
        model = context_model(**changes)
        assert message in lean_segments.obstacle(model)
        assert model.new_decoder(2, 0, True).lean is None
        with pytest.raises(ValueError, match=message):
            lean_segments.LeanSegmentDecoder(model, 2)
    with pytest.raises(ValueError, match="carries a state"):
        LeanDecoder(context_model(), 1, 20)


# ------------------------------------------------------------------------------- what it does not decode


class Variant(Transformer):
    """A variant with an embedding of its own."""

    def embed(self, *arguments):
        hidden, *others = super().embed(*arguments)
        return 2 * hidden, *others


def test_other_models_go_to_the_general_decoder():
    def general(model, message):
        assert message in lean.obstacle(model)
        assert type(new_decoder(model, 1, 20)) is Decoder
        with pytest.raises(ValueError, match="lean decoder cannot"):
            LeanDecoder(model, 1, 20)

    general(Variant(small_model.config()), "Variant may override")
    general(random_model().bfloat16(), "neither float32 nor float64")
    general(random_model().to("meta"), "not on the CPU")
    changed = copy.deepcopy(random_model())
    changed.block[0].attn.register_forward_hook(lambda *_: None)
    general(changed, "block.0.attn has a hook")
    changed = random_model()
    changed.unembedding.forward = lambda hidden: hidden
    general(changed, "unembedding has a hook or another method")
    changed = random_model()
    changed.block[1].mlp.run_experts = lambda *_: None
    general(changed, "another function run_experts")
    changed = random_model()
    changed.block[1].mlp.run_shared_experts = lambda *_: None
    general(changed, "another function run_shared_experts")
    changed = random_model()
    changed.block[1].norm = torch.nn.Identity()
    general(changed, "block.1.norm is a Identity")
    with torch.autocast("cpu", torch.bfloat16):
        general(random_model(), "autocast")
    assert type(new_decoder(random_model(), 1, 20)) is LeanDecoder
    assert type(new_decoder(random_model(), 1, 20, use_cache=False)) is Decoder


def test_a_variant_with_its_own_decoder_keeps_it():
    config = ContextConfig(**SHAPE, segment_length=8)
    model = ContextTransformer(config)
    assert type(new_decoder(model, 1, 20)) is type(model.new_decoder(1, 20, True))


def test_a_full_decoder_and_another_number_of_rows_are_refused():
    decoder = LeanDecoder(random_model(), 2, 5)
    decoder.feed([[1, 2, 3], [4]])
    with pytest.raises(ValueError, match="2 rows, got 1"):
        decoder.feed([[1]])
    with pytest.raises(ValueError, match="only the prompts may have different lengths.*1, 2.*after 3"):
        decoder.feed([[1], [1, 2]])
    with pytest.raises(ValueError, match="5 tokens.*max_length.*got 6"):
        decoder.feed([[1, 2, 3], [1, 2, 3]])
