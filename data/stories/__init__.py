"""A world of generated stories: story(index) always returns the same text, and no two stories are the same.

    from data.stories import story
    print(story(7).text)

The stories are in simple English for children, like those of TinyStories. The first TRAIN_STORIES indices are
the training split, the next VALIDATION_STORIES the validation split. checker/ checks any story for
contradictions. world.py has the words that the generator and the checker share.
"""

from data.stories.tell import Facts, Story, story

TRAIN_STORIES = 20_000
VALIDATION_STORIES = 1_000
# About one story in a thousand contradicts itself: in number 19349, the hero carries the crown along "all alone",
# and the next sentence says that a friend was there, too. Their texts stay, because runs know the corpus by
# its texts; mend phrases.ARRIVE when VERSION changes for a better reason. The checker reports them.
VERSION = 1  # version of all stories; a run resumes only on the version that it began with

__all__ = ["TRAIN_STORIES", "VALIDATION_STORIES", "VERSION", "Facts", "Story", "story"]
