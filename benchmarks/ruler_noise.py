"""The noise of the ruler: the same recipe with other seeds, and the same models on other documents.

benchmarks/judging.py records it for every recipe of which it is given three seeds or more.

  seeds      standard deviation of bits per byte over the seeds, on the same documents, with its 95 % interval
  documents  standard error over documents that the ruler gives, mean over the seeds; beside it the standard deviation
             over random halves of the documents of half the difference between the two halves, which estimates the
             same without the formula
  pairs      of two seeds on the same documents: the standard error of their difference, document by document, and as
             if the documents were others
"""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import numpy as np
import torch

from training.validation import ratio_interval

SPLITS = 400  # random halves


def deviation(values: list[float]) -> dict[str, float]:
    """A standard deviation, with the 95 % interval of normal values (chi-squared)."""
    from scipy.stats import chi2

    found, freedom = statistics.stdev(values), len(values) - 1
    low, high = (found * math.sqrt(freedom / chi2.ppf(q, freedom)) for q in (0.975, 0.025))
    return {"deviation": found, "low": low, "high": high}


def standard_error(nats: np.ndarray, sizes: np.ndarray) -> float:
    """Bits per byte, over documents."""
    return ratio_interval(torch.from_numpy(nats), torch.from_numpy(sizes))[0] / math.log(2)


def of_halves(nats: np.ndarray, sizes: np.ndarray) -> float:
    """The standard deviation of half the difference between random halves, bits per byte."""
    generator, found = np.random.default_rng(0), []
    for _ in range(SPLITS):
        order = generator.permutation(len(nats))
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        one, other = (nats[half].sum() / sizes[half].sum() / math.log(2) for half in (first, second))
        found.append((one - other) / 2)
    return math.sqrt(statistics.fmean(value**2 for value in found))


def noise(measured: dict[str, Any]) -> dict[str, Any]:
    """The figures of several seeds of one model, from the content of ruler.json, with those models only."""
    sizes = np.array(measured["bytes_of_documents"])
    nats = [np.array(entry["nats_of_documents"]) for entry in measured["models"]]
    scores = [entry["bits_per_byte"] for entry in measured["models"]]
    pairs = list(itertools.combinations(nats, 2))
    alone = [standard_error(values, sizes) for values in nats]
    return {
        "bits_per_byte": scores,
        "seeds": deviation(scores),
        "documents": {
            "standard_error": statistics.fmean(alone),
            "of_halves": statistics.fmean(of_halves(values, sizes) for values in nats),
        },
        "pairs": {
            "standard_error": statistics.fmean(standard_error(a - b, sizes) for a, b in pairs),
            "other_documents": statistics.fmean(
                math.hypot(a, b) for a, b in itertools.combinations(alone, 2)
            ),
        },
    }


def as_text(found: dict[str, Any]) -> str:
    seeds, documents, pairs = found["seeds"], found["documents"], found["pairs"]
    return "\n".join([
        f"bits per byte of {len(found['bits_per_byte'])} seeds, mean {statistics.fmean(found['bits_per_byte']):.4f}",
        f"other seeds, same documents: deviation {seeds['deviation']:.4f} ({seeds['low']:.4f} to {seeds['high']:.4f})",
        f"other documents, same seed: standard error {documents['standard_error']:.4f}; from random halves "
        f"{documents['of_halves']:.4f}",
        f"two seeds on the same documents: standard error of the difference {pairs['standard_error']:.4f}; on other "
        f"documents {pairs['other_documents']:.4f}",
    ])  # fmt: skip
