"""Generation: filters against brute force, sampling statistics, and cached = uncached = alone."""

import dataclasses
import math

import pytest
import tiktoken
import torch

from architecture.generation import sampling
from architecture.generation.decode import generate, generate_steps
from architecture.generation.sampling import draw, filter_logits
from architecture.generation.text import TextStream, encode_prompt, generate_text, generate_texts, stream_text
from architecture.gptoss import ModelConfig, Transformer

# every axis differs, so that a transpose shows; 300 ids of which the last 40 are padding
SHAPE = dict(num_hidden_layers=2, num_experts=5, experts_per_token=2, vocab_size=300, used_vocab_size=260)
SHAPE |= dict(hidden_size=20, intermediate_size=9, head_dim=4, num_attention_heads=6, num_key_value_heads=3)
CONFIG = ModelConfig(**SHAPE, sliding_window=6, initial_context_length=40, rope_scaling_factor=1.0)
RAGGED = [[7, 3, 250, 9, 11, 2, 8, 100, 4, 5, 6], [42], [200, 1, 30, 31], [7, 7]]  # 11, 1, 4, 2 ids


def tiny_tokenizer() -> tiktoken.Encoding:
    """256 bytes, three merges and end-of-text: 260 ids."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"he": 257, b"the": 258}
    return tiktoken.Encoding(
        "tiny", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 259}
    )


def build(seed: int = 0, **changes) -> Transformer:
    """A model in float64 whose distribution is far from flat, so that its text depends on the context."""
    model = Transformer(
        dataclasses.replace(CONFIG, **changes), generator=torch.Generator().manual_seed(seed)
    ).double()
    return far_from_flat(model, torch.Generator().manual_seed(seed + 1))


def far_from_flat(model: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """The model with noise on its weights and a tokenizer, in eval mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    model.tokenizer = tiny_tokenizer()
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Transformer:
    return build()


def generators(count: int, seed: int = 5) -> list[torch.Generator]:
    return sampling.row_generators(seed, count)


# --------------------------------------------------------------------------------------------------
# filters


def reference_filter(logits, top_k=None, top_p=None, min_p=None) -> set[int]:
    """The ids that stay, one filter after the other, in plain Python."""
    kept = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    kept = kept[:top_k]
    if top_p is not None:
        weights = [math.exp(logits[i] - logits[kept[0]]) for i in kept]
        smallest = next(
            (n for n in range(1, len(kept)) if sum(weights[:n]) / sum(weights) >= top_p), len(kept)
        )
        kept = kept[:smallest]
    if min_p is not None:
        kept = [i for i in kept if math.exp(logits[i] - logits[kept[0]]) >= min_p]
    return set(kept)


def kept_ids(logits: torch.Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in logits]


@pytest.mark.parametrize(
    "options",
    [
        dict(top_k=1),
        dict(top_k=99),
        dict(top_p=0.001),
        dict(top_p=0.97),
        dict(min_p=0.11),
        dict(top_k=7, top_p=0.8),
        dict(top_p=0.9, min_p=0.2),
        dict(top_k=9, top_p=0.95, min_p=0.05),
    ],
    ids=str,
)
def test_filters_keep_what_a_plain_reference_keeps(options):
    logits = 2 * torch.randn(50, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    filtered = filter_logits(logits, **options)
    assert kept_ids(filtered) == [reference_filter(row.tolist(), **options) for row in logits]
    shifted = logits - logits.amax(-1, keepdim=True)
    assert torch.equal(filtered[filtered.isfinite()], shifted[filtered.isfinite()])


def test_filters_at_their_edges():
    flat = torch.zeros(1, 4, dtype=torch.float64)  # four probabilities of exactly 1/4
    assert kept_ids(sampling.keep_top_k(flat, 2)) == [{0, 1}]  # among equals the lower id
    assert kept_ids(sampling.keep_top_p(flat, 0.5)) == [{0, 1}]  # reaching p is enough
    assert kept_ids(sampling.keep_top_p(flat, 0.5000001)) == [{0, 1, 2}]
    assert kept_ids(sampling.keep_top_p(flat, 1e-9)) == [{0}]  # at least one
    assert kept_ids(sampling.keep_top_p(flat, 1)) == [{0, 1, 2, 3}]
    assert kept_ids(sampling.keep_min_p(flat, 1)) == [{0, 1, 2, 3}]
    assert kept_ids(sampling.keep_min_p(flat, 0)) == [{0, 1, 2, 3}]
    halves = torch.tensor([[0.5, 0.25, 0.25 - 1e-9]], dtype=torch.float64).log()
    assert kept_ids(sampling.keep_min_p(halves, 0.5)) == [{0, 1}]


def sorted_filter(logits: torch.Tensor, k: int | None, p: float | None) -> torch.Tensor:
    """top_k or top_p by a stable sort of all logits."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    if k is not None:
        dropped = torch.arange(logits.shape[-1]).expand_as(logits) >= k
    else:
        dropped = ordered.softmax(-1).cumsum(-1).roll(1, dims=-1) >= p
        dropped[..., 0] = False
    return logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0], ids=lambda scale: f"scale {scale}")
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_filters_of_a_large_vocabulary_keep_what_a_stable_sort_keeps(scale, ties):
    logits = scale * torch.randn(20, 700, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    if ties:
        logits = (4 * logits).round() / 4
    for k in (1, 50, 256, 699, 700, 900):
        assert torch.equal(sampling.keep_top_k(logits, k), sorted_filter(logits, k, None))
    some = sampling.keep_top_k(logits, 300)  # the others are -inf
    for p in (0.05, 0.5, 0.95, 0.9999):
        for these in (logits, some, logits[0], logits[None]):
            assert torch.equal(sampling.keep_top_p(these, p), sorted_filter(these, None, p))


def test_temperature_divides_before_the_filters():
    logits = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    assert kept_ids(filter_logits(logits, min_p=0.3)) == [{0, 1}]  # e^-1 = 0.37
    assert kept_ids(filter_logits(logits, temperature=0.5, min_p=0.3)) == [{0}]  # e^-2 = 0.14
    assert kept_ids(filter_logits(logits, temperature=2.0, min_p=0.3)) == [{0, 1, 2}]


def test_a_tiny_temperature_is_greedy_and_not_nan():
    logits = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.float64)
    filtered = filter_logits(logits, temperature=1e-320)
    assert draw(filtered, torch.tensor([0.999], dtype=torch.float64)).tolist() == [1]


# --------------------------------------------------------------------------------------------------
# drawing


def test_many_samples_follow_the_softmax():
    logits = torch.tensor([1.0, -torch.inf, 0.0, 2.0, -3.0, -torch.inf], dtype=torch.float64)
    draws = 20_000
    uniform = torch.rand(draws, dtype=torch.float64, generator=generators(1, seed=11)[0])
    counts = torch.bincount(draw(logits.expand(draws, -1), uniform), minlength=6)
    expected = draws * logits.softmax(0)
    assert counts[1] == counts[5] == 0
    possible = expected > 0
    chi_square = ((counts - expected)[possible].square() / expected[possible]).sum()
    assert chi_square < 16.27  # 3 degrees of freedom, exceeded once in 1,000


def test_a_draw_at_either_end_is_a_possible_id():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]], dtype=torch.float64)
    largest = 1 - 2**-53
    assert draw(logits, torch.tensor([0.0], dtype=torch.float64)).tolist() == [1]
    assert draw(logits, torch.tensor([largest], dtype=torch.float64)).tolist() == [3]


def test_padded_ids_are_never_sampled(model):
    options = dict(max_tokens=25, temperature=50.0)  # nearly flat
    ids = generate(model, [[1]] * 40, generators=generators(40), **options)
    assert max(map(max, ids)) < CONFIG.used_vocab_size
    assert len({token for row in ids for token in row}) > 200


def test_row_generators_differ_and_do_not_depend_on_the_number_of_rows():
    few, many = generators(2, seed=3), generators(5, seed=3)
    first = [torch.rand((), generator=g).item() for g in many]
    assert [torch.rand((), generator=g).item() for g in few] == first[:2]
    others = [torch.rand((), generator=g).item() for g in generators(5, seed=4)]
    assert len({*first, *others}) == 10


def test_numbers_drawn_ahead_are_those_drawn_one_by_one():
    steps = 2 * sampling.AHEAD + 5
    ends = [steps, 3, sampling.AHEAD, sampling.AHEAD + 1, 2]
    own, plain = generators(5), generators(5)
    ahead = sampling.NumbersAhead(own, steps)
    for step in range(steps):
        rows = [row for row in range(5) if step < ends[row]]
        expected = [torch.rand(1, generator=plain[row], dtype=torch.float64) for row in rows]
        assert torch.equal(ahead.next(rows), torch.cat(expected))
    ahead.give_back()
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(own, plain))


def test_generators_are_given_back_when_the_caller_stops_early(model):
    own, plain = generators(2), generators(2)
    steps = generate_steps(model, [[5], [6]], max_tokens=20, generators=own)
    for _ in range(3):
        next(steps)
    steps.close()
    for generator in plain:
        torch.rand(3, generator=generator, dtype=torch.float64)
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(own, plain))


def test_rows_may_share_a_generator():
    (shared,), (plain,) = generators(1), generators(1)
    ahead = sampling.NumbersAhead([shared, shared], 4)
    got = torch.cat([ahead.next([0, 1]) for _ in range(4)])
    assert torch.equal(
        got, torch.cat([torch.rand(1, generator=plain, dtype=torch.float64) for _ in range(8)])
    )


# --------------------------------------------------------------------------------------------------
# the same ids whichever way they are computed


SWITCHES = {
    "trunk": dict(),
    "learned positions": dict(position="learned", norm="layernorm", moe_layers=(1,)),
    "full, nope": dict(layer_types=("full_attention",) * 2, attention_sinks=False, nope_stride=2),
    "window of 1": dict(layer_types=("sliding_attention",) * 2, position="none", sliding_window=1),
    "window over all": dict(sliding_window=100, tie_embeddings=True),
    "shared experts": dict(router="topk_sigmoid", shared_experts=3),
}


@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES)
def test_cached_and_uncached_generation_agree_across_the_window(changes):
    model = build(**changes)
    cached = generate(model, RAGGED, max_tokens=15, generators=generators(4))  # past two windows of 6
    assert cached == generate(model, RAGGED, max_tokens=15, generators=generators(4), use_cache=False)
    assert [len(row) for row in cached] == [15] * 4
    assert len(set(map(tuple, cached))) == 4  # the rows are different texts


def test_each_prompt_of_a_ragged_batch_is_continued_as_if_alone(model):
    together = generate(model, RAGGED, max_tokens=15, generators=generators(4))
    for row, prompt in enumerate(RAGGED):
        alone = generate(model, [prompt], max_tokens=15, generators=generators(4)[row : row + 1])
        assert alone == together[row : row + 1]


def test_greedy_ids_are_the_argmax_of_a_plain_forward(model):
    (new,) = generate(model, [RAGGED[0]], max_tokens=20, temperature=0)
    logits = model(torch.tensor([RAGGED[0] + new])).logits[0]
    assert logits[len(RAGGED[0]) - 1 : -1].argmax(-1).tolist() == new


def test_a_row_that_ends_does_not_change_the_others(model):
    free = generate(model, RAGGED, max_tokens=20, generators=generators(4))
    stop = free[1][3]
    assert stop not in free[1][:3]
    expected = [row[: row.index(stop) + 1] if stop in row else row for row in free]
    own = generators(4)
    stopped = generate(model, RAGGED, max_tokens=20, stop_tokens=[stop], generators=own)
    assert stopped == expected
    # One number is drawn per id, and none after the end of a row.
    again = generators(4)[1]
    torch.rand(4, generator=again, dtype=torch.float64)
    assert torch.equal(again.get_state(), own[1].get_state())


def test_generation_stops_when_every_row_has_ended(model):
    (greedy,) = generate(model, [[5]], max_tokens=10, temperature=0)
    steps = list(generate_steps(model, [[5]], max_tokens=10, temperature=0, stop_tokens=greedy[2:3]))
    length = greedy.index(greedy[2]) + 1
    assert steps == [[token] for token in greedy[:length]]


def test_generation_may_fill_the_context_to_the_last_token(model):
    limit = CONFIG.context_limit
    options = dict(temperature=0, max_tokens=limit - len(RAGGED[0]))
    cached = generate(model, [RAGGED[0]], **options)
    assert cached == generate(model, [RAGGED[0]], use_cache=False, **options)
    assert len(RAGGED[0]) + len(cached[0]) == limit


def test_generation_leaves_mode_gradients_and_global_randomness_alone():
    model, seen = build().train(), []
    model.register_forward_hook(lambda module, *_: seen.append((module.training, torch.is_grad_enabled())))
    before = torch.get_rng_state()
    steps = generate_steps(model, [[5]], max_tokens=3, generators=generators(1))
    next(steps)
    assert torch.is_grad_enabled()  # in the caller's code, between two steps
    steps.close()  # the caller stops early
    assert seen == [(False, False)]
    assert model.training and torch.equal(before, torch.get_rng_state())


def test_dropout_and_capacity_do_not_change_generation():
    prompt, options = RAGGED[:1], dict(max_tokens=10, temperature=0)
    plain = generate(build(), prompt, **options)
    assert generate(build(dropout=0.5, capacity_factor=0.1).train(), prompt, **options) == plain


# --------------------------------------------------------------------------------------------------
# text


def test_streamed_pieces_join_to_what_decode_gives():
    tokenizer = tiny_tokenizer()
    texts = ["the theme", "caf\u00e9 \u732b \U0001f600 the", "\u00e9"]
    for data in [*(text.encode() for text in texts), b"\xe7\x8c", b"a\xff\xf0\x9f\x98the\x80"]:
        ids = list(data)  # one id per byte: every character beyond ASCII comes in pieces
        stream = TextStream(tokenizer)
        pieces = [stream.push(token) for token in ids] + [stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids)
    stream = TextStream(tokenizer)
    assert [stream.push(byte) for byte in "\u732b".encode()] == ["", "", "\u732b"]


def test_an_id_without_text_becomes_a_replacement_character():
    assert TextStream(tiny_tokenizer()).push(299) == "\ufffd"


def test_streaming_equals_not_streaming(model):
    prompts = ["the cat", "", "caf\u00e9"]
    options = dict(max_tokens=20, temperature=1.0, seed=2)
    streamed = list(prompts)
    for row, piece in stream_text(model, prompts, **options):
        streamed[row] += piece
    assert streamed == generate_texts(model, prompts, **options)
    rows = [encode_prompt(model.tokenizer, prompt) for prompt in prompts]
    ids = generate(model, rows, max_tokens=20, generators=generators(3, seed=2), stop_tokens=[259])
    decoded = [model.tokenizer.decode([i for i in row if i != 259]) for row in ids]
    assert streamed == [prompt + text for prompt, text in zip(prompts, decoded)]


def test_text_starts_after_end_of_text_and_ends_before_it(model):
    tokenizer = model.tokenizer
    assert encode_prompt(tokenizer, "the") == [259, 258]
    assert encode_prompt(tokenizer, "") == [259]
    assert 259 not in encode_prompt(tokenizer, "<|endoftext|>")[1:]  # it is text there

    ending = build()  # as `model`, but end-of-text is all that follows
    with torch.no_grad():
        ending.norm.scale.zero_()
    original = ending.unembedding.forward
    ending.unembedding.forward = lambda hidden: original(hidden).index_fill(-1, torch.tensor([259]), 9.0)
    assert generate_text(ending, "the cat", 20, 0) == "the cat"


def test_same_seed_same_text_and_no_seed_another_one(model):
    texts = [generate_text(model, "the", 12, 1.0, seed=seed) for seed in (1, 1, 2, None, None)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 4
    assert all(text.startswith("the") for text in texts)


# --------------------------------------------------------------------------------------------------
# bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(prompts=[]), "at least one prompt"),
        (dict(prompts=[[1], []]), "prompt 1 has none; start a new text with the end-of-text"),
        (dict(prompts=[[300]]), "0 to 299"),
        (dict(prompts=[[-1]]), "0 to 299"),
        (dict(max_tokens=0), "max_tokens must be at least 1, got 0"),
        (dict(max_tokens=39), "40 tokens .* prompt of 2 and max_tokens=39"),
        (dict(temperature=-0.1), "temperature must be finite and at least 0"),
        (dict(temperature=math.inf), "temperature must be finite"),
        (dict(top_k=0), "top_k must be at least 1"),
        (dict(top_p=0.0), "top_p must be above 0 and at most 1"),
        (dict(min_p=-0.1), "min_p must be from 0 to 1"),
        (dict(generators=[]), "one generator per prompt .* got 0"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_before_anything_runs(model, change, message):
    good = dict(prompts=[[1, 2]], max_tokens=5, generators=generators(1))
    with pytest.raises(ValueError, match=message):
        generate_steps(model, **{**good, **change})  # without a step


def test_logits_that_are_not_finite_are_an_error(model):
    broken = build()
    with torch.no_grad():
        broken.norm.scale.fill_(math.nan)
    for temperature in (0, 1.0):
        with pytest.raises(ValueError, match="not finite"):
            generate(broken, [[1]], max_tokens=2, temperature=temperature, generators=generators(1))


def test_text_needs_a_tokenizer():
    model = build()
    model.tokenizer = None
    with pytest.raises(ValueError, match="has no tokenizer"):
        generate_text(model, "the", 5, 0)
