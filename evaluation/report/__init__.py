"""python -m evaluation.report: one or more runs as a page and a table, without a server."""
