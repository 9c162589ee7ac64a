"""tokenizer.json has the ids of tiktoken: its parts here, any text beside the tokenizers library (peer)."""

import functools
import itertools
import json
import os

import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from architecture.tokenizer import END_OF_TEXT, get_tokenizer
from architecture.tokenizer_json import byte_letters, oniguruma_pattern, tokenizer_files, tokenizer_json
from data import train_tokenizer

SHIPPED = ("stories4k", "bundled1536")
PATTERN = r"\p{L}+|\s+|[^\p{L}\s]+"
BYTES = {bytes([byte]): byte for byte in range(256)}


def encoding_of(*tokens: bytes, first=0, pattern=PATTERN, **special_tokens: int) -> tiktoken.Encoding:
    """The bytes and then these tokens, with ids from `first` on."""
    ranks = {token: rank for rank, token in enumerate([*BYTES, *tokens], first)}
    special = {f"<|{name}|>": number for name, number in special_tokens.items()}
    return tiktoken.Encoding("made", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def names_by_id(content: dict) -> dict[int, str]:
    return {token["id"]: token["content"] for token in content["added_tokens"]}


# ------------------------------------------------------------------------------------- the parts of a file
@pytest.mark.parametrize("name", SHIPPED)
def test_the_merges_alone_make_every_token_of_its_bytes(name):
    """Read back by a byte-pair encoder that knows only the list: the first merge in it that fits comes first."""
    encoding, model = get_tokenizer(name), tokenizer_json(get_tokenizer(name))["model"]
    order = {tuple(merge): place for place, merge in enumerate(model["merges"])}
    raw = {letter: byte for byte, letter in byte_letters().items()}
    assert len(raw) == 256 and len(order) == len(model["merges"]) == len(model["vocab"]) - 256
    for word, number in model["vocab"].items():
        assert encoding.decode_single_token_bytes(number) == bytes(map(raw.__getitem__, word))
        parts = list(word)
        while pairs := [pair for pair in itertools.pairwise(parts) if pair in order]:
            at = list(itertools.pairwise(parts)).index(min(pairs, key=order.get))
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
        assert parts == [word]


UNREACHABLE = (b"bc", b"de", b"ab", b"cd", b"cde", b"abcd", b"abcde", b"xyz")


def test_a_token_that_no_merges_lead_to_gets_none_or_a_harmless_one():
    merges = [" ".join(pair) for pair in tokenizer_json(encoding_of(*UNREACHABLE))["model"]["merges"]]
    assert merges == ["b c", "d e", "a b", "c d", "c de", "ab cd"]  # tiktoken makes a bc d of abcd


def test_each_id_has_one_name_and_gaps_are_filled():
    content = tokenizer_json(encoding_of(b"ab", reserved_258=258, first_name=258, endoftext=260, last=260))
    assert names_by_id(content) == {
        257: "<|reserved_257|>",
        258: "<|first_name|>",  # a name with a meaning comes before a reserved one
        259: "<|reserved_259|>",
        260: END_OF_TEXT,
    }
    assert not set(names_by_id(content).values()) & content["model"]["vocab"].keys()
    assert all(token["special"] for token in content["added_tokens"])


def test_a_special_token_below_the_others_stays_there():
    """Tokenizers that were trained by the library often have <|endoftext|> as id 0."""
    content = tokenizer_json(encoding_of(b"ab", first=1, endoftext=0, start=258))
    assert names_by_id(content) == {0: END_OF_TEXT, 258: "<|start|>"}
    assert content["model"]["vocab"][END_OF_TEXT] == 0 and "<|start|>" not in content["model"]["vocab"]
    assert sorted(content["model"]["vocab"].values()) == list(range(258))


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (r"\p{N}{1,2}+|\s++$", r"(?>\p{N}{1,2})|\s++\z"),
        (r"[^\r\n\p{L}]{2,}+x", r"(?>[^\r\n\p{L}]{2,})x"),
        (r"a{3}+|[$]|\$|\p{N}{1,3}", r"(?>a{3})|[$]|\$|\p{N}{1,3}"),
        (r"[^\r\n\p{L}\p{N}]?+\p{L}++| ?[\r\n]*+", r"[^\r\n\p{L}\p{N}]?+\p{L}++| ?[\r\n]*+"),
    ],
)
def test_a_pattern_is_written_in_the_syntax_of_the_library(ours, theirs):
    assert oniguruma_pattern(ours) == theirs


def test_a_token_that_is_not_special_is_refused():
    told = r"eos_token must be a special token of the tokenizer bundled1536, got '<\|end\|>'; it has <\|endof"
    with pytest.raises(ValueError, match=told):
        tokenizer_files(get_tokenizer("bundled1536"), model_max_length=8, eos_token="<|end|>")


# ------------------------------------------------------------------------------ beside the tokenizers library
HARD = (
    *("", " ", "  ", "   a", "\t", "\n", "\n\n ", "\r\n", "\r", " \r\n\r\n  \n", "\x85", "\xa0", "\u2028", "\u3000", "\u200b"),
    *("e\u0301", "\u0301", "a\u0308\u0323", "\u0915\u094d\u0937\u093f", "\u1112\u1161\u11ab", "\ufeff", "\ufffd", "\0"),
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f"),
    *("1", "12", "123", "1234567", "3.14159", "\u0664\u0662", "\u00bd", "\u2167", "x1y22z333"),
    *("don't", "DON'T", "we'LL", "'s", "''re", "\u2019s", "o'Ver", "'\u017f", "I'm", "they'd've", "McDonald", "dzDZ\u01c5"),
    *(END_OF_TEXT, "<|return|>", "<|endofprompt|>", "<|reserved_200018|>", "<|", "|>", "!?!", "a/b//c", "_x__", "$^\\"),
    *("Once upon a time", " The dog", "aaaaaaaa", "ab" * 30, "\u4f60\u597d", "\u0434\u043e\u043c", "\u0639\u0631\u0628"),
)  # fmt: skip
texts = st.text() | st.lists(st.sampled_from(HARD) | st.text(max_size=3)).map("".join)


@functools.cache
def pair(name: str):
    """The encoding, and the same of the tokenizers library, read from the written file."""
    from tokenizers import Tokenizer

    encoding = get_tokenizer(name)
    content = tokenizer_files(encoding, model_max_length=1024)["tokenizer.json"]
    theirs = Tokenizer.from_str(content.decode())
    theirs.encode_special_tokens = True  # no special tokens from text, like encode_ordinary
    return encoding, theirs


@pytest.fixture(scope="module", params=[*SHIPPED, "gpt2", "o200k_harmony"])
def name(request):
    """A tokenizer; those of tiktoken need its cache, in TIKTOKEN_CACHE_DIR or beside the repository."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param not in SHIPPED and "TIKTOKEN_CACHE_DIR" not in os.environ:
            folder = request.getfixturevalue("shared_data") / "tiktoken_cache"
            patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        yield request.param


@pytest.mark.peer
@settings(deadline=None, max_examples=300)
@given(text=texts)
@example(text="".join(HARD))
@example(text=" ".join(HARD))
def test_any_text_has_the_same_ids_and_comes_back(name, text):
    encoding, theirs = pair(name)
    ids = encoding.encode_ordinary(text)
    assert theirs.encode(text).ids == ids
    assert theirs.decode(ids, skip_special_tokens=False) == text


@pytest.mark.peer
def test_every_id_has_the_name_or_the_bytes_of_the_encoding(name):
    encoding, theirs = pair(name)
    vocabulary = theirs.get_vocab()
    assert sorted(vocabulary.values()) == list(range(encoding.n_vocab))
    raw = {letter: byte for byte, letter in byte_letters().items()}
    special = {vocabulary.pop(word): word for word in set(vocabulary) & set(encoding._special_tokens)}
    assert special.keys() == set(encoding._special_tokens.values())
    assert {bytes(map(raw.get, word)): n for word, n in vocabulary.items()} == encoding._mergeable_ranks
    if name == "o200k_harmony":
        assert special[200018] == "<|endofprompt|>" and special[200002] == "<|return|>"


@pytest.mark.peer
def test_every_character_of_unicode_is_cut_at_the_same_places():
    """Both libraries have tables of the character classes, which could be of different years."""
    encoding, theirs = pair("bundled1536")
    # without the Chinese and Korean characters, which are alike, surrogates and private use
    blocks = (range(0x3400), range(0xA000, 0xAC00), range(0xD7A4, 0xD800), range(0xF900, 0x20000))
    text = "".join(f"a{chr(n)} {chr(n)}1" for block in blocks for n in block)
    assert theirs.encode(text).ids == encoding.encode_ordinary(text)


@pytest.mark.peer
@pytest.mark.parametrize(
    "encoding",
    [
        encoding_of(b"ab", b"abc", first=1, endoftext=0, start=259),
        encoding_of(*UNREACHABLE, first_name=265, endoftext=270),
        encoding_of(b"23", pattern=train_tokenizer.PATTERN, endoftext=257),  # 12 and 34 in 1234
    ],
    ids=["special token first", "gaps and tokens without merges", "two digits"],
)
@given(text=texts | st.text("abcdexyz 123"))
@example(text="abcde abcd xyz abcdex xabcde 1234")
def test_made_encodings_have_the_same_ids(encoding, text):
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_str(json.dumps(tokenizer_json(encoding)))
    assert theirs.encode("<|endoftext|>").ids == [encoding.eot_token]
    theirs.encode_special_tokens = True
    assert theirs.encode(text).ids == encoding.encode_ordinary(text)
    assert theirs.get_vocab_size() == encoding.n_vocab


@pytest.mark.peer
def test_transformers_opens_the_files_and_takes_typed_special_tokens_as_text_when_told(tmp_path):
    from transformers import AutoTokenizer

    encoding = get_tokenizer("stories4k")
    for file, content in tokenizer_files(encoding, model_max_length=77).items():
        (tmp_path / file).write_bytes(content)
    theirs, end = AutoTokenizer.from_pretrained(tmp_path), encoding.eot_token
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (end, end, end)
    assert (theirs.model_max_length, len(theirs)) == (77, encoding.n_vocab)
    text = "He said <|endoftext|> . Is n't it 12345 ?"
    ids = theirs(text, split_special_tokens=True)["input_ids"]
    assert ids == encoding.encode_ordinary(text) and theirs.decode(ids) == text
    assert theirs(text)["input_ids"] == encoding.encode(text, allowed_special="all")
