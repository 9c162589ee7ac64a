"""The ruler gives a checkpoint, its folder for transformers and its GGUF the same number."""

import shutil

import numpy as np
import pytest
import torch
from test_generation import far_from_flat
from test_gguf_mlx import little_tokenizer, state

from architecture.gpt2 import GPT2
from architecture.open_gpt_oss import export
from architecture.tokenizer import tokenizer_state
from evaluation import ruler, ruler_readers

pytestmark = pytest.mark.peer
CPU = torch.device("cpu")
TEXTS = [
    "The theatre there.",
    "t",
    "F\u00fcr \u00c4pfel \U0001f600\U0001f468\u200d\U0001f466!",
    "say <|endoftext|> the\x00 end\n",
    "longer than two windows of sixty-four tokens, the \u00fcbung " * 4,
]
DATA = ruler.Data("texts", "0" * 64, TEXTS, 0)


def scores(path) -> dict:
    return ruler.score(ruler_readers.find_model(path, CPU)[1](), DATA)


def test_a_checkpoint_its_hugging_face_folder_and_its_gguf_have_one_number(tmp_path):
    given = state()  # has a context of 64 tokens, so that the last document takes several windows
    torch.save(given, tmp_path / "checkpoint_0.pt")
    for layout in ("hf", "gguf"):
        export.write_folder(given, tmp_path / layout, layout=layout)
    ours, *others = (scores(tmp_path / name) for name in ("checkpoint_0.pt", "hf", "gguf"))
    assert [one["program"] for one in (ours, *others)] == ["nano-gpt-oss", "transformers", "llama.cpp"]
    assert ours["tokens"] > 3 * ours["context"] and ours["context"] == 63
    for other in others:
        for name in ("tokens", "context", "beginning"):
            assert other[name] == ours[name]
        np.testing.assert_allclose(other["nats_of_documents"], ours["nats_of_documents"], rtol=1e-5)
        assert other["bits_per_byte"] == pytest.approx(ours["bits_per_byte"], rel=1e-5)


def test_any_causal_model_of_transformers_has_a_number_and_one_that_loses_text_has_none(tmp_path):
    """Llama, which this project does not read, with a byte tokenizer that has no <|endoftext|> but a bos_token."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)} | {"<s>": 256}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    config = LlamaConfig(vocab_size=257, hidden_size=24, intermediate_size=20, num_hidden_layers=2,
                         num_attention_heads=3, num_key_value_heads=3, max_position_embeddings=32)  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "a")
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>").save_pretrained(tmp_path / "a")
    found = scores(tmp_path / "a")
    assert (found["beginning"], found["context"]) == ("<s>", 31)
    assert found["tokens"] == sum(len(text.encode()) for text in TEXTS)
    text = TEXTS[0].encode()
    row = [
        256,
        *(vocabulary[pre_tokenizers.ByteLevel(False).pre_tokenize_str(chr(byte))[0][0]] for byte in text),
    ]
    with torch.no_grad():
        logits = model.double()(torch.tensor([row[:-1]])).logits[0].log_softmax(-1)
    wanted = -sum(float(logits[place, target]) for place, target in enumerate(row[1:]))
    assert found["nats_of_documents"][0] == pytest.approx(wanted, rel=1e-5)
    kept = model.state_dict()
    model.save_pretrained(
        tmp_path / "b", state_dict={n: t for n, t in kept.items() if "layers.1.mlp.up" not in n}
    )
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    shutil.copy(tmp_path / "b" / "model.safetensors", tmp_path / "c")
    with pytest.raises(
        ValueError, match="1 of its weights are missing, first model.layers.1.mlp.up_proj.weight"
    ):
        scores(tmp_path / "c")
    made.normalizer = normalizers.Lowercase()
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>").save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="cannot hold the document that begins 'The theatre there.'"):
        scores(tmp_path / "a")


def test_a_gpt2_export_without_a_tokenizer_of_transformers_is_read_by_this_project(tmp_path):
    from architecture.gpt2_hugging_face import write_folder

    config = GPT2.config_class(num_hidden_layers=2, vocab_size=320, used_vocab_size=261, hidden_size=24,
                               num_attention_heads=3, initial_context_length=64)  # fmt: skip
    model = far_from_flat(GPT2(config), torch.Generator().manual_seed(0))
    model.tokenizer = little_tokenizer()
    write_folder(model, tmp_path / "gpt2")
    torch.save(
        {"model_name": "gpt2", "config": vars(config), "step": 0, "model": dict(model.state_dict()),
         "tokenizer": tokenizer_state(model.tokenizer)}, tmp_path / "checkpoint_0.pt",
    )  # fmt: skip
    both = [scores(tmp_path / name) for name in ("gpt2", "checkpoint_0.pt")]
    assert both[0]["bits_per_byte"] == pytest.approx(both[1]["bits_per_byte"], rel=1e-6)


def test_a_damaged_gguf_and_folder_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(ValueError, match="a.gguf cannot be read by llama.cpp"):
        ruler_readers.find_model(tmp_path / "a.gguf", CPU)[1]()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="b cannot be read as a causal language model of transformers"):
        ruler_readers.find_model(tmp_path / "b", CPU)[1]()
