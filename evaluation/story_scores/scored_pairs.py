"""The share of minimal pairs that a model gets right, by kind, distance and context."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from evaluation.story_scores import minimal_pairs
from evaluation.story_scores.intervals import difference, share
from evaluation.story_scores.likelihood import Reader
from evaluation.story_scores.references import Bigram
from evaluation.story_scores.work import Work

Nats = Callable[[Sequence[str], str], list[float]]
Pairs = dict[str, list[minimal_pairs.Pair]]


def all_pairs(held_out: Sequence[str], each: int, seed: int) -> Pairs:
    """The pairs with their real context, and those of consistency with a shuffled and a joined one."""
    sorter = minimal_pairs.Sorter(held_out)
    consistency = minimal_pairs.consistency_pairs(held_out, each, seed, sorter)
    others = {
        how: minimal_pairs.with_other_context(consistency, held_out, how, seed)
        for how in ("shuffled", "joined")
    }
    return {
        "real": minimal_pairs.grammar_pairs(held_out, each, seed, sorter) + consistency,
        **others,
    }


def preferences(pairs: Pairs, nats: Nats) -> dict[str, list[tuple[minimal_pairs.Pair, bool]]]:
    """Whether each true text has the larger probability. Equal ones count as no."""
    found = {}
    for context, some in pairs.items():
        values = nats(
            [text for p in some for text in (p.context + p.good, p.context + p.bad)],
            f"pairs, {context} context",
        )
        found[context] = [(pair, good < bad) for pair, good, bad in zip(some, values[::2], values[1::2])]
    return found


def bigram_nats(bigram: Bigram) -> Nats:
    return lambda texts, what: [bigram.nats(text) for text in texts]


def reader_nats(reader: Reader, work: Work, hash_: str, piece: int = 400) -> Nats:
    """Scores in pieces, each of which is kept when it is done."""

    def nats(texts: Sequence[str], what: str) -> list[float]:
        found: list[float] = []
        with tqdm(
            total=len(texts), desc=f"{reader.name}: {what}", unit=" texts", leave=False, disable=None
        ) as bar:
            for start in range(0, len(texts), piece):
                some = texts[start : start + piece]
                score = functools.partial(reader.nats, some)
                found += work.once(score, "nats", hash_, reader.window, some)
                bar.update(len(some))
        return found

    return nats


def pair_table(pairs: Pairs, scored: dict[str, list[tuple[minimal_pairs.Pair, bool]]]) -> dict[str, Any]:
    """The share that is right of each kind, of all kinds of grammar and of consistency, and by distance."""
    rows = {
        kind: [right for pair, right in scored["real"] if pair.kind == kind] for kind in minimal_pairs.GRAMMAR
    }
    rows["grammar"] = [right for pair, right in scored["real"] if not pair.distance]
    for kind in minimal_pairs.CONSISTENCY:
        rows[kind] = [right for pair, right in scored["real"] if pair.kind == kind]
    for first, _ in minimal_pairs.DISTANCES:
        distance = minimal_pairs.bin_of(first)
        rows[f"distance {distance}"] = [
            right
            for pair, right in scored["real"]
            if pair.distance and minimal_pairs.bin_of(pair.distance) == distance
        ]
    rows["consistency"] = [right for pair, right in scored["real"] if pair.distance]
    for context in ("shuffled", "joined"):
        rows[f"consistency, {context} context"] = [right for _, right in scored[context]]
    return {name: share(sum(rights), len(rights)) for name, rights in rows.items()}


def context_table(scored: dict[str, list[tuple[minimal_pairs.Pair, bool]]]) -> dict[str, Any]:
    """How much of the share a shuffled and a joined context take away, over the same pairs."""
    real = {(pair.story, pair.good, pair.bad): right for pair, right in scored["real"]}
    found = {}
    for context in ("shuffled", "joined"):
        both = [(real[pair.story, pair.good, pair.bad], right) for pair, right in scored[context]]
        found[context] = difference([(a, 1) for a, _ in both], [(b, 1) for _, b in both])
    return found
