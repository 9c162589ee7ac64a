"""The official formats of gpt-oss: download, read, write, verify."""
