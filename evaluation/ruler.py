"""Measure language models with one ruler: bits per byte of the same documents, whatever their tokenizers are.

    python -m evaluation.ruler MODEL... [--data FILE] [--stories N] [--out FILE.json]

MODEL is a checkpoint or a run of this project, a folder of transformers with a causal language model, or a GGUF
file, which llama.cpp runs. The default data are stories that no run reads for training or validation.

Rules:
1. A document's bits are the nats of all tokens of its text / ln 2. Bits per byte are the sum of these over all
   documents / the UTF-8 bytes of all documents. Each byte is scored once. A token that ends a text is not scored.
2. Each document is read by itself. Before it stands the token <|endoftext|>; if the tokenizer has none, then that
   with which it begins a text, or else that with which it ends one.
3. All text is plain text: "<|endoftext|>" in a document is no special token.
4. A window is as long as the model's context with the last token that it predicts, and has at most 1,024 tokens. If
   a document is longer, the next window repeats the last half of the window before, unscored. A model that carries a
   state from segment to segment reads its own segments instead.
5. Weights are read as they are; computations are in float32.
6. The interval is that of a ratio estimate over documents, because the tokens of a document are not independent.
7. A model whose logits depend on later tokens, or on other documents, gets no number (training/causality.py).

Numbers compare if they have the same ruler and the same data. Two sha256 say so: that of this file and
ruler_readers.py, and that of the data, with the number of documents. Both are printed beside each number and stored
in FILE.json. A tokenizer can write a text in several ways and only one is scored, so a model's own bits per byte are
at most these.

With --out, each finished model is kept in FILE.json, and the same command goes on with the others.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.files import content_sha256, read_json, reading, write_json_atomic
from common.script import Parser, exit_code, one_line, say
from common.threads import set_threads
from evaluation.from_checkpoint import require_at_least
from evaluation.ruler_readers import END_OF_TEXT, Reader, find_model

if TYPE_CHECKING:
    import torch

BUNDLED_FIRST, BUNDLED_STORIES = 21_000, 1_000  # indices after those of training and validation
INFINITE = 1e30  # nats; llama.cpp writes the logarithm of 0 as the lowest float32


# ------------------------------------------------------------------------------------------------------- documents
class Data(NamedTuple):
    """The documents, without empty ones."""

    name: str
    sha256: str  # of the whole file
    texts: list[str]
    empty: int  # documents without a byte, which are left out

    @property
    def sizes(self) -> list[int]:
        """UTF-8 bytes of each document."""
        return [len(text.encode()) for text in self.texts]

    def identity(self) -> dict[str, Any]:
        """What must be equal so that two numbers compare."""
        return {"sha256": self.sha256, "documents": len(self.texts), "bytes": sum(self.sizes)}


def read_data(path: Path | None = None, documents: int | None = None) -> Data:
    """The first documents of a .txt (between <|endoftext|>, without the white space around each) or a .jsonl (under
    "text", exactly as they are); path None: the bundled stories, whose file is a .txt.

    Raises ValueError for a file that is not such a file, and for fewer documents than asked for.
    """
    if path is None:
        from data.stories import story

        indices = range(BUNDLED_FIRST, BUNDLED_FIRST + BUNDLED_STORIES)
        name, raw = "bundled", f"\n{END_OF_TEXT}\n".join(story(index).text for index in indices).encode()
    else:
        if path.suffix not in (".txt", ".jsonl") or not path.is_file():
            raise ValueError(f"--data {path} must be a .txt or a .jsonl file that exists; give another")
        name, raw = path.name, path.read_bytes()
    try:
        text = raw.decode()
        found = (
            [json.loads(line)["text"] for line in text.split("\n") if line.strip()]
            if name.endswith(".jsonl")
            else [piece.strip() for piece in text.split(END_OF_TEXT)]
        )
        found = [str(piece.encode(), "utf-8") for piece in found]  # a lone surrogate in JSON is no UTF-8
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        form = 'one object with "text" in each line' if name.endswith(".jsonl") else "UTF-8"
        raise ValueError(f"--data {path} must be {form} ({one_line(error)}); mend the file") from None
    texts = [piece for piece in found if piece]
    if len(texts) < max(1, documents or 1):
        raise ValueError(
            f"--data {path or name} has {len(texts):,} documents that are not empty, and the ruler needs "
            f"{max(1, documents or 1):,}; lower --stories or give another file"
        )
    return Data(name, hashlib.sha256(raw).hexdigest(), texts[:documents], len(found) - len(texts))


def ruler_sha256() -> str:
    """The sha256 of this file and ruler_readers.py, as of `cat ruler.py ruler_readers.py`."""
    files = Path(__file__), Path(__file__).with_name("ruler_readers.py")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


# ------------------------------------------------------------------------------------------------------ the number
def score(
    reader: Reader, data: Data, progress: Callable[[int], None] = lambda tokens: None
) -> dict[str, Any]:
    """Bits per byte with its 95 % interval, and the nats of each document, in the order of the data.

    progress: called with the documents that are done since the last call.
    Raises ValueError if the model is not causal, its tokenizer loses text, or a loss is not finite.
    """
    documents = [reader.encode(text) for text in data.texts]
    gate = reader.gate(max(map(len, documents)))
    nats: list[float] = [0.0] * len(documents)
    for number, losses in reader.losses(documents):
        nats[number] = float(losses.sum())
        if not nats[number] < INFINITE:
            what = "NaN" if math.isnan(nats[number]) else "a probability of 0"
            raise ValueError(
                f"the model gives {what} to a token of document {number + 1}, which begins "
                f"{data.texts[number][:40]!r}; it has no bits per byte"
            )
        progress(1)
    value, half = bits_per_byte(nats, data.sizes)
    return {
        "bits_per_byte": value,
        "low": None if half is None else value - half,
        "high": None if half is None else value + half,
        "tokens": sum(map(len, documents)),
        "program": reader.program,
        "parameters": reader.parameters,
        "context": reader.context,
        "beginning": reader.beginning[0],
        "causality": gate,
        "nats_of_documents": nats,
    }


def bits_per_byte(nats: Sequence[float], sizes: Sequence[int]) -> tuple[float, float | None]:
    """Bits per byte, and half of the 95 % interval over documents; None for fewer than three.

    nats: of each document, or their differences between two models.  sizes: its bytes.
    """
    import torch

    from training.validation import ratio_interval

    half = ratio_interval(torch.tensor(nats, dtype=torch.float64), torch.tensor(sizes))[1]
    return math.fsum(nats) / sum(sizes) / math.log(2), None if half is None else half / math.log(2)


def measure(
    paths: Sequence[Path],
    data: Data,
    device: torch.device,
    out: Path | None,
    tell: Callable[[str], None] = print,
) -> tuple[dict[str, Any], list[str]]:
    """The content of FILE.json, and a sentence for each model without a number.

    out: holds the models that are finished, and gets those that become so.  tell: gets a line for each number.
    """
    from tqdm import tqdm

    from common.provenance import provenance

    sizes = data.sizes
    ours = {
        "ruler_sha256": ruler_sha256(),
        "data": data.identity() | {"name": data.name, "empty": data.empty},
    }
    found = ours | {"bytes_of_documents": sizes, **provenance(), "models": []}
    kept: list[dict[str, Any]] = []
    if out is not None and out.exists():
        with reading(out, "numbers of the ruler", way_out="choose another name for --out"):
            before = read_json(out)
            kept = before["models"]
            if {name: before[name] for name in ours} != ours:
                raise ValueError("its numbers are of another ruler or of other data, and do not compare")
    found["models"], failed = kept, []
    for path in paths:
        try:
            file, load = find_model(path, device)
            entry = {"model": str(path), "sha256": content_sha256(file)}
            same = [one for one in kept if {name: one.get(name) for name in entry} == entry]
            if same:
                tell(line(same[0], found))
                continue
            with tqdm(total=len(sizes), desc=path.name, unit=" documents", leave=False, disable=None) as bar:
                entry |= score(load(), data, bar.update)
        except (ValueError, OSError) as error:
            failed.append(f"{path}: {one_line(error)}")
            say(failed[-1])
            continue
        found["models"] = kept = [one for one in kept if one["model"] != str(path)] + [entry]
        if out is not None:
            write_json_atomic(out, found)
        tell(line(entry, found))
    return found, failed


def line(entry: dict[str, Any], found: dict[str, Any]) -> str:
    """A number with what it is a number of."""
    data = found["data"]
    interval = "" if entry["low"] is None else f" ({entry['low']:.4f} to {entry['high']:.4f})"
    return (
        f"{entry['bits_per_byte']:.4f}{interval} bits per byte  {entry['model']}  ruler {found['ruler_sha256'][:12]}  "
        f"data {data['sha256'][:12]}, {data['documents']:,} documents"
    )


def add_flags(parser: Parser) -> None:
    """The flags of data, device and threads."""
    add = parser.add_argument
    add("--data", type=Path, metavar="FILE", help=".txt or .jsonl of documents (default: bundled stories)")
    add("--stories", type=int, metavar="N", help="read the first N documents (default: all)")
    add("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N (default: auto)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: one for each free core)")


def run(argv: list[str] | None) -> None:
    title = "Bits per byte of any language model on the same documents, with a 95 % interval."
    parser = Parser(prog="python -m evaluation.ruler", allow_abbrev=False, description=title)
    add = parser.add_argument
    models = (
        "checkpoint_<step>.pt, RUN for its newest, RUN/best.json, a folder of transformers, or a GGUF file"
    )
    add("models", type=Path, nargs="+", metavar="MODEL", help=models)
    add_flags(parser)
    add("--out", type=Path, metavar="FILE.json", help="keeps what is finished; the same command goes on")
    args = parser.parse_args(argv)
    require_at_least(args, stories=1, threads=1)
    data = read_data(args.data, args.stories)

    from common.device import choose_device

    if told := set_threads(args.threads, common.begin.STARTED):
        say(told)
    _, failed = measure(args.models, data, choose_device(args.device), args.out)
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(args.models)} models have no number, the others are kept; see above"
        )


if __name__ == "__main__":
    words = "interrupted; with --out the finished models are kept, and the same command goes on"
    sys.exit(exit_code("evaluation/ruler.py", lambda: run(None), interrupted=words))
