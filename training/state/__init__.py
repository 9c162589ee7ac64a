"""A run's state: its folder, its checkpoints, what it holds open, and how it is asked to stop."""
