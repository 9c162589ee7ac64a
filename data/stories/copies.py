"""Find copied stories: runs of RUN words that also occur in other texts."""

import re
from collections.abc import Iterable
from functools import cache

import numpy as np

RUN = 20  # words; case and punctuation do not count
_WORD = re.compile(r"[a-z0-9']+")
# The hash of a run is polynomial, modulo 2**64: the dot product of its words' hashes and the powers of _BASE.
_BASE = 0x9E3779B97F4A7C15


class RunIndex:
    """Every run of so many words of the texts, as sorted 64-bit hashes.  words: at most RUN."""

    def __init__(self, texts: Iterable[str], words: int = RUN):
        self._words = words
        hashes = [self._runs(text)[1] for text in texts]
        self._sorted = np.unique(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64)

    def __len__(self):
        return len(self._sorted)

    def copied_run(self, text: str) -> str | None:
        """Return the first run of the text that is also in the index, or None."""
        words, runs = self._runs(text)
        found = np.flatnonzero(self._held(runs))
        return " ".join(words[found[0] : found[0] + self._words]) if len(found) else None

    def copied_runs(self, text: str) -> tuple[int, int]:
        """How many runs of the text are also in the index, and how many it has."""
        runs = self._runs(text)[1]
        return int(self._held(runs).sum()), len(runs)

    def _held(self, runs):
        if not len(self._sorted):
            return np.zeros(len(runs), bool)
        places = np.minimum(np.searchsorted(self._sorted, runs), len(self._sorted) - 1)
        return self._sorted[places] == runs

    def _runs(self, text):
        words = _WORD.findall(text.lower())
        if len(words) < self._words:
            return words, np.empty(0, np.uint64)
        values = np.array([_hash(word) for word in words], np.uint64)
        windows = np.lib.stride_tricks.sliding_window_view(values, self._words)
        return words, (windows * _POWERS[: self._words]).sum(axis=1, dtype=np.uint64)


@cache
def _hash(word: str) -> int:
    value = 0xCBF29CE484222325  # FNV-1a, which is the same in every process, unlike hash()
    for byte in word.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


_POWERS = np.array([pow(_BASE, n, 2**64) for n in range(1, RUN + 1)], np.uint64)
