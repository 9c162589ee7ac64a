"""The chat page without a browser: Streamlit's AppTest runs server.py, and sees its elements."""

import io
import os
import re
import subprocess
import sys
import threading

import pytest
import torch
from PIL import Image
from test_context_generation import build as build_with_state
from test_context_generation import save
from test_generation import build
from test_vision_generation import build as build_seeing
from test_vision_generation import draw_images

from architecture.generation.chat import ONE_AT_A_TIME, conversation_file, put_turn, read_turns
from inference import generate_text, load_model

pytestmark = pytest.mark.browser
SERVER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "server.py")
NAME = "0123456789abcdef"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file with a small model whose context has 64 tokens."""
    return save(build(initial_context_length=64), tmp_path_factory.mktemp("saved") / "checkpoint_5.pt")


@pytest.fixture
def here(tmp_path, monkeypatch, saved):
    """A working directory in which model/ has a checkpoint, and flags of the page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["server.py"])
    listens_at(monkeypatch, "127.0.0.1")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "checkpoint_5.pt").hardlink_to(saved)
    return tmp_path


def listens_at(monkeypatch, address):
    import streamlit

    monkeypatch.setattr(streamlit, "get_option", {"server.address": address}.get)


def open_page(*flags, name=None, run=True):
    from streamlit.testing.v1 import AppTest

    sys.argv[1:] = flags  # restored by the fixture, which set the list
    page = AppTest.from_file(SERVER, default_timeout=60)
    if name is not None:
        page.query_params["c"] = name
    return page.run() if run else page


def send(page, message):
    return page.chat_input[0].set_value(message).run()


def press(page, label):
    return next(button for button in page.button if button.label == label).click().run()


def texts(page) -> list[str]:
    """The texts of the messages; a page without exceptions is a part of every test."""
    assert not page.exception, page.exception
    return [message.text[0].value for message in page.chat_message]


def turns(page, folder) -> list[dict]:
    return read_turns(conversation_file(folder / "cache" / "nano-gpt-oss" / "conversations", name_of(page)))


def name_of(page) -> str:
    found = page.query_params["c"]  # a list, if it has not been set by the page
    return found if isinstance(found, str) else found[0]


def errors(page) -> str:
    assert not page.exception, page.exception
    return " ".join(error.value for error in page.error)


# ------------------------------------------------------------------------------------------ opening it


def test_a_page_opened_before_any_training_says_what_to_do(here):
    (here / "model" / "checkpoint_5.pt").unlink()
    page = open_page()
    assert "no checkpoint in model yet" in page.info[0].value and not page.exception
    assert all(button.disabled for button in page.button if button.label != "New conversation")
    page = send(page, "Once")
    assert "no model that could go on" in page.warning[0].value and texts(page) == []
    (here / "model").rmdir()
    assert "no folder with a model here yet" in open_page().info[0].value


@pytest.mark.parametrize("flags, message", [
    (["--folder", "model"], "Unrecognized arguments: --folder model; did you mean '--folders'?"),
    (["--xyzzy", "model"], "Unrecognized arguments: --xyzzy model; --help"),
    (["--folders"], "expected at least one argument"),
])  # fmt: skip
def test_a_wrong_flag_is_a_sentence_in_the_page(here, flags, message):
    page = open_page(*flags)
    assert message in errors(page) and not page.chat_input


def test_only_an_address_of_this_machine_is_accepted_without_public(here, monkeypatch):
    for address in ("0.0.0.0", None, "10.0.0.3"):
        listens_at(monkeypatch, address)
        page = open_page()
        assert "of this machine only" in errors(page) and not page.chat_input
        assert open_page("--public").chat_input
    listens_at(monkeypatch, "localhost")
    assert not errors(open_page())


def test_the_given_folders_only_are_listed(here, saved):
    for name in ("model_a", "other"):
        (here / name).mkdir()
        (here / name / "checkpoint_7.pt").hardlink_to(saved)
        (here / name / ".checkpoint_8.pt.tmp").touch()  # a run writes it just now
    box = open_page("--folders", "other", "missing").selectbox[0]
    assert (box.value, box.options) == ("other/checkpoint_7.pt", ["other, step 7"])
    page = open_page()
    assert set(page.selectbox[0].options) == {"model, step 5", "model_a, step 7"}
    assert "missing (from --folders) does not exist" in open_page("--folders", "missing").warning[0].value


# ----------------------------------------------------------------------------------------- the answers


def test_a_message_is_continued_saved_and_there_after_a_reload(here):
    page = send(open_page(), "the cat")
    message, answer = texts(page)
    assert message == "the cat"
    first, second = turns(page, here)
    assert first == {"role": "user", "text": "the cat"}
    assert (second["text"].strip() or "(nothing)") == answer
    assert second["checkpoint"] == "model/checkpoint_5.pt" and second["end"] in ("ended", "max tokens")
    assert f"seed {second['seed']}" in page.chat_message[1].caption[0].value
    assert texts(open_page(name=name_of(page))) == [message, answer]


def test_the_settings_reach_the_model(here):
    page = open_page()
    page.number_input(key="seed").set_value(7)
    page.number_input(key="max_tokens").set_value(9)
    page.number_input(key="top_k").set_value(40)
    page.slider(key="temperature").set_value(1.5)
    page.slider(key="top_p").set_value(0.9)
    page = send(page, "the cat")
    model = load_model("model/checkpoint_5.pt")
    expected = generate_text(model, "the cat", 9, 1.5, seed=7, top_k=40, top_p=0.9)
    assert "the cat" + turns(page, here)[1]["text"] == expected
    page.slider(key="temperature").set_value(0.0)
    page = press(page, "Regenerate")
    assert "the cat" + turns(page, here)[1]["text"] == generate_text(model, "the cat", 9, 0)


def test_regenerate_replaces_the_last_answer_with_another_one(here):
    page = open_page()
    page.number_input(key="seed").set_value(7)
    page = send(page, "the cat")
    before = turns(page, here)
    page = press(page, "Regenerate")
    after = turns(page, here)
    assert len(after) == 2 and [turn["seed"] for turn in (before[1], after[1])] == [7, 8]
    assert (
        texts(page)[1] == (after[1]["text"].strip() or "(nothing)") and after[1]["text"] != before[1]["text"]
    )


def test_continue_goes_on_without_a_message_and_a_new_conversation_is_empty(here):
    page = press(open_page(), "Surprise me")
    page = press(page, "Continue")
    assert [turn["role"] for turn in turns(page, here)] == ["assistant", "assistant"]
    assert len(texts(page)) == 2
    page = press(page, "New conversation")
    assert texts(page) == [] and "c" not in page.query_params and page.title
    page = press(page, "Once upon a time")
    assert texts(page)[0] == "Once upon a time"


@pytest.mark.parametrize("message", [
    "<|endoftext|> and <|start|>", "**b** <b>i</b> $x^2$ `code`", "\U0001f600 caf\u00e9", "\0 \x1b[31m",
])  # fmt: skip
def test_any_text_is_shown_as_it_was_written(here, message):
    page = send(open_page(), message)
    assert texts(page)[0] == message.strip() and turns(page, here)[0]["text"] == message


@pytest.mark.parametrize("message", ["", " ", "\n\t"])
def test_an_empty_message_is_a_sentence(here, message):
    page = send(open_page(), message)
    assert "message is empty" in page.warning[0].value
    assert texts(page) == [] and "c" not in page.query_params


def test_a_message_longer_than_the_context_is_a_sentence_and_not_saved(here):
    page = send(open_page(), "x" * 100)
    assert "A message may have 32 tokens with this model" in errors(page)
    page = send(page, "the cat")
    assert len(texts(page)) == 2


def test_a_conversation_longer_than_the_context_says_what_is_not_read(here):
    page = open_page()
    for _ in range(3):
        page = send(page, "x" * 30)
    assert len(texts(page)) == 6
    assert re.search(r"first \d+ tokens of the text no longer fit", page.chat_message[5].caption[0].value)


def test_the_variant_with_a_state_keeps_it_over_the_turns(here):
    save(build_with_state(segment_length=5, gated_update=True), here / "model" / "checkpoint_9.pt")
    page = open_page()
    page.selectbox[0].set_value("model/checkpoint_9.pt")
    page = send(page, "the cat")
    decoder = page.session_state.memory.decoder
    page = send(page, "the dog")
    assert page.session_state.memory.decoder is decoder and len(texts(page)) == 4
    assert page.session_state.memory.text.startswith("the cat" + turns(page, here)[1]["text"])


# ------------------------------------------------------------------------------------------- with images


@pytest.fixture
def seeing(here):
    """The page of a model that reads images of 6 x 6 pixels, and those of an image."""
    save(build_seeing().float(), here / "model" / "checkpoint_9.pt")
    file = io.BytesIO()
    Image.fromarray(draw_images(1)[0].transpose(1, 2, 0)).save(file, "PNG")
    page = open_page()
    page.selectbox[0].set_value("model/checkpoint_9.pt")
    return page.run(), file.getvalue()


def test_an_image_goes_with_the_next_message_and_stays_in_the_conversation(here, seeing):
    page, image = seeing
    page.file_uploader[0].set_value([("a.png", image, "image/png")])
    page.number_input(key="seed").set_value(7)
    page.number_input(key="max_tokens").set_value(9)
    page = send(page.run(), "the cat")
    expected = generate_text(
        load_model("model/checkpoint_9.pt"), "the cat", 9, 0.8, seed=7, images=draw_images(1)
    )
    first, second = turns(page, here)
    assert "the cat" + second["text"] == expected and len(first["images"]) == 1
    page = page.run()
    assert not page.file_uploader[0].value  # the next message has none
    page = press(page, "Regenerate")
    assert turns(page, here)[1]["text"] != second["text"] and turns(page, here)[0] == first
    page.selectbox[0].set_value("model/checkpoint_5.pt")
    page = press(page, "Regenerate")
    assert "this model does not read the images" in page.chat_message[1].caption[0].value
    assert not page.file_uploader


def test_a_file_that_is_no_image_is_a_sentence_as_soon_as_it_is_chosen(here, seeing):
    page, image = seeing
    page.file_uploader[0].set_value([("a.png", image[:40], "image/png"), ("b.png", image, "image/png")])
    page = page.run()
    assert "Image a.png cannot be read (" in errors(page)
    page = send(page, "the cat")
    assert len(turns(page, here)[0]["images"]) == 1


def test_an_image_that_has_vanished_is_a_sentence(here, seeing):
    page, image = seeing
    page.file_uploader[0].set_value([("a.png", image, "image/png")])
    page = send(page.run(), "the cat")
    (kept,) = (here / "cache").rglob(turns(page, here)[0]["images"][0])
    assert kept.read_bytes() == image
    kept.unlink()
    assert "must be a file, and there is none at" in errors(press(page, "Continue"))


# ---------------------------------------------------------------------------------------- what may fail


def test_a_checkpoint_that_vanishes_is_a_sentence_and_another_can_be_chosen(here, saved):
    page = send(open_page(), "the cat")
    (here / "model" / "checkpoint_9.pt").hardlink_to(saved)
    (here / "model" / "checkpoint_5.pt").unlink()
    page = send(page, "and then")
    assert "model/checkpoint_5.pt no longer exists; choose another" in page.warning[0].value
    assert len(texts(page)) == 2  # what was written stays
    page.selectbox[0].set_value("model/checkpoint_9.pt").run()
    page = send(page, "and then")
    assert len(texts(page)) == 4 and turns(page, here)[3]["checkpoint"] == "model/checkpoint_9.pt"


@pytest.mark.parametrize("damage, message", [
    (lambda path: path.write_bytes(path.read_bytes()[:-500]), "cannot be read as a checkpoint"),
    (lambda path: path.write_bytes(b""), "cannot be read as a checkpoint"),
    (lambda path: change(path, model_name="mamba"), "Model must be one of gptoss, gptoss_context, gptoss_vision, gpt2, got 'mamba'"),
    (lambda path: change(path, model_name="gptoss_context"), "lacks"),
    (lambda path: change(path, format=99), "has format 99"),
])  # fmt: skip
def test_a_checkpoint_that_cannot_be_loaded_is_a_sentence(here, saved, damage, message):
    path = here / "model" / "checkpoint_5.pt"
    path.unlink()
    path.write_bytes(saved.read_bytes())
    damage(path)
    page = open_page()
    assert message in errors(page)
    assert "no model that could go on" in " ".join(w.value for w in send(page, "the cat").warning)


def change(path, **values):
    torch.save(torch.load(path, weights_only=True) | values, path)


def test_a_checkpoint_that_is_written_again_is_loaded_again(here):
    page = open_page()
    page.number_input(key="seed").set_value(7)
    first = texts(send(page, "the cat"))[1]
    path = here / "model" / "checkpoint_5.pt"
    path.unlink()
    save(build(seed=4, initial_context_length=64), path)
    page = open_page()
    page.number_input(key="seed").set_value(7)
    assert texts(send(page, "the cat"))[1] != first


@pytest.mark.parametrize("name, reason", [
    (NAME, "is not on this machine"),
    ("../../../etc/passwd", "names no conversation"),
    ("0" * 500, "names no conversation"),
])  # fmt: skip
def test_an_address_without_its_conversation_begins_a_new_one(here, name, reason):
    page = open_page(name=name)
    assert reason in page.warning[0].value and "c" not in page.query_params
    assert len(texts(send(page, "the cat"))) == 2


def test_a_damaged_conversation_and_a_full_disk_are_sentences(here, monkeypatch):
    path = conversation_file(here / "cache" / "nano-gpt-oss" / "conversations", NAME)
    put_turn(path, 0, {"role": "user", "text": "the cat"})
    path.write_text(path.read_text().replace("cat", "dog"))
    assert "it was changed after it was written" in open_page(name=NAME).warning[0].value
    page = open_page()
    monkeypatch.setattr(
        "os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    assert "make room on its disk" in errors(send(page, "the cat"))


def test_a_lack_of_memory_is_a_sentence_and_a_fault_of_the_code_is_not_hidden(here, monkeypatch):
    page = open_page()
    for error in (MemoryError("12 GB"), RuntimeError("CUDA out of memory")):
        monkeypatch.setattr(
            "architecture.generation.chat.generate_steps", lambda *_, e=error, **__: raised(e)
        )
        assert "There is not enough memory" in errors(send(page, "the cat"))
    monkeypatch.setattr("architecture.generation.chat.generate_steps", lambda *_, **__: raised(KeyError("x")))
    assert send(page, "the cat").exception


def raised(error):
    raise error


@pytest.mark.parametrize("settings", [
    {"temperature": "99"}, {"max_tokens": "many"}, {"max_tokens": "0"}, {"seed": "-1"}, {"top_k": "1e9"}, {"top_p": "nan"},
])  # fmt: skip
def test_a_setting_out_of_range_in_the_address_is_replaced(here, settings):
    page = open_page(run=False)
    for name, value in settings.items():
        page.query_params[name] = value
    page = send(page.run(), "the cat")
    assert len(texts(page)) == 2 and errors(page) == ""


def test_a_page_waits_for_another_one(here):
    page = open_page()
    ONE_AT_A_TIME.acquire()
    released = threading.Event()
    threading.Timer(0.5, lambda: (released.set(), ONE_AT_A_TIME.release())).start()
    assert len(texts(send(page, "the cat"))) == 2 and released.is_set()


def test_without_streamlit_run_it_says_how_to_start_it():
    done = subprocess.run(
        [sys.executable, SERVER], capture_output=True, text=True, cwd=os.path.dirname(SERVER)
    )
    assert done.returncode == 1 and "start it with: streamlit run server.py" in done.stderr


# ------------------------------------------------------------------------------------ the official tokenizer


def test_a_model_with_the_official_tokenizer_answers_in_turns(here, shared_data, monkeypatch):
    pytest.importorskip("openai_harmony")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken_cache"))
    monkeypatch.delenv("TIKTOKEN_RS_CACHE_DIR", raising=False)
    from architecture.tokenizer import HARMONY, get_tokenizer

    tokenizer = get_tokenizer(HARMONY)
    model = build(vocab_size=201088, hidden_size=8, initial_context_length=200)
    model.tokenizer = tokenizer
    (here / "model" / "checkpoint_5.pt").unlink()
    save(model, here / "model" / "checkpoint_6.pt")
    says = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hi!<|return|>"
    prompts = []

    def steps(_model, given, **_options):
        prompts.append(tokenizer.decode(given[0]))
        return iter([[token] for token in tokenizer.encode(says, allowed_special="all")])

    monkeypatch.setattr("architecture.generation.chat.generate_steps", steps)
    page = open_page()
    assert page.title[0].value == "Ask gpt-oss"
    page.selectbox(key="reasoning").set_value("high")
    page.number_input(key="max_tokens").set_value(50)
    page = send(page.run(), "Hello")
    assert [turn["text"] for turn in turns(page, here)] == ["Hello", "Hi!"]
    assert turns(page, here)[1]["analysis"] == "hm" and not page.exception and not page.error
    assert "Reasoning: high" in prompts[0] and "<|start|>user<|message|>Hello<|end|>" in prompts[0]
    page = send(page, "More")
    assert "<|channel|>final<|message|>Hi!<|end|>" in prompts[1] and "hm" not in prompts[1]
    page = open_page(name=name_of(page))
    assert page.expander[0].label == "Reasoning" and page.expander[0].text[0].value == "hm"
