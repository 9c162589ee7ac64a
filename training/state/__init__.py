"""The state of a run: its folder, its checkpoints, its open files, and requests to stop it."""
