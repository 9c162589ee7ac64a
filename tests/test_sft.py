"""Supervised fine-tuning: examples packed into rows, and the loss of their responses."""

import pytest
import torch
from small_model import V, model

from architecture import gpt2
from architecture.interface import documents_of

LENGTHS = 9, 4, 13  # of the documents of a row; the longest exceeds two windows


def small(name: str) -> torch.nn.Module:
    if name == "gpt2":
        sizes = dict(num_hidden_layers=2, vocab_size=V, hidden_size=20, intermediate_size=9)
        config = gpt2.ModelConfig(**sizes, num_attention_heads=5, initial_context_length=64)
        return gpt2.GPT2(config, generator=torch.Generator().manual_seed(0)).double()
    return model(attention=name, position="rope").double()


def row_of(lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of tokens, (2, T), and the positions of documents of these lengths in the second one."""
    ids = torch.randint(V, (2, sum(lengths)), generator=torch.Generator().manual_seed(5))
    positions = torch.cat([torch.arange(n) for n in lengths])
    return ids, torch.stack((torch.arange(sum(lengths)), positions))


@pytest.mark.parametrize("name", ["eager", "sdpa", "flex", "gpt2"])
def test_each_document_of_a_row_has_the_logits_that_it_has_alone(name):
    made, (ids, positions) = small(name), row_of(LENGTHS)
    with torch.no_grad():
        together = made(ids, positions=positions).logits
        alone = [made(part[None]).logits[0] for part in ids[1].split(LENGTHS)]
        whole = made(ids[:1]).logits[0]
    torch.testing.assert_close(together[1], torch.cat(alone), rtol=0, atol=1e-12)
    torch.testing.assert_close(together[0], whole, rtol=0, atol=1e-12)


def test_only_a_position_that_does_not_rise_begins_a_document():
    padded = torch.tensor([[-2, -1, 0, 1, 2, 3], [0, 1, 0, 0, 1, 2]])
    assert documents_of(padded).tolist() == [[0] * 6, [0, 0, 1, 2, 2, 2]]
    assert documents_of(None) is None
