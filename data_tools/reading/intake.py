"""Adds up what the chunks of a corpus held, and refuses a corpus of which too much is bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from data_tools.documents import BadRecord, ReadCounts
from data_tools.errors import DataError
from data_tools.reading.inputs import Chunk


class Intake:
    """Adds up what the chunks of a corpus held, in their order, and numbers bad records by file.

    Attributes:
        counts: totals so far.
        bad_records: every bad record so far, `record` counted from 1 in its file.
    """

    def __init__(self) -> None:
        self.counts = ReadCounts()
        self.bad_records: list[BadRecord] = []
        self._file_index = -1
        self._file_records = 0

    def add(self, chunk: Chunk, counts: ReadCounts, bad_records: Sequence[BadRecord]) -> None:
        """Add the next chunk."""
        if chunk.file_index != self._file_index:
            self._file_index, self._file_records = chunk.file_index, 0
        self.bad_records += (replace(bad, record=bad.record + self._file_records) for bad in bad_records)
        self._file_records += counts.records
        self.counts.add(counts)

    def check(self, max_bad_fraction: float) -> None:
        """Refuse a corpus of which too many records are bad.

        Raises:
            DataError: names the first bad record, its reason, and the option to change.
        """
        counts = self.counts
        if counts.bad > max_bad_fraction * counts.records:
            first = self.bad_records[0]
            raise DataError(
                f"{counts.bad} of {counts.records} records hold no document, more than --max-bad-fraction "
                f"{max_bad_fraction:g}; the first is {first.path}:{first.record}: {first.reason}"
            )
