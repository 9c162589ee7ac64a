"""What --dry_run says about memory and work, against what was built; and costs that are measured."""

import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_run import SMALL

from architecture import registry
from architecture.interface import logit_rows
from architecture.registry import build_config, build_model
from benchmarks import step_profile
from common import device
from common.device import available_memory
from evaluation import inference_cost
from training import muon
from training.config import TrainConfig
from training.costs import (
    MACHINES,
    bounded_evaluations,
    closing_tokens,
    memory_bytes,
    report,
    require_memory,
    sampler_bytes,
)
from training.optimizer import build_optimizers
from training.post.settings import DPOConfig, GRPOConfig, PPOConfig, SFTConfig

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def num_bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    "switches",
    [
        {"tie_embeddings": True, "shared_experts": 3, "router": "topk_sigmoid"},
        {"moe_layers": (1,), "attention_bias": False, "norm": "layernorm"},
        {"moe_layers": (), "attention_sinks": False, "position": "learned"},
        {"shared_experts": 2, "moe_layers": (0,), "mlp": "gelu"},
    ],
)
def test_weights_gradients_and_optimizer_are_those_of_a_built_model(optimizer, switches):
    sizes = SMALL | {"vocab_size": 90, "initial_context_length": 16}
    cfg, config = TrainConfig(optimizer=optimizer), build_config("gptoss", "toy", sizes | switches)
    model = build_model("gptoss", config)
    ids = torch.arange(16)[None]
    model(ids, ids).loss.backward()
    for parameter in model.parameters():  # an expert that no token chose has state, too
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    state = []
    for part in build_optimizers(model, cfg):
        part.step()
        values = (v for entry in part.state.values() for k, v in entry.items() if k != "step")
        state += values
    expected = memory_bytes(cfg, config)
    assert expected["weights"] == num_bytes(model.parameters())
    assert expected["gradients"] == num_bytes(p.grad for p in model.parameters())
    assert expected["optimizer"] == num_bytes(state)


def kept_for_backward(model, ids, **inputs) -> int:
    """Bytes of every tensor that autograd holds after a forward pass, the parameters' own left out."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(ids, ids.roll(-1, 1), **inputs)
        _loss = out.loss + out.router.balance_loss + out.router.z_loss
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(
    "rows, tokens, overrides",
    [
        (4, 128, {}),
        (2, 128, {"hidden_size": 256, "num_attention_heads": 2}),
        (2, 128, {"intermediate_size": 512}),
        (2, 96, {"experts_per_token": 5, "num_hidden_layers": 2, "router": "topk_sigmoid"}),
        (2, 96, {"shared_experts": 2, "mlp": "gelu", "moe_layers": (0, 2)}),
    ],
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_activations_are_estimated_to_15_percent(rows, tokens, overrides, attention):
    config = build_config("gptoss", "toy", overrides)
    model = build_model("gptoss", config, attention=attention)
    ids = torch.randint(4096, (rows, tokens), generator=torch.Generator().manual_seed(0))
    cfg = TrainConfig(batch_size=rows, block_size=tokens, attention=attention, dtype="float32")
    estimate = memory_bytes(cfg, config)["activations"]
    assert estimate == pytest.approx(kept_for_backward(model, ids), rel=0.15)


@pytest.mark.parametrize(
    "overrides", [{}, {"vision_num_layers": 5, "vision_embed_dim": 64}, {"vision_num_layers": 0}]
)
def test_activations_of_an_encoder_of_images_are_estimated_to_15_percent(overrides):
    """Those of the encoder alone, with one image in each row, as bytes_kept_per_token has it."""
    config = build_config("gptoss_vision", "toy", overrides)
    model, draw = build_model("gptoss_vision", config), torch.Generator().manual_seed(0)
    ids = torch.randint(4096, (4, 64), generator=draw)
    images = torch.rand(4, 3, 48, 48, generator=draw)
    cfg = TrainConfig(batch_size=4, block_size=64, dtype="float32")
    configs = config, build_config("gptoss_vision", "toy", overrides | {"use_vision": False})
    seeing, blind = (memory_bytes(cfg, one)["activations"] for one in configs)
    kept = kept_for_backward(model, ids, images=images) - kept_for_backward(model, ids)
    assert seeing - blind == pytest.approx(kept, rel=0.15)


def test_logits_never_count_for_more_than_one_block():
    config = build_config("gptoss", "toy")
    cfgs = (TrainConfig(batch_size=rows, block_size=64, device="cpu") for rows in (2, 4096))
    small, large = (memory_bytes(cfg, config)["logits"] for cfg in cfgs)
    assert small == 2 * 4 * 2 * 64 * 4096 and large == 2 * 4 * logit_rows(4096, "cpu") * 4096


def test_pairs_have_two_rows_each_and_a_reference_its_weights():
    config = build_config("gptoss", "toy")
    pairs, rows = (memory_bytes(kind(batch_size=n), config) for kind, n in ((DPOConfig, 3), (TrainConfig, 6)))
    changed = {"weights": 2 * rows["weights"], "logits": rows["logits"] * 3 // 2, "sampling": 0}
    assert pairs == rows | changed
    assert "step             1,536 tokens" in report(DPOConfig(batch_size=3), config)
    weights = [memory_bytes(GRPOConfig(beta=beta), config)["weights"] for beta in (0.0, 0.1)]
    assert weights == [rows["weights"], 2 * rows["weights"]]


@pytest.mark.parametrize("kind, most", [(SFTConfig, 512), (DPOConfig, 64)])
def test_the_responses_of_an_evaluation_count_where_they_take_more_memory_than_a_step(kind, most):
    config = build_config("gptoss", "toy")
    few, many = (kind(batch_size=1, held_out=number) for number in (1, 512))
    step = sum(
        size for name, size in memory_bytes(few, config).items() if name not in ("weights", "optimizer")
    )
    sampler = sampler_bytes(kind(batch_size=1, held_out=most), config)
    assert memory_bytes(few, config)["sampling"] == 0 < sampler - step
    assert memory_bytes(many, config) == memory_bytes(few, config) | {"sampling": sampler - step}
    with pytest.raises(ValueError, match="lower batch_size, block_size, held_out or the sizes of the model"):
        require_memory(many, config, 0)


def gigabytes(cfg, config) -> str:
    return f"{sum(memory_bytes(cfg, config).values()) / 1e9:.3f} GB"


def row(text: str, machine: str) -> str:
    return next(line for line in text.splitlines() if machine in line)


def test_the_report_multiplies_tokens_and_flops():
    cfg = TrainConfig(
        batch_size=3, block_size=100, grad_accum=2, max_iters=5000, device="cpu", dtype="float32"
    )
    config = build_config("gptoss", "toy")
    text, flops = report(cfg, config), config.flops_per_token(100)
    assert "step             600 tokens" in text
    assert f"run              5,000 steps, 3,000,000 tokens, {3e6 * flops:.3g} FLOPs" in text
    minutes = 3e6 * flops / 0.045e12 / 60
    assert f"cores, float32, {gigabytes(cfg, config)}: about {minutes:,.1f} minutes" in text
    # a small model on a GPU costs its kernel launches: 90,000 x 4 layers x 2 ms
    text = report(TrainConfig(max_iters=90_000), config)
    assert row(text, "one H100").endswith(": about 12.0 minutes; evaluations: about 12.5 minutes at most")
    text = report(TrainConfig(max_iters=None, max_minutes=20.0), config)
    assert "run              20 minutes of training" in text
    assert "about 3,100 steps, 6,300,000 tokens; evaluations: " in row(text, "two laptop cores")


def test_the_speed_of_two_cores_is_the_measured_one():
    facts = json.loads((RESULTS / "tinystories_20_minutes.json").read_text())
    per_token = build_config("gptoss", "toy").flops_per_token(256)
    rate = next(machine.flops for machine in MACHINES if "cores" in machine.name) / per_token
    assert rate == pytest.approx(facts["final"]["final/tokens_per_second"], rel=0.03)


def test_memory_and_speed_of_a_machine_are_of_one_dtype():
    config = build_config("gptoss", "medium")
    cfgs = [
        TrainConfig(device="cpu", dtype="float32", batch_size=64),
        TrainConfig(
            device="cuda", dtype="bfloat16", batch_size=64, attention="flex", experts="grouped", compile="on"
        ),  # as on CUDA
    ]
    full, half = (gigabytes(cfg, config) for cfg in cfgs)
    assert full != half
    for cfg in cfgs:
        text = report(cfg, config)
        assert f"float32, {full}: " in row(text, "two laptop cores")
        assert f"bfloat16, {half}: " in row(text, "one H100")


@pytest.mark.parametrize(
    "size, changes, told",
    [
        ("toy", {"vocab_size": 90}, "gptoss toy with 90 ids"),
        (
            "toy",
            {"num_experts": 16, "norm": "layernorm"},
            "toy with num_experts 16, norm layernorm, 4,096 ids",
        ),
        (
            "toy",
            SMALL,
            "num_hidden_layers 2, num_experts 5, hidden_size 20, intermediate_size 9, 3 more changes, ",
        ),
        ("custom", SMALL, "gptoss custom with 4,096 ids"),  # the weights of another program
    ],
)
def test_the_report_names_the_fields_that_differ_from_the_preset(size, changes, told):
    text = report(TrainConfig(model_size=size), build_config("gptoss", "toy", changes))
    assert told in text.splitlines()[0]


def test_no_time_on_a_gpu_is_given_where_most_of_a_step_is_not_counted():
    config = build_config("gptoss", "toy")
    machines = [
        sum(machine.name in report(kind(), config) for machine in MACHINES)
        for kind in (SFTConfig, DPOConfig, GRPOConfig, PPOConfig)
    ]
    assert machines == [3, 3, 1, 1] and "two laptop cores" in report(GRPOConfig(), config)


def test_a_run_that_does_not_fit_is_reported_for_this_device_and_each_machine():
    small, large = (build_config("gptoss", size) for size in ("toy", "gpt-oss-20b"))
    assert "does not fit" not in report(TrainConfig(device="cpu"), small, available=16e9)
    text = report(TrainConfig(device="cpu"), small, available=1e8)
    assert "GB in all: does not fit into the 0.1 GB available; lower batch_size" in text
    assert row(text, "two laptop cores").endswith(": does not fit")
    assert "does not fit" not in row(text, "one RTX 4090")
    text = report(TrainConfig(device="cuda"), large, available=500e9)
    assert re.search(r"\d{3}\.\d{3} GB in all, of 500\.0 GB available", text)
    assert row(text, "one H100").endswith(": does not fit")


@pytest.mark.parametrize(
    ("name", "brain", "single"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12), ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H100 NVL", 835e12, 60e12), ("NVIDIA L40", 181e12, 90.5e12), ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 91.6e12), ("NVIDIA GeForce RTX 4090", 165e12, 82.6e12),
        ("NVIDIA GeForce RTX 4090 D", None, None), ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None), ("Tesla T4", None, None),
    ],
)  # fmt: skip
def test_the_peak_of_a_card_is_by_its_exact_name_and_the_dtype(monkeypatch, name, brain, single):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = [device.peak_flops(torch.device("cuda"), dtype) for dtype in ("bfloat16", "float32")]
    assert found == [brain, single]
    assert device.peak_flops(torch.device("cpu"), "float32") is None


def test_the_memory_of_this_machine_is_known():
    assert 1e8 < available_memory(torch.device("cpu")) < 1e14


@pytest.mark.parametrize(
    "layers, told", [((), "0 of 4"), ((1,), "1 of 4"), ((0, 1, 2, 3), None), (None, None)], ids=str
)
def test_a_model_with_dense_layers_says_how_many_have_experts(layers, told):
    text = report(TrainConfig(), build_config("gptoss", "toy", {"moe_layers": layers}))
    assert f", experts in {told} layers" in text if told else "experts in" not in text


def test_no_machine_takes_steps_faster_than_it_can_start_them_and_a_time_has_one_wording():
    tiny = build_config("gptoss", "toy", SMALL | {"vocab_size": 64})
    text = report(TrainConfig(max_iters=None, max_minutes=20.0, block_size=8), tiny)
    for machine in MACHINES:  # two layers of 2 ms in each step
        assert ": about 300,000 steps, 19,000,000 tokens; evaluations: " in row(text, machine.name)
    for steps, told in (
        (60_000, "4.0 minutes"),
        (20_000, "80 seconds"),
        (22_600, "1.5 minutes"),
        (3, "1 second"),
    ):
        text = report(TrainConfig(max_iters=steps, block_size=8), tiny)
        assert all(f": about {told}; " in row(text, machine.name) for machine in MACHINES)


def test_evaluations_take_no_longer_than_a_short_training_and_are_in_the_estimate():
    config = build_config("gptoss", "medium")
    short = TrainConfig(max_iters=5, device="cpu")
    cfg, (line,) = bounded_evaluations(short, frozenset())
    assert cfg.eval_tokens == 3 * 5 * 2048 and "scores 30,720 tokens, so that it takes no longer" in line
    assert bounded_evaluations(short, frozenset({"eval_tokens"})) == (short, ())  # a flag is obeyed
    assert bounded_evaluations(TrainConfig(device="cpu"), frozenset())[1] == ()
    assert "about 27 seconds; evaluations: about 27 seconds at most" in row(report(cfg, config), "cores")
    every = TrainConfig(max_iters=5, final_eval_tokens="all")
    assert "at most without the closing one, on all tokens" in report(every, config)
    assert [closing_tokens(c, 100_000) for c in (short, every)] == [300_000, None]
    assert closing_tokens(short, 5) == short.eval_tokens  # the last evaluation takes its place


# ------------------------------------------------------------------------------- costs that are measured


class Clock:
    """The module time, where each look at the clock takes a second, and half a CPU second."""

    def __init__(self):
        self.looks = 0

    def perf_counter(self) -> float:
        self.looks += 1
        return float(self.looks)

    def process_time(self) -> float:
        return self.looks / 2


def test_a_speed_is_tokens_over_the_time_of_reading_or_writing_alone(monkeypatch):
    model, cpu, products = (
        build_model("gptoss", build_config("gptoss", "toy", SMALL)),
        torch.device("cpu"),
        [],
    )
    model.tokenizer = SimpleNamespace(n_vocab=90)
    monkeypatch.setattr(registry, "load_model", lambda path, device: model)
    monkeypatch.setattr(
        device, "matmul_rate", lambda place: products.append(clock.looks) or 3e9 + 2e9 * len(products)
    )
    monkeypatch.setattr(inference_cost, "time", clock := Clock())
    monkeypatch.setattr(inference_cost, "SECONDS", 2.5)  # three texts, each of a second of decoding
    found = inference_cost.visit(Path("model"), 16, cpu)
    assert clock.looks == 9 and products == [0, 9]  # the product runs right before and after all looks
    assert found["prefill_tokens_per_second"] == 8 and found["prefill_tokens_per_cpu_second"] == 16
    assert found["decode_tokens_per_second"] == 7 and found["decode_tokens_per_cpu_second"] == 14
    assert found["matmul_gflops"] == 6
    assert found["weight_bytes"] == num_bytes(model.parameters())


def test_models_are_measured_in_turn_and_each_gets_the_median_of_its_own_rounds(
    tmp_path, monkeypatch, capsys
):
    speeds = {"a": [5.0, 1.0, 4.0], "b": [60.0, 80.0, 20.0]}
    visited = []

    def visit(path, tokens, device):
        visited.append(path.stem)
        speed = speeds[path.stem][visited.count(path.stem) - 1]
        rates = {f"{kind}_tokens_per_second": speed * n for kind, n in (("prefill", 10), ("decode", 1))}
        rates["decode_tokens_per_cpu_second"] = 3 * speed
        return {"weight_bytes": 7, "peak_memory_gb": speed, "matmul_gflops": speed + 0.5} | rates

    monkeypatch.setattr(inference_cost, "visit", visit)
    for size, name in enumerate(speeds):
        (tmp_path / f"{name}.pt").write_bytes(bytes(10 + size))
    paths = [str(tmp_path / f"{name}.pt") for name in speeds]
    inference_cost.run(
        [*paths, "--tokens", "8", "--rounds", "3", "--threads", "1", "--out", str(tmp_path / "out.json")]
    )
    assert "".join(visited) == "abbaab"
    one, two = json.loads((tmp_path / "out.json").read_text())["checkpoints"]
    assert one["decode_tokens_per_second"] == 4 and two["prefill_tokens_per_second"] == 600
    assert (
        one["matmul_gflops_each_round"] == [5.5, 1.5, 4.5]
        and two["decode_tokens_per_second_each_round"] == speeds["b"]
    )
    assert (one["checkpoint_bytes"], two["checkpoint_bytes"]) == (10, 11) and one["peak_memory_gb"] == 4
    assert one["decode_tokens_per_cpu_second"] == 15  # the fastest round
    assert (
        "decode 60 (20 to 80) tokens/s, 240 per CPU second; a fixed product of matrices 20 to 80 GFLOP/s"
        in capsys.readouterr().out
    )


def test_slow_models_get_fewer_rounds_unless_the_number_was_given(tmp_path, monkeypatch):
    (path := tmp_path / "a.pt").touch()
    now = [0.0]

    def visit(*_):
        now[0] += 13.0
        rates = {"decode_tokens_per_cpu_second": now[0]}
        return {"weight_bytes": 7, "peak_memory_gb": None, "matmul_gflops": 1.0} | rates

    monkeypatch.setattr(inference_cost, "visit", visit)
    monkeypatch.setattr(inference_cost, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for rounds, models, made in ((None, 1, 5), (None, 2, 5), (7, 1, 7)):
        costs = inference_cost.measure([path] * models, 8, "cpu", rounds)
        assert [len(cost["matmul_gflops_each_round"]) for cost in costs] == [made] * models
        assert costs[0]["peak_memory_gb"] is None
    now[0], inference_cost.time.monotonic = 0.0, lambda: now[0] / 26
    (cost,) = inference_cost.measure([path], 8, "cpu")
    assert len(cost["matmul_gflops_each_round"]) == 25
    assert cost["decode_tokens_per_cpu_second"] == 23 * 13  # two rounds of 25 were faster


def test_the_peak_of_memory_begins_anew(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    if not device.forget_peak_memory(cpu):
        pytest.skip("this system has no way to do so")
    before = device.peak_memory_gb(cpu)
    big = torch.ones(50_000_000 // 4)
    assert device.peak_memory_gb(cpu) - before > 0.045
    del big
    assert device.peak_memory_gb(cpu) - before > 0.045 and device.forget_peak_memory(cpu)
    assert device.peak_memory_gb(cpu) - before < 0.01
    monkeypatch.setattr(device, "PROC", tmp_path / "none")  # as on macOS
    assert not device.forget_peak_memory(cpu) and device.peak_memory_gb(cpu) > 0


@pytest.mark.parametrize(
    "rows, columns", [(6, 4), (4, 6), (5, 5), (3, 6), (14, 4)]
)  # from twice as long on: by its gram
@pytest.mark.parametrize("rounds", [1, 4])
def test_the_products_of_muon_are_counted_by_the_shape_of_a_matrix(rows, columns, rounds):
    matrices = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(0))
    with step_profile.FlopCounterMode(display=False) as counter:
        muon.orthogonalize(matrices, muon.POLYNOMIALS[:rounds])
    assert 3 * step_profile.muon_flops(rows, columns, rounds) == counter.get_total_flops()


def test_all_products_of_a_step_are_counted_those_inside_of_attention_by_themselves():
    """Against eager attention, whose products torch's counter knows, and against products by hand."""
    config = build_config("gptoss", "toy", SMALL | {"vocab_size": 90, "initial_context_length": 16})
    ids = torch.randint(90, (2, 11), generator=torch.Generator().manual_seed(0))
    found = {}

    def step(model) -> None:
        model(ids, ids).loss.backward()

    for attention in ("eager", "sdpa"):
        model = build_model("gptoss", config, attention=attention)
        found[attention] = step_profile.flops_of_products(partial(step, model))
    layers, products = config.num_hidden_layers, 2 * 2 * 6 * 11 * 11 * 4  # B H T S C
    kernel, rest = found["sdpa"]["attention's kernel"], found["sdpa"]["matrix products"]
    assert kernel == layers * (2 + 5) * products  # forward, and backward with q k^T once more
    assert found["eager"] == {"attention's kernel": 0, "matrix products": rest + layers * (2 + 4) * products}
    inside = torch.zeros(3, 5)
    by_hand = step_profile.flops_of_products(lambda: inside.addmm_(torch.ones(3, 7), torch.ones(7, 5)))
    assert by_hand["matrix products"] == 2 * 3 * 7 * 5
