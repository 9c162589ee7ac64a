"""A model that is built without values and laid out gets those of one process, and no rank ever holds all of it."""

import functools
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from ranks import on_ranks
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from architecture import registry
from architecture.checkpoint import load_weights
from architecture.open_gpt_oss.__main__ import main
from architecture.shards import held_here
from architecture.tokenizer import get_tokenizer, tokenizer_state
from training import planner
from training.config import TrainConfig
from training.distributed import sharded_checkpoint
from training.distributed.deferred_init import materialize
from training.distributed.mesh import Ranks

SIZES = dict(num_hidden_layers=4, hidden_size=64, head_dim=8, num_attention_heads=6, num_key_value_heads=3)
SIZES |= dict(num_experts=6, experts_per_token=2, intermediate_size=32, initial_context_length=24)
POSITIONS = {"position": "learned", "position_init": "sinusoidal"}
CASES = [
    ("gptoss", {"shared_experts": 1, "moe_layers": (1,), "mlp": "gelu"}),
    ("gptoss", POSITIONS | {"tie_embeddings": True, "norm": "layernorm"}),
    ("gptoss", POSITIONS | {"position_init": "small"}),
    ("gptoss_context", {"gated_update": True, "segment_length": 16}),
    ("gptoss_vision", {}),
    ("gpt2", {"tie_embeddings": True}),
]


def sizes(name: str, changes: dict) -> dict:
    routed = name.startswith("gptoss")
    own = {k: v for k, v in SIZES.items() if routed or k in ("num_hidden_layers", "initial_context_length")}
    return own | {"vocab_size": 90} | changes


@pytest.mark.parametrize("name, changes", CASES)
def test_a_model_without_values_gets_those_of_its_constructor_from_init_weights(name, changes):
    config = registry.build_config(name, "toy", sizes(name, changes))
    drawn = [torch.Generator().manual_seed(7) for _ in range(2)]
    built = registry.build_model(name, config, generator=drawn[0])
    later = registry.build_model(name, config, values=False)
    freed = {id(parameter) for parameter in later.parameters()}
    materialize(later, torch.device("cpu"), torch.device("cpu"))
    with torch.no_grad():
        for tensor in later.state_dict().values():
            tensor.fill_(float("nan"))
    later.init_weights(drawn[1])
    found = later.state_dict()
    for key, value in built.state_dict().items():
        assert torch.equal(found[key], value), key
    assert torch.equal(drawn[0].get_state(), drawn[1].get_state())
    assert {id(parameter) for parameter in later.parameters()} == freed  # tied parameters are one still


# ------------------------------------------------------------------------------------------- two ranks
MANY = SIZES | {"num_experts": 24, "intermediate_size": 96, "vocab_size": 1536}  # most of it is experts


class LiveValues(TorchDispatchMode):
    """The most values on the CPU in the tensors that operations made under this mode, at any moment."""

    def __init__(self):
        super().__init__()
        self.made, self.most = {}, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its parts on this rank come next
        out = operation(*args, **(kwargs or {}))
        known = {tensor.untyped_storage()._cdata for tensor in tree_leaves(args) if torch.is_tensor(tensor)}
        for tensor in tree_leaves(out):
            if torch.is_tensor(tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                if storage._cdata not in known:
                    self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes() // tensor.itemsize
        self.made = {key: made for key, made in self.made.items() if not made[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.made.values()))
        return out


def fill(model, saved: dict | None) -> None:
    if saved is None:
        model.init_weights(torch.Generator().manual_seed(7))
    else:
        load_weights(model, saved["model"], "a checkpoint")


def layouts_of_two_ranks(folder: Path) -> None:
    import torch.distributed as dist

    from training.distributed.shard import Layout, local

    ranks = Ranks(2, dist.get_rank())
    cases = [
        *(({}, "fsdp", source) for source in ("drawn", "plain", "sharded", "hf", "mxfp4")),
        *(({}, "ep", source) for source in ("drawn", "plain", "sharded")),
        *(({}, "fsdp+ep", source) for source in ("drawn", "mxfp4")),
        (POSITIONS | {"tie_embeddings": True}, "fsdp", "drawn"),
    ]
    for changes, parallel, source in cases:
        config = registry.build_config("gptoss", "toy", MANY | changes)
        saved = None if source == "drawn" else registry.read_weights(folder / source)
        initialize = functools.partial(fill, saved=saved)
        wanted = registry.build_model("gptoss", config)
        initialize(wanted)
        model = registry.build_model("gptoss", config, values=False)
        cfg = TrainConfig(parallel=parallel, device="cpu", dtype="float32")
        with LiveValues() as live:
            layout = Layout(model, cfg, ranks, initialize)
        sizes = [parameter.numel() for parameter in model.parameters()]
        held, largest = sum(local(parameter).numel() for parameter in model.parameters()), max(sizes)
        assert held + 1.1 * largest < 0.9 * sum(sizes)
        model_plan = planner.model_of(cfg, config)
        planned = planner.host_memory(cfg, model_plan, planner.named_layout(cfg, model_plan, 2), 2)
        assert planned["start"] == 2 * 4 * largest
        assert held <= live.most < held + 1.1 * largest, (parallel, source, held, largest, live.most)
        found, whole = model.state_dict(), wanted.state_dict()
        if source == "drawn":
            gathered = layout.whole_model()
            found = gathered.state_dict() if ranks.writes else {}
        for name, value in found.items():
            here, rows = held_here(value)
            assert torch.equal(here, whole[name][rows]), (parallel, source, name)


@pytest.mark.peer
def test_two_ranks_have_the_values_of_one_process_and_never_more_than_their_parts_and_a_tensor(tmp_path):
    config = registry.build_config("gptoss", "toy", MANY)
    model = registry.build_model("gptoss", config, generator=torch.Generator().manual_seed(9))
    state = {"model_name": "gptoss", "config": asdict(config), "model": model.state_dict(), "step": 0}
    state |= {"tokenizer": tokenizer_state(get_tokenizer("bundled1536")), "format": 2}
    torch.save(state, tmp_path / "plain")
    sharded_checkpoint.write(tmp_path / "sharded", state)
    for name, more in (("hf", ["--dtype", "bfloat16"]), ("mxfp4", ["--mxfp4"])):
        flags = [
            "export",
            "--checkpoint",
            tmp_path / "plain",
            "--format",
            "hf",
            "--output_dir",
            tmp_path / name,
        ]
        assert main([*map(str, flags), *more]) == 0
    on_ranks(2, layouts_of_two_ranks, tmp_path)
