"""The test set: who belongs to it, that a run never reads it, and scores of each document against plain loops."""

import contextlib
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy_corpus import documents, write_jsonl
from toy_run import TINY, run_here

from architecture.gptoss import ModelConfig, Transformer
from architecture.gptoss_context import ContextConfig, ContextTransformer
from architecture.tokenizer import get_tokenizer
from data.documents import is_validation_document
from data.files import open_files
from data.test_split import PartOfValidation, is_test_document, read_test_set
from data.tokens import TokenFolderWriter, open_token_folder
from evaluation import test_set

SHAPE = dict(hidden_size=20, num_attention_heads=6, num_key_value_heads=3, head_dim=4, intermediate_size=9)
SHAPE |= dict(num_hidden_layers=2, num_experts=4, experts_per_token=2, vocab_size=64, sliding_window=4)
SHAPE |= dict(initial_context_length=64, rope_scaling_factor=1.0)
EOT, BLOCK = 63, 7
LENGTHS = (3, 41, 17, 8, 30, 1, 12)  # more documents than lanes, which end at different times


class Ids:
    """The tokenizer of documents that are ids already."""

    eot_token = EOT


@pytest.fixture(scope="module")
def texts():
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(EOT, (length,), generator=draw).numpy() for length in LENGTHS]


def model_of(kind, **extra):
    config, made = {
        "trunk": (ModelConfig, Transformer),
        "context": (ContextConfig, ContextTransformer),
    }[kind]
    model = made(config(**SHAPE, **extra), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)  # so large that what came before matters
    return model.double().eval()


BYTES = torch.tensor([2 + number % 3 for number in range(EOT)] + [0])


@torch.no_grad()
def by_hand(model, texts, packing):
    """Nats of the text tokens of each document, in plain loops, and of all targets together."""
    nats, in_all = [], 0.0
    if packing == "packed":
        stream = [EOT, *(t for ids in texts for t in (*ids.tolist(), EOT))]
        losses = []
        for start in range(0, len(stream) - 1, BLOCK):
            window = torch.tensor(stream[start : start + BLOCK + 1])
            logits = model(window[None, :-1]).logits[0]
            losses += F.cross_entropy(logits, window[1:], reduction="none").tolist()
        for ids in texts:
            nats.append(sum(losses[: len(ids)]))
            in_all += sum(losses[: len(ids) + 1])
            losses = losses[len(ids) + 1 :]
        return nats, in_all
    for ids in texts:
        document, carry, losses = torch.tensor([EOT, *ids.tolist(), EOT]), None, []
        cut = BLOCK if packing == "rows" else len(document)
        for start in range(0, min(cut, len(document) - 1), BLOCK):
            part = document[start : start + BLOCK + 1]
            out = model(part[None, :-1], part[None, 1:], carry=carry)
            losses += out.token_losses[0].tolist()
            carry = out.carry
        nats.append(sum(losses[: len(ids)]))
        in_all += sum(losses)
    return nats, in_all


@pytest.mark.parametrize(
    "kind, packing", [("trunk", "packed"), ("trunk", "lanes"), ("context", "lanes"), ("trunk", "rows")]
)
def test_the_sums_of_each_document_are_those_of_plain_loops(texts, kind, packing):
    model = model_of(kind, **({"segment_length": BLOCK} if kind == "context" else {}))
    nats, in_all = by_hand(model, texts, packing)
    for batch_size in (1, 3):  # the windows, and so the scores, do not depend on it
        numbered = test_set.batches(texts, Ids, packing, batch_size=batch_size, block_size=BLOCK)
        found = test_set.score(model, numbered, len(texts), BYTES, contextlib.nullcontext)
        np.testing.assert_allclose(found.nats, nats, rtol=1e-6)
        assert found.loss_sum == pytest.approx(in_all, rel=1e-6)
        scored = [ids[:BLOCK] if packing == "rows" else ids for ids in texts]
        assert found.bytes.tolist() == [int(BYTES[torch.from_numpy(ids)].sum()) for ids in scored]
        cut = sum(len(ids) >= BLOCK for ids in texts) if packing == "rows" else 0  # their end is not read
        assert found.tokens == sum(map(len, scored)) + len(texts) - cut
        assert found.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / found.bytes.sum(), rel=1e-6)


# ------------------------------------------------------------------------------------ who belongs to it


def test_the_hash_of_the_text_puts_a_third_of_all_and_of_the_validation_documents_into_the_test_set():
    many = documents(20_000)
    of_validation = [text for text in many if is_validation_document(text)]
    for some, spread in ((many, 0.01), (of_validation, 0.1)):  # three standard deviations
        assert sum(map(is_test_document, some)) / len(some) == pytest.approx(1 / 3, abs=spread)
    assert is_test_document(many[0]) == is_test_document(many[0].encode())


def test_token_files_of_any_tokenizer_are_divided_as_their_texts_are(tmp_path):
    texts = [text + " caf\u00e9 \U0001f388" for text in documents(120)]
    source = open_files(
        write_jsonl(tmp_path / "v.jsonl", texts), split="validation", whole=True, text_column="text"
    )
    tokenizer = get_tokenizer("stories4k")
    chosen, identity = read_test_set(source, tokenizer)
    assert chosen == [text for text in texts if is_test_document(text)] and identity.startswith(
        f"{len(chosen)} "
    )
    others = list(PartOfValidation(source, tokenizer, test=False).documents())
    assert others == [text for text in texts if text not in chosen]
    for name in ("stories4k", "bundled1536"):
        tokenizer = get_tokenizer(name)
        writer = TokenFolderWriter(tmp_path / name, tokenizer)
        for split in ("train", "validation"):
            writer.write_split(split, map(tokenizer.encode_ordinary, texts))
        writer.finish()
        folder = open_token_folder(tmp_path / name, "validation")
        ids, same = read_test_set(folder, tokenizer)
        assert [tokenizer.decode(some.tolist()) for some in ids] == chosen and same == identity
    with pytest.raises(ValueError, match="was prepared with tokenizer bundled1536"):
        read_test_set(folder, get_tokenizer("stories4k"))


def test_a_set_that_is_too_small_is_refused_in_one_sentence(tmp_path):
    def of(texts):
        path = write_jsonl(tmp_path / f"{len(texts)}.jsonl", texts)
        return open_files(path, split="validation", whole=True, text_column="text")

    few = of(documents(60))
    with pytest.raises(
        ValueError, match="must have at least 30 documents, got 15 of its 60 validation documents"
    ):
        read_test_set(few, None)
    only = of([text for text in documents(200) if is_test_document(text)][:40])
    with pytest.raises(ValueError, match="must have at least 30 documents, got 40 of its 40"):
        read_test_set(only, None)
    with pytest.raises(ValueError, match="has only test documents among its validation documents"):
        list(PartOfValidation(only, None, test=False).documents())


# ------------------------------------------------------------------------------------ a run and its score


def test_a_run_leaves_the_set_out_and_the_command_scores_it(tmp_path, capsys):
    texts = documents(400)
    train, valid = texts[:280], texts[280:]
    data = [
        "--dataset",
        write_jsonl(tmp_path / "t.jsonl", train),
        "--val_dataset",
        write_jsonl(tmp_path / "v.jsonl", valid),
    ]
    words = [
        *TINY,
        *data,
        "--max_iters",
        2,
        "--use_tensorboard",
        "false",
        "--eval_tokens",
        10**6,
        "--recipe",
        "none",
    ]
    tokenizer = get_tokenizer("bundled1536")
    counts = {}
    for test in (True, False):
        part = [text for text in valid if is_test_document(text) == test]
        counts[test] = sum(len(tokenizer.encode_ordinary(text)) + 1 for text in part)
    for name, held_out, seen in (("held", "true", counts[False]), ("plain", "false", sum(counts.values()))):
        assert run_here(tmp_path, *words, "--hold_out_test", held_out, "--out_dir", name) == 0
        (final,) = [
            record["final/validation_tokens"]
            for record in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
            if "final/validation_tokens" in record
        ]
        assert final == seen
    capsys.readouterr()
    assert run_here(tmp_path, "--eval_only", "held", script="train") == 0  # on what the run saw
    assert f"over {counts[False]:,} tokens of v.jsonl without its test third" in capsys.readouterr().out
    out = tmp_path / "scores.json"
    assert test_set.main([str(tmp_path / "held"), "--out", str(out), "--threads", "1"]) == 0
    assert test_set.main([str(tmp_path / name) for name in ("held", "plain")]) == 0
    first, again, plain = capsys.readouterr().out.splitlines()
    assert first == again and "did not hold" not in first and "did not hold these documents out" in plain
    found, sums = json.loads(out.read_text()), np.load(out.with_suffix(".npz"))
    assert found["held_out"] and found["tokens"] == counts[True]
    assert (sums["nats"].dtype, sums["bytes"].dtype) == (np.float32, np.int32)
    chosen = [text for text in valid if is_test_document(text)]
    assert sums["bytes"].tolist() == [len(text.encode()) for text in chosen]
    bits = sums["nats"].astype(float).sum() / math.log(2) / sums["bytes"].sum()
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    assert test_set.main([str(tmp_path / "held"), str(tmp_path / "plain"), "--out", str(out)]) == 2
    assert "--out takes the figures of one checkpoint, got 2 checkpoints" in capsys.readouterr().err
