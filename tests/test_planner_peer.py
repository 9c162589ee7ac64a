"""What two ranks exchange and hold in a step of training, counted, against the plan of the step."""

import contextlib
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy_run import SMALL

from architecture.registry import build_config, build_model
from training import planner
from training.config import TrainConfig
from training.planner import Layout

RANKS = 2
CASES = [
    ("ddp", {}),
    ("fsdp", {}),
    ("fsdp", {"optimizer": "adamw", "grad_accum": 3, "activation_checkpointing": "full"}),
    ("ep:2", {}),
    ("ep:2", {"activation_checkpointing": "full"}),
    ("fsdp+ep:2", {"activation_checkpointing": "selective", "optimizer": "adamw", "grad_accum": 1}),
]
SHAPES = [  # (changes to the model, changes to the settings of training)
    ({}, {}),
    ({"hidden_size": 44, "num_hidden_layers": 3}, {"batch_size": 3, "block_size": 40}),
    ({"intermediate_size": 64, "experts_per_token": 3}, {"batch_size": 8, "block_size": 24}),
    ({"intermediate_size": 64}, {"batch_size": 6, "experts": "grouped"}),
]
KINDS = {  # operation: (kind, which argument has the whole tensor; None: the result)
    "_allgather_base_": ("all-gather", 0),
    "all_gather_into_tensor": ("all-gather", None),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
    "allreduce_": ("all-reduce", 0),
    "all_reduce": ("all-reduce", 0),
    "all_to_all_single": ("all-to-all", 0),
}
NO_VALUES = {"wait_tensor", "_wrap_tensor_autograd", "alltoall_base_"}  # the last one moves numbers of rows


class CountBytes(TorchDispatchMode):
    """Sums the bytes of each kind of collective on this rank. float64 and integers are sums and numbers of tokens."""

    def __init__(self):
        super().__init__()
        self.bytes = Counter()

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        name = operation._schema.name.split("::")[1]
        if operation.namespace in ("c10d", "_c10d_functional") and name not in NO_VALUES:
            kind, position = KINDS[name]
            whole = result if position is None else arguments[position]
            for tensor in whole if isinstance(whole, list) else [whole]:
                if tensor.dtype == torch.float32:
                    self.bytes[kind] += tensor.numel() * tensor.element_size()
        return result


def case(parallel: str, settings: dict, sizes: dict) -> tuple[TrainConfig, object]:
    values = {"batch_size": 2, "block_size": 12, "grad_accum": 2} | settings
    cfg = TrainConfig(parallel=parallel, device="cpu", dtype="float32", **values)
    return cfg, build_config("gptoss", "toy", SMALL | {"num_experts": 6, "vocab_size": 90} | sizes)


def bytes_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def one_step(cfg, config, ranks) -> dict:
    """Bytes that a rank exchanges in a step, and that it holds after it; kept: by the forward pass."""
    from training.distributed.shard import Layout as LaidOut
    from training.distributed.shard import local
    from training.memory import checkpoint_blocks
    from training.optimizer import build_optimizers, parameter_kinds
    from training.step import accumulate_gradients, apply_gradients

    model = build_model("gptoss", config, experts=cfg.experts, generator=torch.Generator().manual_seed(0))
    model.train()
    checkpoint_blocks(model, cfg.activation_checkpointing)
    laid_out = LaidOut(model, cfg, ranks)
    optimizers, kinds = build_optimizers(model, cfg), parameter_kinds(model)
    draw = torch.Generator().manual_seed(ranks.rank)
    shape = cfg.micro_batches, cfg.batch_size, cfg.block_size
    ids = torch.randint(config.vocab_size, shape, generator=draw)
    batches = [{"input_ids": rows, "targets": rows.roll(-1, 1)} for rows in ids]
    own = {local(t).untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with CountBytes() as counted:
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks:
            result = accumulate_gradients(
                laid_out.module, batches, cfg, previous_share=None, carry=None,
                token_bytes=torch.ones(config.vocab_size, dtype=torch.long), autocast=contextlib.nullcontext, layout=laid_out,
            )  # fmt: skip
        gradients = bytes_of(local(p.grad) for p in model.parameters())
        assert apply_gradients(kinds, optimizers, result, cfg.grad_clip, laid_out) is not None
    state = (
        local(value)
        for optimizer in optimizers
        for entry in optimizer.state.values()
        for name, value in entry.items()
        if name != "step"
    )
    return {
        "moved": counted.bytes,
        "weights": bytes_of(local(p) for p in model.parameters()),
        "gradients": gradients,
        "optimizer": bytes_of(state),
        "activations": sum(size for size, _ in kept.values()),
    }


def run_cases(rank: int, folder: str) -> None:
    """On each rank: every case, with the bytes that were moved as the mean of the ranks."""
    import torch.distributed as dist

    from training.distributed.mesh import Ranks

    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    ranks, found = Ranks(RANKS, rank), []
    everything = [(*one, {}) for one in CASES]
    everything += [("ep:2", settings | {"grad_accum": 1}, sizes) for sizes, settings in SHAPES]
    for parallel, settings, sizes in everything:
        told = ranks.gather(one_step(*case(parallel, settings, sizes), ranks))
        moved = sum((one["moved"] for one in told), Counter())
        found.append(told[0] | {"moved": {kind: size / RANKS for kind, size in moved.items()}})
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run_cases, (str(folder),), nprocs=RANKS)
    return json.loads((folder / "found.json").read_text())


def planned_layout(parallel: str) -> Layout:
    return Layout(parallel.startswith("fsdp"), 2 if "ep" in parallel else 1)


@pytest.mark.peer
@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=lambda n: "-".join([CASES[n][0], *map(str, CASES[n][1].values())])
)
def test_two_ranks_exchange_and_hold_what_the_plan_says(found, number):
    parallel, settings = CASES[number]
    cfg, config = case(parallel, settings, {})
    model, layout = planner.model_of(cfg, config), planned_layout(parallel)
    moved = Counter()
    for collective in planner.collectives(cfg, model, layout, RANKS):
        moved[collective.kind] += collective.size
    assert found[number]["moved"] == moved and moved
    once, _ = case(parallel, settings | {"grad_accum": 1}, {})  # whole gradients are gone after a step
    parts = planner.memory(once, model, layout, RANKS)
    for part in ("weights", "gradients", "optimizer"):
        assert found[number][part] == parts[part], part


@pytest.mark.peer
@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_what_a_rank_keeps_is_within_15_percent_of_the_plan(found, number):
    sizes, settings = SHAPES[number]
    cfg, config = case("ep:2", settings | {"grad_accum": 1}, sizes)
    parts = planner.memory(cfg, planner.model_of(cfg, config), Layout(False, 2), RANKS)
    counted = found[len(CASES) + number]
    names = ("weights", "gradients", "optimizer", "activations")
    assert sum(parts[name] for name in names) == pytest.approx(sum(counted[name] for name in names), rel=0.15)
    assert parts["activations"] == pytest.approx(counted["activations"], rel=0.15)
