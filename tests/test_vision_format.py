"""A model that sees as a folder of gpt_oss_vision, without transformers: round trip, names, what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from test_open_gpt_oss import refused, same
from tiny_vision import IDS, batch, model, state_of

from architecture import registry
from architecture.gptoss_vision import VisionLanguageTransformer
from architecture.open_gpt_oss import export, weights
from architecture.open_gpt_oss.__main__ import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "checkpoint_0.pt"
    torch.save(state_of(model(nope_stride=3, vision_pool_token=True)), path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint) -> Path:
    out = checkpoint.parent / "hf"
    flags = ["--checkpoint", str(checkpoint), "--format", "hf", "--output_dir", str(out)]
    assert main(["export", *flags]) == 0
    return out


def test_a_model_that_sees_comes_back_to_the_bit(checkpoint, folder, tmp_path, capsys):
    state, back = registry.read_weights(checkpoint), registry.read_weights(folder)
    assert back["model_name"] == "gptoss_vision" and back["tokenizer"] == state["tokenizer"]
    same(dict(back["model"]), state["model"])
    for path in (checkpoint, folder):
        made = registry.load_model(path)
        assert type(made) is VisionLanguageTransformer and made.config.nope_stride == 3
    inputs = batch(made.config)
    logits = made(**inputs).logits
    assert torch.equal(logits, registry.load_model(checkpoint)(**inputs).logits)
    arguments = ["--folder", str(folder), "--output_dir", str(tmp_path / "imported")]
    assert main(["import", *arguments]) == 0
    assert torch.equal(registry.load_model(tmp_path / "imported")(**inputs).logits, logits)


def test_experts_in_mxfp4_are_read_packed_and_unpacked(checkpoint, tmp_path):
    state = registry.read_weights(checkpoint)
    export.write_folder(state, tmp_path / "out", layout="hf", pack=True)
    inputs = batch(registry.load_model(checkpoint).config)
    whole, packed = (
        registry.load_model(tmp_path / "out"),
        registry.load_model(tmp_path / "out", weights="mxfp4"),
    )
    torch.testing.assert_close(packed(**inputs).logits[..., :IDS], whole(**inputs).logits[..., :IDS])


def test_the_files_say_what_the_model_is(folder):
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("gpt_oss_vision", ["GPTOSSVisionForCausalLM"])
    assert (config["use_nope"], config["nope_stride"], config["image_token_id"]) == (True, 3, IDS)
    processor = json.loads((folder / "processor_config.json").read_text())
    assert processor["tokens_per_image"] == 10 and processor["image_processor"]["size"] == 12
    names = weights._open_files(folder)[0].keys()
    assert {"model.vision.projector.weight", "model.layers.2.mlp.router.vision_router_bias"} <= names
    card = (folder / "README.md").read_text()
    assert "none in every 3. layer (NoPE)" in card and "10 tokens each" in card


@pytest.mark.parametrize("layout", ["original", "gguf", "mlx"])
def test_formats_without_images_refuse_it(checkpoint, tmp_path, capsys, layout):
    flags = ["--checkpoint", checkpoint, "--format", layout, "--output_dir", tmp_path / "out"]
    told = refused(capsys, main, "export", *flags)
    assert f"--format {layout} holds no images, and this model sees; use --format hf" in told


BAD = {
    "image_size": (dict(image_size=13), "image_size must be a multiple of vision_patch_size (4), got 13"),
    "a number of layers": (
        dict(vision_num_layers=3),
        "lacks 12 tensor(s) of its model (model.vision.block.2",
    ),
    "text": (
        dict(model_type="gpt_oss"),
        "tensor(s) that its model lacks (model.layers.0.mlp.router.vision_router",
    ),
}


@pytest.mark.parametrize("changes, told", BAD.values(), ids=BAD)
def test_a_config_that_does_not_fit_the_weights_is_refused(folder, tmp_path, changes, told):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=re.escape(told)):
        registry.load_model(tmp_path)
