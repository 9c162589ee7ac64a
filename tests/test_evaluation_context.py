"""Losses by segment: a window over whole documents, windows that end within a segment, where they go."""

import contextlib
from pathlib import Path

import pytest
import torch

from architecture.gptoss import ModelConfig, Transformer
from architecture.gptoss_context import ContextConfig, ContextTransformer
from evaluation import context

SHAPE = dict(hidden_size=20, num_attention_heads=6, num_key_value_heads=3, head_dim=4, intermediate_size=9)
SHAPE |= dict(num_hidden_layers=2, num_experts=4, experts_per_token=2, vocab_size=64)
SHAPE |= dict(sliding_window=4, initial_context_length=64, rope_scaling_factor=1.0)
LENGTHS = (3, 41, 17, 8, 30)
EOT = 63
TRUNK = Path(__file__).parent / "fixtures" / "trunk"


def large(model):
    """The model in float64, with weights so large that what came before matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    return model.double().eval()


@pytest.fixture(scope="module")
def trunk():
    return large(Transformer(ModelConfig(**SHAPE), generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def variant():
    config = ContextConfig(**SHAPE, segment_length=6)
    return large(ContextTransformer(config, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def documents():
    """The shortest first, as the losses come."""
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(EOT, (length,), generator=draw).tolist() for length in sorted(LENGTHS)]
    return [[EOT, *document, EOT] for document in ids]


def losses(model, documents, window, batch_size=2):
    return list(context.document_losses(model, documents, window, 6, batch_size, contextlib.nullcontext))


def read_alone(model, document, states):
    """Nats of each segment with these states before them, and the states after."""
    nats, after = [], []
    for start, state in zip(range(0, len(document) - 1, 6), states):
        ids = torch.tensor([document[start : start + 7]])
        with torch.no_grad():
            out = model(ids[:, :-1], ids[:, 1:], carry=state)
        nats.append(float(out.loss_sum))
        after.append(out.carry)
    return nats, after


def test_each_column_begins_its_segments_with_the_state_that_its_name_says(variant, documents):
    carried, states = [], []
    for document in documents:
        before, nats = [None], []
        for number in range(-(-(len(document) - 1) // 6)):
            part, after = read_alone(variant, document[6 * number :], before[-1:])
            nats, before = nats + part, before + after
        carried.append(nats)
        states.append(before)  # before each segment, None before the first
    for row, (document, found) in enumerate(zip(documents, losses(variant, documents, 6, 5))):
        segments, other = len(found.tokens), states[row - 1]  # the first row takes the states of the last
        other = other + [other[-1]] * segments  # a document that has ended keeps its last state
        swapped, _ = read_alone(variant, document, [None, *other[1:segments]])
        zeroed, _ = read_alone(variant, document, [None] * segments)
        assert found.nats["carried"] == pytest.approx(carried[row], rel=1e-6)
        assert found.nats["swapped"] == pytest.approx(swapped, rel=1e-6)
        assert found.nats["zeroed"] == pytest.approx(zeroed, rel=1e-6)
        assert segments == 1 or found.nats["swapped"] != pytest.approx(carried[row], rel=1e-4)


def in_windows(model, document, window):
    """Nats of each segment of 6 tokens of a document that is read in windows of its own."""
    ids, alone = torch.tensor([document]), []
    for start in range(0, len(document) - 1, window):
        part = ids[:, start : start + window + 1]
        with torch.no_grad():
            alone.append(model(part[:, :-1], part[:, 1:]).token_losses[0])
    return [float(part.sum()) for part in torch.cat(alone).split(6)]


def test_a_trunk_reads_each_document_in_windows_that_may_end_within_a_segment(trunk, documents):
    whole, cut = (losses(trunk, documents[::-1], window) for window in (64, 10))
    for document, one, other in zip(documents, whole, cut):
        count = len(document) - 1
        assert one.tokens == other.tokens == [min(6, count - start) for start in range(0, count, 6)]
        assert one.nats["plain"] == pytest.approx(in_windows(trunk, document, 64), rel=1e-6)
        assert other.nats["plain"] == pytest.approx(in_windows(trunk, document, 10), rel=1e-6)
        if count > 11:
            assert one.nats["plain"][1] != pytest.approx(other.nats["plain"][1], rel=1e-3)


def test_a_text_column_is_obeyed_with_the_data_of_the_checkpoint(monkeypatch):
    seen = {}

    def stop(dataset, **options):
        seen.update(options)
        raise ValueError("seen")

    monkeypatch.setattr("data.sources.open_dataset", stop)
    assert context.main([str(TRUNK), "--text_column", "story"]) == 2
    assert seen["text_column"] == "story"
