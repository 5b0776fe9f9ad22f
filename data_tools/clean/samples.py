"""A few documents of each kind, chosen by the hash of their text so that any partition chooses the same."""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

SAMPLES_PER_GROUP = 5

Group = tuple[str, str, str]
"""("dropped", step, rule) or ("changed", step, "")."""


@dataclass(frozen=True, order=True, slots=True)
class Sample:
    """A document to show.

    Attributes:
        hash: xxh3_128 of its text; the samples of a group are those with the smallest. Not to be published.
        source: as in `Document`, redacted.
        id: as in `Document`, redacted.
        position: as in `Document`.
        detail: the measured value that dropped it.
        before: how it begins or, where it was edited, what stood around the first difference; "" where all
            that differs may not be shown.
        after: what stands there now; "" for a dropped document.
    """

    hash: str
    source: str
    id: str
    position: int
    detail: str
    before: str
    after: str


class Samples:
    """The samples of all groups."""

    def __init__(self) -> None:
        self._groups: defaultdict[Group, list[Sample]] = defaultdict(list)

    def wants(self, group: Group, digest: str) -> bool:
        """Whether a document with this hash would be among the samples."""
        samples = self._groups[group]
        return len(samples) < SAMPLES_PER_GROUP or digest <= samples[-1].hash

    def add(self, group: Group, sample: Sample) -> None:
        """Add a sample; the one with the largest hash goes."""
        samples = self._groups[group]
        insort(samples, sample)
        del samples[SAMPLES_PER_GROUP:]

    def merge(self, other: Samples) -> None:
        """Add another partition's samples."""
        for group, samples in other._groups.items():
            for sample in samples:
                self.add(group, sample)

    def to_json(self) -> list[dict[str, Any]]:
        """Groups in order, each with its samples in order."""
        return [
            {"kind": kind, "step": step, "rule": rule, "documents": [asdict(sample) for sample in samples]}
            for (kind, step, rule), samples in sorted(self._groups.items())
            if samples
        ]

    @classmethod
    def from_json(cls, data: list[dict[str, Any]]) -> Samples:
        """The samples that `to_json` described."""
        found = cls()
        for group in data:
            for sample in group["documents"]:
                found.add((group["kind"], group["step"], group["rule"]), Sample(**sample))
        return found
