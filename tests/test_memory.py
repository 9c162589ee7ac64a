"""Activation checkpointing and offload: the same bits, less memory, and estimates of it."""

import contextlib
import functools
from dataclasses import replace

import pytest
import torch
from test_context_training import segments
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_run import SMALL, TINY, differences, load, run_here

from architecture.generation import lean
from architecture.registry import build_config, build_model
from common.device import autocast
from training.balance import update_selection_bias
from training.config import ContextTrainConfig, TrainConfig
from training.memory import checkpoint_blocks, forward_context
from training.optimizer import build_optimizers, parameter_kinds
from training.step import accumulate_gradients, apply_gradients

CFG = TrainConfig(balance_coef=0.5, z_loss_coef=0.1, lr=1e-2, grad_clip=0.3)
SIZES = SMALL | dict(vocab_size=64, sliding_window=4, initial_context_length=16)
IMAGES = dict(
    image_size=16, vision_patch_size=8, vision_embed_dim=12, vision_num_heads=3, vision_num_layers=2
)
GPT2 = dict(num_hidden_layers=3, vocab_size=64, hidden_size=20, intermediate_size=33, num_attention_heads=5)
ALL = dict(dropout=0.3, capacity_factor=0.7, router="topk_sigmoid", shared_experts=2, num_hidden_layers=3)
VARIANTS = {  # model, fields of its config, backends
    "gptoss": ("gptoss", SIZES, {}),
    "formulas": ("gptoss", SIZES, dict(attention="eager", experts="loop")),
    "grouped": ("gptoss", SIZES | dict(hidden_size=24, intermediate_size=16), dict(experts="grouped")),
    "switches": ("gptoss", SIZES | ALL | dict(moe_layers=(0, 2)), {}),
    "dropout": ("gptoss", SIZES | dict(dropout=0.4, mlp="gelu", norm="layernorm"), dict(attention="eager")),
    "gpt2": ("gpt2", GPT2, {}),
    "gpt2, dropout": ("gpt2", GPT2 | dict(dropout=0.4), {}),
    "context": ("gptoss_context", SIZES | dict(segment_length=5, gated_update=True), {}),
    "vision": ("gptoss_vision", SIZES | IMAGES | dict(vocab_size=320), {}),
}


def new_model(variant: str, kind: str, changes=()):
    """A model whose blocks keep what `kind` says; its weights do not depend on kind."""
    name, fields, backends = VARIANTS[variant]
    config = build_config(name, "toy", fields | dict(changes))
    model = build_model(name, config, generator=torch.Generator().manual_seed(0), **backends).train()
    checkpoint_blocks(model, kind)
    return model


def batches_of(variant: str) -> list[dict[str, torch.Tensor]]:
    batches = segments(4)
    if variant == "vision":
        for batch in batches:
            batch["input_ids"][:, :4] = 320 + torch.arange(12).view(3, 4)
            batch["images"] = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    return [{n: t for n, t in b.items() if n != "reset" or variant == "context"} for b in batches]


def gradients(model, variant: str, cfg=CFG, dtype="float32", offload="none"):
    """The gradients of a step and its result, with the same random numbers in every call."""
    torch.manual_seed(5)
    cfg = ContextTrainConfig(**vars(cfg) | dict(tbptt=2, packing="lanes")) if variant == "context" else cfg
    result = accumulate_gradients(
        model,
        batches_of(variant),
        cfg,
        previous_share=None,
        carry=None,
        token_bytes=torch.ones(320, dtype=torch.int64),
        autocast=forward_context(model, offload, functools.partial(autocast, torch.device("cpu"), dtype)),
    )
    return {name: p.grad for name, p in model.named_parameters()}, result._asdict()


def assert_same(found: tuple, expected: tuple) -> None:
    assert differences(*({"gradients": g, "result": r} for g, r in (found, expected))) == []


# ------------------------------------------------------------------------------ activation checkpointing
@pytest.mark.parametrize("kind", ["selective", "full"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_changes_no_bit_of_gradients_or_statistics(variant, kind):
    assert_same(*(gradients(new_model(variant, each), variant) for each in (kind, "none")))


@pytest.mark.parametrize("kind", ["selective", "full"])
@pytest.mark.parametrize("variant", ["gptoss", "grouped", "gpt2, dropout"])
def test_checkpointing_changes_no_bit_in_bfloat16(variant, kind):
    assert_same(*(gradients(new_model(variant, each), variant, dtype="bfloat16") for each in (kind, "none")))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("balance", ["none", "aux", "aux_global", "bias"])
def test_steps_of_every_balance_and_optimizer_end_in_the_same_weights(optimizer, balance):
    cfg, ends = replace(CFG, optimizer=optimizer, balance=balance), []
    for kind in ("none", "selective", "full"):
        model = new_model("gptoss", kind)
        optimizers, share = build_optimizers(model, cfg), None
        for _ in range(3):
            result = accumulate_gradients(
                model, batches_of("gptoss"), cfg, previous_share=share, carry=None,
                token_bytes=torch.ones(64, dtype=torch.int64), autocast=contextlib.nullcontext,
            )  # fmt: skip
            apply_gradients(parameter_kinds(model), optimizers, result, cfg.grad_clip)
            share = result.load / result.load.sum(-1, keepdim=True)
            if balance == "bias":
                update_selection_bias(model, result.load, cfg.bias_rate)
        ends.append((model.state_dict(), result._asdict()))
    assert differences(ends[0], ends[1]) == [] and differences(ends[0], ends[2]) == []


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_the_backward_pass_takes_the_experts_that_the_forward_pass_chose(kind):
    """Another choice would be made, because the bias of the selection has changed."""
    found = []
    for each, moved in ((kind, True), ("none", False)):
        model, (batch, *_) = new_model("gptoss", each), batches_of("gptoss")
        out = model(**batch)
        if moved:
            for block in model.block:
                block.mlp.selection_bias += torch.randn(5, generator=torch.Generator().manual_seed(2))
            with torch.no_grad():
                assert not torch.equal(model(**batch).router.chosen[0], out.router.chosen[0])
        out.loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert differences(*found) == []


def test_a_run_with_checkpointing_joins_one_without_and_its_stories_come_fast(tmp_path, corpus, monkeypatch):
    flags = [*TINY, *corpus, "--dropout", 0.1, "--balance", "bias", "--no-use_tensorboard", "--max_iters", 4]
    decoders = []
    monkeypatch.setattr(lean, "obstacle", lambda model, real=lean.obstacle: decoders.append(real(model)))
    assert run_here(tmp_path / "none", *flags, "--save_every", 2) == 0
    extra = ["--activation_checkpointing", "full"]
    assert run_here(tmp_path / "full", *flags, *extra, "--save_every", 2) == 0
    assert set(decoders) == {None}
    ends = [load(tmp_path / kind / "model/checkpoint_4.pt") for kind in ("none", "full")]
    for part in ("model", "optimizers", "rng", "data"):
        assert differences(ends[0][part], ends[1][part]) == []


# ----------------------------------------------------------------------------------------------- memory
class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations made under this mode and that are still in use."""

    def __init__(self):
        super().__init__()
        self.made, self.most = {}, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        known = {tensor.untyped_storage()._cdata for tensor in tree_leaves(args) if torch.is_tensor(tensor)}
        for tensor in filter(torch.is_tensor, tree_leaves(out)):
            storage = tensor.untyped_storage()
            if storage._cdata not in known and storage._cdata not in self.made:
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, self.now())
        return out

    def now(self) -> int:
        self.made = {key: made for key, made in self.made.items() if not made[0].expired()}
        return sum(size for _, size in self.made.values())


SHAPES = [
    ("gptoss", {}, "sdpa", 4, 128),
    ("gptoss", {"hidden_size": 192, "num_hidden_layers": 6, "experts_per_token": 4}, "sdpa", 2, 192),
    ("gptoss", {"mlp": "gelu", "shared_experts": 1, "moe_layers": (0, 2)}, "eager", 3, 96),
    ("gpt2", {}, "sdpa", 4, 128),
    ("gpt2", {"hidden_size": 192, "num_attention_heads": 6}, "eager", 2, 96),
    ("gptoss_vision", {}, "sdpa", 4, 64),
]


@pytest.mark.parametrize("kind", ["selective", "full"])
@pytest.mark.parametrize("name, changes, attention, rows, tokens", SHAPES)
def test_what_is_kept_and_the_peak_are_estimated_to_15_percent(name, changes, attention, rows, tokens, kind):
    config = build_config(name, "toy", changes)
    model, draw = build_model(name, config, attention=attention), torch.Generator().manual_seed(0)
    checkpoint_blocks(model.train(), kind)
    ids = torch.randint(4096, (rows, tokens), generator=draw)
    images = dict(images=torch.rand(rows, 3, 48, 48, generator=draw)) if name == "gptoss_vision" else {}
    with LiveBytes() as live:
        out = model(ids, ids.roll(-1, 1), **images)
        kept, live.most = live.now(), 0
        out.loss.backward()
    per_token = config.values_kept_per_token(rows, tokens, attention, kind)
    head = config.vocab_size * config.hidden_size
    assert 4 * (rows * tokens * per_token + head) == pytest.approx(kept, rel=0.15)
