"""Scripts, settings, files, device and provenance. Imports no other folder of this project."""
