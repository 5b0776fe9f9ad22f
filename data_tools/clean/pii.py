"""The step `pii`: personal data and secret keys are replaced by stand-ins or tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from data_tools.clean.config import PiiConfig
from data_tools.clean.libraries import optional
from data_tools.clean.outcome import Verdict
from data_tools.clean.pii_kinds import KINDS, Found, Kind
from data_tools.clean.pii_phone import PHONE
from data_tools.clean.pii_stand_ins import StandIns

_MAX_ROUNDS = 4
"""A replacement can make its neighbour recognisable; no text is known that needs a third round."""


class PiiScrubber:
    """Replaces personal data until none is found, so that a second scrubbing changes nothing."""

    def __init__(self, config: PiiConfig) -> None:
        re2 = optional("re2", "pii")
        self._kinds = [
            (kind, re2.compile(kind.pattern)) for kind in (*KINDS, PHONE) if kind.name in config.kinds
        ]
        self._tag = config.mode == "tag"
        self._stand_ins = StandIns(config.salt)

    def __call__(self, text: str) -> Verdict:
        """The scrubbed text; changes count the replacements of each kind as `pii.email`..."""
        data = text.encode()
        counts: Counter[str] = Counter()
        for _ in range(_MAX_ROUNDS):
            before = data
            for kind, pattern in self._kinds:
                data = self._scrub(data, kind, pattern, counts)
            if data is before:
                break
        if not counts:
            return Verdict(text)
        return Verdict(data.decode(), changes=tuple((f"pii.{name}", n) for name, n in sorted(counts.items())))

    def _scrub(self, data: bytes, kind: Kind, pattern: Any, counts: Counter[str]) -> bytes:
        if kind.gates and not any(gate in data for gate in kind.gates):
            return data
        parts: list[bytes] = []
        done = 0
        for (start, stop), canonical in find(data, kind, pattern):
            parts += (data[done:start], self._replacement(kind.name, canonical))
            done = stop
            counts[kind.name] += 1
        return data if not parts else b"".join((*parts, data[done:]))

    def _replacement(self, name: str, canonical: bytes) -> bytes:
        return f"<{name.upper()}>".encode() if self._tag else self._stand_ins.make(name, canonical)


def find(data: bytes, kind: Kind, pattern: Any) -> Iterator[Found]:
    """Yield the places of a kind in a text, in order, without overlap.

    Args:
        data: UTF-8 text.
        kind: what to look for.
        pattern: `kind.pattern`, compiled by RE2.
    """
    position = 0
    while match := pattern.search(data, position):
        group = match.lastindex or 0
        start, stop = match.span(group)
        found = kind.check(data, start, stop)
        if found is not None:
            yield found
            position = found[0][1]
        else:
            position = start + 1 if kind.retry else stop
