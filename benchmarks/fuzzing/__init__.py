"""The parts of benchmarks/fuzz.py: valid inputs, their mutations, cases, and the verdict on a case."""
