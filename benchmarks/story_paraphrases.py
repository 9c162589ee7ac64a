"""Seven kinds of edits by rule that change nothing that matters in a bundled story.

As in data/stories/contradictions.py, a rule takes a story and a generator and gives the edited text, or None where
its edit could do harm.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from data.stories import Story, world
from data.stories.contradictions import NEW_NAMES, PERSON, body, in_body, paragraphs, unite
from data.stories.grammar import pick

SYNONYMS = {
    "whispered": "murmured",
    "hurried": "rushed",
    "raced": "dashed",
    "wandered": "strolled",
    "giggled": "chuckled",
    "shouted": "yelled",
    "peeked": "peered",
    "began": "started",
    "noticed": "spotted",
    "quickly": "swiftly",
    "delighted": "overjoyed",
    "lovely": "beautiful",
    "all of a sudden": "suddenly",
    "at that moment": "just then",
    "everybody": "everyone",
    "nobody": "no one",
}
CONTRACTIONS = {
    "I am": "I'm",
    "I will": "I'll",
    "I have": "I've",
    "It is": "It's",
    "Let us": "Let's",
    "You are": "You're",
    "do not": "don't",
    "Do not": "Don't",
    "cannot": "can't",
    "What is": "What's",
}
ADDED = (
    "Somewhere a dog barked.",
    "A leaf fell to the ground.",
    "Far away, a bell rang.",
    "A bird flew past.",
)
ENDINGS = (
    "{They} walked home side by side and talked about the day.",
    "It was a day that {they} often thought of.",
    "{They} were happy and went home.",
)


def _weather(told: Story) -> tuple[int, int] | None:
    """Paragraph and sentence of the weather, which nothing else depends on."""
    start = (
        r"The (?:sky|sun|air|wind|clouds|light) |(?:A \w+ wind|Leaves|Bees|High|Far) |It was \w+ (?:in|on|at|by) |"
        rf"(?:In|On|At|By) the {told.facts.place}(?:, it smelled| was a smell) "
    )
    for p, line in enumerate(paragraphs(told.text)):
        for s, sentence in enumerate(line):
            about = re.match(start, sentence) and told.facts.place in sentence
            if s and about and not PERSON.search(sentence) and told.facts.object not in sentence:
                return p, s
    return None


def weather_moved(told: Story, rng: random.Random) -> str | None:
    """The weather comes right after the arrival, before who else is there."""
    place = _weather(told)
    if place is None:
        return None
    lines, (p, s) = paragraphs(told.text), place
    arrival = next(k for k, sentence in enumerate(lines[p]) if told.facts.place in sentence)
    if s - arrival < 2:
        return None
    lines[p].insert(arrival + 1, lines[p].pop(s))
    return unite(lines)


def weather_left_out(told: Story, rng: random.Random) -> str | None:
    """The weather is gone; another sentence names the place."""
    place = _weather(told)
    if place is None or len(re.findall(rf"\b{told.facts.place}\b", told.text)) < 2:
        return None
    lines, (p, s) = paragraphs(told.text), place
    del lines[p][s]
    return unite(lines)


def renamed(told: Story, rng: random.Random) -> str | None:
    """One of the two has another name of the same gender, from the first mention to the last."""
    person = pick(rng, [c for c in told.facts.characters if c.name in world.NAMES])
    known = [n for n, pronoun in world.OTHER_NAMES.items() if pronoun == person.pronoun]
    names = [
        n for n in pick(rng, (known, NEW_NAMES[person.pronoun])) if not re.search(rf"\b{n}\b", told.text)
    ]
    return re.sub(rf"\b{person.name}\b", pick(rng, names), told.text)


def synonyms(told: Story, rng: random.Random) -> str | None:
    """Two words or more have a synonym for them, wherever they stand."""
    text, changed = told.text, 0
    for word, other in SYNONYMS.items():
        new = re.sub(rf"\b{word}\b", other, text)
        new = re.sub(rf"\b{word.capitalize()}\b", other.capitalize(), new)
        changed += new != text
        text = new
    return text if changed >= 2 else None


def contractions(told: Story, rng: random.Random) -> str | None:
    """Everybody says "I'm" and "don't"."""
    pieces = told.text.split('"')
    for whole, short in CONTRACTIONS.items():
        pieces[1::2] = [re.sub(rf"\b{whole}(?= \w)", short, piece) for piece in pieces[1::2]]
    text = '"'.join(pieces)
    return text if text != told.text else None


def sentence_added(told: Story, rng: random.Random) -> str | None:
    """Something happens that touches nobody, where nobody listens for a noise."""
    if told.facts.plot == "noise":
        return None

    low, high = body(told)

    def change(paragraph, number):
        is_quiet = re.search(r"\b(?:quiet|still|[Nn]othing|\w*body|\w* one)\b", paragraph)
        return [] if is_quiet or number == high - low else [f"{paragraph} {pick(rng, ADDED)}"]

    return in_body(told, change, rng, first=1)


def another_ending(told: Story, rng: random.Random) -> str | None:
    """The last paragraph, which only says how happy everybody is, is another such sentence."""
    they = "we" if told.facts.voice == "first person" else "they"
    lines, (_, high) = told.text.split("\n"), body(told)
    lines[high] = pick(rng, ENDINGS).format(they=they, They=they.capitalize())
    return "\n".join(lines)


HARMLESS: dict[str, Callable] = {
    "weather moved": weather_moved,
    "weather left out": weather_left_out,
    "renamed throughout": renamed,
    "synonyms": synonyms,
    "contractions": contractions,
    "sentence added": sentence_added,
    "another ending": another_ending,
}
