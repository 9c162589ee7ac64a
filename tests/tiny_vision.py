"""A small model that sees, in which no two axes are equal, as a checkpoint's dictionary; and a picture."""

from dataclasses import asdict

import numpy as np
import torch
from test_generation import tiny_tokenizer

from architecture.gptoss_vision import VisionConfig, VisionLanguageTransformer
from architecture.tokenizer import tokenizer_state

# 260 of 320 ids are in use; YaRN, and a window that is shorter than an image
SHAPE = {
    **dict(num_hidden_layers=3, num_experts=7, experts_per_token=2, vocab_size=320, used_vocab_size=260),
    **dict(hidden_size=64, intermediate_size=96, swiglu_limit=1.5, head_dim=12, num_attention_heads=15),
    **dict(num_key_value_heads=3, sliding_window=6, initial_context_length=64, rope_theta=500.0),
    **dict(rope_ntk_beta=4.0, rope_scaling_factor=8.0),
    **dict(vision_embed_dim=32, vision_patch_size=4, vision_num_layers=2, vision_num_heads=8, image_size=12),
}
IDS, SIZE = 260, 12


def model(seed: int = 0, **changes) -> VisionLanguageTransformer:
    """Random weights that are far from the initial ones."""
    made = VisionLanguageTransformer(VisionConfig(**SHAPE | changes))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * (0.15 if p.dim() > 1 else 1))
        for table in (made.embedding, made.unembedding):
            table.weight[IDS:] = 0
    return made.eval()


def state_of(made: VisionLanguageTransformer) -> dict:
    """The dictionary of its checkpoint."""
    weights = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    state = {"model_name": made.name, "config": asdict(made.config), "step": 0, "model": weights}
    return state | {"tokenizer": tokenizer_state(tiny_tokenizer())}


def picture(seed: int = 0, *shape: int) -> np.ndarray:
    """(height, width, channels) uint8"""
    return np.random.default_rng(seed).integers(0, 256, shape or (20, 30, 3), dtype=np.uint8)


def batch(config: VisionConfig) -> dict[str, torch.Tensor]:
    """input_ids and images of our model: two images in the first row, the third in the second row."""
    P, first = config.tokens_per_image, config.vocab_size
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(IDS, (2, 2 * P + 7), generator=draw)
    for image, (row, at) in enumerate(((0, 2), (0, P + 4), (1, 5))):
        ids[row, at : at + P] = first + image * P + torch.arange(P)
    return {
        "input_ids": ids,
        "images": torch.randint(256, (3, 3, SIZE, SIZE), generator=draw, dtype=torch.uint8),
    }
