"""Measure how good a model is: ablations, reports, scores."""
