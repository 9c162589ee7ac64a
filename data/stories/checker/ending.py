"""Whether the story ends and its problem is settled."""

import re
from typing import NamedTuple

from data.stories.checker.report import Problem
from data.stories.checker.states import STATES, any_of
from data.stories.checker.retold import Retold
from data.stories.checker.threads import Course
from data.stories.reading import Sentence, in_lower_case

MIN_WORDS = 40


class Need(NamedTuple):
    opens: re.Pattern
    settles: re.Pattern
    every_time: bool = False  # whether the last opening must be settled, and not only the first


DOING = "do|ride|fly|play|sail|throw|swim|jump|climb|catch"
NEEDS = {
    **{
        name: Need(state.begins, any_of(state.settles.pattern, "settled"), every_time=name != "lost")
        for name, state in STATES.items()
    },
    "unshared": Need(
        any_of(r"(?:not|n't) (?:want to |like to )?share|would not share|it is mine|get your own"),
        any_of(r"shared?|sharing|turns?|gave|together|sorry|take|have|half|split|settled"),
    ),
    "unlearned": Need(
        any_of(
            rf"(?:could not|cannot|can't|couldn't|did not know how to|i will never) (?:{DOING}) "
            r"(?:it|the|my|his|her|this)"
        ),
        any_of(
            rf"could (?:{DOING})|can (?:{DOING})|did it|rode|flew|played|sailed|threw|swam|learned",
            r"i am (?:riding|flying|playing|sailing|throwing)|settled",
        ),
    ),
    "hungry": Need(
        any_of(r"hungry|tummy is empty|nothing to eat"),
        any_of(
            r"ate|eat|eats|eaten|full|food|fed|lunch|dinner|half|shared|milk|bread|water|berries|cheese|"
            r"settled"
        ),
    ),
    "lonely": Need(
        any_of(
            r"(?:i am|i was|was|felt|were) (?:\w+ )?lonely|no one to play with|no friends|nobody to play with"
        ),
        any_of(
            r"friends?|friend in|together|hugged|took turns|played with|laughed|play with|both|two|not alone",
            r"glad (?:you|we)|had company|held the|tried the|settled",
        ),
    ),
    "afraid": Need(
        any_of(r"afraid|scared|frightened"),
        any_of(
            r"no longer|okay|ran away|calm|any more|nothing|so small|brave|laughed|smiled|happy|safe|glad|"
            r"better|hugged|friends?|home|proud|laugh|settled",
        ),
    ),
    "ungiven": Need(
        any_of(r"wanted to (?:give|make) (?:\w+ ){0,5}(?:gift|present|surprise)"),
        any_of(
            r"gave|give|for you|here is|put|made (?:it|me)|loved it|love it|handed|took|thank you|settled"
        ),
    ),
}
ENDING = any_of(
    "end|happy|happily|glad|proud|smiled?|smiling|laughs?|laughed|laughing|home|bed|asleep|sleep|sleeping|"
    "night|ever|never|always|friends?|friendship|together|learned|thank|thanked|hugged?|hug|love|loved|best|"
    "fun|better|safe|forgot|remember|remembered|knew|enjoyed|joy|day|cheerful|delighted|pleased|danced|sang|"
    "played|warm|well|hello|watched|great|wonderful|lovely|perfect|eyes|bedtime|dreams?|dreamed|keeps|kept|"
    "sun|understood|saw that|found out|forever|favorite|careful|sorry|promised|evening|inside|belonged|"
    "good again|for (?:days|weeks)",
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
    for name, need in NEEDS.items():
        if name in courses:
            continue
        openings = [
            (number, match.end())
            for number, sentence in enumerate(said)
            for match in need.opens.finditer(sentence)
        ]
        if openings:
            number, end = openings[-1 if need.every_time else 0]
            rest = [said[number][end:], *said[number + 1 :]]
            if not any(need.settles.search(sentence) for sentence in rest):
                unfinished(f"nothing settles what was {name}", read[number].text)
    return problems


# "it had been broken", "it never fell into the mud again"
_NOT_NOW = re.compile(r"\b(?:had (?:ever |once )?been (?:broken|lost|wet|dirty|stuck)|(?:never|not) (?:\w+ ){1,7}again)\b")
_DENIED = re.compile(
    r"\b(?:not|never|nobody was|no longer|thought it was|neither|hardly)"
    r"(?: (?:be|so|very|too|even|at all|at|all|any|more|and|a|little))* "
    r"(?:afraid|scared|lonely|hungry|broken|torn|lost|gone|sad|wet|dirty|stuck)\b"
)


def _affirmed(sentence: Sentence) -> str:
    """The words in lower case, with "settled" in place of a state that is denied: "not afraid"."""
    return _DENIED.sub("settled", _NOT_NOW.sub("", in_lower_case(sentence)))
