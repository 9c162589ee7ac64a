"""The official formats of gpt-oss: round trips, MXFP4, what is refused, damaged folders, memory."""

import contextlib
import json
import math
import pickle
import random
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_generation import tiny_tokenizer
from toy_run import load, run_here

import architecture.checkpoint
import sample
from architecture import registry
from architecture.gptoss import FULL, PRESETS, SLIDING, ModelConfig, Transformer
from architecture.open_gpt_oss import export, mxfp4, names, weights
from architecture.open_gpt_oss.__main__ import main
from architecture.tokenizer import tokenizer_state
from benchmarks.parity import random_model

# No two axes are equal, D and F are multiples of 32, 260 of 320 ids are in use, T is almost four windows.
SHAPE = {
    **dict(num_hidden_layers=3, num_experts=7, experts_per_token=2, vocab_size=320, used_vocab_size=260),
    **dict(hidden_size=64, intermediate_size=96, swiglu_limit=1.5, head_dim=12, num_attention_heads=15),
    **dict(num_key_value_heads=3, sliding_window=6, initial_context_length=64, rope_theta=500.0),
    **dict(rope_ntk_beta=4.0, rope_scaling_factor=8.0),
}
T = 23
IDS = torch.randint(260, (2, T), generator=torch.Generator().manual_seed(0))


def state_of(dtype=torch.float32, wide_norms=False, **changes) -> dict:
    """A checkpoint's dictionary with random weights far from the initial ones, and zeros in unused rows."""
    config = ModelConfig(**SHAPE | changes)
    tensors = random_model(config, dtype).state_dict()
    for name, tensor in tensors.items():
        if name in names.VOCABULARY:
            tensor[config.num_ids :] = 0
        if wide_norms and name.endswith("norm.scale"):
            tensors[name] = tensor.float() * 1.001  # not a bfloat16
    state = {"model_name": "gptoss", "config": asdict(config), "step": 0, "model": dict(tensors)}
    return state | {"tokenizer": tokenizer_state(tiny_tokenizer())}


def model_of(state: dict) -> Transformer:
    return architecture.checkpoint.model_of(Transformer, state, "state")


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model(IDS).logits[..., :260].float()


def same(found, wanted) -> None:
    """Both mappings have the same tensors to the bit, of the same types."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def files_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def convert(capsys, *argv) -> str:
    """stderr of a command that succeeds."""
    assert main([str(part) for part in argv]) == 0, capsys.readouterr().err
    return capsys.readouterr().err


def export_of(source, layout: str, target, *flags) -> list:
    return ["export", "--checkpoint", source, "--format", layout, "--output_dir", target, *flags]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder under our names."""
    return dict(weights.read_folder(folder)["model"])


def refused(capsys, function, *argv) -> str:
    """The one line of a command that exits with 2."""
    capsys.readouterr()
    assert function([str(part) for part in argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1, err
    return err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "checkpoint_0.pt"
    torch.save(state_of(), path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """One model in hf and original, and both with MXFP4 beside bfloat16."""
    at, found = tmp_path_factory.mktemp("folders"), {}
    for layout in ("hf", "original"):
        for pack in (False, True):
            found[layout + "-mxfp4" * pack] = folder = at / (layout + "-mxfp4" * pack)
            state = state_of(torch.bfloat16, wide_norms=True) if pack else state_of()
            export.write_folder(state, folder, layout=layout, pack=pack)
    return found


# ----------------------------------------------------------------------------------------- round trips
ORIGINAL_ONLY = ("tie_embeddings", "attention_bias", "layer_types")  # refused in the original format only
MODELS = {
    "yarn": {},
    "plain RoPE": dict(rope_scaling_factor=1.0),
    "bfloat16": dict(dtype=torch.bfloat16),
    "float64": dict(dtype=torch.float64),
    "norms in float32": dict(dtype=torch.bfloat16, wide_norms=True),
    "every id in use": dict(used_vocab_size=None),
    "one file per tensor": {},
    "own layers": dict(layer_types=(FULL, FULL, SLIDING)),
    "tied head": dict(tie_embeddings=True),
    "no attention bias": dict(attention_bias=False),
}
CASES = [
    (kind, layout)
    for kind in MODELS
    for layout in ("hf", "original")
    if layout == "hf" or not MODELS[kind].keys() & set(ORIGINAL_ONLY)
]


@pytest.mark.parametrize("kind, layout", CASES)
def test_a_model_comes_back_to_the_bit(tmp_path, monkeypatch, kind, layout):
    if kind == "one file per tensor":
        monkeypatch.setattr(export, "SHARD_BYTES", 1)
    state = state_of(**MODELS[kind])
    export.write_folder(state, tmp_path / "out", layout=layout)
    files = sorted(path.name for path in (tmp_path / "out").glob("model*"))
    assert (len(files) > 40 and export.INDEX in files) == (kind == "one file per tensor")
    back = weights.read_folder(tmp_path / "out")
    same(dict(back["model"]), state["model"])
    config, given = (ModelConfig(**which["config"]) for which in (back, state))
    given = replace(given, layer_types=config.layer_types and given.resolved_layer_types)
    if given.rope_scaling_factor == 1 and layout == "hf":
        given = replace(given, rope_ntk_beta=config.rope_ntk_beta)  # of YaRN only
    assert config == given
    if layout == "hf":  # tokenizer.json is enough
        (tmp_path / "out" / weights.TOKENIZER).unlink()
    model = registry.load_model(tmp_path / "out")
    assert torch.equal(logits_of(model), logits_of(model_of(state)))
    assert (model.unembedding.weight is model.embedding.weight) == (kind == "tied head")
    assert model.tokenizer.encode_ordinary("the hat") == tiny_tokenizer().encode_ordinary("the hat")


@pytest.mark.parametrize("first, second", [("original", "hf"), ("hf", "original")])
@pytest.mark.parametrize("pack", [False, True])
def test_a_folder_goes_to_the_other_layout_and_back(tmp_path, capsys, folders, first, second, pack):
    start, flags = folders[first + "-mxfp4" * pack], ["--mxfp4"] * pack
    for source, layout, target in ((start, second, "there"), (tmp_path / "there", first, "back")):
        told = convert(capsys, *export_of(source, layout, tmp_path / target, *flags))
        assert told.count("relative error 0.0000") == 6 * pack
    if pack:  # codes may differ where two codes and exponents stand for one value
        same(tensors_of(tmp_path / "back"), tensors_of(start))
        assert files_of(tmp_path / "back").keys() == files_of(start).keys()
    else:
        same(files_of(tmp_path / "back"), files_of(start))
    windows = {weights.read_config(f)[1].windows for f in (tmp_path / "back", tmp_path / "there", start)}
    assert windows == {(6, None, 6)}


def test_both_layouts_have_the_official_names_and_types(folders):
    ours = [set(files_of(folders[kind])) for kind in ("original", "original-mxfp4")]
    assert ours[0] == {n for n in state_of()["model"] if "selection_bias" not in n}
    stacks = {f"block.{n}.mlp.{stack}" for n in range(3) for stack in mxfp4.MATRICES}
    assert ours[1] == ours[0] - stacks | {f"{s}.{part}" for s in stacks for part in ("blocks", "scales")}
    theirs, own = files_of(folders["hf-mxfp4"]), files_of(folders["original-mxfp4"])
    assert theirs["model.layers.1.mlp.experts.gate_up_proj_blocks"].shape == (7, 192, 2, 16)
    assert theirs["model.layers.1.mlp.experts.down_proj_scales"].shape == (7, 64, 3)
    assert theirs["model.layers.2.self_attn.k_proj.weight"].shape == (36, 64)
    assert theirs["model.norm.weight"].dtype == torch.float32
    assert theirs["lm_head.weight"].dtype == torch.bfloat16 and len(theirs["lm_head.weight"]) == 260
    assert {t.dtype for n, t in own.items() if n.endswith(("blocks", "scales"))} == {torch.uint8}


# ----------------------------------------------------------------------------------------------- MXFP4
E2M1 = [0.0, 0.5, 1, 1.5, 2, 3, 4, 6]
E2M1 += [-value for value in E2M1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_unpacking_follows_the_specification_for_every_byte_and_extreme_scales(dtype):
    scales = [0, 1, 2, 126, 127, 128, 253, 254, 255]
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(len(scales), 1, 1)
    wanted = [
        [E2M1[code] * 2.0 ** (scale - 127) for byte in range(256) for code in (byte & 15, byte >> 4)]
        for scale in scales
    ]  # fmt: skip
    found = mxfp4.unpack(blocks, torch.tensor(scales, dtype=torch.uint8)[:, None].repeat(1, 16), dtype)
    wanted = torch.tensor(wanted, dtype=torch.float64).to(dtype)
    assert torch.equal(found, wanted)
    assert torch.equal(torch.signbit(found[0]), torch.signbit(wanted[0]))  # -0 stays -0


def blocks_to_quantise() -> dict[str, torch.Tensor]:
    normal = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    return {
        "normal": normal,
        "uneven": normal**3 * 2.0 ** torch.arange(-20, 20)[:, None],
        "zeros": torch.zeros(1, 32),
        "one outlier": torch.cat((torch.full((1, 31), 0.01), torch.tensor([[50.0]])), dim=1),
        "subnormal": normal * 1e-40,
        "tiny": normal * 1e-30,
        "huge": normal.clamp(-1, 1) * torch.finfo(torch.float32).max,
        "bfloat16": normal.bfloat16(),
    }


@pytest.mark.parametrize("kind", blocks_to_quantise())
def test_quantising_takes_the_nearest_codes_and_the_better_of_two_exponents(kind):
    x = blocks_to_quantise()[kind]
    blocks, scales = mxfp4.quantise(x)
    assert blocks.shape == (len(x), 1, 16) and scales.shape == (len(x), 1)
    found = mxfp4.unpack(blocks, scales, torch.float32).double()
    assert found.isfinite().all()
    for row, got, scale in zip(x.double(), found, scales[:, 0].tolist()):
        largest = row.abs().max().item()
        low = max(math.floor(math.log2(largest)) - 2, -127) if largest else 0
        errors = {}
        for exponent in (low, low + 1):
            values = torch.tensor(E2M1, dtype=torch.float64) * 2.0**exponent
            values = values[values.float().isfinite()]
            errors[exponent] = (row[:, None] - values).abs().amin(1)
        units = 2.0**low
        best = min((error / units).square().sum().item() for error in errors.values())
        assert ((row - got) / units).square().sum().item() <= best * (1 + 1e-6)
        assert kind == "huge" or torch.equal((row - got).abs(), errors[scale - 127])


def test_ties_go_to_even_codes_and_what_was_unpacked_packs_without_loss_and_nan_is_refused():
    x = torch.tensor([0.25, -0.75, 1.25, 1.75, 2.5, -3.5, 5.0, 6.0] * 4)
    blocks, scales = mxfp4.quantise(x)
    assert mxfp4.unpack(blocks, scales, torch.float32)[:8].tolist() == [0, -1, 1, 2, 2, -4, 4, 6]
    draw = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (2, 253, 16), generator=draw, dtype=torch.uint8)
    blocks[1] &= 0b00110011  # small codes only: another exponent stands for the same values
    scales = torch.arange(253, dtype=torch.uint8).repeat(2, 1)
    values = mxfp4.unpack(blocks, scales, torch.float32)
    assert torch.equal(mxfp4.unpack(*mxfp4.quantise(values), torch.float32), values)
    for x, told in (
        (torch.full((2, 32), math.nan), "MXFP4 cannot hold NaN or infinity; use"),
        (torch.full((2, 32), -math.inf), "MXFP4 cannot hold NaN or infinity; use"),
        (
            torch.zeros(2, 40),
            "hidden_size and intermediate_size must be multiples of 32, got 40",
        ),
    ):
        with pytest.raises(ValueError, match=told):
            mxfp4.quantise(x)


@pytest.mark.parametrize("layout", ["hf-mxfp4", "original-mxfp4"])
def test_packed_experts_give_the_logits_of_unpacked_ones(folders, layout):
    packed = registry.load_model(folders[layout], weights="mxfp4")
    unpacked = registry.load_model(folders[layout], experts="loop")
    assert torch.equal(logits_of(packed), logits_of(unpacked))
    official = {name for name in packed.state_dict() if not name.endswith("selection_bias")}
    assert official == files_of(folders["original-mxfp4"]).keys()
    assert not packed.training and packed.tokenizer.name == "tiny"
    stored = sum(t.nbytes for t in packed.state_dict().values())
    assert stored < 0.5 * sum(t.nbytes for t in unpacked.state_dict().values())
    wide = logits_of(packed.to("cpu", torch.float32))  # the packed experts follow the dtype of the rest
    torch.testing.assert_close(wide, logits_of(unpacked.float()), rtol=0, atol=1e-6)
    assert packed.block[0].mlp.mlp1_weight.blocks.dtype == torch.uint8
    needed = sum(t.nbytes for t in registry.load_model(folders[layout]).state_dict().values())
    assert weights.packing_for(folders[layout], needed) is None  # it fits
    assert weights.packing_for(folders[layout], needed - 1) == "mxfp4"
    assert weights.packing_for(folders[layout].parent / "checkpoint_0.pt", 0) is None
    assert weights.packing_for(folders["hf"], 0) is None  # nothing in it is packed


def test_the_error_of_every_expert_is_recorded_and_the_other_tensors_are_converted(
    tmp_path, capsys, checkpoint
):
    flags = ["--mxfp4", "--dtype", "bfloat16"]
    told = convert(capsys, *export_of(checkpoint, "hf", tmp_path / "out", *flags))
    errors = json.loads((tmp_path / "out/mxfp4_errors.json").read_text())
    assert list(errors) == [f"block.{n}.mlp.{stack}" for n in range(3) for stack in mxfp4.MATRICES]
    assert all(name in told for name in errors)
    back, given = tensors_of(tmp_path / "out"), state_of()["model"]
    for name, each in errors.items():
        difference = (back[name].float() - given[name]).flatten(1).norm(dim=1) / given[name].flatten(1).norm(
            dim=1
        )
        assert each == pytest.approx(difference.tolist(), abs=2e-6) and 0.1 < min(each) <= max(each) < 0.13
    assert {t.dtype for t in files_of(tmp_path / "out").values()} == {torch.bfloat16, torch.uint8}
    assert torch.equal(back["block.1.attn.qkv.weight"], given["block.1.attn.qkv.weight"].bfloat16())


# ---------------------------------------------------------------------------------------------- configs
def test_the_original_config_has_its_16_keys_and_theirs_has_what_readers_ask_for(folders):
    config = ModelConfig(**SHAPE)
    own = json.loads((folders["original"] / "config.json").read_text())
    official = "num_hidden_layers num_experts experts_per_token vocab_size hidden_size intermediate_size swiglu_limit head_dim num_attention_heads num_key_value_heads sliding_window initial_context_length rope_theta rope_scaling_factor rope_ntk_alpha rope_ntk_beta"
    assert list(own) == official.split() and own["vocab_size"] == 260
    theirs = json.loads((folders["hf"] / "config.json").read_text())
    rope = dict(rope_type="yarn", factor=8.0, beta_fast=4.0, beta_slow=1.0, truncate=False)
    rope |= dict(original_max_position_embeddings=64)
    assert theirs["rope_scaling"] == rope and theirs["rope_parameters"] == rope | {"rope_theta": 500.0}
    expected = dict(model_type="gpt_oss", architectures=["GptOssForCausalLM"], num_local_experts=7, vocab_size=260,
                    num_experts_per_tok=2, rope_theta=500.0, max_position_embeddings=512, attention_bias=True,
                    hidden_act="silu", rms_norm_eps=1e-5, eos_token_id=259, bos_token_id=259, pad_token_id=259,
                    layer_types=[SLIDING, FULL, SLIDING], tie_word_embeddings=False, dtype="float32")  # fmt: skip
    assert {name: theirs[name] for name in expected} == expected and "quantization_config" not in theirs
    packed = json.loads((folders["hf-mxfp4"] / "config.json").read_text())
    assert packed["quantization_config"]["quant_method"] == "mxfp4" and packed["dtype"] == "bfloat16"
    generation = json.loads((folders["hf"] / "generation_config.json").read_text())
    ids = ("eos_token_id", "bos_token_id", "pad_token_id")
    assert generation == {"do_sample": True} | dict.fromkeys(ids, 259)
    assert names.read_config(theirs, Path("c"))[1] == replace(config, layer_types=(SLIDING, FULL, SLIDING))
    assert names.read_config(own, Path("c"))[1] == config


def test_yarn_writes_plain_rope_as_yarn_with_factor_1(tmp_path, capsys, checkpoint):
    plain, state = tmp_path / "checkpoint_0.pt", state_of(rope_scaling_factor=1.0)
    torch.save(state, plain)
    convert(capsys, *export_of(plain, "hf", tmp_path / "out", "--yarn"))
    rope = json.loads((tmp_path / "out/config.json").read_text())["rope_scaling"]
    assert (rope["rope_type"], rope["factor"]) == ("yarn", 1.0)
    assert torch.equal(logits_of(registry.load_model(tmp_path / "out")), logits_of(model_of(state)))
    told = refused(capsys, main, *export_of(checkpoint, "hf", tmp_path / "no", "--yarn"))
    assert "--yarn is for a model with plain RoPE" in told
    told = refused(capsys, main, *export_of(plain, "original", tmp_path / "no", "--yarn"))
    assert "--yarn is for --format hf" in told and not (tmp_path / "no").exists()


ROPE = dict(rope_type="yarn", factor=8.0, beta_fast=4.0, beta_slow=1.0, original_max_position_embeddings=64)
EXACT = ROPE | dict(truncate=False)
# with these the ramp begins and ends at the pairs 1 and 2, so that truncating changes nothing
WHOLE = dict(beta_fast=64 / (2 * math.pi * 500 ** (1 / 6)), beta_slow=64 / (2 * math.pi * 500 ** (2 / 6)))


def hf_config(**changes) -> dict:
    values = names.hugging_face_config(ModelConfig(**SHAPE), "float32") | changes
    return {name: value for name, value in values.items() if value is not KeyError}


def test_both_spellings_of_rope_are_read_and_truncate_only_where_it_changes_nothing():
    def read(**changes) -> ModelConfig:
        return names.read_config(hf_config(**changes), Path("c"))[1]

    oldest = {"type" if name == "rope_type" else name: value for name, value in EXACT.items()}
    for changes in (
        dict(rope_scaling=KeyError, rope_theta=KeyError),
        dict(rope_parameters=KeyError),
        dict(rope_parameters=KeyError, rope_scaling=oldest),
    ):
        assert read(**changes) == read()
    assert read(rope_parameters=KeyError, rope_scaling=None).rope_scaling_factor == 1.0
    for changes in (WHOLE, dict(factor=1.0)):
        assert read(rope_parameters=ROPE | changes | {"rope_theta": 500.0}).initial_context_length == 64
    assert read(num_experts_per_tok=KeyError).experts_per_token == 2
    _, config = names.read_config({"model_type": "gpt_oss"}, Path("c"))
    assert config == ModelConfig(**PRESETS["gpt-oss-120b"])  # transformers' own defaults


BAD_CONFIGS = {
    "another model": (dict(model_type="llama"), "model_type must be gpt_oss or gpt_oss_vision, got 'llama'"),
    "activation": (dict(hidden_act="gelu"), "hidden_act must be 'silu', got 'gelu'"),
    "epsilon": (dict(rms_norm_eps=1e-6), "rms_norm_eps must be 1e-05, got 1e-06"),
    "alpha": (dict(swiglu_alpha=1.0), "swiglu_alpha must be 1.702, got 1.0"),
    "rope kind": (dict(rope_parameters=dict(rope_type="llama3")), "rope_type must be default or yarn, got 'llama3'"),
    "rope list": (dict(rope_parameters=[1]), "rope_parameters must be an object, got [1]"),
    "truncate by default": (dict(rope_parameters=ROPE), "truncate must be false for YaRN"),
    "no factor": (dict(rope_parameters=dict(rope_type="yarn")), "is no config of gpt-oss (KeyError: 'factor')"),
    "attention factor": (dict(rope_parameters=EXACT | dict(attention_factor=1.0)), "attention_factor must be left out"),
    "part rotated": (dict(rope_parameters=EXACT | dict(partial_rotary_factor=0.5)), "partial_rotary_factor must be left"),
    "text for a size": (dict(hidden_size="wide"), "hidden_size must be a whole number"),
    "heads": (dict(num_key_value_heads=4), "num_attention_heads must be a multiple of num_key_value_heads"),
    "layer types": (dict(layer_types=["chunked"]), "layer_types must name sliding_attention or full_attention"),
    "key of a run": (dict(model_type=KeyError, seal="x"), "is not a field of ModelConfig"),
    "no window": (dict(sliding_window=None), "sliding_window must be a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("changes, told", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_a_config_of_another_function_is_refused(changes, told):
    with pytest.raises(ValueError, match=r"^x/config.json\b.*" + re.escape(told)):
        names.read_config(hf_config(**changes), Path("x/config.json"))


# --------------------------------------------------------------------------------------- what is refused
SWITCHES = {
    "nope_stride": 2, "position": "learned", "norm": "layernorm", "mlp": "gelu", "router": "topk_sigmoid",
    "shared_experts": 1, "attention_sinks": False, "moe_layers": (0, 2), "tie_embeddings": True,
    "attention_bias": False, "layer_types": (FULL, FULL, SLIDING),
}  # fmt: skip
OTHERS = {
    "gpt2": "this is a GPT-2; export it with python -m architecture.gpt2_hugging_face export --checkpoint CKPT",
    "gptoss_context": "the formats of gpt-oss hold no gptoss_context model",
}


@pytest.mark.parametrize("what", [*SWITCHES, *OTHERS])
def test_what_gpt_oss_cannot_express_is_refused_by_name(tmp_path, capsys, what):
    config = asdict(ModelConfig(**SHAPE | {name: SWITCHES[name] for name in SWITCHES if name == what}))
    state = state_of() | {"config": config, "model_name": what if what in OTHERS else "gptoss"}
    torch.save(state, tmp_path / "checkpoint_0.pt")
    for layout in ["original"] if what in ORIGINAL_ONLY else ["hf", "original"]:
        told = refused(capsys, main, *export_of(tmp_path / "checkpoint_0.pt", layout, tmp_path / "out"))
        wanted = OTHERS.get(
            what,
            rf"{what} must be .* in --format {layout}, because gpt-oss has no setting for it, and this model ",
        )
        assert re.search(wanted, told) and (what in OTHERS or repr(SWITCHES[what]) in told), told
        assert ("use --format hf" in told) == (what in ORIGINAL_ONLY)
        assert not (tmp_path / "out").exists()


def test_a_selection_bias_needs_a_flag_which_prints_the_change(tmp_path, capsys):
    state, path = state_of(), tmp_path / "checkpoint_0.pt"
    state["model"]["block.1.mlp.selection_bias"][3] = 5.0
    torch.save(state, path)
    told = refused(capsys, main, *export_of(path, "hf", tmp_path / "out"))
    assert "was trained with --balance bias" in told and "add --drop_selection_bias" in told
    assert not (tmp_path / "out").exists()
    told = convert(capsys, *export_of(path, "hf", tmp_path / "out", "--drop_selection_bias"))
    told = re.search(
        r"left out: ([+-]\d.\d{4}) nats per token on 2,048 tokens that the model wrote itself", told
    )
    assert float(told[1]) > 0  # on the model's own text, another model is worse
    assert "selection bias left out" in (tmp_path / "out/README.md").read_text()
    same(tensors_of(tmp_path / "out"), state_of()["model"])


# ------------------------------------------------------------------------------------------- bad folders
def change_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))


def change_tensors(folder, changes=(), metadata=None):
    """changes: {name: tensor, or None to remove it}. Without checksums, as a foreign program writes."""
    tensors = files_of(folder) | dict(changes)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    save_file(tensors, folder / "model.safetensors", metadata)


def change_bytes(folder, change):
    path = folder / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))


def flip(data: bytes, at: int, bit: int = 2) -> bytes:
    spoiled = bytearray(data)
    spoiled[at] ^= 1 << bit
    return bytes(spoiled)


def sharded(folder, index=None):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    if index is not None:
        (folder / export.INDEX).write_text(json.dumps({"weight_map": index}))


QKV, NORM, STACK = "block.1.attn.qkv.weight", "block.2.mlp.norm.scale", "block.0.mlp.mlp1_weight"
NO_FILE, NO_LAYOUT = "cannot be read as a safetensors file", "no folder of gpt-oss|without a checkpoint"
WRONG = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json; use a complete folder"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json does not contain a JSON object; use"),
    "another model": (lambda f: change_config(f, model_type="llama"), "model_type .*got 'llama'"),
    "other sizes": (lambda f: change_config(f, intermediate_size=128), r"shape \[7, 256.*got .* in \[7, 192"),
    "more layers": (lambda f: change_config(f, num_hidden_layers=4), r"lacks \d+ tensor.s. of its model"),
    "fewer layers": (lambda f: change_config(f, num_hidden_layers=2), r"holds \d+ tensor.s. that its model lacks"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), NO_LAYOUT),
    "only a pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), NO_LAYOUT),
    "missing shard": (sharded, "has 1 of the 2 files of its weights; get the others"),
    "index to nowhere": (lambda f: sharded(f, {QKV: "model-2.safetensors"}), "has no model-2.safetensors, which its"),
    "index to outside": (lambda f: sharded(f, {QKV: "../model.safetensors"}), "has no ../model.safetensors, which"),
    "index is a list": (lambda f: sharded(f, [1]), "cannot be read as an index of weights"),
    "cut off": (lambda f: change_bytes(f, lambda data: data[:-9]), NO_FILE),
    "cut in the header": (lambda f: change_bytes(f, lambda data: data[:99]), NO_FILE),
    "empty": (lambda f: change_bytes(f, lambda data: b""), NO_FILE),
    "flipped length": (lambda f: change_bytes(f, lambda data: flip(data, 2)), NO_FILE),
    "flipped data": (lambda f: change_bytes(f, lambda data: flip(data, -1)), r"its tensor \S+ was changed after it was"),
    "pickle": (lambda f: change_bytes(f, lambda data: pickle.dumps(print)), NO_FILE),
    "checksums are a list": (lambda f: change_tensors(f, metadata={"crc32": "[]"}), NO_FILE),
    "missing tensor": (lambda f: change_tensors(f, {NORM: None}), rf"lacks 1 tensor.s. of its model \({NORM}\); use"),
    "surplus tensor": (lambda f: change_tensors(f, {"rotary": torch.zeros(2)}), r"holds 1 .* lacks \(rotary\); use"),
    "turned": (lambda f: change_tensors(f, {QKV: torch.zeros(64, 252)}), r"shape \[252, 64\], got F32 in \[64, 252\]; use"),
    "integers": (lambda f: change_tensors(f, {QKV: torch.zeros(252, 64).int()}), "floating point numbers .*got I32 in"),
    "mixed types": (lambda f: change_tensors(f, {QKV: torch.zeros(252, 64).half()}), "of type float16 and float32"),
    "8 bits": (lambda f: change_tensors(f, {QKV: torch.zeros(252, 64).to(torch.float8_e4m3fn)}), "got F8_E4M3 in"),
    "no tokenizer": (lambda f: (f / "tiktoken.json").unlink(), "260 ids and no tiktoken.json or tokenizer.json, and"),
    "bad tokenizer": (lambda f: (f / "tiktoken.json").write_text("3"), "does not contain a JSON object"),
    "fewer ids": (lambda f: [change_config(f, vocab_size=259),
                             change_tensors(f, {name: torch.zeros(259, 64) for name in names.VOCABULARY})],
                  "has 259 ids, but its tokenizer tiny has 260"),
}  # fmt: skip
PACKED_WRONG = {
    "codes as floats": (lambda f: change_tensors(f, {f"{STACK}.blocks": torch.zeros(7, 192, 2, 16)}), r"bytes \(U8\)"),
    "no scales": (lambda f: change_tensors(f, {f"{STACK}.scales": None}), r"lacks 1 .*mlp1_weight.scales"),
    "no blocks": (lambda f: change_tensors(f, {f"{STACK}.blocks": None}), "lacks 1 .*mlp1_weight"),
    "both kinds": (lambda f: change_tensors(f, {STACK: torch.zeros(7, 192, 64)}), r"holds 1 tensor.*mlp1_weight\)"),
    "no multiple": (lambda f: change_config(f, hidden_size=72), "MXFP4 stores blocks of 32 .* got 72.; use a"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*WRONG, *PACKED_WRONG])
def test_an_unusable_folder_is_refused_in_one_line(tmp_path, folders, capsys, kind):
    given, (spoil, told) = tmp_path / "given", (WRONG | PACKED_WRONG)[kind]
    shutil.copytree(folders["original-mxfp4" if kind in PACKED_WRONG else "original"], given)
    spoil(given)
    for command, argv in (
        (main, ["import", "--folder", given, "--output_dir", tmp_path / "out"]),
        (sample.main, ["--checkpoint", given, "--device", "cpu", "--max_tokens", 1]),
    ):
        err = refused(capsys, command, *argv)
        assert re.search(told, err) and "given" in err and "; " in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_a_file_with_a_random_bit_flipped_or_cut_off_is_refused_or_has_the_same_values(tmp_path, folders):
    draw, wanted, refusals = random.Random(0), tensors_of(folders["original-mxfp4"]), 0
    given = shutil.copytree(folders["original-mxfp4"], tmp_path / "given")
    data = (given / "model.safetensors").read_bytes()
    header = int.from_bytes(data[:8], "little")
    for number in range(60):
        at = draw.randrange(header if number % 2 else len(data))
        spoiled = flip(data, at, draw.randrange(8))
        (given / "model.safetensors").write_bytes(spoiled[: at if number % 5 == 0 else None])
        try:
            same(tensors_of(given), wanted)
        except ValueError as error:
            refusals += 1
            assert "given" in str(error)
    assert refusals > 50


def test_folders_in_use_and_folders_of_no_layout_are_refused(tmp_path, capsys, checkpoint, folders):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    for target, found in ((tmp_path / "mine", "holds notes.txt"), (tmp_path / "mine/notes.txt", "is a file")):
        for argv in (
            export_of(checkpoint, "hf", target),
            ["import", "--folder", folders["hf"], "--output_dir", target],
        ):
            told = refused(capsys, main, *argv)
            assert f"{target} must be a new or an empty folder, and {found}; choose another name" in told
    told = refused(capsys, main, *export_of(checkpoint, "hf", tmp_path / "a/b"))
    assert "is in a folder that does not exist; create that first" in told
    for given, wanted in (
        (tmp_path / "mine", "is no folder of gpt-oss, which has a config.json"),
        (checkpoint, "is no folder of gpt-oss, which has a config.json"),
        (tmp_path / "none", "none does not exist; name a folder of gpt-oss"),
        (
            checkpoint.parent,
            "is the folder of a run, which train.py --init_from and sample.py --checkpoint take",
        ),
    ):
        told = refused(capsys, main, "import", "--folder", given, "--output_dir", tmp_path / "out")
        assert wanted in told
    told = refused(capsys, sample.main, "--checkpoint", folders["hf"], "--best", "--device", "cpu")
    assert "is an exported folder, which holds one model; give" in told and "without --best" in told
    for given, wanted in (
        (checkpoint, "needs a folder of gpt-oss"),
        (folders["hf"], "has no weights in MXFP4; load"),
    ):
        assert wanted in refused(
            capsys, sample.main, "--checkpoint", given, "--weights", "mxfp4", "--device", "cpu"
        )
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


@pytest.mark.parametrize(
    "value, told",
    [(None, "lacks 1 tensor"), (torch.ones(3), "1 tensor.s. of another shape"), ("x", "of another shape")],
    ids=str,
)
def test_a_checkpoint_whose_tensors_are_not_those_of_its_config_is_not_exported(
    tmp_path, capsys, value, told
):
    state, path = state_of(), tmp_path / "checkpoint_0.pt"
    state["model"] = {
        n: value if n == NORM else t for n, t in state["model"].items() if value is not None or n != NORM
    }
    torch.save(state, path)
    assert re.search(
        f"the checkpoint .*{told}.*{NORM}", refused(capsys, main, *export_of(path, "hf", tmp_path / "out"))
    )
    assert not (tmp_path / "out").exists()


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    for number in range(8):  # safetensors itself writes two orders of its metadata, each half of the time
        export.write_folder(state_of(), tmp_path / str(number), layout="hf")
    assert len({path.read_bytes() for path in tmp_path.glob("*/model.safetensors")}) == 1


def test_the_commands_that_are_told_can_be_copied_and_wrong_watts_cost_no_time(tmp_path, capsys, checkpoint):
    assert "watts give no energy" in refused(
        capsys, main, *export_of(checkpoint, "hf", tmp_path / "out"), "--watts", 5
    )
    assert list(tmp_path.iterdir()) == []
    told = convert(capsys, *export_of(checkpoint, "hf", tmp_path / "my model"))
    assert told.endswith(f"verify '{tmp_path}/my model' --with transformers\n")
    told = convert(capsys, "import", "--folder", tmp_path / "my model", "--output_dir", tmp_path / "a b")
    assert f"--init_from '{tmp_path}/a b'" in told


@contextlib.contextmanager
def files_of_at_most(size: int):
    """A write beyond that many bytes of a file fails, as on a full disk."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, capsys, checkpoint, folders):
    (tmp_path / ".out.tmp").mkdir()  # left by a killed export
    (tmp_path / ".out.tmp/model.safetensors").write_text("half")
    monkeypatch.setattr(export, "SHARD_BYTES", 100_000)
    exporting = export_of(checkpoint, "hf", tmp_path / "out")
    for argv in (exporting, ["import", "--folder", folders["hf"], "--output_dir", tmp_path / "out"]):
        with files_of_at_most(300_000):
            told = refused(capsys, main, *argv)
        assert re.search("out.* cannot be written .File too large.; check its disk", told), told
        assert list(tmp_path.iterdir()) == []
    convert(capsys, *exporting)
    same(tensors_of(tmp_path / "out"), state_of()["model"])


# ------------------------------------------------------------------------------------------- the commands
RUN = "--device cpu --threads 1 --block_size 16 --batch_size 4 --eval_tokens 256 --no-use_tensorboard".split()


@pytest.mark.parametrize("kind", ["hf", "original-mxfp4"])
def test_training_starts_from_a_folder_and_from_its_import_alike(tmp_path, corpus, capsys, folders, kind):
    convert(capsys, "import", "--folder", folders[kind], "--output_dir", tmp_path / "imported")
    saved, start = [], tensors_of(folders[kind])
    for given in (folders[kind], tmp_path / "imported"):
        flags = ["--init_from", given, *RUN, *corpus, "--max_iters", 2, "--out_dir", f"out{len(saved)}"]
        assert run_here(tmp_path, *flags) == 0, capsys.readouterr().err
        saved.append(load(tmp_path / f"out{len(saved)}/checkpoint_2.pt"))
    same(saved[0]["model"], saved[1]["model"])
    assert saved[0]["tokenizer"]["name"] == "tiny" and saved[0]["config"]["hidden_size"] == 64
    change = max((saved[0]["model"][n].float() - t.float()).abs().max().item() for n, t in start.items())
    assert 0 < change < 0.05  # two steps away from the folder's weights
    size = (tmp_path / "imported/checkpoint_0.pt").stat().st_size
    assert size < sum(t.nbytes for t in start.values()) * 1.05 + 50_000
    convert(capsys, *export_of(tmp_path / "out1", "hf", tmp_path / "again"))
    assert torch.equal(logits_of(registry.load_model(tmp_path / "again")), logits_of(model_of(saved[1])))


def test_sample_tells_the_same_text_from_every_form_of_the_weights(capsys, folders, checkpoint):
    flags, told = "--prompt Tom --device cpu --max_tokens 12 --temperature 0".split(), {}
    for kind, given in {"checkpoint": checkpoint, **folders}.items():
        for extra in [[], ["--weights", "mxfp4"]][: 1 + ("mxfp4" in kind)]:
            assert sample.main(["--checkpoint", str(given), *flags, *extra]) == 0
            told[kind, bool(extra)] = capsys.readouterr().out
    assert len(told) == 7 and len(set(told.values())) == 2  # with and without MXFP4
    assert told["checkpoint", False] == told["original", False]
    assert told["hf-mxfp4", False] == told["original-mxfp4", True]


# ------------------------------------------------------------------------------------------------- memory
LOAD = """
import sys, threading, time
from architecture import registry
def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))
def watch():
    while not loaded:
        seen.append(anonymous())
        time.sleep(0.0005)
registry.load_model(sys.argv[2])  # a small folder: what every load needs
seen, loaded = [anonymous()], False
thread = threading.Thread(target=watch)
thread.start()
model = registry.load_model(sys.argv[1], weights=sys.argv[3] or None)
loaded = True
thread.join()
print(max(*seen, anonymous()) - seen[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf", "original", "hf-mxfp4", "original-mxfp4"])
def test_a_load_takes_the_memory_of_the_model_and_one_layer(tmp_path, folders, kind):
    sizes = dict(num_hidden_layers=8, num_experts=8, hidden_size=768, intermediate_size=512, vocab_size=4096)
    state, (layout, *pack) = state_of(**sizes, used_vocab_size=None), kind.split("-")
    total = sum(tensor.nbytes for tensor in state["model"].values())
    layer = sum(tensor.nbytes for name, tensor in state["model"].items() if name.startswith("block.0."))
    assert total > 300e6
    export.write_folder(state, tmp_path / "big", layout=layout, pack=bool(pack))
    del state
    for form in ["", *pack]:
        argv = [sys.executable, "-c", LOAD, str(tmp_path / "big"), str(folders[kind]), form]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=Path(sample.__file__).parent)
        assert done.returncode == 0, done.stderr
        # packed experts stay in the mapped file
        assert int(done.stdout) < (0.15 * total if form else total + layer) + 10e6
