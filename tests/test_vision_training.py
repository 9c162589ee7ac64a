"""train.py --model gptoss_vision: what is scored, what is frozen, resume, the start from text, what is shown."""

import contextlib
import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_resume import assert_kill_and_resume_join
from toy_run import TINY, load, run_here

from architecture.generation.text import generate_text
from architecture.gptoss_vision import VisionLanguageTransformer
from architecture.images import IMAGE
from architecture.registry import build_config, build_model
from architecture.tokenizer import get_tokenizer
from data.documents import Pictured
from data.hub import GatheredSource
from data.images import open_images
from data.rows import validation_rows
from evaluation import vision
from training import reporting, start
from training.command_line import parse_command_line
from training.config import TrainConfig
from training.costs import memory_bytes
from training.monitor import captions
from training.monitor.metrics import read_metrics
from training.optimizer import freeze, parameter_groups, parameter_kinds
from training.step import accumulate_gradients, apply_gradients
from training.train_command import model_fields

TRUNK = Path(__file__).parent / "fixtures/trunk/checkpoint_6.pt"
SIZES = dict(image_size=16, vision_patch_size=8, vision_embed_dim=12, vision_num_heads=3, vision_num_layers=1)
EYES = ["--model", "gptoss_vision", *(word for name, value in SIZES.items() for word in (f"--{name}", value))]
FLAGS = [*TINY, *EYES, "--block_size", 48, "--initial_context_length", 64, "--no-use_tensorboard"]
SHORT = [*FLAGS, "--max_iters", 2, "--eval_every", 2]
TOKENS = (SIZES["image_size"] // SIZES["vision_patch_size"]) ** 2


@functools.cache
def tokenizer():
    return get_tokenizer("bundled1536")


def small_model(**changes) -> VisionLanguageTransformer:
    shape = dict(
        num_hidden_layers=2, hidden_size=20, num_attention_heads=6, num_key_value_heads=3, head_dim=4
    )
    shape |= dict(num_experts=5, intermediate_size=9, vocab_size=1536, initial_context_length=64)
    config = build_config("gptoss_vision", "toy", shape | SIZES | changes)
    return build_model("gptoss_vision", config, generator=torch.Generator().manual_seed(0))


def resolve(*flags) -> start.Start:
    return start.resolve(parse_command_line(list(map(str, flags)), model_fields))


# --------------------------------------------------------------------------------------- what is scored


def test_only_the_text_of_a_document_is_scored():
    source, model = open_images("pictures", split="validation", size=16), small_model().double()
    sizes = dict(batch_size=7, block_size=48, max_tokens=None)
    batch = next(iter(validation_rows(source, tokenizer(), image_format=model.config.image_format, **sizes)))
    assert batch["images"].shape == (7, 3, 16, 16) and batch["images"].dtype == torch.uint8
    out = model(**batch, return_logits=True)
    log_probability, total = out.logits.detach().double().log_softmax(-1), 0.0
    for row in range(7):
        document = source[row]
        encode = tokenizer().encode_ordinary
        before, text = encode(document.prompt), [*encode(document.text), tokenizer().eot_token]
        first = TOKENS + len(before)  # the position that predicts the first token of the text
        for place, token in enumerate(text, start=first):
            total -= float(log_probability[row, place, token])
        scored = (batch["targets"][row] >= 0).nonzero().flatten().tolist()
        assert scored == list(range(first, first + len(text)))
        assert batch["targets"][row, scored].tolist() == text
    assert out.loss_sum.item() == pytest.approx(total, abs=1e-9)
    alone = model(**batch)  # without logits, positions without a target never reach the head
    assert alone.logits is None and alone.loss_sum.item() == pytest.approx(total, abs=1e-9)
    torch.testing.assert_close(alone.token_losses, out.token_losses, rtol=0, atol=1e-9)


# --------------------------------------------------------------------------------------- what is frozen


@pytest.mark.parametrize("part", ["trunk", "vision"])
def test_what_is_frozen_has_no_optimizer_and_takes_no_memory_for_gradients(part):
    model = small_model()
    freeze(model, part)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        n for n, _ in model.named_parameters() if (n in model.added_parameters) == (part == "trunk")
    }
    groups = parameter_groups(model)
    assert {name for group in groups.values() for name in group} == trained
    assert ("vision" in parameter_kinds(model)) == (part == "trunk")
    cfg = TrainConfig(model="gptoss_vision", packing="rows", freeze=part)
    all_of_it = memory_bytes(TrainConfig(model="gptoss_vision", packing="rows"), model.config)
    memory = memory_bytes(cfg, model.config)
    sizes = {group: sum(p.numel() for p in named.values()) for group, named in groups.items()}
    assert memory["gradients"] == 4 * sum(sizes.values()) and memory["weights"] == all_of_it["weights"]
    assert memory["optimizer"] == 4 * (sizes["matrix"] + 2 * (sizes["decay"] + sizes["no_decay"]))


@pytest.mark.parametrize("part", ["trunk", "vision"])
def test_frozen_parameters_do_not_move_and_the_others_do(tmp_path, part):
    assert run_here(tmp_path, *SHORT, "--freeze", part, "--balance", "bias") == 0
    saved = load(tmp_path / "model/checkpoint_2.pt")
    config = build_config("gptoss_vision", "toy", saved["config"])
    fresh = build_model("gptoss_vision", config, generator=torch.Generator().manual_seed(1337))
    for name, value in fresh.state_dict().items():
        same = torch.equal(saved["model"][name], value)
        assert same == ((name in fresh.added_parameters) == (part == "vision")), name


def test_a_step_of_text_alone_changes_nothing_if_the_trunk_is_frozen():
    model = small_model()
    freeze(model, "trunk")
    ids = torch.randint(1536, (2, 3, 11), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids[0], "targets": ids[1]}
    result = accumulate_gradients(
        model, [batch], TrainConfig(), previous_share=None, carry=None,
        token_bytes=torch.ones(1536, dtype=torch.int64), autocast=contextlib.nullcontext,
    )  # fmt: skip
    norms = apply_gradients(parameter_kinds(model), [], result, clip=1.0)
    assert norms == {"total": 0.0} and all(p.grad is None for p in model.parameters())


# ------------------------------------------------------------------------------------------- resume


@pytest.mark.slow
@pytest.mark.parametrize("part", ["trunk", "none"])
def test_a_killed_run_with_images_goes_on_bit_for_bit(tmp_path, part):
    assert_kill_and_resume_join(tmp_path, [*FLAGS, "--freeze", part])


# ------------------------------------------------------------------------------------- the start from text


def test_a_text_checkpoint_is_the_trunk_of_a_new_model_that_sees(tmp_path):
    flags = ["--model", "gptoss_vision", "--init_from", TRUNK, "--freeze", "trunk", "--block_size", 64]
    flags += ["--initial_context_length", 80, "--max_iters", 1, "--eval_tokens", 64, "--batch_size", 4]
    flags += ["--threads", 1, "--device", "cpu", "--no-use_tensorboard"]
    begun = resolve(*flags)
    preset = build_config("gptoss_vision", "toy")
    assert (
        begun.config.vision_embed_dim == preset.vision_embed_dim
    )  # of the preset, and the trunk's of the file
    assert (begun.config.hidden_size, begun.cfg.packing) == (8, "rows")
    assert run_here(tmp_path, *flags) == 0
    trunk, saved = load(TRUNK)["model"], load(tmp_path / "model/checkpoint_1.pt")
    assert saved["model_name"] == "gptoss_vision" and saved["model"].keys() > trunk.keys()
    assert all(torch.equal(saved["model"][name], value) for name, value in trunk.items())


# ------------------------------------------------------------------------------------------ what it shows


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A run of two steps with TensorBoard."""
    folder = tmp_path_factory.mktemp("shown")
    assert run_here(folder, *SHORT, "--use_tensorboard") == 0
    return folder


def test_the_logs_show_images_with_captions_and_the_load_of_text_and_images(shown):
    records = read_metrics(shown / "model/metrics.jsonl")
    logged = {tag: value for record in records for tag, value in record.items()}
    source = open_images("pictures", split="validation", size=16)
    assert [told["true"] for told in logged["samples/captions"]] == [source[n].text for n in range(8)]
    loads = {medium: torch.tensor(logged[f"moe/load_{medium}"]) for medium in ("text", "image")}
    assert all(
        load.shape == (2, 6) and load.sum(-1).tolist() == pytest.approx([1, 1]) for load in loads.values()
    )
    for layer in (0, 1):
        distance = (loads["text"][layer] - loads["image"][layer]).abs().sum() / 2
        assert logged[f"moe/image_text_distance/layer_{layer:02d}"] == pytest.approx(float(distance))
    kinds = logged["moe/token_kinds"]
    scored = logged["final/validation_tokens"]
    images = kinds["tokens"][kinds["kinds"].index("image")]
    assert images % TOKENS == 0 and sum(kinds["tokens"]) > scored  # all image tokens count, scored or not
    events = EventAccumulator(str(next((shown / "runs").iterdir())), size_guidance={"images": 0})
    events.Reload()
    for tag in ("samples/captions", "moe/load_text", "moe/load_image"):
        assert [event.step for event in events.Images(tag)] == [2]
    assert "samples/story" not in logged and logged["val/exact_match"] == 0


def test_exact_match_counts_all_examples_and_the_logs_show_the_first_eight(monkeypatch):
    image = np.zeros((3, 16, 16), np.uint8)
    documents = [Pictured((image,), "", text, "caption", "x") for text in ["a red ring"] * 3 + ["a star"] * 9]
    told = [captions.Captioned(document, "a red ring") for document in documents]
    monkeypatch.setattr(captions, "captioned", lambda model, examples: told)
    shown = {}
    writer = SimpleNamespace(show=lambda step, tag, value, **drawn: shown.update({tag: value}))
    run = SimpleNamespace(model=None, examples=documents, writer=writer)
    assert reporting.show_captions(run, 5) == {"val/exact_match": 0.25}
    assert shown == {"samples/captions": captions.as_json(told[:8])}


def test_documents_that_the_context_cannot_hold_together_are_captioned_one_by_one_or_cut():
    model = small_model(initial_context_length=16)
    model.tokenizer = tokenizer()
    image = np.zeros((3, 16, 16), np.uint8)
    long, short, full = "a ring" * 5, "a ring", "a red ring " * 9
    documents = [Pictured((image,), *both, "x", "x") for both in (("", long), (short, ""), (full, "a star"))]
    alone = [captions.captioned(model, [document])[0].said for document in documents[:2]]
    told = captions.captioned(model, documents)
    assert [said.said for said in told] == [*alone, ""] and alone[0]


@pytest.mark.parametrize("prompt, text", [
    ("", f"{IMAGE}{IMAGE} a ring"), ("", f"this {IMAGE}, that {IMAGE} a ring"), (f"{IMAGE} or", f" {IMAGE} a ring"),
])  # fmt: skip
def test_a_text_with_images_in_it_is_asked_for_from_its_last_image_on(prompt, text):
    model = small_model()
    model.tokenizer = tokenizer()
    images = tuple(np.random.default_rng(0).integers(256, size=(2, 3, 16, 16), dtype=np.uint8))
    (document,) = captions.examples(GatheredSource("x", ["alone", Pictured(images, prompt, text)], ""), 5)
    assert document.prompt + document.text == prompt + text and document.text == " a ring"
    (told,) = captions.captioned(model, [document])
    tokens = len(tokenizer().encode_ordinary(" a ring")) + 1
    assert document.prompt + told.said == generate_text(model, document.prompt, tokens, 0, images=images)
    assert captions.Captioned(document, " a ring").right


def test_the_picture_shows_a_right_text_in_green_and_a_wrong_one_in_red():
    image = np.zeros((3, 16, 16), np.uint8)
    documents = [Pictured((image,), "", text, "caption", "x") for text in ("a red ring", "a blue ring")]
    told = [captions.Captioned(document, "a red ring") for document in documents]
    assert [said.right for said in told] == [True, False]
    pixels = captions.picture(told).astype(int)
    left, right = pixels[:, : pixels.shape[1] // 4], pixels[:, pixels.shape[1] // 4 : pixels.shape[1] // 2]
    green, red = ((p[..., a] - p[..., b] > 60).any() for p, a, b in ((left, 1, 0), (right, 0, 1)))
    assert green and red
    assert captions.as_line(told[1]) == "a red ring   [true: a blue ring]"


def test_its_evaluation_runs_on_the_data_of_the_run(shown, capsys):
    with contextlib.chdir(shown):
        assert vision.main(["model", "--number", "6", "--device", "cpu", "--out", "found.json"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("validation ") and "\nfamiliar " in told and "layer 1: distance" in told
    with contextlib.chdir(shown.parent):
        assert vision.main([str(TRUNK)]) == 2
    assert "must be of a model that reads images, and is of gptoss" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "flags, message",
    [(["--freeze", "vision"], "freeze must be none for model gptoss with these settings, which reads no images"),
     (["--model", "gptoss_vision", "--packing", "packed"], "packing must be rows for a model that reads images"),
     (["--model", "gptoss_vision", "--vision_num_channels", "1"], "must be 3 where images are read"),
     (["--model", "gptoss_vision", "--eval_only", TRUNK], "is gptoss, got gptoss_vision; leave model out")],
    ids=["freeze", "packing", "channels", "text checkpoint"],
)  # fmt: skip
def test_settings_that_do_not_fit_a_model_that_sees_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        resolve(*flags)
