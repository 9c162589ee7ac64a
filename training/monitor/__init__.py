"""What a run measures about itself, and the writer of its records."""
