"""Validation against a computation of its own: every token once, bits per byte of the text alone."""

import contextlib
import math
import random
import statistics

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from toy_corpus import documents
from toy_run import SMALL

from architecture.gptoss import ModelConfig, Transformer
from architecture.tokenizer import get_tokenizer, token_byte_lengths
from data.documents import IndexedSource
from data.packing import validation_batches, validation_lanes
from data.rows import validation_rows
from training.reporting import in_words
from training.validation import Evaluation, Interrupted, evaluate, ratio_interval

TEXTS = [text + " caf\u00e9 \U0001f388" * (n % 2) for n, text in enumerate(documents(5))]
BLOCK = 16


class Texts(IndexedSource):
    name = "texts"

    def __len__(self):
        return len(TEXTS)

    def __getitem__(self, index):
        return TEXTS[index]


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer("stories4k")


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(
        **SMALL, vocab_size=4096, sliding_window=7, initial_context_length=BLOCK, dropout=0.3
    )
    generator = torch.Generator().manual_seed(0)
    model = Transformer(config, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def score(model, tokenizer, batch_size=3, max_tokens=None, packing="packed", **options):
    rows = {"packed": validation_batches, "lanes": validation_lanes, "rows": validation_rows}[packing]
    batches = rows(Texts(), tokenizer, batch_size=batch_size, block_size=BLOCK, max_tokens=max_tokens)
    return evaluate(
        model,
        batches,
        token_byte_lengths(tokenizer, 4096),
        device=torch.device("cpu"),
        autocast=contextlib.nullcontext,
        eot=tokenizer.eot_token,
        packing=packing,
        **options,
    )


@torch.no_grad()
def by_hand(model, tokenizer):
    """(losses of every target in nats, whether it is text), window by window."""
    stream = [tokenizer.eot_token]
    for text in TEXTS:
        stream += [*tokenizer.encode_ordinary(text), tokenizer.eot_token]
    model.eval()
    losses, targets = [], []
    for start in range(0, len(stream) - 1, BLOCK):
        window = torch.tensor(stream[start : start + BLOCK + 1])
        logits = model(window[None, :-1]).logits[0]
        losses.append(F.cross_entropy(logits.double(), window[1:], reduction="none"))
        targets.append(window[1:])
    return torch.cat(losses), torch.cat(targets) != tokenizer.eot_token


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_evaluation_equals_a_computation_by_hand(model, tokenizer, batch_size):
    losses, is_text = by_hand(model, tokenizer)
    assert is_text.sum() == len(losses) - len(TEXTS)
    found = score(model, tokenizer, batch_size)
    assert found.tokens == len(losses)
    assert found.loss == pytest.approx(float(losses.mean()), rel=1e-6)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    bits = float(losses[is_text].sum()) / math.log(2) / num_bytes
    assert found.bits_per_byte == pytest.approx(bits, rel=1e-6)
    assert found.half_width == pytest.approx(half_width_by_hand(losses, is_text), rel=4e-3)
    assert found.documents == len(TEXTS)
    nats, count = found.by_position.T
    assert len(losses) % BLOCK  # the last window is not full
    expected = [float(losses[place::BLOCK].mean()) for place in range(BLOCK)]
    assert (nats / count).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "half_width, documents, told",
    [
        (
            None,
            1,
            "2.0000 nats/token (1 document: an interval needs three or more), 1.0000 bits per byte, over 90 tokens",
        ),
        (
            None,
            2,
            "2.0000 nats/token (2 documents: an interval needs three or more), 1.0000 bits per byte, over 90 tokens",
        ),
        (
            0.5,
            3,
            "2.0000 +- 0.5000 nats/token (95 %, over 3 documents), 1.0000 bits per byte, over 90 tokens",
        ),
    ],
)
def test_a_loss_of_few_documents_says_why_it_has_no_interval(half_width, documents, told):
    assert (
        in_words(Evaluation(2.0, half_width, documents, 1.0, 90, torch.zeros(1, 2), None, None, [])) == told
    )


def half_width_by_hand(losses, is_text):
    """The 95 % interval of the ratio estimator, from a list of the losses of each document."""
    documents = [[]]
    for loss, text in zip(losses.tolist(), is_text.tolist()):
        documents[-1].append(loss)
        documents += [] if text else [[]]
    documents = list(filter(None, documents))
    mean, n = float(losses.mean()), len(documents)
    residuals = [sum(document) - mean * len(document) for document in documents]
    error = math.sqrt(n * statistics.variance(residuals)) / len(losses)
    return stats.t.ppf(0.975, n - 1) * error


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_the_interval_is_over_documents_in_lanes_too(model, tokenizer, batch_size):
    found = score(model, tokenizer, batch_size, packing="lanes")
    losses, ends = [], []
    for text in TEXTS:  # a lane holds one document, cut into windows
        stream = [tokenizer.eot_token, *tokenizer.encode_ordinary(text), tokenizer.eot_token]
        for start in range(0, len(stream) - 1, BLOCK):
            window = torch.tensor(stream[start : start + BLOCK + 1])
            with torch.no_grad():
                logits = model.eval()(window[None, :-1]).logits[0]
            losses.append(F.cross_entropy(logits.double(), window[1:], reduction="none"))
            ends.append(window[1:] == tokenizer.eot_token)
    losses, is_text = torch.cat(losses), ~torch.cat(ends)
    assert found.documents == len(TEXTS) and found.tokens == len(losses)
    assert found.half_width == pytest.approx(half_width_by_hand(losses, is_text), rel=4e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_in_rows_each_row_is_a_document_also_where_its_end_is_cut_off(model, tokenizer, batch_size):
    found = score(model, tokenizer, batch_size, packing="rows")
    losses, ends = [], []
    for text in TEXTS:
        row = torch.tensor([tokenizer.eot_token, *tokenizer.encode_ordinary(text), tokenizer.eot_token])
        row = row[: BLOCK + 1]
        with torch.no_grad():
            logits = model.eval()(row[None, :-1]).logits[0]
        losses.append(F.cross_entropy(logits.double(), row[1:], reduction="none"))
        ends.append(torch.arange(len(row) - 1) == len(row) - 2)
    losses, ends = torch.cat(losses), torch.cat(ends)
    assert len(losses) == len(TEXTS) * BLOCK  # every text is too long
    assert found.documents == len(TEXTS) and found.tokens == len(losses)
    assert found.loss == pytest.approx(float(losses.mean()), rel=1e-6)
    assert found.half_width == pytest.approx(half_width_by_hand(losses, ~ends), rel=4e-3)


def test_copies_of_a_token_in_a_document_make_no_result_more_certain():
    nats, tokens = torch.tensor([3.0, 1.0, 4.0, 2.0]), torch.tensor([2.0, 1.0, 3.0, 1.0])
    error, half_width = ratio_interval(nats, tokens)
    assert ratio_interval(9 * nats, 9 * tokens) == pytest.approx((error, half_width))
    for n in (3, 4, 6, 40):
        error, half_width = ratio_interval(torch.arange(n) ** 2, torch.arange(n) + 1)
        assert half_width == pytest.approx(stats.t.ppf(0.975, n - 1) * error, rel=0.04 if n < 5 else 0.004)
    assert ratio_interval(nats[:2], tokens[:2])[1] is None and ratio_interval(nats[:1], tokens[:1])[0] is None


def test_a_bounded_evaluation_scores_the_first_tokens(model, tokenizer):
    losses, _ = by_hand(model, tokenizer)
    found = score(model, tokenizer, max_tokens=5)
    assert found.tokens == 5
    assert found.loss == pytest.approx(float(losses[:5].mean()), rel=1e-6)
    nats, count = found.by_position.T
    assert count.tolist() == [1] * 5 + [0] * (BLOCK - 5) and (nats[5:] == 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_dropout_is_off_and_no_random_number_is_drawn(model, tokenizer, training):
    model.train(training)
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    first, second = score(model, tokenizer), score(model, tokenizer)
    assert first.loss == second.loss and first.bits_per_byte == second.bits_per_byte
    assert model.training is training and model.block[0].training is training
    assert torch.equal(torch.get_rng_state(), torch_state) and random.getstate() == python_state


def test_an_evaluation_that_is_told_to_stop_gives_no_result_and_restores_the_mode(model, tokenizer):
    asked = []
    model.train()
    with pytest.raises(Interrupted):
        score(model, tokenizer, should_stop=lambda: len(asked) > 1 or asked.append(1))
    assert len(asked) == 2 and model.training
