"""Check whether a story contradicts itself and whether it ends.

The checker reads a story as a small model of facts, and reports what two sentences cannot both mean:

- cast: a name is introduced ("a girl named Mia", "her friend Tom", the subject of the first sentence) before it
  is used; its kind does not change; "he" and "she" can stand for somebody; nobody does to himself what needs
  two ("Tim gave it to Tim").
- company: nobody acts who is away, has never come or is a stranger to the story; friends are no strangers and
  no family; nobody is alone beside the other one; nobody is at home in the middle of a story in the park.
- things and places: "the kite" needs a kite before it, and keeps its color, size, age and material; "in the
  park" needs somebody to have gone there.
- owners: "my kite" is said by the one whose kite it is; it is given back to its owner; the one who was helped
  says thanks, the other one asks what is wrong.
- threads: twelve kinds of problems (threads.py), from their beginning to their outcome. While the kite is lost,
  nobody flies it; once it is found, it is not "still lost" and not "never found"; what is mended was broken.
- feelings and lessons: what ends well does not end in tears or enmity; nobody cheers at a loss; what the hero
  learns is what the story teaches; the hero does not hate what the hero likes.
- telling: a story is told by "I" or by a narrator; a summer's day has no snow, and an afternoon is no morning;
  the one who begins to tell also ends.
- end: every thread is closed, and the last sentences end the story.

retold.py brings sentences into a plain form first, so that the rules need few patterns for many wordings. The
rules know the words of world.py, the plots of plots.py and some plain English, but no template.

What it does not check: whether an event could happen at all, oxymorons ("shouted in a whisper"), numbers except
of people and pieces, where exactly something lay, which tool was used, who did what by accident, and anything
in words that it does not know. With more than two named characters, the rules of company and owners are left out. A
doubtful case is not reported, so a story that passes can still be wrong; `python -m benchmarks.story_edits`
measures how often.
"""

from data.stories.checker.cast import check_characters
from data.stories.checker.company import check_company
from data.stories.checker.courses import effects_without_cause, follow_threads
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
