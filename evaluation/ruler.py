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
4. A model reads windows of its whole context, at most MOST_CONTEXT tokens. If a document is longer, the next
   window repeats the last half of the window before, unscored. A model that carries a state from segment to
   segment reads its own segments in place of windows.
5. Weights are read as they are; computations are in float32.
6. The interval is that of a ratio estimate over documents, because the tokens of a document are not independent.
7. A model whose logits depend on later tokens, or on other documents, gets no number (training/causality.py).

Numbers compare if they have the same ruler and the same data. Two sha256 say so: that of this file, and that of
the data and their number of documents. Both are printed beside each number and stored in FILE.json. The tokens that
a text gets are one way to write it of many, so bits per byte are an upper bound of what the model could need.

With --out, each finished model is kept in FILE.json, and the same command goes on with the others.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import hashlib
import json
import math
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.files import parse_json, read_json, reading, write_json_atomic
from common.script import Parser, exit_code, one_line, say
from common.threads import set_threads

if TYPE_CHECKING:
    import torch

MOST_CONTEXT, LEAST_CONTEXT = 1024, 16  # tokens of a window
PROBE_ROWS = 4  # of the causality probe
BATCH_TOKENS, BATCH_LOGITS = 4096, 2**26  # of a batch: tokens, and values where the logits are kept (256 MB)
SEPARATOR = "<|endoftext|>"  # between the documents of a .txt, and the name of a token
BUNDLED_FIRST, BUNDLED_STORIES = 21_000, 1_000  # indices after those of training and validation
INFINITE = 1e30  # nats; llama.cpp writes the logarithm of 0 as the lowest float32
TRANSFORMERS = "pip install -r requirements-export.txt"
LLAMA_CPP = "pip install -r requirements-peers.txt"


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
        name, raw = "bundled", f"\n{SEPARATOR}\n".join(story(index).text for index in indices).encode()
    else:
        if path.suffix not in (".txt", ".jsonl") or not path.is_file():
            raise ValueError(f"--data {path} must be a .txt or a .jsonl file that exists; give another")
        name, raw = path.name, path.read_bytes()
    try:
        text = raw.decode()
        found = (
            [json.loads(line)["text"] for line in text.split("\n") if line.strip()]
            if name.endswith(".jsonl")
            else [piece.strip() for piece in text.split(SEPARATOR)]
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
    """The sha256 of this file."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def model_sha256(path: Path) -> str:
    """The sha256 over the names and bytes of all files of a model."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file()):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with open(file, "rb") as content:
            while block := content.read(2**20):
                digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------- models
class Reader(NamedTuple):
    """A model and its tokenizer, however they are run."""

    program: str
    beginning: tuple[str, int]  # name and id of the token before a document
    context: int  # tokens of a window, or of a segment
    parameters: int
    encode: Callable[[str], list[int]]  # a text into ids; ValueError if they do not hold the text
    gate: Callable[
        [int], str
    ]  # tokens of a row -> words on its causality; ValueError if the model is not causal
    losses: Callable[
        [list[list[int]]], Iterator[tuple[int, torch.Tensor]]
    ]  # documents' ids -> number, (n,) nats


def open_model(path: Path, device: torch.device) -> tuple[Path, Reader]:
    """The path of the model's files, and its reader. Raises ValueError for what this project cannot run."""
    from architecture import checkpoint

    if not path.exists() and path.name != checkpoint.BEST:
        raise ValueError(
            f"{path} does not exist; give a checkpoint, a run, a folder of transformers or a .gguf"
        )
    if path.suffix == ".gguf":
        return path, gguf_reader(path)
    ggufs = sorted(path.glob("*.gguf")) if path.is_dir() and not checkpoint.is_model_folder(path) else []
    if len(ggufs) > 1:
        raise ValueError(f"{path} holds {len(ggufs)} GGUF files; name one of them")
    if ggufs:
        return ggufs[0], gguf_reader(ggufs[0])
    found = checkpoint.find_checkpoint(path, say)
    if checkpoint.is_model_folder(found) and (found / "config.json").is_file():
        return found, hugging_face_reader(found, device)
    return found, checkpoint_reader(found, device)


def checkpoint_reader(path: Path, device: torch.device) -> Reader:
    """A checkpoint of this project."""
    from architecture.registry import load_model
    from architecture.tokenizer import encode_text

    model = load_model(path, device=device)
    tokenizer, config = model.tokenizer, model.config

    def encode(text: str) -> list[int]:
        ids = encode_text(tokenizer, text).tolist()
        require_text(text, tokenizer.decode_bytes(ids), tokenizer.name)
        return ids

    limit = config.segment_length if getattr(model, "carries", False) else config.context_limit
    return torch_reader("nano-gpt-oss", model, (SEPARATOR, tokenizer.eot_token), limit, encode)


def hugging_face_reader(path: Path, device: torch.device) -> Reader:
    """A folder of transformers. Code that comes with a folder is never run."""
    config = parse_json((path / "config.json").read_bytes())
    if "auto_map" in config:
        raise ValueError(
            f"{path} needs code of its own (auto_map in its config.json), which the ruler does not run; give a model "
            "whose classes are part of transformers"
        )
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer, Mxfp4Config
        from transformers.utils import logging
    except ImportError as error:
        raise ValueError(
            f"{path} needs transformers ({one_line(error)}); {TRANSFORMERS}, or give the checkpoint from which it "
            "was made"
        ) from None
    import torch

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    packed = config.get("quantization_config", {}).get("quant_method") == "mxfp4"
    options = {"quantization_config": Mxfp4Config(dequantize=True)} if packed else {}
    with reading(path, "a causal language model of transformers", way_out="give a complete folder"):
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        theirs = AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, dtype=torch.float32, **options
        )
    special = set(tokenizer.all_special_ids)

    def encode(text: str) -> list[int]:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        require_text(text, b"" if special & set(ids) else back.encode(), path)
        return ids

    if SEPARATOR in tokenizer.get_vocab():
        beginning = SEPARATOR, tokenizer.get_vocab()[SEPARATOR]
    else:
        beginning = next(
            (
                (str(name), number)
                for name, number in (
                    (tokenizer.bos_token, tokenizer.bos_token_id),
                    (tokenizer.eos_token, tokenizer.eos_token_id),
                )
                if number is not None
            ),
            None,
        )
    if beginning is None:
        raise ValueError(
            f"the tokenizer of {path} has no token that begins or ends a text, so nothing predicts the first token "
            "of a document; give it a bos_token or an eos_token"
        )
    text_config = theirs.config.get_text_config()
    limit = getattr(text_config, "max_position_embeddings", None) or MOST_CONTEXT
    model = adapted(theirs, text_config.vocab_size, getattr(text_config, "sliding_window", None))
    return torch_reader("transformers", model.to(device), beginning, limit, encode)


def adapted(theirs: torch.nn.Module, vocab_size: int, window: int | None) -> torch.nn.Module:
    """A model of transformers with the interface of architecture/interface.py, as far as the ruler needs it."""
    import torch

    from architecture.interface import IGNORE_INDEX, ModelOutput

    class Config(NamedTuple):
        vocab_size: int
        num_ids: int
        windows: tuple[int | None, ...]

    class Adapted(torch.nn.Module):
        keeps_logits = True

        def __init__(self):
            super().__init__()
            self.theirs, self.config = theirs, Config(vocab_size, vocab_size, (window,))

        def forward(self, input_ids, targets=None, *, carry=None, return_logits=False) -> ModelOutput:
            logits = self.theirs(input_ids=input_ids, use_cache=False).logits.float()
            losses = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), targets, ignore_index=IGNORE_INDEX, reduction="none"
            )
            count = (targets != IGNORE_INDEX).sum()
            return ModelOutput(logits if return_logits else None, losses.sum(), count, losses, None)

    return Adapted().eval()


def torch_reader(
    program: str, model: Any, beginning: tuple[str, int], limit: int, encode: Callable[[str], list[int]]
) -> Reader:
    """A model in torch. limit: tokens that it can read at once, or those of a segment if it carries a state."""
    import torch

    from architecture.interface import IGNORE_INDEX
    from training.causality import require_causal

    device = next(model.parameters()).device
    carries = getattr(model, "carries", False)
    context = limit if carries else usable_context(limit)
    kept = BATCH_LOGITS // model.config.vocab_size if getattr(model, "keeps_logits", False) else BATCH_TOKENS

    def gate(tokens: int) -> str:
        length = min(context, max(tokens, LEAST_CONTEXT))
        probes = require_causal(model, PROBE_ROWS, length, device=device, autocast=nullcontext)
        return "; ".join(probe.line for probe in probes)

    @torch.no_grad()
    def losses(documents: list[list[int]]) -> Iterator[tuple[int, torch.Tensor]]:
        if (most := max(map(max, documents))) >= model.config.vocab_size:
            raise ValueError(
                f"the tokenizer gives the id {most}, and the model has {model.config.vocab_size} ids; give the "
                "tokenizer of this model"
            )
        for numbers in batches([len(ids) for ids in documents], context, min(BATCH_TOKENS, kept)):
            length = len(documents[numbers[-1]])
            inputs = torch.full((len(numbers), length), beginning[1])
            targets = torch.full_like(inputs, IGNORE_INDEX)
            for row, number in enumerate(numbers):
                ids = torch.tensor(documents[number])
                inputs[row, 1 : len(ids)] = ids[:-1]
                targets[row, : len(ids)] = ids
            scores = read_windows(model, inputs.to(device), targets.to(device), context, carries)
            for row, number in enumerate(numbers):
                yield number, scores[row, : len(documents[number])]

    parameters = sum(p.numel() for p in model.parameters())
    return Reader(program, beginning, context, parameters, encode, gate, losses)


def read_windows(
    model: Any, inputs: torch.Tensor, targets: torch.Tensor, context: int, carries: bool
) -> torch.Tensor:
    """(B, T) float64 on the CPU: the nats of every target, each scored once. inputs, targets: (B, T) int64."""
    import torch

    losses, scored, carry = [], 0, None
    while scored < inputs.shape[1]:
        begin = scored if carries else max(0, scored - context // 2)
        part = slice(begin, begin + context)
        output = model(inputs[:, part], targets[:, part], carry=carry)
        losses.append(output.token_losses[:, scored - begin :].cpu().double())
        carry = output.carry if carries else None
        scored = part.stop
    return torch.cat(losses, dim=1)


def batches(lengths: Sequence[int], context: int, tokens: int) -> Iterator[list[int]]:
    """Numbers of documents of about the same length, the shortest first, so that little of a batch is padding."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * min(lengths[number], context) > tokens:
            yield batch
            batch = []
        batch.append(number)
    yield batch


def gguf_reader(path: Path) -> Reader:
    """A GGUF file, through the server of llama.cpp, which reads and tokenizes it by itself.

    The server gives probabilities of tokens that it generates. So a grammar of one token after the other makes it
    generate the document. It passes over a token that is a part of a character; there it is asked for the
    probabilities of all tokens. What it generates depends on nothing that comes later.
    """
    import torch

    try:
        from architecture.open_gpt_oss.engines import LlamaCpp

        engine = LlamaCpp(path, context=MOST_CONTEXT, threads=torch.get_num_threads())
    except ImportError as error:
        raise ValueError(f"{path} needs llama.cpp ({one_line(error)}); {LLAMA_CPP}") from None
    except RuntimeError as error:
        raise ValueError(
            f"{path} cannot be read by llama.cpp ({one_line(error)}); give another copy of it"
        ) from None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is in this process

    def ask(page: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{engine.server.listening_address}{page}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with opener.open(request) as answer:
            return json.loads(answer.read())

    def tokens(text: str, special: bool = False) -> list[dict[str, Any]]:
        body = {"content": text, "add_special": False, "parse_special": special, "with_pieces": True}
        return ask("/tokenize", body)["tokens"]

    told, meta = ask("/props"), ask("/v1/models")["data"][0]["meta"]
    names = (SEPARATOR, told.get("bos_token"), told.get("eos_token"))
    one = ((name, tokens(name, special=True)) for name in names if name)
    beginning = next(((name, found[0]["id"]) for name, found in one if len(found) == 1), None)
    if beginning is None:
        raise ValueError(
            f"the tokenizer of {path} has no token that begins or ends a text, so nothing predicts the first token "
            "of a document; export it with one"
        )
    whole: dict[int, bool] = {}  # whether a token is whole characters
    letter = tokens("a")[0]["id"]
    context = usable_context(meta["n_ctx_train"])

    def encode(text: str) -> list[int]:
        found = tokens(text)
        pieces = [p.encode() if isinstance(p := token["piece"], str) else bytes(p) for token in found]
        require_text(text, b"".join(pieces), path)
        for token, piece in zip(found, pieces):
            whole[token["id"]] = (
                isinstance(token["piece"], str) and not piece.startswith(b"\0") and piece != b""
            )
        return [token["id"] for token in found]

    def generated(prompt: list[int], ids: list[int], count: int) -> list[dict[str, Any]]:
        grammar = "root ::= " + " ".join(f"<[{number}]>" for number in ids)
        settings = {"logprobs": count, "n_probs": count, "grammar": grammar, "ignore_eos": True}
        found = engine.complete(prompt, len(ids), **settings, cache_prompt=True)["choices"][0]["logprobs"]
        if not found or [entry["id"] for entry in found["content"]] != ids:
            raise ValueError(f"{path}: llama.cpp left out the probability of a token; score it another way")
        return found["content"]

    def nats(row: list[int], first: int) -> Iterator[float]:
        """Of row[first:], after the tokens before."""
        at = first
        while at < len(row):
            end = at
            while end < len(row) and whole[row[end]]:
                end += 1
            if end > at:
                yield from (-entry["logprob"] for entry in generated(row[:at], row[at:end], 1))
            else:
                (entry,) = generated(row[:at], [letter], meta["n_vocab"])
                logprobs = {other["id"]: other["logprob"] for other in entry["top_logprobs"]}
                yield -logprobs.get(row[at], -math.inf)
                end = at + 1
            at = end

    def losses(documents: list[list[int]]) -> Iterator[tuple[int, torch.Tensor]]:
        for number, ids in enumerate(documents):
            row, found = [beginning[1], *ids], []
            while len(found) < len(ids):
                begin = max(0, len(found) - context // 2)
                found += nats(row[begin : begin + context + 1], len(found) - begin + 1)
            yield number, torch.tensor(found, dtype=torch.float64)

    gate = "llama.cpp generates token after token, so no token sees a later one"
    return Reader("llama.cpp", beginning, context, meta["n_params"], encode, lambda tokens: gate, losses)


def usable_context(limit: int) -> int:
    """Tokens of a window. Raises ValueError if they are too few."""
    if limit < LEAST_CONTEXT:
        raise ValueError(
            f"the model reads {limit} tokens at once, and the ruler needs at least {LEAST_CONTEXT}, because half of a "
            "window repeats the one before; give a model with a longer context"
        )
    return min(limit, MOST_CONTEXT)


def require_text(text: str, decoded: bytes, tokenizer: Any) -> None:
    """Raise ValueError unless the ids of a text decode to its bytes, with no special token among them."""
    if decoded != text.encode():
        raise ValueError(
            f"the tokenizer {tokenizer} cannot hold the document that begins {text[:40]!r}: its ids must decode to the "
            "same bytes, without special tokens; the ruler measures only tokenizers that keep every byte"
        )


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
            file, reader = open_model(path, device)
            entry = {"model": str(path), "sha256": model_sha256(file)}
            same = [one for one in kept if {name: one.get(name) for name in entry} == entry]
            if same:
                tell(line(same[0], found))
                continue
            with tqdm(total=len(sizes), desc=path.name, unit=" documents", leave=False, disable=None) as bar:
                entry |= score(reader, data, bar.update)
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


def run(argv: list[str] | None) -> None:
    title = "Bits per byte of any language model on the same documents, with a 95 % interval."
    parser = Parser(prog="python -m evaluation.ruler", allow_abbrev=False, description=title)
    add = parser.add_argument
    models = (
        "checkpoint_<step>.pt, RUN for its newest, RUN/best.json, a folder of transformers, or a GGUF file"
    )
    add("models", type=Path, nargs="+", metavar="MODEL", help=models)
    add("--data", type=Path, metavar="FILE", help=".txt or .jsonl of documents (default: bundled stories)")
    add("--stories", type=int, metavar="N", help="read the first N documents (default: all)")
    add("--out", type=Path, metavar="FILE.json", help="keeps what is finished; the same command goes on")
    add("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N (default: auto)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: one for each free core)")
    args = parser.parse_args(argv)
    for name, value in (("stories", args.stories), ("threads", args.threads)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
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
