"""Check whether a story contradicts itself and whether it ends.

The rules know the words of world.py and some plain English, but not the templates of the generator:

- A name must be introduced ("a girl named Mia", "her friend Tom", the subject of the first sentence) before
  it is used, and its kind must not change. "he" and "she" need somebody whom they can stand for.
- "the kite" and "her kite" need a kite before them, and a red kite must not become a blue one.
- "in the park" needs somebody to have gone there.
- What was mended must not be broken afterwards unless it breaks again, and only a broken thing can be mended.
- A problem must be settled, and the last sentences must end the story.

Words outside the tables are ignored, and a doubtful case is not reported. A story that passes can still be
wrong: if all sentences but the first and the last are shuffled, 22 % of the bundled stories pass.
"""

from data.stories.checker.cast import check_characters
from data.stories.checker.company import check_company
from data.stories.checker.details import check_details
from data.stories.checker.ending import check_ending
from data.stories.checker.feelings import check_feelings
from data.stories.checker.owners import check_owners
from data.stories.checker.places import check_places
from data.stories.checker.report import CONTRADICTIONS, Problem, Report
from data.stories.checker.retold import retell
from data.stories.checker.states import check_states
from data.stories.checker.telling import check_telling
from data.stories.checker.things import check_objects
from data.stories.checker.threads import effects_without_cause, follow_threads
from data.stories.reading import plain, sentences

__all__ = ["CONTRADICTIONS", "Problem", "Report", "check"]


def check(text: str) -> Report:
    """Return the problems of a story: contradictions in the order of its sentences, then the missing ends."""
    text = plain(text)
    read = sentences(text)
    problems = check_characters(read) + check_objects(read) + check_places(read) + check_states(read)
    retold = retell(read)
    courses = follow_threads(retold)
    problems += [problem for course in courses.values() for problem in course.problems]
    problems += effects_without_cause(retold)
    problems += check_company(read, retold, courses)
    problems += check_details(retold)
    problems += check_owners(retold, courses)
    problems += check_feelings(retold, courses)
    problems += check_telling(retold, courses)
    problems = list(dict.fromkeys(problems))
    order = {sentence.text: number for number, sentence in reversed(list(enumerate(read)))}
    problems.sort(key=lambda problem: order.get(problem.sentence, 0))
    return Report((*problems, *check_ending(text.strip(), read, retold, courses)))
