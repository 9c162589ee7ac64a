"""How the ruler reads models: checkpoints of this project, folders of transformers, and GGUF files.

Each becomes a Reader, which encodes texts and gives the nats of every token of documents. The rules are those of
evaluation/ruler.py, whose sha256 is over both files.

Shapes: B documents in a batch, T tokens of the longest.
"""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.files import read_json_object, reading
from common.script import one_line, say

if TYPE_CHECKING:
    import torch

MOST_CONTEXT, LEAST_CONTEXT = 1024, 16  # tokens of a window with its last target
PROBE_ROWS = 4  # of the causality probe
BATCH_TOKENS, BATCH_LOGITS = 4096, 2**26  # of a batch: tokens, and values where the logits are kept (256 MB)
END_OF_TEXT = "<|endoftext|>"
TOKENIZERS = "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"  # of transformers; one is enough
TRANSFORMERS = "pip install -r requirements-export.txt"
LLAMA_CPP = "pip install -r requirements-peers.txt"


class Reader(NamedTuple):
    """A model and its tokenizer, however they are run."""

    program: str
    beginning: tuple[str, int]  # name and id of the token before a document
    context: int  # tokens that a window reads, or a segment
    parameters: int
    encode: Callable[[str], list[int]]  # a text into ids; ValueError if they do not hold the text
    gate: Callable[
        [int], str
    ]  # tokens of a row -> words on its causality; ValueError if the model is not causal
    losses: Callable[
        [list[list[int]]], Iterator[tuple[int, torch.Tensor]]
    ]  # documents' ids -> number, (n,) nats


def find_model(path: Path, device: torch.device) -> tuple[Path, Callable[[], Reader]]:
    """The path of the model's files, and a function that loads them.

    transformers reads a folder in its layout, so that the ruler also judges what was exported. This project reads
    those folders of its own model types that transformers cannot: without its tokenizer, or with code of their own.
    Raises ValueError for what cannot be read.
    """
    from architecture import checkpoint, registry

    if not path.exists() and path.name != checkpoint.BEST:
        raise ValueError(
            f"{path} does not exist; give a checkpoint, a run, a folder of transformers or a .gguf"
        )
    if path.suffix == ".gguf":
        return path, partial(gguf_reader, path)
    ggufs = sorted(path.glob("*.gguf")) if path.is_dir() and not checkpoint.is_model_folder(path) else []
    if len(ggufs) > 1:
        raise ValueError(f"{path} holds {len(ggufs)} GGUF files; name one of them")
    if ggufs:
        return ggufs[0], partial(gguf_reader, ggufs[0])
    found = checkpoint.find_checkpoint(path, say)
    if not checkpoint.is_model_folder(found):
        return found, partial(checkpoint_reader, found, device)
    config = read_json_object(found / "config.json")
    theirs = "auto_map" not in config and any((found / name).is_file() for name in TOKENIZERS)
    official = "swiglu_limit" in config and "model_type" not in config  # OpenAI's layout of gpt-oss
    ours = official or config.get("model_type") in registry.FOLDERS
    return found, partial(checkpoint_reader if ours and not theirs else hugging_face_reader, found, device)


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
    return torch_reader("nano-gpt-oss", model, (END_OF_TEXT, tokenizer.eot_token), limit, encode)


def hugging_face_reader(path: Path, device: torch.device) -> Reader:
    """A folder of transformers. Code that comes with a folder is never run."""
    config = read_json_object(path / "config.json")
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
        theirs, told = AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, dtype=torch.float32, output_loading_info=True, **options
        )
        if missing := sorted(told["missing_keys"]):  # transformers would fill them with random values
            raise ValueError(f"{len(missing)} of its weights are missing, first {missing[0]}")
    special = set(tokenizer.all_special_ids)

    def encode(text: str) -> list[int]:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        require_text(text, b"" if special & set(ids) else back.encode(), path)
        return ids

    named = [
        (name, tokenizer.get_vocab().get(name))
        for name in (END_OF_TEXT, tokenizer.bos_token, tokenizer.eos_token)
    ]
    beginning = next(((name, number) for name, number in named if number is not None), None)
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
    names = (END_OF_TEXT, told.get("bos_token"), told.get("eos_token"))
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
    """Tokens that a window reads: one fewer than the context, because llama.cpp counts the last target, too.

    Raises ValueError if they are too few.
    """
    if limit < LEAST_CONTEXT:
        raise ValueError(
            f"the model has a context of {limit} tokens, and the ruler needs at least {LEAST_CONTEXT}, because half of "
            "a window repeats the one before; give a model with a longer context"
        )
    return min(limit, MOST_CONTEXT) - 1


def require_text(text: str, decoded: bytes, tokenizer: Any) -> None:
    """Raise ValueError unless the ids of a text decode to its bytes, with no special token among them."""
    if decoded != text.encode():
        raise ValueError(
            f"the tokenizer {tokenizer} cannot hold the document that begins {text[:40]!r}: its ids must decode to the "
            "same bytes, without special tokens; the ruler measures only tokenizers that keep every byte"
        )
