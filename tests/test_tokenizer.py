"""Tokenizers: lossless, never special by accident, whole in a checkpoint, clear errors."""

import base64
import json
import os
import random
import time
from pathlib import Path

import pytest
import torch

import architecture.tokenizer as tokenizer_module
from architecture.tokenizer import (
    call_within,
    get_tokenizer,
    padded_vocab_size,
    save_rank_file,
    token_byte_lengths,
    tokenizer_from_state,
    tokenizer_state,
)
from common.files import read_json
from data.train_tokenizer import train_tokenizer

REPO_ROOT = Path(__file__).resolve().parent.parent
SHARED_CACHE = REPO_ROOT.parent / "shared" / "data" / "tiktoken_cache"
TINYSTORIES = REPO_ROOT.parent / "shared" / "data" / "tinystories"


@pytest.fixture
def shared_cache(monkeypatch):
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", SHARED_CACHE)
    if not Path(folder).is_dir():
        pytest.skip("no tiktoken cache here")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))


def through_torch_save(value, folder):
    torch.save(value, folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True)


def test_shipped_tokenizer_has_a_vocabulary_that_needs_no_padding():
    encoding = get_tokenizer("stories4k")
    assert encoding.n_vocab == padded_vocab_size(encoding.n_vocab) == 4096
    assert encoding.eot_token == 4095


def test_any_text_survives_encoding():
    encoding, rng = get_tokenizer("stories4k"), random.Random(0)
    for _ in range(200):
        points = (rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))) for _ in range(30))
        text = "".join(map(chr, points))
        assert encoding.decode(encoding.encode_ordinary(text)) == text
    for text in ("", "\0", "\r\n\r\n  \n", 'Tim\'s dog said, "Woof!"\n\nThe end.', "<|endoftext|>"):
        assert encoding.decode(encoding.encode_ordinary(text)) == text


def test_every_single_byte_is_a_token():
    encoding = get_tokenizer("stories4k")
    assert all(
        encoding.decode_single_token_bytes(encoding.encode_single_token(bytes([b]))) for b in range(256)
    )


def test_end_of_text_written_in_a_story_is_not_the_special_token():
    encoding = get_tokenizer("stories4k")
    assert encoding.eot_token not in encoding.encode_ordinary("The end.<|endoftext|>Once more.")


def test_byte_lengths_sum_to_the_bytes_of_the_text():
    encoding = get_tokenizer("stories4k")
    lengths = token_byte_lengths(encoding, 4096 + 64)
    text = "Lily saw a caf\u00e9 \u2014 and a \U0001f431."
    assert lengths[torch.tensor(encoding.encode_ordinary(text))].sum() == len(text.encode())
    assert lengths.dtype == torch.int64 and lengths[4095:].sum() == 0


def test_state_rebuilds_the_same_encoding_through_a_safe_checkpoint(tmp_path):
    encoding = get_tokenizer("stories4k")
    rebuilt = tokenizer_from_state(through_torch_save(tokenizer_state(encoding), tmp_path))
    text = "Once upon a time, in 1984,\n\nthere was a dragon."
    assert rebuilt.encode_ordinary(text) == encoding.encode_ordinary(text)
    assert (rebuilt.name, rebuilt.eot_token) == (encoding.name, encoding.eot_token)


def test_state_with_other_ranks_or_pattern_is_refused():
    state = tokenizer_state(get_tokenizer("stories4k"))
    with pytest.raises(ValueError, match="sha256"):
        tokenizer_from_state({**state, "pattern": state["pattern"].replace("{1,2}", "{1,3}")})
    lines = state["ranks"].splitlines()
    other = base64.b64encode(b"zqzqzq").decode()
    with pytest.raises(ValueError, match="sha256"):
        tokenizer_from_state({**state, "ranks": "\n".join([*lines[:-1], f"{other} {len(lines) - 1}"])})


@pytest.mark.parametrize("name, eot, padded", [("gpt2", 50256, 50304), ("o200k_harmony", 199999, 201088)])
def test_well_known_tokenizers_end_with_end_of_text(shared_cache, tmp_path, name, eot, padded):
    encoding = get_tokenizer(name)
    assert (encoding.eot_token, padded_vocab_size(encoding.n_vocab)) == (eot, padded)
    state = through_torch_save(tokenizer_state(encoding), tmp_path)
    assert "ranks" not in state and tokenizer_from_state(state) is encoding
    lengths = token_byte_lengths(encoding, padded)
    text = "A naive caf\u00e9 in Z\u00fcrich."
    assert lengths[torch.tensor(encoding.encode_ordinary(text))].sum() == len(text.encode())
    assert lengths[eot] == 0


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'o200k_harmony'"):
        get_tokenizer("o200k_harmoni")


def test_a_table_that_cannot_be_downloaded_is_one_sentence_soon(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tokenizer_module, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr("requests.head", lambda *_, **__: time.sleep(5))  # a name look-up that hangs
    began = time.monotonic()
    with pytest.raises(ValueError, match="TIKTOKEN_CACHE_DIR.*stories4k, which needs no network") as caught:
        get_tokenizer("gpt2")
    assert time.monotonic() - began < 2 and "\n" not in str(caught.value)


def test_call_within_gives_up_and_passes_errors_on():
    assert call_within(5, lambda: 3) == 3
    with pytest.raises(TimeoutError):
        call_within(0.05, time.sleep, 5)
    with pytest.raises(KeyError):
        call_within(5, {}.__getitem__, "absent")


def trained(folder):
    pytest.importorskip("rustbpe")
    texts = ["the cat sat on the mat and the dog sat on the log \u00e9"] * 3
    encoding = train_tokenizer(texts, 270, "small")
    path = folder / "small.tiktoken"
    save_rank_file(encoding, path, {"dataset": "test"})
    return encoding, path


def test_a_trained_tokenizer_is_used_by_its_path(tmp_path):
    encoding, path = trained(tmp_path)
    loaded = get_tokenizer(str(path))
    assert (loaded.n_vocab, loaded.eot_token) == (270, 269)
    text = "the cat\U0001f431"
    assert loaded.encode_ordinary(text) == encoding.encode_ordinary(text)
    assert tokenizer_state(loaded) == tokenizer_state(encoding)


def changed(about, **values):
    about.write_text(json.dumps(read_json(about) | values))  # by hand: without a seal


@pytest.mark.parametrize(
    "damage",
    [
        lambda ranks, _: ranks.write_text(ranks.read_text()[:-200]),
        lambda ranks, _: ranks.write_text(ranks.read_text().replace(" 260\n", " 261\n")),
        lambda ranks, _: ranks.write_text("not base64 at all\n"),
        lambda ranks, _: ranks.write_bytes(b"\xff\xfe" + ranks.read_bytes()),
        lambda ranks, _: ranks.write_text(""),
        lambda ranks, _: ranks.unlink(),
        lambda _, about: about.write_text("{"),
        lambda _, about: about.write_text("[]"),
        lambda _, about: about.write_text(about.read_text().replace("<|endoftext|>", "<|end|>")),
        lambda _, about: about.write_text(about.read_text().replace("269", "4")),
        lambda _, about: about.write_text(about.read_text().replace('"small"', '"smalm"')),
        lambda _, about: about.unlink(),
        lambda _, about: about.write_text("[" * 20_000),
        lambda _, about: changed(about, name=["small"]),
        lambda _, about: changed(about, pattern=None),
        lambda _, about: changed(about, special_tokens={"<|endoftext|>": 2**70}),
        lambda _, about: changed(about, special_tokens={"<|endoftext|>": -1}),
    ],
)
def test_a_damaged_tokenizer_is_one_sentence(tmp_path, damage):
    _, path = trained(tmp_path)
    damage(path, path.with_suffix(".json"))
    with pytest.raises(ValueError) as caught:
        get_tokenizer(str(path))
    assert "\n" not in str(caught.value) and "small" in str(caught.value)


def test_a_saved_tokenizer_whose_ranks_are_no_text_is_refused(tmp_path):
    state = tokenizer_state(trained(tmp_path)[0])
    for ranks in (None, 7, ["a"]):
        with pytest.raises(ValueError, match="ranks of the saved tokenizer 'small' must be text"):
            tokenizer_from_state(state | {"ranks": ranks})


def test_a_tokenizer_that_cannot_be_written_leaves_neither_of_its_files(tmp_path):
    encoding, path = trained(tmp_path)
    whole = path.read_bytes()
    (tmp_path / "b.json").mkdir()
    with pytest.raises(ValueError, match="b.json must be a file, and is a folder"):
        save_rank_file(encoding, tmp_path / "b.tiktoken", {})
    with pytest.raises(TypeError):
        save_rank_file(encoding, tmp_path / "c.tiktoken", {"no": object()})
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["b.json", "small.json", "small.tiktoken"] and path.read_bytes() == whole


def test_training_refuses_sizes_that_cannot_be():
    pytest.importorskip("rustbpe")
    with pytest.raises(ValueError, match="must be from 257"):
        train_tokenizer(["a b c"], 256, "x")
    with pytest.raises(ValueError, match="too large"):
        train_tokenizer(["a b c"], 4096, "x")


def test_the_shipped_tokenizer_packs_stories_about_as_well_as_gpt2():
    if not TINYSTORIES.is_dir():
        pytest.skip("no TinyStories here")
    encoding = get_tokenizer("stories4k")
    with open(TINYSTORIES / "valid.jsonl", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for _, line in zip(range(500), file)]
    tokens = sum(len(encoding.encode_ordinary(text)) for text in texts)
    assert sum(len(text.encode()) for text in texts) / tokens > 3.9
