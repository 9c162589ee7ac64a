"""torch.compile of the blocks: no break in their graphs, one graph for all layers, the values of the plain blocks."""

import functools

import pytest
import torch
from small_model import batch, config

from architecture.gptoss import Transformer
from training.compiled import with_compiled_blocks


def model(attention="sdpa", experts="grouped", **changes):
    sizes = dict(hidden_size=24, intermediate_size=16)  # rows of a multiple of 16 bytes, for grouped
    generator = torch.Generator().manual_seed(0)
    made = Transformer(
        config(**sizes | changes), attention=attention, experts=experts, generator=generator
    ).train()
    with torch.no_grad():  # routers with clear preferences
        for parameter in made.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    return made


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that torch.compile makes from now on. They run as they are, and a break in one is an error."""
    made = []

    def keep(graph, inputs):
        made.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=keep, fullgraph=True))
    yield made
    torch._dynamo.reset()


def loss_and_gradients(made, forward):
    with torch.autocast("cpu", torch.bfloat16):  # torch compiles grouped_mm in bfloat16 only
        out = forward(*batch())
    loss = out.loss + out.router.balance_loss + out.router.z_loss
    return loss.detach(), torch.autograd.grad(loss, list(made.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "attention, changes",
    [("sdpa", {}), ("eager", dict(capacity_factor=0.7, router="topk_sigmoid", shared_experts=1))],
)
def test_one_graph_without_a_break_computes_all_layers_as_the_plain_blocks_do(graphs, attention, changes):
    made = model(attention, **changes)
    expected_loss, expected = loss_and_gradients(made, made)
    loss, gradients = loss_and_gradients(made, with_compiled_blocks(made))
    assert len(graphs) == 1 and made.config.num_hidden_layers == 3
    torch.testing.assert_close(loss, expected_loss, rtol=1e-3, atol=0)
    for (name, _), ours, theirs in zip(made.named_parameters(), gradients, expected):
        assert (ours - theirs).norm() <= 0.02 * theirs.norm(), name  # norm and rotation round differently


@pytest.mark.slow
@torch.no_grad()
def test_blocks_with_flex_attention_compile_without_a_break(graphs):
    made, specification = model("flex", "grouped"), model("eager", "loop")
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (m(*batch()).loss for m in (with_compiled_blocks(made), specification))
    assert len(graphs) == 2  # with a window and without
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


def test_compiled_blocks_share_parameters_and_mode_with_the_model_and_leave_it_as_it_was():
    made = model()
    blocks, names = list(made.block), list(made.state_dict())
    twin = with_compiled_blocks(made)
    assert [id(p) for p in twin.parameters()] == [id(p) for p in made.parameters()]
    assert list(made.block) == blocks and list(made.state_dict()) == names
    assert all(a is not b for a, b in zip(twin.block, blocks))
    assert not twin.eval().training and not made.block[0].mlp.training
