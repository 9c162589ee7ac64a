"""The texts between which a score must tell: real stories, shuffled ones, joined ones, and a bigram model's.

shuffled  a real story with its sentences in a random order
joined    the first half of one story and the second half of another
bigram    drawn from a model that knows only which word follows which, trained on the training stories
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate

from evaluation.story_scores.splitting import sentences

# Words with the space before them, digits, white space, and every other character by itself: joined, they are the text.
_PIECE = re.compile(r" ?[A-Za-z]+(?:['\u2019][a-z]+)?| ?[0-9]+| ?[^\sA-Za-z0-9]|\s")
END = ""  # stands before the first and after the last piece of a story


def shuffled(text: str, draw: random.Random) -> str | None:
    """The story with its sentences in another order; None if it has fewer than three of them.

    The white space between the sentences stays where it is, so paragraphs have as many sentences as before.
    """
    spans = sentences(text)
    if len(spans) < 3:
        return None
    order = list(range(len(spans)))
    while order == sorted(order):
        draw.shuffle(order)
    gaps = [text[before.end : after.start] for before, after in zip(spans, spans[1:])]
    parts = [text[spans[place].start : spans[place].end] for place in order]
    return "".join(part + gap for part, gap in zip(parts, [*gaps, ""]))


def halves(text: str) -> tuple[str, str] | None:
    """The story up to the middle of its sentences, and the rest with the white space before it.

    None if it has fewer than two sentences.
    """
    spans = sentences(text)
    if len(spans) < 2:
        return None
    cut = spans[len(spans) // 2 - 1].end
    return text[:cut], text[cut:]


def joined(first: str, second: str) -> str | None:
    """The first half of one story and the second half of another; None if one has a single sentence."""
    begin, end = halves(first), halves(second)
    return None if begin is None or end is None else begin[0] + end[1]


def pieces(text: str) -> list[str]:
    return _PIECE.findall(text)


class Bigram:
    """Which piece follows which, with frequencies of single pieces for what was never seen.

    P(b | a) = (1 - w) count(a, b) / count(a) + w (count(b) + 1) / (all + pieces + 1), with w = UNSEEN; an unknown
    piece b has count 0. This is linear interpolation (Jelinek and Mercer 1980).
    """

    UNSEEN = 0.1

    def __init__(self, texts: Iterable[str]):
        self.single: Counter[str] = Counter()
        self.after: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for text in texts:
            row = [END, *pieces(text), END]
            self.single.update(row[1:])
            for a, b in zip(row, row[1:]):
                self.after[a][b] += 1
        self.total = self.single.total()
        self.sums = {a: counts.total() for a, counts in self.after.items()}
        self.tables: dict[str, tuple[list[str], list[int]]] = {}

    def nats(self, text: str) -> float:
        """-log P of the text after the beginning of a story; the end is not scored."""
        row = [END, *pieces(text)]
        return -sum(math.log(self.probability(a, b)) for a, b in zip(row, row[1:]))

    def probability(self, a: str, b: str) -> float:
        alone = (self.single[b] + 1) / (self.total + len(self.single) + 1)
        if a not in self.sums:
            return alone
        return (1 - self.UNSEEN) * self.after[a][b] / self.sums[a] + self.UNSEEN * alone

    def continuation(self, prompt: str, most: int, draw: random.Random) -> str:
        """The prompt with at most so many further pieces. Only pairs that were seen are drawn."""
        row = pieces(prompt)
        last = row[-1] if row else END
        for _ in range(most):
            if last not in self.sums:
                break
            if last not in self.tables:
                options = list(self.after[last])
                self.tables[last] = options, list(accumulate(self.after[last][b] for b in options))
            options, sums = self.tables[last]
            last = draw.choices(options, cum_weights=sums)[0]
            if last == END:
                break
            row.append(last)
        return "".join(row)


def openings(texts: Sequence[str], prompts: int, completions: int) -> list[tuple[str, list[int]]]:
    """Openings that several stories share, and the numbers of the first `completions` stories with each.

    The most frequent openings of 5 words come first; if there are too few, of 4 or of 3 words. So the stories of
    one opening show how different real continuations of one prompt are.
    Raises ValueError if no length gives enough.
    """
    most = 0
    for length in (5, 4, 3):
        found: defaultdict[str, list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            words = re.match(rf"(?:\S+ ){{{length - 1}}}\S+(?= )", text)
            if words and len(sentences(text)) >= 6:  # shorter stories have no halves to speak of
                found[words[0]].append(number)
        shared = sorted(found, key=lambda words: (-len(found[words]), words))
        shared = [words for words in shared if len(found[words]) >= completions]
        if len(shared) >= prompts:
            return [(words, found[words][:completions]) for words in shared[:prompts]]
        most = max(most, len(shared))
    raise ValueError(
        f"--prompts {prompts} needs as many openings that {completions} held-out stories share, and {len(texts):,} "
        f"stories have {most}; use more stories, or lower --prompts or --completions"
    )
