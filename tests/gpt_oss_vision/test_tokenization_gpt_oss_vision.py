"""Texts and images to inputs: beside the ids and the images of this project's own model."""

import json
import re

import numpy as np
import pytest
import torch
from tiny_vision import IDS, SIZE, model, picture, state_of

from architecture import registry
from architecture.images import IMAGE, encode_with_images, read_image
from architecture.open_gpt_oss import export

pytestmark = pytest.mark.peer
P, EOT, ID = 9, 259, IDS  # tokens of an image, end-of-text, the image token
TEXT = "Tom's \u00e9t\u00e9, 12  hello \U0001f600 !\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "out"
    export.write_folder(state_of(model()), path, layout="hf")
    return path


@pytest.fixture
def processor(folder):
    from gpt_oss_vision import GPTOSSVisionProcessor

    return GPTOSSVisionProcessor.from_pretrained(folder)


def ours(folder, text: str, images: int, first: int = 0) -> list[int]:
    """The ids of this project, every image token as the one that the package has."""
    loaded = registry.load_model(folder)
    form = loaded.config.image_format
    ids = [EOT, *encode_with_images(loaded.tokenizer, text, images, form, first)]
    return [min(number, ID) if number >= form.first_id else number for number in ids]


# ---------------------------------------------------------------------------------------------------- texts
def test_a_text_has_the_ids_of_this_project_with_end_of_text_in_front(folder, tmp_path):
    from transformers import AutoTokenizer

    from gpt_oss_vision import GPTOSSVisionTokenizer

    tokenizer = GPTOSSVisionTokenizer.from_pretrained(folder)
    wanted = ours(folder, TEXT, 0)
    assert tokenizer(TEXT).input_ids == wanted
    assert tokenizer(TEXT, add_special_tokens=False).input_ids == wanted[1:]
    assert tokenizer.decode(wanted, skip_special_tokens=True) == TEXT
    assert (tokenizer.image_token, tokenizer.image_token_id, tokenizer.padding_side) == (IMAGE, ID, "left")
    tokenizer.save_pretrained(tmp_path)
    for again in (GPTOSSVisionTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(folder)):
        assert type(again) is GPTOSSVisionTokenizer and again(TEXT).input_ids == wanted
        assert again.image_token_id == ID and len(again) == ID + 1


def test_transformers_alone_reads_the_tokenizer(folder):
    import subprocess
    import sys

    code = f"""if True:
        from transformers import AutoTokenizer, GptOssForCausalLM
        print(AutoTokenizer.from_pretrained({str(folder)!r})({TEXT!r}).input_ids)
        print(GptOssForCausalLM.from_pretrained({str(folder)!r}).config.vocab_size)
    """
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == [str(ours(folder, TEXT, 0)), str(IDS)]


def test_a_tokenizer_for_text_gets_the_image_token(tmp_path):
    from gpt_oss_vision import GPTOSSVisionTokenizer

    state = state_of(model(use_vision=False))
    export.write_folder(state, tmp_path / "out", layout="hf")
    assert IMAGE not in (tmp_path / "out/tokenizer.json").read_text()
    tokenizer = GPTOSSVisionTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.image_token_id == ID and tokenizer(f"a{IMAGE}").input_ids == [ord("a"), ID]


@pytest.mark.slow
def test_the_image_token_of_the_official_tokenizer_is_a_reserved_id(tmp_path, shared_data, monkeypatch):
    from architecture.open_gpt_oss.vision_files import made_from
    from architecture.tokenizer import HARMONY, get_tokenizer
    from architecture.tokenizer_json import tokenizer_files
    from gpt_oss_vision import GPTOSSVisionConfig, GPTOSSVisionTokenizer

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken_cache"))
    encoding = get_tokenizer(HARMONY)
    files = tokenizer_files(encoding, model_max_length=131072)
    config = registry.build_config("gptoss_vision", "gpt-oss-20b", dict(vocab_size=201088))
    for name, made in (("text", files), ("seeing", files | made_from(files, config))):
        (tmp_path / name).mkdir()
        for file, content in made.items():
            (tmp_path / name / file).write_bytes(content)
        tokenizer = GPTOSSVisionTokenizer.from_pretrained(tmp_path / name)
        assert tokenizer.image_token_id == GPTOSSVisionConfig().image_token_id == 200014
        assert len(tokenizer) == 201088
        ids = tokenizer(f"{TEXT}{tokenizer.image_token} 1", add_special_tokens=False).input_ids
        assert ids == [*encoding.encode_ordinary(TEXT), 200014, *encoding.encode_ordinary(" 1")]


# ------------------------------------------------------------------------------------- placeholders and images
CASES = {  # text, images, (text, number of images) of each row
    "in front": ("ab", [0], [("ab", 1)]),
    "one picture": ("ab", 0, [("ab", 1)]),
    "in its place": (f"a{IMAGE}b", [0], [(f"a{IMAGE}b", 1)]),
    "several in front": ("ab", [0, 1, 2], [("ab", 3)]),
    "several in their places": (f"a{IMAGE}b{IMAGE}", [0, 1], [(f"a{IMAGE}b{IMAGE}", 2)]),
    "one for each text": (["ab", "cde"], [0, 1], [("ab", 1), ("cde", 1)]),
    "placeholders in some": (["ab", f"c{IMAGE}{IMAGE}"], [0, 1], [("ab", 0), (f"c{IMAGE}{IMAGE}", 2)]),
    "lists": (["ab", f"c{IMAGE}", "d"], [[0, 1], [2], []], [("ab", 2), (f"c{IMAGE}", 1), ("d", 0)]),
    "no text": ("", [0], [("", 1)]),
    "no images": (["ab", "c"], None, [("ab", 0), ("c", 0)]),
}


@pytest.mark.parametrize("text, images, rows", CASES.values(), ids=CASES)
def test_the_ids_are_those_of_this_project(folder, processor, text, images, rows):
    def drawn(item):
        return [drawn(each) for each in item] if isinstance(item, list) else picture(item)

    images = None if images is None else drawn(images)
    inputs = processor(text=text, images=images, return_tensors="pt", padding=True)
    first = 0
    for ids, mask, (own, number) in zip(inputs["input_ids"], inputs["attention_mask"], rows, strict=True):
        assert ids[mask.bool()].tolist() == ours(folder, own, number, first)
        assert mask.tolist() == sorted(mask.tolist())  # padding stands in front
        first += number
    assert ("pixel_values" in inputs) == (first > 0)
    if first:
        read = np.stack([read_image_of(picture(n)) for n in range(first)])
        wanted = torch.from_numpy(read).float() / 127.5 - 1
        torch.testing.assert_close(inputs["pixel_values"], wanted, rtol=0, atol=1e-6)


def read_image_of(array: np.ndarray) -> np.ndarray:
    from PIL import Image

    return read_image(Image.fromarray(array), SIZE, "picture")


BAD = {
    "a placeholder without an image": (f"a{IMAGE}", None),
    "more placeholders": (f"a{IMAGE}{IMAGE}", [0]),
    "more images": (f"a{IMAGE}", [0, 1]),
    "more images than texts": (["a", "b"], [0, 1, 2]),
    "fewer images than texts": (["a", "b"], [0]),
    "wrong lists": ([f"a{IMAGE}", f"b{IMAGE}"], [[0, 1], []]),
}


@pytest.mark.parametrize("text, images", BAD.values(), ids=BAD)
def test_placeholders_and_images_that_do_not_match_are_refused(processor, text, images):
    if images is not None:
        images = [[picture() for _ in each] if isinstance(each, list) else picture() for each in images]
    with pytest.raises(
        ValueError, match=r"a text must have <\|image\|> once for each of its images"
    ) as caught:
        processor(text=text, images=images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("images", [None, [], [[], []]], ids=str)
def test_a_batch_of_texts_alone_has_no_pixel_values(processor, images):
    found = processor(text=["a", "bc"], images=images)
    assert found.keys() == {"input_ids", "attention_mask"} and found["input_ids"] == [
        [259, 97],
        [259, 98, 99],
    ]


def test_images_of_every_kind_become_those_of_this_project(processor, tmp_path):
    from PIL import Image

    rgb = Image.fromarray(picture())
    rgb.save(tmp_path / "a.png")
    kinds = [
        str(tmp_path / "a.png"),
        rgb,
        picture(),
        torch.from_numpy(picture()),
        picture().transpose(2, 0, 1).copy(),
    ]
    found = processor.image_processor(kinds, return_tensors="pt").pixel_values
    assert found.shape == (5, 3, SIZE, SIZE) and (found == found[0]).all()
    for mode in ("L", "RGBA", "P", "CMYK"):
        wanted = read_image(rgb.convert(mode), SIZE, mode)
        values = processor.image_processor(rgb.convert(mode)).pixel_values[0]
        np.testing.assert_allclose(values, wanted / 127.5 - 1, atol=1e-6)
    grey = processor.image_processor([picture(0, 20, 30), picture(0, 20, 30, 1)]).pixel_values
    assert np.array_equal(grey[0], grey[1]) and np.ptp(grey[0], axis=0).max() == 0


def test_images_that_cannot_be_read_are_refused(processor, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    bad = {
        str(tmp_path / "a.png"): "a.png cannot be read (its format is not known)",
        str(tmp_path / "b.png"): "there is none at",
        picture().astype(np.float32).tobytes(): "cannot be read",
    }
    for image, told in bad.items():
        with pytest.raises(ValueError, match=re.escape(told)):
            processor(text="a", images=image)
    with pytest.raises(ValueError, match=r"image 2 must be uint8 .* got float32 in \(20, 30, 3\)"):
        processor(text="a", images=[picture(), picture().astype(np.float32)])


# ------------------------------------------------------------------------------------------ chat, save and load
def test_a_chat_with_an_image_part_has_the_image_in_its_place(folder, processor):
    parts = [
        {"type": "text", "text": "See "},
        {"type": "image", "image": picture()},
        {"type": "text", "text": "?"},
    ]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": " A cat."}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == ours(folder, f"See {IMAGE}? A cat.", 1)
    assert inputs["pixel_values"].shape == (1, 3, SIZE, SIZE)


def test_the_official_chat_template_takes_image_parts():
    import jinja2

    template = jinja2.Template(export.TEMPLATE.read_text())
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    told = [template.render(messages=[{"role": "user", "content": content}])
            for content in (parts, f"{IMAGE}What is it?")]  # fmt: skip
    assert told[0] == told[1] and told[0].endswith(f"<|start|>user<|message|>{IMAGE}What is it?<|end|>")


def test_a_saved_processor_comes_back_through_the_auto_class(processor, tmp_path):
    from transformers import AutoImageProcessor, AutoProcessor

    from gpt_oss_vision import GPTOSSVisionConfig

    processor.save_pretrained(tmp_path)
    GPTOSSVisionConfig.from_pretrained(processor.tokenizer.name_or_path).save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is type(processor) and again.tokens_per_image == P
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is type(processor.image_processor)
    arguments = dict(
        text=[TEXT, f"b {IMAGE}"], images=[[picture(1)], [picture(2)]], padding=True, return_tensors="pt"
    )
    first, second = processor(**arguments), again(**arguments)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["image_processor"]["size"] == SIZE
