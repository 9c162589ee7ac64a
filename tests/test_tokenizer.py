"""Tokenizers: lossless, never special by accident, whole in a checkpoint, clear errors."""

import base64
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import architecture.tokenizer as tokenizer_module
from architecture.generation.text import encode_prompt
from architecture.tokenizer import (
    LONG_TEXT,
    LONG_WHITE_SPACE,
    encode_text,
    for_long_texts,
    get_tokenizer,
    padded_vocab_size,
    save_rank_file,
    token_byte_lengths,
    tokenizer_from_state,
    tokenizer_state,
)
from common.files import CannotWrite, read_json
from common.hub import call_within
from data.packing import encode
from data.prepare import main as prepare
from data.train_tokenizer import PATTERN, train_tokenizer

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


def test_a_million_blanks_are_the_ids_of_one_piece_everywhere(tmp_path, capsys):
    encoding = get_tokenizer("stories4k")
    for white, length in ((" ", 999_999), (" ", 1_000_000), ("\u00a0", 1_000_001)):
        long = white * length
        ids = encode(encoding, f"A{long}{white}b")
        piece = [encoding.encode_ordinary("A"), encoding._encode_single_piece(long)]
        assert ids.tolist() == [*piece[0], *piece[1], *encoding.encode_ordinary(f"{white}b")]
    assert encode_prompt(encoding, f"A{long}{white}b") == [encoding.eot_token, *ids.tolist()]
    rows = [{"text": "A" + " " * 1_000_011 + "b"}, {"text": "Once upon a time."}]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--dataset", tmp_path / "long.jsonl", "--val_dataset", tmp_path / "val.jsonl"]
    (tmp_path / "val.jsonl").write_text(json.dumps(rows[1]) + "\n")
    assert prepare([*map(str, files), "--out_dir", str(tmp_path / "out")]) == 0
    assert "train: 2 documents" in capsys.readouterr().out


@pytest.mark.parametrize("extra", (-1, 0))
def test_a_long_text_has_the_ids_of_tiktoken(extra):
    encoding, rng = get_tokenizer("stories4k"), random.Random(extra)
    parts = [" " * 300_000, "don't \n\n" * 100, "\r\n" * 3000, "x1  !\t" * 2000, "\U0001f600 " * 900]
    text = "".join(rng.sample(parts, len(parts))) + " " * 1002
    text += "a " * ((LONG_TEXT + extra - len(text)) // 2 + 1)
    text = text[: LONG_TEXT + extra]
    assert np.array_equal(encode_text(encoding, text), encoding.encode_ordinary(text))


def pattern_of(name, monkeypatch):
    """The pattern of an encoding of tiktoken, without its download."""
    from tiktoken_ext import openai_public

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
    monkeypatch.setattr(
        openai_public, "data_gym_to_mergeable_bpe_ranks", lambda **_: dict.fromkeys(range(50256))
    )
    return openai_public.ENCODING_CONSTRUCTORS[name]()["pat_str"]


LETTERS = [" ", "\n", "\r", "\t", "a", "B", "1", "'", "s", "!", "/"]


@pytest.mark.parametrize("name", ("ours", "gpt2", "cl100k_base", "o200k_harmony"))
def test_the_pattern_for_long_texts_splits_every_text_at_the_same_places(name, monkeypatch):
    pattern = PATTERN if name == "ours" else pattern_of(name, monkeypatch)
    long = for_long_texts(pattern)
    assert LONG_WHITE_SPACE in long
    tokens = [bytes([byte]) for byte in range(256)]  # then pairs, which only merge inside of a piece
    tokens += [f"{a}{b}".encode() for a in LETTERS for b in LETTERS]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    # blocks of 3 in place of 1,000, so that short texts reach them
    before, after = (
        tiktoken.Encoding("x", pat_str=split, mergeable_ranks=ranks, special_tokens={})
        for split in (pattern, long.replace("1000", "3"))
    )

    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(
        st.lists(st.sampled_from([*LETTERS, " " * 3, " " * 7, "\u00a0", "\u2028", "\u0301", "\U0001f600"]))
    )
    def same(parts):
        text = "".join(parts)
        assert before.encode_ordinary(text) == after.encode_ordinary(text)

    same()


def test_a_pattern_that_cannot_match_a_long_text_is_one_sentence():
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("odd", pat_str=r"\w+(?!\w)|[\s\S]", mergeable_ranks=ranks, special_tokens={})
    with pytest.raises(ValueError, match="tokenizer odd cannot encode a text of 1,100,000 char.*'aaaa"):
        encode_text(encoding, "a" * 1_100_000)


def test_lone_surrogates_are_replaced():
    encoding = get_tokenizer("stories4k")
    assert encoding.decode(encode_text(encoding, "a\ud800b")) == "a\ufffdb"


def rank_file_of(folder, pattern, special, tokens=None):
    ranks = {token: rank for rank, token in enumerate(tokens or [bytes([byte]) for byte in range(256)])}
    encoding = tiktoken.Encoding("own", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    save_rank_file(encoding, folder / "own.tiktoken", {})
    return str(folder / "own.tiktoken")


END = {"<|endoftext|>": 256}


@pytest.mark.parametrize(
    "pattern, special, told",
    [
        (r"\w+", END, 'loses text.*lack " The dog'),
        (r".", END, r"loses text.*lack .\\n"),
        (r"[\s\S&&[^\x{10000}-\x{10ffff}]]", END, "loses text.*lack '\U0001f468"),
        (r"[\s\S&&[^\x00]]", END, r"loses text.*lack '\\x00"),
        (r"\S+|[^\S\r]", END, r"loses text.*lack .\\r"),
        (r"[\s\S]", {"<|endoftext|>": 10, "<|pad|>": 257}, "ids 0 to 257, each once"),
        (r"[\s\S]", {"<|end|>": 256}, "<|endoftext|> a special token"),
        ("", END, "cannot encode a text"),  # tiktoken panics
    ],
)
def test_a_rank_file_that_loses_or_confuses_text_is_refused(tmp_path, pattern, special, told):
    with pytest.raises(ValueError, match=told) as caught:
        get_tokenizer(rank_file_of(tmp_path, pattern, special))
    assert "\n" not in str(caught.value)


def test_a_rank_file_without_all_bytes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must include each of the 256 bytes"):
        get_tokenizer(rank_file_of(tmp_path, ".", {"<|endoftext|>": 1}, [b"a"]))


def test_a_document_that_a_pattern_does_not_hold_is_refused_wherever_it_is(tmp_path):
    encoding = get_tokenizer(rank_file_of(tmp_path, r"[\s\S&&[^\p{Thai}]]", END))
    assert encode(encoding, "Once\r\n").tolist() == list(b"Once\r\n")
    with pytest.raises(ValueError, match="loses text.*hold 5 of 11 bytes and lack '\u0e01b\u0e02c'"):
        encode(encoding, "Aa \u0e01b\u0e02c")


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


def test_a_tokenizer_is_trained_on_a_document_of_any_length():
    pytest.importorskip("rustbpe")
    trained = train_tokenizer([f"A{' ' * 1_000_011}b"], 259, "x")
    assert {b"  ", b"    "} <= trained._mergeable_ranks.keys()


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
