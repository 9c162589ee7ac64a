"""The texts of a model beside four kinds of reference texts, and the sums that each measure takes of them."""

from __future__ import annotations

import argparse
import functools
import math
import random
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from evaluation.story_scores.generations import COPIED, WORDS, Lexicon, measures
from evaluation.story_scores.intervals import difference
from evaluation.story_scores.likelihood import Reader
from evaluation.story_scores.references import Bigram, halves, joined, shuffled
from evaluation.story_scores.scored_pairs import reader_nats
from evaluation.story_scores.splitting import sentences, whole_sentences
from evaluation.story_scores.work import Work

REFERENCES = ("real", "shuffled", "joined", "bigram")
BIGRAM_PIECES = 250  # more than WORDS words

Groups = list[tuple[str, list[int]]]
Texts = dict[str, list[list[str]]]  # who wrote them: the texts of each prompt


def reference_texts(
    held_out: Sequence[str], groups: Groups, bigram: Bigram, args: argparse.Namespace
) -> Texts:
    """The four texts to compare with, for each opening."""
    draw = random.Random(f"references {args.seed}")
    # Cut before they are mixed, so that all but the bigram model's have the same sentences.
    real = [[whole_sentences(text := held_out[n], WORDS) or text for n in numbers] for _, numbers in groups]
    return {
        "real": real,
        "shuffled": [[shuffled(text, draw) or text for text in group] for group in real],
        # The other half is that of the next story with the same opening.
        "joined": [
            [joined(text, other) or text for text, other in zip(group, group[1:] + group[:1])]
            for group in real
        ],
        "bigram": [
            [bigram.continuation(words, BIGRAM_PIECES, draw) for _ in numbers] for words, numbers in groups
        ],
    }


def completions(
    reader: Reader, prompts: Sequence[str], args: argparse.Namespace, work: Work, hash_: str
) -> list[list[str]]:
    """The completions of each opening. Each opening has its own seed, so the texts do not depend on the others."""
    from architecture.generation.text import generate_texts

    found = []
    for number, words in enumerate(
        tqdm(prompts, desc=f"{reader.name}: writing", unit=" prompts", leave=False, disable=None)
    ):
        options = {
            "max_tokens": args.max_tokens,
            "temperature": args.temperature,
            "seed": args.seed * 1000 + number,
        }
        write = functools.partial(generate_texts, reader.model, [words] * args.completions, **options)
        try:
            found.append(work.once(write, "texts", hash_, words, args.completions, options))
        except ValueError as error:  # such as logits that are not finite
            raise ValueError(f"{reader.name}: {error}") from None
    return found


def text_sums(
    texts: Texts, groups: Groups, lexicon: Lexicon, training: Sequence[str]
) -> dict[str, list[dict[str, tuple[float, float]]]]:
    """{who wrote the texts: the sums of each measure for each prompt}."""
    from data.stories.copies import RunIndex

    copies = RunIndex(training, COPIED)
    found = {}
    for name, by_prompt in texts.items():
        cut = [
            [whole_sentences(text, WORDS) for text in group if text != words]
            for (words, _), group in zip(groups, by_prompt)
        ]
        found[name] = [measures(lexicon, copies, group) for group in cut]
    return found


def separation(sums: dict[str, list[dict[str, tuple[float, float]]]]) -> dict[str, dict[str, Any]]:
    """{measure: {reference: real - reference}}, over the same prompts."""
    return {
        measure: {
            other: difference([one[measure] for one in sums["real"]], [one[measure] for one in sums[other]])
            for other in REFERENCES[1:]
        }
        for measure in sums["real"][0]
    }


def second_sums(
    reader: Reader, about: dict[str, Any], texts: Texts, groups: Groups, work: Work
) -> dict[str, list[dict[str, tuple[float, float]]]]:
    """bits_per_byte and context_gain of each prompt, in bits and bytes.

    The opening is not scored. The gain: bits of the second half alone, less its bits behind the first half.
    """
    nats = reader_nats(reader, work, about["sha256"])
    found: dict[str, list[dict[str, tuple[float, float]]]] = {}
    for name, by_prompt in texts.items():
        cut = [
            (n, words, whole_sentences(t, WORDS))
            for n, ((words, _), g) in enumerate(zip(groups, by_prompt))
            for t in g
        ]
        # A shuffled story does not begin with the opening: then nothing is left out.
        rows = [
            (n, words if text.startswith(words) else "", text)
            for n, words, text in cut
            if len(sentences(text)) > 1
        ]
        split = [(begin, end.lstrip()) for begin, end in (halves(text) for _, _, text in rows)]
        parts = [(words, text, begin, end) for (_, words, text), (begin, end) in zip(rows, split)]
        bits = [
            value / math.log(2) for value in nats([part for row in parts for part in row], f"{name} texts")
        ]
        sums = [{"bits_per_byte": (0.0, 0.0), "context_gain": (0.0, 0.0)} for _ in groups]
        for place, (number, words, text) in enumerate(rows):
            opening, whole, first, second = bits[4 * place : 4 * place + 4]
            size, half = len(text.encode()) - len(words.encode()), len(split[place][1].encode())
            for measure, value, by in (
                ("bits_per_byte", whole - opening, size),
                ("context_gain", second - (whole - first), half),
            ):
                before = sums[number][measure]
                sums[number][measure] = before[0] + value, before[1] + by
        found[name] = sums
    return found
