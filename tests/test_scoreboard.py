"""evaluation/scoreboard.py: its order, paired differences, costs and story scores; benchmarks/ruler_noise.py."""

import json
import math

import numpy as np
import pytest
import torch
from test_generation import tiny_tokenizer
from test_ruler import OURS, TEXTS, built

from architecture.gptoss import ModelConfig, Transformer
from architecture.tokenizer import tokenizer_state
from benchmarks import ruler_noise
from common.files import read_json
from evaluation import ruler, scoreboard


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of three runs, and a file of stories."""
    at = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        config = ModelConfig(**OURS | dict(num_experts=5 + seed))
        tensors = dict(built(Transformer, config, seed).state_dict())
        state = {"model_name": "gptoss", "config": vars(config), "step": 7, "model": tensors}
        (at / f"run_{seed}").mkdir()
        torch.save(
            state | {"tokenizer": tokenizer_state(tiny_tokenizer())}, at / f"run_{seed}" / "checkpoint_7.pt"
        )
    (at / "stories.txt").write_text(ruler.END_OF_TEXT.join(text for text in TEXTS if "<" not in text))
    return at


def flags(folder, out) -> list[str]:
    return ["--data", str(folder / "stories.txt"), "--threads", "1", "--out", str(out)]


def test_models_are_sorted_with_paired_intervals_costs_and_story_scores(folder, tmp_path, capsys):
    share = {"mean": 0.75, "interval": [0.5, 0.9]}
    scores = {"old/checkpoint_7.pt": {"grammar": share, "consistency": {"mean": None, "interval": None}}}
    texts = {"old/checkpoint_7.pt": {"distinct_3": {"mean": 0.6, "interval": None}}, "real": {}}
    (folder / "run_1" / "stories.json").write_text(json.dumps({"pairs": {"scores": scores}, "texts": texts}))
    missing = folder / "missing"
    with pytest.raises(ValueError, match="1 of 4 models have no number"):
        scoreboard.run(
            [str(folder), str(missing), *flags(folder, tmp_path), "--rounds", "1", "--tokens", "8"]
        )
    table = capsys.readouterr().out
    found, kept = read_json(tmp_path / "scoreboard.json"), read_json(tmp_path / "ruler.json")
    rows = found["models"]
    assert [row["bits_per_byte"] for row in rows] == sorted(one["bits_per_byte"] for one in kept["models"])
    nats = {one["model"]: np.array(one["nats_of_documents"]) for one in kept["models"]}
    sizes = np.array(kept["bytes_of_documents"])
    for above, row in zip(rows, rows[1:]):
        difference = (nats[row["model"]] - nats[above["model"]]) / math.log(2)
        mean, n = difference.sum() / sizes.sum(), len(sizes)
        error = math.sqrt(n / (n - 1) * ((difference - mean * sizes) ** 2).sum()) / sizes.sum()
        assert (
            row["above"]["difference"] == pytest.approx(mean) == row["bits_per_byte"] - above["bits_per_byte"]
        )
        assert row["above"]["high"] - mean == pytest.approx(
            3.182 * error, rel=0.02
        )  # t with 3 degrees of freedom
    for row in rows:
        counts = ModelConfig(**OURS | dict(num_experts=5 + int(row["model"][-1])))
        assert (row["parameters"], row["active"]) == tuple(
            counts.parameter_counts()[name] for name in ("total", "active")
        )
        assert row["flops_per_token"] == counts.flops_per_token(15)
        assert row["speed"]["decode_tokens_per_second"] > 0
    mine = next(line for line in table.splitlines() if "run_1`" in line)
    assert "| 0.750 (0.500 to 0.900) | - | 0.600 |" in mine
    assert table.count(" | - | - | - |") == 2 and "missing does not exist" in table
    assert f"Ruler `{kept['ruler_sha256'][:12]}`, data `{kept['data']['sha256'][:12]}`" in table
    assert (tmp_path / "scoreboard.md").read_text() == table
    assert (tmp_path / "scoreboard.png").read_bytes().startswith(b"\x89PNG")


def test_a_scoreboard_goes_on_with_what_its_folder_has_and_refuses_bad_input(folder, tmp_path, monkeypatch):
    command = [str(folder / "run_0"), *flags(folder, tmp_path), "--no_speed"]
    scoreboard.run(command)
    monkeypatch.setattr(ruler, "score", None)
    scoreboard.run(command)
    assert len(read_json(tmp_path / "scoreboard.json")["models"]) == 1
    with pytest.raises(ValueError, match="a model was given twice"):
        scoreboard.run([str(folder), *command])
    with pytest.raises(ValueError, match="no model has a number"):
        scoreboard.run([str(tmp_path / "missing"), *flags(folder, tmp_path), "--no_speed"])
    (folder / "run_2" / "stories.json").write_text('{"pairs": {}}')
    with pytest.raises(ValueError, match="stories.json cannot be read as scores of evaluation.stories"):
        scoreboard.story_scores(folder / "run_2")
    (folder / "run_2" / "stories.json").unlink()


def test_the_noise_over_seeds_and_documents_is_found_again():
    """Made: 400 documents of unequal size, whose bits deviate by 0.3 a byte together and by 0.1 between seeds."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 1000, 400)
    common = sizes * (1.0 + 0.3 * generator.standard_normal(400))
    offsets = 0.02 * generator.standard_normal(5)
    nats = [
        (common + sizes * (offset + 0.1 * generator.standard_normal(400))) * math.log(2) for offset in offsets
    ]
    models = [
        {"nats_of_documents": one.tolist(), "bits_per_byte": ruler.bits_per_byte(one, sizes)[0]}
        for one in nats
    ]
    found = ruler_noise.noise({"bytes_of_documents": sizes.tolist(), "models": models})
    size = math.sqrt((sizes**2.0).sum()) / sizes.sum()
    assert found["documents"]["standard_error"] == pytest.approx(math.hypot(0.3, 0.1) * size, rel=0.1)
    assert found["documents"]["of_halves"] == pytest.approx(found["documents"]["standard_error"], rel=0.1)
    assert found["pairs"]["standard_error"] == pytest.approx(math.sqrt(2) * 0.1 * size, rel=0.1)
    assert found["pairs"]["other_documents"] == pytest.approx(
        math.sqrt(2) * math.hypot(0.3, 0.1) * size, rel=0.1
    )
    scores = [one["bits_per_byte"] for one in models]
    assert found["seeds"]["deviation"] == pytest.approx(np.std(scores, ddof=1))
    assert found["seeds"]["low"] < found["seeds"]["deviation"] < found["seeds"]["high"]
