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
import hashlib
import json
import os
import tempfile
import threading
from pathlib import Path

import tiktoken
import torch

from common.files import atomic_write, read_json, reading, sealed
from common.script import did_you_mean
from common.settings import cast

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
    """Plain strings and ints that rebuild the encoding; a well-known one is named without its ranks.

    `sha256` covers ranks, pattern and special tokens, so equal hashes mean equal ids for every text.
    """
    in_order = sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1])
    state = {
        "name": encoding.name,
        "pattern": encoding._pat_str,
        "special_tokens": dict(encoding._special_tokens),
        "ranks": "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in in_order),
    }
    state["sha256"] = _fingerprint(state)
    if encoding.name in DOWNLOADS:
        del state["ranks"]
    return state


def tokenizer_from_state(state: dict) -> tiktoken.Encoding:
    """The encoding that `tokenizer_state` described; ValueError if it is not exactly that one."""
    name = state.get("name")
    well_known = None if "ranks" in state else get_tokenizer(name)
    with reading(f"the saved tokenizer {name!r}", "an encoding", way_out="use another checkpoint"):
        if well_known is None:
            return _build(state)
        _require_fingerprint(tokenizer_state(well_known)["sha256"], state)
    return well_known


def save_rank_file(encoding: tiktoken.Encoding, path: Path, provenance: dict) -> None:
    """Write `path` (base64 token and rank per line) and a .json with the rest beside it."""
    if encoding.name in DOWNLOADS:
        raise ValueError(
            f"a rank file must not be named {encoding.name!r}, a tokenizer of tiktoken; choose another name"
        )
    description = tokenizer_state(encoding)
    ranks = description.pop("ranks")
    description |= {"vocab_size": encoding.n_vocab, "provenance": provenance}
    # each file gets its name only after both are written
    with atomic_write(path) as ranks_file, atomic_write(path.with_suffix(".json")) as description_file:
        ranks_file.write(ranks.encode())
        description_file.write((json.dumps(sealed(description), indent=2) + "\n").encode())


def load_rank_file(path: Path) -> tiktoken.Encoding:
    """Read what `save_rank_file` wrote; ValueError in one sentence if it is damaged."""
    description_path = path.with_suffix(".json")
    for needed in (path, description_path):
        if not needed.is_file():
            raise ValueError(
                f"no tokenizer file {needed}; a tokenizer is a .tiktoken rank file with its .json beside it, "
                "as data/train_tokenizer.py writes them"
            )
    with reading(path, "a tokenizer", way_out="write it again with data/train_tokenizer.py"):
        return _build(read_json(description_path) | {"ranks": path.read_text(encoding="ascii")})


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


def _build(state: dict) -> tiktoken.Encoding:
    """The encoding of what tokenizer_state returned, after its checksum has been verified."""
    _require_fingerprint(_fingerprint(state), state)
    lines = (line.split() for line in state["ranks"].splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    return tiktoken.Encoding(
        cast("name", state["name"], str),
        pat_str=state["pattern"],
        mergeable_ranks=ranks,
        special_tokens=state["special_tokens"],
        explicit_n_vocab=len(ranks) + len(state["special_tokens"]),
    )


def _require_fingerprint(found: str, state: dict) -> None:
    if found != state["sha256"]:
        raise ValueError(
            f"its sha256 is {found[:12]}, but {str(state['sha256'])[:12]} was saved, so it gives other ids"
        )


def _fingerprint(state: dict) -> str:
    rest = json.dumps([state["pattern"], state["special_tokens"]], sort_keys=True)
    return hashlib.sha256((state["ranks"] + rest).encode()).hexdigest()
