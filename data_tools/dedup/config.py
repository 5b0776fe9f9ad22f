"""What is a duplicate: the `dedup` section of a cleaning configuration.

With b bands of r rows, two documents whose sets of shingles have Jaccard similarity s share a band, and so
become candidates, with probability 1 - (1 - s^r)^b: the S-curve of locality-sensitive hashing (Leskovec,
Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4). For the defaults, 14 bands of 8 rows:

    s   0.5    0.6    0.7    0.75   0.8    0.85   0.9    0.95
    p   0.053  0.211  0.565  0.772  0.924  0.988  0.9996 1.0000

They are FineWeb's (Penedo et al. 2024, arXiv:2406.17557, section 3.3): 5-grams of words, 112 hash functions,
aimed at documents that are at least 75 % alike.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class NearConfig(BaseModel):
    """Near duplicates: MinHash signatures of word shingles, compared band by band."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bands: int = Field(default=14, ge=1, le=256)
    """Bands of a signature; one equal band makes two documents duplicates."""
    rows: int = Field(default=8, ge=1, le=64)
    """MinHash values in a band; all of them must be equal."""
    ngram_words: int = Field(default=5, ge=1, le=64)
    """Words in a shingle."""
    seed: int = Field(default=1, ge=0, lt=1 << 64)
    """Of the hash functions."""

    @property
    def num_perm(self) -> int:
        """MinHash values of a signature."""
        return self.bands * self.rows

    def match_probability(self, similarity: float) -> float:
        """How probably two documents of this Jaccard similarity (0 to 1) share a band."""
        return float(1.0 - (1.0 - similarity**self.rows) ** self.bands)


class DedupConfig(BaseModel):
    """Which duplicates go; of each group the first document, by file and then by place in it, stays."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    exact: bool = True
    """Drop documents whose text is equal up to white space."""
    near: NearConfig | None = None
    """Drop near duplicates too; null for none."""
