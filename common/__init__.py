"""How every script begins and ends, whole files, device, provenance. Imports nothing else of this project."""
