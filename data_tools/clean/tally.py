"""Integer counters under names of several parts."""

from __future__ import annotations


class Tally:
    """Counters that add up; a counter that was never raised does not show."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, count: int, *key: str) -> None:
        """Raise a counter."""
        if count:
            self._counts[key] = self._counts.get(key, 0) + count

    def get(self, *key: str) -> int:
        """A counter's value."""
        return self._counts.get(key, 0)

    def below(self, *prefix: str) -> list[str]:
        """The next parts of the names that begin with `prefix`, sorted."""
        depth = len(prefix)
        return sorted({key[depth] for key in self._counts if key[:depth] == prefix})

    def merge(self, other: Tally) -> None:
        """Add another tally's counters."""
        for key, count in other._counts.items():
            self.add(count, *key)
