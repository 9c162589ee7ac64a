"""Losses by segment: a window over whole documents, windows that end within a segment, where they go."""

import contextlib

import pytest
import torch

from architecture.gptoss import ModelConfig, Transformer
from training import context_eval

SHAPE = dict(
    num_hidden_layers=2, num_experts=4, experts_per_token=2, vocab_size=64, hidden_size=20, intermediate_size=9,
    head_dim=4, num_attention_heads=6, num_key_value_heads=3, sliding_window=4, initial_context_length=64,
    rope_scaling_factor=1.0,
)  # fmt: skip
LENGTHS = (3, 41, 17, 8, 30)
EOT = 63


@pytest.fixture(scope="module")
def trunk():
    model = Transformer(ModelConfig(**SHAPE), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)  # so that what came before matters
    return model.double().eval()


@pytest.fixture(scope="module")
def documents():
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(EOT, (length,), generator=draw).tolist() for length in LENGTHS]
    return [[EOT, *document, EOT] for document in ids]


def losses(model, documents, window):
    found = context_eval.document_losses(model, documents, window, 6, 2, contextlib.nullcontext)
    return list(found)


def test_a_trunk_whose_window_holds_whole_documents_reads_each_at_once(trunk, documents):
    found = losses(trunk, documents, window=64)
    for document, one in zip(sorted(documents, key=len), found):
        ids = torch.tensor([document])
        with torch.no_grad():
            alone = trunk(ids[:, :-1], ids[:, 1:]).token_losses[0]
        assert one.tokens == [len(part) for part in alone.split(6)]
        expected = [float(part.sum()) for part in alone.split(6)]
        assert one.nats["plain"] == pytest.approx(expected, rel=1e-6)


def test_a_shorter_window_begins_anew_also_within_a_segment(trunk, documents):
    whole, cut = (losses(trunk, documents, window) for window in (64, 10))
    for document, one, other in zip(sorted(documents, key=len), whole, cut):
        assert one.tokens == other.tokens
        assert one.nats["plain"][0] == pytest.approx(other.nats["plain"][0], rel=1e-6)
        ids, alone = torch.tensor([document]), []
        for start in range(0, len(document) - 1, 10):
            part = ids[:, start : start + 11]
            with torch.no_grad():
                alone.append(trunk(part[:, :-1], part[:, 1:]).token_losses[0])
        expected = [float(part.sum()) for part in torch.cat(alone).split(6)]
        assert other.nats["plain"] == pytest.approx(expected, rel=1e-6)
        if len(document) > 12:
            assert one.nats["plain"][1] != pytest.approx(other.nats["plain"][1], rel=1e-3)
