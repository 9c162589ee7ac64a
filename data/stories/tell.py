"""Tell story number `index`: choose who, what, where and how, then fill the beats of a plot."""

import itertools
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from data.stories import phrases, world
from data.stories.grammar import expand, pick
from data.stories.plots import PLOTS, Plot

SEED = 0  # seed of the whole story world; another value gives other stories
VOICES = ("plain",) * 9 + ("dialogue",) * 4 + ("storyteller",) * 3 + ("first person",) * 3
HOOK_SHARE, FRAME_SHARE = 0.2, 0.1
OPTIONAL_SHARE, ASIDE_SHARE, MORAL_SHARE = 0.4, 0.6, 0.25
SKY_SHARE = 0.2
MIN_WORDS, MAX_WORDS = 80, 300
PRONOUNS = {
    "he": ("he", "him", "his", "himself"),
    "she": ("she", "her", "her", "herself"),
    "I": ("I", "me", "my", "myself"),
}
VERBS = {
    "said": "{said|said|said|answered|whispered|replied}",
    "asked": "{asked|asked|asked|said|whispered}",
    "cried": "{cried|called|shouted|called out|cried out}",
}
_SLOT = re.compile(r"\$[A-Za-z]+")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a story is about."""

    plot: str
    voice: str
    order: str  # straight, problem first, in a frame
    characters: tuple[world.Person, world.Person]  # the main character first
    adjective: str
    object: str
    place: str


class Story(NamedTuple):
    text: str
    facts: Facts


def story(index: int) -> Story:
    """Return story number `index`: the same text on every machine and at every time."""
    plot = pick(random.Random(f"{SEED}/{index}"), PLOTS)
    for attempt in itertools.count():
        told = _tell(plot, random.Random(f"{SEED}/{index}/{attempt}"))
        if _is_well_told(told):
            return told


def _is_well_told(told: Story) -> bool:
    """Whether the story names everybody and everything at least twice, and has the right length."""
    facts = told.facts
    named = [c.name for c in facts.characters if c.name in world.NAMES]
    words = _WORD.findall(told.text)
    seen = f"{facts.adjective} {facts.object}" in told.text
    repeated = all(words.count(word) >= 2 for word in (*named, facts.object, facts.place))
    return seen and repeated and MIN_WORDS <= len(told.text.split()) <= MAX_WORDS


def _tell(plot, rng):
    voice = pick(rng, VOICES)
    order = "straight"
    if plot.hook and rng.random() < HOOK_SHARE:
        order = "problem first"
    elif voice in ("plain", "dialogue") and rng.random() < FRAME_SHARE:
        order = "in a frame"
    cast = pick(rng, [cast for cast in world.CASTS if _thing(cast, plot)])
    thing = _thing(cast, plot)
    adjective = world.FOODS.get(thing) or world.OBJECTS[thing][0]
    slots = _slots(rng, plot, voice, cast, thing, adjective)
    pools = _pools(plot, voice)
    beats = _hooked(plot.beats) if order == "problem first" else plot.beats
    paragraphs = []
    for paragraph in beats:
        sentences = []
        for beat in paragraph:
            if _is_told(beat, voice, rng):
                sentences.append(_sentence(pools[beat.rstrip("?")], slots, voice, cast.companion, rng))
        if sentences:
            paragraphs.append(" ".join(sentences))
    # A place that is named twice lets the checker notice a wrong one.
    there = [number for number, part in enumerate(paragraphs) if cast.place in part]
    if there and (rng.random() < SKY_SHARE or len(there) < 2):
        paragraphs[there[0]] += " " + _sentence(phrases.SKY, slots, voice, cast.companion, rng)
    if order == "in a frame":
        paragraphs.insert(0, expand(pick(rng, phrases.FRAME_OPEN), slots, rng))
        paragraphs.append(expand(pick(rng, phrases.FRAME_CLOSE), slots, rng))
    facts = Facts(
        plot=plot.name,
        voice=voice,
        order=order,
        characters=(cast.hero, cast.companion),
        adjective=adjective,
        object=thing,
        place=cast.place,
    )
    return Story("\n".join(paragraphs), facts)


def _thing(cast, plot):
    """The thing of this cast that the plot can be about, or None."""
    if _relation(cast.companion) not in plot.others:
        return None
    if plot.use == "food":
        return cast.food
    if plot.use == "skill":
        return cast.thing if cast.thing in world.SKILLS else None
    return cast.thing if plot.use in world.OBJECTS[cast.thing][1] else None


def _relation(companion):
    """Who the companion is to the hero: family or friend."""
    return "family" if companion.name in world.GROWN_UPS else "friend"


def _slots(rng, plot, voice, cast, thing, adjective) -> Mapping[str, str]:
    main, other, place, first = cast.hero, cast.companion, cast.place, voice == "first person"
    n, him, his, himself = PRONOUNS["I" if first else main.pronoun]
    s, shim, shis, _ = PRONOUNS[other.pronoun]
    grown = pick(rng, [name for name in ("Grandma", "Grandpa", "Mom", "Dad") if name != other.name])
    slots = {
        **phrases.WORDS,
        "time": pick(rng, phrases.TIMES),
        "fine": pick(rng, phrases.FINE),
        "lesson": phrases.LESSONS.get(plot.name, phrases.LESSONS["help"]),
        "N": "I" if first else main.name,
        "M": "I" if first else "{$N|$N|$n}",
        "V": main.name,
        "Ns": "my" if first else f"{main.name}'s",
        "Nm": "me" if first else main.name,
        "n": n,
        "him": him,
        "his": his,
        "himself": himself,
        "K": main.kind,
        "S": other.name,
        "T": "{$S|$S|$s}",
        "Ss": f"{other.name}'s",
        "s": s,
        "shim": shim,
        "shis": shis,
        "they": "we" if first else "they",
        "them": "us" if first else "them",
        "their": "our" if first else "their",
        "o": thing,
        "adj": adjective,
        "ao": f"a {adjective} {thing}",
        "O": "{the|$his} {$adj |}$o",
        "p": place,
        "at_p": f"{world.PLACES[place]} the {place}",
        "to_p": f"to the {place}",
        "teller": grown,
        "ssadly": phrases.WORDS["sadly"].replace("$his", "$shis"),
        "knownS": _known(other),
        "newS": _new(other),
    }
    for verb, ways in VERBS.items():
        slots[f"S{verb}"] = f"{{$S {ways}|{ways} $S}}"
        slots[f"N{verb}"] = f"I {ways}" if first else f"{{$N {ways}|{ways} $N}}"
    if thing in world.SKILLS:
        slots["do"], slots["doing"], slots["did"] = world.SKILLS[thing]
        slots["Doing"] = slots["doing"].capitalize()
    return slots


def _known(other):
    if _relation(other) == "family":
        return f"$his {other.kind}"
    of_a_kind = f" the {other.kind}" if other.kind in world.ANIMALS else ""
    return f"$his {{good |best |dear |old |}}friend $S{of_a_kind}"


def _new(other):
    if _relation(other) == "family":
        return _known(other)
    return f"a {{$kind |}}{{little |young |small |}}{other.kind} {{named|called}} $S"


def _pools(plot: Plot, voice):
    pools = {
        "own": phrases.OWN,
        "arrive": phrases.ARRIVE,
        "arrive_bare": phrases.ARRIVE_BARE,
        "back": phrases.BACK,
        "early": phrases.WITH_OTHER,
        "late": phrases.OTHER_COMES,
        "sad": phrases.SAD,
        "ask": phrases.ASK,
        "offer": phrases.HELP_OFFER,
        "glad": phrases.GLAD,
        "reply": phrases.REPLY,
        "moral": phrases.MORAL,
        "aside": phrases.ASIDE,
        **plot.pools,
    }
    first = voice == "first person"
    if voice == "storyteller":
        pools["intro"] = phrases.INTRO_STORYTELLER
    else:
        pools["intro"] = phrases.INTRO_FIRST if first else phrases.INTRO
    ends = phrases.END_STORYTELLER if voice == "storyteller" else phrases.END
    if not plot.kept:
        ends = tuple(end for end in ends if not {"$o", "$O", "$X"} & set(_SLOT.findall(end)))
    pools["end"] = ends
    return pools


def _hooked(beats):
    """The beats in the order "problem first": the hook follows the intro, then the rest of the plot."""
    (_, *rest), *others = beats
    later = [tuple("back" if beat == "arrive" else beat for beat in paragraph) for paragraph in others]
    return (("intro", "hook"), *later)


def _is_told(beat, voice, rng):
    name = beat.rstrip("?")
    if name == "aside":
        return voice == "storyteller" and rng.random() < ASIDE_SHARE
    if name == "moral":
        return rng.random() < MORAL_SHARE
    return not beat.endswith("?") or rng.random() < OPTIONAL_SHARE


def _sentence(pool, slots, voice, other, rng):
    if voice == "dialogue":
        pool = [template for template in pool if '"' in template] or pool
    while True:  # until the sentence calls nobody of the family a friend
        template = pick(rng, pool)
        if voice == "first person":
            template = template.replace("$N and $S", "$S and $N")
        text = expand(template, slots, rng)
        if _relation(other) != "family" or "friend" not in text:
            return text
