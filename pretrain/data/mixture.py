"""Which corpus a global sample comes from: repeating cycles of slots with exact shares.

A cycle has `CYCLE` slots; each corpus owns as many as its weight asks for (largest remainder), spread over
the cycle by a keyed permutation. So shares are exact in every cycle, and where a sample comes from is a
table look-up at any distance from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_tools.errors import DataError
from pretrain.data.order import permute
from pretrain.data.philox import I64

CYCLE = 4096
"""Slots in a cycle, so the smallest share that a corpus can have is 1 / CYCLE."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """The slots of a cycle.

    Attributes:
        counts: [C] slots of each corpus.
        corpus: [CYCLE] corpus of each slot.
        rank: [CYCLE] slots of the same corpus before this one.
    """

    counts: I64
    corpus: I64
    rank: I64

    def locate(self, sample: I64) -> tuple[I64, I64]:
        """Corpus of each global sample, and how many samples of that corpus came before it.

        Args:
            sample: [n] global sample numbers, counted from the start of training.

        Returns:
            ([n] index of the corpus, [n] number within the corpus; dense, counted over all its epochs).
        """
        cycle, slot = np.divmod(sample, CYCLE)
        corpus = self.corpus[slot]
        return corpus, cycle * self.counts[corpus] + self.rank[slot]

    def consumed(self, samples: int) -> I64:
        """[C] samples that each corpus gave to the first `samples` global samples."""
        cycles, rest = divmod(samples, CYCLE)
        return cycles * self.counts + np.bincount(self.corpus[:rest], minlength=len(self.counts))

    def samples_before_repeat(self, sizes: I64) -> int:
        """Global samples until some corpus of `sizes` [C] samples would begin its second epoch."""
        cycles, rest = np.divmod(sizes, self.counts)
        firsts = [
            int(cycles[c]) * CYCLE + int(np.flatnonzero(self.corpus == c)[rest[c]]) for c in range(len(sizes))
        ]
        return min(firsts)


def build_mixture(names: Sequence[str], weights: Sequence[float], key: np.uint64) -> Mixture:
    """Lay out a cycle.

    Args:
        names: names of the corpora, for messages.
        weights: positive; only their ratios matter.
        key: `derive_key` of the seed.

    Raises:
        DataError: a weight is too small to get a slot.
    """
    exact = np.asarray(weights, dtype=np.float64)
    exact = exact / exact.sum() * CYCLE
    counts = np.floor(exact).astype(np.int64)
    largest = np.argsort(counts - exact, kind="stable")
    counts[largest[: CYCLE - int(counts.sum())]] += 1
    for name, weight, count in zip(names, weights, counts, strict=True):
        if count == 0:
            raise DataError(
                f"data.corpora: the weight {weight} of {name!r} is under 1/{CYCLE} of all weights, so it "
                "would never be read; raise it or remove the corpus"
            )
    slots = np.arange(CYCLE)
    corpus = np.repeat(np.arange(len(counts)), counts)[permute(slots, CYCLE, np.full(CYCLE, key))]
    rank = np.empty(CYCLE, dtype=np.int64)
    for index in range(len(counts)):
        mine = corpus == index
        rank[mine] = np.arange(int(counts[index]))
    return Mixture(counts, corpus, rank)
