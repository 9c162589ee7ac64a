"""Plans of runs on many GPUs: sizes, times and advice. tests/test_planner_peer.py counts what two ranks exchange."""

import json
import math
import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from torch.distributed.run import get_args_parser
from torch.utils._python_dispatch import TorchDispatchMode
from toy_run import SMALL, run_here

from architecture.registry import build_config
from benchmarks import planner_rows
from training import costs, planner
from training.config import TrainConfig
from training.muon import orthogonalize
from training.planner import CARDS, Collective, Layout, Machine, Tensor, model_of, plans

ROOT = Path(__file__).resolve().parents[1]
LINK, LATENCY = planner.LINK_EFFICIENCY, planner.LATENCY


def small_model(cfg=None, **switches):
    config = build_config("gptoss", "toy", SMALL | {"num_experts": 6} | switches)
    return model_of(cfg or TrainConfig(dtype="float32"), config)


# ------------------------------------------------------------------------------------ what a rank holds


@pytest.mark.parametrize("gpus", [1, 2, 3, 8])
def test_a_sharded_tensor_is_split_as_torch_splits_it(gpus):
    for shape in ((7, 5), (8, 3), (1, 6), (24,)):
        tensor = Tensor(shape, block=0, expert=False, trained=True, matrix=False)
        parts = torch.zeros(shape).chunk(gpus)
        assert tensor.held(Layout(True), gpus) == parts[0].numel()
        assert tensor.used(Layout(True), gpus) == gpus * parts[0].numel()
        assert tensor.held(Layout(False), gpus) == tensor.used(Layout(False), gpus) == math.prod(shape)


def test_experts_that_are_spread_are_not_sharded_as_well():
    tensor = Tensor((6, 5, 2), block=0, expert=True, trained=True, matrix=True)
    for layout, held in (
        (Layout(True, 3), 20),
        (Layout(False, 3), 20),
        (Layout(True), 10),
        (Layout(False), 60),
    ):
        assert tensor.held(layout, 6) == held
    assert tensor.used(Layout(True, 3), 6) == 20 and tensor.used(Layout(True), 6) == 60


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_plan_for_one_gpu_has_the_memory_of_the_dry_run_of_one_process(optimizer):
    cfg = TrainConfig(dtype="float32", optimizer=optimizer)
    model = small_model(cfg, shared_experts=2)
    ours, one = planner.memory(cfg, model, Layout(False), 1), costs.memory_bytes(cfg, model.config)
    assert {part: ours[part] for part in one} == one
    assert ours["copies of weights"] == ours["communication"] == 0


def test_only_routed_experts_are_spread_and_every_parameter_is_counted_once():
    model = small_model(shared_experts=2, moe_layers=(1,))
    assert sum(math.prod(t.shape) for t in model.tensors) == model.config.parameter_counts()["total"]
    experts = [t for t in model.tensors if t.expert]
    assert {t.block for t in experts} == {1} and {t.shape[0] for t in experts} == {6} and len(experts) == 4


def test_the_degrees_divide_the_gpus_and_the_experts():
    cfg = TrainConfig()
    names = [str(layout) for layout in planner.layouts(cfg, small_model(), 12)]
    assert names == ["ddp", "fsdp", "ep:2", "fsdp+ep:2", "ep:3", "fsdp+ep:3", "ep:6", "fsdp+ep:6"]
    dense = model_of(TrainConfig(model="gpt2"), build_config("gpt2", "toy"))
    assert [str(layout) for layout in planner.layouts(cfg, dense, 12)] == ["ddp", "fsdp"]
    seeing = model_of(TrainConfig(model="gptoss_vision"), build_config("gptoss_vision", "toy"))
    assert [str(layout) for layout in planner.layouts(cfg, seeing, 12)] == ["ddp"]


# ------------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("kind", "ranks", "per_node", "seconds"),
    [
        # 72 GB over 8 GPUs of one node, 450 GB/s: seven eighths of them once around
        ("all-gather", 8, 8, 72e9 * 7 / 8 / 450e9),
        ("all-reduce", 8, 8, 2 * 72e9 * 7 / 8 / 450e9),
        # two nodes: half of them between nodes, over eight adapters of 50 GB/s; slower inside
        ("reduce-scatter", 16, 8, 72e9 * 15 / 16 / 450e9),
        # one GPU in each of four nodes: three quarters over one adapter
        ("all-reduce", 4, 1, 2 * 72e9 * 3 / 4 / 50e9),
        ("all-to-all", 8, 8, 72e9 * 7 / 8 / 450e9),
        (
            "all-to-all",
            16,
            8,
            72e9 * 8 / 16 / 50e9,
        ),  # half of the rows leave the node, each by its own adapter
    ],
)
def test_a_collective_takes_the_time_of_its_slowest_link(kind, ranks, per_node, seconds):
    found = Collective(kind, "x", 72e9, 3, ranks, per_node, True).seconds(CARDS["h100"])
    assert found == pytest.approx(seconds / LINK + 3 * LATENCY)


class CountFlops(TorchDispatchMode):
    """Adds the FLOPs of batched products."""

    flops = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        if operation._schema.name in ("aten::bmm", "aten::baddbmm"):
            left, right = arguments[-2:]
            self.flops += 2 * left.numel() * right.shape[-1]
        return operation(*arguments, **(options or {}))


def test_the_flops_of_muon_are_those_of_its_products():
    cfg, flops = TrainConfig(optimizer="muon"), 0
    model = small_model(cfg)
    for tensor in (t for t in model.tensors if t.matrix):
        matrices = torch.randn(math.prod(tensor.shape[:-2]), *tensor.shape[-2:])
        if matrices.shape[1] != matrices.shape[2]:  # the way in bfloat16, which CUDA takes for every shape
            matrices = matrices.bfloat16()
        with CountFlops() as counted:
            orthogonalize(matrices)
        flops += counted.flops
    assert planner.muon_flops(model, Layout(False), 2) == flops
    halves = planner.muon_flops(model, Layout(False, 2), 2)
    assert flops / 2 < halves < flops  # a rank updates its experts, and all of attention


def test_a_step_is_what_computes_and_what_nothing_hides():
    cfg, machine = TrainConfig(dtype="bfloat16", device="cuda", grad_accum=2), Machine(16, CARDS["a100"])
    config = build_config("gptoss", "medium")
    for p in plans(cfg, model_of(cfg, config), machine):
        moved = {c.what: (c.seconds(machine.card), c.overlaps) for c in p.collectives}
        hidden, alone = (sum(s for s, o in moved.values() if o == over) for over in (True, False))
        busy = p.seconds["computation"]
        assert p.step == pytest.approx(max(busy, hidden) + alone + p.seconds["Muon"])
        least = 2 * 8 * 2e-3  # two micro-batches of eight layers, of 2 ms for their operations at least
        needed = 2 * 2048 * config.flops_per_token(256) / (planner.EFFICIENCY * 312e12)
        assert busy == pytest.approx(max(least, needed))
        assert p.speed == pytest.approx(2 * 2048 / p.step)


def test_offload_trades_memory_of_the_gpu_for_time():
    cfg = TrainConfig(dtype="bfloat16", device="cuda", optimizer="adamw", block_size=1024)
    model, machine = model_of(cfg, build_config("gptoss", "large")), Machine(4, CARDS["h100"])
    plain, state, kept = (
        planner.plan(replace(cfg, offload=offload), model, Layout(False), machine)
        for offload in ("none", "optimizer", "activations")
    )
    total = model.config.parameter_counts()["total"]
    assert state.seconds["copies to the host and back"] == pytest.approx(8 * total / 64e9 / LINK)
    assert state.memory["optimizer"] < plain.memory["optimizer"] == 8 * total
    assert kept.memory["activations"] < plain.memory["activations"]
    assert plain.step < min(state.step, kept.step)
    sharded = planner.plan(replace(cfg, offload="optimizer"), model, Layout(True), machine)
    assert sharded.memory["weights"] == sharded.memory["gradients"] == sharded.memory["optimizer"] == 0
    copies = sum(4 * t.held(Layout(True), 4) * (2 if t.block is None else 3) for t in model.tensors)
    assert sharded.seconds["copies to the host and back"] == pytest.approx(copies / 64e9 / LINK)


def test_checkpointing_is_no_more_than_a_layout_needs_and_no_less_than_was_asked():
    config = build_config("gptoss", "gpt-oss-20b")
    cfg = TrainConfig(dtype="bfloat16", device="cuda", optimizer="adamw", block_size=1024, experts="grouped")
    model, layout, machine = model_of(cfg, config), Layout(True, 32), Machine(32, CARDS["h100"])
    found = {}
    for rows in range(2, 60, 2):
        now = replace(cfg, batch_size=rows)
        p = planner.plan(now, model, layout, machine)
        levels = [replace(now, activation_checkpointing=level) for level in planner.CHECKPOINTING]
        sizes = [sum(planner.memory(level, model, layout, 32).values()) for level in levels]
        enough = next((level for level, size in zip(levels, sizes) if size <= 72e9), levels[-1])
        assert p.cfg == enough
        found[enough.activation_checkpointing] = p
    assert list(found) == ["none", "selective", "full"]
    per_row = {level: p.seconds["computation"] / p.cfg.batch_size for level, p in found.items()}
    assert per_row["selective"] == pytest.approx(per_row["none"])
    # a third of a step is done again, but no head
    head, flops = 2 * 201_088 * 2880, config.flops_per_token(1024)
    assert per_row["full"] == pytest.approx((4 / 3 - head / flops) * per_row["none"])
    asked = planner.plan(replace(cfg, activation_checkpointing="full"), model, layout, machine)
    assert asked.cfg.activation_checkpointing == "full"


def test_the_memory_of_the_host_is_that_of_all_ranks_of_its_node():
    cfg = TrainConfig(dtype="bfloat16", device="cuda", optimizer="adamw")
    model = model_of(cfg, build_config("gptoss", "large"))
    total = model.config.parameter_counts()["total"]
    largest = 50304 * 768  # the embedding; a layer's mlp1 has 18 * 1216 * 768
    assert planner.host_memory(cfg, model, Layout(False), 16) == {
        "start": 8 * 4 * total, "offload": 0, "copies to save": 0, "whole model of the first rank": 0,
    }  # fmt: skip
    for layout in (Layout(True), Layout(True, 2), Layout(False, 2)):
        parts = planner.host_memory(cfg, model, layout, 16)
        assert parts["start"] == 8 * 4 * largest and parts["whole model of the first rank"] == 4 * total
        held = sum(tensor.held(layout, 16) for tensor in model.tensors)
        assert parts["copies to save"] == 8 * 4 * 3 * held and parts["offload"] == 0
    offloaded = replace(cfg, offload="optimizer")
    held = sum(tensor.held(Layout(True), 16) for tensor in model.tensors)
    assert planner.host_memory(offloaded, model, Layout(True), 16)["offload"] == 8 * 4 * 4 * held
    assert planner.host_memory(offloaded, model, Layout(False), 16)["offload"] == 8 * 4 * 2 * total
    kept = planner.memory(cfg, model, Layout(True), 16)["activations"]
    found = planner.host_memory(replace(cfg, offload="activations"), model, Layout(True), 16)
    assert found["offload"] == pytest.approx(8 * kept)


# ------------------------------------------------------------------------------------------- the report

OFFICIAL = "--vocab_size 201088 --block_size 4096 --batch_size 1 --optimizer adamw --dry_run".split()


def dry_run(tmp_path, capsys, *flags) -> str:
    assert run_here(tmp_path, *flags) == 0
    return capsys.readouterr().out


def test_a_plan_names_every_layout_that_fits_the_fastest_first(tmp_path, capsys):
    text = dry_run(tmp_path, capsys, *OFFICIAL, *"--model_size gpt-oss-120b --gpus 64 --gpu b200".split())
    assert "parameters       116,829,156,672 total, 5,132,849,472 active" in text
    speeds = [int(n.replace(",", "")) for n in re.findall(r"speed +([\d,]+) tokens/s", text)]
    fitting = re.findall(r"^\d+\. --parallel (\S+) --activation_checkpointing \w+$", text, re.M)
    assert len(speeds) == len(fitting) > 3 and speeds == sorted(speeds, reverse=True)
    (others,) = re.findall(r"^too large, with full activation checkpointing: (.*)$", text, re.M)
    assert len(fitting) + len(others.split(" GB")) - 1 == 14 and "ddp 2,1" in others
    hosts = re.findall(r"^  host +([\d,.]+) GB of the first node's memory: start ", text, re.M)
    assert len(hosts) == len(fitting) and all(468 < float(size.replace(",", "")) < 4000 for size in hosts)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_of_a_named_layout_is_of_that_one(tmp_path, capsys):
    flags = *OFFICIAL, *"--model_size gpt-oss-20b --gpus 64 --parallel fsdp+ep".split()
    text = dry_run(tmp_path, capsys, *flags)
    assert "parameters       20,914,757,184 total, 3,608,307,264 active" in text
    assert re.findall(r"--parallel \S+", text) == ["--parallel fsdp+ep:32"]
    assert run_here(tmp_path, *flags[:-1], "ep:5") == 2
    told = capsys.readouterr().err
    assert "one of ddp, fsdp, ep:2, fsdp+ep:2," in told and "on 64 GPUs, got ep:5" in told


def test_what_would_fit_does_fit(tmp_path, capsys):
    flags = *OFFICIAL, *"--model_size gpt-oss-20b --gpus 4 --gpu a100".split()
    told = dry_run(tmp_path, capsys, *flags).splitlines()[-1]
    assert told.startswith("nothing fits on 4 a100; any of these would: ")
    ways = re.findall(r"(--[^(]*) \(([^)]*)\)", told)
    assert len(ways) >= 2
    for way, layout in ways:
        assert f"1. --parallel {layout} " in dry_run(tmp_path, capsys, *flags, *shlex.split(way))
    flags = *OFFICIAL, *"--model_size gpt-oss-120b --gpus 1 --gpu rtx4090 --parallel ddp".split()
    told = dry_run(tmp_path, capsys, *flags).splitlines()[-1]
    assert told.startswith("nothing fits, not even on 1,024 GPUs; take a smaller model")


def test_a_plan_is_of_the_gpu_and_not_of_this_machine(tmp_path, capsys):
    text = dry_run(tmp_path, capsys, *"--model_size medium --dry_run --gpus 2 --max_minutes 30".split())
    assert "step             65,536 tokens, 32,768 on each GPU" in text  # the recipe, not cut for a CPU
    assert "in bfloat16" in text and " tokens in 30 minutes" in text
    accumulated = (*"--dry_run --gpu h200 --gpus 4 --grad_accum 8 --dtype float32".split(),)
    text = dry_run(tmp_path, capsys, *accumulated)
    assert "grad_accum 2 keeps the 16,384 tokens of one process" in text
    assert "each 67 TFLOP/s in float32, 141 GB" in text
    assert run_here(tmp_path, "--gpus", "8") == 2
    assert "add --dry_run, or leave them out" in capsys.readouterr().err


def test_the_cards_of_the_flag_are_those_of_the_table():
    literal, _ = get_args(get_type_hints(TrainConfig)["gpu"])
    assert set(get_args(literal)) == set(CARDS)


# ------------------------------------------------------------------------------------------ docs/scale.md
SCALE = (ROOT / "docs/scale.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", re.findall(r"^    python train.py (.*--dry_run.*)$", SCALE, re.M))
def test_each_plan_of_the_scale_page_has_a_layout_that_fits(command, tmp_path, capsys):
    text = dry_run(tmp_path, capsys, *shlex.split(command), "--tokenizer", "stories4k")
    assert "\n1. --parallel " in text


def under_torchrun(words: list[str], tmp_path, capsys) -> None:
    """Plan the run that `torchrun ...` starts: its own flags are known, and it fits on that many H100."""
    launch = get_args_parser().parse_args(words)
    assert launch.training_script == "train.py"
    gpus = int(launch.nnodes.split(":")[-1]) * int(launch.nproc_per_node)
    flags = [*launch.training_script_args, "--tokenizer", "stories4k", "--dry_run", "--gpus", str(gpus)]
    text = dry_run(tmp_path, capsys, *flags)
    tokens = 16 * 1024 * 32  # a step of the recipe
    assert "\n1. --parallel " in text and f"step             {tokens:,} tokens" in text


def test_each_torchrun_of_the_scale_page_starts_a_run_that_fits_with_the_step_of_its_recipe(tmp_path, capsys):
    lines = re.findall(r"^    torchrun (.*)$", SCALE, re.M)
    assert len(lines) == 2
    for line in lines:
        under_torchrun(shlex.split(line), tmp_path, capsys)


def test_the_slurm_script_of_the_scale_page_starts_one_torchrun_on_each_node(tmp_path, capsys):
    """It runs in bash, with stand-ins for SLURM's commands and for torchrun, which writes down its arguments."""
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", SCALE, re.S)
    tools = tmp_path / "tools"
    for folder in (tools, tmp_path / ".venv/bin"):
        folder.mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    for name, body in (
        ("scontrol", 'test "$*" = "show hostnames node[1-2]" && printf "node1\\nnode2\\n"'),
        ("srun", 'exec "$@"'),
        ("torchrun", 'printf "%s\\n" "$@" > arguments'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "17"}
    path = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-eu", "-c", script], check=True, cwd=tmp_path, env=os.environ | slurm | path)
    words = (tmp_path / "arguments").read_text().splitlines()
    assert words[words.index("--rdzv_endpoint") + 1] == "node1:29500"
    assert "#SBATCH --ntasks-per-node=1\n" in script and "#SBATCH --nodes=2\n" in script
    (tmp_path / "work").mkdir()
    under_torchrun(words, tmp_path / "work", capsys)


# ------------------------------------------------------------------------------------ published figures


def test_the_comparison_on_record_is_that_of_the_constants():
    recorded = json.loads((ROOT / "benchmarks/results/planner_rows.json").read_text())["rows"]
    assert [row["what"] for row in recorded] == [row.what for row in planner_rows.ROWS]
    assert recorded[0] == planner_rows.compare(planner_rows.ROWS[0])


def test_a_large_mixture_of_experts_that_is_published_has_its_parameters():
    counts = build_config("gptoss", "gpt-oss-120b", planner_rows.QWEN3_30B).parameter_counts()
    # 30.5 B in all, 3.3 B active (its model card), which counts no biases of experts and counts the embedding
    assert counts["total"] == pytest.approx(30.5e9, rel=0.01)
    assert counts["active"] + counts["embedding"] == pytest.approx(3.3e9, rel=0.03)
