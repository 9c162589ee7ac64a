"""What a model is: pure torch, no training code."""
