"""Minimal pairs from held-out stories: a true text, and the same text with one edit that makes it wrong.

A model scores a pair if its log-probability of the true text, summed over all tokens, is the larger one. This is the
measure of BLiMP (Warstadt et al. 2020, arXiv:1912.00582), here on sentences that stand at the end of their story so far.

Grammar has some rules a kind, and at most one pair of each kind from a story:

agreement       "she was" and "she were", "Tom and Lily were" and "Tom and Lily was"
article         "a ball" and "an ball", "saw a big dog" and "saw big dog"
tense           "she ran" and "she run", "helped her friend find" and "helped her friend found"
word_order      "in the park" and "the in park", "the dog" and "dog the"
pronoun_case    "with him" and "with he", "They were" and "Them were"
pronoun_gender  "She" and "He", where the story so far has one person

Consistency takes something that two stories introduce early and resume later, and swaps them: a name for one of the
same kind, an animal for an animal, an object for an object. Each story is a pair with the other's word, so a model
that only knows which word is frequent is right in one of the two.

Most edits show in two neighbouring words, and a bigram model is right in nearly all of them. So a bigram model of other
held-out stories sorts the candidates, and half of the pairs of each kind are such that it is wrong. Then what a
model has above 50 % is what it knows beyond neighbouring words.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from evaluation.story_scores.references import Bigram, shuffled
from evaluation.story_scores.splitting import (
    ANIMALS,
    HE,
    OBJECTS,
    PRONOUNS,
    SHE,
    Span,
    bare,
    gender_of,
    introduced_names,
    sentences,
    words_of,
)

GRAMMAR = ("agreement", "article", "tense", "word_order", "pronoun_case", "pronoun_gender")
CONSISTENCY = ("name", "animal", "object")
DISTANCES = ((1, 1), (2, 3), (4, 7), (8, 999))  # sentences since the word was last there
EARLY = 4  # sentences in which a word may be introduced

# Verbs whose past differs from the stem.
_PAST = dict(
    pair.split(":")
    for pair in "go:went see:saw say:said run:ran take:took find:found get:got feel:felt know:knew come:came give:gave "
    "make:made eat:ate think:thought tell:told want:wanted play:played look:looked ask:asked like:liked love:loved "
    "smile:smiled jump:jumped walk:walked help:helped try:tried start:started pick:picked sit:sat fly:flew".split()
)
_STEM = {past: stem for stem, past in _PAST.items()}
_PLURAL = {"was": "were", "is": "are", "has": "have", "does": "do"}
_SINGULAR = {many: one for one, many in _PLURAL.items()}
_NOMINATIVE = {"him": "he", "them": "they", "He": "Him", "She": "Her", "They": "Them"}
_NOMINATIVE |= {"he": "him", "she": "her", "they": "them"}
_VOWEL_SOUND = re.compile(r"(?!uni|use|eu|one\b|once\b)[aeiou]")
_FINITE = "was|were|had|went|saw|wanted|said|felt|looked|did|could|liked|loved"
_AGREES = re.compile(r"\b(?:[Hh]e|[Ss]he|[Ii]t) (was|is|has)\b|\b(?:[Tt]hey|[Ww]e) (were|are|have)\b")
# Fish is its own plural, and cake, pie, rock and stone may go without an article.
_COUNT_NOUNS = {*ANIMALS, *OBJECTS, "girl", "boy", "friend"} - {"fish", "cake", "pie", "rock", "stone"}
_NOUN = rf"(?:[a-z]+ )?(?:{'|'.join(sorted(_COUNT_NOUNS))})"
_NOUN_AGREES = re.compile(rf"^The {_NOUN} (was|is|has)\b")
_BOTH_AGREE = re.compile(
    rf"^(?:[A-Z][a-z]+|The {_NOUN}) and (?:[A-Z][a-z]+|(?:the|his|her) {_NOUN}) (were|are|have)\b"
)
_ARTICLE = re.compile(r"\b([Aa]n?) ([a-z]+)")
_COUNTED = re.compile(rf"(?<!\bher )\b(?:a|an|the) (?={_NOUN}\b(?! and\b))")  # "gave her plane" is right
_FORM_AFTER = re.compile(r"\b(?:to|could|did not|didn't|would) ([a-z]+)\b")
_PAST_AFTER = re.compile(r"^(?:He|She|It) ([a-z]+)\b")
_ANY_STEM = rf"({'|'.join(_PAST)})\b"
_FORM_AT_DISTANCE = re.compile(
    rf"\b(?:made|make|let|helped|help) (?:(?:the|her|his|their|a) (?:[a-z]+ )?[a-z]+|[A-Z][a-z]+|him|them) {_ANY_STEM}"
    rf"|\b[Dd]id (?:the [a-z]+|[A-Z][a-z]+|he|she|they) {_ANY_STEM}"
)
_SWAPPED = re.compile(  # "and the open box" might become "and open the box"
    r"(?<!\band )\b(?:in|on|to|with|at|of|from|the|a|an|their) (?:the|a|an|his|their|[a-z]{3,})\b"
)
_CASE = re.compile(
    rf"\b(?:with|at|for|of|from|to) (?:[A-Z][a-z]+ and )?(him|them)\b(?! and\b)|^(He|She|They)(?= (?:{_FINITE})\b)"
    rf"|\b(?:saw|knew|heard|thought|because|that|when|if|until|before|after) (he|she|they)(?= (?:{_FINITE})\b)"
)
_SUBJECT = re.compile(r"^(He|She)(?= [a-z])")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+")

Edit = tuple[int, int, str]  # start and end in the sentence, and what takes its place


class Pair(NamedTuple):
    """good and bad stand after the context. The texts to compare are context + good and context + bad."""

    kind: str
    story: int  # number of the held-out story
    context: str
    good: str
    bad: str
    distance: int = 0  # consistency: sentences since the word was last there


def agreement(sentence: str, context: str) -> Iterator[Edit]:
    for match in (
        match for rule in (_AGREES, _NOUN_AGREES, _BOTH_AGREE) for match in rule.finditer(sentence)
    ):
        place = match.lastindex or 1
        if re.search(r"\b(if|wish|wished|as though)\W*$", sentence[: match.start()].lower()):
            continue  # "if it were" is right
        verb = match[place]
        yield *match.span(place), _PLURAL.get(verb) or _SINGULAR[verb]


def article(sentence: str, context: str) -> Iterator[Edit]:
    for match in _ARTICLE.finditer(sentence):
        written, word = match[1], match[2]
        # Words with h are said in two ways, and single letters are names of letters.
        sounds = word[0] == "h" or len(word) < 2 or bool(_VOWEL_SOUND.match(word)) != (written[1:] == "n")
        if not sounds:
            yield *match.span(1), written[0] if len(written) == 2 else f"{written}n"
    for match in _COUNTED.finditer(sentence):
        yield *match.span(), ""


def tense(sentence: str, context: str) -> Iterator[Edit]:
    for match in (*_FORM_AFTER.finditer(sentence), *_FORM_AT_DISTANCE.finditer(sentence)):
        place = match.lastindex or 1
        if match[place] in _PAST:
            yield *match.span(place), _PAST[match[place]]
    for match in _PAST_AFTER.finditer(sentence):
        if match[1] in _STEM:
            yield *match.span(1), _STEM[match[1]]


def word_order(sentence: str, context: str) -> Iterator[Edit]:
    for match in _SWAPPED.finditer(sentence):
        first, second = match[0].split()
        preposition = first in ("in", "on", "to", "with", "at", "of", "from")
        determiner = second in ("the", "a", "an", "his", "their")
        if (
            preposition == determiner
        ):  # a preposition before a determiner, or a determiner before another word
            yield *match.span(), f"{second} {first}"


def pronoun_case(sentence: str, context: str) -> Iterator[Edit]:
    for match in _CASE.finditer(sentence):
        place = match.lastindex or 1
        yield *match.span(place), _NOMINATIVE[match[place]]


def pronoun_gender(sentence: str, context: str) -> Iterator[Edit]:
    match = _SUBJECT.match(sentence)
    if match is None:
        return
    words = set(words_of(context))
    found = {PRONOUNS[word] for word in words & PRONOUNS.keys()} | {gender_of(w) for w in words & (SHE | HE)}
    names = set(_NAME.findall(context)) - {"I"}
    if found == {match[1].lower()} and len(names) <= 1 and words & (SHE | HE):
        yield *match.span(1), "She" if match[1] == "He" else "He"


RULES: dict[str, Callable[[str, str], Iterator[Edit]]] = {
    "agreement": agreement,
    "article": article,
    "tense": tense,
    "word_order": word_order,
    "pronoun_case": pronoun_case,
    "pronoun_gender": pronoun_gender,
}


class Sorter:
    """Says whether a bigram model of other held-out stories is right in a pair."""

    def __init__(self, texts: Sequence[str]):
        # The stories with even numbers judge those with odd ones, so that no story judges itself.
        self.models = [Bigram(texts[start::2]) for start in (1, 0)]

    def is_right(self, pair: Pair) -> bool:
        bigram, before = self.models[pair.story % 2], pair.context[-40:]  # what is further away cancels
        return bigram.nats(before + pair.good) < bigram.nats(before + pair.bad)


def grammar_pairs(texts: Sequence[str], each: int, seed: int, sorter: Sorter) -> list[Pair]:
    """At most `each` pairs of each kind, half of them hard for a bigram model, in an order that the seed decides."""
    draw = random.Random(f"grammar {seed}")
    found: dict[str, tuple[list[Pair], list[Pair]]] = {kind: ([], []) for kind in GRAMMAR}
    for number in draw.sample(range(len(texts)), len(texts)):
        wanted = [kind for kind in GRAMMAR if min(map(len, found[kind])) < each // 2]
        if not wanted:
            break
        text = texts[number]
        spans = [(text[:start], text[start:end]) for start, end in sentences(text)]
        for kind in wanted:
            choices = [(*span, edit) for span in spans for edit in RULES[kind](span[1], span[0])]
            draw.shuffle(choices)
            for context, sentence, (start, end, other) in choices:
                pair = Pair(kind, number, context, sentence, sentence[:start] + other + sentence[end:])
                side = found[kind][sorter.is_right(pair)]
                if len(side) < each // 2:
                    side.append(pair)
                    break
    return [pair for sides in found.values() for pair in balanced(*sides)]


def balanced(wrong: list[Pair], right: list[Pair]) -> list[Pair]:
    """As many pairs in which the bigram model is wrong as pairs in which it is right."""
    most = min(len(wrong), len(right))
    return wrong[:most] + right[:most]


class Mention(NamedTuple):
    """A word that a story introduces early and resumes in later sentences."""

    kind: str
    group: str  # words of one group take each other's place
    word: str
    later: tuple[tuple[Span, int], ...]  # a sentence with the word, and how many sentences since the last one


def mentions(text: str) -> list[Mention]:
    """What the story introduces in its first sentences and resumes after at least one sentence."""
    spans = sentences(text)
    early = text[: spans[min(EARLY, len(spans)) - 1].end] if spans else ""
    found = [
        ("name", gender_of(noun), name, rf"\b{name}\b") for name, noun in introduced_names(early).items()
    ]
    for kind, nouns in (("animal", ANIMALS), ("object", OBJECTS)):
        for noun in nouns:
            if re.search(rf"\b[Aa]n? (?:[a-z]+,? ){{0,2}}{noun}\b", early):
                found.append((kind, kind, noun, rf"\b[Tt]he {noun}\b"))
    made = []
    for kind, group, word, pattern in found:
        any_form = re.compile(rf"\b{word}(?:s|'s|\u2019s)?\b", re.IGNORECASE)
        last, later = None, []
        for number, (start, end) in enumerate(spans):
            sentence = text[start:end]
            if last is not None and re.search(pattern, sentence):
                later.append((spans[number], number - last))
            if any_form.search(sentence):
                last = number
        if later:
            made.append(Mention(kind, group, word, tuple(later)))
    return made


def bin_of(distance: int) -> str:
    """The name of the range of distances, such as "2-3"."""
    for first, last in DISTANCES:
        if first <= distance <= last:
            return f"{first}+" if last == 999 else str(first) if first == last else f"{first}-{last}"
    raise ValueError(f"a distance must be from 1 to 999 sentences, got {distance}")


def consistency_pairs(texts: Sequence[str], each: int, seed: int, sorter: Sorter) -> list[Pair]:
    """At most `each` pairs of each kind, two from every two stories that exchange a word.

    A bigram model is right in one of the two.
    """
    draw, found = random.Random(f"consistency {seed}"), defaultdict(list)
    waiting: defaultdict[tuple[str, str], list[tuple[int, Mention]]] = defaultdict(list)
    for number in draw.sample(range(len(texts)), len(texts)):
        there = mentions(texts[number])
        for kind in CONSISTENCY:
            own = [mention for mention in there if mention.kind == kind]
            if not own or len(found[kind]) + 2 > each:
                continue
            mention = draw.choice(own)
            queue = waiting[kind, mention.group]
            for place, (other, theirs) in enumerate(queue[-50:], max(0, len(queue) - 50)):
                if not _exchange(texts, number, mention, other, theirs):
                    continue
                twins = (
                    _swapped(texts[number], number, mention, theirs.word, draw),
                    _swapped(texts[other], other, theirs, mention.word, draw),
                )
                if sorter.is_right(twins[0]) != sorter.is_right(twins[1]):
                    found[kind] += twins
                    del queue[place]
                    break
            else:
                queue.append((number, mention))
        if all(len(found[kind]) + 2 > each for kind in CONSISTENCY):
            break
    return [pair for kind in CONSISTENCY for pair in found[kind]]


def _exchange(texts: Sequence[str], number: int, mention: Mention, other: int, theirs: Mention) -> bool:
    """Whether neither story has the other's word."""
    return (
        theirs.word.lower() not in texts[number].lower() and mention.word.lower() not in texts[other].lower()
    )


def _swapped(text: str, number: int, mention: Mention, other: str, draw: random.Random) -> Pair:
    """A pair whose last sentence is one of the later ones, from a range of distances drawn first."""
    by_range = defaultdict(list)
    for place in mention.later:
        by_range[bin_of(place[1])].append(place)
    (start, end), distance = draw.choice(by_range[draw.choice(sorted(by_range))])
    sentence = text[start:end]
    bad = re.sub(rf"\b{mention.word}\b", other, sentence)
    return Pair(mention.kind, number, text[:start], sentence, bad, distance)


def fingerprint(pairs: Sequence[Pair]) -> str:
    """sha256 of the pairs: scores of equal fingerprints compare."""
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def with_other_context(pairs: Sequence[Pair], texts: Sequence[str], how: str, seed: int) -> list[Pair]:
    """The pairs behind another context, in which a model that uses the context loses what it knows from there.

    how: "shuffled" puts the sentences of the context in another order (a context of one or two sentences stays);
    "joined" takes as many sentences from the beginning of another story that has neither word.
    """
    draw, made = random.Random(f"{how} {seed}"), []
    for pair in pairs:
        context = pair.context
        end = context[len(context.rstrip()) :]
        if how == "shuffled":
            context = shuffled(context, draw) or context.rstrip()
        else:
            edited = set(map(bare, set(words_of(pair.good)) ^ set(words_of(pair.bad))))  # the two words
            wanted = len(sentences(context))
            for number in draw.sample(range(len(texts)), min(200, len(texts))):
                spans = sentences(texts[number])
                begin = texts[number][: spans[wanted - 1].end] if len(spans) >= wanted else ""
                if number != pair.story and begin and not any(word in begin.lower() for word in edited):
                    context = begin
                    break
            else:
                continue  # no story is without these words
        made.append(pair._replace(context=context.rstrip() + end))
    return made
