"""Every attention and expert backend against its specification, and the specifications against plain loops.

Backends are taken from the registries, so that a new one is tested once it is registered.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from architecture.backends.attention import block_mask
from architecture.backends.fused import Rotate
from architecture.gptoss import (
    ATTENTION_BACKENDS,
    EXPERT_BACKENDS,
    ExpertWeights,
    eager_attention,
    loop_experts,
    swiglu,
    visible_keys,
)

FAST_ATTENTION = [name for name in ATTENTION_BACKENDS if name not in ("eager", "flex")]
FAST_EXPERTS = [name for name in EXPERT_BACKENDS if name != "loop"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
B, T, H, G, C, W = 2, 19, 15, 3, 4, 6  # more than three windows; H / G = 5 is not G
N, k, E, D, I = 13, 2, 7, 24, 16  # noqa: E741  I is intermediate_size; multiples of 8 for grouped_mm


def values_and_gradients(function, tensors):
    """function(*tensors) and the gradients of a fixed random projection of it."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return out.detach(), torch.autograd.grad(out, leaves, direction.to(out.dtype))


def assert_same(function, reference, tensors):
    tolerance = TOLERANCE[tensors[0].dtype]
    ours, theirs = (values_and_gradients(f, tensors) for f in (function, reference))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# ----------------------------------------------------------------------------------------- attention
def attention_case(dtype=torch.float64, keys=T):
    draw = torch.Generator().manual_seed(1)
    shapes = (B, T, H, C), (B, keys, G, C), (B, keys, G, C), (H,)
    q, k, v, sinks = (torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes)
    return [t.to(dtype) for t in (2 * q, k, v, 3 * sinks + 1)]  # sinks from about -5 to 7


def window_mask(window, padding=(0, 0)):
    positions = torch.arange(T)[None] - torch.tensor(padding)[:, None]
    return visible_keys(positions, positions, window)


def attention_by_loops(q, k, v, sinks, window, padding=(0, 0)):
    """The formula, one query, head and key at a time."""
    rows = []
    for b in range(B):
        for i in range(T):
            for h in range(H):
                g = h // (H // G)
                seen = [j for j in range(T) if j <= i and j > i - window and j >= padding[b]]
                seen = seen or [i]  # a padded query sees itself alone
                terms = torch.exp(k[b, seen, g] @ q[b, i, h] / math.sqrt(C))
                rows.append(terms @ v[b, seen, g] / (terms.sum() + torch.exp(sinks[h])))
    return torch.stack(rows).view(B, T, H, C)


@pytest.mark.parametrize("window", [W, T])
def test_the_attention_specification_is_the_formula_in_values_and_gradients(window):
    *qkv, sinks = attention_case()
    mask = window_mask(window, padding := (0, 3))
    assert_same(
        lambda *x: eager_attention(*x, mask, 0.0),
        lambda *x: attention_by_loops(*x, window, padding),
        (*qkv, sinks),
    )


def test_the_window_includes_the_current_token_and_padding_sees_itself_alone():
    for row, padding in zip(window_mask(W, (0, 3)), (0, 3)):
        for i in range(T):
            first = i if i < padding else max(padding, i - W + 1)
            assert row[0, i].nonzero().flatten().tolist() == list(range(first, i + 1))


@pytest.mark.parametrize("padding", [(0, 0), (0, 3), (17, 5)])
@pytest.mark.parametrize("sinks_on", [True, False])
@pytest.mark.parametrize("window", [W, None])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", FAST_ATTENTION)
def test_an_attention_backend_equals_eager(name, dtype, window, sinks_on, padding):
    tensors = attention_case(dtype)
    assert_same_as_eager(name, tensors if sinks_on else tensors[:3], window_mask(window, padding))


@pytest.mark.parametrize("name", FAST_ATTENTION)
def test_an_attention_backend_takes_more_keys_than_queries_and_extreme_sinks(name):
    mask = visible_keys(torch.arange(5, T + 5)[None], torch.arange(T + 5)[None], W)
    *qkv, sinks = attention_case(torch.float32, keys=T + 5)
    for tensor in (sinks, torch.full((H,), -80.0), torch.full((H,), 80.0)):
        assert_same_as_eager(name, (*qkv, tensor), mask)


def assert_same_as_eager(name, tensors, mask):
    def call(backend):
        return lambda q, k, v, sinks=None: backend(q, k, v, sinks, mask, 0.0)

    assert_same(call(ATTENTION_BACKENDS[name]), call(eager_attention), tensors)


@pytest.mark.parametrize("name", FAST_ATTENTION)
def test_an_attention_backend_rounds_no_worse_than_eager_in_bfloat16(name):
    exact = [t.bfloat16().double() for t in attention_case()]
    mask = window_mask(W)
    truth = eager_attention(*exact, mask, 0.0)

    def error(backend):
        out = backend(*(t.bfloat16() for t in exact), mask, 0.0).double()
        return (out - truth).square().mean().sqrt().item()

    assert error(ATTENTION_BACKENDS[name]) < 1.5 * error(eager_attention)


@pytest.mark.parametrize("name", ["eager", *FAST_ATTENTION])
def test_attention_dropout_keeps_the_mean(name):
    torch.manual_seed(0)
    *qkv, sinks = attention_case(torch.float32)
    qkv, mask = [x[:1].expand(300, -1, -1, -1) for x in qkv], window_mask(None)[:1]
    with_dropout, without = (ATTENTION_BACKENDS[name](*qkv, sinks, mask, share) for share in (0.3, 0.0))
    assert not torch.equal(with_dropout[0], with_dropout[1])
    torch.testing.assert_close(with_dropout.mean(0), without[0], rtol=0, atol=0.35)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize(
    "window, sinks_on, padding", [(W, True, (0, 3)), (None, True, (0, 0)), (W, False, (0, 0))]
)
def test_flex_attention_equals_eager_where_no_gradient_is_asked_for(window, sinks_on, padding):
    *qkv, sinks = attention_case(torch.float32)
    positions = torch.arange(T)[None] - torch.tensor(padding)[:, None]
    mask, sinks = block_mask(positions, positions, window), sinks if sinks_on else None
    with torch.compiler.set_stance("force_eager"):  # flex compiles anew for every shape, a second each
        ours = ATTENTION_BACKENDS["flex"](*qkv, sinks, mask, 0.0)
    theirs = eager_attention(*qkv, sinks, window_mask(window, padding), 0.0)
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


def test_flex_attention_says_that_it_cannot_train_on_a_cpu_and_has_no_dropout():
    q, k, v, sinks = attention_case(torch.float32)
    with pytest.raises(ValueError, match="use attention=sdpa"):
        ATTENTION_BACKENDS["flex"](q.requires_grad_(), k, v, sinks, None, 0.0)
    with pytest.raises(ValueError, match="does not support dropout"):
        ATTENTION_BACKENDS["flex"](q, k, v, sinks, None, 0.1)


# ------------------------------------------------------------------------------------------- experts
def swiglu_by_formula(x, limit):
    gate, up = x[..., 0::2], x[..., 1::2]
    gate = torch.where(gate > limit, torch.full_like(gate, limit), gate)
    up = torch.where(up > limit, torch.full_like(up, limit), up)
    up = torch.where(up < -limit, torch.full_like(up, -limit), up)
    return gate / (1 + torch.exp(-1.702 * gate)) * (up + 1)


def test_swiglu_is_the_official_formula_with_its_clamps():
    x = 2 * torch.randn(N, 2 * I, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    limit = 1.5
    gate, up = x[:, ::2], x[:, 1::2]
    assert (gate > limit).any() and (gate < -limit).any() and (up.abs() > limit).any()
    assert_same(lambda x: swiglu(x, limit), lambda x: swiglu_by_formula(x, limit), [x])


def routing(kind):
    draw = torch.Generator().manual_seed(4)
    index = torch.rand(N, E, generator=draw).topk(k).indices
    if kind == "one expert gets nothing":
        index = torch.rand(N, E - 1, generator=draw).topk(k).indices
        index = index + (index >= 3)
        assert not (index == 3).any()
    elif kind == "all on the same experts":
        index = torch.tensor([[5, 1]]).repeat(N, 1)
    elif kind == "one expert per token, always the same":
        index = torch.full((N, 1), E - 1)
    elif kind == "some dropped":
        index[::3, 0] = E
        index[4] = E
    elif kind == "all dropped":
        index = torch.full((N, k), E)
    return index


ROUTINGS = ("even", "one expert gets nothing", "all on the same experts",
            "one expert per token, always the same", "some dropped", "all dropped")  # fmt: skip


LIMITS = (1.5, None)  # swiglu clamped where it happens often; gelu


def expert_case(dtype, slots, limit=1.5):
    draw = torch.Generator().manual_seed(5)
    U = I if limit is None else 2 * I
    shapes = (N, D), (N, slots), (E, U, D), (E, U), (E, D, I), (E, D)
    x, weight, *experts = (torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes)
    return [t.to(dtype) for t in (x, weight.softmax(-1), *experts)]


def expert_caller(backend, index, limit=1.5):
    return lambda x, weight, *experts: backend(x, index, weight, ExpertWeights(*experts, limit))


def experts_by_loops(x, index, weight, experts):
    """The formula, one assignment at a time."""
    rows = []
    for n in range(N):
        total = 0 * x[n]
        for slot, e in enumerate(index[n].tolist()):
            if e < E:
                inner = experts.activation(experts.mlp1_weight[e] @ x[n] + experts.mlp1_bias[e])
                outer = experts.mlp2_weight[e] @ inner + experts.mlp2_bias[e]
                total = total + weight[n, slot] * outer
        rows.append(total)
    return torch.stack(rows) + 0 * sum(w.sum() for w in (weight, *experts[:4]))


@pytest.mark.parametrize("kind", ROUTINGS)
def test_the_expert_specification_is_the_formula_in_values_and_gradients(kind):
    index = routing(kind)
    tensors = expert_case(torch.float64, index.shape[1])
    ours, theirs = expert_caller(loop_experts, index), expert_caller(experts_by_loops, index)
    assert_same(ours, theirs, tensors)


@pytest.mark.parametrize("kind", ROUTINGS)
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(
    ("name", "dtype"),  # torch's grouped_mm has no float64
    [(n, d) for n in FAST_EXPERTS for d in TOLERANCE if (n, d) != ("grouped", torch.float64)],
)
def test_an_expert_backend_equals_the_loop(name, dtype, limit, kind):
    index = routing(kind)
    tensors = expert_case(dtype, index.shape[1], limit)
    fast, loop = (expert_caller(f, index, limit) for f in (EXPERT_BACKENDS[name], loop_experts))
    assert_same(fast, loop, tensors)


@pytest.mark.parametrize("name", EXPERT_BACKENDS)
def test_an_expert_backend_gives_the_same_bits_twice(name):
    index = routing("even")
    tensors = expert_case(torch.float32, k)
    first, second = (
        values_and_gradients(expert_caller(EXPERT_BACKENDS[name], index), tensors) for _ in range(2)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("name", EXPERT_BACKENDS)
def test_an_expert_backend_runs_under_bfloat16_autocast_with_gradients_of_the_parameters_type(name):
    index = routing("one expert gets nothing")
    tensors = expert_case(torch.float32, k)
    call = expert_caller(EXPERT_BACKENDS[name], index)
    leaves = [t.clone().requires_grad_() for t in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        out = call(*leaves)
    out.sum().backward()
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, call(*tensors), rtol=0.05, atol=0.05 * out.std().item())
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_grouped_experts_say_which_sizes_and_types_they_take():
    index = routing("even")
    with pytest.raises(ValueError, match="use experts=sorted"):
        expert_caller(EXPERT_BACKENDS["grouped"], index)(*expert_case(torch.float64, k))
    x, weight, w1, b1, w2, b2 = expert_case(torch.float32, k)
    narrow = (w1[:, :18], b1[:, :18], w2[:, :, :9], b2)
    with pytest.raises(ValueError, match="16 bytes.*use experts=sorted"):
        expert_caller(EXPERT_BACKENDS["grouped"], index)(x, weight, *narrow)


# ---------------------------------------------------------------------------------------------- rotation
@pytest.mark.parametrize("rows", [1, B])
def test_a_rotation_is_a_product_of_complex_numbers(rows):
    draw = torch.Generator().manual_seed(3)
    x, angle = (
        torch.randn(s, generator=draw, dtype=torch.float64) for s in ((B, T, H, C), (rows, T, 1, C // 2))
    )
    cos, sin = 1.3 * angle.cos(), 1.3 * angle.sin()  # YaRN's concentration is in the tables

    def complex_product(x):
        turned = torch.complex(*x.chunk(2, -1)) * torch.complex(cos, sin)
        return torch.cat((turned.real, turned.imag), -1)

    assert_same(lambda x: Rotate.apply(x, cos, sin), complex_product, [x])


# ---------------------------------------------------------------------------------------- torch's own
def test_eager_without_sinks_and_window_is_torchs_attention():
    q, k, v, _ = attention_case()
    wide = [x.repeat_interleave(H // x.shape[2], 2).transpose(1, 2) for x in (q, k, v)]
    theirs = F.scaled_dot_product_attention(*wide, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(eager_attention(q, k, v, None, window_mask(None), 0.0), theirs)
