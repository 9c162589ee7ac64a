"""The files that make the exported folder of a model that sees one of gpt_oss_vision, and inputs in its form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from architecture.gptoss_vision import VisionConfig
from architecture.images import IMAGE
from architecture.open_gpt_oss.names import image_token_id
from architecture.tokenizer import END_OF_TEXT
from architecture.tokenizer_json import TOKENIZER, TOKENIZER_CONFIG
from common.files import as_json

TEMPLATE, PLAIN = "chat_template.jinja", Path(__file__).parent / "vision_chat_template.jinja"


def made_from(files: dict[str, bytes], config: VisionConfig) -> dict[str, bytes]:
    """{name: content} of what a folder of text needs to read images, or has in another way.

    The tokenizer gets the image token, and puts end-of-text in front of a text, as training does.
    """
    if not config.use_vision:
        return {}
    number, tokens = image_token_id(config.num_ids), json.loads(files[TOKENIZER])
    added = {token["id"]: token for token in tokens["added_tokens"]}
    if number in added:  # a reserved id
        added[number]["content"] = IMAGE
    else:
        tokens["added_tokens"].append(tokens["added_tokens"][-1] | {"id": number, "content": IMAGE})
    (eot,) = (token["id"] for token in tokens["added_tokens"] if token["content"] == END_OF_TEXT)
    one = [{"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokens["post_processor"] = {
        "type": "TemplateProcessing",
        "single": one,
        "pair": [*one, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [eot], "tokens": [END_OF_TEXT]}},
    }
    processor = {
        "processor_class": "GPTOSSVisionProcessor",
        "tokens_per_image": config.tokens_per_image,
        "image_processor": {"image_processor_type": "GPTOSSVisionImageProcessor", "size": config.image_size},
    }
    settings = json.loads(files[TOKENIZER_CONFIG]) | {
        "tokenizer_class": "GPTOSSVisionTokenizer",
        "processor_class": "GPTOSSVisionProcessor",
        "padding_side": "left",
    }
    template = files.get(TEMPLATE, PLAIN.read_bytes())
    return {
        TOKENIZER: json.dumps(tokens, ensure_ascii=False, separators=(",", ":")).encode(),
        TOKENIZER_CONFIG: as_json(settings),
        "processor_config.json": as_json(processor),
        TEMPLATE: template,
    }


def their_inputs(input_ids: torch.Tensor, images: torch.Tensor, config: VisionConfig) -> dict[str, Any]:
    """Inputs of our model, each image used once and in order, as those of GPTOSSVisionForCausalLM.

    input_ids: (B, T) int64.  images: (M, channels, S, S) uint8.
    """
    ids = input_ids.where(input_ids < config.vocab_size, image_token_id(config.num_ids))
    return {"input_ids": ids, "pixel_values": images.float() / 127.5 - 1}
