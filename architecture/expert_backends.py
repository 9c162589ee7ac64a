"""Faster paths for gptoss.loop_experts: same arguments, same values, same gradients.

A new path needs a function here and an entry in gptoss.EXPERT_BACKENDS, from where the tests take it.

Shapes: N tokens, k experts_per_token, R = N k assignments, E experts, D hidden_size, F intermediate_size,
U = 2F (gate and up, interleaved) with swiglu and F with gelu.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

SWIGLU_ALPHA = 1.702  # gpt-oss gates with x * sigmoid(1.702 x), a close fit of GELU


def sorted_experts(x, index, weight, experts):
    """Tokens sorted by expert, then one product per expert and matrix: arguments of loop_experts.

    Asks the device once how many tokens each expert has.
    """
    rows, order, inverse, dtype = _distribute(x, index)
    E = experts.mlp1_weight.shape[0]
    sizes = torch.bincount(index.flatten(), minlength=E + 1).tolist()  # the last group is dropped
    matrices = [w.to(dtype) for w in experts[:4]]
    if experts.swiglu_limit is not None:
        rows = _SwigluExperts.apply(rows, *matrices, sizes[:-1], experts.swiglu_limit)
    else:
        parts = [torch.zeros_like(rows[len(rows) - sizes[-1] :])]
        # unbind, not indexing: the gradient of E slices is then one stack, not E full-size additions
        for part, w1, b1, w2, b2 in zip(rows.split(sizes), *(w.unbind(0) for w in matrices)):
            parts.insert(-1, F.linear(experts.activation(F.linear(part, w1, b1)), w2, b2))
        rows = torch.cat(parts)
    return _Combine.apply(rows, weight.to(dtype), order, inverse).to(x.dtype)


def grouped_experts(x, index, weight, experts):
    """Tokens sorted by expert, then F.grouped_mm over all of them: arguments of loop_experts.

    Never waits for the device. float32, bfloat16 and float16 only, as grouped_mm.
    """
    rows, order, inverse, dtype = _distribute(x, index)
    if dtype == torch.float64:
        raise ValueError(
            "experts=grouped takes float32, bfloat16 or float16, got float64; use experts=sorted"
        )
    for name, size in (
        ("hidden_size", x.shape[1]),
        ("intermediate_size", experts.mlp2_weight.shape[2]),
    ):
        if size * dtype.itemsize % 16:
            raise ValueError(
                f"experts=grouped takes rows of a multiple of 16 bytes, got {name}={size} in {dtype}; "
                f"use a multiple of {16 // dtype.itemsize}, or use experts=sorted"
            )
    E = experts.mlp1_weight.shape[0]
    expert = index.flatten()[order]  # (R,), rising; E for a dropped assignment
    ends = torch.searchsorted(expert, torch.arange(E, device=x.device), right=True).int()
    kept = (expert < E)[:, None]
    w1, b1, w2, b2 = (w.to(dtype) for w in experts[:4])
    # What is behind the last end is never computed: it is cut off on both sides, gradients included.
    rows = rows.where(kept, 0)
    up = _add_bias(F.grouped_mm(rows, w1.mT, offs=ends), b1, expert)
    down = _add_bias(
        F.grouped_mm(experts.activation(up.where(kept, 0)), w2.mT, offs=ends), b2, expert
    )
    return _Combine.apply(down.where(kept, 0), weight.to(dtype), order, inverse).to(x.dtype)


def _add_bias(rows, bias, expert):
    """rows (R, U) and each row's bias (E, U); a product with 0 and 1, so that the gradient needs no atomics."""
    which = expert[:, None] == torch.arange(len(bias), device=rows.device)  # (R, E)
    return torch.addmm(rows, which.to(rows.dtype), bias)


def _distribute(x, index):
    """-> rows (R, D) sorted by expert in the dtype of the products, order, inverse, that dtype."""
    N, k = index.shape
    order = index.flatten().argsort(stable=True)  # (R,): row r is assignment order[r]
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(N * k, device=x.device))
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    return _Distribute.apply(x.to(dtype), order, inverse, k), order, inverse, dtype


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
