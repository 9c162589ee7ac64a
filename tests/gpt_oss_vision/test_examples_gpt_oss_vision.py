"""The examples of GPT-OSS-Vision's README and of our model card, on a small checkpoint.

They are word for word those of the README, with `from gpt_oss_vision import` in the place of `from transformers
import`; DIR and the picture are given.
"""

import re

import pytest
from tiny_vision import model, picture, state_of

from architecture.open_gpt_oss import export

pytestmark = pytest.mark.peer

EXAMPLES = {
    "text": """
        from gpt_oss_vision import GPTOSSVisionForCausalLM, GPTOSSVisionTokenizer
        model = GPTOSSVisionForCausalLM.from_pretrained(DIR)
        tokenizer = GPTOSSVisionTokenizer.from_pretrained(DIR)
        inputs = tokenizer("The future of artificial intelligence is", return_tensors="pt")
        outputs = model.generate(**inputs, max_new_tokens=50)
        text = tokenizer.decode(outputs[0], skip_special_tokens=True)
        assert text.startswith("The future of artificial intelligence is")
    """,
    "image": """
        from gpt_oss_vision import GPTOSSVisionForCausalLM, GPTOSSVisionProcessor
        from PIL import Image
        model = GPTOSSVisionForCausalLM.from_pretrained(DIR)
        processor = GPTOSSVisionProcessor.from_pretrained(DIR)
        image = Image.open("path/to/image.jpg")
        inputs = processor(text="Describe this image in detail:", images=image, return_tensors="pt")
        outputs = model.generate(**inputs, max_new_tokens=100)
        text = processor.decode(outputs[0], skip_special_tokens=True)
        assert text.startswith("Describe this image in detail:")
    """,
    "NoPE": """
        from gpt_oss_vision import GPTOSSVisionConfig, GPTOSSVisionForCausalLM
        config = GPTOSSVisionConfig.from_pretrained(DIR)
        config.use_nope = True
        config.nope_stride = 4
        model = GPTOSSVisionForCausalLM.from_pretrained(DIR, config=config)
        assert [layer.rotated for layer in model.model.layers] == [True, True, True, False]
    """,
    "settings": """
        from gpt_oss_vision import GPTOSSVisionConfig
        config = GPTOSSVisionConfig(vision_embed_dim=1024, vision_patch_size=14, vision_num_channels=3,
                                    vision_num_layers=24, vision_num_heads=16, use_vision=True)
        assert config.tokens_per_image == 256
        config = GPTOSSVisionConfig(use_nope=True, nope_stride=4)
        assert [config.is_rotated(layer) for layer in range(5)] == [True, True, True, False, True]
        config = GPTOSSVisionConfig(num_local_experts=128, num_experts_per_tok=4, router_aux_loss_coef=0.9,
                                    hidden_size=2880, num_hidden_layers=36, num_attention_heads=64)
        assert (config.num_local_experts, config.router_aux_loss_coef, config.output_router_logits) == (128, 0.9, False)
    """,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("examples") / "out"
    state = state_of(model(num_hidden_layers=4, initial_context_length=256))
    export.write_folder(state, path, layout="hf", card=dict(path=path / "checkpoint_0.pt"))
    return path


@pytest.fixture
def image_file(tmp_path):
    from PIL import Image

    Image.fromarray(picture()).save(tmp_path / "image.jpg")
    return tmp_path / "image.jpg"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_readme_runs(name, folder, image_file):
    code = re.sub("^        ", "", EXAMPLES[name], flags=re.M).replace(
        '"path/to/image.jpg"', repr(str(image_file))
    )
    exec(compile(code, name, "exec"), {"DIR": str(folder)})


def test_the_example_of_the_model_card_runs(folder, image_file, monkeypatch, capsys):
    card = (folder / "README.md").read_text()
    (code,) = re.findall("```python\n(.*?)```", card, re.S)
    monkeypatch.chdir(folder)
    exec(compile(code.replace('"path/to/image.jpg"', repr(str(image_file))), "card", "exec"), {})
    assert capsys.readouterr().out.strip()
    assert "image-text-to-text" in card and "9 tokens each" in card and "- gpt_oss_vision" in card


@pytest.mark.parametrize("prompt", ["What is it?", "See <|image|>: ", ""])
def test_both_views_write_the_same_greedy_text_about_an_image(folder, image_file, prompt):
    from gpt_oss_vision import GPTOSSVisionForCausalLM, GPTOSSVisionProcessor
    from inference import generate_text, load_model, read_image

    ours, size = load_model(str(folder)), 12
    photo = read_image(image_file, size, "image.jpg")
    told = generate_text(ours, prompt, max_tokens=30, temperature=0, images=[photo])
    processor = GPTOSSVisionProcessor.from_pretrained(folder)
    peer = GPTOSSVisionForCausalLM.from_pretrained(folder)
    inputs = processor(text=prompt, images=str(image_file), return_tensors="pt")
    ids = peer.generate(**inputs, max_new_tokens=30, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    theirs = processor.decode(ids, skip_special_tokens=True)
    assert len(theirs) > 5 and told.endswith(theirs)


@pytest.mark.slow
def test_a_prompt_of_an_image_and_thousands_of_tokens_is_continued(folder):
    """Beyond the initial context, with YaRN, and beyond the window."""
    import torch

    from gpt_oss_vision import GPTOSSVisionForCausalLM, GPTOSSVisionProcessor

    made, processor = (
        cls.from_pretrained(folder) for cls in (GPTOSSVisionForCausalLM, GPTOSSVisionProcessor)
    )
    inputs = processor(text="word " * 380, images=picture(), return_tensors="pt")
    assert 1800 < inputs["input_ids"].shape[1] < 2048
    options = dict(max_new_tokens=4, do_sample=False, eos_token_id=None)
    cached = made.generate(**inputs, **options)
    assert torch.equal(cached, made.generate(**inputs, **options, use_cache=False))
