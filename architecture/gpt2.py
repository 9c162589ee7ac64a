"""GPT-2 in one file, from its parts to the whole: the dense baseline for mixtures of experts.

GPT-2 has learned positions, LayerNorm in front of each part of a block, multi-head attention over all earlier
tokens, a GELU MLP, biases in every layer, and a head that is the embedding (Radford et al. 2019, and OpenAI's
gpt-2/src/model.py). For comparisons, its table of positions can begin otherwise (position_init) or be left out
(position=none).

The model shares output, loss, cache and checkpoints with gptoss.py, and no code of the model itself: a
baseline that shared code with the other model would share its bugs. A test compares the two at the settings
where they are the same function.

Shapes: B batch, T query tokens, S key tokens, D hidden_size, V vocabulary, L layers, H heads, C = D/H
head_dim, F intermediate_size.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from architecture import checkpoint
from architecture.generation.cache import KVCache
from architecture.interface import ModelOutput, documents_of, next_token_loss
from common.settings import cast_fields, option

logger = logging.getLogger(__name__)

LAYER_NORM_EPS = 1e-5


# ----------------------------------------------------------------------------------------------- config
@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of a model. The defaults are those of GPT-2 124M, its vocabulary padded to a multiple of 64."""

    num_hidden_layers: int = option(12, "number of transformer blocks", at_least=1)
    vocab_size: int = option(
        50304, "rows of embedding and head; set from the tokenizer, padded to a multiple of 64", at_least=1
    )
    hidden_size: int = option(
        768, "width of the residual stream; a multiple of num_attention_heads", at_least=1
    )
    intermediate_size: int = option(3072, "width inside an MLP", at_least=1)
    num_attention_heads: int = option(12, "heads; each has its own keys and values", at_least=1)
    initial_context_length: int = option(
        1024, "most tokens in a sequence: the number of learned positions", at_least=1
    )
    position: Literal["learned", "none"] = option("learned", "how the model sees positions")
    position_init: Literal["normal", "small", "sinusoidal"] = option(
        "normal", "initial learned positions: std 0.02, std 0.002, or sines with RMS 0.02"
    )
    tie_embeddings: bool = option(True, "one matrix for embedding and head")
    dropout: float = option(0.0, "on attention, MLP and embedding, in training", at_least=0, below=1)
    used_vocab_size: int | None = option(
        None, "ids from here on are padding; set from the tokenizer; none = no padding", at_least=1
    )

    def __post_init__(self) -> None:
        cast_fields(self)
        heads, used = self.num_attention_heads, self.used_vocab_size
        self._require(
            "hidden_size",
            self.hidden_size % heads == 0,
            f"must be a multiple of num_attention_heads ({heads})",
            f"set hidden_size={-(-self.hidden_size // heads) * heads}",
        )
        self._require(
            "position_init",
            self.position == "learned" or self.position_init == "normal",
            f"must be normal with position={self.position}, which has no table of positions",
            "set position_init=normal, or position=learned",
        )
        self._require(
            "hidden_size",
            self.hidden_size % 2 == 0 or self.position_init != "sinusoidal",
            "must be even for position_init=sinusoidal, because its sines and cosines are pairs",
            f"set hidden_size={self.hidden_size + heads}",  # odd times odd: one more of heads is even
        )
        self._require(
            "used_vocab_size",
            used is None or used <= self.vocab_size,
            f"must be at most vocab_size ({self.vocab_size})",
            "set used_vocab_size=none when every id is used",
        )

    def _require(self, name: str, holds: bool, rule: str, way_out: str) -> None:
        if not holds:
            raise ValueError(f"{name} {rule}, got {getattr(self, name)!r}; {way_out}")

    @property
    def num_ids(self) -> int:
        """Number of ids in use; the rest of vocab_size is padding."""
        return self.used_vocab_size or self.vocab_size

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_key_value_heads(self) -> int:
        """As many as query heads: each has its own keys and values."""
        return self.num_attention_heads

    @property
    def windows(self) -> tuple[None, ...]:
        """How many tokens each layer attends to; None stands for all."""
        return (None,) * self.num_hidden_layers

    @property
    def context_limit(self) -> int:
        """The largest number of tokens in a sequence: there is no position after the learned ones.

        The limit is the same with position=none, so that the two compare.
        """
        return self.initial_context_length

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters by kind.

        total: all.  active: those that one token passes through, with the head (tied or not) and without the
        embedding tables.  embedding: the tables of tokens and positions.
        """
        d, f = self.hidden_size, self.intermediate_size
        norm, attention, mlp = 2 * d, 4 * d * d + 4 * d, 2 * d * f + f + d
        shared = self.num_hidden_layers * (2 * norm + attention + mlp) + norm
        table = self.vocab_size * d
        positions = self.context_limit * d if self.position == "learned" else 0
        head = 0 if self.tie_embeddings else table
        return {
            "total": shared + table + positions + head,
            "active": shared + table,
            "embedding": table + positions,
        }

    def flops_per_token(self, block_size: int) -> float:
        """Training FLOPs (forward and backward) per token in sequences of block_size.

        They are 6 per active parameter, and 12 D per visible key and layer. Token i sees i + 1 keys.
        """
        keys = self.num_hidden_layers * (block_size + 1) / 2  # the mean over the sequence
        return 6 * self.parameter_counts()["active"] + 12 * self.hidden_size * keys

    def matrix_parameters(self) -> int:
        """Number of parameters in the matrices that Muon updates: qkv, out, mlp1 and mlp2."""
        d = self.hidden_size
        return self.num_hidden_layers * (4 * d * d + 2 * d * self.intermediate_size)

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
        """Estimate of the number of bytes per token that autograd keeps between forward and backward.

        attention: name of a backend.  checkpointing: none, selective or full (training/memory.py).  width: bytes of
        a value in a matrix product, 2 with autocast to bfloat16.  experts, compiled: for other models; what
        torch.compile saves here is not counted.
        """
        d, f, heads = self.hidden_size, self.intermediate_size, self.num_attention_heads
        scores = heads * block_size if attention == "eager" else 0
        if checkpointing == "none":
            # float32: the inputs of both norms, and attention weights or their normaliser
            # others: the outputs of both norms, queries, keys, values, the result; the input and output of GELU
            wide, narrow = 2 * d + (scores or heads), 6 * d + 2 * f
            narrow += scores if width < 4 else 0  # a copy of the weights
        else:
            wide, narrow = d, 0  # the input
            if checkpointing == "selective":  # queries, keys, values, both outputs; the result of attention
                narrow = 5 * d + f + (0 if scores else d)
                wide += 0 if scores else heads
        # the last norm, and the gradient of the head
        return self.num_hidden_layers * (4 * wide + width * narrow) + 4 * 3 * d


_GPT2 = dict(vocab_size=50304, used_vocab_size=50257, initial_context_length=1024)
PRESETS: dict[str, dict[str, Any]] = {
    # Counterparts of gptoss's presets: the same layers, width, heads, vocabulary and context.
    # intermediate_size is the multiple of 64 that brings the active parameters nearest to theirs.
    "toy": dict(num_hidden_layers=4, vocab_size=4096, hidden_size=128, intermediate_size=512,
                num_attention_heads=4, initial_context_length=1024),
    "medium": dict(num_hidden_layers=8, vocab_size=4096, hidden_size=384, intermediate_size=2048,
                   num_attention_heads=6, initial_context_length=2048),
    "large": dict(num_hidden_layers=12, vocab_size=50304, hidden_size=768, intermediate_size=3136,
                  num_attention_heads=12, initial_context_length=4096),
    # the official sizes: 124M, 355M, 774M and 1.6B parameters
    "gpt2": dict(_GPT2, num_hidden_layers=12, hidden_size=768, intermediate_size=3072, num_attention_heads=12),
    "gpt2-medium": dict(_GPT2, num_hidden_layers=24, hidden_size=1024, intermediate_size=4096,
                        num_attention_heads=16),
    "gpt2-large": dict(_GPT2, num_hidden_layers=36, hidden_size=1280, intermediate_size=5120,
                       num_attention_heads=20),
    "gpt2-xl": dict(_GPT2, num_hidden_layers=48, hidden_size=1600, intermediate_size=6400,
                    num_attention_heads=25),
}  # fmt: skip


# --------------------------------------------------------------------------------------------- positions
def sinusoidal_positions(number: int, size: int, device: torch.device) -> torch.Tensor:
    """Sines in even columns and cosines in odd ones, with a root mean square of 0.02.

    Returns (number, size) float64.
    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5, times 0.02 sqrt(2).
    """
    place = torch.arange(number, dtype=torch.float64, device=device)
    column = torch.arange(0, size, 2, dtype=torch.float64, device=device)
    angle = torch.outer(place, 10000 ** (-column / size))  # (number, size / 2)
    table = angle.new_empty(number, size)
    table[:, 0::2], table[:, 1::2] = angle.sin(), angle.cos()
    return 0.02 * math.sqrt(2) * table


# --------------------------------------------------------------------------------------------- attention
def eager_attention(q, k, v, mask, dropout):
    """Attention as formulas: the reference for sdpa_attention.

    q: (B, H, T, C).  k, v: (B, H, S, C).  mask: (B or 1, 1, T, S) bool, True where a key is visible; None if
    S = T and query i sees the keys up to i.  Returns (B, H, T, C).  The softmax is in float32 or wider.
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, H, T, S)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return F.dropout(weights, dropout, training=dropout > 0).to(v.dtype) @ v


def sdpa_attention(q, k, v, mask, dropout):
    """Attention by torch's fused kernel. Without a mask it is causal, and skips the hidden half."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None)


ATTENTION_BACKENDS = {"eager": eager_attention, "sdpa": sdpa_attention}


def visible_keys(
    query_positions: torch.Tensor, key_positions: torch.Tensor, documents: torch.Tensor | None = None
) -> torch.Tensor:
    """Which keys a query may see: positions (B or 1, T) and (B or 1, S) int64 -> (B or 1, 1, T, S) bool.

    A query sees the keys at its own position and before it. A negative position is padding, which no token
    sees. A padded query sees itself alone, because a softmax over no key is NaN.
    documents: (B or 1, T) int64 of interface.documents_of, with S = T: a query sees its own document only.
    """
    query, key = query_positions[:, None, :, None], key_positions[:, None, None, :]
    visible = (key >= 0) & (key <= query) | (key == query)
    if documents is not None:
        visible = visible & (documents[:, None, :, None] == documents[:, None, None, :])
    return visible


class Attention(nn.Module):
    """Pre-norm multi-head attention; returns the term to add to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, backend: str):
        super().__init__()
        self.config, self.layer = config, layer
        self.attend = ATTENTION_BACKENDS[backend]
        d = config.hidden_size
        self.norm = nn.LayerNorm(d, eps=LAYER_NORM_EPS)
        self.qkv = nn.Linear(d, 3 * d)  # the queries of all heads, then the keys, then the values
        self.out = nn.Linear(d, d)

    def forward(self, hidden, mask, cache: KVCache | None) -> torch.Tensor:
        """hidden: (B, T, D).  mask: as in eager_attention.  Returns (B, T, D)."""
        cfg = self.config
        qkv = self.qkv(self.norm(hidden)).unflatten(-1, (3, cfg.num_attention_heads, cfg.head_dim))
        q, k, v = qkv.unbind(2)  # (B, T, H, C) each
        if cache is not None:
            k, v = cache.extend_layer(self.layer, k, v)  # (B, S, H, C)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = self.attend(q, k, v, mask, cfg.dropout if self.training else 0.0)
        out = self.out(out.transpose(1, 2).flatten(2))  # (B, H, T, C) -> (B, T, D)
        return F.dropout(out, cfg.dropout, self.training)


# ------------------------------------------------------------------------------------------ MLP and block
class MLP(nn.Module):
    """Pre-norm MLP, (B, T, D) -> (B, T, D); returns the term to add to the residual stream."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dropout = config.dropout
        self.norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.mlp1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.mlp2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        # GPT-2 was trained with the tanh approximation of GELU.
        inner = F.gelu(self.mlp1(self.norm(hidden)), approximate="tanh")  # (B, T, F)
        return F.dropout(self.mlp2(inner), self.dropout, self.training)


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, backend: str):
        super().__init__()
        self.attn = Attention(config, layer, backend)
        self.mlp = MLP(config)

    def forward(self, hidden, mask, cache: KVCache | None) -> torch.Tensor:
        hidden = hidden + self.attn(hidden, mask, cache)
        return hidden + self.mlp(hidden)


# ----------------------------------------------------------------------------------------------- the model
class GPT2(nn.Module):
    """GPT-2: embeddings, blocks, the last norm and the head."""

    name, config_class, presets = "gpt2", ModelConfig, PRESETS
    lean_parts = Block, Attention, MLP
    lean_functions = tuple(ATTENTION_BACKENDS.values())
    rope = None  # nothing is rotated; the lean decoder asks where it finds no table of positions

    def __init__(
        self,
        config: ModelConfig,
        *,
        attention: str = "auto",
        experts: str = "auto",
        generator: torch.Generator | None = None,
    ):
        """attention: auto or a key of ATTENTION_BACKENDS.  experts: auto or none, as the model is dense.
        generator: draws the initial weights; None uses torch's global one.
        """
        super().__init__()
        if attention not in ("auto", *ATTENTION_BACKENDS):
            raise ValueError(
                f"attention must be auto or one of {', '.join(ATTENTION_BACKENDS)}, got {attention!r}; "
                "use attention=sdpa"
            )
        if experts not in ("auto", "none"):
            raise ValueError(f"experts must be auto or none, as gpt2 is dense, got {experts!r}; leave it out")
        if attention == "auto":
            attention = "sdpa"
            logger.info("attention backend: sdpa")
        self.config = config
        self.tokenizer = None  # from_checkpoint sets it
        self.attention_backend, self.experts_backend = attention, "none"
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.context_limit, config.hidden_size)
        self.block = nn.ModuleList(
            Block(config, layer, attention) for layer in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.unembedding = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.unembedding.weight = self.embedding.weight
        self.init_weights(generator)

    @classmethod
    def from_checkpoint(cls, path: str, device: str | torch.device = "cpu") -> GPT2:
        """The model of a checkpoint, in eval mode, with its tokenizer at `.tokenizer`.

        path: a checkpoint_<step>.pt, a run's folder for its newest, or RUN/best.json for its best.
        architecture.registry.load_model also reads the folders of transformers.
        """
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
    ) -> ModelOutput:
        """Logits if there are no targets, else the summed cross-entropy.

        input_ids, targets: (B, T) int64; a target of IGNORE_INDEX is not scored.
        positions: (B, T) int64, increasing along a row, negative for left padding. None counts from 0, or
        from the last position of each row in the cache. Without a cache, positions that start again at 0
        begin another document in the row, and documents do not see each other.
        return_logits: True returns logits beside a loss, False returns none.
        carry: must be None; other models carry a state from one segment to the next.
        """
        if carry is not None:
            raise ValueError("this model carries nothing from segment to segment; leave carry out")
        cfg, (B, T) = self.config, input_ids.shape
        if cache is not None:
            cache.check_room(B, T)
        if T > cfg.context_limit:
            raise ValueError(
                f"a sequence may have {cfg.context_limit} tokens (initial_context_length), got {T}; "
                "shorten the sequence"
            )
        mask, documents = None, documents_of(positions) if cache is None else None  # no mask: causal
        if positions is not None or cache is not None:
            if positions is None:
                positions = torch.arange(T, device=input_ids.device) + cache.next_position
            positions = positions.expand(B, -1)
            keys = positions if cache is None else cache.extend(None, positions)
            mask = visible_keys(positions, keys, *(() if documents is None else (documents,)))
        hidden = self.embedding(input_ids)
        if cfg.position == "learned" and positions is None:
            hidden = hidden + self.position_embedding.weight[:T]
        elif cfg.position == "learned":
            # padding gets any row: nobody sees it
            hidden = hidden + self.position_embedding(positions.clamp(min=0))
        hidden = F.dropout(hidden, cfg.dropout, self.training)
        for block in self.block:
            hidden = block(hidden, mask, cache)
        if cache is not None:
            cache.advance(positions)
        wanted = targets is None if return_logits is None else return_logits
        hidden = self.norm(hidden)
        out = self.head(hidden, targets, wanted)
        return out._replace(cache=cache, hidden=hidden if targets is None else None)

    def head(self, hidden, targets, return_logits: bool) -> ModelOutput:
        """hidden (B, T, D) -> logits (B, T, V), loss, or both. Padded ids have probability 0."""
        vocab_size, used = self.config.vocab_size, self.config.used_vocab_size
        weight = self.unembedding.weight[:used] if used else self.unembedding.weight
        logits = loss_sum = num_targets = token_losses = None
        if targets is not None:
            loss_sum, num_targets, token_losses = next_token_loss(hidden, weight, targets)
        if return_logits:
            logits = F.linear(hidden, weight)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            logits = F.pad(logits, (0, vocab_size - len(weight)), value=-torch.inf)  # (B, T, V)
        return ModelOutput(logits, loss_sum, num_targets, token_losses, router=None)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Set the initial weights of GPT-2: normal with std 0.02, biases 0, norms 1.

        The matrices that write to the residual stream are divided by sqrt(2 L), so that its variance does not
        grow with depth. position_init has its own start for the table of positions; position and
        position_init change no other weight.
        """
        cfg = self.config
        residual = (2 * cfg.num_hidden_layers) ** -0.5
        for name, p in self.named_parameters():
            if name.endswith("norm.weight"):
                p.fill_(1.0)
            elif name.endswith("bias"):
                p.zero_()
            else:
                writes = name.endswith(("attn.out.weight", "mlp.mlp2.weight"))
                p.normal_(0.0, 0.02 * (residual if writes else 1.0), generator=generator)
            if name == "embedding.weight" and cfg.position == "none":
                # The draw of the table that is missing, so that the weights after it are those of its rivals.
                missing = torch.empty(cfg.context_limit, cfg.hidden_size, dtype=p.dtype, device=p.device)
                missing.normal_(generator=generator)
        if cfg.position_init == "small":
            self.position_embedding.weight.mul_(0.1)
        elif cfg.position_init == "sinusoidal":
            table = self.position_embedding.weight
            table.copy_(sinusoidal_positions(*table.shape, device=table.device))

    def new_cache(self, batch: int, max_length: int) -> KVCache:
        """An empty cache for `batch` rows of at most max_length tokens, padding included."""
        cfg, weight = self.config, self.embedding.weight
        if max_length > cfg.context_limit:
            raise ValueError(
                f"max_length must be at most the context limit ({cfg.context_limit}), got {max_length}; "
                "shorten the sequences"
            )
        head_shape = (cfg.num_attention_heads, cfg.head_dim)
        return KVCache(cfg.windows, batch, max_length, head_shape, weight.device, weight.dtype)
