"""The model card of an exported folder says what the records of its run say, and nothing else."""

import html
import json
import math
import re
import shutil
from pathlib import Path

import markdown
import pytest
import yaml
from small_model import SHAPE, model
from toy_run import TINY, load, run_here

from architecture.open_gpt_oss.model_card import model_card
from architecture.tokenizer import get_tokenizer, tokenizer_state
from common.files import write_json_atomic

SECTIONS = (
    "Architecture", "Intended uses and limits", "Training data and procedure", "Evaluation",
    "What the export changed", "Environmental impact", "Technical specification", "How to use it", "Citation",
    "Licence",
)  # fmt: skip
HOSTILE = "a\n---\nlicense: mit | <script>`x`</script> [y](z) \x85\u2028\ud800 \"'\\ " + "w" * 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus) -> Path:
    """A finished run of 20 steps, with a checkpoint at step 8."""
    work = tmp_path_factory.mktemp("card")
    assert run_here(work, *TINY, *corpus, "--out_dir", "run") == 0
    return work / "run"


@pytest.fixture(scope="module")
def checkpoint(folder) -> Path:
    return folder / "checkpoint_20.pt"


def card(path: Path, state: dict | None = None, **options) -> str:
    options = {"layout": "hf", "dtype": "float32"} | options
    return model_card(path, load(path) if state is None else state, **options)


def front(text: str) -> dict:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))


def rendered(text: str) -> str:
    """The card without its front matter as HTML."""
    return markdown.markdown(text.split("\n---\n", 1)[1], extensions=["tables", "fenced_code"])


def rows(text: str) -> dict[str, str]:
    """The rows of all tables as a reader sees them."""
    cells = [html.unescape(cell) for cell in re.findall("<td>(.*?)</td>", rendered(text))]
    return dict(zip(cells[::2], cells[1::2], strict=True))


def closing(folder: Path) -> dict:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return next(record for record in map(json.loads, lines) if "final/loss" in record)


def test_the_figures_of_a_card_are_those_of_the_records(folder, checkpoint):
    text, final = card(checkpoint), closing(folder)
    config, found = json.loads((folder / "config.json").read_text()), rows(text)
    half_width = final["final/loss_half_width"]
    assert (
        found["loss"]
        == f"{final['final/loss']:.4f} nats per token, +- {half_width:.4f} (95 %, over documents)"
    )
    assert found["bits per byte"] == f"{final['final/bits_per_byte']:.4f}"
    scored = (
        f"{final['final/validation_tokens']:,} tokens of {final['final/validation_documents']:,} documents"
    )
    assert found["scored"] == scored
    total, active = final["final/parameters"], final["final/active_parameters"]
    assert found["parameters"] == f"{total:,}, of which {active:,} are active per token"
    assert found["tokens"] == f"{final['final/tokens']:,}" and found["steps"] == "20"
    assert found["training time"].startswith(f"{final['final/seconds']:,.0f} s, ")
    assert found["data"] == "stories.jsonl"
    assert found["content of the data"] == config["data"]["training data"]
    assert found["content of the validation data"] == config["data"]["validation data"]
    assert found["batch"] == "64 tokens per step: 1 x 4 rows of 16 tokens, packed"
    assert found["commit of nano-gpt-oss"] == config["starts"][0]["commit"]
    assert found["versions"].startswith(f"torch {config['starts'][0]['torch']}; ")
    assert found["seeds"] == "one: no spread over seeds is known"
    assert "not recorded" not in found.values()
    assert str(folder.parent) not in text


def test_a_card_has_every_section_and_a_front_matter_for_the_hub(checkpoint):
    text = card(checkpoint)
    assert tuple(re.findall(r"^## (.*)$", text, re.M)) == SECTIONS
    about = {"library_name": "transformers", "pipeline_tag": "text-generation", "license": "unknown"}
    about |= {"tags": ["gpt_oss", "mixture-of-experts", "nano-gpt-oss"], "datasets": ["stories.jsonl"]}
    assert front(text) == about
    assert "library_name" not in front(card(checkpoint, layout="original"))
    assert "transformers" not in card(checkpoint, layout="original")


@pytest.mark.parametrize(
    "identity, name, language",
    [
        ("roneneldan/TinyStories@f54c09f, train, all of its documents", "roneneldan/TinyStories", "en"),
        ("bundled stories 1, 20,000 from number 0", "bundled", "en"),
        ("8 documents, blake2b 00", "stories.jsonl", None),
    ],
)
def test_data_from_the_hub_has_its_name_there_and_english_is_known_of_known_data(
    checkpoint, identity, name, language
):
    state = load(checkpoint)
    state["data_identity"] = {"training data": identity}
    state["train_config"]["dataset"] = "bundled" if name == "bundled" else "/a/b/stories.jsonl"
    about = front(card(checkpoint, state))
    assert (about["datasets"], about.get("language")) == ([name], language)


def test_a_checkpoint_without_a_folder_of_records_says_what_it_knows(checkpoint, tmp_path):
    state = load(checkpoint)
    found = rows(card(tmp_path / "checkpoint_20.pt", state))
    assert found["loss"] == f"{state['scored']['val_loss']:.4f} nats per token, no interval recorded"
    assert found["scored"] == "at most 256 tokens" and found["versions"] == "not recorded"
    assert found["tokens"] == f"{state['progress']['tokens']:,}"
    assert "validation loss of its run" not in card(tmp_path / "checkpoint_20.pt", state)


def test_a_checkpoint_without_training_says_so(tmp_path):
    state = {"model_name": "gptoss", "config": SHAPE, "model": model().state_dict(), "step": 0}
    state["tokenizer"] = tokenizer_state(get_tokenizer("stories4k"))
    text = card(tmp_path / "checkpoint_0.pt", state)
    assert "Where its weights come from is not recorded." in text and "random" not in text
    assert "No evaluation of these weights is recorded." in text and text.count("Not recorded.") == 2
    assert "instructions" not in text and "datasets" not in front(text)


def test_an_earlier_checkpoint_does_not_take_the_closing_figures(folder):
    text = card(folder / "checkpoint_8.pt")
    assert rows(text)["steps"] == "8 of 20 planned" and "No evaluation of these weights is recorded." in text


def test_a_resumed_run_tells_where_it_was_continued_and_by_which_versions(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint.parent, tmp_path / "run")
    facts = json.loads((folder / "config.json").read_text())
    del facts["seal"]
    first = facts["starts"][0]
    again = ((16, "9.8"), (8, "9.9"), (20, "10"))  # what began at step 16 was trained again
    facts["starts"] += [first | {"step": step, "torch": torch} for step, torch in again]
    write_json_atomic(folder / "config.json", facts)
    found = rows(card(folder / checkpoint.name))
    assert found["steps"] == "20; continued after step 8"  # what began at step 20 changed nothing here
    assert found["versions"].startswith(f"torch {first['torch']}, 9.9; ")


@pytest.mark.parametrize("part", ["model", "data"])
def test_the_records_of_another_run_do_not_count(checkpoint, tmp_path, part):
    folder = shutil.copytree(checkpoint.parent, tmp_path / "run")
    facts = json.loads((folder / "config.json").read_text())
    del facts["seal"]
    facts[part] = {**facts[part], "other": "than the checkpoint"}
    write_json_atomic(folder / "config.json", facts)
    assert rows(card(folder / checkpoint.name))["versions"] == "not recorded"


def test_a_fine_tuned_model_names_its_base_and_claims_nothing_about_it(checkpoint):
    state = load(checkpoint)
    state["train_config"]["init_from"] = "/home/me/model/checkpoint_7.pt"
    text = card(checkpoint, state)
    assert "Its training began from model/checkpoint_7.pt; what came before is not counted" in text
    assert "random" not in text and "instructions" not in text and "/home" not in text


def test_an_extended_run_tells_its_own_schedule_from_the_step_where_it_began(checkpoint):
    state = load(checkpoint)
    state["train_config"] |= {"max_iters": 20, "extend": 5}
    told = "20, of which the last 5 have a schedule of their own (--extend)"
    assert rows(card(checkpoint, state))["steps"] == told
    state["train_config"] |= {"max_iters": 25, "extend": 5}
    assert rows(card(checkpoint, state))["steps"] == "20 of 25 planned"


def test_energy_is_watts_times_the_seconds_of_training(checkpoint):
    state = load(checkpoint)
    assert "The energy of the training was not measured." in card(checkpoint, state)
    for seconds, energy in (
        (60.0, "0.5 Wh: 30 W, as given at the export, for 60 s"),
        (3.6e6, "30.00 kWh: 30 W"),
    ):
        state["progress"]["seconds"] = seconds
        assert f"The training took {energy}" in card(checkpoint, state, watts=30)


@pytest.mark.parametrize("watts", [0, -1, math.nan, math.inf])
def test_watts_are_a_positive_number(checkpoint, watts):
    with pytest.raises(ValueError, match=f"watts must be a positive number, got {watts}"):
        card(checkpoint, watts=watts)


def test_watts_without_a_training_time_are_refused(checkpoint):
    state = load(checkpoint)
    del state["progress"]
    with pytest.raises(ValueError, match="no training time"):
        card(checkpoint, state, watts=5)


def test_a_card_tells_what_the_export_changed(checkpoint):
    lines = ["block.0.mlp.mlp1_weight 0.06", "block.0.mlp.mlp2_weight 0.07"]
    text = card(checkpoint, dtype="bfloat16", changes=["The bias was dropped."], error_lines=lines)
    assert "- Weights are in bfloat16; the checkpoint has float32.\n- The bias was dropped.\n" in text
    assert f"The relative error of each:\n\n```\n{lines[0]}\n{lines[1]}\n```" in text
    assert "mxfp4" in front(text)["tags"] and "MXFP4" not in card(checkpoint)


def test_hostile_names_in_the_records_break_neither_the_front_matter_nor_a_table(checkpoint):
    state, clean = load(checkpoint), card(checkpoint)
    state["train_config"] |= {"dataset": HOSTILE.replace("/", ""), "device": HOSTILE, "init_from": HOSTILE}
    state["data_identity"] = dict.fromkeys(("training data", "validation data"), HOSTILE)
    state["tokenizer"]["name"] = HOSTILE
    text = card(checkpoint, state)
    assert front(text).keys() == front(clean).keys() and front(text)["license"] == "unknown"
    assert len(front(text)["datasets"][0]) <= 200
    assert rows(text).keys() == rows(clean).keys()
    assert rows(text)["content of the data"].startswith("a --- license: mit | <script>`x`</script> [y](z) ")
    assert "<script>" not in rendered(text)
    assert tuple(re.findall(r"^## (.*)$", text, re.M)) == SECTIONS
    text.encode()


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("config.json", "{", "cannot be read as the config.json of a run"),
        ("config.json", "[]", "it is not a JSON object"),
        ("metrics.jsonl", '{"final/loss": 1}', "'step' is missing"),
        ("metrics.jsonl", '{"step": 20, "final/loss" 1}', "cannot be read as the metrics.jsonl of a run"),
    ],
)
def test_damaged_records_are_refused_in_one_sentence(checkpoint, tmp_path, name, content, reason):
    folder = shutil.copytree(checkpoint.parent, tmp_path / "run")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(reason)) as error:
        card(folder / checkpoint.name)
    assert str(folder / name) in str(error.value) and "move it away" in str(error.value)


@pytest.mark.parametrize("setting", [{"lr": "fast"}, {"dataset": 5}, {"warmup": [1]}, {"balance": "odd"}])
def test_settings_of_the_wrong_type_are_refused_in_one_sentence(checkpoint, setting):
    state = load(checkpoint)
    state["train_config"] |= setting
    with pytest.raises(ValueError, match="cannot be read as a run's settings"):
        card(checkpoint, state)


def test_a_closing_line_that_a_kill_cut_off_does_not_count(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint.parent, tmp_path / "run")
    records = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(records[:-20])
    assert "no interval recorded" in rows(card(folder / checkpoint.name))["loss"]
