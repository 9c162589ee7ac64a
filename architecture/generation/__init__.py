"""One engine for sampling, chat, evaluation: ids step by step, text as it comes, the cache behind both."""

from architecture.generation.decode import generate, generate_steps

__all__ = ["generate", "generate_steps"]
