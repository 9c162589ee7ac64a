"""What the checker reports."""

from dataclasses import dataclass
from typing import NamedTuple

CONTRADICTIONS = (
    "name",
    "kind",
    "pronoun",
    "object",
    "adjective",
    "place",
    "state",
    "company",
    "owner",
    "outcome",
    "feeling",
    "lesson",
    "voice",
    "time",
)


class Problem(NamedTuple):
    rule: str  # one of CONTRADICTIONS, or "unfinished", or "copied"
    what: str
    sentence: str


@dataclass(frozen=True)
class Report:
    problems: tuple[Problem, ...]

    @property
    def consistent(self) -> bool:
        return not any(problem.rule in CONTRADICTIONS for problem in self.problems)

    @property
    def finished(self) -> bool:
        return not any(problem.rule == "unfinished" for problem in self.problems)

    @property
    def passes(self) -> bool:
        return not self.problems
