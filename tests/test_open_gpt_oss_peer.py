"""The official formats of gpt-oss against transformers (and gguf): values, gradients, text, verify."""

import json
import re
import shutil

import pytest
import torch
import torch.nn.functional as F
from test_open_gpt_oss import (
    EXACT,
    IDS,
    ROPE,
    SHAPE,
    WHOLE,
    convert,
    files_of,
    model_of,
    refused,
    state_of,
)
from toy_run import TINY, run_here

import sample
from architecture import registry
from architecture.gptoss import PRESETS, ModelConfig
from architecture.open_gpt_oss import export, mxfp4, names, verify, weights
from architecture.open_gpt_oss.__main__ import main

pytestmark = pytest.mark.peer
LIMIT = 1e-5  # of the largest value, in float32
ROPES = {"yarn": {}, "plain RoPE": dict(rope_scaling_factor=1.0)}


def opened(folder, **options):
    """The model that transformers reads from a folder, every tensor in its place."""
    from transformers import GptOssForCausalLM

    options = dict(attn_implementation="eager", experts_implementation="eager", dtype="auto") | options
    peer, told = GptOssForCausalLM.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, **options
    )
    assert not any(told.values()), told
    return peer.eval()


def agree(ours, peer, gradients: bool = True) -> None:
    """Logits and the gradients of every parameter agree within LIMIT."""
    logits, theirs = ours(IDS).logits[..., :260], peer(IDS).logits
    assert theirs.abs().max() > 1
    assert (logits - theirs).abs().max() < LIMIT * theirs.abs().max()
    if not gradients:
        return
    for out in (logits, theirs):
        F.cross_entropy(out[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    found = {}
    for name, p in ours.named_parameters():
        grad = p.grad[:260] if name in names.VOCABULARY else p.grad
        found |= names.to_theirs(name, grad, ours.config, "hf")
    wanted = {name: p.grad for name, p in peer.named_parameters()}
    assert found.keys() == wanted.keys()
    largest = max(grad.abs().max() for grad in wanted.values())
    for name, grad in wanted.items():
        difference = (found[name] - grad).abs().max()
        assert difference < LIMIT * largest and difference < 10 * LIMIT * grad.abs().max(), name


# ------------------------------------------------------------------------------------ values, both ways
@pytest.mark.parametrize(
    "changes", [*ROPES.values(), dict(attention_bias=False), dict(tie_embeddings=True)], ids=str
)
@pytest.mark.parametrize("shard", [10**9, 10**5], ids=["one file", "several"])
def test_transformers_opens_what_was_exported(tmp_path, monkeypatch, changes, shard):
    monkeypatch.setattr(export, "SHARD_BYTES", shard)
    state = state_of(**changes)
    export.write_folder(state, tmp_path / "out", layout="hf")
    agree(model_of(state), opened(tmp_path / "out"))


def random_peer(**rope):
    from transformers import GptOssConfig, GptOssForCausalLM

    values = names.hugging_face_config(ModelConfig(**SHAPE), "float32")
    values |= dict(
        rope_scaling=None, rope_parameters=rope | {"rope_theta": 500.0}, max_position_embeddings=64
    )
    peer = GptOssForCausalLM(
        GptOssConfig(**values, attn_implementation="eager", experts_implementation="eager")
    )
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in peer.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * (0.15 if p.dim() > 1 else 1))
    return peer.float().eval()


THEIR_ROPES = {
    "yarn": EXACT,
    "plain RoPE": dict(rope_type="default"),
    "whole limits, truncated": ROPE | WHOLE,  # truncate is true by default
}


@pytest.mark.parametrize("rope", THEIR_ROPES.values(), ids=THEIR_ROPES)
@pytest.mark.parametrize("shard", ["1GB", "200KB"])
def test_what_transformers_saved_gives_the_same_values_here(tmp_path, rope, shard):
    peer = random_peer(**rope)
    peer.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == (shard == "200KB")
    (tmp_path / weights.TOKENIZER).write_text(json.dumps(state_of()["tokenizer"]))
    agree(registry.load_model(tmp_path, attention="eager", experts="loop"), peer)


def test_each_spelling_of_the_rope_block_alone_is_enough_for_transformers(tmp_path):
    state = state_of()
    export.write_folder(state, tmp_path / "out", layout="hf")
    path = tmp_path / "out/config.json"
    values = json.loads(path.read_text())
    for left_out in (["rope_parameters"], ["rope_scaling", "rope_theta"]):
        path.write_text(json.dumps({name: v for name, v in values.items() if name not in left_out}))
        agree(model_of(state), opened(tmp_path / "out"), gradients=False)
        assert weights.read_config(tmp_path / "out")[1].rope_scaling_factor == 8.0


def test_what_a_config_leaves_out_means_the_same_here_and_there():
    from transformers import GptOssConfig

    _, config = names.read_config(GptOssConfig().to_dict(), "c")
    assert config.resolved_layer_types == ModelConfig().resolved_layer_types
    assert names.original_config(config) == names.original_config(ModelConfig(**PRESETS["gpt-oss-120b"]))


# ----------------------------------------------------------------------------------------------- MXFP4
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpacking_equals_that_of_transformers_to_the_bit(dtype):
    from transformers.integrations.mxfp4 import _convert_moe_packed_tensors

    scales = torch.arange(256, dtype=torch.uint8)[None, :, None].repeat(1, 1, 16)  # (1, 256, 16)
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 256, 1, 1)
    theirs = _convert_moe_packed_tensors(blocks, scales, dtype=dtype).mT
    ours = mxfp4.unpack(blocks, scales, dtype)
    assert torch.equal(ours, theirs) and torch.equal(ours.signbit(), theirs.signbit())


def test_unpacking_equals_that_of_gguf_to_the_bit():
    gguf = pytest.importorskip("gguf")
    codes = torch.arange(16, dtype=torch.uint8).repeat(256, 2)  # (256, 32)
    scales = torch.arange(256, dtype=torch.uint8)[:, None]
    theirs = torch.cat((scales, codes[:, :16] | codes[:, 16:] << 4), dim=1)  # halves, not even and odd
    theirs = torch.from_numpy(gguf.quants.dequantize(theirs.numpy(), gguf.GGMLQuantizationType.MXFP4))
    ours = mxfp4.unpack((codes[:, 0::2] | codes[:, 1::2] << 4)[:, None], scales, torch.float32)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("changes", ROPES.values(), ids=ROPES)
def test_transformers_unpacks_an_mxfp4_export_to_the_same_weights_and_logits(tmp_path, changes):
    from transformers import Mxfp4Config

    export.write_folder(state_of(**changes), tmp_path / "out", layout="hf", pack=True)
    peer = opened(tmp_path / "out", dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True))
    model = registry.load_model(tmp_path / "out")
    there = peer.state_dict()
    for name, tensor in weights.read_folder(tmp_path / "out")["model"].items():
        if name.endswith(mxfp4.MATRICES):
            [(theirs, tensor)] = names.to_theirs(name, tensor, model.config, "hf").items()
            assert torch.equal(there[theirs], tensor), name
    agree(model, peer.float(), gradients=False)


# ------------------------------------------------------------------------------ a trained run, and verify
SIZES = dict(hidden_size=64, head_dim=12, num_attention_heads=6, num_key_value_heads=2, intermediate_size=96,
             num_experts=6, initial_context_length=128, block_size=32, max_iters=60, save_every=60)  # fmt: skip
STEPS = [
    *TINY,
    *(part for name, value in SIZES.items() for part in (f"--{name}", value)),
    "--no-use_tensorboard",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 60 steps on the bundled stories in model/, exported to hf/, original/ and mxfp4/."""
    folder = tmp_path_factory.mktemp("trained")
    assert run_here(folder, *STEPS, "--lr", 0.01) == 0
    for name, flags in (("hf", []), ("original", []), ("mxfp4", ["--mxfp4"])):
        flags = [
            "--format",
            "original" if name == "original" else "hf",
            *flags,
            "--output_dir",
            str(folder / name),
        ]
        assert main(["export", "--checkpoint", str(folder / "model"), *flags]) == 0
    return folder


def told_by_transformers(folder, prompt: str, tokens: int) -> str:
    """The greedy text of a model in a folder, by transformers' own reader, tokenizer and generate."""
    from transformers import AutoTokenizer

    tokenizer, peer = AutoTokenizer.from_pretrained(folder), opened(folder)
    ids = tokenizer(tokenizer.eos_token + prompt, return_tensors="pt", add_special_tokens=False)
    out = peer.generate(**ids, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(out[0], skip_special_tokens=True)


def told_here(path, prompt: str, tokens: int, capsys) -> str:
    capsys.readouterr()
    flags = ["--prompt", prompt, "--temperature", "0", "--max_tokens", str(tokens), "--device", "cpu"]
    assert sample.main(["--checkpoint", str(path), *flags]) == 0
    return capsys.readouterr().out.removesuffix("\n")


@pytest.mark.parametrize("prompt", ["Once upon a time", "Tom's \u00e9t\u00e9, 12 "])
def test_a_trained_model_tells_the_same_greedy_text_in_transformers(trained, capsys, prompt):
    told = told_here(trained / "model", prompt, 60, capsys)
    assert told.startswith(prompt) and len(told) > len(prompt) + 40
    assert told_by_transformers(trained / "hf", prompt, 60) == told


def test_a_model_fine_tuned_from_an_import_is_exported_and_opens(tmp_path, trained, capsys):
    convert(capsys, "import", "--folder", trained / "hf", "--output_dir", tmp_path / "imported")
    assert run_here(tmp_path, "--init_from", "imported", *"--device cpu --threads 1 --max_iters 5".split(),
                    *"--batch_size 4 --block_size 32 --eval_tokens 256 --no-use_tensorboard".split()) == 0  # fmt: skip
    convert(
        capsys,
        "export",
        "--checkpoint",
        tmp_path / "model",
        "--format",
        "hf",
        "--output_dir",
        tmp_path / "again",
    )
    told = told_here(tmp_path / "model", "Once", 30, capsys)
    assert told_by_transformers(tmp_path / "again", "Once", 30) == told
    name = "model.layers.0.self_attn.sinks"
    assert not torch.equal(files_of(tmp_path / "again")[name], files_of(trained / "hf")[name])


@pytest.mark.parametrize("kind", ["hf", "original", "mxfp4"])
def test_verify_finds_every_layer_equal_with_and_without_yarn(trained, capsys, kind):
    capsys.readouterr()
    assert main(["verify", str(trained / kind)]) == 0
    out = capsys.readouterr().out
    parts = ["after layer 0", "after layer 1", "logits", "log-probabilities"]
    assert re.findall(r"^  (\S.*?) +relative difference", out, re.M) == parts * 2
    assert "RoPE without YaRN, 2 rows of 25 tokens, 3.1 windows, float32" in out and "YaRN x 8" in out
    assert out.endswith("tolerance 1e-05: kept\n") and "too large" not in out
    assert main(["verify", str(trained / kind), "--tolerance", "1e-12"]) == 1


def test_verify_exits_with_1_and_names_the_layer_where_transformers_has_another_weight(
    trained, tmp_path, monkeypatch, capsys
):
    state = state_of(rope_scaling_factor=1.0)
    export.write_folder(state, tmp_path / "given", layout="hf")
    state["model"]["block.1.mlp.mlp2_bias"][:, 5] += 1e-3
    export.write_folder(state, tmp_path / "other", layout="hf")
    read = verify.peer_of_folder
    monkeypatch.setattr(verify, "peer_of_folder", lambda folder: read(tmp_path / "other"))
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "given")]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "too large" in line]
    parts = ["logits", "log-probabilities"]
    assert [line.split("  ")[1] for line in lines] == ["after layer 1", "after layer 2", *parts]


def test_verify_refuses_what_it_cannot_compare_in_one_line(trained, tmp_path, capsys):
    for given, wanted in (
        (tmp_path, "is no folder of gpt-oss, which has a config.json"),
        (tmp_path / "none", "none does not exist; name a folder of gpt-oss"),
    ):
        assert wanted in refused(capsys, main, "verify", given)
    for flags in (["--tokens", 1], ["--tokens", 10**6], ["--tokens", -3]):
        assert "--tokens must be from 2 to the context limit of 128, got" in refused(
            capsys, main, "verify", trained / "hf", *flags
        )
    shutil.copytree(trained / "hf", tmp_path / "spoiled")
    data = bytearray((tmp_path / "spoiled/model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "spoiled/model.safetensors").write_bytes(data)
    assert "was changed after it was written" in refused(capsys, main, "verify", tmp_path / "spoiled")
