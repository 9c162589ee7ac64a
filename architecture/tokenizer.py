"""The tokenizers, by name. All are `tiktoken.Encoding`; end of text is `encoding.eot_token`.

    stories4k       4,096 ids, trained on TinyStories by data/train_tokenizer.py; needs no network
    bundled1536     1,536 ids, trained on the bundled stories: a quarter of the head's work for them
    gpt2            50,257 ids, GPT-2's
    o200k_harmony   201,088 ids, gpt-oss's
    PATH            a .tiktoken rank file with its .json beside it (data/train_tokenizer.py)

Text is always encoded with `encode_ordinary`: "<|endoftext|>" inside a story is text, never the
special token.
"""

import base64
import binascii
import hashlib
import json
import os
import tempfile
import threading
from pathlib import Path

import tiktoken
import torch

from common.files import read_json, sealed
from common.script import did_you_mean

SHIPPED_FOLDER = Path(__file__).resolve().parent.parent / "data" / "tokenizers"
SHIPPED = ("stories4k", "bundled1536")
# What tiktoken downloads for each encoding of its own that we offer.
DOWNLOADS = {
    "gpt2": ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json"),
    "o200k_harmony": ("encodings/o200k_base.tiktoken",),
}
DOWNLOAD_HOST = "https://openaipublic.blob.core.windows.net/"
PROBE_SECONDS = 3.0
END_OF_TEXT = "<|endoftext|>"


def get_tokenizer(name_or_path: str) -> tiktoken.Encoding:
    """The encoding of that name, or of the rank file at that path.

    Raises ValueError for an unknown name, a damaged rank file, or a table that cannot be downloaded
    (noticed within about PROBE_SECONDS).
    """
    name = str(name_or_path)
    if name in SHIPPED:
        return load_rank_file(SHIPPED_FOLDER / f"{name}.tiktoken")
    if name in DOWNLOADS:
        return _load_well_known(name)
    path = Path(os.path.expanduser(name))  # Path.expanduser fails where there is no such user
    if path.suffix == ".tiktoken" or path.exists():
        return load_rank_file(path)
    known = [*SHIPPED, *DOWNLOADS]
    raise ValueError(
        f"unknown tokenizer {name!r}{did_you_mean(name, known)}; "
        f"known are {', '.join(known)}, or the path of a .tiktoken rank file"
    )


def padded_vocab_size(n_vocab: int) -> int:
    """The number of ids a model has for n_vocab of them: the next multiple of 64 (a good matrix size)."""
    return -(-n_vocab // 64) * 64


def token_byte_lengths(encoding: tiktoken.Encoding, vocab_size: int) -> torch.Tensor:
    """UTF-8 bytes of each id, (vocab_size,) int64; 0 for special, unused and padded ids."""
    lengths = torch.zeros(vocab_size, dtype=torch.int64)
    ranks = encoding._mergeable_ranks
    lengths[torch.tensor(list(ranks.values()))] = torch.tensor([len(token) for token in ranks])
    return lengths


def tokenizer_state(encoding: tiktoken.Encoding) -> dict:
    """Plain strings and ints that rebuild the encoding; no ranks for a well-known one.

    `sha256` covers ranks, pattern and special tokens, so equal hashes mean equal ids for every
    text.
    """
    ranks = _ranks_as_text(encoding._mergeable_ranks)
    state = {
        "name": encoding.name,
        "sha256": _fingerprint(ranks, encoding._pat_str, encoding._special_tokens),
        "pattern": encoding._pat_str,
        "special_tokens": dict(encoding._special_tokens),
    }
    return state if encoding.name in DOWNLOADS else {**state, "ranks": ranks}


def tokenizer_from_state(state: dict) -> tiktoken.Encoding:
    """The encoding that `tokenizer_state` described; ValueError if it is not exactly that one."""
    name = state.get("name")
    if not isinstance(state.get("ranks", ""), str):
        raise ValueError(f"the ranks of the saved tokenizer {name!r} must be text")
    if "ranks" in state:
        encoding = _build(state, state["ranks"], f"the saved tokenizer {name!r}")
    else:
        encoding = get_tokenizer(name)
    found = tokenizer_state(encoding)["sha256"]
    if found != state.get("sha256"):
        raise ValueError(
            f"tokenizer {name!r} has sha256 {found[:12]}, but {str(state.get('sha256'))[:12]} was saved; "
            "it gives other ids than the model was trained on, so use the version that it was saved with"
        )
    return encoding


def save_rank_file(encoding: tiktoken.Encoding, path: Path, provenance: dict) -> None:
    """Write `path` (base64 token and rank per line) and a .json with the rest beside it."""
    if encoding.name in DOWNLOADS:
        raise _reserved_name(encoding.name)
    state = tokenizer_state(encoding)
    description = {key: state[key] for key in ("name", "sha256", "pattern", "special_tokens")}
    description |= {"vocab_size": encoding.n_vocab, "provenance": provenance}
    files = {
        path: _ranks_as_text(encoding._mergeable_ranks),
        path.with_suffix(".json"): json.dumps(sealed(description), indent=2) + "\n",
    }
    for file in files:
        if file.is_dir():
            raise ValueError(f"{file} must be a file, and is a folder; write to another name")
    written = []
    try:  # both under other names first: neither is there without the other
        for file, text in files.items():
            written.append(file.with_name(f".{file.name}.tmp"))
            written[-1].write_text(text, encoding="ascii")
        for file in files:
            os.replace(written.pop(0), file)
    finally:
        for file in written:
            file.unlink(missing_ok=True)


def load_rank_file(path: Path) -> tiktoken.Encoding:
    """Read what `save_rank_file` wrote; ValueError in one sentence if it is damaged."""
    description_path = path.with_suffix(".json")
    for needed in (path, description_path):
        if not needed.is_file():
            raise ValueError(
                f"no tokenizer file {needed}; a tokenizer is a .tiktoken rank file with its .json beside it, "
                "as data/train_tokenizer.py writes them"
            )
    try:
        description = read_json(description_path)
        ranks = path.read_text(encoding="ascii")
    except ValueError as error:
        raise ValueError(
            f"tokenizer {path} is damaged ({error}); write it again with data/train_tokenizer.py"
        ) from error
    encoding = _build(description, ranks, f"tokenizer {path}")
    found = tokenizer_state(encoding)["sha256"]
    if found != description.get("sha256"):
        raise ValueError(
            f"tokenizer {path} is damaged: its sha256 is {found[:12]}, but its .json says "
            f"{str(description.get('sha256'))[:12]}; write it again with data/train_tokenizer.py"
        )
    return encoding


def call_within(seconds: float, function, *args, **kwargs):
    """function(...), or TimeoutError after `seconds`, even where it hangs in a name look-up."""
    outcome = {}

    def run():
        try:
            outcome["value"] = function(*args, **kwargs)
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in outcome:
        raise outcome["error"]
    if "value" not in outcome:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return outcome["value"]


def _load_well_known(name):
    try:
        if not _is_cached(name):
            import requests  # tiktoken downloads with it: the same proxies and certificates

            call_within(PROBE_SECONDS, requests.head, DOWNLOAD_HOST, timeout=PROBE_SECONDS)
        return tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        reason = "no answer" if isinstance(error, TimeoutError) else type(error).__name__
        raise ValueError(
            f"the table of tokenizer {name!r} is not here and cannot be downloaded ({reason}); on a machine "
            f'with a network run TIKTOKEN_CACHE_DIR=DIR python -c "import tiktoken; '
            f"tiktoken.get_encoding('{name}')\", copy DIR here and set TIKTOKEN_CACHE_DIR to it, "
            f"or use --tokenizer {SHIPPED[0]}, which needs no network"
        ) from error


def _is_cached(name):
    """Whether tiktoken has every file of this encoding; it keeps them under sha1(url)."""
    default = os.environ.get("DATA_GYM_CACHE_DIR", Path(tempfile.gettempdir()) / "data-gym-cache")
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR", default))
    keys = (hashlib.sha1((DOWNLOAD_HOST + path).encode()).hexdigest() for path in DOWNLOADS[name])
    return all((folder / key).is_file() for key in keys)


def _build(description, ranks_text, where):
    """An encoding from a description (name, pattern, special_tokens) and ranks as text."""
    ranks = _parse_ranks(ranks_text, where)
    if not isinstance(description, dict):
        raise ValueError(f"the description of {where} must be a JSON object")
    missing = [key for key in ("name", "pattern", "special_tokens") if key not in description]
    if missing:
        raise ValueError(f"the description of {where} lacks {', '.join(missing)}")
    name, special_tokens = description["name"], description["special_tokens"]
    for key in ("name", "pattern"):
        if not isinstance(description[key], str):
            kind = type(description[key]).__name__
            raise ValueError(f"the {key} of {where} must be text, and is a {kind}")
    if name in DOWNLOADS:
        raise _reserved_name(name)
    if not isinstance(special_tokens, dict) or END_OF_TEXT not in special_tokens:
        raise ValueError(f"{where} has no special token {END_OF_TEXT}; documents end with it")
    try:
        return tiktoken.Encoding(
            name,
            pat_str=description["pattern"],
            mergeable_ranks=ranks,
            special_tokens=special_tokens,
            explicit_n_vocab=len(ranks) + len(special_tokens),
        )
    except (AssertionError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{where} is damaged: {len(ranks)} ranks, special tokens {special_tokens} and its pattern "
            "do not make an encoding; write it again with data/train_tokenizer.py"
        ) from error


def _parse_ranks(text, where):
    ranks = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (binascii.Error, ValueError):
            raise ValueError(
                f"line {number} of {where} must be a base64 token and its rank, but is {line[:40]!r}"
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{where} must give its {len(ranks)} tokens the ranks 0 to {len(ranks) - 1}")
    absent = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if absent:
        raise ValueError(
            f"{where} lacks {len(absent)} of the 256 single bytes (first {absent[0]:#04x}), "
            "so some text could not be encoded"
        )
    return ranks


def _reserved_name(name):
    return ValueError(f"a rank file must not be named {name!r}, a tokenizer of tiktoken; choose another")


def _ranks_as_text(ranks):
    in_order = sorted(ranks.items(), key=lambda item: item[1])
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in in_order)


def _fingerprint(ranks_text, pattern, special_tokens):
    rest = json.dumps([pattern, special_tokens], sort_keys=True)
    return hashlib.sha256((ranks_text + rest).encode()).hexdigest()
