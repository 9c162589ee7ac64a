"""What a run watches, and the one writer of its records."""
