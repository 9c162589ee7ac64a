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
        if name in weights.VOCABULARY:
            tensor[config.used_vocab_size or config.vocab_size :] = 0
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
MODELS = {
    "yarn": {},
    "plain RoPE": dict(rope_scaling_factor=1.0),
    "bfloat16": dict(dtype=torch.bfloat16),
    "norms in float32": dict(dtype=torch.bfloat16, wide_norms=True),
    "every id in use": dict(used_vocab_size=None),
    "one file per tensor": {},
    "own layers": dict(layer_types=(FULL, FULL, SLIDING)),
    "tied head": dict(tie_embeddings=True),
    "no attention bias": dict(attention_bias=False),
}
CASES = [(model, layout) for model in MODELS for layout in ("hf", "original")][:-3]
CASES = [case for case in CASES if case not in (("own layers", "original"), ("tied head", "original"))]


@pytest.mark.parametrize("kind, layout", [*CASES, ("no attention bias", "hf")][:15])
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
    model = registry.load_model(tmp_path / "out")
    assert torch.equal(logits_of(model), logits_of(model_of(state)))
    assert (model.unembedding.weight is model.embedding.weight) == (kind == "tied head")
    assert model.tokenizer.encode_ordinary("the hat") == tiny_tokenizer().encode_ordinary("the hat")


@pytest.mark.parametrize("first, second", [("original", "hf"), ("hf", "original")])
@pytest.mark.parametrize("pack", [False, True])
def test_a_folder_goes_to_the_other_layout_and_back(tmp_path, capsys, folders, first, second, pack):
    start, flags = folders[first + "-mxfp4" * pack], ["--mxfp4"] * pack
    for source, layout, target in ((start, second, "there"), (tmp_path / "there", first, "back")):
        told = convert(capsys, "export", "--checkpoint", source, "--format", layout, *flags, "--output_dir",
                       tmp_path / target)  # fmt: skip
        assert told.count("relative error 0.0000") == 6 * pack
    if pack:  # codes may differ where two codes and exponents stand for one value
        same(*({**weights.read_folder(f)["model"]} for f in (tmp_path / "back", start)))
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


def test_dtype_converts_every_tensor_that_is_not_packed(tmp_path, capsys, checkpoint):
    for flags in ([], ["--mxfp4"]):
        folder = tmp_path / f"out{len(flags)}"
        convert(capsys, "export", "--checkpoint", checkpoint, "--format", "hf", "--dtype", "bfloat16",
                *flags, "--output_dir", folder)  # fmt: skip
        assert {t.dtype for t in files_of(folder).values()} <= {torch.bfloat16, torch.uint8}
        assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
        wanted = state_of()["model"]["block.1.attn.qkv.weight"].bfloat16()
        assert torch.equal(weights.read_folder(folder)["model"]["block.1.attn.qkv.weight"], wanted)


# ----------------------------------------------------------------------------------------------- MXFP4
E2M1 = [0.0, 0.5, 1, 1.5, 2, 3, 4, 6]
E2M1 += [-value for value in E2M1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
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
        assert (
            torch.equal((row - got).abs(), errors[scale - 127]) if scale - 127 in errors else kind == "huge"
        )


def test_a_tie_goes_to_the_even_code_and_what_was_unpacked_packs_without_loss():
    x = torch.tensor([0.25, -0.75, 1.25, 1.75, 2.5, -3.5, 5.0, 6.0] * 4)
    blocks, scales = mxfp4.quantise(x)
    assert mxfp4.unpack(blocks, scales, torch.float32)[:8].tolist() == [0, -1, 1, 2, 2, -4, 4, 6]
    draw = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (2, 253, 16), generator=draw, dtype=torch.uint8)
    blocks[1] &= 0b00110011  # small codes only: another exponent stands for the same values
    scales = torch.arange(253, dtype=torch.uint8).repeat(2, 1)
    values = mxfp4.unpack(blocks, scales, torch.float32)
    assert torch.equal(mxfp4.unpack(*mxfp4.quantise(values), torch.float32), values)


@pytest.mark.parametrize(
    "x, told",
    [
        (torch.full((2, 32), math.nan), "MXFP4 cannot hold NaN or infinity"),
        (torch.full((2, 32), -math.inf), "MXFP4 cannot hold NaN or infinity"),
        (
            torch.zeros(2, 40),
            "hidden_size and intermediate_size must be multiples of 32, got 40; export without",
        ),
    ],
)
def test_what_mxfp4_cannot_hold_is_refused(x, told):
    with pytest.raises(ValueError, match=told):
        mxfp4.quantise(x)


@pytest.mark.parametrize("layout", ["hf-mxfp4", "original-mxfp4"])
def test_packed_experts_give_the_logits_of_unpacked_ones(folders, layout):
    packed = registry.load_model(folders[layout], weights="mxfp4")
    unpacked = registry.load_model(folders[layout], experts="loop")
    assert torch.equal(logits_of(packed), logits_of(unpacked))
    names_here = set(files_of(folders["original-mxfp4"])) | {
        f"block.{n}.mlp.selection_bias" for n in range(3)
    }
    assert packed.state_dict().keys() == names_here
    assert not packed.training and packed.tokenizer.name == "tiny"
    stored = sum(t.nbytes for t in packed.state_dict().values())
    assert stored < 0.5 * sum(t.nbytes for t in unpacked.state_dict().values())
    wide = logits_of(packed.to("cpu", torch.float32))  # the packed experts follow the dtype of the rest
    torch.testing.assert_close(wide, logits_of(unpacked.float()), rtol=0, atol=1e-6)
    assert packed.block[0].mlp.mlp1_weight.blocks.dtype == torch.uint8


def test_the_error_of_every_expert_is_recorded(tmp_path, capsys, checkpoint):
    told = convert(capsys, "export", "--checkpoint", checkpoint, "--format", "original", "--mxfp4",
                   "--output_dir", tmp_path / "out")  # fmt: skip
    errors = json.loads((tmp_path / "out/mxfp4_errors.json").read_text())
    assert list(errors) == [f"block.{n}.mlp.{stack}" for n in range(3) for stack in mxfp4.MATRICES]
    assert all(name in told and len(each) == 7 for name, each in errors.items())
    back, given = weights.read_folder(tmp_path / "out")["model"], state_of()["model"]
    for name, each in errors.items():
        for expert, error in enumerate(each):
            difference = (back[name][expert] - given[name][expert]).norm() / given[name][expert].norm()
            assert error == pytest.approx(difference.item(), abs=2e-6) and 0.1 < error < 0.13


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
    plain = tmp_path / "checkpoint_0.pt"
    torch.save(state_of(rope_scaling_factor=1.0), plain)
    flags = ["--yarn", "--output_dir", tmp_path / "out"]
    convert(capsys, "export", "--checkpoint", plain, "--format", "hf", *flags)
    values = json.loads((tmp_path / "out/config.json").read_text())
    assert values["rope_scaling"]["rope_type"] == "yarn" and values["rope_scaling"]["factor"] == 1.0
    model = registry.load_model(tmp_path / "out")
    assert torch.equal(logits_of(model), logits_of(model_of(state_of(rope_scaling_factor=1.0))))
    flags = ["--yarn", "--output_dir", tmp_path / "no"]
    told = refused(capsys, main, "export", "--checkpoint", checkpoint, "--format", "hf", *flags)
    assert "--yarn is for a model with plain RoPE" in told
    told = refused(capsys, main, "export", "--checkpoint", plain, "--format", "original", *flags)
    assert "--yarn is for --format hf" in told and not (tmp_path / "no").exists()


ROPE = dict(rope_type="yarn", factor=8.0, beta_fast=4.0, beta_slow=1.0, original_max_position_embeddings=64)
# the limits of the ramp at the pairs 1 and 2
WHOLE = dict(beta_fast=64 / (2 * math.pi * 500 ** (1 / 6)), beta_slow=64 / (2 * math.pi * 500 ** (2 / 6)))
WHOLE_OURS = dict(rope_ntk_beta=WHOLE["beta_fast"], rope_ntk_alpha=WHOLE["beta_slow"])


def hf_config(**changes) -> dict:
    values = names.hugging_face_config(ModelConfig(**SHAPE), "float32") | changes
    return {name: value for name, value in values.items() if value is not KeyError}


def test_both_spellings_of_the_rope_block_are_read():
    wanted = names.read_config(hf_config(), Path("c"))[1]
    newer = hf_config(rope_scaling=KeyError, rope_theta=KeyError)
    older = hf_config(rope_parameters=KeyError)
    oldest = hf_config(rope_parameters=KeyError, rope_scaling={**older["rope_scaling"], "type": "yarn"})
    del oldest["rope_scaling"]["rope_type"]
    for values in (newer, older, oldest):
        assert names.read_config(values, Path("c"))[1] == wanted
    plain = hf_config(rope_parameters=KeyError, rope_scaling=None)
    assert names.read_config(plain, Path("c"))[1].rope_scaling_factor == 1.0


def test_what_a_config_leaves_out_has_the_value_that_transformers_gives_it():
    _, config = names.read_config({"model_type": "gpt_oss"}, Path("c"))
    assert config == ModelConfig(**PRESETS["gpt-oss-120b"])
    _, config = names.read_config(hf_config(num_experts_per_tok=KeyError), Path("c"))
    assert config.experts_per_token == 2


def test_truncate_is_taken_only_where_it_changes_nothing():
    assert not any(edge.is_integer() for edge in ModelConfig(**SHAPE).yarn_range)
    for changes in (WHOLE, dict(factor=1.0)):
        rope = ROPE | changes | dict(truncate=True, rope_theta=500.0)
        config = names.read_config(hf_config(rope_parameters=rope), Path("c"))[1]
        assert config.rope_scaling_factor == rope["factor"]
    assert ModelConfig(**SHAPE | WHOLE_OURS).yarn_range == (1.0, 2.0)


BAD_CONFIGS = {
    "another model": (dict(model_type="llama"), "model_type must be gpt_oss, got 'llama'"),
    "activation": (dict(hidden_act="gelu"), "hidden_act must be 'silu', got 'gelu'"),
    "epsilon": (dict(rms_norm_eps=1e-6), "rms_norm_eps must be 1e-05, got 1e-06"),
    "alpha": (dict(swiglu_alpha=1.0), "swiglu_alpha must be 1.702, got 1.0"),
    "rope kind": (dict(rope_parameters=dict(rope_type="llama3")), "rope_type must be default or yarn, got 'llama3'"),
    "rope list": (dict(rope_parameters=[1]), "rope_parameters must be an object, got [1]"),
    "truncate by default": (dict(rope_parameters=ROPE), "truncate must be false for YaRN"),
    "no factor": (dict(rope_parameters=dict(rope_type="yarn", truncate=False)), "is no config of gpt-oss (KeyError: 'factor')"),
    "attention factor": (dict(rope_parameters=ROPE | dict(truncate=False, attention_factor=1.0)), "attention_factor must be left out"),
    "part rotated": (dict(rope_parameters=ROPE | dict(truncate=False, partial_rotary_factor=0.5)), "partial_rotary_factor must be left out"),
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
ORIGINAL_ONLY = ("tie_embeddings", "attention_bias", "layer_types")


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_that_gpt_oss_lacks_is_refused_by_name(tmp_path, capsys, switch):
    config = asdict(ModelConfig(**SHAPE | {switch: SWITCHES[switch]}))
    torch.save(state_of() | {"config": config, "model": {}}, tmp_path / "checkpoint_0.pt")
    for layout in ["original"] if switch in ORIGINAL_ONLY else ["hf", "original"]:
        told = refused(capsys, main, "export", "--checkpoint", tmp_path / "checkpoint_0.pt", "--format", layout,
                       "--output_dir", tmp_path / "out")  # fmt: skip
        assert f"error: {switch} must be " in told and f"in the {layout} format of gpt-oss" in told
        assert repr(SWITCHES[switch]) in told and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "model, told",
    [("gpt2", "architecture.gpt2_hugging_face export"), ("gptoss_context", "hold no gptoss_context model")],
)
def test_other_models_are_refused_by_name(tmp_path, capsys, model, told):
    torch.save(state_of() | {"model_name": model}, tmp_path / "checkpoint_0.pt")
    assert told in refused(capsys, main, "export", "--checkpoint", tmp_path / "checkpoint_0.pt", "--format", "hf",
                           "--output_dir", tmp_path / "out")  # fmt: skip


def test_a_selection_bias_needs_a_flag_which_prints_the_change(tmp_path, capsys):
    state = state_of()
    state["model"]["block.1.mlp.selection_bias"][3] = 5.0
    torch.save(state, tmp_path / "checkpoint_0.pt")
    argv = ["export", "--checkpoint", tmp_path, "--format", "hf", "--output_dir", tmp_path / "out"]
    capsys.readouterr()
    assert main(list(map(str, argv))) == 2
    told = capsys.readouterr().err.splitlines()[-1]  # the first line names the checkpoint
    assert "was trained with --balance bias" in told and "add --drop_selection_bias" in told
    assert not (tmp_path / "out").exists()
    told = re.search(r"selection bias left out: ([+-]\d.\d{4}) bits per byte \((\S+) with it, (\S+) without\)",
                     convert(capsys, *argv, "--drop_selection_bias"))  # fmt: skip
    change, before, after = map(float, told.groups())
    assert change == pytest.approx(after - before, abs=2e-4) and change != 0
    assert "selection bias left out" in (tmp_path / "out/README.md").read_text()
    same({**weights.read_folder(tmp_path / "out")["model"]}, state_of()["model"])


# ------------------------------------------------------------------------------------------- bad folders
def change_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))


def change_tensors(folder, changes=(), metadata=None):
    """changes: {name: tensor or None to remove it}. Without checksums, as a foreign program writes."""
    tensors = files_of(folder) | dict(changes)
    save_file(
        {n: t.contiguous() for n, t in tensors.items() if t is not None},
        folder / "model.safetensors",
        metadata,
    )


def change_bytes(folder, change):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data) or data)


def flip(at):
    def change(data):
        data[at] ^= 4

    return lambda folder: change_bytes(folder, change)


def sharded(folder, index=None):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    if index is not None:
        (folder / export.INDEX).write_text(json.dumps({"weight_map": index}))


QKV, NORM, STACK = "block.1.attn.qkv.weight", "block.2.mlp.norm.scale", "block.0.mlp.mlp1_weight"
BLOCKS = STACK + ".blocks"
WRONG = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json; use a complete folder"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json does not contain a JSON object; use"),
    "another model": (lambda f: change_config(f, model_type="llama"), "model_type .*got 'llama'"),
    "other sizes": (lambda f: change_config(f, intermediate_size=128),
                    r"must hold .* in the shape \[7, 256.*got .* in \[7, 192"),
    "more layers": (lambda f: change_config(f, num_hidden_layers=4), r"lacks \d+ tensor.s. of its model"),
    "fewer layers": (lambda f: change_config(f, num_hidden_layers=2), r"holds \d+ tensor.s. that its model lacks"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no folder of gpt-oss|without a checkpoint"),
    "missing shard": (sharded, "has 1 of the 2 files of its weights; get the others"),
    "index to nowhere": (lambda f: sharded(f, {QKV: "model-00002-of-00002.safetensors"}),
                         "has no model-00002-of-00002.safetensors, which its .*names; get this file"),
    "index to outside": (lambda f: sharded(f, {QKV: "../model.safetensors"}), "has no ../model.safetensors, which"),
    "index is a list": (lambda f: sharded(f, [1]), "cannot be read as an index of weights"),
    "cut off": (lambda f: change_bytes(f, lambda data: data[:-9]), "cannot be read as a safetensors file"),
    "cut in the header": (lambda f: change_bytes(f, lambda data: data[:99]), "cannot be read as a safetensors file"),
    "empty": (lambda f: change_bytes(f, lambda data: b"\0"), "cannot be read as a safetensors file"),
    "flipped length": (flip(2), "cannot be read as a safetensors file"),
    "flipped data": (flip(-1), r"its tensor \S+ was changed after it was written"),
    "pickle": (lambda f: change_bytes(f, lambda data: pickle.dumps(print)), "cannot be read as a safetensors file"),
    "only a pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "no folder of gpt-oss|without a checkpoint"),
    "checksums of nothing": (lambda f: change_tensors(f, metadata={"crc32": "[]"}), "cannot be read as a safetensors"),
    "missing tensor": (lambda f: change_tensors(f, {NORM: None}), rf"lacks 1 tensor.s. of its model \({NORM}\); use"),
    "surplus tensor": (lambda f: change_tensors(f, {"rotary": torch.zeros(2)}), r"holds 1 .* lacks \(rotary\); use"),
    "turned tensor": (lambda f: change_tensors(f, {QKV: torch.zeros(64, 252)}),
                      rf"{QKV} of .*shape \[252, 64\], got F32 in \[64, 252\]; use"),
    "integers": (lambda f: change_tensors(f, {QKV: torch.zeros(252, 64, dtype=torch.int32)}), "got I32 in"),
    "float64": (lambda f: change_tensors(f, {QKV: torch.zeros(252, 64).double()}), "got F64 in"),
    "mixed types": (lambda f: change_tensors(f, {QKV: torch.zeros(252, 64).half()}), "of type .*float16 and"),
    "no tokenizer": (lambda f: (f / "tiktoken.json").unlink(), "260 ids and no tiktoken.json, so it needs gpt-oss's"),
    "bad tokenizer": (lambda f: (f / "tiktoken.json").write_text("3"), "does not contain a JSON object"),
    "fewer ids": (lambda f: [change_config(f, vocab_size=259),
                             change_tensors(f, {n: torch.zeros(259, 64) for n in weights.VOCABULARY})],
                  "has 259 ids, but its tokenizer tiny has 260"),
}  # fmt: skip
PACKED_WRONG = {
    "codes as floats": (lambda f: change_tensors(f, {BLOCKS: torch.zeros(7, 192, 2, 16)}), r"bytes \(U8\)"),
    "no scales": (lambda f: change_tensors(f, {f"{STACK}.scales": None}), r"lacks 1 .*mlp1_weight.scales"),
    "no blocks": (lambda f: change_tensors(f, {BLOCKS: None}), "lacks 1 .*mlp1_weight"),
    "size no multiple": (lambda f: change_config(f, hidden_size=72),
                         "MXFP4, which stores blocks of 32 values, so hidden_size .*, got 72; use"),
    "both kinds": (lambda f: change_tensors(f, {STACK: torch.zeros(7, 192, 64)}), r"holds 1 tensor.*mlp1_weight\)"),
}  # fmt: skip
SPOILED = [("original", *case) for case in WRONG.values()] + [
    ("original-mxfp4", *c) for c in PACKED_WRONG.values()
]


@pytest.mark.parametrize("kind, spoil, told", SPOILED, ids=[*WRONG, *PACKED_WRONG])
def test_an_unusable_folder_is_refused_in_one_line(tmp_path, folders, capsys, kind, spoil, told):
    given = tmp_path / "given"
    shutil.copytree(folders[kind], given)
    spoil(given)
    commands = {
        main: ["import", "--folder", given, "--output_dir", tmp_path / "out"],
        sample.main: ["--checkpoint", given, "--device", "cpu", "--max_tokens", 1],
    }
    for command, argv in commands.items():
        err = refused(capsys, command, *argv)
        assert re.search(told, err) and "given" in err and "; " in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_a_file_with_a_random_bit_flipped_or_cut_off_is_refused_or_has_the_same_values(tmp_path, folders):
    draw, wanted = random.Random(0), {**weights.read_folder(folders["original-mxfp4"])["model"]}
    given, refusals = tmp_path / "given", 0
    shutil.copytree(folders["original-mxfp4"], given)
    data = (given / "model.safetensors").read_bytes()
    header = int.from_bytes(data[:8], "little")
    for number in range(60):
        spoiled = bytearray(data)
        at = draw.randrange(header if number % 2 else len(data))
        spoiled[at] ^= 1 << draw.randrange(8)
        spoiled = spoiled[:at] if number % 5 == 0 else spoiled
        (given / "model.safetensors").write_bytes(spoiled)
        try:
            same({**weights.read_folder(given)["model"]}, wanted)
        except ValueError as error:
            refusals += 1
            assert "given" in str(error)
    assert refusals > 50


def test_folders_in_use_and_folders_of_no_layout_are_refused(tmp_path, capsys, checkpoint, folders):
    for name in ("mine", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    for target in (tmp_path / "mine", tmp_path / "mine/notes.txt"):
        told = refused(
            capsys, main, "export", "--checkpoint", checkpoint, "--format", "hf", "--output_dir", target
        )
        assert f"{target} must be a new or an empty folder; choose" in told
        told = refused(capsys, main, "import", "--folder", folders["hf"], "--output_dir", target)
        assert f"{target} must be a new or an empty folder; choose" in told
    told = refused(
        capsys, main, "export", "--checkpoint", checkpoint, "--format", "hf", "--output_dir", tmp_path / "a/b"
    )
    assert "is in a folder that does not exist; create that first" in told
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    for given in (tmp_path / "mine", tmp_path / "none", checkpoint):
        for argv in (["import", "--folder", given, "--output_dir", tmp_path / "out"], ["verify", given]):
            assert "is no folder of gpt-oss, which has a config.json" in refused(capsys, main, *argv)
    told = refused(capsys, sample.main, "--checkpoint", checkpoint, "--weights", "mxfp4")
    assert "weights=mxfp4 needs a folder of gpt-oss" in told
    told = refused(
        capsys, sample.main, "--checkpoint", folders["hf"], "--weights", "mxfp4", "--device", "cpu"
    )
    assert "has no weights in MXFP4; load it without" in told
    convert(
        capsys, "export", "--checkpoint", checkpoint, "--format", "hf", "--output_dir", tmp_path / "empty"
    )
    told = refused(
        capsys,
        main,
        "export",
        "--checkpoint",
        checkpoint,
        "--format",
        "hf",
        "--output_dir",
        tmp_path / "empty",
    )
    assert "must be a new or an empty folder" in told


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
    argv = {
        "export": ["export", "--checkpoint", checkpoint, "--format", "hf", "--output_dir", tmp_path / "out"],
        "import": ["import", "--folder", folders["hf"], "--output_dir", tmp_path / "out"],
    }
    monkeypatch.setattr(export, "SHARD_BYTES", 100_000)
    for command in argv.values():
        with files_of_at_most(300_000):
            told = refused(capsys, main, *command)
        assert re.search("out.* cannot be written .File too large.; check its disk", told), told
        assert list(tmp_path.iterdir()) == []
    convert(capsys, *argv["export"])
    same({**weights.read_folder(tmp_path / "out")["model"]}, state_of()["model"])


# ------------------------------------------------------------------------------------------- the commands
RUN = "--device cpu --threads 1 --block_size 16 --batch_size 4 --eval_tokens 256 --no-use_tensorboard".split()


@pytest.mark.parametrize("kind", ["hf", "original", "hf-mxfp4", "original-mxfp4"])
def test_training_starts_from_a_folder_and_from_its_import_alike(tmp_path, corpus, capsys, folders, kind):
    convert(capsys, "import", "--folder", folders[kind], "--output_dir", tmp_path / "imported")
    saved = []
    for given in (folders[kind], tmp_path / "imported"):
        flags = ["--init_from", given, *RUN, *corpus, "--max_iters", 2, "--out_dir", f"out{len(saved)}"]
        assert run_here(tmp_path, *flags) == 0, capsys.readouterr().err
        saved.append(load(tmp_path / f"out{len(saved)}/checkpoint_2.pt"))
    same(saved[0]["model"], saved[1]["model"])
    assert saved[0]["tokenizer"]["name"] == "tiny" and saved[0]["config"]["hidden_size"] == 64
    start = {**weights.read_folder(folders[kind])["model"]}
    change = max((saved[0]["model"][n].float() - t.float()).abs().max().item() for n, t in start.items())
    assert 0 < change < 0.05  # two steps away from the folder's weights
    size = (tmp_path / "imported/checkpoint_0.pt").stat().st_size
    assert size < sum(t.nbytes for t in start.values()) * 1.05 + 50_000
    again = [
        "export",
        "--checkpoint",
        tmp_path / "out1",
        "--format",
        "hf",
        "--output_dir",
        tmp_path / "again",
    ]
    convert(capsys, *again)
    assert torch.equal(logits_of(registry.load_model(tmp_path / "again")), logits_of(model_of(saved[1])))


def test_sample_tells_the_same_text_from_every_form_of_the_weights(tmp_path, capsys, folders, checkpoint):
    flags = "--prompt Tom --device cpu --max_tokens 12 --temperature 0".split()
    told = {}
    for kind, given in {"checkpoint": checkpoint, **folders}.items():
        for extra in [[], ["--weights", "mxfp4"]][: 1 + ("mxfp4" in kind)]:
            assert sample.main(["--checkpoint", str(given), *flags, *extra]) == 0
            told[kind + "".join(extra[:1])] = capsys.readouterr().out
    assert len(told) == 7 and len(set(told.values())) == 2  # with and without MXFP4
    assert told["checkpoint"] == told["original"] and told["hf-mxfp4"] == told["original-mxfp4--weights"]


# ------------------------------------------------------------------------------------------------- memory
LOAD = """
import sys, threading, time
def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))
import torch
from architecture import registry
registry.load_model(sys.argv[2])  # a small folder: what every load needs
start, peak, loaded = anonymous(), 0, False
def watch():
    global peak
    while not loaded:
        peak = max(peak, anonymous())
        time.sleep(0.0005)
thread = threading.Thread(target=watch)
thread.start()
model = registry.load_model(sys.argv[1], weights=sys.argv[3] or None)
loaded = True
thread.join()
print(max(peak, anonymous()) - start)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout, pack", [("hf", False), ("original", False), ("hf", True), ("original", True)]
)
def test_a_load_takes_the_memory_of_the_model_and_one_layer(tmp_path, folders, layout, pack):
    sizes = dict(num_hidden_layers=8, num_experts=8, hidden_size=768, intermediate_size=512, vocab_size=4096)
    state = state_of(**sizes, used_vocab_size=None)
    total = sum(tensor.nbytes for tensor in state["model"].values())
    layer = sum(tensor.nbytes for name, tensor in state["model"].items() if name.startswith("block.0."))
    assert total > 300e6
    export.write_folder(state, tmp_path / "big", layout=layout, pack=pack)
    del state
    for kind in ["", "mxfp4"][: 1 + pack]:
        argv = [sys.executable, "-c", LOAD, tmp_path / "big", folders[layout + "-mxfp4" * pack], kind]
        done = subprocess.run(
            list(map(str, argv)), capture_output=True, text=True, cwd=Path(__file__).parent.parent
        )
        assert done.returncode == 0, done.stderr
        peak, wanted = int(done.stdout), total if not kind else total * 0.25
        print(
            f"{layout} {kind or 'unpacked'}: peak {peak / 1e6:.0f} MB, model {total / 1e6:.0f} MB, layer {layer / 1e6:.0f} MB"
        )
        assert peak < wanted + layer + 30e6
