"""Tokenizers by name. Each is a `tiktoken.Encoding`; its end-of-text id is `encoding.eot_token`.

    stories4k       4,096 ids, trained on TinyStories; part of this repository
    bundled1536     1,536 ids, trained on the bundled stories; part of this repository
    gpt2            50,257 ids, the tokenizer of GPT-2; tiktoken downloads it
    o200k_harmony   201,088 ids, the tokenizer of gpt-oss; tiktoken downloads it
    PATH            a .tiktoken rank file with its .json beside it, written by data/train_tokenizer.py

Text is always encoded with `encode_text`, which reads "<|endoftext|>" as text, never as the special token.
"""

import base64
import functools
import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import tiktoken
import torch

from common.files import atomic_write, read_json, reading, sealed, without_surrogates
from common.hub import PROBE_SECONDS, call_within
from common.script import did_you_mean
from common.settings import cast

SHIPPED_FOLDER = Path(__file__).resolve().parent.parent / "data" / "tokenizers"
SHIPPED = ("stories4k", "bundled1536")
OTHER = f", or use --tokenizer {SHIPPED[0]}, which needs no network"
HARMONY = "o200k_harmony"  # the encoding of gpt-oss
# The files that tiktoken downloads for each of its encodings.
DOWNLOADS = {
    "gpt2": ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json"),
    HARMONY: ("encodings/o200k_base.tiktoken",),
}
DOWNLOAD_HOST = "https://openaipublic.blob.core.windows.net/"
END_OF_TEXT = "<|endoftext|>"
# tiktoken's regular expressions keep one state for each character of a run of white space, at most a million.
# Texts from this length on are read with an expression that keeps one for each thousand and matches the same.
LONG_TEXT = 500_000  # characters
WHITE_SPACE = r"\s+(?!\S)"
LONG_WHITE_SPACE = rf"(?:(?:\s{{1000}}(?=\s))++\s*(?!\S)|{WHITE_SPACE})"
# A pattern must keep all of it: letters with and without case, marks, digits, line ends, blanks, controls.
PROBE_TEXT = (
    " The dog's 2 bones\tcost $12,345.67!\r\n\n  DON'T_stop: (a+b)/c = <|endoftext|>\0\x7f\x85\xa0\u2028\u200b"
    "\u00c9t\u00e9 e\u0301 \u0434\u043e\u043c \u4e2d\u6587 \u0639\u0631 \u0967\u00bd \U0001f468\u200d\U0001f466 \ufeff\ufffd\U000e0041 \n"
)


def get_tokenizer(name_or_path: str, *, other: str = OTHER) -> tiktoken.Encoding:
    """The encoding of that name, or of the rank file at that path.

    other: what else to do if the download fails, for the message.
    Raises ValueError for an unknown name, a damaged rank file, and an encoding that cannot be downloaded.
    Without a network that takes about PROBE_SECONDS.
    """
    name = str(name_or_path)
    if name in SHIPPED:
        return load_rank_file(SHIPPED_FOLDER / f"{name}.tiktoken")
    if name in DOWNLOADS:
        return _load_well_known(name, other)
    path = Path(os.path.expanduser(name))  # Path.expanduser raises for an unknown user
    if path.suffix == ".tiktoken" or path.exists():
        return load_rank_file(path)
    known = [*SHIPPED, *DOWNLOADS]
    raise ValueError(
        f"unknown tokenizer {name!r}{did_you_mean(name, known)}; "
        f"known are {', '.join(known)}, or the path of a .tiktoken rank file"
    )


def encode_text(encoding: tiktoken.Encoding, text: str) -> np.ndarray:
    """The ids of a text of any length, (n,) uint32. No part of it becomes a special token.

    Lone surrogates are replaced. Raises ValueError if the pattern of the encoding leaves a part of the text
    out, or cannot match it.
    """
    text = without_surrogates(text)
    size = len(text.encode())
    able = _for_long_texts(encoding) if len(text) >= LONG_TEXT else encoding
    try:  # a list of ints would take ten times the memory of the text
        ids = able.encode_to_numpy(text, disallowed_special=())
    except BaseException as error:
        # PanicException comes from the Rust code of tiktoken and is no Exception.
        if type(error).__name__ != "PanicException" and not isinstance(error, ValueError):
            raise
        raise ValueError(
            f"tokenizer {encoding.name} cannot encode a text of {len(text):,} characters that begins "
            f"{text[:20]!r} ({error}); take the text out, or use another tokenizer"
        ) from None
    if (kept := int(_byte_lengths(encoding)[ids].sum())) != size:
        first = len(os.path.commonprefix([text, encoding.decode(ids)]))
        raise ValueError(
            f"tokenizer {encoding.name} loses text: its pattern must match every character, but its ids hold "
            f"{kept:,} of {size:,} bytes and lack {text[first : first + 20]!r}; use another tokenizer"
        )
    return ids


def for_long_texts(pattern: str) -> str:
    """A pattern with the same matches that can match a run of up to a thousand million blanks."""
    return pattern.replace(WHITE_SPACE, LONG_WHITE_SPACE)


def padded_vocab_size(n_vocab: int) -> int:
    """The vocabulary size of a model for n_vocab ids: the next multiple of 64, an efficient matrix size."""
    return -(-n_vocab // 64) * 64


def token_byte_lengths(encoding: tiktoken.Encoding, vocab_size: int) -> torch.Tensor:
    """Number of UTF-8 bytes of each id, (vocab_size,) int64; 0 for special, unused and padded ids."""
    lengths = _byte_lengths(encoding)
    return torch.from_numpy(np.pad(lengths, (0, vocab_size - len(lengths))))


def tokenizer_state(encoding: tiktoken.Encoding) -> dict:
    """A dictionary of strings and ints from which tokenizer_from_state rebuilds the encoding.

    An encoding of tiktoken that this machine has is stored without its ranks. `sha256` covers ranks, pattern
    and special tokens, so equal hashes mean equal ids for every text.
    """
    in_order = sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1])
    state = {
        "name": encoding.name,
        "pattern": encoding._pat_str,
        "special_tokens": dict(encoding._special_tokens),
        "ranks": "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in in_order),
    }
    state["sha256"] = _fingerprint(state)
    if encoding.name in DOWNLOADS and _is_cached(encoding.name):  # GPT-2's may come from a folder of its own
        del state["ranks"]
    return state


def tokenizer_from_state(state: dict) -> tiktoken.Encoding:
    """The encoding that `tokenizer_state` described; ValueError if its sha256 is another."""
    name = state.get("name")
    well_known = None if "ranks" in state else get_tokenizer(name, other="")
    with reading(f"the saved tokenizer {name!r}", "an encoding", way_out="use another checkpoint"):
        if well_known is None:
            return _build(state)
        _require_fingerprint(tokenizer_state(well_known)["sha256"], state)
    return well_known


def save_rank_file(encoding: tiktoken.Encoding, path: Path, provenance: dict) -> None:
    """Write the ranks to `path`, a base64 token and its rank per line, and the rest to a .json beside it."""
    if encoding.name in DOWNLOADS:
        raise ValueError(
            f"a rank file must not have the name of a tokenizer of tiktoken ({encoding.name}); choose another"
        )
    description = tokenizer_state(encoding)
    ranks = description.pop("ranks")
    description |= {"vocab_size": encoding.n_vocab, "provenance": provenance}
    # Neither file gets its name before both are written.
    with atomic_write(path) as ranks_file, atomic_write(path.with_suffix(".json")) as description_file:
        ranks_file.write(ranks.encode())
        description_file.write((json.dumps(sealed(description), indent=2) + "\n").encode())


def load_rank_file(path: Path) -> tiktoken.Encoding:
    """The encoding that `save_rank_file` wrote; ValueError if a file is missing or damaged."""
    description_path = path.with_suffix(".json")
    for needed in (path, description_path):
        if not needed.is_file():
            raise ValueError(
                f"no tokenizer file {needed}; a tokenizer is a .tiktoken rank file with its .json beside it, "
                "both written by data/train_tokenizer.py"
            )
    with reading(path, "a tokenizer", way_out="write it again with data/train_tokenizer.py"):
        encoding = _build(read_json(description_path) | {"ranks": path.read_text(encoding="ascii")})
        encode_text(encoding, PROBE_TEXT)
        return encoding


def _load_well_known(name, other):
    try:
        if not _is_cached(name):
            import requests  # as tiktoken does, so that proxies and certificates are the same

            call_within(PROBE_SECONDS, requests.head, DOWNLOAD_HOST, timeout=PROBE_SECONDS)
        return tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # errors of requests are OSErrors
        reason = "no answer" if isinstance(error, TimeoutError) else type(error).__name__
        raise ValueError(
            f"the tokenizer {name!r} is not on this machine and cannot be downloaded ({reason}); on a "
            f'machine with a network run TIKTOKEN_CACHE_DIR=DIR python -c "import tiktoken; '
            f"tiktoken.get_encoding('{name}')\", copy DIR here and set TIKTOKEN_CACHE_DIR to it{other}"
        ) from error


def cache_folder() -> Path:
    """The folder in which tiktoken keeps what it has downloaded."""
    default = os.environ.get("DATA_GYM_CACHE_DIR", Path(tempfile.gettempdir()) / "data-gym-cache")
    return Path(os.environ.get("TIKTOKEN_CACHE_DIR", default))


def _is_cached(name):
    """Whether tiktoken's cache holds every file of this encoding, each under the sha1 of its URL."""
    folder = cache_folder()
    keys = (hashlib.sha1((DOWNLOAD_HOST + path).encode()).hexdigest() for path in DOWNLOADS[name])
    return all((folder / key).is_file() for key in keys)


def _build(state: dict) -> tiktoken.Encoding:
    """The encoding of a result of tokenizer_state that has ranks; the checksum is verified first."""
    _require_fingerprint(_fingerprint(state), state)
    lines = (line.split() for line in state["ranks"].splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    special = state["special_tokens"]
    ids = sorted([*ranks.values(), *special.values()])
    bytes_are_tokens = all(bytes([byte]) in ranks for byte in range(256))
    if ids != list(range(len(ids))) or not bytes_are_tokens or END_OF_TEXT not in special:
        raise ValueError(
            f"its {len(ids)} tokens must have the ids 0 to {len(ids) - 1}, each once, and must include each of the "
            f"256 bytes and the special token {END_OF_TEXT}"
        )
    return tiktoken.Encoding(
        cast("name", state["name"], str),
        pat_str=state["pattern"],
        mergeable_ranks=ranks,
        special_tokens=special,
        explicit_n_vocab=len(ids),
    )


@functools.lru_cache(maxsize=2)
def _for_long_texts(encoding):
    return tiktoken.Encoding(
        encoding.name,
        pat_str=for_long_texts(encoding._pat_str),
        mergeable_ranks=encoding._mergeable_ranks,
        special_tokens=encoding._special_tokens,
    )


@functools.lru_cache(maxsize=2)
def _byte_lengths(encoding):
    """(max id + 1,) int64 of the ids without special tokens; see token_byte_lengths."""
    ranks = encoding._mergeable_ranks
    lengths = np.zeros(max(ranks.values()) + 1, np.int64)
    lengths[list(ranks.values())] = [len(token) for token in ranks]
    return lengths


def _require_fingerprint(found: str, state: dict) -> None:
    if found != state["sha256"]:
        raise ValueError(
            f"its sha256 is {found[:12]}, but {str(state['sha256'])[:12]} was saved, so its ids differ"
        )


def _fingerprint(state: dict) -> str:
    rest = json.dumps([state["pattern"], state["special_tokens"]], sort_keys=True)
    return hashlib.sha256((state["ranks"] + rest).encode()).hexdigest()
