"""A story world that writes itself: story(index) is always the same text, and no two are alike.

    from data.stories import story
    print(story(7).text)

Simple English for children, in the manner of TinyStories. The first TRAIN_STORIES indices are the
training split, the next VALIDATION_STORIES the validation split. checker.py reads any text and says
whether it holds together; world.py has the words that both sides know.
"""

from data.stories.tell import Facts, Story, story

TRAIN_STORIES = 20_000
VALIDATION_STORIES = 1_000

__all__ = ["TRAIN_STORIES", "VALIDATION_STORIES", "Facts", "Story", "story"]
