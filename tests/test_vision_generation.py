"""Generation from prompts with images: cached = uncached = alone; sample.py, inference.py and chat with images."""

import io
import re
from dataclasses import asdict

import numpy as np
import pytest
import torch
from test_context_generation import save
from test_generation import CONFIG, far_from_flat
from test_generation import build as build_text_model

import inference
import sample
from architecture.generation import chat
from architecture.generation.decode import Decoder, generate, new_decoder
from architecture.generation.lean import LeanDecoder
from architecture.generation.sampling import row_generators
from architecture.generation.text import generate_text, generate_texts
from architecture.gptoss_vision import VisionConfig, VisionLanguageTransformer
from architecture.images import IMAGE, encode_with_images

V, LIMIT, EOT = CONFIG.vocab_size, CONFIG.context_limit, 259
VISION = dict(vision_embed_dim=28, vision_patch_size=3, vision_num_layers=2, vision_num_heads=4, image_size=6)
PROMPTS = [
    [EOT, *range(V + 4, V + 8), 7, 3, *range(V, V + 4), 250],  # the second image and the first
    [EOT, 42],
    [EOT, 8, *range(V, V + 4), *range(V + 8, V + 12), 11, 2, 8],
]


def build(**changes) -> VisionLanguageTransformer:
    config = VisionConfig(**asdict(CONFIG) | VISION | changes)
    generator = torch.Generator().manual_seed(0)
    return far_from_flat(VisionLanguageTransformer(config, generator=generator).double(), generator)


@pytest.fixture(scope="module")
def model() -> VisionLanguageTransformer:
    return build()


def draw_images(number: int, seed: int = 1) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(256, size=(number, 3, 6, 6), dtype=np.uint8))


@torch.no_grad()
def features_of(model, images) -> torch.Tensor:
    return model.encode_images(torch.from_numpy(np.stack(images)))


# ------------------------------------------------------------------------------------------ ids and rows
DECODERS = {
    "lean": LeanDecoder,
    "general": lambda *arguments: Decoder(*arguments[:3], True, *arguments[3:]),
    "uncached": lambda *arguments: Decoder(*arguments[:3], False, *arguments[3:]),
}
SWITCHES = {
    "router bias": {},
    "sigmoid router, dense layer, learned positions": dict(router="topk_sigmoid", moe_layers=(1,),
                                                           position="learned"),
    "no router bias, pool token": dict(vision_router_bias=False, vision_pool_token=True, image_size=3),
}  # fmt: skip


@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES)
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@torch.no_grad()
def test_the_logits_of_every_step_are_those_of_the_whole_text(decoder, changes):
    model = build(**changes)
    features = torch.randn(12, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    decoder = decoder(model, 3, 16, features)
    texts, feed = [list(prompt) for prompt in PROMPTS], PROMPTS
    for step in range(4):
        logits = decoder.feed(feed)
        for text, found in zip(texts, logits):
            whole = model(torch.tensor([text]), features=features).logits[0, -1]
            torch.testing.assert_close(found, whole, rtol=0, atol=1e-11)
        feed = [[17 * step + row] for row in range(3)]
        feed[1] = [V + step]  # nobody does, but a decoder need not know that
        texts = [text + new for text, new in zip(texts, feed)]


def test_a_small_model_on_a_cpu_has_the_lean_decoder(model):
    features = features_of(model, draw_images(1))
    for made, given in ((model, features), (model, None), (build(use_vision=False), None)):
        assert type(new_decoder(made, 2, 9, features=given)) is LeanDecoder


def test_rows_with_and_without_images_continue_as_each_alone_and_as_without_a_cache(model):
    features = features_of(model, draw_images(3))
    options = dict(max_tokens=12, temperature=1.0, features=features, stop_tokens=range(200, 260))
    together = generate(model, PROMPTS, generators=row_generators(5, 3), **options)
    slow = generate(model, PROMPTS, generators=row_generators(5, 3), use_cache=False, **options)
    assert together == slow and len({len(row) for row in together}) > 1  # rows end and leave the decoder
    for row, prompt in enumerate(PROMPTS):
        alone = [row_generators(5, 3)[row]]
        assert generate(model, [prompt], generators=alone, **options) == [together[row]]
    others = dict(options, features=features_of(model, draw_images(3, seed=2)))
    changed = generate(model, PROMPTS, generators=row_generators(5, 3), **others)
    assert changed[1] == together[1] and changed[2] != together[2]


def test_ids_beyond_the_features_are_refused_at_the_call(model):
    features = features_of(model, draw_images(2))
    told = f"token ids must be from 0 to {V + 7}, prompt 2 has 2 to {V + 11}"
    with pytest.raises(ValueError, match=told):
        generate(model, PROMPTS, max_tokens=1, temperature=0, features=features)


# ------------------------------------------------------------------------------------------------ texts
def test_a_text_with_images_is_what_generate_gives_for_its_ids(model, monkeypatch):
    one, two, encoded = draw_images(2), draw_images(1, seed=2), []
    encode = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda x: (encoded.append(len(x)), encode(x))[1])
    prompts = [f"the{IMAGE} cat{IMAGE}", "he", "the cat", f"a{IMAGE}b{IMAGE}"]
    texts = generate_texts(model, prompts, 9, 1.0, images=[one, [], two, one], seed=5)
    assert encoded == [3]  # a list that is given twice is encoded once
    form, tokenizer = model.config.image_format, model.tokenizer
    assert form.first_id == V
    places = [(2, 0), (0, 2), (1, 2), (2, 0)]
    ids = [[EOT, *encode_with_images(tokenizer, prompt, number, form, first)]
           for prompt, (number, first) in zip(prompts, places)]  # fmt: skip
    rows = generate(model, ids, max_tokens=9, temperature=1.0, generators=row_generators(5, 4),
                    stop_tokens=[EOT], features=features_of(model, [*one, *two]))  # fmt: skip
    for text, prompt, new in zip(texts, prompts, rows):
        assert text == prompt + tokenizer.decode([i for i in new if i != EOT])
    assert generate_text(model, "the cat", 9, 0, images=two) != generate_text(model, "the cat", 9, 0)


def test_images_that_no_text_can_take_are_refused(model):
    images, blind = draw_images(1), build(use_vision=False)
    for made in (blind, build_text_model()):
        told = f"a {made.name} model without an encoder reads no images, got 1; leave them out, or use a checkpoint"
        with pytest.raises(ValueError, match=told):
            generate_text(made, "the cat", 3, 0, images=images)
        assert generate_text(made, f"{IMAGE} cat", 3, 0).startswith(f"{IMAGE} cat")  # text, for this model
    with pytest.raises(ValueError, match="images must hold a list for each of 2 prompts, got 1; "):
        generate_texts(model, ["a", "b"], 3, 0, images=[images])
    with pytest.raises(ValueError, match=re.escape(f"'a{IMAGE}' has it 1 times for 0 image(s)")):
        generate_text(model, f"a{IMAGE}", 3, 0)
    with pytest.raises(ValueError, match=f"a sequence may have {LIMIT} tokens .* got a prompt of 38"):
        generate_text(model, "a", 3, 0, images=images * 9)


@pytest.mark.parametrize("images, told", [
    ([np.zeros((3, 9, 9), np.uint8)], r"an image must be an array \(3, 6, 6\) of uint8, got \(3, 9, 9\) of uint8"),
    ([np.zeros((6, 6, 3), np.uint8)], r"got \(6, 6, 3\) of uint8; read it with read_image\(file, 6, name\)"),
    ([np.zeros((3, 6, 6), np.float32)], r"got \(3, 6, 6\) of float32"),
    (["photo.png"], "got str of no dtype"),
    (np.zeros((3, 6, 6), np.uint8), "and give each prompt a list of images"),
], ids=["another size", "channels last", "floating point", "a path", "no list"])  # fmt: skip
def test_images_that_read_image_did_not_make_for_this_model_are_refused(model, images, told):
    with pytest.raises(ValueError, match=told):
        generate_text(model, "a", 2, 0, images=images)


# ---------------------------------------------------------------------------------------------- scripts
@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    return save(build().float(), tmp_path_factory.mktemp("vision") / "checkpoint_3.pt")


@pytest.fixture
def photo(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(draw_images(1)[0].transpose(1, 2, 0)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def run(capsys):
    def call(*flags):
        code = sample.main([str(flag) for flag in flags])
        return code, *capsys.readouterr()

    return call


SHORT = ("--max_tokens", 8, "--device", "cpu", "--seed", 3)


def test_sample_reads_images_and_inference_writes_the_same(run, checkpoint, photo):
    code, out, _ = run("--checkpoint", checkpoint, "--image", photo, "--prompt", "the cat", *SHORT)
    loaded = inference.load_model(checkpoint)
    images = [inference.read_image(photo, 6, "photo")]
    assert (code, out) == (0, generate_text(loaded, "the cat", 8, 0.8, images=images, seed=3) + "\n")
    assert np.array_equal(images[0], draw_images(1)[0])
    length = 1 + 4 + len(loaded.tokenizer.encode("the cat"))
    told = inference.load_model_and_generate(checkpoint, "the cat", length + 8, 0.8, images=images, seed=3)
    assert told + "\n" == out
    prompt = f"{IMAGE}the{IMAGE}"
    code, out, _ = run("--checkpoint", checkpoint, "--image", photo, photo, "--prompt", prompt,
                       "--num_samples", 2, *SHORT)  # fmt: skip
    texts = generate_texts(loaded, [prompt] * 2, 8, 0.8, images=[images * 2] * 2, seed=3)
    assert code == 0 and all(text in out for text in texts)


@pytest.mark.parametrize("flags, told", [
    (("--image", "{photo}", "--prompt", "a", "b"), "--image is for one prompt; give --prompt once"),
    (("--image", "{photo}", "--prompt", f"{IMAGE} and {IMAGE}"), "has it 2 times for 1 image(s)"),
    (("--prompt", f"{IMAGE} and"), "has it 1 times for 0 image(s)"),
    (("--image", "{photo}.txt"), "must be a file, and there is none at"),
])  # fmt: skip
def test_flags_that_do_not_go_with_the_images_are_refused(run, checkpoint, photo, flags, told):
    code, out, err = run("--checkpoint", checkpoint, *(flag.format(photo=photo) for flag in flags), *SHORT)
    assert (code, out) == (2, "") and told in err and err.count("\n") == 1


def test_sample_refuses_images_for_a_model_of_text(run, photo, tmp_path):
    path = save(build_text_model().float(), tmp_path / "checkpoint_3.pt")
    code, out, err = run("--checkpoint", path, "--image", photo, *SHORT)
    assert (code, out) == (2, "") and "--image needs a model that reads images, and this gptoss model" in err


def test_a_chat_on_the_terminal_puts_the_images_in_front_of_each_text(run, checkpoint, photo, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\n"))
    code, out, _ = run("--checkpoint", checkpoint, "--chat", "--image", photo, *SHORT)
    loaded = inference.load_model(checkpoint)
    text = generate_text(loaded, "the cat", 8, 0.8, images=draw_images(1), seed=3)
    assert (code, out) == (0, text.removeprefix("the cat") + "\n")


# ----------------------------------------------------------------------------------------- conversations
def test_a_conversation_has_its_images_where_its_turns_are(model):
    images, form, tokenizer = draw_images(3), model.config.image_format, model.tokenizer
    turns = [
        {"role": chat.USER, "text": "the", "images": images[:1]},
        {"role": chat.MODEL, "text": " cat."},
        {"role": chat.USER, "text": f"he{IMAGE} or{IMAGE}", "images": images[1:]},
    ]
    prompt = chat.prompt_of(model, turns, 5)
    text = f"{IMAGE}the cat. he{IMAGE} or{IMAGE}"
    assert prompt.ids == [EOT, *encode_with_images(tokenizer, text, 3, form)]
    memory = chat.Memory()

    def answer(max_tokens):
        prompt = chat.prompt_of(model, turns, max_tokens)
        pieces = chat.stream_answer(model, prompt, chat.Answer(), memory, seed=5, temperature=1.0)
        return "".join(pieces)

    assert text + answer(5) == generate_text(model, text, 5, 1.0, images=images, seed=5)
    answer(1)
    turns[2]["text"], others = turns[2]["text"] + " or", draw_images(1, seed=2)
    turns[0]["images"] = others  # the ids begin with those that were read, for another image
    expected = generate_text(model, f"{text} or", 5, 1.0, images=[*others, *images[1:]], seed=5)
    assert f"{text} or{answer(5)}" == expected
    blind = chat.prompt_of(build_text_model(), turns, 5)  # the images stay in the conversation
    assert max(blind.ids) < V and not len(blind.images)


def test_the_images_of_a_conversation_are_files_beside_it(photo, tmp_path):
    path = chat.conversation_file(tmp_path, "0123456789abcdef")
    name = chat.keep_image(path, photo.read_bytes())
    assert chat.image_file(path, name) == tmp_path / "0123456789abcdef" / name
    turns = [{"role": chat.USER, "text": "a", "images": [name, name]}, {"role": chat.MODEL, "text": "b"}]
    read = chat.with_images(turns, path, 6)
    assert [len(turn["images"]) for turn in read] == [2, 0]
    assert np.array_equal(read[0]["images"][1], draw_images(1)[0])
    with pytest.raises(ValueError, match="16 hexadecimal digits, got '../../secret'"):
        chat.with_images([{"images": ["../../secret"]}], path, 6)
