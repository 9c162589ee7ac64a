"""What happens to things."""

import re
from typing import NamedTuple

from data.stories.checker.report import Problem
from data.stories.checker.things import OBJECTS
from data.stories.reading import Sentence, in_lower_case


class State(NamedTuple):
    begins: re.Pattern
    ends: re.Pattern  # certainly ends it
    presupposes: re.Pattern  # is wrong unless the state has begun
    lasts: re.Pattern  # is wrong after the state has ended


def any_of(*patterns: str) -> re.Pattern:
    return re.compile(rf"\b(?:{'|'.join(patterns)})\b")


_OBJECT = "|".join(sorted(OBJECTS))
STATES = {
    "broken": State(
        begins=any_of(
            rf"(?:{_OBJECT}|it|and|he|she|i|they|we|toy|then) broke"
            r"(?! (?:it|(?:the|that) (?:\w+ )?\w+) (?:in|down))",
            r"broken|breaks|came apart|fell apart|torn|ripped",
        ),
        ends=any_of(r"mended|fixed|repaired|whole again|good as new"),
        presupposes=any_of(r"mended|repaired|whole again"),
        lasts=any_of(r"still broken|the broken|(?:is|was) broken"),
    ),
    "dirty": State(
        begins=any_of(r"dirty|muddy|full of mud|in the mud|into the mud"),
        ends=any_of(r"clean again|all clean|nice and clean"),
        presupposes=any_of(r"clean again"),
        lasts=any_of(r"still (?:dirty|muddy)"),
    ),
    "wet": State(
        begins=any_of(r"got wet|(?:all|so|very|was|is|too) wet|soaked|still wet|the wet"),
        ends=any_of(r"dry again|all dry|warm and dry"),
        presupposes=any_of(r"dry again|dried off"),
        lasts=any_of(r"still wet"),
    ),
    "lost": State(
        begins=any_of(
            r"lost|missing|nowhere|(?:cannot|could not|couldn't|can't) find",
            rf"(?:{_OBJECT}|it|toy|they|all) (?:is|was|were) (?:gone|not there)",
        ),
        ends=any_of(r"had found|found (?:the|his|her|my)|i found"),
        presupposes=any_of(r"found (?:it|the \w+|the \w+ \w+) (?:again|at last)"),
        lasts=any_of(r"still (?:lost|missing)"),
    ),
    "stuck": State(
        begins=any_of(r"stuck|(?:is|was|got) caught"),
        ends=any_of(r"was free|came loose|down came"),
        presupposes=any_of(r"got free|was free again"),
        lasts=any_of(r"still stuck"),
    ),
}


def check_states(read: list[Sentence]) -> list[Problem]:
    """A mended thing must not be broken unless it breaks again, and only a broken thing can be mended."""
    problems = []
    for name, state in STATES.items():
        begun = ended = False
        for sentence in read:
            said = in_lower_case(sentence)
            if ended and state.lasts.search(said) and not _again(said):
                problems.append(Problem("state", f"it was not {name} any more", sentence.text))
                ended = False
            if state.begins.search(said):
                begun, ended = True, False
            elif not begun and state.presupposes.search(said):
                problems.append(Problem("state", f"nothing had been {name}", sentence.text))
                begun = True
            if begun and state.ends.search(said) and not re.search(r"\b(?:not|never|cannot|could)\b", said):
                ended = True
    return problems


def _again(said):
    """Whether a sentence says that the state began again, is over, or belongs to the past."""
    words = r"\b(?:again|broke|fell|dropped|was|were|had been|never|not|no|any ?more)\b"
    return re.search(words, said) and not re.search(r"\bstill\b", said)
