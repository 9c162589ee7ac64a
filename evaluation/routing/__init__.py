"""python -m evaluation.routing: what the routers do with a text, and what changes if they do something else."""
