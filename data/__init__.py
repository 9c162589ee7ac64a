"""What a model reads: sources, documents, packing, tokens; and the commands that make data."""
