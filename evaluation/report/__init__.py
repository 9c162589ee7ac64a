"""python -m evaluation.report: runs as one page and a table, without a server."""
