"""Gopher's repetition rules: Rae et al. 2021, arXiv:2112.11446, appendix A1.1 and table A1.

Characters are those of words, without white space. An n-gram, line or paragraph is a duplicate where it
occurs for the second time or later.

Legend: W words of the text, U different words.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_tools.clean.config import RepetitionConfig
from data_tools.clean.page import Page, duplicate_character_fraction, duplicate_fraction

Keys = npt.NDArray[np.uint64]
Lengths = npt.NDArray[np.int64]

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class RepetitionRules:
    """Tells which repetition rule a page breaks."""

    def __init__(self, config: RepetitionConfig) -> None:
        self._config = config
        self._top = sorted(config.max_top_ngram_character_fraction.items())
        self._duplicate = sorted(config.max_duplicate_ngram_character_fraction.items())

    def broken(self, page: Page) -> tuple[str, str] | None:
        """The first broken rule and the measured fraction, or None."""
        return self._broken_by_units(page) or self._broken_by_ngrams(page)

    def _broken_by_units(self, page: Page) -> tuple[str, str] | None:
        config = self._config
        for rule, limit, units, measure in (
            ("duplicate_line", config.max_duplicate_line_fraction, page.lines, duplicate_fraction),
            (
                "duplicate_line_character",
                config.max_duplicate_line_character_fraction,
                page.lines,
                duplicate_character_fraction,
            ),
            (
                "duplicate_paragraph",
                config.max_duplicate_paragraph_fraction,
                page.paragraphs,
                duplicate_fraction,
            ),
            (
                "duplicate_paragraph_character",
                config.max_duplicate_paragraph_character_fraction,
                page.paragraphs,
                duplicate_character_fraction,
            ),
        ):
            if limit is not None and (fraction := measure(units)) > limit:
                return rule, f"{fraction:.3f}"
        return None

    def _broken_by_ngrams(self, page: Page) -> tuple[str, str] | None:
        if not page.words or not (self._top or self._duplicate):
            return None
        ngrams = NGrams(page)
        # Longer n-grams occur no more often than shorter ones and cover no more: a result bounds the next.
        most = duplicates = len(page.words)
        covered = page.word_characters
        for n, limit in self._top:
            if most * ngrams.longest(n) > limit * page.word_characters:
                most, characters = ngrams.top(n)
                if characters > limit * page.word_characters:
                    return f"top_{n}gram", f"{characters / page.word_characters:.3f}"
        for n, limit in self._duplicate:
            if min(covered, duplicates * ngrams.longest(n)) > limit * page.word_characters:
                duplicates, covered = ngrams.duplicate(n)
                if covered > limit * page.word_characters:
                    return f"duplicate_{n}gram", f"{covered / page.word_characters:.3f}"
        return None


class NGrams:
    """The word n-grams of a page as 64-bit keys; equal n-grams have equal keys."""

    def __init__(self, page: Page) -> None:
        vocabulary = page.vocabulary
        numbers = np.fromiter(map(vocabulary.__getitem__, page.words), np.int64, len(page.words))
        of_words = np.fromiter(map(len, vocabulary), np.int64, len(vocabulary))
        self._words = _scramble(numbers)
        self._ends = np.concatenate(([0], np.cumsum(of_words[numbers])))

    def lengths(self, n: int) -> Lengths:
        """Characters of each n-gram: [W - n + 1], none where the text is shorter."""
        return self._ends[n:] - self._ends[:-n]

    def longest(self, n: int) -> int:
        """Characters of the longest n-gram; 0 where there is none."""
        return int(self.lengths(n).max(initial=0))

    def top(self, n: int) -> tuple[int, int]:
        """How often the most frequent n-gram occurs, and the characters of all its occurrences.

        Of equally frequent ones the longest counts. One that occurs only once has no characters.
        """
        positions, repeated = self._grouped(n)
        first = np.flatnonzero(~repeated)
        counts = np.diff(first, append=len(positions))
        most = int(counts.max(initial=0))
        if most < 2:
            return most, 0
        return most, most * int(self.lengths(n)[positions[first[counts == most]]].max())

    def duplicate(self, n: int) -> tuple[int, int]:
        """How many n-grams occurred before, and the characters they cover, each counted once."""
        positions, repeated = self._grouped(n)
        starts = positions[repeated]
        covered = np.zeros(len(self._words) + 1, np.int64)
        covered[starts] = 1  # no start is there twice, so plain assignment adds up
        covered[starts + n] -= 1
        inside = np.cumsum(covered)[:-1] > 0
        return len(starts), int(np.diff(self._ends)[inside].sum())

    def _grouped(self, n: int) -> tuple[Lengths, npt.NDArray[np.bool_]]:
        """Positions of the n-grams with equal ones side by side, in order; and which equal the one before.

        The position takes the low bits of a key, so that one sort of integers does it: for a text of a
        thousand words 54 bits of the key are left, for a million 44.
        """
        count = max(len(self._words) - n + 1, 0)
        bits = np.uint64(max(count.bit_length(), 1))
        packed = np.sort((self._keys(n) << bits) | np.arange(count, dtype=np.uint64))
        keys = packed >> bits
        repeated = np.zeros(count, bool)
        repeated[1:] = keys[1:] == keys[:-1]
        return (packed ^ (keys << bits)).astype(np.int64), repeated

    def _keys(self, n: int) -> Keys:
        """Keys of the n-grams: [W - n + 1], none where the text is shorter."""
        count = max(len(self._words) - n + 1, 0)
        keys = self._words[:count]
        for k in range(1, n):
            keys = keys * _MULTIPLIER + self._words[k : k + count]
        return keys


def _scramble(numbers: npt.NDArray[np.int64]) -> Keys:
    """A pseudo-random 64-bit value for each number (the finaliser of splitmix64, Steele et al. 2014)."""
    value = numbers.astype(np.uint64) * _MULTIPLIER + _MULTIPLIER
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
