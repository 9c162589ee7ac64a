"""train.py as a person calls it: what it prints, what it writes, and one line for everything that is wrong."""

import builtins
import contextlib
import io
import json
import os
import pickle
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_corpus import documents, write_jsonl
from toy_run import TINY, load, run_here

import sample
from architecture import tokenizer
from data.prepare import prepare
from training.command_line import parse_command_line
from training.monitor.metrics import read_metrics
from training.monitor.routing import MARGINS
from training.train_command import model_fields

ROOT = Path(__file__).resolve().parent.parent
HEADS = 4  # of TINY
RUN = [*TINY, "--max_iters", "6", "--save_every", "3", "--eval_every", "3", "--out_dir", "model"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus):
    """The folder of a whole run, and what that printed."""
    folder, err = tmp_path_factory.mktemp("finished"), io.StringIO()
    with contextlib.redirect_stderr(err):
        assert run_here(folder, *RUN, *corpus) == 0
    return folder, err.getvalue()


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
    assert names == {"config.json", "metrics.jsonl", "best.json", "checkpoint_3.pt", "checkpoint_6.pt"}
    facts = json.loads((folder / "model/config.json").read_text())
    assert facts["train"]["dataset"] == corpus[1] and facts["train"]["max_iters"] == 6
    resolved = {"device": "cpu", "dtype": "float32", "attention": "sdpa", "experts": "sorted", "threads": 1}
    assert facts["train"].items() >= resolved.items()  # no "auto" is left
    assert facts["model"]["hidden_size"] == 32 and facts["model"]["vocab_size"] == 1536
    assert facts["tokenizer"]["name"] == "bundled1536" and facts["starts"][0]["torch"] == torch.__version__
    assert [path.name for path in folder.glob("runs/*")] == [Path(facts["tensorboard_dir"]).name]
    best = json.loads((folder / "model/best.json").read_text())
    records = read_metrics(folder / "model/metrics.jsonl")
    validation = {r["step"]: r["val/loss"] for r in records if "val/loss" in r}
    assert sorted(validation) == [3, 6]
    assert best["step"] == min(validation, key=validation.get)
    assert best["val_loss"] == validation[best["step"]]


def test_metrics_and_tensorboard_hold_every_tag_with_the_same_numbers(finished):
    folder, _ = finished
    records = read_metrics(folder / "model/metrics.jsonl")
    train_tags = set(
        "train/loss train/bits_per_byte train/balance_loss train/z_loss optim/lr optim/grad_norm "
        "perf/tokens_per_second perf/peak_memory_gb perf/seconds data/epoch data/padding_share data/tokens "
        "moe/max_violation/layer_00 moe/max_violation/layer_01".split()
    )
    train_tags |= {
        f"moe/{what}/layer_{layer:02d}"
        for what in ("choice_margin", "router_logit_grad_rms", *(f"choice_margin_under_{m}" for m in MARGINS))
        for layer in (0, 1)
    }
    percentiles = ("p10", "median", "p90")
    train_tags |= {f"moe/update_to_weight/mlp{n}_{name}" for n in (1, 2) for name in percentiles}
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


@pytest.mark.parametrize(
    "tokens, scored_again, flag", [(192, True, "--eval_tokens"), (256, False, "--final_eval_tokens")]
)
def test_final_eval_tokens_bounds_the_closing_evaluation(
    corpus, tmp_path, capsys, tokens, scored_again, flag
):
    """The first ones, as --eval_only scores them; not once more where the last evaluation did (256)."""
    flags = [*RUN, *corpus, "--max_iters", 1, "--final_eval_tokens", tokens, "--no-use_tensorboard"]
    assert run_here(tmp_path, *flags) == 0
    assert ("closing evaluation on at most 192 validation tokens" in capsys.readouterr().err) == scored_again
    (closing,) = (r for r in read_metrics(tmp_path / "model/metrics.jsonl") if "final/loss" in r)
    assert closing["final/validation_tokens"] == tokens
    assert run_here(tmp_path, "--eval_only", "model", flag, tokens, "--threads", 1) == 0
    told = f"{closing['final/loss']:.4f} +- {closing['final/loss_half_width']:.4f} nats/token"
    assert told in capsys.readouterr().out


def test_the_closing_summary_has_the_figures_and_commands_that_work(finished, monkeypatch, capsys):
    folder, err = finished
    closing = {}
    for record in read_metrics(folder / "model/metrics.jsonl"):
        closing |= {k.removeprefix("final/"): v for k, v in record.items() if k.startswith("final/")}
    assert closing["steps"] == 6 and closing["tokens"] == 6 * 4 * 16
    changes = "num_hidden_layers 2, num_experts 6, hidden_size 32, intermediate_size 24, "
    assert (
        f"\ngptoss toy with {changes}" in err
        and "\n6 steps of 64 tokens (4 rows x 16 tokens) on cpu in float32 " in err
    )
    summary = err[err.index("--- story 1") :]
    assert re.findall(r"--- story \d", summary) == ["--- story 1", "--- story 2", "--- story 3"]
    assert f"validation loss  {closing['loss']:.4f} +- " in summary
    score = f"{closing['bits_per_byte']:.4f} bits per byte, over {closing['validation_tokens']:,} tokens"
    assert score in summary
    assert "training         6 steps, 384 tokens in " in summary and "tokens/s)" in summary
    assert f"parameters       {closing['parameters']:,}, {closing['active_parameters']:,} active" in summary

    monkeypatch.chdir(folder)
    lines = summary.partition("next:\n")[2].splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    if commands[0][0] == "source":  # the tests' environment may not be activated
        assert Path(commands.pop(0)[1]).is_file()
    begins = [" ".join(command[:2]) for command in commands]
    assert begins == ["python sample.py", "tensorboard --logdir", "python -m", "python train.py"]
    assert sample.main([*commands[0][2:], "--max_tokens", "3", "--device", "cpu"]) == 0
    assert Path(commands[1][2]).is_dir()
    assert commands[2][2:] == ["evaluation.report", "model"]
    parsed = parse_command_line(commands[3][2:], model_fields)
    assert parsed.config.init_from == "model/checkpoint_6.pt" and parsed.config.out_dir == "model_next"


def test_eval_only_scores_a_checkpoint_and_writes_nothing(finished, corpus, tmp_path, capsys):
    folder, _ = finished
    best = [r for r in read_metrics(folder / "model/metrics.jsonl") if "final/loss" in r][-1]
    flags = ["--eval_only", folder / "model/checkpoint_6.pt", *corpus, "--block_size", 16, "--device", "cpu"]
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

    def stand_in(cfg, model, *_, resumed, lines, ranks, initialize, objective):
        assert initialize is None and objective is None  # the model has its values
        seen.update(model=model, cfg=cfg, resumed=resumed)

    monkeypatch.setattr(trainer, "train", stand_in)
    assert run_here(tmp_path, "--init_from", source, *corpus, "--block_size", 16, "--threads", 1) == 0
    weights = load(source)["model"]
    ours = seen["model"].state_dict()
    assert ours.keys() == weights.keys() and all(torch.equal(ours[n], weights[n]) for n in weights)
    assert seen["resumed"] is None and seen["cfg"].tokenizer == "bundled1536"


def test_dry_run_prints_sizes_and_writes_nothing(tmp_path, capsys):
    flags = ["--dry_run", "--model_size", "gpt-oss-20b", "--tokenizer", "stories4k", "--vocab_size", 201088]
    assert run_here(tmp_path, *flags) == 0  # 21 billion parameters, none of them built
    out = capsys.readouterr().out
    assert "20,914,757,184 total" in out and "FLOPs per token" in out and "optimizer" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flag, code, out, err",
    [
        ("--help", 0, "--max_iters N", ""),
        ("--max_iters=0", 2, "", "train.py: error: max_iters must be at least 1; got 0 (default: 3000)\n"),
    ],
)
def test_the_real_command_answers_within_a_second_and_without_torch(tmp_path, flag, code, out, err):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    told = {"env": {**os.environ, "PYTHONPATH": str(tmp_path)}, "cwd": tmp_path, "text": True}
    ended = subprocess.run([sys.executable, ROOT / "train.py", flag], capture_output=True, timeout=60, **told)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1  # of processor time
    assert (ended.returncode, ended.stderr) == (code, err) and out in ended.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "torch.py"]


def test_help_model_lists_the_fields_with_the_preset_s_values(tmp_path, capsys):
    assert run_here(tmp_path, "--help_model", "--model_size", "medium") == 0
    out = capsys.readouterr().out
    assert re.search(r"--hidden_size +int +384 +width of the residual stream\n", out)
    assert re.search(r"--capacity_factor +float \| None +none +tokens an expert takes", out)
    assert "model sizes: toy, medium, large" in out


# ------------------------------------------------------------------------------ bad input: settings


HEADS_RULE = "num_attention_heads must be a multiple of num_key_value_heads (4), got 6"


@pytest.mark.parametrize(
    "flags, told",
    [
        ("--num_attention_heads 6 --num_key_value_heads 4", HEADS_RULE),
        ("--block_size 17", "block_size must be at most the model's context limit of 16 tokens"),
        ("--experts_per_token 7", "experts_per_token must be at most num_experts (6), got 7"),
        ("--model_size tiny", "model_size must be one of toy, medium, large"),
        ("--tokenizer stories5k", "unknown tokenizer 'stories5k'; did you mean 'stories4k'?"),
        ("--device tpu", "device must be auto or one that this machine has"),
        ("--attention flash", "attention must be auto or one of eager, sdpa, flex, got 'flash'"),
        ("--experts triton", "experts must be auto or one of loop, sorted, grouped, got 'triton'"),
        ("--vocab_size 100", "vocab_size must hold the 1536 ids of tokenizer bundled1536, got 100"),
        ("--init_from nowhere.pt", "checkpoint nowhere.pt does not exist"),
    ],
)
def test_an_impossible_setting_is_named(refused, corpus, flags, told):
    assert told in refused(*RUN, *corpus, *shlex.split(flags))


def test_a_taken_folder_is_refused_with_a_free_one(finished, capsys):
    assert run_here(finished[0], "--lr", "1e-3") == 2
    told = capsys.readouterr().err
    assert "model holds another run; continue that run with --resume --out_dir model, or" in told
    assert told.endswith("or start a new one with --out_dir model_2\n")


def test_a_file_in_the_place_of_out_dir_is_named(refused, corpus):
    Path("model").write_text("not a folder")
    assert "out_dir must be a folder, and model is a file" in refused(*RUN, *corpus)


# ---------------------------------------------------------------------------------- bad input: data


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--dataset", "empty.txt"], "empty.txt is empty"),
        (["--dataset", "tinystorys"], "did you mean 'tinystories'?"),
        (["--dataset", "short.jsonl", "--batch_size", 64], "tokens in all, but one batch needs 1,025"),
        (["--val_dataset", "empty.txt"], "empty.txt is empty"),
        (
            ["--val_dataset", "none"],
            "give validation text as a second file, --val_dataset",
        ),  # 300 documents: 3 by hash
    ],
)
def test_unusable_data_is_named_before_anything_is_written(refused, corpus, flags, told):
    Path("empty.txt").touch()
    write_jsonl(Path("short.jsonl"), documents(1))
    assert told in refused(*RUN, *corpus, *flags)


def test_tokens_of_another_tokenizer_are_refused_in_either_split(refused, corpus, capsys):
    prepare(corpus[1], Path("tokens"), tokenizer.get_tokenizer("stories4k"), val_dataset=corpus[3])
    capsys.readouterr()  # prepare's bar
    for flags in (["--dataset", "tokens"], [*corpus[:2], "--val_dataset", "tokens"]):
        assert "tokens was prepared with tokenizer stories4k" in refused(*RUN, *flags)


def test_a_tokenizer_that_cannot_be_downloaded_says_how_to_provide_it(refused, corpus, monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tokenizer, "DOWNLOAD_HOST", "http://127.0.0.1:9/")
    told = refused(*RUN, *corpus, "--tokenizer", "gpt2")
    assert "the tokenizer 'gpt2' is not on this machine" in told
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
        ("code in a zip", "could run code"),
        ("code in a pickle", "cut off, damaged|could run code"),
        ("unknown name", "model must be one of .*, got 'gpt9'"),
        ("another class", "that this model lacks"),
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


def test_the_size_and_the_tokenizer_of_given_weights_cannot_change(refused, finished, corpus):
    held = ["--init_from", finished[0] / "model/checkpoint_6.pt", *corpus, "--block_size", 16]
    assert "tokenizer of" in refused(*held, "--tokenizer", "gpt2")
    assert "model_size of" in refused(*held, "--model_size", "medium")


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
@pytest.mark.parametrize(
    "script", ["train", "train_context", "sample", "ablate", "data.prepare", "evaluation.check"]
)
def test_one_of_several_processes_is_refused_in_a_sentence(tmp_path, script, name, monkeypatch, capsys):
    monkeypatch.setenv(name, "2")
    flags = ["spec.yaml"] if script in ("ablate", "evaluation.check") else []
    assert run_here(tmp_path, *flags, script=script) == 2
    err = capsys.readouterr().err
    assert f"runs as one process on one device, and {name}=2 says" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_torchrun_with_one_process_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run_here(tmp_path, "--dry_run") == 0


def test_the_closing_evaluation_of_a_short_run_is_no_longer_than_its_training(corpus, tmp_path, capsys):
    flags = [*RUN, *corpus, "--max_iters", 1, "--no-use_tensorboard", "--eval_tokens", 64]
    for value, told in (
        (None, "at most 192 validation tokens ..."),
        ("all", "all validation tokens ..."),
    ):
        out = ["--out_dir", f"model_{value}"] + (["--final_eval_tokens", value] if value else [])
        assert run_here(tmp_path, *flags, *out) == 0
        assert f"closing evaluation on {told}" in capsys.readouterr().err
    scored = [r["final/validation_tokens"] for name in ("None", "all")
              for r in read_metrics(tmp_path / f"model_{name}/metrics.jsonl") if "final/loss" in r]  # fmt: skip
    assert scored[0] == 192 < scored[1]
