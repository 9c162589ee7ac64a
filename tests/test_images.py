"""Images of every kind as arrays, those that cannot be read, and texts with images as ids."""

import io
import re
import struct
import zlib

import numpy as np
import pytest

from architecture import images
from architecture.images import IMAGE, ImageFormat, encode_with_images, read_image
from architecture.tokenizer import encode_text, get_tokenizer

Image = pytest.importorskip("PIL.Image")
RED, BLUE, GREY = (200, 30, 20), (10, 40, 220), (90, 90, 90)


def picture(width=12, height=8, colours=(RED, BLUE)):
    """The left half in one colour, the right half in the other."""
    image = Image.new("RGB", (width, height), colours[0])
    image.paste(colours[1], (width // 2, 0, width, height))
    return image


def encoded(image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """The colours at the left and at the right of the top row."""
    return [tuple(map(int, pixels[:, 0, x])) for x in (0, -1)]


def png(mode: int, depth: int, width: int, height: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file made by hand. mode: 0 grayscale, 2 RGB.  depth: bits of a value."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, mode, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


# --------------------------------------------------------------------------------------- right pictures
def test_an_image_of_the_wanted_size_keeps_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(7, 7, 3), dtype=np.uint8)
    file = encoded(Image.fromarray(pixels))
    (tmp_path / "a.png").write_bytes(file)
    for given in (file, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels)):
        found = read_image(given, 7, "a.png")
        assert (found.dtype, found.shape, found.flags.c_contiguous) == (np.uint8, (3, 7, 7), True)
        assert np.array_equal(found, pixels.transpose(2, 0, 1))


def test_an_image_of_another_size_is_resized_with_antialiasing_on_both_sides():
    stripes = np.zeros((40, 60, 3), np.uint8)
    stripes[:, ::2] = 240  # without antialiasing, some columns would be black and others bright
    found = read_image(encoded(Image.fromarray(stripes)), 5, "stripes").astype(int)
    assert found.shape == (3, 5, 5) and (abs(found - 120) < 15).all()
    assert corners(read_image(encoded(picture(300, 2)), 10, "wide")) == [RED, BLUE]
    assert corners(read_image(encoded(picture(20, 300)), 10, "high")) == [RED, BLUE]


def test_palette_bilevel_cmyk_and_grayscale_become_rgb():
    palette = encoded(picture().quantize(4), "GIF")
    assert corners(read_image(palette, 8, "palette")) == [RED, BLUE]
    grey = encoded(picture(colours=(GREY, (250, 250, 250))).convert("L"), "JPEG", quality=95)
    assert np.abs(np.subtract(corners(read_image(grey, 8, "grey")), [GREY, (250, 250, 250)])).max() < 4
    bilevel = encoded(Image.fromarray(np.array([[True, False]])))
    assert corners(read_image(bilevel, 2, "bilevel")) == [(255, 255, 255), (0, 0, 0)]
    for kind in ("TIFF", "JPEG"):
        cmyk = encoded(picture().convert("CMYK"), kind)
        assert np.abs(np.subtract(corners(read_image(cmyk, 8, kind)), [RED, BLUE])).max() < 12


def test_sixteen_bits_are_scaled_to_eight_and_not_cut_off():
    values = np.array([[0, 65535], [25700, 300]], np.uint16)  # 300 is 1.2 of 255
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    expected = np.array([[0, 255], [100, 1]])
    for file in (png(0, 16, 2, 2, rows), encoded(Image.fromarray(values), "TIFF")):
        assert np.array_equal(read_image(file, 2, "depth"), np.stack([expected] * 3))
    colours = np.array([[[65535, 0, 25700], [257, 514, 771]]], ">u2")
    rgb = read_image(png(2, 16, 2, 1, b"\0" + colours.tobytes()), 2, "colours")
    assert corners(rgb) == [(255, 0, 100), (1, 2, 3)]


def test_transparency_becomes_white():
    clear = picture().convert("RGBA")
    clear.putpixel((0, 0), (*RED, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    (found,) = {
        tuple(map(int, read_image(encoded(half), 4, "half")[:, y, x])) for y in (0, 3) for x in (0, 3)
    }
    assert found == (127, 127, 127)
    assert read_image(clear.crop((0, 0, 8, 8)), 8, "clear")[:, 0, 0].tolist() == [255] * 3
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putdata([0, 1])
    assert corners(read_image(encoded(palette, transparency=0), 2, "palette")) == [(255, 255, 255), BLUE]
    assert corners(read_image(encoded(palette, "GIF", transparency=1), 2, "gif")) == [RED, (255, 255, 255)]
    grey = Image.fromarray(np.array([[[7, 0], [9, 255]]], np.uint8), "LA")
    assert corners(read_image(encoded(grey), 2, "grey")) == [(255,) * 3, (9,) * 3]
    # one colour of an RGB image is declared transparent
    keyed = png(2, 8, 2, 1, bytes([0, *RED, *BLUE]), (b"tRNS", struct.pack(">HHH", *RED)))
    assert corners(read_image(keyed, 2, "keyed")) == [(255,) * 3, BLUE]
    # 300 is transparent, and 301, of the same 8 bits, is not
    row = b"\0" + struct.pack(">HH", 300, 301)
    deep = png(0, 16, 2, 1, row, (b"tRNS", struct.pack(">H", 300)))
    assert corners(read_image(deep, 2, "deep")) == [(255,) * 3, (1,) * 3]


@pytest.mark.parametrize("orientation, expected", [(1, [RED, BLUE]), (2, [BLUE, RED]), (3, [BLUE, RED])])
def test_the_rotation_in_the_exif_data_is_applied(orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert corners(read_image(encoded(picture(), exif=exif), 8, "turned")) == expected
    exif[0x0112] = 6  # a quarter turn clockwise: left becomes top
    turned = read_image(encoded(picture(), exif=exif), 8, "turned")
    assert corners(turned) == [RED, RED] and tuple(turned[:, -1, 0]) == BLUE


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_read(kind):
    frames = [picture(), picture(colours=(BLUE, RED))]
    lossless = dict(lossless=True) if kind == "WEBP" else {}
    file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert Image.open(io.BytesIO(file)).n_frames == 2
    assert corners(read_image(file, 8, "animated")) == [RED, BLUE]


# ------------------------------------------------------------------------------- what cannot be read
def bomb() -> bytes:
    """A small file of 400 million pixels."""
    return png(0, 8, 20_000, 20_000, bytes(1000))


@pytest.mark.parametrize("file, told", [
    (b"", "must hold an image, and the file is empty"),
    (b"no image", "cannot be read (its format is not known)"),
    (encoded(picture(300, 300))[:200], "cannot be read ("),
    (encoded(picture(300, 300), "JPEG")[:-200], "cannot be read ("),
    (encoded(picture(), "GIF")[:30], "cannot be read ("),
    (encoded(picture())[:20], "cannot be read ("),
    (png(0, 8, 0, 3, b""), "cannot be read ("),
    (Image.new("RGB", (0, 5)), "cannot be read (it has 0 x 5 pixels)"),
    (bomb(), "must have at most 67,108,864 pixels ("),
    (Image.new("1", (10_000, 7_000)), "must have at most 67,108,864 pixels (it has 10,000 x 7,000)"),
    (encoded(Image.new("F", (2, 2)), "TIFF"), "cannot be read (its pixels have 32 bits, and 8 or 16 are read)"),
    ("nowhere.png", "must be a file, and there is none at nowhere.png"),
    (".", "must be a file"),
], ids=range(13))  # fmt: skip
def test_what_is_no_whole_image_is_refused_by_name(file, told):
    with pytest.raises(ValueError) as error:
        read_image(file, 8, "cat.png of item 3")
    message = str(error.value)
    assert message.startswith(f"image cat.png of item 3 {told}") and "; " in message and "\n" not in message


def test_no_cut_or_flipped_byte_raises_anything_but_a_value_error():
    draw = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        whole = encoded(picture(64, 48), kind)
        for _ in range(25):
            damaged = bytearray(whole[: draw.integers(len(whole) // 2, len(whole) + 1)])
            damaged[draw.integers(len(damaged))] ^= int(draw.integers(1, 256))
            try:
                assert read_image(bytes(damaged), 8, "damaged").shape == (3, 8, 8)
            except ValueError as error:
                assert str(error).startswith("image damaged ")


def test_a_lack_of_memory_is_not_called_damage(monkeypatch):
    def full(image):
        raise MemoryError

    monkeypatch.setattr(images, "_rgb", full)
    with pytest.raises(MemoryError):
        read_image(picture(), 8, "large")


def test_without_pillow_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ImportError, match="images need pillow: pip install -r requirements-vision.txt"):
        read_image(b"", 8, "a")


# ------------------------------------------------------------------------------------- texts with images
FORMAT = ImageFormat(size=8, tokens=3, first_id=4096)


def test_image_tokens_stand_at_the_placeholders_and_are_numbered_through_the_batch():
    tokenizer = get_tokenizer("stories4k")
    before, between, after = (encode_text(tokenizer, part).tolist() for part in ("A cat", " and", " ran."))
    first, second = [4096, 4097, 4098], [4099, 4100, 4101]
    text = f"A cat{IMAGE} and{IMAGE} ran."
    assert encode_with_images(tokenizer, text, 2, FORMAT) == [*before, *first, *between, *second, *after]
    assert encode_with_images(tokenizer, IMAGE, 1, FORMAT, first_image=1) == second
    assert encode_with_images(tokenizer, "A cat", 0, FORMAT) == before


def test_images_without_a_placeholder_stand_in_front_of_the_text():
    tokenizer = get_tokenizer("stories4k")
    for text in ("A cat", ""):
        ids = [*range(4096, 4102), *encode_text(tokenizer, text).tolist()]
        assert encode_with_images(tokenizer, text, 2, FORMAT) == ids


@pytest.mark.parametrize("placeholders, number", [(1, 0), (2, 1), (1, 2), (3, 2)])
def test_placeholders_and_images_of_different_numbers_are_refused(placeholders, number):
    text = "Look: " + IMAGE * placeholders
    told = f"{text[:40]!r} has it {placeholders} times for {number} image(s); add or remove"
    with pytest.raises(ValueError, match=re.escape(told)):
        encode_with_images(get_tokenizer("stories4k"), text, number, FORMAT)
