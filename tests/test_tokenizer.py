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
from common.files import CannotWrite, read_json
from data.train_tokenizer import train_tokenizer

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture
def shared_cache(monkeypatch):
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", SHARED / "tiktoken_cache")
    if not Path(folder).is_dir():
        pytest.skip("no tiktoken cache here")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))


def through_torch_save(value, folder):
    torch.save(value, folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True)


def test_any_text_survives_encoding():
    encoding, rng = get_tokenizer("stories4k"), random.Random(0)
    texts = ["", "\0", "\r\n\r\n  \n", 'Tim\'s dog said, "Woof!"\n\nThe end.', "<|endoftext|>"]
    for _ in range(200):
        points = (rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))) for _ in range(30))
        texts.append("".join(map(chr, points)))
    assert all(encoding.decode(encoding.encode_ordinary(text)) == text for text in texts)
    for byte in range(256):
        encoding.encode_single_token(bytes([byte]))  # KeyError for a byte that is no token


def test_the_shipped_tokenizer_ends_with_end_of_text_and_needs_no_padding():
    encoding = get_tokenizer("stories4k")
    assert encoding.n_vocab == padded_vocab_size(encoding.n_vocab) == 4096 and encoding.eot_token == 4095
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


def other_ranks(state):
    lines = state["ranks"].splitlines()
    return "\n".join([*lines[:-1], f"{base64.b64encode(b'zqzqzq').decode()} {len(lines) - 1}"])


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda state: {"pattern": state["pattern"].replace("{1,2}", "{1,3}")}, "its sha256 is"),
        (lambda state: {"ranks": other_ranks(state)}, "its sha256 is"),
        (lambda state: {"special_tokens": {"<|endoftext|>": 2**70}}, "its sha256 is"),
        (lambda state: {"ranks": ["a"]}, "it is damaged"),
        (lambda state: {"name": ["small"]}, "name must be"),
    ],
    ids=["pattern", "ranks", "special tokens", "list of ranks", "list of names"],
)
def test_a_saved_tokenizer_that_was_changed_is_refused(change, told):
    state = tokenizer_state(get_tokenizer("stories4k"))
    with pytest.raises(ValueError, match=f"saved tokenizer .* cannot be read .*{told}.*; use another"):
        tokenizer_from_state(state | change(state))


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


def test_a_well_known_tokenizer_that_gives_other_ids_than_the_saved_one_is_refused(shared_cache):
    with pytest.raises(
        ValueError, match="saved tokenizer 'gpt2' cannot be read .*its sha256 is .* 000000000000 was saved"
    ):
        tokenizer_from_state({"name": "gpt2", "sha256": "0" * 64})


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


def test_call_within_passes_values_and_errors_on():
    assert call_within(5, lambda: 3) == 3
    with pytest.raises(KeyError):
        call_within(5, {}.__getitem__, "absent")


@pytest.fixture(scope="module")
def trained():
    pytest.importorskip("rustbpe")
    texts = ["the cat sat on the mat and the dog sat on the log \u00e9"] * 3
    return train_tokenizer(texts, 270, "small")


@pytest.fixture
def rank_file(trained, tmp_path) -> Path:
    save_rank_file(trained, tmp_path / "small.tiktoken", {"dataset": "test"})
    return tmp_path / "small.tiktoken"


def test_a_trained_tokenizer_is_used_by_its_path(trained, rank_file):
    loaded = get_tokenizer(str(rank_file))
    assert (loaded.n_vocab, loaded.eot_token) == (270, 269)
    text = "the cat\U0001f431"
    assert loaded.encode_ordinary(text) == trained.encode_ordinary(text)
    assert tokenizer_state(loaded) == tokenizer_state(trained)


def changed(about, **values):
    about.write_text(json.dumps(read_json(about) | values))  # edited by hand, so without a seal


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda ranks, _: ranks.write_text(ranks.read_text()[:-200]), "its sha256 is"),
        (lambda ranks, _: ranks.write_text(ranks.read_text().replace(" 260\n", " 261\n")), "its sha256 is"),
        (lambda ranks, _: ranks.write_bytes(b"\xff\xfe" + ranks.read_bytes()), "ascii"),
        (lambda ranks, _: ranks.unlink(), "no tokenizer file"),
        (lambda _, about: about.unlink(), "no tokenizer file"),
        (lambda _, about: about.write_text("[" * 20_000), "nested"),
        (lambda _, about: about.write_text(about.read_text().replace('"small"', '"smalm"')), "was changed"),
        (lambda _, about: changed(about, pattern=None), "its sha256 is"),
        (lambda _, about: about.write_text("{}"), "'ranks'|'pattern' is missing"),
    ],
)
def test_a_damaged_tokenizer_is_one_sentence(rank_file, damage, told):
    damage(rank_file, rank_file.with_suffix(".json"))
    with pytest.raises(ValueError, match=told) as caught:
        get_tokenizer(str(rank_file))
    assert "\n" not in str(caught.value) and "small" in str(caught.value)


def test_a_tokenizer_that_cannot_be_written_leaves_neither_of_its_files(trained, rank_file, tmp_path):
    whole = rank_file.read_bytes()
    (tmp_path / "b.json").mkdir()
    with pytest.raises(CannotWrite, match="b.json cannot be written"):
        save_rank_file(trained, tmp_path / "b.tiktoken", {})
    with pytest.raises(TypeError):
        save_rank_file(trained, tmp_path / "c.tiktoken", {"no": object()})
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["b.json", "small.json", "small.tiktoken"] and rank_file.read_bytes() == whole


def test_training_refuses_sizes_that_cannot_be():
    pytest.importorskip("rustbpe")
    for size, told in ((256, "must be from 257"), (4096, "too large")):
        with pytest.raises(ValueError, match=told):
            train_tokenizer(["a b c"], size, "x")


def test_the_shipped_tokenizer_packs_stories_about_as_well_as_gpt2():
    if not (SHARED / "tinystories").is_dir():
        pytest.skip("no TinyStories here")
    encoding = get_tokenizer("stories4k")
    with open(SHARED / "tinystories" / "valid.jsonl", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for _, line in zip(range(500), file)]
    tokens = sum(len(encoding.encode_ordinary(text)) for text in texts)
    assert sum(len(text.encode()) for text in texts) / tokens > 3.9
