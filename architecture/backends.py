"""Faster paths for what gptoss.py specifies: same arguments, same values, same gradients.

sdpa_attention is held to gptoss.eager_attention, sorted_experts to gptoss.loop_experts. A new path
needs a function here and an entry in gptoss.py's table of backends, from where the tests take it.

Shapes: B batch, T query tokens, S key tokens, H query heads, G key/value heads, C head_dim,
N tokens, k experts_per_token, E experts, D hidden_size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def sdpa_attention(q, k, v, sinks, mask, dropout):
    """F.scaled_dot_product_attention with the sink as a null key: same arguments as eager_attention.

    One feature is added to each head: 1 in every query, the sink's logit (times sqrt(C), which the scale
    takes back) in the null key, 0 in the other keys. The null key's value is 0, so it only takes its share of the denominator, and the
    sink's gradient comes through the key.
    """
    B, _, H, C = q.shape
    # an explicit copy per query head: with a mask, CUDA's fused kernel knows no grouped heads
    # (B, S, G, C) -> (B, S, H, C)
    k, v = (x.repeat_interleave(H // x.shape[2], dim=2) for x in (k, v))
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


class _Regroup(torch.autograd.Function):
    """Rows to another order by a gather whose gradient is a gather too: exact and without atomics.

    x: (N, D), each row used `copies` times.  order: (R,) into the N*copies rows; a permutation.
    inverse: (R,), the permutation back.
    """

    @staticmethod
    def forward(ctx, x, order, inverse, copies):
        ctx.save_for_backward(inverse)
        ctx.copies = copies
        return x[order // copies] if copies > 1 else x[order]

    @staticmethod
    def backward(ctx, grad):
        (inverse,) = ctx.saved_tensors
        grad = grad[inverse]
        return (
            grad.unflatten(0, (-1, ctx.copies)).sum(1) if ctx.copies > 1 else grad,
            None,
            None,
            None,
        )


def sorted_experts(x, index, weight, experts):
    """Tokens sorted by expert, then one product per expert and layer half: arguments of loop_experts."""
    (N, k), E = index.shape, experts.mlp1_weight.shape[0]
    flat = index.flatten()
    order = flat.argsort(stable=True)  # (N*k,): row r of the sorted tokens is assignment order[r]
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(N * k, device=x.device))
    sizes = torch.bincount(flat, minlength=E + 1).tolist()  # the last group is dropped
    rows = _Regroup.apply(x, order, inverse, k).split(sizes)
    parts = []
    # unbind, not indexing: the gradient of E slices is then one stack, not E full-size additions
    for part, *weights in zip(rows, *(w.unbind(0) for w in experts[:4])):
        w1, b1, w2, b2 = weights
        parts.append(F.linear(experts.activation(F.linear(part, w1, b1)), w2, b2))
    parts.append(torch.zeros_like(rows[E], dtype=parts[0].dtype))
    chosen = _Regroup.apply(torch.cat(parts), inverse, order, 1).view(N, k, -1)
    return (chosen * weight[..., None].to(chosen.dtype)).sum(1).to(x.dtype)
