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
    x, weight, input_dtype = x.to(dtype), weight.to(dtype), x.dtype
    E = experts.mlp1_weight.shape[0]
    sizes = torch.bincount(index.flatten(), minlength=E + 1).tolist()  # the last group is the dropped ones
    matrices = [w.to(dtype) for w in experts[:4]]
    if experts.swiglu_limit is not None:
        limit, alpha = experts.swiglu_limit, experts.swiglu_alpha
        return _SwigluExperts.apply(x, weight, order, inverse, *matrices, sizes, limit, alpha).to(input_dtype)
    rows = _Distribute.apply(x, order, inverse, index.shape[1])
    parts = [torch.zeros_like(rows[len(rows) - sizes[-1] :])]
    # with unbind, the gradient of E slices is one stack; with indexing, it is E additions of full size
    for part, w1, b1, w2, b2 in zip(rows.split(sizes), *(w.unbind(0) for w in matrices)):
        parts.insert(-1, F.linear(experts.activation(F.linear(part, w1, b1)), w2, b2))
    return _Combine.apply(torch.cat(parts), weight, order, inverse).to(input_dtype)


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
        return _sum_of_copies(grad, ctx.saved_tensors[0].view(-1, ctx.k)), None, None, None


def _sum_of_copies(rows, inverse, weight=None):
    """rows (R, D), inverse (N, k), weight (N, k) or None for 1 -> (N, D), the sum over each token's k rows."""
    return F.embedding_bag(inverse, rows, mode="sum", per_sample_weights=weight)  # one pass over the rows


def _d_weight(grad, rows, inverse, weight):
    """The gradient (N, k) of the weight of _sum_of_copies; grad: (N, D)."""
    N, k = weight.shape
    starts = torch.arange(0, N * k, k, device=grad.device)
    token = torch.arange(N, device=grad.device).repeat_interleave(k)
    d_weight = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, rows, inverse, starts, token, mode=0
    )
    return d_weight.view(N, k)


class _Combine(torch.autograd.Function):
    """rows (R, D), weight (N, k) -> (N, D), the weighted sum over the assignments of each token."""

    @staticmethod
    def forward(ctx, rows, weight, order, inverse):
        ctx.save_for_backward(rows, weight, order, inverse)
        return _sum_of_copies(rows, inverse.view_as(weight), weight)

    @staticmethod
    def backward(ctx, grad):
        rows, weight, order, inverse = ctx.saved_tensors
        d_rows = grad.index_select(0, order // weight.shape[1])  # (R, D)
        return d_rows.mul_(weight.flatten()[order, None]), _d_weight(grad, rows, inverse, weight), None, None


class _SwigluExperts(torch.autograd.Function):
    """sorted_experts with swiglu and a hand-written gradient.

    x: (N, D).  weight: (N, k).  Among the R rows sorted by expert, sizes[e] belong to expert e and the last
    sizes[E] are dropped.  w1: (E, 2F, D), b1: (E, 2F), gate and up interleaved; w2: (E, D, F), b2: (E, D).
    Returns (N, D).

    The experts run one after another, each from the gather of its rows to its output, so that intermediate
    values stay in the cache. Gate and up come from two products, with copies of the even and the odd rows of
    w1, so that each is contiguous. With z = alpha gate, the gated half is silu(z) / alpha: silu and its
    gradient are one kernel each, and the copies and the products include the factors.
    """

    @staticmethod
    def forward(ctx, x, weight, order, inverse, w1, b1, w2, b2, sizes, limit, alpha):
        token, number = order // weight.shape[1], len(order) - sizes[-1]
        w_gate, w_up = _halves(w1, alpha)
        b_gate, b_up = _halves(b1, alpha)
        z, shifted = x.new_empty(2, number, w2.shape[2])
        rows = _rows(x, len(order), number)
        clamped = []
        for some, out, z_e, shifted_e, w_gate_e, w_up_e, b_gate_e, b_up_e, w2_e, b2_e in _by_expert(
            sizes[:-1], (token, rows, z, shifted), (w_gate, w_up, b_gate, b_up + 1, w2, b2)
        ):
            part = x.index_select(0, some)
            torch.addmm(b_gate_e, part, w_gate_e.mT, out=z_e)
            torch.addmm(b_up_e, part, w_up_e.mT, out=shifted_e)
            clamped.append(_clamps(z_e, shifted_e, limit, alpha))
            if clamped[-1]:
                z_e, shifted_e = z_e.clamp(max=alpha * limit), shifted_e.clamp(1 - limit, 1 + limit)
            torch.addmm(b2_e, F.silu(z_e).mul_(shifted_e), w2_e.mT, alpha=1 / alpha, out=out)
        ctx.save_for_backward(x, weight, order, inverse, w1, w2, z, shifted, rows)
        ctx.sizes, ctx.clamped, ctx.limit, ctx.alpha = sizes, clamped, limit, alpha
        return _sum_of_copies(rows, inverse.view_as(weight), weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight, order, inverse, w1, w2, z, shifted, rows = ctx.saved_tensors
        limit, alpha = ctx.limit, ctx.alpha
        w_gate, w_up = _halves(w1, alpha)  # made again, so that no copy of the weights is kept
        token, share = order // weight.shape[1], weight.flatten()[order, None]
        d_rows = _rows(x, len(rows), len(z))
        d_w_gate, d_w_up, d_w2 = (torch.zeros_like(w) for w in (w_gate, w_up, w2))
        d_b_gate, d_b_up, d_b2 = (w.new_zeros(w.shape[:2]) for w in (w_gate, w_up, w2))
        clamped = iter(ctx.clamped)
        for (
            some, share_e, z_e, shifted_e, d_part,
            w_gate_e, w_up_e, w2_e, d_w_gate_e, d_w_up_e, d_w2_e, d_b_gate_e, d_b_up_e, d_b2_e,
        ) in _by_expert(
            ctx.sizes[:-1],
            (token, share, z, shifted, d_rows),
            (w_gate, w_up, w2, d_w_gate, d_w_up, d_w2, d_b_gate, d_b_up, d_b2),
        ):  # fmt: skip
            part, d_out = x.index_select(0, some), grad.index_select(0, some)
            d_out.mul_(share_e)
            torch.sum(d_out, 0, out=d_b2_e)
            if is_clamped := next(clamped):
                outside = z_e > alpha * limit, (shifted_e < 1 - limit) | (shifted_e > 1 + limit)
                z_e, shifted_e = z_e.clamp(max=alpha * limit), shifted_e.clamp(1 - limit, 1 + limit)
            silu = F.silu(z_e)
            inner = silu * shifted_e
            torch.addmm(d_w2_e, d_out.mT, inner, beta=0, alpha=1 / alpha, out=d_w2_e)
            # d_inner overwrites inner, which is no longer needed
            d_inner = torch.addmm(inner, d_out, w2_e, beta=0, alpha=1 / alpha, out=inner)
            d_shifted = silu.mul_(d_inner)
            d_z = torch.ops.aten.silu_backward(d_inner.mul_(shifted_e), z_e)
            if is_clamped:
                d_z.masked_fill_(outside[0], 0)
                d_shifted.masked_fill_(outside[1], 0)
            torch.mm(d_z.mT, part, out=d_w_gate_e)
            torch.sum(d_z, 0, out=d_b_gate_e)
            torch.mm(d_shifted.mT, part, out=d_w_up_e)
            torch.sum(d_shifted, 0, out=d_b_up_e)
            torch.mm(d_z, w_gate_e, out=d_part)
            d_part.addmm_(d_shifted, w_up_e)
        d_x = _sum_of_copies(d_rows, inverse.view_as(weight))
        d_weight = _d_weight(grad, rows, inverse, weight) if ctx.needs_input_grad[1] else None
        d_w1, d_b1 = _interleaved(d_w_gate, d_w_up, alpha), _interleaved(d_b_gate, d_b_up, alpha)
        return d_x, d_weight, None, None, d_w1, d_b1, d_w2, d_b2, None, None, None


def _halves(x, alpha):
    """(E, 2F, ...) interleaved -> alpha times the gates (E, F, ...), and the others (E, F, ...)."""
    return x[:, 0::2] * alpha, x[:, 1::2].contiguous()


def _interleaved(d_gate, d_up, alpha):
    """The gradient of _halves."""
    return torch.stack((d_gate * alpha, d_up), dim=2).flatten(1, 2)


def _rows(x, number, used):
    """(number, D) for the rows sorted by expert; those from `used` on, which are dropped, are 0."""
    rows = x.new_empty(number, x.shape[1])
    rows[used:] = 0
    return rows


def _by_expert(sizes, by_row, by_expert):
    """For each expert that has rows, its part of the tensors by_row (R, ...) and of those by_expert (E, ...)."""
    parts = (x[: sum(sizes)].split_with_sizes(sizes) for x in by_row)
    for size, *views in zip(sizes, *parts, *(x.unbind(0) for x in by_expert)):
        if size:
            yield views


def _clamps(z, shifted, limit, alpha):
    """Whether a clamp acts. Only a CPU looks, because it need not wait for a device."""
    if z.device.type != "cpu":
        return True
    return not (_within(z, -math.inf, alpha * limit) and _within(shifted, 1 - limit, 1 + limit))


def _within(x, low, high):
    least, most = torch.aminmax(x)
    return bool(least >= low and most <= high)
