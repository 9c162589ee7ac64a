"""Tasks from the story world: three words to use, a feature to have, often a summary, and a story that answers.

The words are the thing and the place of the story, and a word of its plot: they decide much of the text, above all in
the half of the prompts that have no summary. Words that decide a few tokens among two hundred, such as those that a
story has by chance, are hardly learned by a small model (benchmarks/LOG.md). A thing has one place (world.py), so a
combination is a thing with a word of a plot. Of all plots but one (which has two things) one combination is held out:
no training prompt has it, and validation tasks, about the validation stories, have no others; each of their prompts
occurs once. A training story with a held-out combination is told for another one, and is not left out: without the
stories about a drum that is "lost", the model would learn that a drum is never "lost".

A response begins with a line break, so that prompt and story together read as one text. Whether a story has a
feature is decided by its text alone, so that a generated story is judged by the same rule.
"""

import itertools
import random
import re
from collections.abc import Callable, Sequence

from data.examples import Example
from data.stories import TRAIN_STORIES, VALIDATION_STORIES, VERSION, Facts, Story, story, world

# Words that most stories of a plot have, and few others. No two plots share one.
PLOT_WORDS = {
    "lost": ("lost",),
    "stuck": ("stuck", "tree"),
    "broken": ("broke", "broken"),
    "dirty": ("clean", "mud", "dirty"),
    "wet": ("wet", "dry"),
    "share": ("share", "turn"),
    "skill": ("could",),
    "gift": ("make",),
    "noise": ("afraid", "scared"),
    "return": ("gave", "back"),
    "hungry": ("half", "hungry"),
    "lonely": ("lonely",),
}
HELD_OUT = {  # (thing, word of a plot); one of each plot but noise, which has two things
    ("drum", "lost"),
    ("crown", "stuck"),
    ("robot", "broke"),
    ("boat", "dirty"),
    ("scarf", "dry"),
    ("bike", "share"),
    ("plane", "could"),
    ("hat", "make"),
    ("train", "gave"),
    ("carrot", "half"),
    ("kite", "lonely"),
}
SUMMARY_SHARE = 0.5  # so many of the training prompts have a summary
TASKS_VERSION = 8  # changes with any task; a run resumes only on the tasks that it began with

STRIDE = 101  # prime, so that it meets every story, and neighbors do not go on to the same one
MANY_SPEECHES = 5  # more than half of the stories have fewer
FEATURES: dict[str, str] = {  # name: how a prompt asks for it
    "dialogue": "They talk a lot.",
    "first person": "I tell it.",
    "lesson": "It has a lesson.",
    "frame": "It is a story in a story.",
}
_QUOTE = re.compile(r'"[^"]*"')
_I = re.compile(r"\b(?:I|me|my)\b")
_LESSON = re.compile(r"\b(?:learned|found out|knew|knew now|understood|saw|said|know|see) that\b")
_TELLER = re.compile(r"\b(?:Grandma|Grandpa|Mom|Dad)\b")
SUMMARIES = {  # plot: N and S are the characters, A the thing with its adjective, P the place
    "lost": "{N} lost {A} {P}, and {S} found it.",
    "stuck": "{N} had {A} that got stuck {P}, and {S} got it down.",
    "broken": "{N} broke {A} {P}, and {S} helped to fix it.",
    "dirty": "{N} had {A} that got dirty {P}, and {S} helped to wash it.",
    "wet": "{N} had {A} that got wet {P}, and {S} helped to dry it.",
    "share": "{N} did not want to share {A} {P}, and then {S} had a turn.",
    "skill": "{N} had {A} and wanted to learn {P}, and {S} helped.",
    "gift": "{N} made {A} for {S}, who was {P}.",
    "noise": "{N} and {S} heard something in {A} {P}.",
    "return": "{N} found {A} {P} and gave it back to {S}.",
    "hungry": "{S} was hungry {P}, and {N} shared {A}.",
    "lonely": "{N} was alone with {A} {P} and met {S}.",
}


class Tasks(Sequence[Example]):
    """A training task for each of the first `number` stories, made when it is read."""

    def __init__(self, number: int):
        self._number = number

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> Example:
        """The task about the story with that index, or if that has no feature, about one further on."""
        if not 0 <= index < self._number:
            raise IndexError(index)
        rng = random.Random(f"{index}")
        for step in itertools.count():
            told = story((index + STRIDE * step) % self._number)
            if features := features_of(told.text):
                look = (told.facts.object, told.facts.place, told.facts.adjective)
                asked = [words for words in combinations_in(told) if not is_held_out(words)] or [look]
                words, feature = rng.choice(asked), rng.choice(features)
                before = summary(told.facts) if rng.random() < SUMMARY_SHARE else None
                return _task(told, words, feature, before, f"task {index} of the story world")


def _held_out() -> list[Example]:
    """A task for each prompt with a held-out combination for which a validation story exists, in a random order."""
    found: dict[str, Example] = {}
    for number in range(TRAIN_STORIES, TRAIN_STORIES + VALIDATION_STORIES):
        told = story(number)
        asked = filter(is_held_out, combinations_in(told))
        for words, feature, before in itertools.product(
            asked, features_of(told.text), (None, summary(told.facts))
        ):
            task = _task(told, words, feature, before, f"held-out task {len(found)} of the story world")
            found.setdefault(task.prompt, task)
    return random.Random(0).sample(list(found.values()), len(found))


def _task(told: Story, words: Sequence[str], feature: str, before: str | None, name: str) -> Example:
    task = {"words": list(words), "feature": feature, "summary": before}
    return Example(prompt_of(**task), f"\n{told.text}", task, name)


def tasks(split: str) -> tuple[Sequence[Example], str]:
    """The "train" or the "validation" tasks, and their identity."""
    found = _held_out() if split == "validation" else Tasks(TRAIN_STORIES)
    return found, f"{len(found):,} {split} tasks {TASKS_VERSION} of bundled stories {VERSION}"


def prompt_of(words: Sequence[str], feature: str, summary: str | None = None) -> str:
    """The prompt of a task. words: three."""
    first, second, third = words
    asked = f"A story with {first}, {second} and {third}. {FEATURES[feature]}"
    return f"{asked} {summary}" if summary else asked


def summary(facts: Facts) -> str:
    """What happens in a story, in one sentence."""
    hero, other = (person.name for person in facts.characters)
    thing, place = f"a {facts.adjective} {facts.object}", f"{world.PLACES[facts.place]} the {facts.place}"
    return SUMMARIES[facts.plot].format(N=hero, S=other, A=thing, P=place)


def combinations_in(told: Story) -> list[tuple[str, str, str]]:
    """The thing and the place of a story, with each word of its plot that its text has."""
    there, facts = words_of(told.text), told.facts
    return [(facts.object, facts.place, word) for word in PLOT_WORDS[facts.plot] if word in there]


def features_of(text: str) -> list[str]:
    """The features that a text has."""
    return [name for name in FEATURES if has_feature(text, name)]


def is_held_out(words: Sequence[str]) -> bool:
    """Whether a combination of words is one that no training prompt has."""
    thing, _, word = words
    return (thing, word) in HELD_OUT


def words_of(text: str) -> set[str]:
    """The words of a text, in lower case."""
    return set(re.findall(r"\w+", text.lower()))


def words_used(text: str, words: Sequence[str]) -> float:
    """The share of these words that a text has, each as a whole word in this form, in any case."""
    there = words_of(text)
    return sum(word.lower() in there for word in words) / len(words)


def has_feature(text: str, name: str) -> bool:
    """Whether a text has a feature. Raises KeyError for an unknown one."""
    return _HAS[name](text)


def _is_framed(text: str) -> bool:
    first = text.strip().split("\n")[0]
    return "story" in first and _TELLER.search(first) is not None


# dialogue: five or more speeches.  first person: I, me or my at least three times outside of speeches; a narrator
# who turns to the listener says "I" once or twice.  lesson: somebody learns "that ..." in the last two paragraphs.
# frame: somebody of the family begins to tell a story in the first paragraph.
_HAS: dict[str, Callable[[str], bool]] = {
    "dialogue": lambda text: text.count('"') >= 2 * MANY_SPEECHES,
    "first person": lambda text: len(_I.findall(_QUOTE.sub("", text))) >= 3,
    "lesson": lambda text: _LESSON.search("\n".join(text.strip().split("\n")[-2:])) is not None,
    "frame": _is_framed,
}
