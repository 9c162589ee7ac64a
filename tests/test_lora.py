"""LoRA: factors and their gradients against the formula, and runs whose checkpoints hold plain merged models."""

import pytest
import small_model
import torch
from test_gpt2_training import small_model as small_gpt2
from toy_run import TINY, differences, load, run_here

from architecture.checkpoint import read_checkpoint
from architecture.registry import load_model
from data.examples import Example
from data.sources import open_dataset
from training.costs import memory_bytes
from training.lora import Adapters, adapted, describe
from training.memory import checkpoint_blocks
from training.optimizer import build_optimizers, parameter_groups, parameter_kinds
from training.post.objective import Objective
from training.post.settings import SFTConfig

RANK, ALPHA = 3, 7.5
CFG = SFTConfig(lora_rank=RANK, lora_alpha=ALPHA, weight_decay=0.25, lr=0.01)
MODELS = {"gptoss": lambda: small_model.model(shared_experts=2), "gpt2": small_gpt2}


def with_adapters(model, seed=1):
    """The model with adapters whose B is no longer 0."""
    model.adapters = adapters = Adapters(model, CFG)
    draw = torch.Generator().manual_seed(seed)
    for *_, b in adapters.by_name.values():
        b.data.copy_(torch.randn(b.shape, generator=draw, dtype=b.dtype) / 8)
    adapters.merge()
    return model


def formula(base, a, b):
    """base + s B A, as sums that are written out by their axes."""
    return base + ALPHA / RANK * torch.einsum("...ir,...rj->...ij", b, a)


# ----------------------------------------------------------------------------------------------- adapters
@pytest.mark.parametrize("name", MODELS)
def test_training_begins_at_the_base_bit_for_bit_and_freezes_all_but_the_matrices(name):
    model, ids = MODELS[name](), small_model.batch()[0]
    matrices, before = set(parameter_groups(model)["matrix"]), model(ids, return_logits=True).logits
    model.adapters = Adapters(model, CFG)
    model.adapters.merge()
    assert torch.equal(model(ids, return_logits=True).logits, before)
    assert (
        {n for n, p in model.named_parameters() if p.requires_grad} == matrices == set(model.adapters.by_name)
    )
    assert all(
        len(adapter.a.unique()) > 9 and not adapter.b.any() for adapter in model.adapters.by_name.values()
    )


@pytest.mark.parametrize(
    "name, experts, checkpointing",
    [("gptoss", "sorted", "none"), ("gptoss", "sorted", "full"), ("gptoss", "loop", "selective"),
     ("gpt2", "auto", "full")],
)  # fmt: skip
def test_gradients_are_those_of_the_written_out_product(name, experts, checkpointing):
    """Two micro-batches, of which the gradients add up; in float64, at sizes that all differ."""

    def built(**backends):
        made = small_gpt2() if name == "gpt2" else small_model.model(shared_experts=2, **backends)
        return made.double()  # fmt: skip

    ids, targets = small_model.batch()
    model = with_adapters(built(experts=experts))
    checkpoint_blocks(model.train(), checkpointing)
    reference, weights, factors = (
        built(experts="loop", attention="eager") if name == "gptoss" else built(),
        {},
        {},
    )
    for matrix, (_, base, a, b) in model.adapters.by_name.items():
        a, b = (factor.detach().clone().requires_grad_() for factor in (a, b))
        factors |= {f"{matrix}.lora_a": a, f"{matrix}.lora_b": b}
        weights[matrix] = formula(base, a, b)
    for part in (slice(0, 1), slice(1, 2)):
        model(ids[part], targets[part]).loss_sum.backward()
        torch.func.functional_call(reference, weights, (ids[part], targets[part])).loss_sum.backward(
            retain_graph=True
        )
    assert all(p.grad is None for p in model.parameters())
    found = {n: p.grad for n, p in model.adapters.named_parameters()}
    expected = {n: p.grad for n, p in factors.items()}
    assert min(grad.abs().max() for grad in expected.values()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_of_adamw_moves_the_factors_alone_and_merges_them_into_the_model(dtype):
    model, (ids, targets) = with_adapters(small_model.model().to(dtype)), small_model.batch()
    held = {n: p.detach().clone() for n, p in model.named_parameters()}
    factors = {n: p.detach().clone() for n, p in model.adapters.named_parameters()}
    (optimizer,) = build_optimizers(model, CFG)  # although cfg.optimizer is muon
    model(ids, targets).loss.backward()
    grads = {n: p.grad.clone() for n, p in model.adapters.named_parameters()}
    optimizer.step()
    for name, factor in model.adapters.named_parameters():  # the first step of AdamW moves by the sign
        moved = factors[name] * (1 - CFG.lr * CFG.weight_decay) - CFG.lr * grads[name] / (
            grads[name].abs() + 1e-8
        )
        torch.testing.assert_close(factor.detach(), moved, rtol=1e-5, atol=1e-7)
    for name, parameter in model.named_parameters():
        if name not in model.adapters.by_name:
            assert torch.equal(parameter, held[name])
            continue
        _, base, a, b = model.adapters.by_name[name]
        assert torch.equal(parameter, base + ALPHA / RANK * (b @ a)) and not torch.equal(
            parameter, held[name]
        )
        tolerance = {torch.float32: 1e-6, torch.float64: 1e-15}[dtype]
        torch.testing.assert_close(parameter, formula(base, a, b), rtol=0, atol=tolerance)


def test_the_norms_of_gradients_show_factors_under_the_kind_of_their_matrix():
    kinds = parameter_kinds(with_adapters(small_model.model()))
    assert {kind: len(some) for kind, some in kinds.items()} == {"attention": 2 * 2 * 3, "experts": 2 * 2 * 3}


def test_a_rank_above_the_smaller_side_or_a_model_without_matrices_is_refused():
    model = small_model.model()
    assert adapted(model, 9)
    with pytest.raises(
        ValueError, match=r"at most 9, the smaller side of block.0.mlp.mlp2_weight \(20 x 9\), got 10; l"
    ):
        adapted(model, 10)
    with pytest.raises(ValueError, match="this model has none; leave lora_rank out"):
        adapted(torch.nn.Module(), 1)


def test_the_list_names_what_is_adapted_and_what_is_frozen():
    model = with_adapters(small_model.model())
    total = sum(p.numel() for _, p in model.adapters.named_parameters())
    first, *lines = describe(model).splitlines()
    assert f" {total:,} parameters train" in first
    assert (
        "  adapted: block.N.mlp.mlp1_weight (7, 18, 20) x 3: A (7, 3, 20), B (7, 18, 3), 2,394 parameters"
        in lines
    )
    assert len(lines) == 5 and lines[-1].startswith(
        "  frozen: embedding.weight (37, 20), block.N.attn.sinks (15,) x 3"
    )


# --------------------------------------------------------------------------------------------------- runs
class Stories(Objective):
    """Next-token prediction of stories."""

    held_out = (Example("Once", " upon a time", {}, "an example"),)

    def open_data(self, *, split, identity=None):
        return open_dataset(self.cfg.dataset, split=split, identity=identity)


@pytest.fixture(scope="module")
def base(tmp_path_factory, corpus):
    """A folder with the base, model/checkpoint_2.pt, and the checkpoints of a LoRA run of 6 steps in lora/."""
    folder = tmp_path_factory.mktemp("lora")
    settings = [*TINY, "--no-use_tensorboard", *corpus]
    assert run_here(folder, *settings, "--max_iters", 2, "--out_dir", "model") == 0
    assert post_train(folder, "--init_from", "model", *SETTINGS, "--out_dir", "lora") == 0
    return folder


SETTINGS = (
    "--threads 1 --device cpu --batch_size 2 --block_size 16 --max_iters 6 --save_every 3 --eval_every 3 --eval_tokens 64 "
    "--final_eval_tokens 64 --log_every 1 --no-use_tensorboard --lora_rank 2 --activation_checkpointing full "
    "--story_dataset bundled"
).split()


def post_train(folder, *flags) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.post.objective.new_objective", Stories)
        return run_here(folder, "sft", *flags, script="post_train")


def test_a_checkpoint_is_a_plain_model_with_the_product_added_to_its_base(base):
    saved, begun = load(base / "lora/checkpoint_6.pt"), load(base / "model/checkpoint_2.pt")["model"]
    assert saved["model"].keys() == begun.keys()
    model = load_model(base / "lora")
    factors, scale = saved["lora"]["factors"], 16 / 2
    for name, held in begun.items():
        a, b = (factors.get(f"{name}.lora_{side}") for side in "ab")
        assert torch.equal(model.state_dict()[name], held if a is None else held + scale * (b @ a))
        assert a is None or b.any()
    moments = (v for held in saved["optimizers"][0]["state"].values() for k, v in held.items() if k != "step")
    added = sum(factor.numel() for factor in factors.values())
    bases = sum(begun[name.removesuffix(".lora_a")].numel() for name in factors if name.endswith("a"))
    estimate = memory_bytes(SFTConfig(lora_rank=2), model.config)
    assert sum(v.numel() * v.element_size() for v in moments) == estimate["optimizer"] == 8 * added
    assert estimate["weights"] == 4 * (sum(p.numel() for p in model.parameters()) + bases + added)


def test_a_resumed_run_ends_with_the_same_bits(base, capsys):
    straight = load(base / "lora/checkpoint_6.pt")
    assert post_train(base, "--resume_from", "lora/checkpoint_3.pt") == 0
    found = differences(load(base / "lora/checkpoint_6.pt"), straight)
    free = ".progress.seconds", ".train_config.resume", ".train_config.resume_from"
    assert [place for place in found if place not in free] == []
    assert "adapted: block.N.mlp.mlp1_weight (6, 48, 32) x 2" in capsys.readouterr().err


def test_a_base_that_is_gone_or_was_replaced_is_refused(base, capsys):
    path = base / "model/checkpoint_2.pt"
    kept = path.read_bytes()
    other = read_checkpoint(path)
    other["model"] = {n: t + 1 for n, t in other["model"].items()}
    path.unlink()
    resume = "--resume_from", "lora/checkpoint_3.pt"
    try:
        assert post_train(base, *resume) == 2
        assert "model/checkpoint_2.pt does not exist, and a run with lora_rank" in capsys.readouterr().err
        torch.save(other, path)
        assert post_train(base, *resume) == 2
        assert "checkpoint_3.pt has adapters for other weights than those" in capsys.readouterr().err
    finally:
        path.write_bytes(kept)


def test_bad_settings_end_with_one_sentence_before_a_file_is_written(base, capsys):
    begin = "--init_from", "model", "--out_dir", "new", *SETTINGS
    for flags, told in (
        (
            ("--lora_rank", 25),
            "lora_rank must be at most 24, the smaller side of block.0.mlp.mlp2_weight (32 x 24)",
        ),
        (
            ("--balance", "bias"),
            "lora_rank freezes the routers with their selection bias, which balance=bias",
        ),
        (("--dry_run", "--gpus", 8), "lora_rank trains in one process, got 2; start it with python"),
    ):
        assert post_train(base, *begin, *flags) == 2
        assert told in capsys.readouterr().err
    assert not (base / "new").exists()
