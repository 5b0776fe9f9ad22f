"""Counter-based random numbers: a pure function of (key, sample, epoch), vectorised.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). A draw depends only on
what it is for, never on draws made before it, so every rank, order and batch size gives a sample the same
masks and partners. One numpy Generator per sample would do too, at several times the cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
LOW32 = np.uint64(0xFFFFFFFF)
SHIFT32 = np.uint64(32)
PURPOSE_SHIFT = 24  # the last counter word is (purpose, 8 bits) and (index of the draw, 24 bits)


@dataclass(frozen=True, slots=True)
class SampleIds:
    """Identity of the samples of a micro-batch; all randomness about a sample comes from it.

    Attributes:
        key: [B] uint64, `derive_key` of the seed and the corpus.
        epoch: [B] int64, passes over the corpus before this one.
        sample: [B] int64, number of the sample within the corpus.
    """

    key: U64
    epoch: I64
    sample: I64

    def take(self, rows: npt.NDArray[np.intp] | slice) -> SampleIds:
        """Some of the samples."""
        return SampleIds(self.key[rows], self.epoch[rows], self.sample[rows])


def derive_key(seed: int, *names: str) -> np.uint64:
    """Key for one use of a seed; other names give an unrelated key."""
    return np.uint64(xxhash.xxh3_64_intdigest("\0".join((str(seed), *names)).encode()))


def philox4x32(counter: tuple[U64, U64, U64, U64], key: U64) -> tuple[U64, U64, U64, U64]:
    """Four random 32-bit words for each counter.

    Args:
        counter: four arrays of uint64 that broadcast together, each value below 2**32.
        key: uint64, broadcasts with the counter; low half is the first key word.

    Returns:
        Four uint64 arrays of the broadcast shape with values below 2**32.
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*counter)
    k0, k1 = key & LOW32, key >> SHIFT32
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> SHIFT32) ^ c1 ^ k0, p1 & LOW32, (p0 >> SHIFT32) ^ c3 ^ k1, p0 & LOW32
        k0, k1 = (k0 + WEYL[0]) & LOW32, (k1 + WEYL[1]) & LOW32
    return c0, c1, c2, c3


def draws_at(
    ids: SampleIds, rows: npt.NDArray[np.intp], purpose: int, index: I64
) -> tuple[U64, U64, U64, U64]:
    """Four 32-bit draws for each (sample, index) pair.

    Args:
        ids: the B samples.
        rows: [m] which of the samples.
        purpose: what the draws are for, 0..255; other purposes are independent.
        index: [m] number of the draw, below 2**24.

    Returns:
        Four [m] uint64 arrays with values below 2**32.
    """
    sample, epoch = ids.sample.astype(np.uint64), ids.epoch.astype(np.uint64)
    last = index.astype(np.uint64) | np.uint64(purpose << PURPOSE_SHIFT)
    return philox4x32(((sample & LOW32)[rows], (sample >> SHIFT32)[rows], epoch[rows], last), ids.key[rows])


def draw_words(ids: SampleIds, purpose: int, count: int) -> U64:
    """[B, count] 32-bit draws, as uint64; row b belongs to sample b."""
    batch, groups = len(ids.sample), -(-count // 4)
    rows = np.repeat(np.arange(batch), groups)
    words = draws_at(ids, rows, purpose, np.tile(np.arange(groups), batch))
    return np.stack(words, axis=-1).reshape(batch, 4 * groups)[:, :count]


def below(word: U64, bound: U64 | np.uint64) -> I64:
    """Turn 32-bit draws into integers in [0, bound); bound <= 2**32. Bias is under bound / 2**32."""
    return ((word * bound) >> SHIFT32).astype(np.int64)
