"""Models by name, and checkpoints that are missing, damaged, foreign or hostile."""

import os
import pickle
import random
import re
import zipfile
from dataclasses import asdict

import pytest
import torch
from toy_run import differences

from architecture import registry
from architecture.checkpoint import load_weights, read_checkpoint
from architecture.gptoss import ModelConfig, Transformer

SHAPE = dict(
    num_hidden_layers=2, num_experts=7, experts_per_token=2, vocab_size=37, hidden_size=20, head_dim=4
)
SHAPE |= dict(num_attention_heads=15, num_key_value_heads=3, intermediate_size=9, sliding_window=6)
SHAPE |= dict(initial_context_length=64, rope_scaling_factor=1.0)


def state(**changes):
    model = Transformer(ModelConfig(**{**SHAPE, **changes}))
    contents = {"model_name": "gptoss", "config": asdict(model.config), "model": model.state_dict()}
    return contents | {"tokenizer": {}, "step": 3}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint_3.pt"
    torch.save(state(), path)
    return path


@pytest.fixture
def any_tokenizer(monkeypatch):
    from architecture import tokenizer

    monkeypatch.setattr(tokenizer, "tokenizer_from_state", lambda state: "tokenizer")


def refusal(path):
    with pytest.raises(ValueError) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message and "; " in message
    return message


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


# --------------------------------------------------------------------------- sizes out of the world


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("num_experts", 10**9, "num_experts must be at most 1,048,576; got 1000000000"),
        ("num_hidden_layers", 10**9, "num_hidden_layers must be at most 1,024"),
        ("num_attention_heads", 10**30, "num_attention_heads must be a whole number below"),
        ("hidden_size", 10**400, "hidden_size must be a whole number below"),
        ("sliding_window", 2**62, "sliding_window must be at most"),
        ("rope_scaling_factor", 1e308, "rope_scaling_factor must be at most"),
        ("rope_theta", 10**400, "rope_theta must be a finite number"),
        (7, 1, "7 is not a field of ModelConfig"),
    ],
)
def test_a_field_that_no_model_has_is_refused_before_anything_is_built(name, value, told):
    with pytest.raises(ValueError, match="^" + re.escape(told)):
        registry.config_from_dict("gptoss", {**SHAPE, name: value})


def test_sizes_that_together_are_more_than_tensors_can_count_are_refused():
    sizes = dict(num_experts=2**20, hidden_size=2**20, intermediate_size=2**20)
    with pytest.raises(ValueError, match="a model may have 1e\\+15 parameters"):
        registry.config_from_dict("gptoss", {**SHAPE, **sizes})


# ---------------------------------------------------------------------------------------- by name
def test_a_model_is_found_by_name_and_its_name_by_model():
    assert registry.model_class("gptoss") is Transformer
    assert all(registry.model_class(name).name == name for name in registry.MODELS)


def test_an_unknown_model_size_or_field_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="gptos'.*did you mean 'gptoss'"):
        registry.model_class("gptos")
    with pytest.raises(ValueError, match="medum'.*did you mean 'medium'"):
        registry.build_config("gptoss", "medum")
    with pytest.raises(ValueError, match="num_expert .*did you mean 'num_experts'"):
        registry.build_config("gptoss", "toy", {"num_expert": 4})


def test_overrides_replace_fields_of_the_preset():
    config = registry.build_config("gptoss", "toy", {"num_experts": 16})
    assert (config.num_experts, config.hidden_size) == (16, 128)


# ------------------------------------------------------------------------------------- checkpoints
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_does_not_run_and_is_named_in_one_sentence(tmp_path, zipped):
    path, marker = tmp_path / "checkpoint_3.pt", tmp_path / "ran"
    content = {**state(), "extra": Hostile(marker)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    assert ("could run code" if zipped else "checkpoint") in refusal(path)
    assert not marker.exists()


def test_truncated_files_noise_text_and_a_foreign_zip_are_refused(checkpoint):
    whole = checkpoint.read_bytes()
    parts = [whole[: int(len(whole) * share)] for share in (0.0, 0.01, 0.5, 0.999)]
    for content in (*parts, os.urandom(5000), b"hello", b"\x80\x04"):
        checkpoint.write_bytes(content)
        assert "cut off, damaged" in refusal(checkpoint)
    with zipfile.ZipFile(checkpoint, "w") as file:
        file.writestr("a.txt", "text")
    refusal(checkpoint)


def test_a_missing_checkpoint_is_refused(tmp_path):
    assert "does not exist; name a folder that train.py wrote" in refusal(tmp_path / "checkpoint_9.pt")
    (tmp_path / "model_toy").mkdir()
    (tmp_path / "model_toy" / "checkpoint_5.pt").touch()
    assert "did you mean 'model_toy'?" in refusal(tmp_path / "model_tyo")
    assert "did you mean 'checkpoint_5.pt'?" in refusal(tmp_path / "model_toy" / "checkpoint_7.pt")


@pytest.mark.parametrize("content", [{"model": {}}, [1, 2], torch.zeros(3)], ids=["dict", "list", "tensor"])
def test_a_file_of_another_project_is_refused_with_what_it_lacks(tmp_path, content):
    path = tmp_path / "model.pt"
    torch.save(content, path)
    assert "model_name" in refusal(path)


def test_a_checkpoint_of_an_unknown_architecture_is_refused(tmp_path, any_tokenizer):
    path = tmp_path / "checkpoint_3.pt"
    torch.save({**state(), "model_name": "mamba"}, path)
    with pytest.raises(ValueError, match="mamba"):
        Transformer.from_checkpoint(str(path))


# ----------------------------------------------------------------------------------------- loading
@pytest.mark.parametrize("tied", [False, True])
def test_a_loaded_model_is_the_saved_one_to_the_bit(tmp_path, any_tokenizer, tied):
    path = tmp_path / "checkpoint_3.pt"
    saved = state(tie_embeddings=tied)
    torch.save(saved, path)
    torch.manual_seed(0)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    model = Transformer.from_checkpoint(str(path))
    assert torch.equal(torch.rand(1), drawn)  # loading draws no random number
    assert not model.training and model.tokenizer == "tokenizer"
    assert all(torch.equal(value, saved["model"][name]) for name, value in model.state_dict().items())
    assert (model.unembedding.weight is model.embedding.weight) == tied
    assert sum(p.numel() for p in model.parameters()) == model.config.parameter_counts()["total"]
    assert all(p.requires_grad for p in model.parameters())
    model(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64)).loss.backward()


def test_loaded_weights_go_into_the_parameters_that_are_there():
    model = Transformer(ModelConfig(**SHAPE))
    before = dict(model.named_parameters())
    weights = {name: torch.rand_like(w) for name, w in model.state_dict().items()}
    load_weights(model, weights, "a file")
    for name, parameter in model.named_parameters():
        assert parameter is before[name] and torch.equal(parameter, weights[name])


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("norm.scale", None, "tensor(s) of another shape (first: norm.scale)"),
        ("norm.scale", torch.zeros(21), "tensor(s) of another shape (first: norm.scale)"),
        ("extra", torch.zeros(1), "tensor(s) that this model lacks (first: extra)"),
        (7, torch.zeros(2), "tensor(s) that this model lacks (first: 7)"),
        ("norm.scale", torch.zeros(20).to_sparse(), "its norm.scale is not a tensor of the expected shape"),
        (
            "norm.scale",
            torch.zeros(20, device="meta"),
            "its norm.scale is not a tensor of the expected shape",
        ),
        ("norm.scale", torch.zeros(20, dtype=torch.float64), "they are of type float32 and float64"),
        ("norm.scale", torch.zeros(20, dtype=torch.int64), "they are of type float32 and int64"),
    ],
)
def test_weights_that_do_not_fit_are_named(name, value, told):
    model = Transformer(ModelConfig(**SHAPE))
    with pytest.raises(ValueError, match="^a file .*" + re.escape(told)):
        load_weights(model, model.state_dict() | {name: value}, "a file")


def test_a_missing_tensor_is_named():
    weights = state()["model"]
    del weights["norm.scale"]
    with pytest.raises(ValueError, match="^a file lacks 1 .* of this model .*norm.scale"):
        load_weights(Transformer(ModelConfig(**SHAPE)), weights, "a file")


@pytest.mark.parametrize("meta", [False, True])
def test_weights_are_copied_out_of_the_file_whatever_their_strides_and_storage(meta):
    model = Transformer(ModelConfig(**SHAPE))
    weights = model.state_dict()
    wide = weights["embedding.weight"]
    weights["embedding.weight"] = torch.full((1, 1), 0.5).expand(wide.shape)
    weights["unembedding.weight"] = wide.t().contiguous().t()
    weights["block.0.attn.norm.scale"] = weights["norm.scale"]  # one storage for two
    with torch.device("meta" if meta else "cpu"):
        ours = Transformer(ModelConfig(**SHAPE))
    load_weights(ours, weights, "a file")
    storages = [p.untyped_storage().data_ptr() for p in ours.parameters()]
    assert len(set(storages)) == len(storages) and all(p.is_contiguous() for p in ours.parameters())
    assert all(torch.equal(p, weights[name]) for name, p in ours.named_parameters())


# ------------------------------------------------------------------------------------- integrity


def test_a_flip_of_any_bit_is_refused_or_changes_nothing(checkpoint):
    """The campaign in tests/stress makes thousands, in every kind of file."""
    whole, draw = checkpoint.read_bytes(), random.Random(0)
    before = torch.load(checkpoint, weights_only=True)
    refused = 0
    for _ in range(50):
        place, bit = draw.randrange(len(whole)), draw.randrange(8)
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        checkpoint.write_bytes(damaged)
        try:
            assert differences(read_checkpoint(checkpoint), before) == []
        except ValueError as error:
            assert "cannot be read as a checkpoint" in str(error)
            refused += 1
    assert refused > 25


def test_a_zeroed_sector_is_refused_with_the_name_of_its_record(checkpoint):
    damaged = bytearray(checkpoint.read_bytes())
    damaged[8192:12288] = bytes(4096)
    checkpoint.write_bytes(damaged)
    assert re.search(r"its record checkpoint_3/data/\d+ is damaged", refusal(checkpoint))


def test_a_record_that_unpacks_to_more_than_the_file_is_refused(tmp_path, checkpoint):
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("checkpoint_3/data/99", bytes(50_000_000))
    assert bomb.stat().st_size < 1_000_000 and "are larger than the file" in refusal(bomb)


def test_a_newer_format_names_the_commit_that_wrote_it(tmp_path):
    path = tmp_path / "checkpoint_3.pt"
    torch.save({**state(), "format": 99, "commit": "abc123"}, path)
    assert "has format 99, written at commit abc123, and this code reads formats up to" in refusal(path)


def test_a_lack_of_memory_is_not_called_damage(checkpoint, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(MemoryError, match="not enough memory to read"):
        read_checkpoint(checkpoint)
