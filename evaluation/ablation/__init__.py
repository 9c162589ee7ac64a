"""Comparison runs: arms, matched on a stated axis, over seeds, to a table with verdicts. See ablate.py."""
