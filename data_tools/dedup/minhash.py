"""Band hashes of texts: MinHash signatures of their shingles, cut into bands (locality-sensitive hashing).

Signatures come from rensa's `RMinHash`, version 2 of its algorithm: Fast Similarity Sketching (Dahlgaard,
Knudsen, Thorup 2017, arXiv:1704.04370) over all shingles, in Rust. Measured: its error is that of independent
hash functions, rmse 0.038 with 112 values over similarities from 0 to 1, as sqrt(s(1-s)/112) says.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.dedup.config import NearConfig
from data_tools.dedup.shingles import U64, mix, shingle_hashes
from data_tools.errors import DataError

_BATCH_CHARACTERS = 1 << 17
"""Texts are hashed in batches of this size: small enough for the processor's cache, and a bound on memory.

A longer text is cut there, which spoils no more than `ngram_words` of about 20,000 shingles."""
_ALGORITHM_VERSION = 2


class BandHasher:
    """Computes the band hashes of texts, in batches."""

    def __init__(self, config: NearConfig) -> None:
        self._config = config
        self._sketch = _rensa_digest()
        self._parts: list[str] = []
        self._text_of_part: list[int] = []
        self._characters = 0
        self._texts = 0  # of the batch so far, as the next two
        self._shingles: list[U64] = []
        self._counts: list[npt.NDArray[np.int64]] = []
        self._bands: list[U64] = []

    def add(self, text: str) -> None:
        """Take in the next text."""
        lower = text.lower()
        for start in range(0, len(lower), _BATCH_CHARACTERS):
            part = lower[start : start + _BATCH_CHARACTERS]
            self._parts.append(part)
            self._text_of_part.append(self._texts)
            self._characters += len(part)
            if self._characters >= _BATCH_CHARACTERS:
                self._shingle()
        self._texts += 1
        if self._shingles:
            self._shingle()
            self._finish_batch()

    def take(self) -> tuple[U64, npt.NDArray[np.bool_]]:
        """Band hashes of all texts added since the last call.

        Returns:
            [N, bands] hashes, and [N] whether the text has a word; without one, its row means nothing.
        """
        self._shingle()
        self._finish_batch()
        bands = np.concatenate([np.empty((0, self._config.bands + 1), dtype=np.uint64), *self._bands])
        self._bands = []
        return bands[:, :-1], bands[:, -1] > 0

    def _shingle(self) -> None:
        """Turn the waiting parts into shingle hashes."""
        if not self._parts:
            return
        hashes, counts = shingle_hashes(self._parts, self._config.ngram_words)
        self._shingles.append(hashes)
        per_text = np.zeros(max(self._text_of_part) + 1, dtype=np.int64)
        np.add.at(per_text, self._text_of_part, counts)
        self._counts.append(per_text)
        self._parts, self._text_of_part, self._characters = [], [], 0

    def _finish_batch(self) -> None:
        """Turn the shingle hashes of the batch's texts into band hashes."""
        counts = np.zeros(self._texts, dtype=np.uint64)
        for part in self._counts:
            counts[: len(part)] += part.astype(np.uint64)
        flat = np.concatenate([np.empty(0, dtype=np.uint64), *self._shingles])
        offsets = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(counts)])
        values = self._sketch(flat, offsets, self._config.num_perm, self._config.seed)
        signatures = np.array(values.to_rows(), dtype=np.uint64).reshape(self._texts, self._config.num_perm)
        self._bands.append(np.column_stack([band_hashes(signatures, self._config.bands), counts]))
        self._texts, self._shingles, self._counts = 0, [], []


def band_hashes(signatures: U64, bands: int) -> U64:
    """[N, bands] one 64-bit hash per band of each signature; the band's number enters too.

    Args:
        signatures: [N, bands * rows] MinHash values below 2^32.
        bands: in how many bands a signature is cut.
    """
    values = signatures.reshape(len(signatures), bands, signatures.shape[1] // bands)
    hashes = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64), values.shape[:2]).copy()
    for row in range(values.shape[2]):
        hashes = mix(hashes ^ (values[:, :, row] << np.uint64(32)))
        hashes += np.uint64(row)
    return mix(hashes)


def _rensa_digest() -> Any:
    """Import rensa's sketching function and check that it computes what other workers compute.

    Raises:
        DataError: rensa is missing, or of another version of the algorithm.
    """
    # Workers are processes already: without this, each starts as many idle threads as the machine has cores.
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise DataError("near duplicates need rensa: pip install 'headwater[clean]'") from error
    if RMinHash.ALGORITHM_VERSION != _ALGORITHM_VERSION:
        found = f"rensa's MinHash is version {RMinHash.ALGORITHM_VERSION}, not {_ALGORITHM_VERSION}"
        raise DataError(f"{found}: pip install 'rensa>=0.5,<0.6', on every machine")
    return RMinHash.digest_matrix_from_flat_token_hashes
