"""Models and what they need to run: pure torch, no training code."""
