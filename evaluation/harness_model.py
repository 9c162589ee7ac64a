"""A model of this project as lm-evaluation-harness asks it: log-likelihoods of texts, and texts up to a stop string.

HarnessModel needs no lm-eval, and harness_class() makes the subclass of lm_eval.api.model.LM that lm-eval takes.
Both give the numbers of lm-eval's HFLM on the exported model:

- A prompt has no end-of-text token in front. An empty one is that token, with which documents begin in training.
- White space at the end of a prompt belongs to the continuation.
- A prompt that does not fit into the context loses its beginning, and is counted.

Scoring reads what several texts have in common once, and keeps its keys and values: the prompt of a question
with four answers is computed once. Logits are computed for the scored tokens only.

Shapes: B rows, U different prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from architecture.generation.decode import generate_steps, length_limit
from architecture.generation.sampling import row_generators
from architecture.generation.text import TextStream
from architecture.tokenizer import encode_text

MAX_GEN_TOKS = 256  # of a task that gives no number; HFLM has the same
# Names of other programs for max_gen_toks, in the order of lm-eval, which takes the first one that is given.
MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
HONOURED = ("until", "do_sample", "temperature", "top_k", "top_p", "min_p", *MAX_TOKENS)
NEUTRAL = {"num_beams": 1, "repetition_penalty": 1, "length_penalty": 1, "n": 1, "use_cache": True}
LOGITS_AT_ONCE = 2**26  # 256 MiB in float32


class Window(NamedTuple):
    """A part of a text that the model scores in one piece: the log-probability of the last `targets`."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def prefix(self) -> tuple[int, ...]:
        """The inputs before the first one that predicts a target."""
        return self.inputs[: len(self.inputs) - len(self.targets)]

    @property
    def tail(self) -> tuple[int, ...]:
        """The inputs that predict the targets."""
        return self.inputs[len(self.inputs) - len(self.targets) :]


class Counts:
    """What had to be cut, of how many requests."""

    def __init__(self) -> None:
        self.requests = 0
        self.cut = 0  # requests whose prompt lost its beginning
        self.shortened = 0  # requests that may write fewer tokens than the task asks for


class HarnessModel:
    """The three questions of lm-eval. Requests have .args, as lm_eval.api.instance.Instance has."""

    def __init__(self, model: nn.Module, *, batch_size: int = 8, seed: int = 1):
        """model: with its tokenizer.  seed: of tasks that sample; each request has its own numbers."""
        super().__init__()
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer; load it from a checkpoint")
        if getattr(model, "carries", False):
            raise ValueError(
                f"a {model.name} model reads a text in segments, and lm-eval scores texts in one piece; use a model of "
                "train.py"
            )
        self.network, self.encoding = model.eval(), model.tokenizer
        self.batch_size, self.seed, self.counts = batch_size, seed, Counts()
        self.limit = length_limit(model)  # most tokens that the model reads

    # -------------------------------------------------------------------------------------- the questions
    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (prompt, continuation): nats of log-probability, and whether the greedy text would be it."""
        texts = []
        for prompt, continuation in (request.args for request in requests):
            before, after = self.encode_pair(prompt, continuation)
            self.counts.cut += bool(after) and len(before) + min(len(after), self.limit) > self.limit + 1
            texts.append((before, after))
        self.counts.requests += len(texts)
        return self._scores(texts, disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text in nats, after the end-of-text token; every token counts once.

        A text beyond the context is read in windows. Each but the first predicts as many tokens as fit, and the last
        one has as much context as fits.
        """
        self.counts.requests += len(requests)
        texts = [([self.encoding.eot_token], self._ids(request.args[0])) for request in requests]
        return [nats for nats, _ in self._scores(texts, disable_tqdm)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """For each (prompt, arguments of generation) the text up to the first stop string, without it.

        Arguments that this cannot honour raise ValueError. A prompt keeps its last tokens, so that
        max_gen_toks more fit; if that is the whole context or more, the answer gets half of the context.
        """
        asked = [generation_arguments(request.args[1]) for request in requests]
        generators = row_generators(self.seed, len(requests))
        prompts, answers = [], [""] * len(requests)
        for request, options in zip(requests, asked):
            if options["max_tokens"] >= self.limit:
                options["max_tokens"] = max(1, self.limit // 2)
                self.counts.shortened += 1
            ids = self._ids(request.args[0]) or [self.encoding.eot_token]
            room = self.limit - options["max_tokens"]
            self.counts.cut += len(ids) > room
            prompts.append(ids[-room:])
        self.counts.requests += len(requests)
        # Rows of a batch share their options; similar lengths waste little on padding.
        order = sorted(range(len(requests)), key=lambda row: (repr(asked[row]), -len(prompts[row])))
        with tqdm(total=len(order), desc="texts", disable=True if disable_tqdm else None) as bar:
            for _, same in itertools.groupby(order, key=lambda row: repr(asked[row])):
                for rows in batched(same, self.batch_size):
                    for row, text in zip(rows, self._generate(rows, prompts, asked[rows[0]], generators)):
                        answers[row] = text
                    bar.update(len(rows))
        return answers

    # ------------------------------------------------------------------------------------------- scoring
    def encode_pair(self, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
        """The ids of a prompt and of its continuation, cut out of the ids of both together."""
        kept = prompt.rstrip()
        continuation, prompt = prompt[len(kept) :] + continuation, kept
        before, both = self._ids(prompt), self._ids(prompt + continuation)
        after = both[len(before) :]
        if continuation and (not after or not before):  # one token has both, or there is no prompt
            after = self._ids(continuation)
        return before or [self.encoding.eot_token], after

    def _ids(self, text: str) -> list[int]:
        return encode_text(self.encoding, text).tolist()

    def _scores(self, texts: Sequence[tuple[list[int], list[int]]], quiet: bool) -> list[tuple[float, bool]]:
        """(ids before, ids to score) of each text -> nats, and whether every scored id is the most probable."""
        windows = [list(windows_of(before, after, self.limit)) for before, after in texts]
        found = self._score(dict.fromkeys(itertools.chain.from_iterable(windows)), quiet)
        return [
            (sum(found[window][0] for window in parts), all(found[window][1] for window in parts))
            for parts in windows
        ]

    def _score(self, windows: Iterable[Window], quiet: bool) -> dict[Window, tuple[float, bool]]:
        """Nats and greediness of each window."""
        same: dict[tuple, list[Window]] = {}  # windows whose logits are the same
        for window in windows:
            same.setdefault((window.prefix, window.tail), []).append(window)
        # the longest first, so that what needs most memory fails at once; equal prefixes follow each other
        order = sorted(same, key=lambda parts: (-len(parts[0]), parts[0], -len(parts[1])))
        found = {}
        with tqdm(total=len(order), desc="texts", disable=True if quiet else None) as bar:
            for batch in self._batches(order):
                for group, scores in zip(batch, self._score_batch(batch, [same[parts] for parts in batch])):
                    found |= dict(zip(same[group], scores))
                bar.update(len(batch))
        return found

    def _batches(self, order: Sequence[tuple]) -> Iterator[list[tuple]]:
        """Batches of (prefix, tail) whose longest prefix and longest tail fit into the context together."""
        batch: list[tuple] = []
        for parts in order:
            longest = [max(len(row[side]) for row in [*batch, parts]) for side in (0, 1)]
            if batch and (len(batch) == self.batch_size or sum(longest) > self.limit):
                yield batch
                batch = []
            batch.append(parts)
        if batch:
            yield batch

    @torch.no_grad()
    def _score_batch(
        self, batch: list[tuple], windows: list[list[Window]]
    ) -> Iterator[list[tuple[float, bool]]]:
        """Yield for each (prefix, tail) the nats and greediness of its windows, which differ in their targets."""
        device = next(self.network.parameters()).device
        prefixes = list(dict.fromkeys(prefix for prefix, _ in batch))
        longest, width = max(map(len, prefixes)), max(len(tail) for _, tail in batch)
        cache = self.network.new_cache(len(prefixes), longest + width)
        if longest:  # (U, longest), padded on the left, where positions are negative
            ids = torch.tensor([[0] * (longest - len(prefix)) + list(prefix) for prefix in prefixes])
            padding = torch.tensor([longest - len(prefix) for prefix in prefixes])[:, None]
            positions = torch.arange(longest) - padding
            self.network(ids.to(device), positions=positions.to(device), cache=cache, return_logits=False)
        if len(prefixes) < len(batch):  # each row goes on from the keys and values of its prefix
            cache.keep(torch.tensor([prefixes.index(prefix) for prefix, _ in batch], device=device))
        # (B, width), padded on the right, where padding comes after all that counts
        tails = torch.tensor([list(tail) + [0] * (width - len(tail)) for _, tail in batch]).to(device)
        rows = [(row, window) for row, group in enumerate(windows) for window in group]
        index = torch.tensor([row for row, _ in rows], device=device)
        targets = torch.tensor([list(w.targets) + [-1] * (width - len(w.targets)) for _, w in rows]).to(
            device
        )
        nats, greedy = [0.0] * len(rows), [True] * len(rows)
        columns = max(1, LOGITS_AT_ONCE // (len(batch) * self.network.config.vocab_size))
        for start in range(0, width, columns):
            part = slice(start, start + columns)
            logits = self.network(tails[:, part], cache=cache).logits  # (B, columns, V)
            normaliser, top = logits.logsumexp(-1)[index], logits.argmax(-1)[index]  # (rows, columns) each
            wanted = targets[:, part]
            chosen = logits[index[:, None], torch.arange(wanted.shape[1], device=device), wanted.clamp(min=0)]
            losses, real = (chosen - normaliser).cpu().double(), wanted.cpu() >= 0  # MPS has no float64
            if not losses[real].isfinite().all():
                raise ValueError(
                    "the model's logits are not finite, so no text can be scored; use a checkpoint from before the "
                    "loss became NaN or infinite"
                )
            sums = losses.masked_fill(~real, 0.0).sum(1).tolist()
            equal = ((top == wanted).cpu() | ~real).all(1).tolist()
            nats = [a + b for a, b in zip(nats, sums)]
            greedy = [a and b for a, b in zip(greedy, equal)]
        scores = iter(zip(nats, greedy))
        for group in windows:
            yield list(itertools.islice(scores, len(group)))

    # ---------------------------------------------------------------------------------------- generation
    def _generate(
        self, rows: Sequence[int], prompts: Sequence[Any], options: dict[str, Any], generators: Sequence[Any]
    ) -> list[str]:
        """The text of each of these rows up to its first stop string."""
        options = dict(options)
        until = options.pop("until")
        eot, longest = self.encoding.eot_token, max(map(len, until), default=0)
        streams, texts = [TextStream(self.encoding) for _ in rows], [""] * len(rows)
        going = set(range(len(rows)))
        steps = generate_steps(
            self.network,
            [prompts[row] for row in rows],
            stop_tokens=(eot,),
            generators=[generators[row] for row in rows],
            **options,
        )
        for new in steps:
            for place in list(going):
                token = new[place]
                piece = "" if token is None or token == eot else streams[place].push(token)
                texts[place] += piece
                # a stop string may begin in an earlier piece
                recent = texts[place][-(longest + len(piece)) :]
                if token is None or token == eot or any(stop in recent for stop in until):
                    going.discard(place)
            if not going:
                break
        steps.close()  # before the end, this gives the drawn numbers back
        return [up_to(text + stream.finish(), until) for text, stream in zip(texts, streams)]


def windows_of(before: Sequence[int], after: Sequence[int], limit: int) -> Iterator[Window]:
    """The windows that score each of `after` once, with at most `limit` inputs and as much context as fits.

    before: at least one id.  One window unless `after` is longer than the context.
    """
    ids, scored = [*before, *after], len(before)
    while scored < len(ids):
        end = min(scored + limit, len(ids))
        yield Window(tuple(ids[max(0, end - 1 - limit) : end - 1]), tuple(ids[scored:end]))
        scored = end


def generation_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """A task's generation_kwargs as the options of generate_steps, and `until`, a list without "".

    As in lm-eval, a temperature above 0 samples unless do_sample is false, and without both the text is greedy.
    Raises ValueError for an argument that would change the text and is not honoured.
    """
    for name, value in given.items():
        if name not in HONOURED and not (name in NEUTRAL and value == NEUTRAL[name]):
            allowed = f" or be {NEUTRAL[name]}" if name in NEUTRAL else ""
            raise ValueError(
                f"the generation argument {name} must be left out{allowed}, got {value!r}; honoured are "
                f"{', '.join(HONOURED)}"
            )
    temperature = given.get("temperature")
    sample = given.get("do_sample")
    sample = bool(temperature) if sample is None else sample
    if sample and temperature == 0:
        raise ValueError(
            "the generation arguments do_sample: true and temperature: 0 contradict each other; set do_sample: false "
            "for the most probable text, or a temperature above 0"
        )
    until = given.get("until") or []
    most = next((given[name] for name in MAX_TOKENS if given.get(name) is not None), MAX_GEN_TOKS)
    options = {
        "until": [stop for stop in ([until] if isinstance(until, str) else until) if stop],
        "max_tokens": int(most),
        "temperature": (1.0 if temperature is None else float(temperature)) if sample else 0.0,
    }
    if sample:
        options |= {name: given[name] for name in ("top_k", "top_p", "min_p") if given.get(name) is not None}
        if options.get("top_k") == 0:  # transformers' word for all
            del options["top_k"]
    if not math.isfinite(options["temperature"]) or options["max_tokens"] < 1:
        raise ValueError(
            f"the generation arguments need a finite temperature and at least 1 token, got {given!r}; change the task"
        )
    return options


def up_to(text: str, until: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((at for stop in until if (at := text.find(stop)) >= 0), default=len(text))]


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` items."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def harness_class() -> type:
    """HarnessModel as a subclass of lm_eval.api.model.LM, which is imported here."""
    from lm_eval.api.model import LM

    return type("NanoGptOss", (HarnessModel, LM), {})
