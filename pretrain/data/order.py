"""The order of samples, computed: position in an epoch -> sample, in O(1) and without any stored permutation.

Two levels, because a global shuffle of small samples would read a whole block for each of them:
groups of `GROUP` neighbouring samples are permuted over the whole epoch, then samples are permuted inside
windows of `WINDOW_GROUPS` consecutive groups. Both permutations are Feistel networks over a domain of the
exact size (Black & Rogaway, "Ciphers with arbitrary finite domains", 2002), so each sample comes just once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pretrain.data.philox import I64, SHIFT32, U64

GROUP = 64
"""Neighbouring samples that stay in one window, so that what a read brings in is used."""
WINDOW_GROUPS = 512
WINDOW = GROUP * WINDOW_GROUPS
"""Samples that are mixed with each other; also what a page cache should hold."""

FEISTEL_ROUNDS = 4  # enough for a strong pseudo-random permutation (Luby & Rackoff, 1988)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def mix64(value: U64) -> U64:
    """Scramble an array of 64-bit words, one to one (finaliser of SplitMix64, Steele et al. 2014)."""
    value = (value ^ (value >> SHIFTS[0])) * MIX[0]
    value = (value ^ (value >> SHIFTS[1])) * MIX[1]
    return value ^ (value >> SHIFTS[2])


def subkeys(key: U64 | np.uint64, number: I64) -> U64:
    """[n] independent keys number `number` (>= 0) of one key, or of one key each."""
    return mix64(key + GOLDEN * (number.astype(np.uint64) + np.uint64(1)))


def permute(index: I64, count: int, key: U64) -> I64:
    """A keyed permutation of 0..count-1, evaluated where asked.

    Args:
        index: [n] values in [0, count).
        count: size of the domain, 1 to 2**62.
        key: [n] a key for each index.

    Returns:
        [n] int64 in [0, count); one to one among equal keys.
    """
    if not index.size:
        return index
    rows = math.isqrt(count - 1) + 1
    columns = -(-count // rows)
    result = _feistel(index.astype(np.uint64), rows, columns, key)
    # The rectangle has less than `rows` cells too many: those that land there walk on until they leave it.
    outside = np.flatnonzero(result >= np.uint64(count))
    while outside.size:
        result[outside] = _feistel(result[outside], rows, columns, key[outside])
        outside = outside[result[outside] >= np.uint64(count)]
    return result.astype(np.int64)


def _feistel(value: U64, rows: int, columns: int, key: U64) -> U64:
    """One pass of a generalised Feistel network over the cells of a rows x columns rectangle."""
    left, right = np.divmod(value, np.uint64(columns))
    left_size, right_size = np.uint64(rows), np.uint64(columns)
    for _ in range(FEISTEL_ROUNDS // 2):
        key = key + GOLDEN
        left = _rotate(left, mix64(right ^ key), left_size)
        key = key + GOLDEN
        right = _rotate(right, mix64(left ^ key), right_size)
    return left * right_size + right


def _rotate(half: U64, scrambled: U64, size: np.uint64) -> U64:
    """(half + a number in [0, size) taken from `scrambled`) mod size."""
    moved = half + (((scrambled >> SHIFT32) * size) >> SHIFT32)
    return moved - size * (moved >= size)


def sample_at(position: I64, epoch: I64, count: int, key: np.uint64) -> I64:
    """Which sample stands at a position of an epoch.

    Args:
        position: [n] int64 in [0, count).
        epoch: [n] int64; every epoch has its own order.
        count: samples in an epoch.
        key: `derive_key` of the seed and the corpus.

    Returns:
        [n] int64 in [0, count); over an epoch each value comes exactly once.
    """
    epoch_key = subkeys(key, 2 * epoch)
    window = position // WINDOW
    start = window * WINDOW
    window_key = subkeys(epoch_key, window)
    shuffled = np.empty_like(position)
    full = start + WINDOW <= count
    for chosen, size in ((full, WINDOW), (~full, count % WINDOW)):
        shuffled[chosen] = permute((position - start)[chosen], size, window_key[chosen])
    group, within = np.divmod(start + shuffled, GROUP)
    whole = group < count // GROUP
    group[whole] = permute(group[whole], count // GROUP, epoch_key[whole])
    # Groups begin elsewhere in every epoch: other neighbours, another rest group at the end.
    rotation = (subkeys(key, 2 * epoch + 1) % np.uint64(count)).astype(np.int64)
    return (group * GROUP + within + rotation) % count


@dataclass(frozen=True, slots=True)
class IndexStart:
    """Where a phase begins in a corpus: `done` samples into an epoch."""

    epoch: int = 0
    done: int = 0


class IndexOrder:
    """The order of samples that an index numbers (BERT's sentence pairs): any sample, once an epoch.

    Attributes:
        epoch_samples: samples in an epoch.
        start: where the numbers of `locate` begin.
    """

    def __init__(self, count: int, key: np.uint64 | None, start: IndexStart | None = None) -> None:
        """Shuffle `count` samples by a `derive_key`; None keeps storage order in every epoch."""
        self.epoch_samples, self._key, self.start = count, key, start or IndexStart()

    def locate(self, number: I64) -> tuple[I64, I64]:
        """([n] epoch, [n] number of the sample in the index) of samples counted from the start."""
        later, position = np.divmod(number + self.start.done, self.epoch_samples)
        epoch = later + self.start.epoch
        if self._key is None:
            return epoch, position
        return epoch, sample_at(position, epoch, self.epoch_samples, self._key)

    def passes(self, number: int) -> float:
        """Passes over the corpus after `number` samples from the start."""
        return self.start.epoch + (self.start.done + number) / self.epoch_samples

    def cursor(self, number: int, same_samples: bool) -> IndexStart:
        """The start of another phase after `number` samples of this one.

        Other samples (another seq_length) share nothing with these, so the rest of an epoch that was begun is
        left out and the next one begins: no text is read twice in an epoch, and each once more in the next.
        """
        later, done = divmod(number + self.start.done, self.epoch_samples)
        epoch = self.start.epoch + later
        return IndexStart(epoch, done) if same_samples else IndexStart(epoch + (done > 0), 0)
