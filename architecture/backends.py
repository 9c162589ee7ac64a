"""Faster paths for what gptoss.py specifies: same arguments, same values, same gradients.

sdpa_attention is held to gptoss.eager_attention, sorted_experts to gptoss.loop_experts. A new path
needs a function here and an entry in gptoss.py's table of backends, from where the tests take it.

Shapes: B batch, T query tokens, S key tokens, H query heads, G key/value heads, C head_dim,
N tokens, k experts_per_token, E experts, D hidden_size, F intermediate_size, R = N k sorted rows.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

SWIGLU_ALPHA = 1.702  # gpt-oss gates with x * sigmoid(1.702 x), a close fit of GELU


# --------------------------------------------------------------------------------------------- attention
def sdpa_attention(q, k, v, sinks, mask, dropout):
    """F.scaled_dot_product_attention and the sink: same arguments as eager_attention.

    On a CPU its fused kernel is called directly, since that also returns the log-sum-exp of the scores,
    which is all that the sink needs. Elsewhere, and with dropout, the sink is a null key: one feature is
    added to each head, 1 in every query, the sink's logit (times sqrt(C), which the scale takes back) in
    the null key, 0 in the other keys. The null key's value is 0, so it only takes its share of the
    denominator, and the sink's gradient comes through the key.
    """
    B, _, H, C = q.shape
    # an explicit copy per query head: with a mask, the fused kernels know no grouped heads
    # (B, S, G, C) -> (B, S, H, C)
    k, v = (x.repeat_interleave(H // x.shape[2], dim=2) for x in (k, v))
    fused = q.device.type == "cpu" and not dropout
    if sinks is not None and fused:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
        return _SinkAttention.apply(q, k, v, sinks, bias).transpose(1, 2)
    if sinks is not None:
        extra = 1 if q.device.type == "cpu" else 8 - C % 8  # CUDA's kernel wants multiples of 8
        q = F.pad(F.pad(q, (0, 1), value=1.0), (0, extra - 1))
        logit = (sinks * math.sqrt(C)).to(q.dtype)  # rounded once
        null_key = F.pad(logit[:, None], (C, extra - 1))  # (H, C + extra)
        k = torch.cat((null_key.expand(B, 1, -1, -1), F.pad(k, (0, extra))), dim=1)
        v = F.pad(v, (0, extra, 0, 0, 1, 0))  # (B, S, H, C) -> (B, 1 + S, H, C + extra)
        mask = F.pad(mask, (1, 0), value=True)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, scale=1 / math.sqrt(C)
    )
    return out.transpose(1, 2)[..., :C]


class _SinkAttention(torch.autograd.Function):
    """The CPU's fused attention with a sink in the denominator. q, k, v: (B, H, T or S, C); bias: (B or 1,
    1, T, S), 0 or -inf; returns (B, H, T, C).

    With the sink, the softmax's normaliser is logaddexp(lse, sink) instead of lse, and nothing else is
    different. So the kernel's own backward, given that normaliser and the output that goes with it,
    yields the right gradients; the sink's is that of a key whose value is 0.
    """

    @staticmethod
    def forward(ctx, q, k, v, sinks, bias):
        ctx.kernel = dict(attn_mask=bias, scale=1 / math.sqrt(q.shape[-1]))
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, **ctx.kernel
        )
        normaliser = torch.logaddexp(lse, sinks[:, None].to(lse.dtype))  # (B, H, T)
        out = out * (lse - normaliser).exp()[..., None].to(out.dtype)
        ctx.save_for_backward(q, k, v, sinks, out, normaliser)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, sinks, out, normaliser = ctx.saved_tensors
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, normaliser, 0.0, False, **ctx.kernel
        )
        mass = (sinks[:, None].to(normaliser.dtype) - normaliser).exp()  # what the sink took
        d_sinks = -(mass * (grad * out).sum(-1, dtype=mass.dtype)).sum((0, 2))
        return dq, dk, dv, d_sinks.to(sinks.dtype), None


# ----------------------------------------------------------------------------------------------- experts
def sorted_experts(x, index, weight, experts):
    """Tokens sorted by expert, then one product per expert and matrix: arguments of loop_experts."""
    (N, k), E = index.shape, experts.mlp1_weight.shape[0]
    flat = index.flatten()
    order = flat.argsort(stable=True)  # (R,): row r of the sorted tokens is assignment order[r]
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(N * k, device=x.device))
    sizes = torch.bincount(flat, minlength=E + 1).tolist()  # the last group is dropped
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    matrices = (w.to(dtype) for w in experts[:4])
    rows = _Distribute.apply(x.to(dtype), order, inverse, k)  # (N, D) -> (R, D)
    if experts.swiglu_limit is None:
        parts = [torch.zeros_like(rows[len(rows) - sizes[-1] :])]
        # unbind, not indexing: the gradient of E slices is then one stack, not E full-size additions
        for part, w1, b1, w2, b2 in zip(rows.split(sizes), *(w.unbind(0) for w in matrices)):
            parts.insert(-1, F.linear(experts.activation(F.linear(part, w1, b1)), w2, b2))
        rows = torch.cat(parts)
    else:
        rows = _SwigluExperts.apply(rows, *matrices, sizes[:-1], experts.swiglu_limit)
    return _Combine.apply(rows, weight.to(dtype), order, inverse).to(x.dtype)


# To sorted rows and back: in both directions the gradient of a gather is a gather too, exact and
# without atomics, since order (R,) and inverse (R,) are permutations of each other.
class _Distribute(torch.autograd.Function):
    """x (N, D) -> (R, D): row r is the token of assignment order[r]."""

    @staticmethod
    def forward(ctx, x, order, inverse, k):
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x.index_select(0, order // k)

    @staticmethod
    def backward(ctx, grad):
        (inverse,) = ctx.saved_tensors
        first, *others = inverse.view(-1, ctx.k).unbind(1)
        out = grad.index_select(0, first)
        for other in others:
            out += grad.index_select(0, other)
        return out, None, None, None


class _Combine(torch.autograd.Function):
    """rows (R, D), weight (N, k) -> (N, D): each token's weighted sum over its assignments."""

    @staticmethod
    def forward(ctx, rows, weight, order, inverse):
        ctx.save_for_backward(rows, weight, order, inverse)
        out = rows.new_zeros(len(weight), rows.shape[1])
        for slot, share in zip(inverse.view_as(weight).unbind(1), weight.unbind(1)):
            out.addcmul_(rows.index_select(0, slot), share[:, None])
        return out

    @staticmethod
    def backward(ctx, grad):
        rows, weight, order, inverse = ctx.saved_tensors
        d_rows = grad.index_select(0, order // weight.shape[1])  # (R, D)
        d_weight = torch.linalg.vecdot(d_rows, rows).index_select(0, inverse).view_as(weight)
        return d_rows.mul_(weight.flatten()[order, None]), d_weight, None, None


class _SwigluExperts(torch.autograd.Function):
    """Every expert on its own rows; the gradient is written out, since that is where the time goes.

    rows: (R, D), sorted by expert, sizes[e] of them for expert e, the rest for none: their result is 0.
    w1: (E, 2F, D), b1: (E, 2F), gate and up interleaved; w2: (E, D, F), b2: (E, D). Returns (R, D).

    Gate and up come from two products with every other row of w1, not from one product whose columns
    alternate: the elementwise work then runs over whole cache lines.
    """

    @staticmethod
    def forward(ctx, rows, w1, b1, w2, b2, sizes, limit):
        R, F_, used = len(rows), w2.shape[2], sum(sizes)
        gate, up = rows.new_empty(2, used, F_)
        for e, part in _parts(sizes):
            torch.addmm(b1[e, 0::2], rows[part], w1[e, 0::2].mT, out=gate[part])
            torch.addmm(b1[e, 1::2], rows[part], w1[e, 1::2].mT, out=up[part])
        _, _, _, inner = _swiglu_parts(gate, up, limit)
        out = rows.new_zeros(R, rows.shape[1])
        for e, part in _parts(sizes):
            torch.addmm(b2[e], inner[part], w2[e].mT, out=out[part])
        ctx.save_for_backward(rows, w1, w2, gate, up)
        ctx.sizes, ctx.limit = sizes, limit
        return out

    @staticmethod
    def backward(ctx, grad):
        rows, w1, w2, gate, up = ctx.saved_tensors
        sizes, limit = ctx.sizes, ctx.limit
        sigmoid, silu, shifted, inner = _swiglu_parts(gate, up, limit)
        d_w1, d_w2 = torch.zeros_like(w1), torch.zeros_like(w2)
        d_b1, d_b2 = w1.new_zeros(w1.shape[:2]), w2.new_zeros(w2.shape[:2])
        d_inner = torch.empty_like(inner)
        for e, part in _parts(sizes):
            torch.mm(grad[part].mT, inner[part], out=d_w2[e])
            torch.sum(grad[part], 0, out=d_b2[e])
            torch.mm(grad[part], w2[e], out=d_inner[part])
        d_up = silu.mul_(d_inner).mul_(up.abs() <= limit)
        # d silu / d gate = sigmoid (1 + alpha gate (1 - sigmoid))
        slope = torch.addcmul(
            sigmoid, sigmoid.mul(gate.clamp(max=limit)), 1 - sigmoid, value=SWIGLU_ALPHA
        )
        d_gate = slope.mul_(d_inner).mul_(shifted).mul_(gate <= limit)
        d_rows = torch.zeros_like(rows)
        for e, part in _parts(sizes):
            for half, d in enumerate((d_gate[part], d_up[part])):
                d_w1[e, half::2] = d.mT @ rows[part]
                d_b1[e, half::2] = d.sum(0)
                d_rows[part].addmm_(d, w1[e, half::2])
        return d_rows, d_w1, d_b1, d_w2, d_b2, None, None


def _parts(sizes):
    """Each expert with the slice of its rows; experts without rows are left out."""
    end = 0
    for e, size in enumerate(sizes):
        start, end = end, end + size
        if size:
            yield e, slice(start, end)


def _swiglu_parts(gate, up, limit):
    """sigmoid(alpha gate), gate times that, up + 1, and their product, from the two halves, clamped."""
    gate = gate.clamp(max=limit)
    sigmoid = torch.mul(gate, SWIGLU_ALPHA).sigmoid_()
    silu = gate.mul_(sigmoid)
    shifted = up.clamp(-limit, limit).add_(1)  # up = 0 lets the gate pass
    return sigmoid, silu, shifted, silu * shifted


# ------------------------------------------------------------------------------------- norm and rotation
class RMSNorm(torch.autograd.Function):
    """F.rms_norm over the last axis, in half of its time on a CPU. x (..., D), scale (D,) -> (..., D)"""

    @staticmethod
    def forward(ctx, x, scale, eps):
        inverse = (torch.linalg.vecdot(x, x)[..., None] / x.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x, scale, inverse)
        return (x * inverse).mul_(scale)

    @staticmethod
    def backward(ctx, grad):
        x, scale, inverse = ctx.saved_tensors
        d_scale = (x * inverse).mul_(grad).flatten(0, -2).sum(0)
        grad = grad * scale
        shared = torch.linalg.vecdot(grad, x)[..., None] * inverse.pow(3) / x.shape[-1]
        return grad.mul_(inverse).addcmul_(x, shared, value=-1), d_scale, None


class Rotate(torch.autograd.Function):
    """Pair (i, i + C/2) of x (B, T, heads, C) turned by its angle; cos, sin (B or 1, T, 1, C/2)."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, grad):
        return _rotated(grad, *ctx.saved_tensors, -1), None, None


def _rotated(x, cos, sin, direction):
    (first, second), out = (
        x.chunk(2, dim=-1),
        torch.empty_like(x, memory_format=torch.contiguous_format),
    )
    out_first, out_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=direction)
    return out
