"""Generation: token ids step by step, text as it is generated, and the key/value caches."""

from architecture.generation.decode import generate, generate_steps

__all__ = ["generate", "generate_steps"]
