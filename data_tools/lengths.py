"""How often each length occurs: exact percentiles and histograms of any number of lengths in bounded memory.

Documents of d different lengths have at least d^2 / 2 tokens together, so a corpus of T tokens has at most
sqrt(2 T) different ones: 23 MB of counters for a trillion tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_PERCENTILES = (1, 10, 50, 90, 99, 100)
_WAITING = 1 << 20  # lengths that are kept before they are counted


class Lengths:
    """Counts lengths."""

    def __init__(self) -> None:
        self._values = np.empty(0, dtype=np.uint32)
        self._counts = np.empty(0, dtype=np.int64)
        self._waiting: list[npt.NDArray[np.uint32]] = []
        self._waiting_count = 0

    def add(self, lengths: npt.NDArray[np.uint32]) -> None:
        """Count some more."""
        self._waiting.append(lengths)
        self._waiting_count += len(lengths)
        if self._waiting_count >= _WAITING:
            self._count()

    def summary(self) -> dict[str, Any] | None:
        """JSON-able: percentiles, the mean, and a histogram; None where nothing was counted.

        A bin of the histogram is [least length, number]; it ends where twice its least length begins.
        """
        self._count()
        if not len(self._values):
            return None
        total, below = int(self._counts.sum()), np.cumsum(self._counts)
        ranks = [(total - 1) * percent // 100 for percent in _PERCENTILES]
        chosen = self._values[np.searchsorted(below, ranks, side="right")].tolist()
        mean = float(np.dot(self._values.astype(np.float64), self._counts) / total)
        return {
            **{f"p{percent}": value for percent, value in zip(_PERCENTILES, chosen, strict=True)},
            "mean": round(mean, 2),
            "histogram": self._histogram(),
        }

    def _histogram(self) -> list[list[int]]:
        bits = np.frexp(self._values.astype(np.float64))[1]  # a length in [2^(b - 1), 2^b) has b bits
        sums = np.bincount(bits, weights=self._counts).astype(np.int64).tolist()
        first = next(bit for bit, count in enumerate(sums) if count)
        return [[1 << bit >> 1, count] for bit, count in enumerate(sums) if bit >= first]

    def _count(self) -> None:
        values = np.concatenate([self._values, *self._waiting])
        counts = np.concatenate([self._counts, np.ones(self._waiting_count, dtype=np.int64)])
        self._values, places = np.unique(values, return_inverse=True)
        self._counts = np.zeros(len(self._values), dtype=np.int64)
        np.add.at(self._counts, places, counts)
        self._waiting, self._waiting_count = [], 0
