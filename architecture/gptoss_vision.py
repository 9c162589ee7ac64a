"""GPT-OSS that sees: what this adds to gptoss.py.

An encoder, a Vision Transformer, cuts an image into square patches, and a projector makes one vector of each,
as wide as an embedding. These vectors stand in the sequence where the text has its placeholder. The ids of
image tokens follow those of the vocabulary (images.py). The router of each MoE layer has a bias for image
tokens only.

The idea and the names of the settings come from the README of GPT-OSS-Vision, whose code was not published.
Choices made here:
  - The encoder is pre-norm, with exact GELU, biases and learned positions, and without dropout: the ViT of
    Dosovitskiy et al. 2021 (arXiv:2010.11929), eq. 1-4.
  - The pool token, if there is one, is ViT's class token. It becomes an image token, in front of the patches.
  - Image tokens count in the balance of the routers, although they have no target.
  - With vision_num_layers=0 a patch only gets a linear map, its position and a norm.
  - A text without images has exactly the logits of the trunk.

Shapes: M images, S image_size, A patches of an image, P image tokens of an image, W vision_embed_dim,
B rows, T tokens, D hidden_size, N = B*T, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from architecture.gptoss import PRESETS as TRUNK_PRESETS
from architecture.gptoss import (
    AttentionBlock,
    LayerNorm,
    MLPBlock,
    ModelConfig,
    RMSNorm,
    Transformer,
    TransformerBlock,
)
from architecture.images import ImageFormat
from architecture.interface import IGNORE_INDEX, ModelOutput
from common.settings import option


# ----------------------------------------------------------------------------------------------- config
@dataclass(frozen=True, kw_only=True)
class VisionConfig(ModelConfig):
    """The config of the trunk and the settings of the encoder."""

    use_vision: bool = option(True, "false: no encoder; the model is the trunk")
    vision_embed_dim: int = option(1024, "width of the encoder", at_least=1)
    vision_patch_size: int = option(14, "pixels on each side of a patch", at_least=1)
    vision_num_channels: int = option(3, "channels of an image; 3 = RGB", at_least=1)
    vision_num_layers: int = option(24, "blocks of the encoder; 0 = a linear map of the patches", at_least=0)
    vision_num_heads: int = option(16, "attention heads of the encoder", at_least=1)
    image_size: int = option(224, "pixels on each side, to which images are resized", at_least=1)
    vision_pool_token: bool = option(False, "a learned token in front of the patches; one more image token")
    vision_router_bias: bool = option(True, "a learned bias for image tokens in every router")

    def __post_init__(self) -> None:
        super().__post_init__()
        size, patch, tokens = self.image_size, self.vision_patch_size, self.tokens_per_image
        width, heads = self.vision_embed_dim, self.vision_num_heads
        for name, holds, rule, way_out in (
            ("image_size", size % patch == 0, f"must be a multiple of vision_patch_size ({patch})",
             f"set image_size={-(-size // patch) * patch}"),
            ("image_size", not self.use_vision or tokens < self.context_limit,
             f"must leave room for text, and an image takes {tokens} of {self.context_limit} tokens",
             "lower it, or raise initial_context_length"),
            ("vision_embed_dim", width % heads == 0, f"must be a multiple of vision_num_heads ({heads})",
             f"set vision_embed_dim={-(-width // heads) * heads}"),
        ):  # fmt: skip
            self._require(name, holds, rule, way_out)

    @property
    def tokens_per_image(self) -> int:
        return (self.image_size // self.vision_patch_size) ** 2 + self.vision_pool_token

    @property
    def image_format(self) -> ImageFormat | None:
        """What the model makes of an image; None if it reads none."""
        if self.use_vision and self.vision_num_channels != 3:
            raise ValueError(
                "vision_num_channels must be 3 where images are read, which is as RGB, got "
                f"{self.vision_num_channels}; leave it out"
            )
        made = ImageFormat(self.image_size, self.tokens_per_image, self.vocab_size)
        return made if self.use_vision else None

    def _encoder_sizes(self) -> tuple[int, int, int]:
        """Number of parameters in the encoder's matrices: patch embedding, blocks, projector."""
        w, layers = self.vision_embed_dim, self.vision_num_layers
        pixels = self.vision_num_channels * self.vision_patch_size**2
        return pixels * w, layers * 12 * w * w, w * self.hidden_size

    def parameter_counts(self) -> dict[str, int]:
        """As for the trunk; the encoder and the router biases are not active for a token of the text."""
        counts, w, layers = super().parameter_counts(), self.vision_embed_dim, self.vision_num_layers
        biases = w + layers * 9 * w + self.hidden_size
        norms = layers * 4 * w + 2 * w
        positions = self.tokens_per_image * w  # with the pool token
        routers = len(self.resolved_moe_layers) * self.num_experts * self.vision_router_bias
        added = sum(self._encoder_sizes()) + biases + norms + positions + routers
        return counts | {"total": counts["total"] + self.use_vision * added}

    def flops_per_token(self, block_size: int) -> float:
        """As for the trunk, and the encoder's work on one image in each sequence of block_size tokens."""
        tokens, (patch, blocks, projector) = self.tokens_per_image, self._encoder_sizes()
        keys = 12 * self.vision_embed_dim * self.vision_num_layers * tokens
        # pixels get no gradient, so a parameter of the patch embedding costs 4
        image = 4 * patch * (tokens - self.vision_pool_token) + (6 * (blocks + projector) + keys) * tokens
        return super().flops_per_token(block_size) + self.use_vision * image / block_size

    def matrix_parameters(self) -> int:
        """As for the trunk, with the matrices of the encoder."""
        return super().matrix_parameters() + self.use_vision * sum(self._encoder_sizes())

    def bytes_kept_per_token(
        self, batch_size: int, block_size: int, *, checkpointing: str = "none", width: int = 4, **how: Any
    ) -> float:
        """As for the trunk, with the encoder's values for one image in each sequence."""
        w, heads, layers = self.vision_embed_dim, self.vision_num_heads, self.vision_num_layers
        # input and output of two norms, queries, keys, values and the result: 8 W; input and output of GELU: 8 W
        wide, narrow = 2 * w + heads, 14 * w  # the inputs of the norms are float32
        if checkpointing != "none":  # the input
            wide, narrow = w, 0
        if checkpointing == "selective":
            # the input, and the results of qkv, attention, out, mlp1 and mlp2
            wide, narrow = w + heads, 10 * w
        image = layers * (4 * wide + width * narrow)
        image += 4 * 2 * w + width * self.vision_num_channels * self.vision_patch_size**2
        kept = super().bytes_kept_per_token(
            batch_size, block_size, checkpointing=checkpointing, width=width, **how
        )
        return kept + self.use_vision * image * self.tokens_per_image / block_size


# a Vision Transformer of the size "small" beside the trunk's medium, "large" (the defaults) beside the others
PRESETS = TRUNK_PRESETS | {
    # minutes on a laptop
    "toy": TRUNK_PRESETS["toy"] | dict(num_hidden_layers=3, num_experts=4, intermediate_size=96, image_size=48,
                                       vision_embed_dim=96, vision_patch_size=16, vision_num_layers=2,
                                       vision_num_heads=4),
    "medium": TRUNK_PRESETS["medium"] | dict(vision_embed_dim=384, vision_patch_size=16, vision_num_layers=12,
                                             vision_num_heads=6),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- encoder
class VisionAttention(nn.Module):
    """Pre-norm attention in which every token of an image sees all of them. (M, P, W) -> (M, P, W)"""

    def __init__(self, config: VisionConfig):
        super().__init__()
        width, self.heads = config.vision_embed_dim, config.vision_num_heads
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.norm(hidden)).unflatten(-1, (3, self.heads, -1))  # (M, P, 3, heads, W / heads)
        out = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))  # (M, heads, P, W / heads)
        return self.out(out.transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    """Pre-norm MLP of four times the width, with exact GELU. (M, P, W) -> (M, P, W)"""

    def __init__(self, config: VisionConfig):
        super().__init__()
        width = config.vision_embed_dim
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp1 = nn.Linear(width, 4 * width)
        self.mlp2 = nn.Linear(4 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.mlp2(F.gelu(self.mlp1(self.norm(hidden))))


class VisionBlock(nn.Module):
    """Attention and MLP, each added to the residual stream. (M, P, W) -> (M, P, W)"""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.attn, self.mlp = VisionAttention(config), VisionMLP(config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.attn(hidden)
        return hidden + self.mlp(hidden)


class VisionEncoder(nn.Module):
    """Patches, blocks, a last norm and the projector to hidden_size."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        width, patch = config.vision_embed_dim, config.vision_patch_size
        grid = config.image_size // patch
        self.patch_embedding = nn.Linear(config.vision_num_channels * patch * patch, width)
        self.position_embedding = nn.Parameter(torch.zeros(grid, grid, width))
        self.pool_token = nn.Parameter(torch.zeros(width)) if config.vision_pool_token else None
        self.block = nn.ModuleList(VisionBlock(config) for _ in range(config.vision_num_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.projector = nn.Linear(width, config.hidden_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(M, channels, S, S) in [-1, 1] -> (M, P, D)"""
        p = self.config.vision_patch_size
        patches = pixel_values.unfold(2, p, p).unfold(3, p, p)  # (M, channels, rows, columns, p, p)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)  # as a convolution reads them
        hidden = self.patch_embedding(patches) + self.positions(*patches.shape[1:3])
        hidden = hidden.flatten(1, 2)  # (M, A, W)
        if self.pool_token is not None:
            pool = self.pool_token.to(hidden.dtype).expand(len(hidden), 1, -1)
            hidden = torch.cat((pool, hidden), dim=1)  # (M, P, W)
        for block in self.block:
            hidden = block(hidden)
        return self.projector(self.norm(hidden))

    def positions(self, rows: int, columns: int) -> torch.Tensor:
        """(rows, columns, W); a grid of another size than that of image_size is interpolated, as for ViT."""
        table = self.position_embedding
        if table.shape[:2] == (rows, columns):
            return table
        table = table.permute(2, 0, 1)[None]
        return F.interpolate(table, (rows, columns), mode="bicubic")[0].permute(1, 2, 0)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None) -> None:
        """Matrices keep the variance of their input, and the output has the std of a text embedding, 0.02.

        As in the trunk, what writes to the residual stream is divided by sqrt(2 layers).
        """
        residual = (2 * max(1, self.config.vision_num_layers)) ** -0.5
        for name, p in self.named_parameters():
            if name.endswith("norm.weight"):
                p.fill_(1.0)
            elif name.endswith("bias"):
                p.zero_()
            elif p.ndim != 2:  # positions and the pool token
                p.normal_(0.0, 0.02, generator=generator)
            else:
                scale = residual if name.endswith(("attn.out.weight", "mlp2.weight")) else 1.0
                scale = 0.02 if name == "projector.weight" else scale
                p.normal_(0.0, scale * p.shape[1] ** -0.5, generator=generator)


# ------------------------------------------------------------------------------------------- the trunk's parts
class Counted(NamedTuple):
    """What goes to the routers in place of the trunk's `counted`."""

    counted: torch.Tensor | None  # (B, T) bool, as in the trunk
    image: torch.Tensor | None  # (B, T) bool, the image tokens; None without any


class VisionMLPBlock(MLPBlock):
    """The trunk's, with a bias of the router for image tokens."""

    def __init__(self, config: VisionConfig, layer: int, backend: str):
        super().__init__(config, layer, backend)
        biased = self.routed and config.use_vision and config.vision_router_bias
        self.vision_router_bias = nn.Parameter(torch.zeros(config.num_experts)) if biased else None

    def route(self, x, counted: Counted, offset=0.0):
        """As for the trunk."""
        if counted.image is not None and self.vision_router_bias is not None:
            offset = offset + counted.image.flatten()[:, None] * self.vision_router_bias  # (N, E)
        return super().route(x, counted.counted, offset)


class VisionTransformerBlock(TransformerBlock):
    """The trunk's, with VisionMLPBlock."""

    mlp_type = VisionMLPBlock


# ----------------------------------------------------------------------------------------------- the model
class VisionLanguageTransformer(Transformer):
    """The trunk over texts with images."""

    name, config_class, presets = "gptoss_vision", VisionConfig, PRESETS
    block_type = VisionTransformerBlock
    lean_parts = (VisionTransformerBlock, AttentionBlock, VisionMLPBlock, RMSNorm, LayerNorm,
                  VisionEncoder, VisionBlock, VisionAttention, VisionMLP)  # fmt: skip
    extends = "gptoss"  # can start from weights of this model, which lack added_parameters
    optimizer_rules = (
        (r"vision\.block\.\d+\.(attn\.(qkv|out)|mlp\.mlp[12])\.weight", "matrix"),
        # pixels and features have much in common, so that steps of one size for each weight would add up
        (r"vision\.(patch_embedding|projector)\.weight", "matrix"),
        (r"vision\.(position_embedding|pool_token)", "no_decay"),
    )

    def __init__(self, config: VisionConfig, *, generator: torch.Generator | None = None, **backends: str):
        """Arguments as for the trunk. The weights of the trunk are drawn first, as without this variant."""
        super().__init__(config, generator=generator, **backends)
        self.vision = None
        if config.use_vision:
            self.vision = VisionEncoder(config)
            self.vision.init_weights(generator)

    @property
    def added_parameters(self) -> tuple[str, ...]:
        """Names of the parameters that the trunk does not have."""
        names = (name for name, _ in self.named_parameters())
        return tuple(name for name in names if name.startswith("vision.") or "vision_router_bias" in name)

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images (M, channels, S, S) -> their features (M * P, D).

        images: uint8 from 0 to 255, or floating point from -1 to 1. Another size than image_size must also be
        a multiple of the patch; it gives another number of tokens.
        """
        cfg = self.config
        if self.vision is None:
            raise ValueError("this model reads no images (use_vision=false); leave them out")
        channels, patch = cfg.vision_num_channels, cfg.vision_patch_size
        fit = images.ndim == 4 and images.shape[1] == channels
        if not fit or any(side == 0 or side % patch for side in images.shape[2:]):
            raise ValueError(
                f"images must have the shape (number, {channels}, height, width), with sides that are multiples "
                f"of vision_patch_size ({patch}), got {tuple(images.shape)}; resize them to {cfg.image_size}"
            )
        weight = self.vision.patch_embedding.weight
        if not images.is_floating_point():
            images = images.to(weight.dtype) / 127.5 - 1
        return self.vision(images.to(weight.dtype)).flatten(0, 1)

    def forward(
        self,
        input_ids: torch.Tensor,
        targets: torch.Tensor | None = None,
        *,
        images: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        **others,
    ) -> ModelOutput:
        """As for the trunk. Ids from vocab_size on are image tokens, rows of the features of all images.

        images: as for encode_images.  features: (M * P, D), in place of images, what encode_images returned.
        """
        if images is not None and features is not None:
            raise ValueError("images and features are the same thing, got both; leave out one of them")
        if images is not None:
            features = self.encode_images(images)
        return super().forward(input_ids, targets, features=features, **others)

    # ------------------------------------------------------------------ methods of the trunk, overridden
    def embed(self, input_ids, targets, positions, cache, carry, features=None):
        """As for the trunk, with Counted for counted: image tokens count, too."""
        hidden, positions, counted = super().embed(
            input_ids, targets, positions, cache, carry, features=features
        )
        image = None if features is None else input_ids >= self.config.vocab_size
        if counted is not None and image is not None:
            counted = counted | image
        return hidden, positions, Counted(counted, image)

    def embed_tokens(self, input_ids, features=None) -> torch.Tensor:
        """input_ids (B, T), features (M * P, D) or None -> (B, T, D)"""
        vocab_size, number = self.config.vocab_size, 0 if features is None else len(features)
        # elsewhere the check would wait for the device, and an id out of range stops the program anyway
        if input_ids.device.type == "cpu" and (largest := int(input_ids.max())) >= vocab_size + number:
            raise ValueError(
                f"input_ids must be below {vocab_size + number}, for {vocab_size} ids of text and {number} image "
                f"tokens, got {largest}; pass the images that the ids were made for"
            )
        if number == 0:
            return super().embed_tokens(input_ids)
        image = input_ids >= vocab_size
        text = super().embed_tokens(input_ids.masked_fill(image, 0))
        seen = F.embedding((input_ids - vocab_size).clamp(min=0), features.to(text.dtype))
        return torch.where(image[..., None], seen, text)

    def head(self, hidden, targets, return_logits: bool, carry) -> ModelOutput:
        """As for the trunk. For a loss alone, positions without a target, such as image tokens, are left out."""
        scored = None if targets is None or return_logits else targets != IGNORE_INDEX
        if scored is None or not scored.any():
            return super().head(hidden, targets, return_logits, carry)
        out = super().head(hidden[scored][None], targets[scored][None], False, carry)
        losses = out.token_losses.new_zeros(targets.shape).masked_scatter(scored, out.token_losses)
        return out._replace(token_losses=losses)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """As for the trunk, and the encoder."""
        super().init_weights(generator)
        for block in self.block:
            if block.mlp.vision_router_bias is not None:
                block.mlp.vision_router_bias.zero_()
        if getattr(self, "vision", None) is not None:  # not yet when the constructor of the trunk calls this
            self.vision.init_weights(generator)
