"""Whether the story ends and its problem is settled."""

import re
from typing import NamedTuple

from data.stories.checker.courses import Course
from data.stories.checker.report import Problem
from data.stories.checker.retold import Retold
from data.stories.checker.states import any_of
from data.stories.reading import Sentence, in_lower_case

MIN_WORDS = 40


class Need(NamedTuple):
    opens: re.Pattern
    settles: re.Pattern


DOING = "do|ride|fly|play|sail|throw|swim|jump|climb|catch"
AFRAID = Need(
    any_of(r"afraid|scared|frightened"),
    any_of(
        r"no longer|okay|ran away|calm|any more|nothing|so small|brave|laughed|smiled|happy|safe|glad|"
        r"better|hugged|friends?|home|proud|laugh|settled",
    ),
)
ENDING = any_of(
    "end|happy|happily|glad|proud|smiled?|smiling|laughs?|laughed|laughing|home|bed|asleep|sleep|sleeping|"
    "night|ever|never|always|friends?|friendship|together|learned|thank|thanked|hugged?|hug|love|loved|best|"
    "fun|better|safe|forgot|remember|remembered|knew|enjoyed|joy|day|cheerful|delighted|pleased|danced|sang|"
    "played|warm|well|hello|watched|great|wonderful|lovely|perfect|eyes|bedtime|dreams?|dreamed|keeps|kept|"
    "sun|understood|saw that|found out|forever|favorite|careful|sorry|promised|evening|inside|belonged|"
    "good again|for (?:days|weeks)|after that|since|brave|play|dinner|supper|talked|told|saved?|again|afraid|next time",
)


def check_ending(
    text: str, read: list[Sentence], retold: Retold, courses: dict[str, Course]
) -> list[Problem]:
    if not read:
        return [Problem("unfinished", "it is empty", "")]
    count = sum(len(sentence.words) for sentence in read)
    last = read[-1].text
    problems = []

    def unfinished(what, sentence=last):
        problems.append(Problem("unfinished", what, sentence))

    if count < MIN_WORDS:
        unfinished(f"{count} words are too few for a story (at least {MIN_WORDS})")
    if not re.search(r'[.!?]"?$', text):
        unfinished("it breaks off")
    for line in text.split("\n"):
        if line.count('"') % 2:
            unfinished("a quotation is not closed", line.strip()[-120:])
    said = [_affirmed(sentence) for sentence in read]
    if not any(ENDING.search(sentence) for sentence in said[-3:]):
        unfinished("the last sentences do not end it")
    for name, course in courses.items():
        if course.closed is None and course.began is not None:
            unfinished(f"nothing settles what was {name}", retold.lines[course.began].sentence.text)
    openings = [(n, match.end()) for n, text in enumerate(said) for match in AFRAID.opens.finditer(text)]
    if openings:
        number, end = openings[-1]
        if not any(AFRAID.settles.search(text) for text in (said[number][end:], *said[number + 1 :])):
            unfinished("nothing settles what was afraid", read[number].text)
    return problems


# "it had been broken", "it never fell into the mud again"
_NOT_NOW = re.compile(
    r"\b(?:had (?:ever |once )?been (?:broken|lost|wet|dirty|stuck)|(?:never|not) (?:\w+ ){1,7}again)\b"
)
_DENIED = re.compile(
    r"\b(?:not|never|nobody was|no one was|no (?:reason|need) to be|no longer|thought it was|neither|hardly)"
    r"(?: (?:be|so|very|too|even|at all|at|all|any|more|and|a|little))* "
    r"(?:afraid|scared|lonely|hungry|broken|torn|lost|gone|sad|wet|dirty|stuck)\b"
)


def _affirmed(sentence: Sentence) -> str:
    """The words in lower case, with "settled" in place of a state that is denied: "not afraid"."""
    return _DENIED.sub("settled", _NOT_NOW.sub("", in_lower_case(sentence)))
