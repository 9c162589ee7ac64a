"""GPT-OSS in one file, from the config to the whole model.

Order, parameter names and layouts are those of OpenAI's reference (ModelConfig, RMSNorm, RotaryEmbedding,
attention, MLPBlock, TransformerBlock, Transformer), so that the two can be compared side by side. With the
defaults of ModelConfig the model is gpt-oss exactly.

Shapes: B batch, T query tokens, S key tokens, N = B*T, D hidden_size, V vocabulary, L layers,
H query heads, G key/value heads, M = H/G, C head_dim, E experts, k experts_per_token, F intermediate_size.

A variant overrides whole methods of Transformer: embed, embed_tokens, run_blocks, head, init_weights; and it
may replace the classes of the parts: Transformer.block_type, TransformerBlock.mlp_type. Attention and experts
are specified here; backends/ implements them faster and receives every constant as an argument.
ATTENTION_BACKENDS and EXPERT_BACKENDS list the implementations. ROUTERS lists the routing rules; the rule is
a field of the config, because another rule is another model.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from architecture import checkpoint
from architecture.backends import attention as attention_backends
from architecture.backends import experts as expert_backends
from architecture.backends import fused
from architecture.generation.cache import KVCache
from architecture.interface import (
    IGNORE_INDEX,
    LayerRouting,
    ModelOutput,
    RouterStats,
    documents_of,
    next_token_loss,
)
from common.settings import cast_fields, option

logger = logging.getLogger(__name__)

SLIDING, FULL = "sliding_attention", "full_attention"
SWIGLU_ALPHA = 1.702  # x * sigmoid(1.702 x) approximates GELU


# ----------------------------------------------------------------------------------------------- config
@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The 16 fields of the official config.json, then the switches for ablations."""

    num_hidden_layers: int = option(36, "transformer blocks", at_least=1)
    num_experts: int = option(128, "experts in each MoE layer", at_least=1)
    experts_per_token: int = option(4, "experts that the router picks for a token", at_least=1)
    vocab_size: int = option(
        201088, "rows of embedding and head; follows the tokenizer, padded to a multiple of 64", at_least=1
    )
    hidden_size: int = option(2880, "width of the residual stream", at_least=1)
    intermediate_size: int = option(2880, "width inside one expert", at_least=1)
    swiglu_limit: float = option(7.0, "clamp on the two halves of the gated unit", above=0)
    head_dim: int = option(64, "width of one attention head", at_least=1)
    num_attention_heads: int = option(64, "query heads", at_least=1)
    num_key_value_heads: int = option(8, "key/value heads, each shared by several query heads", at_least=1)
    sliding_window: int = option(128, "tokens that a sliding layer sees, with the current one", at_least=1)
    initial_context_length: int = option(4096, "longest sequence before rope_scaling_factor", at_least=1)
    rope_theta: float = option(150000.0, "base of RoPE's frequencies", above=1)
    rope_scaling_factor: float = option(32.0, "YaRN: factor on the context length; 1 = off", at_least=1)
    rope_ntk_alpha: float = option(1.0, "YaRN: pairs with fewer turns per context are interpolated", above=0)
    rope_ntk_beta: float = option(32.0, "YaRN: pairs with more turns per context are unchanged", above=0)

    layer_types: tuple[str, ...] | None = option(
        None, "sliding_attention or full_attention per layer; none = alternating, sliding first"
    )
    attention_sinks: bool = option(True, "a learned logit per head that takes attention from all keys")
    nope_stride: int | None = option(None, "every n-th layer is not rotated; none = all rotate", at_least=1)
    position: Literal["rope", "learned", "none"] = option("rope", "how the model sees positions")
    position_init: Literal["normal", "small", "sinusoidal"] = option(
        "normal", "initial learned positions: std 0.02, std 0.002, or sines with RMS 0.02"
    )
    norm: Literal["rmsnorm", "layernorm"] = option("rmsnorm", "normalization before each part of a block")
    mlp: Literal["swiglu", "gelu"] = option("swiglu", "activation of an expert")
    tie_embeddings: bool = option(False, "one matrix for embedding and head")
    attention_bias: bool = option(True, "biases on qkv and out")
    dropout: float = option(0.0, "on attention, MLP and embedding, in training", at_least=0, below=1)
    moe_layers: tuple[int, ...] | None = option(
        None,
        "layers with experts, counted from 0; the others get one dense MLP; all, none, or numbers such as 0,2",
    )
    router: Literal[*ROUTERS] = option(
        "topk_softmax",
        "topk_softmax = gpt-oss; topk_sigmoid = DeepSeek-V3, one sigmoid score per expert; "
        "topk_sigmoid_unnormalized = the same, but the weights of the chosen experts do not add up to 1",
    )
    shared_experts: int = option(0, "experts in each MoE layer that process every token", at_least=0)
    capacity_factor: float | None = option(
        None,
        "tokens an expert takes at most, in even shares, in training; none = all. The most probable of the "
        "whole micro-batch stay, so later tokens decide what earlier ones lose: train/loss is not causal then, "
        "val/loss is",
        above=0,
    )
    used_vocab_size: int | None = option(None, "ids from here on are padding; none = no padding", at_least=1)

    def __post_init__(self) -> None:
        cast_fields(self)
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        layers, experts, k = self.num_hidden_layers, self.num_experts, self.experts_per_token
        types, moe = self.layer_types, self.moe_layers
        low, high = self.yarn_range
        for name, holds, rule, way_out in (
            ("num_attention_heads", heads % groups == 0, f"must be a multiple of num_key_value_heads ({groups})",
             f"for multi-head attention set num_key_value_heads={heads}"),
            ("experts_per_token", k <= experts, f"must be at most num_experts ({experts})",
             f"set experts_per_token={experts} or fewer, or num_experts={k} or more"),
            ("head_dim", self.head_dim % 2 == 0 or self.position != "rope",
             "must be even, because RoPE rotates pairs", f"set head_dim={self.head_dim + 1}"),
            ("position_init", self.position == "learned" or self.position_init == "normal",
             f"must be normal with position={self.position}, which has no table of positions",
             "set position_init=normal, or position=learned"),
            ("hidden_size", self.hidden_size % 2 == 0 or self.position_init != "sinusoidal",
             "must be even for position_init=sinusoidal, because its sines and cosines are pairs",
             f"set hidden_size={self.hidden_size + 1}"),
            ("initial_context_length", self.position != "rope" or self.rope_scaling_factor == 1
             or 0 < low < high < self.head_dim / 2 - 1,
             f"must exceed 2 pi rope_ntk_beta and put YaRN's ramp, here {low:.2f} to {high:.2f}, inside the "
             f"{self.head_dim // 2} rotated pairs", "set rope_scaling_factor=1 to turn YaRN off"),
            ("used_vocab_size", (self.used_vocab_size or 1) <= self.vocab_size,
             f"must be at most vocab_size ({self.vocab_size})", "set used_vocab_size=none when every id is used"),
            ("layer_types", types is None or len(types) == layers and set(types) <= {SLIDING, FULL},
             f"must name {SLIDING} or {FULL} once per layer ({layers})", "set layer_types=none to alternate"),
            ("moe_layers", moe is None or len(set(moe)) == len(moe) and set(moe) <= set(range(layers)),
             f"must hold different layer numbers from 0 to {layers - 1}",
             "set moe_layers=all for experts in every layer"),
            ("shared_experts", self.shared_experts == 0 or moe != (),
             "must be 0 when no layer has experts (moe_layers=none)", "set shared_experts=0, or moe_layers=all"),
        ):  # fmt: skip
            self._require(name, holds, rule, way_out)

    def _require(self, name: str, holds: bool, rule: str, way_out: str) -> None:
        if not holds:
            raise ValueError(f"{name} {rule}, got {getattr(self, name)!r}; {way_out}")

    @property
    def num_ids(self) -> int:
        """Number of ids in use; the rest of vocab_size is padding."""
        return self.used_vocab_size or self.vocab_size

    @property
    def resolved_layer_types(self) -> tuple[str, ...]:
        alternating = (SLIDING, FULL) * self.num_hidden_layers
        return self.layer_types or alternating[: self.num_hidden_layers]

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Number of tokens that each layer sees, including the current one; None for all."""
        window = {SLIDING: self.sliding_window, FULL: None}
        return tuple(window[kind] for kind in self.resolved_layer_types)

    @property
    def resolved_moe_layers(self) -> tuple[int, ...]:
        return tuple(range(self.num_hidden_layers)) if self.moe_layers is None else self.moe_layers

    @property
    def context_limit(self) -> int:
        """Largest number of tokens in a sequence."""
        return int(self.initial_context_length * self.rope_scaling_factor)

    @property
    def yarn_range(self) -> tuple[float, float]:
        """The pairs of dimensions between which YaRN changes from extrapolation to interpolation."""
        context, base = self.initial_context_length, math.log(self.rope_theta)  # not 0: rope_theta > 1
        low, high = (
            self.head_dim / 2 * math.log(context / (beta * 2 * math.pi)) / base
            for beta in (self.rope_ntk_beta, self.rope_ntk_alpha)
        )
        return low, high

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters: total; active, used for one token (with the head, without the input
        embedding); embedding, the input tables alone."""
        d, f, e = self.hidden_size, self.intermediate_size, self.num_experts
        q, kv = (n * self.head_dim for n in (self.num_attention_heads, self.num_key_value_heads))
        norm = d * (2 if self.norm == "layernorm" else 1)
        attention = norm + d * (q + 2 * kv) + q * d
        attention += (q + 2 * kv + d) * self.attention_bias
        attention += self.num_attention_heads * self.attention_sinks
        up = f * (2 if self.mlp == "swiglu" else 1)
        expert = d * up + up + f * d + d
        router = e * d + e
        moe, layers = len(self.resolved_moe_layers), self.num_hidden_layers
        shared = layers * (attention + norm) + (layers - moe) * expert + moe * router + norm
        shared += moe * self.shared_experts * expert
        embedding = self.vocab_size * d
        learned = self.context_limit * d if self.position == "learned" else 0
        head = 0 if self.tie_embeddings else embedding
        return {
            "total": shared + moe * e * expert + embedding + learned + head,
            "active": shared + moe * self.experts_per_token * expert + embedding,  # tied or not
            "embedding": embedding + learned,
        }

    def flops_per_token(self, block_size: int) -> float:
        """Training FLOPs (forward and backward) per token in sequences of block_size.

        Each active parameter costs 6 and each visible key 12 C H: two products of 2 C FLOPs for each head,
        in the forward pass and in two gradients. Token i sees min(i + 1, W) keys.
        """
        keys = 0.0
        for window in self.windows:
            w = min(window or block_size, block_size)
            keys += (w * (w + 1) / 2 + (block_size - w) * w) / block_size  # mean over the sequence
        width = self.head_dim * self.num_attention_heads
        return 6 * self.parameter_counts()["active"] + 12 * width * keys

    def matrix_parameters(self) -> int:
        """Number of parameters in the matrices for Muon: qkv, out, and mlp1 and mlp2 of every expert."""
        d, layers, moe = self.hidden_size, self.num_hidden_layers, len(self.resolved_moe_layers)
        up = self.intermediate_size * (2 if self.mlp == "swiglu" else 1)
        experts = moe * (self.num_experts + self.shared_experts) + layers - moe
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        return layers * d * self.head_dim * heads + experts * d * (up + self.intermediate_size)

    def bytes_kept_per_token(
        self,
        batch_size: int,
        block_size: int,
        *,
        attention: str,
        experts: str,
        checkpointing: str = "none",
        width: int = 4,
        compiled: bool = False,
    ) -> float:
        """Estimated number of bytes that autograd keeps for each token between forward and backward.

        attention, experts: names of backends; auto: those for a CPU.  checkpointing: none, selective or full
        (training/memory.py).  width: bytes of a value in a matrix product, 2 with autocast to bfloat16.
        compiled: whether torch.compile makes the blocks. It then computes cheap values again by itself.
        """
        d, f, layers = self.hidden_size, self.intermediate_size, self.num_hidden_layers
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        queries, projected = heads * self.head_dim, (heads + 2 * groups) * self.head_dim
        swiglu, moe, k = self.mlp == "swiglu", len(self.resolved_moe_layers), self.experts_per_token
        fused = swiglu and experts in ("auto", "sorted")  # one operation, which computes most values again
        # block and row, one token in one expert, are values in the dtype of products; the others are float32
        if checkpointing == "none":
            # the inputs of two norms, of the router and of qkv; queries and keys after rotation, and the result
            wide, block = 3 * d, d + 2 * queries + groups * self.head_dim
            if compiled and attention != "eager":  # the input; that of qkv, of the router and of its norm
                wide, block = d + heads, 3 * d + 3 * queries + projected
            elif attention == "flex":  # values, as a part of qkv; the result without its sink
                wide, block = wide + 2 * heads, block + projected + queries
            elif attention == "eager":  # scores, weights, and the mask
                wide, block = wide + heads * block_size, block + projected + heads * block_size
                block += block_size / batch_size
            else:  # keys and values repeated for each head, and the mask
                wide, block = wide + heads, block + 2 * queries + block_size / batch_size
            # input and output, gate and up, and the steps of swiglu or its result; for gelu, both of its sides
            steps = (1 if compiled else 5) if swiglu else 0
            row = 2 * f + d if fused else (2 + steps) * f + 2 * d
            router = 6 * self.num_experts
            owners = 2 * k * self.num_experts if experts == "grouped" else 0  # for each bias: whose a row is
        else:
            wide, block, row, owners = d, 0, 0, 0  # the input
            if checkpointing == "selective":
                block = projected + d  # qkv and out
                if attention != "eager":  # the result of attention
                    wide, block = wide + heads, block + queries
                row = 0 if fused else (2 if swiglu else 1) * f + d  # both products
            router = self.num_experts + 3 * k  # the logits, and the chosen experts, which are int64
        routed = 4 * router + width * ((k + self.shared_experts) * row + owners)
        dense = width * row
        return layers * (4 * wide + width * block) + moe * routed + (layers - moe) * dense + 4 * 3 * d


PRESETS: dict[str, dict[str, Any]] = {
    # for a laptop
    "toy": dict(num_hidden_layers=4, num_experts=8, experts_per_token=2, vocab_size=4096, hidden_size=128,
                intermediate_size=192, head_dim=32, num_attention_heads=4, num_key_value_heads=2,
                initial_context_length=1024, rope_scaling_factor=1.0),
    # for one GPU
    "medium": dict(num_hidden_layers=8, num_experts=16, experts_per_token=4, vocab_size=4096, hidden_size=384,
                   intermediate_size=384, head_dim=64, num_attention_heads=6, num_key_value_heads=2,
                   initial_context_length=2048, rope_scaling_factor=1.0),
    # as many active parameters as GPT-2 124M, with its vocabulary
    "large": dict(num_hidden_layers=12, num_experts=18, experts_per_token=4, vocab_size=50304, hidden_size=768,
                  intermediate_size=608, head_dim=64, num_attention_heads=12, num_key_value_heads=4,
                  initial_context_length=4096, rope_scaling_factor=1.0),
    # the official vocabulary, YaRN and 32 experts top-4, at a width that one machine can train
    "gpt-oss-small": dict(num_hidden_layers=12, num_experts=32, hidden_size=768, intermediate_size=768,
                          num_attention_heads=12, num_key_value_heads=4),
    "gpt-oss-20b": dict(num_hidden_layers=24, num_experts=32),
    "gpt-oss-120b": dict(),  # ModelConfig's defaults
    # the shape used by GPT-OSS-LAB: 8 wide experts top-2, multi-head attention, tied head
    "lab-small": dict(num_hidden_layers=12, num_experts=8, experts_per_token=2, vocab_size=50304,
                      hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_key_value_heads=12,
                      initial_context_length=4096, rope_scaling_factor=1.0, tie_embeddings=True),
}  # fmt: skip


# ---------------------------------------------------------------------------------------- norm, positions
class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32 and then cast back. (..., D) -> (..., D)"""

    eps = 1e-5

    def __init__(self, size: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.double() if x.dtype == torch.float64 else x.float()
        scale = self.scale.to(wide.dtype)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return fused.RMSNorm.apply(wide, scale, self.eps).to(x.dtype)
        return F.rms_norm(wide, scale.shape, scale, self.eps).to(x.dtype)


class LayerNorm(RMSNorm):
    """Layer normalization with the parameter names of RMSNorm. (..., D) -> (..., D)"""

    def __init__(self, size: int):
        super().__init__(size)
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale, self.bias, self.eps)


NORMS = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}


class RotaryEmbedding:
    """RoPE with YaRN (arXiv:2309.00071) as in gpt-oss: pairs (i, i + C/2), concentration in both tables."""

    def __init__(self, config: ModelConfig):
        self.config = config

    def tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """positions (B or 1, T) int64 -> cos and sin (B or 1, T, 1, C/2), float32."""
        cfg, device = self.config, positions.device
        pair = torch.arange(cfg.head_dim // 2, dtype=torch.float32, device=device)
        inverse = 1.0 / cfg.rope_theta ** (2 * pair / cfg.head_dim)
        concentration = 1.0
        if cfg.rope_scaling_factor > 1:
            low, high = cfg.yarn_range
            # 0 keeps the angle of a fast pair, 1 interpolates a slow pair
            slow = ((pair - low) / (high - low)).clamp(0, 1)
            inverse = inverse * (1 - slow) + inverse / cfg.rope_scaling_factor * slow
            concentration = 0.1 * math.log(cfg.rope_scaling_factor) + 1.0
        angle = (positions[..., None].float() * inverse)[:, :, None, :]
        return angle.cos() * concentration, angle.sin() * concentration

    @staticmethod
    def rotate(x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Rotate each pair (i, i + C/2) by its angle: (B, T, heads, C) -> (B, T, heads, C)."""
        cos, sin = (table.to(x.dtype) for table in tables)
        if not torch.compiler.is_compiling():
            return fused.Rotate.apply(x, cos, sin)
        first, second = x.chunk(2, dim=-1)  # plain operations, which the compiler joins with their neighbours
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def sinusoidal_positions(number: int, size: int, device: torch.device) -> torch.Tensor:
    """Sines in even columns and cosines in odd ones, with a root mean square of 0.02.

    Returns (number, size) float64.
    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5, times 0.02 sqrt(2).
    """
    pair = torch.arange(size // 2, dtype=torch.float64, device=device)
    position = torch.arange(number, dtype=torch.float64, device=device)
    angle = position[:, None] / 10000 ** (2 * pair / size)  # (number, size / 2)
    return 0.02 * math.sqrt(2) * torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)


# ------------------------------------------------------------------------------------------------- masks
def visible_keys(query_positions, key_positions, window: int | None, documents=None) -> torch.Tensor:
    """The keys that each query may see: (B or 1, T) and (B or 1, S) int64 -> (B or 1, 1, T, S) bool.

    The window includes the current token: query i sees key j if i - window < j <= i. A negative position is
    padding; only the token itself sees it, so that no row of the mask is empty.
    documents: (B or 1, T) int64 of interface.documents_of, with S = T: a query sees its own document only.
    """
    query, key = query_positions[:, None, :, None], key_positions[:, None, None, :]
    visible = (key <= query) & (key >= 0)
    if window is not None:
        visible &= key > query - window
    visible = visible | (key == query)
    if documents is not None:
        visible &= documents[:, None, :, None] == documents[:, None, None, :]
    return visible


# --------------------------------------------------------------------------------------------- attention
def attention_weights(q, k, sinks, mask) -> torch.Tensor:
    """Softmax over the visible keys and the sink, without the sink's share.

    q: (B, T, H, C).  k: (B, S, G, C).  sinks: (H,) or None.  mask: (B or 1, 1, T, S) bool.
    Returns (B, G, M, T, S), float32 or wider.
    """
    (B, T, H, C), G = q.shape, k.shape[2]
    q = q.view(B, T, G, H // G, C)  # -> (B, T, G, M, C): heads of one group are adjacent
    scores = torch.einsum("btgmc,bsgc->bgmts", q, k) / math.sqrt(C)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores.masked_fill(~mask[:, :, None], -torch.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, G, H // G, 1, 1).expand(B, -1, -1, T, 1)
        scores = torch.cat((scores, column), dim=-1)  # (B, G, M, T, S + 1)
    return scores.softmax(-1)[..., : k.shape[1]]


def eager_attention(q, k, v, sinks, mask, dropout):
    """The specification of attention: the sum of the values, weighted by attention_weights.

    Arguments as for attention_weights, and v: (B, S, G, C). Returns (B, T, H, C).
    """
    weights = F.dropout(attention_weights(q, k, sinks, mask), dropout, training=dropout > 0)
    return torch.einsum("bgmts,bsgc->btgmc", weights.to(v.dtype), v).reshape(q.shape)


ATTENTION_BACKENDS = {
    "eager": eager_attention,
    "sdpa": attention_backends.sdpa_attention,
    "flex": attention_backends.flex_attention,
}
ATTENTION_MASKS = {"flex": attention_backends.block_mask}  # the others take visible_keys
FLEX_HEAD_DIM = 16  # the smallest head that torch's flex_attention takes on CUDA


class AttentionBlock(nn.Module):
    """Pre-norm grouped-query attention with sinks. The result is added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, backend: str):
        super().__init__()
        self.config, self.layer = config, layer
        self.attend = ATTENTION_BACKENDS[backend]
        stride = config.nope_stride
        self.rotated = config.position == "rope" and not (stride and (layer + 1) % stride == 0)
        heads, groups, c = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.norm = NORMS[config.norm](config.hidden_size)
        d, bias = config.hidden_size, config.attention_bias
        self.qkv = nn.Linear(d, (heads + 2 * groups) * c, bias=bias)
        self.sinks = nn.Parameter(torch.zeros(heads)) if config.attention_sinks else None
        self.out = nn.Linear(heads * c, d, bias=bias)

    def forward(self, hidden, rope, mask, cache: KVCache | None) -> torch.Tensor:
        """hidden (B, T, D), rope tables or None, mask (B or 1, 1, T, S) -> (B, T, D)."""
        cfg = self.config
        q, k, v = self.project(hidden, rope)
        if cache is not None:
            k, v = cache.extend_layer(self.layer, k, v)
        out = self.attend(q, k, v, self.sinks, mask, cfg.dropout if self.training else 0.0)
        return F.dropout(self.out(out.flatten(2)), cfg.dropout, self.training)

    def project(self, hidden, rope) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """hidden (B, T, D) -> rotated queries (B, T, H, C), rotated keys and values (B, T, G, C)."""
        cfg = self.config
        heads, groups = cfg.num_attention_heads, cfg.num_key_value_heads
        qkv = self.qkv(self.norm(hidden)).unflatten(-1, (heads + 2 * groups, cfg.head_dim))
        qk, v = qkv.split((heads + groups, groups), dim=2)
        if self.rotated:
            qk = RotaryEmbedding.rotate(qk, rope)
        return *qk.split((heads, groups), dim=2), v

    def sink_mass(self, hidden, rope, mask) -> torch.Tensor:
        """The sink's share of the attention of each head: (B, T, H) float32. Arguments as for forward.

        With all values at 1, a backend returns the sum of the weights over the keys; the sink has the rest.
        """
        q, k, v = self.project(hidden, rope)
        return 1 - self.attend(q, k, torch.ones_like(v), self.sinks, mask, 0.0)[..., 0].float()


# ------------------------------------------------------------------------------------- router and experts
# A routing rule is a function and an entry in ROUTERS. It takes logits (N, E) in float32 or wider,
# selection_bias (E,), which affects the choice only, and k. It returns index (N, k), the chosen experts;
# weight (N, k), the factors of their outputs; log_score (N, E), whose softmax is the probability of each
# expert in the balance loss, the capacity and the statistics; and choice (N, E), the values whose k largest
# are chosen, without a gradient.
def topk_softmax(logits, selection_bias, k: int):
    """gpt-oss: choose the k largest logits; the weights are the softmax over these k."""
    choice = logits.detach() + selection_bias
    index = choice.topk(k, dim=-1).indices
    return index, logits.gather(1, index).softmax(-1), logits, choice


def topk_sigmoid(logits, selection_bias, k: int):
    """DeepSeek-V3: choose the k largest sigmoid(logit); the weights are these scores divided by their sum.

    Source: arXiv:2412.19437, eq. 13, 15, 16 and, for the probability, 19; arXiv:2408.15664 for the bias.
    s / sum(s) is computed as the softmax of log(s), which needs no epsilon where every s rounds to 0.
    """
    choice = logits.detach().sigmoid() + selection_bias
    index = choice.topk(k, dim=-1).indices
    log_score = F.logsigmoid(logits)
    return index, log_score.gather(1, index).softmax(-1), log_score, choice


def topk_sigmoid_unnormalized(logits, selection_bias, k: int):
    """topk_sigmoid whose weights are the scores themselves, which are not divided by their sum.

    With k = 1 the other rules give the weight 1, so that the loss has no gradient for their routers.
    Source: arXiv:2408.15664, eq. 1 and 2.
    """
    index, _, *others = topk_sigmoid(logits, selection_bias, k)
    return index, logits.gather(1, index).sigmoid(), *others


ROUTERS = {
    "topk_softmax": topk_softmax,
    "topk_sigmoid": topk_sigmoid,
    "topk_sigmoid_unnormalized": topk_sigmoid_unnormalized,
}


def swiglu(x: torch.Tensor, limit: float) -> torch.Tensor:
    """The clamped SwiGLU of gpt-oss. (..., 2F), gate and up interleaved -> (..., F)"""
    gate, up = x.unflatten(-1, (-1, 2)).unbind(-1)
    gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return gate * torch.sigmoid(SWIGLU_ALPHA * gate) * (up + 1)  # up = 0 passes the gate


class ExpertWeights(NamedTuple):
    """The experts of a layer, for a backend; U is 2F (gate and up interleaved) for swiglu and F for gelu."""

    mlp1_weight: torch.Tensor  # (E, U, D)
    mlp1_bias: torch.Tensor  # (E, U)
    mlp2_weight: torch.Tensor  # (E, D, F)
    mlp2_bias: torch.Tensor  # (E, D)
    swiglu_limit: float | None  # None: gelu
    swiglu_alpha: float = SWIGLU_ALPHA

    def activation(self, x: torch.Tensor) -> torch.Tensor:
        """(..., U) -> (..., F)"""
        if self.swiglu_limit is None:
            return F.gelu(x, approximate="tanh")
        return swiglu(x, self.swiglu_limit)


def loop_experts(x, index, weight, experts):
    """The specification of the experts: one expert at a time processes the tokens that chose it.

    x: (N, D).  index: (N, k) int64, E for a dropped assignment.  weight: (N, k).
    Returns (N, D), the weighted sum over the k experts of each token, in a fixed order.
    """
    chosen = x.new_zeros(*index.shape, x.shape[-1])  # (N, k, D)
    for e in range(experts.mlp1_weight.shape[0]):
        token, slot = torch.where(index == e)
        up = F.linear(x[token], experts.mlp1_weight[e], experts.mlp1_bias[e])
        down = F.linear(experts.activation(up), experts.mlp2_weight[e], experts.mlp2_bias[e])
        chosen[token, slot] = down.to(x.dtype)
    return (chosen * weight[..., None].to(x.dtype)).sum(1)


EXPERT_BACKENDS = {
    "loop": loop_experts,
    "sorted": expert_backends.sorted_experts,
    "grouped": expert_backends.grouped_experts,
}


def all_experts(x, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x (N, D) -> index and weight (N, number) that send every token to all experts with weight 1."""
    index = torch.arange(number, device=x.device).expand(len(x), -1)
    return index, x.new_ones(index.shape)


class MLPBlock(nn.Module):
    """Pre-norm mixture of experts, or one dense expert. The result is added to the residual stream.

    Shared experts process every token, and their outputs are added with weight 1 (DeepSeekMoE,
    arXiv:2401.06066, eq. 9).
    """

    expert_parameters = ("mlp1_weight", "mlp1_bias", "mlp2_weight", "mlp2_bias")

    def __init__(self, config: ModelConfig, layer: int, backend: str):
        super().__init__()
        self.config = config
        # two names, because the routed experts may be spread over devices (interface.py), and shared ones are not
        self.run_experts = self.run_shared_experts = EXPERT_BACKENDS[backend]
        self.routing_rule = ROUTERS[config.router]
        self.routed = layer in config.resolved_moe_layers
        self.num_shared = config.shared_experts if self.routed else 0
        d, f = config.hidden_size, config.intermediate_size
        e = config.num_experts if self.routed else 1
        u = 2 * f if config.mlp == "swiglu" else f
        self.norm = NORMS[config.norm](d)
        if self.routed:
            self.gate = nn.Linear(d, e)  # the router; this is its name in the official checkpoints
            self.register_buffer("selection_bias", torch.zeros(e))  # only balance=bias changes it
        self.mlp1_weight = nn.Parameter(torch.zeros(e, u, d))
        self.mlp1_bias = nn.Parameter(torch.zeros(e, u))
        self.mlp2_weight = nn.Parameter(torch.zeros(e, d, f))
        self.mlp2_bias = nn.Parameter(torch.zeros(e, d))
        if s := self.num_shared:
            self.shared_mlp1_weight = nn.Parameter(torch.zeros(s, u, d))
            self.shared_mlp1_bias = nn.Parameter(torch.zeros(s, u))
            self.shared_mlp2_weight = nn.Parameter(torch.zeros(s, d, f))
            self.shared_mlp2_bias = nn.Parameter(torch.zeros(s, d))

    def expert_weights(self, prefix: str = "") -> ExpertWeights:
        """The weights of the routed experts; with prefix="shared_", those of the shared experts."""
        limit = self.config.swiglu_limit if self.config.mlp == "swiglu" else None
        return ExpertWeights(*(getattr(self, prefix + name) for name in self.expert_parameters), limit)

    def forward(self, hidden, counted) -> tuple[torch.Tensor, LayerRouting | None]:
        """hidden (B, T, D), counted (B, T) bool or None for all -> (B, T, D) and the router's decisions."""
        x = self.norm(hidden).flatten(0, 1)  # (B, T, D) -> (N, D)
        if self.routed:
            index, weight, routing = self.route(x, counted)
        else:
            index, weight, routing = *all_experts(x, 1), None
        out = self.run_experts(x, index, weight, self.expert_weights())
        if self.num_shared:
            shared = self.expert_weights("shared_")
            out = out + self.run_shared_experts(x, *all_experts(x, self.num_shared), shared)
        return F.dropout(out.view_as(hidden), self.config.dropout, self.training), routing

    def route(self, x, counted, offset=0.0) -> tuple[torch.Tensor, torch.Tensor, LayerRouting]:
        """x (N, D), counted (B, T) bool or None for all -> expert index (N, k), weight (N, k), decisions.

        offset: (N, E), or a number, added to the logits.
        In training with a capacity_factor, an expert keeps ceil(capacity_factor * assignments / E) of its
        assignments: those with the highest probability, and among equals those of the earliest tokens.
        So later tokens decide what earlier ones lose: the training loss is not causal, and evaluation, which
        drops nothing, is. First come, first served would be causal, and measured worse (benchmarks/LOG.md).
        A dropped assignment has the index E and the weight 0.
        """
        E, k = self.config.num_experts, self.config.experts_per_token
        with torch.autocast(x.device.type, enabled=False):  # the router computes in float32 or wider
            wide = x.double() if x.dtype == torch.float64 else x.float()
            gate, bias = (p.to(wide.dtype) for p in (self.gate.weight, self.gate.bias))
            logits = F.linear(wide, gate, bias) + offset  # (N, E)
        index, weight, log_score, choice = self.routing_rule(logits, self.selection_bias, k)
        routing = LayerRouting(logits, log_score, index, logits.new_zeros(()), counted, choice)
        if self.training and self.config.capacity_factor is not None:
            rivals = routing.assigned > 0  # positions that are not counted use no capacity
            exact = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
            capacity = (self.config.capacity_factor * rivals.sum().to(exact) / E).ceil()
            ranked = log_score.softmax(-1).where(rivals, -1.0).argsort(dim=0, descending=True, stable=True)
            lost = rivals & (ranked.argsort(dim=0) >= capacity)  # ranks in each column
            routing = routing._replace(dropped=(lost.sum() / rivals.sum().clamp(min=1)).to(logits.dtype))
            lost = lost.gather(1, index)
            index, weight = index.where(~lost, E), weight.masked_fill(lost, 0.0)
        return index, weight, routing


class TransformerBlock(nn.Module):
    """Attention and experts, each added to the residual stream."""

    mlp_type = MLPBlock

    def __init__(self, config: ModelConfig, layer: int, attention: str, experts: str):
        super().__init__()
        self.attn = AttentionBlock(config, layer, attention)
        self.mlp = self.mlp_type(config, layer, experts)

    def forward(self, hidden, rope, mask, counted, cache):
        """hidden (B, T, D) -> (B, T, D) and the decisions of the router, or None without one."""
        hidden = hidden + self.attn(hidden, rope, mask, cache)
        update, routing = self.mlp(hidden, counted)
        return hidden + update, routing


# ----------------------------------------------------------------------------------------------- the model
class Transformer(nn.Module):
    """The whole model: forward calls embed, run_blocks and head."""

    name, config_class, presets = "gptoss", ModelConfig, PRESETS
    block_type = TransformerBlock
    added_parameters: tuple[str, ...] = ()  # names of those that a variant adds, and initializes itself
    lean_parts = TransformerBlock, AttentionBlock, MLPBlock, RMSNorm, LayerNorm
    lean_functions = *ATTENTION_BACKENDS.values(), *EXPERT_BACKENDS.values()
    lean_attention = staticmethod(attention_backends.sdpa_attention)

    def __init__(
        self,
        config: ModelConfig,
        *,
        attention: str = "auto",
        experts: str = "auto",
        generator: torch.Generator | None = None,
    ):
        """attention, experts: names of backends; auto: those for a CPU.  generator: draws the initial weights."""
        super().__init__()
        self.config = config
        self.tokenizer = None  # set by from_checkpoint
        self.attention_backend = _choose("attention", attention, ATTENTION_BACKENDS, auto="sdpa")
        self.experts_backend = _choose("experts", experts, EXPERT_BACKENDS, auto="sorted")
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.context_limit, config.hidden_size)
        self.block = nn.ModuleList(
            self.block_type(config, layer, self.attention_backend, self.experts_backend)
            for layer in range(config.num_hidden_layers)
        )
        self.norm = NORMS[config.norm](config.hidden_size)
        self.unembedding = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.unembedding.weight = self.embedding.weight
        self.rope = RotaryEmbedding(config) if config.position == "rope" else None
        self.mask = ATTENTION_MASKS.get(self.attention_backend, visible_keys)
        self.init_weights(generator)

    @classmethod
    def auto_backends(cls, config: ModelConfig, device_type: str, dtype: str) -> dict[str, str]:
        """What "auto" stands for: flex and grouped on CUDA, where they take this config, else sdpa and sorted."""
        cuda = device_type == "cuda"
        flex = cuda and config.dropout == 0 and config.head_dim >= FLEX_HEAD_DIM
        # torch compiles grouped_mm in bfloat16 only, of which 8 values are the 16 bytes that it asks for
        whole_rows = config.hidden_size % 8 == config.intermediate_size % 8 == 0
        grouped = cuda and dtype == "bfloat16" and whole_rows
        return {"attention": "flex" if flex else "sdpa", "experts": "grouped" if grouped else "sorted"}

    @classmethod
    def from_checkpoint(cls, path: str, device: str | torch.device = "cpu") -> Transformer:
        """The model of a checkpoint in eval mode, with its tokenizer in `.tokenizer`."""
        return checkpoint.load(cls, path, device=device)

    def forward(
        self,
        input_ids: torch.Tensor,
        targets: torch.Tensor | None = None,
        *,
        positions: torch.Tensor | None = None,
        cache: KVCache | None = None,
        carry: Any = None,
        return_logits: bool | None = None,
        **inputs: torch.Tensor,
    ) -> ModelOutput:
        """Logits, or with targets the summed cross-entropy.

        input_ids, targets: (B, T) int64; targets are IGNORE_INDEX where not scored.
        positions: (B, T) int64, increasing along a row, negative for left padding. By default they count
        from 0, or with a cache from the last position of each row. Without a cache a row may hold several
        documents, each with positions from 0, which do not see each other.
        return_logits: True also returns logits with targets.
        carry, inputs: for variants.
        """
        documents = documents_of(positions) if cache is None else None
        hidden, positions, counted = self.embed(input_ids, targets, positions, cache, carry, **inputs)
        hidden, router = self.run_blocks(hidden, positions, counted, cache, documents)
        wanted = targets is None if return_logits is None else return_logits
        out = self.head(hidden, targets, wanted, carry)
        return out._replace(router=router, cache=cache, hidden=hidden if targets is None else None)

    @torch.no_grad()
    def attention_weights(self, input_ids: torch.Tensor, **inputs) -> tuple[torch.Tensor, ...]:
        """How much of its attention each query gives to each key, for every layer.

        Arguments as for forward, without a cache. Returns one (B, H, T, S) float32 tensor per layer, computed
        with the formula of eager_attention. A row sums to 1 minus the share of the head's sink.
        """
        if self.attention_backend == "flex":
            raise ValueError("attention_weights does not support attention=flex; use attention=sdpa")
        found = []

        def keep(attn: AttentionBlock, arguments: tuple) -> None:
            hidden, rope, mask, _ = arguments
            q, k, _ = attn.project(hidden, rope)
            found.append(attention_weights(q, k, attn.sinks, mask).flatten(1, 2).float())

        hooks = [block.attn.register_forward_pre_hook(keep) for block in self.block]
        try:
            self(input_ids, **inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(found)

    # ----------------------------------------------------------------- methods that variants may override
    def embed(self, input_ids, targets, positions, cache, carry, **inputs):
        """-> hidden (B, T, D), positions (B or 1, T) int64, counted (B, T) bool or None for all.

        The statistics of the routers include the counted positions, which are those with a target.
        inputs: for embed_tokens.
        """
        if carry is not None:
            raise ValueError("this model has no state to carry between segments; leave out carry")
        cfg, (B, T) = self.config, input_ids.shape
        if cache is not None:
            cache.check_room(B, T)
        if T > cfg.context_limit:
            raise ValueError(
                f"a sequence may have at most {cfg.context_limit} tokens (initial_context_length * "
                f"rope_scaling_factor), got {T}; shorten it, or build a model with a longer context"
            )
        if positions is None:
            positions = torch.arange(T, device=input_ids.device)[None]  # (1, T)
            positions = positions if cache is None else positions + cache.next_position
        elif cache is not None:
            positions = positions.expand(B, -1)
        hidden = self.embed_tokens(input_ids, **inputs)
        if cfg.position == "learned":
            hidden = hidden + self.position_embedding(positions.clamp(min=0))
        hidden = F.dropout(hidden, cfg.dropout, self.training)
        return hidden, positions, None if targets is None else targets != IGNORE_INDEX

    def embed_tokens(self, input_ids) -> torch.Tensor:
        """input_ids (B, T) -> (B, T, D), without positions"""
        return self.embedding(input_ids)

    def run_blocks(self, hidden, positions, counted, cache, documents=None):
        """Every block and the last norm: hidden (B, T, D) -> (B, T, D) and RouterStats or None.

        documents: (B or 1, T) int64 if a row may have several; None for one.
        """
        cfg = self.config
        rope = self.rope.tables(positions) if self.rope is not None else None
        # a cache has another number of keys in each call, for which flex takes a plain mask
        mask = visible_keys if cache is not None and self.attention_backend == "flex" else self.mask
        masks, decisions = {}, []  # layers with the same window share a mask
        apart = () if documents is None else (documents,)
        for window in dict.fromkeys(cfg.windows):
            keys = positions if cache is None else cache.extend(window, positions)
            masks[window] = mask(positions, keys, window, *apart)
        for block, window in zip(self.block, cfg.windows):
            hidden, routing = block(hidden, rope, masks[window], counted, cache)
            if routing is not None:
                decisions.append(routing)
        if cache is not None:
            cache.advance(positions)
        return self.norm(hidden), _router_stats(decisions, cfg.resolved_moe_layers, hidden.shape[:2])

    def head(self, hidden, targets, return_logits: bool, carry) -> ModelOutput:
        """hidden (B, T, D) -> logits, loss or both, and the carry, here None.

        Ids from used_vocab_size on get no probability.
        """
        used = self.config.num_ids
        logits = loss_sum = num_targets = token_losses = None
        if targets is not None:
            weight = self.unembedding.weight
            if used < len(weight):  # the gradient of a slice costs a copy
                weight = weight[:used]
            loss_sum, num_targets, token_losses = next_token_loss(hidden, weight, targets)
        if return_logits:
            logits = self.unembedding(hidden)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            if used < self.config.vocab_size:
                padded = torch.full_like(logits[..., used:], -torch.inf)
                logits = torch.cat((logits[..., :used], padded), dim=-1)
        return ModelOutput(logits, loss_sum, num_targets, token_losses, router=None, carry=carry)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Set norms to 1 and biases to 0, and draw all other weights from a normal distribution.

        The constructor calls it. Called again with an equal generator it sets the same values, also in a model that
        was built on the meta device.

        The std is 0.02 for every width, as in gpt-oss. For matrices that write to the residual stream it is
        divided by sqrt(2 L), as in GPT-2, so that the variance of the stream does not grow with depth. With
        position_init=small, positions have a tenth of the std of the tokens, so that the first block sees
        little but the tokens. GPT-2 used a half, 0.01 (gpt-2/src/model.py).
        """
        residual, added = (2 * self.config.num_hidden_layers) ** -0.5, self.added_parameters
        for name, p in self.named_parameters():
            if name in added:
                continue
            if name.endswith("norm.scale"):
                p.fill_(1.0)
            elif name.endswith("bias"):
                p.zero_()
            else:
                scale = residual if name.endswith(("attn.out.weight", "mlp2_weight")) else 1.0
                p.normal_(0.0, 0.02 * scale, generator=generator)
        # The draw above is the same for every position_init, so the other weights do not depend on it.
        if self.config.position_init == "small":
            self.position_embedding.weight.mul_(0.1)
        elif self.config.position_init == "sinusoidal":
            table = self.position_embedding.weight
            table.copy_(sinusoidal_positions(*table.shape, device=table.device))
        for selection_bias in self.buffers():
            selection_bias.zero_()

    def routed_experts(self) -> list[MLPBlock]:
        """The modules with routed experts, one for each MoE layer."""
        return [block.mlp for block in self.block if block.mlp.routed]

    def new_cache(self, batch: int, max_length: int) -> KVCache:
        """An empty cache for `batch` rows of at most max_length tokens each, including padding."""
        limit = self.config.context_limit
        if max_length > limit:
            raise ValueError(
                f"max_length must be at most the context limit ({limit}), got {max_length}; "
                "shorten the sequences"
            )
        cfg, weight = self.config, self.unembedding.weight
        head_shape = (cfg.num_key_value_heads, cfg.head_dim)
        return KVCache(cfg.windows, batch, max_length, head_shape, weight.device, weight.dtype)


def _choose(kind: str, name: str, known: dict[str, Any], auto: str) -> str:
    if name == "auto":
        logger.info("%s backend: %s", kind, auto)
        return auto
    if name not in known:
        raise ValueError(f"{kind} must be auto or one of {', '.join(known)}, got {name!r}; use {kind}={auto}")
    return name


def _router_stats(routing: list[LayerRouting], layers: tuple[int, ...], shape) -> RouterStats | None:
    if not routing:
        return None
    return RouterStats(
        routing=tuple(routing),
        layers=tuple(sorted(layers)),
        logits=tuple(layer.log_score.detach().unflatten(0, shape) for layer in routing),
        chosen=tuple(layer.chosen.unflatten(0, shape) for layer in routing),
    )
