"""Images as arrays, and texts with images as ids. What a model makes of them is in gptoss_vision.py.

The features of all images of a batch form one table, in the order of the images, with `tokens` rows for each.
The id of an image token is first_id plus its row in that table, so ids below first_id are text. In a text,
"<|image|>" stands where an image goes.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tiktoken

from architecture.tokenizer import encode_text

if TYPE_CHECKING:
    from PIL import Image

IMAGE = "<|image|>"
MOST_PIXELS = 2**26  # a file may have so many before it is resized; as RGB they take 200 MB
WAY_OUT = "use another image, or save this one again with a program that can open it"


class ImageFormat(NamedTuple):
    """What a model makes of an image."""

    size: int  # pixels on each side
    tokens: int  # image tokens
    first_id: int  # id of the first token of the first image


def read_image(file: str | Path | bytes | Image.Image, size: int, name: str) -> np.ndarray:
    """An image as (3, size, size) uint8 RGB.

    file: a path, the bytes of a file, or an image of PIL.  name: what messages call the image.
    The rotation in the EXIF data is applied, transparency becomes white, and of an animation the first frame
    is read. Both sides are resized to `size`, bicubic with antialiasing; the aspect is not kept, as in ViT.
    Raises ValueError for what cannot be read whole, and for more than MOST_PIXELS.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ImportError("images need pillow: pip install -r requirements-vision.txt") from None
    if isinstance(file, (str, Path)):
        if not Path(file).is_file():
            raise ValueError(f"image {name} must be a file, and there is none at {file}; correct the path")
        file = Path(file).read_bytes()
    if file == b"":
        raise ValueError(f"image {name} must hold an image, and the file is empty; {WAY_OUT}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PIL warns of is an error below, or does not matter
            image = Image.open(io.BytesIO(file)) if isinstance(file, bytes) else file
            if 0 in image.size:
                raise ValueError(f"it has {image.width} x {image.height} pixels")
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError(f"it has {image.width:,} x {image.height:,}")
            image = _rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"image {name} must have at most {MOST_PIXELS:,} pixels ({error}); make it smaller"
        ) from None
    except Exception as error:  # the readers of PIL raise many types for a damaged file
        reason = "its format is not known" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"image {name} cannot be read ({reason}); {WAY_OUT}") from error
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _rgb(image: Image.Image) -> Image.Image:
    """The image in RGB with 8 bits, with transparency onto white."""
    from PIL import Image

    if image.mode.startswith("I;16"):  # PIL would cut off at 255
        values = np.asarray(image).astype(np.float32)  # in the byte order of the mode
        opaque = values != image.info.get("transparency", -1)
        image = Image.fromarray(np.stack(((values / 257).round(), 255 * opaque), axis=-1).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, and 8 or 16 are read")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def encode_with_images(
    tokenizer: tiktoken.Encoding,
    text: str,
    number_of_images: int,
    format: ImageFormat,
    first_image: int = 0,
) -> list[int]:
    """The ids of a text and its images, which are in order the images first_image, ... of the batch.

    Images without a placeholder in the text stand in front of it. With placeholders, their number must be
    that of the images.
    """
    parts = text.split(IMAGE)
    if len(parts) == 1:
        parts = [""] * number_of_images + parts
    if len(parts) != number_of_images + 1:
        raise ValueError(
            f"a text must have {IMAGE} once for each of its images, or not at all, and {text[:40]!r} has it "
            f"{len(parts) - 1} times for {number_of_images} image(s); add or remove one or the other"
        )
    ids = encode_text(tokenizer, parts[0]).tolist()
    for number, part in enumerate(parts[1:], first_image):
        first = format.first_id + number * format.tokens
        ids += [*range(first, first + format.tokens), *encode_text(tokenizer, part).tolist()]
    return ids
