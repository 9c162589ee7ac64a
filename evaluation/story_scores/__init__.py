"""Scores of stories without a judge, each beside a floor and a ceiling; python -m evaluation.stories runs them.

They are named for what they measure. None of them is the grade of a large model; judge.py asks for those.
"""
