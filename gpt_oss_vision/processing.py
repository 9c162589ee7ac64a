"""Texts and images for GPT-OSS-Vision. Images are read by architecture/images.py, as everywhere in this project."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from transformers import AddedToken, BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images

from architecture.images import IMAGE, read_image

RESERVED = "<|reserved_200014|>"  # the name in gpt-oss's own files of the id that is the image token here


class GPTOSSVisionImageProcessor(BaseImageProcessor):
    """Images of any size and mode -> pixel_values (M, 3, size, size) float32 from -1 to 1.

    Images are paths, URLs, images of PIL, or uint8 arrays or tensors of the shape (height, width), (height,
    width, channels) or (channels, height, width) with 1, 3 or 4 channels. See read_image for what is done to
    them, and what is refused.
    """

    model_input_names = ["pixel_values"]

    def __init__(self, size: int = 224, **kwargs: Any):
        super().__init__(**kwargs)
        self.size = size

    def fetch_images(self, images: Any) -> Any:
        """The same, or the same lists of lists, with each image as an array (3, size, size) uint8."""
        number = itertools.count(1)

        def read(image: Any) -> Any:
            if isinstance(image, (list, tuple)):
                return [read(each) for each in image]
            return self._read(image, next(number))

        return read(images)

    def _read(self, image: Any, number: int) -> np.ndarray:
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            return read_image(super().fetch_images(image), self.size, image)
        if isinstance(image, (np.ndarray, torch.Tensor)):
            image = np.asarray(image)
            if image.shape == (3, self.size, self.size) and image.dtype == np.uint8:
                return image  # was read before
            image = _from_array(image, number)
        return read_image(image, self.size, image if isinstance(image, str) else str(number))

    def preprocess(self, images: Any, return_tensors: str | None = None) -> BatchFeature:
        """images: one, a list, or a list of lists, which are joined."""
        flat = make_flat_list_of_images(self.fetch_images(images))
        pixel_values = [image.astype(np.float32) / np.float32(127.5) - 1 for image in flat]
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)


def _from_array(array: np.ndarray, number: int) -> Any:
    """An image of PIL from an array."""
    from PIL import Image

    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    channels = array.shape[-1] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ValueError(
            f"image {number} must be uint8 in the shape (height, width), (height, width, channels) or (channels, "
            f"height, width) with 1, 3 or 4 channels, got {array.dtype} in {array.shape}; convert it"
        )
    return Image.fromarray(array.squeeze(-1) if channels == 1 and array.ndim == 3 else array)


class GPTOSSVisionTokenizer(PreTrainedTokenizerFast):
    """The tokenizer of the text, with a token for images, and with padding on the left, for generate()."""

    padding_side = "left"
    # A subclass with an __init__ loses its pre-tokenizer: transformers 5 builds it anew from the vocabulary.

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any):
        """As in transformers; a tokenizer for text only gets the image token."""
        tokenizer = super().from_pretrained(*args, **kwargs)
        tokenizer.add_tokens([AddedToken(tokenizer.image_token, special=True)], special_tokens=True)
        return tokenizer

    @property
    def image_token(self) -> str:
        return IMAGE if self.convert_tokens_to_ids(RESERVED) is None else RESERVED

    @property
    def image_token_id(self) -> int:
        return self.convert_tokens_to_ids(self.image_token)


class GPTOSSVisionProcessor(ProcessorMixin):
    """Texts and images -> input_ids, attention_mask and pixel_values.

    A text has "<|image|>" where an image goes. Images of a text without it stand in front of it, and with
    several texts, images without it go one to each. tokens_per_image: that of the model's config.
    """

    def __init__(self, image_processor=None, tokenizer=None, tokens_per_image: int = 256, chat_template=None):
        self.image_token, self.image_token_id = tokenizer.image_token, tokenizer.image_token_id
        self.tokens_per_image = tokens_per_image
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self, images: Any = None, text: str | list[str] | None = None, **kwargs: Any
    ) -> BatchFeature:
        """images: one, a list in the order of the placeholders, or a list of lists, one for each text."""
        if isinstance(images, (list, tuple)) and all(
            isinstance(own, (list, tuple)) and not own for own in images
        ):
            images = None  # a batch of texts alone
        if text is not None:
            text = self._with_placeholders([text] if isinstance(text, str) else list(text), images)
        return super().__call__(images=images, text=text, **kwargs)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        return self.image_token * self.tokens_per_image

    def _with_placeholders(self, texts: list[str], images: Any) -> list[str]:
        """The texts with one placeholder for each of their images."""
        texts = [text.replace(IMAGE, self.image_token) for text in texts]
        found = [text.count(self.image_token) for text in texts]
        images = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
        number = len(images)
        if images and isinstance(images[0], (list, tuple)):
            wanted = [len(own) for own in images]
            number = sum(wanted)
        elif len(texts) == 1:
            wanted = [number]
        elif any(found) or not images:
            wanted = found
        else:
            wanted = [1] * number
        placed = [text if has else self.image_token * n + text for text, has, n in zip(texts, found, wanted)]
        counts = [text.count(self.image_token) for text in placed]
        if counts != wanted or len(wanted) != len(texts) or sum(wanted) != number:
            raise ValueError(
                f"a text must have {IMAGE} once for each of its images, or not at all, got it {found} times in "
                f"{len(texts)} text(s) for {number} image(s); add or remove one or the other"
            )
        return placed
