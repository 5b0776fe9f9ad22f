"""What passes from the readers to the rest: documents, records that hold none, and how many of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(slots=True)  # not frozen: that would triple the time to make one
class Document:
    """One document of an input file.

    Attributes:
        position: where it begins in its file: increases through the file, unique in it, and the same however
            the file is cut into chunks. Bytes of the (decompressed) file, or the number of the row or record.
        text: its text, valid Unicode without lone surrogates, not only white space.
        id: what the input calls it (a key, a URL), or "".
        source: what the input says it comes from, or "".
        tokens: the ids of a document that comes tokenised already (`text` is "" then), or None.
    """

    position: int
    text: str
    id: str = ""
    source: str = ""
    tokens: npt.NDArray[np.uint32] | None = None


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that holds no document, for the quarantine.

    Attributes:
        path: the input file.
        record: number of its line, row or record: counted from 1 in the file, or in the chunk while reading.
        position: as in `Document`.
        reason: what is wrong with it.
        excerpt: how it begins.
    """

    path: str
    record: int
    position: int
    reason: str
    excerpt: str


@dataclass(slots=True)
class ReadCounts:
    """What a reading met; `records` has blank lines too, `empty` are documents without a word."""

    records: int = 0
    documents: int = 0
    empty: int = 0
    bad: int = 0

    def add(self, other: ReadCounts) -> None:
        """Add another reading's counts."""
        self.records += other.records
        self.documents += other.documents
        self.empty += other.empty
        self.bad += other.bad
