"""Adds up what the chunks of a corpus held, and refuses a corpus of which too much is bad."""

from __future__ import annotations

from dataclasses import replace

from data_tools.documents import BadRecord, ReadCounts
from data_tools.errors import DataError
from data_tools.reading.inputs import Chunk


class Intake:
    """Adds up what the chunks of a corpus held, in their order, and numbers bad records by file.

    Memory does not grow with the corpus, however much of it is bad.

    Attributes:
        counts: totals so far.
        first_bad: the first bad record, `record` counted from 1 in its file; None if there was none.
    """

    def __init__(self) -> None:
        self.counts = ReadCounts()
        self.first_bad: BadRecord | None = None
        self._file_index = -1
        self._before = 0  # records of the file before the chunk that was added last
        self._file_records = 0

    def add(self, chunk: Chunk, counts: ReadCounts, first_bad: BadRecord | None) -> None:
        """Add the next chunk; `first_bad` is its first bad record as the reader gave it."""
        if chunk.file_index != self._file_index:
            self._file_index, self._file_records = chunk.file_index, 0
        self._before = self._file_records
        self._file_records += counts.records
        self.counts.add(counts)
        if first_bad is not None and self.first_bad is None:
            self.first_bad = self.number(first_bad)

    def number(self, record: BadRecord) -> BadRecord:
        """A bad record of the chunk that was added last, counted in its file instead of in the chunk."""
        return replace(record, record=record.record + self._before)

    def check(self, max_bad_fraction: float) -> None:
        """Refuse a corpus of which too many records are bad.

        Raises:
            DataError: names the first bad record, its reason, and the option to change.
        """
        check_fraction(max_bad_fraction)
        counts, first = self.counts, self.first_bad
        if first is not None and counts.bad > max_bad_fraction * counts.records:
            raise DataError(
                f"{counts.bad} of {counts.records} records hold no document, more than --max-bad-fraction "
                f"{max_bad_fraction:g}; the first is {first.path}:{first.record}: {first.reason}"
            )


def check_fraction(max_bad_fraction: float) -> None:
    """Raise a DataError unless the number is a fraction; nan is none."""
    if not 0 <= max_bad_fraction <= 1:
        raise DataError(f"--max-bad-fraction must lie in [0, 1], not {max_bad_fraction:g}")
