"""What the choice of the test documents adds to the variance of a difference between arms.

A score is a ratio over D documents: bits per byte = sum of bits / sum of bytes. A difference between two arms
is a weighted sum of scores (weights over runs, 1 / seeds for the first arm and - 1 / seeds for the second), and
all runs score the same documents, so that it is a ratio too: theta = sum x_d / sum b_d, with x_d the weighted
sum of the bits of document d and b_d its bytes. For documents drawn at random, its variance is that of a ratio
estimator (Cochran, Sampling Techniques, 1977, section 6.3; the documents are a small part of all stories):

    D / (D - 1) * sum (x_d - theta b_d)^2 / (sum b_d)^2

Seeds and documents are crossed random effects. With variances per seed S, per document T and per run and
document U of the paired difference, n seeds and D documents of equal length, the difference has the variance

    S / n + T / D + U / (n D).

The variance over seeds, from scores on the same documents, has the expectation S / n + U / (n D), and the one
above T / D + U / (n D). Their sum is the variance of the difference plus U / (n D), so that the interval is a
little wider than needed, never narrower. The degrees of freedom of the sum are Satterthwaite's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import reading
from evaluation.ablation.contrasts import Sampling

AGREEMENT = 1e-3  # relative; the sums are stored in float32


def sampling(weights: np.ndarray, nats: np.ndarray, lengths: np.ndarray) -> Sampling:
    """The covariance of m differences over documents, in (bits per byte)^2.

    weights: (m, N), of the runs in each difference.  nats: (N, D), of the text tokens.  lengths: (D,), UTF-8 bytes.
    """
    documents, whole = len(lengths), lengths.sum()
    bits = weights @ (nats / math.log(2))  # (m, D)
    residuals = bits - np.outer(bits.sum(1) / whole, lengths)
    covariance = residuals @ residuals.T * documents / ((documents - 1) * whole**2)
    return Sampling(covariance, documents)


def read_documents(folder: Path, lines: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray] | None:
    """nats (N, D) and bytes (D,) of the documents that N runs were tested on; None if a file is missing.

    lines: results with document_file, documents and test_bits_per_byte.  Raises ValueError if the files disagree.
    """
    nats, lengths = [], None
    for line in lines:
        named = line.get("document_file")
        path = folder / (named or "")
        if not named or not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            return None
        with reading(path, "the test documents of a run", way_out="delete it, to judge over seeds only"):
            with np.load(path, allow_pickle=False) as stored:
                found, size = stored["nats"].astype(float), stored["bytes"].astype(float)
            score = found.sum() / math.log(2) / size.sum()
            if not math.isclose(score, line["test_bits_per_byte"], rel_tol=AGREEMENT):
                raise ValueError(
                    f"its documents have {score:.4f} bits per byte, and results.jsonl says "
                    f"{line['test_bits_per_byte']:.4f}"
                )
            if lengths is not None and not np.array_equal(size, lengths):
                raise ValueError("it holds other documents than the file of another run")
        lengths = size
        nats.append(found)
    return (np.stack(nats), lengths) if nats and len(lengths) > 1 else None
