"""Ten kinds of edits by rule that make a bundled story contradict itself.

A rule takes a story and a generator and gives the edited text, or None where its edit could be harmless by
chance: "Tim smiled" for "Lily smiled" contradicts nothing, '"Do not cry, Tim," said Tim' does. The rules know
the facts of each story: its characters, its object and its place.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from data.stories import Story, world
from data.stories.grammar import pick
from data.stories.reading import sentences

# Names that the story world does not have.
NEW_NAMES = {
    "she": ("Nora", "Ruby", "Alice", "Rosie", "Zoe"),
    "he": ("Oliver", "Hugo", "Felix", "Noah", "Oscar"),
}
OTHER_GENDER = {
    "he": "she",
    "she": "he",
    "him": "her",
    "his": "her",
    "himself": "herself",
    "herself": "himself",
}
OPPOSITE = {"wooden": "metal", "big": "tiny", "little": "huge", "new": "old"}
_SAY = r"(?:said|answered|whispered|replied|asked|cried|called|shouted)(?: out)?"
_PRONOUN = re.compile(r"\b(?:he|him|his|himself|she|her|herself)\b", re.IGNORECASE)
PERSON = re.compile(r"\b(?:he|him|his|she|her|they|them|their|we|us|our|I|me|my)\b")

# What cannot be true after each plot's outcome. N and S are the characters, m is N after a preposition.
DENIALS = {
    "lost": (
        "But nobody ever found the {o}.",
        "The {o} stayed lost for ever.",
        "{They} had to go home without the {o}, and it never came back.",
    ),
    "stuck": (
        "But the {o} never came down from the tree.",
        "The {o} still hung in the branches, where nobody could get it.",
        "{They} had to leave the {o} up in the tree for ever.",
    ),
    "broken": (
        "But nobody could mend the {o}.",
        "The {o} stayed broken for ever.",
        "In the end, the {o} was thrown away in pieces.",
    ),
    "dirty": (
        "But the mud never came off the {o}.",
        "The {o} stayed as muddy as before.",
        "Nobody could ever clean the {o}.",
    ),
    "wet": (
        "But the {o} never got dry again.",
        "The {o} stayed as wet as before.",
        "Water still dripped from the {o} at the end of the day.",
    ),
    "share": (
        "But {N} never let {S} touch the {o}.",
        "{S} did not get one turn with the {o}.",
        "{N} kept the {o} alone and shared it with nobody.",
    ),
    "skill": (
        "But {N} never learned to {do} the {o}.",
        "{N} could not {do} the {o} and never tried again.",
        "The {o} was too hard for {m} to the end.",
    ),
    "gift": (
        "But {N} never gave {S} the {o}.",
        "{S} never got the {o}.",
        "{S} had not been given anything at all.",
    ),
    "noise": (
        "But nobody ever found out what was in the {o}.",
        "But {they} ran home and never looked into the {o}.",
        "There had been nothing at all in the {o}.",
    ),
    "return": (
        "But {N} never gave the {o} back.",
        "{S} did not get the {o} back.",
        "{N} kept the {o} and told {S} nothing about it.",
    ),
    "hungry": (
        "But {S} had not got one bite of the {o}.",
        "{N} ate the whole {o} alone.",
        "{S} went to bed with an empty tummy, because {N} had not shared the {o}.",
    ),
    "lonely": (
        "But {N} had not met anybody that day.",
        "{N} never said a word to {S}.",
        "{S} never played with {m} or with the {o}.",
    ),
}
# The paragraph of each plot that tells the outcome. Without "share": who shared before may refuse today.
OUTCOME = dict.fromkeys("lost stuck broken dirty wet skill noise lonely".split(), 5)
OUTCOME |= dict.fromkeys("gift return hungry".split(), 3)
# Problems that no outcome of the other settles. A lost kite could hang in a tree, mud on a wet hat is washed off.
UNLIKE = {frozenset((a, b)) for a in ("lost", "stuck") for b in ("broken", "dirty", "wet")}
UNLIKE |= {frozenset(("broken", other)) for other in ("dirty", "wet")}


def paragraphs(text: str) -> list[list[str]]:
    """The sentences of each paragraph; a quotation of several sentences and its speaker are one."""
    lines = []
    for line in text.split("\n"):
        whole: list[str] = []
        for sentence in (s.text for s in sentences(line)):
            is_open = whole and whole[-1].count('"') % 2
            says = whole and whole[-1].endswith(('!"', '?"')) and re.match(rf"\w+ {_SAY}\b", sentence)
            if is_open or says:
                whole[-1] += f" {sentence}"
            else:
                whole.append(sentence)
        assert " ".join(whole) == line
        lines.append(whole)
    return lines


def unite(lines: list[list[str]]) -> str:
    """The text of these paragraphs, without those that have lost their last sentence."""
    return "\n".join(" ".join(line) for line in lines if line)


def body(told: Story) -> tuple[int, int]:
    """First and last paragraph without the frame, in which a grown-up tells the story."""
    last = told.text.count("\n")
    return (1, last - 1) if told.facts.order == "in a frame" else (0, last)


def names_in(told: Story) -> tuple[str, str]:
    hero, companion = told.facts.characters
    return hero.name, companion.name


def in_body(told: Story, change: Callable[[str, int], list[str]], rng, first: int = 0) -> str | None:
    """Draw one of the changed paragraphs that `change` offers for each paragraph of the body, from `first` on."""
    lines = told.text.split("\n")
    low, high = body(told)
    offers = [(n, new) for n in range(low + first, high + 1) for new in change(lines[n], n - low)]
    if not offers:
        return None
    number, new = pick(rng, offers)
    return "\n".join((*lines[:number], new, *lines[number + 1 :]))


def _tagged(paragraph: str, names: str) -> Iterator[tuple[list[str], int, re.Match]]:
    """Each quotation whose speaker follows it: the pieces between the marks, its number, the speaker's match."""
    pieces = paragraph.split('"')
    for number in range(1, len(pieces) - 1, 2):
        if tag := re.match(
            rf" (?:{_SAY} (?P<after>{names})|(?P<before>{names}) {_SAY})\b", pieces[number + 1]
        ):
            yield pieces, number, tag


def _speaker(tag):
    return tag["after"] or tag["before"]


def _with_speaker(pieces, number, tag, name) -> str:
    start, end = tag.span("after" if tag["after"] else "before")
    said = pieces[number + 1]
    return '"'.join((*pieces[: number + 1], said[:start] + name + said[end:], *pieces[number + 2 :]))


def wrong_name(told: Story, rng: random.Random) -> str | None:
    """One name stands for both: "Tim and Tim", "Tim gave it to Tim", '"Thank you, Tim," said Tim'."""
    hero, other = names_in(told)

    def change(paragraph, _):
        offers = [
            paragraph.replace(f"{a} and {b}", f"{a} and {a}", 1) for a, b in ((hero, other), (other, hero))
        ]
        for both in re.finditer(rf"\b({hero}|{other})\b[a-z ]{{2,30}} ({hero}|{other})\b(?!')", paragraph):
            # "Tim smiled while Lily sang" has two clauses, and so has what stands in two quotations.
            is_clause = not re.search(r"\b(?:and|while|when|that|until|who|how)\b", both[0])
            if is_clause and both[1] != both[2] and paragraph[: both.start()].count('"') % 2 == 0:
                offers.append(paragraph[: both.start(2)] + both[1] + paragraph[both.end(2) :])
        for pieces, number, tag in _tagged(paragraph, f"{hero}|{other}|I"):
            speaker = hero if _speaker(tag) == "I" else _speaker(tag)
            addressed = other if speaker == hero else hero
            if re.search(rf"(?:, |^){addressed}[,.!?]", pieces[number]):
                said = re.sub(rf"\b{addressed}\b", speaker, pieces[number])
                offers.append('"'.join((*pieces[:number], said, *pieces[number + 1 :])))
        return [offer for offer in offers if offer != paragraph]

    return in_body(told, change, rng)


def wrong_pronoun(told: Story, rng: random.Random) -> str | None:
    """He for she, or she for he, in a sentence before the companion comes, so that it can mean nobody else."""
    hero, other = told.facts.characters
    if told.facts.voice == "first person":
        return None
    lines, (low, _) = paragraphs(told.text), body(told)
    offers = []
    before = True
    for p in range(low, len(lines)):
        for s, sentence in enumerate(lines[p]):
            before = before and not re.search(rf"\b(?:{other.name}|{other.kind})\b", sentence)
            narrated = sentence.split('"')[::2]
            if before and (p, s) > (low, 0) and any(map(_PRONOUN.search, narrated)):
                offers.append((p, s))
    if not offers:
        return None
    p, s = pick(rng, offers)
    pieces = lines[p][s].split('"')
    pieces[::2] = [_other_gender(piece) for piece in pieces[::2]]
    lines[p][s] = '"'.join(pieces)
    return unite(lines)


def _other_gender(text: str) -> str:
    def other(match):
        word = match[0].lower()
        new = OTHER_GENDER.get(word)
        if word == "her":  # "gave her a red kite" or "took her kite"
            is_object = re.match(r"[.,!?]| an? ", text[match.end() :])
            new = "him" if is_object else "his"
        return new.capitalize() if match[0][0].isupper() else new

    return _PRONOUN.sub(other, text)


def wrong_speaker(told: Story, rng: random.Random) -> str | None:
    """The one to whom the object does not belong calls it "my kite"."""
    hero, other = names_in(told)
    facts = told.facts
    if facts.plot in ("gift", "noise"):  # a gift has two owners, the thing that makes a noise has none
        return None
    owner, borrower = (other, hero) if facts.plot == "return" else (hero, other)
    first = facts.voice == "first person"
    if first:
        owner, borrower = (other, "I") if facts.plot == "return" else ("I", other)

    def change(paragraph, _):
        return [
            _with_speaker(pieces, number, tag, borrower)
            for pieces, number, tag in _tagged(paragraph, owner)
            if re.search(rf"\b[Mm]y (?:\w+ )?{facts.object}\b", pieces[number])
            and not (borrower == "I" and tag["after"])  # "said I" is not said
        ]

    return in_body(told, change, rng)


def outcome_denied(told: Story, rng: random.Random) -> str | None:
    """A sentence before the last paragraph says that what has just happened never did."""
    hero, other = names_in(told)
    first, thing = told.facts.voice == "first person", told.facts.object
    sentence = pick(rng, DENIALS[told.facts.plot]).format(
        N="I" if first else hero,
        m="me" if first else hero,
        S=other,
        o=thing,
        do=world.SKILLS.get(thing, [""])[0],
        they="we" if first else "they",
        They="We" if first else "They",
    )
    lines = told.text.split("\n")
    _, high = body(told)
    lines[high] = f"{sentence} {lines[high]}"
    return "\n".join(lines)


def wrong_place(told: Story, rng: random.Random) -> str | None:
    """The narrator puts somebody, late in the story, at a place where nobody went."""
    place = told.facts.place
    known = told.text.find(place)
    others = [p for p in world.PLACES if not re.search(rf"\b{p}\b", told.text)]

    def change(paragraph, number):
        offers = []
        if known >= told.text.find(paragraph):  # the first mention is here or later
            return offers
        for mention in re.finditer(rf"\b({world.PLACES[place]}) the {place}\b", paragraph, re.IGNORECASE):
            sentence = next(s.text for s in sentences(paragraph) if mention[0] in s.text)
            is_said = paragraph[: mention.start()].count('"') % 2
            moves = re.search(r"\b(?:walk|wander|ran|went|came)", sentence)  # there, perhaps
            somebody = re.search(rf"\b(?:{'|'.join(names_in(told))})\b", sentence) or PERSON.search(sentence)
            if somebody and not is_said and not moves:
                new = pick(rng, others)
                at = world.PLACES[new].capitalize() if mention[1][0].isupper() else world.PLACES[new]
                offers.append(f"{paragraph[: mention.start()]}{at} the {new}{paragraph[mention.end() :]}")
        return offers

    return in_body(told, change, rng, first=1)


def wrong_look(told: Story, rng: random.Random) -> str | None:
    """The object has another colour, size or material than before."""
    looks, thing = told.facts.adjective, told.facts.object
    if looks in OPPOSITE:
        others = [OPPOSITE[looks]]
    elif looks in world.COLORS:
        others = [colour for colour in world.COLORS if not re.search(rf"\b{colour}\b", told.text)]
    else:
        return None
    mentions = list(re.finditer(rf"\b{looks} (?={thing}\b)", told.text))[1:]
    mentions = [m for m in mentions if not re.search(r"\ba $", told.text[: m.start()])]
    if not mentions:
        return None
    mention = pick(rng, mentions)
    return f"{told.text[: mention.start()]}{pick(rng, others)} {told.text[mention.end() :]}"


def nobody_known(told: Story, rng: random.Random) -> str | None:
    """Somebody who is not in the story speaks or acts in its second half."""
    names = names_in(told)
    pools = (tuple(world.GROWN_UPS), (*sorted(world.NAMES), *world.OTHER_NAMES), sum(NEW_NAMES.values(), ()))
    stranger = pick(
        rng, [n for n in pick(rng, pools) if not re.search(rf"\b{n}\b", told.text, re.IGNORECASE)]
    )
    low, high = body(told)

    def change(paragraph, number):
        if number == high - low:  # the end may look far ahead, where anybody may come
            return []
        offers = [_with_speaker(*found, stranger) for found in _tagged(paragraph, "|".join(names))]
        pieces = paragraph.split('"')
        for k in range(0, len(pieces), 2):
            for act in re.finditer(rf"(?<!and )\b(?:{'|'.join(names)})(?= \w+ed\b)", pieces[k]):
                new = pieces[k][: act.start()] + stranger + pieces[k][act.end() :]
                offers.append('"'.join((*pieces[:k], new, *pieces[k + 1 :])))
        return offers

    return in_body(told, change, rng, first=(high - low + 1) // 2)


def shuffled(text: str, rng: random.Random, low: int = 0, high: int | None = None) -> tuple[str, list[int]]:
    """Shuffle the sentences of the paragraphs low to high, except for the first and the last sentence.

    Returns the text, with as many sentences in each paragraph as before, and the new order.
    """
    lines = paragraphs(text)
    part = lines[low : None if high is None else high + 1]
    flat = [sentence for line in part for sentence in line]
    order = [0, *sorted(range(1, len(flat) - 1), key=lambda _: rng.random()), len(flat) - 1]
    moved = iter([flat[k] for k in order])
    new = [[next(moved) for _ in line] for line in part]
    return unite([*lines[:low], *new, *lines[low + len(part) :]]), order


def out_of_order(told: Story, rng: random.Random) -> str | None:
    """All sentences but the first and the last in another order, too far from theirs to be followed."""
    low, high = body(told)
    text, order = shuffled(told.text, rng, low, high)
    pairs = [(a, b) for k, a in enumerate(order) for b in order[k + 1 :]]
    kept = sum(a < b for a, b in pairs) / len(pairs)
    flat = [sentence for line in paragraphs(told.text)[low : high + 1] for sentence in line]
    named = [k for k in order if told.facts.characters[1].name in flat[k]]
    # At most 60 % of the pairs in their order, and the companion speaks or acts before she is introduced.
    return text if kept <= 0.6 and named and named[0] != min(named) else None


def joined(first: Story, second: Story) -> str | None:
    """The problem of one story and the outcome of another with the same characters and the same object."""
    a, b = first.facts, second.facts
    if a.characters != b.characters or frozenset((a.plot, b.plot)) not in UNLIKE:
        return None
    if (a.voice == "first person") != (b.voice == "first person") or "in a frame" in (a.order, b.order):
        return None
    return "\n".join(
        (*first.text.split("\n")[:4], *second.text.split("\n")[4:])
    )  # every story has seven lines


def halves(first: Story, second: Story) -> str:
    """The first half of one story's paragraphs and the second half of another's, whatever they tell."""
    a, b = first.text.split("\n"), second.text.split("\n")
    return "\n".join((*a[: len(a) // 2], *b[len(b) // 2 :]))


def before_its_cause(told: Story, rng: random.Random) -> str | None:
    """The paragraph with the outcome stands behind the first one, before what it is the outcome of."""
    facts = told.facts
    if facts.plot not in OUTCOME or facts.order == "problem first":  # the latter goes back in time by itself
        return None
    lines, (low, _) = told.text.split("\n"), body(told)
    outcome = lines.pop(low + OUTCOME[facts.plot])
    return "\n".join((*lines[: low + 1], outcome, *lines[low + 1 :]))


CONTRADICTIONS: dict[str, Callable] = {
    "name of the other": wrong_name,
    "pronoun of the other": wrong_pronoun,
    "speaker exchanged": wrong_speaker,
    "outcome denied": outcome_denied,
    "place changed late": wrong_place,
    "look changed late": wrong_look,
    "somebody from nowhere": nobody_known,
    "sentences shuffled": out_of_order,
    "problem and outcome of two stories": joined,
    "outcome before its cause": before_its_cause,
}
