"""What train.py starts from: data that it chooses itself, and checkpoints that it is given."""

import functools
import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from toy_corpus import documents
from toy_run import TINY, differences, load, run_here

from architecture import registry
from common.files import read_json
from common.settings import as_text
from data import sources
from data.hub import HubUnreachable
from training import start, trainer
from training.command_line import parse_command_line
from training.config import READ_BY_EVALUATION, TrainConfig
from training.state import checkpoint
from training.train_command import model_fields

RUN = [*TINY, "--no-use_tensorboard", "--max_iters", 4, "--save_every", 2, "--eval_every", 4]


@pytest.fixture(scope="module")
def given(tmp_path_factory, corpus) -> Path:
    """A folder with a finished run in model/."""
    folder = tmp_path_factory.mktemp("given")
    assert run_here(folder, *RUN, *corpus) == 0
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, corpus) -> Path:
    """A folder with a run of six steps in model/ that was interrupted in its sixth."""
    folder, train_step = tmp_path_factory.mktemp("stopped"), trainer.train_step

    def interrupted_train_step(run, progress):
        if progress.step == 5:
            raise KeyboardInterrupt
        return train_step(run, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_step", interrupted_train_step)
        assert run_here(folder, *RUN, *corpus, "--max_iters", 6, "--optimizer", "muon") == 130
    return folder


@pytest.fixture
def copied(stopped, tmp_path) -> Path:
    """The model/ of a copy of the stopped run, to be damaged."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    return tmp_path / "model"


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def offline(monkeypatch):
    """The Hub is out of reach and the bundled stories are few."""

    def unreachable(name):
        raise HubUnreachable("the Hub is away", "no network")

    monkeypatch.setattr(sources, "current_revision", unreachable)
    monkeypatch.setitem(sources.FIRST_AND_COUNT, "train", (0, 300))
    monkeypatch.setitem(sources.FIRST_AND_COUNT, "validation", (300, 5))


def recorded(folder: Path) -> set[str]:
    """The dataset as config.json and every checkpoint have it."""
    configs = [load(path)["train_config"] for path in (folder / "model").glob("*.pt")]
    configs.append(json.loads((folder / "model/config.json").read_text())["train"])
    return {config["dataset"] for config in configs}


# ------------------------------------------------------------------------------------ --dataset auto


def test_without_a_network_auto_means_the_bundled_stories_and_is_recorded_so(
    offline, tmp_path, capsys, monkeypatch
):
    assert run_here(tmp_path, *RUN) == 0
    err = capsys.readouterr().err
    assert err.count("dataset auto: no network; using the bundled stories\n") == 1
    assert "data: bundled, validation bundled" in err
    assert "--init_from model/checkpoint_4.pt --dataset bundled" in err
    assert recorded(tmp_path) == {"bundled"}
    before = load(tmp_path / "model/checkpoint_4.pt")["model"]

    # a resumed run keeps its dataset, and does not ask the Hub, which answers again
    (tmp_path / "model/checkpoint_4.pt").unlink()
    metrics = tmp_path / "model/metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if "final/" not in line))
    monkeypatch.setattr(sources, "current_revision", lambda name: pytest.fail("asked"))
    assert run_here(tmp_path, "--resume", "--dataset", "auto") == 0
    assert "dataset auto" not in capsys.readouterr().err and recorded(tmp_path) == {"bundled"}
    after = load(tmp_path / "model/checkpoint_4.pt")["model"]
    assert all(before[name].equal(after[name]) for name in before)


def test_a_named_dataset_that_cannot_be_reached_is_an_error_that_names_the_bundled_one(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert run_here(tmp_path, *RUN, "--dataset", "tinystories") == 2
    err = capsys.readouterr().err
    assert err.startswith("train.py: error: HF_HUB_OFFLINE is set") and err.count("\n") == 1
    assert "use --dataset bundled, which needs no network" in err
    assert list(tmp_path.iterdir()) == []


def test_auto_chooses_the_training_data_beside_a_named_validation_set(offline, tmp_path, corpus, capsys):
    assert run_here(tmp_path, *RUN, *corpus[2:], "--max_iters", 1) == 0
    assert "data: bundled, validation stories_valid.jsonl" in capsys.readouterr().err
    assert recorded(tmp_path) == {"bundled"}


def test_the_start_line_names_what_a_folder_has_and_no_run_reads(tmp_path, corpus, capsys):
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    shutil.copy(corpus[1], folder / "stories.jsonl")
    shutil.copy(corpus[3], folder / "eval.jsonl")
    shutil.copy(corpus[3], folder / "test.jsonl")
    assert run_here(tmp_path, *RUN, "--dataset", "in", "--max_iters", 1) == 0
    told = "data: in (not read: 'more/', 'test.jsonl'), validation in, tokenizer"
    assert told in capsys.readouterr().err
    assert run_here(tmp_path, "--eval_only", "model", "--val_dataset", "in", "--eval_tokens", 256) == 0
    assert "of in (not read: 'more/', 'test.jsonl')" in capsys.readouterr().out


def test_a_dry_run_and_a_folder_in_use_do_not_wait_for_the_hub(given, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "current_revision", lambda name: pytest.fail("asked"))
    assert run_here(tmp_path, "--dry_run") == 0
    assert run_here(given, *RUN) == 2


# -------------------------------------------------------------------------------- --eval_only, its data


@pytest.mark.parametrize(
    "flags, told",
    [
        ("--eval_only model --lr 1e-3 --max_iters 5", "--eval_only trains nothing, so it has no use for --lr, --max_i"),
        ("--eval_only model --out_dir new", "no use for --out_dir; leave"),
        ("--eval_only model --dry_run", "no use for --dry_run; leave"),
        ("--eval_only model --seed 3", "no use for --seed; leave"),
        ("--eval_only model --compile off", "no use for --compile; leave"),
        ("--dry_run --experts fast", "experts must be auto or one of"),
    ],
)  # fmt: skip
def test_a_flag_that_a_call_would_ignore_is_refused(given, capsys, flags, told):
    assert run_here(given, *flags.split()) == 2
    assert told in (err := capsys.readouterr().err) and err.count("\n") == 1


def test_every_setting_that_an_evaluation_does_not_read_is_refused(given, capsys):
    names = {f.name for f in fields(TrainConfig)} - READ_BY_EVALUATION
    for name in names - {
        "resume",
        "resume_from",
        "extend",
        "init_from",
    }:  # each names other weights to start from
        shown = {"max_minutes": 5, "keep": 2}.get(name, as_text(getattr(TrainConfig, name)))
        assert run_here(given, "--eval_only", "model", f"--{name}={shown}") == 2
        assert f"no use for --{name}; leave" in capsys.readouterr().err


def test_an_evaluation_reads_what_it_needs_of_a_file_and_obeys_both_bounds(given, capsys):
    (given / "run.yaml").write_text("lr: 1e-3\nblock_size: 16\n")
    flags = "--eval_only model --device cpu --config run.yaml --eval_tokens 64 --final_eval_tokens 90".split()
    assert run_here(given, *flags, "--val_dataset", "bundled") == 0
    assert "over 64 tokens of bundled" in capsys.readouterr().out


def test_help_model_shows_the_fields_that_flags_change(given, capsys):
    assert run_here(given, "--help_model", "--num_experts", 16, "--moe_layers", "none") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:-1]}
    assert " 16 " in rows["--num_experts"] and " none " in rows["--moe_layers"]


def test_an_evaluation_uses_the_data_and_the_newest_checkpoint_of_the_run(given, capsys, corpus):
    assert run_here(given, "--eval_only", "model", "--device", "cpu") == 0
    out, err = capsys.readouterr()
    final = json.loads((given / "model/metrics.jsonl").read_text().splitlines()[-1])
    assert f"validation loss {final['final/loss']:.4f} +- " in out
    assert "of stories_valid.jsonl" in out
    assert err.splitlines()[0] == "model/checkpoint_4.pt: the newest checkpoint of model"


def test_an_evaluation_on_given_data_takes_nothing_from_the_run(given, offline, capsys, tmp_path):
    flags = ["--eval_only", given / "model/checkpoint_2.pt", "--device", "cpu"]
    assert run_here(tmp_path, *flags, "--dataset", "bundled") == 0
    out, err = capsys.readouterr()
    assert "of bundled" in out
    (tmp_path / "other.txt").write_text("<|endoftext|>".join(documents(4)))
    assert run_here(tmp_path, *flags, "--val_dataset", "other.txt") == 0
    out, err = capsys.readouterr()
    assert "of other.txt" in out and "dataset auto" not in err  # nothing to choose


def test_missing_data_of_a_run_is_an_error_that_names_it(given, capsys, tmp_path):
    state = load(given / "model/checkpoint_2.pt")
    state["train_config"] |= {"dataset": "gone.txt", "val_dataset": None}
    torch.save(state, tmp_path / "checkpoint_2.pt")
    assert run_here(tmp_path, "--eval_only", ".", "--device", "cpu") == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("train.py: error: dataset 'gone.txt': no such file or folder")


# --------------------------------------------------------------------------------------- --init_from


def test_init_from_a_folder_records_its_newest_checkpoint(given, tmp_path, corpus, capsys):
    flags = "--device cpu --block_size 16 --batch_size 4 --max_iters 1 --eval_tokens 16".split()
    flags += ["--final_eval_tokens", 16, "--no-use_tensorboard"]
    assert run_here(tmp_path, *flags, "--init_from", given / "model", *corpus) == 0
    assert f"checkpoint_4.pt: the newest checkpoint of {given}/model" in capsys.readouterr().err
    settings = load(tmp_path / "model/checkpoint_1.pt")["train_config"]
    assert settings["init_from"] == str(given / "model/checkpoint_4.pt")


def test_a_folder_without_a_checkpoint_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for flag in ("--init_from", "--eval_only"):
        assert run_here(tmp_path, flag, "empty") == 2
        err = capsys.readouterr().err
        assert "empty is a folder without a checkpoint_<step>.pt" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "flags, told",
    [
        (
            "--hidden_size 64 --dropout 0.1 --num_experts 4",
            "num_experts 6 (got 4) and hidden_size 32 (got 64) and dropout 0.0 (got 0.1)",
        ),
        (
            "--num_attention_heads 6 --num_key_value_heads 3",
            "heads 4 (got 6) and num_key_value_heads 2 (got 3)",
        ),
        ("--tie_embeddings", "tie_embeddings false (got true)"),
        ("--norm layernorm", "norm rmsnorm (got layernorm)"),
    ],
)
def test_overrides_that_change_the_shapes_of_the_weights_are_named(
    given, tmp_path, corpus, capsys, flags, told
):
    path = given / "model/checkpoint_4.pt"
    assert run_here(tmp_path, "--init_from", path, *corpus, "--block_size", 16, *flags.split()) == 2
    err = capsys.readouterr().err
    assert f"the weights of {path} are of a model with " in err and f"{told}; leave out" in err
    assert list(tmp_path.iterdir()) == []


def test_overrides_that_leave_the_shapes_alone_are_allowed(given, tmp_path, capsys):
    free = "--dropout 0.1 --capacity_factor 1.5 --sliding_window 4 --experts_per_token 3".split()
    flags = ["--eval_only", given / "model", "--device", "cpu", "--initial_context_length", 32, *free]
    assert run_here(tmp_path, *flags) == 0
    assert "validation loss" in capsys.readouterr().out


# ------------------------------------------------------------------------------ damaged inside: --resume


def changed(tree, place, value):
    """A copy of nested containers with another value at a place; KeyError: left out."""
    first, *rest = place
    inner = changed(tree[first], rest, value) if rest else value
    if isinstance(tree, dict):
        items = {k: inner if k == first else v for k, v in tree.items()}
        return {k: v for k, v in items.items() if not (k == first and v is KeyError)}
    items = [inner if n == first else v for n, v in enumerate(tree)]
    return type(tree)(v for v in items if v is not KeyError)


@pytest.mark.parametrize(
    "place, value, told",
    [
        ("train_config", None, "run's settings"),
        ("train_config lr", [1], "lr must be a finite number"),
        ("train_config out_dir", "a\0b", "out_dir must be text without the character NUL"),
        ("progress x", 1, "TypeError"),
        ("progress seconds", [1], "seconds must be a finite number"),
        ("progress step", 3, "it says both step 4 and step 3"),
        ("progress carry", True, "its carry is not a tensor"),
        ("progress load", torch.zeros(1, 1).expand(2, 10**9), "its load is not a tensor"),
        ("optimizers", [], "shorter"),
        (
            "optimizers 0 state 0 exp_avg",
            KeyError,
            "its optimizer state of parameter 0 has other entries than",
        ),
        ("optimizers 0 state 0 exp_avg", torch.zeros(2), "its exp_avg of parameter 0 is not a tensor"),
        ("optimizers 0 state 0 step", torch.zeros(2), "its step of parameter 0 is not a tensor"),
        ("rng cpu", torch.zeros(3), "TypeError"),
        ("data documents", None, "documents must be a whole number"),
        ("data source", {}, "its position in the data is empty"),
        ("data tokens", [], "its position in the data is empty"),
        ("data tokens", [torch.tensor([-1])], "its tokens are not all ids from 0 to 1535"),
        ("tensorboard_dir", "a\0b", "tensorboard_dir must be text without"),
        ("tensorboard_dir", "runs/..", "its tensorboard_dir is not a folder in runs/"),
        ("scored", {"val_loss": "x"}, "val_loss must be a finite number"),
        ("scored", {"step": 1}, "'val_loss' is missing"),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, torch.Tensor) else "tensor",
)
def test_a_run_with_a_damaged_part_is_refused_in_one_sentence(given, tmp_path, capsys, place, value, told):
    state = load(given / "model/checkpoint_4.pt")
    place = [int(key) if key.isdigit() else key for key in place.split()]
    if place[-1] == "x":
        state["progress"]["x"] = None
    (tmp_path / "model").mkdir()
    torch.save(changed(state, place, value), tmp_path / "model/checkpoint_4.pt")
    assert run_here(tmp_path, "--resume", "--out_dir", "model") == 2
    err = capsys.readouterr().err
    assert "model/checkpoint_4.pt cannot be read as a run" in err and err.count("\n") == 1
    assert told in err and "; continue from an older one with --resume_from CHECKPOINT" in err
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "checkpoint_4.pt"]


ODD_STRIDES = {
    "optimizers 0 state 0 exp_avg": lambda t: torch.zeros((1,) * t.ndim).expand(t.shape),
    "optimizers 0 state 0 exp_avg_sq": lambda t: t.t().contiguous().t(),
    "optimizers 1 state 0 momentum_buffer": lambda t: torch.cat((t, t), -1)[..., : t.shape[-1]],
    "model embedding.weight": lambda t: t.t().contiguous().t(),
    "progress expert_share": lambda t: t.t().contiguous().t(),
}


def test_saved_tensors_with_odd_strides_continue_like_contiguous_ones(stopped, tmp_path):
    """A file once took down the process here: an optimizer wrote past the end of a storage of one number."""
    states = []
    for name in ("odd", "plain"):
        state = load(stopped / "model/checkpoint_4.pt")
        for place, make in ODD_STRIDES.items():
            *path, last = [int(key) if key.isdigit() else key for key in place.split()]
            inner = functools.reduce(lambda tree, key: tree[key], path, state)
            odd = make(inner[last])
            inner[last] = odd if name == "odd" else odd.contiguous().clone()
        (tmp_path / name / "model").mkdir(parents=True)
        torch.save(state, tmp_path / name / "model/checkpoint_4.pt")
        assert run_here(tmp_path / name, "--resume", "--out_dir", "model") == 0
        states.append(load(tmp_path / name / "model/checkpoint_6.pt"))
    found = differences(*states)
    assert [place for place in found if not place.endswith((".seconds", ".commit"))] == []


# ------------------------------------------------------------------------------ --resume_from


def test_a_damaged_newest_checkpoint_names_the_newest_good_one_to_resume_from(copied, tmp_path, capsys):
    flip_a_bit(copied / "checkpoint_4.pt")
    assert run_here(tmp_path, "--resume", "--out_dir", "model") == 2
    err = capsys.readouterr().err
    assert "model/checkpoint_4.pt cannot be read as a checkpoint (its record " in err
    assert "the newest older one that can be read is model/checkpoint_2.pt (for --resume_from" in err
    assert run_here(tmp_path, "--resume_from", "model/checkpoint_2.pt") == 0
    err = capsys.readouterr().err
    assert "set aside: model/checkpoint_4.pt is now checkpoint_4.pt.set_aside\n" in err
    names = {path.name for path in copied.iterdir()}
    assert {"checkpoint_4.pt.set_aside", "checkpoint_6.pt"} <= names


def test_resume_from_an_older_checkpoint_ends_with_the_same_bits(stopped, tmp_path):
    for name, flags in (("back", ["--resume_from", "model/checkpoint_2.pt"]), ("on", ["--resume"])):
        shutil.copytree(stopped, tmp_path / name)
        assert run_here(tmp_path / name, *flags, "--out_dir", "model") == 0
    states = [load(tmp_path / name / "model/checkpoint_6.pt") for name in ("back", "on")]
    found = differences(*states)
    free = (".seconds", ".commit", ".resume", ".resume_from")
    assert [place for place in found if not place.endswith(free)] == []


def test_resume_from_renames_nothing_if_a_file_is_damaged_and_forgets_a_best_that_is_gone(
    copied, tmp_path, capsys
):
    records = copied / "metrics.jsonl"
    records.write_text("{bad\n" + records.read_text())
    assert run_here(tmp_path, "--resume_from", "model/checkpoint_2.pt") == 2
    assert (copied / "checkpoint_4.pt").exists() and "metrics.jsonl" in capsys.readouterr().err
    assert read_json(copied / "best.json")["checkpoint"] == "checkpoint_4.pt"
    assert checkpoint.set_aside_newer(copied / "checkpoint_2.pt") != []
    assert not (copied / "best.json").exists()


def test_damaged_weights_to_evaluate_name_the_newest_good_ones(copied, tmp_path, capsys):
    for name, told in (
        ("checkpoint_4.pt", "the newest older one that can be read is model/checkpoint_2.pt"),
        ("checkpoint_2.pt", "its folder has no older checkpoint that can be read"),
    ):
        flip_a_bit(copied / name)
        assert run_here(tmp_path, "--eval_only", "model", "--device", "cpu") == 2
        assert told in capsys.readouterr().err


def test_a_file_beside_checkpoints_is_refused_with_the_newest_of_them(copied, tmp_path, capsys):
    assert run_here(tmp_path, "--eval_only", "model/config.json", "--device", "cpu") == 2
    assert "the newest one that can be read is model/checkpoint_4.pt" in capsys.readouterr().err


def test_resume_from_accepts_only_checkpoints_of_the_run(copied, tmp_path, capsys):
    shutil.copy(copied / "checkpoint_2.pt", tmp_path / "mine.pt")
    for name in ("mine.pt", "model/checkpoint_3.pt", "model"):
        assert run_here(tmp_path, "--resume_from", name) == 2
        assert "resume_from must be a checkpoint_<step>.pt of the run in " in capsys.readouterr().err


def test_a_renamed_checkpoint_is_refused_with_its_right_name(copied, tmp_path, capsys):
    (copied / "checkpoint_4.pt").rename(copied / "checkpoint_9.pt")
    assert run_here(tmp_path, "--resume", "--out_dir", "model") == 2
    assert (
        "holds step 4, but its name says another step; rename it to checkpoint_4.pt"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("content", ["", "[]", '{"starts": 7}'])
def test_a_run_with_a_damaged_config_json_is_refused_before_a_file_changes(given, tmp_path, capsys, content):
    shutil.copytree(given / "model", tmp_path / "model")
    (tmp_path / "model/config.json").write_text(content)
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert run_here(tmp_path, "--resume", "--out_dir", "model") == 2
    err = capsys.readouterr().err
    assert "model/config.json cannot be read as the settings and starts" in err and err.count("\n") == 1
    assert {path: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


def test_damaged_settings_in_a_given_checkpoint_are_refused(given, tmp_path, capsys):
    state = load(given / "model/checkpoint_4.pt")
    torch.save(changed(state, ["train_config", "block_size"], [16]), tmp_path / "a.pt")
    torch.save(changed(state, ["tokenizer", "name"], KeyError), tmp_path / "b.pt")
    for name, told in (("a.pt", "(block_size must be"), ("b.pt", "'name' is missing")):
        assert run_here(tmp_path, "--eval_only", name, "--device", "cpu") == 2
        assert told in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "flags",
    [
        ["--hidden_size", 10**6],
        ["--batch_size", 10**9],
        ["--grad_accum", 10**12],
        ["--eval_only", "model", "--batch_size", 10**9],
    ],
)
def test_a_run_that_cannot_fit_into_memory_is_refused_before_anything_is_built(
    given, tmp_path, corpus, capsys, monkeypatch, flags
):
    from architecture import registry
    from common import device

    monkeypatch.setattr(device, "available_memory", lambda where: 2e9)
    shutil.copytree(given / "model", tmp_path / "model")
    base = [] if "--eval_only" in flags else [*RUN, *corpus, "--out_dir", "new"]
    built = []
    monkeypatch.setattr(registry, "build_model", lambda *a, **k: built.append(a))
    assert run_here(tmp_path, *base, *flags) == 2
    err = capsys.readouterr().err
    assert "GB of memory, and 2.0 GB are available on cpu; lower batch_size" in err
    assert not built and not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------ the machine


@pytest.mark.parametrize("flags, backends", [
    ("", ("flex", "grouped")),
    ("--dropout 0.1", ("sdpa", "grouped")),
    ("--head_dim 8", ("sdpa", "grouped")),
    ("--hidden_size 100", ("flex", "sorted")),
    ("--dtype float32", ("flex", "sorted")),
    ("--attention eager --experts loop", ("eager", "loop")),
    ("--model gpt2", ("auto", "auto")),  # it has one choice, and makes it itself
])  # fmt: skip
def test_auto_means_the_fast_backends_on_cuda_where_they_take_the_model(monkeypatch, flags, backends):
    monkeypatch.setattr(start.device, "choose_device", lambda name: torch.device("cuda"))
    argv = ["--dataset", "bundled", "--recipe", "none", *flags.split()]
    cfg = start.resolve(parse_command_line(argv, model_fields, config_class=TrainConfig)).cfg
    assert (cfg.attention, cfg.experts) == backends and cfg.compile == "on"


def test_grouped_experts_in_float32_are_refused_with_compile_and_run_without_it(monkeypatch):
    monkeypatch.setattr(start.device, "choose_device", lambda name: torch.device("cuda"))
    argv = ["--dataset", "bundled", "--recipe", "none", "--experts", "grouped", "--dtype", "float32"]
    command = functools.partial(parse_command_line, model_fields=model_fields, config_class=TrainConfig)
    with pytest.raises(
        ValueError, match="^experts=grouped compiles in bfloat16 only, got dtype=float32; use"
    ):
        start.resolve(command(argv))
    assert start.resolve(command([*argv, "--compile", "off"])).cfg.experts == "grouped"


def test_a_model_with_a_state_has_no_flex_attention_on_cuda():
    model = registry.model_class("gptoss_context")
    config = registry.build_config("gptoss_context", "toy")
    expected = {"attention": "sdpa", "experts": "grouped"}
    assert model.auto_backends(config, "cuda", "bfloat16") == expected
