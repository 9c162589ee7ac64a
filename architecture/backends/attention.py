"""Faster implementations of gptoss.eager_attention, with the same arguments, values and gradients.

A new implementation is a function here and an entry in gptoss.ATTENTION_BACKENDS, which the tests go through.

Shapes: B batch, T query tokens, S key tokens, H query heads, G key/value heads, C head_dim.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F


def sdpa_attention(q, k, v, sinks, mask, dropout):
    """F.scaled_dot_product_attention with sinks. Arguments as for eager_attention.

    On a CPU without dropout, the fused kernel is called directly, because it also returns the log-sum-exp of
    the scores, from which the sink's share follows. Otherwise the sink becomes an additional key. Each head
    gets one more feature: 1 in every query, the sink's logit times sqrt(C) in the additional key (the scale
    of the scores divides by sqrt(C)), and 0 in all other keys. The value of the additional key is 0, so it
    only adds to the denominator of the softmax, and the gradient of the sink flows through the key.
    """
    B, _, H, C = q.shape
    # keys and values are repeated, because with a mask the fused kernels have no grouped heads
    # (B, S, G, C) -> (B, S, H, C)
    k, v = (x.repeat_interleave(H // x.shape[2], dim=2) for x in (k, v))
    fused = q.device.type == "cpu" and not dropout
    if sinks is not None and fused:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
        return _SinkAttention.apply(q, k, v, sinks, bias).transpose(1, 2)
    if sinks is not None:
        extra = 1 if q.device.type == "cpu" else 8 - C % 8  # the CUDA kernel needs a multiple of 8
        q = F.pad(F.pad(q, (0, 1), value=1.0), (0, extra - 1))
        logit = (sinks * math.sqrt(C)).to(q.dtype)  # one rounding, after the product
        null_key = F.pad(logit[:, None], (C, extra - 1))  # (H, C + extra)
        k = torch.cat((null_key.expand(B, 1, -1, -1), F.pad(k, (0, extra))), dim=1)
        v = F.pad(v, (0, extra, 0, 0, 1, 0))  # (B, S, H, C) -> (B, 1 + S, H, C + extra)
        mask = F.pad(mask, (1, 0), value=True)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=1 / math.sqrt(C))
    return out.transpose(1, 2)[..., :C]


class _SinkAttention(torch.autograd.Function):
    """The fused attention kernel of the CPU with a sink in the denominator.

    q, k, v: (B, H, T or S, C).  bias: (B or 1, 1, T, S), 0 or -inf.  Returns (B, H, T, C).
    The sink changes the normaliser of the softmax from lse to logaddexp(lse, sink) and nothing else.
    Therefore the backward kernel returns the correct gradients if it gets this normaliser and the
    corresponding output. The gradient of the sink is that of a key with the value 0.
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
        mass = (sinks[:, None].to(normaliser.dtype) - normaliser).exp()  # the share of the sink
        d_sinks = -(mass * (grad * out).sum(-1, dtype=mass.dtype)).sum((0, 2))
        return dq, dk, dv, d_sinks.to(sinks.dtype), None


# flex_attention is imported in the functions that use it, because the import takes a second.
def flex_attention(q, k, v, sinks, mask, dropout):
    """The compiled flex_attention of torch, which skips blocks of hidden keys and does not repeat heads.

    Arguments as for eager_attention, but the mask comes from block_mask. The sink multiplies the output by
    sigmoid(lse - sink). It needs CUDA for training, because torch has no backward for it on a CPU.
    With a mask of visible_keys, which the model passes with a cache, this is sdpa_attention: flex would be
    compiled again for every number of keys.
    """
    if isinstance(mask, torch.Tensor):
        return sdpa_attention(q, k, v, sinks, mask, dropout)
    if dropout:
        raise ValueError(
            f"attention=flex does not support dropout, got dropout={dropout}; use attention=sdpa or dropout=0"
        )
    if q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad:
        raise ValueError(
            "attention=flex cannot train on a CPU, because torch has no backward for it there; "
            "use attention=sdpa"
        )
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    flex = _flex if torch.compiler.is_compiling() else _compiled_flex(q.device.type)
    out, aux = flex(q, k, v, block_mask=mask, scale=1 / math.sqrt(q.shape[-1]), enable_gqa=True)
    if sinks is not None:
        share = torch.sigmoid(aux.lse - sinks[:, None].to(aux.lse.dtype))  # the share of all keys together
        out = out * share[..., None].to(out.dtype)
    return out.transpose(1, 2)


def block_mask(query_positions, key_positions, window, documents=None):
    """gptoss.visible_keys as a BlockMask for flex_attention, which knows the empty blocks."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows = max(len(query_positions), len(key_positions))
    query = query_positions.expand(rows, -1)
    key = key_positions.expand(rows, -1)

    def visible(b, h, i, j):
        row = b if rows > 1 else 0  # one row of positions is used for the whole batch
        at, to = query[row, i], key[row, j]
        seen = (to <= at) & (to >= 0)
        if window is not None:
            seen = seen & (to > at - window)
        return seen | (to == at)

    def of_one_document(b, h, i, j):
        row = b if rows > 1 else 0
        return visible(b, h, i, j) & (documents[row, i] == documents[row, j])

    if documents is not None:
        documents = documents.expand(rows, -1)
    batch, shown = rows if rows > 1 else None, visible if documents is None else of_one_document
    return create_block_mask(shown, batch, None, query.shape[1], key.shape[1], query.device)


def _flex(*args, **kwargs):
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    return flex_attention(*args, **kwargs, return_aux=AuxRequest(lse=True))


@functools.cache
def _compiled_flex(device_type):
    return _flex if device_type == "cpu" else torch.compile(_flex, dynamic=False)
