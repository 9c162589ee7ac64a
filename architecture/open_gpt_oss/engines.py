"""llama.cpp and MLX, computing on the CPU in float32: log-probabilities and greedy texts of exported models.

For verify, tests and benchmarks. Rows are lists of ids. llama.cpp comes as xllamacpp, whose server answers here
without a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

INSTALL = {
    "transformers": ("transformers", "pip install -r requirements-export.txt"),
    "llama.cpp": ("xllamacpp", "pip install -r requirements-peers.txt"),
    "mlx": ("mlx_lm", "pip install -r requirements-peers.txt"),
}  # {engine: (its module, how to install it)}
MOST_PREFIXES = (
    24  # at most so many in a row, because llama.cpp gives log-probabilities for one position at a time
)


class LlamaCpp:
    """llama.cpp with a GGUF file. The default of llama.cpp, flash attention with a float16 cache, is off: it
    differs by 1e-2 in log-probabilities, float32 by 1e-5.

    rows: how many texts it can continue at once.  context: tokens for each of them.
    """

    def __init__(
        self, path: str | Path, *, context: int, rows: int = 1, threads: int = 1, exact: bool = True
    ):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = str(path), context * rows, rows
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.warmup, params.verbosity = False, -1
        params.n_gpu_layers = 0
        params.kv_unified = False
        if exact:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)

    def complete(self, ids: Sequence[int], max_tokens: int, **settings: Any) -> dict[str, Any]:
        """The answer of llama.cpp's server to a prompt of ids, continued greedily."""
        request = {"prompt": list(ids), "max_tokens": max_tokens, "temperature": 0}
        answer = self.server.handle_completions({**request, "cache_prompt": False, **settings})
        if "choices" not in answer:
            raise ValueError(f"llama.cpp refused a prompt of {len(ids)} ids: {answer}")
        return answer

    def log_probabilities(self, ids: Sequence[int], vocabulary: int) -> torch.Tensor | None:
        """Of the token after `ids`: (vocabulary,) float32. None where llama.cpp gives none, which it does if the
        most probable token is a part of a character."""
        answer = self.complete(ids, 1, logprobs=vocabulary, n_probs=vocabulary, ignore_eos=True)
        found = answer["choices"][0]["logprobs"]
        if found is None:
            return None
        values = torch.full((vocabulary,), float("nan"))
        for entry in found["content"][0]["top_logprobs"]:
            values[entry["id"]] = entry["logprob"]
        return values

    def greedy(self, ids: Sequence[int], tokens: int) -> str:
        """The most probable continuation as text, up to an end of text."""
        return self.complete(ids, tokens)["choices"][0]["text"]


class Mlx:
    """mlx-lm with a folder of --format mlx, or one of --format hf --mxfp4. It computes in float32: on a CPU, MLX
    has no product for experts in 16 bits."""

    def __init__(self, folder: str | Path):
        import mlx.core as mx
        from mlx_lm.utils import load_model

        self.model = load_model(Path(folder))[0]
        self.model.set_dtype(mx.float32)

    def log_probabilities(self, ids: Sequence[int], cache: list | None = None) -> torch.Tensor:
        """Of the token after each of `ids`: (len(ids), vocabulary) float32."""
        import mlx.core as mx
        import numpy as np

        logits = self.model(mx.array([[int(number) for number in ids]]), cache=cache)[0].astype(mx.float32)
        return torch.from_numpy(np.array(logits)).log_softmax(-1)

    def greedy(self, ids: Sequence[int], tokens: int, stop: int) -> list[int]:
        """The most probable continuation, through mlx-lm's caches, up to the id `stop`."""
        cache, new, step = self.model.make_cache(), [], list(ids)
        for _ in range(tokens):
            step = [int(self.log_probabilities(step, cache)[-1].argmax())]
            if step == [stop]:
                break
            new += step
        return new


def lengths(tokens: int, most: int = MOST_PREFIXES) -> list[int]:
    """At most `most` lengths of prefixes from 1 to `tokens`, evenly spaced, with both ends."""
    most = min(most, tokens)
    return [1 + (tokens - 1) * n // max(1, most - 1) for n in range(most)]
