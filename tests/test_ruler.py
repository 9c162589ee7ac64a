"""evaluation/ruler.py: the number by hand and against a naive loop, its documents, and what gets no number."""

import hashlib
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from small_model import SHAPE
from test_generation import far_from_flat, tiny_tokenizer

from architecture.gpt2 import GPT2
from architecture.gptoss import ModelConfig, Transformer
from architecture.gptoss_context import ContextConfig, ContextTransformer
from architecture.interface import IGNORE_INDEX, ModelOutput
from architecture.tokenizer import encode_text, tokenizer_state
from common.files import read_json
from data.stories import TRAIN_STORIES, VALIDATION_STORIES
from evaluation import ruler, ruler_readers
from evaluation.ruler import END_OF_TEXT, Data

IDS = 260  # of tiny_tokenizer, whose last one is end-of-text
TEXTS = [
    "The theatre there.",
    "t",
    "F\u00fcr \u00c4pfel \U0001f600\U0001f468\u200d\U0001f466!",
    f"say {END_OF_TEXT} the",
    "a b the " * 6,
]
GPT2_SHAPE = dict(num_hidden_layers=2, vocab_size=IDS, hidden_size=24, num_attention_heads=3,
                  initial_context_length=16)  # fmt: skip
OURS = SHAPE | dict(vocab_size=IDS, initial_context_length=16)


def data(texts=TEXTS) -> Data:
    return Data("texts", "0" * 64, list(texts), 0)


def built(cls, config, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return far_from_flat(cls(config, generator=generator), generator)


MODELS = {
    "gptoss": lambda: built(Transformer, ModelConfig(**OURS)),
    "gpt2": lambda: built(GPT2, GPT2.config_class(**GPT2_SHAPE)),
    "gptoss_context": lambda: built(
        ContextTransformer, ContextConfig(**OURS | dict(initial_context_length=64, segment_length=7))
    ),
}


def reader_of(model, monkeypatch) -> ruler_readers.Reader:
    """The reader of a checkpoint that holds this model."""
    monkeypatch.setattr("architecture.registry.load_model", lambda path, device: model)
    return ruler_readers.checkpoint_reader("checkpoint_0.pt", torch.device("cpu"))


@torch.no_grad()
def naive(model, ids: list[int]) -> float:
    """Nats of ids in float64: a forward pass for each token, with nothing after it."""
    total, row, carry, first = 0.0, [IDS - 1, *ids], None, 0
    segment = model.config.segment_length if getattr(model, "carries", False) else None
    for place, target in enumerate(ids):
        if segment is None:  # windows read 15 tokens, repeat 7, and so begin at 0, 8, 16, ...
            first = 0 if place < 15 else (place - 15) // 8 * 8 + 8
        elif place == first + segment:
            carry = model(torch.tensor([row[first:place]]), carry=carry).carry
            first = place
        logits = model(torch.tensor([row[first : place + 1]]), carry=carry).logits[0, -1]
        total -= float(logits.double().log_softmax(-1)[target])
    return total


@pytest.mark.parametrize("name", MODELS)
def test_every_document_has_the_nats_of_a_token_by_token_loop_in_float64(name, monkeypatch):
    model = MODELS[name]()
    found = ruler.score(reader_of(model, monkeypatch), data())
    ids = [encode_text(tiny_tokenizer(), text).tolist() for text in TEXTS]
    assert max(map(len, ids)) > 3 * 7 and min(map(len, ids)) == 1
    wanted = [naive(model.double(), row) for row in ids]
    np.testing.assert_allclose(found["nats_of_documents"], wanted, rtol=2e-5)
    sizes = sum(len(text.encode()) for text in TEXTS)
    assert found["bits_per_byte"] == pytest.approx(sum(wanted) / math.log(2) / sizes, rel=1e-5)
    assert found["tokens"] == sum(map(len, ids))
    assert found["causality"].startswith("causality probe in float32")


class Unigram(torch.nn.Module):
    """A model with the same distribution at every place. leak: the next id changes its logits."""

    def __init__(self, logits: torch.Tensor, leak: bool = False, context: int = 16):
        super().__init__()
        self.logits, self.leak, self.tokenizer = torch.nn.Parameter(logits), leak, tiny_tokenizer()
        sizes = dict(vocab_size=IDS, num_ids=IDS, windows=(None,), context_limit=context)
        self.config = SimpleNamespace(**sizes)

    def forward(self, input_ids, targets=None, *, carry=None, return_logits=False):
        logits = self.logits.expand(*input_ids.shape, IDS)
        if self.leak:
            logits = logits + input_ids.roll(-1, 1)[..., None] * torch.linspace(0, 0.1, IDS)
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=IGNORE_INDEX, reduction="none"
        )
        count = (targets != IGNORE_INDEX).sum()
        return ModelOutput(logits if return_logits else None, losses.sum(), count, losses, None)


def test_bits_per_byte_of_a_byte_model_are_those_by_hand_with_the_interval_of_cluster_sampling(monkeypatch):
    """The bytes a to h have a probability of 2**-4 each, and other ids of 2**-9."""
    letters = sorted(set(b"abcdefgh"))
    bits = torch.full((IDS,), 9.0)
    bits[letters] = 4.0
    bits[IDS - 1] = -math.log2(1 - 8 / 16 - 251 / 512)  # end-of-text has the rest
    texts = ["abc", "h", "\u00e9a", "abcdefghx", "zz"]
    by_hand = np.array([12.0, 4.0, 22.0, 41.0, 18.0])
    sizes = np.array([3, 1, 3, 9, 2])
    found = ruler.score(reader_of(Unigram(-bits * math.log(2)), monkeypatch), data(texts))
    mean = by_hand.sum() / sizes.sum()
    np.testing.assert_allclose(np.array(found["nats_of_documents"]) / math.log(2), by_hand, rtol=1e-6)
    assert found["bits_per_byte"] == pytest.approx(mean, rel=1e-6)
    variance = 5 / 4 * ((by_hand - mean * sizes) ** 2).sum() / sizes.sum() ** 2
    half = scipy.stats.t.ppf(0.975, 4) * math.sqrt(variance)
    assert found["high"] - mean == pytest.approx(half, rel=5e-3) == mean - found["low"]
    lone = ruler.score(reader_of(Unigram(-bits * math.log(2)), monkeypatch), data(texts[:2]))
    assert lone["low"] is lone["high"] is None


def test_batches_hold_each_document_once_and_no_more_tokens_than_allowed():
    lengths = np.random.default_rng(0).integers(1, 90, 57).tolist()
    found = list(ruler_readers.batches(lengths, 40, 100))
    assert sorted(number for batch in found for number in batch) == list(range(57))
    assert all(len(b) * min(40, max(lengths[n] for n in b)) <= 100 for b in found) and len(found) < 40
    assert list(ruler_readers.batches([500], 40, 10)) == [[0]]


# ------------------------------------------------------------------------------------------------------- documents
def test_a_file_gives_its_documents_and_the_sha256_of_its_bytes(tmp_path):
    lines, plain = tmp_path / "a.jsonl", tmp_path / "a.txt"
    texts = ["  one\r\n", "", "zw\u00f6lf \U0001f600"]
    lines.write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n\n")
    plain.write_text(f"one\n{END_OF_TEXT}\n{END_OF_TEXT}\n zw\u00f6lf \U0001f600 ")
    exact, stripped = ruler.read_data(lines), ruler.read_data(plain)
    assert (exact.texts, exact.empty, exact.sizes) == ([texts[0], texts[2]], 1, [7, 11])
    assert (stripped.texts, stripped.empty) == (["one", texts[2]], 1)
    assert exact.sha256 == hashlib.sha256(lines.read_bytes()).hexdigest() != stripped.sha256
    first = ruler.read_data(lines, 1)
    assert first.texts == texts[:1] and first.identity() != exact.identity()


def test_the_bundled_documents_are_frozen_and_no_run_reads_them():
    """If this fails, the generator of stories changed, and with it the default data of the ruler: no number from
    before compares with one from after. Then change the sum here knowingly."""
    found = ruler.read_data()
    assert found.sha256 == "986201a6647742816e950599fcd5ea6564b304ea28023a575712ca6617cc0ba5"
    assert len(set(found.texts)) == 1000 and found.empty == 0
    assert ruler.BUNDLED_FIRST >= TRAIN_STORIES + VALIDATION_STORIES


@pytest.mark.parametrize("name, content, said", [
    ("a.jsonl", b'{"text": "a"}\n{"story": "b"}', "one object with .text. in each line"),
    ("a.jsonl", rb'{"text": "\ud800"}', "one object with .text. in each line"),
    ("a.jsonl", b"[1]", "one object with .text. in each line"),
    ("a.txt", b"\xff\xfe", "must be UTF-8"),
    ("a.txt", END_OF_TEXT.encode(), "has 0 documents that are not empty"),
    ("a.csv", b"a", "must be a .txt or a .jsonl"),
    ("a.txt", None, "file that exists"),
])  # fmt: skip
def test_a_file_that_holds_no_documents_is_refused_in_one_sentence(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as raised:
        ruler.read_data(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


# ------------------------------------------------------------------------------------------ what gets no number
@pytest.mark.parametrize("model, said", [
    (lambda: Unigram(torch.zeros(IDS), leak=True), "the model is not causal"),
    (lambda: Unigram(torch.full((IDS,), math.nan)), "gives NaN to a token of document 2"),
    (lambda: Unigram(torch.zeros(IDS).index_fill(0, torch.tensor([ord("S")]), -math.inf)),
     "gives a probability of 0 to a token of document 3"),
    (lambda: Unigram(torch.zeros(IDS), context=15), "has a context of 15 tokens"),
])  # fmt: skip
def test_a_model_without_a_meaningful_number_is_refused_in_one_sentence(model, said, monkeypatch):
    with pytest.raises(ValueError, match=said) as raised:
        ruler.score(reader_of(model(), monkeypatch), data(["a b", "a", "xSx"]))
    assert "\n" not in str(raised.value)


def test_a_tokenizer_that_changes_or_takes_a_text_as_special_is_refused():
    ruler_readers.require_text("\u00fc", "\u00fc".encode(), "x")
    with pytest.raises(ValueError, match="tokenizer lossy cannot hold the document that begins 'Ab'"):
        ruler_readers.require_text("Ab", b"ab", "lossy")


def test_a_missing_package_and_code_of_another_are_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="needs transformers .*requirements-export.txt"):
        ruler_readers.find_model(tmp_path, torch.device("cpu"))[1]()
    (tmp_path / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoModelForCausalLM": "x.X"}}')
    with pytest.raises(ValueError, match="needs code of its own"):
        ruler_readers.find_model(tmp_path, torch.device("cpu"))[1]()
    (tmp_path / "config.json").unlink()
    (tmp_path / "a.gguf").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ValueError, match="needs llama.cpp .*requirements-peers.txt"):
        ruler_readers.find_model(tmp_path, torch.device("cpu"))[1]()
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match="holds 2 GGUF files; name one"):
        ruler_readers.find_model(tmp_path, torch.device("cpu"))[1]()


# ------------------------------------------------------------------------------------------------------ the command
@pytest.fixture
def checkpoint(tmp_path):
    """checkpoint(seed): the path of one."""

    def write(seed: int):
        path = tmp_path / f"checkpoint_{seed}.pt"
        config = ModelConfig(**OURS)
        tensors = dict(built(Transformer, config, seed).state_dict())
        state = {"model_name": "gptoss", "config": vars(config), "step": seed, "model": tensors}
        torch.save(state | {"tokenizer": tokenizer_state(tiny_tokenizer())}, path)
        return path

    return write


def test_finished_models_are_kept_and_the_same_command_goes_on(tmp_path, checkpoint, monkeypatch, capsys):
    first, second, out, stories = (
        checkpoint(1),
        checkpoint(2),
        tmp_path / "out.json",
        tmp_path / "stories.txt",
    )
    stories.write_text(END_OF_TEXT.join(TEXTS[:3]))
    options = ["--data", str(stories), "--out", str(out), "--threads", "1"]
    scored = []
    real = ruler.score

    def counted(*arguments):
        scored.append(1)
        return real(*arguments)

    monkeypatch.setattr(ruler, "score", counted)
    with pytest.raises(ValueError, match="1 of 3 models have no number"):
        ruler.run([str(first), str(tmp_path / "missing"), str(second), *options])
    told = capsys.readouterr()
    assert "missing does not exist" in told.err
    lines = told.out.splitlines()
    assert len(lines) == len(scored) == 2
    found = read_json(out)
    sha = found["ruler_sha256"]
    files = (ruler.__file__, ruler_readers.__file__)
    data_sha = hashlib.sha256(stories.read_bytes()).hexdigest()
    assert sha == hashlib.sha256(b"".join(open(name, "rb").read() for name in files)).hexdigest()
    for line, entry in zip(lines, found["models"]):
        assert f"{entry['bits_per_byte']:.4f}" in line and f"ruler {sha[:12]}  data {data_sha[:12]}" in line
        assert sum(entry["nats_of_documents"]) == pytest.approx(
            entry["bits_per_byte"] * math.log(2) * sum(found["bytes_of_documents"])
        )
    assert found["models"][0]["bits_per_byte"] != found["models"][1]["bits_per_byte"]
    checkpoint(2).write_bytes(first.read_bytes())  # another model under a name that has a number
    ruler.run([str(first), str(second), *options])
    assert len(scored) == 3 and len(read_json(out)["models"]) == 2
    again = read_json(out)["models"]
    assert again[0]["bits_per_byte"] == again[1]["bits_per_byte"] == found["models"][0]["bits_per_byte"]
    with pytest.raises(ValueError, match="another ruler or of other data.*choose another name"):
        ruler.run([str(first), *options, "--stories", "2"])
