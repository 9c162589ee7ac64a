"""Exports for llama.cpp (GGUF) and MLX: names, values, tokenizers, refusals; and what the two programs compute."""

import json
import random
import re
import sys
import urllib.request
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken
import torch
from test_generation import tiny_tokenizer
from test_open_gpt_oss import SHAPE as ODD_SHAPE
from test_open_gpt_oss import WHOLE, convert, files_of, files_of_at_most, refused, same, state_of
from toy_run import TINY, run_here

import sample
from architecture.gptoss import FULL, SLIDING, ModelConfig
from architecture.open_gpt_oss import (
    engines,
    export,
    gguf_file,
    mxfp4,
    names,
    targets,
    verify,
    verify_engines,
    weights,
)
from architecture.open_gpt_oss.__main__ import main
from architecture.tokenizer import PROBE_TEXT, encode_text, get_tokenizer, tokenizer_state
from data.train_tokenizer import PATTERN

MODEL = dict(swiglu_limit=7.0, num_hidden_layers=4, rope_scaling_factor=1.0)
YARN = dict(rope_scaling_factor=8.0)
# the limits of YaRN's ramp at the pairs 1 and 2
WHOLE_OURS = dict(rope_ntk_beta=WHOLE["beta_fast"], rope_ntk_alpha=WHOLE["beta_slow"])
NO_BIAS, TIED = dict(attention_bias=False), dict(tie_embeddings=True)
E, D, F, V, C, H, G = 7, 64, 96, 260, 12, 15, 3  # as in ODD_SHAPE, with the ids in use


def little_tokenizer(pattern: str = PATTERN) -> tiktoken.Encoding:
    """256 bytes, four merges and end-of-text: 261 ids, of which the last ordinary one is two digits."""
    tiny = tiny_tokenizer()
    return tiktoken.Encoding(
        "little", pat_str=pattern, mergeable_ranks=tiny._mergeable_ranks, special_tokens=tiny._special_tokens
    )


def state(**changes) -> dict:
    """A checkpoint's dictionary with random weights, whose sizes all differ and fit both programs."""
    encoding = changes.pop("tokenizer", None) or little_tokenizer()
    return state_of(**MODEL | changes) | {"tokenizer": tokenizer_state(encoding)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "checkpoint_0.pt"
    torch.save(state(), path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(format, pack=, dtype=, **changes of the model): an exported folder."""
    pytest.importorskip("gguf")
    at, found = tmp_path_factory.mktemp("made"), {}

    def make(layout: str, pack: bool = False, dtype: torch.dtype | None = None, **changes):
        key = repr((layout, pack, dtype, changes))
        if key not in found:
            found[key] = at / str(len(found))
            export.write_folder(state(**changes), found[key], layout=layout, pack=pack, dtype=dtype)
        return found[key]

    return make


def reader_of(folder):
    import gguf

    return gguf.GGUFReader(folder / gguf_file.FILE)


# -------------------------------------------------------------------------------------------- names, values
@pytest.mark.parametrize("target", targets.PROGRAMS)
def test_every_tensor_comes_back_from_a_target_to_the_bit(target):
    config, tensors = ModelConfig(**ODD_SHAPE | MODEL), state()["model"]
    for name, tensor in tensors.items():
        if not names.SELECTION_BIAS.fullmatch(name):
            parts = names.to_theirs(name, tensor, config, target)
            assert tuple(parts) == names.their_names(name, target)
            assert torch.equal(names.from_theirs(name, list(parts.values()), target), tensor), name


def test_a_gguf_has_the_tensors_that_llama_cpp_reads(made):
    """The shapes are written out from llama.cpp's openai-moe.cpp, the values from the layout of transformers."""
    block = {
        "attn_norm.weight": (D,), "post_attention_norm.weight": (D,), "attn_sinks.weight": (H,),
        "attn_q.weight": (H * C, D), "attn_q.bias": (H * C,), "attn_k.weight": (G * C, D), "attn_k.bias": (G * C,),
        "attn_v.weight": (G * C, D), "attn_v.bias": (G * C,), "attn_output.weight": (D, H * C),
        "attn_output.bias": (D,), "ffn_gate_inp.weight": (E, D), "ffn_gate_inp.bias": (E,),
        "ffn_gate_exps.weight": (E, F, D), "ffn_gate_exps.bias": (E, F), "ffn_up_exps.weight": (E, F, D),
        "ffn_up_exps.bias": (E, F), "ffn_down_exps.weight": (E, D, F), "ffn_down_exps.bias": (E, D),
    }  # fmt: skip
    wanted = {"token_embd.weight": (V, D), "output.weight": (V, D), "output_norm.weight": (D,)}
    wanted |= {f"blk.{n}.{name}": shape for n in range(4) for name, shape in block.items()}
    found = {tensor.name: tensor.data for tensor in reader_of(made("gguf")).tensors}
    assert {name: data.shape for name, data in found.items()} == wanted
    assert {data.dtype for data in found.values()} == {np.dtype("float32")}
    theirs = {name: tensor.numpy() for name, tensor in files_of(made("hf")).items()}
    for layer in range(4):
        here, there = f"blk.{layer}.", f"model.layers.{layer}."
        both = theirs[there + "mlp.experts.gate_up_proj"].transpose(0, 2, 1)
        np.testing.assert_array_equal(found[here + "ffn_gate_exps.weight"], both[:, 0::2])
        np.testing.assert_array_equal(found[here + "ffn_up_exps.weight"], both[:, 1::2])
        bias = theirs[there + "mlp.experts.gate_up_proj_bias"]
        np.testing.assert_array_equal(found[here + "ffn_gate_exps.bias"], bias[:, 0::2])
        np.testing.assert_array_equal(found[here + "ffn_up_exps.bias"], bias[:, 1::2])
        down = theirs[there + "mlp.experts.down_proj"].transpose(0, 2, 1)
        np.testing.assert_array_equal(found[here + "ffn_down_exps.weight"], down)
        np.testing.assert_array_equal(
            found[here + "attn_k.weight"], theirs[there + "self_attn.k_proj.weight"]
        )
        np.testing.assert_array_equal(found[here + "attn_sinks.weight"], theirs[there + "self_attn.sinks"])


def test_a_gguf_has_the_settings_that_llama_cpp_reads(made):
    found = {name: field.contents() for name, field in reader_of(made("gguf", **YARN)).fields.items()}
    wanted = {
        "block_count": 4, "context_length": 512, "vocab_size": V, "embedding_length": D, "feed_forward_length": F,
        "expert_feed_forward_length": F, "expert_count": E, "expert_used_count": 2, "attention.head_count": H,
        "attention.head_count_kv": G, "attention.key_length": C, "attention.value_length": C,
        "attention.sliding_window": 6, "rope.dimension_count": C, "rope.freq_base": 500.0,
        "rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 64,
        "rope.scaling.yarn_beta_fast": 4.0, "rope.scaling.yarn_beta_slow": 1.0,
    }  # fmt: skip
    assert found["general.architecture"] == "gpt-oss"
    assert abs(found.pop("gpt-oss.attention.layer_norm_rms_epsilon") - 1e-5) < 1e-12
    ours = {n.removeprefix("gpt-oss."): value for n, value in found.items() if n.startswith("gpt-oss.")}
    assert ours == wanted
    plain = {name for name in reader_of(made("gguf")).fields if "rope.scaling" in name}
    assert plain == set()


@pytest.mark.parametrize("changes", [YARN, TIED, NO_BIAS, dict(used_vocab_size=None)], ids=str)
@pytest.mark.parametrize("target", targets.PROGRAMS)
def test_a_model_comes_back_from_its_file_to_the_bit(made, target, changes):
    if "used_vocab_size" in changes:
        changes = dict(used_vocab_size=None, vocab_size=320)
    folder, given = made(target, **changes), state(**changes)
    if target == "gguf":
        config, found, kinds = gguf_file.read(folder / gguf_file.FILE)
        assert kinds == {"F32"}
    else:
        found = weights.FolderWeights(folder)
        config = found.config
        assert found.layout == "mlx"
        assert {name for name in files_of(folder) if "gate_up" in name} == set()
        written = json.loads((folder / "config.json").read_text())
        assert (written["rope_scaling"] or {}).get("factor") == (8.0 if changes is YARN else None)
        assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 500.0
    wanted = dict(given["model"])
    for name, tensor in found.items():  # a model without biases has those of zero
        wanted.setdefault(name, torch.zeros_like(tensor))
    same(found, wanted)
    expected = ModelConfig(**given["config"])
    changed = dict(tie_embeddings=False, attention_bias=True, layer_types=config.layer_types)
    if changes is not YARN:
        changed |= dict(rope_ntk_alpha=config.rope_ntk_alpha, rope_ntk_beta=config.rope_ntk_beta)
    assert config == replace(expected, **changed)


@pytest.mark.parametrize("dtype, kind", [("float16", "F16"), ("bfloat16", "BF16")])
def test_sixteen_bits_are_for_matrices_only(made, dtype, kind):
    folder, given = made("gguf", dtype=getattr(torch, dtype)), state()["model"]
    _, found, _ = gguf_file.read(folder / gguf_file.FILE)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader_of(folder).tensors}
    for name, tensor in found.items():
        if names.SELECTION_BIAS.fullmatch(name):
            continue
        narrow = name.endswith(("embedding.weight", "qkv.weight", "out.weight", "mlp1_weight", "mlp2_weight"))
        assert {kinds[part] for part in names.their_names(name, "gguf")} == {kind if narrow else "F32"}, name
        wanted = given[name].to(getattr(torch, dtype)).float() if narrow else given[name]
        assert torch.equal(tensor, wanted), name


def test_packed_experts_have_the_codes_and_scales_of_the_hugging_face_layout(made):
    packed = files_of(made("hf", pack=True))
    found = {tensor.name: tensor for tensor in reader_of(made("gguf", pack=True)).tensors}
    import gguf

    for layer in range(4):
        for theirs, ours in (
            ("gate_up_proj", ("ffn_gate_exps", "ffn_up_exps")),
            ("down_proj", ("ffn_down_exps",)),
        ):
            at = f"model.layers.{layer}.mlp.experts.{theirs}"
            blocks, scales = packed[at + "_blocks"], packed[at + "_scales"]
            values = mxfp4.unpack(blocks, scales, torch.float32)
            for part, name in enumerate(ours):
                tensor = found[f"blk.{layer}.{name}.weight"]
                assert tensor.tensor_type.name == "MXFP4"
                mine = values[:, part::2] if len(ours) == 2 else values
                read = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
                assert np.array_equal(read, mine.numpy()) and read.shape == mine.shape
                # and byte for byte, in plain Python: scale, then values 0..15 low and 16..31 high
                row, by_hand = tensor.data.reshape(E, -1, tensor.data.shape[-1])[3, 5], []
                at_row = 5 * len(ours) + part
                for group, scale in zip(blocks[3, at_row].tolist(), scales[3, at_row].tolist()):
                    codes = [code for byte in group for code in (byte & 15, byte >> 4)]
                    by_hand += [scale, *(low | high << 4 for low, high in zip(codes[:16], codes[16:]))]
                assert row.tolist() == by_hand
    assert json.loads((made("gguf", pack=True) / "mxfp4_errors.json").read_text()).keys() == {
        f"block.{layer}.mlp.mlp{n}_weight" for layer in range(4) for n in (1, 2)
    }


# ---------------------------------------------------------------------------------------------- tokenizers
def test_the_pattern_of_tokenizers_trained_here_has_a_name_in_llama_cpp():
    assert gguf_file.OURS == PATTERN
    for name in ("stories4k", "bundled1536"):
        assert gguf_file.pre_tokenizer(get_tokenizer(name))[0] == "llama-bpe"
    digits = dict(get_tokenizer("bundled1536")._mergeable_ranks) | {b"12": 1535}
    with_numbers = tiktoken.Encoding(
        "n", pat_str=PATTERN, mergeable_ranks=digits, special_tokens={"<|endoftext|>": 1536}
    )
    told = gguf_file.pre_tokenizer(with_numbers)[1]
    assert "llama.cpp" in told and "numbers of three and more digits get other ids" in told
    assert gguf_file.pre_tokenizer(little_tokenizer())[1] is None  # no token has two digits


def test_a_gguf_holds_the_tokenizer(made):
    found = {name: field.contents() for name, field in reader_of(made("gguf")).fields.items()}
    key = "tokenizer.ggml."
    tokens, types = found[key + "tokens"], found[key + "token_type"]
    assert len(tokens) == len(types) == len(set(tokens)) == V
    assert tokens[256:260] == ["th", "he", "the", "<|endoftext|>"] and tokens[ord(" ")] == "\u0120"
    assert types == [1] * 259 + [3] and found[key + "merges"] == ["t h", "h e", "th e"]
    assert (found[key + "model"], found[key + "pre"]) == ("gpt2", "llama-bpe")
    assert [found[f"{key}{kind}_token_id"] for kind in ("bos", "eos")] == [259, 259]
    assert found[key + "add_bos_token"] is True
    more = reader_of(made("gguf", used_vocab_size=None)).fields
    types = more[key + "token_type"].contents()
    assert len(types) == 320 and set(types[260:]) == {5}  # ids without a token


# ------------------------------------------------------------------------------------- refusals, warnings
CANNOT = [
    ("gguf", dict(swiglu_limit=1.5), "swiglu_limit must be 7.0 in --format gguf, because llama.cpp"),
    ("mlx", dict(swiglu_limit=1.5), "swiglu_limit must be 7.0 in --format mlx, because mlx"),
    (
        "gguf",
        dict(layer_types=(FULL, SLIDING) * 2),
        "layer_types must be alternating, sliding first, in --format gguf",
    ),
    ("mlx", dict(layer_types=(FULL,) * 4), "layer_types must be of both kinds in --format mlx"),
    ("mlx", dict(num_hidden_layers=1), "layer_types must be of both kinds"),
    ("gguf", dict(nope_stride=2), "nope_stride must be none in --format gguf"),
    (
        "gguf",
        dict(tokenizer=tiny_tokenizer()),
        "llama.cpp has no pre-tokenizer with the pattern of the tokenizer",
    ),
]


@pytest.mark.parametrize("target, changes, words", CANNOT, ids=[f"{c[0]} {list(c[1])[0]}" for c in CANNOT])
def test_what_a_program_cannot_express_is_refused_in_one_sentence(tmp_path, capsys, target, changes, words):
    torch.save(state(**changes), tmp_path / "checkpoint_0.pt")
    flags = "--checkpoint", tmp_path / "checkpoint_0.pt", "--format", target, "--output_dir", tmp_path / "out"
    assert words in refused(capsys, main, "export", *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_0.pt"]


def test_flags_of_other_formats_are_refused(tmp_path, capsys, checkpoint):
    flags = ["export", "--checkpoint", checkpoint, "--output_dir", tmp_path / "out", "--format"]
    told = refused(capsys, main, *flags, "hf", "--dtype", "float16")
    assert "--dtype float16 is for --format gguf and mlx" in told
    assert "--yarn is for --format hf" in refused(capsys, main, *flags, "gguf", "--yarn")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.gguf").write_text("another model")
    assert "must be a new or an empty folder" in refused(capsys, main, *flags, "gguf")
    assert (tmp_path / "out/model.gguf").read_text() == "another model"


@pytest.mark.parametrize("target", targets.PROGRAMS)
def test_a_model_in_float64_is_written_in_float32(tmp_path, target):
    pytest.importorskip("gguf")
    given = state()
    wide = given | {"model": {name: tensor.double() for name, tensor in given["model"].items()}}
    export.write_folder(wide, tmp_path / "out", layout=target)
    found = (
        gguf_file.read(tmp_path / "out/model.gguf")[1]
        if target == "gguf"
        else weights.FolderWeights(tmp_path / "out")
    )
    same(dict(found), dict(given["model"]))


def test_sizes_that_mxfp4_cannot_hold_are_refused(tmp_path, capsys):
    pytest.importorskip("gguf")
    torch.save(state(intermediate_size=40), tmp_path / "checkpoint_0.pt")
    flags = "--checkpoint", tmp_path / "checkpoint_0.pt", "--format", "gguf", "--mxfp4"
    told = refused(capsys, main, "export", *flags, "--output_dir", tmp_path / "out")
    assert "must be multiples of 32, got 40" in told
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_0.pt"]


@pytest.mark.parametrize("target", targets.PROGRAMS)
def test_yarn_is_written_with_one_warning_that_names_the_program(tmp_path, capsys, target):
    pytest.importorskip("gguf")
    torch.save(state(**YARN), tmp_path / "checkpoint_0.pt")
    flags = "--checkpoint", tmp_path / "checkpoint_0.pt", "--format", target, "--output_dir", tmp_path / "out"
    told = convert(capsys, "export", *flags)
    warning = [line for line in told.splitlines() if line.startswith("warning: ")]
    assert (
        len(warning) == 1
        and f"{targets.PROGRAMS[target]} puts the limits of YaRN at 0 and 3, not at 0.90 and 2.24" in told
    )
    assert told.endswith(f"verify {tmp_path / 'out'} --with {targets.PROGRAMS[target]}\n")
    card = (tmp_path / "out/README.md").read_text()
    assert warning[0].removeprefix("warning: ") in card
    assert ("llama-server" in card, "mlx_lm" in card) == (target == "gguf", target == "mlx")
    assert ("library_name: mlx" in card) == (target == "mlx") and "library_name: transformers" not in card


def test_the_limits_of_yarn_that_the_programs_use():
    for changes, llama, mlx in (
        ({}, (0, 3), (0, 3)),
        (WHOLE_OURS, (0, 3), None),
        (
            dict(head_dim=64, rope_ntk_beta=32.0, initial_context_length=256, rope_theta=150000.0),
            (0, 10),
            (0, 10),
        ),
        (dict(rope_scaling_factor=1.0), None, None),
    ):
        config = ModelConfig(**ODD_SHAPE | MODEL | YARN | changes)
        assert targets.rounded_yarn(config, "gguf") == llama, changes
        assert targets.rounded_yarn(config, "mlx") == mlx
        assert (targets.yarn_warning(config, "gguf") is None) == (llama is None)
    told = targets.yarn_warning(ModelConfig(**ODD_SHAPE | MODEL | YARN), "gguf")
    assert "takes the betas 32 and 1" in told


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, capsys, checkpoint):
    pytest.importorskip("gguf")
    for target in targets.PROGRAMS:
        flags = "--checkpoint", checkpoint, "--format", target, "--output_dir", tmp_path / "out"
        for size in (1_000, 300_000):
            with files_of_at_most(size):
                told = refused(capsys, main, "export", *flags)
            assert re.search("out.* cannot be written .File too large.; check its disk", told), told
            assert list(tmp_path.iterdir()) == []


def test_without_the_package_the_message_says_how_to_install_it(tmp_path, capsys, monkeypatch, checkpoint):
    gguf_file.package.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)
    flags = "--checkpoint", checkpoint, "--format", "gguf", "--output_dir", tmp_path / "out"
    told = refused(capsys, main, "export", *flags)
    assert "GGUF files need the package gguf; pip install -r requirements-export.txt" in told
    assert list(tmp_path.iterdir()) == []


def test_verify_refuses_what_it_cannot_compare_in_one_line(tmp_path, capsys, monkeypatch, made):
    gguf, mlx, hf = (made(kind) for kind in ("gguf", "mlx", "hf"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)  # no program is reached
    file = gguf / gguf_file.FILE
    for words, *argv in (
        (
            "--with takes transformers, llama.cpp, mlx, separated by commas, got 'ollama'",
            hf,
            "--with",
            "ollama",
        ),
        (
            "is in the format of llama.cpp, which mlx does not open; use --with llama.cpp",
            file,
            "--with",
            "mlx",
        ),
        ("is in the format of mlx, which transformers does not open", mlx, "--with", "transformers"),
        ("is no folder of gpt-oss", tmp_path, "--with", "mlx"),
        ("--tokens must be from 2 to the context limit of 64, got 65", file, "--tokens", 65),
        ("--tokens must be from 2 to the context limit of 64, got 1", hf, "--with", "mlx", "--tokens", 1),
        ("none.gguf does not exist; name a folder of gpt-oss", tmp_path / "none.gguf"),
        ("which mlx does not open", file, "--with", "llama.cpp, mlx"),
    ):
        assert words in refused(capsys, main, "verify", *argv)
    monkeypatch.setattr(verify, "available_memory", lambda device: 1e5)
    for path in (file, mlx):
        assert "GB are free; use a machine with more memory" in refused(capsys, main, "verify", path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    told = refused(capsys, main, "verify", hf, "--with", "llama.cpp")
    assert "verify --with llama.cpp needs xllamacpp, which is not installed; pip install -r" in told


def test_an_export_for_mlx_or_llama_cpp_is_no_checkpoint(capsys, made):
    only = "which only llama.cpp reads; use the checkpoint from which it was made"
    for path, words in (
        (made("mlx"), "was exported for MLX, which only MLX reads; use the checkpoint"),
        (made("gguf"), f"holds a GGUF file, {only}"),
        (made("gguf") / gguf_file.FILE, f"is a GGUF file, {only}"),
    ):
        assert words in refused(capsys, sample.main, "--checkpoint", path, "--device", "cpu")


@pytest.mark.parametrize("wrong, code", [(0, 0), (2, 0), (4, 1), (24, 1)])
def test_where_llama_cpp_rounds_one_position_in_ten_may_differ_more(capsys, monkeypatch, wrong, code):
    """A router that wants two experts almost equally chooses the other one after rounding."""
    apart = torch.full((24,), 0.05)
    apart[:wrong] = 0.4
    config = SimpleNamespace(num_ids=8, rope_scaling_factor=1, sliding_window=6)
    monkeypatch.setattr(verify_engines, "log_probabilities", lambda *arguments: {})
    monkeypatch.setattr(verify_engines, "differences", lambda *arguments: (apart, 9.0))
    given = verify_engines.Given("model.gguf", "gguf", config, {}, rounds=True)
    ours, ids = SimpleNamespace(config=config, rope=SimpleNamespace()), torch.zeros(2, 12)
    judged = verify_engines.with_engine("llama.cpp", given, ours, ids, 1e-5)
    assert judged == bool(code) and f"kept in {24 - wrong}" in capsys.readouterr().out


def test_a_damaged_gguf_is_refused_in_one_line(tmp_path, capsys, monkeypatch, made):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)  # the engine is not reached
    data, path = (made("gguf") / gguf_file.FILE).read_bytes(), tmp_path / "model.gguf"
    draw = random.Random(0)
    spoiled = [b"", b"GGUF", b"PK\3\4" + data[4:], data[:1000], data[: len(data) // 2]]
    spoiled += [data.replace(b"gpt-oss", b"gpt-xyz"), data.replace(b"ffn_up_exps", b"ffn_xx_exps")]
    for _ in range(20):  # bytes of the header
        at = draw.randrange(400)
        spoiled.append(data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :])
    passed = 0
    for content in spoiled:
        path.write_bytes(content)
        try:
            gguf_file.read(path)
            passed += 1  # a flipped bit may make another valid file
        except (ValueError, MemoryError) as error:
            assert str(error).startswith(str(path)) or str(path) in str(error)
    assert passed <= 12
    path.write_bytes(spoiled[5])
    told = "model.gguf cannot be read as a GGUF of gpt-oss (its architecture is gpt-xyz); export it again"
    assert told in refused(capsys, main, "verify", path)


# ------------------------------------------------------------------------------------ the programs themselves
def verified(capsys, *argv) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["verify", *map(str, argv)])
    return code, capsys.readouterr().out


KINDS = {
    "plain RoPE": {},
    "tied head": TIED,
    "no attention bias": NO_BIAS,
    "every id in use": dict(used_vocab_size=None),
    "yarn": YARN,
    "bfloat16": dict(dtype=torch.bfloat16),
    "mxfp4": dict(pack=True),
    "yarn, whole limits": YARN | WHOLE_OURS,
    "mxfp4, yarn": dict(pack=True, **YARN),
}


@pytest.mark.peer
@pytest.mark.parametrize("target", targets.PROGRAMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_programs_compute_what_this_project_computes(made, capsys, target, kind):
    options = dict(KINDS[kind])
    folder = made(target, **options)
    code, out = verified(capsys, folder, "--with", targets.PROGRAMS[target])
    assert code == 0, out
    assert f"{targets.PROGRAMS[target]}: 2 rows of 19 tokens, 3.2 windows" in out
    apart, positions, allowed = re.search(
        r"difference (\S+) nats over (\d+) positions, allowed (\S+)", out
    ).groups()
    rounds = target == "gguf" and (options.get("pack") or "dtype" in options)
    assert float(apart) < float(allowed) and (float(allowed) == 0.2) == bool(rounds) and int(positions) >= 8
    true = re.search(r"true limits of YaRN: largest difference (\S+) nats, not judged", out)
    exact = {"yarn": (), "mxfp4, yarn": (), "yarn, whole limits": ("mlx",)}.get(kind, targets.PROGRAMS)
    assert (true is None) == (target in exact)
    if true is not None:
        assert float(true[1]) > 0.05  # a real difference: see benchmarks/engines.py


@pytest.mark.peer
def test_verify_compares_a_folder_of_transformers_with_all_three(made, capsys):
    code, out = verified(capsys, made("hf"), "--with", "transformers,llama.cpp,mlx")
    assert code == 0 and out.count("3.2 windows") == 3, out
    assert verified(capsys, made("hf"), "--with", "mlx", "--tolerance", "1e-12")[0] == 1


@pytest.mark.peer
@pytest.mark.parametrize("target", targets.PROGRAMS)
def test_verify_finds_a_swapped_gate(made, capsys, monkeypatch, target):
    right = names.NAMES[target]["mlp.mlp1_bias"]
    monkeypatch.setitem(names.NAMES[target], "mlp.mlp1_bias", right[::-1])
    code, out = verified(capsys, made("hf"), "--with", targets.PROGRAMS[target])
    assert code == 1 and "too large" in out


TRAINED = (
    "--tokenizer bundled1536 --hidden_size 64 --intermediate_size 96 --head_dim 12 --num_hidden_layers 4"
)
TRAINED += (
    " --initial_context_length 128 --block_size 32 --max_iters 60 --save_every 60 --eval_every 60 --lr 0.01"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus):
    """A run of 60 steps in run/, exported to hf/, gguf/ and mlx/."""
    folder = tmp_path_factory.mktemp("trained")
    assert run_here(folder, *TINY, *corpus, *TRAINED.split(), "--out_dir", "run") == 0
    for layout in ("hf", "gguf", "mlx"):
        flags = "--format", layout, "--output_dir", str(folder / layout)
        assert main(["export", "--checkpoint", str(folder / "run"), *flags]) == 0
    return folder


@pytest.mark.peer
@pytest.mark.parametrize("prompt", ["", "Once upon a time", "The dog's 2 bones"])
def test_a_trained_model_tells_the_same_greedy_text_everywhere(trained, capsys, prompt):
    from transformers import AutoModelForCausalLM

    tokens, encoding = 60, get_tokenizer("bundled1536")
    flags = ["--prompt", prompt, "--temperature", "0", "--max_tokens", str(tokens), "--device", "cpu"]
    capsys.readouterr()
    assert sample.main(["--checkpoint", str(trained / "run"), *flags]) == 0
    told = capsys.readouterr().out.removesuffix("\n")
    ids = [encoding.eot_token, *encode_text(encoding, prompt).tolist()]
    llama = engines.LlamaCpp(trained / "gguf" / gguf_file.FILE, context=128)
    assert prompt + llama.greedy(ids, tokens) == told
    mlx = engines.Mlx(trained / "mlx").greedy(ids, tokens, encoding.eot_token)
    assert prompt + encoding.decode(mlx) == told
    peer = AutoModelForCausalLM.from_pretrained(trained / "hf", local_files_only=True)
    new = peer.generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False)[0, len(ids) :].tolist()
    new = new[: new.index(encoding.eot_token)] if encoding.eot_token in new else new
    assert prompt + encoding.decode(new) == told and len(new) > 10


@pytest.mark.peer
def test_what_the_model_cards_tell_to_do_gives_the_text_of_sample_py(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained / "mlx")
    (code,) = re.findall(r"```python\n(.*?)```", (trained / "mlx/README.md").read_text(), re.S)
    capsys.readouterr()
    exec(code, {})
    by_mlx = capsys.readouterr().out.removesuffix("\n")
    (body,) = re.findall(r"curl http\S+/v1/completions -d '(.*?)'", (trained / "gguf/README.md").read_text())
    request = json.loads(body) | {"temperature": 0}
    server = engines.LlamaCpp(trained / "gguf" / gguf_file.FILE, context=128).server
    by_llama_cpp = asked(server, "/v1/completions", request)["choices"][0]["text"]
    (code,) = re.findall(r"```python\n(.*?)```", (trained / "gguf/README.md").read_text(), re.S)
    monkeypatch.chdir(trained / "gguf")
    capsys.readouterr()
    exec(code.replace('"temperature": 0.8', '"temperature": 0'), {})
    by_xllamacpp = capsys.readouterr().out.removesuffix("\n")
    flags = ["--temperature", "0", "--max_tokens", str(request["max_tokens"]), "--device", "cpu"]
    sample.main(["--checkpoint", str(trained / "run"), "--prompt", request["prompt"], *flags])
    told = capsys.readouterr().out.removesuffix("\n").removeprefix(request["prompt"])
    assert by_llama_cpp == by_xllamacpp == told and by_mlx == told and len(told) > 40


def asked(server, path: str, request: dict) -> dict:
    """The answer of llama.cpp's server over HTTP."""
    data, header = json.dumps(request).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(server.listening_address + path, data, header)
    ) as answer:
        return json.loads(answer.read())


def tokenized(server, text: str) -> list[int]:
    return asked(server, "/tokenize", {"content": text, "add_special": False, "parse_special": False})[
        "tokens"
    ]


@pytest.mark.peer
@pytest.mark.parametrize("name", ["stories4k", "bundled1536", "gpt2 pattern"])
def test_llama_cpp_reads_texts_as_tiktoken_does(made, name):
    if name == "gpt2 pattern":
        encoding = get_tokenizer("stories4k")
        encoding = tiktoken.Encoding(
            "g", pat_str=gguf_file.GPT2[2], mergeable_ranks=encoding._mergeable_ranks,
            special_tokens=encoding._special_tokens,
        )  # fmt: skip
    else:
        encoding = get_tokenizer(name)
    folder = made("gguf", tokenizer=encoding, vocab_size=encoding.n_vocab, used_vocab_size=None)
    server = engines.LlamaCpp(folder / gguf_file.FILE, context=64).server
    draw, letters = random.Random(0), "ab Z's1,.!\n\n\r\t\u00e9\u4e2d\U0001f600_-\"' the 12"
    texts = [PROBE_TEXT, "She was 7 years old.\n\nThe end.", " ", "\n", "'LL we'Ll", "in 1234567 days, 99"]
    texts += ["".join(draw.choices(letters, k=40)) for _ in range(200)]
    exact = gguf_file.pre_tokenizer(encoding)[1] is None
    wrong = []
    for text in texts:
        if exact or not re.search(r"\d\d\d", text):
            found = tokenized(server, text)
            wrong += [(text, found)] * (found != encode_text(encoding, text).tolist())
    assert not wrong, (len(wrong), wrong[:3])
