"""train.py as a person calls it: what it prints, what it writes, and one line for everything that is wrong."""

import builtins
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_corpus import documents, write_jsonl
from toy_run import TINY, load, run, run_here

import sample
from architecture import tokenizer
from architecture.gptoss import MEANINGS, ModelConfig
from data.prepare import prepare
from training.command_line import parse_command_line
from training.monitor.metrics import read_metrics
from training.train_command import model_fields

ROOT = Path(__file__).resolve().parent.parent
HEADS = 4  # of TINY
RUN = [*TINY, "--max_iters", "6", "--save_every", "3", "--eval_every", "3", "--out_dir", "model"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus):
    """The folder of a whole run, and what that printed."""
    folder = tmp_path_factory.mktemp("finished")
    ended = run(folder, *RUN, *corpus)
    assert ended.code == 0, ended.err
    return folder, ended.err


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs train.py on bad input; returns its one line, after a look that nothing was written."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*flags) -> str:
        before = sorted(Path().rglob("*"))
        assert run_here(Path(), *flags) == 2
        out, err = capsys.readouterr()
        assert sorted(Path().rglob("*")) == before, "something was written"
        assert out == "" and err.count("\n") == 1, err
        assert err.startswith("train.py: error: ")
        return err.removeprefix("train.py: error: ").rstrip("\n")

    return call


# --------------------------------------------------------------------------------------- a whole run


def test_a_run_writes_its_settings_metrics_and_checkpoints(finished, corpus):
    folder, _ = finished
    names = {path.name for path in (folder / "model").iterdir()} - {".lock"}
    assert names == {
        "config.json",
        "metrics.jsonl",
        "best.json",
        "checkpoint_3.pt",
        "checkpoint_6.pt",
    }
    facts = json.loads((folder / "model/config.json").read_text())
    assert facts["train"]["dataset"] == corpus[1] and facts["train"]["max_iters"] == 6
    resolved = {
        "device": "cpu",
        "dtype": "float32",
        "attention": "sdpa",
        "experts": "sorted",
        "threads": 1,
    }
    assert facts["train"].items() >= resolved.items()  # no "auto" is left
    assert facts["model"]["hidden_size"] == 32 and facts["model"]["vocab_size"] == 4096
    assert facts["tokenizer"]["name"] == "stories4k" and facts["starts"][0]["torch"] == torch.__version__
    assert [path.name for path in folder.glob("runs/*")] == [Path(facts["tensorboard_dir"]).name]
    best = json.loads((folder / "model/best.json").read_text())
    validation = {
        r["step"]: r["val/loss"] for r in read_metrics(folder / "model/metrics.jsonl") if "val/loss" in r
    }
    assert sorted(validation) == [3, 6]
    assert best["step"] == min(validation, key=validation.get)
    assert best["val_loss"] == validation[best["step"]]


def test_metrics_and_tensorboard_hold_every_tag_with_the_same_numbers(finished):
    folder, _ = finished
    records = read_metrics(folder / "model/metrics.jsonl")
    train_tags = {
        "train/loss", "train/bits_per_byte", "train/balance_loss", "train/z_loss", "optim/lr", "optim/grad_norm",
        "perf/tokens_per_second", "perf/peak_memory_gb", "moe/max_violation/layer_00", "moe/max_violation/layer_01",
        "data/epoch", "data/padding_share", "data/tokens", "perf/seconds",
    }  # fmt: skip
    kinds = "attention", "sinks", "router", "experts", "embedding", "head", "norms", "biases"
    train_tags |= {f"optim/grad_norm/{kind}" for kind in kinds}
    first_tags = {"val/loss", "val/bits_per_byte"}
    first_tags |= {f"val/loss_by_position/from_{n:04d}" for n in (0, 1, 2, 4, 8)}
    first_tags |= {
        f"moe/{what}/layer_{layer:02d}"
        for what in ("entropy", "dead_experts", "margin", "max_violation_since_eval")
        for layer in (0, 1)
    }
    heads = [(layer, head) for layer in (0, 1) for head in range(HEADS)]
    first_tags |= {f"attention/sink_mass/layer_{n:02d}/head_{h:02d}" for n, h in heads}
    val_tags = first_tags | {f"moe/flip_rate/layer_{layer:02d}" for layer in (0, 1)}
    by_step = [set(r) - {"step"} for r in records if "train/loss" in r]
    assert by_step == [train_tags] * 6
    assert [set(r) - {"step"} for r in records if "val/loss" in r] == [first_tags, val_tags]
    for tag in ("moe/load", "moe/token_kinds", "attention/sink_mass", "samples/story"):
        assert [r["step"] for r in records if tag in r] == [3, 6]
    maps = [torch.tensor(r["moe/load"]) for r in records if "moe/load" in r]  # shares, (layers, experts)
    assert all(m.shape == (2, 6) and m.sum(-1).tolist() == pytest.approx([1, 1]) for m in maps)

    (board,) = (folder / "runs").iterdir()
    events = EventAccumulator(str(board), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    numbers = {tag for tag in events.Tags()["scalars"] if not tag.startswith("hparam/")}
    assert numbers == train_tags | val_tags
    for tag in numbers:
        told = [(r["step"], r[tag]) for r in records if tag in r]
        drawn = [(event.step, event.value) for event in events.Scalars(tag)]
        assert drawn == [(step, pytest.approx(value, rel=1e-6)) for step, value in told], tag
    for tag in ("moe/load", "moe/token_kinds/layer_01", "attention/sink_mass"):
        assert [event.step for event in events.Images(tag)] == [3, 6]
    table = events.Tensors("moe/token_kinds/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert table.count("| layer ") == 2 and "| punctuation |" in table
    story = events.Tensors("samples/story/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert story == [r["samples/story"] for r in records if "samples/story" in r][-1]


@pytest.mark.parametrize("tokens, scored_again", [(128, True), (256, False)])
def test_the_closing_evaluation_takes_as_many_tokens_as_told(corpus, tmp_path, capsys, tokens, scored_again):
    """The first ones, as --eval_only scores them; not once more where the last evaluation did (256)."""
    flags = [*RUN, *corpus, "--final_eval_tokens", tokens, "--no-use_tensorboard"]
    assert run_here(tmp_path, *flags) == 0
    assert ("closing evaluation on 128 validation tokens" in capsys.readouterr().err) == scored_again
    (closing,) = (r for r in read_metrics(tmp_path / "model/metrics.jsonl") if "final/loss" in r)
    assert closing["final/validation_tokens"] == tokens
    assert run_here(tmp_path, "--eval_only", "model", "--eval_tokens", tokens, "--threads", 1) == 0
    told = f"{closing['final/loss']:.4f} +- {closing['final/loss_standard_error']:.4f} nats/token"
    assert told in capsys.readouterr().out


def test_the_closing_summary_tells_what_came_out_and_what_to_do_next(finished, monkeypatch, capsys):
    folder, err = finished
    closing = {}
    for record in read_metrics(folder / "model/metrics.jsonl"):
        closing |= {k.removeprefix("final/"): v for k, v in record.items() if k.startswith("final/")}
    assert closing["steps"] == 6 and closing["tokens"] == 6 * 4 * 16
    summary = err[err.index("--- story 1") :]
    assert re.findall(r"--- story \d", summary) == ["--- story 1", "--- story 2", "--- story 3"]
    assert f"validation loss  {closing['loss']:.4f} +- " in summary
    assert (
        f"{closing['bits_per_byte']:.4f} bits per byte, over {closing['validation_tokens']:,} tokens"
        in summary
    )
    assert "training         6 steps, 384 tokens in " in summary and "tokens/s)" in summary
    assert f"parameters       {closing['parameters']:,}, {closing['active_parameters']:,} active" in summary

    monkeypatch.chdir(folder)
    lines = summary.partition("next:\n")[2].splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    if commands[0][0] == "source":  # the tests' environment may not be activated
        assert Path(commands.pop(0)[1]).is_file()
    assert [command[:2] for command in commands] == [
        ["python", "sample.py"], ["tensorboard", "--logdir"], ["python", "-m"], ["python", "train.py"],
    ]  # fmt: skip
    assert sample.main([*commands[0][2:], "--max_tokens", "3", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("Once upon a time")
    assert Path(commands[1][2]).is_dir()
    assert commands[2][2:] == ["evaluation.report", "model"]
    parsed = parse_command_line(commands[3][2:], model_fields)
    assert parsed.config.init_from == "model/checkpoint_6.pt" and parsed.config.out_dir == "model_next"


def test_eval_only_scores_a_checkpoint_and_writes_nothing(finished, corpus, tmp_path, capsys):
    folder, _ = finished
    best = [r for r in read_metrics(folder / "model/metrics.jsonl") if "final/loss" in r][-1]
    flags = [
        "--eval_only",
        folder / "model/checkpoint_6.pt",
        *corpus,
        "--block_size",
        16,
        "--device",
        "cpu",
    ]
    assert run_here(tmp_path, *flags) == 0
    out = capsys.readouterr().out
    assert f"validation loss {best['final/loss']:.4f} +- " in out
    assert f"{best['final/bits_per_byte']:.4f} bits per byte" in out
    assert list(tmp_path.iterdir()) == []


def test_init_from_starts_a_new_run_with_the_weights_and_the_shape_of_another(
    finished, corpus, tmp_path, monkeypatch
):
    from training import trainer

    folder, _ = finished
    source, seen = folder / "model/checkpoint_6.pt", {}

    def stand_in(cfg, model, *_, resumed, lines):
        seen.update(model=model, cfg=cfg, resumed=resumed)

    monkeypatch.setattr(trainer, "train", stand_in)
    assert run_here(tmp_path, "--init_from", source, *corpus, "--block_size", 16, "--threads", 1) == 0
    weights = load(source)["model"]
    ours = seen["model"].state_dict()
    assert ours.keys() == weights.keys() and all(torch.equal(ours[n], weights[n]) for n in weights)
    assert seen["resumed"] is None and seen["cfg"].tokenizer == "stories4k"


def test_dry_run_prints_sizes_and_writes_nothing(tmp_path, capsys):
    flags = [
        "--dry_run",
        "--model_size",
        "gpt-oss-20b",
        "--tokenizer",
        "stories4k",
        "--vocab_size",
        201088,
    ]
    assert run_here(tmp_path, *flags) == 0  # 21 billion parameters, none of them built
    out = capsys.readouterr().out
    assert "20,914,757,184 total" in out and "FLOPs per token" in out and "optimizer" in out
    assert list(tmp_path.iterdir()) == []


def command(*flags, folder: Path, environment=None) -> subprocess.CompletedProcess:
    environment = {**os.environ, **(environment or {})}
    return subprocess.run(
        [sys.executable, ROOT / "train.py", *flags],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_help_needs_no_torch_and_less_than_a_second(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    began = time.monotonic()
    helped = command("--help", folder=tmp_path, environment={"PYTHONPATH": str(tmp_path)})
    assert time.monotonic() - began < 1
    assert helped.returncode == 0 and helped.stderr == ""
    for name in ("--max_iters", "--balance", "--resume", "--dataset"):
        assert name in helped.stdout


def test_help_model_lists_the_fields_with_the_preset_s_values(tmp_path, capsys):
    assert run_here(tmp_path, "--help_model", "--model_size", "medium") == 0
    out = capsys.readouterr().out
    assert re.search(r"--hidden_size +int +384 +width of the residual stream\n", out)
    assert re.search(r"--capacity_factor +float \| None +none +tokens an expert takes", out)
    assert ModelConfig.__dataclass_fields__.keys() == MEANINGS.keys()
    assert "model sizes: toy, medium, large" in out


# ------------------------------------------------------------------------------ bad input: settings


def test_the_real_command_exits_with_2_and_one_line(tmp_path):
    ended = command("--max_iter", "5", folder=tmp_path)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr == "train.py: error: flag '--max_iter' is unknown; did you mean '--max_iters'?\n"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_yaml_key_is_named_with_the_nearest(refused):
    Path("run.yaml").write_text(yaml.safe_dump({"learning_rat": 1, "max_iters": 3}))
    assert "run.yaml: key 'learning_rat' is unknown" in refused("--config", "run.yaml")
    Path("run.yaml").write_text("batch_sise: 3\n")
    assert "did you mean 'batch_size'?" in refused("--config", "run.yaml")


@pytest.mark.parametrize(
    "flags, told",
    [
        ("--num_attention_heads 6 --num_key_value_heads 4", "num_attention_heads must be a multiple of num_key_value_heads (4), got 6"),
        ("--block_size 17", "block_size must be at most the model's context limit of 16 tokens"),
        ("--experts_per_token 7", "experts_per_token must be at most num_experts (6), got 7"),
        ("--model gptos", "model must be one of gptoss"),
        ("--model_size tiny", "model_size must be one of toy, medium, large"),
        ("--tokenizer stories5k", "unknown tokenizer 'stories5k'; did you mean 'stories4k'?"),
        ("--device tpu", "device must be auto or one that this machine has"),
        ("--attention flash", "attention must be auto or one of eager, sdpa, flex, got 'flash'"),
        ("--experts triton", "experts must be auto or one of loop, sorted, grouped, got 'triton'"),
        ("--batch_size 0", "batch_size must be at least 1; got 0"),
        ("--lr nan", "lr must be a finite number"),
        ("--vocab_size 100", "vocab_size must hold the 4096 ids of tokenizer stories4k, got 100"),
        ("--init_from nowhere.pt", "checkpoint nowhere.pt does not exist"),
    ],
)  # fmt: skip
def test_an_impossible_setting_is_named(refused, corpus, flags, told):
    assert told in refused(*RUN, *corpus, *shlex.split(flags))


def test_a_file_in_the_place_of_out_dir_is_named(refused, corpus):
    Path("model").write_text("not a folder")
    assert "out_dir must be a folder, and model is a file" in refused(*RUN, *corpus)


# ---------------------------------------------------------------------------------- bad input: data


def test_unusable_data_is_named(refused, corpus):
    Path("empty.txt").touch()
    Path("latin1.txt").write_bytes("café ".encode("latin-1") * 500)
    Path("blank.jsonl").write_text('{"text": " "}\n' * 5)
    Path("column.jsonl").write_text('{"story": "Once."}\n')
    Path("broken.jsonl").write_text('{"text": "Once."}\n{"text": \n')
    write_jsonl(Path("short.jsonl"), documents(1))
    val = corpus[2:]
    for name, told in (
        ("missing.txt", "dataset 'missing.txt': no such file or folder"),
        ("empty.txt", "empty.txt is empty"),
        ("latin1.txt", "latin1.txt, byte 3 is not UTF-8"),
        ("blank.jsonl", "no document with text"),
        ("column.jsonl", "has no column 'text'; it has story: choose with --text_column"),
        ("broken.jsonl", "broken.jsonl, line 2 is not JSON"),
        ("tinystorys", "did you mean 'tinystories'?"),
    ):
        assert told in refused(*RUN, "--dataset", name, *val), name
    told = refused(*RUN, "--dataset", "short.jsonl", *val, "--batch_size", 64)
    assert re.search(r"short.jsonl has \d+ tokens in all, fewer than one batch \(1,025", told)


def test_unusable_validation_data_is_named_before_anything_is_written(refused, corpus):
    Path("empty.txt").touch()
    assert "empty.txt is empty" in refused(*RUN, *corpus[:2], "--val_dataset", "empty.txt")
    assert "name one with --val_dataset" in refused(*RUN, *corpus[:2])  # 300 documents: 3 by hash


def test_tokens_of_another_tokenizer_are_refused_in_either_split(refused, corpus, capsys):
    prepare(corpus[1], Path("tokens"), tokenizer.get_tokenizer("bundled1536"), val_dataset=corpus[3])
    capsys.readouterr()  # prepare's bar
    for flags in (["--dataset", "tokens"], [*corpus[:2], "--val_dataset", "tokens"]):
        assert "tokens was prepared with tokenizer bundled1536" in refused(*RUN, *flags)


def test_an_unreachable_hub_is_noticed_within_seconds(tmp_path):
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    began = time.monotonic()
    ended = run(tmp_path / "work", *RUN, "--dataset", "tinystories", environment=environment)
    assert time.monotonic() - began < 10  # 3 of them may go to the hub, the rest to imports
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    assert "the Hub cannot be reached (Connection refused), and roneneldan/TinyStories" in ended.err
    assert "use --dataset bundled" in ended.err
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["stderr", "stdout"]


def test_a_tokenizer_that_cannot_be_downloaded_says_how_to_bring_it(refused, corpus, monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tokenizer, "DOWNLOAD_HOST", "http://127.0.0.1:9/")
    told = refused(*RUN, *corpus, "--tokenizer", "gpt2")
    assert "the table of tokenizer 'gpt2' is not here" in told
    assert "TIKTOKEN_CACHE_DIR" in told and "--tokenizer stories4k" in told


# --------------------------------------------------------------------------- bad input: checkpoints


class RunsCode:
    """A pickle of this opens a file when it is loaded without care."""

    def __reduce__(self):
        return builtins.open, ("ran.txt", "w")


def damaged(kind: str, good: Path) -> Path:
    state, path = load(good), Path("model_before/checkpoint_6.pt")
    path.parent.mkdir()
    if kind == "truncated":
        path.write_bytes(good.read_bytes()[:-5000])
    elif kind == "corrupt":
        path.write_bytes(bytes(reversed(good.read_bytes())))
    elif kind == "empty":
        path.touch()
    elif kind == "code in a zip":
        torch.save({**state, "model": RunsCode()}, path)
    elif kind == "code in a pickle":
        path.write_bytes(pickle.dumps(RunsCode()))
    elif kind == "unknown name":
        settings = {**state["train_config"], "model": "gpt9"}
        torch.save({**state, "model_name": "gpt9", "train_config": settings}, path)
    elif kind == "another class":
        torch.save({**state, "model": {"wte.weight": torch.zeros(3, 2)}}, path)
    elif kind == "foreign":
        torch.save({"state_dict": state["model"]}, path)
    elif kind == "weights only":
        torch.save({k: state[k] for k in ("model_name", "config", "model", "tokenizer", "step")}, path)
    return path


@pytest.mark.parametrize(
    "kind, told",
    [
        ("truncated", "cut off, damaged"),
        ("corrupt", "cut off, damaged"),
        ("empty", "cut off, damaged"),
        ("code in a zip", "could run code"),
        ("code in a pickle", "cut off, damaged|could run code"),
        ("unknown name", "model must be one of .*, got 'gpt9'"),
        ("another class", "tensors that this model lacks"),
        ("foreign", "so another program wrote it"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named_and_never_runs_code(refused, finished, corpus, kind, told):
    path = damaged(kind, finished[0] / "model/checkpoint_6.pt")
    assert re.search(told, refused(*corpus, "--init_from", path, "--block_size", 16, "--max_iters", 1))
    assert re.search(told, refused("--resume", "--out_dir", path.parent))
    assert not Path("ran.txt").exists()


def test_weights_without_a_run_cannot_be_resumed(refused, finished):
    path = damaged("weights only", finished[0] / "model/checkpoint_6.pt")
    told = refused("--resume", "--out_dir", path.parent)
    assert "holds a model but no run to continue" in told and "--init_from" in told


def test_the_weights_name_model_and_tokenizer(refused, finished, corpus):
    held = [
        "--init_from",
        finished[0] / "model/checkpoint_6.pt",
        *corpus,
        "--block_size",
        16,
        "--max_iters",
        1,
    ]
    assert "tokenizer of" in refused(*held, "--tokenizer", "gpt2")
    assert "model_size of" in refused(*held, "--model_size", "medium")
