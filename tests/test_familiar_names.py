"""Commands and names from the README of VizuaraAI's nano-gpt-oss, and the names that other code imports, work."""

from pathlib import Path

import pytest
from toy_run import run_here

FIXTURES = Path(__file__).resolve().parent / "fixtures"
TRUNK, CONTEXT = (FIXTURES / name / "checkpoint_6.pt" for name in ("trunk", "context"))
COMMANDS = """
python train.py
python train.py --model_size medium --max_iters 5000 --use_tensorboard
python train.py --model_size toy --batch_size 8 --block_size 512 --lr 3e-4
python train.py --model_size toy --max_iters 1000 --use_tensorboard
python train_context.py --model_size medium --max_iters 5000 --use_tensorboard
python train_context.py --model_size toy --batch_size 4 --block_size 1024
""".strip().splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_people_copy_is_understood(command, tmp_path, capsys):
    script, *flags = command.removeprefix("python ").split()
    assert run_here(tmp_path, *flags, "--dry_run", script=script.removesuffix(".py")) == 0
    out = capsys.readouterr().out
    assert out.startswith("recipe: configs/") and "parameters " in out
    assert "does not fit" not in out and list(tmp_path.iterdir()) == []


def test_a_story_comes_from_a_checkpoint_by_its_path():
    from inference import load_model_and_generate

    text = load_model_and_generate(
        checkpoint_path=str(TRUNK), prompt="Once upon a time", max_length=20, temperature=0.8
    )
    assert text.startswith("Once upon a time")


def test_a_story_comes_from_a_loaded_model():
    from architecture.gptoss import Transformer
    from inference import generate_text

    model = Transformer.from_checkpoint(str(TRUNK), device="cpu")
    text = generate_text(model, "Once upon a time", max_tokens=10, temperature=0.8)
    assert text.startswith("Once upon a time")


def test_the_context_variant_gives_its_tokens_one_by_one():
    from architecture.gptoss_context import TokenGenerator

    generator = TokenGenerator(str(CONTEXT.parent), device="cpu")
    steps = generator.generate(prompt_tokens=[1, 2, 3], stop_tokens=[0], temperature=0.8, max_tokens=20)
    tokens = list(steps)
    assert 1 <= len(tokens) <= 20 and all(0 <= token < 1536 for token in tokens)
    generator.reset()


def test_ids_come_from_ids():
    from architecture.generation import generate
    from architecture.registry import load_model

    (new,) = generate(load_model(TRUNK), [[1, 2, 3]], max_tokens=5, temperature=0)
    assert len(new) == 5


def test_a_dataset_is_opened_by_its_name(tmp_path):
    from data.sources import open_dataset

    for name, text in (("train", "one<|endoftext|>two"), ("valid", "three")):
        (tmp_path / f"{name}.txt").write_text(text)
    files = str(tmp_path / "train.txt"), str(tmp_path / "valid.txt")
    source = open_dataset(files[0], split="train", val_dataset=files[1])
    texts = iter(source.shuffled(seed=1))
    assert {next(texts), next(texts)} == {"one", "two"}
    with pytest.raises(ValueError, match="no such file"):
        open_dataset(str(tmp_path / "missing.txt"), split="train")
