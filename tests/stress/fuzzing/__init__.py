"""The parts of tests/stress/fuzz.py: valid inputs, their mutations, cases, and the verdict on a case."""
