"""Faster implementations of parts of gptoss.py, tested against it in values and gradients."""
