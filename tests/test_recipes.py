"""The recipes in configs/: each is read, fits together, and says what it claims."""

from dataclasses import replace
from pathlib import Path

import pytest

from architecture import registry
from training.command_line import parse_command_line
from training.config import TrainConfig
from training.costs import report
from training.train_command import model_fields

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))

LIGHTER = ("light", "quickstart")  # toy with fewer of everything


def read(path: Path):
    return parse_command_line(["--config", str(path)], model_fields)


def test_there_is_a_recipe_for_each_of_the_three_sizes():
    assert {path.stem for path in CONFIGS} >= {"toy", "medium", "large"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_fits_its_model(path):
    cfg, overrides, *_ = read(path)
    config = registry.build_config(cfg.model, cfg.model_size, overrides)
    assert cfg.model_size == ("toy" if path.stem in LIGHTER else path.stem)
    assert cfg.block_size <= config.context_limit
    assert f"{config.parameter_counts()['total']:,}" in report(
        replace(cfg, dtype="float32"), config
    )


def test_the_toy_recipe_is_what_no_recipe_gives():
    (path,) = (path for path in CONFIGS if path.stem == "toy")
    assert read(path).config == TrainConfig()
