"""A decoder with few operator calls, for small models on a CPU, where the calls cost more than the arithmetic.

Weights are laid out for it once: with the scale of the norm in front of them, transposed, and those of queries
and keys a second time with swapped halves, so that the rotation is two operations. A bias is the last row of its
matrix, for an input that ends with 1. Buffers and their views are made once. Slot 0 of the cache is a null key
whose score is the sink. Of a prompt, the last layer computes only keys, values and the last column. `obstacle`
says what it cannot do; the general decoder of decode.py does everything, and the tests hold the two together.

The laid out weights are copies, so a decoder lives for one text: a model that trains on needs another one.

Shapes: B rows, T new columns of each row, N = B*T, S slots of a layer, D hidden_size, V vocabulary, H query
heads, G key/value heads, M = H/G, C head_dim, E experts, k experts_per_token, F intermediate_size, U = 2F
(gate and up interleaved) with swiglu and F with gelu.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

LARGEST_MODEL = 2**28  # parameters: beyond, the calls cost little, and copies of weights much memory
LARGEST_COPIED_HEAD = 2**22  # weights
TOKENS_AT_ONCE = 512  # most tokens that are read together

# Estimates that choose how the experts run: multiplications a second, weights read a second, and the seconds
# that an expert on its own takes beyond its arithmetic, for one token and for several, which have to be sorted.
MULTIPLICATIONS, WEIGHTS_READ, EXPERT_CALL, SORTED_EXPERT_CALL = 5e10, 4e9, 2e-5, 5e-5


def obstacle(model: nn.Module) -> str | None:
    """Why this decoder cannot run the model, or None if it can."""
    cls = type(model)
    if "lean_parts" not in vars(cls):  # its own, not that of a class that it extends
        return f"{cls.__name__} may override methods of the model"
    parts = cls, *cls.lean_parts, nn.LayerNorm, nn.Linear, nn.Embedding, nn.ModuleList
    methods = {"forward", "embed", "embed_tokens", "run_blocks", "head", "project", "route", "expert_weights"}
    for name, module in model.named_modules():
        if type(module) not in parts:
            return f"{name} is a {type(module).__name__}"
        replaced = {m for m in methods & vars(module).keys() if not hasattr(vars(module)[m], "same_values")}
        if module._forward_hooks or module._forward_pre_hooks or replaced:
            return f"{name or 'the model'} has a hook or another method"
        for function in ("attend", "run_experts", "run_shared_experts"):
            if getattr(module, function, None) not in (None, *cls.lean_functions):
                return f"{name} has another function {function}"
    tensors = list(model.parameters())
    if any(p.device.type != "cpu" for p in tensors):
        return "the model is not on the CPU"
    if {p.dtype for p in tensors} not in ({torch.float32}, {torch.float64}):
        return "the weights are neither float32 nor float64"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if sum(p.numel() for p in tensors) > LARGEST_MODEL:
        return f"the model has more than {LARGEST_MODEL:,} parameters"
    return None


class LeanDecoder:
    """Feeds all rows together, as decode.Decoder, with which it agrees but for rounding."""

    carries = False  # whether it decodes models that carry a state, or those that do not

    @torch.inference_mode()
    def __init__(self, model: nn.Module, rows: int, max_length: int, features: torch.Tensor | None = None):
        """max_length: most tokens of a row, with its padding. Raises ValueError if there is an obstacle.

        features: of the images in the texts, whose ids follow those of the vocabulary.
        """
        reason = obstacle(model)
        if getattr(model, "carries", False) != self.carries:
            reason = "it carries a state" if not self.carries else "it carries no state"
        if reason:
            raise ValueError(f"the lean decoder cannot run this model, because {reason}; use decode.Decoder")
        cfg, self.embedding = model.config, model.embedding.weight.detach()
        self.sees = features is not None
        if self.sees:
            self.embedding = torch.cat((self.embedding, features.to(self.embedding.dtype)))
        self.attention = getattr(model, "lean_attention", None)
        self.chosen: list[torch.Tensor] | None = None  # see decode.Decoder
        self.length, self.max_length = 0, max_length  # columns so far, with padding
        self.padding = torch.zeros(rows, dtype=torch.int64)  # columns in front of each row's text
        self.most_padding = 0
        self.next_position = torch.zeros(rows, dtype=torch.int64)
        self.places = self.cos = self.sin = None
        if hasattr(model, "position_embedding"):
            self.places = model.position_embedding.weight.detach()
        elif model.rope is not None:
            self.cos, self.sin = self.rotary_tables(model, torch.arange(max_length))
        self.layers = [
            _Layer(block, cfg, window, rows, max_length) for block, window in zip(model.block, cfg.windows)
        ]
        self.norm = _Norm(model.norm)
        self.used = cfg.num_ids
        head = model.unembedding.weight.detach()[: self.used]
        self.head_is_copy = head.numel() <= LARGEST_COPIED_HEAD
        self.head = self.norm.fold(head, head.new_zeros(self.used)) if self.head_is_copy else head.t()
        self._make_buffers(cfg)

    def rotary_tables(self, model: nn.Module, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """positions (P,) -> cosines and signed sines for both halves of a head, (P, C) each"""
        cos, sin = (x[0, :, 0].to(self.embedding.dtype) for x in model.rope.tables(positions[None]))
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)

    def _make_buffers(self, cfg) -> None:
        rows = len(self.padding)
        heads = cfg.num_attention_heads, getattr(cfg, "num_key_value_heads", cfg.num_attention_heads)
        sizes = dict(dtype=self.embedding.dtype, hidden=cfg.hidden_size, heads=heads, head_dim=cfg.head_dim)
        self.new_buffers = functools.partial(_Buffers, **sizes, norm_eps=self.norm.eps)
        self.step = self.new_buffers(rows)
        # ids from used_vocab_size on get no probability
        self.logits = torch.full((rows, cfg.vocab_size), -torch.inf, dtype=self.embedding.dtype)
        self.used_logits = self.logits[:, : self.used]
        self.config = cfg

    @torch.inference_mode()
    def feed(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Append the prompts, or later equally many ids to each row. Returns (B, V) logits of the next ids.

        The next call overwrites the logits.
        """
        rows, longest = len(self.padding), max(map(len, ids))
        if len(ids) != rows:
            raise ValueError(f"the decoder was made for {rows} rows, got {len(ids)}; create another one")
        if self.length + longest > self.max_length:
            raise ValueError(
                f"the decoder has room for {self.max_length} tokens (its max_length), got "
                f"{self.length + longest}; create one with a larger max_length"
            )
        shorter = [longest - len(row) for row in ids]
        if any(shorter):
            if self.length:
                raise ValueError(
                    f"only the prompts may have different lengths, got {[len(row) for row in ids]} ids after "
                    f"{self.length} tokens; feed equally many ids to each row"
                )
            self.padding.copy_(torch.tensor(shorter))
            self.most_padding = max(shorter)
            self.next_position.sub_(self.padding)
        columns = torch.tensor([[0] * pad + list(row) for pad, row in zip(shorter, ids)])
        pieces = (columns,) if longest == 1 else columns.split(max(1, TOKENS_AT_ONCE // rows), dim=1)
        if self.chosen is not None:
            for layer in self.layers:
                layer.mlp.chosen = []
        if longest == 1:
            self._run(self.step, columns[:, 0], self.next_position)
            self._count(1)
        else:
            for piece in pieces:
                self._read(piece)
        if self.chosen is not None:
            self.chosen.append(self._take_chosen(rows, [piece.shape[1] for piece in pieces]))
        return self._logits()

    def _take_chosen(self, rows: int, widths: list[int]) -> torch.Tensor:
        """(L, B, T, k) int64 of the pieces that were read; -1 where the last layer left columns out."""
        found = []
        for mlp in (layer.mlp for layer in self.layers):
            parts = [part.view(rows, -1, part.shape[1]) for part in mlp.chosen]
            parts = [F.pad(p, (0, 0, width - p.shape[1], 0), value=-1) for p, width in zip(parts, widths)]
            found += [torch.cat(parts, dim=1)] if mlp.routed else []
            mlp.chosen = None
        return torch.stack(found)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        index = torch.tensor(rows)
        self.padding, self.next_position = self.padding[index], self.next_position[index]
        for layer in self.layers:
            layer.cache(*(x[index] for x in (layer.keys, layer.values, layer.bias)))
        self._make_buffers(self.config)

    def _count(self, columns: int) -> None:
        self.length += columns
        self.next_position.add_(columns)

    def _logits(self) -> torch.Tensor:
        """The head for the rows in self.step.hidden."""
        self.norm.apply(self.step)
        if self.head_is_copy:
            torch.mm(self.step.x_and_one, self.head, out=self.used_logits)
        else:
            torch.mm(self.norm.scaled(self.step.x), self.head, out=self.used_logits)
        return self.logits

    def _read(self, ids: torch.Tensor) -> None:
        """Append ids (B, T) to the rows. The output of the last block for the last column is in step.hidden."""
        rows, T = ids.shape
        b, last = self.new_buffers(rows * T), self.layers[-1]
        positions = (self.next_position[:, None] + torch.arange(T)).clamp(min=0)
        masks = {slots: self._visible_keys(slots, T) for slots in {layer.slots for layer in self.layers}}
        self._embed(b, ids.flatten(), positions.flatten())
        for layer in self.layers[:-1]:
            layer.project(b)
            self._attend_many(layer, b, masks[layer.slots], T, b.attended)
            layer.finish(b)
        last.project(b)
        self._attend_many(last, b, masks[last.slots], 1, self.step.attended)
        self.step.hidden.copy_(b.hidden.view(rows, T, -1)[:, -1])
        self.step.image = None if b.image is None else b.image.view(rows, T, 1)[:, -1]
        last.finish(self.step)
        self._count(T)

    def _run(self, b: _Buffers, ids, positions) -> None:
        """Every block for one new column, ids and positions (B,); the result is in b.hidden."""
        self._embed(b, ids, positions)
        for layer in self.layers:
            layer.project(b)
            self._attend_one(layer, b)
            layer.finish(b)

    def _embed(self, b: _Buffers, ids, positions) -> None:
        """Embeddings and rotary tables for ids, or embeddings (N, D), and positions (N,)."""
        b.hidden.copy_(self.embedding.index_select(0, ids) if ids.dim() == 1 else ids)
        image = ids >= self.config.vocab_size if self.sees else None
        b.image = image[:, None].to(b.x.dtype) if self.sees and image.any() else None
        if self.places is not None:
            b.hidden.add_(self.places.index_select(0, positions))
        if self.cos is not None:
            torch.index_select(self.cos, 0, positions, out=b.cos)
            torch.index_select(self.sin, 0, positions, out=b.sin)
            b.wide_cos.copy_(b.cos[:, None, None])
            b.wide_sin.copy_(b.sin[:, None, None])

    def _attend_one(self, layer: _Layer, b: _Buffers) -> None:
        """Attention of one new column; the heads' results go to b.attended."""
        slot = 1 + self.length % layer.slots
        layer.keys.select(3, slot).copy_(b.key)
        layer.values.select(2, slot).copy_(b.value)
        if 0 <= self.length - layer.slots < self.most_padding:  # the slot may have held padding
            layer.bias.select(3, slot).zero_()
        keys, values, bias = layer.flat_keys, layer.flat_values, layer.flat_bias
        if self.length + 1 < layer.slots:  # not all slots are filled
            filled = self.length + 2
            keys, values, bias = keys[:, :, :filled], values[:, :filled], bias[:, :, :filled]
        weights = torch.baddbmm(bias, b.query, keys).softmax(-1)  # (B*G, M, S)
        torch.bmm(weights, values, out=b.flat_attended)

    def _visible_keys(self, slots: int, T: int) -> torch.Tensor:
        """The keys that the next T columns see: (B or 1, 1, T, held + T) bool, without the null key."""
        held = min(self.length, slots)
        slot = torch.arange(held)
        old = slot + (self.length - 1 - slot) // slots * slots  # the column in each slot
        new = torch.arange(self.length, self.length + T)
        key, query = torch.cat((old, new)), new[:, None]
        seen = (key <= query) & (key > query - slots)
        if self.most_padding:
            seen = seen & (key >= self.padding[:, None, None]) | (key == query)
        return seen.view(-1, 1, T, held + T)

    def _attend_many(self, layer: _Layer, b: _Buffers, mask, queries: int, out: torch.Tensor) -> None:
        """Keep all new columns, and put the attention of the last `queries` of them into out (N, H*C)."""
        rows = len(self.padding)
        qk = b.qk.unflatten(0, (rows, -1))  # (B, T, G, M + 1, C)
        T, slots, held = qk.shape[1], layer.slots, min(self.length, layer.slots)
        query, mask = qk[:, T - queries :, :, :-1].flatten(2, 3), mask[:, :, T - queries :]
        query = query * math.sqrt(qk.shape[-1])  # (B, queries, H, C), as sdpa divides by it
        key, value = qk[..., -1, :], b.value.unflatten(0, (rows, T))  # (B, T, G, C)
        keys = torch.cat((layer.keys[..., 1 : 1 + held].permute(0, 3, 1, 2), key), dim=1)
        values = torch.cat((layer.values[:, :, 1 : 1 + held].transpose(1, 2), value), dim=1)
        if layer.sinks is None:
            q, k, v = (x.transpose(1, 2) for x in (query, keys, values))
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)
        else:
            found = self.attention(query, keys, values, layer.sinks, mask, 0.0)
        out.copy_(found.reshape(out.shape))
        key, value = key.permute(0, 2, 3, 1), value.transpose(1, 2)  # (B, G, C, T) and (B, G, T, C)
        columns = torch.arange(self.length + max(0, T - slots), self.length + T)
        slot = 1 + columns % slots
        layer.keys[..., slot], layer.values[:, :, slot] = key[..., -slots:], value[:, :, -slots:]
        if self.most_padding:
            padded = columns < self.padding[:, None]  # (B, columns)
            bias = torch.zeros(padded.shape, dtype=values.dtype).masked_fill_(padded, -torch.inf)
            layer.bias[..., slot] = bias[:, None, None]


class _Buffers:
    """Working memory for N tokens, with the views that the operations of a step need."""

    def __init__(
        self, number: int, *, dtype, hidden: int, heads: tuple[int, int], head_dim: int, norm_eps: float
    ):
        (H, G), C, D = heads, head_dim, hidden
        empty = functools.partial(torch.empty, dtype=dtype)
        # the length of (x, sqrt(D eps)) is sqrt(D) times the root mean square of x with eps
        self.extended = torch.full((number, D + 1), math.sqrt(D * norm_eps), dtype=dtype)
        self.hidden, self.norms = self.extended[:, :D], empty(number, 1)
        self.x_and_one, self.update = torch.ones(number, D + 1, dtype=dtype), empty(number, D)
        self.x = self.x_and_one[:, :D]
        qk = (H + G) * C
        # queries and keys, values, queries and keys with swapped halves
        self.raw = empty(number, 2 * qk + G * C)
        self.plain = self.raw[:, : qk + G * C]
        groups = number, G, H // G + 1, C  # the queries of a group, then its key
        self.raw_qk, self.raw_swapped = self.raw[:, :qk].view(groups), self.raw[:, qk + G * C :].view(groups)
        self.value = self.raw[:, qk : qk + G * C].view(number, G, C)
        self.qk = empty(groups)
        self.query, self.key = self.qk.flatten(0, 1)[:, :-1], self.qk[:, :, -1]
        # cos and sin for one head, and copies for all heads: without broadcasting the rotation is faster
        self.cos, self.sin, self.wide_cos, self.wide_sin = (
            empty(size) for size in ((number, C), (number, C), groups, groups)
        )
        self.flat_attended = empty(number * G, H // G, C)
        self.attended = self.flat_attended.view(number, H * C)
        self.image: torch.Tensor | None = None  # (N, 1), 1 for image tokens and 0 for text; None without any
        self.scratch: dict[Any, Any] = {}  # the experts keep their working memory here


class _Norm:
    """A norm apart from its scale and bias, which the matrices behind it take on."""

    def __init__(self, norm: nn.Module):
        self.eps = norm.eps
        self.scale = (norm.scale if hasattr(norm, "scale") else norm.weight).detach()
        self.shift = norm.bias.detach() if hasattr(norm, "bias") else None
        self.centred = self.shift is not None  # LayerNorm
        if not self.centred:
            self.scale = self.scale * math.sqrt(len(self.scale))  # apply divides by the length of the vector

    def apply(self, b: _Buffers) -> None:
        """b.hidden -> b.x"""
        if self.centred:
            b.x.copy_(F.layer_norm(b.hidden, b.hidden.shape[1:], eps=self.eps))
        else:
            torch.linalg.vector_norm(b.extended, dim=-1, keepdim=True, out=b.norms)
            torch.div(b.hidden, b.norms, out=b.x)

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, D) with scale and bias, for a matrix that did not take them on."""
        return x * self.scale if self.shift is None else torch.addcmul(self.shift, x, self.scale)

    def fold(self, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """A matrix (out, D) and its bias (out,) -> a matrix (D + 1, out) for unscaled input that ends with 1."""
        if self.shift is not None:
            bias = bias + weight @ self.shift
        return torch.cat(((weight * self.scale).t(), bias[None]))


class _Layer:
    """The laid out weights of a block, and its keys and values."""

    def __init__(self, block: nn.Module, cfg, window: int | None, rows: int, max_length: int):
        attn = block.attn
        heads, C = cfg.num_attention_heads, cfg.head_dim
        groups = getattr(cfg, "num_key_value_heads", heads)
        self.norm, self.rotated = _Norm(attn.norm), getattr(attn, "rotated", False)
        self.slots = min(window or max_length, max_length)
        weight = attn.qkv.weight.detach()
        bias = weight.new_zeros(len(weight)) if attn.qkv.bias is None else attn.qkv.bias.detach()
        both = self.norm.fold(weight, bias).view(-1, heads + 2 * groups, C)  # (D + 1, H + 2G, C)
        query, key, value = both.split((heads, groups, groups), dim=1)
        query = query.unflatten(1, (groups, -1)) / math.sqrt(C)
        qk = torch.cat((query, key[:, :, None]), dim=2)  # (D + 1, G, M + 1, C)
        parts = [qk, value, qk.roll(C // 2, dims=-1)] if self.rotated else [qk, value]
        self.qkv = torch.cat([part.flatten(1) for part in parts], dim=1)
        self.out = attn.out.weight.detach().t().contiguous()
        self.out_bias = None if attn.out.bias is None else attn.out.bias.detach()
        self.mlp = _Feed(block.mlp)
        keys = self.out.new_zeros(rows, groups, C, 1 + self.slots)  # so the product with them is faster
        values = self.out.new_zeros(rows, groups, 1 + self.slots, C)
        bias = self.out.new_zeros(rows, groups, heads // groups, 1 + self.slots)
        self.sinks = None if getattr(attn, "sinks", None) is None else attn.sinks.detach()
        bias[..., 0] = -torch.inf if self.sinks is None else self.sinks.view(groups, -1)
        self.cache(keys, values, bias)

    def project(self, b: _Buffers) -> None:
        """b.hidden -> queries and keys in b.qk, values in b.value"""
        self.norm.apply(b)
        if self.rotated:
            torch.mm(b.x_and_one, self.qkv, out=b.raw)
            torch.mul(b.raw_qk, b.wide_cos, out=b.qk).addcmul_(b.raw_swapped, b.wide_sin)
        else:
            torch.mm(b.x_and_one, self.qkv, out=b.plain)
            b.qk.copy_(b.raw_qk)

    def finish(self, b: _Buffers) -> None:
        """Add the output of attention, from b.attended, and that of the MLP to b.hidden."""
        b.hidden.addmm_(b.attended, self.out)
        if self.out_bias is not None:
            b.hidden.add_(self.out_bias)
        self.mlp.norm.apply(b)
        self.mlp.add(b)

    def cache(self, keys, values, bias) -> None:
        """keys: (B, G, C, 1 + slots).  values: (B, G, 1 + slots, C).  bias: (B, G, M, 1 + slots), added to
        the scores."""
        self.keys, self.values, self.bias = keys, values, bias
        self.flat_keys, self.flat_values = keys.flatten(0, 1), values.flatten(0, 1)
        self.flat_bias = bias.flatten(0, 1)


class _Feed:
    """The laid out weights of a block's experts, or of its dense MLP."""

    def __init__(self, mlp: nn.Module):
        self.norm, self.routed = _Norm(mlp.norm), getattr(mlp, "routed", False)
        self.chosen: list[torch.Tensor] | None = None  # gets the experts of each call, (N, k)
        if not hasattr(mlp, "expert_weights"):  # GPT-2
            experts = [x.detach()[None] for layer in (mlp.mlp1, mlp.mlp2) for x in (layer.weight, layer.bias)]
            self.always = _Wide(*experts, None, 1.0, self.norm)
            return
        always = "shared_" if self.routed else ""
        self.always = None
        if not self.routed or mlp.num_shared:
            self.always = _Wide(*mlp.expert_weights(always), self.norm)
        if self.routed:
            self.router = self.norm.fold(mlp.gate.weight.detach(), mlp.gate.bias.detach())  # (D + 1, E)
            self.image_bias = getattr(mlp, "vision_router_bias", None)
            self.rule, self.selection_bias = mlp.routing_rule, mlp.selection_bias
            self.k, self.experts = mlp.config.experts_per_token, mlp.expert_weights()
            self.is_wide: dict[int, bool] = {}  # by number of tokens
            self.is_plain = self.rule.__name__ == "topk_softmax" and not mlp.selection_bias.any()

    def add(self, b: _Buffers) -> None:
        """Add the MLP of b.x to b.hidden."""
        if self.always is not None:
            self.always.add(b)
        if not self.routed:
            return
        number = len(b.x)
        if number not in self.is_wide:
            self.is_wide[number] = self._wide_is_faster(number)
        if self.is_wide[number]:
            self.wide.add(b, self._choose)
        else:
            self._add_chosen(b, *self._choose(b, torch.mm(b.x_and_one, self.router)))

    def _choose(self, b: _Buffers, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits (N, E) -> the chosen experts and their weights, (N, k) each"""
        if b.image is not None and self.image_bias is not None:
            logits.addcmul_(b.image, self.image_bias)
        if self.is_plain:
            top, index = logits.topk(self.k)
            weight = top.softmax(-1)
        else:
            index, weight, *_ = self.rule(logits, self.selection_bias, self.k)
        if self.chosen is not None:
            self.chosen.append(index)
        return index, weight

    @functools.cached_property
    def wide(self) -> _Wide:
        return _Wide(*self.experts, self.norm, self.router)

    def _wide_is_faster(self, number: int) -> bool:
        """Whether all experts as one MLP take less time for so many tokens than the chosen ones apart."""
        E, size = len(self.experts.mlp1_weight), self.experts.mlp1_weight[0].numel()
        size += self.experts.mlp2_weight[0].numel()
        used = min(E, number * self.k)
        wide = max(number * E * size / MULTIPLICATIONS, E * size / WEIGHTS_READ)
        apart = max(number * self.k * size / MULTIPLICATIONS, used * size / WEIGHTS_READ)
        return wide <= apart + used * (EXPERT_CALL if number == 1 else SORTED_EXPERT_CALL)

    def _add_chosen(self, b: _Buffers, index: torch.Tensor, weight: torch.Tensor) -> None:
        """Add the chosen experts to b.hidden, one after another. index, weight: (N, k)"""
        x, (w1, b1, w2, b2, limit, alpha) = self.norm.scaled(b.x), self.matrices
        if len(x) == 1:  # no sorting
            (chosen,), (row,) = index.tolist(), x
            up = torch.stack([torch.addmv(b1[e], w1[e], row) for e in chosen])  # (k, U)
            inner = _activation(up, limit, alpha).mul_(weight.view(-1, 1))
            hidden = b.hidden[0].addmv_(self.experts.mlp2_bias[index[0]].t(), weight[0])
            for e, part in zip(chosen, inner):
                hidden.addmv_(w2[e], part)
            return
        order = index.flatten().argsort(stable=True)
        sizes = torch.bincount(index.flatten(), minlength=len(w1)).tolist()
        token = order // self.k
        rows = x.index_select(0, token)  # (N*k, D)
        up = rows.new_empty(len(rows), w1[0].shape[0])
        parts = [e for e in range(len(w1)) if sizes[e]]
        sizes = [sizes[e] for e in parts]
        for e, some, out in zip(parts, rows.split(sizes), up.split(sizes)):
            torch.addmm(b1[e], some, w1[e].t(), out=out)
        inner = _activation(up, limit, alpha)
        for e, some, out in zip(parts, inner.split(sizes), rows.split(sizes)):
            torch.addmm(b2[e], some, w2[e].t(), out=out)
        rows.mul_(weight.flatten()[order][:, None])
        b.hidden.index_add_(0, token, rows)

    @functools.cached_property
    def matrices(self) -> tuple:
        """The weights of each expert, the limit of swiglu (None: gelu) and its alpha."""
        *matrices, limit, alpha = self.experts
        return *(x.detach().unbind(0) for x in matrices), limit, alpha


def _activation(up: torch.Tensor, limit: float | None, alpha: float) -> torch.Tensor:
    """gptoss.ExpertWeights.activation with fewer operations. (R, U) -> (R, F)"""
    if limit is None:
        return F.gelu(up, approximate="tanh")
    gate, linear = up.unflatten(-1, (-1, 2)).unbind(-1)
    gate = gate.clamp(max=limit)
    return F.silu(gate * alpha, inplace=True).mul_(linear.clamp(-limit, limit).add_(1)).mul_(1 / alpha)


class _Wide:
    """All experts of a block as one MLP of E F inner units; an expert that was not chosen has the gate 0."""

    def __init__(self, w1, b1, w2, b2, limit, alpha, norm: _Norm, router: torch.Tensor | None = None):
        """Arguments as the fields of gptoss.ExpertWeights.

        router: (D + 1, E), whose product is joined to theirs.
        """
        w1, b1, w2, b2 = (x.detach() for x in (w1, b1, w2, b2))
        self.limit, self.alpha = limit, alpha
        self.shape = len(w1), w2.shape[2]  # E, F
        if limit is not None:
            # the gates of all experts, then their linear halves; with z = alpha gate, the gated half is
            # silu(z) / alpha, and the matrices have the factors
            w1 = torch.stack((w1[:, 0::2] * alpha, w1[:, 1::2]))  # (2, E, F, D)
            b1 = torch.stack((b1[:, 0::2] * alpha, b1[:, 1::2] + 1))
            w2 = w2 / alpha
        self.w1 = norm.fold(w1.flatten(0, -2), b1.flatten())
        self.units = self.w1.shape[1]
        if router is not None:
            self.w1 = torch.cat((self.w1, router), dim=1)  # (D + 1, units + E)
        # the last E inner units are the gates themselves, for the biases
        self.w2 = torch.cat((w2.transpose(1, 2).flatten(0, 1), b2))  # (E*F + E, D)

    def add(self, b: _Buffers, choose: Callable | None = None) -> None:
        """Add the experts' outputs for b.x to b.hidden. choose: the routing; None is weight 1 for all."""
        key = self.shape, choose is None
        if key not in b.scratch:
            E, inner = self.shape[0], b.x.new_ones(len(b.x), len(self.w2))
            z, units = b.x.new_empty(len(b.x), self.w1.shape[1]), inner[:, :-E]
            both, logits = z.split_with_sizes((self.units, z.shape[1] - self.units), dim=1)
            of_each, gates = units.unflatten(1, (E, -1)), inner[:, -E:]
            parts = z, both, *both.tensor_split(2, dim=1), logits
            b.scratch[key] = *parts, inner, units, of_each, gates, gates[:, :, None]
        z, both, gate, linear, logits, inner, units, of_each, gates, wide_gates = b.scratch[key]
        torch.mm(b.x_and_one, self.w1, out=z)
        if choose is not None:
            index, weight = choose(b, logits)
        if self.limit is None:
            units.copy_(F.gelu(both, approximate="tanh"))
        else:
            F.silu(gate.clamp_(max=self.limit * self.alpha), inplace=True)
            torch.mul(gate, linear.clamp_(1 - self.limit, 1 + self.limit), out=units)
        if choose is not None:
            gates.zero_().scatter_(1, index, weight)
            of_each.mul_(wide_gates)
        b.hidden.addmm_(inner, self.w2)
