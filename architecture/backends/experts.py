"""Faster implementations of gptoss.loop_experts, with the same arguments, values and gradients.

A new implementation is a function here and an entry in gptoss.EXPERT_BACKENDS, which the tests go through.

Shapes: N tokens, k experts_per_token, R = N k assignments, E experts, D hidden_size, F intermediate_size,
U = 2F (gate and up, interleaved) with swiglu and F with gelu.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def sorted_experts(x, index, weight, experts):
    """Sort the tokens by expert, then multiply once per expert and matrix. Arguments as for loop_experts.

    Waits once for the device, to read the number of tokens of each expert.
    """
    order, inverse, dtype = _sort(x, index)
    x, k, input_dtype = x.to(dtype), index.shape[1], x.dtype
    E = experts.mlp1_weight.shape[0]
    sizes = torch.bincount(index.flatten(), minlength=E + 1).tolist()  # the last group is the dropped ones
    matrices = [w.to(dtype) for w in experts[:4]]
    if experts.swiglu_limit is not None:
        rows = _SwigluExperts.apply(
            x, order, inverse, k, *matrices, sizes[:-1], experts.swiglu_limit, experts.swiglu_alpha
        )
    else:
        rows = _Distribute.apply(x, order, inverse, k)
        parts = [torch.zeros_like(rows[len(rows) - sizes[-1] :])]
        # with unbind, the gradient of E slices is one stack; with indexing, it is E additions of full size
        for part, w1, b1, w2, b2 in zip(rows.split(sizes), *(w.unbind(0) for w in matrices)):
            parts.insert(-1, F.linear(experts.activation(F.linear(part, w1, b1)), w2, b2))
        rows = torch.cat(parts)
    return _Combine.apply(rows, weight.to(dtype), order, inverse).to(input_dtype)


def grouped_experts(x, index, weight, experts):
    """Sort the tokens by expert, then call F.grouped_mm once per matrix. Arguments as for loop_experts.

    Does not wait for the device. Like grouped_mm, it takes float32, bfloat16 and float16 only.
    """
    order, inverse, dtype = _sort(x, index)
    if dtype == torch.float64:
        raise ValueError(
            "experts=grouped takes float32, bfloat16 or float16, got float64; use experts=sorted"
        )
    for name, size in (("hidden_size", x.shape[1]), ("intermediate_size", experts.mlp2_weight.shape[2])):
        if size * dtype.itemsize % 16:
            raise ValueError(
                f"experts=grouped takes rows of a multiple of 16 bytes, got {name}={size} in {dtype}; "
                f"use a multiple of {16 // dtype.itemsize}, or use experts=sorted"
            )
    E = experts.mlp1_weight.shape[0]
    expert = index.flatten()[order]  # (R,), increasing; E for a dropped assignment
    ends = torch.searchsorted(expert, torch.arange(E, device=x.device), right=True).int()
    kept = (expert < E)[:, None]
    w1, b1, w2, b2 = (w.to(dtype) for w in experts[:4])
    # grouped_mm leaves rows after the last end undefined, so they are masked before and after each product.
    rows = _Distribute.apply(x.to(dtype), order, inverse, index.shape[1]).where(kept, 0)
    up = _add_bias(F.grouped_mm(rows, w1.mT, offs=ends), b1, expert)
    down = _add_bias(F.grouped_mm(experts.activation(up.where(kept, 0)), w2.mT, offs=ends), b2, expert)
    return _Combine.apply(down.where(kept, 0), weight.to(dtype), order, inverse).to(x.dtype)


def _add_bias(rows, bias, expert):
    """Add each row's bias, from (E, U), to rows (R, U), by a product whose gradient needs no atomics."""
    which = expert[:, None] == torch.arange(len(bias), device=rows.device)  # (R, E)
    return torch.addmm(rows, which.to(rows.dtype), bias)


def _sort(x, index):
    """-> order (R,), row r is assignment order[r]; inverse (R,); the dtype of the products."""
    assignments = torch.arange(index.numel(), device=x.device)
    order = index.flatten().argsort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, assignments)
    if torch.is_autocast_enabled(x.device.type):
        return order, inverse, torch.get_autocast_dtype(x.device.type)
    return order, inverse, x.dtype


# _Distribute and _Combine go from tokens to sorted rows and back. order (R,) and inverse (R,) are inverse
# permutations, so the gradient of each gather is another gather, which is deterministic and needs no atomics.
class _Distribute(torch.autograd.Function):
    """x (N, D) -> (R, D), where row r is the token of assignment order[r]."""

    @staticmethod
    def forward(ctx, x, order, inverse, k):
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x.index_select(0, order // k)

    @staticmethod
    def backward(ctx, grad):
        return _sum_of_copies(grad, *ctx.saved_tensors, ctx.k), None, None, None


def _sum_of_copies(rows, inverse, k):
    """rows (R, D) -> (N, D), the sum over the k rows of each token."""
    first, *others = inverse.view(-1, k).unbind(1)
    out = rows.index_select(0, first)
    for other in others:
        out += rows.index_select(0, other)
    return out


class _Combine(torch.autograd.Function):
    """rows (R, D), weight (N, k) -> (N, D), the weighted sum over the assignments of each token."""

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
    """Every expert with swiglu on its own rows, with a hand-written gradient, which takes most of the time.

    x: (N, D). Among the R rows sorted by expert, sizes[e] belong to expert e; the rest are dropped, giving 0.
    w1: (E, 2F, D), b1: (E, 2F), gate and up interleaved; w2: (E, D, F), b2: (E, D). Returns (R, D).
    The backward pass gathers the rows again. Saving x instead of the rows takes no memory, because the router
    also saves x.

    The experts run one after another, so that the intermediate values stay in the cache. Gate and up come
    from two products, with the even and the odd rows of w1, so that each is contiguous. With z = alpha gate,
    the gated half is silu(z) / alpha: silu and its gradient are one kernel each, and the products include the
    factors.
    """

    @staticmethod
    def forward(ctx, x, order, inverse, k, w1, b1, w2, b2, sizes, limit, alpha):
        rows = x.index_select(0, order // k)
        z, shifted = rows.new_empty(2, sum(sizes), w2.shape[2])
        out = rows.new_empty(rows.shape)
        out[sum(sizes) :] = 0
        for e, part in _parts(sizes):
            some = rows[part]
            torch.addmm(b1[e, 0::2], some, w1[e, 0::2].mT, beta=alpha, alpha=alpha, out=z[part])
            torch.addmm(b1[e, 1::2] + 1, some, w1[e, 1::2].mT, out=shifted[part])
            inner, _, _ = _gated(z[part], shifted[part], limit, alpha)
            torch.addmm(b2[e], inner, w2[e].mT, alpha=1 / alpha, out=out[part])
        ctx.save_for_backward(x, order, inverse, w1, w2, z, shifted)
        ctx.k, ctx.sizes, ctx.limit, ctx.alpha = k, sizes, limit, alpha
        return out

    @staticmethod
    def backward(ctx, grad):
        x, order, inverse, w1, w2, z, shifted = ctx.saved_tensors
        alpha, rows = ctx.alpha, x.index_select(0, order // ctx.k)
        d_rows = rows.new_empty(rows.shape)
        d_rows[sum(ctx.sizes) :] = 0
        d_w1, d_w2 = torch.zeros_like(w1), torch.zeros_like(w2)
        d_b1, d_b2 = w1.new_zeros(w1.shape[:2]), w2.new_zeros(w2.shape[:2])
        for e, part in _parts(ctx.sizes):
            some, d_out = rows[part], grad[part]
            inner, silu, (z_part, up_part, outside) = _gated(z[part], shifted[part], ctx.limit, alpha)
            torch.addmm(d_w2[e], d_out.mT, inner, beta=0, alpha=1 / alpha, out=d_w2[e])
            torch.sum(d_out, 0, out=d_b2[e])
            # d_inner overwrites inner, which is no longer needed
            d_inner = torch.addmm(inner, d_out, w2[e], beta=0, alpha=1 / alpha, out=inner)
            d_up = silu.mul_(d_inner)
            d_z = torch.ops.aten.silu_backward(d_inner.mul_(up_part), z_part)
            if outside is not None:
                d_z.masked_fill_(outside[0], 0)
                d_up.masked_fill_(outside[1], 0)
            for half, d, scale in ((0, d_z, alpha), (1, d_up, 1.0)):
                torch.addmm(d_w1[e, half::2], d.mT, some, beta=0, alpha=scale, out=d_w1[e, half::2])
                torch.sum(d, 0, out=d_b1[e, half::2])
                # the first half sets d_rows, the second half adds to it
                torch.addmm(d_rows[part], d, w1[e, half::2], beta=half, alpha=scale, out=d_rows[part])
        d_b1[:, 0::2] *= alpha
        d_x = _sum_of_copies(d_rows, inverse, ctx.k)
        return d_x, None, None, None, d_w1, d_b1, d_w2, d_b2, None, None, None


def _parts(sizes):
    """Each expert that has rows, with the slice of its rows."""
    end = 0
    for e, size in enumerate(sizes):
        start, end = end, end + size
        if size:
            yield e, slice(start, end)


def _gated(z, shifted, limit, alpha):
    """alpha times swiglu, where gate = z / alpha and up = shifted - 1 are clamped to limit.

    Returns the result; silu(z); and z, shifted and a pair of masks, after clamping. The masks are True where
    a clamp acts. On a CPU, where the check does not wait for a device, they are None if no clamp acts.
    """
    most, low, high = alpha * limit, 1 - limit, 1 + limit
    outside = None
    if z.device.type != "cpu" or not _within(z, -math.inf, most) or not _within(shifted, low, high):
        outside = z > most, (shifted < low) | (shifted > high)
        z, shifted = z.clamp(max=most), shifted.clamp(low, high)
    silu = F.silu(z)
    return silu * shifted, silu, (z, shifted, outside)


def _within(x, low, high):
    least, most = torch.aminmax(x)
    return bool(least >= low and most <= high)
