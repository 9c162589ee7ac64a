"""Datasets: sources of documents, packing into batches, token files, and the commands that make them."""
