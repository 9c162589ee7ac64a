"""The recipes in configs/: each is read, fits its models, says what it claims, and lies under what a person gives."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy_run import TINY, run_here

from architecture import registry
from evaluation.from_checkpoint import data_to_read
from training import recipes, start
from training.command_line import parse_command_line, read_yaml
from training.config import ContextTrainConfig, TrainConfig
from training.costs import report
from training.post.settings import KINDS
from training.train_command import model_fields

CONFIGS = sorted(recipes.CONFIGS.glob("*.yaml"))
VISION = sorted((recipes.CONFIGS / "vision").glob("*.yaml"))
CONTEXT = sorted((recipes.CONFIGS / "context").glob("*.yaml"))
LIGHTER = (
    "light",
    "quickstart",
    "tiny_gpt_oss",
)  # toy with fewer of everything: chosen by --config, never by a size
SIZES = [path for path in CONFIGS + CONTEXT + VISION if path.stem not in LIGHTER]


def parse(*argv, config_class=TrainConfig):
    return parse_command_line([str(word) for word in argv], model_fields, config_class=config_class)


def resolve(*argv, config_class=TrainConfig):
    """What a run on a CPU begins with."""
    return start.resolve(parse("--device", "cpu", *argv, config_class=config_class))


@pytest.fixture
def no_download(monkeypatch):
    """Where a recipe names gpt2's tokenizer, the shipped one stands in."""
    get = start.get_tokenizer
    monkeypatch.setattr(start, "get_tokenizer", lambda name: get("stories4k"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_fits_its_model(path):
    cfg, overrides, *_ = parse("--config", path, *(("--model", "gpt2") if path.stem == "gpt2" else ()))
    size = "toy" if path.stem in LIGHTER else path.stem
    config = registry.build_config(cfg.model, size, overrides)
    assert cfg.model_size == ("toy" if path.stem == "gpt2" else size)
    assert cfg.block_size <= config.context_limit
    text = report(replace(cfg, dtype="float32", device="cpu"), config)
    assert f"{config.parameter_counts()['total']:,}" in text


@pytest.mark.parametrize("path", SIZES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_recipe_of_a_size_holds_no_field_of_a_model(path):
    cls = ContextTrainConfig if path in CONTEXT else TrainConfig
    assert read_yaml(path).keys() <= {name for name in cls.__dataclass_fields__}


def test_the_toy_recipes_equal_the_defaults():
    assert parse("--config", recipes.CONFIGS / "toy.yaml").config == TrainConfig()
    path = recipes.CONFIGS / "context/toy.yaml"
    assert parse("--config", path, config_class=ContextTrainConfig).config == ContextTrainConfig()


# ------------------------------------------------------------------------------------ under the flags


def test_flags_override_the_recipe_of_the_size():
    cfg, _, config, _, lines, _ = resolve("--model_size", "medium", "--max_iters", 7, "--batch_size", 64)
    recipe = read_yaml(recipes.CONFIGS / "medium.yaml")
    assert all(getattr(cfg, name) == recipe[name] for name in ("lr", "block_size", "eval_every"))
    assert (cfg.max_iters, cfg.batch_size, config.hidden_size) == (7, 64, 384)
    assert lines == ("recipe: configs/medium.yaml, changed: max_iters 7 (recipe: 10000)",)


def test_a_config_file_overrides_only_what_it_names(tmp_path):
    (tmp_path / "mine.yaml").write_text("model_size: medium\nlr: 1.0e-3\ngrad_accum: 2\n")
    cfg = resolve("--config", tmp_path / "mine.yaml", "--lr", "2e-3").cfg
    assert (cfg.lr, cfg.grad_accum, cfg.block_size, cfg.eval_every) == (2e-3, 2, 512, 500)


def test_the_first_line_names_the_config_file_beside_the_recipe(tmp_path):
    line = resolve("--config", "quickstart").lines[0]
    told = "recipe: configs/toy.yaml, then configs/quickstart.yaml, changed: "
    assert line.startswith(told) and "tokenizer bundled1536 (recipe: stories4k)" in line
    mine = tmp_path / "mine.yaml"
    mine.write_text("lr: 2.0e-3\n")
    line = resolve("--config", mine, "--recipe", "none").lines[0]
    assert line == f"recipe: none for toy, so the defaults of train.py, then {mine}"
    with pytest.raises(ValueError, match="quickstart.yaml: cannot be read: .*; did you mean 'quickstart'"):
        parse("--config", "quickstart.yaml")


@pytest.mark.parametrize("path", VISION, ids=lambda path: path.stem)
def test_a_model_that_reads_images_has_recipes_of_its_own(path):
    cfg, _, config, _, lines, _ = resolve("--model", "gptoss_vision", "--model_size", path.stem)
    recipe = read_yaml(path)
    assert all(getattr(cfg, name) == value for name, value in recipe.items())
    assert lines == (f"recipe: configs/vision/{path.stem}.yaml",) and cfg.packing == "rows"
    longest = config.image_format.tokens + 24  # a question of `pictures`
    assert longest <= cfg.block_size <= config.context_limit


def test_minutes_replace_the_steps_of_a_recipe():
    cfg, *_, (line, _), _ = resolve("--model_size", "medium", "--max_minutes", 5)
    assert (cfg.max_iters, cfg.max_minutes) == (None, 5.0)
    assert line == "recipe: configs/medium.yaml, changed: max_minutes 5.0 (recipe: 10000 steps)"
    line = resolve("--max_minutes", 5).lines[0]  # a recipe that leaves the length to the default
    assert line == "recipe: configs/toy.yaml, changed: max_minutes 5.0 (recipe: 3000 steps)"


def test_gpt2_takes_the_recipe_of_its_size_and_its_own_sizes_share_one(no_download):
    assert resolve("--model", "gpt2", "--model_size", "medium").cfg.lr == 4e-3
    begun = resolve("--model", "gpt2", "--model_size", "gpt2-medium")
    assert begun.cfg.schedule == "cosine" and "recipe: configs/gpt2.yaml" in begun.lines[0]


def test_large_takes_the_vocabulary_of_gpt2():
    cfg = recipes.under(parse("--model_size", "large"), "large")[0].config
    assert (cfg.tokenizer, cfg.block_size, cfg.slots_per_step) == ("gpt2", 1024, 524_288)


def test_the_context_variant_has_recipes_of_its_own():
    cfg, _, config, _, lines, _ = resolve("--model_size", "medium", config_class=ContextTrainConfig)
    assert (cfg.block_size, config.segment_length, cfg.tbptt, cfg.lr) == (64, 64, 4, 4e-3)
    assert lines[0] == "recipe: configs/context/medium.yaml"
    begun = resolve("--segment_length", 32, config_class=ContextTrainConfig)
    assert begun.cfg.block_size == begun.config.segment_length == 32
    assert begun.lines[0].endswith("changed: block_size 32 (recipe: 64)")


def test_without_a_recipe_a_size_takes_the_defaults_and_says_so():
    begun = resolve("--model_size", "gpt-oss-small")
    assert begun.lines[0] == "recipe: none for gpt-oss-small, so the defaults of train.py"
    named = ("model_size", "device", "dtype", "compile", "attention", "experts")
    resolved = {name: getattr(TrainConfig, name) for name in named}
    assert replace(begun.cfg, **resolved) == TrainConfig()
    asked = resolve("--model_size", "medium", "--recipe", "none", "--block_size", 512).cfg  # as ablations do
    assert (asked.lr, asked.batch_size, asked.eval_every) == (8e-3, 8, 250)


def test_other_files_in_configs_are_not_recipes_of_a_size():
    for size in ("../configs/toy", "light", "quickstart", "gpt2"):
        assert recipes.recipe_path(TrainConfig(), size) is None
    assert recipes.recipe_path(ContextTrainConfig(), "gpt2") is None


# ------------------------------------------------------------------------------------ on a CPU


@pytest.mark.parametrize(
    "given, rows, accum",
    [({}, 4, 1), ({"batch_size": 6}, 6, 1), ({"grad_accum": 2}, 2, 2), ({"block_size": 2048}, 1, 1)],
    ids=str,
)
def test_on_a_cpu_a_step_has_at_most_2048_tokens_unless_flags_say_otherwise(given, rows, accum):
    flags = [word for name, value in given.items() for word in (f"--{name}", value)]
    cfg, *_, lines, _ = resolve("--model_size", "medium", *flags)
    assert (cfg.batch_size, cfg.grad_accum) == (rows, accum)
    shrunk = "batch_size" not in given
    assert any("on a CPU a step has" in line for line in lines) == shrunk


def test_a_run_of_more_than_twelve_hours_says_what_would_make_it_shorter(no_download):
    assert "hours on this machine; --max_minutes 60 " in resolve("--model_size", "large").lines[-1]
    assert "on this machine" not in "".join(resolve("--model_size", "medium", "--max_iters", 5000).lines)


# ------------------------------------------------------------------------------------ given weights


def test_the_size_of_given_weights_selects_the_recipe(monkeypatch):
    flags = ["--init_from", Path(__file__).parent / "fixtures/trunk/checkpoint_6.pt", "--block_size", 16]
    assert resolve(*flags).lines == ("recipe: configs/toy.yaml, changed: block_size 16 (recipe: 256)",)
    monkeypatch.setattr(start.checkpoint, "saved_settings", lambda saved, path: {"model_size": "medium"})
    begun = resolve(*flags)
    assert begun.lines[0] == "recipe: configs/medium.yaml, changed: block_size 16 (recipe: 512)"
    assert (begun.cfg.lr, begun.cfg.tokenizer) == (4e-3, "bundled1536")


def test_what_a_tuned_model_forgets_is_measured_on_the_stories_it_was_trained_on(monkeypatch):
    flags = ["--init_from", Path(__file__).parent / "fixtures/trunk/checkpoint_6.pt", "--block_size", 16]

    def stories(*more, **before) -> tuple[str, str | None]:
        before = {"text_column": "text", "val_dataset": None} | before
        monkeypatch.setattr(start.checkpoint, "saved_settings", lambda saved, path: before)
        cfg = resolve(*flags, *more, config_class=KINDS["sft"]).cfg
        return cfg.story_dataset, cfg.story_val_dataset

    tuned = dict(dataset="tasks.jsonl", val_dataset="held.jsonl", story_dataset="bundled")
    assert stories(dataset="mine.txt") == ("mine.txt", None)
    assert stories(dataset="mine.txt", val_dataset="other.txt") == ("mine.txt", "other.txt")
    assert stories(**tuned) == ("bundled", None)
    assert stories(**tuned, story_val_dataset="other.txt") == ("bundled", "other.txt")
    named = stories("--story_dataset", "bundled", dataset="mine.txt", val_dataset="other.txt")
    assert named == ("bundled", None)


def test_evaluations_of_a_tuned_model_read_its_stories_and_not_its_examples():
    asked = SimpleNamespace(dataset=None, val_dataset=None, text_column=None)
    held = {"dataset": "mine.txt", "val_dataset": "other.txt", "text_column": "body"}
    tuned = {f"story_{name}": value for name, value in held.items()} | {"text_column": "body"}
    for before in (held, tuned | {"dataset": "tasks.jsonl", "val_dataset": "held.jsonl"}):
        assert data_to_read(asked, {}, before)[:3] == ("mine.txt", "other.txt", "body")


def test_the_first_line_of_a_run_names_the_recipe_and_what_flags_changed(tmp_path, corpus, capsys):
    flags = [*TINY, *corpus, "--max_iters", 1, "--no-use_tensorboard", "--out_dir", "model"]
    assert run_here(tmp_path, *flags) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("recipe: configs/toy.yaml, changed: batch_size 4 (recipe: 8), block_size")
