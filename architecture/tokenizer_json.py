"""An encoding of tiktoken as the tokenizer.json of Hugging Face, with the same ids for any text, and back.

Nothing of Hugging Face is needed to write it.

A special token that a user types: `encode_text` and tiktoken's `encode_ordinary` read "<|endoftext|>" as
letters. transformers and tokenizers read it as the special token, unless they are told
`tokenizer(text, split_special_tokens=True)` or `tokenizer.encode_special_tokens = True`; then their ids are
those of `encode_ordinary`. tokenizer_files leaves this at the default of transformers, because a chat template
and a prompt that begins with "<|endoftext|>" need the special tokens. Whoever encodes text of strangers with an
exported tokenizer should pass split_special_tokens=True.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from architecture.tokenizer import END_OF_TEXT, tokenizer_state
from common.files import read_json_object, reading

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
GPT2_SHA256 = "a45f8f750799419d5ec50d1ba1625578026e6d5901173b993315ec85844a4931"  # that of tokenizer_state
# One item of a regular expression: a class, a property, an escape, or a plain character.
_ITEM = r"\[(?:\\.|[^\]\\])*\]|\\[pP]\{[^}]*\}|\\.|[^\\\[\](){}|?*+$^]"


def tokenizer_files(
    encoding: tiktoken.Encoding,
    *,
    model_max_length: int,
    bos_token: str = END_OF_TEXT,
    eos_token: str = END_OF_TEXT,
    pad_token: str = END_OF_TEXT,
) -> dict[str, bytes]:
    """The files {name: content} from which transformers' AutoTokenizer makes the tokenizer of a model.

    model_max_length: the context limit of the model in tokens.  The tokens are special tokens of the encoding;
    transformers puts none of them in front of a text by itself.
    Raises ValueError for a token that is not a special token.
    """
    tokens = {"bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
    for kind, token in tokens.items():
        if token not in encoding._special_tokens:
            raise ValueError(
                f"{kind} must be a special token of the tokenizer {encoding.name}, got {token!r}; it has "
                f"{', '.join(itertools.islice(encoding._special_tokens, 5))}"
            )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        "clean_up_tokenization_spaces": False,  # older versions would take blanks out of a decoded text
    }
    content = json.dumps(tokenizer_json(encoding), ensure_ascii=False, separators=(",", ":"))
    return {
        TOKENIZER: content.encode(),
        TOKENIZER_CONFIG: (json.dumps(config | tokens, indent=2) + "\n").encode(),
    }


def tokenizer_json(encoding: tiktoken.Encoding) -> dict[str, Any]:
    """The content of a tokenizer.json whose ids are those of the encoding.

    Every id below encoding.n_vocab gets one name: an id that the encoding leaves out is a special token
    <|reserved_ID|>, because the library numbers added tokens without gaps.
    """
    ranks, letters = encoding._mergeable_ranks, byte_letters()

    def text(token: bytes) -> str:
        return "".join(map(letters.__getitem__, token))

    in_order = sorted(ranks, key=ranks.get)
    added = _added_tokens(encoding)
    # The library numbers added tokens from the size of the vocabulary on; lower ids must be part of it.
    below = {name: number for name, number in added.items() if number < ranks[in_order[-1]]}
    parts = filter(None, (_parts(token, ranks) for token in in_order if len(token) > 1))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {
        "type": "Split",
        "pattern": {"Regex": oniguruma_pattern(encoding._pat_str)},
        "behavior": "Isolated",
        "invert": False,
    }
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": name, **plain, "special": True} for name, number in added.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a word that is a token needs no merges, as in tiktoken
            "vocab": {text(token): ranks[token] for token in in_order} | below,
            "merges": [[text(first), text(second)] for first, second in parts],
        },
    }


def read_vocabulary(folder: Path, without: Collection[str] = ()) -> tiktoken.Encoding | None:
    """The encoding in vocab.json and merges.txt, or in tokenizer.json; None if the folder has neither.

    without: names of added tokens that are left out.
    Its name is gpt2 if it has the ids of GPT-2's own.
    """
    usual = all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    path = folder / ("vocab.json" if usual else TOKENIZER)
    if not path.is_file():
        return None
    with reading(path, "a vocabulary of byte-level BPE", way_out="use another copy of it"):
        found = read_json_object(path)
        if usual:
            pattern, vocabulary = r50k_pat_str, found
            merges = (folder / "merges.txt").read_text("utf-8").splitlines()
            special = {END_OF_TEXT: vocabulary[END_OF_TEXT]}
        else:
            pattern, vocabulary, merges = _pattern(found), found["model"]["vocab"], found["model"]["merges"]
            special = {token["content"]: token["id"] for token in found["added_tokens"]}
            special = {name: number for name, number in special.items() if name not in without}
        for name in special:
            vocabulary.pop(name, None)
        raw = {letter: byte for byte, letter in byte_letters().items()}
        made = dict.fromkeys("".join(merge).replace(" ", "") for merge in merges)
        # The order of merging is that of the ids. The first line of merges.txt names a version.
        in_order = [*sorted(raw, key=vocabulary.get), *(token for token in made if token in vocabulary)]
        if sorted(vocabulary, key=vocabulary.get) != in_order:
            raise ValueError("its merges are not in the order of its ids")
        encoding = tiktoken.Encoding(
            "bpe",
            pat_str=pattern,
            mergeable_ranks={bytes(map(raw.__getitem__, token)): rank for token, rank in vocabulary.items()},
            special_tokens=special,
            explicit_n_vocab=len(vocabulary) + len(special),
        )
    if tokenizer_state(encoding)["sha256"] == GPT2_SHA256:
        encoding.name = "gpt2"
    return encoding


def _pattern(found: dict[str, Any]) -> str:
    """The pattern that cuts text into words, from a tokenizer.json."""
    first = found["pre_tokenizer"]
    *split, last = first.get("pretokenizers", [first])
    kind = last["type"], last.get("add_prefix_space"), last.get("use_regex", True), found.get("normalizer")
    cut = [part["behavior"] for part in split]
    if kind != ("ByteLevel", False, not split, None) or cut not in ([], ["Isolated"]):
        raise ValueError("it does not cut text into words as tiktoken does")
    pattern = split[0]["pattern"]["Regex"] if split else r50k_pat_str
    return r50k_pat_str if pattern == oniguruma_pattern(r50k_pat_str) else pattern


def byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in the vocabularies of Hugging Face, as in GPT-2's."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


def oniguruma_pattern(pattern: str) -> str:
    r"""A pattern of tiktoken in the syntax of the tokenizers library, with the same matches.

    In Oniguruma `x{1,2}+` repeats x{1,2}, where tiktoken's expressions do not give back what they matched,
    and `$` also matches before a line end.
    """
    pattern = re.sub(rf"({_ITEM})(\{{\d+(?:,\d*)?\}})\+", r"(?>\1\2)", pattern)
    return re.sub(rf"({_ITEM})|\$", lambda found: found[1] or r"\z", pattern)


def _added_tokens(encoding: tiktoken.Encoding) -> dict[str, int]:
    """{name: id} of the ids that are no ordinary tokens, in order; one name for each id."""
    names: dict[int, str] = {}
    for name, number in encoding._special_tokens.items():
        # o200k_harmony has <|endofprompt|> and <|reserved_200018|> for one id
        if number not in names or names[number].startswith("<|reserved_"):
            names[number] = name
    left = set(range(encoding.n_vocab)) - set(encoding._mergeable_ranks.values())
    return {names.get(number, f"<|reserved_{number}|>"): number for number in sorted(left)}


def _parts(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens whose merge makes this one; None if no merges lead to it.

    The merges inside a token are the same wherever it stands in a text, so one pair is enough.
    """
    splits = ((token[:at], token[at:]) for at in range(1, len(token)))
    pairs = [pair for pair in splits if pair[0] in ranks and pair[1] in ranks]
    if len(pairs) < 2:
        return pairs[0] if pairs else None
    parts = [token[at : at + 1] for at in range(len(token))]
    last = ranks[token]
    while len(parts) > 2:
        found = [ranks.get(first + second, last) for first, second in itertools.pairwise(parts)]
        if (lowest := min(found)) >= last:
            return None
        at = found.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]
