"""The classes of gpt_oss_vision: beside transformers' GptOssForCausalLM and beside this project's own model."""

import json
import re
import shutil

import pytest
import torch
from tiny_vision import IDS, SIZE, batch, model, state_of

from architecture import registry
from architecture.open_gpt_oss import export, vision_files
from architecture.open_gpt_oss.__main__ import main

pytestmark = pytest.mark.peer
TEXT = dict(
    num_hidden_layers=4, num_local_experts=5, num_experts_per_tok=2, vocab_size=70, hidden_size=24,
    intermediate_size=40, head_dim=8, num_attention_heads=6, num_key_value_heads=2, sliding_window=7, eos_token_id=0,
    pad_token_id=0, max_position_embeddings=512, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
)  # fmt: skip
SEEING = dict(
    vision_embed_dim=20, vision_patch_size=4, vision_num_layers=2, vision_num_heads=5, image_size=SIZE
)
P, IMAGE_ID = 9, 70


def random_values(made, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * (0.2 if p.dim() > 1 else 0.7))
    return made.eval()


def seeing(seed: int = 6, **changes):  # this one writes different tokens
    from gpt_oss_vision import GPTOSSVisionConfig, GPTOSSVisionForCausalLM

    return random_values(GPTOSSVisionForCausalLM(GPTOSSVisionConfig(**TEXT | SEEING | changes)), seed)


def text_half(made):
    """transformers' own model with the weights of the text half."""
    from transformers import GptOssConfig, GptOssForCausalLM

    text = GptOssForCausalLM(GptOssConfig(**TEXT)).eval()
    text.load_state_dict({name: p for name, p in made.state_dict().items() if "vision" not in name})
    return text


def text_ids(rows: int = 2, tokens: int = 30) -> torch.Tensor:
    return torch.randint(1, 70, (rows, tokens), generator=torch.Generator().manual_seed(1))


def prompts() -> dict[str, torch.Tensor]:
    """Two prompts of different lengths with one image each, padded on the left."""
    rows = [[5, 6, *[IMAGE_ID] * P, 7, 8, 9], [*[IMAGE_ID] * P, 11]]
    long = max(map(len, rows))
    ids = torch.tensor([[0] * (long - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (long - len(row)) + [1] * len(row) for row in rows])
    pixels = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


# -------------------------------------------------------------------------------------------- text and images
@pytest.mark.parametrize("use_vision", [True, False])
def test_text_has_the_logits_of_transformers_to_the_bit(use_vision):
    made = seeing(use_vision=use_vision)
    logits = made(text_ids()).logits
    assert logits.abs().max() > 1
    assert torch.equal(logits, text_half(made)(text_ids()).logits)


def test_text_is_continued_as_by_transformers():
    made, options = seeing(), dict(max_new_tokens=20, do_sample=False)
    assert torch.equal(made.generate(text_ids(), **options), text_half(made).generate(text_ids(), **options))


@torch.no_grad()
def test_two_prompts_with_an_image_each_give_the_same_ids_with_and_without_a_cache_and_alone():
    made, inputs = seeing(), prompts()
    options = dict(max_new_tokens=15, do_sample=False, eos_token_id=None)
    options |= dict(return_dict_in_generate=True, output_logits=True)

    def written(**inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """The new ids (B, 15), and their logits (15, B, V)."""
        found = made.generate(**inputs, **options)
        return found.sequences[:, -15:], torch.stack(found.logits)

    ids, logits = written(**inputs)
    without_cache = written(**inputs, use_cache=False)
    assert torch.equal(ids, without_cache[0])
    torch.testing.assert_close(logits, without_cache[1], rtol=0, atol=1e-5)
    for row in range(2):
        real = inputs["attention_mask"][row].bool()
        alone = written(input_ids=inputs["input_ids"][row : row + 1, real],
                        pixel_values=inputs["pixel_values"][row : row + 1])  # fmt: skip
        assert torch.equal(alone[0][0], ids[row])
        torch.testing.assert_close(alone[1][:, 0], logits[:, row], rtol=0, atol=1e-5)
    assert not torch.equal(ids[0], ids[1]) and len(set(ids.flatten().tolist())) > 3
    other = made(**inputs | {"pixel_values": inputs["pixel_values"].flip(0)}).logits
    assert (other - made(**inputs).logits).abs().max() > 0.1


def test_beams_and_samples_keep_the_images_of_their_prompt():
    made = seeing()
    pixels = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3)) * 2 - 1
    two, one = [*[IMAGE_ID] * P, 4, *[IMAGE_ID] * P, 5], [*[7] * (P + 1), *[IMAGE_ID] * P, 5]
    ids = torch.tensor([two, one])
    options = dict(max_new_tokens=8, do_sample=False, eos_token_id=None)
    several = made.generate(ids, pixel_values=pixels, **options, num_beams=3, num_return_sequences=3)
    for row, own in enumerate((pixels[:2], pixels[2:])):
        alone = made.generate(
            ids[row : row + 1], pixel_values=own, **options, num_beams=3, num_return_sequences=3
        )
        assert torch.equal(several[3 * row : 3 * row + 3], alone)


def test_the_image_token_is_never_written_and_every_processor_of_scores_works():
    made, inputs = seeing(), prompts()
    options = dict(
        max_new_tokens=12, repetition_penalty=1.3, no_repeat_ngram_size=2, do_sample=True, eos_token_id=None
    )
    ids = made.generate(**inputs, **options)
    assert (ids[:, inputs["input_ids"].shape[1] :] < IMAGE_ID).all()
    inside = seeing(image_token_id=3)
    with torch.no_grad():
        inside.lm_head.weight[3] = 0
        inside.lm_head.weight *= -1  # the most probable of few
    assert (inside.generate(text_ids().clamp(min=4), max_new_tokens=12, num_beams=2)[:, 30:] != 3).all()


def test_the_router_bias_acts_on_image_tokens_only_and_gets_their_gradient():
    made, inputs = seeing(), prompts()
    before = made(**inputs).logits, made(text_ids()).logits
    biases = [layer.mlp.router.vision_router_bias for layer in made.model.layers]
    made(text_ids()).logits.square().sum().backward()
    assert all(bias.grad is None for bias in biases)
    made(**inputs).logits.square().sum().backward()
    assert all(bias.grad.abs().max() > 0 for bias in biases)
    with torch.no_grad():
        for bias in biases:
            bias += torch.linspace(-3, 3, len(bias))
    assert (made(**inputs).logits - before[0]).abs().max() > 0.1
    assert torch.equal(made(text_ids()).logits, before[1])
    assert "vision_router_bias" not in str(seeing(vision_router_bias=False).state_dict().keys())


# ------------------------------------------------------------------------------------------------- training
def gradients(made, **inputs) -> dict[str, torch.Tensor]:
    made.zero_grad()
    made.train()
    made(**inputs, labels=inputs["input_ids"]).loss.backward()
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_gives_the_same_gradients(recwarn):
    made, inputs = seeing(), prompts()
    wanted = gradients(made, **inputs)
    made.activation_checkpointing_enable()
    block = made.model.vision.block[0]
    assert block.gradient_checkpointing and made.model.layers[0].gradient_checkpointing
    calls = []
    block.attn.register_forward_hook(lambda *_: calls.append(1))
    found = gradients(made, **inputs)
    assert len(calls) == 2  # forward, and again in backward
    assert found.keys() == wanted.keys() and "model.vision.patch_embedding.weight" in found
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


def test_labels_of_image_tokens_are_not_scored():
    made, inputs = seeing(), prompts()
    ids = inputs["input_ids"]
    logits = made(**inputs).logits[:, :-1]
    scored = ids[:, 1:] != IMAGE_ID
    wanted = torch.nn.functional.cross_entropy(logits[scored], ids[:, 1:][scored])
    torch.testing.assert_close(made(**inputs, labels=ids).loss, wanted)


def test_the_coefficient_of_the_balance_loss_does_nothing_unless_router_logits_are_asked_for():
    losses = [seeing(router_aux_loss_coef=c)(text_ids(), labels=text_ids()).loss for c in (0.9, 0.0)]
    assert torch.equal(*losses)
    asked = seeing(router_aux_loss_coef=0.9)(text_ids(), labels=text_ids(), output_router_logits=True)
    torch.testing.assert_close(asked.loss, losses[0] + 0.9 * asked.aux_loss)
    assert len(asked.router_logits) == 4 and asked.router_logits[0].shape == (60, 5)


# --------------------------------------------------------------------------------------------- save and load
def test_a_saved_model_comes_back_to_the_bit_through_the_auto_classes(tmp_path):
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

    made, inputs = seeing(use_nope=True, nope_stride=2), prompts()
    made.save_pretrained(tmp_path)
    wanted = made(**inputs).logits
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        back, told = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert type(back) is type(made) and not any(told.values())
        assert torch.equal(back(**inputs).logits, wanted)
    base = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(base(**inputs).last_hidden_state, made.model(**inputs).last_hidden_state)


def test_transformers_reads_the_text_half(tmp_path):
    from transformers import GptOssForCausalLM

    made = seeing()
    made.save_pretrained(tmp_path)
    text, told = GptOssForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert told["unexpected_keys"] and all("vision" in name for name in told["unexpected_keys"])
    assert not told["missing_keys"] and torch.equal(text(text_ids()).logits, made(text_ids()).logits)


def test_weights_of_text_load_with_a_new_vision_part_which_is_named(tmp_path):
    from gpt_oss_vision import GPTOSSVisionConfig, GPTOSSVisionForCausalLM

    text = text_half(seeing())
    text.save_pretrained(tmp_path)
    config = GPTOSSVisionConfig.from_pretrained(tmp_path, **SEEING)
    made, told = GPTOSSVisionForCausalLM.from_pretrained(tmp_path, config=config, output_loading_info=True)
    names = {name for name, _ in made.named_parameters()}
    assert (
        told["missing_keys"] == {name for name in names if "vision" in name} and not told["unexpected_keys"]
    )
    assert torch.equal(made(text_ids()).logits, text(text_ids()).logits)
    assert made.model.layers[0].mlp.router.vision_router_bias.abs().max() == 0
    features = made.get_image_features(prompts()["pixel_values"])
    assert (
        features.shape == (2 * P, 24) and 0.01 < features.std() < 0.04
    )  # as an embedding, whose std is 0.02


def test_official_weights_in_mxfp4_load_into_the_text_half(tmp_path):
    """A folder with the layout and the config keys of the official ones."""
    from test_open_gpt_oss import state_of as text_state
    from transformers import GptOssForCausalLM, Mxfp4Config

    from gpt_oss_vision import GPTOSSVisionConfig, GPTOSSVisionForCausalLM

    export.write_folder(text_state(), tmp_path / "out", layout="hf", pack=True)
    path = tmp_path / "out/config.json"
    hub = dict(
        router_aux_loss_coef=0.9, output_router_logits=False, transformers_version="4.55.0", use_cache=True
    )
    path.write_text(json.dumps(json.loads(path.read_text()) | hub))
    config = GPTOSSVisionConfig.from_pretrained(tmp_path / "out", **SEEING | dict(vision_num_heads=4))
    options = dict(dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True))
    made = GPTOSSVisionForCausalLM.from_pretrained(tmp_path / "out", config=config, **options)
    text = GptOssForCausalLM.from_pretrained(tmp_path / "out", **options)
    assert config.router_aux_loss_coef == 0.9 and torch.equal(
        made(text_ids()).logits, text(text_ids()).logits
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_16_bits_sees(tmp_path, dtype):
    from gpt_oss_vision import GPTOSSVisionForCausalLM

    made = seeing()
    made.save_pretrained(tmp_path)
    narrow = GPTOSSVisionForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    difference = narrow(**prompts()).logits.float() - made(**prompts()).logits
    assert narrow.lm_head.weight.dtype == dtype and difference.abs().mean() < 0.3


# ------------------------------------------------------------------------------- beside this project's model
VARIANTS = {
    "as it is": {},
    "pool token": dict(vision_pool_token=True),
    "NoPE": dict(nope_stride=2),
    "no router bias": dict(vision_router_bias=False),
    "tied head": dict(tie_embeddings=True),
    "no layers": dict(vision_num_layers=0),
    "every id in use": dict(vocab_size=260, used_vocab_size=None),
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_converted_both_ways_the_logits_of_images_agree(tmp_path, changes):
    from gpt_oss_vision import GPTOSSVisionForCausalLM

    ours = model(**changes)
    inputs = batch(ours.config)
    export.write_folder(state_of(ours), tmp_path / "out", layout="hf")
    peer, told = GPTOSSVisionForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values()), told
    logits = ours(**inputs).logits[..., :IDS]
    theirs = peer(**vision_files.their_inputs(**inputs, config=ours.config)).logits
    assert theirs.shape == logits.shape and theirs.abs().max() > 1
    assert (logits - theirs).abs().max() < 1e-5 * theirs.abs().max()
    peer.save_pretrained(tmp_path / "back")
    shutil.copy(tmp_path / "out/tiktoken.json", tmp_path / "back")
    back = registry.load_model(tmp_path / "back")
    assert torch.equal(back(**batch(back.config)).logits[..., :IDS], logits)  # its vocabulary is padded


def test_verify_compares_with_the_package_and_finds_what_differs(tmp_path, capsys):
    export.write_folder(state_of(model(nope_stride=3)), tmp_path / "out", layout="hf")
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert "tolerance 1e-05: kept" in capsys.readouterr().out
    config = tmp_path / "out/config.json"
    values = json.loads(config.read_text())
    from gpt_oss_vision import GPTOSSVisionConfig

    assert GPTOSSVisionConfig.from_pretrained(tmp_path / "out").nope_stride == 3
    with pytest.MonkeyPatch.context() as patch:  # a peer that rotates every layer
        patch.setattr(GPTOSSVisionConfig, "is_rotated", lambda self, layer: True)
        assert main(["verify", str(tmp_path / "out")]) == 1
    assert values["use_nope"] is True and "rope_scaling" not in values


# --------------------------------------------------------------------------------------------------- NoPE
@torch.no_grad()
def test_nope_in_every_layer_is_no_position_and_off_is_the_model_of_today():
    ours, off = model(nope_stride=1), model(nope_stride=None)
    none = model(position="none")
    inputs = batch(ours.config)
    assert torch.equal(ours(**inputs).logits, none(**inputs).logits)
    assert not torch.equal(ours(**inputs).logits, off(**inputs).logits)
    every, second, without = (
        seeing(use_nope=True, nope_stride=1),
        seeing(use_nope=True, nope_stride=2),
        seeing(),
    )
    moved = [
        made(**prompts(), position_ids=torch.arange(14)[None] * 3 + 5).logits for made in (every, second)
    ]
    assert torch.equal(moved[0], every(**prompts()).logits)  # no layer knows its position
    assert not torch.equal(moved[1], second(**prompts()).logits)
    assert torch.equal(seeing(use_nope=False, nope_stride=1)(**prompts()).logits, without(**prompts()).logits)
    assert torch.equal(without(text_ids()).logits, text_half(without)(text_ids()).logits)


# --------------------------------------------------------------------------------------------- the true size
SIZES = {  # layers and experts; parameters of the text half, in all
    "20b": ((24, 32), 20_914_757_184, 21_220_886_656),
    "120b": ((36, 128), 116_829_156_672, 117_135_289_984),
}


@pytest.mark.parametrize("size", SIZES)
def test_the_official_sizes_with_an_encoder_of_24_layers_have_these_parameters(size):
    from gpt_oss_vision import GPTOSSVisionConfig, GPTOSSVisionForCausalLM

    (layers, experts), text, total = SIZES[size]
    config = GPTOSSVisionConfig(num_hidden_layers=layers, num_local_experts=experts)
    with torch.device("meta"):
        made = GPTOSSVisionForCausalLM(config)
    parts = {"text": 0, "encoder": 0, "projector": 0, "router bias": 0}
    for name, p in made.named_parameters():
        part = "projector" if ".projector." in name else "encoder" if ".vision." in name else "text"
        parts["router bias" if name.endswith("vision_router_bias") else part] += p.numel()
    assert parts == {
        "text": text, "encoder": 303_176_704, "projector": 1024 * 2880 + 2880, "router bias": layers * experts
    }  # fmt: skip
    assert sum(parts.values()) == total
    ours = registry.build_config("gptoss_vision", f"gpt-oss-{size}").parameter_counts()["total"]
    assert ours == total and (config.image_token_id, config.tokens_per_image) == (200014, 256)


# ------------------------------------------------------------------------------------------------ bad input
BAD_SETTINGS = {
    "vision_patchsize": (dict(vision_patchsize=3), "did you mean 'vision_patch_size'?"),
    "unknown": (dict(quality=1), "quality is not a setting of GPTOSSVisionConfig; leave it out"),
    "image_size": (dict(image_size=225), "image_size must be a multiple of vision_patch_size (14), got 225"),
    "heads": (
        dict(vision_num_heads=7),
        "vision_embed_dim must be a multiple of vision_num_heads (7), got 1024",
    ),
    "layers": (dict(vision_num_layers=-1), "vision_num_layers must be at least 0, got -1"),
    "channels": (dict(vision_num_channels=0), "vision_num_channels must be at least 1, got 0"),
    "stride": (dict(use_nope=True, nope_stride=0), "nope_stride must be at least 1, got 0"),
    "image token": (
        dict(image_token_id=201089),
        "image_token_id must be from 0 to vocab_size (201088), got 201089",
    ),
}


@pytest.mark.parametrize("settings, told", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_a_wrong_setting_is_refused(settings, told):
    from gpt_oss_vision import GPTOSSVisionConfig

    with pytest.raises(ValueError, match=re.escape(told)):
        GPTOSSVisionConfig(**settings)


BAD_INPUTS = {
    "another image size": (
        dict(pixel_values=torch.zeros(2, 3, 16, 16)),
        {},
        "(images, 3, 12, 12), got (2, 3, 16, 16)",
    ),
    "wrong rank": (dict(pixel_values=torch.zeros(3, 12, 12)), {}, "(images, 3, 12, 12), got (3, 12, 12)"),
    "an image too few": (
        dict(pixel_values=torch.zeros(1, 3, 12, 12)),
        {},
        "18 image tokens, and the images of",
    ),
    "no images": (dict(pixel_values=None), {}, "18 image tokens, and the images of pixel_values make 0;"),
    "no image tokens": (
        dict(input_ids=text_ids(2, 14)),
        {},
        "0 image tokens, and the images of pixel_values make 18",
    ),
    "no vision": (
        dict(input_ids=text_ids(2, 14)),
        dict(use_vision=False),
        "reads no images (use_vision=False)",
    ),
    "image tokens, no vision": (
        dict(pixel_values=None),
        dict(use_vision=False),
        "18 image tokens, and the images of pixel_values make 0;",
    ),
    "embeddings": (
        dict(input_ids=None, inputs_embeds=torch.zeros(2, 14, 24)),
        {},
        "pixel_values need input_ids",
    ),
}


@pytest.mark.parametrize("changes, settings, told", BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_inputs_that_do_not_fit_are_refused_in_one_sentence(changes, settings, told):
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        seeing(**settings)(**prompts() | changes)
    assert "\n" not in str(caught.value)
