"""A text cut into the units that quality rules count: lines, paragraphs, words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import count

_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")


class Page:
    """The units of a text, each cut once and only when a rule asks for it.

    Attributes:
        text: the text itself.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        """What white space separates, punctuation included."""
        return self.text.split()

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The different words, numbered in the order in which they appear."""
        return dict(zip(dict.fromkeys(self.words), count(), strict=False))

    @cached_property
    def word_characters(self) -> int:
        """Characters of all words together: the text without its white space."""
        return len("".join(self.words))

    @cached_property
    def lines(self) -> list[str]:
        """Lines without surrounding white space; blank ones are left out."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What blank lines separate, without surrounding white space."""
        return [part for part in map(str.strip, _PARAGRAPH_BREAK.split(self.text)) if part]


def duplicate_fraction(units: Sequence[str]) -> float:
    """Fraction of units that are equal to an earlier one."""
    return (len(units) - len(set(units))) / len(units) if units else 0.0


def duplicate_character_fraction(units: Sequence[str]) -> float:
    """Fraction of the units' characters that are in units equal to an earlier one."""
    total = sum(map(len, units))
    return (total - sum(map(len, set(units)))) / total if total else 0.0
