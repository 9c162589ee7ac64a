"""Comparison runs: arms matched on a stated axis, trained with several seeds, and verdicts. See ablate.py."""
