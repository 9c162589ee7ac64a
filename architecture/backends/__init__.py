"""Fast paths for parts of gptoss.py, held to its specifications in values and gradients."""
