"""The config of GPT-OSS-Vision: transformers' of gpt-oss, and flat settings for the images and for NoPE."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, GptOssConfig

from architecture.open_gpt_oss.names import image_token_id
from common.script import did_you_mean

# Names that a config.json may have beside the fields: older spellings, and what transformers adds.
ALSO_READ = {
    "model_type", "experts_per_token", "initial_context_length", "rope_scaling", "rope_theta", "quantization_config",
    "torch_dtype", "num_labels", "name_or_path", "output_attentions", "attn_implementation", "experts_implementation",
    "auto_map", "per_layer_config",
}  # fmt: skip


@strict
class GPTOSSVisionConfig(GptOssConfig):
    """The fields of GptOssConfig, and those of architecture/gptoss_vision.py under the same names.

    use_nope, nope_stride: every nope_stride-th layer is not rotated; (cos, sin) is (1, 0) there.
    image_token_id: the id that stands for every image token. None: 200014 with the official vocabulary,
    otherwise vocab_size, which has no row in the embedding and none in the head.
    router_aux_loss_coef: read, because config.json files have it. As in transformers, it does nothing unless
    output_router_logits=True is asked for; then the balance loss times it is added to a loss. The official
    files say 0.9, which spoils training.
    """

    model_type = "gpt_oss_vision"

    use_vision: bool = True
    vision_embed_dim: int = 1024
    vision_patch_size: int = 14
    vision_num_channels: int = 3
    vision_num_layers: int = 24
    vision_num_heads: int = 16
    image_size: int = 224
    vision_pool_token: bool = False
    vision_router_bias: bool = True
    use_nope: bool = False
    nope_stride: int = 4
    image_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        known = ALSO_READ | GenerationConfig().to_dict().keys()
        for name in kwargs:
            if name not in known and not name.startswith("_"):
                near = did_you_mean(name, self.__dataclass_fields__)
                raise ValueError(f"{name} is not a setting of GPTOSSVisionConfig{near or '; leave it out'}")
        for name, unit in (("image_size", "vision_patch_size"), ("vision_embed_dim", "vision_num_heads")):
            found, divisor = getattr(self, name), getattr(self, unit)
            if divisor < 1 or found < 1 or found % divisor:
                raise ValueError(
                    f"{name} must be a multiple of {unit} ({divisor}), got {found}; change one of the two"
                )
        for name, least, way_out in (
            ("vision_num_layers", 0, "0 is a linear map of the patches"),
            ("vision_num_channels", 1, "3 is RGB"),
            ("nope_stride", 1, "use_nope=False turns NoPE off"),
        ):
            if (found := getattr(self, name)) < least:
                raise ValueError(f"{name} must be at least {least}, got {found}; {way_out}")
        if self.image_token_id is None:
            self.image_token_id = image_token_id(self.vocab_size)
        if not 0 <= self.image_token_id <= self.vocab_size:
            raise ValueError(
                f"image_token_id must be from 0 to vocab_size ({self.vocab_size}), got {self.image_token_id}; "
                "leave it out for a free one"
            )
        super().__post_init__(**kwargs)

    def validate_token_ids(self) -> None:
        """As in transformers; but the image token may be the first id behind the vocabulary."""
        if self.image_token_id != self.vocab_size:
            super().validate_token_ids()

    @property
    def tokens_per_image(self) -> int:
        return (self.image_size // self.vision_patch_size) ** 2 + self.vision_pool_token

    def is_rotated(self, layer: int) -> bool:
        """Whether RoPE rotates queries and keys of this layer, counted from 0."""
        return not (self.use_nope and (layer + 1) % self.nope_stride == 0)
