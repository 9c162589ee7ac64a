"""The official formats of gpt-oss: download, load, export, verify."""
