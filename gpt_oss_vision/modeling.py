"""GPT-OSS-Vision on the parts of transformers' gpt-oss: what differs is the images, their router bias, and NoPE.

The text half has the names of GptOssForCausalLM, so official weights load into these classes and transformers
reads the text half of what they save. The encoder is that of architecture/gptoss_vision.py.

Shapes: M images, S image_size, P tokens_per_image, B rows, T tokens, D hidden_size, N = B*T, E experts.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GptOssForCausalLM, GptOssModel, GptOssPreTrainedModel, LogitsProcessorList
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.gpt_oss.modeling_gpt_oss import (
    GptOssDecoderLayer,
    GptOssRMSNorm,
    GptOssRotaryEmbedding,
    GptOssTopKRouter,
)
from transformers.utils import torch_compilable_check

from architecture.gptoss_vision import VisionBlock, VisionEncoder
from architecture.interface import IGNORE_INDEX
from gpt_oss_vision.configuration import GPTOSSVisionConfig


class GPTOSSVisionBlock(GradientCheckpointingLayer, VisionBlock):
    """A block of the encoder that gradient checkpointing can compute again."""


class GPTOSSVisionEncoder(VisionEncoder):
    def __init__(self, config: GPTOSSVisionConfig):
        super().__init__(config)
        self.block = nn.ModuleList(GPTOSSVisionBlock(config) for _ in range(config.vision_num_layers))


class GPTOSSVisionRouter(GptOssTopKRouter):
    """transformers' router, with a bias for image tokens."""

    def __init__(self, config: GPTOSSVisionConfig):
        super().__init__(config)
        self.vision_router_bias = None
        if config.use_vision and config.vision_router_bias:
            self.vision_router_bias = nn.Parameter(torch.zeros(self.num_experts))

    def forward(self, hidden_states, image_mask=None):
        """hidden_states (N, D), image_mask (B, T) bool or None -> logits (N, E), weights (N, k), index (N, k)."""
        if image_mask is None or self.vision_router_bias is None:
            return super().forward(hidden_states)
        logits = F.linear(hidden_states, self.weight, self.bias)
        logits = logits + image_mask.flatten()[:, None] * self.vision_router_bias
        chosen, index = logits.topk(self.top_k, dim=-1)
        return logits, chosen.softmax(-1), index


class GPTOSSVisionDecoderLayer(GptOssDecoderLayer):
    """transformers' block, whose router sees which tokens are of images, and which NoPE may leave unrotated."""

    def __init__(self, config: GPTOSSVisionConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.mlp.router = GPTOSSVisionRouter(config)
        self.rotated = config.is_rotated(layer_idx)

    def forward(self, hidden_states, *, position_embeddings, image_mask=None, **inputs):
        if not self.rotated:
            cos, sin = position_embeddings
            position_embeddings = torch.ones_like(cos), torch.zeros_like(sin)
        normed = self.input_layernorm(hidden_states)
        update, _ = self.self_attn(normed, position_embeddings=position_embeddings, **inputs)
        hidden_states = hidden_states + update
        flat = self.post_attention_layernorm(hidden_states).flatten(0, 1)  # (B, T, D) -> (N, D)
        _, weight, index = self.mlp.router(flat, image_mask)
        return hidden_states + self.mlp.experts(flat, index, weight).view_as(hidden_states)


class GPTOSSVisionPreTrainedModel(GptOssPreTrainedModel):
    config: GPTOSSVisionConfig
    input_modalities = ("image", "text")
    _no_split_modules = ["GPTOSSVisionDecoderLayer", "GPTOSSVisionEncoder"]

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """The experts are those of gpt-oss. transformers would look for them in this file, and take slow ones."""
        return GptOssForCausalLM._can_set_experts_implementation()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GPTOSSVisionRouter) and module.vision_router_bias is not None:
            nn.init.zeros_(module.vision_router_bias)
        if isinstance(module, GPTOSSVisionEncoder):
            module.init_weights(None)


class GPTOSSVisionModel(GPTOSSVisionPreTrainedModel, GptOssModel):
    """The model without its head."""

    def __init__(self, config: GPTOSSVisionConfig):
        super(GptOssModel, self).__init__(config)  # not GptOssModel's, which would build its own layers
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            GPTOSSVisionDecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = GptOssRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = GptOssRotaryEmbedding(config)
        self.vision = GPTOSSVisionEncoder(config) if config.use_vision else None
        self.gradient_checkpointing = False
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values (M, channels, S, S) from -1 to 1 -> the embeddings of the image tokens, (M * P, D)."""
        cfg = self.config
        if self.vision is None:
            raise ValueError("this model reads no images (use_vision=False); leave pixel_values out")
        wanted = cfg.vision_num_channels, cfg.image_size, cfg.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != wanted:
            raise ValueError(
                f"pixel_values must have the shape (images, {', '.join(map(str, wanted))}), got "
                f"{tuple(pixel_values.shape)}; use the processor that was saved with this model"
            )
        return self.vision(pixel_values.to(self.vision.patch_embedding.weight.dtype)).flatten(0, 1)

    def forward(self, input_ids=None, *, pixel_values=None, inputs_embeds=None, **inputs):
        """As GptOssModel's. pixel_values (M, channels, S, S): the images of the batch, in the order of their tokens."""
        if pixel_values is None and input_ids is None:
            return super().forward(input_ids, inputs_embeds=inputs_embeds, **inputs)
        if input_ids is None:
            raise ValueError(
                "pixel_values need input_ids, which say where the images stand, got inputs_embeds only"
            )
        features = None if pixel_values is None else self.get_image_features(pixel_values)
        found, number = input_ids == self.config.image_token_id, 0 if features is None else len(features)
        torch_compilable_check(
            found.sum() == number,
            lambda: (
                f"input_ids have {int(found.sum())} image tokens, and the images of pixel_values make {number}; "
                "make both with one call of the processor"
            ),
        )
        if features is None:
            return super().forward(input_ids, **inputs)
        embeds = self.embed_tokens(input_ids.masked_fill(found, 0))
        embeds = embeds.masked_scatter(found[..., None], features.to(embeds.dtype))
        return super().forward(inputs_embeds=embeds, image_mask=found, **inputs)


class WithoutImageToken(LogitsProcessorList):
    """Processors of scores that see a column for the image token, which is then never chosen.

    Its id may lie behind the vocabulary, and some processors look up the score of every id of the prompt.
    """

    def __init__(self, processors: LogitsProcessorList, image_token_id: int):
        super().__init__(processors)
        self.image_token_id = image_token_id

    def __call__(self, input_ids, scores, **kwargs):
        size = scores.shape[-1]
        scores = F.pad(scores, (0, max(0, self.image_token_id + 1 - size)))
        scores[:, self.image_token_id] = -torch.inf
        return super().__call__(input_ids, scores, **kwargs)[:, :size]


class GPTOSSVisionForCausalLM(GPTOSSVisionPreTrainedModel, GptOssForCausalLM):
    """The model with its head, for generate() and for training."""

    def __init__(self, config: GPTOSSVisionConfig):
        super(GptOssForCausalLM, self).__init__(config)
        self.model = GPTOSSVisionModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.router_aux_loss_coef = config.router_aux_loss_coef  # for output_router_logits=True only
        self.num_experts, self.num_experts_per_tok = config.num_local_experts, config.num_experts_per_tok
        self.post_init()

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        pixel_values=None, labels=None, use_cache=None, output_router_logits=None, logits_to_keep=0, **kwargs: Any,
    ):  # fmt: skip
        """As GptOssForCausalLM's, with pixel_values. Labels that are the image token are not scored."""
        if labels is not None:
            labels = labels.masked_fill(labels == self.config.image_token_id, IGNORE_INDEX)
        return super().forward(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, labels, use_cache,
            output_router_logits, logits_to_keep, pixel_values=pixel_values, **kwargs,
        )  # fmt: skip

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """As GPTOSSVisionModel's."""
        return self.model.get_image_features(pixel_values)

    def _get_logits_processor(self, *args, **kwargs) -> LogitsProcessorList:
        return WithoutImageToken(super()._get_logits_processor(*args, **kwargs), self.config.image_token_id)

    def _expand_inputs_for_generation(
        self, expand_size=1, is_encoder_decoder=False, input_ids=None, **kwargs
    ):
        """Repeats rows for beams and samples; the images of a row stay together, where the base class would not."""
        pixel_values = kwargs.pop("pixel_values", None)
        repeated, kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **kwargs
        )
        if pixel_values is None:
            return repeated, kwargs
        images = (input_ids == self.config.image_token_id).sum(1) // self.config.tokens_per_image  # (B,)
        if expand_size > 1 and images.sum() == len(pixel_values):  # otherwise forward says what is wrong
            rows = pixel_values.split(images.tolist())
            pixel_values = torch.cat([row.repeat(expand_size, 1, 1, 1) for row in rows])
        return repeated, kwargs | {"pixel_values": pixel_values}
