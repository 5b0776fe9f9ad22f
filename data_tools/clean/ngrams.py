"""Hashes of word n-grams of normalised text, and a compact set of them.

A text is lower-cased, its punctuation removed, its words joined by single spaces: then an n-gram is a slice
of bytes, and its hash one subtraction of prefix sums. With T a table of random 64-bit values and M odd,

    prefix(i) = sum of T[byte_j] * M^j over j < i,    hash(a, b) = (prefix(b) - prefix(a)) * M^-a   (mod 2^64)

which depends on the bytes in [a, b) only, not on where they stand.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

SEPARATOR = b"\n"
"""Between the texts of a batch; no n-gram reaches across it."""

_REACH = 1 << 15
_MULTIPLIER = 0xD1342543DE82EF95
_NOT_TEXT = re.compile(r"[^\w\s]|_")
_ASCII_NOT_TEXT = bytes(code for code in range(128) if not chr(code).isalnum() and not chr(code).isspace())
_ASCII_SPACES = bytes(32 if code < 128 and chr(code).isspace() else code for code in range(256))


def normalise(text: str) -> bytes:
    """A text as lower-case words without punctuation, joined by single spaces, in UTF-8."""
    text = text.lower()
    if not text.isascii():
        return " ".join(_NOT_TEXT.sub("", text).split()).encode()
    letters = text.encode().translate(_ASCII_SPACES, _ASCII_NOT_TEXT)
    if len(letters) < 1000:  # the faster way for short texts
        return b" ".join(letters.split())
    data = np.frombuffer(letters, np.uint8)
    space = data == 32
    keep = np.ones(len(data), bool)
    keep[1:] = ~(space[1:] & space[:-1])
    return data[keep].tobytes().strip(b" ")


class NGramHasher:
    """Hashes the word n-grams of a normalised text, for any n, from prefix sums that are made once.

    N-grams of more than 32 KiB are left out: no benchmark has such words.
    """

    def __init__(self, data: bytes) -> None:
        """Prepare the hashes.

        Args:
            data: what `normalise` returns, or several joined by `SEPARATOR`.
        """
        bytes_ = np.frombuffer(data, np.uint8)
        separators = bytes_ == SEPARATOR[0]
        breaks = np.flatnonzero((bytes_ == 32) | separators)
        self._starts = np.concatenate(([0], breaks + 1))[: len(data)]
        self._ends = np.concatenate((breaks, [len(data)]))[: len(data)]
        self._text_of = np.concatenate(([0], np.cumsum(separators))) if SEPARATOR in data else None
        # Sums of 64 KiB each, of which the n-grams that begin in the first half are taken.
        self._prefixes = [
            _prefix_sums(bytes_[base : base + 2 * _REACH]) for base in range(0, len(data), _REACH)
        ]

    def hashes(self, n: int) -> tuple[Hashes, Places]:
        """Hashes of the n-grams, in order, and the bytes at which they start: [K] each."""
        count = max(len(self._starts) - n + 1, 0)
        starts, ends = self._starts[:count], self._ends[n - 1 :]
        if len(self._prefixes) > 1 or self._text_of is not None:
            inside = ends - starts <= _REACH
            if self._text_of is not None:
                inside &= self._text_of[starts] == self._text_of[ends]
            starts, ends = starts[inside], ends[inside]
        inverses = _tables()[2]
        if len(self._prefixes) == 1:
            prefix = self._prefixes[0]
            return (prefix[ends] - prefix[starts]) * inverses[starts], starts
        hashes = np.empty(len(starts), np.uint64)
        limits = np.searchsorted(starts, np.arange(len(self._prefixes) + 1) * _REACH)
        for index, prefix in enumerate(self._prefixes):
            own = slice(limits[index], limits[index + 1])
            begin, end = starts[own] - index * _REACH, ends[own] - index * _REACH
            hashes[own] = (prefix[end] - prefix[begin]) * inverses[begin]
        return hashes, starts


def _prefix_sums(data: npt.NDArray[np.uint8]) -> Hashes:
    table, powers, _ = _tables()
    prefix = np.zeros(len(data) + 1, np.uint64)
    np.cumsum(table[data] * powers[: len(data)], out=prefix[1:])
    return prefix


@cache
def _tables() -> tuple[Hashes, Hashes, Hashes]:
    """T, the powers of M and those of its inverse: 256, 64 Ki and 64 Ki values."""
    table = np.random.Generator(np.random.PCG64(20240613)).integers(
        0, 1 << 64, 256, np.uint64, endpoint=False
    )
    powers = np.full(2 * _REACH, _MULTIPLIER, np.uint64)
    inverses = np.full(2 * _REACH, pow(_MULTIPLIER, -1, 1 << 64), np.uint64)
    powers[0] = inverses[0] = 1
    return table, np.cumprod(powers), np.cumprod(inverses)


class HashSet:
    """A set of hashes: sorted, behind a bit table that turns away nearly all that are not in it.

    Takes 8 bytes a hash, and 2 to 4 bytes a hash for the table of 16 to 32 bits a hash.
    """

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = np.unique(hashes)
        bits = max(16 * len(self.hashes) - 1, 1 << 10).bit_length()
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << (bits - 3), np.uint8)
        places = self.hashes >> self._shift
        np.bitwise_or.at(self._table, places >> np.uint64(3), _bit(places))

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return int(self.hashes.nbytes + self._table.nbytes)

    def find(self, hashes: Hashes) -> Places:
        """Indices of the hashes that are in the set."""
        places = hashes >> self._shift
        likely = np.flatnonzero(self._table[places >> np.uint64(3)] & _bit(places))
        if not len(likely) or not len(self.hashes):
            return likely[:0]
        at = np.searchsorted(self.hashes, hashes[likely])
        at[at == len(self.hashes)] = 0
        found: Places = likely[self.hashes[at] == hashes[likely]]
        return found


def _bit(places: Hashes) -> npt.NDArray[np.uint8]:
    return np.left_shift(np.uint8(1), (places & np.uint64(7)).astype(np.uint8))
