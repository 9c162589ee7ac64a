"""How good a model is: comparisons, reports, scores."""
