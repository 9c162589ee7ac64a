"""Faster paths for gptoss.eager_attention: same arguments, same values, same gradients.

A new path needs a function here and an entry in gptoss.ATTENTION_BACKENDS, from where the tests take it.

Shapes: B batch, T query tokens, S key tokens, H query heads, G key/value heads, C head_dim.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F


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
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=1 / math.sqrt(C))
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


# flex_attention is imported where it is used: the import takes a second.
def flex_attention(q, k, v, sinks, mask, dropout):
    """torch's flex_attention, compiled: skips the blocks of keys that a window hides, and expands no heads.

    Arguments of eager_attention but for the mask, which is block_mask's. The sink scales the output
    by sigmoid(lse - sink), as in _SinkAttention. For CUDA; on a CPU torch has no backward for it.
    """
    if dropout:
        raise ValueError(
            f"attention=flex has no dropout, got dropout={dropout}; use attention=sdpa or dropout=0"
        )
    if q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad:
        raise ValueError(
            "attention=flex cannot train on a CPU, where torch has no backward for it; use attention=sdpa"
        )
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, aux = _compiled_flex(q.device.type)(
        q, k, v, block_mask=mask, scale=1 / math.sqrt(q.shape[-1]), enable_gqa=True
    )
    if sinks is not None:
        share = torch.sigmoid(aux.lse - sinks[:, None].to(aux.lse.dtype))  # of all keys together
        out = out * share[..., None].to(out.dtype)
    return out.transpose(1, 2)


def block_mask(query_positions, key_positions, window):
    """gptoss.visible_keys for flex_attention: the same rule, and which blocks of it are empty."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows = max(len(query_positions), len(key_positions))
    query = query_positions.expand(rows, -1)
    key = key_positions.expand(rows, -1)

    def visible(b, h, i, j):
        row = b if rows > 1 else 0  # one row serves a batch of any size
        at, to = query[row, i], key[row, j]
        seen = (to <= at) & (to >= 0)
        if window is not None:
            seen = seen & (to > at - window)
        return seen | (to == at)

    batch = rows if rows > 1 else None
    return create_block_mask(visible, batch, None, query.shape[1], key.shape[1], query.device)


@functools.cache
def _compiled_flex(device_type):
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    def call(*args, **kwargs):
        return flex_attention(*args, **kwargs, return_aux=AuxRequest(lse=True))

    return call if device_type == "cpu" else torch.compile(call, dynamic=False)
