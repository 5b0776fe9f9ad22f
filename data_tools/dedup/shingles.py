"""Words and shingles of texts as 64-bit hashes, computed by numpy over many texts at once.

A word is a run of letters, marks and digits, in lower case; punctuation and white space only separate. In
scripts that put no spaces between words (Han, kana, Thai, Lao, Myanmar, Khmer) each character is a word. A
shingle is `ngram_words` consecutive words of one text; a text with fewer words is one shingle of them all.

Hashes: a word is the polynomial of its code points in a fixed odd base modulo 2^64, a shingle the polynomial
of its words' hashes in another, each passed through the finaliser of MurmurHash3 (fmix64, Austin Appleby,
public domain), which spreads any difference over all bits.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

_WORD_BASE = 0x9E3779B97F4A7C15
_WORD_BASE_INVERSE = pow(_WORD_BASE, -1, 1 << 64)
_SHINGLE_BASE = np.uint64(0xD6E8FEB86659FD93)
_POINT_FACTOR, _POINT_OFFSET = np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9)

_POWER_ROW = 1024

_SEPARATOR, _LETTER, _WORD = 0, 1, 2
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x312F),  # CJK radicals, kana, Bopomofo
    (0x31A0, 0x9FFF),  # CJK ideographs, without Hangul, which has spaces
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


def shingle_hashes(texts: Sequence[str], ngram_words: int) -> tuple[U64, npt.NDArray[np.int64]]:
    """Hashes of the shingles of each text, in their order and with repeats.

    Args:
        texts: in lower case already; about 60 bytes of memory are taken per character of all of them.
        ngram_words: words in a shingle.

    Returns:
        [H] the hashes, text after text, and [len(texts)] how many each text has; 0 without a word.
    """
    words, words_per_text = _word_hashes(texts)
    text_of_word = np.repeat(np.arange(len(texts)), words_per_text)
    hashes = words.copy()
    for distance in range(1, ngram_words):
        hashes *= _SHINGLE_BASE
        inside = text_of_word[distance:] == text_of_word[:-distance]
        hashes[:-distance] += words[distance:] * inside
    full = words_per_text - (ngram_words - 1)
    counts = np.where(words_per_text > 0, np.maximum(full, 1), 0)
    first = np.cumsum(words_per_text) - words_per_text
    number_in_text = np.arange(len(words)) - np.repeat(first, words_per_text)
    return mix(hashes[number_in_text < np.repeat(counts, words_per_text)]), counts


def mix(values: U64) -> U64:
    """fmix64 of each value, in place where numpy allows."""
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


def _word_hashes(texts: Sequence[str]) -> tuple[U64, npt.NDArray[np.int64]]:
    """[W] hashes of all words, and [len(texts)] how many each text has."""
    joined = "\n".join(texts) + "\n"  # each text ends with a separator
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    kinds = _kinds()[points]
    starts_here = kinds == _WORD
    starts_here[0] |= kinds[0] == _LETTER
    starts_here[1:] |= (kinds[1:] == _LETTER) & (kinds[:-1] != _LETTER)
    starts = np.flatnonzero(starts_here)
    ends = np.cumsum([len(text) + 1 for text in texts])
    per_text = np.diff(np.searchsorted(starts, ends), prepend=0)
    if len(starts) == 0:
        return np.empty(0, dtype=np.uint64), per_text
    values = points * _POINT_FACTOR + _POINT_OFFSET
    values *= _powers(_WORD_BASE, len(points))
    values *= kinds != _SEPARATOR
    sums = np.add.reduceat(values, starts)  # up to the next word: separators count nothing
    return mix(sums * _powers(_WORD_BASE_INVERSE, len(points))[starts]), per_text


def _powers(base: int, count: int) -> U64:
    """[count] base^0, base^1, ... as an outer product, because a running product is 10 times slower."""
    rows = -(-count // _POWER_ROW)
    short, long = (
        np.full(_POWER_ROW, base, np.uint64),
        np.full(rows, pow(base, _POWER_ROW, 1 << 64), np.uint64),
    )
    short[0] = long[0] = 1
    short, long = np.multiply.accumulate(short), np.multiply.accumulate(long)
    return np.multiply.outer(long, short).reshape(-1)[:count]


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """Kind of every code point: 1.1 MB, made once in a process."""
    letters = (unicodedata.category(chr(point))[0] in "LMN" for point in range(0x110000))
    kinds: npt.NDArray[Any] = np.fromiter(letters, dtype=np.uint8, count=0x110000)
    for first, last in _UNSPACED:
        kinds[first : last + 1] *= _WORD
    return kinds
