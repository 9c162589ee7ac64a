"""Follow the threads of a story (threads.py) from line to line."""

from dataclasses import dataclass

from data.stories import world
from data.stories.checker.patterns import affirmed, denied, pattern
from data.stories.checker.report import Problem
from data.stories.checker.retold import Line, Retold
from data.stories.checker.threads import THREADS, Thread


@dataclass(frozen=True)
class Course:
    """How a thread went: the numbers of the lines at which it began and was closed, None if it was not."""

    began: int | None
    closed: int | None
    problems: tuple[Problem, ...]

    def is_open(self, number: int) -> bool:
        return (
            self.began is not None and self.began <= number and (self.closed is None or number < self.closed)
        )

    def is_closed(self, number: int) -> bool:
        return self.closed is not None and self.closed < number


def follow_threads(retold: Retold) -> dict[str, Course]:
    """The threads of a story and how each of them went."""
    whole = "\n".join(part for line in retold.lines for part in (line.told, *(s.text for s in line.said)))
    found = {
        name
        for name, thread in THREADS.items()
        if any(_begins(thread, line) for line in retold.lines)
        and (thread.only_with is None or thread.only_with.search(whole))
    }
    return {
        name: _follow(name, thread, retold)
        for name, thread in THREADS.items()
        if name in found
        and not found & set(thread.gives_way_to)
        and not (name == "broken" and retold.thing in world.FOODS)
    }


def effects_without_cause(retold: Retold) -> list[Problem]:
    """What can only follow a problem that nobody had: a thing is mended that was not broken."""
    problems = []
    for name, thread in THREADS.items():
        for line in retold.lines:
            if _begins(thread, line):
                break
            if thread.needed_by.search(affirmed(line.told)):
                problems.append(Problem("state", f"nothing had been {name}", line.sentence.text))
                break
    return problems


def _begins(thread: Thread, line: Line) -> bool:
    return bool(thread.begins.search(line.told) or any(thread.said_begins.search(s.text) for s in line.said))


def _follow(name: str, thread: Thread, retold: Retold) -> Course:
    began = closed = None
    never: Line | None = None  # says that it will never be settled
    shown = False  # whether the narrator told how it began
    goes_back = False  # since "That morning, she had gone to the park"
    problems = []
    first, last = retold.frame
    for number, line in enumerate(retold.lines):
        if not first <= line.paragraph <= last:
            continue
        begins = _begins(thread, line)
        goes_back = not begins and (goes_back or bool(began is not None and _FLASHBACK.search(line.told)))
        closes = (began is not None or begins) and _closes(thread, line)
        if what := _contradiction(
            thread, line, began is not None and not goes_back, closed is not None, closes
        ):
            problems.append(Problem("outcome", what.format(name), line.sentence.text))
        if begins and began is None:
            began = number
        shown = shown or bool(thread.begins.search(affirmed(line.told)) and not _REPORTS.search(line.told))
        if began is not None and closed is None and not closes and _NEVER.search(line.told):
            if thread.closed_denied.search(denied(line.told)):
                never = line
        if closes and closed is None:
            closed = number
            if thread.must_be_shown and not shown:
                what = f"{name}: it was settled before it had happened"
                problems.append(Problem("outcome", what, line.sentence.text))
            if never:
                problems.append(Problem("outcome", f"{name}: yet later it was settled", never.sentence.text))
    return Course(began, closed, tuple(problems))


def _contradiction(thread: Thread, line: Line, begun: bool, closed: bool, closes: bool) -> str | None:
    told, says, says_not = line.told, affirmed(line.told), denied(line.told)
    said = [saying.text for saying in line.said if saying.speaker in ("N", "S")]
    if thread.ever.search(told) or any(map(thread.ever.search, said)):
        return "{}: this is not what happened"
    if closed:
        is_said = any(
            thread.closed_denied.search(denied(text)) or thread.closed_affirmed.search(affirmed(text))
            for text in said
            if not _LOOKS_BACK.search(text)
        )
        if is_said or thread.closed_denied.search(says_not) or thread.closed_affirmed.search(says):
            return "{}: it had been settled"
        return None
    if thread.early.search(told) or (thread.early_said and any(map(thread.early.search, said))):
        return "{}: this cannot be so before it is settled"
    if begun and not closes:
        is_said = any(
            thread.open_denied.search(denied(text)) or thread.open_affirmed.search(affirmed(text))
            for text in said
        )
        if is_said or thread.open_denied.search(says_not) or thread.open_affirmed.search(says):
            return "{}: this cannot be so while it is not settled"
    return None


def _closes(thread: Thread, line: Line) -> bool:
    if thread.closes.search(affirmed(line.told)) or thread.closes_as_told.search(line.told):
        return True
    return any(said.speaker == "N" and thread.closes_by_words.search(said.text) for said in line.said)


_REPORTS = pattern(r"(?:tell|say|show|point to|hold out) (?:S|that|about)")
_LOOKS_BACK = pattern(r"think|at first|once|be so|would|could|if|have be|before|be (?:afraid|scare)|until")
_NEVER = pattern(r"never|for ever|forever|for good|to this day")
_FLASHBACK = pattern(r"have (?:go|come|walk|run|take|bring|carry)|(?:begin|start) when")
