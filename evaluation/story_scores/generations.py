"""What can be counted in a story without a model: well-formed sentences, kept references, variety, and copying.

Each measure takes the texts of one prompt and returns a numerator and a denominator, which are summed over prompts.
All texts are cut to WORDS words and whole sentences first (splitting.whole_sentences), because most measures depend
on the length.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from data.stories.copies import RunIndex
from evaluation.story_scores.splitting import (
    ANIMALS,
    HE,
    OBJECTS,
    SHE,
    WORD,
    bare,
    gender_of,
    introduced_names,
    sentences,
    words_of,
)

WORDS = 120  # of a text that are measured
COPIED = 8  # words in a row that count as copied
_CLASSES = 50  # words that are a class of their own
_CLASS_RUN = 4
_TOKEN = re.compile(r"[A-Za-z]+(?:['\u2019][a-z]+)?|[^\sA-Za-z]")
_ENDINGS = ("ing", "ed", "ly", "s")
_NOT_NAMES = frozenset(
    "i mom mommy dad daddy mum mama papa grandma grandpa mr mrs ok okay monday tuesday wednesday thursday friday saturday "
    "sunday january february march april june july august september october november december".split()
)
_CAPITAL = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+")  # not where a sentence or a speech begins
_SPEECH = re.compile('["\u201c][^"\u201c\u201d]*["\u201d]')
_NEAR = 2  # sentences in which a pronoun's person must have been mentioned


class Lexicon:
    """What the training stories say about words: which are known, which are names, which words follow which."""

    def __init__(self, texts: Iterable[str]):
        self.counts: Counter[str] = Counter()
        capital: Counter[str] = Counter()
        genders: dict[str, Counter[str]] = {}
        split = []
        for text in texts:
            self.counts.update(words_of(text))
            for span in sentences(text):
                sentence = text[span.start : span.end]
                split.append(sentence)
                capital.update(_CAPITAL.findall(sentence))
            for name, noun in introduced_names(text).items():
                genders.setdefault(name, Counter())[gender_of(noun)] += 1
        # self.counts also counts the capital forms.
        self.names = {
            word
            for word, count in capital.items()
            if count > 2 and word.lower() not in _NOT_NAMES and count > self.counts[word.lower()] / 2
        }
        self.genders = {name: counts.most_common(1)[0][0] for name, counts in genders.items()}
        self.frequent = {word for word, _ in self.counts.most_common(_CLASSES)}
        self.runs = {run for sentence in split for run in self._runs(sentence)}

    def _runs(self, sentence: str) -> Iterable[tuple[str, ...]]:
        classes = ["<"]
        for number, token in enumerate(_TOKEN.findall(sentence)):
            lower = token.lower()
            if not token[0].isalpha() or lower in self.frequent:
                classes.append(lower)
            elif number and token[0].isupper():
                classes.append("A")
            else:
                classes.append(next((end for end in _ENDINGS if lower.endswith(end)), "x"))
        classes.append(">")
        return zip(*(classes[start:] for start in range(_CLASS_RUN)))

    def is_well_formed(self, sentence: str) -> bool:
        """Whether a sentence begins and ends as one, closes its quotation, has known words in an order that occurs.

        The order: each run of four word classes, where the 50 most frequent words are classes of their own, the others
        are sorted by ending and capital, is in the training stories. This rejects some real sentences, too: compare with
        the share of real stories.
        """
        straight = sentence.replace("\u201c", '"').replace("\u201d", '"')
        begins = re.match(r"[\"']?[A-Z0-9]", straight)
        ends = re.search(r"[.!?][\"')]*$", straight)
        known = all(self.counts[word] > 1 for word in words_of(sentence))
        return bool(begins and ends and known and all(run in self.runs for run in self._runs(straight)))

    def well_formed(self, text: str) -> tuple[int, int]:
        """Well-formed sentences, and all. A sentence counts as wrong if its line has a quotation that never closes."""
        spans, good = sentences(text), 0
        for start, end in spans:
            line = text[text.rfind("\n", 0, start) + 1 : (text + "\n").index("\n", end)]
            straight = line.replace("\u201c", '"').replace("\u201d", '"')
            open_quotation = straight.count('"') % 2 and '"' in text[start:end].replace("\u201c", '"')
            good += not open_quotation and self.is_well_formed(text[start:end])
        return good, len(spans)

    def names_in(self, text: str) -> set[str]:
        return set(map(bare, WORD.findall(text))) & self.names

    def names_kept(self, text: str) -> tuple[int, int]:
        """Names of the second half that the first half has, too, and all names of the second half."""
        spans = sentences(text)
        if len(spans) < 2:
            return 0, 0
        cut = spans[len(spans) // 2 - 1].end
        before, after = self.names_in(text[:cut]), self.names_in(text[cut:])
        return len(after & before), len(after)

    def introduced(self, text: str) -> tuple[int, int]:
        """Animals and objects that are mentioned in another way before the first "the dog", and all with "the"."""
        good = number = 0
        for noun in (*ANIMALS, *OBJECTS):
            mentions = [match[0].lower() for match in re.finditer(rf"\b(?:[Tt]he )?(?i:{noun})s?\b", text)]
            if any(mention.startswith("the ") for mention in mentions):
                number += 1
                good += not mentions[0].startswith("the ")
        return good, number

    def pronouns_fit(self, text: str) -> tuple[int, int]:
        """he and she outside speech for whom somebody fits in this sentence so far or the two before, and all.

        A pronoun that fits passes the mention on. Animals, and names whose gender the training stories do not tell, fit
        both.
        """
        genders = self.genders | {name: gender_of(noun) for name, noun in introduced_names(text).items()}
        last = {"she": -99, "he": -99}
        good = number = 0
        for place, (start, end) in enumerate(sentences(text)):
            for word in WORD.findall(_SPEECH.sub(" ", text[start:end])):
                word = bare(word)
                lower = word.lower()
                if lower in last:
                    number += 1
                    fits = place - last[lower] <= _NEAR
                    good += fits
                    if fits:
                        last[lower] = place
                    continue
                if lower in SHE | HE:
                    last[gender_of(lower)] = place
                elif word in self.names:
                    for gender in (genders[word],) if genders.get(word) in last else last:
                        last[gender] = place
                elif lower in ANIMALS or lower in ("friend", "child", "baby"):
                    last = dict.fromkeys(last, place)
        return good, number

    def references(self, text: str) -> tuple[int, int]:
        """The three counts above together: references that are kept, and all."""
        parts = [self.names_kept(text), self.introduced(text), self.pronouns_fit(text)]
        return sum(good for good, _ in parts), sum(number for _, number in parts)


def total(counts: Iterable[tuple[int, int]]) -> tuple[float, float]:
    """The sum of numerators and of denominators."""
    pairs = list(counts)
    return float(sum(good for good, _ in pairs)), float(sum(number for _, number in pairs))


def runs_of(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(n))))


def distinct(texts: Sequence[str], n: int) -> tuple[float, float]:
    """Different runs of n words in all texts of a prompt together, and all runs (Li et al. 2016, arXiv:1510.03055)."""
    found: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        found.update(runs_of(words_of(text), n))
    return float(len(found)), float(found.total())


def self_bleu(texts: Sequence[str]) -> tuple[float, float]:
    """Sum over the texts of the BLEU-4 of each against all others, and their number (Zhu et al. 2018, arXiv:1802.01886).

    A run length without a match counts as 0.1 matches, which is method 1 of Chen and Cherry 2014. Texts without
    words are left out; fewer than two texts give (0, 0).
    """
    rows = [words for text in texts if len(words := words_of(text)) > 3]
    if len(rows) < 2:
        return 0.0, 0.0
    logs = [0.0] * len(rows)
    for n in (1, 2, 3, 4):
        counted = [runs_of(words, n) for words in rows]
        most: dict[tuple[str, ...], list[int]] = {}
        for counts in counted:
            for run, count in counts.items():
                most[run] = sorted((*most.get(run, (0, 0)), count))[-2:]  # the two largest counts of a text
        for row, counts in enumerate(counted):
            # The largest count among the others: the second if this text has the first.
            matched = sum(
                min(c, most[run][0] if c == most[run][1] else most[run][1]) for run, c in counts.items()
            )
            logs[row] += math.log((matched or 0.1) / counts.total()) / 4
    scores = []
    for row, words in enumerate(rows):
        others = [len(other) for place, other in enumerate(rows) if place != row]
        nearest = min(others, key=lambda length: (abs(length - len(words)), length))
        scores.append(math.exp(logs[row] + min(0.0, 1 - nearest / len(words))))
    return sum(scores), float(len(scores))


def measures(lexicon: Lexicon, copies: RunIndex, texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """{measure: (numerator, denominator)} of the texts of one prompt, which are cut already."""
    return {
        "well_formed": total(map(lexicon.well_formed, texts)),
        "references": total(map(lexicon.references, texts)),
        "names_kept": total(map(lexicon.names_kept, texts)),
        "introduced": total(map(lexicon.introduced, texts)),
        "pronouns_fit": total(map(lexicon.pronouns_fit, texts)),
        "distinct_3": distinct(texts, 3),
        "self_bleu": self_bleu(texts),
        "copied_8": total(map(copies.copied_runs, texts)),
    }
