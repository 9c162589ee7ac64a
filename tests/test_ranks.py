"""The parts of training on several processes that one process can test: data, settings, the exchange of tokens."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from small_model import model as small_model
from test_backends import E, N, k, values_and_gradients
from test_data_loader import Stories, equal, take
from toy_run import TINY, run_here

from architecture.gptoss import EXPERT_BACKENDS, ExpertWeights, loop_experts
from architecture.tokenizer import get_tokenizer, tokenizer_state
from data.loader import TrainLoader
from training import reporting, start
from training.command_line import CommandLine
from training.config import TrainConfig
from training.distributed import mesh
from training.distributed.mesh import Ranks, launcher
from training.start import for_ranks
from training.state.checkpoint import Progress
from training.validation import dealt, in_turn


@pytest.fixture
def one_rank():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------- data
@pytest.mark.parametrize("packing", ["packed", "lanes", "rows"])
@pytest.mark.parametrize("number", [2, 3])
def test_the_ranks_read_the_rows_of_one_order(packing, number):
    options = dict(batch_size=6, block_size=7, packing=packing, resets=packing == "lanes")
    tokenizer = get_tokenizer("stories4k")
    with TrainLoader(Stories(), tokenizer, **options) as loader:
        whole, state = take(loader, 5), loader.state_dict()
    parts = []
    for rank in range(number):
        with TrainLoader(Stories(), tokenizer, part=(rank, number), **options) as loader:
            parts.append(take(loader, 5))
            assert str(loader.state_dict()) == str(state)  # so one of them is that of the run
    joined = [{name: torch.cat([p[name] for p in step]) for name in step[0]} for step in zip(*parts)]
    assert equal(joined, whole)


@pytest.mark.parametrize("count", range(6))
def test_validation_batches_are_shared_out_in_equal_numbers_and_put_back_in_order(count):
    batches = [{"input_ids": torch.tensor(i)} for i in range(count)]
    turns = [(int(batch["input_ids"]), turn, filler) for batch, turn, filler in dealt(batches, 3)]
    assert len(turns) == -(-count // 3) * 3
    scored = tuple(
        [number for number, turn, filler in turns if turn == rank and not filler] for rank in range(3)
    )
    assert in_turn(scored) == list(range(count))


def test_batches_with_a_carry_are_scored_once_by_every_rank():
    batches = [{"reset": torch.tensor(True)}] * 4
    assert [filler for *_, filler in dealt(batches, 3)] == [False] * 4


# --------------------------------------------------------------------------------------------- settings
def saved(**changes) -> dict:
    return asdict(TrainConfig(batch_size=4, grad_accum=6)) | changes


def command(**given) -> CommandLine:
    return CommandLine(TrainConfig(**given), {}, frozenset(given), False)


@pytest.mark.parametrize(
    "was, now, batch_size, grad_accum",
    [(2, 1, 4, 12), (2, 4, 4, 3), (2, 8, 3, 2), (2, 16, 3, 1), (2, 48, 1, 1), (1, 2, 4, 3)],
)
def test_another_number_of_processes_keeps_the_rows_of_a_step(monkeypatch, was, now, batch_size, grad_accum):
    monkeypatch.setenv("WORLD_SIZE", str(now))
    settings, lines = for_ranks(saved(), was, command())
    assert (settings["batch_size"], settings["grad_accum"]) == (batch_size, grad_accum)
    assert now * batch_size * grad_accum == was * 4 * 6 and f"batch_size {batch_size}" in lines[0]


def test_a_given_batch_size_decides_the_grad_accum_of_another_number_of_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    settings, _ = for_ranks(saved(), 2, command(batch_size=2))
    assert settings["grad_accum"] == 6
    with pytest.raises(ValueError, match="batch_size must be one of 1, 2, 3, 4, 6, 12, got 5"):
        for_ranks(saved(), 2, command(batch_size=5))


def test_lanes_stay_lanes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    settings, _ = for_ranks(saved(packing="lanes"), 2, command())
    assert (settings["batch_size"], settings["grad_accum"]) == (2, 6)


def test_a_number_of_processes_that_does_not_fit_is_refused_with_those_that_do(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(
        ValueError, match="cannot be shared by 5 processes; .* 1, 2, 3, 4, 6, 8, 12, 16, 24, 48$"
    ):
        for_ranks(saved(), 2, command())
    with pytest.raises(ValueError, match="processes: 1, 2, 4, 8$"):
        for_ranks(saved(packing="lanes"), 2, command())


@pytest.mark.parametrize(
    "parallel, layout",
    [("ddp", ("ddp", None)), ("fsdp", ("fsdp", None)), ("ep", ("ddp", 0)), ("fsdp+ep:8", ("fsdp", 8))],
)
def test_parallel_names_a_layout(parallel, layout):
    assert TrainConfig(parallel=parallel).layout == layout


@pytest.mark.parametrize("parallel", ["tp", "ep:0", "fsdp:2", "ep+fsdp", "ddp+ep"])
def test_other_layouts_are_refused(parallel):
    with pytest.raises(ValueError, match="parallel must be ddp, fsdp, ep, fsdp"):
        TrainConfig(parallel=parallel)


def test_one_process_cannot_be_sharded(tmp_path, capsys):
    assert run_here(tmp_path, *TINY, "--parallel", "fsdp") == 2
    assert "start them with torchrun --nproc_per_node=N train.py" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_rank_tells_which_checkpoint_a_folder_means(tmp_path, monkeypatch, capsys):
    model = small_model(vocab_size=1536)
    state = {"model_name": "gptoss", "config": asdict(model.config), "model": model.state_dict(), "step": 3}
    torch.save(
        state | {"tokenizer": tokenizer_state(get_tokenizer("bundled1536"))}, tmp_path / "checkpoint_3.pt"
    )
    for rank, told in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        start.resolve(command(init_from=str(tmp_path), block_size=16, device="cpu"))
        assert capsys.readouterr().err.count("the newest checkpoint of") == told


@pytest.mark.parametrize(
    "ranks, here, words",
    [
        (1, 1, "python"),
        (4, 4, "torchrun --nproc_per_node 4"),
        (16, 8, "torchrun --nnodes 2 --nproc_per_node 8 (and its --rdzv flags on each node)"),
    ],
)
def test_a_run_is_continued_with_the_launcher_that_started_it(monkeypatch, ranks, here, words):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    assert launcher() == words


def test_restarts_on_several_nodes_need_a_store_of_their_own(monkeypatch):
    monkeypatch.setattr(mesh, "TELLING", 0)
    several = {"WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}
    for name, value in several.items():
        monkeypatch.setenv(name, value)
    for rank, kind in (("0", ValueError), ("3", mesh.FailedElsewhere)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(ValueError, match="SHARE_RDZV_TCP_STORE=1, got nothing, .*; export it") as error:
            with mesh.joined_ranks():
                pass
        assert type(error.value) is kind
    for name, value in (
        ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1"),
        ("TORCHELASTIC_MAX_RESTARTS", "0"),
        ("GROUP_WORLD_SIZE", "1"),
    ):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            mesh.require_own_store()


def test_the_share_of_the_peak_is_that_of_the_devices_together(monkeypatch):
    monkeypatch.setattr(reporting, "peak_flops", lambda *_: 50.0)
    model = SimpleNamespace(config=SimpleNamespace(flops_per_token=lambda block_size: 10.0))
    run = SimpleNamespace(cfg=TrainConfig(), device=torch.device("cpu"), model=model, ranks=Ranks(4, 0))
    record = reporting.speed_record(run, Progress(tokens=60, seconds=3.0), (20, 1.0))
    assert (record["perf/tokens_per_second"], record["perf/mfu"]) == (20.0, 1.0)


# ---------------------------------------------------------------------------------------------- experts
@pytest.mark.parametrize("backend", ["loop", "sorted"])
def test_exchanged_experts_have_the_values_and_gradients_of_the_specification(one_rank, backend):
    from training.distributed.expert_parallel import ExchangingExperts

    draw = torch.Generator().manual_seed(1)
    D, units = 10, 6
    shapes = (N, D), (N, k), (E, 2 * units, D), (E, 2 * units), (E, D, units), (E, D)
    tensors = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    index = torch.randint(E - 1, (N, k), generator=draw)  # the last expert gets nothing
    index[::4, 1] = E  # dropped

    def through(experts):
        return lambda x, weight, *weights: experts(x, index, weight, ExpertWeights(*weights, 7.0))

    exchanging = ExchangingExperts(EXPERT_BACKENDS[backend], dist.group.WORLD)
    wanted = values_and_gradients(through(loop_experts), tensors)
    found = values_and_gradients(through(exchanging), tensors)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_a_degree_that_does_not_divide_ranks_and_experts_is_refused_with_those_that_do():
    from training.distributed.shard import expert_degree

    model = small_model(num_experts=12)
    assert expert_degree(model, 0, 8) == 4 and expert_degree(model, 2, 8) == 2
    with pytest.raises(ValueError, match="8 processes and the 12 experts; use one of 1, 2, 4$"):
        expert_degree(model, 8, 8)
