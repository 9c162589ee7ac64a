"""The cache: a forward in pieces equals the forward of the whole, across the window's edge and with padding."""

import pytest
import small_model
import torch
from small_model import SHAPE, V

from architecture.gptoss import FULL, SLIDING

W, T = SHAPE["sliding_window"], 23  # almost four windows
CHUNKS = {
    "one at a time": [1] * T,
    "up to the window's edge": [W - 1, 1, 1, W, W, T - 3 * W - 1],
    "windows": [W, W, W, T - 3 * W],
    "more than a window at once": [2 * W + 1, 1, 2, T - 2 * W - 4],
    "everything": [T],
}


@pytest.fixture(autouse=True)
def uncompiled():
    """flex_attention compiles what it does for every new shape, a second each, also without a compiler."""
    with torch.compiler.set_stance("force_eager"):
        yield


def random_model(attention="auto", **changes):
    model = small_model.model(attention=attention, **changes)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 1.0 if p.dim() == 1 or name.endswith("bias") else p.shape[-1] ** -0.5
            p.normal_(0.0, scale, generator=draw)
    return model.double().eval()


def tokens(batch=2, length=T):
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def in_pieces(model, input_ids, chunks, positions=None, max_length=T):
    cache, logits, start = model.new_cache(len(input_ids), max_length), [], 0
    for size in chunks:
        piece = slice(start, start + size)
        place = {} if positions is None else {"positions": positions[:, piece]}
        output = model(input_ids[:, piece], cache=cache, **place)
        cache = output.cache
        logits.append(output.logits)
        start += size
    return torch.cat(logits, dim=1)


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


PIECES = [("sdpa", chunks) for chunks in CHUNKS] + [("eager", "windows"), ("flex", "windows")]


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(position="learned"),
        dict(position="none", attention_sinks=False),
        dict(nope_stride=2, layer_types=(FULL, SLIDING, SLIDING)),
        dict(layer_types=(FULL,) * 3),
        dict(layer_types=(SLIDING,) * 3),
        dict(sliding_window=1),
        dict(sliding_window=100),
        dict(moe_layers=(), mlp="gelu", norm="layernorm"),
        dict(router="topk_sigmoid", shared_experts=4),
        dict(position="learned", position_init="sinusoidal", shared_experts=1, moe_layers=(1,)),
    ],
    ids=str,
)
def test_pieces_equal_the_whole_for_every_switch(changes):
    model = random_model(**changes)
    assert_same(in_pieces(model, tokens(), [9, 1, 1, 7, 5]), model(tokens()).logits)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("attention, chunks", PIECES)
@torch.no_grad()
def test_left_padded_rows_of_different_lengths_equal_each_row_alone(attention, chunks):
    model = random_model(attention)
    padding = torch.tensor([0, 4, 11])  # the last row's padding is longer than a window
    positions = torch.arange(T)[None] - padding[:, None]
    batch = tokens(3)
    cached = in_pieces(model, batch, CHUNKS[chunks], positions)
    whole = model(batch, positions=positions).logits
    for row, pad in enumerate(padding.tolist()):
        alone = model(batch[row : row + 1, pad:]).logits[0]
        assert_same(whole[row, pad:], alone)
        assert_same(cached[row, pad:], alone)


def test_the_ids_in_the_padding_do_not_matter():
    model, batch = random_model(), tokens()
    positions = (torch.arange(T) - 5).expand(2, T)
    other = batch.clone()
    other[:, :5] = (other[:, :5] + 1) % V
    ours, theirs = (model(ids, positions=positions).logits[:, 5:] for ids in (batch, other))
    assert_same(ours, theirs)


def test_without_positions_a_padded_row_goes_on_from_its_own_last_position():
    model, batch = random_model(), tokens()
    positions = torch.arange(T)[None] - torch.tensor([[0], [4]])
    expected = model(batch, positions=positions).logits[:, 9:]
    cache = model.new_cache(2, T)
    with torch.no_grad():
        model(batch[:, :9], positions=positions[:, :9], cache=cache)
        rest = [model(batch[:, i : i + 1], cache=cache).logits for i in range(9, T)]
    assert_same(torch.cat(rest, dim=1), expected)


def test_sliding_layers_keep_only_their_window():
    model = random_model()
    cache = model.new_cache(2, 60)
    with torch.no_grad():
        model(tokens(length=50), cache=cache)
    for kind, keys, values in zip(model.config.resolved_layer_types, cache.keys, cache.values):
        kept = W if kind == SLIDING else 60
        assert keys.shape == values.shape == (2, kept, 3, 4)
        assert keys.untyped_storage().nbytes() == 2 * kept * 3 * 4 * 8  # no view of a larger piece


def test_two_caches_of_one_model_do_not_mix():
    model, batch = random_model(), tokens()
    first, second = model.new_cache(1, T), model.new_cache(1, T)
    with torch.no_grad():
        logits = [[], []]
        for i in range(T):
            for row, cache in enumerate((first, second)):
                logits[row].append(model(batch[row : row + 1, i : i + 1], cache=cache).logits)
    assert_same(torch.cat([torch.cat(row, dim=1) for row in logits]), model(batch).logits)


def test_a_full_cache_refuses_more_and_says_so():
    model = random_model()
    cache = model.new_cache(2, 8)
    with torch.no_grad():
        model(tokens(length=8), cache=cache)
        with pytest.raises(ValueError, match="8 tokens.*max_length.*got 9"):
            model(tokens(length=1), cache=cache)


def test_a_cache_of_another_batch_is_refused():
    model = random_model()
    with torch.no_grad(), pytest.raises(ValueError, match="cache.*3 rows.*got 1"):
        model(tokens(1), cache=model.new_cache(3, T))


def test_a_cache_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="64"):
        random_model().new_cache(2, 65)


def test_the_cache_is_for_inference_and_takes_no_gradient():
    model = random_model()
    with pytest.raises(ValueError, match="no_grad"):
        model(tokens(), cache=model.new_cache(2, T))
